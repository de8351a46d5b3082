"""Pictures of what pruning keeps, drawn with Pillow only."""

from ..data.geometry import tile_layout, visible_part
from ..data.tiles import TiledPicture
from .comparison import Panel, comparison, comparison_svg
from .merging import merge_targets, record_selections
from .overlay import overlay, scale_to_grid

__all__ = [
    "Panel",
    "TiledPicture",
    "comparison",
    "comparison_svg",
    "merge_targets",
    "overlay",
    "record_selections",
    "scale_to_grid",
    "tile_layout",
    "visible_part",
]

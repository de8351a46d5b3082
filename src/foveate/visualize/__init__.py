"""Pictures of what pruning keeps, drawn with Pillow only."""

from ..data.geometry import seen, tile_layout
from .comparison import Panel, comparison
from .merging import flows, watched
from .overlay import overlay, readable

__all__ = ["Panel", "comparison", "flows", "overlay", "readable", "seen", "tile_layout", "watched"]

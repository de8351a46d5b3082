"""Pictures of what pruning keeps, drawn with Pillow only."""

from .comparison import Panel, comparison
from .geometry import seen
from .overlay import overlay, readable

__all__ = ["Panel", "comparison", "overlay", "readable", "seen"]

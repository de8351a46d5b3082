"""IAM: layers of a large language model that take the attention of a small one of its family.

Attention maps of models of one family are alike. Both models run in step on the same tokens. In a mapped layer of the
large one each head is given the attention row of that head of the small one whose map was most like its own on the
first tokens of the prompt. Such a layer projects no queries and no keys, and caches values alone.

From IAM (2507.11953), of which a note and the abstract were read, but no code. `foveate.guided` is the same thought for
pruning: tokens that a small model attends to are what the large one is given.
"""

from .layers import RankedLayer, choose_layers, rank_layers
from .mapping import AttentionMapping, MappingReport, map_attention
from .similarity import Measure

__all__ = [
    "AttentionMapping",
    "MappingReport",
    "Measure",
    "RankedLayer",
    "choose_layers",
    "map_attention",
    "rank_layers",
]

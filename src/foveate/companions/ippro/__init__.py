"""IPPRO: structured pruning of weights by projective offsets, a reading of the abstract and of reviews of the paper.

Heads, feed-forward neurons and residual channels of a language model, and neurons of the vision encoder, are scored,
and the lowest are taken out at once, until a share of the FLOPs is gone. Matrices become smaller; nothing is masked.

```python
from foveate.companions.ippro import remove_structures, save, load

removal = remove_structures(model, flops=0.2, inputs=inputs, batches=batches)   # batches with labels
print(removal.share, removal.flops_before, removal.flops_after)
save(model, "smaller"); model = load("smaller")
```
"""

from .choice import Removal, Within, choose, remove_structures
from .scores import (
    Criterion,
    Measurement,
    magnitude_scores,
    measure,
    projective_score,
    projective_scores,
    taylor_scores,
)
from .structures import Kind, Structures, find_structures, load, save, shrink

__all__ = [
    "Criterion",
    "Kind",
    "Measurement",
    "Removal",
    "Structures",
    "Within",
    "choose",
    "find_structures",
    "load",
    "magnitude_scores",
    "measure",
    "projective_score",
    "projective_scores",
    "remove_structures",
    "save",
    "shrink",
    "taylor_scores",
]

"""The Mixture Compressor (arXiv 2410.06270): the experts of a model in 1, 2 or 3 bits, more for those that matter.

Of its two parts this is the first, PMQ, which makes the weights smaller ahead of time. The second, ODP, skips experts
while the model runs, and is the method ``modes`` with ``rule="ratio"``.

```python
from foveate.companions.mixture import compress, load, measure_experts, plan_model, save

plan = plan_model(measure_experts(model, batches), bits=2)  # batches of processor outputs
print(compress(model, plan))
save(model, "smaller"); model = load("smaller")
```
"""

from .bit_plan import BitPlan, CompressionError, plan_bits
from .experts import Memory, PackedExperts, compress, simulate, uniform_plan
from .rounding import PackedWeight, pack, restore_weight, round_weight, stored_bytes, unpack
from .significance import Significance, measure_experts, plan_model
from .storage import load, save

__all__ = [
    "BitPlan",
    "CompressionError",
    "Memory",
    "PackedExperts",
    "PackedWeight",
    "Significance",
    "compress",
    "load",
    "measure_experts",
    "pack",
    "plan_bits",
    "plan_model",
    "restore_weight",
    "round_weight",
    "save",
    "simulate",
    "stored_bytes",
    "uniform_plan",
    "unpack",
]

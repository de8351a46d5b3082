"""The parts of `scripts/gpu_check.py`: everything that only a GPU can show, in one run of a few minutes.

`runner` runs each part in a process of its own, `records` is what the two tell each other, `report` writes it down; the
other modules are the parts.
"""

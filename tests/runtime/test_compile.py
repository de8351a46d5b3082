"""A compiled forward prunes like a plain one; generate compiles by itself for static caches on a GPU."""

from __future__ import annotations

import pytest
import torch

import foveate
from tiny_models import Zoo

from .helpers import gap, generate, single


@pytest.mark.slow
def test_a_compiled_forward_gives_the_same_logits(llava: Zoo) -> None:
    inputs = single(llava)
    methods = ["divprune", "fastv", foveate.get_method("pyramiddrop", layers=[3])]
    with foveate.prune(llava.model, methods, keep=[0.6, 0.3, 0.2]):
        plain = generate(llava, inputs)
        # The backend runs the traced graphs as they are: what is tested is the tracing around the hooks.
        llava.model.forward = torch.compile(llava.model.forward, backend="eager")
        try:
            assert gap(plain, generate(llava, inputs, cache_implementation="static")) < 2e-5
        finally:
            del llava.model.forward
            torch._dynamo.reset()

"""A compiled forward prunes like a plain one; generate compiles by itself for static caches on a GPU."""

from __future__ import annotations

import pytest
import torch
from zoo import Zoo

import foveate

from .helpers import gap, generate, single


@pytest.mark.slow
def test_a_compiled_forward_gives_the_same_logits(llava: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = single(llava)
    with foveate.prune(llava.model, ["divprune", "fastv"], keep=[0.6, 0.3]):
        plain = generate(llava, inputs)
        # The backend runs the traced graphs as they are: what is tested is the tracing around the hooks.
        monkeypatch.setattr(llava.model, "forward", torch.compile(llava.model.forward, backend="eager"), raising=False)
        try:
            assert gap(plain, generate(llava, inputs, cache_implementation="static")) < 2e-5
        finally:
            torch._dynamo.reset()

"""What the tests of trained scorers share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foveate.models import adapter_of
from tiny_models import Zoo


def entering(zoo: Zoo, batch: dict[str, Tensor]) -> dict[str, Any]:
    """The keyword arguments that the language model is called with, behind every hook that is attached."""
    found: dict[str, Any] = {}
    text = adapter_of(zoo.model).text
    handle = text.register_forward_pre_hook(lambda module, args, kwargs: found.update(kwargs), with_kwargs=True)
    zoo.model(**batch)
    handle.remove()
    return found


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Whatever is done in here must leave a model's weights as they were, without gradients and able to have some."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    yield
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def check_resuming(
    train: Callable[..., Any], out: Path, whole: Path, result: str, steps: int, last: int, save_every: int
) -> None:
    """A training whose process dies in step `last` ends, byte for byte, as the one in `whole` that nothing interrupted.

    What it did since the latest checkpoint is done again. `train` takes the folder, ``on_step`` and ``save_every``.
    """

    def die(log: Any) -> None:
        if log.step == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(out, on_step=die, save_every=save_every)
    assert not (out / result).exists()
    done: list[int] = []
    train(out, on_step=lambda log: done.append(log.step), save_every=save_every)
    assert done == list(range(save_every * ((last + 1) // save_every), steps))
    for name in (result, "log.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()

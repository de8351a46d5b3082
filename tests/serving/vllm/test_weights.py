"""A scorer and a prior that lie in a checkpoint's folder, as the docs advise, are not weights of the model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import safetensors.torch as files
import torch

from foveate.data import shipped_models
from foveate.data.shipped import DEFAULT

pytestmark = pytest.mark.vllm


class Loader:
    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return {name for name, _ in weights}


def test_only_the_models_own_tensors_are_loaded() -> None:
    model = pytest.importorskip("foveate.serving.vllm.model")

    class Pruned(model.PrunesImages, Loader):  # type: ignore[misc, name-defined]
        _pruner = None

        def __init__(self) -> None:
            pass

    def tensors(paths: Iterable[Path]) -> dict[str, torch.Tensor]:
        return {name: tensor for path in paths for name, tensor in files.load_file(path).items()}

    folder = shipped_models()[DEFAULT]
    every, own = tensors(folder.glob("*.safetensors")), tensors([folder / "model.safetensors"])
    assert len(every) == len(own) + 5  # two maps with their biases, and a prior
    assert Pruned().load_weights(every.items()) == set(own)

"""A scorer and a prior that lie in a checkpoint's folder, as the docs advise, are not weights of the model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import safetensors.torch as files
import torch

from foveate.data import shipped_models
from foveate.data.shipped import DEFAULT
from foveate.importance import LearnedScorer
from foveate.importance.evidence_scorer import SHIPPED, EvidenceScorer, EvidenceShape

pytestmark = pytest.mark.vllm


class Loader:
    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return {name for name, _ in weights}


def test_only_the_models_own_tensors_are_loaded(tmp_path: Path) -> None:
    model = pytest.importorskip("foveate.serving.vllm.model")

    class Pruned(model.PrunesImages, Loader):  # type: ignore[misc, name-defined]
        _pruner = None

        def __init__(self) -> None:
            pass

    def tensors(paths: Iterable[Path]) -> dict[str, torch.Tensor]:
        return {name: tensor for path in paths for name, tensor in files.load_file(path).items()}

    folder = shipped_models()[DEFAULT]
    evidence = tmp_path / SHIPPED
    base = LearnedScorer.load(folder)
    EvidenceScorer(EvidenceShape(base.hidden_size, base=len(base.q_weight)), base).save(evidence)
    every, own = tensors([*folder.glob("*.safetensors"), evidence]), tensors([folder / "model.safetensors"])
    assert len(every) == len(own) + 5 + len(tensors([evidence]))  # two maps with their biases, a prior, and all of it
    assert Pruned().load_weights(every.items()) == set(own)

"""A budget that the images of a prompt share by age."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import foveate
import tiny_models
from tiny_models import Zoo

from .helpers import TEXTS, gap, generate, logits


def history(z: Zoo, images: int = 4) -> dict[str, torch.Tensor]:
    pictures = [tiny_models.picture(112, 112, seed) for seed in range(images)]
    return tiny_models.inputs(z, [pictures], TEXTS[:1])


@pytest.mark.parametrize("method", ["divprune", "fastv", "idpruner", "pyramiddrop", "nuwa"])
def test_the_newest_keeps_most(zoo: Zoo, method: str) -> None:
    with foveate.prune(zoo.model, method, keep=0.6, scope="conversation") as pruning:
        held = generate(zoo, history(zoo))
        report = pruning.report()
        assert gap(held, generate(zoo, history(zoo), use_cache=False)) < 2e-5
    kept = [image.tokens for image in report.images]
    assert kept == sorted(kept) and kept[0] < kept[-1]
    if method != "nuwa":  # whose budget is the average over the layers
        assert kept == foveate.Budget(0.6, "conversation").split([16] * 4) == [3, 6, 13, 16]


def test_each_image_is_pruned_as_with_a_budget_of_its_own(zoo: Zoo) -> None:
    """The choice within an image is that of its count."""
    inputs = history(zoo)
    with foveate.prune(zoo.model, "divprune", keep=0.5, scope=foveate.Conversation(decay=0.3)) as pruning:
        logits(zoo, inputs)
        shared = pruning.report().images
    for place, image in enumerate(shared):
        with foveate.prune(zoo.model, "divprune", keep=max(2, image.tokens)) as pruning:
            logits(zoo, inputs)
            alone = pruning.report().images[place]
        assert image.tokens == 1 or torch.equal(image.kept, alone.kept)


def test_prompts_of_a_batch_share_each_their_own(qwen: Zoo) -> None:
    pictures = [[tiny_models.picture(112, 112, 0)], [tiny_models.picture(112, 112, s) for s in (1, 2, 3)]]
    with foveate.prune(qwen.model, "divprune", keep=0.5, scope="conversation") as pruning:
        logits(qwen, tiny_models.inputs(qwen, pictures, TEXTS))
        kept = [image.tokens for image in pruning.report().images]
    budget = foveate.Budget(0.5, "conversation")
    assert kept == [*budget.split([16]), *budget.split([16] * 3)]


def test_a_configuration_holds_it(tmp_path: Any) -> None:
    for scope in ("conversation", foveate.Conversation(0.8)):
        config = foveate.PruningConfig("divprune", keep=0.5, scope=scope)
        config.save_pretrained(tmp_path)
        assert foveate.PruningConfig.from_pretrained(tmp_path) == config
        json.dumps(config.to_dict())
    with pytest.raises(foveate.ConfigError, match="scope="):
        foveate.PruningConfig.from_dict({"method": "divprune", "scope": {"conversation": 0.5}})


def test_before_the_encoder_it_is_refused(qwen: Zoo) -> None:
    with pytest.raises(foveate.MethodError, match="does not know which images share a prompt"):
        foveate.prune(qwen.model, "pixelprune", keep=0.5, scope="conversation")

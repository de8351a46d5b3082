"""The prior is the attention that the last prompt token pays, averaged over images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import foveate
import tiny_models as zoo_module
from foveate.importance.attention_prior import AttentionPrior
from foveate.runtime.calibration import measure_prior
from tiny_models import Zoo

from .helpers import TEXTS, generate, kernels, logits, single, visual


def prompts(z: Zoo) -> list[dict[str, torch.Tensor]]:
    return [zoo_module.inputs(z, [[zoo_module.picture(84, 112, seed)]], TEXTS[:1]) for seed in (0, 1)]


def test_it_is_the_mean_of_eager_attention(zoo: Zoo) -> None:
    prior = measure_prior(zoo.model, prompts(zoo), layer=2)
    maps = []
    with kernels(zoo.model, "eager"):
        for inputs in prompts(zoo):
            with torch.no_grad():
                attention = zoo.model(**inputs, output_attentions=True).attentions[1]  # the layer below layer 2
            maps.append(attention[0, :, -1].mean(0)[visual(zoo, inputs)[0]])
    assert torch.allclose(prior.map.flatten(), torch.stack(maps).mean(0), atol=1e-6)
    assert (prior.layer, prior.images) == (2, 2)
    assert not any(module._forward_pre_hooks for module in zoo.model.modules())


def test_the_map_of_tiles_is_their_mean() -> None:
    internvl = zoo_module.internvl()
    one = zoo_module.inputs(internvl, [[zoo_module.picture(seed=0), zoo_module.picture(seed=1)]], TEXTS[:1])
    prior = measure_prior(internvl.model, [one], layer=2)
    with kernels(internvl.model, "eager"), torch.no_grad():
        attention = internvl.model(**one, output_attentions=True).attentions[1][0, :, -1].mean(0)
    tiles = attention[visual(internvl, one)[0]].view(2, -1)
    assert torch.allclose(prior.map.flatten(), tiles.mean(0), atol=1e-6) and prior.images == 1
    assert not torch.allclose(tiles[0], tiles[1], atol=1e-4)  # else this test proves nothing


def test_images_of_several_sizes_in_a_prompt(qwen: Zoo) -> None:
    two = zoo_module.inputs(qwen, [[zoo_module.picture(84, 112), zoo_module.picture(56, 168)]], TEXTS[:1])
    with pytest.raises(foveate.FoveateError, match="images of several sizes; every input needs just one"):
        measure_prior(qwen.model, [two], layer=2)


def test_d2pruner_runs_with_the_measured_prior(zoo: Zoo, tmp_path: Path) -> None:
    path = tmp_path / "prior.safetensors"
    measure_prior(zoo.model, prompts(zoo), layer=2).save(path)
    with foveate.prune(zoo.model, "d2pruner", keep=0.4, prior=str(path)) as pruning:
        generate(zoo, single(zoo))
        image = pruning.report().images[0]
    assert image.tokens == foveate.Budget(0.4).count(image.tokens_before)
    assert AttentionPrior.load(path).layer == 2


@pytest.mark.parametrize(("layer", "match"), [(0, "not between 1 and 3"), (4, "not between 1 and 3")])
def test_layers_that_do_not_exist(zoo: Zoo, layer: int, match: str) -> None:
    with pytest.raises(foveate.FoveateError, match=match):
        measure_prior(zoo.model, prompts(zoo), layer=layer)


def test_prompts_without_images(zoo: Zoo) -> None:
    words = {k: v for k, v in zoo.processor.tokenize(["<s>" + TEXTS[0]]).items() if k != "mm_token_type_ids"}
    plain = logits(zoo, words)
    with pytest.raises(foveate.FoveateError, match="every input needs one"):
        measure_prior(zoo.model, [words], layer=2)
    with pytest.raises(foveate.FoveateError, match="no images"):
        measure_prior(zoo.model, [], layer=2)
    assert torch.equal(logits(zoo, words), plain)

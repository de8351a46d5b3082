"""RESTORE: attention whose keys count as often as they stand for tokens, in loops, and caches, batches and beams."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
import tiny_models as zoo_module
from foveate.errors import MethodError, ModelError
from foveate.methods import get_method
from foveate.methods.anchormerge import AnchorMerge
from foveate.runtime.compat import cache_of_output
from foveate.tokens import Selection, VisualTokens
from runtime.helpers import TEXTS, assert_generates_alike, cached, gap, generate, kernels, logits, pair, single, visual
from tiny_models import Zoo


@dataclass(frozen=True)
class Watched(AnchorMerge):
    """Anchor merging that remembers what flowed where."""

    name = "anchormerge"
    seen: list[Selection] = field(default_factory=list, compare=False)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        self.seen.append(super().select(tokens, count))
        return self.seen[-1]


@pytest.mark.parametrize("ceiling", [2.0, 1.5, None])
@pytest.mark.parametrize("make", [zoo_module.llava, zoo_module.internvl], ids=lambda make: make.__name__)
def test_it_equals_copies_of_keys(make: Any, ceiling: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each weight times the tokens that the key stands for, and times the ceiling less the decay, then normalised."""
    model = make()
    inputs, method = pair(model), Watched()
    with foveate.prune(model.model, "restore", keep=0.4, ceiling=ceiling):
        found = logits(model, inputs)
    with foveate.prune(model.model, method, keep=0.4) as pruning:
        plain = logits(model, inputs)
        step = pruning._last
        assert step is not None and step.before is not None
        index, real = step.before.index, step.before.valid
        spans = [span.index.tolist() for span in step.spans]
    (selection,) = method.seen
    size = torch.ones(index.shape)
    for row in range(2):
        into = [spans[row][target] for target in selection.target[row].tolist() if target >= 0]
        for w in range(index.shape[1]):
            if visual(model, inputs)[row, index[row, w]] and real[row, w]:
                size[row, w] = into.count(int(index[row, w]))
    image = visual(model, inputs).gather(1, index) & real
    share = torch.tensor([16 / 6, 16 / 6])  # 6 of 16 tokens of each image are kept
    assert size[image].max() > 2 and image.sum(1).tolist() == [6, 6]
    position = (inputs["attention_mask"].cumsum(1) - 1).gather(1, index)
    angle = (position[:, :, None] - position[:, None]).double()[..., None] * 10000.0 ** (-torch.arange(0, 16, 2) / 16)
    factor = 1.0 if ceiling is None else (ceiling - angle.cos().mean(-1))[:, None]

    module = sys.modules[type(model.model.model.language_model.layers[0].self_attn).__module__]
    eager = module.eager_attention_forward
    layers = [layer.self_attn for layer in model.model.model.language_model.layers]

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        if module not in layers:
            return eager(module, query, key, value, *args, **kwargs)
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        mask = args[0] == 0 if args[0].dtype != torch.bool else args[0]
        weight = (query @ key.mT * kwargs["scaling"]).double().exp() * mask * factor
        times = torch.where(image, share[:, None], 1.0) if module.layer_idx == 0 else size
        weight = weight * times[:, None, None]
        weight = weight / weight.sum(-1, keepdim=True).clamp_min(1e-300)
        return (weight.float() @ value).transpose(1, 2), None

    monkeypatch.setattr(module, "eager_attention_forward", attend)
    with kernels(model.model, "eager"), foveate.prune(model.model, get_method("anchormerge"), keep=0.4):
        expected = logits(model, inputs)
    torch.testing.assert_close(found[real], expected[real], atol=3e-5, rtol=1e-4)
    assert float((found - plain)[real].abs().max()) > 0.05  # else this test proves nothing


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "with fastv"])
def test_generation(zoo: Zoo, inside: bool) -> None:
    """What is generated sees sizes, cached or not; batches, kernels and beams make no difference."""
    method: Any = ["restore", "fastv"] if inside else "restore"
    both, one = pair(zoo), single(zoo)
    plain = generate(zoo, both)
    with foveate.prune(zoo.model, method, keep=[0.6, 0.3] if inside else 0.4):
        assert_generates_alike(zoo)
        bare = {k: v for k, v in one.items() if k != "attention_mask"}
        assert torch.allclose(logits(zoo, one)[:, -1], logits(zoo, bare, use_cache=False)[:, -1], atol=1e-5)
        beams = generate(zoo, both, num_beams=3, output_logits=False).sequences
        uncached = generate(zoo, both, num_beams=3, output_logits=False, use_cache=False).sequences
        assert torch.equal(beams, uncached)
    assert gap(plain, generate(zoo, both)) == 0.0


def test_a_prompt_without_images_in_a_batch_stays_as_it_is(zoo: Zoo) -> None:
    inputs = zoo_module.inputs(zoo, [[zoo_module.picture(84, 112)], []], TEXTS)
    plain, real = logits(zoo, inputs)[1], inputs["attention_mask"][1].bool()
    with foveate.prune(zoo.model, "restore", keep=0.4):
        torch.testing.assert_close(logits(zoo, inputs)[1][-4:], plain[-4:], atol=1e-5, rtol=1e-4)
    assert real[-4:].all()


def test_without_correction_it_is_anchor_merging(llava: Zoo) -> None:
    inputs, method = single(llava), get_method("restore", inside=False, anchors=0.4, stronger="smaller")
    same = get_method("anchormerge", anchors=0.4, stronger="smaller")
    short = foveate.prune_inputs(llava.model, inputs, method, 0.4)
    assert torch.equal(short["inputs_embeds"], foveate.prune_inputs(llava.model, inputs, same, 0.4)["inputs_embeds"])
    with pytest.raises(MethodError, match=r"restore works inside the LLM.*set its inside=False"):
        foveate.prune_inputs(llava.model, inputs, "restore", 0.4)


def test_a_turn_without_images_sees_sizes(llava: Zoo) -> None:
    """Its words, one by one or together, read the same cache."""
    inputs, more = single(llava), torch.tensor([[20, 21, 22]])
    with foveate.prune(llava.model, "restore", keep=0.4), torch.no_grad():
        caches = [cache_of_output(llava.model(**inputs)) for _ in range(2)]
        at_once = llava.model(input_ids=more, **cached(caches[0])).logits
        steps = [llava.model(input_ids=word, **cached(caches[1])).logits for word in more.split(1, 1)]
    assert torch.allclose(at_once, torch.cat(steps, 1), atol=1e-5)


def test_what_it_refuses(llava: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MethodError, match=r"ceiling=1 must be a finite number of at least 1\.001"):
        get_method("restore", ceiling=1)
    with pytest.raises(MethodError, match="restore wraps methods that prune before the LLM; fastv does not"):
        get_method("restore", base="fastv")
    config = llava.model.model.language_model.config
    monkeypatch.setattr(config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ModelError, match=r"restore adds to the attention logits, which 'flash_attention_2' does not"):
        foveate.attach(llava.model, "restore", keep=0.4)
    assert not any(module._forward_pre_hooks for module in llava.model.modules())

"""Edited attention: what a fused kernel makes of edited values is what edited weights would give."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
import tiny_models as zoo_module
from foveate.methods.fastv import FastV
from foveate.methods.toolkit.interventions import AttentionEdit
from runtime.helpers import assert_generates_alike, gap, generate, kernels, logits, pair, single, visual
from tiny_models import Zoo


@dataclass(frozen=True)
class Edited(FastV):
    """Edits as a test tells it to, and prunes later."""

    asked: tuple[AttentionEdit, ...] = ()
    layer: int = 3

    def edits(self, layers: int) -> tuple[AttentionEdit, ...]:
        return self.asked


SINK = (AttentionEdit(0, "text", moved="first"), AttentionEdit(0, "visual"), AttentionEdit(1, "text"))
HALF = (AttentionEdit(0, "text", share=0.5), AttentionEdit(0, "visual"), AttentionEdit(2, "visual", 0.3, "first"))
TOGETHER = (AttentionEdit(0, "text", moved="first", of="prompt"), AttentionEdit(1, "text", 0.5, of="prompt"))


def by_hand(weights: Tensor, edits: list[AttentionEdit], images: list[list[list[int]]], real: Tensor) -> Tensor:
    """Softmax weights (B, H, L, L) as edited, looping over rows and columns, given the columns of each image."""
    out = weights.clone()
    for row, of_row in enumerate(images):
        seen = [column for image in of_row for column in image]
        for query in real[row].nonzero()[:, 0].tolist():
            for edit in edits:
                if (query in seen) != (edit.rows == "visual"):
                    continue
                for image in of_row if edit.of == "image" else [seen]:
                    for column in image[: int(edit.share * len(image))]:
                        if edit.moved == "first" and column != image[0]:
                            out[row, :, query, image[0]] += weights[row, :, query, column]
                        if edit.moved == "nowhere" or column != image[0]:
                            out[row, :, query, column] = 0
    return out


def two_images(z: Zoo) -> dict[str, Tensor]:
    pictures = [[zoo_module.picture(84, 112, 0), zoo_module.picture(56, 56, 1)], [zoo_module.picture(56, 168, 3)]]
    return zoo_module.inputs(z, pictures, ["what is in the picture?", "red"])


@pytest.mark.parametrize("edits", [SINK, HALF, TOGETHER], ids=["sink", "half", "together"])
def test_it_equals_edited_weights(zoo: Zoo, edits: tuple[AttentionEdit, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = two_images(zoo)
    method = Edited(asked=edits)
    with foveate.prune(zoo.model, method, keep=0.999) as pruning:  # which edits, and drops nothing of so small images
        found = logits(zoo, inputs)
        spans = pruning._last.spans  # type: ignore[union-attr]
        kept = [image.kept for image in pruning.report().images]
    images = [[span.index.tolist() for span in spans if span.row == row] for row in (0, 1)]
    real = inputs["attention_mask"].bool()
    module = sys.modules[type(zoo.model.model.language_model.layers[0].self_attn).__module__]

    eager = module.eager_attention_forward
    layers = [layer.self_attn for layer in zoo.model.model.language_model.layers]

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        if module not in layers:  # the vision encoder's
            return eager(module, query, key, value, *args, **kwargs)
        mask, scaling = args[0], kwargs["scaling"]
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.mT * scaling
        weights = (scores.masked_fill(~mask, -1e30) if mask.dtype == torch.bool else scores + mask).softmax(-1)
        mine = [edit for edit in edits if edit.layer == module.layer_idx]
        edited = by_hand(weights, mine, images, real)
        for edit in mine:
            if edit.moved == "first" and edit.rows == "text":  # the total stays
                text = real & ~visual(zoo, inputs)
                for row in (0, 1):
                    both = [w[row][:, text[row]][..., visual(zoo, inputs)[row]].sum(-1) for w in (edited, weights)]
                    torch.testing.assert_close(*both)
        return (edited @ value).transpose(1, 2), edited

    monkeypatch.setattr(module, "eager_attention_forward", attend)
    with kernels(zoo.model, "eager"):
        expected = logits(zoo, inputs)
    assert all(bool(mask.all()) for mask in kept)
    assert torch.allclose(found[real], expected[real], atol=2e-5)
    assert float((found - logits(zoo, inputs)).abs()[real].max()) > 0.01  # else this test proves nothing


@pytest.mark.parametrize("edits", [SINK, HALF], ids=["sink", "half"])
@pytest.mark.parametrize("before", [False, True], ids=["alone", "pruned"])
def test_generation(zoo: Zoo, edits: tuple[AttentionEdit, ...], before: bool) -> None:
    """What is generated attends as ever, cached or not; batches and kernels make no difference."""
    method: Any = ["divprune", Edited(asked=edits)] if before else Edited(asked=edits)
    both = pair(zoo)
    plain = generate(zoo, both)
    with foveate.prune(zoo.model, method, keep=[0.6, 0.4] if before else 0.5):
        assert_generates_alike(zoo)
    assert gap(plain, generate(zoo, both)) == 0.0


def test_listeners_and_edits_share_a_module(llava: Zoo) -> None:
    """FastV listens where attention is edited; both go again without a trace."""
    layers = llava.model.model.language_model.layers
    configs = [layer.self_attn.config for layer in layers]
    plain = logits(llava, single(llava))
    method = Edited(asked=(AttentionEdit(2, "text"), AttentionEdit(2, "visual", 0.5)))
    with foveate.prune(llava.model, ["divprune", method], keep=[0.5, 0.25]):
        assert not torch.allclose(logits(llava, single(llava))[:, -1], plain[:, -1], atol=1e-3)
    assert [layer.self_attn.config for layer in layers] == configs
    assert all(layer.self_attn.config is config for layer, config in zip(layers, configs, strict=True))
    assert torch.equal(logits(llava, single(llava)), plain)


def test_the_account_charges_what_runs_once_more(zoo: Zoo) -> None:
    inputs, flops = pair(zoo), []
    for edits in ((), SINK):
        with foveate.prune(zoo.model, Edited(asked=edits), keep=0.5) as pruning:
            logits(zoo, inputs)
            flops.append(pruning.report().text_flops)
    lengths = inputs["attention_mask"].sum(1).tolist()
    # Two edits of layer 0 and one of layer 1; 4 heads of 16.
    assert flops[1] - flops[0] == pytest.approx(3 * sum(4 * n * n * 4 * 16 for n in lengths))


def test_keeping_everything_edits_nothing(llava: Zoo) -> None:
    plain = logits(llava, single(llava))
    with foveate.prune(llava.model, Edited(asked=SINK), keep=1.0):
        assert torch.equal(logits(llava, single(llava)), plain)


def test_two_that_edit_the_same_are_refused(llava: Zoo) -> None:
    methods = [Edited(asked=SINK), Edited(asked=HALF, layer=2)]
    with pytest.raises(foveate.MethodError, match="both edit what text tokens attend to in layer 0"):
        foveate.attach(llava.model, methods, keep=[0.5, 0.5])
    foveate.attach(llava.model, [Edited(asked=SINK), Edited(asked=SINK, layer=2)], keep=[0.5, 0.5]).detach()

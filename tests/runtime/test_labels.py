"""Training with labels while prompts are pruned: loss and gradients are those of a batch that was shortened by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import foveate
import tiny_models
from foveate.errors import RuntimeStateError
from foveate.models import adapter_of
from tiny_models import Zoo

from .helpers import pair, single, visual

EVERY = (*tiny_models.MAKERS, *tiny_models.HYBRID_MAKERS)


def labelled(z: Zoo, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Labels of all text but the first four tokens; images and padding have none."""
    labels = inputs["input_ids"].masked_fill(visual(z, inputs) | (inputs["attention_mask"] == 0), -100)
    first = (inputs["attention_mask"].cumsum(1) <= 4) & (inputs["attention_mask"] == 1)
    return {**inputs, "labels": labels.masked_fill(first, -100)}


def gradients(z: Zoo, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    z.model.zero_grad()
    loss.backward()
    found = {n: p.grad.clone() for n, p in z.model.named_parameters() if p.grad is not None}
    z.model.zero_grad()
    return found


def by_hand(z: Zoo, inputs: dict[str, torch.Tensor], kept: list[torch.Tensor]) -> torch.Tensor:
    """The mean over all labels of the cross-entropy of a language model that never sees what is dropped."""
    adapter, given = adapter_of(z.model), {}

    def shorten(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        rows = [left_out(row, mask) for row, mask in zip(visual(z, inputs), kept, strict=True)]
        width = max(int(stays.sum()) for stays in rows)
        index = torch.stack([F.pad(r.nonzero()[:, 0], (width - int(r.sum()), 0)) for r in rows])
        real = torch.stack([torch.arange(width) >= width - int(r.sum()) for r in rows])
        real &= inputs["attention_mask"].bool().gather(1, index)
        given["labels"] = inputs["labels"].gather(1, index).masked_fill(~real, -100)
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(inputs["input_ids"].shape[1])[None].expand(len(index), -1)
        embeds = kwargs["inputs_embeds"]
        expanded = index.expand(*positions.shape[:-2], *index.shape)
        short = {
            "inputs_embeds": embeds.gather(1, index[..., None].expand(-1, -1, embeds.shape[2])),
            "position_ids": positions.expand(*positions.shape[:-2], len(index), -1).gather(-1, expanded),
            "attention_mask": real.long(),
        }
        if kwargs.get("visual_pos_masks") is not None:
            chosen = torch.cat(kept)
            short["visual_pos_masks"] = kwargs["visual_pos_masks"].gather(1, index) & real
            short["deepstack_visual_embeds"] = [one[chosen] for one in kwargs["deepstack_visual_embeds"]]
        return args, {**kwargs, **short, "use_cache": False}

    handle = adapter.text.register_forward_pre_hook(shorten, with_kwargs=True)
    try:
        logits = z.model(**{name: value for name, value in inputs.items() if name != "labels"}).logits
    finally:
        handle.remove()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), given["labels"][:, 1:].flatten(), ignore_index=-100)


def left_out(row: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(L,) bool: the tokens of a prompt that stay."""
    stays = torch.ones_like(row)
    stays[row.nonzero()[:, 0][~mask]] = False
    return stays


@pytest.mark.parametrize("make", EVERY, ids=lambda make: make.__name__)
def test_loss_and_gradients_are_those_of_a_batch_shortened_by_hand(make: Any) -> None:
    z = make()
    inputs = labelled(z, pair(z))
    with foveate.prune(z.model, "divprune", keep=0.4) as pruning:
        loss = z.model(**inputs).loss
        kept = [image.kept for image in pruning.report().images]
        found = gradients(z, loss)
    reference = by_hand(z, inputs, kept)
    expected = gradients(z, reference)
    assert torch.allclose(loss, reference, atol=1e-5)
    assert not torch.allclose(loss, z.model(**inputs).loss, atol=1e-4)  # else this test proves nothing
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max()) + 1e-6
        assert float((found[name] - gradient).abs().max()) < 2e-3 * scale + 1e-6, name


def test_the_mean_is_over_all_labels_of_a_step(llava: Zoo) -> None:
    """What Trainer passes when it accumulates gradients."""
    inputs = labelled(llava, pair(llava))
    with foveate.prune(llava.model, "divprune", keep=0.4), torch.no_grad():
        mean = llava.model(**inputs).loss
        total = llava.model(**inputs, num_items_in_batch=1).loss
    assert torch.allclose(total, mean * int((inputs["labels"][:, 1:] != -100).sum()), rtol=1e-5)


@pytest.mark.parametrize("method", ["tome", "avgpool", "pixelprune"])
def test_merging_and_leaving_out_patches(qwen: Zoo, method: str) -> None:
    inputs = labelled(qwen, single(qwen))
    with foveate.prune(qwen.model, method, keep=0.4):
        found = gradients(qwen, qwen.model(**inputs).loss)
    assert all(one.isfinite().all() for one in found.values()) and len(found) > 20


def test_gradient_checkpointing_changes_nothing(llava: Zoo) -> None:
    inputs = labelled(llava, pair(llava))
    with foveate.prune(llava.model, "divprune", keep=0.4):
        expected = gradients(llava, llava.model(**inputs).loss)
        llava.model.train().gradient_checkpointing_enable({"use_reentrant": False})
        try:
            found = gradients(llava, llava.model(**inputs, use_cache=False).loss)
        finally:
            llava.model.eval().gradient_checkpointing_disable()
    assert all(torch.allclose(found[name], one, atol=1e-6) for name, one in expected.items())


def test_prompts_without_images_and_padding_on_the_right(llava: Zoo) -> None:
    text = llava.processor.tokenize(["what is it?", "a red square on a blue background"])
    text = {**text, "labels": text["input_ids"]}
    del text["mm_token_type_ids"]
    plain = llava.model(**text).loss
    inputs = labelled(llava, pair(llava))
    turned = {name: value.flip(1) if value.ndim == 2 else value for name, value in inputs.items()}
    with foveate.prune(llava.model, "divprune", keep=0.4), torch.no_grad():
        assert torch.equal(llava.model(**text).loss, plain)
        assert llava.model(**turned).loss.isfinite()


def test_inside_the_llm_they_are_refused(llava: Zoo) -> None:
    inputs = labelled(llava, single(llava))
    for method in ("fastv", ["divprune", "fastv"]):
        keep = [0.5, 0.25] if isinstance(method, list) else 0.5
        with (
            foveate.prune(llava.model, method, keep=keep),
            pytest.raises(RuntimeStateError, match="fastv prunes inside the LLM"),
        ):
            llava.model(**inputs)


def test_detaching_restores_the_loss(llava: Zoo) -> None:
    before = llava.model.loss_function
    with foveate.prune(llava.model, "divprune", keep=0.4):
        assert llava.model.loss_function is not before
    assert llava.model.loss_function is before and "_loss_function" not in vars(llava.model)


def test_a_model_with_a_loss_of_its_own_is_refused(llava: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, labels: Any = None, **inputs: Any) -> Any:
        raise AssertionError("labels were let through")

    monkeypatch.setattr(type(llava.model), "forward", forward)
    inputs = labelled(llava, single(llava))
    with (
        foveate.prune(llava.model, "divprune", keep=0.4),
        pytest.raises(RuntimeStateError, match="compute the loss outside"),
    ):
        llava.model(**inputs)


def test_labels_of_another_length_are_refused(llava: Zoo) -> None:
    """Too short, too long and shifted ones; those of the last logits alone are right."""
    inputs = labelled(llava, single(llava))
    labels = inputs.pop("labels")
    with foveate.prune(llava.model, "divprune", keep=0.5):
        for wrong in (labels[:, 3:], F.pad(labels, (0, 2), value=-100)):
            with pytest.raises(RuntimeStateError, match=f"for {wrong.shape[1]} tokens, but the prompt has"):
                llava.model(**inputs, labels=wrong)
        with pytest.raises(RuntimeStateError, match="pass labels instead"):
            llava.model(**inputs, labels=labels, shift_labels=F.pad(labels[:, 1:], (0, 1), value=-100))
        few = torch.cat([torch.full_like(labels[:, :-2], -100), labels[:, -2:]], 1)  # the third last says the second
        expected = llava.model(**inputs, labels=few).loss
        torch.testing.assert_close(llava.model(**inputs, labels=labels[:, -3:], logits_to_keep=3).loss, expected)

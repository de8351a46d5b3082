"""Patches that never enter the vision encoder: as if nobody attended to them, and dropped before the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AttentionInterface

import foveate
import tiny_models as zoo_module
from foveate.methods import Method, Provenance
from foveate.models import adapter_of
from foveate.tokens import Selection, VisualTokens
from runtime.helpers import gap, generate, logits, single, torch_flops
from tiny_models import Zoo


@pytest.fixture(params=zoo_module.VIDEO_MAKERS, ids=lambda make: make.__name__)
def qwen(request: pytest.FixtureRequest) -> Zoo:
    return request.param()


def blocks(h: int, w: int, seed: int = 0, side: int = 64) -> Image.Image:
    """A picture of flat squares, `side` pixels each."""
    colours = zoo_module.picture(-(-h // side), -(-w // side), seed)
    return colours.resize((w, h), Image.Resampling.NEAREST)


def drawn(z: Zoo) -> dict[str, torch.Tensor]:
    """Two prompts, of one and of two images that repeat themselves here and there."""
    images = [[blocks(192, 256)], [blocks(128, 256, 3), blocks(192, 128, 4)]]
    return zoo_module.inputs(z, images, ["what is in the picture?", "which?"])


@dataclass(frozen=True)
class Fixed(Method):
    """Keeps what it was told."""

    name = "fixed"
    provenance = Provenance("none", "none")
    kept: Any = ()

    def select(self, tokens: VisualTokens, count: Any) -> Selection:
        rows = [torch.nn.functional.pad(mask, (0, tokens.valid.shape[1] - len(mask))) for mask in self.kept]
        return Selection(torch.stack(rows))

    def counts(self, tokens: VisualTokens) -> torch.Tensor:
        return torch.tensor([int(mask.sum()) for mask in self.kept])


@pytest.fixture
def blind() -> Any:
    """Let a tower run on all patches, whose attention does not see those of dropped tokens."""
    seen: list[torch.Tensor] = []
    cursor = [0]

    def attention(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float, **kwargs: Any
    ) -> Any:
        width = query.shape[2]
        start, cursor[0] = cursor[0], (cursor[0] + width) % len(seen[0])
        weights = (query @ key.mT * scaling).masked_fill(~seen[0][start : start + width], -torch.inf).softmax(-1)
        return (weights.nan_to_num() @ value).transpose(1, 2), None  # a window may hold nothing that is seen

    AttentionInterface.register("foveate_test_blind", attention)
    changed: list[tuple[Any, str]] = []

    def switch(z: Zoo, images: list[foveate.ImageReport]) -> None:
        adapter = adapter_of(z.model)
        ordered = [image.kept[adapter.encoder_order(image.grid)] for image in images]
        seen[:] = [torch.cat(ordered).repeat_interleave(4)]
        config = z.model.model.visual.config
        changed.append((config, config._attn_implementation))
        config._attn_implementation = "foveate_test_blind"

    yield switch
    for config, name in changed:
        config._attn_implementation = name


@pytest.mark.parametrize("keep", ["auto", 0.4])
@pytest.mark.parametrize("kind", ["images", "video"])
def test_as_if_nobody_attended_to_what_is_left_out(qwen: Zoo, blind: Any, keep: Any, kind: str) -> None:
    inputs = drawn(qwen) if kind == "images" else zoo_module.video_inputs(qwen, 2, 3, 4)
    method = foveate.get_method("pixelprune", tolerance=0.0 if kind == "images" else 1.0, difference="mean")
    with foveate.prune(qwen.model, method, keep=keep) as pruning:
        short = logits(qwen, inputs)
        images = pruning.report().images
    if keep == 0.4:
        assert [image.tokens for image in images] == [
            foveate.Budget(0.4).count(image.tokens_before) for image in images
        ]
    assert 0 < sum(image.tokens for image in images) < sum(image.tokens_before for image in images)
    plain = logits(qwen, inputs)
    blind(qwen, images)
    with foveate.prune(qwen.model, Fixed([image.kept for image in images]), keep="auto"):
        by_hand = logits(qwen, inputs)
    assert torch.allclose(short[:, -5:], by_hand[:, -5:], atol=1e-5)  # what comes before can be padding
    assert not torch.allclose(short[:, -1], plain[:, -1], atol=1e-2)


def test_where_all_pixels_are_new_it_is_the_identity(qwen: Zoo) -> None:
    inputs = single(qwen)
    plain = logits(qwen, inputs)
    for keep in (1.0, "auto", 1000):
        with foveate.prune(qwen.model, "pixelprune", keep=keep):
            assert torch.equal(logits(qwen, inputs), plain)


@pytest.mark.parametrize(
    ("method", "keep"),
    [("pixelprune", "auto"), (["pixelprune", "divprune", "fastv"], ["auto", 0.5, 0.2]), (["pixelprune", "tome"], 0.3)],
    ids=str,
)
def test_generation(qwen: Zoo, method: Any, keep: Any) -> None:
    """Cached equals uncached, batched equals single, each stage keeps its share, and the model is restored."""
    both = drawn(qwen)
    alone = zoo_module.inputs(qwen, [[blocks(192, 256)]], ["what is in the picture?"])
    plain = logits(qwen, both)
    with foveate.prune(qwen.model, method, keep=keep) as pruning:
        cached = generate(qwen, both)
        report = pruning.report()
        assert gap(cached, generate(qwen, both, use_cache=False)) < 2e-5
        assert gap(cached, generate(qwen, both, cache_implementation="static")) < 2e-5
        one = generate(qwen, alone)
        assert max(float((x[0] - y[0]).abs().max()) for x, y in zip(cached.logits, one.logits, strict=True)) < 2e-5
    assert len(report.images) == 3 and report.stages[0].layer == -1
    if isinstance(keep, list):
        counts = [foveate.Budget(0.2).count(image.tokens_before) for image in report.images]
        assert [image.tokens for image in report.images] == counts
    assert torch.equal(logits(qwen, both), plain)


def test_flops_are_those_that_torch_counts(qwen: Zoo) -> None:
    """Window attention, too, is counted for what is left in each window."""
    inputs = drawn(qwen)
    adapter = adapter_of(qwen.model)

    def counted() -> int:
        media = inputs["pixel_values"], inputs["image_grid_thw"]
        return torch_flops(qwen.model, lambda: adapter.base.get_image_features(*media))

    plain = counted()
    with foveate.prune(qwen.model, "pixelprune", keep="auto") as pruning:
        logits(qwen, inputs)
        short = counted()
        report = pruning.report()
    assert report.vision_flops_before == pytest.approx(plain, rel=0.01)
    assert report.vision_flops == pytest.approx(short, rel=0.01)
    assert report.vision_flops < 0.75 * report.vision_flops_before


def test_an_image_alone_or_beside_others_keeps_the_same(qwen: Zoo) -> None:
    with foveate.prune(qwen.model, "pixelprune", keep="auto") as pruning:
        logits(qwen, drawn(qwen))
        together = [image.kept for image in pruning.report().images]
        logits(qwen, zoo_module.inputs(qwen, [[blocks(192, 128, 4)]], ["which?"]))
        assert torch.equal(pruning.report().images[0].kept, together[2])


def test_shortened_inputs(qwen: Zoo) -> None:
    inputs = drawn(qwen)
    if adapter_of(qwen.model).deepstack is not None:
        with pytest.raises(foveate.ModelError, match="DeepStack"):
            foveate.prune_inputs(qwen.model, inputs, "pixelprune", keep="auto")
        return
    short = foveate.prune_inputs(qwen.model, inputs, "pixelprune", keep="auto")
    with foveate.prune(qwen.model, "pixelprune", keep="auto"):
        hooked = generate(qwen, inputs)
    assert gap(hooked, generate(qwen, short)) < 2e-5


def test_one_budget_for_both(qwen: Zoo) -> None:
    inputs = drawn(qwen)
    with foveate.prune(qwen.model, foveate.compose("pixelprune", "fastv"), keep=0.5) as pruning:
        logits(qwen, inputs)
        report = pruning.report()
    assert report.average_visual_tokens == pytest.approx(0.5 * report.tokens_before, abs=2)


def test_refusals(llava: Zoo, qwen: Zoo) -> None:
    for z in (llava, zoo_module.internvl()):
        with pytest.raises(foveate.ModelError, match=r"takes whole images; use .* 'divprune'"):
            foveate.attach(z.model, "pixelprune", keep="auto")
    with pytest.raises(foveate.MethodError, match="does not know which images share a prompt"):
        foveate.attach(qwen.model, "pixelprune", keep="auto", scope="prompt")
    with pytest.raises(foveate.MethodError, match="two methods before the vision encoder"):
        foveate.attach(qwen.model, ["pixelprune", "pixelprune"], keep=0.5)

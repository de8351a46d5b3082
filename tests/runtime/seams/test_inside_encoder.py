"""Tokens that leave at a block of the vision encoder: as if the blocks from there on had never been given them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
import tiny_families
import tiny_models as zoo_module
from foveate import InEncoder, Where
from foveate.methods import Method
from foveate.models import adapter_of
from foveate.tokens import Cue, Selection, VisualTokens
from models.test_glm4v import clip
from runtime.helpers import TEXTS, gap, generate, logits, pair, single, torch_flops
from tiny_models import Zoo, picture

MERGED = 4  # patches of a token in the Qwen families


def deep() -> Zoo:
    """Qwen2.5-VL with five blocks, of which two attend to whole images."""
    vision = {
        "depth": 5,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 64,
        "num_heads": 2,
        "patch_size": 14,
        "fullatt_block_indexes": [1, 3],
        "window_size": 56,
    }
    return zoo_module._qwen(zoo_module.tf.Qwen2_5_VLForConditionalGeneration, 16, vision)


@pytest.fixture(scope="module")
def windows() -> Zoo:
    return deep()


@pytest.fixture(params=[*zoo_module.VIDEO_MAKERS, zoo_module.qwen3_5], ids=lambda make: make.__name__)
def qwen(request: pytest.FixtureRequest) -> Zoo:
    return request.param()


@dataclass(frozen=True)
class Spy(Method):
    """Keeps every other token that is there, and remembers what it was shown."""

    name = "spy"
    asks: frozenset[Cue] = frozenset()
    seen: list[VisualTokens] = field(default_factory=list, compare=False)

    @property
    def needs(self) -> frozenset[Cue]:
        return self.asks

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        self.seen.append(tokens)
        order = tokens.valid.cumsum(1) * 7 % 5 * 100 - tokens.valid.cumsum(1)
        return Selection(foveate.selection.topk(order.float(), count, valid=tokens.valid))


@contextmanager
def watched(modules: list[Any]) -> Iterator[list[list[Any]]]:
    """Of each module in turn ``[args, kwargs, output]`` of its latest call."""
    seen: list[list[Any]] = [[] for _ in modules]

    def hook(index: int) -> Any:
        def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            seen[index] = [args, kwargs, output]

        return note

    handles = [module.register_forward_hook(hook(i), with_kwargs=True) for i, module in enumerate(modules)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def run_by_hand(z: Zoo, inputs: Any, block: int, kept: Tensor) -> list[Tensor]:
    """What each of the encoder's mergers gives of the tokens `kept` (T,) bool, in the encoder's order.

    Blocks below `block` run on all patches, those from it on are called with hidden states, rotary tables and ends of
    sequences that were cut here.
    """
    vision = z.model.model.visual
    patches = kept.repeat_interleave(MERGED)
    with watched(list(vision.blocks)) as calls:
        logits(z, inputs)
    hidden, after = calls[block][0][0][patches], {}
    with torch.no_grad():
        for index, (_, kwargs, output) in enumerate(calls):
            if index < block:
                after[index] = output
                continue
            ends, cut = kwargs["cu_seqlens"].tolist(), [0]
            for start, end in itertools.pairwise(ends):
                inside = int(patches[start:end].sum())
                cut += [cut[-1] + inside] if inside else []
            rotary = tuple(table[patches] for table in kwargs["position_embeddings"])
            longest = max(b - a for a, b in itertools.pairwise(cut))
            given = {"cu_seqlens": torch.tensor(cut, dtype=torch.int32), "position_embeddings": rotary}
            given |= {"max_seqlen": longest} if kwargs.get("max_seqlen") is not None else {}
            hidden = after[index] = vision.blocks[index](hidden, **given)
        depths = [*getattr(vision, "deepstack_visual_indexes", []), len(vision.blocks) - 1]
        return [merger(after[depth]) for merger, depth in zip(mergers_of(z), depths, strict=True)]


def mergers_of(z: Zoo) -> list[Any]:
    vision = z.model.model.visual
    return [*getattr(vision, "deepstack_merger_list", []), vision.merger]


def in_order(z: Zoo, images: list[foveate.runtime.ImageReport]) -> Tensor:
    """(T,) bool: the kept tokens in the encoder's order."""
    adapter = adapter_of(z.model)
    return torch.cat([image.kept[adapter.encoder_order(image.grid)] for image in images])


def clips(z: Zoo) -> dict[str, Tensor]:
    return zoo_module.video_inputs(z, 2, 3, 4)


@pytest.mark.parametrize(("kind", "block"), [("clip", 0), ("images", 1)])
def test_blocks_never_see_what_left(qwen: Zoo, block: int, kind: str) -> None:
    check_by_hand(qwen, pair(qwen) if kind == "images" else clips(qwen), block)


@pytest.mark.parametrize("block", [0, 1, 2, 4])
def test_windows_and_depths(windows: Zoo, block: int) -> None:
    odd = zoo_module.inputs(windows, [[picture(84, 140, 5), picture(28, 28, 2)], [picture(140, 196, 1)]], TEXTS)
    check_by_hand(windows, odd, block)


def check_by_hand(z: Zoo, inputs: Any, block: int) -> None:
    """The mergers give what they give by hand, and the language model runs on exactly that."""
    plain, spy = logits(z, inputs), Spy()
    with foveate.prune(z.model, InEncoder(spy, block), keep=0.45) as pruning, watched(mergers_of(z)) as given:
        short = logits(z, inputs)
        images = pruning.report().images
    kept = in_order(z, images)
    assert 0 < int(kept.sum()) < len(kept)
    depths = [*getattr(z.model.model.visual, "deepstack_visual_indexes", []), 99]
    expected = run_by_hand(z, inputs, block, kept)
    for depth, (_, _, found), wanted in zip(depths, given, expected, strict=True):
        own = slice(None) if depth < block else kept
        assert torch.allclose(found[own], wanted, atol=1e-5)
        assert depth < block or not found[~kept].any()
    assert torch.equal(logits(z, inputs), plain) and (short[:, -1] - plain[:, -1]).abs().max() > 1e-2
    # What the method was shown: means over the patches of what entered the block.
    with watched([z.model.model.visual.blocks[block]]) as calls:
        logits(z, inputs)
    means = iter(calls[0][0][0].unflatten(0, (-1, MERGED)).mean(1).split([len(image.grid) for image in images]))
    for row, (image, mean) in enumerate(zip(images, means, strict=True)):
        order = adapter_of(z.model).encoder_order(image.grid)
        shown = spy.seen[0].features[row, : len(image.grid)]
        assert torch.allclose(shown[order], mean, atol=1e-6)


CASES: list[Any] = [
    (zoo_module.qwen2_vl, InEncoder("divprune", 1), 0.4),
    (zoo_module.qwen2_5_vl, [InEncoder("tome", 1), "scope"], [0.5, 0.25]),
    (deep, [InEncoder("divprune", 0), InEncoder("random", 3), "idpruner", "fastv"], [0.8, 0.6, 0.4, 0.2]),
    (zoo_module.qwen3_vl, [InEncoder("divprune", 1), "idpruner"], [0.5, 0.25]),
    (zoo_module.qwen3_5, [InEncoder("divprune", 1), "idpruner"], [0.5, 0.25]),
]


@pytest.mark.parametrize(("make", "method", "keep"), CASES, ids=lambda part: getattr(part, "__name__", ""))
def test_generation(make: Any, method: Any, keep: Any) -> None:
    """Cached equals uncached, batched equals single, each stage leaves its share, and the model is restored."""
    qwen, close = make(), 2e-4 if make is zoo_module.qwen3_5 else 2e-5  # linear attention rounds otherwise
    both, plain = pair(qwen), logits(qwen, pair(qwen))
    with foveate.prune(qwen.model, method, keep=keep) as pruning:
        cached = generate(qwen, both)
        report = pruning.report()
        assert gap(cached, generate(qwen, both, use_cache=False)) < close
        alone = generate(qwen, single(qwen))
        assert max(float((x[0] - y[0]).abs().max()) for x, y in zip(cached.logits, alone.logits, strict=True)) < close
        repeated = repr(pruning)
    last = keep[-1] if isinstance(keep, list) else keep
    assert [image.tokens for image in report.images] == [
        foveate.Budget(last).count(image.tokens_before) for image in report.images
    ]
    assert report.stages[0].where is Where.INSIDE_ENCODER and "of the vision encoder, per image" in repeated
    assert report.to_dict()["stages"][0]["where"] == "inside the vision encoder"
    assert report.vision_flops < report.vision_flops_before
    assert torch.equal(logits(qwen, both), plain)


def test_flops_are_those_that_torch_counts(qwen: Zoo) -> None:
    inputs, adapter = pair(qwen), adapter_of(qwen.model)
    with foveate.prune(qwen.model, InEncoder("divprune", 1), keep=0.3) as pruning:
        logits(qwen, inputs)
        report = pruning.report()
        media = inputs["pixel_values"], inputs["image_grid_thw"]
        counted = torch_flops(qwen.model, lambda: adapter.base.get_image_features(*media))
    # Selecting multiplies, too.
    tokens, width = sum(image.tokens_before for image in report.images), adapter.vision_width
    assert 0 <= counted - report.vision_flops <= 4 * tokens**2 * width


def test_every_method_runs_there_or_says_why_not(windows: Zoo) -> None:
    inputs, ran, refused = pair(windows), [], []
    for name in foveate.method_names():
        try:
            with foveate.prune(windows.model, InEncoder(name, 4), keep=0.5) as pruning:
                logits(windows, inputs)
        except foveate.FoveateError as error:
            refused.append(str(error))
            continue
        images = pruning.report().images
        assert [image.tokens for image in images] == [foveate.Budget(0.5).count(len(image.grid)) for image in images]
        ran.append(name)
    why = ("cannot be moved", "not there yet inside", "needs a trained scorer", "compares the frames of clips")
    assert len(ran) >= 19 and all(any(part in sentence for part in why) for sentence in refused)


def test_whatever_is_kept_whole_is_the_identity(windows: Zoo) -> None:
    inputs = single(windows)
    plain = logits(windows, inputs)
    for keep in (1.0, 1000):
        with foveate.prune(windows.model, InEncoder("divprune", 1), keep=keep):
            assert torch.equal(logits(windows, inputs), plain)


def test_later_methods_read_the_encoder_of_those_that_are_left(windows: Zoo) -> None:
    """Attention that is received among the survivors, and their features before the merger; 0 of the others."""
    asks, first = frozenset({Cue.ENCODER_ATTENTION, Cue.ENCODER_FEATURES}), Spy()
    second, inputs, vision = Spy(asks), single(windows), windows.model.model.visual
    with foveate.prune(windows.model, [InEncoder(first, 2), second], keep=[0.5, 0.25]) as pruning:
        with watched([vision.blocks[3].attn, vision.merger]) as calls:
            logits(windows, inputs)
        grid = pruning.report().images[0].grid
    tokens, order = second.seen[0], adapter_of(windows.model).encoder_order(grid)
    kept = tokens.valid[0][order]
    assert int(kept.sum()) == foveate.Budget(0.5).count(len(grid))
    (hidden,), kwargs, _ = calls[0] if calls[0][0] else [(calls[0][1].pop("hidden_states"),), calls[0][1], None]
    attn = vision.blocks[3].attn
    query, key, _ = attn.qkv(hidden).unflatten(-1, (3, attn.num_heads, -1)).permute(1, 2, 0, 3)
    cos, sin = (table[None].float() for table in kwargs["position_embeddings"])

    def turned(x: Tensor) -> Tensor:
        one, other = x.chunk(2, -1)
        return x * cos + torch.cat([-other, one], -1) * sin

    weights = (turned(query) @ turned(key).mT * attn.scaling).softmax(-1).mean((0, 1))
    for cue, of_patches in ((Cue.ENCODER_ATTENTION, weights), (Cue.ENCODER_FEATURES, calls[1][0][0])):
        wanted = of_patches.unflatten(0, (-1, MERGED)).mean(1)
        found = tokens.cue(cue)[0][order]
        assert torch.allclose(found[kept], wanted, atol=1e-5) and not found[~kept].any()


def test_methods_inside_read_the_blocks_below(windows: Zoo) -> None:
    """The attention of the last block below that sees whole images, as one behind an encoder that ends there reads."""
    spy, inputs = Spy(frozenset({Cue.ENCODER_ATTENTION, Cue.ENCODER_FEATURES, Cue.PADDING})), pair(windows)
    with foveate.prune(windows.model, [InEncoder(spy, 3), Spy(spy.asks)], keep=[0.5, 0.25]):
        logits(windows, inputs)
    config, blocks = windows.model.config.vision_config, windows.model.model.visual.blocks
    behind, held = Spy(frozenset({Cue.ENCODER_ATTENTION})), config.fullatt_block_indexes
    config.fullatt_block_indexes = [1]  # what the adapter reads; the encoder has its own copy
    try:
        with foveate.prune(windows.model, behind, keep=0.5):
            logits(windows, inputs)
    finally:
        config.fullatt_block_indexes = held
    assert len(blocks) == 5 and windows.model.model.visual.fullatt_block_indexes == [1, 3]
    assert torch.equal(spy.seen[0].cue(Cue.ENCODER_ATTENTION), behind.seen[0].cue(Cue.ENCODER_ATTENTION))
    assert torch.equal(spy.seen[0].cue(Cue.ENCODER_FEATURES), spy.seen[0].features)


def test_merging_is_done_patch_by_patch(windows: Zoo) -> None:
    """The kept tokens' patches are the weighted means that the method made, and nothing of the others is lost."""

    @dataclass(frozen=True)
    class Pairs(Method):
        name = "pairs"

        def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
            n = tokens.valid.shape[1]
            keep = torch.arange(n) % 2 == 0
            return Selection(keep[None] & tokens.valid, (torch.arange(n) // 2 * 2)[None], torch.full((1, n), 0.5))

    inputs, vision = single(windows), windows.model.model.visual
    with watched([vision.blocks[2]]) as calls:
        logits(windows, inputs)
    (before,) = calls[0][0]
    with foveate.prune(windows.model, InEncoder(Pairs(), 2), keep=0.5) as pruning, watched([vision.blocks[2]]) as calls:
        logits(windows, inputs)
        (image,) = pruning.report().images
    order = adapter_of(windows.model).encoder_order(image.grid)
    raster = torch.empty(len(image.grid), MERGED, before.shape[-1])
    raster[order] = before.unflatten(0, (-1, MERGED))
    merged = torch.zeros_like(raster)
    merged[::2] = (raster[::2] + raster[1::2]) / 2
    assert torch.allclose(calls[0][0][0], merged[order][image.kept[order]].flatten(0, 1), atol=1e-6)


@pytest.mark.parametrize("make", [deep, zoo_module.qwen3_vl], ids=lambda make: make.__name__)
def test_pixels_first_then_blocks_then_layers(make: Any) -> None:
    """Whatever left is never chosen later, in one composition with one honest budget."""
    qwen = make()
    inputs, spy, last = pair(qwen), Spy(), Spy(frozenset({Cue.ENCODER_ATTENTION}))
    methods = foveate.compose("pixelprune", InEncoder(spy, 1), last, ratio=0.7)
    with foveate.prune(qwen.model, methods, keep=0.4) as pruning:
        logits(qwen, inputs)
        report = pruning.report()
    assert [stage.where for stage in report.stages] == [Where.BEFORE_ENCODER, Where.INSIDE_ENCODER, Where.BEFORE_LLM]
    assert report.average_visual_tokens == pytest.approx(0.4 * report.tokens_before, abs=2)
    shares = [stage.budget.keep for stage in report.stages]
    assert shares == pytest.approx([0.4 / 0.7**2, 0.4 / 0.7, 0.4])
    for spied, share in ((spy, shares[0]), (last, shares[1])):
        counts = [foveate.Budget(share).count(image.tokens_before) for image in report.images]
        assert spied.seen[0].valid.sum(1).tolist() == counts
    assert torch.equal(last.seen[0].valid & spy.seen[0].valid, last.seen[0].valid)
    with foveate.prune(qwen.model, ["pixelprune", "scope"], keep=["auto", 0.2]):
        logits(qwen, inputs)


def test_an_image_and_a_clip_of_one_prompt(windows: Zoo) -> None:
    """Each is a pass of its own, of which one may lose nothing; frames have budgets of their own where they shall."""
    image, clip = single(windows), clips(windows)
    both = {name: torch.cat([image[name], clip[name]], 1) for name in ("input_ids", "attention_mask")}
    both["mm_token_type_ids"] = torch.cat([image["mm_token_type_ids"], clip["mm_token_type_ids"]], 1)
    inputs = {**image, **clip, **both}
    with foveate.prune(windows.model, [InEncoder("divprune", 2), "scope"], keep=[12, 0.25], scope="frame") as pruning:
        logits(windows, inputs)
        shown, moving = pruning.report().images
        assert len(shown.grid) == 12 and moving.kept.view(2, -1).sum(1).tolist() == [3, 3]
    with foveate.prune(windows.model, InEncoder("divprune", 2), keep=5, scope="frame") as pruning:
        generate(windows, inputs)
        shown, moving = pruning.report().images
    assert shown.tokens == 5 and moving.kept.view(2, -1).sum(1).tolist() == [5, 5]


def test_clips_whose_frames_are_encoded_one_by_one() -> None:
    """GLM-4V's: each frame keeps its share in the encoder, and behind it the clip is one image again."""
    glm, spy = tiny_families.glm4v(), Spy(frozenset({Cue.ENCODER_ATTENTION, Cue.ENCODER_FEATURES}))
    with foveate.prune(glm.model, [InEncoder("divprune", 1), spy], keep=[0.5, 0.25]) as pruning:
        logits(glm, clip(glm))
        (image,) = pruning.report().images
    (tokens,) = spy.seen
    assert tokens.valid.view(3, -1).sum(1).tolist() == [3, 3, 3] and image.tokens == 5
    for cue in spy.asks:
        values = tokens.cue(cue)[0].flatten(1) if tokens.cue(cue).ndim > 2 else tokens.cue(cue)[0][:, None]
        assert torch.equal(values.any(1), tokens.valid[0])


def test_shortened_inputs(windows: Zoo) -> None:
    method = InEncoder("divprune", 2)
    short = foveate.prune_inputs(windows.model, pair(windows), method, keep=0.3)
    with foveate.prune(windows.model, method, keep=0.3):
        hooked = generate(windows, pair(windows))
    assert gap(hooked, generate(windows, short)) < 2e-5


def test_gradients_with_checkpointing(windows: Zoo) -> None:
    """Blocks that run again for their gradients go on with what was kept, without asking once more."""
    model, inputs, spy = windows.model, single(windows), Spy()
    found: list[Tensor] = []
    for checkpointed in (False, True):
        model.zero_grad()
        if checkpointed:
            model.gradient_checkpointing_enable()
            model.train()
        try:
            with foveate.prune(model, [InEncoder("tome", 1), InEncoder(spy, 2)], keep=[0.7, 0.4]):
                model(**inputs).logits[:, -1].square().sum().backward()
        finally:
            model.gradient_checkpointing_disable()
            model.eval()
        found.append(model.model.visual.blocks[0].attn.qkv.weight.grad.clone())
        model.zero_grad(set_to_none=True)
    assert len(spy.seen) == 2 and found[0].abs().max() > 0 and torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_refusals(windows: Zoo) -> None:
    model = windows.model
    refused: list[tuple[Any, dict[str, Any], str]] = [
        (InEncoder("divprune", 5), {}, "at block 5 of the vision encoder, but this model allows blocks 0 to 4"),
        (InEncoder("idpruner", 1), {}, "below block 1 no block attends to whole images; choose a block above 1"),
        (InEncoder("divprune", 1), {"scope": "prompt"}, "does not know which images share a prompt"),
        (InEncoder("cdpruner", 1), {}, "not there yet inside the vision encoder; use it before the LLM"),
        ([InEncoder("divprune", 1), InEncoder("random", 1)], {}, "two methods at block 1 of the vision encoder"),
        (InEncoder("divprune", 1), {"keep": "auto"}, "cannot find how many tokens to keep"),
        ([InEncoder("divprune", 1), "random"], {"keep": [0.2, 0.5]}, "before it leaves 0.2"),
        (InEncoder("visionselector", 1), {}, r"at encoder:1 comes without one; .*foveate train scorer --at encoder:1"),
        (InEncoder(foveate.get_method("visionselector", scorer="published"), 1), {}, "no scorer is published"),
    ]
    for method, options, sentence in refused:
        with pytest.raises(foveate.FoveateError, match=sentence):
            foveate.attach(model, method, **options)
    for name in ("pixelprune", "fastv"):
        with pytest.raises(foveate.MethodError, match="cannot be moved into the vision encoder; give a method"):
            InEncoder(name, 1)
    with pytest.raises(foveate.MethodError, match="block=-1"):
        InEncoder("divprune", -1)

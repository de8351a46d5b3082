"""LLaVA-NeXT and LLaVA-OneVision: grids, placeholders that always stay, and cues, against transformers' own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf

import foveate
import tiny_families
import tiny_models as zoo
from foveate.models import adapter_of
from foveate.models.llava_next import LlavaNextAdapter
from foveate.models.llava_onevision import LlavaOnevisionAdapter
from foveate.runtime.prompt import locate
from foveate.tokens import Cue
from runtime.helpers import generate, logits, visual
from tiny_models import Zoo

from .attention_spy import Spy, vision_outputs

SHAPES = [(84, 112), (56, 168), (200, 40), (56, 56), (300, 300)]
ALIKE = [tiny_families.llava_next, tiny_families.llava_onevision, tiny_families.llava_next_video]


@pytest.fixture(params=ALIKE, ids=lambda make: make.__name__)
def model(request: pytest.FixtureRequest) -> Zoo:
    return request.param()


def several(z: Zoo) -> dict[str, torch.Tensor]:
    """A prompt with one picture for each shape."""
    prompts = [[zoo.picture(*shape, seed)] for seed, shape in enumerate(SHAPES)]
    return zoo.inputs(z, prompts)


def tiles_of(inputs: dict[str, torch.Tensor], grids: list[Any]) -> list[torch.Tensor]:
    """The pixels of each picture's tiles, without what fills up the batch."""
    numbers = [1 + grid.down * grid.across for grid in grids[1::2]]
    return [pixels[:number] for pixels, number in zip(inputs["pixel_values"], numbers, strict=True)]


def packed(z: Zoo, values: list[torch.Tensor], inputs: dict[str, torch.Tensor], newline: Any = None) -> torch.Tensor:
    """`values` (t, n, c) of each picture, put together by the model itself; ends of lines have `newline`."""
    own: dict[str, Any] = {"image_newline": newline}
    if z.name == "llava_onevision":
        own["vision_aspect_ratio"] = z.model.config.vision_aspect_ratio
    else:
        own["vision_feature_select_strategy"] = "default"
    return torch.cat(z.model.model.pack_image_features(values, inputs["image_sizes"], **own)[0])


def test_lines_end_in_placeholders_that_belong_to_no_grid(model: Zoo) -> None:
    """The model puts its features and newlines where the adapter says that they are."""
    inputs = several(model)
    adapter = adapter_of(model.model)
    values = [torch.zeros(len(tiles), 16, 1) for tiles in tiles_of(inputs, adapter.grids(inputs)["image"])]
    newline = packed(model, values, inputs, torch.ones(1))[:, 0].bool()
    assert newline.any()
    assert torch.equal(torch.cat(adapter.placeholders(inputs)["image"]), ~newline)
    spans = locate(adapter, inputs["input_ids"], inputs)
    assert sum(len(span.grid) for span in spans) == int((~newline).sum())
    for row, own in enumerate(visual(model, inputs)):
        parts = [part for s in spans if s.row == row for part in (s.index, s.fixed) if part is not None]
        assert torch.cat(parts).sort().values.tolist() == own.nonzero()[:, 0].tolist()


def _pools(report: foveate.Report, scope: str) -> list[int]:
    sizes = [image.tokens_before for image in report.images]
    return sizes if scope == "image" else [sum(sizes)]


@pytest.mark.parametrize("scope", ["image", "prompt"])
def test_newlines_always_stay_and_are_no_text(model: Zoo, scope: Any) -> None:
    inputs = zoo.inputs(model, [[zoo.picture(84, 112)]], ["what is in the picture?"])
    spy = Spy(wants=frozenset({Cue.TEXT_EMBEDDINGS}))
    with foveate.prune(model.model, spy, keep=0.2, scope=scope) as pruning:
        logits(model, inputs)
        report = pruning.report()
    short = foveate.prune_inputs(model.model, inputs, "divprune", keep=0.2, scope=scope)
    before = report.tokens_before
    tokens = spy.seen[-1]
    shown = int(visual(model, inputs).sum())
    assert before < shown
    assert set(tokens.text_valid.sum(1).tolist()) == {inputs["input_ids"].shape[1] - shown}
    lines = shown - before
    assert report.tokens == sum(foveate.Budget(0.2, scope=scope).counts(_pools(report, scope)))
    assert short["inputs_embeds"].shape[1] == inputs["input_ids"].shape[1] - before + report.tokens
    embeds = short["inputs_embeds"][0]
    assert int((embeds == model.model.model.image_newline).all(-1).sum()) == lines


def test_cues_are_put_together_as_features_are(model: Zoo) -> None:
    inputs = several(model)
    adapter = adapter_of(model.model)
    tiles = tiles_of(inputs, adapter.grids(inputs)["image"])
    outputs = vision_outputs(model.model, torch.cat(tiles))
    numbers = [len(one) for one in tiles]
    layer = model.model.config.vision_feature_layer
    hidden, attention = outputs.hidden_states[layer], outputs.attentions[layer].mean(1)
    if adapter.has_cls:
        hidden, received = hidden[:, 1:], attention[:, 0, 1:]
    else:
        received = attention.mean(1)
    spy = Spy()
    with foveate.prune(model.model, spy, keep=0.5):
        logits(model, inputs)
    (seen,) = spy.seen
    assert len(seen.grids) == 2 * len(SHAPES)
    expected = packed(model, list(received[..., None].split(numbers)), inputs)[:, 0]
    assert torch.allclose(seen.encoder_attention[seen.valid], expected, atol=1e-6)
    assert torch.allclose(
        seen.encoder_features[seen.valid], packed(model, list(hidden.split(numbers)), inputs), atol=1e-5
    )
    projected = model.model.model.multi_modal_projector(hidden)
    expected = packed(model, list(projected.split(numbers)), inputs).detach()
    assert torch.allclose(seen.features[seen.valid], expected, atol=1e-4)


def test_sizes_stay_known_where_generate_encodes_images_beforehand(model: Zoo) -> None:
    inputs = several(model)
    with foveate.prune(model.model, "divprune", keep=0.5) as pruning:
        generate(model, inputs)
        assert len(pruning.report().images) == 2 * len(SHAPES)
        generate(model, {name: value[:1] for name, value in inputs.items()}, num_beams=2)
        assert [image.prompt for image in pruning.report().images] == [0, 0, 1, 1]


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
def test_the_published_models_count_as_their_processors_do(family: str) -> None:
    """At the size of the published checkpoints, for pictures of many shapes."""
    if family == "llava_next":
        config: Any = tf.LlavaNextConfig()
        adapter: Any = LlavaNextAdapter(SimpleNamespace(config=config))  # type: ignore[arg-type]
        own: Any = object.__new__(tf.LlavaNextProcessor)
        own.patch_size, own.num_additional_image_tokens, pixels = 14, 0, 336
    else:
        config = tf.LlavaOnevisionConfig()
        adapter = LlavaOnevisionAdapter(SimpleNamespace(config=config))  # type: ignore[arg-type]
        own = object.__new__(tf.LlavaOnevisionProcessor)
        own.num_image_tokens, own.vision_aspect_ratio, pixels = 729, config.vision_aspect_ratio, 384
    own.image_processor = SimpleNamespace(image_grid_pinpoints=config.image_grid_pinpoints)
    sizes = torch.randint(30, 3000, (200, 2), generator=torch.Generator().manual_seed(0)).tolist()
    for height, width in [*sizes, (336, 336), (1000, 3000), (3000, 1000), (480, 640), (768, 1024)]:
        runs = adapter.placeholders({"image_sizes": [(height, width)]})["image"]
        assert sum(map(len, runs)) == own._get_number_of_features(height, width, pixels, pixels), (height, width)


def test_tiles_are_what_the_encoder_costs() -> None:
    z = tiny_families.llava_next()
    adapter = adapter_of(z.model)
    overview, tiled = adapter.grids({"image_sizes": torch.tensor([[112, 56]])})["image"]
    assert (tiled.rows, tiled.columns, tiled.down, tiled.across) == (8, 4, 2, 1)
    assert [adapter.patches(grid) for grid in (overview, tiled)] == [17, 34]
    assert adapter.vision_attention_pairs(tiled)[0] == 2 * 17**2


def test_a_tower_whose_first_position_is_lost_or_in_the_way_is_refused() -> None:
    z = tiny_families.llava_next()
    config = tf.LlavaNextConfig(**{**z.model.config.to_dict(), "vision_feature_select_strategy": "full"})
    with pytest.raises(foveate.ModelError, match="keeps the CLS token"):
        foveate.prune(tf.LlavaNextForConditionalGeneration(config), "divprune")
    z = tiny_families.llava_onevision()
    config = tf.LlavaOnevisionConfig(**{**z.model.config.to_dict(), "vision_feature_select_strategy": "default"})
    with pytest.raises(foveate.ModelError, match="set it to 'full'"):
        foveate.prune(tf.LlavaOnevisionForConditionalGeneration(config), "divprune")


@pytest.fixture
def onevision() -> Zoo:
    return tiny_families.llava_onevision()


def test_pictures_of_a_prompt_with_several_have_no_tiles(onevision: Zoo) -> None:
    """The processor says so in ``batch_num_images``; each is followed by one newline."""
    pixels = torch.randn(3, 1, 3, 56, 56)
    own = {"image_sizes": torch.tensor([[84, 112]] * 3), "batch_num_images": torch.tensor([3])}
    inputs = {**onevision.processor.tokenize(["<s>" + "<image>" * 17 * 3 + "what"]), "pixel_values": pixels, **own}
    del inputs["mm_token_type_ids"]
    report = foveate.check(onevision.model, inputs, ["divprune"])
    assert report.passed, report.checks
    with foveate.prune(onevision.model, "fastv", keep=0.5) as pruning:
        logits(onevision, inputs)
        assert [(i.grid.rows, i.grid.columns) for i in pruning.report().images] == [(4, 4)] * 3


def test_clips_are_pooled_frame_by_frame(onevision: Zoo) -> None:
    frames = 3
    clip = torch.randn(1, frames, 3, 56, 56)
    inputs = {
        **onevision.processor.tokenize(["<s>" + "<video>" * (frames * 4 + 1) + "what is in"]),
        "pixel_values_videos": clip,
    }
    del inputs["mm_token_type_ids"]
    report = foveate.check(onevision.model, inputs, ["divprune"])
    assert report.passed, report.checks
    spy = Spy()
    with foveate.prune(onevision.model, spy, keep=0.5):
        logits(onevision, inputs)
        generate(onevision, inputs)
    seen = spy.seen[0]
    assert seen.grids == ((foveate.Grid(2, 2, frames),),)
    outputs = vision_outputs(onevision.model, clip[0])
    pool = onevision.model.model.apply_pooling
    assert torch.allclose(seen.encoder_features, pool(outputs.hidden_states[-1]).flatten(0, 1)[None], atol=1e-5)
    received = outputs.attentions[-1].mean((1, 2))
    assert torch.allclose(seen.encoder_attention, pool(received[..., None]).flatten()[None], atol=1e-6)


def test_images_and_clips_in_one_prompt(onevision: Zoo) -> None:
    still = several(onevision)
    image = {name: still[name][:1] for name in ("pixel_values", "image_sizes", "batch_num_images") if name in still}
    count = sum(map(len, adapter_of(onevision.model).placeholders(image)["image"]))
    text = "<s>" + "<video>" * 9 + "and" + "<image>" * count + "what is in"
    inputs = {**onevision.processor.tokenize([text]), **image, "pixel_values_videos": torch.randn(1, 2, 3, 56, 56)}
    del inputs["mm_token_type_ids"]
    report = foveate.check(onevision.model, inputs, ["divprune"])
    assert report.passed, report.checks


def test_clips_of_llava_next_video_are_pooled_before_the_projector() -> None:
    z = tiny_families.llava_next_video()
    clip = torch.randn(2, 3, 3, 56, 56)
    inputs = {**z.processor.tokenize(["<s>" + "a clip" + "<video>" * 12] * 2), "pixel_values_videos": clip}
    del inputs["mm_token_type_ids"]
    alone = {name: value[:1] for name, value in inputs.items()}
    report = foveate.check(z.model, alone, ["divprune"])
    assert report.passed, report.checks
    spy = Spy()
    with foveate.prune(z.model, spy, keep=0.5):
        logits(z, inputs)
        generate(z, inputs)
    seen = spy.seen[0]
    assert seen.grids == ((foveate.Grid(2, 2, 3),),) * 2
    outputs = vision_outputs(z.model, clip.flatten(0, 1))
    pool = z.model.model.vision_resampler
    pooled = pool(outputs.hidden_states[-2][:, 1:])
    assert torch.allclose(seen.encoder_features, pooled.view(2, 12, -1), atol=1e-5)
    received = outputs.attentions[-2][:, :, 0, 1:].mean(1)
    assert torch.allclose(seen.encoder_attention, pool(received[..., None]).view(2, 12), atol=1e-6)

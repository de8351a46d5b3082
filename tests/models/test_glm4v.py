"""What the adapters of GLM-4.1V and its kin supply, against transformers' own attention and features; and clips."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

import foveate
import tiny_families
import tiny_models as zoo
from foveate.methods import get_method
from foveate.models import adapter_of
from foveate.runtime.prompt import locate
from runtime.helpers import gap, generate, logits
from tiny_models import Zoo

from .attention_spy import shown
from .qwen_helpers import most_moved_by_painting, received_by_hand


@pytest.fixture
def glm() -> Zoo:
    return tiny_families.glm4v()


def clip(z: Zoo, frames: int = 3, rows: int = 2, columns: int = 3, clips: int = 1) -> dict[str, torch.Tensor]:
    """A prompt with clips as the processor writes them: each frame with placeholders of images, its time behind it."""
    patches = frames * rows * columns * 4 * clips
    pixels = torch.randn(patches, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0))
    frame = f"<|begin_of_image|>{'<|image|>' * rows * columns}<|end_of_image|>"
    text = "".join("".join(f"{frame}{second}" for second in range(frames)) + "a" for _ in range(clips))
    words = z.processor.tokenize([f"<s>{text}what is in the picture?"])
    grids = torch.tensor([[frames, rows * 2, columns * 2]] * clips)
    return {
        **words,
        "mm_token_type_ids": 2 * words["mm_token_type_ids"],
        "pixel_values_videos": pixels,
        "video_grid_thw": grids,
    }


def test_the_cues_of_several_images(glm: Zoo) -> None:
    inputs = zoo.inputs(glm, [[zoo.picture(84, 140, 0), zoo.picture(56, 84, 1)], [zoo.picture(140, 56, 2)]])
    tokens = shown(glm.model, inputs)
    visual, joined = glm.model.model.visual, []
    handle = visual.downsample.register_forward_pre_hook(lambda module, args: joined.append(args[0]))
    with torch.no_grad():
        after = visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
    handle.remove()
    sizes = tokens.sizes
    assert sizes == [15, 6, 10]
    before = joined[0].flatten(2).mean(-1)
    for row, (size, attention) in enumerate(zip(sizes, received_by_hand(glm, inputs), strict=True)):
        assert torch.allclose(tokens.encoder_attention[row, :size], attention, atol=1e-6)
        assert torch.allclose(tokens.encoder_features[row, :size], before.split(sizes)[row], atol=1e-5)
        assert torch.allclose(tokens.features[row, :size], after.split(sizes)[row], atol=1e-5)


def test_tokens_are_in_raster_order(glm: Zoo) -> None:
    assert most_moved_by_painting(glm, 1, 3) == {"features": 8, "encoder_features": 8}


def test_pixels_are_those_of_the_familys_own_processor(glm: Zoo) -> None:
    painted = zoo.picture(112, 168, 0)
    painted.paste((51, 102, 204), (28, 0, 56, 28))
    media = tf.Glm4vImageProcessorPil(size={"shortest_edge": 56**2, "longest_edge": 56**2 * 9})(
        images=[painted], do_resize=False, return_tensors="pt"
    )
    adapter = adapter_of(glm.model)
    (pixels,) = adapter.pixels((media["pixel_values"],), {"grid_thw": media["image_grid_thw"]})
    assert pixels.shape[0] == len(adapter.grids(media)["image"][0]) == 24
    colours = pixels[1].view(4, 3, -1)
    assert torch.allclose(colours, torch.tensor([0.2, 0.4, 0.8])[:, None].expand_as(colours), atol=1e-5)


def test_pruning_a_clip_equals_a_shortened_prompt(glm: Zoo) -> None:
    report = foveate.check(glm.model, clip(glm), [])
    assert report.passed, report.checks


def test_a_clip_is_one_image_although_its_frames_lie_apart(glm: Zoo) -> None:
    inputs = clip(glm, clips=2)
    spans = locate(adapter_of(glm.model), inputs["input_ids"], inputs)
    assert [(span.modality, span.grid.frames, len(span.index)) for span in spans] == [("video", 3, 18)] * 2
    placeholders = (inputs["input_ids"][0] == glm.tokenizer.image_token_id).nonzero()[:, 0]
    assert torch.equal(torch.cat([span.index for span in spans]), placeholders)
    with foveate.prune(glm.model, "divprune", keep=0.5) as pruning:
        cached, uncached = generate(glm, inputs), generate(glm, inputs, use_cache=False)
        assert [image.tokens for image in pruning.report().images] == [9, 9]
    assert gap(cached, uncached) < 2e-5
    tokens = shown(glm.model, inputs)
    assert tokens.encoder_attention[:, :18].sum(1).tolist() == pytest.approx([3 / 4] * 2, abs=1e-5)


def test_without_token_types_the_grids_tell_clips_from_images(glm: Zoo) -> None:
    adapter = adapter_of(glm.model)
    for inputs, modality in ((clip(glm), "video"), (zoo.inputs(glm, [[zoo.picture(56, 56)]]), "image")):
        del inputs["mm_token_type_ids"]
        assert [span.modality for span in locate(adapter, inputs["input_ids"], inputs)] == [modality]


def test_before_the_encoder_each_frame_keeps_its_share(glm: Zoo) -> None:
    """Frames are encoded one by one; what is left of them is that of the clip."""
    inputs = clip(glm, clips=2)
    with foveate.prune(glm.model, get_method("pixelprune"), keep=0.5) as pruning:
        pruned = logits(glm, inputs)
        report = pruning.report()
    assert [image.tokens for image in report.images] == [9, 9]
    frames = torch.stack([image.kept for image in report.images]).view(2, 3, 6)
    assert torch.equal(frames.sum(-1), torch.full((2, 3), 3))
    assert pruned.isfinite().all()


def test_before_the_encoder_equals_its_layers_run_on_what_is_left(glm: Zoo) -> None:
    inputs = zoo.inputs(glm, [[zoo.picture(84, 112, 0)]])
    visual, text = glm.model.model.visual, glm.model.model.language_model
    entering: list[dict] = []
    handles = [
        module.register_forward_pre_hook(
            lambda module, args, kwargs: entering.append(kwargs | {"": args}), with_kwargs=True
        )
        for module in (visual.blocks[0], text)
    ]
    try:
        logits(glm, inputs)
        with foveate.prune(glm.model, "pixelprune", keep=0.5) as pruning:
            logits(glm, inputs)
            (image,) = pruning.report().images
    finally:
        for handle in handles:
            handle.remove()
    first, after = entering[0], entering[3]["inputs_embeds"]
    kept = image.kept.repeat_interleave(4)
    hidden, rotary = first[""][0][kept], tuple(table[kept] for table in first["position_embeddings"])
    with torch.no_grad():
        for block in visual.blocks:
            hidden = block(hidden, cu_seqlens=torch.tensor([0, len(hidden)]), position_embeddings=rotary)
        squares = visual.post_layernorm(hidden).view(-1, 2, 2, hidden.shape[-1]).permute(0, 3, 1, 2)
        tokens = visual.merger(visual.downsample(squares).flatten(1))
    assert image.tokens == len(tokens) == 6
    visible = after[0, inputs["input_ids"][0] == glm.tokenizer.image_token_id]  # before any are dropped
    assert torch.allclose(visible[image.kept], tokens, atol=1e-5)
    assert torch.equal(visible[~image.kept], torch.zeros(6, 64))


def test_costs(glm: Zoo) -> None:
    adapter = adapter_of(glm.model)
    assert adapter.vision_width == 32
    assert adapter.patches(foveate.Grid(3, 5, 2)) == 120
    assert adapter.vision_attention_pairs(foveate.Grid(3, 5, 2)) == [2 * 60**2] * 2


def test_the_experts_of_glm_4_5v() -> None:
    z = tiny_families.glm4v_moe()
    blocks = adapter_of(z.model).moe()
    assert [block is None for block in blocks] == [True, False, False, False]
    assert blocks[1] is not None and blocks[1].chosen == 2 and blocks[1].weights_per_expert == 3 * 32 * 64
    inputs = zoo.inputs(z, [[zoo.picture(84, 112, 0)]])
    assert adapter_of(z.model).text.layers[1].mlp.shared_experts is not None
    plain = logits(z, inputs)
    with foveate.prune(z.model, "fastmmoe", keep=1.0):
        assert torch.equal(logits(z, inputs), plain)
    with foveate.prune(z.model, "fastmmoe", keep=0.5, layers=(1,), expert_layer=1, expert_share=0.5) as pruning:
        assert logits(z, inputs).isfinite().all()
        report = pruning.report()
    assert report.text_flops < report.text_flops_before

"""What the adapters with a Pixtral tower supply, against transformers' own outputs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf

import foveate
import tiny_families
import tiny_models as zoo
from foveate.models import adapter_of
from foveate.tokens import Grid
from runtime.helpers import kernels
from tiny_models import Zoo

from .attention_spy import shown

GRIDS = {"mistral3": [(4, 6), (6, 3)], "llava": [(8, 11), (12, 6)]}  # odd ones where patches are not merged


@pytest.fixture(params=[tiny_families.mistral3, tiny_families.pixtral], ids=["mistral3", "pixtral"])
def model(request: pytest.FixtureRequest) -> Zoo:
    return request.param()


def two_images(z: Zoo) -> dict[str, torch.Tensor]:
    """One taller than the other and less wide: the batch pads both."""
    return zoo.inputs(z, [[zoo.picture(110, 150, 1)], [zoo.picture(160, 84, 2)]])


def vision_outputs(z: Zoo, inputs: dict[str, torch.Tensor]) -> Any:
    with kernels(z.model, "eager"), torch.no_grad():
        pixels, sizes = inputs["pixel_values"], inputs["image_sizes"]
        return z.model.model.vision_tower(pixels, sizes, output_attentions=True, output_hidden_states=True)


def pooled(patches: torch.Tensor, grid: tuple[int, int], merge: int) -> torch.Tensor:
    """(n, e): means of patches (P, e) by average pooling."""
    image = patches.T.reshape(-1, grid[0] * merge, grid[1] * merge)
    return torch.nn.functional.avg_pool2d(image[None], merge)[0].flatten(1).T


def test_the_cues_are_those_of_eager_attention(model: Zoo) -> None:
    inputs, grids = two_images(model), GRIDS[model.name]
    tokens = shown(model.model, inputs)
    outputs = vision_outputs(model, inputs)
    assert [[(g.rows, g.columns) for g in pool] for pool in tokens.grids] == [[grid] for grid in grids]
    merge = adapter_of(model.model).merge
    start = 0
    for image, (rows, columns) in enumerate(grids):
        n, end = rows * columns, start + rows * columns * merge**2
        received = outputs.attentions[-1][0, :, start:end, start:end].mean((0, 1))
        expected = pooled(received[:, None], (rows, columns), merge)[:, 0]
        assert torch.allclose(tokens.encoder_attention[image, :n], expected, atol=1e-6)
        features = pooled(outputs.hidden_states[-1][0, start:end], (rows, columns), merge)
        assert torch.allclose(tokens.encoder_features[image, :n], features, atol=1e-5)
        start = end
    assert start == outputs.hidden_states[-1].shape[1]


def test_features_are_what_the_llm_would_read(model: Zoo) -> None:
    inputs = two_images(model)
    tokens = shown(model.model, inputs)
    with torch.no_grad():
        read = model.model.model.get_image_features(inputs["pixel_values"], image_sizes=inputs["image_sizes"])
    for image, expected in enumerate(read.pooler_output):
        assert torch.equal(tokens.features[image, : len(expected)], expected)


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Pixtral's processor without what it is made of; its module needs torchvision for what is not used here."""
    package = "transformers.models.pixtral"
    monkeypatch.setitem(
        sys.modules, f"{package}.image_processing_pixtral", SimpleNamespace(get_resize_output_image_size=None)
    )
    module = importlib.import_module(f"{package}.processing_pixtral")
    try:
        yield object.__new__(module.PixtralProcessor)
    finally:
        sys.modules.pop(module.__name__)


def test_placeholders_are_those_of_the_processor(model: Zoo, processor: Any) -> None:
    """The rows' ends are text: the processor of transformers writes as many placeholders as there are tokens."""
    if not hasattr(processor, "replace_image_token"):
        pytest.skip("this release of transformers writes the text elsewhere")
    sizes = [(110, 150), (160, 84), (30, 400), (900, 500)]
    adapter = adapter_of(model.model)
    processor.patch_size, processor.spatial_merge_size = 14, adapter.merge
    processor.image_token, processor.image_break_token, processor.image_end_token = "I", "B", "E"
    media = model.processor.image_processor(images=[zoo.picture(*size) for size in sizes], return_tensors="pt")
    made = model.processor.layout(media)
    for image, grid in enumerate(adapter.grids(media)["image"]):
        written = processor.replace_image_token(media, image)
        assert written == "B".join(["I" * grid.columns] * grid.rows) + "E"
        assert made[image].replace("[IMG_BREAK]", "B").replace("[IMG_END]", "E").replace("[IMG]", "I") == written


def test_a_whole_batch_needs_no_sizes(model: Zoo) -> None:
    adapter = adapter_of(model.model)
    side = 14 * adapter.merge
    assert adapter.grids({"pixel_values": torch.zeros(2, 3, 3 * side, 5 * side)}) == {"image": [Grid(3, 5)] * 2}


def test_patches_that_are_no_tokens_are_refused_where_they_are_read() -> None:
    """A side of an odd number of patches, which no processor makes: the last row of patches is no part of a token."""
    model = tiny_families.mistral3()
    inputs = zoo.inputs(model, [[zoo.picture(112, 112, 1)]])
    inputs["pixel_values"] = torch.nn.functional.pad(inputs["pixel_values"], (0, 0, 0, 14))
    inputs["image_sizes"] = torch.tensor([[126, 112]])
    with foveate.prune(model.model, "fastervlm", keep=0.5), pytest.raises(foveate.ModelError, match="multiple of 28"):
        model.model(**inputs)
    with foveate.prune(model.model, "divprune", keep=0.5) as pruning, torch.no_grad():
        model.model(**inputs)
    assert pruning.report().tokens == 8


def test_costs_count_patches(model: Zoo) -> None:
    adapter = adapter_of(model.model)
    patches = 12 * adapter.merge**2
    assert adapter.patches(Grid(3, 4)) == patches
    assert adapter.vision_attention_pairs(Grid(3, 4)) == [patches**2] * 3


def test_a_left_out_first_patch_is_refused() -> None:
    model = tiny_families.pixtral().model
    config = tf.LlavaConfig(**{**model.config.to_dict(), "vision_feature_select_strategy": "default"})
    with pytest.raises(foveate.ModelError, match="set it to 'full'"):
        foveate.attach(tf.LlavaForConditionalGeneration(config), "random")

"""What the PaddleOCR-VL adapter supplies, against transformers' own attention and features."""

from __future__ import annotations

import pytest
import torch

import tiny_families
import tiny_models as zoo
from foveate.models import adapter_of
from runtime.helpers import kernels
from tiny_models import Zoo

from .attention_spy import shown
from .qwen_helpers import most_moved_by_painting


@pytest.fixture
def paddle() -> Zoo:
    return tiny_families.paddleocr_vl()


def two_by_two(patches: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Means over 2 x 2 blocks of a map of patches (n, e) in raster order, by average pooling."""
    square = patches.T.reshape(1, -1, 2 * rows, 2 * columns)
    return torch.nn.functional.avg_pool2d(square, 2)[0].flatten(1).T


def test_the_cues_of_several_images(paddle: Zoo) -> None:
    inputs = zoo.inputs(paddle, [[zoo.picture(84, 140, 0), zoo.picture(56, 84, 1)]])
    tokens = shown(paddle.model, inputs)
    visual, shapes = paddle.model.model.visual, inputs["image_grid_thw"]
    weights: list[torch.Tensor] = []
    handle = visual.vision_model.encoder.layers[-1].self_attn.register_forward_hook(
        lambda module, args, out: weights.append(out[1])
    )
    try:
        with kernels(paddle.model, "eager"), torch.no_grad():
            features = visual(inputs["pixel_values"][None], grid_thw=shapes).last_hidden_state
            for image, shape in zip(inputs["pixel_values"].split(shapes.prod(-1).tolist()), shapes, strict=True):
                visual(image[None], grid_thw=shape[None])
            after = paddle.model.model.get_image_features(inputs["pixel_values"], shapes).pooler_output
    finally:
        handle.remove()
    parts = features.split(shapes.prod(-1).tolist())
    for row, (rows, columns) in enumerate([(3, 5), (2, 3)]):
        size = rows * columns
        one = weights[1 + row]
        received = (one[0] if isinstance(one, list) else one).mean((0, 1, 2))
        expected = two_by_two(received[:, None], rows, columns)[:, 0]
        assert torch.allclose(tokens.encoder_attention[row, :size], expected, atol=1e-6)
        assert torch.allclose(tokens.encoder_features[row, :size], two_by_two(parts[row], rows, columns), atol=1e-5)
        assert torch.allclose(tokens.features[row, :size], after[row], atol=1e-5)


def test_tokens_are_in_raster_order(paddle: Zoo) -> None:
    assert most_moved_by_painting(paddle, 1, 3) == {"features": 8, "encoder_features": 8}


def test_what_it_gives(paddle: Zoo) -> None:
    adapter = adapter_of(paddle.model)
    assert adapter.modalities == ("image",) and not adapter.leaves_out_patches

"""What the tests of the Qwen-VL families share: the encoder's attention, computed by hand from its own layers."""

from __future__ import annotations

import torch

import tiny_models as zoo
from tiny_models import Zoo

from .attention_spy import shown


def received_by_hand(model: Zoo, inputs: dict[str, torch.Tensor], layer: int = -1) -> list[torch.Tensor]:
    """Column means of the softmax of a block of the tower, of each LLM token in the encoder's order, per image."""
    visual = model.model.model.visual
    found: dict[str, torch.Tensor] = {}
    block = visual.blocks[layer].attn

    def keep(module: object, args: tuple, kwargs: dict) -> None:
        found["hidden"] = args[0] if args else kwargs["hidden_states"]
        found["cos"], found["sin"] = kwargs["position_embeddings"]

    received = []
    pixels = inputs["pixel_values"].split(inputs["image_grid_thw"].prod(-1).tolist())
    for image, shape in zip(pixels, inputs["image_grid_thw"], strict=True):
        handle = block.register_forward_pre_hook(keep, with_kwargs=True)
        with torch.no_grad():
            visual(image, grid_thw=shape[None])
            handle.remove()
            query, key, _ = block.qkv(found["hidden"]).view(len(image), 3, 2, 16).permute(1, 2, 0, 3)
        cos, sin = found["cos"], found["sin"]

        def rotated(x: torch.Tensor, cos: torch.Tensor = cos, sin: torch.Tensor = sin) -> torch.Tensor:
            return x * cos + torch.cat([-x[..., 8:], x[..., :8]], -1) * sin

        weights = (rotated(query) @ rotated(key).mT / 4).softmax(-1).mean((0, 1))
        received.append(weights.view(-1, 4).mean(1))
    return received


def most_moved_by_painting(model: Zoo, row: int, column: int) -> dict[str, int]:
    """Raster index of the token whose features move most when one cell of a 3 x 5 grid is painted white."""
    side = 2 * model.processor.image_processor.patch_size
    plain = zoo.picture(3 * side, 5 * side, 0)
    painted = plain.copy()
    painted.paste((255, 255, 255), (column * side, row * side, (column + 1) * side, (row + 1) * side))
    a, b = (shown(model.model, zoo.inputs(model, [[image]])) for image in (plain, painted))
    names = ("features", "encoder_features")
    return {name: int((getattr(a, name) - getattr(b, name))[0].norm(dim=-1).argmax()) for name in names}

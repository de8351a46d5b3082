"""What the families with a Pixtral tower have in common: images of any size, one after the other in one sequence."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError
from ..tokens import AttentionKind, Grid
from .adapter import AttentionCall, layers_behind, patch_attention
from .tower import TowerAdapter, block_means


class PixtralAdapter(TowerAdapter):
    """A Pixtral tower, which encodes all images of a call as one sequence in which each attends to itself.

    The tokens that end a row of an image, and the image, are text, which is never pruned.

    The encoder-attention cue is the attention that a patch receives on average in the layer whose output becomes the
    visual feature (see `encoder_queries`), averaged over the patches of an LLM token; encoder features are averaged
    likewise.
    """

    @property
    def _side(self) -> int:
        """Pixels along each side of an LLM token."""
        return int(self.model.config.vision_config.patch_size * self.merge)

    def grid(self, height: int, width: int) -> Grid:
        return Grid(height // self._side, width // self._side)

    def grids(self, inputs: Mapping[str, Any]) -> dict[str, list[Grid]]:
        sizes = inputs.get("image_sizes")
        if sizes is None:  # then every image fills its entry of the batch
            return super().grids(inputs)
        sizes = sizes.tolist() if isinstance(sizes, Tensor) else sizes
        return {"image": [self.grid(int(height), int(width)) for height, width in sizes]}

    def grid_inputs(self, modality: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        sizes = args[1] if len(args) > 1 else kwargs.get("image_sizes")
        return super().grid_inputs(modality, args, kwargs) | {"image_sizes": sizes}

    def vision_layers(self) -> list[Any]:
        return list(self.vision.transformer.layers)

    def attention_modules(self) -> dict[int, nn.Module]:
        layer = self.model.config.vision_feature_layer
        last = layer if isinstance(layer, int) else layer[-1]
        return {i: layer.attention for i, layer in enumerate(layers_behind(last, self.vision_layers()))}

    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        call, counts = calls[-1], self._counts(grids, calls[-1].key.shape[2])
        found, start = [], 0
        for grid, size in zip(grids, counts, strict=True):
            own = (slice(None), slice(None), slice(start, start + size))
            received = patch_attention(call.part(itemgetter(own)), kind, False, self.encoder_queries)[0]
            found.append(block_means(received, grid, self.merge))
            start += size
        return found

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        hidden = hidden.flatten(0, -2)
        parts = hidden.split(self._counts(grids, len(hidden)))
        return [block_means(part, grid, self.merge) for part, grid in zip(parts, grids, strict=True)]

    def _counts(self, grids: list[Grid], total: int) -> list[int]:
        """How many of the `total` patches each image has."""
        counts = [self.patches(grid) for grid in grids]
        if sum(counts) != total:
            raise ModelError(
                f"the images have {total} patches, of which {sum(counts)} are visual tokens: some side is not a "
                f"multiple of {self._side} pixels; pass what the processor returned, or use a method that reads "
                "nothing of the encoder, such as 'divprune'."
            )
        return counts

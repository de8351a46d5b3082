"""What the plugin must know of a model family in vLLM, beside the family's adapter in `foveate.models`."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...budget import Scope
from ...errors import ModelError
from ...models.adapter import AttentionCall, ModelAdapter
from ...tokens import Grid
from .layout import layout_of

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


def field(modality: str) -> str:
    """The name of the tensor in which an image's request travels to the engine."""
    return f"foveate_{modality}"


def key_field(modality: str) -> str:
    """The name of the tensor that stands for an image in vLLM's caches."""
    return f"{field(modality)}_key"


def explain_embeddings(modality: str) -> ModelError:
    """Why what was not encoded here cannot be pruned."""
    return ModelError(
        f"the {modality} was passed in as embeddings, which foveate leaves as they are; add foveate_keep=1.0 to the "
        "request."
    )


class Family(ABC):
    """One family; its adapter answers from the config alone, and finds vLLM's modules under the names of transformers.

    Args:
        config: the model's transformers config.
        model: vLLM's model, or None where only configs and shapes are asked for.

    Raises:
        ModelError: for a variant of the family that the adapter cannot serve.
    """

    adapter_class: ClassVar[type[ModelAdapter]]
    mrope: ClassVar[bool] = False  # whether positions are M-RoPE's, so that survivors can keep theirs
    model_config: Any = None  # vLLM's, where there is a server
    clip_scopes: ClassVar[tuple[Scope, ...]] = ("image", "frame")  # allowed for clips, the default first
    # Why no token can leave inside of vLLM's vision encoder, as the end of a sentence; None where they can.
    whole_encoder: ClassVar[str | None] = "its images are rows of one tensor there, all of one length"

    def __init__(self, config: Any, model: Any = None) -> None:
        self.adapter = self.adapter_class.of(SimpleNamespace(config=config, model=model))  # type: ignore[arg-type]

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that can be pruned."""
        return self.adapter.modalities

    def check_modalities(self, present: Iterable[str]) -> None:
        """Raise ModelError where one of the modalities of a request cannot be pruned, although it is seen."""
        for modality in present:
            if modality in PIXELS and modality not in self.modalities:
                raise ModelError(
                    f"{self.adapter.class_name} can be pruned on {' and '.join(self.modalities)} input only, and the "
                    f"request holds a {modality}; add foveate_keep=1.0 to the request."
                )

    @abstractmethod
    def grids(self, modality: str, item: Mapping[str, Any]) -> list[Grid]:
        """The grids of one image or clip, from its processed tensors; several where it is cut into tiles."""

    @abstractmethod
    def items(self, modality: str, batch: Mapping[str, Any]) -> list[list[Grid]]:
        """The same for each image or clip of a batch, from the arguments of ``embed_multimodal``."""

    def layouts(self, modality: str, grids: Sequence[Grid]) -> list[Tensor]:
        """For each of the `grids` of one image or clip its layout (p,) long, see `layout`."""
        return [layout_of(run) for run in self.adapter.runs(modality, grids)]

    def prepare(self, modality: str, batch: dict[str, Any]) -> dict[str, Any]:
        """The arguments of ``embed_multimodal`` as they are to be encoded; most families leave them as they are."""
        return batch

    def rows(self, modality: str, batch: Mapping[str, Any]) -> dict[str, list[int]]:
        """For each argument that concatenates the images of a batch, how many of its rows belong to each of them."""
        return {}

    def seconds(self, modality: str, batch: Mapping[str, Any], count: int) -> list[float]:
        """For each of `count` images or clips, by how much M-RoPE's first position grows from frame to frame."""
        return [1.0] * count

    def attention(self) -> Any:
        """vLLM's attention layer whose attention is the adapter's ENCODER_ATTENTION cue."""
        return self.adapter.attention_module().attn

    def calls(self, query: Tensor, key: Tensor, scaling: float, grids: list[Grid]) -> list[AttentionCall]:
        """One attention call of vLLM as the calls that transformers makes; query and key are (B, S, H, hd)."""
        return [AttentionCall(query.transpose(1, 2), key.transpose(1, 2), scaling)]

    def projector(self) -> nn.Module:
        """The module whose first input are the encoder's features."""
        return self.adapter.projector

    def features(self, hidden: Tensor, grids: list[Grid]) -> Tensor:
        """The projector's input in the shape that it has in transformers."""
        return hidden


class TiledFamily(Family):
    """What families have in common that encode the tiles of all images as rows of one tensor."""

    tile_counts: ClassVar[str]  # the argument of ``embed_multimodal`` that says how many tiles each image has
    of_tiles: ClassVar[tuple[str, ...]] = ("pixel_values",)  # those with an entry for each tile

    def grids(self, modality: str, item: Mapping[str, Any]) -> list[Grid]:
        return self.adapter.grids({name: item[name] for name in self.of_tiles})[modality]

    def items(self, modality: str, batch: Mapping[str, Any]) -> list[list[Grid]]:
        grids = iter(self.grids(modality, batch))
        return [list(itertools.islice(grids, count)) for count in self._counts(batch)]

    def rows(self, modality: str, batch: Mapping[str, Any]) -> dict[str, list[int]]:
        return dict.fromkeys(self.of_tiles, self._counts(batch))

    def _counts(self, batch: Mapping[str, Any]) -> list[int]:
        return [int(count) for count in batch[self.tile_counts].flatten().tolist()]


class QwenFamily(Family):
    """What the Qwen-VL families have in common."""

    mrope = True
    whole_encoder: ClassVar[str | None] = None

    def grids(self, modality: str, item: Mapping[str, Any]) -> list[Grid]:
        name = f"{modality}_grid_thw"
        return self.adapter.grids({name: item[name].reshape(1, 3)})[modality]

    def items(self, modality: str, batch: Mapping[str, Any]) -> list[list[Grid]]:
        name = f"{modality}_grid_thw"
        return [[grid] for grid in self.adapter.grids({name: batch[name]})[modality]]

    def rows(self, modality: str, batch: Mapping[str, Any]) -> dict[str, list[int]]:
        return {PIXELS[modality]: [int(n) for n in batch[f"{modality}_grid_thw"].prod(-1).tolist()]}

    def calls(self, query: Tensor, key: Tensor, scaling: float, grids: list[Grid]) -> list[AttentionCall]:
        # vLLM attends to all frames of all images in one ragged call, transformers to one after the other.
        frames = [self.adapter.patches(grid.frame) for grid in grids for _ in range(grid.frames)]
        return split_calls(query, key, scaling, frames)

    def projector(self) -> nn.Module:
        # vLLM's compiler replaces the merger's __call__, hooks and all; what the merger does first is called as always.
        return next(self.adapter.projector.children())

    def features(self, hidden: Tensor, grids: list[Grid]) -> Tensor:
        return hidden.flatten(0, -2)


def split_calls(query: Tensor, key: Tensor, scaling: float, sizes: Sequence[int]) -> list[AttentionCall]:
    """One ragged attention call of vLLM's, query and key (B, S, H, hd), as one call for each of the `sizes`."""
    parts = zip(query.flatten(0, 1).split(list(sizes)), key.flatten(0, 1).split(list(sizes)), strict=True)
    return [AttentionCall(q.transpose(0, 1)[None], k.transpose(0, 1)[None], scaling) for q, k in parts]


def take(batch: Mapping[str, Any], rows: Mapping[str, list[int]], first: int, last: int) -> dict[str, Any]:
    """The arguments of the images `first` to `last` (exclusive) of a batch.

    Args:
        batch: arguments of ``embed_multimodal``; each holds one entry an image, or the rows of `rows`.
        rows: for arguments that concatenate images, the rows of each image.
    """
    out: dict[str, Any] = {}
    for name, value in batch.items():
        if name in rows:
            start = sum(rows[name][:first])
            out[name] = value[start : start + sum(rows[name][first:last])]
        elif isinstance(value, (list, tuple)) or (isinstance(value, torch.Tensor) and value.ndim):
            out[name] = value[first:last]
        else:
            out[name] = value  # shared by all images
    return out


def pick(batch: Mapping[str, Any], rows: Mapping[str, list[int]], indices: Sequence[int]) -> dict[str, Any]:
    """The arguments of some images of a batch; `batch` and `rows` as for `take`."""
    parts = [take(batch, rows, index, index + 1) for index in indices]
    out: dict[str, Any] = {}
    for name, value in batch.items():
        given = [part[name] for part in parts]
        if isinstance(value, torch.Tensor) and value.ndim:
            out[name] = torch.cat(given)
        elif isinstance(value, (list, tuple)):
            out[name] = [one for part in given for one in part]
        else:
            out[name] = value
    return out

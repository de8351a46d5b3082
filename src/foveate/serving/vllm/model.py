"""Mixed into vLLM's model classes: images are shortened where they leave the encoder, and keep their positions."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.multimodal.utils import copy_mm_embedding_modality

from ...importance.evidence_scorer import PARTS
from ...importance.scorer_files import KEYS
from .config import ServingConfig
from .family import Family, field
from .feature_cache import FeatureCache
from .positions import Block, blocks_of, split_distances, unpruned_prompt, with_distances
from .pruner import ImagePruner
from .request import PruneRequest

_OF_FOVEATE = {*KEYS, "map"}  # tensors of a scorer and of an attention prior
_TOWER, _WITHIN = "vision_tower.", "vision_model"


def is_of_foveate(name: str) -> bool:
    """Whether a tensor is one of a scorer, an evidence scorer or a prior, which lie beside a model's own."""
    return name in _OF_FOVEATE or name.partition(".")[0] in PARTS


class PrunesImages:
    """Mixin for vLLM's model classes; comes first in their bases."""

    family_class: ClassVar[type[Family]]

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        model_config = vllm_config.model_config
        config = ServingConfig(self.family_class, model_config, self)
        self._pruner: ImagePruner | None = None
        if config.prunes:
            scheduled = vllm_config.scheduler_config.max_num_encoder_input_tokens
            self._pruner = ImagePruner(config, model_config.get_inputs_embeds_size(), scheduled, self._embed_text)
            if getattr(vllm_config, "weight_transfer_config", None) is not None:
                self._pruner.features = FeatureCache(0)  # weights may change without a word, and features with them

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Encode images or clips; what their requests do not keep is gone from the embeddings."""
        encode = super().embed_multimodal  # type: ignore[misc]
        if self._pruner is None:
            return encode(**kwargs)
        return tuple(self._deliver(*image) for image in self._pruner.embed(encode, kwargs))

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], *args: Any, **kwargs: Any) -> Any:
        """Load weights, by which an encoder that is loaded again makes other features.

        vLLM reads every safetensors file of a folder that has no index: scorers and a prior beside the model, too.
        """
        if self._pruner is not None:
            self._pruner.features.clear()
        own = ((self._published_name(name), tensor) for name, tensor in weights if not is_of_foveate(name))
        return super().load_weights(own, *args, **kwargs)  # type: ignore[misc]

    def _published_name(self, name: str) -> str:
        """The name that a weight of a CLIP or SigLIP tower has in published checkpoints, the only one that vLLM knows.

        transformers 5 writes the same weights under names without the model that the tower holds.
        """
        if not hasattr(getattr(self, "vision_tower", None), _WITHIN) or f"{_TOWER}{_WITHIN}." in name:
            return name
        before, tower, after = name.partition(_TOWER)
        return f"{before}{tower}{_WITHIN}.{after}" if tower and before in ("", "model.") else name

    def _embed_text(self, ids: Tensor) -> Tensor:
        """What the language model reads of text, (M, d), whatever adapter the batch has."""
        # vLLM's embedding with LoRA reads which token has which adapter from the step that it is about to run.
        modules: Any = self.modules()  # type: ignore[attr-defined]
        wrapped = [one for one in modules if isinstance(getattr(one, "base_layer", None), VocabParallelEmbedding)]
        with contextlib.ExitStack() as stack:
            for module in wrapped:
                module.forward = module.base_layer.forward
                stack.callback(delattr, module, "forward")
            return self.embed_input_ids(ids)  # type: ignore[attr-defined, no-any-return]

    def _deliver(self, rows: Tensor, distances: Tensor | None) -> Tensor:
        """What vLLM keeps of an image, (k, d')."""
        return rows


class PrunesMRope(PrunesImages):
    """The same for models with M-RoPE, whose survivors keep the coordinates of the unpruned image."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        # Added to the positions of the step that runs. A buffer with a fixed place, so that CUDA graphs read it; twice
        # as long as a step, because graphs are captured at padded lengths.
        self._length = 2 * vllm_config.scheduler_config.max_num_batched_tokens
        self._distances: Tensor | None = None

    def _deliver(self, rows: Tensor, distances: Tensor | None) -> Tensor:
        if distances is None:
            distances = rows.new_zeros(len(rows), 3, dtype=torch.long)
        return with_distances(rows, distances)

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: Sequence[Tensor] | None = None,
        *,
        is_multimodal: Tensor | None = None,
    ) -> Tensor:
        """Take the distances off the embeddings and keep them for the forward that follows."""
        if multimodal_embeddings is not None and len(multimodal_embeddings) and self._pruner is not None:
            rows, distances = zip(*map(split_distances, multimodal_embeddings), strict=True)
            room = self._room(input_ids.device)
            step = room.new_zeros(len(input_ids), 3)
            step[is_multimodal] = torch.cat(distances)
            room[:, : len(input_ids)] = step.T
            # vLLM notes on each what it is of, by which clips are told from the sound between their frames.
            multimodal_embeddings = [
                copy_mm_embedding_modality(given, own) for given, own in zip(multimodal_embeddings, rows, strict=True)
            ]
        return super().embed_input_ids(  # type: ignore[misc]
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal
        )

    def forward(self, input_ids: Tensor | None, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run at the positions of the unpruned prompt."""
        if self._pruner is None or positions.ndim == 1:
            return super().forward(input_ids, positions, *args, **kwargs)  # type: ignore[misc]
        distances = self._room(positions.device)[:, : positions.shape[-1]]
        hidden = super().forward(input_ids, positions + distances, *args, **kwargs)  # type: ignore[misc]
        distances.zero_()  # the next step may have no images, and then nothing writes here
        return hidden

    def _room(self, device: torch.device) -> Tensor:
        """The distances (3, length), made when vLLM first runs the model, which is before it captures graphs."""
        if self._distances is None:
            self._distances = torch.zeros(3, self._length, dtype=torch.long, device=device)
        return self._distances

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Positions of the unpruned prompt; of pruned blocks only the beginning, until it is known what is kept."""
        given = super().get_mrope_input_positions  # type: ignore[misc]
        features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        blocks, tokens, stretched = self._blocks(input_tokens, features)
        if not blocks:
            return given(input_tokens, mm_features)
        full, places = unpruned_prompt(input_tokens, blocks, tokens)
        positions, delta = given(full, stretched)
        return positions[:, places], delta + len(full) - len(input_tokens)

    def _blocks(self, tokens: list[int], features: list[Any]) -> tuple[list[Block], list[int], list[Any]]:
        """The pruned blocks, the id that fills each, and the features as they would lie in the unpruned prompt."""
        blocks: list[Block] = []
        fill: list[int] = []
        stretched, shift = [], 0
        for feature in features:
            place, found = feature.mm_position, list[Block]()
            data = {name: element.data for name, element in (feature.data or {}).items()}
            mark = data.get(field(feature.modality))
            request = None if mark is None else PruneRequest.from_tensor(mark)
            if request is not None and self._pruner is not None:
                family = self._pruner.family
                groups = request.groups(family.grids(feature.modality, data))
                placeholder = family.adapter.token_ids()[feature.modality]
                found = blocks_of(
                    tokens,
                    place.offset,
                    place.offset + place.length,
                    placeholder,
                    groups.counts,
                    groups.sizes,
                )
                blocks += found
                fill += [placeholder] * len(found)
            growth = sum(block.full - block.kept for block in found)
            embeds = _stretched(place, found)
            moved = dataclasses.replace(
                place, offset=place.offset + shift, length=place.length + growth, is_embed=embeds
            )
            stretched.append(dataclasses.replace(feature, mm_position=moved))
            shift += growth
        return blocks, fill, stretched


def _stretched(place: Any, blocks: list[Block]) -> Tensor | None:
    """Which tokens of an image are placeholders (bool), in the unpruned prompt; None where all may be."""
    if place.is_embed is None:
        return None
    parts, at = [], 0
    for block in blocks:
        end = block.start - place.offset + block.kept
        parts += [place.is_embed[at:end], place.is_embed.new_ones(block.full - block.kept)]
        at = end
    return torch.cat([*parts, place.is_embed[at:]])

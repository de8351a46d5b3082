"""Mixed into vLLM's multimodal processors: requests are read, placeholders shortened, and caches kept apart.

How many tokens of an image are kept follows from its shape and the budget, so that the prompt has its final length
before the image is encoded. Everything that vLLM derives from the prompt (cache blocks, schedules, limits) sees
only that.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing.processor import PromptUpdateDetails

from ...errors import BudgetError
from .config import ServingConfig
from .family import PIXELS, Family, explain_embeddings, field, key_field
from .layout import shorten_prompt
from .memory import key_of, no_key
from .metrics import METRICS
from .positions import check_reach
from .request import PruneRequest, no_request
from .whole_prompt import RequestInputs, WholePrompt

_OURS = "foveate"  # the one argument that replaces a request's own, together with its hyperparameters


class _Profiling(dict[str, Any]):
    """Arguments of vLLM's own dummy requests, which are not counted."""


@dataclasses.dataclass
class ShortenedDetails(PromptUpdateDetails):
    """The placeholders of a pruned image; vLLM caches them with the image, and with them what the metrics need.

    Attributes:
        method: that prunes it.
        before: how many visual tokens it has unpruned.
    """

    method: str = "none"
    before: int = 0


class PrunesPrompts:
    """Mixin for subclasses of vLLM's ``BaseMultiModalProcessor``; comes first in their bases."""

    family_class: ClassVar[type[Family]]
    info: Any

    def __init__(self, info: Any, dummy_inputs: Any, **options: Any) -> None:
        super().__init__(info, dummy_inputs, **options)  # type: ignore[call-arg]
        self._config = ServingConfig(self.family_class, info.ctx.model_config)
        self._applied = threading.local()  # a request's prompt updates, in the thread that processes it
        self._whole_prompt = WholePrompt(self, self._config)

    def get_dummy_inputs(self, *args: Any, **options: Any) -> Any:
        """Profiling measures unpruned images, which a request may ask for on any server."""
        inputs = super().get_dummy_inputs(*args, **options)  # type: ignore[misc]
        return dataclasses.replace(inputs, hf_processor_mm_kwargs=_Profiling(foveate_keep=1.0))

    @property
    def refusal(self) -> str | None:
        """Why no request can be pruned, as a sentence, or None."""
        return self._config.refusal

    def check_request(self, asked: Mapping[str, Any]) -> None:
        """Raise FoveateError for arguments of a request that cannot be, whether it has images or not."""
        self._config.resolve(asked)

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Check the request before anything else, and give it one spelling."""
        asked = inputs.hf_processor_mm_kwargs
        request = self._config.resolve(asked)
        if request is not None and request.reads_prompt:
            given = {one.name: getattr(inputs, one.name) for one in dataclasses.fields(inputs)}
            given["hf_processor_mm_kwargs"] = _others(asked)
            inputs = RequestInputs(**given, request=request)
        else:
            ours = {} if request is None else self._config.settings.fingerprint(request)
            inputs = dataclasses.replace(inputs, hf_processor_mm_kwargs=_others(asked) | ours)
        result = super().apply(inputs, timing_ctx)  # type: ignore[misc]
        if not isinstance(asked, _Profiling):
            for modality, of_items in self._applied.updates.items():
                for update, *_ in of_items:
                    _count(self.info.ctx.model_config.served_model_name, modality, update.content)
        return result

    def _maybe_apply_prompt_updates(self, mm_items: Any, mm_res: Any) -> Any:
        # Here alone the updates of images from vLLM's cache are seen beside those of new ones.
        self._applied.updates = mm_res.prompt_updates
        return super()._maybe_apply_prompt_updates(mm_items, mm_res)  # type: ignore[misc]

    def _cached_apply_hf_processor(self, inputs: Any, timing_ctx: Any) -> Any:
        if isinstance(inputs, RequestInputs):
            result = self._whole_prompt.process(inputs)
            if inputs.cache is None:
                _write_keys(result.kwargs, result.hashes)
            return result
        return super()._cached_apply_hf_processor(inputs, timing_ctx)  # type: ignore[misc]

    def _get_mm_hashes(self, inputs: Any) -> Any:
        asked = inputs.hf_processor_mm_kwargs
        plain = dataclasses.replace(inputs, hf_processor_mm_kwargs=_others(asked))
        hashes = super()._get_mm_hashes(plain)  # type: ignore[misc]
        ours = {key: value for key, value in asked.items() if key not in plain.hf_processor_mm_kwargs}
        if not ours:
            return hashes
        algorithm = self.info.ctx.get_mm_config().mm_hasher_algorithm
        return {
            modality: [MultiModalHasher.hash_kwargs(algorithm, mm_hash=one, **ours) for one in of_items]
            for modality, of_items in hashes.items()
        }

    def _get_cache_missing_processor_kwargs(self, inputs: Any, mm_is_cached: Any) -> Any:
        asked = inputs.hf_processor_mm_kwargs
        plain = dataclasses.replace(inputs, hf_processor_mm_kwargs=_others(asked))
        missing = super()._get_cache_missing_processor_kwargs(plain, mm_is_cached)  # type: ignore[misc]
        return {**missing, **{key: asked[key] for key in asked if key == _OURS}}

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        made = super()._apply_hf_processor_main(mm_items, _others(hf_kwargs))  # type: ignore[misc]
        if self._config.prunes:
            request = _request(hf_kwargs)
            mark = no_request() if request is None else request.to_tensor()
            for modality, count in mm_items.get_all_counts().items():
                if count and modality in self._config.known_family.modalities:
                    made[field(modality)] = mark.repeat(count, 1)
                    made[key_field(modality)] = no_key().repeat(count, 1)
        return made

    def _apply_hf_processor(self, inputs: Any, timing_ctx: Any) -> Any:
        result = super()._apply_hf_processor(inputs, timing_ctx)  # type: ignore[misc]
        _write_keys(result.kwargs, result.hashes)
        return result

    def _merge_mm_kwargs(self, cache: Any, **given: Any) -> Any:
        # Here, as what is cached may be a copy of what is written to later.
        missing = {
            modality: [name for name, held in zip(names, given["mm_is_cached"][modality], strict=True) if not held]
            for modality, names in given["mm_hashes"].items()
        }
        _write_keys(given["mm_missing_kwargs"], missing)
        return super()._merge_mm_kwargs(cache, **given)  # type: ignore[misc]

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, Any]) -> Any:
        fields = super()._get_mm_fields_config(hf_inputs, _others(hf_processor_mm_kwargs))  # type: ignore[misc]
        ours = {
            name: MultiModalFieldConfig.batched(modality, keep_on_cpu=True)
            for modality in PIXELS
            for name in (field(modality), key_field(modality))
            if name in hf_inputs
        }
        return {**fields, **ours}

    def _get_mm_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Any:
        plain = _others(hf_processor_mm_kwargs)
        updates = super()._get_mm_prompt_updates(mm_items, plain, out_mm_kwargs)  # type: ignore[misc]
        request = _request(hf_processor_mm_kwargs)
        if request is None:
            return updates
        family = self._config.known_family
        family.check_modalities(modality for modality, of_items in updates.items() if of_items)
        return {
            modality: [
                [self._shorten_update(update, request, modality, out_mm_kwargs[modality][item]) for update in of_item]
                for item, of_item in enumerate(of_items)
            ]
            if modality in family.modalities
            else of_items
            for modality, of_items in updates.items()
        }

    def _shorten_update(self, update: Any, request: PruneRequest, modality: str, item: Mapping[str, Any]) -> Any:
        data = {name: element.data for name, element in item.items()}
        if PIXELS[modality] not in data:
            raise explain_embeddings(modality)
        family = self._config.known_family
        grids = family.grids(modality, data)
        if modality == "video" and request.clip_scope not in family.clip_scopes:
            raise BudgetError(
                f"{family.adapter.class_name} writes the time between the frames of a clip, so that vLLM must know how "
                "many tokens of each frame stay; use foveate_scope='frame'."
            )
        if family.mrope:
            check_reach(grids, family.seconds(modality, data, 1)[0])
        groups, method = request.groups(grids), self._config.methods.get(request.method)
        for (span,), count in zip(groups.spans, groups.counts, strict=True):
            method.check(span.grid, count)
        for number, stage in enumerate(self._config.inside if request.encoder else ()):
            left = request.encoder_groups(grids, number)
            for (span,), count in zip(left.spans, left.counts, strict=True):
                stage.check(span.grid, count)
        content = update.content
        embeds = [True] * len(content.full) if content.is_embed is None else content.is_embed(content.full).tolist()
        kept = [place < count for size, count in zip(groups.sizes, groups.counts, strict=True) for place in range(size)]
        full = shorten_prompt(content.full, embeds, torch.cat(family.layouts(modality, grids)), kept)
        details = ShortenedDetails(full, content.is_embed, request.method, sum(embeds))
        return dataclasses.replace(update, content=details)


def _count(model_name: str, modality: str, content: PromptUpdateDetails) -> None:
    kept = len(content.full) if content.is_embed is None else int(content.is_embed(content.full).sum())
    if isinstance(content, ShortenedDetails):
        METRICS.count_image(model_name, content.method, modality, content.before, kept)
    else:
        METRICS.count_image(model_name, "none", modality, kept, kept)


def _write_keys(items: Mapping[str, Sequence[Any]], names: Mapping[str, Sequence[str]]) -> None:
    """Write into each image's tensors what stands for its name."""
    for modality, of_modality in names.items():
        for item, name in zip(items.get(modality, []), of_modality, strict=False):
            if item is not None and key_field(modality) in item:
                item[key_field(modality)].data.copy_(key_of(name))


def _others(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if not key.startswith(_OURS)}


def _request(kwargs: Mapping[str, Any]) -> PruneRequest | None:
    return PruneRequest.parse(kwargs[_OURS]) if _OURS in kwargs else None

"""Requests in which what is kept of an image depends on the prompt around it: by its age, or by what is asked.

vLLM makes the key of an image, under which all its caches hold it, before it looks at the prompt. Here the images are
measured first, unpruned; then the prompt says how many tokens each keeps and by which text they are chosen, and only
then do images get their keys. An image that ages, or is asked something else, is another entry in these caches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import accumulate
from typing import Any

import torch
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.inputs import MultiModalFieldElem, MultiModalKwargsItem, MultiModalKwargsItems
from vllm.multimodal.processing.inputs import ProcessorInputs
from vllm.multimodal.processing.processor import MultiModalProcessingResult

from ...budget import Conversation
from ...errors import RequestError
from ...tokens import Grid
from .config import ServingConfig
from .family import PIXELS, explain_embeddings, field
from .layout import TOKEN, explain_variant
from .recently_used import RecentlyUsed
from .request import InPrompt, PruneRequest
from .settings import OWN_TEXT

MOST_TEXT = 8192  # tokens that a choice can be made by; embedded once more for it, and compared with every visual token
_MOST_SHAPES = 2048  # images whose shape is remembered, some 10 KB each
_Item = tuple[str, int]  # an image or clip of a prompt: its modality and its index among those


@dataclass(kw_only=True)
class RequestInputs(ProcessorInputs):
    """vLLM's inputs of a processor, with the request; the arguments for transformers' processor hold nothing of it."""

    request: PruneRequest


@dataclass(frozen=True)
class Shape:
    """An image unpruned: its grids, none where it cannot be pruned, and vLLM's updates of the prompt for it."""

    grids: tuple[Grid, ...]
    updates: tuple[Any, ...]


@dataclass(frozen=True)
class Layout:
    """A prompt with unpruned images: its ids, and where the placeholders of each image lie in it."""

    ids: Sequence[int]
    placeholders: Mapping[_Item, Sequence[int]]

    @property
    def order(self) -> list[_Item]:
        """The images as they follow each other in the prompt."""
        return sorted(self.placeholders, key=lambda item: self.placeholders[item][0])


class WholePrompt:
    """Makes of a prompt and its images what vLLM's processors make, for such requests.

    Args:
        processor: vLLM's, with pruning mixed in.
        config: of the server.
    """

    def __init__(self, processor: Any, config: ServingConfig) -> None:
        self._processor, self._config = processor, config
        self._shapes = RecentlyUsed[str, Shape](_MOST_SHAPES)

    def process(self, inputs: RequestInputs) -> MultiModalProcessingResult:
        """In the place of the processor's ``_cached_apply_hf_processor``.

        Raises:
            FoveateError: for what cannot be done, before any cache holds anything of it.
        """
        processor, cache = self._processor, inputs.cache
        plain: Mapping[str, Sequence[str]] = processor._get_mm_hashes(inputs)
        self._config.known_family.check_modalities(modality for modality, of_items in plain.items() if of_items)
        if inputs.request.query == OWN_TEXT:
            for modality in (one for one, of_items in plain.items() if of_items and one not in PIXELS):
                raise RequestError(
                    f"the prompt holds {modality} between its text, which a choice cannot read; give the question's "
                    "text as foveate_query."
                )
        shapes, made = self._shapes_of(inputs, plain)
        prompt = processor._postprocess_prompt(inputs.prompt)
        requests = self._requests(inputs.request, prompt, plain, shapes)
        hashes = {
            modality: [self._key(one, requests.get((modality, i))) for i, one in enumerate(of_items)]
            for modality, of_items in plain.items()
        }
        cached = {
            modality: [False] * len(of_items) if cache is None else cache.is_cached(of_items)
            for modality, of_items in hashes.items()
        }
        missing = [(modality, i) for modality, of_items in cached.items() for i, one in enumerate(of_items) if not one]
        made |= {item: one for item, (one, _) in self._make(inputs, [i for i in missing if i not in made]).items()}
        kwargs: dict[str, list[MultiModalKwargsItem]] = {modality: [] for modality in plain}
        updates: dict[str, list[Sequence[Any]]] = {modality: [] for modality in plain}
        for item in missing:
            modality, request = item[0], requests.get(item)
            if self._grids(modality, made[item]) != shapes[item].grids:
                raise RequestError(
                    f"{modality} {item[1]} has the UUID of another {modality} of another size; give each its own."
                )
            own = [processor._recompute_cached_prompt_update(update, item[1]) for update in shapes[item].updates]
            if request is not None:
                own = [processor._shorten_update(update, request, modality, made[item]) for update in own]
            kwargs[modality].append(made[item] if request is None else _marked(made[item], modality, request))
            updates[modality].append(own)
        found: Any = MultiModalKwargsItems(kwargs)
        if cache is not None:
            try:
                found, updates = processor._merge_mm_kwargs(
                    cache,
                    mm_hashes=hashes,
                    mm_is_cached=cached,
                    mm_missing_kwargs=found,
                    mm_missing_prompt_updates=updates,
                )
            finally:
                cache.release_sender_touches()
        return MultiModalProcessingResult(prompt_ids=prompt, kwargs=found, hashes=hashes, prompt_updates=updates)

    def _shapes_of(
        self, inputs: RequestInputs, plain: Mapping[str, Sequence[str]]
    ) -> tuple[dict[_Item, Shape], dict[_Item, MultiModalKwargsItem]]:
        """The shape of each image, and the processed tensors of those whose shape was not known."""
        keys = {(modality, i): one for modality, of_items in plain.items() for i, one in enumerate(of_items)}
        found = {item: shape for item, key in keys.items() if (shape := self._shapes.get(key)) is not None}
        fresh = self._make(inputs, [item for item in keys if item not in found])
        for (modality, i), (one, updates) in fresh.items():
            found[modality, i] = Shape(self._grids(modality, one), tuple(updates))
        for item in fresh:
            self._shapes.put(keys[item], found[item])
        return found, {item: one for item, (one, _) in fresh.items()}

    def _grids(self, modality: str, item: MultiModalKwargsItem) -> tuple[Grid, ...]:
        """The grids of an image or clip; none where it cannot be pruned."""
        family = self._config.known_family
        if modality not in family.modalities:
            return ()
        data = {name: element.data for name, element in item.items()}
        if PIXELS[modality] not in data:
            raise explain_embeddings(modality)
        return tuple(family.grids(modality, data))

    def _make(
        self, inputs: RequestInputs, items: Sequence[_Item]
    ) -> dict[_Item, tuple[MultiModalKwargsItem, Sequence[Any]]]:
        """What transformers' processor makes of some images, and vLLM's updates of the prompt for them, unpruned."""
        if not items:
            return {}
        processor, data = self._processor, dict[str, list[Any]]()
        for modality, index in items:
            one = inputs.mm_data_items[modality][index]
            if one is None:
                raise RequestError(
                    f"{modality} {index} was given by its UUID alone, but is not cached as this prompt needs it; send "
                    "it whole."
                )
            data.setdefault(modality, []).append(one)
        known = {
            modality: [(modality, index) not in items for index in range(count)]
            for modality, count in inputs.mm_data_items.get_all_counts().items()
        }
        arguments = processor._get_cache_missing_processor_kwargs(inputs, known)
        parsed = processor.info.parse_mm_data(data, validate=False)
        tensors = processor._apply_hf_processor_main(mm_items=parsed, hf_kwargs=arguments)
        kwargs = MultiModalKwargsItems.from_hf_inputs(tensors, processor._get_mm_fields_config(tensors, arguments))
        updates = processor._get_mm_prompt_updates(parsed, arguments, kwargs)
        out, at = {}, dict.fromkeys(data, 0)
        for item in items:
            modality = item[0]
            out[item] = kwargs[modality][at[modality]], updates[modality][at[modality]]
            at[modality] += 1
        return out

    def _requests(
        self,
        request: PruneRequest,
        prompt: Sequence[int],
        plain: Mapping[str, Sequence[str]],
        shapes: Mapping[_Item, Shape],
    ) -> dict[_Item, PruneRequest]:
        """The request of each image that can be pruned."""
        items = [item for item, shape in shapes.items() if shape.grids]
        by_age, own = isinstance(request.budget.scope, Conversation), request.query == OWN_TEXT
        layout = self._layout(prompt, shapes) if items and (by_age or own) else Layout(prompt, {})
        counts = {item: request.groups(shapes[item].grids).counts for item in items}
        if by_age:
            order = [item for item in layout.order if item in counts]
            shares = iter(request.budget.split([len(grid) for item in order for grid in shapes[item].grids]))
            counts = {item: [next(shares) for _ in shapes[item].grids] for item in order}
        text, before = self._text(request.query, layout) if items else ((), ())
        out = {}
        for item in items:
            name = blake2b(plain[item[0]][item[1]].encode(), digest_size=16).hexdigest()
            sized = replace(request, place=InPrompt(name, tuple(counts[item])))
            last = [int(group[-1].index[-1]) for group in sized.groups(shapes[item].grids).spans]
            follows = (0,) * len(last)
            if own:
                tokens = self._tokens(item, shapes[item].grids, layout)
                follows = tuple(before[tokens[place]] for place in last)
            out[item] = replace(sized, place=InPrompt(name, tuple(counts[item]), text, follows if text else ()))
        return out

    def _layout(self, prompt: Sequence[int], shapes: Mapping[_Item, Shape]) -> Layout:
        updates: dict[str, list[Any]] = {}
        for (modality, index), shape in sorted(shapes.items(), key=lambda one: one[0]):
            own = [self._processor._recompute_cached_prompt_update(update, index) for update in shape.updates]
            updates.setdefault(modality, []).append(own)
        ids, found = self._processor._apply_prompt_updates(list(prompt), updates)
        placeholders = {}
        for modality, of_items in found.items():
            for one in of_items:
                embeds = [True] * one.length if one.is_embed is None else one.is_embed.tolist()
                placeholders[modality, one.item_idx] = [one.start_idx + i for i, embed in enumerate(embeds) if embed]
        return Layout(ids, placeholders)

    def _tokens(self, item: _Item, grids: Sequence[Grid], layout: Layout) -> list[int]:
        """Where the tokens of an image's grids lie in the prompt."""
        places, rows = torch.cat(self._config.known_family.layouts(item[0], grids)), layout.placeholders[item]
        kinds = places[places < 0].tolist()
        if len(kinds) != len(rows):
            raise explain_variant(len(rows), sum(map(len, grids)))
        return [place for place, kind in zip(rows, kinds, strict=True) if kind == TOKEN]

    def _text(self, query: str | None, layout: Layout) -> tuple[tuple[int, ...], Sequence[int]]:
        """The ids of the text that a choice is made by, and how many of them stand before each place of the prompt.

        The prompt's own text is all that stands for no image, as `foveate.prune` reads it.
        """
        if query is None:
            return (), ()
        if query == OWN_TEXT:
            visual = {place for places in layout.placeholders.values() for place in places}
            is_text = [place not in visual for place in range(len(layout.ids))]
            text = tuple(token for token, stays in zip(layout.ids, is_text, strict=True) if stays)
            before: Sequence[int] = list(accumulate(is_text))
        else:
            text, before = tuple(self._processor.info.get_tokenizer().encode(query, add_special_tokens=False)), ()
        if len(text) > MOST_TEXT:
            raise RequestError(
                f"a choice can be made by {MOST_TEXT} tokens of text, not {len(text)}; give the question alone as "
                "foveate_query."
            )
        size = self._processor.info.ctx.model_config.get_vocab_size()
        if not all(0 <= token < size for token in text):
            raise RequestError(f"the text holds tokens beyond the {size} that the model has an embedding of.")
        return text, before

    def _key(self, plain: str, request: PruneRequest | None) -> str:
        """The key of an image in vLLM's caches: of all that decides what is kept of it, and of nothing else."""
        if request is None or request.place is None:
            return plain
        place, settings = request.place, self._config.settings
        ours = settings.fingerprint(request) | {
            "foveate": request.method,
            "foveate_counts": str(place.counts),
            "foveate_text": str((place.text, place.before)),
        }
        algorithm = self._processor.info.ctx.get_mm_config().mm_hasher_algorithm
        key: str = MultiModalHasher.hash_kwargs(algorithm, mm_hash=plain, **ours)
        return key


def _marked(item: MultiModalKwargsItem, modality: str, request: PruneRequest) -> MultiModalKwargsItem:
    """The same image with its request."""
    name = field(modality)
    element = MultiModalFieldElem(data=request.to_tensor(), field=item[name].field)
    return MultiModalKwargsItem({**item, name: element})

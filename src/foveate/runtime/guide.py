"""A smaller model that reads each prompt first, once a prefill, and what it attends to."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import FoveateError, MethodError, ModelError, RuntimeStateError
from ..grouping import Span
from ..importance.attention import attention_weights
from ..methods import Method
from ..methods.toolkit.interventions import Guide
from ..models import ModelAdapter, adapter_of
from ..models.adapter import AttentionCall
from ..tokens import Cue
from .cost import CostModel
from .cues import last_row, visible_keys
from .hooks import Hooks, device_of, without_hooks
from .prompt import locate
from .state import ForwardState, Generation
from .timing import Stopwatch

# What differs between sizes of a family although they see images alike is not here.
_VISION = ("patch_size", "spatial_merge_size", "temporal_patch_size", "image_size", "in_channels", "num_channels")
_MODEL = ("vision_feature_select_strategy", "image_grid_pinpoints", "image_seq_length", "downsample_ratio")
_PROCESSING = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "patch_size", "merge_size")
# Arguments of a forward that say nothing of the prompt, or that a model makes for itself.
_OWN = {"past_key_values", "cache", "labels", "inputs_embeds", "cache_position", "position_ids", "rope_deltas"}


class _Read(Exception):
    """Leaves the small model when the last layer has been read."""


@dataclass
class GuidePass:
    """What the small model read of some prompts.

    Args:
        spans: the images in them.
        attention: of each of the spans, (n,).
        share: what it costs for each visual token, in visual tokens of the large model.
        flops: of the pass, the vision encoder included.
        watch: how long it took.
        rows: how many prompts.
    """

    spans: list[Span]
    attention: list[Tensor]
    share: float
    flops: float
    watch: Stopwatch
    rows: int


@dataclass
class _Running(threading.local):
    """What is under way in a thread: the real tokens (B, L), those whose attention is read, and the rows so far."""

    valid: Tensor | None = None
    queries: Tensor | None = None
    total: Tensor | None = field(default=None)
    read: int = 0


def guide_of(methods: Sequence[Method], adapter: ModelAdapter) -> GuideModel | None:
    """The small model that the methods ask for; None where they ask for none.

    Raises:
        MethodError: for methods that ask for different ones, and for layers that the small model does not have.
        ModelError: where the small model does not fit the large one.
        RuntimeStateError: where the small model is pruned itself.
    """
    asked = {method.guide: method.name for method in methods if method.guide is not None}
    if len(asked) > 1:
        raise MethodError("two methods are guided by different models or layers; guide both alike.")
    return None if not asked else GuideModel(next(iter(asked)), adapter)


class GuideModel:
    """A small model, checked against the large one.

    Args:
        guide: what is asked for.
        adapter: of the large model.
    """

    def __init__(self, guide: Guide, adapter: ModelAdapter) -> None:
        from .engine import is_pruned

        small = adapter_of(guide.small)
        check_alike(small, adapter)
        if small.text is adapter.text:  # the large model itself, which runs without what pruning does to it
            small = adapter_of(without_hooks(small.model, foreign=True))
        elif is_pruned(small):
            raise RuntimeStateError("the small model is pruned itself; detach that first.")
        attending = small.attention_layers
        layers = attending if guide.layers is None else guide.layers
        for layer in layers:
            if layer not in attending:
                raise MethodError(
                    f"guided: layer {layer} of the small model has no attention to read; give some of "
                    f"{', '.join(map(str, attending))}."
                )
        self._small, self._layers, self._queries = small, layers, guide.queries
        self._cost = CostModel(small)
        mine = self._cost.weights_per_visual_token(layers[-1] + 1, vision=True)
        theirs = CostModel(adapter).weights_per_visual_token(len(adapter.text.layers), vision=False)
        self.share = mine / theirs
        self._running = _Running()

    def install(self, hooks: Hooks) -> None:
        """Observe the layers that are read."""
        for layer in self._layers:
            attention = self._small.text.layers[layer].self_attn
            hooks.observe(attention, functools.partial(self._observe, layer))

    def read(self, state: ForwardState, generation: Generation | None) -> dict[Cue, list[Tensor]]:
        """What the small model attends to in the images of a prefill, one tensor (n,) a span.

        Within ``generate`` it reads the whole prompt, once for all forwards of it; elsewhere no more than is passed, as
        it has no cache.

        Raises:
            ModelError: where it sees other images than the large one.
        """
        prompt = None if generation is None else generation.prompt
        batch = len(state.given)
        if generation is None or prompt is None or batch % len(prompt):
            done = self._run(state.call.inputs, state)
        else:
            if generation.guided is None:
                generation.guided = self._run({**generation.arguments, "input_ids": prompt}, state)
            done = generation.guided
        state.guided = done
        return {Cue.GUIDE_ATTENTION: [done.attention[index] for index in _match(state.spans, done, batch)]}

    @torch.no_grad()
    def _run(self, inputs: Mapping[str, Any], state: ForwardState) -> GuidePass:
        small, running = self._small, self._running
        given = self._arguments(inputs)
        ids: Tensor = given["input_ids"]
        spans = locate(small, ids, given)
        mask = given.get("attention_mask")
        if isinstance(mask, Tensor) and mask.shape[-1] > ids.shape[1]:
            # It counts what the large model has in its cache, and the small one has not seen.
            given["attention_mask"] = mask = mask[..., -ids.shape[1] :]
        plain = isinstance(mask, Tensor) and mask.shape == ids.shape
        valid = mask.bool() if plain else torch.ones_like(ids, dtype=torch.bool)  # type: ignore[union-attr]
        watch = Stopwatch(ids.device)
        running.valid, running.queries = valid, self._asking(valid, spans)
        running.total, running.read = torch.zeros(ids.shape, device=ids.device), 0
        with watch.instead_of(state.selection_watch):
            try:
                with suppress(_Read):
                    small.base(**given, use_cache=False)
                total, read = running.total, running.read
            finally:
                running.valid = running.queries = running.total = None
        if read < len(self._layers):
            raise RuntimeStateError(
                f"{small.class_name} ran without calling the attention kernels of layers {self._layers}, so it cannot "
                "guide; use a method that reads the large model."
            )
        attention = [total[span.row, span.index] / read for span in spans]
        lengths: list[int] = valid.sum(1).tolist()
        flops = self._cost.flops_through(self._layers[-1], lengths) + self._cost.vision_flops([s.grid for s in spans])
        return GuidePass(spans, attention, self.share, flops, watch, len(ids))

    def _arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the small model takes of the inputs of the large one, where it runs and in its dtype."""
        small = self._small
        device = device_of(small.text, torch.device("cpu"))
        named = inspect.signature(type(small.base).forward).parameters
        given: dict[str, Any] = {}
        for name, value in inputs.items():
            if name not in named or name in _OWN or value is None or isinstance(value, (bool, str)):
                continue
            if isinstance(value, Tensor):
                value = value.to(device)
                if value.is_floating_point():
                    value = value.to(small.model.dtype)
            given[name] = value
        if not given.keys() & {"pixel_values", "pixel_values_videos"}:
            raise RuntimeStateError(
                "a small model guides by the pictures themselves, and this call has none; pass pixel_values, or call "
                "generate with them."
            )
        return given

    def _asking(self, valid: Tensor, spans: Sequence[Span]) -> Tensor | None:
        """(B, L) bool: the text whose attention is read; None for the last token's."""
        if self._queries == "last":
            return None
        asking = valid.clone()
        for span in spans:
            asking[span.row, span.index] = False
            if span.fixed is not None:
                asking[span.row, span.fixed.to(asking.device)] = False
        return asking

    def _observe(self, layer: int, call: AttentionCall) -> None:
        """Add the attention of a layer, and leave the model behind the last."""
        running = self._running
        if running.valid is None or running.total is None:  # somebody else runs the small model
            return
        valid = running.valid.to(call.key.device)
        if running.queries is None:
            row = last_row(call, valid, 0)
        else:
            row = mean_row(call, valid, running.queries.to(call.key.device))
        running.total += row.to(running.total.device)
        running.read += 1
        if layer == self._layers[-1]:
            raise _Read


def mean_row(call: AttentionCall, valid: Tensor, queries: Tensor) -> Tensor:
    """Attention (B, W) of some queries of each prompt to its tokens, mean over these and over heads.

    Args:
        call: query and key of one attention module.
        valid: (B, W) bool, real tokens.
        queries: (B, W) bool, whose attention it is; at least one of each prompt.
    """
    out = []
    for row in range(len(valid)):  # one by one, because the attention to all keys is large
        at, alone = queries[row].nonzero()[:, 0], call.of_row(row)
        visible, _ = visible_keys(alone, valid[row : row + 1], 0, at[None])
        out.append(attention_weights(alone.query[:, :, at], alone.key, call.scaling, visible)[0].mean((0, 1)))
    return torch.stack(out)


def _match(spans: Sequence[Span], done: GuidePass, batch: int) -> list[int]:
    """For each span of a forward the number of the one that the small model saw.

    Rows of a forward may be copies (beams), and of a conversation that is in the cache it has the last images alone.
    """
    copies = batch // done.rows
    seen: dict[tuple[int, str], list[int]] = {}
    for index, span in enumerate(done.spans):
        seen.setdefault((span.row, span.modality), []).append(index)
    mine: dict[tuple[int, str], list[int]] = {}
    for index, span in enumerate(spans):
        mine.setdefault((span.row, span.modality), []).append(index)
    found = [-1] * len(spans)
    for (row, modality), indices in mine.items():
        theirs = seen.get((row // copies, modality), [])[-len(indices) :]
        if len(theirs) < len(indices) or any(
            len(done.spans[other].grid) != len(spans[index].grid) for index, other in zip(indices, theirs, strict=True)
        ):
            raise ModelError("the small model sees other images than the large one; their processors must be the same.")
        for index, other in zip(indices, theirs, strict=True):
            found[index] = other
    return found


def check_alike(small: ModelAdapter, large: ModelAdapter) -> None:
    """Raise ModelError unless both read the same prompts in the same way: one family, tokenizer and image processing.

    Tokenizers and image processors are compared where both checkpoints lie on this disk; else vocabularies must be of
    one size.
    """
    kinds = [one.model.config.model_type.removesuffix("_moe") for one in (small, large)]
    if kinds[0] != kinds[1]:
        raise ModelError(
            f"{small.class_name} cannot guide {large.class_name}: they are of different families, which read prompts "
            "and pictures differently; give a smaller model of the same family."
        )
    if small.token_ids() != large.token_ids():
        raise ModelError(_differ(large, "placeholders of images", small.token_ids(), large.token_ids()))
    configs = [(one.model.config.vision_config, one.model.config) for one in (small, large)]
    for place, names in enumerate((_VISION, _MODEL)):
        for name in names:
            mine, theirs = (getattr(pair[place], name, None) for pair in configs)
            if mine != theirs:
                raise ModelError(_differ(large, name, mine, theirs))
    _check_files(small, large)


def _differ(large: ModelAdapter, what: str, mine: Any, theirs: Any) -> str:
    return (
        f"the small model cannot guide this {large.class_name}: its {what} is {mine!r}, that of the large one "
        f"{theirs!r}; give a smaller model with the same tokenizer and processing of images."
    )


def _check_files(small: ModelAdapter, large: ModelAdapter) -> None:
    """Compare the tokenizers and image processors that lie with both checkpoints."""
    names = [str(getattr(one.model, "name_or_path", "") or "") for one in (small, large)]
    if small.text is large.text or (names[0] and names[0] == names[1]):
        return
    words = [vocabulary_of(name) for name in names]
    if words[0] is None or words[1] is None:
        sizes = [one.model.config.get_text_config().vocab_size for one in (small, large)]
        if sizes[0] != sizes[1]:
            raise ModelError(_differ(large, "size of the vocabulary", *sizes))
    elif words[0] != words[1]:
        raise ModelError(_differ(large, "tokenizer", names[0], names[1]))
    settings = [_processing(name) for name in names]
    if settings[0] is not None and settings[1] is not None:
        for name in _PROCESSING:
            mine, theirs = settings[0].get(name), settings[1].get(name)
            if mine != theirs:
                raise ModelError(_differ(large, name, mine, theirs))


def vocabulary_of(name: str) -> dict[str, int] | None:
    from transformers import AutoTokenizer

    tokenizer = _load(AutoTokenizer, name)
    return None if tokenizer is None else dict(tokenizer.get_vocab())


def _processing(name: str) -> dict[str, Any] | None:
    from transformers import AutoImageProcessor

    processor = _load(AutoImageProcessor, name)
    return None if processor is None else dict(processor.to_dict())


def _load(cls: Any, name: str) -> Any:
    """What lies with a checkpoint on this disk; None where nothing does."""
    if not name:
        return None
    try:
        return cls.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except FoveateError:
        raise
    except Exception:  # transformers raises nearly everything where a file is not there
        return None

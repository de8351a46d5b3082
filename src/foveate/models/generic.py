"""Any other image-text class of transformers: what can be read off its configuration and modules, or a refusal."""

from __future__ import annotations

import inspect
import itertools
import math
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError
from ..tokens import AttentionKind, Cue, Grid, Source
from .adapter import EVERY_MODEL, AttentionCall, ModelAdapter
from .moe import MoeBlock, moe_block

_PLACEHOLDERS = {
    "image": ("image_token_id", "image_token_index", "media_placeholder_token_id"),
    "video": ("video_token_id", "video_token_index"),
}
_TOKENS_OF_AN_IMAGE = ("image_seq_length", "mm_tokens_per_image", "num_image_tokens")
_ENCODERS = ("vision_tower", "visual", "vision_model", "vision_encoder", "image_tower", "vision", "vqmodel")
_PROJECTORS = ("multi_modal_projector", "connector", "aligner", "embed_vision", "projector", "vision_projection")
_INSIDE = ("language_model", "text_model", "model", "decoder", "transformer")  # where a decoder keeps its layers

_MASK, _POSITIONS, _EMBEDS = "attention_mask", "position_ids", "inputs_embeds"
_CACHES = ("past_key_values", "past_key_value", "cache")
# What a layer may be called with: what the runtime shortens, and what has no entry for each token.
_OF_A_LAYER = frozenset(
    {"hidden_states", _MASK, _POSITIONS, "position_embeddings", *_CACHES, "use_cache", "cache_position"}
    | {"output_attentions", "output_router_logits", "kwargs"}
)
# Arguments of a language model by whose names it is known that it reads images beside their embeddings.
_BESIDE = ("deepstack", "visual", "vision", "cross_attention", "encoder_hidden", "image", "pixel", "per_layer", "audio")
_ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")
_TWO_WAYS = ("use_bidirectional_attention", "bidirectional_attention", "prefix_lm")


class GenericAdapter(ModelAdapter):
    """A class that has no adapter of its own, where its tokens are merged, and attended to, as in most of them.

    Its configuration names the placeholders; a run of them is an image. Where it is known how many tokens an image
    takes, longer runs are cut into images, and those that can be square are; all others are a row of tokens. Nothing is
    read of the vision encoder, so methods that need its cues are refused. Layers of the language model are read and
    shortened where they take what is known, and nothing else.

    What cannot be shortened rightly is refused: by the configuration and the modules when the adapter is made, or by
    what the language model is called with in the first forward with an image.

    Raises:
        ModelError: for a class that cannot be served so.
    """

    model_type = "generic"
    class_name = "any other class"
    cues = frozenset(cue for cue in Cue if cue.source in (Source.LAYER_BELOW, Source.LAYERS_BELOW, Source.LAYER))

    def __init__(self, model: nn.Module) -> None:
        self._nothing = nn.Identity()  # stands for an encoder or a projector that is not found: it costs nothing
        super().__init__(model)
        self.class_name = type(model).__name__
        self.modalities = tuple(self.token_ids())  # type: ignore[misc]  # those of this very model

    def check(self) -> None:
        reason = next(self._reasons(), None)
        if reason is not None:
            raise ModelError(_refusal(self.model, reason))

    def _reasons(self) -> Iterator[str]:
        """Why this class cannot be served, as far as its configuration and modules tell."""
        model, config = self.model, self.model.config
        texts = config.get_text_config()
        if not self.token_ids():
            yield "its configuration names no placeholder token of an image"
        if getattr(config, "is_encoder_decoder", False) or getattr(texts, "is_encoder_decoder", False):
            yield "its language model is an encoder and a decoder, and images enter the former"
        if getattr(config, "audio_config", None) is not None:
            yield "it hears, too, and it is not known where audio enters its language model"
        if not isinstance(self._found_text, nn.Module):
            yield "its language model is not found by get_decoder()"
            return
        yield from self._reasons_in_text(texts)
        named = _parameters(type(model)) | _parameters(type(self.base))
        for name in sorted(named):
            if "token_type_ids" in name:
                yield f"it takes {name}, by which images get positions of several axes or attend in both directions"
            if "cross_attention" in name:
                yield f"it takes {name}: text attends to images that are not among its tokens"
        if model.get_output_embeddings() is None:
            yield "it has no output embeddings, so it does not generate text as language models do"

    def _reasons_in_text(self, config: Any) -> Iterator[str]:
        text = self._found_text
        given = _parameters(type(text))
        if lacking := {_EMBEDS, _MASK, _POSITIONS} - given:
            yield f"its language model takes no {sorted(lacking)[0]}"
        for name in sorted(given):
            if any(part in name for part in _BESIDE):
                yield f"its language model takes {name} beside the embeddings of its tokens"
        ropes = [getattr(config, name, None) or {} for name in ("rope_parameters", "rope_scaling")]
        nested = [one for rope in ropes for one in (rope, *rope.values()) if isinstance(one, Mapping)]
        if any("section" in str(key) for rope in nested for key in rope):
            yield "its positions have more than one axis"
        kinds = {str(kind) for kind in getattr(config, "layer_types", None) or ()} - set(_ATTENTION)
        if kinds:
            yield f"layers of its language model are of the kind {sorted(kinds)[0]}, whose state is not known"
        if not all(hasattr(layer, "self_attn") for layer in text.layers):
            yield "layers of its language model do something else than to attend, or call it otherwise than self_attn"
        parts = {name.rpartition(".")[2] for layer in text.layers for name, _ in layer.named_modules()}
        if cross := sorted(name for name in parts if "cross" in name or "encoder_attn" in name):
            yield f"layers of its language model attend to something else than its tokens ({cross[0]})"
        attention = [getattr(layer, "self_attn", None) for layer in text.layers]
        if any(getattr(config, name, None) for name in _TWO_WAYS) or any(
            getattr(module, "is_causal", True) is False for module in attention
        ):
            yield "tokens of its language model attend in both directions"
        if not all(isinstance(getattr(config, name, None), int) for name in ("hidden_size", "num_attention_heads")):
            yield "the configuration of its language model does not tell its width and heads"

    # -- where things are

    @cached_property
    def _found_text(self) -> Any:
        """The language model; None where none is found."""
        found = self.model.get_decoder() if hasattr(self.model, "get_decoder") else None
        for _ in range(3):  # a decoder may be within a language model within a class with a head
            if found is None or isinstance(getattr(found, "layers", None), nn.ModuleList):
                return None if found is self.model else found
            found = next((one for name in _INSIDE if isinstance(one := getattr(found, name, None), nn.Module)), None)
        return None

    @property
    def base(self) -> Any:
        """The innermost module around the language model that takes ids and pixels."""
        inner = getattr(self.model, "base_model", self.model)
        merges = {"input_ids"} <= _parameters(type(inner)) and any("pixel" in one for one in _parameters(type(inner)))
        text = self._found_text
        holds = inner is not text and any(module is text for module in inner.modules())
        return inner if merges and holds else self.model

    @property
    def text(self) -> Any:
        return self._found_text

    @cached_property
    def _encoder(self) -> nn.Module:
        return _child((self.base, self.model), _ENCODERS) or self._nothing

    @property
    def vision(self) -> Any:
        return self._encoder

    @cached_property
    def _projection(self) -> nn.Module:
        return _child((self.base, self.model), _PROJECTORS) or self._nothing

    @property
    def projector(self) -> nn.Module:
        return self._projection

    @property
    def _vision_config(self) -> Any:
        return getattr(self.model.config, "vision_config", None)

    @property
    def vision_width(self) -> int:
        named = (getattr(self._vision_config, name, None) for name in ("hidden_size", "embed_dim", "width"))
        return next((width for width in named if isinstance(width, int)), 0)

    def vision_layers(self) -> list[Any]:
        stacks = [module for module in self._encoder.modules() if isinstance(module, nn.ModuleList)]
        return list(max(stacks, key=len, default=()))

    # -- what is known of images

    def token_ids(self) -> dict[str, int]:
        config = self.model.config
        found: dict[str, int] = {}
        for modality, names in _PLACEHOLDERS.items():
            given = (getattr(config, name, None) for name in names)
            token = next((one for one in given if isinstance(one, int) and one >= 0), None)
            if token is not None and token not in found.values():
                found[modality] = token
        return found if "image" in found else {}

    def grids(self, inputs: Mapping[str, Any]) -> dict[str, list[Grid]]:
        ids = inputs.get("input_ids")
        if not isinstance(ids, Tensor):
            raise ModelError(
                f"{self.class_name} has no foveate adapter of its own, so how many tokens an image takes is read off "
                "prompts that its own processor made; install what that needs, such as torchvision."
            )
        found: dict[str, list[Grid]] = {}
        for modality, token in self.token_ids().items():
            runs = [
                len(list(run))
                for row in (ids == token).tolist()
                for placeholder, run in itertools.groupby(row)
                if placeholder
            ]
            pixels = inputs.get("pixel_values") if modality == "image" else None
            found[modality] = [grid for run in runs for grid in self._cut(run, runs, pixels)]
        return found

    def _cut(self, run: int, runs: list[int], pixels: Any) -> list[Grid]:
        """The images in a run of placeholders."""
        config = self.model.config
        known = [getattr(config, name, None) for name in _TOKENS_OF_AN_IMAGE]
        if isinstance(pixels, Tensor) and pixels.ndim == 4 and sum(runs) % len(pixels) == 0:
            known.append(sum(runs) // len(pixels))
        fitting = (size for size in known if isinstance(size, int) and size > 1)
        size = next((size for size in fitting if all(one % size == 0 for one in runs)), run)
        side = math.isqrt(size)
        grid = Grid(side, side) if side * side == size else Grid(1, size)
        return [grid] * (run // size)

    def grid_inputs(self, modality: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {}  # grids are counted in the prompt

    def patches(self, grid: Grid) -> int:
        """As many as images of the encoder's one size have; where it takes any size, as many as tokens."""
        image, patch = (getattr(self._vision_config, name, None) for name in ("image_size", "patch_size"))
        if isinstance(image, int) and isinstance(patch, int) and patch > 0:
            return max((image // patch) ** 2, len(grid))
        return len(grid)

    # -- what the language model is called with

    @cached_property
    def inside_refused(self) -> str:
        if not hasattr(self.text, "norm") or not hasattr(self.text, "config"):
            return "its last norm or its configuration is not found"
        for layer in self.text.layers:
            module = sys.modules[type(layer.self_attn).__module__]
            if not hasattr(layer.self_attn, "config") or not hasattr(module, "ALL_ATTENTION_FUNCTIONS"):
                return "its attention does not go through transformers' attention functions"
            if unknown := sorted(_parameters(type(layer)) - _OF_A_LAYER):
                return f"its layers take {unknown[0]}"
        return ""

    @property
    def available_cues(self) -> frozenset[Cue]:
        return (self.cues | Cue.of(*EVERY_MODEL)) - self.hidden_cues  # what a router gives differs between classes

    def moe(self) -> list[MoeBlock | None]:
        """The experts where they are built like Qwen3-MoE's, for the report; others are not counted."""
        return [_experts(layer) for layer in self.text.layers]

    def check_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], length: int, visual: int, mask: Any) -> None:
        reason = self._reason_in_call(args, kwargs, length, visual, mask)
        if reason is not None:
            raise ModelError(_refusal(self.model, reason))

    def _reason_in_call(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], length: int, visual: int, mask: Any
    ) -> str | None:
        # Arguments that the language model does not name, such as the sizes of images, are in the way only where they
        # have an entry for each token.
        embeds, given, positions = kwargs.get(_EMBEDS), kwargs.get(_MASK), kwargs.get(_POSITIONS)
        if args or not isinstance(embeds, Tensor):
            return "its language model is not called with inputs_embeds by name"
        if embeds.ndim != 3 or embeds.shape[1] != length:
            return f"a prompt of {length} tokens enters its language model as embeddings {tuple(embeds.shape)}"
        if isinstance(positions, Tensor) and positions.ndim != 2:
            return "its positions have more than one axis"
        ours = isinstance(mask, Tensor) and mask.ndim == 4  # the caller's own
        if given is not None and not ours and not (isinstance(given, Tensor) and given.ndim == 2):
            return "it makes the attention mask of its language model itself, in which images may attend to themselves"
        known = {_EMBEDS, _MASK, _POSITIONS, *_CACHES, "cache_position", "logits_to_keep"}
        named = _parameters(type(self.text))
        beside = sorted(
            name
            for name, value in kwargs.items()
            if name not in known and _matters(value, () if name in named else (length, visual))
        )
        return f"its language model is called with {beside[0]} beside the embeddings of its tokens" if beside else None

    # -- what is not known

    def attention_modules(self) -> dict[int, nn.Module]:
        return {}

    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        raise NotImplementedError

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        raise NotImplementedError


def _refusal(model: nn.Module, reason: str) -> str:
    return (
        f"{type(model).__name__} has no foveate adapter of its own, and cannot be pruned without one: {reason}. "
        "docs/contributing/add_a_family.md shows how to add one in one file."
    )


def _experts(layer: Any) -> MoeBlock | None:
    try:
        block = moe_block(layer)
        return block if block is not None and block.weights_per_token else None
    except AttributeError:
        return None


def _parameters(kind: type) -> frozenset[str]:
    """The names of the arguments of a module's forward."""
    return frozenset(inspect.signature(kind.forward).parameters) - {"self", "args"}  # type: ignore[attr-defined]


def _child(parents: tuple[Any, ...], names: tuple[str, ...]) -> nn.Module | None:
    held = (getattr(parent, name, None) for parent in parents for name in names)
    return next((one for one in held if isinstance(one, nn.Module)), None)


def _matters(value: Any, counts: tuple[int, ...]) -> bool:
    """Whether an argument holds a tensor; with `counts`, one that has an entry for each of so many tokens."""
    if isinstance(value, Mapping):
        return any(_matters(one, counts) for one in value.values())
    if isinstance(value, (list, tuple)):
        return any(_matters(one, counts) for one in value)
    return isinstance(value, Tensor) and (not counts or bool(set(value.shape) & set(counts)))

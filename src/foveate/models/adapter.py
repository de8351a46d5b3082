"""What a model adapter is: where the visual tokens of one family come out, and which cues it can give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..importance.attention import attention_received, attention_row, cosine_contributions
from ..tokens import AttentionKind, Cue, Grid, Source
from .moe import MoeBlock, moe_block

# What any model gives that runs in transformers, so no adapter lists it; servers ask adapters, too, and encode images
# without knowing the prompt.
EVERY_MODEL = (Source.PROMPT, Source.WEIGHTS, Source.STATES, Source.GUIDE)

# Where no CLS token's row is read, attention is averaged over the queries of an image or frame: over all of them, as
# the authors of the methods do, but never over more than this, evenly spread, because the time grows with the square of
# the patches. Qwen2.5-VL has so many in an image of 4096 tokens; benchmarks/cue_sampling.py tells the cost.
MOST_QUERIES = 16384


# How the blocks of a vision encoder see several images: "packed" into one sequence (P, d), in which `cu_seqlens` tell
# where those end that attend to each other; or each as a row of (B, n, d), all of them of one length.
EncoderLayout = Literal["packed", "rows"]


@dataclass(frozen=True)
class AttentionCall:
    """One call of an attention function.

    Args:
        query: (B, H, L, hd), post-rotary.
        key: (B, Hkv, S, hd), likewise.
        scaling: of the logits.
        value: (B, Hkv, S, hd); of the vision encoder only where a method reads them.
        mask: as the kernel is given it, or None.
        window: over how many keys a query looks back where the kernel itself knows; None: over all.
    """

    query: Tensor
    key: Tensor
    scaling: float
    value: Tensor | None = None
    mask: Tensor | None = None
    window: int | None = None

    @property
    def values(self) -> Tensor:
        """The values; raises ModelError where the call was kept without them."""
        if self.value is None:
            raise ModelError(
                "the values of this attention call were not kept; read them in the language model, or by the kind "
                "'values' of an EncoderReading."
            )
        return self.value

    def part(self, of: Callable[[Tensor], Tensor]) -> AttentionCall:
        """The same call with `of` its query, key and value in their place, such as those of one image."""
        value = None if self.value is None else of(self.value)
        return replace(self, query=of(self.query), key=of(self.key), value=value)

    def of_row(self, row: int) -> AttentionCall:
        """The same call for one row of the batch, with its mask."""
        one = slice(row, row + 1)
        mask = None if self.mask is None else self.mask.expand(len(self.query), *self.mask.shape[1:])[one]
        return replace(self.part(lambda tensor: tensor[one]), mask=mask)


@dataclass(frozen=True)
class DeepStack:
    """Rows that the language model adds to the hidden states of its visual tokens, after each of its first layers.

    Args:
        mask: name of its keyword argument that marks those tokens, (B, L) bool.
        rows: name of its keyword argument with a list of (n, d) tensors, one a layer, a row for each marked token.
        layers: how many layers are followed by rows.
    """

    mask: str
    rows: str
    layers: int


@dataclass(frozen=True)
class RecurrentState:
    """What a layer of linear attention or convolution keeps of a prompt instead of keys and values.

    How many numbers, of each kind.
    """

    recurrent: int
    convolution: int


class ModelAdapter(ABC):
    """Where one model family's visual tokens come out and which cues it can give. Knows no method.

    Args:
        model: the ``...ForConditionalGeneration`` model.

    Attributes:
        encoder_queries: over at most how many queries of an image or frame the attention that a patch receives is
            averaged, evenly spread; over all where there are no more.
    """

    encoder_queries: int = MOST_QUERIES
    model_type: ClassVar[str]
    class_name: str  # of the family; the generic adapter has that of its model
    relatives: ClassVar[tuple[str, ...]] = ()  # families whose published settings suit this one, nearest first
    oldest: ClassVar[str] = ""  # the first release of transformers on which the family is right; empty: all
    modalities: ClassVar[tuple[str, ...]] = ("image",)
    cues: ClassVar[frozenset[Cue]] = frozenset(Cue) - Cue.of(*EVERY_MODEL, Source.ROUTER)
    hybrid: ClassVar[bool] = False  # whether layers of the language model carry a state instead of attending
    outer_attribute: ClassVar[str] = "model"  # what the class has and a bare model of the same type has not
    # Arguments of the language model or of its layers with an entry for each token, (B, L, ...), beside embeddings.
    token_arguments: ClassVar[tuple[str, ...]] = ()
    leaves_out_patches: ClassVar[bool] = False  # whether the encoder runs without some; then `pixels` tells of them
    # How its blocks see images, where they can go on without some of the patches; None: they cannot.
    encoder_layout: ClassVar[EncoderLayout | None] = None

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model  # Any: torch's stubs take every attribute of a module for a tensor
        self.check()

    def check(self) -> None:  # noqa: B027 - most families have nothing to check
        """Raise ModelError for a variant of the family that this adapter cannot serve."""

    def check_call(  # noqa: B027
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], length: int, visual: int, mask: Any
    ) -> None:
        """Raise ModelError where the language model is called with what cannot be shortened; a family's never is.

        Args:
            args: positional arguments of the language model.
            kwargs: its keyword arguments.
            length: tokens of a prompt.
            visual: visual tokens of all prompts.
            mask: as the caller of the model gave it.
        """

    @property
    def inside_refused(self) -> str:
        """Why nothing can be pruned at the layers of the language model, as a clause; empty where it can."""
        return ""

    @classmethod
    def of(cls, model: nn.Module) -> ModelAdapter:
        """The adapter of a model; classes that hold unlike towers choose one here."""
        return cls(model)

    @classmethod
    def lineage(cls) -> tuple[str, ...]:
        """The family and its relatives, for `ModelFacts`."""
        return (cls.model_type, *cls.relatives)

    @property
    def base(self) -> Any:
        """The module that reads `input_ids` and pixels and merges both (a pre-hook here sees the prompt)."""
        return self.model.model

    @property
    def text(self) -> Any:
        """The language model: called with `inputs_embeds`, has `.layers` whose attention is `.self_attn`."""
        return self.base.language_model

    @property
    def last_norm(self) -> Any:
        """The norm behind the language model's last layer."""
        return self.text.norm

    @cached_property
    def attention_layers(self) -> tuple[int, ...]:
        """The layers of the language model in which tokens attend to tokens; in hybrid models others carry a state."""
        return tuple(index for index, layer in enumerate(self.text.layers) if hasattr(layer, "self_attn"))

    def modules_of(self, layer: int) -> tuple[nn.Module, nn.Module] | None:
        """What attends in a layer of the language model, or carries its state, and its feed-forward.

        None where they are not found under the names that they have in transformers' models.
        """
        children = dict(self.text.layers[layer].named_children())
        mixers = [children[name] for name in ("self_attn", "linear_attn", "conv") if name in children]
        forwards = [children[name] for name in ("mlp", "feed_forward") if name in children]
        return (mixers[0], forwards[0]) if mixers and forwards else None

    @property
    def hidden_cues(self) -> frozenset[Cue]:
        """The cues of any model that this one does not give, because its layers are built differently."""
        known = None not in map(self.modules_of, range(len(self.text.layers)))
        return frozenset() if known else frozenset({Cue.LLM_TRANSITIONS})

    def source_of_keys(self, layer: int) -> int:
        """The layer of the language model whose keys and values a layer attends to: itself, or a lower one."""
        return layer

    @cached_property
    def deepest_stage(self) -> int:
        """The last layer whose input can be shortened, so that no layer takes keys of tokens from before."""
        layers = range(len(self.text.layers))
        sources = [(layer, self.source_of_keys(layer)) for layer in layers]
        return min((source for layer, source in sources if source != layer), default=layers[-1])

    @property
    def deepstack(self) -> DeepStack | None:
        """What the language model adds to visual tokens beside their embeddings; None in most families."""
        return None

    def recurrent_state(self, layer: int) -> RecurrentState | None:
        """The state that a layer of the language model carries; None for one with keys and values."""
        return None

    def moe(self) -> list[MoeBlock | None]:
        """The experts of each decoder layer; None for a dense one."""
        return [moe_block(layer) for layer in self.text.layers]

    def routed_weights(self) -> list[int]:
        """Of each decoder layer the multiply-adds of one token in a router and in the experts that it goes through."""
        return [0 if block is None else block.weights_per_token for block in self.moe()]

    @property
    def available_cues(self) -> frozenset[Cue]:
        """The cues that this very model gives in transformers: its family's, any model's, and those of routers.

        Not those of the encoder's attention where no block of it attends to whole images, nor those of the modules of
        layers that are not built of an attention and a feed-forward.
        """
        cues = self.cues | Cue.of(*EVERY_MODEL)
        attention = frozenset({Cue.ENCODER_ATTENTION, Cue.ENCODER_READINGS})
        if cues & attention and not self.attention_modules():
            cues -= attention
        cues -= self.hidden_cues
        return cues | Cue.of(Source.ROUTER) if any(self.moe()) else cues

    @property
    @abstractmethod
    def vision(self) -> Any:
        """The vision encoder; called once per modality and forward."""

    @property
    @abstractmethod
    def projector(self) -> nn.Module:
        """The module whose first input are the vision features before projection."""

    @property
    def vision_width(self) -> int:
        """Width of the vision encoder's attention, all heads together."""
        return self.model.config.vision_config.hidden_size

    def token_modules(self) -> list[nn.Module]:
        """Vision modules that run once per LLM token; all others run once per position of the encoder."""
        return [self.projector]

    @property
    def token_products(self) -> int:
        """Multiply-adds for each LLM token with what is not a linear layer; none in most families."""
        return 0

    def grid_products(self, grid: Grid) -> int:
        """Multiply-adds for one image or clip that are neither of each token nor of each position; none in most."""
        return 0

    def token_outputs(self) -> list[nn.Module]:
        """Those of `token_modules` whose output goes on to the language model; in some families others come first."""
        return self.token_modules()

    @abstractmethod
    def token_ids(self) -> dict[str, int]:
        """Placeholder token id of each modality."""

    def find_placeholders(self, modality: str, input_ids: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """(B, L) bool: which of `input_ids` (B, L) are placeholders of a modality.

        `inputs` are the other arguments of the forward, for families in which two modalities share one token.
        """
        return input_ids == self.token_ids()[modality]

    @abstractmethod
    def grids(self, inputs: Mapping[str, Any]) -> dict[str, list[Grid]]:
        """Layout of every image and clip of a forward, in prompt order, from its keyword arguments."""

    def placeholders(self, inputs: Mapping[str, Any]) -> dict[str, list[Tensor]]:
        """For each of `grids` its run of placeholders in the prompt, (p,) bool: which stand for tokens of the grid.

        True ones are in raster order. The others, such as the ends of lines, belong to no grid: they always stay, and
        are not text, either. By default there are none.
        """
        return {kind: self.runs(kind, own) for kind, own in self.grids(inputs).items()}

    def runs(self, modality: str, grids: Sequence[Grid]) -> list[Tensor]:
        """The runs of `placeholders` of one image or clip, which has these grids."""
        return [torch.ones(len(grid), dtype=torch.bool) for grid in grids]

    @abstractmethod
    def grid_inputs(self, modality: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What `grids` reads, recovered from a call of the vision encoder (generate may encode images beforehand)."""

    def pixels(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """(n, p) pixels in [0, 1] of each LLM token, per image, from the arguments of the encoder; raster order."""
        raise NotImplementedError

    def encoder_grids(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Grid]:
        """The layout of each image or clip of one encoder pass."""
        raise NotImplementedError

    def encoder_order(self, grid: Grid) -> Tensor:
        """(n,) long: the raster index of each LLM token in the order in which the encoder's blocks see them."""
        return torch.arange(len(grid))

    def attention_modules(self) -> dict[int, nn.Module]:
        """The vision attention modules that attend to whole images or frames, by number of their layer, from 0.

        The last of them is that of ENCODER_ATTENTION; none behind the layer that makes the visual features is there.
        """
        return {index: layer.self_attn for index, layer in enumerate(self.vision_layers())}

    def attention_module(self) -> nn.Module:
        """The vision attention module whose attention is the ENCODER_ATTENTION cue."""
        return self.attention_at(1.0)

    def attention_layer_at(self, depth: float, below: int | None = None) -> int:
        """The nearest layer of `attention_modules` to a depth in [0, 1], of two the deeper one; see EncoderReading.

        With `below` those are as if the encoder ended before that block; at least one must be.
        """
        layers = [layer for layer in self.attention_modules() if below is None or layer < below]
        place = depth * max(layers)
        return min(layers, key=lambda layer: (abs(layer - place), -layer))

    def attention_at(self, depth: float) -> nn.Module:
        """The attention module in the layer `attention_layer_at` this depth."""
        return self.attention_modules()[self.attention_layer_at(depth)]

    @abstractmethod
    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        """What `kind` reads of each LLM token, (n,) per image, from the calls of one module in one encoder pass."""

    @abstractmethod
    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        """Vision features before projection, (n, e) per image, from the projector's input."""

    def padding(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], grids: list[Grid]) -> list[Tensor]:
        """(n,) bool per image: tokens that show nothing but padding, from the encoder's arguments; none in most."""
        return [torch.zeros(len(grid), dtype=torch.bool) for grid in grids]

    @property
    def merge(self) -> Any:
        """Patches along each side of an LLM token; those along its height and its width where they differ."""
        return 1

    def patches(self, grid: Grid) -> int:
        """Positions that the vision encoder processes for one image or clip."""
        return int(len(grid) * self.merge**2)

    def vision_attention_pairs(self, grid: Grid, kept: Tensor | None = None) -> list[int]:
        """Query-key pairs that each encoder layer computes for one image or clip, or for the `kept` (n,) of it."""
        return [self.entering(grid, kept) ** 2] * len(self.vision_layers())

    def entering(self, grid: Grid, kept: Tensor | None = None) -> int:
        """Positions of one image or clip that enter a block: `patches`, or those that are left of the `kept` (n,)."""
        return self.patches(grid) - (0 if kept is None else int((~kept).sum()) * self.merge**2)

    def vision_layers(self) -> list[Any]:
        """The layers of the vision encoder, in order."""
        return list(self.vision.encoder.layers)

    def feature_blocks(self) -> int:
        """How many of `vision_layers` come before the visual features; what others make is not used."""
        return len(self.vision_layers())

    def block_before(self, module: nn.Module) -> int:
        """The block behind which one of `token_modules` runs: the last, but for those that make DeepStack's rows."""
        return len(self.vision_layers()) - 1

    def token_patches(self, grid: Grid) -> Tensor:
        """(n, p) long: where the p patches of each LLM token lie in the row of an image, in raster order; see
        `encoder_layout`. Positions of no token, such as CLS, belong to all and are not there."""
        raise NotImplementedError


def pooled_mean(values: Tensor, group: int) -> Tensor:
    """Mean over runs of `group` neighbours along the first dimension."""
    return values.reshape(-1, group, *values.shape[1:]).mean(1)


def check_queries(queries: object) -> int:
    """`queries`, as `ModelAdapter.encoder_queries`; raises ModelError unless it is a whole number of at least 1."""
    if not isinstance(queries, int) or isinstance(queries, bool) or queries < 1:
        raise ModelError(
            f"encoder_queries={queries!r} must be a whole number of at least 1; leave it out to average over all "
            f"queries of an image, up to {MOST_QUERIES}."
        )
    return queries


def patch_attention(call: AttentionCall, kind: AttentionKind, cls: bool, queries: int = MOST_QUERIES) -> Tensor:
    """(B, n) what `kind` reads of each patch; with `cls`, position 0 is a CLS token, which is none of them.

    Attention received is averaged over at most `queries` queries, evenly spread.
    """
    if kind == "lengths":
        return call.values.float().abs().sum((1, 3))[:, int(cls) :]
    if kind == "likeness":
        joined = call.values.transpose(1, 2).flatten(2)[:, None]
        return patch_attention(AttentionCall(joined, joined, 1.0), "cls", cls, queries)
    if kind == "keys":
        return call.key.float().square().sum((1, 3)).sqrt()[:, int(cls) :]
    if kind == "values":
        query = call.query[:, :, 0] if cls else call.query.float().mean(2)
        return cosine_contributions(query, call.key, call.values)[:, int(cls) :]
    if cls and kind == "cls":
        everything = call.key.new_ones(call.key.shape[0], call.key.shape[2], dtype=torch.bool)
        return attention_row(call.query[:, :, 0], call.key, call.scaling, everything)[:, 1:]
    return attention_received(call.query, call.key, call.scaling, queries)[:, int(cls) :]


def layers_behind(index: int | Sequence[int], layers: list[Any]) -> list[Any]:
    """The first layers, up to the one that made ``hidden_states[index]``: 0 is the embedding, -1 the last layer's.

    Of several indices, whose features are joined, the deepest counts.
    """
    if not isinstance(index, int):
        return max((layers_behind(one, layers) for one in index), key=len)
    return layers[: max(index, 1) if index >= 0 else len(layers) + index + 1]

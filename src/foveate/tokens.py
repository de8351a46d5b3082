"""VisualTokens: everything that a method may see of an image, and nothing about the model it came from."""

from __future__ import annotations

import enum
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .devices import first_of_each, full_precision, known_sizes, places_of
from .errors import SelectionError, near_miss


class Source(enum.Enum):
    """Where a cue arises. All that foveate must know of a cue to read it, or to refuse it, follows from this."""

    ENCODER = "the vision encoder"
    PROMPT = "the prompt's tokens as they enter the language model"
    WEIGHTS = "the weights of the language model"
    LAYER_BELOW = "the attention of the LLM layer below the one whose input is shortened"
    LAYERS_BELOW = "the attention of lower LLM layers of the method's choice"
    STATES = "the hidden states of lower LLM layers"
    LAYER = "the LLM layer whose input is shortened"
    ROUTER = "the router of experts in that layer"
    GUIDE = "a smaller model that reads the prompt first"

    @property
    def not_in_vllm(self) -> str | None:
        """Why the vLLM plugin gives no cue from here; None where it can."""
        if self is Source.ENCODER:
            return None
        if self is Source.PROMPT:
            return "vLLM encodes an image once for all prompts that hold it"
        if self is Source.GUIDE:
            return "the plugin runs no second model"
        return "the plugin does nothing inside the LLM"


class Kind(enum.Enum):
    """What the numbers of a cue are, and so in which dtype methods find them."""

    NUMBER = "measurements, in float32"
    VECTOR = "vectors of the model, which may be in 16 bits"
    MASK = "bool"


class Cue(enum.Enum):
    """Something that a method can need beyond the token features themselves.

    Examples:
        >>> foveate.get_method("fastv").needs
        frozenset({<Cue.LLM_ATTENTION: ...>})

    A member declares all there is to know of a cue; messages, checks, refusals and docs follow from it.

    Attributes:
        value: what it is, in words that complete "cannot give what the method needs: ...".
        source: where it arises.
        axes: its shape beyond the batch, see `shape`.
        kind: what its numbers are.
        not_in_vllm: why the vLLM plugin cannot give it; None where it can.
        of_question: whether the vLLM plugin can give it only where a request says what is asked.

    Of the axes, N are the visual tokens of a group, padded on the right in raster order, M the tokens of the prompt's
    text, d is the width of the features, and D that of the language model's input; other letters are sizes of the cue's
    own.
    """

    _value_: str
    source: Source
    axes: tuple[str, ...]
    kind: Kind
    not_in_vllm: str | None
    of_question: bool

    def __new__(
        cls,
        value: str,
        source: Source,
        axes: str,
        kind: Kind = Kind.NUMBER,
        not_in_vllm: str | None = None,
        of_question: bool = False,
    ) -> Cue:
        self = object.__new__(cls)
        self._value_, self.source, self.axes, self.kind = value, source, tuple(axes.split()), kind
        self.not_in_vllm = None if of_question else not_in_vllm or source.not_in_vllm
        self.of_question = of_question
        return self

    ENCODER_ATTENTION = "attention received inside the vision encoder", Source.ENCODER, "N"

    ENCODER_FEATURES = "vision features before the projector", Source.ENCODER, "N e", Kind.VECTOR

    ENCODER_READINGS = (
        "attention received in vision encoder layers of the method's choice",
        Source.ENCODER,
        "N R",
        Kind.NUMBER,
        "the plugin listens to one layer only",
    )
    """A column for each of the method's R `encoder_readings`, in order."""

    PADDING = (
        "which visual tokens show nothing but the border that makes a picture square",
        Source.ENCODER,
        "N",
        Kind.MASK,
        "the plugin does not look at pixels",
    )

    TEXT_EMBEDDINGS = "input embeddings of the prompt's text", Source.PROMPT, "M D", Kind.VECTOR, None, True
    """What the language model reads of every token that stands for no image, in order: the system prompt, the chat
    template and special tokens included."""

    INPUT_EMBEDDINGS = (
        "what entered the language model in the place of hidden states inside it",
        Source.PROMPT,
        "N D",
        Kind.VECTOR,
    )

    TEXT_STATES = "hidden states of the prompt's text in the same LLM layer", Source.PROMPT, "M d", Kind.VECTOR
    """Those that enter the same layer as the features."""

    ROTARY_DECAY = (
        "decay of attention with the distance between visual tokens and the prompt's text",
        Source.PROMPT,
        "N M",
    )
    """Mean over the rotary frequencies of the cosine of the angle between the positions of a visual and a text token; 1
    where they are the same."""

    ROTARY_MEANS = (
        "mean cosine and mean sine of the rotary angles at the positions of visual tokens",
        Source.PROMPT,
        "N 2",
    )
    """Over all frequencies, and over the axes where positions have several. It needs no layer, so that methods before
    the LLM can read it, too."""

    LAST_NORM = "weights of the language model's last norm", Source.WEIGHTS, "d", Kind.VECTOR
    """The weights of the norm behind the last layer, the same in every row."""

    LLM_ATTENTION = "attention row of the last prompt token, one LLM layer below", Source.LAYER_BELOW, "N"
    """Mean over the heads."""

    LLM_TEXT_ATTENTION = (
        "attention of the prompt's text to the visual tokens, one LLM layer below",
        Source.LAYER_BELOW,
        "N H M",
    )
    """Attention of each text token to each visual one, by head, over all that the text token sees; 0 from text before
    the image."""

    LLM_CONTRIBUTIONS = (
        "part of the visual tokens in what the last prompt token reads, in the LLM layers below",
        Source.LAYER_BELOW,
        "N L 3",
    )
    """A column for each of the L layers below in which the method had them read, the latest last. With o what the
    attention heads of the last prompt token put out, side by side, and c_j the part of token j in it:
    ``1 - cos(o, o - c_j)``, ``|c_j|`` and ``|c_j| / |o|``. 0 where a token was gone by then."""

    LLM_KEYS = (
        "lengths of the keys of visual tokens and of the prompt's text, one LLM layer below",
        Source.LAYER_BELOW,
        "N",
    )
    """L1 length of each token's key, behind the rotary embedding, all heads side by side. TEXT_KEYS comes with it."""

    TEXT_KEYS = "lengths of the keys of the prompt's text, one LLM layer below", Source.LAYER_BELOW, "M"
    """The same of the text."""

    LLM_KEY_VECTORS = "keys of visual tokens, one LLM layer below", Source.LAYER_BELOW, "N K c", Kind.VECTOR
    """Each token's keys of c channels behind the rotary embedding, one for each of the K heads that keys have."""

    LLM_VALUES = (
        "values of visual tokens and of the prompt's text, one LLM layer below",
        Source.LAYER_BELOW,
        "N K c",
        Kind.VECTOR,
    )
    """By the K heads that values have. TEXT_VALUES comes with it."""

    TEXT_VALUES = "values of the prompt's text, one LLM layer below", Source.LAYER_BELOW, "M K c", Kind.VECTOR
    """The same of the text."""

    LLM_READINGS = (
        "attention rows of the last prompt token in LLM layers of the method's choice",
        Source.LAYERS_BELOW,
        "N R",
    )
    """Mean over the heads, a column for each of the layers in the method's `llm_readings`, in order; 0 where a token
    was gone by then."""

    STATES_BELOW = "hidden states that entered the LLM layer below", Source.STATES, "N d", Kind.VECTOR
    """Of tokens that an earlier stage dropped, zeros."""

    LLM_TRANSITIONS = (
        "how attention and feed-forward change visual tokens in LLM layers of the method's choice",
        Source.STATES,
        "N R 2 2",
    )
    """For each of the layers in the method's `llm_readings`, in order, a row for its attention and one for its
    feed-forward: the length of what the module puts out for a token over the length of what it is given, and the cosine
    between the two. Residual connections are outside. 0 where a token was gone by then."""

    LLM_ATTENTION_HERE = "attention row of the last prompt token, in the same LLM layer", Source.LAYER, "N"
    """Mean over the heads in the layer whose input is shortened, as it would be if nothing were dropped there."""

    LLM_ATTENTION_UNROTATED = (
        "attention row of the last prompt token, in the same LLM layer, without positions",
        Source.LAYER,
        "N",
    )
    """The same by queries and keys before their rotary embedding, over the tokens of this forward alone, as what is
    cached is rotated."""

    LLM_TEXT_ATTENTION_HERE = (
        "attention of the prompt's text to the visual tokens, in the same LLM layer",
        Source.LAYER,
        "N H M",
    )
    """As LLM_TEXT_ATTENTION, in the layer whose input is shortened, as it would be if nothing were dropped there."""

    TEXT_QUERIES_UNROTATED = (
        "queries of the prompt's text, in the same LLM layer, without positions",
        Source.LAYER,
        "M H c",
        Kind.VECTOR,
    )
    """Before the rotary embedding, of each of the H heads. KEYS_UNROTATED comes with it."""

    KEYS_UNROTATED = (
        "keys of visual tokens, in the same LLM layer, without positions",
        Source.LAYER,
        "N K c",
        Kind.VECTOR,
    )
    """Before the rotary embedding, of each of the K heads that keys have; query head h reads key head
    ``h // (H / K)``."""

    ROUTER_LOGITS = "logits of the router of experts in the same LLM layer", Source.ROUTER, "N E", Kind.VECTOR
    """What the router of the layer whose input is shortened makes of that input, passed through the norm before it."""

    GUIDE_ATTENTION = "attention of a smaller model's prompt to the visual tokens", Source.GUIDE, "N"
    """Mean over the heads, and over the layers and the queries that the method's `guide` names."""

    @classmethod
    def of(cls, *sources: Source) -> frozenset[Cue]:
        """All cues that arise in these sources."""
        return frozenset(cue for cue in cls if cue.source in sources)

    @property
    def keyword(self) -> str:
        """Its name as an argument of `VisualTokens`."""
        return self.name.lower()

    @property
    def of_text(self) -> bool:
        """Whether it tells of the prompt's text, and so comes with `text_valid` and `text_follows`."""
        return "M" in self.axes

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape beyond the batch, where `sizes` says how long each of its `axes` is."""
        return tuple(int(axis) if axis.isdigit() else sizes[axis] for axis in self.axes)


AttentionKind = Literal["cls", "received", "keys", "values", "lengths", "likeness"]


@dataclass(frozen=True)
class EncoderReading:
    """The attention of one more layer of the vision encoder, or of another kind, beside ENCODER_ATTENTION.

    Examples:
        >>> foveate.get_method("hiprune").encoder_readings
        (EncoderReading(depth=0.36363636363636365, kind='received'), EncoderReading(depth=1.0, kind='received'))

    Args:
        depth: how deep the layer lies, in [0, 1]: 0 is the first one, 1 the one that ENCODER_ATTENTION is read in. The
            nearest layer that attends to whole images is read. Layer l of a paper's CLIP-L of 24 layers, of which
            LLaVA reads the last but one, is ``l / 22``, counted from 0.
        kind: ``"cls"`` is the row of the CLS token, ``"received"`` the mean over all queries. Encoders without a CLS
            token give the latter for both. ``"keys"`` is no attention: it is the length of the key, of all heads.
            ``"values"`` is the length of what a token adds to what the CLS token reads, if that attends by cosines
            alone: the softmax of ``cos(q, k) / sqrt(head size)`` times the value, of all heads. Encoders without a CLS
            token have the mean of their queries in its place. ``"lengths"`` is the L1 length of the value, of all
            heads, and ``"likeness"`` what ``"cls"`` would be if values, all heads side by side, were both queries and
            keys: ``softmax(v_cls . v)``.
    """

    depth: float = 1.0
    kind: AttentionKind = "cls"


@dataclass(frozen=True)
class Grid:
    """The layout of one image or clip in LLM tokens: `rows` x `columns`, times `frames` for a clip.

    Examples:
        >>> len(foveate.Grid(24, 24)), foveate.Grid(4, 6, frames=8).frame
        (576, Grid(rows=4, columns=6, frames=1))
    """

    rows: int
    columns: int
    frames: int = 1

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "frames"):  # adapters' own grids may have other fields
            given = getattr(self, name)
            try:
                number = operator.index(given)
            except TypeError:
                number = -1
            if number < 0:
                raise SelectionError(f"a Grid has whole numbers of rows, columns and frames, not {name}={given!r}.")
            object.__setattr__(self, name, number)

    def __len__(self) -> int:
        return self.frames * self.rows * self.columns

    @property
    def frame(self) -> Grid:
        """One of its frames."""
        return Grid(self.rows, self.columns)

    def coordinates(self, device: torch.device | None = None) -> Tensor:
        """Frame, row and column of every token in raster order: long tensor (N, 3)."""
        axes = [torch.arange(n, device=device) for n in (self.frames, self.rows, self.columns)]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


_NO_CUES: Mapping[Cue, Tensor] = MappingProxyType({})


@dataclass(frozen=True, init=False, eq=False)
class VisualTokens:
    """Visual tokens of a padded batch of groups; a group is an image, a clip, or all images of a prompt.

    Examples:
        >>> tokens = foveate.VisualTokens.of(torch.randn(6, 16), foveate.Grid(2, 3))  # one image
        >>> foveate.get_method("divprune").select(tokens, torch.tensor([2])).keep.sum().item()
        2

    Args:
        features: (B, N, d), any float dtype; what the LLM would read (embeddings before it, hidden states inside), or
            before the vision encoder the pixels in [0, 1] of all patches of a token.
        grids: for each of the B groups, the grids of the images in it, in order; their sizes add up to the group's.
        cues: what else is known, by `Cue`, which says what each is and its shape behind B. A cue may be given by its
            name, too: ``encoder_attention=...``; None takes it away. So it can be read, ``tokens.encoder_attention``,
            which is None where it is not given; methods read what they need with `cue`.
        alive: (B, N) bool, false where an earlier stage already dropped a token; None when all are there.
        text_valid: (B, M) bool, false on padding of the prompts' text, which can be on either side; all true if left
            out.
        text_follows: (B, M) bool, true on the text that comes after all images of the group and so attends to them;
            `text_valid` if left out.

    Groups are padded on the right to N; `valid` (B, N) marks the tokens that can be chosen. All cues that tell of text
    are about the same M tokens; M is 0 where there is none.

    Raises:
        SelectionError: for shapes that do not fit together, and for names that are not cues.
    """

    features: Tensor
    grids: tuple[tuple[Grid, ...], ...]
    cues: Mapping[Cue, Tensor]
    alive: Tensor | None
    text_valid: Tensor
    text_follows: Tensor

    def __init__(
        self,
        features: Tensor,
        grids: tuple[tuple[Grid, ...], ...],
        cues: Mapping[Cue, Tensor] = _NO_CUES,
        *,
        alive: Tensor | None = None,
        text_valid: Tensor | None = None,
        text_follows: Tensor | None = None,
        **named: Tensor | None,
    ) -> None:
        _check_features(features, grids)
        held = dict(cues)
        for cue in held:
            if not isinstance(cue, Cue):
                raise SelectionError(f"{cue!r} is not a cue; give a foveate.Cue, or {cue}=... as an argument.")
        for name, value in named.items():
            cue = _cue_named(name)
            if value is None:
                held.pop(cue, None)
            else:
                held[cue] = value
        masks = {"alive": (alive, "N"), "text_valid": (text_valid, "M"), "text_follows": (text_follows, "M")}
        shown: list[tuple[str, Tensor, tuple[str, ...], Kind]]
        shown = [(name, mask, (axis,), Kind.MASK) for name, (mask, axis) in masks.items() if mask is not None]
        shown += [(cue.keyword, value, cue.axes, cue.kind) for cue, value in held.items()]
        sizes = _sizes_of(features, shown)
        if text_valid is None:
            text_valid = torch.ones(sizes["B"], sizes["M"], dtype=torch.bool, device=features.device)
        follows = text_valid if text_follows is None else text_follows
        values = (features, grids, held, alive, text_valid, follows)
        for field, given in zip(fields(self), values, strict=True):
            object.__setattr__(self, field.name, given)

    if not TYPE_CHECKING:  # type checkers would take any misspelt attribute for a cue

        def __getattr__(self, name: str) -> Tensor | None:
            if name.upper() in Cue.__members__ and name.islower():
                return self.cues.get(Cue[name.upper()])
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")

    @classmethod
    def of(cls, features: Tensor, grid: Grid, **named: Tensor | None) -> VisualTokens:
        """One unpadded image: features (N, d), cues by name and masks, all without a batch dimension."""
        batched: dict[str, Any] = {name: None if value is None else value[None] for name, value in named.items()}
        return cls(features[None], ((grid,),), **batched)

    @property
    def sizes(self) -> list[int]:
        """Tokens in each group."""
        return [sum(len(grid) for grid in pool) for pool in self.grids]

    @property
    def frames(self) -> list[int]:
        """Frames in each group; an image is one."""
        return [sum(grid.frames for grid in pool) for pool in self.grids]

    @cached_property
    def valid(self) -> Tensor:
        """(B, N) bool, true on tokens that can be chosen; not to be written to."""
        real = first_of_each(self.sizes, self.features.shape[1], self.features.device)
        return real if self.alive is None else real & self.alive

    @property
    def coordinates(self) -> Tensor:
        """(B, N, 3) long: frame, row, column. Frames of different images of a group never coincide; padding is -1."""
        batch, width = self.features.shape[:2]
        out = torch.full((batch, width, 3), -1, dtype=torch.long, device=self.features.device)
        for row, pool in enumerate(self.grids):
            start = frame = 0
            for grid in pool:
                places = grid.coordinates(self.features.device)
                places[:, 0] += frame
                out[row, start : start + len(grid)] = places
                start, frame = start + len(grid), frame + grid.frames
        return out

    def single(self) -> VisualTokens:
        """The same as selection wants it; itself where it is so already.

        Numbers of tokens, such as attention, are in float32; their vectors may be in 16 bits, but not in float64.
        """
        features = self.features.float() if self.features.dtype == torch.float64 else self.features
        cues = {cue: _single(cue, value) for cue, value in self.cues.items()}
        if features is self.features and all(cues[cue] is value for cue, value in self.cues.items()):
            return self
        return replace(self, features=features, cues=cues)

    def cue(self, cue: Cue) -> Tensor:
        """The tensor of a cue that the method declared in `needs`.

        Raises:
            SelectionError: where it is not given.
        """
        if cue not in self.cues:
            raise SelectionError(f"the cue {cue.name} ({cue.value}) is missing; declare it in the method's `needs`.")
        return self.cues[cue]

    def text(self, row: int) -> Tensor:
        """(m, d): the embeddings of one group's text, without padding; m is 0 where a prompt holds no text."""
        sizes = known_sizes(self.text_valid)
        return self.cue(Cue.TEXT_EMBEDDINGS)[row][
            places_of(self.text_valid[row], None if sizes is None else sizes[row])
        ]


def _cue_named(keyword: str) -> Cue:
    """The cue of an argument of `VisualTokens`."""
    known = {cue.keyword: cue for cue in Cue}
    if keyword not in known:
        raise SelectionError(f"{keyword!r} is not a cue{near_miss(keyword, known)}")
    return known[keyword]


def _check_features(features: Tensor, grids: tuple[tuple[Grid, ...], ...]) -> None:
    if not isinstance(features, Tensor) or not features.dtype.is_floating_point:
        found = features.dtype if isinstance(features, Tensor) else f"a {type(features).__name__}"
        raise SelectionError(f"features are {found}, but must be a tensor of floats (B, N, d).")
    for group in grids:
        if not isinstance(group, (tuple, list)) or not all(isinstance(grid, Grid) for grid in group):
            raise SelectionError(
                f"the grids of a group are {group!r}, but must be a tuple of Grid; of one image in each of two groups: "
                "((Grid(2, 3),), (Grid(4, 4),))."
            )
    if features.ndim != 3 or features.shape[0] != len(grids):
        raise SelectionError(
            f"features {tuple(features.shape)} must be (B, N, d) with one tuple of grids per group, "
            f"got {len(grids)} tuples."
        )
    largest = max((sum(map(len, group)) for group in grids), default=0)
    if largest > features.shape[1]:
        raise SelectionError(f"grids hold {largest} tokens, features only {features.shape[1]}.")


def _sizes_of(features: Tensor, shown: Iterable[tuple[str, Tensor, tuple[str, ...], Kind]]) -> dict[str, int]:
    """How long B, N, d, M and D are; raises SelectionError unless all tensors agree.

    Args:
        features: (B, N, d).
        shown: the name, the tensor, the axes behind B and the kind of all else.
    """
    sizes = dict(zip("BNd", features.shape, strict=True))
    for name, value, axes, kind in shown:
        axes = ("B", *axes)
        if not isinstance(value, Tensor):
            raise SelectionError(f"{name} is a {type(value).__name__}, but must be a tensor.")
        for axis, length in zip(axes, value.shape, strict=False):
            if axis in "MD":
                sizes.setdefault(axis, length)  # the first that has this axis says how long it is
        expected = [int(axis) if axis.isdigit() else sizes.get(axis) for axis in axes]
        fits = value.ndim == len(axes) and all(n in (None, m) for n, m in zip(expected, value.shape, strict=True))
        if not fits:
            wanted = ", ".join(axis if n is None else str(n) for axis, n in zip(axes, expected, strict=True))
            raise SelectionError(
                f"{name} has the shape {tuple(value.shape)}, but must be ({', '.join(axes)}) = ({wanted})."
            )
        if (kind is Kind.MASK) != (value.dtype == torch.bool):
            raise SelectionError(f"{name} is {value.dtype}, but must be {'bool' if kind is Kind.MASK else 'numbers'}.")
    sizes.setdefault("M", 0)
    return sizes


def _single(cue: Cue, value: Tensor) -> Tensor:
    """A cue as selection wants it: numbers of tokens in float32, vectors in at most 32 bits."""
    wide = value.dtype == torch.float64 or (cue.kind is Kind.NUMBER and value.dtype != torch.float32)
    return value.float() if wide else value


@dataclass(frozen=True)
class Selection:
    """What a method decided.

    Examples:
        >>> foveate.Selection(torch.tensor([[True, False, True]])).merged(torch.tensor([[[1.0], [2.0], [3.0]]])).shape
        torch.Size([1, 3, 1])

    Args:
        keep: (B, N) bool; exactly the asked count is true in each row, only on valid tokens.
        target: (B, N) long or None; for merging methods, the index of the kept token that a token flows into
            (-1: nowhere). A kept token's new value is the weighted sum of what flows into it.
        weight: (B, N) float or None; the weight of each token in that sum.
    """

    keep: Tensor
    target: Tensor | None = None
    weight: Tensor | None = None

    @full_precision
    def merged(self, features: Tensor) -> Tensor:
        """Features (B, N, d) with the merges applied; unchanged where nothing merges."""
        if self.target is None or self.weight is None:
            return features
        source = features.float() * self.weight[..., None]
        index = self.target.clamp_min(0)[..., None].expand_as(source)
        source = torch.where((self.target >= 0)[..., None], source, torch.zeros_like(source))
        return torch.zeros_like(source).scatter_add_(1, index, source).to(features.dtype)


def as_grid(grid: Grid | Sequence[int]) -> Grid:
    """A Grid from a Grid, ``(rows, columns)`` or ``(frames, rows, columns)``."""
    if isinstance(grid, Grid):
        return grid
    shape = [int(n) for n in grid]
    if len(shape) not in (2, 3):
        raise SelectionError(f"grid {tuple(grid)} must be (rows, columns) or (frames, rows, columns).")
    return Grid(shape[-2], shape[-1], shape[0] if len(shape) == 3 else 1)

"""VisualTokens: everything that a method may see of an image, and nothing about the model it came from."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from .devices import full_precision
from .errors import SelectionError


class Cue(enum.Enum):
    """Something that a method can need beyond the token features themselves."""

    ENCODER_ATTENTION = "attention received inside the vision encoder"
    ENCODER_FEATURES = "vision features before the projector"
    LLM_ATTENTION = "attention row of the last prompt token, one LLM layer below"
    LLM_ATTENTION_HERE = "attention row of the last prompt token, in the same LLM layer"
    LLM_ATTENTION_UNROTATED = "attention row of the last prompt token, in the same LLM layer, without positions"
    TEXT_EMBEDDINGS = "input embeddings of the prompt's text"
    ENCODER_READINGS = "attention received in vision encoder layers of the method's choice"
    ROUTER_LOGITS = "logits of the router of experts in the same LLM layer"
    INPUT_EMBEDDINGS = "what entered the language model in the place of hidden states inside it"
    LLM_TEXT_ATTENTION = "attention of the prompt's text to the visual tokens, one LLM layer below"
    LLM_CONTRIBUTIONS = "part of the visual tokens in what the last prompt token reads, in the LLM layers below"
    LLM_READINGS = "attention rows of the last prompt token in LLM layers of the method's choice"
    ROTARY_DECAY = "decay of attention with the distance between visual tokens and the prompt's text"
    LLM_KEYS = "lengths of the keys of visual tokens and of the prompt's text, one LLM layer below"
    TEXT_STATES = "hidden states of the prompt's text in the same LLM layer"
    LAST_NORM = "weights of the language model's last norm"
    PADDING = "which visual tokens show nothing but the border that makes a picture square"


AttentionKind = Literal["cls", "received", "keys"]


@dataclass(frozen=True)
class EncoderReading:
    """The attention of one more layer of the vision encoder, or of another kind, beside ENCODER_ATTENTION.

    Args:
        depth: how deep the layer lies, in [0, 1]: 0 is the first one, 1 the one that ENCODER_ATTENTION is read in. The
            nearest layer that attends to whole images is read. Layer l of a paper's CLIP-L of 24 layers, of which
            LLaVA reads the last but one, is ``l / 22``, counted from 0.
        kind: ``"cls"`` is the row of the CLS token, ``"received"`` the mean over all queries. Encoders without a CLS
            token give the latter for both. ``"keys"`` is no attention: it is the length of the key, of all heads.
    """

    depth: float = 1.0
    kind: AttentionKind = "cls"


@dataclass(frozen=True)
class Grid:
    """The layout of one image or clip in LLM tokens: `rows` x `columns`, times `frames` for a clip."""

    rows: int
    columns: int
    frames: int = 1

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


@dataclass(frozen=True)
class VisualTokens:
    """Visual tokens of a padded batch of pools; a pool is an image, a clip, or all images of a prompt.

    Args:
        features: (B, N, d), any float dtype; what the LLM would read (embeddings before it, hidden states inside), or
            before the vision encoder the pixels in [0, 1] of all patches of a token.
        grids: for each of the B pools, the grids of the images in it, in order; their sizes add up to the pool's.
        encoder_attention: (B, N) attention received inside the vision encoder, or None when not asked for.
        encoder_features: (B, N, e) vision features before the projector, or None.
        llm_attention: (B, N) head-mean attention of the last prompt token in the layer below, or None.
        alive: (B, N) bool, false where an earlier stage already dropped a token; None when all are there.
        text_embeddings: (B, M, d) what the LLM reads of the text of each pool's prompt, in order, or None: every token
            that stands for no image, system prompt, chat template and special tokens included.
        text_valid: (B, M) bool, false on padding of the text, which can be on either side; None when there is none.
        llm_attention_here: (B, N) head-mean attention of the last prompt token in the layer whose input is shortened,
            as it would be if nothing were dropped there, or None.
        llm_attention_unrotated: (B, N) the same by queries and keys before their rotary embedding, over the tokens of
            this forward alone, as what is cached is rotated; or None.
        encoder_readings: (B, N, R), a column for each of the method's R `encoder_readings`, in order; or None.
        router_logits: (B, N, E), what the router of the layer whose input is shortened makes of that input, passed
            through the norm before the router; or None.
        input_embeddings: (B, N, d) what entered the language model in the place of `features`, or None.
        text_follows: (B, M) bool, true on the text that comes after all images of the pool and so attends to them; or
            None. Inside the LLM the M texts of `text_embeddings` and of the two cues below are the same.
        llm_text_attention: (B, N, H, M) attention of each text token to each visual one in the layer below, by head,
            over all that the text token sees; 0 from text before the image; or None.
        llm_contributions: (B, N, L, 3), a column for each of the L layers below in which the method had them read, the
            latest last, or None. With o what the attention heads of the last prompt token put out, side by side, and
            c_j the part of token j in it: ``1 - cos(o, o - c_j)``, ``|c_j|`` and ``|c_j| / |o|``. 0 where a token was
            gone by then.
        llm_readings: (B, N, R) head-mean attention of the last prompt token, a column for each of the LLM layers in the
            method's `llm_readings`, in order; 0 where a token was gone by then; or None.
        rotary_decay: (B, N, M): mean over the rotary frequencies of the cosine of the angle between the positions of a
            visual and a text token; 1 where they are the same. Or None.
        llm_keys: (B, N) L1 length of each token's key in the layer below, behind the rotary embedding, all heads side
            by side; or None.
        text_keys: (B, M), the same of the text; given with `llm_keys`.
        text_states: (B, M, d) hidden states of the text that enter the same layer as `features`, or None.
        last_norm: (B, d), the same in every row: the weights of the norm behind the language model's last layer; or
            None.
        padding: (B, N) bool, true on tokens that show nothing but the border with which an image processor made a
            picture square; or None.

    Pools are padded on the right to N; `valid` (B, N) marks the tokens that can be chosen.
    """

    features: Tensor
    grids: tuple[tuple[Grid, ...], ...]
    encoder_attention: Tensor | None = None
    encoder_features: Tensor | None = None
    llm_attention: Tensor | None = None
    alive: Tensor | None = None
    text_embeddings: Tensor | None = None
    text_valid: Tensor | None = None
    llm_attention_here: Tensor | None = None
    encoder_readings: Tensor | None = None
    router_logits: Tensor | None = None
    input_embeddings: Tensor | None = None
    text_follows: Tensor | None = None
    llm_text_attention: Tensor | None = None
    llm_contributions: Tensor | None = None
    rotary_decay: Tensor | None = None
    llm_attention_unrotated: Tensor | None = None
    llm_keys: Tensor | None = None
    text_keys: Tensor | None = None
    text_states: Tensor | None = None
    last_norm: Tensor | None = None
    padding: Tensor | None = None
    llm_readings: Tensor | None = None

    def __post_init__(self) -> None:
        if self.features.ndim != 3 or self.features.shape[0] != len(self.grids):
            raise SelectionError(
                f"features {tuple(self.features.shape)} must be (B, N, d) with one tuple of grids per pool, "
                f"got {len(self.grids)} tuples."
            )
        if max(self.sizes, default=0) > self.features.shape[1]:
            raise SelectionError(f"grids hold {max(self.sizes)} tokens, features only {self.features.shape[1]}.")

    @classmethod
    def of(cls, features: Tensor, grid: Grid, **cues: Tensor | None) -> VisualTokens:
        """One unpadded image: features (N, d) and cues (N, ...), text (M, d), without a batch dimension."""
        return cls(features[None], ((grid,),), **{k: None if v is None else v[None] for k, v in cues.items()})

    @property
    def sizes(self) -> list[int]:
        """Tokens in each pool."""
        return [sum(len(grid) for grid in pool) for pool in self.grids]

    @property
    def valid(self) -> Tensor:
        """(B, N) bool, true on tokens that can be chosen."""
        sizes = torch.tensor(self.sizes, device=self.features.device)
        real = torch.arange(self.features.shape[1], device=self.features.device)[None] < sizes[:, None]
        return real if self.alive is None else real & self.alive

    @property
    def coordinates(self) -> Tensor:
        """(B, N, 3) long: frame, row, column. Frames of different images of a pool never coincide; padding is -1."""
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
        held, changed = vars(self), {}
        for name in _FLOATS:
            value = held[name]
            if value is None or value.dtype == torch.float32:
                continue
            if name in _NUMBERS or value.dtype == torch.float64:
                changed[name] = value.float()
        return replace(self, **changed) if changed else self

    def cue(self, cue: Cue) -> Tensor:
        """The tensor of a cue that the method declared in `needs`."""
        value = getattr(self, cue.name.lower())
        if value is None:
            raise SelectionError(f"the cue {cue.name} ({cue.value}) is missing; declare it in the method's `needs`.")
        return value

    def text(self, row: int) -> Tensor:
        """(m, d): the embeddings of one pool's text, without padding; m is 0 where a prompt holds no text."""
        embeddings = self.cue(Cue.TEXT_EMBEDDINGS)[row]
        return embeddings if self.text_valid is None else embeddings[self.text_valid[row]]


_VECTORS = frozenset({"features", "encoder_features", "text_embeddings", "input_embeddings", "text_states"})
_VECTORS |= {"router_logits", "last_norm"}
_MASKS = frozenset({"alive", "text_valid", "text_follows", "padding"})
_NUMBERS = frozenset(field.name for field in fields(VisualTokens)) - _VECTORS - _MASKS - {"grids"}
_FLOATS = tuple(_VECTORS | _NUMBERS)


@dataclass(frozen=True)
class Selection:
    """What a method decided.

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

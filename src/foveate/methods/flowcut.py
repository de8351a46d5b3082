"""A reading of FlowCut: leave tokens out block by block of the vision encoder, by scores that add up over the blocks.

1. Every second block that attends to whole images is read, and the last one. With a the CLS token's attention to the
   patches that are there, s = softmax(v_cls . v) of the values v, all heads side by side, and |v| their L1 length,
   ``score = (a / sum a + s / sum s) * |v|``.
2. Scores of the blocks read so far count ``S = smoothing * S + (1 - smoothing) * score``; the first is S itself.
3. Behind each block that is read, ``(n - K) / sqrt(r) * (1 - (H / log n)^2)`` of the n tokens there leave, those of the
   lowest S: K is what is asked for, r how many such cuts are left, this one included, and H the entropy of a / sum a.
   So more leave where attention is concentrated.
4. Behind the encoder the K highest S stay.

Budget: `keep` is what enters the LLM. How many tokens leave at each block depends on the image.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from ..budget import Budget, Conversation
from ..devices import from_host
from ..errors import MethodError
from ..selection import topk
from ..tokens import AttentionKind, Cue, EncoderReading, Selection, VisualTokens
from .toolkit.base import Method, ModelFacts, Provenance, Stage
from .toolkit.constraints import AtLeast, Rising, Share
from .toolkit.notes import Note
from .toolkit.registry import register_method

_KINDS: tuple[AttentionKind, ...] = ("cls", "likeness", "lengths")
_EVERY = 2


@register_method("flowcut")
@dataclass(frozen=True)
class FlowCut(Method):
    """Attention, likeness of values and their length, added up over the encoder's blocks; tokens leave on the way.

    Args:
        blocks: zero-based blocks of the encoder that are read, and behind which tokens leave; None: every second of
            those that attend to whole images, all of them where others attend within windows, and the last.
        smoothing: how much what was read before counts.
        inside_encoder: whether tokens leave inside the encoder. Without, all leave behind it, by the same scores.
    """

    provenance = Provenance(
        paper="a reading of FlowCut",
        arxiv="2505.19536",
        venue="NeurIPS 2025",
        repository="PyPI flowcut 1.0.2",
        licence="Apache-2.0",
        read="A short description of the code, with its formulas but without what they leave open.",
        deviations=(
            "How attention and likeness are normalised was not told: here each adds up to 1 over the patches that are "
            "there. Which of every two blocks is read was not, either: the second.",
            "Exactly as many tokens as were asked for enter the LLM; what the blocks leave is rounded.",
            "Where the encoder has no CLS token, the mean over all patches stands in its place, in attention and "
            "likeness; tokens of several patches have means of them.",
            "Where most blocks attend within windows, as in Qwen2.5-VL, those that attend to whole images are read.",
            "In encoders whose blocks foveate cannot run on a part of the patches all leave behind the encoder, which "
            "a log line says.",
        ),
        evidence=(
            "tests/methods/test_flowcut.py::test_lists (loops over blocks, from the formulas)",
            "tests/methods/test_flowcut.py::test_by_hand",
            "tests/models/test_encoder_readings.py::test_values_of_towers (eager attention)",
        ),
        cost="A row of attention and one of likeness for each block that is read; without a CLS token the attention of "
        "all patches.",
    )

    blocks: Annotated[tuple[Annotated[int, AtLeast(0)], ...], Rising()] | None = None
    smoothing: Share = 0.5
    inside_encoder: bool = True

    def load(self, facts: ModelFacts) -> Method:
        attending = facts.attending_blocks
        if not attending:  # an encoder that gives no attention is refused for that
            return self
        wrong = sorted(set(self.blocks or ()) - set(attending))
        if wrong:
            listed = ", ".join(map(str, attending))
            raise MethodError(
                f"flowcut: block {wrong[0]} of the vision encoder of {facts.label} does not attend to whole images or "
                f"comes behind the visual features; choose among {listed}."
            )
        return _OnEncoder(self.blocks, self.smoothing, self.inside_encoder, attending, facts.blocks)

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.ENCODER_READINGS})

    @property
    def encoder_readings(self) -> tuple[EncoderReading, ...]:
        return self._last_cut().encoder_readings

    def _attending(self) -> tuple[int, ...]:
        """The blocks that attend to whole images; of an encoder that is not known yet, as many as it takes to cut."""
        return tuple(range(2 * _EVERY)) if self.blocks is None else self.blocks

    def _cuttable(self) -> int:
        """How many blocks there are before which tokens can leave."""
        return self._attending()[-1] + 2

    def _read(self) -> tuple[int, ...]:
        if self.blocks is not None:
            return self.blocks
        attending = self._attending()
        within_windows = len(attending) <= attending[-1]
        chosen = attending if within_windows else attending[_EVERY - 1 :: _EVERY]
        return (*chosen, *(() if attending[-1] in chosen else attending[-1:]))

    def _last_cut(self) -> _Last:
        return _Last(self._read(), self._attending()[-1], self.smoothing)

    def stages(self, layers: int, budget: Budget) -> list[Stage]:
        read = self._read()
        behind = [block for block in read[:-1] if block + 1 < self._cuttable()] if self.inside_encoder else []
        found = []
        for index, block in enumerate(behind):
            cut = _Cut(read[: index + 1], block, self.smoothing, left=len(behind) + 1 - index, goal=budget)
            found.append(Stage.inside_encoder(cut, block + 1, _ByEntropy(budget.keep, budget.scope)))
        return [*found, Stage.before_llm(replace(self._last_cut(), note=self._told()), budget)]

    def _told(self) -> Note | None:
        return None

    def scores(self, tokens: VisualTokens) -> Tensor:
        return self._last_cut().scores(tokens)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return self._last_cut().select(tokens, count)


@dataclass(frozen=True)
class _OnEncoder(FlowCut):
    """The method on an encoder that is known."""

    attending: tuple[int, ...] = ()
    cuttable: int = 0

    def _attending(self) -> tuple[int, ...]:
        return self.attending

    def _cuttable(self) -> int:
        return self.cuttable

    def _told(self) -> Note | None:
        if self.cuttable or not self.inside_encoder:
            return None
        return Note(
            "flowcut: tokens cannot leave between the blocks of this model's vision encoder; all leave behind it.",
            logging.WARNING,
        )


@dataclass(frozen=True)
class _ByEntropy(Budget):
    """What one of the encoder's blocks leaves on the way to a budget; how much, the image decides."""

    @property
    def by_content(self) -> bool:
        return not isinstance(self.scope, Conversation)

    def __str__(self) -> str:
        return f"by its attention what leads to {super().__str__()}"


@dataclass(frozen=True)
class _Last(Method):
    """Behind the encoder, where exactly what is asked for stays.

    Args:
        read: the blocks that were read so far.
        deepest: the deepest block that could be.
        smoothing: how much what was read before counts.
    """

    name = "flowcut"
    provenance = FlowCut.provenance

    read: tuple[int, ...] = (0,)
    deepest: int = 0
    smoothing: float = 0.5
    note: Note | None = None  # type: ignore[assignment]

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.ENCODER_READINGS})

    @property
    def encoder_readings(self) -> tuple[EncoderReading, ...]:
        depths = [block / self.deepest if self.deepest else 1.0 for block in self.read]
        return tuple(EncoderReading(depth, kind) for depth in depths for kind in _KINDS)

    def scores(self, tokens: VisualTokens) -> Tensor:
        """(B, N) float32: S; 0 on padding and where tokens left before."""
        total = torch.zeros(tokens.valid.shape, dtype=torch.float32, device=tokens.features.device)
        for index in range(len(self.read)):
            attention, likeness, length = self._of_block(tokens, index)
            score = (_shares(attention) + _shares(likeness)) * length
            total = self.smoothing * total + (1 - self.smoothing) * score if index else score
        return total.masked_fill(~tokens.valid, 0)

    def _of_block(self, tokens: VisualTokens, index: int) -> tuple[Tensor, ...]:
        """Attention, likeness and length of values (B, N) in a block; 0 where tokens had left, and on padding."""
        columns = tokens.cue(Cue.ENCODER_READINGS)[..., 3 * index : 3 * index + 3]
        there = torch.arange(columns.shape[1], device=columns.device) < from_host(tokens.sizes, columns.device)[:, None]
        return columns.masked_fill(~there[..., None], 0).unbind(-1)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return Selection(topk(self.scores(tokens), count, valid=tokens.valid))


@dataclass(frozen=True, kw_only=True)
class _Cut(_Last):
    """On the way through the encoder, where the image decides how many leave.

    Args:
        left: how many cuts there are from here on.
        goal: what is asked for in the end.
    """

    left: int
    goal: Budget

    def counts(self, tokens: VisualTokens) -> Tensor:
        """(B,) long: how many go on, by how concentrated the attention of the last block that was read is."""
        valid = tokens.valid
        there = valid.sum(1)
        share = _shares(self._of_block(tokens, len(self.read) - 1)[0].masked_fill(~valid, 0))
        entropy = -torch.special.xlogy(share, share).sum(1) / there.clamp_min(2).float().log()
        goal = from_host([self.goal.count(size) for size in tokens.sizes], valid.device)
        leaving = (there - goal).clamp_min(0).float() / math.sqrt(self.left) * (1 - entropy.square()).clamp_min(0)
        return (there - leaving.round().long()).maximum(torch.minimum(goal, there))


def _shares(values: Tensor) -> Tensor:
    """Values (B, N), at least 0, as shares of their sum in each row."""
    return values / values.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)

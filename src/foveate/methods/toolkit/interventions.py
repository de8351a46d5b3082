"""What a method may ask beside dropping tokens: other attention, fewer experts, a second model that reads first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...budget import round_half_up


@dataclass(frozen=True)
class AttentionEdit:
    """In one layer, tokens of the prompt attend otherwise to the visual tokens of its images.

    It is the weights behind the softmax that change, and nothing is normalised anew. What is generated attends as ever.

    Args:
        layer: zero-based decoder layer.
        rows: whose attention it is, that of the prompt's ``"text"`` or of its ``"visual"`` tokens.
        share: of the visual tokens that are there, the first ``share`` of them (rounded down) lose their weight.
        moved: ``"nowhere"``, or ``"first"`` to the first visual token.
        of: whose visual tokens these are: of each ``"image"``, or those of all images of the ``"prompt"`` together.
    """

    layer: int
    rows: Literal["text", "visual"]
    share: float = 1.0
    moved: Literal["nowhere", "first"] = "nowhere"
    of: Literal["image", "prompt"] = "image"


@dataclass(frozen=True)
class LogitBias:
    """In all layers a key weighs as many tokens as it stands for, and attention of the prompt fades less with distance.

    To each logit the logarithm of the key's size is added: 1 for text, for a visual token how many were merged into it.
    In the first layer each visual token has the same size instead, that of its image over the number kept of it.

    Args:
        ceiling: above 1; ``log(ceiling - decay)`` is added, too, for the queries of a prompt with images, where `decay`
            is the rotary decay between the positions of query and key. None: nothing for distance.
    """

    ceiling: float | None = 2.0


Reading = Literal["number", "width"]


@dataclass(frozen=True)
class ExpertCut:
    """Visual tokens go through less of their experts, from a layer on; the prompt's text is untouched.

    Args:
        layer: zero-based, the first layer with fewer.
        share: in (0, 1], how much is left.
        reading: ``"number"`` leaves the best of the k experts that the router chose for a token, ``share * k`` of them
            rounded, at least 1, with the sum of the k weights where the router normalises them; ``"width"`` leaves the
            k experts, of each the first ``share`` of its intermediate channels.
    """

    layer: int
    share: float
    reading: Reading

    def count_kept(self, number: int) -> int:
        """How many of so many experts, or of so many intermediate channels, are left."""
        return max(1, round_half_up(self.share * number))


SkipRule = Literal["threshold", "ratio"]


@dataclass(frozen=True)
class ExpertSkip:
    """Tokens go past those of their experts that weigh little for them, text and what is generated included.

    With w_i the weight that the router gives to the expert i that it chose for a token, and v that of `weights` for the
    layer, expert i is skipped

    - by ``"threshold"`` where ``v * w_i`` is below the threshold of the token's kind; what is left keeps its weight;
    - by ``"ratio"`` where ``w_i / max w`` is below v; what is left gets the weight of all k, where the router makes
      them add up. The best expert always stays. In a prefill the `protected` share of a prompt's tokens skips none:
      those of the highest ``|t|_1 * a``, with t what enters the experts and a the mean attention that the token
      receives from itself and the tokens behind it.

    Args:
        rule: one of these.
        weights: v of each decoder layer, 0 or above; those of dense layers are not read.
        text: threshold of text, 0 or above.
        visual: threshold of visual tokens, 0 or above, which may be infinite.
        protected: share in [0, 1] of a prompt's tokens, rounded up.
    """

    rule: SkipRule
    weights: tuple[float, ...]
    text: float = 0.0
    visual: float = 0.0
    protected: float = 0.0

    def acts_in(self, layer: int) -> bool:
        """Whether it can skip anything in this layer."""
        weight = self.weights[layer]
        return weight > 0 if self.rule == "ratio" else max(self.text, self.visual) > 0


Queries = Literal["last", "text"]


@dataclass(frozen=True)
class Guide:
    """A smaller model reads each prompt first; the cue GUIDE_ATTENTION is what it attends to.

    Args:
        small: the model.
        layers: zero-based, whose attention is averaged; None: all that attend.
        queries: whose attention it is, that of the ``"last"`` token of the prompt, or the mean over its ``"text"``.
    """

    small: Any = field(repr=False)
    layers: tuple[int, ...] | None = None
    queries: Queries = "last"

"""Guided: what a smaller model attends to, which reads the prompt first, chooses the tokens of the large one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from torch import Tensor

from ...errors import MethodError
from ...selection import mmr, topk
from ...tokens import Cue, Selection, VisualTokens
from .base import Method, Provenance
from .constraints import AtLeast, Rising, Share
from .interventions import Guide, Queries


@dataclass(frozen=True)
class Guided(Method):
    """Keep the tokens that a smaller model of the same family attends to; made by `guided`, which says more."""

    name = "guided"
    provenance = Provenance(
        paper="a reading of SGL",
        arxiv="2412.03324",
        venue="CVPR 2025",
        repository="NUS-HPC-AI-Lab/SGL",
        licence="code not read",
        read="The abstract and third parties' summaries.",
        deviations=(
            "Attention is that of the prompt; SGL adds that of the tokens that the small model generates.",
            "The tokens are left out before the large model's first layer, or by AtLayer at one that is named.",
            "SGL's early exit, which takes the small model's answer where it is sure, is not there.",
        ),
        evidence=("tests/runtime/test_guide.py (the large model as its own guide, against its attention by hand)",),
        cost="A pass of the small model up to the last layer that is read; then O(N log N).",
    )

    small: Any = field(repr=False)
    layers: Annotated[tuple[Annotated[int, AtLeast(0)], ...], Rising()] | None = None
    queries: Queries = "last"
    balance: Share = 1.0

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.GUIDE_ATTENTION})

    @property
    def guide(self) -> Guide:
        return Guide(self.small, self.layers, self.queries)

    def scores(self, tokens: VisualTokens) -> Tensor:
        return tokens.cue(Cue.GUIDE_ATTENTION)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        attention = tokens.cue(Cue.GUIDE_ATTENTION)
        if self.balance == 1:
            return Selection(topk(attention, count, valid=tokens.valid))
        return Selection(mmr(tokens.features, attention, count, self.balance, tokens.valid))


def guided(
    small: Any,
    *,
    layers: int | tuple[int, ...] | list[int] | None = None,
    queries: Queries = "last",
    balance: float = 1.0,
) -> Guided:
    """A method by which a smaller model chooses the visual tokens that a large one of the same family sees.

    The small model reads each prompt first, once a prefill, up to the last of `layers`; the tokens of an image that it
    attends to most stay. Its pass is counted in the report: in `flops`, in `seconds`, and in `average_visual_tokens`,
    where it counts as many tokens of the large model as it costs. So does `foveate.compose`, whose budget it shares:
    ``compose(guided(small))`` with ``keep=0.25`` costs as much as a quarter of the tokens, the small model included.

    Examples:
        >>> small = model  # any smaller one of its family; here itself
        >>> with foveate.prune(model, foveate.guided(small, layers=1), keep=0.25) as pruning:
        ...     output = model.generate(**inputs, max_new_tokens=4)
        >>> report = pruning.report()
        >>> report.tokens, report.guide_flops > 0
        (49, True)

    Args:
        small: a loaded model of the same family, with the same tokenizer and processing of images.
        layers: zero-based layers of the small model whose attention is averaged, one or several; None: all that attend.
        queries: the ``"last"`` token of the prompt, or the mean over all of its ``"text"``.
        balance: below 1, tokens are picked by maximal marginal relevance of the attention and the large model's
            features, with this weight of the attention.

    Raises:
        MethodError: for what is not a model, and for values out of range.
    """
    if not callable(getattr(small, "forward", None)):
        raise MethodError(f"guided: small={small!r} is not a model; give a loaded one of the same family.")
    some: Any = (layers,) if isinstance(layers, int) else layers
    return Guided(small, None if some is None else tuple(some), queries, balance)

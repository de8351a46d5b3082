"""The frozen model as an evidence scorer's training sees it: the tokens of its pictures, and its answers by some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...api import prune
from ...budget import AUTO
from ...data.prompts import collate, move_to_model
from ...methods import Method
from ...methods.toolkit.base import NO_PROVENANCE
from ...models import adapter_of
from ...runtime.encoder_cache import EncoderCache
from ...tokens import Cue, Selection, VisualTokens
from ..checkpoint import TrainingError
from ..scorer.data import Example, batch_of, judge_answers


@dataclass(frozen=True)
class Shown:
    """What a method sees of the pictures of some prompts.

    Attributes:
        tokens: G images or clips, with the embeddings of their prompts' text; answers are not among it.
        prompts: (G,) long, the prompt of each, rising.
    """

    tokens: VisualTokens
    prompts: Tensor

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Features, valid, coordinates, text and valid text, as `EvidenceScorer` takes them."""
        tokens = self.tokens
        text = tokens.cue(Cue.TEXT_EMBEDDINGS)
        return tokens.features, tokens.valid, tokens.coordinates, text, tokens.text_valid


@dataclass(frozen=True)
class _Given(Method):
    """Keeps the tokens that it is given; as long as there are none it keeps one of each image, and remembers all."""

    given: list[Tensor] = field(default_factory=list)
    seen: list[VisualTokens] = field(default_factory=list)

    name = "given"
    provenance = NO_PROVENANCE

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.TEXT_EMBEDDINGS})

    def counts(self, tokens: VisualTokens) -> Tensor:
        return self._keep(tokens).sum(1)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        if not self.given:
            self.seen.append(tokens)
        return Selection(self._keep(tokens))

    def _keep(self, tokens: VisualTokens) -> Tensor:
        return self.given[-1] if self.given else tokens.valid & (tokens.valid.long().cumsum(1) == 1)


class Frozen:
    """A few questions in front of the frozen model; made by `ask`.

    Attributes:
        shown: what a method sees of their pictures.
    """

    def __init__(self, model: nn.Module, method: _Given, examples: Sequence[Example], padding: int, pruning: Any):
        self._model, self._method = model, method
        prompts = move_to_model(collate([example.inputs for example in examples], padding), model)
        model(**prompts, use_cache=False, logits_to_keep=1)
        if len(method.seen) != 1:
            raise TrainingError("no visual token went through the language model; every question needs a picture.")
        tokens = method.seen.pop()
        rows = torch.tensor([image.prompt for image in pruning.report().images], device=tokens.features.device)
        if rows.unique().numel() != len(examples):
            raise TrainingError("every question needs a picture; leave out those without one.")
        self.shown = Shown(tokens, rows)
        inputs, self._labels = batch_of(examples, padding)
        self._inputs = move_to_model(inputs, model)
        lengths = torch.tensor([len(example.answer) for example in examples], device=rows.device)
        behind = tokens.text_follows.sum(1) + lengths[rows]
        self._all_logits = bool((behind <= self._labels.shape[1]).any())

    def judge(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        """What the model makes of the answers when it sees the tokens `keep` (G, N): see `judge_answers`."""
        self._method.given[:] = [keep]
        try:
            return judge_answers(self._model, self._inputs, self._labels, self._all_logits)
        finally:
            self._method.given.clear()


@contextmanager
def ask(model: nn.Module, examples: Sequence[Example], padding: int) -> Iterator[Frozen]:
    """A few questions; within it the vision encoder runs once, however many sets of tokens are judged.

    Args:
        model: a supported model that does not learn.
        examples: at least one, each with a picture.
        padding: a token id to pad with.
    """
    method = _Given()
    with torch.no_grad(), EncoderCache(adapter_of(model)).attach(), prune(model, method, keep=AUTO) as pruning:
        yield Frozen(model, method, examples, padding, pruning)

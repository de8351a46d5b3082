"""Train an evidence scorer for a frozen model: first from labels of tokens, then from answers.

A soft mask, as `train_scorer` uses it, hides what pruning loses: answers under soft tokens cost next to nothing where
those under the same scores' hard choice fail. So the second stage learns from the answers that the model gives when it
sees nothing but a few tokens, drawn as `evidence` picks them. No gradient passes the language model, whose forwards are
of short prompts; the vision encoder sees a picture once for all draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from ...importance import find_scorer
from ...importance.evidence_scorer import EvidenceScorer, EvidenceShape
from ...models import adapter_of
from ...runtime.planner import facts_of
from ..checkpoint import TrainingError
from ..scorer.folder import ScorerFolder
from ..scorer.trainer import freeze, make_accelerator, write_steps
from .learner import AnswerLearner, EvidenceExample, EvidenceLearner, EvidenceLog, LabelLearner
from .recipe import Draw, EvidenceRecipe

S = TypeVar("S")

NAME = "evidence.safetensors"


@dataclass(frozen=True)
class _Task(Generic[S]):
    """A sample with what is drawn for it in a step."""

    sample: S
    drawn: Draw


def train_evidence(
    model: nn.Module,
    encode: Callable[[S], EvidenceExample],
    samples: Sequence[S],
    recipe: EvidenceRecipe,
    out: Path,
    *,
    facts: dict[str, Any] | None = None,
    padding: int = 0,
    micro_batch: int = 1,
    save_every: int = 50,
    on_step: Callable[[EvidenceLog], None] | None = None,
    accelerator: Any = None,
) -> EvidenceScorer:
    """Train an evidence scorer in a folder, or resume the training whose checkpoint lies there.

    It begins as the importance of the learned scorer in the model's own folder, which stays as it is; without one it
    begins with no importance. A training that was killed resumes from its latest checkpoint and, on the same machine,
    ends in the same scorer, bit for bit. Started by ``accelerate launch``, each process learns from its share of every
    step's questions with a copy of the model.

    Args:
        model: a supported model on the device of this process; frozen meanwhile, unchanged afterwards.
        encode: turns a sample into an example, such as `evidence_example_of` with a processor.
        samples: what to learn from, at least one.
        recipe: the hyperparameters.
        out: the folder, for ``evidence.safetensors`` and the files of `ScorerFolder`; made if need be.
        facts: more that decides the result (which model, which data): stored, and compared when a training resumes.
        padding: a token id to pad prompts with.
        micro_batch: questions in one forward; more are faster and take more memory.
        save_every: steps between checkpoints.
        on_step: called after every step, in the main process.
        accelerator: an ``accelerate.Accelerator``, or None for a new one.

    Raises:
        TrainingError: without samples or ``accelerate``, for questions without pictures or, where they are needed,
            boxes, when the folder holds a training with other settings, or when the loss is no longer finite.
    """
    if not samples:
        raise TrainingError("there is nothing to learn from; give data with at least one question.")
    accelerator = accelerator or make_accelerator()
    about = facts_of(adapter_of(model))
    base = find_scorer(about.name_or_path)
    folder = ScorerFolder(out, {**asdict(recipe), "samples": len(samples), **(facts or {})}, NAME)
    width = 0 if base is None else len(base.q_weight)
    shape = EvidenceShape(about.hidden_size, recipe.width, recipe.layers, recipe.heads, width)
    scorer = EvidenceScorer(shape, base, recipe.seed).to(accelerator.device)
    scorer.base.requires_grad_(False)
    learned = [parameter for parameter in scorer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, betas=(0.9, 0.99), weight_decay=0.0)
    done = folder.resume(scorer, optimizer)

    def encode_task(task: _Task[S]) -> EvidenceExample:
        return replace(encode(task.sample), drawn=task.drawn)

    given = model, scorer, encode_task, padding, micro_batch, accelerator
    by_labels, by_answers = LabelLearner(*given, recipe=recipe), AnswerLearner(*given, recipe=recipe)

    def train_steps() -> Iterator[EvidenceLog]:
        for step in range(done, recipe.steps):
            if step == recipe.label_steps > 0:
                _begin_answers(scorer, optimizer)
            picks = [samples[pick] for pick in recipe.picks(step, len(samples))]
            tasks = [_Task(sample, drawn) for sample, drawn in zip(picks, recipe.draw(step), strict=True)]
            learner: EvidenceLearner[_Task[S]] = by_labels if recipe.by_labels(step) else by_answers
            yield learner.step(optimizer, tasks, step, recipe.steps, 0.0, recipe.rate(step), recipe.max_norm)

    with freeze(model):
        write_steps(train_steps(), done, folder, scorer, optimizer, save_every, on_step, accelerator)
    return EvidenceScorer.load(folder.scorer)


@torch.no_grad()
def _begin_answers(scorer: EvidenceScorer, optimizer: torch.optim.Optimizer) -> None:
    """Labels leave scores so far apart that draws hardly differ: halve them, and forget what the optimiser knows."""
    scorer.out.weight *= 0.5
    scorer.out.bias.zero_()
    optimizer.state.clear()

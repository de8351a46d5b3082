"""Train an importance scorer for a frozen model, after VisionSelector (arXiv 2510.16598).

A scorer for a block of the vision encoder learns otherwise, see `imitation`; what follows is about the others.

Loss of a step, mean over its questions: the cross-entropy of the answer under the soft mask, plus the binary
cross-entropy that pulls the soft mask towards the hard top-k, whose weight rises linearly over the training.

Deviations from the released recipe: each question weighs the same, however long its answer; each image or clip is a
pool of its own (see `Budget`), where the reference takes all images of a batch together; the scorer learns in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...data.prompts import move_to_model
from ...importance import LearnedScorer
from ...models import ModelAdapter, adapter_of
from ...runtime.planner import facts_of
from ..checkpoint import TrainingError
from .data import Example, answer_losses, batch_of
from .folder import Log, Scorer, ScorerFolder, StepLog
from .imitation import Imitation, ImitationLog, Imitator
from .learner import Learner
from .model import TrainableScorer
from .recipe import ScorerRecipe
from .soft_mask import SoftMask, soft_mask

S = TypeVar("S")


def train_scorer(
    model: nn.Module,
    encode: Callable[[S], Example],
    samples: Sequence[S],
    recipe: ScorerRecipe,
    out: Path,
    *,
    facts: dict[str, Any] | None = None,
    padding: int = 0,
    micro_batch: int = 1,
    save_every: int = 50,
    on_step: Callable[[Any], None] | None = None,
    accelerator: Any = None,
) -> LearnedScorer:
    """Train a scorer in a folder, or resume the training whose checkpoint lies there.

    A training that was killed resumes from its latest checkpoint and, on the same machine, ends in the same scorer, bit
    for bit. Started by ``accelerate launch``, each process learns from its share of every step's questions with a copy
    of the model; their gradients are summed. `ScorerFolder` lists the files of `out`.

    Args:
        model: a supported model on the device of this process; frozen meanwhile, unchanged afterwards.
        encode: turns a sample into an example, such as `example_of` with a processor.
        samples: what to learn from, at least one.
        recipe: the hyperparameters.
        out: the folder; made if need be.
        facts: more that decides the result (which model, which data): stored, and compared when a training resumes.
        padding: a token id to pad prompts with.
        micro_batch: questions in one forward; more are faster and take more memory.
        save_every: steps between checkpoints.
        on_step: called after every step, in the main process, with a `StepLog`, or an `ImitationLog` for a scorer
            inside the vision encoder.
        accelerator: an ``accelerate.Accelerator``, or None for a new one.

    Raises:
        TrainingError: without samples or ``accelerate``, for an attention that takes no soft mask, when the folder
            holds a training with other settings, or when the loss is no longer finite.
    """
    if not samples:
        raise TrainingError("there is nothing to learn from; give data with at least one question.")
    accelerator = accelerator or make_accelerator()
    folder = ScorerFolder(out, {**asdict(recipe), "samples": len(samples), **(facts or {})})
    adapter = adapter_of(model)
    _check_attention(recipe, adapter)
    facts_there = facts_of(adapter) if recipe.block is None else facts_of(adapter).inside_encoder(recipe.block)
    scorer = TrainableScorer(facts_there.hidden_size, recipe.width, seed=recipe.seed).to(accelerator.device)
    optimizer = torch.optim.AdamW(scorer.parameters(), weight_decay=0.0)
    done = folder.resume(scorer, optimizer)
    given = scorer, encode, padding, micro_batch, accelerator
    with freeze(model), _learn(model, recipe, *given) as learner:
        logs = _train_steps(learner, optimizer, recipe, samples, done)
        write_steps(logs, done, folder, scorer, optimizer, save_every, on_step, accelerator)
    return LearnedScorer.load(folder.scorer)


@contextmanager
def _learn(
    model: nn.Module,
    recipe: ScorerRecipe,
    scorer: TrainableScorer,
    encode: Callable[[S], Example],
    padding: int,
    micro_batch: int,
    accelerator: Any,
) -> Iterator[Learner[S]]:
    """What computes the gradients of a step, with its hooks on the model."""
    given = model, scorer, encode, padding, micro_batch, accelerator
    if recipe.block is None:
        with soft_mask(model, scorer, recipe.budget, recipe.gate) as mask:
            yield AnswerLearner(*given, mask)
    else:
        imitation = Imitation(model, recipe.teacher, recipe.block, float(recipe.keep))
        with imitation.attach():
            yield Imitator(*given, imitation)


def _train_steps(
    learner: Learner[S],
    optimizer: torch.optim.Optimizer,
    recipe: ScorerRecipe,
    samples: Sequence[S],
    first: int,
) -> Iterator[StepLog | ImitationLog]:
    """Do all steps from `first` on; the log of each comes when it is done."""
    steps = recipe.steps(len(samples))
    for step in range(first, steps):
        picked = [samples[pick] for pick in recipe.picks(step, len(samples))]
        weight, rate = recipe.weight(step, steps), recipe.rate(step, steps)
        yield learner.step(optimizer, picked, step, steps, weight, rate, recipe.max_norm)


@dataclass(frozen=True)
class AnswerLearner(Learner[S]):
    """Learns from the answers under a soft mask; the figures are those of `StepLog`.

    Args:
        mask: on the model.
    """

    figures = 3

    mask: SoftMask

    def compare(self, examples: Sequence[Example], weight: float) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, labels = batch_of(examples, self.padding)
        answers = answer_losses(self.model, move_to_model(inputs, self.model), labels)
        statistics = self.mask.take()
        loss = (answers + weight * statistics.constraint).sum()
        parts = (answers, statistics.constraint, statistics.agreement)
        yield loss, torch.stack([part.detach().sum() for part in parts])

    def log(self, step: int, steps: int, means: Sequence[float], weight: float, rate: float) -> StepLog:
        answer, constraint, agreement = means
        return StepLog(step, steps, answer, constraint, agreement, weight, rate)


def make_accelerator() -> Any:
    """This process's place among those that ``accelerate launch`` started; alone, it has the GPU, or else the CPU.

    Raises:
        TrainingError: when ``accelerate`` is not installed.
    """
    try:
        from accelerate import Accelerator
    except ImportError:
        raise TrainingError("training needs accelerate (foveate[train]); run: pip install accelerate.") from None
    return Accelerator()


def write_steps(
    logs: Iterable[Log],
    done: int,
    folder: ScorerFolder,
    scorer: Scorer,
    optimizer: torch.optim.Optimizer,
    save_every: int,
    on_step: Callable[[Any], None] | None,
    accelerator: Any,
) -> None:
    """Do the steps of a training behind the first `done` ones, and keep its folder: what is told of each, the result.

    Args:
        logs: does a step each time it is asked for the next.
        done: how many steps were done before.
        folder: which only the main process writes to.
        scorer: what learns.
        optimizer: its.
        save_every: as `train_scorer`.
        on_step: likewise.
        accelerator: of this process.
    """
    if accelerator.is_main_process:
        folder.begin(done)
    for entry in logs:
        if accelerator.is_main_process:
            folder.record(entry, scorer, optimizer, save_every)
            if on_step is not None:
                on_step(entry)
    if accelerator.is_main_process:
        folder.finish(scorer)
    accelerator.wait_for_everyone()


def _check_attention(recipe: ScorerRecipe, adapter: ModelAdapter) -> None:
    kind = str(adapter.text.config._attn_implementation)
    if recipe.block is None and recipe.gate == "attention" and kind not in ("sdpa", "eager"):
        raise TrainingError(
            f"gate='attention' needs attention that takes a mask of any values, which {kind!r} does not; load the "
            "model with attn_implementation='sdpa', or use gate='embeddings'."
        )


@contextmanager
def freeze(model: nn.Module) -> Iterator[None]:
    """No gradients for any weight of the model, and no dropout; both as before on exit."""
    wanted, training = {p: p.requires_grad for p in model.parameters()}, model.training
    model.requires_grad_(False).eval()
    try:
        yield
    finally:
        model.train(training)
        for parameter, needs in wanted.items():
            parameter.requires_grad_(needs)

"""Choose a method and a budget for a model and questions: the smallest budget that keeps a share of the accuracy.

`foveate.evaluation.elimination` decides whom to ask what, and says what is guaranteed; here models are asked, and
answers are kept in a folder as `foveate.evaluation.evaluate` keeps them. So an interrupted search goes on, and each
serves the other in the same folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ..config import FILE_NAME, PruningConfig
from ..data.metrics import is_right
from ..data.samples import Sample
from ..files import write_text
from ..methods import Method
from .batches import batches
from .elimination import Elimination, State
from .fingerprints import question_keys
from .results import find_obstacle, mean_costs
from .runner import Advance, Answer, Evaluation, Loader, ask, configuration, require_clips_seen
from .runs import UNPRUNED, Run
from .statistics import Array
from .storage import Journal, Outcome, lock_folder
from .suites import EvaluationError

TUNED = "tune.json"
OnRound = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Candidate:
    """A method at a budget, and what became of it.

    Attributes:
        method: its name.
        keep: the budget.
        state: see `foveate.evaluation.elimination.Elimination`.
        questions: how many it was asked.
        share: what it kept of the unpruned accuracy on these; None where that is not known.
        tokens: visual tokens that it kept, as a share of the unpruned ones, mean over the language model's layers.
        why: it was refused; else empty.
    """

    method: str
    keep: str
    state: State
    questions: int = 0
    share: float | None = None
    tokens: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Tuning:
    """The outcome of a search.

    Attributes:
        floor: the share of the unpruned accuracy that was to be kept.
        confidence: with which what was chosen keeps it.
        questions: how many there were.
        asked: how many of them the unpruned model was asked.
        answers: that were needed, those of the unpruned model among them.
        grid: answers of every configuration to every question, those of the unpruned model among them.
        candidates: all methods and budgets.
        chosen: the cheapest that was shown to keep the floor; None: none was, so keep all tokens.
        config: the same, for `foveate.prune`.
        accuracy: of the unpruned model, on what it was asked.
    """

    floor: float
    confidence: float
    questions: int
    asked: int
    answers: int
    grid: int
    accuracy: float
    candidates: tuple[Candidate, ...]
    chosen: Candidate | None = None
    config: PruningConfig | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON data; ``config`` as `PruningConfig.to_dict` has it."""
        told = asdict(replace(self, config=None))
        return told | {"config": None if self.config is None else self.config.to_dict()}

    def save(self, folder: Path) -> None:
        """Write ``tune.json`` and, where there is a choice, ``foveate_config.json``; an earlier choice is removed."""
        write_text(folder / TUNED, json.dumps(self.to_dict(), indent=1) + "\n")
        if self.config is not None:
            self.config.save_pretrained(folder)
        else:
            (folder / FILE_NAME).unlink(missing_ok=True)


def tune(
    evaluation: Evaluation,
    load: Loader,
    folder: Path,
    floor: float = 0.99,
    confidence: float = 0.95,
    per_image: int | None = None,
    advance: Advance | None = None,
    loaded: tuple[Any, Any] | None = None,
    answer: Answer | None = None,
    on_round: OnRound | None = None,
) -> Tuning:
    """Find the smallest budget, and the method, that keep a share of the unpruned accuracy.

    Images are drawn in an order that the evaluation's seed decides, each with its questions, as these are not
    independent of each other (what belongs together is a sample's group). Accuracy is the mean over images of the share
    of right answers about each. Budgets are compared by the visual tokens that the language model has, as the mean over
    its layers, in whole percent of the unpruned ones, so that a method inside it does not look cheaper than it is.

    The guarantee, for images and questions like these: what is chosen keeps less than `floor` with a probability of at
    most ``1 - confidence`` (see `foveate.evaluation.elimination`).

    Examples:
        >>> from foveate.evaluation import Evaluation, suite, tune
        >>> methods = (foveate.get_method("divprune"), foveate.get_method("idpruner"))
        >>> asked = Evaluation(suite("scenes"), "testbed-llava", methods, ("50%", "25%"))
        >>> found = tune(asked, foveate.testbed.load_shipped, Path("tuned"), floor=0.9)
        >>> foveate.prune(model, found.config)

    Args:
        evaluation: what to ask, with which methods and budgets, and how; its random seeds do not matter.
        load: makes the model and its processor; pickled where there are several workers.
        folder: new, empty, or of an evaluation of the same model, whose answers are used.
        floor: in (0, 1].
        confidence: in (0, 1).
        per_image: at most so many questions about each image, by chance: sooner decided than with all where there are
            many images; None: all.
        advance: called in each round with the number of answers so far, and of all in that round.
        loaded: the model and processor, where they are loaded already.
        answer: answers work; None: processes of this machine do.
        on_round: called before each round: how many questions were asked before, how many are, and of how many
            candidates.

    Raises:
        ModelError: when the model has no adapter, or is asked about clips but sees images only.
        MethodError: for a method that cannot be written into a configuration.
        EvaluationError: for a floor or confidence out of range, when the folder holds answers of another model or of
            other settings, when another process is at work in it, and when no question can be asked.
    """
    runs = [Run(method.name, keep, method) for keep, method in product(evaluation.keeps, evaluation.methods)]
    for run in runs:
        _config_of(run).to_dict()  # what could not be written is refused before anything is asked
    Elimination([0.0] * len(runs), floor, 0, confidence)  # likewise
    pair = loaded or load()
    require_clips_seen(evaluation, pair[0])
    evaluation = replace(evaluation, workers=evaluation.workers or 1)  # which would start anew in each round
    samples = evaluation.suite.samples
    keys = question_keys(samples)
    whole = [[keys[place] for place in batch] for batch in batches(samples, evaluation.batch)]
    with lock_folder(folder):
        journal = Journal(folder, configuration(evaluation, *pair), whole)
        table = _Table(samples, keys, journal, evaluation.seed, per_image)

        def answer_all(units: range, asked: Sequence[Run]) -> None:
            places = table.places(units)
            if on_round is not None:
                on_round(len(table.places(range(units.start))), len(places), len(asked))
            own = [samples[place] for place in places]
            split = [[places[one] for one in batch] for batch in batches(own, evaluation.batch)]
            ask(evaluation, [Run(UNPRUNED), *asked], journal, split, keys, pair, load, advance, answer)
            table.read()

        found = _search(runs, table, answer_all, floor, confidence)
        journal.finish([Run(UNPRUNED), *runs])
        tuning = replace(found, candidates=(*found.candidates, *_unable(evaluation)))
        tuning.save(folder)
    return tuning


class _Table:
    """The answers so far, by unit: an image with its questions, in the order in which images are drawn."""

    def __init__(
        self, samples: Sequence[Sample], keys: Sequence[str], journal: Journal, seed: int, per_image: int | None
    ) -> None:
        self.samples, self.keys, self.journal = samples, keys, journal
        self.units = draw_units([sample.group or sample.id for sample in samples], seed, per_image)
        self.outcomes: dict[tuple[str, str], Outcome] = {}

    def read(self) -> None:
        """Look at the journal again."""
        self.outcomes = self.journal.outcomes()

    def places(self, units: range) -> list[int]:
        """The questions of some units."""
        return [place for unit in units for place in self.units[unit]]

    def askable(self, places: Sequence[int]) -> list[int]:
        """Those of the questions that the unpruned model could be asked."""
        return [place for place in places if self.outcomes[UNPRUNED, self.keys[place]].text is not None]

    def of(self, run: Run, places: Sequence[int]) -> list[Outcome]:
        """What became of some questions in a run."""
        return [self.outcomes[run.key, self.keys[place]] for place in places]

    def obstacle(self, run: Run, units: range) -> str | None:
        """Why a run cannot be judged by some units, or None."""
        places = self.askable(self.places(units))
        return find_obstacle([self.samples[place] for place in places], self.of(run, places))

    def rights(self, run: Run, units: range) -> Array:
        """(units,) the share of right answers about each; 0 where none of its questions could be asked at all."""
        found = []
        for unit in units:
            places = self.askable(self.units[unit])
            own = zip(places, self.of(run, places), strict=True)
            right = sum(is_right(self.samples[place], str(one.text)) for place, one in own)
            found.append(right / max(1, len(places)))
        return np.array(found)


def draw_units(groups: Sequence[str], seed: int, per_group: int | None = None) -> list[list[int]]:
    """Groups in a random order, each as the places of its questions.

    Args:
        groups: of each question, such as the image that it is about.
        seed: of the order, and of the choice among the questions of a group.
        per_group: at most so many questions of each; None: all.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[int]] = {}
    for place in rng.permutation(len(groups)).tolist():
        found.setdefault(groups[place], []).append(place)
    drawn = [sorted(found[group][:per_group]) for group in dict.fromkeys(groups)]
    return [drawn[one] for one in rng.permutation(len(drawn))]


def _search(
    runs: Sequence[Run],
    table: _Table,
    answer: Callable[[range, Sequence[Run]], None],
    floor: float,
    confidence: float,
) -> Tuning:
    """All but what could not even be made."""
    full, total = Run(UNPRUNED), len(table.units)
    first = Elimination([0.0] * len(runs), floor, total, confidence).next_questions()
    answer(first, runs)
    asked = table.askable(table.places(first))
    if not asked:
        places = table.places(first)
        why = table.of(full, places)[0].failed
        raise EvaluationError(f"none of the first {len(places)} questions could be asked. {why}")
    reasons = {run.key: table.obstacle(run, first) for run in runs}
    able = [run for run in runs if reasons[run.key] is None]
    most = mean_costs(table.of(full, asked))["visual_tokens"]
    tokens = {run.key: mean_costs(table.of(run, asked))["visual_tokens"] / most if most else 1.0 for run in able}
    search = Elimination([round(tokens[run.key], 2) for run in able], floor, total, confidence) if able else None
    while search is not None and (units := search.next_questions()):
        if units != first:
            answer(units, [able[place] for place in search.asked])
        for place in search.asked:
            if (why := table.obstacle(able[place], units)) is not None:
                reasons[able[place].key] = why
                search.refuse(place)
        if search.asked:
            search.tell(table.rights(full, units), np.stack([table.rights(able[one], units) for one in search.asked]))

    candidates, answers = {}, 0
    for run in runs:
        if search is None or run not in able:
            candidates[run.key] = Candidate(run.label, run.keep, "refused", why=str(reasons[run.key]))
            continue
        place = able.index(run)
        own = len(table.askable(table.places(range(search.counts[place]))))
        answers += own
        share = search.share(place)
        candidates[run.key] = Candidate(
            run.label,
            run.keep,
            search.states[place],
            own,
            None if np.isnan(share) else share,
            tokens[run.key],
            reasons[run.key] or "",
        )
    seen = range(len(first) if search is None else search.seen)
    every = table.askable(table.places(seen))
    whole = len(table.places(range(total)))
    chosen = None if search is None or search.found is None else able[search.found]
    return Tuning(
        floor,
        confidence,
        whole,
        len(every),
        answers + len(every),
        whole * (len(able) + 1),
        float(table.rights(full, seen).mean()),
        tuple(candidates.values()),
        None if chosen is None else candidates[chosen.key],
        None if chosen is None else _config_of(chosen),
    )


def _config_of(run: Run) -> PruningConfig:
    method = run.method
    assert isinstance(method, Method)
    return PruningConfig(method, run.budget.keep)


def _unable(evaluation: Evaluation) -> list[Candidate]:
    return [Candidate(name, "", "refused", why=why) for name, why in evaluation.unable]

"""What whoever ran an evaluation should know of its results, a sentence each."""

from __future__ import annotations

import statistics

from ..data.metrics import agrees
from .results import Results
from .runs import UNPRUNED

_FEW = 0.1  # share of right answers that is next to none
_LONGER = 2  # times as many words as are accepted


def advice(results: Results) -> list[str]:
    """Sentences about results that hardly mean what they seem to; empty where there is nothing to say.

    A model that answers in sentences is never right by the metric "exact", whatever it sees.
    """
    run = next((run for run in results.runs if run["label"] == UNPRUNED), None)
    if run is None:
        return []
    exact = [
        (sample["answers"], answer, right)
        for sample, answer, right in zip(results.samples, run["answers"], run["right"], strict=True)
        if sample["metric"] == "exact"
    ]
    if not exact or sum(right for *_, right in exact) > _FEW * len(exact):
        return []
    given = statistics.median(len(answer.split()) for _, answer, _ in exact)
    wanted = statistics.median(max(len(one.split()) for one in answers) for answers, *_ in exact)
    holding = sum(any(agrees("contains", answer, one) for one in answers) for answers, answer, _ in exact)
    if given <= _LONGER * wanted and holding <= _FEW * len(exact):
        return []
    right = sum(right for *_, right in exact)
    return [
        f"Only {right} of {len(exact)} answers of the unpruned model are an accepted one and nothing else, {holding} "
        f"hold one; half of them have {given:g} words or more. --metric contains judges the same answers anew, without "
        'asking again; --suffix "Answer in one word." asks for short ones.'
    ]

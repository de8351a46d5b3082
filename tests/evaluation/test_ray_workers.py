"""Evaluations on a cluster of two machines: the same files as on one, also when workers die."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from foveate.cluster import connect
from foveate.evaluation.ray_workers import RayWorkers
from foveate.evaluation.report import Report
from foveate.evaluation.results import RESULTS
from foveate.evaluation.runner import Evaluation, evaluate
from foveate.evaluation.storage import ANSWERS, CONFIGURATION, QUESTIONS
from foveate.evaluation.suites import EvaluationError, suite
from foveate.methods import get_method
from foveate.testbed import load_shipped
from ray_machines import kill_a_worker

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def evaluation(questions: int, *methods: str) -> Evaluation:
    asked = suite("scenes", questions)
    bad = dataclasses.replace(asked.samples[1], question="what is <image>?", id="bad", where="line 2")
    asked = dataclasses.replace(asked, samples=(asked.samples[0], bad, *asked.samples[2:]))
    return Evaluation(asked, "testbed-llava", tuple(map(get_method, methods)), ("25%",), 0, 1, 3, 4, 1)


def test_the_files_are_those_of_one_machine(tmp_path: Path) -> None:
    """Byte for byte, though a worker is killed; measured times are in files of their own."""
    asked, killed = evaluation(18, "divprune", "evs"), list[int]()

    def kill_one(done: int, whole: int) -> None:
        if not killed and done > whole / 3:
            killed.append(kill_a_worker("_Worker"))

    one = evaluate(asked, load_shipped, tmp_path / "one")
    with connect() as cluster:
        other = evaluate(asked, load_shipped, tmp_path / "ray", kill_one, answer=RayWorkers(cluster))
    assert killed
    for name in (CONFIGURATION, QUESTIONS, ANSWERS, RESULTS):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes()
    texts = [Report(dataclasses.replace(results, times={}, machine={})).text() for results in (one, other)]
    assert texts[0] == texts[1] and "1 more failed" in texts[0]


@pytest.mark.slow
def test_questions_that_kill_are_named(tmp_path: Path) -> None:
    """Instead of worker after worker."""

    def load() -> Any:  # local, so that it travels as it is
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)

    named = r"3 workers in a row died at the questions from .+ to .+; the same command goes on"
    with connect() as cluster, pytest.raises(EvaluationError, match=named):
        evaluate(evaluation(4), load, tmp_path, loaded=load_shipped(), answer=RayWorkers(cluster, 1))

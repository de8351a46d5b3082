"""What keep="auto" keeps of pages, charts and photos of the testbed, and what it costs in right answers.

Each model answers the same questions about scenes of the test split with all tokens, by the rule for methods without
one of their own (idpruner, divprune), by the rules of sms and pixelprune, and at fixed budgets. What is kept is what
reaches the last layer; the last column is the mean over the kinds of scenes.

Usage: PYTHONPATH=src python benchmarks/auto_keep.py --scenes 60 --models testbed-llava testbed-qwen2.5-vl
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import foveate
from foveate.data import Prompt, encode
from foveate.data.loading import LoadedModel, load
from foveate.data.metrics import is_right
from foveate.data.prompts import decode
from foveate.data.samples import Sample
from foveate.errors import FoveateError
from foveate.evaluation.report import percent, points, table
from foveate.evaluation.statistics import MACRO, Estimate, bootstrap
from foveate.methods import Method, get_method
from foveate.testbed import generate, shipped_models
from foveate.testbed.suite import sample

KINDS = ("page", "chart", "objects")
COLUMNS = ("page: reading", "objects: reading", "chart: charts", "objects: other")
PER_SCENE = 3  # questions of a column
BATCH = 32
RUNS: tuple[tuple[str, Method, Any], ...] = (
    ("unpruned", get_method("stride"), 1.0),
    ("idpruner, auto", get_method("idpruner"), "auto"),
    ("divprune, auto", get_method("divprune"), "auto"),
    ("idpruner, 25%", get_method("idpruner"), "25%"),
    ("idpruner, 40%", get_method("idpruner"), "40%"),
    ("sms, auto", get_method("sms"), "auto"),
    ("sms before the LLM alone, auto", get_method("sms", inside=False), "auto"),
    ("pixelprune, auto", get_method("pixelprune"), "auto"),
)


@dataclass(frozen=True)
class Question:
    """A question, the kind of its scene, and the column that counts it."""

    asked: Sample
    kind: str
    column: str


def questions(scenes: int, seed: int) -> list[Question]:
    """Up to three questions of each column about so many scenes of each kind, those of one size behind each other."""
    found = []
    for kind in KINDS:
        for index in range(scenes):
            scene = generate("test", seed, index, kind)
            for reading in (True, False):
                own = [one for one in scene.questions if (one.family == "reading") == reading][:PER_SCENE]
                for question in own:
                    column = f"{kind}: {question.family if kind != 'objects' or reading else 'other'}"
                    asked = sample(question, scene.frames, f"{kind}-{index}", len(found))
                    found.append(Question(asked, kind, column))
    return sorted(found, key=lambda one: one.asked.pictures[0].size)  # type: ignore[union-attr]


def answer(session: LoadedModel, asked: Sequence[Question], method: Method, keep: Any) -> Iterator[tuple[bool, float]]:
    """Whether each answer is right, and the share of its picture's tokens that reach the last layer."""
    for start in range(0, len(asked), BATCH):
        batch = [one.asked for one in asked[start : start + BATCH]]
        inputs = encode(session.model, session.processor, [Prompt(one.open(), one.question) for one in batch])
        with foveate.prune(session.model, method, keep=keep) as pruning:
            output = session.model.generate(**inputs, max_new_tokens=32, do_sample=False)
            images = pruning.report().images
        texts = decode(session.processor, output[:, inputs["input_ids"].shape[1] :])
        for one, text, image in zip(batch, texts, images, strict=True):
            yield is_right(one, text), image.tokens / image.tokens_before


def measure(name: str, asked: Sequence[Question], seed: int) -> str:
    """The table of a model: right answers, each less the unpruned model's, and tokens kept, with 95 % intervals."""
    session = load(name)
    labels, right, kept = [], [], []
    for label, method, keep in RUNS:
        try:
            found = list(answer(session, asked, method, keep))
        except FoveateError as error:
            print(f"{name}: {label}: {error}")
            continue
        labels.append(label)
        right.append([one for one, _ in found])
        kept.append([share for _, share in found])
    groups = [one.asked.group for one in asked]
    answers = bootstrap(np.array(right, float), groups, [one.column for one in asked], seed=seed)
    first = list({group: place for place, group in reversed(list(enumerate(groups)))}.values())  # each scene once
    shares = bootstrap(
        np.array(kept)[:, first], [groups[at] for at in first], [asked[at].kind for at in first], seed=seed
    )
    rows = []
    for run, label in enumerate(labels):
        if run:
            scores = [points(answers.difference(run, 0, column)) for column in COLUMNS]
        else:
            scores = [f"{100 * answers.score(0, column).value:.1f}" for column in COLUMNS]
        rows.append([label, *scores, *(share_kept(shares.score(run, kind)) for kind in (*KINDS, MACRO))])
    return table(["run", *COLUMNS, *(f"kept of {kind}" for kind in KINDS), "kept of all"], rows)


def share_kept(estimate: Estimate) -> str:
    """In percent; with its interval where it is not the same for all scenes."""
    return percent(estimate) if estimate.high - estimate.low > 0.005 else f"{100 * estimate.value:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scenes", type=int, default=60, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="+", default=list(shipped_models()))
    options = parser.parse_args()
    asked = questions(options.scenes, options.seed)
    counted = ", ".join(f"{sum(one.column == column for one in asked)} of {column}" for column in COLUMNS)
    print(f"{len(asked)} questions ({counted}) about {options.scenes} scenes of each kind, seed {options.seed}.\n")
    for name in options.models:
        print(f"{name}\n\n{measure(name, asked, options.seed)}\n", flush=True)


if __name__ == "__main__":
    main()

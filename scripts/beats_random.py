"""Write docs/notes/beats_random.md: does a method beat chance on the bundled model at a tenth of the tokens?

Usage: python scripts/beats_random.py [METHOD ...]; minutes on a CPU. Without methods it asks all and writes the page.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import foveate
from foveate.errors import FoveateError
from foveate.evaluation.statistics import Estimate, bootstrap
from foveate.methods import get_method, method_names
from foveate.methods.toolkit.registry import method_class
from foveate.testbed import Scene, SceneQuestion, answers, load_bundled, scenes

PAGE = Path(__file__).parent.parent / "docs" / "notes" / "beats_random.md"
KEEP = 0.1
RESAMPLES = 10_000
SEEDS = 5  # of `random`, with whose mean the others are compared
INTRO = """# Better than chance?

Does a method work at all? Each keeps {keep:.0%} of the visual tokens, and the bundled model answers its {questions}
questions about {images} scenes. Unpruned it answers {unpruned} correctly.

```
python scripts/beats_random.py     # writes this page
```

- **tokens**: visual tokens, mean over the layers. Methods inside the language model have all {tokens} in its first
  layers, so do not compare them with those before it.
- **right**: correct answers.
- **more than random**: the difference to `random`, the mean of {seeds} seeds, with a 95 % interval of {resamples:,}
  bootstrap samples of whole scenes.

Twelve scenes make the intervals wide, and the model knows drawn scenes only, so the page does not say which method is
better on photographs. Hyperparameters are the defaults.
"""


def main(names: Sequence[str]) -> None:
    """Ask, print the table, and write the page where all methods were asked."""
    model, processor = load_bundled()
    known = scenes()
    asked = [(scene, question) for scene in known for question in scene.questions]
    groups = [str(number) for number, scene in enumerate(known) for _ in scene.questions]

    def right(method: Any, keep: float = KEEP) -> tuple[np.ndarray, float]:
        return _right(model, processor, asked, method, keep)

    chance = np.mean([right(get_method("random", seed=seed))[0] for seed in range(SEEDS)], axis=0)
    unpruned, tokens = right("stride", 1.0)
    own = [name for name in method_names() if method_class(name).__module__.startswith("foveate.")]
    scores: dict[str, np.ndarray] = {}
    passed: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name in names or own:
        try:
            scores[name], passed[name] = right(name)
        except FoveateError as error:
            refused[name] = str(error)
    drawn = bootstrap(np.array([chance, *scores.values()]), groups, ["all"] * len(asked), resamples=RESAMPLES)
    rows = {
        name: _row(name, passed[name], scores[name].sum(), drawn.difference(run, 0, "all"), len(asked))
        for run, name in enumerate(scores, 1)
        if name != "random"
    }
    best_first = sorted(scores, key=lambda name: -scores[name].sum())
    table = ["| method | tokens | right | more than random | beats random |", "|---|---|---|---|---|"]
    table += [rows[name] for name in best_first if name in rows]
    table += [f"| random | {passed.get('random', KEEP * tokens):.1f} | {chance.sum():.1f} | | |"]
    table += [f"| {name} | | | | not asked: {why} |" for name, why in refused.items()]
    facts = {"questions": len(asked), "images": len(known), "keep": KEEP, "seeds": SEEDS, "resamples": RESAMPLES}
    page = "\n".join([INTRO.format(**facts, unpruned=int(unpruned.sum()), tokens=int(tokens)), *table, ""])
    print(page)
    if not names:
        PAGE.write_text(page, encoding="utf-8")


def _right(
    model: Any, processor: Any, asked: list[tuple[Scene, SceneQuestion]], method: Any, keep: float
) -> tuple[np.ndarray, float]:
    """(questions,): 1 where the answer is right; and how many tokens of an image a layer sees on average."""
    with foveate.prune(model, method, keep=keep) as pruning:
        given = answers(model, processor, [([scene.image], question.question) for scene, question in asked])
        report = pruning.report()
    right = [float(said == question.answer) for said, (_, question) in zip(given, asked, strict=True)]
    return np.array(right), report.average_visual_tokens / len(report.images)


def _row(name: str, tokens: float, right: float, more: Estimate, questions: int) -> str:
    verdict = ("yes" if more.value > 0 else "no, it is worse") if more.excludes(0) else "not shown"
    gain = f"{more.value * questions:+.1f} ({more.low * questions:+.1f} to {more.high * questions:+.1f})"
    return f"| {name} | {tokens:.1f} | {right:.0f} | {gain} | {verdict} |"


if __name__ == "__main__":
    main(sys.argv[1:])

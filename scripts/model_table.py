"""Write docs/reference/models.md: what foveate does with every image-text class that transformers lists.

Run it with the release that the page names: ``python scripts/model_table.py``. tests/models/test_classes.py makes the
same rows and compares.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

import transformers  # noqa: E402

import foveate  # noqa: E402
import tiny_classes  # noqa: E402
from foveate.models import adapter_of, supported_models  # noqa: E402

RELEASE = "5.17"
PAGE = ROOT / "docs" / "reference" / "models.md"
INTRO = f"""# Models

`foveate.prune` serves the image-text classes of transformers in one of two ways. A class with an **own adapter** is run
through all tests; `foveate models` lists these with the methods that they cannot run. Any other class is served by the
**generic adapter** where that is safe, and refused with a sentence where it is not.

The generic adapter reads off the configuration which tokens stand for images, takes each run of them for an image (cut
where it is known how many tokens an image takes), and prunes before the language model or at its layers. It reads
nothing of the vision encoder, so that methods which need its attention or features are refused, as on any model that
lacks a cue; `idpruner` runs with [a scorer](../guides/train_a_scorer.md), which reads features only. Where two images
have nothing between them in the prompt and it is not known how many tokens each takes, they share a budget. FLOPs of
the vision encoder in its reports are estimated from the configuration.

It refuses classes whose images attend in both directions, whose positions have several axes, whose layers carry a state
or attend to something outside the prompt, that add rows inside the language model, that take audio, and encoder-decoder
models. Some of this is known from the configuration; the rest is seen in the first forward with an image, before
anything is dropped.

Run `foveate check MODEL` on your own checkpoint: it compares one pruned prompt with what is computed by hand, and lists
the methods that run.

## All classes of transformers {RELEASE}

The table is made by a test that builds each class with random weights, tiny, from its configuration alone, and runs
`foveate.check` on it. "Not tried" means that no such model or no picture for it could be made that way; the generic
adapter then takes it unless it finds a reason not to, and `foveate check` tells whether it is right on a checkpoint.
{{later}}
| model type | class | served by | why |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """What foveate does with one class: "own adapter", "generic", "not tried", "refused" or "wrong"."""

    model_type: str
    class_name: str
    how: str
    why: str = ""

    def line(self) -> str:
        """As it stands in the table."""
        return f"| `{self.model_type}` | {self.class_name} | {self.how} | {self.why.replace('|', ' ')} |"


def outcome(model_type: str) -> Row:
    """What foveate does with a class, found out on a tiny model of it."""
    name = dict(tiny_classes.classes())[model_type]
    own = {known for row in supported_models() for known in (row.model_type, row.class_name)}
    if {model_type, name} & own:  # some classes are listed under several model types
        return Row(model_type, name, "own adapter")
    try:
        model = tiny_classes.build(model_type)
    except tiny_classes.NotTiny as error:
        return _looked_at(model_type, name, str(error))
    try:
        adapter_of(model)
        report = foveate.check(model, tiny_classes.feed(model), [])
    except foveate.FoveateError as error:
        return Row(model_type, name, "refused", _reason(str(error)))
    except tiny_classes.NotTiny as error:
        return Row(model_type, name, "not tried", str(error))
    if report.passed:
        return Row(model_type, name, "generic")
    return Row(model_type, name, "wrong", "; ".join(f"{one.name}: {one.detail}" for one in report.checks))


def later() -> str:
    """Names the classes with an adapter of their own that the release has not."""
    own = [row for row in supported_models() if not hasattr(transformers, row.class_name)]
    names = [f"`{row.model_type}` ({row.class_name})" for row in own]
    if not names:
        return ""
    return f"\nOf classes that it has not, these have an own adapter, too: {', '.join(names)}.\n"


def _looked_at(model_type: str, name: str, why: str) -> Row:
    """What foveate says of a class of which no small model could be built."""
    try:
        adapter_of(tiny_classes.build_hollow(model_type))
    except tiny_classes.NotTiny:
        pass
    except foveate.FoveateError as error:
        return Row(model_type, name, "refused", _reason(str(error)))
    return Row(model_type, name, "not tried", why)


def _reason(sentence: str) -> str:
    return sentence.partition("without one: ")[2].partition(". docs/")[0] or sentence


if __name__ == "__main__":
    rows = [outcome(model_type) for model_type, _ in tiny_classes.classes()]
    PAGE.write_text(INTRO.format(later=later()) + "".join(f"{row.line()}\n" for row in rows))

"""Check an installed wheel: it is imported from where it was installed, and it prunes a scene that comes with it.

Usage: python wheel_check.py PREFIX, with the prefix of the environment that holds the wheel.
"""

from __future__ import annotations

import sys
from pathlib import Path

import foveate
from foveate.data import answer
from foveate.testbed import load_shipped, scenes


def main(prefix: str) -> None:
    """Prune one scene to a quarter of its tokens; exit with a sentence when anything is off."""
    home = Path(foveate.__file__).resolve()
    if not home.is_relative_to(Path(prefix).resolve()):
        raise SystemExit(f"foveate was imported from {home}, not from the wheel in {prefix}")
    model, processor = load_shipped()
    scene = scenes()[0]
    asked = scene.questions[0]
    with foveate.prune(model, "divprune", keep=0.25) as pruning:
        given = answer(model, processor, scene.image, asked.text)
        report = pruning.report()
    if (report.tokens_before, report.tokens) != (196, 49) or given != asked.answer:
        raise SystemExit(f"expected {asked.answer!r} from 49 of 196 tokens, got {given!r} from {report}")
    print(f"wheel ok: foveate {foveate.__version__}, {asked.text!r} -> {given!r}; {report}")


if __name__ == "__main__":
    main(sys.argv[1])

"""How far one method is ahead of others on the same questions, from stored results.

    PYTHONPATH=src python benchmarks/paired.py results/testbed-llava results/evidence/testbed-llava/with_question \\
        --of evidence

reads the answers in folders of ``foveate eval`` that asked the same questions, and prints for each budget the accuracy
of one method and its difference to every other, with 95 % intervals of a bootstrap over images, the same draws for all.
A difference whose interval lies above 0 is marked. Those that spend more tokens, as methods inside the language model
do, are shown with the mean over its layers. Accuracies are means over families, in percent.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from foveate.evaluation.results import Results, Row
from foveate.evaluation.statistics import Estimate, bootstrap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--of", required=True, help="the method that is compared")
    parser.add_argument("--keep", nargs="+", default=["10%", "5%"])
    parser.add_argument("--only", nargs="+", help="compare with these alone")
    parser.add_argument("--families", action="store_true", help="accuracy by family, too")
    options = parser.parse_args()
    read = [Results.load(folder) for folder in options.folders]
    asked = [(one["id"], one["question"]) for one in read[0].samples]
    for folder, one in zip(options.folders, read, strict=True):
        if [(each["id"], each["question"]) for each in one.samples] != asked:
            raise SystemExit(f"{folder} asked other questions than {options.folders[0]}.")
    groups, families = ([str(one[key]) for one in read[0].samples] for key in ("image", "family"))
    found: dict[tuple[str, str], Row] = {}
    for one in reversed(read):  # what the first folder has counts
        found |= {(row.label, row.keep): row for row in one.rows()}
    unpruned = found["unpruned", ""]
    for keep in options.keep:
        own = found[options.of, keep]
        others = [row for (label, at), row in found.items() if at == keep and label != options.of]
        if options.only:
            others = [row for row in others if row.label in options.only]
        rows = [own, unpruned, *others]
        drawn = bootstrap(np.stack([row.scores for row in rows]), groups, families)
        print(f"\n{options.of} at {keep}: {100 * drawn.score(0).value:.1f}, unpruned {_signed(drawn.difference(0, 1))}")
        if options.families:
            print("  " + ", ".join(f"{name} {100 * drawn.score(0, name).value:.1f}" for name in drawn.columns[:-1]))
        for at, row in sorted(enumerate(others, 2), key=lambda pair: -drawn.score(pair[0]).value):
            ahead = drawn.difference(0, at)
            spent = row.costs["visual_tokens"]
            where = f"  with {spent:.0f} tokens" if spent > 1.05 * own.costs["visual_tokens"] else ""
            mark = "*" if ahead.low > 0 else " "
            print(f"{mark} {row.label:20} {100 * drawn.score(at).value:5.1f}  {_signed(ahead)}{where}")


def _signed(estimate: Estimate) -> str:
    return f"{100 * estimate.value:+.1f} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"


if __name__ == "__main__":
    main()

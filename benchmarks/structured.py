"""What is left of a testbed model when heads and neurons are taken out at once, by three criteria, without training.

IPPRO's projective scores beside magnitude, Taylor expansion and chance, at shares of the language model's FLOPs.
Every model is asked the same questions; differences are paired, over images, with 95 % intervals.

    python benchmarks/structured.py
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

import foveate
from foveate.companions import ippro
from foveate.data import answers
from foveate.data.metrics import is_right
from foveate.data.prompts import Prompt
from foveate.data.samples import Sample
from foveate.evaluation.statistics import Estimate, bootstrap
from foveate.testbed import load_shipped, samples
from foveate.testbed.questions import STILL_FAMILIES
from foveate.training.scorer.data import answer_losses, batch_of, example_of

_CHANCE = 2  # seeds of the random choice, whose right answers are averaged
_AT_ONCE = 32
_KINDS = ("heads", "neurons")


def run(model: Any, processor: Any, asked: Sequence[Sample]) -> list[float]:
    """Whether each answer is right."""
    right: list[float] = []
    for start in range(0, len(asked), _AT_ONCE):
        part = asked[start : start + _AT_ONCE]
        said = answers(model, processor, [Prompt(one.open(), one.question) for one in part], 16)
        right += [float(is_right(one, text)) for one, text in zip(part, said, strict=True)]
    return right


def told(estimate: Estimate) -> str:
    """In points."""
    return f"{100 * estimate.value:+.1f} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"


def main() -> None:
    """Print a table, the rank correlations over lam, and one composition with token pruning."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="testbed-llava")
    parser.add_argument("--questions", type=int, default=280)
    parser.add_argument("--seed", type=int, default=53, help="of the scenes, which no training saw")
    parser.add_argument("--shares", default="0.2,0.5", help="of the language model's FLOPs, to take out")
    parser.add_argument("--batches", type=int, default=16, help="of 8 calibration prompts")
    arguments = parser.parse_args()
    model, processor = load_shipped(arguments.model)
    per_family = -(-arguments.questions // len(STILL_FAMILIES))
    asked = samples("test", arguments.seed, per_family, STILL_FAMILIES)
    learnt = samples("train", 7919, -(-8 * arguments.batches // len(STILL_FAMILIES)), STILL_FAMILIES)
    order = np.random.default_rng(0).permutation(len(learnt))[: 8 * arguments.batches]
    examples = [example_of(processor, learnt[index]) for index in order]
    padding = processor.tokenizer.pad_token_id
    batches = [batch_of(examples[start : start + 8], padding) for start in range(0, len(examples), 8)]
    inputs = dict(examples[0].inputs)

    structures = ippro.find_structures(model)
    measured = ippro.measure(model, structures, batches, lambda model, batch: answer_losses(model, *batch).mean())
    generator = torch.Generator().manual_seed(0)
    scores: dict[str, list[dict[str, torch.Tensor]]] = {
        "projective": [ippro.projective_scores(measured)],
        "magnitude": [ippro.magnitude_scores(structures)],
        "taylor": [ippro.taylor_scores(measured)],
        "projective, lam x 0.1": [ippro.projective_scores(measured, 1e-3)],
        "projective, lam x 10": [ippro.projective_scores(measured, 1e-1)],
        "chance": [
            {one.name: torch.rand(one.count, generator=generator) for one in structures} for _ in range(_CHANCE)
        ],
    }
    whole_sizes = [float(sum(one.count for one in structures if one.kind == kind)) for kind in _KINDS]
    whole_sizes.append(float(sum(p.numel() for p in model.parameters())))
    rows: list[tuple[str, str, str, list[float]]] = [("unpruned", "", "", whole_sizes)]
    rights = [run(model, processor, asked)]
    smallest: Any = None
    for share in map(float, arguments.shares.split(",")):
        for within in ("model", "layer"):
            for name, all_scores in scores.items():
                if within == "layer" and "lam" in name:
                    continue
                found, facts = [], []
                for own in all_scores:
                    smaller = copy.deepcopy(model)
                    kept = ippro.choose(model, structures, own, share, inputs, within)  # type: ignore[arg-type]
                    ippro.shrink(smaller, kept)
                    found.append(run(smaller, processor, asked))
                    left = [sum(len(kept[one.name]) for one in structures if one.kind == kind) for kind in _KINDS]
                    facts.append((*left, sum(p.numel() for p in smaller.parameters())))
                    if name == "taylor" and within == "model" and smallest is None:
                        smallest = smaller
                means = [sum(column) / len(facts) for column in zip(*facts, strict=True)]
                rows.append((name, f"{100 * share:.0f} %", within, means))
                rights.append(np.mean(found, 0).tolist())
    whole = bootstrap(np.array(rights), [one.group for one in asked], [one.family for one in asked])
    print(f"{arguments.model}; {len(asked)} questions; {len(examples)} calibration prompts; macro accuracy, points")
    head = ("criterion", "FLOPs out", "within", *(f"{kind} left" for kind in _KINDS), "weights", "right")
    print(f"| {' | '.join(head)} | against unpruned | projective minus it |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|")
    for index, (name, share_out, within, (heads, neurons, weights)) in enumerate(rows):
        own = next((at for at, row in enumerate(rows) if row[:3] == ("projective", share_out, within)), index)
        differences = (
            told(whole.difference(index, 0)) if index else "",
            told(whole.difference(own, index)) if own != index else "",
        )
        print(
            f"| {name} | {share_out} | {within} | {heads:.1f} | {neurons:,.0f} | {weights:,.0f} | "
            f"{100 * whole.score(index).value:.1f} | {' | '.join(differences)} |"
        )

    def flat(of: dict[str, torch.Tensor]) -> np.ndarray[Any, Any]:
        return torch.cat([of[one.name].cpu() for one in structures]).numpy()

    base = flat(scores["projective"][0])
    for factor in (0.1, 10.0):
        other = flat(ippro.projective_scores(measured, 1e-2 * factor))
        print(f"rank correlation of projective scores, lam x {factor:g}: {spearmanr(base, other).statistic:.3f}")
    for name in ("magnitude", "taylor"):
        print(f"rank correlation with {name}: {spearmanr(base, flat(scores[name][0])).statistic:.3f}")
    for kind in _KINDS:
        own = torch.cat([scores["projective"][0][one.name] for one in structures if one.kind == kind])
        print(f"projective scores of {kind}: {own.min():.4f} to {own.max():.4f}, standard deviation {own.std():.5f}")
    with foveate.prune(smallest, "idpruner", keep=0.25):
        both = run(smallest, processor, asked)
    print(
        f"taylor, {arguments.shares.split(',')[0]} out, and idpruner at 25 % of the tokens: {100 * np.mean(both):.1f}"
    )


if __name__ == "__main__":
    main()

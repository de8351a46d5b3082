"""What choosing by `evidence` costs beside `idpruner` with a scorer, and beside the prefill that it saves.

    PYTHONPATH=src python benchmarks/evidence_cost.py

One image of 1296 tokens and a question of 32, of the width of Qwen2.5-VL-7B; random weights. FLOPs are counted by
PyTorch, those of the prefill by foveate from a model without data. Times are medians of rounds that take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from random_models import MODELS
from torch.utils.flop_counter import FlopCounterMode

import foveate
from foveate.importance import LearnedScorer
from foveate.importance.evidence_scorer import EvidenceScorer, EvidenceShape
from foveate.methods import Method, ModelFacts
from foveate.models import adapter_of
from foveate.runtime.cost import CostModel
from foveate.tokens import Grid, VisualTokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--keep", type=float, default=0.1)
    options = parser.parse_args()
    torch.manual_seed(0)
    grid, words, hidden = Grid(36, 36), 32, 3584
    sizes = 2 * ((hidden // 2, hidden), (hidden // 2,))
    importance = LearnedScorer(*(torch.randn(*size) / hidden**0.5 for size in sizes))
    facts = ModelFacts("", hidden, 28)
    scorer = EvidenceScorer(EvidenceShape(hidden, base=hidden // 2), importance).requires_grad_(False)
    scorer.out.weight.normal_()
    methods: dict[str, Method] = {
        "idpruner": foveate.get_method("idpruner", scorer=importance).bind(facts),
        "evidence": foveate.get_method("evidence", scorer=scorer).bind(facts),
        "evidence, question=False": foveate.get_method("evidence", scorer=scorer, question=False).bind(facts),
    }
    text = torch.randn(words, hidden)
    tokens = VisualTokens.of(torch.randn(len(grid), hidden), grid, text_embeddings=text)
    count = torch.tensor([round(options.keep * len(grid))])
    with torch.device("meta"):
        model = MODELS["qwen2.5-vl-7b"]()
    cost = CostModel(adapter_of(model))
    whole, pruned = (cost.text_flops([[n + words]] * 28) for n in (len(grid), int(count)))
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(options.rounds):
        names = list(methods)
        for name in names if turn % 2 else names[::-1]:
            begun = time.perf_counter()
            methods[name].select(tokens, count)
            seconds[name].append(time.perf_counter() - begun)
    print(f"prefill: {whole / 1e12:.2f} TFLOP whole, {pruned / 1e12:.2f} TFLOP with {int(count)} of {len(grid)} tokens")
    print("| method | ms | of idpruner's | GFLOP of scoring | of the whole prefill | of the pruned prefill |")
    print("|---|---|---|---|---|---|")
    for name, method in methods.items():
        with FlopCounterMode(display=False) as counter:
            method.scores(tokens)
        flops = counter.get_total_flops()
        took = statistics.median(seconds[name])
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds["idpruner"], strict=True))
        shares = f"{flops / whole:.3%} | {flops / pruned:.2%}"
        print(f"| `{name}` | {1e3 * took:.1f} | {ratio:.2f} | {flops / 1e9:.2f} | {shares} |")


if __name__ == "__main__":
    main()

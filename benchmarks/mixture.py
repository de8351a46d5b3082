"""What the Mixture Compressor's plans cost a model that answers, beside other plans of as many bits.

    python benchmarks/mixture.py

A model with experts is made of a testbed model, whose feed-forwards are cut up: each of 8 experts holds a random half
of the neurons, and a router sends a token to 2. Routers and experts are then trained on questions about pictures, once
as it falls, once so that the experts are chosen alike often. The experts of both are rounded by several plans. All are
judged on the same questions, which no training saw: the loss of the true answers, and whether each token of them is the
model's first choice. Intervals of 95 % are from a bootstrap over pictures, differences are paired.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, MixtralConfig

import foveate
from foveate.companions.mixture import BitPlan, compress, measure_experts, plan_model, simulate, uniform_plan
from foveate.data.samples import Sample
from foveate.evaluation.statistics import Estimate, bootstrap
from foveate.testbed import load_shipped, samples
from foveate.testbed.questions import STILL_FAMILIES
from foveate.training.scorer.data import Example, batch_of, example_of, judge_answers

EXPERTS, CHOSEN, SHARE = 8, 2, 0.5  # of the neurons of the model that they are cut out of, for each expert
BITS = (2.5, 2.0, 1.5)
AT_ONCE = 16


def make_experts(dense: Any, seed: int) -> Any:
    """The model with a Mixtral for a language model, whose experts are parts of the feed-forwards of the dense one."""
    old = dense.config.text_config
    taken = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"]
    taken += ["max_position_embeddings", "rms_norm_eps", "rope_parameters", "pad_token_id", "tie_word_embeddings"]
    width = int(old.intermediate_size * SHARE)
    sizes: dict[str, Any] = {"intermediate_size": width, "num_local_experts": EXPERTS, "num_experts_per_tok": CHOSEN}
    text = MixtralConfig(**{name: getattr(old, name) for name in taken}, **sizes)
    given = {name: value for name, value in dense.config.to_dict().items() if name not in ("text_config", "model_type")}
    torch.manual_seed(seed)
    model: Any = LlavaForConditionalGeneration(LlavaConfig(**given, text_config=text))
    found = model.load_state_dict(dense.state_dict(), strict=False)
    assert all(".mlp." in name for name in (*found.missing_keys, *found.unexpected_keys))
    with torch.no_grad():
        for own, layer in zip(model.model.language_model.layers, dense.model.language_model.layers, strict=True):
            nn.init.normal_(own.mlp.gate.weight, std=0.1)
            for expert in range(EXPERTS):
                some = torch.randperm(old.intermediate_size)[:width]
                both = [layer.mlp.gate_proj.weight[some], layer.mlp.up_proj.weight[some]]
                own.mlp.experts.gate_up_proj[expert] = torch.cat(both)
                own.mlp.experts.down_proj[expert] = layer.mlp.down_proj.weight[:, some] / SHARE
    return model.eval()


def batches(examples: Sequence[Example], padding: int) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """The examples in their order, so many at once."""
    for start in range(0, len(examples), AT_ONCE):
        yield batch_of(examples[start : start + AT_ONCE], padding)


def train(model: Any, examples: Sequence[Example], padding: int, balance: float) -> None:
    """Train routers and experts, once over the examples; `balance` weighs Switch Transformer's balancing loss."""
    layers = model.model.language_model.layers
    learning = [weight for layer in layers for weight in layer.mlp.parameters()]
    model.requires_grad_(False)
    for weight in learning:
        weight.requires_grad_()
    steps = math.ceil(len(examples) / AT_ONCE)
    optimizer = torch.optim.AdamW(learning, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    routed: list[Tensor] = []
    handles = [
        layer.mlp.gate.register_forward_hook(lambda module, args, out: routed.append(out[0])) for layer in layers
    ]
    for inputs, labels in batches(examples, padding):
        routed.clear()
        loss = judge_answers(model, inputs, labels)[0].mean()
        for logits in routed:
            chosen = torch.zeros_like(logits).scatter(1, logits.topk(CHOSEN).indices, 1.0 / CHOSEN)
            loss = loss + balance * EXPERTS * (chosen.mean(0) * logits.softmax(-1).mean(0)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    for handle in handles:
        handle.remove()
    model.requires_grad_(False)
    for weight in model.parameters():  # as a model of 16 bits, which is computed in 32
        weight.copy_(weight.bfloat16())


@torch.no_grad()
def judge(model: Any, examples: Sequence[Example], padding: int) -> tuple[list[float], list[float]]:
    """Of each question: the mean loss of the tokens of its true answer, and whether all of them are first choices."""
    found = [judge_answers(model, inputs, labels) for inputs, labels in batches(examples, padding)]
    return torch.cat([loss for loss, _ in found]).tolist(), torch.cat([right for _, right in found]).float().tolist()


def random_plan(rng: np.random.Generator, bits: float, layers: int) -> BitPlan:
    """Bits by chance, that add up to the same in each layer, with one expert of 2 and one of 3 as in the others."""
    drawn: list[tuple[int, ...]] = []
    while len(drawn) < layers:
        one = tuple(int(width) for width in rng.integers(1, 4, EXPERTS))
        if sum(one) == int(bits * EXPERTS) and {2, 3} <= set(one):
            drawn.append(one)
    return BitPlan(tuple(drawn))


def told(estimate: Estimate, digits: int, sign: str = "") -> str:
    value, low, high = (f"{one:{sign}.{digits}f}" for one in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def plans_of(model: Any, measured: Sequence[Any], draws: int) -> list[tuple[str, float, list[BitPlan]]]:
    """What is compared: a name, bits of an expert, and one plan or several whose results are averaged."""
    rng = np.random.default_rng(0)
    rows: list[tuple[str, float, list[BitPlan]]] = [("uniform", 3.0, [uniform_plan(model, 3)])]
    for bits in BITS:
        rows.append(("PMQ", bits, [plan_model(measured, bits)]))
        rows.append(("error alone", bits, [plan_model(measured, bits, (0, 0, 2))]))
        if bits == int(bits):
            rows.append(("uniform", bits, [uniform_plan(model, int(bits))]))
        rows.append(("random", bits, [random_plan(rng, bits, len(measured)) for _ in range(draws)]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=140)
    parser.add_argument("--train", type=int, default=700, help="questions of the training")
    parser.add_argument("--draws", type=int, default=3, help="random plans of each size")
    parser.add_argument("--keep", type=float, default=0.25, help="of the visual tokens, in the rows with idpruner")
    args = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.process_time()
    dense, processor = load_shipped("testbed-llava")
    padding = processor.tokenizer.pad_token_id
    asked = samples("test", 53, -(-args.questions // len(STILL_FAMILIES)), STILL_FAMILIES)
    learnt = samples("train", 7920, -(-args.train // len(STILL_FAMILIES)), STILL_FAMILIES)
    order = np.random.default_rng(0).permutation(len(learnt))
    learning = [example_of(processor, learnt[index]) for index in order]
    examples = [example_of(processor, one) for one in asked]
    calibration = [inputs for inputs, _ in batches(learning[: 4 * AT_ONCE], padding)]
    print(f"{len(asked)} questions; {len(learning)} to train on, {4 * AT_ONCE} of them to measure on")

    for name, balance in (("as it falls", 0.0), ("balanced", 0.1)):
        model = make_experts(dense, seed=0)
        train(model, learning, padding, balance)
        measured = measure_experts(model, calibration)
        shares = torch.stack([one.frequency.topk(CHOSEN).values.sum() for one in measured if one is not None])
        print(f"\n{name}: {shares.mean():.0%} of the choices are of the {CHOSEN} most frequent experts of a layer\n")
        labels, sizes = [("16 bits", 16.0)], [in_kib(model, None)]
        judged = [judge(model, examples, padding)]
        for label, bits, plans in plans_of(model, measured, args.draws):
            found = []
            for plan in plans:
                edited = copy.deepcopy(model)
                simulate(edited, plan)
                found.append(judge(edited, examples, padding))
            labels.append((label, bits))
            sizes.append(in_kib(model, plans[0]))
            judged.append(np.mean(found, 0))
        small = copy.deepcopy(model)
        compress(small, plan_model(measured, BITS[0]))
        for label, bits, one in (("16 bits", 16.0, model), ("PMQ", BITS[0], small)):
            with foveate.prune(one, "idpruner", keep=args.keep):
                judged.append(judge(one, examples, padding))
            labels.append((f"{label}, idpruner at {args.keep:.0%}", bits))
            sizes.append(sizes[labels.index((label, bits))])
        write(labels, sizes, judged, asked)
    print(f"\n{time.process_time() - begun:.0f} s of processor time")


def in_kib(model: Any, plan: BitPlan | None) -> tuple[str, str, str]:
    """Bits that a weight of an expert takes, and KiB of the experts and of the whole model, in 16 bits at first."""
    half = copy.deepcopy(model).bfloat16()
    memory = compress(half, plan or uniform_plan(half, 8))
    after = plan is not None
    return (
        f"{memory.bits if after else 16:.2f}",
        f"{memory.experts[after] / 1024:,.0f}",
        f"{memory.model[after] / 1024:,.0f}",
    )


def write(
    labels: list[tuple[str, float]], sizes: list[tuple[str, str, str]], judged: list[Any], asked: Sequence[Sample]
) -> None:
    """Print the table of one model."""
    groups, families = [one.group for one in asked], [one.family for one in asked]
    losses, rights = (bootstrap(np.array([one[at] for one in judged]), groups, families) for at in (0, 1))
    print("| plan | bits | stored | experts, KiB | model, KiB | perplexity | right, % | log-perplexity minus PMQ's |")
    print("|---|---:|---:|---:|---:|---|---|---|")
    for row, ((label, bits), size) in enumerate(zip(labels, sizes, strict=True)):
        score, right = losses.score(row), rights.score(row)
        perplexity = Estimate(*(math.exp(one) for one in (score.value, score.low, score.high)))
        percent = Estimate(*(100 * one for one in (right.value, right.low, right.high)))
        own = ("PMQ", bits)
        compared = label in ("uniform", "error alone", "random") and own in labels
        minus = told(losses.difference(row, labels.index(own)), 3, "+") if compared else ""
        cells = (label, f"{bits:g}", *size, told(perplexity, 3), told(percent, 1), minus)
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

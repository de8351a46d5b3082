"""What mapped attention costs and saves: two language models of different depth, trained here on generated text.

python benchmarks/attention_mapping.py

A text tells who has what, gives things away, and asks. Both models are trained from scratch for a fixed number of steps
(less than two minutes of one core), the small one with 2 layers, the large one with 6.
Then layers of the large one take the small one's attention, on texts that neither saw: heads are matched on the first
64 tokens of each, and the rest is measured. Intervals are from a bootstrap over texts.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from foveate.companions.attention_mapping import choose_layers, map_attention, rank_layers

NAMES = ["anna", "ben", "carl", "dora", "emil", "fay", "gus", "hana"]
THINGS = ["ball", "cup", "drum", "flag", "kite", "lamp", "ring", "shoe"]
COLOURS = ["red", "blue", "green", "black", "white", "pink"]
OTHERS = ["<pad>", "has", "the", "gives", "to", "who", "what", "colour", "is", "?", ".", "of"]
WORDS = [*OTHERS, *NAMES, *THINGS, *COLOURS]
NUMBERS = {word: number for number, word in enumerate(WORDS)}
ENTRY = 64


def write(rng: np.random.Generator, length: int) -> tuple[list[int], list[bool]]:
    """A text of `length` tokens, and which of them answer a question."""
    words: list[str] = []
    answers: list[bool] = []
    owner: dict[str, str] = {}
    colour: dict[str, str] = {}

    def say(sentence: str, answer: int | None = None) -> None:
        told = sentence.split()
        answers.extend(place == answer for place in range(len(told)))
        words.extend(told)

    while len(words) < length:
        kind = rng.random()
        if not owner or (kind < 0.3 and len(owner) < 5):
            thing = str(rng.choice([one for one in THINGS if one not in owner]))
            owner[thing], colour[thing] = str(rng.choice(NAMES)), str(rng.choice(COLOURS))
            say(f"{owner[thing]} has the {colour[thing]} {thing} .")
            continue
        thing = str(rng.choice(list(owner)))
        if kind < 0.45:
            new = str(rng.choice(NAMES))
            say(f"{owner[thing]} gives the {thing} to {new} .")
            owner[thing] = new
        elif kind < 0.75:
            say(f"what colour is the {thing} ? {colour[thing]} .", 6)
        else:
            say(f"who has the {thing} ? {owner[thing]} .", 5)
    return [NUMBERS[word] for word in words[:length]], answers[:length]


def texts(seed: int, count: int, length: int) -> tuple[Tensor, Tensor]:
    """Token numbers (count, length), and which of them are answers."""
    rng = np.random.default_rng(seed)
    pairs = [write(rng, length) for _ in range(count)]
    return torch.tensor([one for one, _ in pairs]), torch.tensor([one for _, one in pairs])


def train(layers: int, width: int, heads: int, steps: int, seed: int, length: int) -> Any:
    """A Llama trained from scratch on texts of `length` tokens."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    begun = time.process_time()
    ids, answers = texts(10 + seed, 16 * steps, length)
    for step in range(steps):
        some = slice(16 * step, 16 * step + 16)
        batch, asked = ids[some], answers[some, 1:]
        logits = model(batch).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
        weights = torch.where(asked, 5.0, 1.0)  # most words follow from grammar, and teach no attention
        loss = (losses * weights).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    print(
        f"trained {layers} layers of width {width}: loss {loss.item():.3f}, {time.process_time() - begun:.0f} s",
        flush=True,
    )
    return model.eval().requires_grad_(False)


def measure(model: Any, ids: Tensor, answers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each text behind `ENTRY`: summed loss, right answers, and answers."""
    logits = model(ids).logits[:, ENTRY - 1 : -1]
    told = ids[:, ENTRY:]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), told, reduction="none")
    asked = answers[:, ENTRY:]
    return losses.mean(1), ((logits.argmax(-1) == told) & asked).sum(1), asked.sum(1)


def interval(numerator: Tensor, denominator: Tensor) -> str:
    """The ratio of sums over texts, with its 95 % interval."""
    rng = np.random.default_rng(0)
    above, below = numerator.double().numpy(), denominator.double().numpy()
    picks = rng.integers(0, len(above), (1000, len(above)))
    low, high = np.percentile(above[picks].sum(1) / below[picks].sum(1), [2.5, 97.5])
    return f"{above.sum() / below.sum():.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=48, help="how many texts are measured")
    parser.add_argument("--length", type=int, default=160, help="tokens of each text")
    parser.add_argument("--steps", type=int, nargs=2, default=[450, 350], help="of training, small and large model")
    parser.add_argument("--new", type=int, default=32, help="tokens that are generated")
    args = parser.parse_args()
    torch.set_num_threads(1)
    small = train(2, 64, 4, args.steps[0], 0, args.length)
    large = train(6, 64, 4, args.steps[1], 1, args.length)
    ids, answers = texts(1, args.texts, args.length)
    calibration, _ = texts(2, 16, args.length)
    prompt = ids[:, : args.length - args.new]

    def generate(model: Any) -> Tensor:
        said: Tensor = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=args.new, do_sample=False
        )
        return said[:, prompt.shape[1] :]

    with torch.no_grad():
        alone, itself = generate(large), torch.ones(args.texts)
        for measure_name in ("cosine", "pearson"):
            ranked = rank_layers(large, small, [{"input_ids": calibration}], measure=measure_name)  # type: ignore[arg-type]
            print(f"\n{measure_name}: " + ", ".join(f"layer {one.layer} {one.similarity:.3f}" for one in ranked))
        print(
            "\n| mapping | layers | log-perplexity | right answers | same tokens | same texts | KV, KiB a text "
            "(small model) | KV saved, % |"
        )
        print("|---|---|---:|---:|---:|---:|---:|---:|")
        rows: list[tuple[str, float]] = [("cosine", 0.0)]
        rows += [(name, share) for share in (0.25, 0.5) for name in ("cosine", "pearson")]
        for name, share in rows:
            layers = choose_layers(large, small, [{"input_ids": calibration}], share, measure=name)  # type: ignore[arg-type]
            with map_attention(large, small, layers, entry=ENTRY, longest=ENTRY, measure=name) as mapping:  # type: ignore[arg-type]
                losses, right, asked = measure(large, ids, answers)
                said = generate(large)
                report = mapping.report() if layers else None
            same = (said == alone).double()
            if report is None:
                width = (
                    2 * large.config.num_key_value_heads * large.config.head_dim * 4 * large.config.num_hidden_layers
                )
                size, own, saved = width * (args.length - 1), 0, 0.0
            else:
                total = report.key_bytes + report.value_bytes + report.small_bytes
                size, own, saved = total // args.texts, report.small_bytes // args.texts, report.saved
            label = f"{name}, p = {share:g}" if layers else "none (p = 0)"
            print(
                f"| {label} | {', '.join(map(str, layers)) or '-'} | {interval(losses, itself)} "
                f"| {interval(right, asked)} | {100 * same.mean():.1f} % | {100 * same.all(1).double().mean():.1f} % "
                f"| {size / 1024:.1f} ({own / 1024:.1f}) | {100 * saved:.1f} |",
                flush=True,
            )
        losses, right, asked = measure(small, ids, answers)
        print(f"| the small model alone | | {interval(losses, itself)} | {interval(right, asked)} | | | | |")
        print(f"\nlog-perplexity of 1 word in {len(WORDS)}: {math.log(len(WORDS)):.3f}")


if __name__ == "__main__":
    main()

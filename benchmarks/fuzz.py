"""Random calls of pruned models: right by an oracle, or refused by one `FoveateError`.

    python benchmarks/fuzz.py --calls 1000 --seed 0 --families llava qwen2_5_vl
    python benchmarks/fuzz.py --methods evidence hawk guided
    python benchmarks/fuzz.py --only 0:417  # that call again

Each call draws a tiny random model, a batch of prompts with pictures and clips, a method and a budget, and a situation;
`fuzz_situations.py` says what is right in each. Prints a line for each failure, and exits with 1 where there is any.
"""

from __future__ import annotations

import argparse
import collections
import logging
import os
import random
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import fuzz_situations  # noqa: F401  # puts its situations into SITUATIONS
import torch
import transformers
from fuzz_case import SITUATIONS, Case, Skip
from fuzz_oracles import Wrong, fingerprint, left_over, same
from fuzz_prompts import FAMILIES, MORE, NAMES, WINDOWED, batch, draw_only, prompt

import foveate

ROUNDED = 1e-3


@dataclass(frozen=True)
class Result:
    """What came of one call: "right", "refused", "wrong", "skipped", "theirs", "tied" or "rounded".

    "theirs": the unpruned model fails, too. "tied": the method's choice between two tokens hangs on rounding.
    "rounded": off by no more than what a recurrence over many layers rounds off.
    """

    name: str
    seed: str
    family: str
    situation: str
    what: str
    trace: str = ""


def run_one(seed: str, families: Sequence[str], situations: Sequence[str]) -> Result:
    """One call, all of it drawn from `seed`."""
    rng = random.Random(seed)
    family = rng.choice(families)
    name = rng.choices(situations, [SITUATIONS[s][1] for s in situations])[0]
    torch.manual_seed(rng.getrandbits(30))
    z = {**FAMILIES, **WINDOWED, **MORE}[family]()
    case = Case(z, rng, rng.choice(["sdpa", "sdpa", "sdpa", "eager"]))
    z.model.set_attn_implementation(case.kernel)
    probe = batch([prompt(z, random.Random(1), 1), prompt(z, random.Random(2), 0)])
    before, plain = fingerprint(z.model), case.call(probe).logits
    what, kind, trace = "", "right", ""
    try:
        SITUATIONS[name][0](case)
    except Skip:
        kind = "skipped"
    except foveate.FoveateError as error:
        kind, what = "refused", f"{type(error).__name__}: {error}"
    except Exception as error:
        kind, what, trace = "wrong", f"{type(error).__name__}: {str(error)[:300]}", traceback.format_exc()
        if not isinstance(error, Wrong) and fails(case):
            kind = "theirs"
        elif isinstance(error, Wrong) and case.drawn is not None and case.tied:
            kind = "tied"
        elif isinstance(error, Wrong) and error.far < ROUNDED and family in MORE:
            kind = "rounded"
    try:
        same("the unpruned model afterwards", case.call(probe).logits, plain, 0)
        if left := left_over(before, fingerprint(z.model)):
            kind, what = "wrong", f"left on the model: {left} ({what})"
    except Exception as error:
        kind, what, trace = "wrong", f"{error} ({what})", traceback.format_exc()
    z.model.set_attn_implementation("sdpa")
    return Result(kind, seed, family, name, f"{case.kernel}; {'; '.join(case.notes)}; {what}", trace)


def fails(case: Case) -> bool:
    """Whether the unpruned model fails in the latest call, too."""
    try:
        (case.whole or case.plainly)()
    except Exception:
        return True
    return False


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=[*FAMILIES, *WINDOWED, *MORE])
    parser.add_argument("--situations", nargs="*", default=list(SITUATIONS), choices=list(SITUATIONS))
    parser.add_argument("--methods", nargs="*", choices=NAMES, help="draw of these alone, wherever a kind has some")
    parser.add_argument("--only", help="a call's seed, as a failure prints it, with the same other options")
    parser.add_argument("--traces", action="store_true", help="print the traceback of each failure")
    parser.add_argument("--refusals", action="store_true", help="count the sentences of refusals and of other failures")
    args = parser.parse_args()
    if args.methods:
        draw_only(args.methods)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    logging.getLogger("foveate").setLevel(logging.ERROR)
    seeds = [args.only] if args.only else [f"{args.seed}:{number}" for number in range(args.calls)]
    counts: collections.Counter[str] = collections.Counter()
    sentences: collections.Counter[str] = collections.Counter()
    started = time.time()
    for seed in seeds:
        result = run_one(seed, args.families, args.situations)
        counts[result.name] += 1
        if result.name in ("refused", "theirs", "tied"):
            sentences[f"{result.name} {result.situation}: {result.what.split('Error: ')[-1][:150]}"] += 1
        if result.name == "wrong" or args.only:
            print(f"{result.name} {seed} {result.family} {result.situation}: {result.what}", flush=True)
            if args.traces or args.only:
                print(result.trace, flush=True)
    print(f"{len(seeds)} calls in {time.time() - started:.0f} s: {dict(counts)}")
    if args.refusals:
        for sentence, count in sentences.most_common():
            print(f"{count:5} {sentence}")
    return int(counts["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())

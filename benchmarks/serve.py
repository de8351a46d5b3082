"""What pruning changes for a vLLM server: throughput, time to first token and time between tokens, beside plain vLLM.

Two engines live side by side and work in turns: one that does not load foveate's plugin, and one that does, asked to
keep 100, 50, 25 and 10 % of the visual tokens. Every request brings an image of its own and 32 tokens of text, and gets
16 tokens back. N clients each send the next request when the last one is answered. Ratios are to plain vLLM in the same
round, so that a busy machine slows all alike; above 1 is better than plain, for the times, too. The order alternates
from round to round. A ratio is the geometric mean over the rounds, with the 95 % interval of the t distribution.

Usage, where vLLM and foveate are installed (such as the environment that scripts/vllm_env.sh makes):
    python benchmarks/serve.py [--method divprune] [--rounds 5] [--clients 32] [--step 512] [--encoder] [--json FILE]
A random-weight Qwen2.5-VL with a language model of 31 M parameters is built in a temporary folder, so that a CPU
suffices: 15 minutes on two cores. `--model NAME` takes a real one of the Qwen-VLs.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from rich.console import Console
from rich.table import Table

import foveate

CLIENTS = (1, 4, 16, 32)
KEEPS = (1.0, 0.5, 0.25, 0.1)
PLAIN = "plain"
TEXT, OUTPUT = 32, 16  # tokens of a request and of its answer
SPECIAL = ("<|pad|>", "<|end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
WORDS = [f"word{number}" for number in range(500)]
ENVIRON = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) - 1)),  # a core is the front end's, as vLLM recommends
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


def build(folder: Path) -> None:
    """Write a Qwen2.5-VL whose language model has nearly all the work: 8 layers of width 512, a tower of 2."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=WORDS[0]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"pad_token": SPECIAL[0], "eos_token": SPECIAL[1], "additional_special_tokens": list(SPECIAL[2:])}
    placeholders = {"image_token": SPECIAL[4], "video_token": SPECIAL[5]}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **named, extra_special_tokens=placeholders)
    text = {
        "vocab_size": len(vocabulary),
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    }
    vision = {"depth": 2, "hidden_size": 128, "intermediate_size": 256, "num_heads": 2, "out_hidden_size": 512}
    config = transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config={**vision, "fullatt_block_indexes": [1]},
        **{"vision_start_token_id": 2, "vision_end_token_id": 3, "image_token_id": 4, "video_token_id": 5},
    )
    torch.manual_seed(0)
    transformers.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    images = transformers.Qwen2VLImageProcessorPil(size={"shortest_edge": 56**2, "longest_edge": 1296 * 28**2})
    videos = transformers.Qwen2VLVideoProcessor()
    transformers.Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template="").save_pretrained(folder)


def prompts(seed: int, side: int, count: int, kwargs: dict[str, Any]) -> list[dict[str, Any]]:
    """Requests that no cache has seen."""
    random = np.random.default_rng(seed)
    return [
        {
            "prompt": f"<|vision_start|><|image_pad|><|vision_end|> {' '.join(random.choice(WORDS, TEXT - 2))}",
            "multi_modal_data": {"image": Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))},
            "mm_processor_kwargs": kwargs,
        }
        for _ in range(count)
    ]


async def load(engine: Any, requests: list[dict[str, Any]], clients: int, name: str) -> dict[str, Any]:
    """Send all requests, so many at once; when their tokens came."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    kind = RequestOutputKind.DELTA
    sampling = SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True, output_kind=kind)
    waiting = enumerate(requests)
    first, between, lengths = [], [], []

    async def client() -> None:
        for number, request in waiting:
            last = time.perf_counter()
            came = 0
            async for output in engine.generate(request, sampling, f"{name}-{number}"):
                now, new = time.perf_counter(), len(output.outputs[0].token_ids)
                if new:
                    (between if came else first).append(now - last)
                    between.extend([0.0] * (new - 1))  # tokens that came together
                    last, came = now, came + new
            assert came == OUTPUT, f"{came} tokens came, not {OUTPUT}"
            lengths.append(len(output.prompt_token_ids))

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return {"seconds": time.perf_counter() - start, "first": first, "between": between, "tokens": lengths[0]}


async def serve(model: str, side: int, step: int, encoder: bool, pipe: Any) -> None:
    """The engine's own process: one line in, one cell measured, one line out."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=model,
            dtype="auto" if torch.cuda.is_available() else "float32",
            enforce_eager=not torch.cuda.is_available(),
            max_model_len=2048,
            gpu_memory_utilization=0.4,  # there are two
            limit_mm_per_prompt={"image": 1, "video": 0},
            mm_processor_cache_gb=0.5,  # nothing comes twice
            max_num_batched_tokens=step or None,
            disable_log_stats=True,
            enable_mm_processor_stats=encoder,
            seed=0,
        )
    )
    print("ready", file=pipe, flush=True)
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            requests = prompts(order["seed"], side, order["requests"], order["kwargs"])
            cell = await load(engine, requests, order["clients"], str(order["seed"]))
            if encoder:
                timed = await engine.collective_rpc("get_encoder_timing_stats")
                cell["encoding"] = sum(one["encoder_forward_secs"] for one in timed[0].values())
            print(json.dumps(cell), file=pipe, flush=True)
    finally:
        engine.shutdown()


class Engine:
    """One such process, seen from outside."""

    def __init__(self, plugins: str, arguments: list[str], log: Path, environ: dict[str, str]) -> None:
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--engine", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=environ | {"VLLM_PLUGINS": plugins},
        )
        self._answer()

    def _answer(self) -> str:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise SystemExit(f"the engine stopped:\n{self._log.read_text()[-4000:]}")
        return line

    def measure(self, **order: Any) -> dict[str, Any]:
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return json.loads(self._answer())

    def stop(self) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait(60)


def configurations(method: str, rounds: int, numbers: list[int]) -> Iterator[tuple[int, int, str, dict[str, Any]]]:
    """(round, clients, name, the request's arguments) in the order of measurement; round 0 warms up."""
    names = {PLAIN: {}} | {f"{keep:.0%}": {"foveate_method": method, "foveate_keep": keep} for keep in KEEPS}
    for turn in range(rounds + 1):
        for clients in numbers if turn else numbers[-1:]:
            for name in list(names) if turn % 2 else reversed(names):
                yield turn, clients, name, names[name]


def summary(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each number of clients and configuration."""
    rows = []
    plain = {(cell["round"], cell["clients"]): cell for cell in cells if cell["name"] == PLAIN}
    for clients, name in dict.fromkeys((cell["clients"], cell["name"]) for cell in plain.values() for cell in cells):
        mine = [cell for cell in cells if (cell["clients"], cell["name"]) == (clients, name)]
        first, between = ([one for cell in mine for one in cell[kind]] for kind in ("first", "between"))
        served = sum(len(cell["first"]) for cell in mine) / sum(cell["seconds"] for cell in mine)
        row = {"clients": clients, "name": name, "tokens": mine[0]["tokens"], "requests_per_second": served}
        row["tokens_per_second"] = served * OUTPUT
        if "encoding" in mine[0]:
            row["encoder_share"] = sum(cell["encoding"] for cell in mine) / sum(cell["seconds"] for cell in mine)
        row["ttft_mean"] = float(np.mean(first))
        for label, values in (("ttft", first), ("itl", between)):
            row[label], row[f"{label}_p95"] = (float(np.quantile(values, q)) for q in (0.5, 0.95))
        pairs = [(plain[cell["round"], clients], cell) for cell in mine]
        ratios = {
            "throughput": [base["seconds"] / cell["seconds"] for base, cell in pairs],
            "ttft": [np.median(base["first"]) / np.median(cell["first"]) for base, cell in pairs],
            "itl": [np.median(base["between"]) / np.median(cell["between"]) for base, cell in pairs],
        }
        for label, values in ratios.items():
            row[f"{label}_ratio"], row[f"{label}_ratio_low"], row[f"{label}_ratio_high"] = interval(values)
        rows.append(row)
    return rows


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """The geometric mean of the rounds' ratios and its 95 % interval; without bounds (nan) for a single round."""
    logs = np.log(ratios)
    half = float("nan")
    if len(logs) > 1:
        # SciPy is not in vLLM's environment, and a million draws give the quantile to three digits.
        draws = np.random.default_rng(0).standard_t(len(logs) - 1, 1_000_000)
        half = float(np.quantile(np.abs(draws), 0.95) * logs.std(ddof=1) / np.sqrt(len(logs)))
    return float(np.exp(logs.mean())), float(np.exp(logs.mean() - half)), float(np.exp(logs.mean() + half))


def machine() -> str:
    """Hardware and versions, for the record."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    name += f", {os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}"
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else name
    vllm = next(iter(importlib.metadata.packages_distributions()["vllm"]))
    versions = f"{vllm} {importlib.metadata.version(vllm)}, torch {torch.__version__}"
    versions += f", transformers {transformers.__version__}, foveate {foveate.__version__}"
    return f"{name}; {versions}; Python {platform.python_version()}"


def table(rows: list[dict[str, Any]]) -> Table:
    """Encoding: of the time. Latencies: median / mean (of TTFT) / 95th percentile. Ratios: with 95 % intervals."""
    titles = ("clients", "keep", "prompt", "req/s", "tok/s", "encoding", "TTFT ms", "ITL ms")
    made = Table(*titles, *(f"{label} ratio" for label in ("req/s", "TTFT", "ITL")))
    for row in rows:
        cells = [str(row["tokens"]), f"{row['requests_per_second']:.2f}", f"{row['tokens_per_second']:.0f}"]
        cells.append(f"{row['encoder_share']:.0%}" if "encoder_share" in row else "")
        means = {"ttft": f" / {1000 * row['ttft_mean']:.0f}", "itl": ""}
        cells += [f"{1000 * row[key]:.0f}{means[key]} / {1000 * row[key + '_p95']:.0f}" for key in ("ttft", "itl")]
        if row["name"] != PLAIN:
            keys = ("throughput_ratio", "ttft_ratio", "itl_ratio")
            cells += [f"{row[key]:.2f} ({row[key + '_low']:.2f} to {row[key + '_high']:.2f})" for key in keys]
        last = row["name"] == f"{KEEPS[-1]:.0%}"
        made.add_row(str(row["clients"]) if row["name"] == PLAIN else "", row["name"], *cells, end_section=last)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="divprune")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2, help="of each client in a cell; of all at least 12")
    parser.add_argument("--side", type=int, default=448, help="pixels along each side of an image")
    parser.add_argument("--model", default="")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS))
    parser.add_argument("--step", type=int, default=0, help="vLLM's max_num_batched_tokens, the most tokens of a step")
    parser.add_argument("--encoder", action="store_true", help="time the encoder, too, for which a GPU is waited for")
    parser.add_argument("--engine", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        pipe = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # vLLM prints
        asyncio.run(serve(args.model, args.side, args.step, args.encoder, pipe))
        return
    if not importlib.metadata.entry_points(group="vllm.general_plugins", name="foveate"):
        parser.error("vLLM would not find the plugin: install foveate in this environment (pip install -e .) first.")
    environ = ENVIRON | ({} if args.model else {"HF_HUB_OFFLINE": "1"}) | os.environ
    threads = "" if torch.cuda.is_available() else f"; engine threads {environ['OMP_NUM_THREADS']}"
    header = f"{machine()}; {args.method}; {args.rounds} rounds{threads}"
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = args.model or str(folder / "model")
        if not args.model:
            build(folder / "model")
        arguments = [
            "--model",
            model,
            "--side",
            str(args.side),
            "--step",
            str(args.step),
            *(["--encoder"] if args.encoder else []),
        ]
        engines = {name: Engine(name, arguments, folder / f"log-{name}", environ) for name in ("", "foveate")}
        for number, (turn, clients, name, kwargs) in enumerate(configurations(args.method, args.rounds, args.clients)):
            count = max(12, args.requests * clients) if turn else clients
            order = {"clients": clients, "requests": count, "kwargs": kwargs, "seed": number}
            cell = engines["" if name == PLAIN else "foveate"].measure(**order)
            if turn:
                cells.append({"round": turn, "clients": clients, "name": name, **cell})
        for engine in engines.values():
            engine.stop()
    rows = summary(cells)
    console = Console(width=120)
    console.print(header)
    console.print(table(rows))
    lowest = min((row for row in rows if row["name"] != PLAIN), key=lambda row: row["throughput_ratio"])
    where = f"{lowest['clients']} clients, {lowest['name']} kept"
    low, high = lowest["throughput_ratio_low"], lowest["throughput_ratio_high"]
    console.print(
        f"smallest throughput to plain: {lowest['throughput_ratio']:.3f} ({low:.3f} to {high:.3f}) with {where}"
    )
    if args.json:
        args.json.write_text(json.dumps({"machine": header, "rows": rows, "cells": cells}, indent=1) + "\n")


if __name__ == "__main__":
    main()

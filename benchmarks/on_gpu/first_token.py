"""Where the time to the first token of a full-size Qwen2.5-VL-7B goes, with and without pruning.

Its weights are random and made on the device. Each row is the median of rounds in turn with the unpruned model. The
time of a decoding step stands beside: a prefill cannot be much faster than that, since it reads the same weights and
makes as many launches. With one prompt, a prefill of transformers is little more than its launches, pruned or not; so
several prompts at once come first, and the last column compares with what is possible: a prefill that takes its part
of the FLOPs, but no less than a decoding step.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import random_models
import torch
import ttft

import foveate

from .records import Journal
from .runner import Case
from .timing import device_for

_BLOCK = 8  # of the 32 of the vision encoder, at which half of the tokens leave
_KEEPS = (0.25, 0.1)
_FEW = min(_KEEPS)
_SHARE_OF_FLOPS, _SELECTING = 0.85, 0.01


@dataclass(frozen=True)
class Setting:
    """One way to prune: what `foveate.prune` is given; no methods at all for the plain model."""

    name: str
    methods: tuple[Any, ...] = ()
    keep: tuple[float, ...] = ()
    windows: bool = False  # whether the encoder takes windows of one length in one call

    @contextlib.contextmanager
    def attach(self, model: Any) -> Iterator[Any]:
        """Within it the model is pruned so; gives the pruning, or None."""
        with foveate.batch_windows(model) if self.windows else contextlib.nullcontext():
            if not self.methods:
                yield None
            elif len(self.methods) == 1:
                with foveate.prune(model, self.methods[0], keep=self.keep[0]) as pruning:
                    yield pruning
            else:
                with foveate.prune(model, list(self.methods), keep=list(self.keep)) as pruning:
                    yield pruning


_PLAIN = Setting("unpruned")
_WINDOWS = Setting("unpruned, batched windows", windows=True)


@dataclass(frozen=True)
class Load:
    """What the model is asked at once, how often, and by which ways to prune."""

    name: str
    settings: tuple[Setting, ...]
    batch: int = 1
    images: int = 1
    rounds: int = 1

    @property
    def words(self) -> str:
        """For tables and goals."""
        if self.images > 1:
            return f"one prompt of {self.images} images"
        return f"{self.batch} prompts" if self.batch > 1 else "one prompt"


def cases(dry: bool) -> Iterator[Case]:
    """Those of many tokens first: there FLOPs count more than launches."""
    name, tokens = ("qwen2.5-vl-tiny", 576) if dry else ("qwen2.5-vl-7b", 1296)
    measure = partial(_measure, name=name, tokens=tokens, device=device_for(dry))
    for load in _loads_dry() if dry else _loads():
        yield load.name, partial(measure, load=load)


def _one(method: str, keep: float) -> Setting:
    return Setting(f"{method}, {keep:.0%}", (method,), (keep,))


def _d2pruner(keep: float) -> Setting:
    inside = foveate.get_method("d2pruner", debias=False)  # random weights have no attention prior
    return Setting(f"d2pruner, debias=False, {keep:.0%}", (inside,), (keep,))


def _inside(block: int, keep: float) -> Setting:
    methods = (foveate.InEncoder("divprune", block=block), "idpruner")
    return Setting(f"divprune@encoder:{block} 50%, then idpruner, {keep:.0%}", methods, (0.5, keep))


def _with_windows(one: Setting) -> Setting:
    return replace(one, name=f"{one.name}, batched windows", windows=True)


def _loads() -> Iterator[Load]:
    every = tuple(_one("divprune", keep) for keep in _KEEPS)
    every += (_one("idpruner", _FEW), _d2pruner(_FEW), _inside(_BLOCK, _FEW))
    every += (_WINDOWS, _with_windows(every[1]), _with_windows(every[-1]))
    yield Load("eight prompts", every, batch=8, rounds=2)
    yield Load("four prompts", every, batch=4, rounds=3)
    yield Load("four images", (*every[:3], _with_windows(every[1])), images=4, rounds=3)
    yield Load("one prompt", every, rounds=5)


def _loads_dry() -> Iterator[Load]:
    yield Load("two prompts", (_one("divprune", _FEW), _one("idpruner", _FEW), _inside(1, _FEW)), batch=2)
    yield Load("two images", (_WINDOWS, _with_windows(_one("divprune", _FEW))), images=2)
    yield Load("one prompt", (_d2pruner(_FEW),))


@cache
def _model(name: str, device: torch.device) -> Any:
    return random_models.build(name, str(device), torch.float32 if device.type == "cpu" else torch.bfloat16)


@dataclass(frozen=True)
class _Seen:
    """One answer: seconds of its stages, and how many times fewer FLOPs text and vision took."""

    encode: float
    select: float
    prefill: float
    decode: float
    text_ratio: float = 1.0
    vision_ratio: float = 1.0

    @property
    def first(self) -> float:
        return self.encode + self.select + self.prefill


@torch.no_grad()
def _measure(
    journal: Journal,
    *,
    load: Load,
    name: str,
    tokens: int,
    device: torch.device,
) -> None:
    model = _model(name, device)
    inputs = random_models.prompt(model, tokens, load.batch, load.images)
    every = [_PLAIN, *load.settings]
    seen: dict[str, list[_Seen]] = {one.name: [] for one in every}
    memory: dict[str, list[float]] = {one.name: [] for one in every}
    stages = ttft.Stages(model)
    try:
        for turn in range(load.rounds + 1):  # the first one warms up
            for one in every:
                with ttft.peak_memory(str(device), memory[one.name]), one.attach(model) as pruning:
                    found = _answer(stages, inputs, pruning)
                if turn:
                    seen[one.name].append(found)
    finally:
        stages.remove()
        gc.collect()
    plain = seen[_PLAIN.name]
    for one in every:
        _tell(journal, one, f"{name}, {tokens} tokens an image", load, plain, seen[one.name], memory[one.name])


def _answer(stages: ttft.Stages, inputs: dict[str, torch.Tensor], pruning: Any) -> _Seen:
    times = stages.time(inputs, pruning)
    if not pruning:
        return _Seen(times.encode, 0.0, times.prefill, times.decode)
    report = pruning.report()
    return _Seen(
        times.encode,
        times.select,
        times.prefill,
        times.decode,
        report.text_flops_before / report.text_flops,
        report.vision_flops_before / report.vision_flops,
    )


def _tell(
    journal: Journal,
    one: Setting,
    what: str,
    load: Load,
    plain: Sequence[_Seen],
    seen: Sequence[_Seen],
    memory: Sequence[float],
) -> None:
    def middle(name: str) -> float:
        return statistics.median(getattr(answer, name) for answer in seen)

    pairs = list(zip(plain, seen, strict=True))
    faster = statistics.median(p.prefill / (s.prefill + s.select) for p, s in pairs)
    first = statistics.median(p.first / s.first for p, s in pairs)
    encoder = statistics.median(p.encode / s.encode for p, s in pairs)
    text, vision = seen[0].text_ratio, seen[0].vision_ratio
    prefill, step = (statistics.median(getattr(p, part) for p in plain) for part in ("prefill", "decode"))
    selecting, possible = middle("select") / prefill, prefill / max(prefill / text, min(prefill, step))
    journal.row(
        f"Time to the first token, ms: {what}, {load.words}",
        method=one.name,
        encode=1e3 * middle("encode"),
        select=1e3 * middle("select"),
        prefill=1e3 * middle("prefill"),
        **{"first token": 1e3 * middle("first"), "decoding step": 1e3 * middle("decode")},
        **{"first token faster": first, "encoder faster": encoder, "its FLOPs ratio": vision},
        **{"prefill faster": faster, "FLOPs ratio": text, "share of it": faster / text},
        **{"selecting, of a prefill": f"{selecting:.2%}", "peak MiB": round(max(memory)) if memory else "-"},
        **{"possible": possible, "share of the possible": faster / possible},
    )
    if not one.methods or min(one.keep) == 1:
        return
    of = f"{one.name}, {load.words}"
    journal.goal(f"{of}: prefill faster, of its FLOPs ratio", faster / text, _SHARE_OF_FLOPS, at_least=True)
    journal.goal(f"{of}: selecting, of a prefill", selecting, _SELECTING)

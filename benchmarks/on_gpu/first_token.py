"""Where the time to the first token of a full-size Qwen2.5-VL-7B goes, with and without pruning.

Its weights are random and made on the device. Each row is the median of rounds in turn with the unpruned model. The
time of a decoding step stands beside: a prefill cannot be much faster than that, since it reads the same weights and
makes as many launches.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import random_models
import torch
import ttft

import foveate

from .records import Journal, SkippedCase
from .runner import Case
from .timing import device_for

_BLOCK = 8  # of the 32 of the vision encoder, at which half of the tokens leave
_KEEPS = (0.25, 0.1)
_SHARE_OF_FLOPS, _SELECTING = 0.85, 0.01


@dataclass(frozen=True)
class Setting:
    """One way to prune: what `foveate.prune` is given; no methods at all for the plain model."""

    name: str
    methods: tuple[Any, ...] = ()
    keep: tuple[float, ...] = ()

    def attach(self, model: Any) -> Any:
        """The pruning, to be entered."""
        if not self.methods:
            return contextlib.nullcontext()
        if len(self.methods) == 1:
            return foveate.prune(model, self.methods[0], keep=self.keep[0])
        return foveate.prune(model, list(self.methods), keep=list(self.keep))


_PLAIN = Setting("unpruned")


def cases(dry: bool) -> Iterator[Case]:
    """A method each, then several prompts at once."""
    name, tokens, rounds = ("qwen2.5-vl-tiny", 576, 1) if dry else ("qwen2.5-vl-7b", 1296, 5)
    measure = partial(_measure, name=name, tokens=tokens, rounds=rounds, device=device_for(dry))

    def several(*settings: Setting, batch: int = 1) -> Any:
        return lambda journal: measure(journal, settings=settings, batch=batch)

    yield "divprune", several(*(_one("divprune", keep) for keep in (1.0, *_KEEPS)))
    yield "idpruner", several(*(_one("idpruner", keep) for keep in _KEEPS))
    yield "inside the encoder", lambda journal: _inside(measure, journal, 1 if dry else _BLOCK)
    inside = foveate.get_method("d2pruner", debias=False)  # random weights have no attention prior
    yield "d2pruner", several(*(Setting(f"d2pruner, debias=False, {keep:.0%}", (inside,), (keep,)) for keep in _KEEPS))
    yield "four prompts", several(*(_one("divprune", keep) for keep in _KEEPS), batch=2 if dry else 4)


def _one(method: str, keep: float) -> Setting:
    return Setting(f"{method}, {keep:.0%}", (method,), (keep,))


def _inside(measure: Any, journal: Journal, block: int) -> None:
    make = getattr(foveate, "InEncoder", None)
    if make is None:
        raise SkippedCase("this version of foveate cannot prune inside the encoder")
    settings = [
        Setting(f"{base}@encoder:{block} 50%, then {after}, {keep:.0%}", (make(base, block=block), after), (0.5, keep))
        for base, after in (("divprune", "idpruner"),)
        for keep in _KEEPS
    ]
    measure(journal, settings=settings, batch=1)


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
    settings: Sequence[Setting],
    batch: int,
    name: str,
    tokens: int,
    rounds: int,
    device: torch.device,
) -> None:
    model = _model(name, device)
    inputs = random_models.prompt(model, tokens, batch)
    every = [_PLAIN, *settings]
    seen: dict[str, list[_Seen]] = {one.name: [] for one in every}
    memory: dict[str, list[float]] = {one.name: [] for one in every}
    stages = ttft.Stages(model)
    try:
        for turn in range(rounds + 1):  # the first one warms up
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
        _tell(journal, one, f"{name}, {tokens} tokens, batch {batch}", plain, seen[one.name], memory[one.name], batch)


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
    plain: Sequence[_Seen],
    seen: Sequence[_Seen],
    memory: Sequence[float],
    batch: int,
) -> None:
    def middle(name: str) -> float:
        return statistics.median(getattr(answer, name) for answer in seen)

    pairs = list(zip(plain, seen, strict=True))
    faster = statistics.median(p.prefill / (s.prefill + s.select) for p, s in pairs)
    first = statistics.median(p.first / s.first for p, s in pairs)
    encoder = statistics.median(p.encode / s.encode for p, s in pairs)
    text, vision = seen[0].text_ratio, seen[0].vision_ratio
    selecting = middle("select") / statistics.median(p.prefill for p in plain)
    journal.row(
        f"Time to the first token, ms: {what}",
        method=one.name,
        encode=1e3 * middle("encode"),
        select=1e3 * middle("select"),
        prefill=1e3 * middle("prefill"),
        **{"first token": 1e3 * middle("first"), "decoding step": 1e3 * middle("decode")},
        **{"first token faster": first, "encoder faster": encoder, "its FLOPs ratio": vision},
        **{"prefill faster": faster, "FLOPs ratio": text, "share of it": faster / text},
        **{"selecting, of a prefill": f"{selecting:.2%}", "peak MiB": round(max(memory)) if memory else "-"},
    )
    if not one.methods or min(one.keep) == 1:
        return
    of = one.name if batch == 1 else f"{one.name}, {batch} prompts"
    journal.goal(f"{of}: prefill faster, of its FLOPs ratio", faster / text, _SHARE_OF_FLOPS, at_least=True)
    journal.goal(f"{of}: selecting, of a prefill", selecting, _SELECTING)

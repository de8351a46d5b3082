"""Tiny random models of six families: pruned on a GPU equals what is computed by hand there.

In float32 and bfloat16, with PyTorch's attention and with FlashAttention where it is there. `foveate.check` holds one
prompt against the language model run by hand; here come two prompts as a batch, and methods that read attention.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import foveate
import tiny_models
from tiny_models import Zoo

from .records import Journal, SkippedCase
from .runner import Case, first_line
from .timing import device_for

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2}  # of the largest logit, as `foveate.check` has it
_KERNELS = ((torch.bfloat16, "sdpa"), (torch.bfloat16, "flash_attention_2"), (torch.float32, "sdpa"))
_TEXTS = ["what is in the picture?", "a red square on a blue"]
_NEW_TOKENS = 5


def cases(dry: bool) -> Iterator[Case]:
    """Each family with each kernel."""
    torch.backends.cudnn.allow_tf32 = False  # convolutions in float32 as products are
    makers = tiny_models.MAKERS[:2] if dry else tiny_models.MAKERS
    for dtype, kernel in _KERNELS:
        for make in makers:
            name = f"{make.__name__}, {str(dtype).removeprefix('torch.')}, {kernel}"
            yield name, partial(_check, make=make, dtype=dtype, kernel=kernel, device=device_for(dry))


@torch.no_grad()
def _check(journal: Journal, make: Callable[[], Zoo], dtype: torch.dtype, kernel: str, device: torch.device) -> None:
    made = make()
    z = replace(made, model=copy.deepcopy(made.model).to(device, dtype))
    if kernel != "sdpa":
        reason = _missing(kernel) if device.type == "cuda" else "needs a GPU"
        if reason:
            raise SkippedCase(f"{kernel}: {reason}")
        z.model.set_attn_implementation(kernel)
    pictures = [[tiny_models.picture(84, 112, 0)], [tiny_models.picture(56, 168, 3)]]
    both = _there(tiny_models.inputs(z, pictures, _TEXTS), device, dtype)
    singles = [
        _there(tiny_models.inputs(z, [picture], [text]), device, dtype)
        for picture, text in zip(pictures, _TEXTS, strict=True)
    ]
    for found in foveate.check(z.model, singles[0], methods=[]).checks:
        journal.check(f"{found.name} (one prompt)", found.passed, found.detail)
    plain, tolerance = _logits(z, both), _TOLERANCE[dtype]
    repeats = torch.equal(_logits(z, both), plain)
    journal.check("the unpruned model gives the same logits twice", repeats)
    own_gap = _gap_to_singles(z, plain, singles)
    for name, method in _methods().items():
        try:
            with foveate.prune(z.model, method, keep=1.0):
                same = torch.equal(_logits(z, both), plain)
        except foveate.FoveateError as error:
            journal.skip(name, first_line(error))
            continue
        journal.check(f"{name}: keep=1.0 is bit-identical", same)
        with foveate.prune(z.model, method, keep=0.5) as pruning:
            pruned = _logits(z, both)
            kept = [one.kept for one in pruning.report().images]
            alone, kept_alone = [], []
            for single in singles:
                alone.append(_logits(z, single))
                kept_alone += [one.kept for one in pruning.report().images]
            tokens, cached = _generate(z, both)
            _, uncached = _generate(z, both, follow=tokens)
        _compare_kept(journal, f"{name}: a batch equals its prompts alone", kept, kept_alone)
        if all(torch.equal(a, b) for a, b in zip(kept, kept_alone, strict=True)):
            gap = max(_gap(pruned[row, -1], one[0, -1]) for row, one in enumerate(alone))
            told = f"{gap:.1e} of the largest logit; unpruned {own_gap:.1e}"
            passed = gap <= max(tolerance, 2 * own_gap)
            journal.check(f"{name}: the logits of a batch are those of its prompts alone", passed, told)
        gap = _gap(uncached, cached)
        told = f"{gap:.1e} of the largest logit"
        journal.check(f"{name}: generating with the cache is as without", gap <= tolerance, told)
        journal.check(f"{name}: detached, the model is as it was", torch.equal(_logits(z, both), plain))


def _methods() -> dict[str, Any]:
    """One of each kind: by place, by features, by the encoder's attention, merging, inside the LLM by attention."""
    return {
        **{name: name for name in ("stride", "divprune", "idpruner", "avgpool")},
        "fastv": foveate.get_method("fastv", layer=2),
        "d2pruner": foveate.get_method("d2pruner", debias=False),
    }


@cache
def _missing(kernel: str) -> str:
    """Why an attention kernel cannot be used here; empty where it can."""
    model = copy.deepcopy(tiny_models.llava().model).to(torch.bfloat16)
    try:
        model.set_attn_implementation(kernel)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return first_line(error)
    return ""


def _there(inputs: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: one.to(device, dtype if one.is_floating_point() else one.dtype) for name, one in inputs.items()}


def _logits(z: Zoo, inputs: Mapping[str, Tensor]) -> Tensor:
    logits: Tensor = z.model(**inputs, use_cache=False).logits
    return logits


def _gap(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    return float((one.float() - other.float()).abs().max() / one.float().abs().max().clamp_min(1e-12))


def _gap_to_singles(z: Zoo, both: Tensor, singles: Sequence[Mapping[str, Tensor]]) -> float:
    return max(_gap(both[row, -1], _logits(z, single)[0, -1]) for row, single in enumerate(singles))


def _compare_kept(journal: Journal, name: str, kept: Sequence[Tensor], alone: Sequence[Tensor]) -> None:
    """What differs is no failure: 16 bits round otherwise in another batch. The part ``same-choice`` counts it."""
    moved = [int((one & ~other).sum()) for one, other in zip(kept, alone, strict=True)]
    if any(moved):
        journal.skip(name, f"other tokens were kept: {moved} of {[int(one.sum()) for one in kept]}")


def _generate(z: Zoo, inputs: Mapping[str, Tensor], follow: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Greedy tokens (B, T) and the logits (T, B, V) of each, with the cache; without it along the tokens of `follow`.

    After another token, for which a near tie suffices, all logits would be of another text.
    """
    length = inputs["input_ids"].shape[1]

    def force(ids: Tensor, scores: Tensor) -> Tensor:
        assert follow is not None
        return torch.full_like(scores, -torch.inf).scatter(1, follow[:, ids.shape[1] - length, None], 0)

    made = z.model.generate(
        **inputs,
        use_cache=follow is None,
        max_new_tokens=_NEW_TOKENS,
        min_new_tokens=_NEW_TOKENS,
        do_sample=False,
        suppress_tokens=list(z.visual_ids),
        logits_processor=[] if follow is None else [force],
        return_dict_in_generate=True,
        output_logits=True,
    )
    return made.sequences[:, length:], torch.stack(list(made.logits))

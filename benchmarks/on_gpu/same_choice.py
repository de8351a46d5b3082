"""Whether an image that is encoded again, in another batch, keeps the same tokens.

Otherwise what is cached of it is another choice's. First of features that the encoder makes anew, then of the same
features, by every method that a server can use, alone and among others. What differs is counted: products of another
shape are rounded otherwise. The server keeps the same tokens nevertheless by its memory of choices, which is checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any

import random_models
import torch
from torch import Tensor

import foveate
from foveate.budget import Budget
from foveate.devices import to_host
from foveate.methods import Method
from foveate.serving.vllm.batch import MethodCall, Shortened, groups_of, shorten
from foveate.serving.vllm.faults import Faults
from foveate.serving.vllm.memory import ChoiceMemory, key_of
from foveate.tokens import Grid
from serving.vllm import served

from .records import Journal, SkippedCase
from .runner import Case, first_line
from .timing import device_for

_BATCHES = ([0, 1], [1, 0], [0, 2], [2, 1, 0], [0, 0, 0, 0])  # 0: the image itself, 1: a smaller one, 2: a larger one
_KEEP = 0.25
_DRY = ("divprune", "idpruner", "evs", "mmtok", "tome")


def cases(dry: bool) -> Iterator[Case]:
    """By method: of features that are made anew, then of the same features in two types."""
    width = served.WIDTH if dry else 3584
    methods = {name: one for name, one in served.served_methods(width).items() if not dry or name in _DRY}
    yield "the encoder", partial(_encoder, dry=dry)
    for name in methods:
        if "," not in name:  # a scorer of noise is for these features alone
            yield f"{name}, encoded again", partial(_encoded_again, name=name, dry=dry)
    for name, method in methods.items():
        yield f"{name}, same features", partial(_same_features, name=name, method=method, width=width, dry=dry)


@torch.no_grad()
def _same_features(journal: Journal, name: str, method: Method, width: int, dry: bool) -> None:
    # What reads only clips keeps the first frame whole.
    device, frames, budget = device_for(dry), *((3, Budget(0.5)) if name == "evs" else (1, Budget(_KEEP)))
    sides = ((5, 6), (3, 4), (8, 7)) if dry else ((24, 24), (12, 16), (36, 36))
    grids = [Grid(rows, columns, frames) for rows, columns in sides]
    for dtype in (torch.bfloat16, torch.float32):
        images = [_image(grid, seed, dtype, width, device) for seed, grid in enumerate(grids)]

        def run(
            which: Sequence[int], memory: ChoiceMemory | None = None, images: Any = images, dtype: Any = dtype
        ) -> list[Shortened]:
            groups = [groups_of([grids[one]], budget) for one in which]
            question = served.question_for(method, groups, dtype, width)
            if question is not None:
                question = type(question)(question.embeddings.to(device), question.before)
            rows = [images[one][0] for one in which]
            cues = served.cues_for(method, [images[one] for one in which])
            call = MethodCall(method, rows, groups, cues, width, question)
            if memory is None:
                return shorten(call, Faults())
            keys = [bytes(key_of(f"image {one}").tolist()) for one in which]
            return memory.shorten(keys, call, Faults())

        memory = ChoiceMemory()
        (alone,), (again,) = run([0]), run([0])
        (remembered,) = run([0], memory)
        kind = str(dtype).removeprefix("torch.")
        journal.check(f"{kind}: the same image alone twice", torch.equal(alone.index, again.index))
        moved, kept_by_memory = 0, True
        for batch in _BATCHES:
            for which, one in zip(batch, run(batch), strict=True):
                moved = max(moved, _moved(alone.index, one.index)) if which == 0 else moved
            for which, one in zip(batch, run(batch, memory), strict=True):
                if which == 0 and one.repeatable:
                    kept_by_memory &= torch.equal(remembered.index, one.index)
        journal.check(f"{kind}: kept again by the memory of choices", kept_by_memory)
        journal.row(
            "Tokens that another batch changes, at most",
            method=name,
            features=f"the same, {kind}",
            kept=len(alone.index),
            changed=moved,
        )


@cache
def _image(grid: Grid, seed: int, dtype: torch.dtype, width: int, device: torch.device) -> tuple[Tensor, Any]:
    rows, cues = served.image(grid, seed, dtype, width)
    return rows.to(device), {cue: one.to(device) for cue, one in cues.items()}


def _moved(one: Tensor, other: Tensor) -> int:
    """How many of the tokens are not among the others."""
    return len(set(to_host(one)) - set(to_host(other)))


# -- encoded again


@cache
def _model(dry: bool) -> Any:
    device = device_for(dry)
    return random_models.build("qwen2.5-vl-tiny" if dry else "qwen2.5-vl-0.5b", str(device), torch.bfloat16)


@cache
def _prompts(dry: bool) -> dict[str, tuple[dict[str, Tensor], int]]:
    """Batches that hold the image, and which of their images it is."""
    here, other = ((6, 6), (8, 5)) if dry else ((24, 24), (36, 36))
    image, same_size, larger = (*here, 0), (*here, 1), (*other, 2)
    batches = {
        "alone": ([[image]], 0),
        "before another prompt": ([[image], [same_size]], 0),
        "behind another prompt": ([[same_size], [image]], 1),
        "among four prompts": ([[(*here, 3)], [same_size], [image], [(*here, 4)]], 2),
        "before a larger image": ([[image], [larger]], 0),
        "behind a larger image": ([[larger], [image]], 1),
    }
    return {name: (_inputs(_model(dry), prompts), which) for name, (prompts, which) in batches.items()}


def _inputs(model: Any, prompts: Sequence[Sequence[tuple[int, int, int]]]) -> dict[str, Tensor]:
    """Left-padded prompts, whose images are given by rows, columns and seed."""
    pixels, grids, rows = [], [], []
    for prompt in prompts:
        row = list(range(3, 12))
        for height, width, seed in prompt:
            generator = torch.Generator().manual_seed(seed)
            pixels.append(torch.randn(4 * height * width, 3 * 2 * 14 * 14, generator=generator))
            grids.append([1, 2 * height, 2 * width])
            row += [random_models.START, *[random_models.IMAGE] * (height * width), random_models.END]
        rows.append([*row, *range(50, 60)])
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(one)) + one for one in rows], device=model.device)
    return {
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "mm_token_type_ids": (ids == random_models.IMAGE).long(),
        "pixel_values": torch.cat(pixels).to(model.device, model.dtype),
        "image_grid_thw": torch.tensor(grids, device=model.device),
    }


@torch.no_grad()
def _encoder(journal: Journal, dry: bool) -> None:
    """By how much the features of the image differ."""
    model, found = _model(dry), dict[str, Tensor]()
    for name, (inputs, which) in _prompts(dry).items():
        given: dict[str, Any] = {}
        handle = model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs, given=given: given.update(kwargs), with_kwargs=True
        )
        try:
            model(**inputs, use_cache=False, logits_to_keep=1)
        finally:
            handle.remove()
        visual = given["inputs_embeds"][inputs["input_ids"] == random_models.IMAGE]
        sizes = (inputs["image_grid_thw"].prod(1) // 4).tolist()
        found[name] = visual.split(sizes)[which].float()
        gap = (found[name] - found["alone"]).abs().max() / found["alone"].abs().max()
        journal.row(
            "Features of an image that is encoded again, bfloat16",
            batch=name,
            **{"largest difference, of the largest number": float(gap)},
            **{"bit for bit the same": bool(torch.equal(found[name], found["alone"]))},
        )


@torch.no_grad()
def _encoded_again(journal: Journal, name: str, dry: bool) -> None:
    model, kept = _model(dry), dict[str, Tensor]()
    try:
        with foveate.prune(model, name, keep=_KEEP) as pruning:
            for batch, (inputs, which) in _prompts(dry).items():
                model(**inputs, use_cache=False, logits_to_keep=1)
                kept[batch] = pruning.report().images[which].kept
            model(**_prompts(dry)["alone"][0], use_cache=False, logits_to_keep=1)
            journal.check("the same prompt twice", torch.equal(pruning.report().images[0].kept, kept["alone"]))
    except foveate.FoveateError as error:
        raise SkippedCase(first_line(error)) from None
    moved = {batch: int((kept["alone"] & ~one).sum()) for batch, one in kept.items()}
    worst = max(moved, key=lambda batch: moved[batch])
    journal.row(
        "Tokens that another batch changes, at most",
        method=name,
        features="made anew, bfloat16",
        kept=int(kept["alone"].sum()),
        changed=moved[worst],
        worst=worst if moved[worst] else "-",
    )

"""One call of the fuzzer: what is drawn for it, how the model is called, and what situations share."""

from __future__ import annotations

import copy
import io
import pickle
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import fuzz_prompts as draw
import torch
from fuzz_oracles import TIGHT, Watch, blinded, causal, check_counts, expect, pruned, same, same_where_kept, watched
from torch import Tensor

import foveate
import tiny_models as zoo

Inputs = dict[str, Any]
SITUATIONS: dict[str, tuple[Callable[[Case], None], int]] = {}


@dataclass
class Case:
    """One call of the fuzzer: a model and what is drawn for it. `plainly` runs the latest call without pruning."""

    z: zoo.Zoo
    rng: random.Random
    kernel: str = "sdpa"
    notes: list[str] = field(default_factory=list)
    plainly: Callable[[], Any] = lambda: None
    prompts: list[Inputs] = field(default_factory=list)  # all that were drawn
    drawn: draw.Asked | None = None
    whole: Callable[[], Any] | None = None  # all calls of a case that builds on its own earlier ones

    @property
    def model(self) -> Any:
        """The model itself."""
        return self.z.model

    def chance(self, share: float) -> bool:
        """True in a share of all cases."""
        return self.rng.random() < share

    def asked(self, names: Sequence[str] = draw.NAMES, plain: bool = False) -> draw.Asked:
        """A method and a budget that this model takes; now and then one that it refuses."""
        for _ in range(8):
            asked = draw.asked(self.rng, self.z, names, plain)
            try:
                pruned(self.model, asked).detach()
            except foveate.FoveateError:
                if self.chance(0.05):
                    break
                continue
            break
        self.notes.append(str(asked))
        self.drawn = asked
        return asked

    def rows(self, least: int = 1, most: int = 3, images: tuple[int, ...] = (0, 1, 1, 1, 2, 3)) -> list[Inputs]:
        """Some prompts."""
        made = []
        for _ in range(self.rng.randint(least, most)):
            clips = int(self.z.name in draw.VIDEO and self.chance(0.15))
            made.append(draw.prompt(self.z, self.rng, self.rng.choice(images), clips))
        self.prompts += made
        return made

    def blinds(self, watch: Watch) -> bool:
        """Whether the unpruned model with blinded layers gives what the pruned one does."""
        return watch.drops_only and self.z.name in draw.FAMILIES

    @property
    def tied(self) -> bool:
        """Whether a method's choice hangs on rounding: pixels that differ by a millionth make another."""
        chosen = []
        for scale in (0, 1e-6, -1e-6, 3e-6, -3e-6):
            with pruned(self.model, self.drawn) as pruning, torch.no_grad():
                kept = []
                for prompt in self.prompts:
                    moved = {k: v * (1 + scale) if v.is_floating_point() else v for k, v in prompt.items()}
                    self.model(**moved, use_cache=False)
                    kept += [image.kept.tolist() for image in report_of(pruning)]
                    kept += [state_of_layers(pruning)]
            chosen.append(kept)
        return any(kept != chosen[0] for kept in chosen)

    def call(self, inputs: Inputs, **options: Any) -> Any:
        """One forward."""
        self.plainly = lambda: self.model(**inputs, **options)
        with torch.no_grad():
            return self.model(**inputs, **options)

    def generate(self, inputs: Inputs, new: int = 4, **options: Any) -> Any:
        """A few tokens."""
        settings: dict[str, Any] = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
        settings |= {"suppress_tokens": list(self.z.visual_ids), "return_dict_in_generate": True, "output_logits": True}
        settings |= options
        self.plainly = lambda: self.model.generate(**inputs, **settings)
        with torch.no_grad():
            return self.model.generate(**inputs, **settings)


def situation(weight: int) -> Any:
    """Decorator: draw a situation so often."""

    def add(function: Callable[[Case], None]) -> Callable[[Case], None]:
        SITUATIONS[function.__name__] = function, weight
        return function

    return add


def same_generation(name: str, a: Any, b: Any, most: float = TIGHT) -> None:
    """Two generations have the same logits and tokens."""
    if a.logits is not None and b.logits is not None and a.logits[0].shape == b.logits[0].shape:
        for step, (x, y) in enumerate(zip(a.logits, b.logits, strict=True)):
            same(f"{name}, step {step}", x, y, most)
    expect(torch.equal(a.sequences, b.sequences), f"{name}: other tokens")


def real_of(inputs: Inputs) -> Tensor:
    """(B, L) bool."""
    mask = inputs.get("attention_mask")
    ids = inputs["input_ids"]
    return torch.ones_like(ids, dtype=torch.bool) if mask is None or mask.ndim == 4 else mask.bool()


def masked(case: Case, inputs: Inputs) -> Inputs:
    """The inputs with a mask of another kind that says the same, or, without padding, with one's own for pairs."""
    mask = inputs["attention_mask"]
    full, rng = bool(mask.all()), case.rng
    kinds = ["as it is", "bool", "int", "float"] + (["none", "pairs", "pairs"] if full else [])
    kind = rng.choice(kinds)
    case.notes.append(f"mask {kind}")
    if kind == "none":
        return {k: v for k, v in inputs.items() if k != "attention_mask"}
    if kind != "pairs":
        made = {"bool": mask.bool(), "int": mask.int(), "float": mask.float()}.get(kind, mask)
        return {**inputs, "attention_mask": made}
    rows, length = mask.shape
    own = torch.ones(length, length, dtype=torch.bool).tril().repeat(rows, 1, 1)
    for _ in range(rng.randint(0, 3)):
        start, stop = sorted(rng.randint(0, length) for _ in range(2))
        if rng.random() < 0.5:
            own[:, start:stop, start:stop] = True  # these see each other
        else:
            own[:, stop:, start:stop] = False  # nobody later sees these
    own |= torch.eye(length, dtype=torch.bool)
    own = own[:, None]
    out = {**inputs, "attention_mask": own}
    if case.z.mrope:
        out["position_ids"] = positions(case, inputs)
    if case.kernel == "eager" or rng.random() < 0.5:  # transformers adds a bool mask to eager attention's logits
        soft = torch.zeros(own.shape)
        if rng.random() < 0.5:  # of finite values, such as those of ALiBi
            soft = torch.randn(own.shape, generator=torch.Generator().manual_seed(rng.getrandbits(30)))
        out["attention_mask"] = soft.masked_fill(~own, torch.finfo(torch.float32).min)
    return out


def positions(case: Case, inputs: Inputs) -> Tensor:
    """What the unpruned model gives its language model."""
    found: Inputs = {}
    text = case.model.model.language_model
    handle = text.register_forward_pre_hook(lambda module, args, kwargs: found.update(kwargs), with_kwargs=True)
    try:
        case.call(inputs, use_cache=False)
    finally:
        handle.remove()
    if found.get("position_ids") is None:
        return torch.arange(inputs["input_ids"].shape[1]).expand(len(inputs["input_ids"]), -1)
    return found["position_ids"]


def against_blinded(case: Case, asked: draw.Asked, script: Callable[[Any], list[Tensor]], inputs: list[Inputs]) -> None:
    """`script`, which runs forwards one after the other and returns their logits, pruned and unpruned but blinded.

    Args:
        case: the case.
        asked: of pruning.
        script: takes a function to call after each forward.
        inputs: of each forward; masks of the later ones count what came before.
    """
    case.whole = lambda: script(lambda: None)
    with pruned(case.model, asked) as pruning, watched(pruning) as watch:
        shapes = iter([one["input_ids"].shape for one in inputs])

        def noted() -> None:
            watch.note(*next(shapes))
            check_counts(pruning)

        got = script(noted)
    if not case.blinds(watch):
        return
    rows = inputs[0]["input_ids"].shape[0]
    kept = watch.by_layer()
    base = causal(inputs[-1].get("attention_mask"), rows, kept[0].shape[1])  # the last counts all
    own = inputs[0].get("attention_mask")
    bias = own if own is not None and own.ndim == 4 and own.is_floating_point() else None
    with blinded(case.model, kept, base, bias):
        reference = script(lambda: None)
    for number, (a, b, place) in enumerate(zip(got, reference, watch.places, strict=True)):
        real = real_of(inputs[number])[:, -place.shape[1] :]
        same_where_kept(f"forward {number}", a, b, place, real)


def copied(cache: Any, how: str) -> Any:
    """A cache, or a copy of it."""
    if how == "deepcopy":
        return copy.deepcopy(cache)
    if how == "pickle":
        return pickle.loads(pickle.dumps(cache))
    if how == "save":
        held = io.BytesIO()
        torch.save(cache, held)
        held.seek(0)
        return torch.load(held, weights_only=False)
    return cache


def joined(first: Inputs, second: Inputs) -> Inputs:
    """Two turns as one prompt; `second` has the mask of both."""
    out: Inputs = {"attention_mask": second["attention_mask"]}
    for key in first.keys() | second.keys() - {"attention_mask"}:
        if key != "attention_mask":
            parts = [one[key] for one in (first, second) if key in one]
            out[key] = torch.cat(parts, 1 if key in draw.ALONG else 0)
    if first["input_ids"].shape[0] > 1:  # media go by rows
        for key in out.keys() - set(draw.ALONG):
            out.pop(key)
        raise Skip
    return out


class Skip(Exception):
    """There is nothing to check."""


def shortened(pruning: Any) -> bool:
    """Whether the latest prefill was shortened, and so padded on the left."""
    state = pruning._last
    return state is not None and state.places(99) is not None


def state_of_layers(pruning: Any) -> list[Any]:
    """Who is left in each layer, of the latest prefill."""
    state = pruning._last
    return [] if state is None else [None if (p := state.places(n)) is None else p.tolist() for n in range(1, 6)]


def report_of(pruning: Any) -> list[Any]:
    """The pictures of the latest report, or none."""
    try:
        return pruning.report().images
    except foveate.FoveateError:
        return []


def longer_by(case: Case, inputs: Inputs, count: int) -> Inputs:
    """The same prompts with an answer behind them."""
    out = dict(inputs)
    for key, value in (("input_ids", 17), ("attention_mask", 1), ("mm_token_type_ids", 0)):
        if key in out:
            out[key] = torch.nn.functional.pad(out[key], (0, count), value=value)
    return out

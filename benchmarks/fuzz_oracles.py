"""What is right: the unpruned model, whose layers are kept from seeing what pruning dropped; and counts by `Budget`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import foveate
from foveate import grouping
from foveate.methods import Where
from foveate.models import adapter_of
from foveate.runtime.masks import Window

TIGHT = 5e-5  # by which float32 logits of one and the same computation, in another order, may differ


class Wrong(Exception):
    """An oracle says otherwise; where it is only about numbers, by how much."""

    far = float("inf")


def expect(right: bool, message: str) -> None:
    """Raise Wrong unless `right`."""
    if not right:
        raise Wrong(message)


def same(name: str, a: Tensor, b: Tensor, most: float = TIGHT) -> None:
    """Raise Wrong unless two tensors have one shape and differ by at most so much; 0: not in a bit."""
    expect(a.shape == b.shape, f"{name}: shape {tuple(a.shape)}, right {tuple(b.shape)}")
    if not a.numel() or torch.equal(a, b):
        return
    far = float((a.float() - b.float()).abs().nan_to_num(nan=float("inf")).max())
    if far > most or not bool(torch.isfinite(a.float()).all()):
        wrong = Wrong(f"{name}: differs by {far:.3g}")
        wrong.far = far
        raise wrong


@dataclass
class Watch:
    """What a pruned model did: of each forward who was left in each layer, and whether tokens were only dropped."""

    pruning: Any
    kept: list[list[Tensor]] = field(default_factory=list)  # by forward and layer (B, L)
    places: list[Tensor] = field(default_factory=list)  # by forward: where each token's logits are, -1: dropped
    merged: bool = False
    _seen: Any = None

    def note(self, rows: int, length: int) -> None:
        """Take in the forward of `rows` x `length` tokens that has just run."""
        state = self.pruning._last
        layers = len(self.pruning._adapter.text.layers)
        everywhere = torch.arange(length).expand(rows, -1)
        if state is None or state is self._seen:
            self.kept.append([torch.ones(rows, length, dtype=torch.bool)] * layers)
            self.places.append(everywhere)
            return
        self._seen, kept = state, []
        for layer in range(layers):
            place = state.places(layer + 1)
            kept.append(torch.ones(rows, length, dtype=torch.bool) if place is None else place >= 0)
        self.kept.append(kept)
        final = state.places(layers)
        self.places.append(everywhere if final is None else final)

    @property
    def drops_only(self) -> bool:
        """Whether masking what was dropped gives the same; methods that merge or change attention do more."""
        methods = [stage.method for stage in self.pruning._stages]
        text = self.pruning.text
        if any(Window.of(text.config, layer) for layer in range(len(text.layers))):
            return False  # windows count what is left
        more = any(m.bias is not None or m.experts is not None or m.edits(4) for m in methods)
        encoder = any(layer_of(stage) < 0 for stage in self.pruning._stages)
        return not (self.merged or more or encoder)

    def by_layer(self, room: int = 0) -> list[Tensor]:
        """Of the whole sequence, (B, T), with `room` for tokens that are not pruned."""
        joined = [torch.cat(parts, 1) for parts in zip(*self.kept, strict=True)]
        return [torch.nn.functional.pad(kept, (0, room), value=True) for kept in joined]


def layer_of(stage: Any) -> int:
    """The layer of the LLM before which a stage prunes; -1 before or inside the encoder, whose output then differs."""
    return stage.layer if stage.where in (Where.BEFORE_LLM, Where.INSIDE_LLM) else -1


@contextmanager
def watched(pruning: Any) -> Iterator[Watch]:
    """Watch a pruned model."""
    watch, apply = Watch(pruning), grouping.Merge.apply

    def noted(merge: Any, hidden: Tensor) -> Tensor:
        out = apply(merge, hidden)
        watch.merged = watch.merged or not torch.equal(out, hidden)
        return out

    with mock.patch.object(grouping.Merge, "apply", noted):
        yield watch


def causal(mask: Tensor | None, rows: int, length: int) -> Tensor:
    """(B, T, T) bool, from a mask (B, t) or for pairs (B, 1, t, t), or none; what follows it is real."""
    out = torch.ones(length, length, dtype=torch.bool).tril().repeat(rows, 1, 1)
    if mask is None:
        return out
    if mask.ndim == 4:
        allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        t = allowed.shape[-1]
        out[:, :t, :t] = allowed[:, 0]
        return out
    real = torch.nn.functional.pad(mask.bool(), (0, length - mask.shape[1]), value=True)
    return out & real[:, None]


@contextmanager
def blinded(model: Any, kept: Sequence[Tensor], base: Tensor, bias: Tensor | None = None) -> Iterator[None]:
    """The unpruned model, whose layers see of `base` (B, T, T) only what is kept (B, T) in them, call after call.

    A `bias` (B, 1, T, T) of the caller's own mask is added to the logits.
    """
    text = adapter_of(model).text
    done, handles = [0] * len(text.layers), []

    def hook(layer: int) -> Callable[..., Any]:
        def before(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            start, end = done[layer], done[layer] + hidden.shape[1]
            done[layer] = end
            seen = base[:, start:end, :end] & kept[layer][:, None, :end]
            seen = seen | torch.eye(base.shape[1], dtype=torch.bool)[None, start:end, :end]
            mask = seen[:, None]
            if text.config._attn_implementation == "eager" or bias is not None:
                soft = torch.zeros(()) if bias is None else bias[:, :, start:end, :end]
                mask = soft.expand(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
            return args, {**kwargs, "attention_mask": mask}

        return before

    for index, layer in enumerate(text.layers):
        handles.append(layer.register_forward_pre_hook(hook(index), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def same_where_kept(
    name: str, got: Tensor, reference: Tensor, place: Tensor, real: Tensor, most: float = TIGHT
) -> None:
    """Logits (B, W, V) of a shortened batch against those (B, L, V) of the whole, of what is kept and real (B, L)."""
    stay = (place >= 0) & real
    for row in range(len(stay)):
        index = stay[row].nonzero()[:, 0]
        expect(int(place[row].max()) < got.shape[1], f"{name}: {got.shape[1]} logits, {len(index)} kept tokens")
        same(f"{name}, row {row}", got[row, place[row, index]], reference[row, index], most)


def check_counts(pruning: Any) -> None:
    """Each pool of the latest prefill keeps exactly what the budgets of its stages say."""
    state = pruning._last
    if state is None:
        return
    report = pruning.report()
    stages, scope = pruning._stages, None
    total = [sum(len(span.grid) for span in state.spans)] * len(report.visual_tokens_per_layer)
    for layer in range(len(total)):
        active = [stage for stage in stages if layer_of(stage) <= layer]
        if not active:
            continue
        scope = active[0].budget.scope
        place = state.places(layer + 1)
        pools: dict[Any, list[bool]] = {}
        for number, span in enumerate(state.spans):
            alive = [True] * len(span.index) if place is None else (place[span.row, span.index] >= 0).tolist()
            size = len(span.grid.frame) if scope == "frame" else len(alive)
            for at in range(0, len(alive), size):
                key = span.row if scope == "prompt" else (number, at)
                pools.setdefault(key, []).extend(alive[at : at + size])
        for key, alive in pools.items():
            most = min(stage.budget.count(len(alive)) for stage in active)
            counted = any(stage.budget.by_content for stage in active)
            right = sum(alive) <= most if counted else sum(alive) == most
            expect(right, f"layer {layer}, pool {key}: {sum(alive)} of {len(alive)} kept, right {most}")
        expect(sum(map(sum, pools.values())) == report.visual_tokens_per_layer[layer], "report disagrees")
    expect(sum(image.tokens for image in report.images) == report.visual_tokens_per_layer[-1], "images disagree")
    str(report), repr(pruning)


def fingerprint(model: Any) -> dict[str, Any]:
    """What an attachment changes in a model: hooks, attributes, configurations."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        found[f"{name} hooks"] = sum(type(hook).__module__.startswith("foveate") for hook in hooks)
        ours = {key for key, value in vars(module).items() if type(value).__module__.startswith("foveate")}
        found[f"{name} attributes"] = sorted(ours | vars(module).keys() & {"generate", "forward"})
        found[f"{name} config"] = id(vars(module).get("config"))
    return found


def left_over(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What of two fingerprints differs."""
    return ", ".join(f"{key}: {before.get(key)} -> {after.get(key)}" for key in after if before.get(key) != after[key])


def pruned(model: Any, asked: Any) -> Any:
    """Attach what was drawn."""
    return foveate.prune(model, asked.method, asked.keep, **asked.options)

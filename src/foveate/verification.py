"""Checks of foveate on a model of your own: what the tests hold on small models, on the checkpoint that you run."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .api import prune
from .errors import FoveateError, ModelError
from .methods import get_method, method_names
from .methods.toolkit.at_layer import AtLayer
from .methods.toolkit.notes import silence_notes
from .methods.toolkit.registry import method_class
from .models import ModelAdapter, adapter_of
from .runtime.compat import with_cache
from .runtime.masks import Window, attends
from .runtime.prompt import locate

_NEW_TOKENS = 4
# By how much logits may differ from those that were computed by hand, as a share of the largest: kernels sum in
# another order on sequences of another length.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}


@dataclass(frozen=True)
class Check:
    """One thing that must hold, whether it does, by how much not, and how long it took to find out."""

    name: str
    passed: bool
    detail: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class CheckReport:
    """What `check` found.

    Args:
        checks: in the order in which they were made.
        methods: for each method by name the sentence with which it is refused; None where it runs.

    Examples:
        >>> foveate.CheckReport((), {"divprune": None}).passed
        True
    """

    checks: tuple[Check, ...]
    methods: Mapping[str, str | None]

    @property
    def passed(self) -> bool:
        """Whether all checks hold."""
        return all(one.passed for one in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data: ``passed``, ``checks`` (a list of their fields) and ``methods``."""
        return {"passed": self.passed, "checks": [asdict(one) for one in self.checks], "methods": {**self.methods}}


@torch.no_grad()
def check(model: nn.Module, inputs: Mapping[str, Any], methods: Sequence[str] | None = None) -> CheckReport:
    """Hold pruning on `model` against what is computed by hand, on one prompt with one or several images.

    Examples:
        >>> report = foveate.check(model, inputs, methods=["divprune", "fastmmoe"])
        >>> report.passed
        True
        >>> print(report.methods["divprune"], "|", report.methods["fastmmoe"][:50])
        None | LlavaForConditionalGeneration cannot give what fas

    Args:
        model: a supported model, in eval mode; it is unchanged afterwards.
        inputs: what the processor returned for one prompt, on the model's device.
        methods: the methods to try, by name; all when None.

    Raises:
        FoveateError: for a model that is not supported, a prompt without an image, or an unknown method.
    """
    adapter = adapter_of(model)
    names = method_names() if methods is None else [methods] if isinstance(methods, str) else list(methods)
    for name in names:
        method_class(name)
    if not isinstance(inputs, Mapping):
        raise ModelError("check takes what the processor returned with return_tensors='pt', a mapping.")
    inputs = {name: value for name, value in inputs.items() if value is not None}
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or len(ids) != 1:
        raise ModelError("check takes one prompt with one or several images; give the processor's inputs of one.")
    if not locate(adapter, ids, inputs):
        raise ModelError("the prompt holds no image to prune; give one with a picture.")
    wanted: list[Callable[[ModelAdapter, Mapping[str, Any]], Check]] = [_check_keep_all, _check_before_llm]
    if (layer := _layer_inside(adapter)) and not adapter.inside_refused:
        wanted.append(functools.partial(_check_inside_llm, layer=layer))
    checks = [_timed(one, adapter, inputs) for one in (*wanted, _check_cache, _check_detach)]
    return CheckReport(tuple(checks), {name: refusal(adapter, name) for name in names})


def _timed(
    one: Callable[[ModelAdapter, Mapping[str, Any]], Check], adapter: ModelAdapter, inputs: Mapping[str, Any]
) -> Check:
    start = time.perf_counter()
    found = one(adapter, inputs)  # which compares numbers, and so waits for the GPU
    return replace(found, seconds=time.perf_counter() - start)


def refusal(adapter: ModelAdapter, name: str) -> str | None:
    """The sentence with which a method is refused on a model; None where it runs."""
    try:
        with silence_notes(), prune(adapter.model, name, keep=0.5):
            pass  # what attaches has passed all checks
    except FoveateError as error:
        return str(error)
    return None


def _layer_inside(adapter: ModelAdapter) -> int:
    """A layer in the middle of the language model; 0 where it has one layer only."""
    return min(len(adapter.text.layers) // 2, adapter.deepest_stage)


def _check_keep_all(adapter: ModelAdapter, inputs: Mapping[str, Any]) -> Check:
    plain = _logits(adapter, inputs)
    with prune(adapter.model, "stride", keep=1.0):
        same = torch.equal(_logits(adapter, inputs), plain)
    return Check("keep=1.0 changes nothing", same, "bit-identical" if same else "the logits differ")


def _check_before_llm(adapter: ModelAdapter, inputs: Mapping[str, Any]) -> Check:
    """Pruning before the language model, against that model run on what is left."""
    given = _observe(adapter.text, lambda: _logits(adapter, inputs))
    with prune(adapter.model, "stride", keep=0.5) as pruning:
        pruned = _run_head(adapter, inputs)
        kept = [image.kept for image in pruning.report().images]
    index = _indices(adapter, inputs, kept)
    hidden = adapter.text(**shorten_by_hand(adapter, given, index, kept))[0]
    return _compare("before the LLM: equal to a prompt shortened by hand", _head(adapter, hidden), pruned)


def _check_inside_llm(adapter: ModelAdapter, inputs: Mapping[str, Any], layer: int) -> Check:
    """Pruning at a layer, against the layers from there on run one by one on what is left."""
    layers = adapter.text.layers
    given: list[dict[str, Any]] = []
    handles = [
        block.register_forward_pre_hook(
            lambda module, args, kwargs: given.append(_named(module, args, kwargs)), with_kwargs=True
        )
        for block in layers[layer:]
    ]
    try:
        _logits(adapter, inputs)
    finally:
        for handle in handles:
            handle.remove()
    with prune(adapter.model, AtLayer(get_method("stride"), layer), keep=0.5) as pruning:
        pruned = _run_head(adapter, inputs)
        kept = [image.kept for image in pruning.report().images]
    index = _indices(adapter, inputs, kept)
    first = given[0]
    hidden = next(iter(first.values()))
    hidden = hidden[:, index.to(hidden.device)]
    for number, (block, kwargs) in enumerate(zip(layers[layer:], given, strict=True), layer):
        rest = {name: _gather(name, value, index) for name, value in with_cache(kwargs, None).items()}
        rest |= {name: kwargs[name][:, index] for name in adapter.token_arguments if kwargs.get(name) is not None}
        rest.pop(next(iter(kwargs)))
        mask, window = kwargs.get("attention_mask"), Window.of(adapter.text.config, number)
        out = block(hidden, **{**rest, "attention_mask": shorten_mask_by_hand(mask, index, window)})
        hidden = out[0] if isinstance(out, tuple) else out
    return _compare(f"at layer {layer}: equal to layers run by hand", _head(adapter, adapter.last_norm(hidden)), pruned)


def _check_cache(adapter: ModelAdapter, inputs: Mapping[str, Any]) -> Check:
    """A few tokens with the KV cache, and the same without."""

    def run() -> Check:
        tokens, cached = _generate(adapter, inputs)
        # The same tokens, because after another one, which a near tie suffices for, all logits are of another text.
        _, uncached = _generate(adapter, inputs, follow=tokens)
        # In the model's own dtype, which is how exact they are: generate hands them out in float32.
        return _compare(
            "generating with the KV cache: as without", cached.to(adapter.model.dtype), uncached.to(adapter.model.dtype)
        )

    with prune(adapter.model, "stride", keep=0.5):
        pruned = run()
    if not pruned.passed and not run().passed:
        return replace(pruned, passed=True, detail="not compared: the unpruned model differs without a cache, too")
    return pruned


def _check_detach(adapter: ModelAdapter, inputs: Mapping[str, Any]) -> Check:
    plain = _logits(adapter, inputs)
    before = _hooks(adapter.model)
    with prune(adapter.model, "stride", keep=0.5):
        _logits(adapter, inputs)
    same = torch.equal(_logits(adapter, inputs), plain) and _hooks(adapter.model) == before
    return Check("detached: the model is as it was", same, "bit-identical" if same else "the logits or hooks differ")


def shorten_by_hand(
    adapter: ModelAdapter, given: Mapping[str, Any], index: Tensor, kept: Sequence[Tensor]
) -> dict[str, Any]:
    """The language model's arguments for one prompt without what is dropped.

    Args:
        adapter: of the model.
        given: what the language model was called with.
        index: (W,) long, the tokens that stay.
        kept: (N,) bool for each image, for rows that are added inside.
    """
    shortened = {name: _gather(name, value, index) for name, value in with_cache(given, None).items()}
    for name in adapter.token_arguments:
        if given.get(name) is not None:
            shortened[name] = given[name][:, index]
    mask, config = given.get("attention_mask"), adapter.text.config
    if isinstance(mask, Mapping):
        shortened["attention_mask"] = {
            kind: shorten_mask_by_hand(one, index, Window.of_kind(config, kind)) for kind, one in mask.items()
        }
    else:
        shortened["attention_mask"] = shorten_mask_by_hand(mask, index, Window.of_kind(config, None))
    if shortened.get("position_ids") is None:
        shortened["position_ids"] = index[None]
    if shortened.get("attention_mask") is None:  # else gaps between positions are read as the seams of packed prompts
        shortened["attention_mask"] = torch.ones(1, len(index), dtype=torch.long, device=index.device)
    if (deep := adapter.deepstack) is not None and given.get(deep.mask) is not None:
        rows = torch.cat([mask.to(index.device) for mask in kept])
        shortened[deep.rows] = [one[rows.to(one.device)] for one in given[deep.rows]]
    return {**shortened, "use_cache": False}


def shorten_mask_by_hand(mask: Any, index: Tensor, window: Window | None) -> Any:
    """A mask of one prompt cut down to the tokens of `index`; windows count those, and nothing else changes.

    Args:
        mask: (1, H, L, L), bool or additive, is shortened by rows and columns; (1, L) by columns.
        index: (W,) long.
        window: of the layers that it is for.
    """
    if not isinstance(mask, Tensor):
        return mask
    index = index.to(mask.device)  # layers may lie on several devices
    if mask.ndim != 4:
        return mask[..., index]
    if window is None:
        return mask[:, :, index][..., index]
    allowed = attends(mask) & ~_within(window, mask.shape[-1], mask.device)  # what is seen in any case
    allowed = allowed[:, :, index][..., index] | _within(window, len(index), mask.device)
    if mask.dtype == torch.bool:
        return allowed
    return torch.zeros_like(allowed, dtype=mask.dtype).masked_fill(~allowed, torch.finfo(mask.dtype).min)


def _within(window: Window, length: int, device: torch.device) -> Tensor:
    """(length, length) bool: what causal attention within a window sees."""
    order = torch.arange(length, device=device)
    return (order <= order[:, None]) & window.open(order[:, None], order, torch.zeros_like(order[:1, None]))


def _named(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a layer by name, its input first."""
    names = list(inspect.signature(module.forward).parameters)
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return {names[0]: given.pop(names[0]), **given}


def _gather(name: str, value: Any, index: Tensor) -> Any:
    """An argument of the language model or of a layer, cut down to the tokens of `index`."""
    if isinstance(value, (tuple, list)) and name == "position_embeddings":
        return tuple(_gather(name, one, index) for one in value)
    if not isinstance(value, Tensor):
        return value
    index = index.to(value.device)  # layers may lie on several devices
    if name == "inputs_embeds":
        return value[:, index]
    if name == "position_embeddings":
        return value[..., index, :]
    if name == "position_ids" or (value.ndim == 2 and value.dtype in (torch.bool, torch.long)):
        return value[..., index]
    return value


def _indices(adapter: ModelAdapter, inputs: Mapping[str, Any], kept: Sequence[Tensor]) -> Tensor:
    """(W,) long: the tokens of the one prompt that stay."""
    ids = inputs["input_ids"]
    stays = torch.ones(ids.shape[1], dtype=torch.bool, device=ids.device)
    for span, mask in zip(locate(adapter, ids, inputs), kept, strict=True):
        stays[span.index] = mask.to(ids.device)
    return stays.nonzero()[:, 0]


def _observe(module: nn.Module, run: Callable[[], object]) -> dict[str, Any]:
    """The keyword arguments that `module` is called with in `run`."""
    found: dict[str, Any] = {}
    handle = module.register_forward_pre_hook(lambda module, args, kwargs: found.update(kwargs), with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    return found


def _logits(adapter: ModelAdapter, inputs: Mapping[str, Any]) -> Tensor:
    logits: Tensor = adapter.model(**inputs, use_cache=False).logits
    return logits


def _run_head(adapter: ModelAdapter, inputs: Mapping[str, Any]) -> Tensor:
    """What the output embedding gives; some models bound their logits behind it."""
    found: list[Tensor] = []
    head = adapter.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, output: found.append(output))
    try:
        _logits(adapter, inputs)
    finally:
        handle.remove()
    return found[-1]


def _head(adapter: ModelAdapter, hidden: Tensor) -> Tensor:
    logits: Tensor = adapter.model.get_output_embeddings()(hidden)
    return logits


def _generate(adapter: ModelAdapter, inputs: Mapping[str, Any], follow: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A few greedy tokens (1, T) and the logits (T, 1, V) of each, with the KV cache.

    Args:
        follow: (1, T), the tokens to give instead, without a cache.
    """
    length = inputs["input_ids"].shape[1]

    def force(ids: Tensor, scores: Tensor) -> Tensor:
        assert follow is not None
        token = follow[:, ids.shape[1] - length, None]
        return torch.full_like(scores, -torch.inf).scatter(1, token.to(scores.device), 0)

    output = adapter.model.generate(
        **inputs,
        use_cache=follow is None,
        max_new_tokens=_NEW_TOKENS,
        min_new_tokens=_NEW_TOKENS,
        do_sample=False,
        suppress_tokens=_special_tokens(adapter),
        logits_processor=[] if follow is None else [force],
        return_dict_in_generate=True,
        output_logits=True,
    )
    return output.sequences[:, length:], torch.stack(list(output.logits))


def _special_tokens(adapter: ModelAdapter) -> list[int]:
    """Tokens that the model embeds in a way of its own, which it would not do with a cache: those its config names."""
    named = vars(adapter.model.config).items()
    given = [value for name, value in named if name.endswith(("token_id", "token_index", "token_ids"))]
    flat = [one for value in given for one in (value if isinstance(value, (list, tuple)) else [value])]
    found = {*adapter.token_ids().values(), *(one for one in flat if isinstance(one, int))}
    return sorted(one for one in found if one >= 0)


def _compare(name: str, expected: Tensor, found: Tensor) -> Check:
    if expected.shape != found.shape:
        return Check(name, False, f"shapes {tuple(expected.shape)} and {tuple(found.shape)} differ")
    tolerance = _TOLERANCE.get(expected.dtype, 6e-2)
    expected, found = expected.float(), found.float().to(expected.device)
    gap = float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-12))
    return Check(name, gap <= tolerance, f"logits differ by at most {gap:.1e} of the largest one")


def _hooks(model: nn.Module) -> list[int]:
    return [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules()]

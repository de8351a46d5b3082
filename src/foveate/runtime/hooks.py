"""Hooks on a live model: put on together, taken off together, refused to be copied.

Around an attention kernel: transformers lets an attention module look up its kernel by the name in its config. A
wrapped module gets a view of its config whose kernel is a function of ours, which is handed the kernel that was there
before. Only that module is wrapped; masks are made from the untouched model config.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..errors import RuntimeStateError
from ..models.adapter import AttentionCall
from .compat import cache_of, with_cache

_NAME = "foveate_tap"
Kernel = Callable[..., Any]


class Attached:
    """What must not be copied with a model: a copy would share it with the model that it was attached to."""

    def __deepcopy__(self, memo: Any) -> NoReturn:
        _refuse_copies()

    def __reduce__(self) -> NoReturn:
        _refuse_copies()


def _refuse_copies() -> NoReturn:
    raise RuntimeStateError(
        "this model is being pruned by foveate, and a copy would not be; detach pruning before you copy the model."
    )


class Hook(Attached):
    """A function of ours as a hook. Under torch.compile, too, it runs as plain Python: it depends on the prompt."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)


class _Attribute:
    """A model's attribute replaced until `remove()`."""

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self._owner, self._name, self._value = owner, name, value
        self._had = name in vars(owner)
        self._held = vars(owner).get(name)
        setattr(owner, name, value)

    def remove(self) -> None:
        """Put back what was there, unless somebody replaced it since."""
        if vars(self._owner).get(self._name) is not self._value:
            return
        if self._had:
            setattr(self._owner, self._name, self._held)
        else:
            delattr(self._owner, self._name)


def forget_compiled() -> None:
    """Make torch.compile trace again what it has compiled, because it does not notice that hooks change."""
    convert = sys.modules.get("torch._dynamo.convert_frame")
    if convert is not None and convert.FRAME_COUNTER:
        torch.compiler.reset()


class Hooks:
    """All hooks of one attachment."""

    def __init__(self) -> None:
        self._removable: list[Any] = []

    def __bool__(self) -> bool:
        return bool(self._removable)

    def before(self, module: nn.Module, function: Callable[..., Any]) -> None:
        """Call ``function(module, args, kwargs)`` before a module; it may return other ``(args, kwargs)``."""
        self._removable.append(module.register_forward_pre_hook(Hook(function), with_kwargs=True))

    def after(self, module: nn.Module, function: Callable[..., Any], always: bool = False) -> None:
        """Call ``function(module, args, kwargs, output)`` behind a module; `always` even if it raised."""
        handle = module.register_forward_hook(Hook(function), with_kwargs=True, always_call=always)
        self._removable.append(handle)

    def around(self, attention: nn.Module, function: Callable[..., Any]) -> None:
        """See `AttentionWrapper`."""
        self._removable.append(AttentionWrapper(attention, function))

    def observe(self, attention: nn.Module, function: Callable[[AttentionCall], None]) -> None:
        """See `AttentionObserver`."""
        self._removable.append(AttentionObserver(attention, function))

    def add(self, attached: Any) -> None:
        """Something with a ``remove()``."""
        self._removable.append(attached)

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Give an object another attribute."""
        self._removable.append(_Attribute(owner, name, value))

    def remove(self) -> None:
        """Remove all hooks, the latest first."""
        if self._removable:
            forget_compiled()
        while self._removable:
            self._removable.pop().remove()


class _WrappedConfig(Attached):
    """A view of a module's config with another kernel name."""

    def __init__(self, original: Any, around: Callable[..., Any], name: str = _NAME) -> None:
        self._original = original
        self._around = around
        self._attn_implementation = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def call_wrapped(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The kernel of a wrapped module, by the name of a view of its config."""
    return _kernel(module, module.config)(module, *args, **kwargs)


def _kernel(module: nn.Module, config: Any) -> Kernel:
    """The kernel that a config names, inside the wrappers of a wrapped config, the latest outermost."""
    if isinstance(config, _WrappedConfig):
        return functools.partial(config._around, _kernel(module, config._original))
    # Looked up at each call, because the user may switch the kernel while pruning is attached.
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager)


def is_wrapped(kernel: Kernel) -> bool:
    """Whether what a wrapper was handed is another wrapper."""
    return isinstance(kernel, functools.partial)


AttentionInterface.register(_NAME, call_wrapped)


class AttentionWrapper:
    """Call `around(kernel, module, query, key, value, mask, **kwargs)` in place of a module's kernel until `remove()`.

    A module may have several; the latest is the outermost, and they may be removed in any order.
    """

    def __init__(self, module: nn.Module, around: Callable[..., Any], name: str = _NAME) -> None:
        self._module = module
        self._config = _WrappedConfig(module.config, torch.compiler.disable(around), name)
        module.config = self._config  # type: ignore[assignment]

    def remove(self) -> None:
        """Remove this wrapper; removing the last one restores the module's own config."""
        outer: Any = self._module.config
        if outer is self._config:
            self._module.config = self._config._original
            return
        while outer._original is not self._config:
            outer = outer._original
        outer._original = self._config._original


class AttentionObserver(AttentionWrapper):
    """Observe the attention calls of `module` until `remove()`; the output stays the same bit for bit."""

    def __init__(self, module: nn.Module, observe: Callable[[AttentionCall], None]) -> None:
        super().__init__(module, functools.partial(_observe_call, observe))


def _observe_call(
    observe: Callable[[AttentionCall], None],
    kernel: Kernel,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    observe(_call(query, key, value, kwargs.get("attention_mask", mask), kwargs))
    if "attention_mask" not in kwargs:
        args = (mask, *args)
    return kernel(module, query, key, value, *args, **kwargs)


def _call(query: Tensor, key: Tensor, value: Tensor, mask: Any, kwargs: dict[str, Any]) -> AttentionCall:
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    window = kwargs.get("sliding_window")
    return AttentionCall(query, key, scaling, value, mask if isinstance(mask, Tensor) else None, window)


class _Probed(Exception):
    """Leaves a layer with what its attention kernel was called with."""

    def __init__(self, call: AttentionCall) -> None:
        self.call = call


class _ReadOnlyCache:
    """Stands in for a cache: what a layer is given back when it adds to it, without adding to it."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if getattr(self._cache, "offloading", False):  # the layer's entries may still be on their way to the GPU
            torch.cuda.default_stream(key.device).wait_stream(self._cache.prefetch_stream)
        if layer_idx >= len(self._cache.layers):  # a cache that makes its layers as they come
            return key, value
        layer = copy.copy(self._cache.layers[layer_idx])
        for name, held in list(vars(layer).items()):
            if isinstance(held, Tensor):
                setattr(layer, name, held.clone())  # static caches write in place
        return layer.update(key, value, *args, **kwargs)


@torch.no_grad()
def probe_attention(layer: Any, hidden: Tensor, kwargs: dict[str, Any]) -> AttentionCall:
    """What `layer` would call its attention kernel with, without running the kernel, writing a cache or calling hooks.

    Args:
        layer: a decoder layer with `self_attn`.
        hidden: (B, W, d) that enters it.
        kwargs: its other arguments; positions must be of the W tokens. The key is of what its cache holds and of these.
    """
    cache = cache_of(kwargs)
    kwargs = with_cache(kwargs, None if cache is None else _ReadOnlyCache(cache)) | {"attention_mask": None}
    kwargs.pop("hidden_states", None)
    twin = without_hooks(layer)
    twin.self_attn.config = _WrappedConfig(_innermost(layer.self_attn.config), _stop_at_kernel)
    device = device_of(layer.self_attn, hidden.device)  # accelerate's own hooks would have moved all of it
    hidden, kwargs = hidden.to(device), {name: _moved(value, device) for name, value in kwargs.items()}
    try:
        type(layer).forward(twin, hidden, **kwargs)
    except _Probed as probed:
        return probed.call
    raise RuntimeStateError(
        f"{type(layer).__name__} ran without calling its attention kernel, so its attention cannot be read; use a "
        "method that reads none there."
    )


def device_of(module: nn.Module, otherwise: torch.device) -> torch.device:
    """Where a module runs, which is not where its weights are while accelerate offloads them."""
    found = next((weight.device for weight in module.parameters()), otherwise)
    if found.type != "meta":
        return found
    hooks = (getattr(part, "_hf_hook", None) for part in module.modules())
    found = next((at for hook in hooks if (at := getattr(hook, "execution_device", None)) is not None), otherwise)
    return torch.device(found)


def _moved(value: Any, device: torch.device) -> Any:
    """An argument of a layer on a device; a cache stays where it is, as it has a device for each layer."""
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(one, device) for one in value)
    return value.to(device) if isinstance(value, Tensor) else value


def _stop_at_kernel(
    kernel: Kernel, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any
) -> Any:
    raise _Probed(_call(query, key, value, None, kw))


def _innermost(config: Any) -> Any:
    while isinstance(config, _WrappedConfig):
        config = config._original
    return config


def without_hooks(module: nn.Module, foreign: bool = False) -> Any:
    """A module that shares parameters with `module` but not its hooks, nor those of the modules inside.

    With `foreign` it keeps those that are not foveate's, such as those by which transformers collects hidden states.
    """
    twin: Any = object.__new__(type(module))  # not copy.copy, as FSDP makes classes that cannot be made so
    vars(twin).update(vars(module))
    children = {name: child for name, child in module._modules.items() if child is not None}
    state = vars(twin)
    state["_modules"] = {**module._modules, **{name: without_hooks(child, foreign) for name, child in children.items()}}
    for kind in ("_forward_pre_hooks", "_forward_hooks"):
        held = state[kind].items() if foreign else ()
        state[kind] = OrderedDict((key, hook) for key, hook in held if not isinstance(hook, Hook))
    if children:
        state.pop("forward", None)  # of offloading, bound to the module itself; those of its leaves load weights
    return twin


class Checkpointing(Attached):
    """Wraps a layer's gradient-checkpointing function, so that a layer that runs again finds the state of its forward.

    Args:
        function: that of transformers, called with the layer's forward and what it is given.
        snapshot: gives a function that runs another within the forward that is under way now; its argument tells
            whether it does so again.
    """

    def __init__(self, function: Callable[..., Any], snapshot: Callable[[], Callable[[bool], Any]]) -> None:
        self.function, self._snapshot = function, snapshot

    @property
    def reentrant(self) -> bool:
        """Whether gradients reach a layer through its arguments only, and nothing else that its hooks add."""
        return bool(getattr(self.function, "keywords", {}).get("use_reentrant", False))

    def __call__(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        resumed, runs = self._snapshot(), 0

        def run(*given: Any, **named: Any) -> Any:
            nonlocal runs
            runs += 1
            with resumed(runs > 1):
                return forward(*given, **named)

        return self.function(run, *args, **kwargs)

"""Compressed models as folders, which are read without their weights of full size ever being in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ...files import MARK
from .bit_plan import BitPlan, CompressionError
from .experts import PackedExperts, find_blocks, planned_blocks, replace_experts

_PLAN, _WEIGHTS = "bit_plan.json", "packed.safetensors"


def save(model: Any, folder: str | Path) -> None:
    """Write a model that `compress` made smaller: its weights, its configuration and its plan of bits.

    transformers' ``from_pretrained`` cannot read it; `load` can. The processor is saved by its own ``save_pretrained``.

    Raises:
        CompressionError: for models that are not compressed, are pruned at present, or are no class of transformers.
    """
    import transformers
    from safetensors.torch import save_model

    experts = [None if block is None else block.experts for block in find_blocks(model)]
    packed = [one for one in experts if isinstance(one, PackedExperts)]
    if len(packed) < sum(one is not None for one in experts):
        raise CompressionError("the experts of this model are not packed; `compress` it, or use its `save_pretrained`.")
    kind = type(model).__name__
    if getattr(transformers, kind, None) is not type(model):
        raise CompressionError(f"{kind} is not a class of transformers, which `load` could make; save the model in it.")
    folder = Path(folder)
    BitPlan(tuple(() if one is None else one.bits for one in experts), packed[0].group).save(folder / _PLAN)
    model.config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
    save_model(model, str(folder / _WEIGHTS), {"software": MARK, "class": kind})


def load(folder: str | Path) -> Any:
    """The model that `save` wrote, in eval mode on the CPU, in the types that it was saved in.

    Raises:
        CompressionError: for a folder that `save` did not write.
    """
    import transformers
    from safetensors import safe_open

    folder = Path(folder)
    plan = BitPlan.load(folder / _PLAN)
    if not (folder / _WEIGHTS).is_file():
        raise CompressionError(f"{folder} has no {_WEIGHTS}; give a folder that `save` wrote.")
    with safe_open(folder / _WEIGHTS, "pt") as file:
        kind = (file.metadata() or {}).get("class", "")
        stored: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if not hasattr(transformers, kind):
        raise CompressionError(f"this transformers has no class {kind!r}, which {folder} was saved from; update it.")
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    with _no_weights():
        model: Any = getattr(transformers, kind)(config)
    layers = planned_blocks(find_blocks(model), plan)
    packed = [PackedExperts(block.experts, bits, plan.group) for block, bits in layers]
    replace_experts(model, [block for block, _ in layers], packed)
    _put_weights(model, stored, folder)
    if (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval()


@contextmanager
def _no_weights() -> Iterator[None]:
    """Modules that are made meanwhile have parameters without memory, and buffers as ever."""

    def leave_out(module: nn.Module, name: str, weight: nn.Parameter) -> nn.Parameter | None:
        # One that has none already stays the same object, so that tied ones stay tied.
        return None if weight is None or weight.is_meta else nn.Parameter(weight.to("meta"), weight.requires_grad)

    handle = register_module_parameter_registration_hook(leave_out)  # type: ignore[arg-type]  # takes what it gives
    try:
        yield
    finally:
        handle.remove()


def _put_weights(model: nn.Module, stored: dict[str, Tensor], folder: Path) -> None:
    """Weights and buffers from a file that names tied ones once."""
    names: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(name)
    wanted = model.state_dict()
    wrong = [name for name, one in stored.items() if name not in wanted or one.shape != wanted[name].shape]
    twins = {name: tied for tied in names.values() for name in tied}
    wrong += [name for name in wanted if stored.keys().isdisjoint(twins.get(name, [name]))]
    if wrong:
        raise CompressionError(f"{folder / _WEIGHTS} does not fit what lies beside it, from {wrong[0]} on; save again.")
    for tied in names.values():
        (found,) = [stored.pop(name) for name in tied if name in stored]
        weight = nn.Parameter(found, found.is_floating_point())
        for name in tied:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, weight)
    model.load_state_dict(stored, strict=False)  # what is left: buffers

"""What can be taken out of a model whole, and taking it out: heads, neurons, channels, with all that hangs on them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ...errors import ModelError, near_miss
from ...models import ModelAdapter, adapter_of

Kind = Literal["heads", "neurons", "channels", "encoder_neurons"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Place = Literal["layers", "logits", "embeddings", "encoder", "projector"]
_SIZES, _WEIGHTS = "structures.json", "structures.safetensors"


@dataclass(frozen=True)
class Member:
    """A matrix of which each structure holds the same number of rows or of columns, which lie behind each other.

    Attributes:
        module: a linear layer, or the embeddings.
        dim: 0 for rows (filters, with their biases), 1 for columns.
        place: what runs through it: all tokens, one for the logits, nothing for embeddings, the encoder's positions.
        gives: whether this part of a structure is what it gives to the rest of the model.
        activation: the element-wise module behind its rows, if there is one.
        scored: False for a matrix whose weights are those of another member.
    """

    module: Any
    dim: int
    place: Place = "layers"
    gives: bool = False
    activation: nn.Module | None = None
    scored: bool = True

    def filters(self, count: int) -> Tensor:
        """(count, filters of each structure, m) float32, of this matrix; without gradients."""
        return self.filters_of([parameter.detach().float() for parameter in self.parameters()], count)

    def filters_of(self, values: Sequence[Tensor], count: int) -> Tensor:
        """The same of a tensor for each of `parameters`, such as their gradients."""
        weight, *bias = values
        rows = weight if self.dim == 0 else weight.T
        if bias:
            rows = torch.cat([rows, bias[0][:, None]], 1)
        return rows.reshape(count, -1, rows.shape[1])

    def parameters(self) -> list[nn.Parameter]:
        """The weight, and with rows the bias, if there is one."""
        bias = getattr(self.module, "bias", None) if self.dim == 0 else None
        return [self.module.weight] if bias is None else [self.module.weight, bias]


@dataclass(frozen=True)
class Structures:
    """All structures of one kind in one place, such as the heads of a layer.

    Attributes:
        name: such as ``"layers.3.heads"``.
        kind: one of the kinds.
        layer: of the language model or of the encoder; None for channels, which run through all layers.
        count: how many there are.
        members: the matrices that they hold a part of.
        owner: the module that counts them in its attributes.
        norms: RMS norms over channels.
    """

    name: str
    kind: Kind
    layer: int | None
    count: int
    members: tuple[Member, ...]
    owner: Any
    norms: tuple[Any, ...] = ()

    def per(self, member: Member) -> int:
        """Rows or columns of a member that each structure holds."""
        return int(member.module.weight.shape[member.dim]) // self.count


def find_structures(model: nn.Module, kinds: Sequence[Kind] = ("heads", "neurons")) -> list[Structures]:
    """What can be taken out of a model.

    Args:
        model: of any family that foveate knows, in float32, bfloat16 or float16.
        kinds: ``"heads"``: key-value heads of the language model, each with its query heads; ``"neurons"`` of its
            feed-forwards; ``"channels"`` of its residual stream; ``"encoder_neurons"``: of the vision encoder.

    Raises:
        ModelError: for an unknown kind, or one that is not built here as it has to be for it to be taken out.
    """
    adapter = adapter_of(model)
    found: list[Structures] = []
    for kind in kinds:
        if kind not in KINDS:
            raise ModelError(f"unknown kind of structure {kind!r}{near_miss(str(kind), KINDS)}")
        if kind == "channels":
            found.append(_channels(adapter))
        elif kind == "encoder_neurons":
            blocks = enumerate(adapter.vision_layers())
            found += [_neurons(block.mlp, layer, "encoder") for layer, block in blocks if _has_mlp(block)]
        else:
            make = _heads if kind == "heads" else _neurons
            found += [make(*_modules(adapter, layer)[kind], layer) for layer in range(len(adapter.text.layers))]
    return found


def shrink(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Take structures out, in place: the matrices become smaller.

    Args:
        model: a model of which nothing else holds the weights, such as an optimiser.
        kept: by name of the structures, which of them stay, (k,) long, rising; names that are not there stay whole.

    Raises:
        ModelError: for an unknown name or indices that are not such; nothing is changed then.
    """
    known = {one.name: one for one in _all_structures(model)}
    for name, index in kept.items():
        if name not in known:
            raise ModelError(f"the model has no structures {name!r}{near_miss(name, known)}")
        rising = bool((index.diff() > 0).all())
        if not len(index) or not rising or index[0] < 0 or index[-1] >= known[name].count:
            raise ModelError(f"what is kept of {name} must be rising indices below {known[name].count}, at least one.")
    head, embeddings = _ends(model)
    tied = head is not None and head.weight is embeddings.weight
    for name, index in kept.items():
        if len(index) < known[name].count:
            _shrink(known[name], index)
    if tied:
        head.weight = embeddings.weight


def save(model: Any, folder: str | Path) -> None:
    """Write a model that `shrink` made smaller: its weights, its configuration, and how many structures it has left.

    transformers' ``from_pretrained`` cannot read it, because a configuration has one number of heads for all layers;
    `load` can. The processor is saved by its own ``save_pretrained``.
    """
    from safetensors.torch import save_model

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
    sizes = {one.name: one.count for one in _all_structures(model)}
    (folder / _SIZES).write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")
    save_model(model, str(folder / _WEIGHTS))


def load(folder: str | Path) -> Any:
    """The model that `save` wrote, in eval mode on the CPU, in the dtype that it was saved in.

    Raises:
        ModelError: for a folder that `save` did not write.
    """
    from safetensors.torch import load_model
    from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

    folder = Path(folder)
    if not (folder / _SIZES).is_file() or not (folder / _WEIGHTS).is_file():
        raise ModelError(f"{folder} holds no {_SIZES} and {_WEIGHTS}; give a folder that ippro.save wrote.")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModelForImageTextToText.from_config(config, dtype=config.dtype or torch.float32)
    sizes = json.loads((folder / _SIZES).read_text(encoding="utf-8"))
    shrink(model, {name: torch.arange(count) for name, count in sizes.items()})
    load_model(model, str(folder / _WEIGHTS))
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval()


def _all_structures(model: nn.Module) -> list[Structures]:
    """Those of every kind that this model has."""
    found: list[Structures] = []
    for kind in KINDS:
        try:
            found += find_structures(model, [kind])
        except ModelError:
            if kind == "heads":
                adapter_of(model)  # a model that foveate does not know is an error
    return found


def _shrink(structures: Structures, kept: Tensor) -> None:
    left, count, owner = len(kept), structures.count, structures.owner
    cuts = [(member, structures.per(member)) for member in structures.members]
    for member, per in cuts:
        module, index = member.module, (kept[:, None] * per + torch.arange(per)).flatten()
        for parameter in ("weight", "bias"):
            value = getattr(module, parameter, None)
            if value is None or (parameter == "bias" and member.dim == 1):
                continue
            smaller = value.detach().index_select(member.dim, index.to(value.device)).contiguous()
            setattr(module, parameter, nn.Parameter(smaller, requires_grad=value.requires_grad))
        if isinstance(module, nn.Embedding):
            module.embedding_dim = len(index)
        elif member.dim == 0:
            module.out_features = len(index)
        else:
            module.in_features = len(index)
    for norm in structures.norms:  # its mean runs over fewer channels: what was taken out counts as zero
        weight = norm.weight.detach()[kept.to(norm.weight.device)] * math.sqrt(count / left)
        norm.weight = nn.Parameter(weight, requires_grad=norm.weight.requires_grad)
        norm.variance_epsilon *= count / left
    if structures.kind == "heads":
        owner.kv_heads_left = left  # read by foveate's account of FLOPs and of bytes
        for attribute, number in (("num_key_value_heads", left), ("num_heads", left * owner.num_key_value_groups)):
            if hasattr(owner, attribute):
                setattr(owner, attribute, number)
    elif structures.kind != "channels" and hasattr(owner, "intermediate_size"):
        owner.intermediate_size = left


def _modules(adapter: ModelAdapter, layer: int) -> dict[str, tuple[Any]]:
    modules = adapter.modules_of(layer)
    if modules is None:
        raise ModelError(f"layer {layer} of {adapter.class_name} is not built of an attention and a feed-forward.")
    return {"heads": (modules[0],), "neurons": (modules[1],)}


def _heads(attention: Any, layer: int) -> Structures:
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    matrices = _linear(attention, names, layer, "heads", beside=("q_norm", "k_norm"))
    queries, keys, values, out = matrices
    width = getattr(attention, "head_dim", 0)
    fits = width and keys.out_features % width == 0 and keys.out_features == values.out_features
    if not fits or queries.out_features != out.in_features or not hasattr(attention, "num_key_value_groups"):
        raise _refused("heads", attention, layer)
    for name in ("q_norm", "k_norm"):
        if (norm := getattr(attention, name, None)) is not None and norm.weight.numel() != width:
            raise _refused("heads", attention, layer)
    members = (*(Member(one, 0) for one in (queries, keys, values)), Member(out, 1, gives=True))
    return Structures(f"layers.{layer}.heads", "heads", layer, keys.out_features // width, members, attention)


def _neurons(mlp: Any, layer: int, place: Place = "layers") -> Structures:
    gated = hasattr(mlp, "gate_proj")
    names = ("gate_proj", "up_proj", "down_proj") if gated else ("fc1", "fc2")
    matrices = _linear(mlp, names, layer, "neurons")
    activation = getattr(mlp, "act_fn" if gated else "activation_fn", None)
    count = matrices[0].out_features
    if not isinstance(activation, nn.Module) or matrices[-1].in_features != count:
        raise _refused("neurons", mlp, layer)
    members = [Member(matrices[0], 0, place, activation=activation)]
    members += [Member(one, 0, place) for one in matrices[1:-1]]
    members.append(Member(matrices[-1], 1, place, gives=True))
    name, kind = (f"layers.{layer}.neurons", "neurons") if place == "layers" else (f"encoder.{layer}.neurons", "")
    return Structures(name, kind or "encoder_neurons", layer, count, tuple(members), mlp)  # type: ignore[arg-type]


def _channels(adapter: ModelAdapter) -> Structures:
    text = adapter.text
    head, embeddings = _ends(adapter.model)
    width = int(embeddings.weight.shape[1])
    projections = [one for one in adapter.projector.modules() if _is_linear(one) and one.out_features == width]
    norms = [one for one in text.modules() if _is_norm(one) and one.weight.numel() == width]
    expected = 2 * len(text.layers) + 1
    if adapter.deepstack is not None or not projections or head is None or len(norms) != expected:
        raise ModelError(
            f"channels of {adapter.class_name} cannot be taken out: they go through more than linear layers and "
            "RMS norms; leave 'channels' out of the kinds."
        )
    if not all(map(_is_plain_norm, norms)):
        raise ModelError(f"channels of {adapter.class_name} cannot be taken out: its norms are not plain RMS norms.")
    tied = head.weight is embeddings.weight
    members = [
        Member(embeddings, 1, "embeddings", gives=True),
        Member(head, 1, "logits", scored=not tied),
        Member(projections[-1], 0, "projector", gives=True),
    ]
    for layer in range(len(text.layers)):
        modules = _modules(adapter, layer)
        within = (*_heads(*modules["heads"], layer).members, *_neurons(*modules["neurons"], layer).members)
        members += [Member(one.module, 1 - one.dim, gives=one.gives) for one in within]
    return Structures("channels", "channels", None, width, tuple(members), text, tuple(norms))


def _ends(model: Any) -> tuple[Any, Any]:
    """The layer of logits and the embeddings."""
    return model.get_output_embeddings(), model.get_input_embeddings()


def _has_mlp(block: Any) -> bool:
    return hasattr(block, "mlp")


def _linear(owner: Any, names: Sequence[str], layer: int, what: str, beside: Sequence[str] = ()) -> list[Any]:
    """The linear layers of these names, which must be all that has weights, but for what is `beside` them."""
    modules = [getattr(owner, name, None) for name in names]
    holders = {name.split(".")[0] for name, _ in owner.named_parameters()}
    if not all(map(_is_linear, modules)) or holders - {*names, *beside}:
        raise _refused(what, owner, layer)
    return modules


def _is_linear(module: Any) -> bool:
    return type(module) is nn.Linear and module.weight.is_floating_point()  # quantised ones are of other classes


def _is_norm(module: Any) -> bool:
    return hasattr(module, "variance_epsilon") and getattr(module, "weight", None) is not None


def _is_plain_norm(norm: Any) -> bool:
    """Whether it multiplies with its weight alone: some add one to it."""
    with torch.no_grad():
        x = torch.linspace(-1, 2, norm.weight.numel(), device=norm.weight.device, dtype=norm.weight.dtype)
        wanted = x * (x.float().square().mean() + norm.variance_epsilon).rsqrt() * norm.weight
        return bool(torch.allclose(norm(x).float(), wanted.float(), rtol=2e-2, atol=1e-3))


def _refused(what: str, owner: Any, layer: int) -> ModelError:
    return ModelError(
        f"{what} of layer {layer} ({type(owner).__name__}) cannot be taken out: it is not built of plain linear layers "
        f"that each of them holds an own part of; leave {what!r} out of the kinds, or load the model unquantised."
    )

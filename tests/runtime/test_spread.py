"""Models that lie on several devices, or whose weights come and go: pruned as on one.

No test here has a GPU. `pretended_devices` refuses what a second GPU would refuse; accelerate's hooks are its own.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor

import foveate
import tiny_models as zoo_module
from foveate.models import adapter_of
from pretended_devices import PRETENDED, Pretended, on, pretended, spread
from tiny_models import Zoo

from .helpers import TEXTS, gap, generate

# What reads the encoder, attention of one layer or several, text, rotations, routers and pixels; merges and biases.
METHODS = {
    zoo_module.llava: ["visionzip", "restore", "vscan", "sparsevlm", "mmtok", "tops"],
    zoo_module.qwen2_5_vl: ["pixelprune", "fastv", "cdpruner", "pyramiddrop"],
    zoo_module.qwen3_vl_moe: ["divprune", "fastmmoe"],
}


def prompts(z: Zoo) -> dict[str, Any]:
    """A batch of two, of which one has two images."""
    pictures = [[zoo_module.picture(84, 112, 0)], [zoo_module.picture(56, 84, 1), zoo_module.picture(84, 84, 2)]]
    return zoo_module.inputs(z, pictures, TEXTS)


def device_map(model: Any, parity: int) -> dict[str, torch.device]:
    """The encoder on one device, and layers of the language model on both by turns; all else on the first."""
    adapter, names = adapter_of(model), {id(module): name for name, module in model.named_modules()}
    layers = enumerate(adapter.text.layers)
    found = {names[id(layer)]: PRETENDED[(index + parity) % 2] for index, layer in layers}
    found[names[id(adapter.vision)]] = PRETENDED[1]
    for name, module in model.named_modules():  # every other module at once, where none of these is inside
        if not any(own == name or name.startswith(f"{own}.") for own in found):
            inside = any(own.startswith(f"{name}.") for own in found) or not name
            if not inside and not isinstance(module, torch.nn.ModuleList):
                found[name] = PRETENDED[0]
    return {**found, "": PRETENDED[0]}


@pytest.mark.parametrize("make", METHODS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("parity", [0, 1])
def test_layers_on_two_devices(make: Any, parity: int) -> None:
    z = make()
    inputs, model = prompts(z), copy.deepcopy(z.model)
    model.set_experts_implementation("eager")  # the others ask what the device is called
    spread(model, device_map(model, parity))
    for method in METHODS[make][parity::2]:
        with foveate.prune(z.model, method, keep=0.4) as pruning:
            plain, report = generate(z, inputs), pruning.report()
        with pretended():
            given = {name: on(value, PRETENDED[0]) for name, value in inputs.items()}
            with foveate.prune(model, method, keep=0.4) as pruning:
                output = model.generate(**given, max_new_tokens=5, min_new_tokens=5, do_sample=False, **_logits(z))
                found = pruning.report()
        scores = torch.stack([_here(one) for one in output.logits])
        assert float((scores - torch.stack(list(plain.logits))).abs().max()) < 1e-4, method
        assert found.flops == report.flops and found.kv_bytes == report.kv_bytes, method
        assert all(torch.equal(_here(a.kept), b.kept) for a, b in zip(found.images, report.images, strict=True))


def _logits(z: Zoo) -> dict[str, Any]:
    return {"suppress_tokens": list(z.visual_ids), "return_dict_in_generate": True, "output_logits": True}


def _here(tensor: Tensor) -> Tensor:
    return tensor.behind if isinstance(tensor, Pretended) else tensor


def test_pretended_devices_refuse_what_gpus_refuse() -> None:
    """Else the test above could not fail."""
    first, second = (on(torch.arange(4.0), device) for device in PRETENDED)
    with pretended():
        assert torch.equal(_here(first + second.to(first.device)), torch.arange(4.0) * 2)
        assert first[torch.tensor([1, 2])].device == first.device  # an index may be on the CPU
        for mixed in (
            lambda: first + second,
            lambda: first[second.long()],
            lambda: first + torch.arange(4.0),
            lambda: torch.arange(4.0)[second.long()],
            lambda: torch.equal(first, second),
            lambda: first.gather(0, second.long()),
        ):
            with pytest.raises(RuntimeError, match=r"several devices|on the same device"):
                mixed()


@pytest.mark.parametrize("to_disk", [False, True], ids=["to memory", "to disk"])
def test_offloaded_weights(to_disk: bool, llava: Zoo, tmp_path: Path) -> None:
    """Between their forwards, weights are on the meta device, where nothing can be read off them."""
    inputs, model = prompts(llava), copy.deepcopy(llava.model)
    if to_disk:
        accelerate.disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    else:
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert next(model.parameters()).device.type == "meta"
    offloaded = Zoo(llava.name, model, llava.processor, llava.image, llava.visual_ids)
    for method in ("vscan", "cdpruner", "tops"):
        with foveate.prune(llava.model, method, keep=0.4) as pruning:
            plain, report = generate(llava, inputs), pruning.report()
        with foveate.prune(model, method, keep=0.4) as pruning:
            assert gap(generate(offloaded, inputs), plain) < 1e-5, method
            assert pruning.report().flops == report.flops, method


def test_weights_of_experts_that_are_offloaded_are_not_cut() -> None:
    z = zoo_module.qwen3_vl_moe()
    model = copy.deepcopy(z.model)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(foveate.MethodError, match="use expert_reading='number'"):
        foveate.prune(model, "fastmmoe", keep=0.4, expert_reading="width")
    offloaded, inputs = Zoo(z.name, model, z.processor, z.image, z.visual_ids), prompts(z)
    with foveate.prune(z.model, "fastmmoe", keep=0.4):
        plain = generate(z, inputs)
    with foveate.prune(model, "fastmmoe", keep=0.4):
        assert gap(generate(offloaded, inputs), plain) < 1e-5

"""Attention of layers and kinds that a method names, against transformers' own outputs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import foveate
import tiny_families as families
import tiny_models as zoo_module
from foveate.methods import get_method
from foveate.models import adapter_of
from foveate.models.adapter import layers_behind
from foveate.models.qwen2_5_vl import Qwen25VLAdapter
from foveate.runtime.hooks import Hooks
from foveate.tokens import EncoderReading
from runtime.helpers import kernels
from tiny_models import Zoo

from .attention_spy import Spy, shown, vision_outputs
from .qwen_helpers import received_by_hand

KINDS = (EncoderReading(0.0, "cls"), EncoderReading(0.0, "received"), EncoderReading(1.0, "received"))


def attentions(z: Zoo, inputs: dict[str, torch.Tensor]) -> Any:
    with kernels(z.model, "eager"), torch.no_grad():
        return z.model.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions


@pytest.mark.parametrize("make", [zoo_module.llava, zoo_module.internvl], ids=lambda make: make.__name__)
def test_layers_and_kinds_of_towers_with_cls(make: Any) -> None:
    z = make()
    inputs = zoo_module.inputs(z, [[zoo_module.picture(seed=1)], [zoo_module.picture(seed=2)]])
    tokens, layers = shown(z.model, inputs, *KINDS), attentions(z, inputs)
    deep = layers[-2] if z.name == "llava" else layers[-1]  # LLaVA's features are of the last layer but one
    expected = [layers[0][:, :, 0, 1:].mean(1), layers[0].mean((1, 2))[:, 1:], deep.mean((1, 2))[:, 1:]]
    for column, patches in enumerate(expected):
        side = int(patches.shape[1] ** 0.5)
        pooled = nn.functional.avg_pool2d(patches.view(-1, 1, side, side), side // 4).flatten(1)
        assert torch.allclose(tokens.encoder_readings[..., column], pooled, atol=1e-6)  # type: ignore[index]


@pytest.mark.parametrize("make", [zoo_module.qwen2_vl, zoo_module.qwen3_vl], ids=lambda make: make.__name__)
def test_layers_of_towers_without_cls(make: Any) -> None:
    z = make()
    inputs = zoo_module.inputs(z, [[zoo_module.picture(96, 160, 0)], [zoo_module.picture(160, 64, 2)]])
    tokens = shown(z.model, inputs, *KINDS)
    assert tokens.encoder_readings is not None
    for column, layer in enumerate((0, 0, -1)):  # both kinds are the same
        for row, expected in enumerate(received_by_hand(z, inputs, layer)):
            assert torch.allclose(tokens.encoder_readings[row, : len(expected), column], expected, atol=1e-6)


def test_windows_are_never_read(qwen: Zoo) -> None:
    """The tower's first block, which is nearest to depth 0, sees windows only."""
    inputs = zoo_module.inputs(qwen, [[zoo_module.picture(84, 140, 0)]])
    tokens = shown(qwen.model, inputs, *KINDS)
    assert tokens.encoder_readings is not None
    for column in range(3):
        assert torch.equal(tokens.encoder_readings[..., column], tokens.encoder_attention)


def test_readings_leave_the_default_cue_as_it_is(zoo: Zoo) -> None:
    inputs = zoo_module.inputs(zoo, [[zoo_module.picture(84, 112, 0)], [zoo_module.picture(56, 168, 3)]])
    alone, beside = shown(zoo.model, inputs), shown(zoo.model, inputs, EncoderReading(), *KINDS)
    assert alone.encoder_readings is None and beside.encoder_readings is not None
    assert torch.equal(alone.encoder_attention, beside.encoder_attention)
    assert torch.equal(beside.encoder_readings[..., 0], beside.encoder_attention)
    assert torch.equal(alone.encoder_features, beside.encoder_features)


@pytest.mark.parametrize("scope", ["image", "frame"])
@pytest.mark.parametrize("make", zoo_module.VIDEO_MAKERS, ids=lambda make: make.__name__)
def test_clips(make: Any, scope: Any) -> None:
    z, spy = make(), Spy(readings=KINDS)
    with foveate.prune(z.model, spy, keep=0.5, scope=scope), torch.no_grad():
        z.model(**zoo_module.video_inputs(z, 2, 3, 4))
    (tokens,) = spy.seen
    assert tokens.encoder_readings is not None and tokens.encoder_readings.shape == (*tokens.features.shape[:2], 3)
    assert torch.equal(tokens.encoder_readings[..., 2], tokens.encoder_attention)


class Blocks(Qwen25VLAdapter):
    """The adapter for a tower of `depth` blocks that are their own attention, of which some see whole images."""

    def __init__(self, depth: int, full: list[int]) -> None:
        config = SimpleNamespace(vision_config=SimpleNamespace(fullatt_block_indexes=full))
        visual = SimpleNamespace(blocks=[SimpleNamespace(attn=layer) for layer in range(depth)])
        super().__init__(SimpleNamespace(config=config, model=SimpleNamespace(visual=visual)))  # type: ignore[arg-type]


def test_the_papers_layers() -> None:
    """One share of the depth is the papers' layer in CLIP-L, counted from 0, and their full block in Qwen2.5-VL."""
    middle, _ = get_method("hiprune").encoder_readings
    (shallow,) = get_method("vscan").encoder_readings
    clip = Blocks(24, list(range(23)))  # LLaVA reads layer 22
    qwen = Blocks(32, [7, 15, 23, 31])
    assert [int(clip.attention_at(depth)) for depth in (shallow.depth, middle.depth, 1.0)] == [5, 8, 22]
    assert [int(qwen.attention_at(depth)) for depth in (shallow.depth, middle.depth, 1.0)] == [7, 15, 31]
    assert int(qwen.attention_at(11 / 31)) == 15  # of two that are as near, the deeper one


def test_layers_are_counted_as_hidden_states_are() -> None:
    layers = list("abcd")
    counted = {index: "".join(layers_behind(index, layers)) for index in (-1, -2, 0, 1, 3, 4)}
    assert counted == {-1: "abcd", -2: "abc", 0: "a", 1: "a", 3: "abc", 4: "abcd"}


def test_the_module_of_the_default_cue_is_the_deepest(zoo: Zoo) -> None:
    adapter = adapter_of(zoo.model)
    modules = adapter.attention_modules()
    assert adapter.attention_module() is modules[max(modules)]


def lengths_by_cosines(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """(L,): of one query (H, hd) what it reads of each of L keys and values (H, L, hd), heads side by side."""
    parts = []
    for q, k, v in zip(query.double(), key.double(), value.double(), strict=True):
        cosines = torch.stack([torch.cosine_similarity(q, one, dim=0) for one in k])
        parts.append((cosines / len(q) ** 0.5).softmax(0)[:, None] * v)
    return torch.cat(parts, 1).norm(dim=1)


def test_what_the_cls_token_reads_by_cosines() -> None:
    z = zoo_module.llava()
    inputs = zoo_module.inputs(z, [[zoo_module.picture(seed=1)], [zoo_module.picture(seed=2)]])
    found = shown(z.model, inputs, EncoderReading(1.0, "values")).encoder_readings
    layer = adapter_of(z.model).vision_layers()[-2]  # LLaVA's features are of the last but one
    hidden = vision_outputs(z.model, inputs["pixel_values"]).hidden_states[-3]
    assert found is not None
    with torch.no_grad():
        states = layer.layer_norm1(hidden)
        heads = layer.self_attn.num_heads
        made = [getattr(layer.self_attn, f"{name}_proj")(states).unflatten(-1, (heads, -1)) for name in "qkv"]
    for image in range(2):
        query, key, value = (one[image].transpose(0, 1) for one in made)
        expected = lengths_by_cosines(query[:, 0], key, value)[1:]
        torch.testing.assert_close(found[image, :, 0].double(), expected, atol=1e-6, rtol=1e-4)


def test_what_the_mean_query_reads_by_cosines() -> None:
    z = zoo_module.qwen2_vl()
    inputs = zoo_module.inputs(z, [[zoo_module.picture(96, 160, 0)]])
    found = shown(z.model, inputs, EncoderReading(1.0, "values")).encoder_readings
    (call,) = observe(z, inputs)
    query, key, value = (getattr(call, name)[0] for name in ("query", "key", "values"))
    expected = lengths_by_cosines(query.mean(1), key, value).view(-1, 4).mean(1)
    assert found is not None
    torch.testing.assert_close(found[0, :, 0].double(), expected, atol=1e-6, rtol=1e-4)


def observe(z: Zoo, inputs: dict[str, torch.Tensor]) -> list[Any]:
    """The calls of the attention that ENCODER_ATTENTION is read in."""
    hooks, calls = Hooks(), []
    hooks.observe(adapter_of(z.model).attention_module(), calls.append)
    try:
        with torch.no_grad():
            z.model(**inputs)
    finally:
        hooks.remove()
    return calls


SPLIT = (families.pixtral, families.lfm2_vl, families.idefics3, families.kimi_k25, families.llama4, families.ovis2)
if not families.EARLIER:
    SPLIT += (families.gemma4,)


@pytest.mark.parametrize("make", [*zoo_module.MAKERS, *SPLIT], ids=lambda make: make.__name__)
def test_values_are_those_of_each_image(make: Any) -> None:
    zoo = make()
    pictures = [zoo_module.picture(84, 112, 0), zoo_module.picture(56, 168, 3)]
    read = [EncoderReading(1.0, kind) for kind in ("values", "keys", "lengths", "likeness")]
    both = shown(zoo.model, zoo_module.inputs(zoo, [[one] for one in pictures]), *read)
    assert both.encoder_readings is not None
    start = 0
    for picture in pictures:
        alone = shown(zoo.model, zoo_module.inputs(zoo, [[picture]]), *read).encoder_readings
        assert alone is not None and bool((alone > 0).all())
        tiles, size = alone.shape[:2]  # some families cut a picture into several
        torch.testing.assert_close(both.encoder_readings[start : start + tiles, :size], alone, atol=1e-5, rtol=1e-3)
        start += tiles


VALUES = (EncoderReading(0.0, "lengths"), EncoderReading(1.0, "lengths"), EncoderReading(1.0, "likeness"))


def heard_values(z: Zoo, inputs: Any, layers: Any) -> list[torch.Tensor]:
    """What `v_proj` of each layer's attention puts out, (B, S, d)."""
    found: list[torch.Tensor] = []
    handles = [
        layer.self_attn.v_proj.register_forward_hook(lambda module, args, output: found.append(output))
        for layer in layers
    ]
    with torch.no_grad():
        z.model(**inputs)
    for handle in handles:
        handle.remove()
    return found


def test_values_of_towers(llava: Zoo) -> None:
    """The L1 length of each value, and how alike it is to the CLS token's."""
    inputs = zoo_module.inputs(llava, [[zoo_module.picture(seed=1)], [zoo_module.picture(seed=2)]])
    adapter = adapter_of(llava.model)
    last = max(adapter.attention_modules())
    values = heard_values(llava, inputs, [adapter.vision_layers()[layer] for layer in (0, last)])
    tokens = shown(llava.model, inputs, *VALUES)
    alike = (values[-1] @ values[-1][:, :1].mT)[..., 0].softmax(-1)
    expected = [values[0].abs().sum(-1), values[-1].abs().sum(-1), alike]
    for column, of_patches in enumerate(expected):
        torch.testing.assert_close(tokens.encoder_readings[..., column], of_patches[:, 1:])  # type: ignore[index]


def test_values_of_towers_without_cls() -> None:
    """Every patch is compared with all of its image; a token has the mean of its patches."""
    z = zoo_module.qwen2_vl()
    inputs = zoo_module.inputs(z, [[zoo_module.picture(96, 160, 0)], [zoo_module.picture(160, 64, 2)]])
    found: list[torch.Tensor] = []
    attention = z.model.model.visual.blocks[-1].attn
    handle = attention.qkv.register_forward_hook(lambda module, args, output: found.append(output))
    tokens = shown(z.model, inputs, *VALUES)
    handle.remove()
    values = found[0].chunk(3, -1)[2]
    parts = values.split([4 * len(grid) for (grid,) in tokens.grids])
    for row, part in enumerate(parts):
        n = len(part) // 4
        likeness = (part @ part.mT).softmax(-1).mean(0).view(n, 4).mean(1)
        torch.testing.assert_close(tokens.encoder_readings[row, :n, 2], likeness)  # type: ignore[index]
        length = part.abs().sum(-1).view(n, 4).mean(1)
        torch.testing.assert_close(tokens.encoder_readings[row, :n, 1], length)  # type: ignore[index]

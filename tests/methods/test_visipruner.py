"""VisiPruner: contributions against weights and values one by one, the rules by hand, and a model of eight layers."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

import foveate
from foveate.errors import MethodError
from foveate.importance.attention import contributions
from foveate.methods import ModelFacts, get_method
from foveate.methods.visipruner import VisiPruner
from foveate.tokens import Cue, Grid, VisualTokens
from runtime.helpers import gap, generate, kernels, logits, pair, single, visual
from tiny_models import Zoo, _llm, _scaled, llava


def parts_of(*layers: list[tuple[float, float]]) -> Tensor:
    """(n, L, 3) from (change, length) of each token, layer by layer; the outputs have length 2."""
    return torch.tensor([[(c, x, x / 2) for c, x in layer] for layer in layers]).transpose(0, 1)


NOTHING, STILL = [(0.004, 0.1), (0.005 - 1e-4, 9.0), (0.0, 0.3)], [(0.0005, 0.0)] * 3
FUSION, MOVING = [(0.004, 0.3), (0.3, 0.1), (0.0, 0.21)], [(0.01, 0.0), (0.0, 0.0), (0.0, 0.0)]


@pytest.mark.parametrize(
    ("layers", "fields", "expected"),
    [
        ([NOTHING], {}, None),
        ([NOTHING, NOTHING], {"fusion": 0.9955}, [False, True, True]),
        ([FUSION], {}, [True, False, True]),  # the token that changes most is short, and goes
        ([NOTHING, FUSION], {}, [True, False, True]),
        ([FUSION], {"relative": True, "contribution": 0.12}, [True, False, False]),
        ([FUSION], {"contribution": 1.0}, [False] * 3),
        ([FUSION, STILL], {}, [True, False, True]),
        ([FUSION, STILL, STILL], {}, [False] * 3),
        ([FUSION, STILL, MOVING], {}, [True, False, True]),
        ([FUSION, STILL, MOVING, STILL], {}, [False] * 3),
        ([FUSION, STILL, MOVING, STILL], {"in_a_row": True}, [True, False, True]),
        ([FUSION, STILL, MOVING, STILL, STILL], {"in_a_row": True}, [False] * 3),
        ([FUSION, STILL], {"patience": 1}, [False] * 3),
        ([FUSION, *[STILL] * 9], {"patience": None}, [True, False, True]),
    ],
)
def test_rules_by_hand(layers: list[Any], fields: dict[str, Any], expected: list[bool] | None) -> None:
    method, parts = get_method("visipruner", **fields), parts_of(*layers)
    found = method.kept_behind(parts)
    assert (found if found is None else found.tolist()) == expected
    tokens = VisualTokens.of(torch.ones(3, 2), Grid(1, 3), llm_contributions=parts)
    count = 3 if expected is None else sum(expected)
    assert method.counts(tokens).tolist() == [count]
    if len(layers) == 1:  # what is kept are the longest, and so those that were counted
        keep = method.select(tokens, torch.tensor([count])).keep[0]
        assert keep.tolist() == ([True] * 3 if expected is None else expected)


def test_layers_and_edits_of_the_paper() -> None:
    method = get_method("visipruner").bind(ModelFacts("llava", 4096, 32))
    stages = method.stages(32, foveate.Budget("auto"))
    assert [stage.layer for stage in stages] == list(range(8, 32))  # layer 7 is the first that may filter
    edits = method.edits(32)
    assert [(edit.layer, edit.rows, edit.moved) for edit in edits] == [
        (0, "text", "first"),
        (0, "visual", "nowhere"),
        *[(layer, "text", "nowhere") for layer in range(1, 6)],
    ]
    half = get_method("visipruner", layer0_edit="half").edits(32)
    assert (half[0].share, half[0].moved) == (0.5, "nowhere") and half[1:] == edits[1:]
    assert get_method("visipruner", shallow=0).edits(32) == () == method.edits(4)  # of few layers none is shallow
    assert [(stage.layer, stage.budget.keep) for stage in method.stages(32, foveate.Budget(0.1))] == [(16, 0.1)]


def test_contributions_one_by_one() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    visible = torch.tensor([[True] * 6, [False, True, True, True, False, False]])
    found = contributions(query, key, value, 0.3, visible)
    for row in range(2):
        seen = visible[row].nonzero()[:, 0].tolist()
        parts = {}
        for j in seen:
            heads = []
            for h in range(4):
                scores = torch.stack([query[row, h] @ key[row, h // 2, i] for i in seen]) * 0.3
                heads.append(scores.softmax(0)[seen.index(j)] * value[row, h // 2, j])
            parts[j] = torch.cat(heads)
        out = sum(parts.values())
        for j in range(6):
            if j not in parts:
                assert found[row, j].tolist() == [0, 0, 0]
                continue
            change = 1 - torch.cosine_similarity(out, out - parts[j], dim=0)
            expected = torch.stack([change, parts[j].norm(), parts[j].norm() / out.norm()])
            torch.testing.assert_close(found[row, j], expected, atol=2e-6, rtol=1e-4)
    alone = contributions(query, key, value, 0.3, torch.eye(6, dtype=torch.bool)[[0, 1]])
    torch.testing.assert_close(alone[0, 0, [0, 2]], torch.ones(2))  # nothing is left without it


@dataclass(frozen=True)
class Watched(VisiPruner):
    """Remembers what it counted by."""

    seen: list[Tensor] = field(default_factory=list, compare=False)

    def counts(self, tokens: VisualTokens) -> Tensor:
        self.seen.append(tokens.cue(Cue.LLM_CONTRIBUTIONS)[0])
        return super().counts(tokens)


@pytest.fixture(scope="module")
def deep() -> Zoo:
    """LLaVA with eight layers."""
    small = llava()
    config = small.model.config.__class__.from_dict(small.model.config.to_dict())
    config.text_config = tf.LlamaConfig(vocab_size=config.text_config.vocab_size, **_llm(16) | {"num_hidden_layers": 8})
    model = _scaled(tf.LlavaForConditionalGeneration(config), 3)
    return Zoo("llava", model, small.processor, small.image, small.visual_ids)


FIELDS = {"shallow": 2, "fusion": 0.9966, "contribution": 0.4, "stable_cosine": 0.986}


def test_what_the_cue_holds(deep: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against eager attention's own weights and values, layer by layer, while nothing is dropped."""
    inputs, heard = single(deep), {}
    method = Watched(shallow=0, fusion=-1.0)
    with foveate.prune(deep.model, method, keep="auto"):
        logits(deep, inputs)
    module = sys.modules[type(deep.model.model.language_model.layers[0].self_attn).__module__]
    eager = module.eager_attention_forward

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        out, weights = eager(module, query, key, value, *args, **kwargs)
        heard[module.layer_idx] = weights[0, :, -1, :, None] * value[0].repeat_interleave(2, 0), out[0, -1]
        return out, weights

    monkeypatch.setattr(module, "eager_attention_forward", attend)
    with kernels(deep.model, "eager"):
        logits(deep, inputs)
    image = visual(deep, inputs)[0]
    assert [parts.shape for parts in method.seen] == [(16, n, 3) for n in range(1, 7)]
    for column, layer in enumerate(range(1, 7)):
        every, out = heard[layer]
        torch.testing.assert_close(every.sum(1), out)  # the parts of all tokens add up to the output
        parts, out = every[:, image].transpose(0, 1).flatten(1), out.flatten()
        change = 1 - torch.cosine_similarity(out[None], out - parts)
        length = parts.norm(dim=1)
        expected = torch.stack([change, length, length / out.norm()], 1)
        torch.testing.assert_close(method.seen[-1][:, column], expected, atol=1e-5, rtol=1e-3)


def test_a_model_filters_and_then_stops_looking(deep: Zoo) -> None:
    inputs = single(deep)
    method = Watched(**FIELDS, patience=1)
    with foveate.prune(deep.model, method, keep="auto") as pruning:
        found = logits(deep, inputs)
        report = pruning.report()
    # Layers 3 to 6 were read. The naive rule, token by token:
    parts, left = method.seen[-1].tolist(), {}
    kept, over = set(range(16)), False
    for column, layer in enumerate((3, 4, 5, 6)):
        if len(kept) == 16 and any(parts[j][column][0] > 0.0034 for j in kept):
            kept = {j for j in kept if parts[j][column][1] > 0.4}
        elif len(kept) < 16 and all(parts[j][column][0] <= 0.014 for j in kept):
            over = True
        left[layer + 1] = set() if over else kept
    counts = [16] * 4 + [len(left[layer]) for layer in (4, 5, 6, 7)]
    assert report.visual_tokens_per_layer == counts and len(set(counts)) == 3 and counts[-1] == 0
    assert report.tokens == 0 and report.average_visual_tokens == sum(counts) / 8
    assert report.kv_bytes < report.kv_bytes_before and report.text_flops < report.text_flops_before

    # The same, by masks instead of dropping, with the same edits.
    image = visual(deep, inputs)[0].nonzero()[:, 0]
    length, handles = inputs["input_ids"].shape[1], []
    for layer, alive in left.items():
        keep = torch.ones(length, dtype=torch.bool)
        keep[image] = torch.tensor([j in alive for j in range(16)])
        allowed = torch.ones(length, length, dtype=torch.bool).tril() & keep | torch.eye(length, dtype=torch.bool)

        def mask(module: Any, args: Any, kwargs: dict[str, Any], allowed: Tensor = allowed) -> Any:
            return args, {**kwargs, "attention_mask": allowed[None, None]}

        block = deep.model.model.language_model.layers[layer]
        handles.append(block.register_forward_pre_hook(mask, with_kwargs=True))
    with foveate.prune(deep.model, VisiPruner(shallow=2, fusion=-1.0), keep="auto"):
        reference = logits(deep, inputs)[:, keep]
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(found, reference, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("patience", [1, None])
@pytest.mark.parametrize("before", [False, True], ids=["alone", "pruned"])
def test_generation(deep: Zoo, patience: int | None, before: bool) -> None:
    """Cached equals uncached, batched equals single, where images lose tokens in other layers, or all of them."""
    method: Any = VisiPruner(**FIELDS, patience=patience)
    method, keep = (["divprune", method], [0.6, "auto"]) if before else (method, "auto")
    both, one = pair(deep), single(deep)
    with foveate.prune(deep.model, method, keep=keep) as pruning:
        cached = generate(deep, both)
        counts = pruning.report().visual_tokens_per_layer
        assert counts[-1] < counts[2]
        assert gap(cached, generate(deep, both, use_cache=False)) < 2e-5
        alone = generate(deep, one)
        assert max(float((x[0] - y[0]).abs().max()) for x, y in zip(cached.logits, alone.logits, strict=True)) < 2e-5
        assert gap(cached, generate(deep, both, cache_implementation="static")) < 2e-5


def test_a_given_budget_cuts_once(deep: Zoo) -> None:
    with foveate.prune(deep.model, "visipruner", keep=4, layer=3) as pruning:
        logits(deep, single(deep))
        assert pruning.report().visual_tokens_per_layer == [16] * 3 + [4] * 5


def test_what_it_refuses(deep: Zoo) -> None:
    with pytest.raises(MethodError, match=r"shallow=6 leaves no layer.*has 8 layers; give a lower shallow="):
        foveate.attach(deep.model, "visipruner", keep="auto", shallow=6)
    with pytest.raises(MethodError, match=r"layer=8, but .* use a layer in \[1, 7\]"):
        foveate.attach(deep.model, "visipruner", layer=8)
    for fields, message in (
        ({"shallow": -1}, "at least 0"),
        ({"layer0_edit": "sinks"}, "sink"),
        ({"fusion": 2}, r"\[-1, 1\]"),
        ({"contribution": -1}, "at least 0"),
        ({"stable_cosine": 1.5}, r"\[-1, 1\]"),
        ({"patience": 0}, "at least 1"),
        ({"layer": 0}, "at least 1"),
    ):
        with pytest.raises(MethodError, match=message):
            get_method("visipruner", **fields)

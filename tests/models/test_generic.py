"""The generic adapter: where it finds images, and what it refuses before anything is dropped.

`test_families.py` runs it on DeepSeek-VL as on any family, `test_classes.py` on every class that can be made tiny.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import foveate
import tiny_classes
import tiny_families
import tiny_models
from foveate.errors import ModelError, RuntimeStateError
from foveate.importance import LearnedScorer
from foveate.models import adapter_of
from foveate.models.generic import GenericAdapter
from foveate.runtime.prompt import locate
from foveate.tokens import Cue, Grid, Source


@pytest.fixture(scope="module")
def z() -> tiny_models.Zoo:
    return tiny_families.deepseek_vl()


def inputs_of(z: tiny_models.Zoo, images: int = 1) -> dict[str, Any]:
    return tiny_models.inputs(z, [[tiny_models.picture(seed=seed) for seed in range(images)]])


def test_a_class_without_an_adapter_gets_the_generic_one(z: tiny_models.Zoo) -> None:
    adapter = adapter_of(z.model)
    assert isinstance(adapter, GenericAdapter)
    assert adapter.class_name == "DeepseekVLForConditionalGeneration"
    assert not adapter.available_cues & Cue.of(Source.ENCODER, Source.ROUTER)
    assert adapter.text is z.model.model.language_model
    assert adapter.vision is z.model.model.vision_model
    assert len(adapter.vision_layers()) == 3


def test_images_beside_each_other_are_cut_apart(z: tiny_models.Zoo) -> None:
    inputs = inputs_of(z, 2)
    spans = locate(adapter_of(z.model), inputs["input_ids"], inputs)
    assert [span.grid for span in spans] == [Grid(4, 4)] * 2
    assert spans[1].index[0] == spans[0].index[-1] + 1


def test_a_run_of_unknown_make_is_one_row() -> None:
    adapter = adapter_of(tiny_families.deepseek_vl().model)
    token = adapter.token_ids()["image"]
    ids = torch.tensor([[1, *[token] * 6, 2, *[token] * 9, 3], [*[token] * 6, 1, *[token] * 9, 2, 3]])
    grids = adapter.grids({"input_ids": ids})["image"]
    assert grids == [Grid(1, 6), Grid(3, 3)] * 2  # of nine tokens a square can be made


def test_what_needs_the_encoder_is_refused_and_the_rest_runs(z: tiny_models.Zoo) -> None:
    with pytest.raises(ModelError, match="cannot give what visionzip needs"):
        foveate.prune(z.model, "visionzip")
    inputs = inputs_of(z)
    for method in ("divprune", "random", "dart", "fastv"):
        with foveate.prune(z.model, method, keep=0.5) as pruning, torch.no_grad():
            z.model(**inputs)
        assert pruning.report().tokens == 8, method


def test_idpruner_runs_with_a_scorer_and_says_so(z: tiny_models.Zoo) -> None:
    with pytest.raises(ModelError, match=r"choose another method, or give scorer=<file, folder or hub id>, which"):
        foveate.prune(z.model, "idpruner")
    maps = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in ((8, 64), (8,)) * 2]
    with foveate.prune(z.model, "idpruner", keep=0.5, scorer=LearnedScorer(*maps)) as pruning, torch.no_grad():
        z.model(**inputs_of(z))
    assert pruning.report().tokens == 8


def called_with(z: tiny_models.Zoo, monkeypatch: pytest.MonkeyPatch, **extra: Any) -> None:
    """One pruned forward of a model whose outer class hands more to its language model."""
    text = z.model.model.language_model
    forward = text.forward
    monkeypatch.setattr(text, "forward", lambda *args, **kwargs: forward(*args, **{**kwargs, **dict.fromkeys(extra)}))
    handle = text.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, **extra}), with_kwargs=True, prepend=True
    )
    try:
        with foveate.prune(z.model, "divprune", keep=0.5), torch.no_grad():
            z.model(**inputs_of(z))
    finally:
        handle.remove()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "mask for pairs": ({"attention_mask": torch.ones(1, 1, 30, 30).bool()}, "makes the attention mask"),
    "mask for each kind of layer": ({"attention_mask": {"full_attention": None}}, "makes the attention mask"),
    "axes": ({"position_ids": torch.zeros(3, 1, 30).long()}, "more than one axis"),
    "rows for visual tokens": ({"added": [torch.zeros(16, 64)]}, "called with added"),
    "longer sequence": ({"inputs_embeds": torch.zeros(1, 77, 64)}, r"embeddings \(1, 77, 64\)"),
    "no embeddings": ({"inputs_embeds": None}, "not called with inputs_embeds"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_shortened_is_refused_in_the_first_forward(
    z: tiny_models.Zoo, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra, words = REFUSED[case]
    with pytest.raises(ModelError, match=words):
        called_with(z, monkeypatch, **extra)


def test_sizes_of_images_are_in_nobodys_way(z: tiny_models.Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    called_with(z, monkeypatch, image_sizes=torch.tensor([[56, 56]]))


def test_a_language_model_that_is_not_called_is_no_silence() -> None:
    z = tiny_families.deepseek_vl.__wrapped__()
    z.model.model.language_model = _Around(z.model.model.language_model)
    refused = pytest.raises(RuntimeStateError, match="nothing was pruned")
    with foveate.prune(z.model, "divprune", keep=0.5), torch.no_grad(), refused:
        z.model(**inputs_of(z))


class _Around(nn.Module):
    """Runs a language model past its hooks."""

    def __init__(self, text: Any) -> None:
        super().__init__()
        self.model, self.config = text, text.config
        self.get_input_embeddings = text.get_input_embeddings

    def forward(self, **kwargs: Any) -> Any:
        return self.model.forward(**kwargs)


STATIC = {
    "paligemma": "attend in both directions",
    "gemma3": "token_type_ids",
    "mllama": "cross_attention",
    "t5gemma2": "an encoder and a decoder",
    "inkling_mm_model": "it hears",
    "cosmos3_edge": "more than one axis",
    "blip-2": "no placeholder",
}


@pytest.mark.parametrize("model_type", STATIC)
def test_what_is_known_of_a_class_is_refused_before_it_is_touched(model_type: str) -> None:
    try:
        model = tiny_classes.build(model_type)
    except (tiny_classes.NotTiny, KeyError):
        pytest.skip("this release of transformers builds none")
    with pytest.raises(ModelError, match=STATIC[model_type]):
        GenericAdapter(model)


@pytest.mark.parametrize("where", ["layer_types", "is_causal", "cross_attn", "self_attn"])
def test_other_layers_than_known_ones_are_refused(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_families.deepseek_vl.__wrapped__().model
    layer = model.model.language_model.layers[1]
    if where == "layer_types":
        model.config.text_config.layer_types = ["full_attention", "linear_attention"]
    elif where == "is_causal":
        layer.self_attn.is_causal = False
    elif where == "cross_attn":
        layer.cross_attn = nn.Linear(2, 2)
    else:
        layer.mixer = layer.self_attn
        del layer.self_attn
    with pytest.raises(ModelError, match=r"layers of its language model|both directions"):
        adapter_of(model)


def test_layers_that_take_more_are_not_shortened(z: tiny_models.Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(z.model.model.language_model.layers[0])
    forward = kind.forward

    def more(self: Any, hidden_states: Any, noise: Any = None, **kwargs: Any) -> Any:
        return forward(self, hidden_states, **kwargs)

    monkeypatch.setattr(kind, "forward", more)
    with pytest.raises(ModelError, match="cannot be pruned inside its language model, because its layers take noise"):
        foveate.prune(z.model, "fastv")
    assert foveate.check(z.model, inputs_of(z), ["divprune"]).passed


def test_it_gives_no_routers_even_where_it_counts_their_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What routers give differs between classes, so methods that read them are refused."""
    adapter = adapter_of(tiny_families.deepseek_vl().model)
    monkeypatch.setattr(type(adapter), "moe", lambda self: [object()] * len(self.text.layers))
    assert Cue.ROUTER_LOGITS not in adapter.available_cues

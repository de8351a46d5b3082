"""What every method owes: exact counts, the same choice alone or in a batch, everything at full budget."""

from dataclasses import replace

import pytest
import torch

from foveate.budget import Budget
from foveate.errors import MethodError, SelectionError
from foveate.importance import AttentionPrior
from foveate.methods import ModelFacts, Where, get_method, method_names
from foveate.methods.toolkit import registry
from foveate.methods.toolkit.at_layer import AtLayer
from foveate.methods.toolkit.registry import counting_methods, method_class
from foveate.methods.toolkit.two_stage import HybridMethod
from foveate.tokens import Cue, Grid, Kind, VisualTokens
from tiny_methods import CLIPS_ONLY, WHOLE_GRIDS, settings

FACTS = ModelFacts("toy", 8, 4)
CLIPS = ((Grid(2, 2, 5),), (Grid(1, 3, 2), Grid(1, 2, 6)), (Grid(1, 1, 7),))
TEXT = torch.tensor([[True] * 4, [False, True, True, True], [True, False, False, False]])
FOLLOWS = torch.tensor([[False, True, True, True], [False, False, True, True], [False] * 4])
SIZES = {"N": 20, "d": 8, "D": 8, "M": 4, "e": 5, "R": 2, "E": 6, "H": 2, "K": 1, "c": 3, "L": 2}
POOLS = ((Grid(4, 5),), (Grid(2, 3), Grid(3, 2, 2)), (Grid(1, 7),))


def make(name):
    torch.manual_seed(1)
    name, _, where = name.partition(", ")
    method = get_method(name, **settings(name, FACTS.hidden_size, FACTS.layers)).bind(FACTS)
    return method.stages(4, Budget(0.5))[-1].method if where else method


# Methods that prune in both places choose inside the LLM with another `select`.
HYBRID = [name for name in method_names() if issubclass(method_class(name), HybridMethod)]
CHOICES = [*method_names(), *(f"{name}, inside" for name in HYBRID)]


def batch(pools=POOLS, method=None):
    """Every cue at random, in the shape that it declares; as many encoder readings as a method asks for."""
    sizes = SIZES | ({"R": len(method.encoder_readings)} if method is not None and method.encoder_readings else {})
    torch.manual_seed(0)
    features, cues = torch.rand(3, 20, 8), {}
    for cue in Cue:
        shape = (3, *cue.shape(sizes))
        numbers = torch.randn(shape) if cue.kind is Kind.VECTOR else torch.rand(shape)
        cues[cue] = numbers < 0.2 if cue.kind is Kind.MASK else numbers
    cues[Cue.LLM_TEXT_ATTENTION] *= FOLLOWS[:, None, None]
    cues[Cue.LLM_CONTRIBUTIONS] *= 0.01
    cues[Cue.LAST_NORM] = (torch.rand(8) + 0.5).expand(3, -1)
    return VisualTokens(features, pools, cues, text_valid=TEXT, text_follows=FOLLOWS)


def alone(tokens, row):
    n, cues = tokens.sizes[row], {}
    for cue, value in tokens.cues.items():
        value = value[row : row + 1]
        for axis, name in enumerate(cue.axes, 1):
            if name in "NM":
                there = torch.arange(n) if name == "N" else TEXT[row].nonzero()[:, 0]
                value = value.index_select(axis, there)
        cues[cue] = value
    follows = tokens.text_follows[row : row + 1, TEXT[row]]
    return VisualTokens(tokens.features[row : row + 1, :n], tokens.grids[row : row + 1], cues, text_follows=follows)


@pytest.mark.parametrize("name", CHOICES)
def test_contract(name):
    method = make(name)
    tokens, count = batch(CLIPS if name in CLIPS_ONLY else POOLS, method), torch.tensor([6, 5, 3])
    selection = method.select(tokens, count)
    keep = selection.keep
    assert keep.sum(1).tolist() == [6, 5, 3] and not (keep & ~tokens.valid).any()
    merged = selection.merged(tokens.features)
    for row, n in enumerate(tokens.sizes):
        one = alone(tokens, row)
        single = method.select(one, count[row : row + 1])
        assert torch.equal(single.keep[0], keep[row, :n])
        assert torch.equal(single.merged(one.features)[0, single.keep[0]], merged[row, keep[row]])
    if selection.target is not None:
        flows = selection.target >= 0
        assert not (flows & ~tokens.valid).any() and keep.gather(1, selection.target.clamp_min(0))[flows].all()
        assert torch.equal(selection.target[keep], keep.nonzero()[:, 1])
    everything = method.select(tokens, torch.tensor(tokens.sizes))
    assert torch.equal(everything.keep, tokens.valid)
    assert torch.equal(everything.merged(tokens.features)[tokens.valid], tokens.features[tokens.valid])
    assert method.provenance.paper and method.provenance.licence


@pytest.mark.parametrize("name", [name for name in CHOICES if name.partition(",")[0] in counting_methods()])
def test_counts_are_of_each_pool_alone(name):
    method, tokens = make(name), batch()
    counts = method.counts(tokens)
    assert method.counts_by_content and counts.shape == (3,) and counts.dtype == torch.long
    assert torch.equal(torch.cat([method.counts(alone(tokens, row)) for row in range(3)]), counts)
    assert (counts >= (0 if method.may_drop_all else 1)).all() and (counts <= tokens.valid.sum(1)).all()
    dirty = tokens.encoder_attention.masked_fill(~tokens.valid, torch.nan)
    assert torch.equal(method.counts(replace(tokens, encoder_attention=dirty)), counts)
    if name in WHOLE_GRIDS:
        return
    thinned = replace(tokens, alive=(torch.arange(20) % 3 > 0).expand(3, -1))
    assert (method.counts(thinned) <= thinned.valid.sum(1)).all()


def test_a_method_that_counts_does_so_inside_the_llm_too():
    method, tokens = get_method("sms", inside=False), batch()
    moved = AtLayer(method, 2)
    assert moved.counts_by_content and torch.equal(moved.counts(tokens), method.counts(tokens))
    with pytest.raises(MethodError, match="sms already prunes before the LLM and inside it; set its own layer"):
        AtLayer(get_method("sms"), 2)


def test_most_methods_do_not_count():
    assert "sms" in counting_methods() and "divprune" not in counting_methods()
    assert not get_method("divprune").counts_by_content and get_method("divprune").counts(batch()) is None


@pytest.mark.parametrize("name", CHOICES)
def test_tokens_dropped_before_are_not_there(name):
    tokens = batch(method=make(name))
    alive = torch.arange(20) % 3 > 0
    thinned = replace(tokens, alive=alive.expand(3, -1))
    if name in WHOLE_GRIDS:
        with pytest.raises(MethodError, match="let it prune first"):
            make(name).select(thinned, torch.tensor([4, 3, 2]))
        return
    keep = make(name).select(thinned, torch.tensor([4, 3, 2])).keep
    assert keep.sum(1).tolist() == [4, 3, 2] and not (keep & ~thinned.valid).any()


@pytest.mark.parametrize("name", CHOICES)
def test_a_number_that_is_not_finite_is_refused(name):
    """Methods that do not read it keep as many as without it."""
    method = make(name)
    tokens, count = batch(CLIPS if name in CLIPS_ONLY else POOLS, method), torch.tensor([6, 5, 3])
    tokens.features[1, 2, 3] = torch.nan
    try:
        keep = method.select(tokens, count).keep
    except SelectionError as error:
        assert "finite" in str(error)
    else:
        assert keep.sum(1).tolist() == [6, 5, 3]


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_holds_anything(name, dtype):
    method = make(name)
    tokens, count = batch(CLIPS if name in CLIPS_ONLY else POOLS, method), torch.tensor([6, 5, 3])
    typed = {name: getattr(tokens, name).to(dtype) for name in ("features", "encoder_features", "text_embeddings")}
    tokens = replace(tokens, **typed)
    padding = ~tokens.valid
    dirty = {"features": tokens.features.clone()}
    dirty["features"][padding] = torch.nan
    for cue, value in tokens.cues.items():
        if cue.kind is not Kind.MASK and cue.axes[0] in "NM":
            dirty[cue.keyword] = value.clone()
            dirty[cue.keyword][padding if cue.axes[0] == "N" else ~TEXT] = torch.nan
    clean, selection = method.select(tokens, count), method.select(replace(tokens, **dirty), count)
    assert torch.equal(selection.keep, clean.keep)
    merged = selection.merged(dirty["features"])
    assert merged.dtype == dtype and torch.equal(merged[clean.keep], clean.merged(tokens.features)[clean.keep])


def test_near_misses_and_ranges(tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEATE_HOME", str(tmp_path))
    bad = [
        ("idpuner", {}, "idpruner"),
        (None, {}, "None is not a method; give a name"),
        ("idpruner", {"balace": 1}, "balance"),
        ("idpruner", {"balance": 2}, r"\[0, 1\]"),
        ("fastv", {"layer": 0}, "at least 1"),
        ("scope", {"features": "encodr"}, "encoder"),
        ("d2pruner", {"pivots": 1.5}, r"\[0, 1\]"),
        ("cdpruner", {"sign": "minos"}, "minus"),
        ("trim", {"sign": "+"}, "unknown"),
        ("mmtok", {"text_temperature": 0}, "at least"),
        ("eadp", {"text_share": 2}, r"\[0, 1\]"),
        ("hiprune", {"anchors": 2}, r"\[0, 1\]"),
        ("hiprune", {"attention": "clss"}, "cls"),
        ("hiprune", {"depth": 8}, r"depth=8 must be in \[0, 1\]"),
        ("vscan", {"local": -1}, r"\[0, 1\]"),
        ("vscan", {"window": 0}, "at least 1"),
        ("vscan", {"depth": 5}, r"\[0, 1\]"),
    ]
    for name, fields, message in bad:
        with pytest.raises(MethodError, match=message):
            get_method(name, **fields)
    with pytest.raises(MethodError, match=r"foveate calibrate toy --images DIR --layer 2.*debias=False"):
        get_method("d2pruner").bind(FACTS)
    with pytest.raises(MethodError, match="calibrated for layer 3"):
        get_method("d2pruner", prior=AttentionPrior(torch.ones(2, 2), 3, "toy", 1, "p")).bind(FACTS)
    for name, fields in (("idpruner", {"importance": "scorer"}), ("visionselector", {})):
        with pytest.raises(MethodError, match="needs a trained scorer, and toy comes without one; give scorer="):
            get_method(name, **fields).bind(FACTS)
    for name in ("fastv", "d2pruner"):
        with pytest.raises(MethodError, match=r"layer=4, but toy has 4 layers; use a layer in \[1, 3\]"):
            get_method(name, layer=4).bind(FACTS)


def test_a_hyperparameter_without_a_default_is_asked_for(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", {**registry._METHODS, "atlayer": AtLayer})
    with pytest.raises(MethodError, match="atlayer: needs a value for base, which has no default"):
        get_method("atlayer", layer=2)


def test_a_model_without_a_name_is_this_model():
    nameless = replace(FACTS, name_or_path="")
    with pytest.raises(MethodError, match="but this model has 4 layers"):
        get_method("fastv", layer=9).bind(nameless)
    with pytest.raises(MethodError, match="no attention prior for this model: run `foveate calibrate MODEL --images"):
        get_method("d2pruner").bind(nameless)


@pytest.mark.parametrize("model", ["llava-1.5-7b", "owner/llava-1.5-7b", "/data/LLaVA-1.5-7b/", ""])
@pytest.mark.parametrize(
    "name",
    [
        "llava-1.5-7b",
        "other/llava-1.5-7b",
        "",
        "/cache/models--owner--llava-1.5-7b/snapshots/0a1b2c",
        "C:\\m\\llava-1.5-7b",
    ],
)
def test_a_prior_serves_its_model_wherever_it_lies(model, name):
    prior = AttentionPrior(torch.rand(4, 4), 2, model, 1, "p")
    assert get_method("d2pruner", prior=prior).bind(replace(FACTS, name_or_path=name)).prior is prior


def test_a_prior_of_another_model_is_refused():
    prior = AttentionPrior(torch.rand(4, 4), 2, "owner/llava-1.5-13b", 1, "p")
    with pytest.raises(MethodError, match=r"measured on owner/llava-1\.5-13b, not on toy; run `foveate calibrate toy"):
        get_method("d2pruner", prior=prior).bind(FACTS)


def test_at_layer():
    method = AtLayer(get_method("divprune"), 2).bind(FACTS)
    assert (method.name, method.places(), method.needs) == ("divprune@2", (Where.INSIDE_LLM,), frozenset())
    with pytest.raises(MethodError, match="already prunes"):
        AtLayer(get_method("fastv"), 2)

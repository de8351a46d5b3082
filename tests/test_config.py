"""PruningConfig: what is saved comes back, as `foveate.prune` would have taken it; what cannot be is one sentence."""

from __future__ import annotations

import dataclasses
import json
import pickle
import typing
from pathlib import Path
from typing import Any

import pytest
import torch

import foveate
from foveate import Budget, FoveateError, PruningConfig
from foveate.importance import AttentionPrior
from foveate.methods import Method, get_method, method_names
from foveate.methods.toolkit.at_layer import AtLayer
from foveate.methods.toolkit.in_encoder import InEncoder
from foveate.methods.toolkit.published import unset_settings
from foveate.methods.toolkit.registry import method_class
from foveate.methods.toolkit.settings import settable
from runtime.helpers import generate, single
from tiny_models import Zoo


def others(hint: Any, default: Any) -> list[Any]:
    """Values of a type, whether or not the method takes them."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) not in (None, tuple, typing.Literal) else (hint,)
    found: list[Any] = []
    for kind in kinds:
        if kind is bool:
            found += [True, False]
        elif kind is int:
            found += [1, 2, 3, 4]
        elif kind is float:
            found += [0.1, 1 / 3, 0.9, 2, 2.5]
        elif kind is str:
            found += ["scope", "a text"]
        elif typing.get_origin(kind) is typing.Literal:
            found += typing.get_args(kind)
        elif typing.get_origin(kind) is tuple:
            one, *rest = typing.get_args(kind)
            count = 2 if rest == [...] else 1 + len(rest)
            found.append(tuple(one(2 + 2 * i) for i in range(count)))
            found.append(tuple(one(1) / (1 + i) if one is float else 1 + i for i in range(count)))
        elif kind is type(None):
            found.append(None)
        elif kind is Path:
            found.append(Path("a/file"))
        elif isinstance(kind, type) and issubclass(kind, Method):
            found.append(get_method("scope", alpha=2.0))
    return [value for value in found if value != default]


def variants(name: str) -> list[Method]:
    """A method as it is, and once for each value of each field that it takes."""
    cls, found = method_class(name), [get_method(name)]
    for field in dataclasses.fields(cls):
        hints = settable(cls)
        if field.name not in hints:
            continue
        made = []
        for value in [*others(hints[field.name], field.default), getattr(found[0], field.name)]:
            for also in ({}, {"layers": (1, 3)}):  # beside which `shares` are given
                try:
                    made.append(get_method(name, **{**also, field.name: value}))
                except FoveateError:
                    continue
        assert len(made) > 1, f"{name}.{field.name} is never set"
        found += made
    return found


def same(one: Any, other: Any) -> bool:
    """Equal, and with the same settings left to follow the model; a path may come back as text."""
    if isinstance(one, Method):
        values = ((getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one))
        alike = type(one) is type(other) and unset_settings(one) == unset_settings(other)
        return alike and all(same(first, second) for first, second in values)
    if isinstance(one, Path):
        return str(one) == str(other)
    return bool(one == other)


@pytest.mark.parametrize("name", method_names())
def test_every_method_comes_back_with_every_setting(name: str) -> None:
    for method in variants(name):
        config = PruningConfig(method, keep=0.3)
        data = json.loads(json.dumps(config.to_dict(), allow_nan=False))
        back = PruningConfig.from_dict(data)
        assert same(method, back.method) and back == config and hash(back) == hash(config), data
        assert same(method, pickle.loads(pickle.dumps(config)).method)


COMPOSED = [
    PruningConfig(),
    PruningConfig(AtLayer(get_method("scope", alpha=2.0), 3), keep=144),
    PruningConfig([InEncoder(get_method("scope", alpha=2.0), 3), "idpruner"], keep=[0.5, 0.1]),
    PruningConfig(["divprune", get_method("fastv", layer=3)], keep=[0.5, "25%"], scope="prompt"),
    PruningConfig(("divprune", "fastv"), keep=0.5, encoder_queries=128),
    PruningConfig(foveate.compose("divprune", get_method("fastv", layer=3), ratio=0.3), keep=Budget(0.25, "frame")),
    PruningConfig("sms", keep="auto", positions="compact"),
    PruningConfig("idpruner", keep=Budget.auto(floor=0.2, scope="prompt")),
    PruningConfig(get_method("cenprune", **{next(iter(settable(method_class("cenprune")))): get_method("visionzip")})),
]


@pytest.mark.parametrize("config", COMPOSED, ids=lambda config: config.label)
def test_compositions_and_options_come_back(config: PruningConfig, tmp_path: Path) -> None:
    path = config.save_pretrained(tmp_path / "new")
    assert path == tmp_path / "new" / "foveate_config.json"
    for place in (path, path.parent, str(path)):
        assert PruningConfig.from_pretrained(place) == config
    assert len({config, PruningConfig.from_pretrained(path), PruningConfig("stride", 0.9)}) == 2


def test_settings_that_follow_the_model_are_not_those_that_are_given() -> None:
    free, fixed = PruningConfig("vscan"), PruningConfig(get_method("vscan", window=6))
    assert free.method == fixed.method and free != fixed
    assert free.to_dict()["method"] == "vscan" and fixed.to_dict()["method"] == {"name": "vscan", "window": 6}
    back: Any = PruningConfig.from_dict(fixed.to_dict()).method
    assert back.published_for(["qwen2_5_vl"]).window == 6
    left: Any = PruningConfig.from_dict(free.to_dict()).method
    assert left.published_for(["qwen2_5_vl"]).window == 4


def test_it_is_data() -> None:
    config = PruningConfig("idpruner", keep="25%")
    assert config.keep == 0.25 and config.scope == "image"
    assert config.to_dict() == {"version": 1, "method": "idpruner", "keep": 0.25}
    assert dataclasses.replace(config, keep=64).to_dict()["keep"] == 64
    assert config == PruningConfig(get_method("idpruner"), keep=Budget(0.25)) != "idpruner"
    assert config.budgets == (Budget(0.25),) and COMPOSED[4].label == "divprune + fastv"


FAULTS: list[tuple[Any, str]] = [
    ([], "is a mapping such as"),
    ({"metod": "fastv"}, "did you mean 'method'"),
    ({"method": "fastvv"}, "did you mean 'fastv'"),
    ({"method": 5}, "5 is not a method; give a name"),
    ({"method": None}, "None is not a method"),
    ({"method": {"layer": 3}}, "is not a method; give a name"),
    ({"method": {"name": "fastv", "layers": 3}}, "no hyperparameter 'layers'; did you mean 'layer'"),
    ({"method": {"name": "fastv", "layer": "3"}}, "layer='3' is not a whole number"),
    ({"method": {"name": "fastv", "layer": True}}, "layer=True is not a whole number"),
    ({"method": {"name": "idpruner", "balance": float("nan")}}, "balance=nan is not a number"),
    ({"method": {"name": "idpruner", "balance": float("inf")}}, "balance=inf is not a number"),
    ({"method": {"name": "idpruner", "balance": 2}}, r"must be in \[0, 1\]"),
    ({"method": {"name": "idpruner", "scorer": 5}}, "scorer=5 is not"),
    ({"method": {"name": "eadp", "sign": "up"}}, "one of plus, minus"),
    ({"method": {"name": "tops", "shares": [1, 2]}}, "must be three that fall"),
    ({"method": {"name": "pyramiddrop", "layers": [1, 2.5]}}, "whole numbers with commas"),
    ({"method": {"name": "scope", "at_layer": -1}}, "layer=-1 must be"),
    ({"method": {"name": "scope", "encoder_block": -1}}, "block=-1 must be"),
    ({"method": {"name": "scope", "encoder_block": 1, "at_layer": 2}}, "two places; give one of them"),
    ({"method": []}, "give a name"),
    ({"method": {"compose": "divprune"}}, "is not a list of methods"),
    ({"method": {"compose": []}}, "give names of methods"),
    ({"method": {"compose": ["divprune"], "ration": 0.5}}, "did you mean 'ratio'"),
    ({"method": {"compose": ["divprune"], "ratio": 2}}, "between 0 and 1"),
    ({"method": {"compose": ["divprune", "fastv"]}, "keep": 64}, "cannot be shared"),
    ({"keep": None}, "keep=None is not a budget"),
    ({"keep": float("nan")}, "out of range"),
    ({"keep": [0.5, 0.25]}, "one keep value for each method"),
    ({"keep": {}}, "is not a budget"),
    ({"scope": "world"}, "use 'image', 'frame' or 'prompt'"),
    ({"scope": []}, "is unknown"),
    ({"positions": "keep"}, "use 'original' or 'compact'"),
    ({"encoder_queries": "all"}, "must be a whole number"),
    ({"version": 2}, "update foveate"),
    ({"version": "1"}, "is not a version"),
    ({"version": True}, "is not a version"),
]


@pytest.mark.parametrize(("data", "says"), FAULTS, ids=[str(data) for data, _ in FAULTS])
def test_faults_are_one_sentence(data: Any, says: str) -> None:
    with pytest.raises(FoveateError, match=says) as caught:
        PruningConfig.from_dict(data)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize("name", method_names())
def test_values_of_wrong_types_are_refused(name: str) -> None:
    for field in settable(method_class(name)):
        for value in ({}, [[]], {"a": 1}, [None, "b"]):
            with pytest.raises(FoveateError):
                PruningConfig.from_dict({"method": {"name": name, field: value}})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"keep": NaN}', "NaN is not a number of JSON"),
        ('{"keep": Infinity}', "Infinity is not"),
        ('{"keep": 0.5, "keep": 0.25}', "'keep' comes twice"),
        ("{keep: 0.5}", "is not JSON"),
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_files_that_are_not_json_are_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "my.json"
    path.write_text(text)
    with pytest.raises(FoveateError, match=says):
        PruningConfig.from_pretrained(path)


def test_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match=r"no pruning configuration can be read at .*foveate_config\.json"):
        PruningConfig.from_pretrained(tmp_path)
    (tmp_path / "file").write_bytes(b"\xff\xfe")
    with pytest.raises(FoveateError, match="is not text"):
        PruningConfig.from_pretrained(tmp_path / "file")
    with pytest.raises(FoveateError, match="cannot write"):
        PruningConfig().save_pretrained(tmp_path / "file")


def test_what_is_in_memory_is_not_data() -> None:
    prior = AttentionPrior(torch.ones(2, 2), 3, "toy", 1, "p")
    config = PruningConfig(get_method("d2pruner", prior=prior))
    with pytest.raises(FoveateError, match=r"prior is an object in memory \(AttentionPrior\).* give its path"):
        config.to_dict()
    assert config == config and config != PruningConfig(get_method("d2pruner", prior=prior)) and {config}


def test_classes_without_a_name_are_not_data() -> None:
    @dataclasses.dataclass(frozen=True)
    class Own(Method):
        def select(self, tokens: Any, count: Any) -> Any:
            raise NotImplementedError

    with pytest.raises(FoveateError, match="Own is not registered"):
        PruningConfig(Own()).to_dict()


# -- prune takes it


def test_prune_and_prune_inputs_take_it(llava: Zoo) -> None:
    inputs = single(llava)
    config = PruningConfig(get_method("scope", alpha=2.0), keep=0.5, positions="compact")
    with foveate.prune(llava.model, "scope", 0.5, positions="compact", alpha=2.0) as pruning:
        tokens, kept = generate(llava, inputs).sequences, pruning.report().images[0].kept
    for method in (config, PruningConfig.from_dict(config.to_dict())):
        with foveate.prune(llava.model, method) as pruning:
            assert torch.equal(generate(llava, inputs).sequences, tokens)
            assert torch.equal(pruning.report().images[0].kept, kept)
    short = foveate.prune_inputs(llava.model, inputs, config)
    named = foveate.prune_inputs(llava.model, inputs, "scope", 0.5, positions="compact", alpha=2.0)
    assert all(torch.equal(short[key], named[key]) for key in named)
    assert short["position_ids"].max() == short["inputs_embeds"].shape[1] - 1


def test_beside_a_configuration_nothing_else_is_said(llava: Zoo) -> None:
    config = PruningConfig("divprune", keep=0.5)
    for beside in ({"keep": 0.25}, {"scope": "image"}, {"positions": "original"}, {"balance": 0.7}):
        with pytest.raises(FoveateError, match=f"says everything itself; leave out {next(iter(beside))}"):
            foveate.prune(llava.model, config, **beside)  # type: ignore[arg-type]
        with pytest.raises(FoveateError, match="says everything itself"):
            foveate.prune_inputs(llava.model, single(llava), config, **beside)  # type: ignore[arg-type]
    with pytest.raises(FoveateError, match="leave out keep"):
        foveate.prune(llava.model, config, 0.25)
    with foveate.prune(model=llava.model, method=config) as pruning:
        assert "divprune keeps 0.5" in repr(pruning)


def test_prune_takes_budgets_with_their_scope(llava: Zoo) -> None:
    inputs = single(llava)
    for keep in (Budget(0.5, "prompt"), [Budget(0.5, "prompt")]):
        method: Any = ["divprune"] if isinstance(keep, list) else "divprune"
        with foveate.prune(llava.model, method, keep) as pruning:
            assert "per prompt" in repr(pruning)
    with foveate.prune(llava.model, foveate.compose("divprune", "fastv"), Budget(0.5, "prompt")) as pruning:
        assert repr(pruning).count("per prompt") == 2
    short = foveate.prune_inputs(llava.model, inputs, "divprune", Budget("50%"))
    assert torch.equal(
        short["inputs_embeds"], foveate.prune_inputs(llava.model, inputs, "divprune", 0.5)["inputs_embeds"]
    )
    for keep, scope in ((Budget(0.5), "prompt"), ([Budget(0.5), Budget(0.25, "prompt")], None)):
        method = ["divprune", "fastv"] if isinstance(keep, list) else "divprune"
        with pytest.raises(FoveateError, match="contradict each other; give the scope once"):
            foveate.prune(llava.model, method, keep, scope=scope)  # type: ignore[arg-type]
    assert Budget(Budget(0.25)) == Budget(0.25) and Budget(Budget(9, "frame")).scope == "frame"
    with pytest.raises(FoveateError, match="contradict"):
        Budget(Budget(9, "frame"), "image")


def test_equal_numbers_are_equal_whether_they_are_whole_or_not() -> None:
    whole, real = (PruningConfig(get_method("scope", alpha=alpha)) for alpha in (3, 3.0))
    assert whole == real and hash(whole) == hash(real) and len({whole, real}) == 1
    in_list = [PruningConfig(get_method("tops", shares=shares)) for shares in ((4, 2, 1), [4.0, 2.0, 1.0])]
    assert in_list[0] == in_list[1] and hash(in_list[0]) == hash(in_list[1])


def test_a_file_may_begin_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"keep": 0.5}', encoding="utf-8-sig")
    assert PruningConfig.from_pretrained(path) == PruningConfig(keep=0.5)


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000])
def test_names_that_no_file_can_have_are_refused(name: str) -> None:
    with pytest.raises(foveate.ConfigError, match="can be read at"):
        PruningConfig.from_pretrained(name)
    with pytest.raises(foveate.ConfigError, match="cannot write"):
        PruningConfig().save_pretrained(name)


def test_a_method_has_no_setting_that_its_class_has_not() -> None:
    for changed in (lambda: get_method("vscan").with_settings(nope=1), lambda: get_method(get_method("vscan"), nope=1)):
        with pytest.raises(foveate.MethodError, match="vscan has no hyperparameter 'nope'"):
            changed()
    with pytest.raises(foveate.MethodError, match="divprune has no hyperparameter 'layer'; it has none"):
        get_method("divprune", layer=3)

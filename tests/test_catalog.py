"""What is told of each method, on the command line and in the docs, and that it is true."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from torch import Tensor

import tiny_models as zoo
from cli.run_command import run
from foveate import catalog as facts
from foveate.catalog import Hyperparameter, facts_of
from foveate.errors import FoveateError
from foveate.methods import Method, Provenance, get_method, method_names, register_method
from foveate.methods.toolkit import registry
from foveate.methods.toolkit.base import NO_PROVENANCE
from foveate.methods.toolkit.registry import method_class
from foveate.models import SupportedModel, supported_models
from foveate.models.llava import LlavaAdapter
from foveate.serving.vllm.config import ServingConfig
from foveate.serving.vllm.family import Family
from foveate.tokens import Cue, Grid, Selection, VisualTokens
from tiny_methods import settings_on


class LlavaFamily(Family):
    """LLaVA without vLLM: what its server allows hangs on the adapter alone, and no image is processed."""

    adapter_class = LlavaAdapter

    def grids(self, modality: str, item: Mapping[str, Any]) -> list[Grid]:
        raise NotImplementedError

    def items(self, modality: str, batch: Mapping[str, Any]) -> list[list[Grid]]:
        raise NotImplementedError


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> type[Method]:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @register_method("toy")
    @dataclass(frozen=True)
    class Toy(Method):
        """A toy.

        Args:
            whole: first line
                and second: with a colon.
            choice: one | other.

        Raises:
            Nothing: ever.
        """

        provenance = Provenance("none", "none", deviations=("Of the class.", "And more."), cost="O(1).")

        whole: int
        choice: Literal["left", "right"] | None = None
        pair: tuple[int, ...] = (1, 2)
        other: dict[str, int] = dataclasses.field(default_factory=dict)

        def select(self, tokens: Any, count: Any) -> Any:
            raise NotImplementedError

    return Toy


@pytest.mark.parametrize("name", method_names())
def test_nothing_is_left_untold(name: str) -> None:
    one = facts_of(name)
    assert one.summary and one.facts["paper"] and one.facts["deviations"] and one.facts["reference code"]
    assert all(field.description for field in one.hyperparameters)
    result = run("methods", name)
    assert result.exit_code == 0, result.output
    said = "".join(result.stdout.split())
    for text in (one.summary, one.about, *one.facts.values()):
        assert "".join(text.replace("``", "`").split()) in said
    assert all(field.name in said for field in one.hyperparameters)


def test_a_narrow_terminal_cuts_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert "…" not in run("methods", "idpruner").stdout


def server_with(name: str, fields: dict[str, Any]) -> ServingConfig:
    """A server of a small LLaVA where a method has these hyperparameters."""
    config = zoo.llava().model.config
    config = SimpleNamespace(**{**config.__dict__, "get_text_config": config.get_text_config, "foveate": None})
    config.foveate = {"hyperparameters": {name: fields}}
    return ServingConfig(LlavaFamily, SimpleNamespace(hf_config=config, model="toy"))


@pytest.mark.parametrize("name", method_names())
def test_what_is_said_of_vllm_is_what_its_server_does(name: str) -> None:
    fields = settings_on(zoo.llava(), name)
    server = server_with(name, fields)
    told = facts_of(name).facts["vLLM"]
    if "foveate_query" in told:
        asked = {"foveate_method": name, "foveate_keep": 0.5}
        with pytest.raises(FoveateError, match=r"give the question as foveate_query|foveate\.prune"):
            server.resolve(asked)
        if "LlavaForConditionalGeneration" in told:
            with pytest.raises(FoveateError, match=r"foveate\.prune"):
                server.resolve(asked | {"foveate_query": "prompt"})
        else:
            assert server.resolve(asked | {"foveate_query": "prompt"}) is not None
    elif told.startswith("yes"):
        server.resolve({"foveate_method": name, "foveate_keep": 0.5})
        assert told.endswith('"auto"') == get_method(name, **fields).counts_by_content
    else:
        with pytest.raises(FoveateError, match=r"foveate\.prune"):
            server.resolve({"foveate_method": name, "foveate_keep": 0.5})


def test_evidence_is_served_without_a_query_as_its_row_says() -> None:
    told = facts_of("evidence").facts["vLLM"]
    without = "where the request gives foveate_query, or with question=False among the server's hyperparameters"
    assert told == f"yes: {without}"
    assert "question" not in facts_of("cdpruner").facts["vLLM"]
    asked = {"foveate_method": "evidence", "foveate_keep": 0.5}
    server = server_with("evidence", {**settings_on(zoo.llava(), "evidence"), "question": False})
    assert server.resolve(asked) is not None
    with pytest.raises(FoveateError, match="evidence chooses by the image alone; leave out foveate_query"):
        server.resolve(asked | {"foveate_query": "prompt"})


def test_docstrings_are_taken_apart(toy: type[Method], monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Toy: a toy.\n\nIt does\nnothing.\n\n1. One\n   step.\n2. Another.\n"
    monkeypatch.setattr(facts.sys.modules[toy.__module__], "__doc__", text)
    one = facts_of("toy")
    assert (one.summary, one.about) == ("Toy: a toy.", "It does nothing.\n\n1. One step.\n2. Another.")
    assert one.facts["needs"] == "a value for whole, which has no default; give whole="
    assert (one.facts["deviations"], one.facts["cost"]) == ("Of the class. And more.", "O(1).")
    assert one.hyperparameters == (
        Hyperparameter("whole", "int", "required", "first line and second: with a colon."),
        Hyperparameter("choice", "'left' | 'right' | None", "None", "one | other."),
        Hyperparameter("pair", "tuple[int, ...]", "(1, 2)", ""),
        Hyperparameter("other", "dict[str, int]", "{}", ""),
    )
    monkeypatch.setattr(facts.sys.modules[toy.__module__], "__doc__", None)
    one = facts_of("toy")
    assert one.summary == "A toy." and one.about == ""


def test_models_that_lack_a_cue_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [SupportedModel("a", "Blind", ("image",), ()), SupportedModel("b", "Seeing", ("image",), tuple(Cue))]
    monkeypatch.setattr(facts, "supported_models", lambda: rows)
    assert facts_of("scope").facts["models"] == "all but Blind (no encoder attention, encoder features)"
    assert facts_of("divprune").facts["models"] == "all that foveate supports"


def test_a_wrong_name_ends_in_one_sentence() -> None:
    result = run("methods", "idprune")
    assert result.exit_code == 2 and result.stderr.startswith("foveate: unknown method 'idprune'; did you mean")
    assert len(result.stderr.strip().splitlines()) == 1


def test_models_tell_the_methods_that_they_refuse() -> None:
    by_type = {row.model_type: row for row in supported_models()}
    assert facts.refused_by(by_type["llava"]) == ["fastmmoe", "modes", "pixelprune"]
    assert facts.refused_by(by_type["qwen2_5_vl"]) == ["fastmmoe", "modes"]
    assert facts.refused_by(by_type["qwen3_vl_moe"]) == []
    refused = {row.class_name: facts.refused_by(row) for row in by_type.values()}
    for name in method_names():
        told = facts_of(name).facts["models"].partition(", and others")[0]
        for class_name, names in refused.items():
            named, exceptions = class_name in told, told.startswith("all")
            assert (named == exceptions) == (name in names), (name, class_name)


def test_published_settings_are_told_by_family() -> None:
    one = facts_of("visionzip")
    (share,) = [field for field in one.hyperparameters if field.name == "contextual"]
    assert share.default == repr(10 / 64)
    by_family = {family: settings.values for settings in one.published for family in settings.families}
    assert set(by_family) == {row.model_type for row in supported_models()}
    for row in supported_models():
        bound = get_method("visionzip").published_for(row.lineage)
        assert by_family[row.model_type] == {name: repr(getattr(bound, name)) for name in by_family["llava"]}
    assert by_family["llava"]["contextual"] != by_family["qwen2_5_vl"]["contextual"] == "0.05"
    assert facts_of("random").published == ()
    for name in method_names():
        assert not any("(" in field.default and " on " in field.default for field in facts_of(name).hyperparameters)


def test_the_command_line_shows_published_settings() -> None:
    result = run("methods", "visionzip", env={"COLUMNS": "200"})
    assert result.exit_code == 0 and "Published settings" in result.output and "qwen2_5_vl" in result.output
    assert "Published settings" not in run("methods", "divprune").output


def test_evidence_is_there() -> None:
    root = Path(__file__).parents[1]
    for name in method_names():
        record = method_class(name).provenance
        if record is NO_PROVENANCE:  # of another package, or of a test
            continue
        assert record.evidence, name
        for line in record.evidence:
            path, _, test = line.split(" ")[0].partition("::")
            assert (root / path).is_file(), (name, path)
            assert not test or f"def {test}(" in (root / path).read_text(encoding="utf-8"), (name, line)


def test_a_sentence_alone_is_not_a_tuple() -> None:
    with pytest.raises(FoveateError, match="put a comma behind a single one"):
        Provenance("none", "none", deviations="of the class")  # type: ignore[arg-type]


def test_a_method_of_another_package_need_not_say_where_it_comes_from(toy: type[Method]) -> None:
    @register_method("plain")
    @dataclass(frozen=True)
    class Plain(Method):
        """A method of a few lines."""

        def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
            raise NotImplementedError

    facts = facts_of("plain").facts
    assert facts["paper"] == "none given" and not {"reference code", "read", "deviations"} & facts.keys()
    for arguments in (["methods"], ["methods", "plain"]):
        result = run(*arguments, env={"COLUMNS": "200"})
        assert result.exit_code == 0 and "none given" in result.output


@pytest.mark.parametrize("bases", [(Method,), ()], ids=["provenance in words", "of no Method"])
def test_what_cannot_be_told_of_is_not_registered(bases: tuple[type, ...], toy: type[Method]) -> None:
    fault = "the provenance of other is 'a paper'; give" if bases else "other is not a method; derive its class"
    known = dict(registry._METHODS)
    with pytest.raises(FoveateError, match=fault):
        register_method("other")(dataclass(frozen=True)(type("Other", bases, {"provenance": "a paper"})))
    assert "other" not in registry._METHODS and known.items() <= registry._METHODS.items()


def test_what_the_generic_adapter_cannot_run_is_said_to_need_an_adapter() -> None:
    assert facts_of("divprune").facts["models"] == "all that foveate supports"
    assert facts_of("idpruner").facts["models"] == "all with an adapter of their own"
    assert "give scorer=" in facts_of("idpruner").facts["refuses"]

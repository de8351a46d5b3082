"""Settings of a server: what they mean, and a sentence for what has no meaning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from foveate import Budget, Conversation, FoveateError, InEncoder, PruningConfig, get_method
from foveate.serving.vllm.request import PruneRequest
from foveate.serving.vllm.settings import ServerSettings, check_variables


def test_precedence_is_request_then_overrides_then_environment() -> None:
    environ = {"FOVEATE_METHOD": "divprune", "FOVEATE_KEEP": "50%", "FOVEATE_SCOPE": ""}
    assert ServerSettings.read(None, {}).resolve({}) is None
    assert ServerSettings.read(None, environ).resolve({}) == PruneRequest("divprune", Budget(0.5))
    settings = ServerSettings.read({"keep": 0.25}, environ)
    assert settings.resolve({}) == PruneRequest("divprune", Budget(0.25))
    assert settings.resolve({"foveate_method": "scope"}) == PruneRequest("scope", Budget(0.25))
    assert settings.resolve({"foveate_keep": 144}, "frame") == PruneRequest("divprune", Budget(144, "frame"))
    assert settings.resolve({"foveate_keep": 1.0}) is None
    assert settings.resolve({"foveate_scope": "frame"}) == PruneRequest("divprune", Budget(0.25, "frame"))


def test_equal_requests_share_a_fingerprint_and_others_do_not() -> None:
    settings = ServerSettings.read({"hyperparameters": {"idpruner": {"balance": 0.7}}}, {})

    def fingerprint(method: str, keep: Any) -> dict[str, str]:
        request = settings.resolve({"foveate_method": method, "foveate_keep": keep})
        assert request is not None
        return settings.fingerprint(request)

    assert fingerprint("idpruner", 0.25) == fingerprint("idpruner", "25%")
    assert fingerprint("idpruner", 0.25) != fingerprint("idpruner", 0.5)
    assert fingerprint("idpruner", 0.25) != fingerprint("divprune", 0.25)
    other = ServerSettings.read({"hyperparameters": {"idpruner": {"balance": 0.5}}}, {})
    assert fingerprint("idpruner", 0.25) != other.fingerprint(PruneRequest("idpruner", Budget(0.25)))


@pytest.mark.parametrize(
    ("overrides", "environ", "says"),
    [
        ({"ratio": 0.5}, {}, "unknown key 'ratio'"),
        ({"kep": 0.5}, {}, "did you mean 'keep'"),
        ("25%", {}, "must be a mapping"),
        ({"keep": 2.5}, {}, "out of range"),
        ({}, {"FOVEATE_KEEP": "lots"}, "is not a number"),
        ({"scope": "prompt", "keep": 0.5}, {}, "use 'image' or 'frame'"),
        ({"method": "sms", "keep": "auto"}, {}, "needs to know before; give a fraction"),
        ({"keep": "auto:floor=20%"}, {}, "needs to know before; give a fraction"),
        ({"scope": [], "keep": 0.5}, {}, "use 'image' or 'frame'"),
        ({"scope": {"conversation": {"decay": 0}}, "keep": 0.5}, {}, "out of range"),
        ({"scope": {"conversation": {"decai": 1}}, "keep": 0.5}, {}, "is unknown"),
        ({"query": 3, "keep": 0.5}, {}, "is not a question"),
        ({"query": "what \ud800", "keep": 0.5}, {}, "is not a question"),
        ({"feature_cache_gb": -1}, {}, "feature_cache_gb=-1 is out of range"),
        ({"feature_cache_gb": "1"}, {}, "is out of range"),
    ],
)
def test_bad_settings_are_refused(overrides: Any, environ: dict[str, str], says: str) -> None:
    with pytest.raises(FoveateError, match=says) as caught:
        ServerSettings.read(overrides, environ)
    assert isinstance(caught.value, ValueError)  # which vLLM answers with 400


def test_a_pruning_configuration_is_the_settings_of_a_server(tmp_path: Path) -> None:
    config = PruningConfig(get_method("tops", diversity=0.25, shares=(4, 2, 1)), keep=0.1, scope="frame")
    path = config.save_pretrained(tmp_path)
    for settings in (
        ServerSettings.read(config.to_dict(), {}),
        ServerSettings.read(None, {"FOVEATE_CONFIG": str(path)}),
        ServerSettings.read(None, {"FOVEATE_CONFIG": str(tmp_path)}),
        ServerSettings.read(
            {
                "method": "tops",
                "keep": 0.1,
                "scope": "frame",
                "hyperparameters": {"tops": {"diversity": 0.25, "shares": [4, 2, 1]}},
            },
            {},
        ),
    ):
        assert settings.resolve({}) == PruneRequest("tops", Budget(0.1, "frame"))
        assert get_method("tops", **settings.hyperparameters["tops"]) == config.method
    assert ServerSettings.read({"keep": 0.5}, {"FOVEATE_CONFIG": str(path)}).resolve({}) == PruneRequest(
        "tops", Budget(0.5, "frame")
    )


@pytest.mark.parametrize(
    ("overrides", "environ", "says"),
    [
        ({"version": 2}, {}, "update foveate"),
        ({"method": ["divprune", "fastv"]}, {}, "by one method; give one"),
        ({"method": {"compose": ["divprune", "fastv"]}}, {}, "by one method; give one"),
        ({"method": {"name": "scope", "at_layer": 2}}, {}, "leave out at_layer"),
        ({"method": {"name": "scope", "alpa": 2}}, {}, "did you mean 'alpha'"),
        ({"hyperparameters": {"scope": {"alpa": 2}}}, {}, "did you mean 'alpha'"),
        ({"hyperparameters": {"scop": {"alpha": 2}}}, {}, "did you mean 'scope'"),
        ({"hyperparameters": {"alpha": 2}}, {}, "of methods by name"),
        ({"method": {"name": "scope", "alpha": 2}, "hyperparameters": {"scope": {"alpha": 3}}}, {}, "given twice"),
        ({}, {"FOVEATE_CONFIG": "nowhere"}, "no pruning configuration can be read at nowhere"),
        ({}, {"FOVEATE_CONFIG": "nowhere", "FOVEATE_KEEP": "0.5"}, "says what FOVEATE_KEEP says, too"),
    ],
)
def test_what_a_server_cannot_take_of_a_configuration(overrides: Any, environ: dict[str, str], says: str) -> None:
    with pytest.raises(FoveateError, match=says):
        ServerSettings.read(overrides, environ)


def test_positions_are_as_vllm_numbers_them() -> None:
    for positions, mrope in (("original", True), ("compact", False)):
        settings = ServerSettings.read({"positions": positions}, {})
        settings.check_positions(mrope)
        with pytest.raises(FoveateError, match="cannot be had"):
            settings.check_positions(not mrope)
    ServerSettings().check_positions(True)


def test_a_request_cannot_leave_the_count_to_the_method() -> None:
    with pytest.raises(ValueError, match="vLLM needs to know before"):
        ServerSettings.read(None, {}).resolve({"foveate_method": "sms", "foveate_keep": "auto"})


def test_a_method_without_a_budget_is_refused() -> None:
    with pytest.raises(FoveateError, match="add foveate_keep"):
        ServerSettings.read(None, {}).resolve({"foveate_method": "divprune"})
    assert ServerSettings.read(None, {}).resolve({"foveate_method": "divprune", "foveate_keep": 1.0}) is None


def test_queries_of_the_encoder_are_a_setting_of_the_server() -> None:
    plain, fewer = (
        ServerSettings.read({"keep": 0.5}, {}),
        ServerSettings.read({"keep": 0.5, "encoder_queries": 1024}, {}),
    )
    assert fewer.encoder_queries == 1024
    request = plain.resolve({})
    assert request is not None and fewer.fingerprint(request) != plain.fingerprint(request)
    with pytest.raises(FoveateError, match="encoder_queries=0 must be a whole number"):
        ServerSettings.read({"encoder_queries": 0}, {})


@pytest.mark.parametrize("scope", [[], {}, "", 0, False, None, ["image"], "prompt", {"decay": 0.5}])
def test_a_scope_of_another_type_is_refused(scope: Any) -> None:
    with pytest.raises(FoveateError, match="use 'image' or 'frame'"):
        ServerSettings().resolve({"foveate_keep": 0.5, "foveate_scope": scope})
    if scope is not None:
        with pytest.raises(FoveateError, match="use 'image' or 'frame'"):
            ServerSettings.read({"keep": 0.5, "scope": scope}, {})


@pytest.mark.parametrize("method", [[], {}, "", 0, False, None, ["idpruner"]])
def test_a_method_of_another_type_is_refused(method: Any) -> None:
    if method != "":
        with pytest.raises(FoveateError, match="must be the name of one method"):
            ServerSettings().resolve({"foveate_keep": 0.5, "foveate_method": method})


@pytest.mark.parametrize("keep", [[], {}, "", 0, False, True, None, 2.5, -1, "lots", float("nan"), "150%"])
def test_a_budget_that_cannot_be_is_refused_without_a_word_of_what_vllm_cannot_do(keep: Any) -> None:
    with pytest.raises(FoveateError) as caught:
        ServerSettings().resolve({"foveate_keep": keep})
    assert "auto" not in str(caught.value) and str(caught.value).endswith(("such as 144.", "at least 2 tokens."))


@pytest.mark.parametrize(
    "key", ["foveate", "foveate_keeps", "foveate-keep", "Foveate_Keep", "fovaete_keep", "foveatekeep"]
)
def test_misspelled_arguments_are_refused_with_a_hint(key: str) -> None:
    with pytest.raises(FoveateError, match=f"unknown argument '{key}'") as caught:
        ServerSettings().resolve({key: 0.5, "max_pixels": 1000})
    assert "did you mean 'foveate_keep'?" in str(caught.value) or key == "foveate"


def test_arguments_inside_of_others_are_refused() -> None:
    for outer in ("videos_kwargs", "images_kwargs", "text_kwargs"):
        with pytest.raises(FoveateError, match=f"nothing reads 'foveate_keep' inside of '{outer}'; give it beside"):
            ServerSettings().resolve({outer: {"max_pixels": 1000, "foveate_keep": 0.5}})
    assert ServerSettings().resolve({"images_kwargs": {"max_pixels": 1000, "size": {"height": 8}}}) is None


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("FOVEATE_KEEPS", "did you mean FOVEATE_KEEP?"),
        ("FOVEATE_KEP", "did you mean FOVEATE_KEEP?"),
        ("foveate_keep", "did you mean FOVEATE_KEEP?"),
        ("FOVEATE_METHODS", "did you mean FOVEATE_METHOD?"),
        ("FOVEATE_RATIO", "unset it"),
    ],
)
def test_a_misspelled_variable_is_refused(name: str, hint: str) -> None:
    with pytest.raises(FoveateError, match=rf"nothing reads the environment variable {name}; .*{hint}"):
        ServerSettings.read(None, {name: "0.25", "PATH": "/bin"})
    assert ServerSettings.read(None, {name: ""}).resolve({}) is None


def test_variables_of_foveate_and_of_kubernetes_are_none_of_a_server() -> None:
    links = {"FOVEATE_SERVICE_HOST": "10.0.0.1", "FOVEATE_SERVICE_PORT_HTTP": "80", "FOVEATE_PORT": "tcp://10.0.0.1:80"}
    links |= {"FOVEATE_VLLM_PORT_8000_TCP_ADDR": "10.0.0.1", "FOVEATE_HOME": "/home", "FOVEATE_VLLM_ENV": "/env"}
    assert ServerSettings.read(None, links).resolve({}) is None


def test_every_variable_that_the_repository_reads_is_known() -> None:
    root = Path(__file__).parents[3]
    files = [*(root / "src").rglob("*.py"), *(root / "scripts").glob("*"), *(root / "benchmarks").rglob("*.py")]
    used = {
        name for file in files if file.is_file() for name in re.findall(r"\bFOVEATE_[A-Z_]*[A-Z]\b", file.read_text())
    }
    assert {"FOVEATE_KEEP", "FOVEATE_HOME"} <= used
    check_variables(dict.fromkeys(used, "anything"))


def test_a_conversation_is_a_scope_by_name_by_data_and_as_itself(tmp_path: Path) -> None:
    settings = ServerSettings.read({"keep": 0.25, "scope": "conversation"}, {})
    assert settings.resolve({}, "frame") == PruneRequest("idpruner", Budget(0.25, "conversation"))
    faded = PruneRequest("idpruner", Budget(0.25, Conversation(0.8)))
    assert settings.resolve({"foveate_scope": {"conversation": {"decay": 0.8}}}) == faded
    assert settings.resolve({"foveate_scope": Conversation(0.8)}) == faded
    assert settings.resolve({"foveate_scope": "image"}) == PruneRequest("idpruner", Budget(0.25))
    PruningConfig("idpruner", 0.25, scope=Conversation(0.8)).save_pretrained(tmp_path)
    assert ServerSettings.read(None, {"FOVEATE_CONFIG": str(tmp_path)}).resolve({}) == faded
    from_environ = ServerSettings.read(None, {"FOVEATE_SCOPE": "conversation", "FOVEATE_KEEP": "25%"})
    assert from_environ.resolve({}) == settings.resolve({})


def test_a_question_is_the_requests_or_the_servers() -> None:
    settings = ServerSettings.read({"keep": 0.25, "method": "cdpruner"}, {"FOVEATE_QUERY": "prompt"})
    assert settings.resolve({}) == PruneRequest("cdpruner", Budget(0.25), "prompt")
    assert settings.resolve({"foveate_query": "what?"}) == PruneRequest("cdpruner", Budget(0.25), "what?")
    assert settings.resolve({"foveate_keep": 1.0}) is None
    with pytest.raises(FoveateError, match="add foveate_keep"):
        ServerSettings().resolve({"foveate_query": "what?"})


IN_ENCODER = {"method": [{"name": "divprune", "encoder_block": 3}, "idpruner"], "keep": [0.5, 0.1]}


def test_a_default_inside_the_encoder_and_what_requests_make_of_it() -> None:
    config = PruningConfig([InEncoder("divprune", 3), "idpruner"], keep=[0.5, 0.1])
    for settings in (
        ServerSettings.read(config.to_dict(), {}),
        ServerSettings.read({**IN_ENCODER, "method": IN_ENCODER["method"][::-1], "keep": [0.1, 0.5]}, {}),
    ):
        assert settings.inside == (InEncoder("divprune", 3),)
        assert settings.resolve({}) == PruneRequest("idpruner", Budget(0.1), encoder=(0.5,))
        assert settings.resolve({"foveate_keep": 0.3}) == PruneRequest("idpruner", Budget(0.3), encoder=(0.3,))
        assert settings.resolve({"foveate_keep": [0.4, 16]}) == PruneRequest("idpruner", Budget(16), encoder=(0.4,))
        inside = PruneRequest("divprune@encoder:3", Budget(0.4), encoder=(0.4,))
        assert settings.resolve({"foveate_keep": [0.4, 1.0]}) == inside
        assert settings.resolve({"foveate_keep": [1.0, 0.4]}) == PruneRequest("idpruner", Budget(0.4))
        assert settings.resolve({"foveate_keep": 1.0}) is None
        # A method that a request names is alone, by the last of the server's budgets where it gives none.
        assert settings.resolve({"foveate_method": "scope"}) == PruneRequest("scope", Budget(0.1))
    alone = ServerSettings.read({"method": {"name": "divprune", "encoder_block": 3}, "keep": 0.5}, {})
    assert alone.resolve({}) == PruneRequest("divprune@encoder:3", Budget(0.5), encoder=(0.5,))
    overruled = ServerSettings.read({"method": "scope", "keep": 0.5}, {"FOVEATE_METHOD": "divprune"})
    assert overruled.inside == () and overruled.resolve({}) == PruneRequest("scope", Budget(0.5))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({**IN_ENCODER, "keep": [0.5]}, "got 1 for 2"),
        ({**IN_ENCODER, "keep": [0.1, 0.5]}, "give falling budgets"),
        ({**IN_ENCODER, "scope": "conversation"}, "cannot depend on the other images"),
        ({**IN_ENCODER, "keep": ["auto", "auto"]}, "vLLM needs to know before"),
        ({"method": [{"name": "divprune", "encoder_block": 3}] * 2, "keep": 0.5}, "give each its own"),
        ({"method": [], "keep": 0.5}, "by one method; give one"),
    ],
)
def test_defaults_inside_the_encoder_that_cannot_be(overrides: Any, says: str) -> None:
    with pytest.raises(FoveateError, match=says):
        ServerSettings.read(overrides, {})


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"foveate_keep": [0.5, 0.4, 0.3]}, "got 3 for 2"),
        ({"foveate_keep": [0.5, 0.4], "foveate_method": "scope"}, "got 2 for 1"),
        ({"foveate_keep": 0.5, "foveate_method": "divprune@encoder:3"}, "requests that name no method"),
        ({"foveate_scope": "conversation"}, "cannot depend on the other images"),
    ],
)
def test_requests_inside_the_encoder_that_cannot_be(asked: Any, says: str) -> None:
    with pytest.raises(FoveateError, match=says):
        ServerSettings.read(IN_ENCODER, {}).resolve(asked)


def test_images_are_told_apart_by_what_leaves_inside_the_encoder() -> None:
    told = [
        ServerSettings.read(settings, {})
        for settings in (
            IN_ENCODER,
            {**IN_ENCODER, "keep": [0.6, 0.1]},
            {**IN_ENCODER, "method": [{"name": "divprune", "encoder_block": 2}, "idpruner"]},
            {**IN_ENCODER, "method": [{"name": "random", "encoder_block": 3}, "idpruner"]},
            {"method": "idpruner", "keep": 0.1},
        )
    ]
    prints = [tuple(one.fingerprint(one.resolve({})).items()) for one in told]  # type: ignore[arg-type]
    assert len(set(prints)) == len(prints)

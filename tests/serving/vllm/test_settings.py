"""Settings of a server: what they mean, and a sentence for what has no meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foveate import Budget, FoveateError, PruningConfig, get_method
from foveate.serving.vllm.request import PruneRequest
from foveate.serving.vllm.settings import ServerSettings


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

"""What a server tells when it starts is what it will do."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from foveate import __version__
from foveate.serving.vllm.announcement import LOGGER, notes_of
from foveate.serving.vllm.config import LIMITS_KEY
from foveate.serving.vllm.settings import ServerSettings

from .test_guard import KNOWN, UNKNOWN, model_config


def told(settings: dict[str, Any], chooses: bool = True, environ: dict[str, str] | None = None) -> tuple[str, str]:
    """The line, and the warning or nothing."""
    line, *warnings = notes_of(model_config(KNOWN), ServerSettings.read(settings, environ or {}), chooses)
    assert line.level == logging.INFO and line.text.startswith(f"foveate {__version__} is loaded for {KNOWN}: ")
    assert all(note.level == logging.WARNING for note in warnings) and len(warnings) <= 1
    return line.text, warnings[0].text if warnings else ""


@pytest.mark.parametrize(
    ("settings", "chooses", "says"),
    [
        ({"keep": 0.25}, True, "by default idpruner keeps 25 % of each image; requests may choose otherwise."),
        ({"keep": "12.5%", "method": "divprune"}, True, "by default divprune keeps 12.5 % of each image; requests may"),
        (
            {"keep": [0.5, 0.1], "method": [{"name": "divprune", "encoder_block": 3}, "idpruner"]},
            True,
            "by default divprune@encoder:3 keeps 50 % and idpruner keeps 10 % of each image; requests may",
        ),
        (
            {"keep": 0.5, "method": {"name": "divprune", "encoder_block": 3}},
            True,
            "by default divprune@encoder:3 keeps 50 % of each image; requests may",
        ),
        ({"keep": 144, "scope": "frame"}, True, "by default idpruner keeps 144 tokens of each frame; requests may"),
        ({"keep": 0.25}, False, "cannot choose otherwise, because --trust-request-mm-kwargs is off."),
        ({}, True, "no default, so that only requests that choose are pruned."),
        ({"keep": 1.0}, True, "no default, so that only"),
        ({}, False, "requests cannot choose, because --trust-request-mm-kwargs is off, so that nothing is pruned."),
    ],
)
def test_the_line(settings: dict[str, Any], chooses: bool, says: str) -> None:
    line, warning = told(settings, chooses)
    assert says in line and not warning


@pytest.mark.parametrize(("keep", "warns"), [(2, True), (25, True), ("100", True), (101, False), ("25%", False)])
def test_a_count_that_looks_like_a_percentage_is_pointed_out(keep: Any, warns: bool) -> None:
    line, warning = told({}, environ={"FOVEATE_KEEP": str(keep)})
    assert (f"{keep} tokens of each image" in line) == (keep != "25%")
    assert (f"keeps {keep} tokens of each image, not {keep} %" in warning) == bool(warning) == warns


def test_a_method_alone_is_pointed_out() -> None:
    for settings, environ in (({}, {"FOVEATE_METHOD": "divprune"}), ({"method": "divprune"}, {})):
        line, warning = told(settings, environ=environ)
        assert "no default" in line and "method without a default keep prunes nothing" in warning
    assert told({"method": "divprune", "keep": 1.0})[1] == "" == told({"hyperparameters": {}})[1]


def test_models_that_cannot_be_pruned_are_told() -> None:
    settings = ServerSettings()
    (unknown,) = notes_of(model_config(UNKNOWN), settings, True)
    assert "InternVLChatModel cannot be pruned" in unknown.text and "are refused." in unknown.text
    limited = model_config(KNOWN)
    setattr(limited.hf_config, LIMITS_KEY, {"all": "drafts are on."})
    (line,) = notes_of(limited, settings, True)
    assert line.text.endswith("nothing can be pruned: drafts are on.")
    (line,) = notes_of(model_config(KNOWN), settings, True, "its tower is another.")
    assert line.text.endswith("nothing can be pruned: its tower is another.")


def test_vllm_shows_the_line() -> None:
    assert LOGGER.name.startswith("vllm.")  # vLLM sets up its own logger and no other

"""Requests that try to end a server: each is refused before the engine, or answered, and so are all others."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from foveate.serving.vllm.faults import count_faults
from foveate.serving.vllm.log import LOGGER

from .engine import answers, engine, outputs
from .oracle import Case, Oracle, clip, picture
from .tiny import saved

pytestmark = pytest.mark.vllm

PICTURE = picture(84, 112, 0)
GOOD = Case((PICTURE,), asked={"foveate_keep": 0.5, "foveate_method": "idpruner"})
PLAIN = Case((picture(56, 112, 1),))


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Oracle]]:
    path = saved(request.param, tmp_path_factory.mktemp("checkpoints"))
    oracle = Oracle(request.param, path)
    with engine(path, max_num_batched_tokens=64) as llm:
        yield llm, oracle


def check_others(llm: Any, oracle: Oracle) -> None:
    """Requests that mean well are answered as if nothing had been."""
    for case in (GOOD, PLAIN):
        (found,), expected = answers(llm, oracle, [case]), oracle.answer(case)
        assert found.tokens == expected.tokens and found.prompt == expected.prompt
        assert max(abs(a - b) for a, b in zip(found.logprobs, expected.logprobs, strict=True)) <= 1e-4


def test_numbers_that_are_not_finite(pair: tuple[Any, Oracle], caplog: pytest.LogCaptureFixture) -> None:
    """As a request may cause them by how its image is to be normalised."""
    llm, oracle = pair
    (expected,) = outputs(llm, oracle, [GOOD])
    counted = count_faults()
    with caplog.at_level(logging.WARNING, logger=LOGGER.name):
        for method in ("idpruner", "divprune", "visionzip", "tome"):
            for mean, deviation in ((1e38, 1e-38), (float("nan"), 1.0), (0.0, 0.0)):
                asked = {"foveate_keep": 0.5, "foveate_method": method}
                broken = {"image_mean": [mean] * 3, "image_std": [deviation] * 3}
                try:
                    (found,) = outputs(llm, oracle, [Case((PICTURE,), asked=asked | broken)])
                except ValueError:  # refused, before the engine
                    continue
                assert len(found.prompt_token_ids) == len(expected.prompt_token_ids)
    check_others(llm, oracle)
    if oracle.name == "llava":
        assert count_faults() - counted == 4 * 3
        assert sum("keeps its first tokens" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 150), (3, 1), (2, 2000), (1, 5000), (800, 600)])
def test_pictures_of_all_shapes(pair: tuple[Any, Oracle], size: tuple[int, int]) -> None:
    llm, oracle = pair
    for method in ("idpruner", "tome"):
        case = Case((picture(*size),), asked={"foveate_keep": 0.25, "foveate_method": method})
        try:
            (found,) = answers(llm, oracle, [case])
        except ValueError:  # too long for the model, or more oblong than its processor allows
            continue
        expected = oracle.answer(case)
        assert found.tokens == expected.tokens and found.prompt == expected.prompt
    check_others(llm, oracle)


@pytest.mark.parametrize(
    "asked",
    [
        {"foveate_keep": 10**30},
        {"foveate_keep": 1e-300},
        {"foveate_keep": "0." + "3" * 300},
        {"foveate_keep": float("nan")},
        {"foveate_keep": [0.5]},
        {"foveate_keep": "25%|x"},
        {"foveate_keep": 0.5, "foveate_method": "divprune|0.5|frame"},
        {"foveate_keep": 0.5, "foveate_method": "d" * 500},
        {"foveate_keep": 0.5, "foveate_method": "\0"},
        {"foveate_keep": 0.5, "foveate_scope": ["image"]},
        {"foveate_keep": 0.5, "foveate_image": [1, 2, 3]},
        {"foveate_keep": 0.5, "foveate": "divprune|0.5|image"},
        {"foveate": "not|a|request|at|all"},
    ],
)
def test_arguments_of_all_kinds(pair: tuple[Any, Oracle], asked: dict[str, Any]) -> None:
    llm, oracle = pair
    try:
        (found,) = outputs(llm, oracle, [Case((PICTURE,), asked=asked)])
        assert found.outputs[0].token_ids
    except (ValueError, TypeError):
        pass
    check_others(llm, oracle)


@pytest.mark.parametrize("fps", [0, -2.0, float("nan"), 1e-9, 1e300])
def test_clips_of_all_rates(pair: tuple[Any, Oracle], fps: float) -> None:
    llm, oracle = pair
    if oracle.name == "llava":
        pytest.skip("sees no clips")
    pixels, known = clip(4, 84, 112, 3)
    for asked in ({"fps": fps}, {}):
        case = Case(clip=(pixels, known | {"fps": fps}), asked={"foveate_keep": 0.5, **asked})
        try:
            (found,) = outputs(llm, oracle, [case])
            assert found.outputs[0].token_ids
        except (ValueError, ZeroDivisionError):
            pass
    check_others(llm, oracle)

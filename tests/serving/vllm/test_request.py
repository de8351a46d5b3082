"""Requests on their way to the engine: one spelling for each meaning."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate import Budget, Conversation, FoveateError
from foveate.serving.vllm.request import InPrompt, PruneRequest, no_request
from foveate.tokens import Grid

budgets = st.one_of(st.floats(0.0, 1.0, exclude_min=True, allow_subnormal=False), st.integers(2, 10**6))


@given(budgets, st.sampled_from(["image", "frame"]), st.sampled_from(["idpruner", "a-third-party-method"]))
def test_a_request_survives_its_way_to_the_engine(keep: float | int, scope: Any, method: str) -> None:
    request = PruneRequest(method, Budget(keep, scope))
    assert PruneRequest.from_tensor(request.to_tensor()) == request == PruneRequest.parse(str(request))
    assert request.to_tensor().shape == no_request().shape


def test_no_request_is_none() -> None:
    assert PruneRequest.from_tensor(no_request()) is None


def test_a_name_that_does_not_fit_is_refused() -> None:
    with pytest.raises(FoveateError, match="too long"):
        PruneRequest("x" * 200, Budget(0.5)).to_tensor()


@given(st.floats(0.01, 1.0), st.lists(st.integers(0, 150_000), max_size=40))
def test_what_its_prompt_makes_of_an_image_travels_with_it(decay: float, text: list[int]) -> None:
    place = InPrompt("0123abcd", (3, 1), tuple(text), (len(text), 0) if text else ())
    request = PruneRequest("cdpruner", Budget(0.25, Conversation(decay)), place=place)
    assert PruneRequest.from_tensor(request.to_tensor()) == request
    bare = PruneRequest("cdpruner", Budget(0.25, Conversation(decay)), "prompt")
    assert PruneRequest.parse(str(bare)).budget == bare.budget and bare.reads_prompt


def test_counts_of_the_prompt_take_the_place_of_the_budget() -> None:
    tiles, clip = [Grid(2, 2)] * 2, Grid(2, 3, 4)
    by_age = PruneRequest("divprune", Budget(0.5, "conversation"), place=InPrompt("a", (1, 4)))
    groups = by_age.groups(tiles)
    assert groups.counts == [1, 4] and groups.sizes == [4, 4] and by_age.clip_scope == "image"
    framed = PruneRequest("cdpruner", Budget(0.5, "frame"), place=InPrompt("a", (3, 3, 2, 3), (7,), (0,) * 4))
    assert framed.groups([clip]).counts == [3, 3, 2, 3] and framed.groups([clip]).sizes == [6] * 4
    assert not PruneRequest("divprune", Budget(0.5, "frame")).reads_prompt


def test_what_is_left_behind_the_encoder_bounds_what_is_kept() -> None:
    request, grids = PruneRequest("divprune", Budget(12), encoder=(1.0, 0.5, 20)), [Grid(4, 4)]
    assert PruneRequest.from_tensor(request.to_tensor()) == request == PruneRequest.parse(str(request))
    assert [request.encoder_groups(grids, stage).counts for stage in range(3)] == [[16], [8], [8]]
    assert request.groups(grids).counts == [8]
    assert PruneRequest("divprune", Budget(3), encoder=(0.5,)).groups(grids).counts == [3]
    clip = PruneRequest("divprune", Budget(0.5, "frame"), encoder=(0.25,))
    assert clip.groups([Grid(2, 4, 3)]).counts == [2, 2, 2]

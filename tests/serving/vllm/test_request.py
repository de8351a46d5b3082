"""Requests on their way to the engine: one spelling for each meaning."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate import Budget, FoveateError
from foveate.serving.vllm.request import PruneRequest, no_request

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

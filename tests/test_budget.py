"""Budget: the count is a pure function of the size, and bad values are refused with the fix in the message."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate import Budget, BudgetError, Conversation, FoveateError, get_method

sizes = st.integers(1, 20_000)
fractions = st.floats(0.0, 1.0, exclude_min=True, allow_subnormal=False)
counts = st.integers(2, 20_000)


@given(fractions, sizes)
def test_fraction_follows_the_formula(keep: float, n: int) -> None:
    assert Budget(keep).count(n) == max(1, math.floor(keep * n + 0.5))


@given(st.integers(1, 8), sizes)
def test_fraction_equals_exact_rounding_half_up(eighths: int, n: int) -> None:
    exact = Fraction(eighths, 8) * n  # eighths are exact in binary, so the float formula must not be off by one
    whole, rest = divmod(exact.numerator, exact.denominator)
    assert Budget(eighths / 8).count(n) == max(1, whole + (2 * rest >= exact.denominator))


@given(counts, sizes)
def test_token_count_is_kept_up_to_the_size(keep: int, n: int) -> None:
    assert Budget(keep).count(n) == min(keep, n)


@given(st.one_of(fractions, counts), st.integers(0, 20_000))
def test_at_least_one_never_more_than_there_are(keep: float | int, n: int) -> None:
    assert min(1, n) <= Budget(keep).count(n) <= n


@given(st.one_of(fractions, counts), sizes)
def test_count_grows_with_the_size(keep: float | int, n: int) -> None:
    assert Budget(keep).count(n) <= Budget(keep).count(n + 1)


@given(st.one_of(fractions, counts), st.lists(st.integers(0, 999), max_size=5))
def test_counts_are_counted_alone(keep: float | int, pools: list[int]) -> None:
    assert Budget(keep).counts(pools) == [Budget(keep).count(n) for n in pools]


@pytest.mark.parametrize(
    ("spelled", "keep"), [("25%", 0.25), (" 25 % ", 0.25), ("0.25", 0.25), ("100%", 1.0), ("144", 144), ("1.0", 1.0)]
)
def test_strings(spelled: str, keep: float | int) -> None:
    assert Budget(spelled) == Budget(keep)
    assert type(Budget(spelled).keep) is type(keep)


@pytest.mark.parametrize(("keep", "everything"), [(1.0, True), ("100%", True), (0.999, False), (10**9, False)])
def test_keeps_all(keep: float | str, everything: bool) -> None:
    assert Budget(keep).keeps_all is everything


@given(st.lists(st.integers(0, 999), max_size=5))
def test_auto_is_bounded_by_the_size(pools: list[int]) -> None:
    for spelled in ("auto", " auto "):
        budget = Budget(spelled)
        assert budget == Budget("auto") and budget.by_content and not budget.keeps_all
        assert budget.counts(pools) == pools
    assert not Budget(0.5).by_content and not Budget(144).by_content


def test_auto_has_a_floor_and_a_similarity() -> None:
    assert Budget.auto() == Budget("auto") and (Budget("auto").floor, Budget("auto").similarity) == (None, None)
    for spelled in ("auto:floor=20%:similarity=0.9", " auto : similarity = 90% : floor = 0.2 "):
        budget = Budget(spelled)
        assert budget == Budget.auto(0.2, 0.9) == Budget.auto("20%", np.float64(0.9)) and budget.by_content
        assert (budget.floor, budget.similarity) == (0.2, 0.9) and Budget(budget.keep) == budget
        assert budget.label == str(budget) == "auto:floor=0.2:similarity=0.9"
    assert Budget.auto(floor=0, scope="frame") == Budget("auto:floor=0.0", "frame") != Budget("auto", "frame")
    assert Budget(0.5).floor is None and Budget(144).similarity is None


def test_least() -> None:
    """The floor's share, rounded as counts are, at least one token of an image that has any, unless there is none."""
    sizes = (0, 1, 4, 5, 100)
    assert [Budget("auto:floor=0.1").least(size) for size in sizes] == [0, 1, 1, 1, 10]
    assert [Budget("auto:floor=30%").least(size, 0.9) for size in sizes] == [0, 1, 1, 2, 30]
    assert [Budget("auto").least(size) for size in sizes] == [0] * 5
    assert [Budget("auto").least(size, 0.1) for size in sizes] == [0, 1, 1, 1, 10]
    assert [Budget("auto:floor=0").least(size, 0.1) for size in sizes] == [0] * 5


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        ("auto:", "write it as 'auto:floor=10%"),
        ("auto:0.1", "write it as"),
        ("auto:ceiling=0.1", "write it as"),
        ("auto:floor=0.1:floor=0.2", "write it as"),
        ("auto:floor=", "not a number"),
        ("auto:floor=some", "^floor='some' is not a number.*keep='auto:floor="),
        ("auto:floor=1.0", r"floor=1.0 is out of range.*such as 0\.1"),
        ("auto:floor=-0.1", "floor=-0.1 is out of range"),
        ("auto:floor=nan", "floor=nan is out of range"),
        ("auto:similarity=0", r"similarity=0.0 is out of range.*such as 0\.8"),
        ("auto:similarity=1.5", "similarity=1.5 is out of range"),
        ("auto:similarity=nan", "similarity=nan is out of range"),
        ("automatic", "not a number"),
    ],
)
def test_auto_is_refused(keep: str, says: str) -> None:
    with pytest.raises(BudgetError, match=says):
        Budget(keep)


@pytest.mark.parametrize("given", [{"floor": True}, {"floor": "much"}, {"similarity": [0.5]}])
def test_fields_of_auto_that_are_no_numbers_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(BudgetError):
        Budget.auto(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        (1, "ambiguous"),
        ("1", "ambiguous"),
        (0, "keeps nothing"),
        (-3, "keeps nothing"),
        (0.0, "out of range"),
        (-0.5, "out of range"),
        (1.5, "out of range"),
        ("150%", "out of range"),
        (math.nan, "out of range"),
        ("nan", "out of range"),
        (math.inf, "out of range"),
        ("inf", "out of range"),
        ("many", "not a number"),
        ("Auto", "not a number"),
        ("", "not a number"),
        ("%", "not a number"),
        (True, "not a budget"),
        (None, "not a budget"),
        ([0.5], "not a budget"),
    ],
)
def test_refused(keep: object, says: str) -> None:
    with pytest.raises(BudgetError, match=says) as caught:
        Budget(keep)  # type: ignore[arg-type]
    assert isinstance(caught.value, FoveateError) and isinstance(caught.value, ValueError)
    assert "1.0" in str(caught.value) or "'25%'" in str(caught.value)  # the fix


def test_refused_scope() -> None:
    with pytest.raises(BudgetError, match="use 'image', 'frame' or 'prompt'"):
        Budget(0.5, scope="batch")  # type: ignore[arg-type]


@pytest.mark.parametrize(("keep", "text"), [(0.25, "0.25"), ("10%", "0.1"), (144, "144 tokens"), ("auto", "auto")])
def test_str(keep: float | int | str, text: str) -> None:
    assert str(Budget(keep)) == text


@pytest.mark.parametrize(
    ("given", "keep"),
    [
        (np.float32(0.25), 0.25),
        (np.float32(0.7), 0.7),
        (np.float64(0.123456789), 0.123456789),
        (np.float16(0.5), 0.5),
        (np.int64(100), 100),
        (np.uint8(100), 100),
        (torch.tensor(0.25), 0.25),
        (torch.tensor(0.7), 0.7),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.tensor(100), 100),
        (np.array(0.25), 0.25),
    ],
)
def test_scalars_of_numpy_and_torch_are_numbers(given: object, keep: float | int) -> None:
    budget = Budget(given)  # type: ignore[arg-type]
    assert budget == Budget(keep) and type(budget.keep) is type(keep)


@pytest.mark.parametrize(
    "wrong", [np.bool_(True), np.int64(1), np.float32("nan"), np.array([0.25]), torch.tensor([0.25]), torch.tensor(1)]
)
def test_other_arrays_are_refused(wrong: object) -> None:
    with pytest.raises(BudgetError):
        Budget(wrong)  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 400), min_size=1, max_size=20), fractions | counts, st.floats(0.1, 1.0))
def test_a_conversation_shares_exactly_by_age(sizes, keep, decay):
    budget = Budget(keep, Conversation(decay))
    kept, total = budget.split(sizes), budget.count(sum(sizes))
    assert all(1 <= count <= size for count, size in zip(kept, sizes, strict=True))
    assert total <= sum(kept) <= total + kept.count(1)  # an image keeps one at least


@given(st.integers(1, 400), st.integers(1, 20), fractions, st.floats(0.1, 1.0))
def test_newer_images_of_one_size_keep_no_less(size, images, keep, decay):
    kept = Budget(keep, Conversation(decay)).split([size] * images)
    assert kept == sorted(kept)


def test_a_conversation_by_hand():
    assert Budget(0.25, "conversation").split([100] * 4) == [6, 13, 27, 54]
    assert Budget(0.6, "conversation").split([100] * 4) == [20, 40, 80, 100]  # the newest is whole
    assert Budget(1.0, "conversation").split([100] * 4) == [100] * 4
    assert Budget(0.25, "conversation").split([100]) == [25]
    assert Budget(0.25, "conversation").split([]) == []
    assert Budget(150, Conversation(1.0)).split([100] * 3) == [50, 50, 50]


def test_a_conversation_of_twenty_keeps_the_newest_whole():
    counts = Budget(0.1, "conversation").split([1000] * 20)
    assert counts[-1] == 1000 and 2000 <= sum(counts) <= 2000 + counts.count(1) and counts == sorted(counts)


def test_scopes_of_conversations_are_checked():
    assert Budget(0.5, "conversation") == Budget(0.5, Conversation(0.5))
    with pytest.raises(BudgetError, match="decay=0"):
        Conversation(0)
    with pytest.raises(BudgetError, match="counts image by image"):
        Budget("auto", "conversation")
    with pytest.raises(BudgetError, match="or 'conversation'"):
        Budget(0.5, "conversations")


def test_what_a_stage_leaves_is_not_a_budget_of_its_own() -> None:
    first = get_method("vscan").stages(32, Budget(0.25))[0].budget
    with pytest.raises(BudgetError, match=r"0\.375 is what one stage of a schedule leaves"):
        Budget(first)

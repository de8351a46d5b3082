"""What was used last stays, as far as there is room."""

from __future__ import annotations

from foveate.serving.vllm.recently_used import RecentlyUsed


def test_what_was_not_used_for_longest_goes_first() -> None:
    held = RecentlyUsed[str, bytes](6, len)
    for key, value in {"a": b"..", "b": b"..", "c": b".."}.items():
        held.put(key, value)
    assert held.get("a") == b".." and held.size == 6
    held.put("d", b"...")  # in the place of b and c
    assert [held.get(key) for key in "abcd"] == [b"..", None, None, b"..."] and (len(held), held.size) == (2, 5)


def test_a_value_takes_the_place_of_another_and_one_too_large_that_of_none() -> None:
    held = RecentlyUsed[str, bytes](6, len)
    held.put("a", b".")
    held.put("a", b"....")
    assert (len(held), held.size) == (1, 4)
    held.put("b", b"." * 7)
    assert held.get("b") is None and held.get("a") == b"...."
    held.clear()
    assert (len(held), held.size, held.get("a")) == (0, 0, None)


def test_without_sizes_values_are_counted_and_no_room_keeps_none() -> None:
    held, none = RecentlyUsed[int, str](2), RecentlyUsed[int, str](0)
    for key in range(3):
        held.put(key, "x")
        none.put(key, "x")
    assert [held.get(key) for key in range(3)] == [None, "x", "x"] and len(none) == 0

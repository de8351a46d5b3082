"""What was used last, as far as there is room: the one kind of cache that the plugin has of its own."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class RecentlyUsed(Generic[Key, Value]):
    """Values by key; what was not used for longest goes first. Safe in threads.

    Args:
        most: that all may take together; 0 keeps none.
        size_of: what a value takes; 1 unless told otherwise.
    """

    def __init__(self, most: int, size_of: Callable[[Value], int] = lambda value: 1) -> None:
        self._most, self._size_of = most, size_of
        self._held, self._lock = OrderedDict[Key, Value](), threading.Lock()
        self.size = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Key) -> Value | None:
        """The value of a key, which is used by that; None where it is not here."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: Key, value: Value) -> None:
        """Keep a value in the place of another, unless it is larger than all the room."""
        size = self._size_of(value)
        if size > self._most:
            return
        with self._lock:
            if key in self._held:
                self.size -= self._size_of(self._held.pop(key))
            self._held[key] = value
            self.size += size
            while self.size > self._most:
                self.size -= self._size_of(self._held.popitem(last=False)[1])

    def drop(self, key: Key) -> None:
        """Forget one, if it is here."""
        with self._lock:
            if key in self._held:
                self.size -= self._size_of(self._held.pop(key))

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._held.clear()
            self.size = 0

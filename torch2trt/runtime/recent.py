"""A small cache of what is costly to make: what comes back is kept, what comes once does not push anything out."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")

_MISSES_KEPT = 1024


class Recent(Generic[_Key, _Value]):
    """Values by key, the least recently used displaced first.

    Args:
        capacity: values kept.
        first: the miss of a key at which it is worth a free place.
        later: the miss at which it is worth another key's place. Keys that change with every call never get there.
    """

    def __init__(self, capacity: int, *, first: int, later: int) -> None:
        self._capacity = capacity
        self._first = first
        self._later = later
        self._values: OrderedDict[_Key, _Value] = OrderedDict()
        self._misses: Counter[_Key] = Counter()

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[_Value]:
        return iter(self._values.values())

    def peek(self, key: _Key) -> _Value | None:
        """The value, if it is there; does not count as a use."""
        return self._values.get(key)

    def get(self, key: _Key) -> _Value | None:
        """The value, if it is there."""
        value = self._values.get(key)
        if value is not None and len(self._values) > 1:
            self._values.move_to_end(key)
        return value

    def missed(self, key: _Key) -> bool:
        """Count a miss; whether the value is worth making now."""
        if len(self._misses) >= _MISSES_KEPT:
            self._misses.clear()
        self._misses[key] += 1
        return self._misses[key] >= (self._later if self.full else self._first)

    @property
    def full(self) -> bool:
        """Whether the next value displaces one."""
        return len(self._values) >= self._capacity

    def displace(self) -> None:
        """Drop the least recently used value."""
        self._values.popitem(last=False)

    def put(self, key: _Key, value: _Value) -> None:
        """Keep a value."""
        del self._misses[key]
        self._values[key] = value

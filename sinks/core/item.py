"""What travels in batches: an encoded event, and what became of a batch."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Union, overload

from outfall.sinks.event.event import timestamp_of
from outfall.sinks.event.json import event_of
from outfall.sinks.event.levels import level_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping


@dataclass(frozen=True, slots=True)
class Encoded:
    """One event, encoded in the thread that logged it.

    Args:
        data: What the sink it is meant for puts out: a JSON object, or the bytes of the sink's own renderer. It has no
            terminator: a sink that ends each event adds its own when it writes.
        level: The level number.
        time: When it happened, in seconds since the epoch: its ``timestamp``, else when it was handled.
    """

    data: bytes
    level: float
    time: float

    @property
    def event(self) -> dict[str, Any]:
        """The event as a dict, decoded anew at each access; text that is no JSON object is ``{"event": text}``."""
        return event_of(self.data)


#: A value that JSON has no place for, and the names and numbers that lead to it in the decoded event.
_Lost = tuple[tuple[str | int, ...], Any]


@dataclass(frozen=True, slots=True)
class TypedEncoded(Encoded):
    """An event in memory, with the values that its JSON does not carry: bytes, NaN, the infinities.

    Args:
        data: The event as JSON.
        level: The level number.
        time: When it happened.
        lost: Where these values are, and the values.
    """

    lost: tuple[_Lost, ...]

    @property
    def event(self) -> dict[str, Any]:
        """The event as a dict, decoded anew at each access, with these values in their places."""
        event = event_of(self.data)
        for path, value in self.lost:
            place: Any = event
            try:
                for key in path[:-1]:
                    place = place[key]
                place[path[-1]]  # what the renderer has left out stays so
                place[path[-1]] = value
            except (LookupError, TypeError):
                continue
        return event


def typed(item: Encoded, event: Mapping[str, Any]) -> Encoded:
    """Return *item*, the JSON of *event*, with the values that JSON does not carry, if there are any."""
    lost = lost_in_json(event)
    return TypedEncoded(item.data, item.level, item.time, lost) if lost else item


def lost_in_json(event: Mapping[str, Any]) -> tuple[_Lost, ...]:
    """Return the values in *event* that JSON does not carry, copied, and where they are. Never raises."""
    found: list[_Lost] = []
    with contextlib.suppress(Exception):  # what another thread changes meanwhile
        _look_for_lost(event, (), found)
    return tuple(found)


def _look_for_lost(container: Any, path: tuple[str | int, ...], found: list[_Lost]) -> None:
    if len(path) > _DEEPEST:
        return
    items: Any = container.items() if isinstance(container, dict) else enumerate(container)
    for key, value in list(items):
        kind = type(value)
        if kind is str or kind is int or type(key) not in (str, int):
            continue
        if issubclass(kind, float):
            if not math.isfinite(value):
                found.append(((*path, key), float(value)))
        elif kind in (bytes, bytearray, memoryview):
            found.append(((*path, key), bytes(value)))
        elif kind in (dict, list, tuple):
            _look_for_lost(value, (*path, key), found)


#: Deeper than this nothing is looked for.
_DEEPEST = 16

#: What waits in a queue until somebody asks for the item: its data alone, where that tells the rest; or its data, its
#: level (None: in the data), when it was handled (None: now), and its own timestamp as the event has it (True: in the
#: data; False: none).
Raw = Union[bytes, "tuple[bytes, float | None, float | None, Any]"]


def item_of(raw: Raw | Encoded) -> Encoded:
    """Return *raw* as an item, decoding it where its level or its time are only in its data."""
    if isinstance(raw, Encoded):
        return raw
    data, level, handled, stamp = (raw, None, None, True) if isinstance(raw, bytes) else raw
    if level is None or stamp is True or (handled is None and stamp is False):
        event = Encoded(data, 0, 0).event
        level = level_of(event) if level is None else level
        when = timestamp_of(event)
    else:
        when = None if stamp is False else timestamp_of({"timestamp": stamp})
    if when is None:
        when = time.time() if handled is None else handled
    return Encoded(data, level, when)


def data_in(raw: Raw | Encoded) -> bytes:
    """Return the data of *raw*, without making an item of it."""
    return raw if isinstance(raw, bytes) else raw[0] if isinstance(raw, tuple) else raw.data


class Batch(Sequence[Encoded]):
    """The items that a delivery hands to ``emit_batch``, with a key that is the same at every retry.

    Over HTTP the key is the ``Idempotency-Key`` header. A part of a batch has a key of its own that follows from the
    batch's key and its place in it.

    Args:
        items: The items, oldest first: `Encoded` ones, or what `item_of` makes items of when they are asked for.
        key: The key. Default: a random one.
    """

    notes: dict[object, dict[int, Any]]

    __slots__ = ("_data", "_items", "_places", "_root", "key", "notes")

    def __init__(self, items: Iterable[Encoded | Raw], key: str | None = None) -> None:
        self._fill(tuple(items), None, os.urandom(16).hex() if key is None else key, {})

    def _fill(
        self,
        items: Sequence[Encoded | Raw],
        places: Sequence[int] | None,
        root: str,
        notes: dict[object, dict[int, Any]],
    ) -> None:
        self._items = items
        self._data: list[bytes] | None = None
        #: Where the items stand in the whole batch.
        self._places = range(len(items)) if places is None else places
        self._root = root
        #: What a router has to remember about items, by the router and the item's place in the whole batch: the same
        #: dict in all parts, so that the router finds it when the delivery tries some of them again.
        self.notes = notes
        self.key: str = root
        if places is not None:
            together = not places or len(places) == places[-1] - places[0] + 1
            told = f"{places[0]}-{places[-1]}" if places and together else _digest(places)
            self.key = f"{root}.{told}"

    @property
    def data(self) -> list[bytes]:
        """Each item's data, without making items; made once, and not to be changed."""
        data = self._data
        if data is None:
            items: Sequence[Any] = self._items
            kinds = self.kinds()
            if kinds == {bytes}:
                data = list(items)
            else:
                data = [item[0] for item in items] if kinds == {tuple} else list(map(data_in, items))
            self._data = data
        return data

    @property
    def levels(self) -> list[float]:
        """Each item's level number, without finding out times."""
        items: Sequence[Any] = self._items
        return [item[1] if type(item) is tuple and item[1] is not None else item_of(item).level for item in items]

    @property
    def item_keys(self) -> list[str]:
        """A key for each item: the same at every retry, and in every part of the batch that the item is in."""
        return [f"{self._root}.{place}" for place in self._places]

    @classmethod
    def of_data(cls, data: list[bytes]) -> Batch:
        """Return a batch of items that are nothing but their *data*, which is not to be changed any more."""
        made = cls(())
        made._items, made._places, made._data = data, range(len(data)), data
        return made

    def part(self, indexes: Iterable[int]) -> Batch:
        """Return the items at *indexes*, as a batch."""
        chosen = tuple(indexes)
        made = Batch((), "")
        items, places = self._items, self._places
        made._fill([items[index] for index in chosen], [places[index] for index in chosen], self._root, self.notes)
        return made

    def under(self, name: str, change: Callable[[Any], Any] | None = None) -> Batch:
        """Return the same items under keys of their own, for one of several sinks that are given them.

        Args:
            name: What makes the keys different.
            change: What to put in the place of each item as it waits. Default None: the item itself.
        """
        made = Batch((), "")
        whole = self.key == self._root
        items = self._items if change is None else list(map(change, self._items))
        made._fill(items, None if whole else self._places, f"{self._root}-{name}", self.notes)
        made._data = self._data if change is None else None
        return made

    @property
    def places(self) -> Sequence[int]:
        """Where each item stands in the whole batch."""
        return self._places

    def kinds(self) -> set[type]:
        """Return the classes of the items as they wait; `Encoded` and its subclasses are made items."""
        return set(map(type, self._items))

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> Batch: ...
    def __getitem__(self, index: int | slice) -> Encoded | Batch:
        if isinstance(index, slice):
            return self.part(range(*index.indices(len(self._items))))
        return item_of(self._items[index])

    def __iter__(self) -> Iterator[Encoded]:
        return map(item_of, self._items)

    def __repr__(self) -> str:
        return f"<Batch {self.key} of {len(self._items)}>"


def _digest(places: Sequence[int]) -> str:
    from hashlib import blake2b

    return blake2b(repr(places).encode(), digest_size=8).hexdigest()


def data_of(batch: Sequence[Encoded]) -> list[bytes]:
    """Return the data of each item of *batch*, without making items where it is a `Batch`; not to be changed."""
    return batch.data if isinstance(batch, Batch) else [item.data for item in batch]


class Ends(Sequence[int]):
    """Where each of some data ends when they are written one after the other; computed when somebody asks.

    Args:
        data: The data.
        end: What is written behind each.
    """

    __slots__ = ("_data", "_end", "_made")

    def __init__(self, data: Sequence[bytes], end: bytes = b"") -> None:
        self._data = data
        self._end = len(end)
        self._made: list[int] | None = None

    def _all(self) -> list[int]:
        if self._made is None:
            end = self._end
            self._made = list(accumulate(len(each) + end for each in self._data))
        return self._made

    def __len__(self) -> int:
        return len(self._data)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        return self._all()[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._all())


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of a batch that was not taken whole.

    Indexes count from 0 in the batch handed to ``emit_batch``. What is named nowhere was delivered.

    Args:
        retry: Indexes of the items that should be tried again.
        rejected: Why the target refused an item for good, by index.
        rejected_unknown: How many more it refused without saying which.
        retry_after: Seconds to wait before the retry, or None when the target did not say.
    """

    retry: Sequence[int] = ()
    rejected: Mapping[int, str] = field(default_factory=dict)
    rejected_unknown: int = 0
    retry_after: float | None = None

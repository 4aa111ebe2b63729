"""Encoded events, batches of them, and the result of a batch."""

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
        data: The bytes that the sink puts out: a JSON object, or the result of the sink's own renderer. There is no
            terminator; a sink that writes one adds it.
        level: The level number.
        time: The time of the event in epoch seconds: its ``timestamp``, else the time when it was handled.
    """

    data: bytes
    level: float
    time: float

    @property
    def event(self) -> dict[str, Any]:
        """The event as a dict, decoded at each access; text that is not a JSON object gives ``{"event": text}``."""
        return event_of(self.data)


#: The path to a value in the decoded event, as keys and indexes, and the value, which JSON cannot represent.
_Lost = tuple[tuple[str | int, ...], Any]


@dataclass(frozen=True, slots=True)
class TypedEncoded(Encoded):
    """An encoded event in memory, with the values that JSON cannot represent: bytes, NaN, the infinities.

    Args:
        data: The event as JSON.
        level: The level number.
        time: The time of the event in epoch seconds.
        lost: The paths of these values, and the values.
    """

    lost: tuple[_Lost, ...]

    @property
    def event(self) -> dict[str, Any]:
        """The event as a dict with these values, decoded at each access."""
        event = event_of(self.data)
        for path, value in self.lost:
            place: Any = event
            try:
                for key in path[:-1]:
                    place = place[key]
                place[path[-1]]  # raises if the renderer has left the field out
                place[path[-1]] = value
            except (LookupError, TypeError):
                continue
        return event


def typed(item: Encoded, event: Mapping[str, Any]) -> Encoded:
    """Return *item*, the JSON of *event*, together with the values that JSON cannot represent, if there are any."""
    lost = lost_in_json(event)
    return TypedEncoded(item.data, item.level, item.time, lost) if lost else item


def lost_in_json(event: Mapping[str, Any]) -> tuple[_Lost, ...]:
    """Return copies of the values in *event* that JSON cannot represent, with their paths. Never raises."""
    found: list[_Lost] = []
    with contextlib.suppress(Exception):  # another thread may change the event meanwhile
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


#: The depth to which values are searched for.
_DEEPEST = 16

#: The form in which items wait in a queue, until an `Encoded` is needed: the data alone, if it has level and timestamp;
#: or the data, the level (None: read it from the data), the time when it was handled (None: now), and the event's
#: timestamp as it is (True: read it from the data; False: there is none).
Raw = Union[bytes, "tuple[bytes, float | None, float | None, Any]"]


def item_of(raw: Raw | Encoded) -> Encoded:
    """Return *raw* as an `Encoded`; decode the data if the level or the time is only there."""
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
    """Return the data of *raw*, without making an `Encoded`."""
    return raw if isinstance(raw, bytes) else raw[0] if isinstance(raw, tuple) else raw.data


class Batch(Sequence[Encoded]):
    """The items for one call of ``emit_batch``, with a key that is the same at every retry.

    Over HTTP the key is the ``Idempotency-Key`` header. A part of a batch has its own key, which is made from the
    batch's key and the part's place in the batch.

    Args:
        items: The items, oldest first: `Encoded` or `Raw`. `item_of` converts them when they are accessed.
        key: The key. Default None: a random one.
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
        #: The indexes of the items in the whole batch.
        self._places = range(len(items)) if places is None else places
        self._root = root
        #: Notes of routers about items, by router and the item's index in the whole batch. All parts share the dict, so
        #: that a router finds its notes when some of the items are tried again.
        self.notes = notes
        self.key: str = root
        if places is not None:
            contiguous = not places or len(places) == places[-1] - places[0] + 1
            shown = f"{places[0]}-{places[-1]}" if places and contiguous else _digest(places)
            self.key = f"{root}.{shown}"

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
        """The level number of each item; times are not computed."""
        items: Sequence[Any] = self._items
        return [item[1] if type(item) is tuple and item[1] is not None else item_of(item).level for item in items]

    @property
    def item_keys(self) -> list[str]:
        """The key of each item, which is the same at every retry, and in every part of the batch."""
        return [f"{self._root}.{place}" for place in self._places]

    @classmethod
    def of_data(cls, data: list[bytes]) -> Batch:
        """Return a batch of *data*, which must not be changed any more."""
        made = cls(())
        made._items, made._places, made._data = data, range(len(data)), data
        return made

    def part(self, indexes: Iterable[int]) -> Batch:
        """Return a batch of the items at *indexes*."""
        chosen = tuple(indexes)
        made = Batch((), "")
        items, places = self._items, self._places
        made._fill([items[index] for index in chosen], [places[index] for index in chosen], self._root, self.notes)
        return made

    def under(self, name: str, change: Callable[[Any], Any] | None = None) -> Batch:
        """Return a batch of the same items with other keys, for one of several sinks that get them.

        Args:
            name: The part that distinguishes the keys.
            change: A function that replaces each item. Default None: the items stay.
        """
        made = Batch((), "")
        whole = self.key == self._root
        items = self._items if change is None else list(map(change, self._items))
        made._fill(items, None if whole else self._places, f"{self._root}-{name}", self.notes)
        made._data = self._data if change is None else None
        return made

    @property
    def places(self) -> Sequence[int]:
        """The index of each item in the whole batch."""
        return self._places

    def kinds(self) -> set[type]:
        """Return the types of the items as they are stored: those of `Raw`, or `Encoded` and its subclasses."""
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
    """Return the data of each item of *batch*, without converting items; the list must not be changed."""
    return batch.data if isinstance(batch, Batch) else [item.data for item in batch]


class Ends(Sequence[int]):
    """The end positions of pieces of data that are written one after the other, computed at the first access.

    Args:
        data: The pieces.
        end: The terminator that follows each.
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
    """The result of a batch that the target did not take as a whole.

    Indexes count from 0 in the batch given to ``emit_batch``. Items that are not mentioned were delivered.

    Args:
        retry: The indexes of items to try again.
        rejected: The reason for each item that the target refused for good, by index.
        rejected_unknown: The number of further refused items whose indexes the target did not say.
        retry_after: Seconds to wait before the retry, or None when the target did not say.
    """

    retry: Sequence[int] = ()
    rejected: Mapping[int, str] = field(default_factory=dict)
    rejected_unknown: int = 0
    retry_after: float | None = None


def usable(result: BatchResult, events: int) -> BatchResult:
    """Return *result* without indexes outside a batch of *events* events, each index once and in order."""
    places = range(events)
    retry = sorted({index for index in result.retry if index in places})
    rejected = {index: reason for index, reason in result.rejected.items() if index in places and index not in retry}
    unknown = max(0, min(result.rejected_unknown, events - len(retry) - len(rejected)))
    return BatchResult(retry, rejected, unknown, result.retry_after)

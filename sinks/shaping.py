"""Processors for any sink that limit how many events pass: `Throttle`, `Sample` and `Once`."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from random import random as _draw
from typing import TYPE_CHECKING, Any, Final, Union

from structlog import DropEvent

from outfall.sinks.core import lifecycle
from outfall.sinks.core.arguments import checked_count, checked_seconds
from outfall.sinks.core.lock import HAS_GLOBAL_LOCK
from outfall.sinks.event.event import copy_event
from outfall.sinks.event.fields import Projection
from outfall.sinks.event.json import OrjsonRenderer
from outfall.sinks.event.levels import NUMBERS, UNKNOWN, Level, level_name, level_of, parse_level

if TYPE_CHECKING:
    from outfall.sinks.event.units import Span

#: The key of an event: names or paths of fields, or a callable that gets the event.
Key = Union[str, "Sequence[str]", "Callable[[Mapping[str, Any]], object]"]

#: Longer texts, and values of types other than these, are compared by a digest, so that keys have a bounded size.
_LONGEST: Final = 256
_SCALARS = frozenset({int, bool, type(None)})

#: The default for the number of keys to remember.
_REMEMBERED: Final = 10_000


class _Shared:
    """One lock for all processors; it is held for a moment. A forked child gets a new one."""

    lock = threading.RLock()


def _in_child() -> None:
    _Shared.lock = threading.RLock()


lifecycle.call_in_child(_in_child)


class _Shaper:
    """A processor that passes, changes or drops an event, by the method `screen`."""

    #: A fast version of `screen` for usual events, given the event alone. It raises, without effects, for any other.
    screen_usual: Callable[[dict[str, Any]], Any] | None = None

    def __call__(self, logger: object, method_name: str, event_dict: Any) -> Any:
        """Return the event or a changed copy; raise `structlog.DropEvent` if it is suppressed."""
        screened = self.screen(event_dict, level_of(event_dict))
        if screened is None:
            raise DropEvent
        return screened

    def screen(self, event: Any, level: float) -> Any:
        """Return *event* if it passes, or a changed copy; return None if it is suppressed.

        Args:
            event: The event. It is not changed.
            level: Its level number.
        """
        raise NotImplementedError


class Throttle(_Shaper):
    """Limit the rate of events with the same key: let a number of them pass in each window of time.

    Use it for messages that may come a million times: a full disk, a peer that is down. Suppressed events count as
    ``filtered``.

    Args:
        events: The number of events of one key that pass in each window, from 1 up.
        per: The length of a window in seconds, as a timedelta, or as text such as ``"1m"``. A window begins with the
            first event of its key after the end of the previous window.
        key: The name of a field, several names, or a callable that gets the event and returns its key. A name may be a
            path, ``"user.id"``. Events that have none of the fields share one key. Default ``("event",)``.
        keep: Events at or above this level always pass, and are not counted. Default ``"error"``. None: no exception.
        remember: The number of keys to remember. If there are more, the oldest window is forgotten. Default 10 000.
        clock: A function that returns seconds. Default `time.monotonic`.

    Raises:
        ValueError: If *events*, *per*, *keep* or *remember* is not usable, or *key* is empty.
        TypeError: If *key* is neither names nor a callable.

    The next event of a key that passes has the number of suppressed events in its field ``suppressed``. `Sink.flush`,
    `Sink.close` and the exit of the process put out one event for each key with suppressed events that no event has
    reported yet. It has the fields of the key, ``event``, ``level`` and ``logger``, the time of the last suppressed
    event, and ``suppressed``. Give each sink its own Throttle.

    The event passed in is not changed. Safe from any thread; a forked child continues with the parent's counts. The
    memory for a key is bounded, however large the event is.
    """

    screen_usual: Callable[[dict[str, Any]], Any] | None

    __slots__ = ("_clock", "_events", "_forgotten", "_keep", "_key", "_per", "_remember", "_windows", "screen_usual")

    def __init__(
        self,
        events: int,
        per: Span,
        key: Key = ("event",),
        keep: Level | None = "error",
        *,
        remember: int = _REMEMBERED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._events = checked_count(events, "events", "events")
        self._per = checked_seconds(per, "per")
        if not self._per:
            msg = f"per={per!r} is not a span of time"
            raise ValueError(msg)
        self._key = _Key(key)
        self._keep = _checked_keep(keep)
        self._remember = checked_count(remember, "remember", "keys")
        self._clock = clock
        self._windows: dict[object, _Window] = {}
        #: The number of suppressed events of forgotten keys.
        self._forgotten = 0
        if HAS_GLOBAL_LOCK and self._key.name is not None:
            self.screen_usual = self._usual(self._key.name)

    def __repr__(self) -> str:
        return f"Throttle({self._events}, {self._per:g}, {self._key!r})"

    def _usual(self, name: str) -> Callable[[dict[str, Any]], Any]:
        kept = {spelling: self._keep <= number for spelling, number in NUMBERS.items()}
        windows, clock = self._windows, self._clock

        def screen_usual(event: dict[str, Any]) -> Any:
            if kept[event["level"]]:
                return event
            window = windows[event[name]]
            if clock() >= window.until:
                raise LookupError
            stamp = event["timestamp"] if "timestamp" in event else None  # noqa: SIM401 - a call would cost more
            # No call from here on, so that no other thread runs in between.
            if window.left:
                window.left -= 1
                return event
            if window.about is None:
                raise LookupError
            window.held += 1
            window.last = stamp
            return None

        return screen_usual

    def screen(self, event: Any, level: float) -> Any:
        """Return *event* if it passes, with ``suppressed`` in a copy if events were suppressed before; else None."""
        if self._keep <= level != UNKNOWN:
            return event
        name = self._key.name
        value: Any = event.get(name) if name is not None else None
        key = value if value.__class__ is str and len(value) <= _LONGEST else self._key.of(event)
        now = self._clock()
        held = 0
        with _Shared.lock:
            window = self._windows.get(key)
            if window is not None and now < window.until:
                if window.left:
                    window.left -= 1
                    return event
                window.held += 1
                window.last = event.get("timestamp")
                if window.about is None:
                    window.about = self._key.about(event)
                return None
            if window is not None:
                # The new window goes to the end of the dict, which orders windows by their beginning.
                held = self._windows.pop(key).held
            elif len(self._windows) >= self._remember:
                forgotten = self._windows.pop(next(iter(self._windows))).held
                self._forgotten += forgotten
            self._windows[key] = _Window(now + self._per, self._events - 1)
        if not held:
            return event
        passed = copy_event(event)
        passed["suppressed"] = held
        return passed

    def held_back(self) -> list[dict[str, Any]]:
        """Return a summary event for each key with suppressed events that no event has reported; reset the counts."""
        summaries: list[dict[str, Any]] = []
        with _Shared.lock:
            # No condition ends the loop: from Python 3.12 on an interrupt there would leave the lock held.
            for window in self._windows.values():
                held, window.held = window.held, 0
                stamp = {} if window.last is None else {"timestamp": window.last}
                summaries += [{**stamp, **(window.about or {}), "suppressed": held}] if held else []
            forgotten, self._forgotten = self._forgotten, 0
        if forgotten:
            summaries.append({"event": "events of many kinds were held back", "level": "info", "suppressed": forgotten})
        return summaries


class _Window:
    __slots__ = ("about", "held", "last", "left", "until")

    def __init__(self, until: float, left: int) -> None:
        self.until, self.left = until, left
        self.held = 0
        #: The timestamp of the last suppressed event, and the fields of the first one for the summary.
        self.last: Any = None
        self.about: dict[str, Any] | None = None


class Sample(_Shaper):
    """Let a fraction of the events pass, at random or by key.

    Suppressed events count as ``filtered``.

    Args:
        rate: The fraction that passes, from 0 to 1.
        keep: Events at or above this level always pass. Default ``"error"``. None: no exception.
        key: Fields, or a callable, as for `Throttle`. Of the events of one key all pass or none, in every process and
            on every machine. An event that has none of the fields passes at random. Default None: every event passes at
            random.
        random: A function that returns a number from 0 (included) to 1 (excluded). Default ``random.random``.

    Raises:
        ValueError: If *rate* is not from 0 to 1, *keep* is not a level, or *key* is empty.
        TypeError: If *key* is neither names nor a callable.

    Keys that pass with a small *rate* also pass with a larger one. Events are not changed. Safe from any thread; holds
    no state.
    """

    screen_usual: Callable[[dict[str, Any]], Any] | None

    __slots__ = ("_keep", "_key", "_random", "_rate", "screen_usual")

    def __init__(
        self,
        rate: float,
        keep: Level | None = "error",
        key: Key | None = None,
        *,
        random: Callable[[], float] = _draw,
    ) -> None:
        if not isinstance(rate, (int, float)) or isinstance(rate, bool) or not 0 <= rate <= 1:
            msg = f"rate={rate!r} is not a share from 0 to 1"
            raise ValueError(msg)
        self._rate = rate
        self._keep = _checked_keep(keep)
        self._key = None if key is None else _Key(key)
        self._random = random
        if key is None:
            kept = {spelling: self._keep <= number for spelling, number in NUMBERS.items()}
            self.screen_usual = lambda event: event if kept[event["level"]] or random() < rate else None

    def __repr__(self) -> str:
        return f"Sample({self._rate:g})" if self._key is None else f"Sample({self._rate:g}, key={self._key!r})"

    def screen(self, event: Any, level: float) -> Any:
        """Return *event* if it passes, else None."""
        if self._keep <= level != UNKNOWN:
            return event
        key = self._key
        value = None if key is None else key.of(event)
        if value is None:
            drawn = self._random()
        else:
            data = value if isinstance(value, bytes) else _digest(value)
            drawn = int.from_bytes(data[:8], "big") / 2**64
        return event if drawn < self._rate else None


class Once(_Shaper):
    """Let the first event of each key pass, and suppress those that follow.

    Use it for warnings that need one line only: a deprecated call, a missing setting. Suppressed events count as
    ``filtered``.

    Args:
        key: Fields, or a callable, as for `Throttle`. An event that has none of the fields passes.
        within: The time for which a passed event suppresses others of its key, in seconds, as a timedelta, or as text
            such as ``"1h"``. Default None: for ever.
        remember: The number of keys to remember. If there are more, the least recently seen key is forgotten, and its
            next event passes. Default 10 000.
        clock: A function that returns seconds. Default `time.monotonic`.

    Raises:
        ValueError: If *within* or *remember* is not usable, or *key* is empty.
        TypeError: If *key* is neither names nor a callable.

    Events are not changed. Safe from any thread; a forked child remembers the keys that its parent has seen.
    """

    __slots__ = ("_clock", "_key", "_remember", "_seen", "_within")

    def __init__(
        self,
        key: Key,
        within: Span | None = None,
        remember: int = _REMEMBERED,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key = _Key(key)
        self._within = None if within is None else checked_seconds(within, "within")
        self._remember = checked_count(remember, "remember", "keys")
        self._clock = clock
        #: The time when the last event of each key passed, ordered by the time when the key was last seen.
        self._seen: OrderedDict[object, float] = OrderedDict()

    def __repr__(self) -> str:
        within = "" if self._within is None else f", {self._within:g}"
        return f"Once({self._key!r}{within})"

    def screen(self, event: Any, level: float) -> Any:
        """Return *event* if it passes, else None."""
        key = self._key.of(event)
        if key is None:
            return event
        now = 0.0 if self._within is None else self._clock()
        with _Shared.lock:
            passed = self._seen.get(key)
            if passed is not None:
                self._seen.move_to_end(key)
                if self._within is None or now < passed + self._within:
                    return None
            elif len(self._seen) >= self._remember:
                self._seen.popitem(last=False)
            self._seen[key] = now
        return event


class _Key:
    """Computes the keys of events, from fields or by a callable."""

    __slots__ = ("_call", "_fields", "_names", "_plain", "name")

    def __init__(self, key: Any) -> None:
        self._call: Callable[[Any], object] | None = None
        self._names: tuple[str, ...] = ()
        #: The name of the field, if the key is a single field at the top of the event.
        self.name: str | None = None
        if callable(key):
            self._call = key
            return
        names = (key,) if isinstance(key, str) else tuple(key) if isinstance(key, Sequence) else None
        if names is None or not all(isinstance(name, str) for name in names):
            msg = f"key={key!r} is neither names of fields nor a callable"
            raise TypeError(msg)
        if not names or not all(names):
            msg = f"key={key!r} names no field"
            raise ValueError(msg)
        self._names = names
        self._fields = Projection({name: name for name in names})
        #: Whether all names are fields at the top of the event, and not paths.
        self._plain = all(name.isidentifier() and not name.startswith("exception") for name in names)
        if self._plain and len(names) == 1:
            self.name = names[0]

    def __repr__(self) -> str:
        return getattr(self._call, "__name__", "…") if self._call is not None else repr(self._names)

    def of(self, event: Any) -> object:
        """Return the key of *event*, which is short and hashable; None if the event has none of the fields."""
        if self._call is not None:
            value = self._call(event)
            return None if value is None else _brief(value)
        name = self.name
        if name is not None:
            return _brief(event[name]) if name in event else None
        found = event if self._plain else self._fields.project(event)
        parts = tuple([_brief(found[name]) if name in found else _ABSENT for name in self._names])
        return None if parts.count(_ABSENT) == len(parts) else parts

    def about(self, event: Any) -> dict[str, Any]:
        """Return the fields of *event* for the summary of suppressed events: level, logger, message and key."""
        # A field in the key has its path as name.
        key = {} if self._call is not None else self._fields.project(event)
        fields = {"level": level_name(level_of(event))}
        fields.update((name, event[name]) for name in ("logger", "event") if name in event)
        fields.update(key)
        return {name: _shown(value) for name, value in fields.items()}


_ABSENT = b""


def _brief(value: Any) -> object:
    """Return *value* if it is a short text or a scalar, else a digest of its JSON."""
    kind = value.__class__
    if (kind is str and len(value) <= _LONGEST) or kind in _SCALARS:
        return value
    return _digest(value)


def _digest(value: object) -> bytes:
    return blake2b(_as_json(value), digest_size=16).digest()


def _as_json(value: object) -> bytes:
    if isinstance(value, tuple):  # of results of `_brief`, whose bytes are digests
        value = [part.hex() if isinstance(part, bytes) else part for part in value]
    return _renderer.render({"": value})


def _shown(value: Any) -> Any:
    if value.__class__ in _SCALARS or value.__class__ is float:
        return value
    text = value if value.__class__ is str else _as_json(value)[4:-1].decode()
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _checked_keep(keep: Level | None) -> float:
    # UNKNOWN is above every known level, and `screen` exempts no event whose level is unknown.
    return UNKNOWN if keep is None else parse_level(keep, "keep")


_renderer = OrjsonRenderer(sort_keys=True)

"""Events: converts what a sink is given to an event dict, and copies events without sharing containers."""

from __future__ import annotations

import datetime as dt
import logging
import math
import re
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal

from outfall.sinks.event.exceptions import parts_of_text
from outfall.sinks.event.levels import NUMBERS, UNKNOWN, level_of

#: The zone of a ``timestamp`` that is text without one.
NaiveTimestamps = Literal["utc", "local"]

#: Keys for internal use by structlog and the adapters; never written out.
METADATA = frozenset({"_record", "_from_structlog", "_logger", "_name"})


#: The possible keys of the message: structlog's own, and the usual ones of its ``EventRenamer``.
MESSAGE_KEYS = ("event", "message", "msg")


def message_key(event: Mapping[str, Any]) -> str:
    """Return the key of the message in *event*: the first of `MESSAGE_KEYS` that it has, else ``"event"``."""
    if event.get("event") is None:
        for key in ("message", "msg"):
            if event.get(key) is not None:
                return key
    return "event"


class LevelledEvent(dict[str, Any]):
    """An event with a level, or a time, that is not among its fields.

    Args:
        event: The event.
        carried_level: The level number, known from the name of the called method, for example; or None.
        carried_time: The time in epoch seconds of an event that waited without a timestamp; or None.
    """

    __slots__ = ("carried_level", "carried_time")

    def __init__(
        self, event: Mapping[str, Any], carried_level: float | None, carried_time: float | None = None
    ) -> None:
        super().__init__(event)
        self.carried_level: float | None = carried_level
        self.carried_time: float | None = carried_time


class TextEvent(LevelledEvent):
    """An event that was rendered before: byte sinks write the text unchanged, other sinks get ``{"event": text}``.

    Args:
        text: The text, or bytes, which are kept and written unchanged.
        carried_level: The level number, or None.
    """

    __slots__ = ("raw",)

    def __init__(self, text: str | bytes, carried_level: float | None = None) -> None:
        readable = text if isinstance(text, str) else text.decode("utf-8", "backslashreplace")
        super().__init__({"event": readable}, carried_level)
        self.raw: str | bytes = text

    def rendered(self) -> str | bytes:
        """Return the text to write: the original, unless a processor has changed ``event``."""
        raw, text = self.raw, self.get("event")
        if isinstance(raw, bytes) and text == raw.decode("utf-8", "backslashreplace"):
            return raw
        return text if isinstance(text, (str, bytes)) else str(text)


class Remainder(LevelledEvent):
    """A processor's summary of suppressed events. Only later processors of the same chain, and the sink, see it.

    Args:
        event: The event.
        maker: The processor that made it.
    """

    __slots__ = ("maker",)

    def __init__(self, event: Mapping[str, Any], maker: object) -> None:
        super().__init__(event, None)
        self.maker: object = maker


def as_event(given: object, method_name: str | None = None) -> dict[str, Any]:
    """Return *given* as an event dict; a dict is returned as it is.

    *given* may also be another result of a structlog chain: rendered text or bytes, another mapping, or the
    ``(args, kwargs)`` of `structlog.stdlib.ProcessorFormatter.wrap_for_formatter` and
    `structlog.stdlib.render_to_log_args_and_kwargs`.

    Args:
        given: What the sink was given.
        method_name: The logger's method. Its level applies if the event has none. Default None.

    Raises:
        TypeError: If *given* is of another type.
    """
    level = None if method_name is None else _level_of_method(method_name)
    if type(given) is dict or isinstance(given, LevelledEvent):
        event: dict[str, Any] = given
        if method_name is not None and _is_logging_call(event):
            return _event_of_logging_call((), event, method_name)
    elif isinstance(given, (str, bytes)):
        return TextEvent(given, level)
    elif isinstance(given, (bytearray, memoryview)):
        return TextEvent(bytes(given), level)
    elif isinstance(given, Mapping):
        event = dict(given)
    elif isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], tuple):
        args, kwargs = given
        # A single text is a message here, since rendered text comes without a tuple.
        return _event_of_logging_call(args, kwargs, method_name) if args else as_event(dict(kwargs), method_name)
    else:
        msg = f"an event is a dict, not {type(given).__name__}"
        if isinstance(given, logging.LogRecord):
            msg += ": a sink is no handler of logging, write addHandler(SinkHandler(sink))"
        raise TypeError(msg)
    return _levelled(event, level)


def _levelled(event: dict[str, Any], level: float | None) -> dict[str, Any]:
    if level is not None and "level" not in event and not isinstance(event, LevelledEvent):
        return LevelledEvent(event, level)
    return event


def _level_of_method(method_name: str) -> float | None:
    number: float | None = NUMBERS.get(method_name)
    if number is None:
        # It may be the method of a wrapper class, for a level registered with logging.addLevelName.
        number = level_of({"level": method_name})
    return None if number == UNKNOWN else number


def event_of_call(args: tuple[Any, ...], kwargs: dict[str, Any], method_name: str | None = None) -> dict[str, Any]:
    """Return the event for a call ``logger.info(*args, **kwargs)`` at the end of a structlog chain.

    The last processor determines the arguments: the event dict as keywords, text as the only argument, or the arguments
    for a logger of the standard library (``msg``, ``extra``, ``exc_info``, ``stack_info``, positional arguments).
    """
    if not args:
        return (
            _event_of_logging_call((), kwargs, method_name)
            if _is_logging_call(kwargs)
            else as_event(kwargs, method_name)
        )
    if len(args) == 1 and not kwargs and isinstance(args[0], (str, bytes, bytearray)):
        return as_event(args[0], method_name)
    return _event_of_logging_call(args, kwargs, method_name)


#: The keywords of `structlog.stdlib.render_to_log_kwargs`: "msg" and "extra" always, the others sometimes.
_CALL_KEYWORDS = frozenset({"msg", "extra", "exc_info", "stack_info", "stacklevel"})


def _is_logging_call(event: Mapping[str, Any]) -> bool:
    """Return True for keywords of a logging call, and False for an event with a field "msg", as of `EventRenamer`."""
    return "msg" in event and isinstance(event.get("extra"), Mapping) and event.keys() <= _CALL_KEYWORDS


def _event_of_logging_call(args: tuple[Any, ...], kwargs: Mapping[str, Any], method_name: str | None) -> dict[str, Any]:
    fields = dict(kwargs)
    message, positional = (args[0], args[1:]) if args else (fields.pop("msg"), ())
    if isinstance(fields.get("extra"), Mapping):
        fields = {**fields.pop("extra"), **fields}
    fields.pop("stacklevel", None)
    # The message is a mapping after wrap_for_formatter, whose "extra" is metadata about the logger.
    event = {**message, **fields} if isinstance(message, Mapping) else {"event": message, **fields}
    if positional:
        try:
            # As in `logging`, a single mapping has the values by name.
            values = positional[0] if len(positional) == 1 and isinstance(positional[0], Mapping) else positional
            event["event"] = str(event["event"]) % values
        except Exception:
            event["positional_args"] = positional
    return _levelled(event, None if method_name is None else _level_of_method(method_name))


def without_metadata(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return a shallow copy of *event* without the metadata keys."""
    return {key: value for key, value in event.items() if key not in METADATA}


def copy_event(event: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of *event* with copies of all nested dicts, lists, sets and tuples.

    So a processor of one sink may change nested values without effect on another sink. Objects of other types are
    shared, since copying them (locks, sockets, models) may fail or be slow. Cycles stay cycles. Containers nested
    deeper than 100 are shared.
    """
    copied: dict[str, Any]
    if isinstance(event, TextEvent):
        copied = TextEvent(event.raw, event.carried_level)
        copied.carried_time = event.carried_time
        copied.update(event)
    elif isinstance(event, LevelledEvent):
        copied = LevelledEvent(event, event.carried_level, event.carried_time)
    else:
        copied = event.copy()
    memo: dict[int, tuple[Any, Any]] = {id(event): (event, copied)}
    for key, value in list(copied.items()):
        if issubclass(type(value), _CONTAINERS):
            copied[key] = _copy_container(value, memo, 100)
    return copied


def snapshot(event: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of *event* that may wait and be processed later by another thread.

    ``exc_info=True`` is replaced by the exception that is being handled now. If ``exception`` is the text of that
    exception, its type and message are added. A copy without a timestamp carries the current time.
    """
    copied = copy_event(event)
    copied.update(parts_of_text(copied))
    exc_info = copied.get("exc_info")
    if type(exc_info) in (bool, int) and exc_info:
        live = sys.exc_info()
        copied["exc_info"] = None if live[0] is None else live
    if timestamp_of(copied) is None:
        if not isinstance(copied, LevelledEvent):
            copied = LevelledEvent(copied, None)
        copied.carried_time = time.time()
    return copied


# Checked by issubclass(type(…)), since isinstance reads __class__, which may raise, or be wrong for a proxy.
_CONTAINERS = (dict, list, tuple, set)


def _copy_container(value: Any, memo: dict[int, Any], depth: int) -> Any:
    known = memo.get(id(value))
    if known is not None:
        return known[1]
    if depth == 0:
        return value
    # The memo keeps the originals alive: an object that another thread releases would leave its id to a new one.
    # The methods of the built-in types make the copies: each is atomic for other threads, and runs no code of a
    # subclass.
    if issubclass(type(value), (dict, list)):
        # Not dict.copy, which calls keys() of a subclass that overrides __iter__.
        twin: Any = dict(dict.items(value)) if issubclass(type(value), dict) else list.copy(value)
        memo[id(value)] = (value, twin)
        for place, item in list(twin.items() if type(twin) is dict else enumerate(twin)):
            if issubclass(type(item), _CONTAINERS):
                twin[place] = _copy_container(item, memo, depth - 1)
        return twin
    made: Any = value
    if type(value) is tuple:
        # A cycle through a tuple also goes through a list or dict, which is in the memo by now.
        made = tuple(
            _copy_container(item, memo, depth - 1) if issubclass(type(item), _CONTAINERS) else item for item in value
        )
    elif issubclass(type(value), set):
        made = set.copy(value)
    memo[id(value)] = (value, made)
    return made


def timestamp_of(event: Mapping[str, Any], naive: NaiveTimestamps = "utc") -> float | None:
    """Return the event's ``timestamp`` in epoch seconds, or None if it has no valid one; never raises.

    The timestamp may be epoch seconds, a datetime or ISO 8601 text. Without a valid one the carried time counts.

    Args:
        event: The event.
        naive: The zone of text without one: ``"utc"`` (default), as of structlog's ``TimeStamper``, or ``"local"``. A
            datetime without a zone is local time, as everywhere in Python.
    """
    try:
        value = event.get("timestamp")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            # Larger numbers are not in seconds. NaN fails the comparison too.
            return float(value) if abs(value) < 1e12 else _carried_time(event)
        if isinstance(value, str):
            if value[-1:] == "Z":
                try:
                    # Without zones it takes a third of the time; text that has a zone before the Z raises TypeError.
                    return (dt.datetime.fromisoformat(value[:-1]) - _EPOCH).total_seconds()
                except ValueError:
                    pass  # of a form that Python 3.10 does not read
            value = _datetime_of(value)
            if naive == "utc" and value.tzinfo is None:
                value = value.replace(tzinfo=dt.timezone.utc)
        if isinstance(value, dt.datetime):
            seconds = value.timestamp()
            return seconds if abs(seconds) < math.inf else _carried_time(event)  # NaN for pandas' NaT, a datetime
    except Exception:
        pass
    return _carried_time(event)


_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - to be subtracted from another one without a zone


def _datetime_of(text: str) -> dt.datetime:
    if text[-1:] in "Zz":
        text = text[:-1] + "+00:00"
    if sys.version_info < (3, 11):
        # Before that fromisoformat reads only what isoformat writes: six digits, or three, and a colon in the zone.
        found = _CLOCK.search(text)
        if found is not None:
            fraction = f".{found[2][:6]:0<6}" if found[2] else ""
            zone = f"{found[3]}:{found[4] or '00'}" if found[3] else ""
            text = text[: found.start()] + found[1] + fraction + zone
    return dt.datetime.fromisoformat(text)


#: A time's seconds, with a fraction and a zone, at the end of a time stamp.
_CLOCK = re.compile(r"(:[0-9]{2})(?:[.,]([0-9]+))?(?:([+-][0-9]{2})(?::?([0-9]{2}))?)?\Z")


def zoned(event: dict[str, Any], naive: NaiveTimestamps) -> dict[str, Any]:
    """Return *event*; if *naive* is ``"local"`` and its ``timestamp`` has no zone, return a copy with the zone added.

    Sinks whose events are read on other machines, where text without a zone counts as UTC, call this in the thread
    that logs.
    """
    stamp = event.get("timestamp") if naive == "local" else None
    if isinstance(stamp, str):
        try:
            when = _datetime_of(stamp)
            if when.tzinfo is None:
                copied = copy_event(event)
                copied["timestamp"] = when.astimezone().isoformat()
                return copied
        except Exception:
            pass  # not a valid time
    return event


def checked_naive(naive: str) -> NaiveTimestamps:
    """Return *naive*, the value of an argument ``naive_timestamps``.

    Raises:
        ValueError: If it is neither ``"utc"`` nor ``"local"``.
    """
    if naive not in ("utc", "local"):
        msg = f"naive_timestamps={naive!r} is none of 'utc', 'local'"
        raise ValueError(msg)
    return naive  # type: ignore[return-value]


def _carried_time(event: Mapping[str, Any]) -> float | None:
    return event.carried_time if isinstance(event, LevelledEvent) else None

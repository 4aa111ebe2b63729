"""What comes to a sink, made a plain event dict; and copies that share no container with the original."""

from __future__ import annotations

import datetime as dt
import logging
import math
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal

from outfall.sinks.event.exceptions import parts_of_text
from outfall.sinks.event.levels import NUMBERS, UNKNOWN, level_of

#: What a ``timestamp`` of text without a zone is.
NaiveTimestamps = Literal["utc", "local"]

#: Keys that structlog and the adapters use among themselves; never written out.
METADATA = frozenset({"_record", "_from_structlog", "_logger", "_name"})


#: What a message is called: by structlog, and by those who rename it (structlog's ``EventRenamer``).
MESSAGE_KEYS = ("event", "message", "msg")


def message_key(event: Mapping[str, Any]) -> str:
    """Return the field of *event* that is its message: the first of `MESSAGE_KEYS` that it has.

    Without any it is ``"event"``.
    """
    if event.get("event") is None:
        for key in ("message", "msg"):
            if event.get(key) is not None:
                return key
    return "event"


class LevelledEvent(dict[str, Any]):
    """An event whose level is known from elsewhere (the name of the method called) but is not one of its fields.

    Nor is the time it happened, in epoch seconds, of one that waited without a timestamp.
    """

    __slots__ = ("carried_level", "carried_time")

    def __init__(
        self, event: Mapping[str, Any], carried_level: float | None, carried_time: float | None = None
    ) -> None:
        super().__init__(event)
        self.carried_level: float | None = carried_level
        self.carried_time: float | None = carried_time


class TextEvent(LevelledEvent):
    """Text that somebody else rendered: written as it is by byte sinks, ``{"event": text}`` to all others.

    Args:
        text: The text; bytes are kept and written unchanged.
        carried_level: The level number it was logged with, or None.
    """

    __slots__ = ("raw",)

    def __init__(self, text: str | bytes, carried_level: float | None = None) -> None:
        readable = text if isinstance(text, str) else text.decode("utf-8", "backslashreplace")
        super().__init__({"event": readable}, carried_level)
        self.raw: str | bytes = text

    def rendered(self) -> str | bytes:
        """Return what to write: the original, unless a processor put another text into ``event``."""
        raw, text = self.raw, self.get("event")
        if isinstance(raw, bytes) and text == raw.decode("utf-8", "backslashreplace"):
            return raw
        return text if isinstance(text, (str, bytes)) else str(text)


class Remainder(LevelledEvent):
    """An event that a processor has made to tell of those it held back; only what comes after it in its chain sees it.

    Args:
        event: The event.
        maker: The processor.
    """

    __slots__ = ("maker",)

    def __init__(self, event: Mapping[str, Any], maker: object) -> None:
        super().__init__(event, None)
        self.maker: object = maker


def as_event(given: object, method_name: str | None = None) -> dict[str, Any]:
    """Return *given* as an event dict, *given* itself when it already is one.

    Besides dicts it takes what a structlog chain may end in: rendered text or bytes, another mapping, or the
    ``(args, kwargs)`` of `structlog.stdlib.ProcessorFormatter.wrap_for_formatter` and
    `structlog.stdlib.render_to_log_args_and_kwargs`.

    Args:
        given: What came to the sink.
        method_name: The logger's method, whose level counts where the event has none.

    Raises:
        TypeError: If it is none of these.
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
        # One text alone is a message here: text that was rendered comes without a tuple around it.
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
        # A wrapper class may have methods for levels registered with logging.addLevelName.
        number = level_of({"level": method_name})
    return None if number == UNKNOWN else number


def event_of_call(args: tuple[Any, ...], kwargs: dict[str, Any], method_name: str | None = None) -> dict[str, Any]:
    """Return the event that a call ``logger.info(*args, **kwargs)`` made by a structlog chain stands for.

    The last processor decides what the call looks like: the event dict as keywords, text as the one argument, or the
    arguments of a standard library logger (``msg``, ``extra``, ``exc_info``, ``stack_info``, positional arguments).
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


#: The keywords that `structlog.stdlib.render_to_log_kwargs` makes: "msg" and "extra" always, the others sometimes.
_CALL_KEYWORDS = frozenset({"msg", "extra", "exc_info", "stack_info", "stacklevel"})


def _is_logging_call(event: Mapping[str, Any]) -> bool:
    """Tell the keywords of a logging call from an event that has a field "msg" (of `EventRenamer`, for example)."""
    return "msg" in event and isinstance(event.get("extra"), Mapping) and event.keys() <= _CALL_KEYWORDS


def _event_of_logging_call(args: tuple[Any, ...], kwargs: Mapping[str, Any], method_name: str | None) -> dict[str, Any]:
    fields = dict(kwargs)
    message, positional = (args[0], args[1:]) if args else (fields.pop("msg"), ())
    if isinstance(fields.get("extra"), Mapping):
        fields = {**fields.pop("extra"), **fields}
    fields.pop("stacklevel", None)
    # A mapping as the message: wrap_for_formatter, whose "extra" is metadata about the logger.
    event = {**message, **fields} if isinstance(message, Mapping) else {"event": message, **fields}
    if positional:
        try:
            # One mapping stands for keywords, as `logging` has it.
            values = positional[0] if len(positional) == 1 and isinstance(positional[0], Mapping) else positional
            event["event"] = str(event["event"]) % values
        except Exception:
            event["positional_args"] = positional
    return _levelled(event, None if method_name is None else _level_of_method(method_name))


def without_metadata(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return a shallow copy of *event* without the metadata keys."""
    return {key: value for key, value in event.items() if key not in METADATA}


def copy_event(event: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of *event* in which every nested dict, list, set and tuple of such is a copy as well.

    Other objects are shared: a per-sink processor may change nested values without another sink seeing it, while
    copying arbitrary objects (locks, sockets, models) would fail or cost more than it protects. Cycles stay cycles;
    what is nested deeper than 100 containers is shared.
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
    """Return a copy of *event* that may wait, and be looked at by another thread, as if it had just happened.

    ``exc_info=True`` becomes the exception that is being handled now, which is also asked for the parts of a traceback
    that was made of it, and an event without a timestamp carries the time.
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


# Found by issubclass and not isinstance, which asks __class__: a proxy lies in it, and it may raise.
_CONTAINERS = (dict, list, tuple, set)


def _copy_container(value: Any, memo: dict[int, Any], depth: int) -> Any:
    known = memo.get(id(value))
    if known is not None:
        return known[1]
    if depth == 0:
        return value
    # The memo keeps the originals alive: one that another thread lets go of would leave its id to the next.
    # The copies are made by the built-in types' own methods: each is one step for other threads, and a subclass
    # cannot run code of its own in it.
    if issubclass(type(value), (dict, list)):
        # dict.copy goes by the keys() of a subclass that has an __iter__ of its own.
        twin: Any = dict(dict.items(value)) if issubclass(type(value), dict) else list.copy(value)
        memo[id(value)] = (value, twin)
        for place, item in list(twin.items() if type(twin) is dict else enumerate(twin)):
            if issubclass(type(item), _CONTAINERS):
                twin[place] = _copy_container(item, memo, depth - 1)
        return twin
    made: Any = value
    if type(value) is tuple:
        # A tuple can only hold itself by way of a list or dict, which the memo knows by then.
        made = tuple(
            _copy_container(item, memo, depth - 1) if issubclass(type(item), _CONTAINERS) else item for item in value
        )
    elif issubclass(type(value), set):
        made = set.copy(value)
    memo[id(value)] = (value, made)
    return made


def timestamp_of(event: Mapping[str, Any], naive: NaiveTimestamps = "utc") -> float | None:
    """Return the event's ``timestamp`` in epoch seconds, or None if it has none that can be read.

    Read are epoch seconds, datetimes and ISO 8601 text; never raises. An event that waited without one carries its
    time.

    Args:
        event: The event.
        naive: What text without a zone is: ``"utc"`` (default), as structlog's ``TimeStamper`` writes it unless it is
            asked for local time, or ``"local"``. A datetime without a zone is local time, as everywhere in Python.
    """
    try:
        value = event.get("timestamp")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            # More is not seconds; nor is NaN less.
            return float(value) if abs(value) < 1e12 else _carried_time(event)
        if isinstance(value, str):
            value = _datetime_of(value)
            if naive == "utc" and value.tzinfo is None:
                value = value.replace(tzinfo=dt.timezone.utc)
        if isinstance(value, dt.datetime):
            seconds = value.timestamp()
            return seconds if abs(seconds) < math.inf else _carried_time(event)  # "not a time" is a datetime to pandas
    except Exception:
        pass
    return _carried_time(event)


def _datetime_of(text: str) -> dt.datetime:
    # fromisoformat before Python 3.11 does not know "Z".
    return dt.datetime.fromisoformat(text[:-1] + "+00:00" if text[-1:] in "Zz" else text)


def zoned(event: dict[str, Any], naive: NaiveTimestamps) -> dict[str, Any]:
    """Return *event*, or a copy whose ``timestamp`` says its zone where *naive* is ``"local"`` and the text has none.

    For sinks whose events are read elsewhere, where text without a zone is UTC: call it in the thread that logs.
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
            pass  # no time
    return event


def checked_naive(naive: str) -> NaiveTimestamps:
    """Return *naive*, which is an argument ``naive_timestamps``.

    Raises:
        ValueError: If it is neither ``"utc"`` nor ``"local"``.
    """
    if naive not in ("utc", "local"):
        msg = f"naive_timestamps={naive!r} is none of 'utc', 'local'"
        raise ValueError(msg)
    return naive  # type: ignore[return-value]


def _carried_time(event: Mapping[str, Any]) -> float | None:
    return event.carried_time if isinstance(event, LevelledEvent) else None

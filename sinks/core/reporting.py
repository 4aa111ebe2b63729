"""Reports of failures: `SinkFailure`, and `report`, the default ``on_error``."""

from __future__ import annotations

import builtins
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outfall.sinks.core import lifecycle
from outfall.sinks.errors import SinkError

if TYPE_CHECKING:
    from types import FrameType

#: Seconds for which the same cause is not reported again.
REPORT_INTERVAL_SECONDS = 30.0

#: With this many causes, those reported longer ago are forgotten.
_MAX_CAUSES = 1_000


@dataclass(frozen=True, slots=True)
class SinkFailure:
    """A failure, as passed to a sink's ``on_error``. It holds neither the event nor any secret.

    Args:
        sink: The name of the sink.
        error: The exception. If its text repeats values of the event, it is replaced by a `SinkError` that names the
            exception's type and place.
        events: The number of events lost; 0 if none were.
        time: The time of the failure, in epoch seconds.
        suppressed: The number of failures of the same cause since the last reported one.
        where: The target, which distinguishes sinks of the same name: a path, a host and port. Default "".
        number: The sink's number in the process, which distinguishes sinks of the same name and target. Default 0.
    """

    sink: str
    error: BaseException
    events: int
    time: float
    suppressed: int = 0
    where: str = ""
    number: int = field(default=0, repr=False, compare=False)


def describe(error: BaseException) -> str:
    """Return *error* as one line of printable text: its type and message."""
    try:
        message = str(error)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        message = "(no message: its __str__ raised)"
    return _one_line(f"{type(error).__name__}: {message}" if message else type(error).__name__)


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def place_of(error: BaseException) -> str:
    """Return the function that failed when a sink called it, such as ``" in redact (/app/log.py:12)"``.

    Return "" if the error comes from the sink itself.
    """
    place = ""
    inner: FrameType | None = None
    trace = error.__traceback__
    while trace is not None:
        frame, code = trace.tb_frame, trace.tb_frame.f_code
        if str(frame.f_globals.get("__name__")).partition(".")[0] == "outfall":
            place, inner = "", frame
        elif inner is not None and not place:
            place = f" in {getattr(code, 'co_qualname', code.co_name)} ({code.co_filename}:{trace.tb_lineno})"
        trace = trace.tb_next
    if inner is not None and not place:
        # The call itself failed, or the function is not written in Python: it has no frame.
        called = next((inner.f_locals[name] for name in _CALLED if name in inner.f_locals), None)
        source = getattr(called, "__code__", None)
        if callable(called):
            place = f" in {getattr(called, '__qualname__', type(called).__qualname__)}"
            place += "" if source is None else f" ({source.co_filename}:{source.co_firstlineno})"
    return place


#: The names of variables in which this package holds a function that it is about to call.
_CALLED = ("processor", "renderer", "namer", "rotator")


class _Reports:
    """The causes reported so far, with times; one object for the process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        #: (when it was reported, failures suppressed since, events lost in them), by the cause: the sink's name and
        #: target, its number, the type of the error, and errno.
        self.last: dict[tuple[str, int, type, object], tuple[float, int, int]] = {}

    def due(self, failure: SinkFailure, now: float) -> tuple[int, int] | None:
        """Return (suppressed failures, events lost in them) if *failure* should be written now, else None."""
        kind = type(failure.error)
        # Read OSError's own attribute: that of a subclass may raise, and that of another class may not be hashable.
        errno = vars(OSError)["errno"].__get__(failure.error) if issubclass(kind, OSError) else None
        cause = (_named(failure), failure.number, kind, errno if isinstance(errno, int) else None)
        with self.lock:
            if len(self.last) >= _MAX_CAUSES:
                self.last = dict(
                    filter(lambda known: known[1][1] or now - known[1][0] < REPORT_INTERVAL_SECONDS, self.last.items())
                )
            when, suppressed, events = self.last.get(cause, (-math.inf, 0, 0))
            if now - when < REPORT_INTERVAL_SECONDS:
                self.last[cause] = (when, suppressed + 1 + failure.suppressed, events + failure.events)
                return None
            self.last[cause] = (now, 0, 0)
            return suppressed, events

    def take_suppressed(self) -> list[tuple[str, str, int, int]]:
        """Return (sink, type of error, failures, events) for each cause with suppressed failures, and forget all."""
        with self.lock:
            # The loop is outside of the lock: from Python 3.12 on an interrupt of the loop would leave the lock held.
            last, self.last = self.last, {}
        return [(c[0], c[2].__name__, s, e) for c, (_, s, e) in last.items() if s]


_reports = _Reports()


def report(failure: SinkFailure) -> None:
    """Write *failure* to the real stderr as one line: the default ``on_error``.

    Args:
        failure: The failure.

    Each cause (sink, type of error, errno) is written at most once in 30 seconds. The next line of the same cause, or a
    line at exit, says how many failures were suppressed. The line names the sink and its target, and a function of the
    application that failed (a processor, a renderer, a namer …) with file and line.
    ``logging.raiseExceptions = False`` silences it, as it does for handlers. Never raises. Safe from any thread and
    after a fork.
    """
    if not logging.raiseExceptions:
        return
    due = _reports.due(failure, time.monotonic())
    if due is None:
        return
    suppressed, events = due
    suppressed += failure.suppressed
    lost = f"lost {_count(failure.events, 'event')}" if failure.events else "had a failure"
    more = f" (and {_count(suppressed, 'more failure')} before, {_count(events, 'event')})" if suppressed else ""
    place = "" if isinstance(failure.error, (SinkError, OSError)) else place_of(failure.error)
    _write(f"outfall: {_named(failure)} {lost}: {describe(failure.error)}{place}{more}")


def _named(failure: SinkFailure) -> str:
    return f"{failure.sink} {failure.where}" if failure.where else failure.sink


def _report_suppressed() -> None:
    left = _reports.take_suppressed()
    if not logging.raiseExceptions:
        return
    for sink, error, reports, events in left:
        _write(f"outfall: {sink} had {_count(reports, 'more failure')}, {_count(events, 'event')} lost: {error}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _write(line: str) -> None:
    # Write to the descriptor: sys.stderr may be redirected into a sink, and another thread may have held the lock of a
    # buffered writer when this process was forked.
    try:
        stderr = sys.__stderr__
        if stderr is not None:
            # _one_line, since the sink's name may have line breaks.
            os.write(stderr.fileno(), _one_line(line).encode("utf-8", "backslashreplace") + b"\n")
    except Exception:
        pass


def _in_child() -> None:
    _reports.lock = threading.RLock()
    _reports.last.clear()


lifecycle.call_in_child(_in_child)
lifecycle.call_at_end(_report_suppressed)


def cleaned(error: BaseException, event: object) -> BaseException:
    """Return *error*; or a replacement, if its text or that of a cause or context repeats a value of *event*.

    The hidden context of an error that was raised ``from None`` is removed.
    """
    if error.__suppress_context__ and error.__cause__ is None:
        # The context was hidden for what it contains: exceptions of requests hold the URL and the headers.
        error.__context__ = None
    if isinstance(error, SinkError) and error.__cause__ is None and error.__context__ is None:
        return error
    if isinstance(error, UnicodeError) and len(error.args) == 5:
        # Its second argument is the whole text, which is left out; the other arguments are kept.
        encoding, text, start, end, reason = error.args
        empty = b"" if isinstance(text, bytes) else ""
        try:
            return type(error)(encoding, empty, start, end, reason)
        except Exception:
            return _replacement(error)
    values = _values(event)
    if (
        isinstance(error, OSError)
        and isinstance(error.errno, int)
        and error.strerror == os.strerror(error.errno)
        and str(error.filename) not in values
        and error.__cause__ is None
        and error.__context__ is None
    ):
        return error  # the system's message about the sink's own file or peer; its name may contain a word of the event
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        link = chain.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        chain += (link.__cause__, link.__context__)
        if isinstance(link, _GROUP):
            chain += link.exceptions  # pyright: ignore[reportAttributeAccessIssue] - since Python 3.11
        text = _text(link)
        if text is None or any(value in text for value in values):
            return _replacement(error)
    return error


#: Since Python 3.11.
_GROUP: Any = getattr(builtins, "BaseExceptionGroup", ())


def _replacement(error: BaseException) -> SinkError:
    place = place_of(error)
    trace = error.__traceback__
    while trace is not None and not place:
        code = trace.tb_frame.f_code
        if trace.tb_next is None:
            place = f" in {code.co_name} ({code.co_filename}:{trace.tb_lineno})"
        trace = trace.tb_next
    return SinkError(f"{type(error).__name__}{place}; its message is left out, since it may repeat values of the event")


def _text(error: BaseException) -> str | None:
    """Return all text in *error*; None if its methods raise, so that its text cannot be known."""
    try:
        # vars() has the notes, and attributes such as the whole document of a JSONDecodeError.
        parts = [str(error), repr(error), repr(error.args), repr(vars(error))]
        if isinstance(error, OSError):
            parts.append(repr((error.filename, error.filename2)))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        return None
    return "\n".join(parts)


#: Shorter values are not searched for: "id" or "42" occurs in nearly every message.
_MIN_LENGTH = 4


def _values(event: object) -> set[str]:
    """Return the texts of all values in *event*, nested ones too, that must not occur in a message."""
    found: set[str] = set()
    stack: list[tuple[Any, int]] = [(event, 0)]
    budget = 10_000
    while stack and budget:
        budget -= 1
        value, depth = stack.pop()
        try:
            if isinstance(value, str):
                text = str.__str__(value)
                found |= {text, repr(text)[1:-1]}
            elif isinstance(value, bytes):
                found.add(repr(value)[2:-1])
            elif value is None or isinstance(value, bool):
                pass  # their texts are common words
            elif depth == _MAX_DEPTH:
                pass
            elif isinstance(value, Mapping):
                items = list(value.items())
                stack += [(item, depth + 1) for key, item in items if type(key) is not str or key not in _HARMLESS]
            elif isinstance(value, (list, tuple, set, frozenset)):
                stack += [(item, depth + 1) for item in list(value)]
            else:
                found |= {repr(value), str(value)}
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            continue
    # A message may quote only the beginning or the end of a long text.
    ends = {text[:_END] for text in found if len(text) > 2 * _END} | {
        text[-_END:] for text in found if len(text) > 2 * _END
    }
    return {text for text in found | ends if len(text) >= _MIN_LENGTH}


_END = 20
_MAX_DEPTH = 20

#: Fields whose values are no user data, and often occur in messages.
_HARMLESS = frozenset({"level", "logger", "timestamp", "level_number"})

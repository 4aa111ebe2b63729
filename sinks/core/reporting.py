"""What is told when an event is lost, and the default way of telling it."""

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

#: A cause that was reported is not reported again for this many seconds.
REPORT_INTERVAL_SECONDS = 30.0

#: With so many causes, those that are over are forgotten.
_MAX_CAUSES = 1_000


@dataclass(frozen=True, slots=True)
class SinkFailure:
    """A failure, as a sink's ``on_error`` is told of it. It holds neither the event nor any secret.

    Args:
        sink: The name of the sink.
        error: What happened. Where its text would have repeated values of the event, a `SinkError` that names its
            type and place stands in for it.
        events: How many events were lost to it; 0 for a failure that cost none.
        time: When, in seconds since the epoch.
        suppressed: How many failures of the same cause were not told since the last one that was.
        where: What tells the sink from its like: a path, a host and port. Default nothing.
        number: Which sink of the process it is, so that two of one name are told apart. Default 0.
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
    """Return which function that a sink called has failed, such as ``" in redact (/app/log.py:12)"``.

    Empty where it was none but the sink itself.
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
        # It could not even be called, or it is not written in Python.
        called = next((inner.f_locals[name] for name in _CALLED if name in inner.f_locals), None)
        source = getattr(called, "__code__", None)
        if callable(called):
            place = f" in {getattr(called, '__qualname__', type(called).__qualname__)}"
            place += "" if source is None else f" ({source.co_filename}:{source.co_firstlineno})"
    return place


#: What the variables are called in which a sink holds a function that it is about to call.
_CALLED = ("processor", "renderer", "namer", "rotator")


class _Reports:
    """Which causes were reported when; one for the process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        #: By name and place of the sink, its number, the type of the error and the system's number for it.
        self.last: dict[tuple[str, int, type, object], tuple[float, int, int]] = {}

    def due(self, failure: SinkFailure, now: float) -> tuple[int, int] | None:
        """Return (suppressed reports, events lost in them) if *failure* is to be written, else None."""
        kind = type(failure.error)
        # By OSError's own attribute: a subclass's may raise, and others' errno may not even be hashable.
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
        """Return (sink, error's type, reports, events) of what was suppressed and not yet told, and forget it."""
        with self.lock:
            # The loop is not under the lock: from Python 3.12 on an interrupt of it would leave that held.
            last, self.last = self.last, {}
        return [(c[0], c[2].__name__, s, e) for c, (_, s, e) in last.items() if s]


_reports = _Reports()


def report(failure: SinkFailure) -> None:
    """Write *failure* to the real stderr: the default ``on_error``.

    Args:
        failure: What happened, and to which sink.

    One line, at most once per cause (sink, type of error, errno) in 30 seconds; the next line of the same cause, or one
    at exit, says how many were left out. It names the sink by what tells it from its like, and a function of yours that
    failed (a processor, a renderer, a namer …) by its file and line. `logging.raiseExceptions` = False silences it, as
    it does for handlers. Never raises. Safe from any thread and after a fork.
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
    # Straight to the descriptor: sys.stderr may be redirected into a sink, and a buffered writer's lock may have been
    # held by another thread when this process was forked.
    try:
        stderr = sys.__stderr__
        if stderr is not None:
            # The sink's name may have line breaks too.
            os.write(stderr.fileno(), _one_line(line).encode("utf-8", "backslashreplace") + b"\n")
    except Exception:
        pass


def _in_child() -> None:
    _reports.lock = threading.RLock()
    _reports.last.clear()


lifecycle.call_in_child(_in_child)
lifecycle.call_at_end(_report_suppressed)


def cleaned(error: BaseException, event: object) -> BaseException:
    """Return *error*, or a stand-in for it if its text or that of what caused it repeats a value of *event*.

    What an error hides, raised ``from None``, it no longer holds afterwards.
    """
    if error.__suppress_context__ and error.__cause__ is None:
        # Replaced because of what it says: requests' exceptions hold the URL and the headers.
        error.__context__ = None
    if isinstance(error, SinkError) and error.__cause__ is None and error.__context__ is None:
        return error
    if isinstance(error, UnicodeError) and len(error.args) == 5:
        # Its second argument is the whole text. The rest tells what to mend, so the type is kept.
        encoding, text, start, end, reason = error.args
        empty = b"" if isinstance(text, bytes) else ""
        try:
            return type(error)(encoding, empty, start, end, reason)
        except Exception:
            return _stand_in(error)
    values = _values(event)
    if (
        isinstance(error, OSError)
        and isinstance(error.errno, int)
        and error.strerror == os.strerror(error.errno)
        and str(error.filename) not in values
        and error.__cause__ is None
        and error.__context__ is None
    ):
        return error  # the system's words about the sink's own file or peer, whose name may hold a word of the event
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
            return _stand_in(error)
    return error


#: Exception groups came with Python 3.11.
_GROUP: Any = getattr(builtins, "BaseExceptionGroup", ())


def _stand_in(error: BaseException) -> SinkError:
    place = place_of(error)
    trace = error.__traceback__
    while trace is not None and not place:
        code = trace.tb_frame.f_code
        if trace.tb_next is None:
            place = f" in {code.co_name} ({code.co_filename}:{trace.tb_lineno})"
        trace = trace.tb_next
    return SinkError(f"{type(error).__name__}{place}; its message is left out, since it may repeat values of the event")


def _text(error: BaseException) -> str | None:
    """Return all that *error* may tell; None if that cannot be known, since its methods raise."""
    try:
        # The attributes too: a JSONDecodeError has the whole document in one. Its notes are among them.
        parts = [str(error), repr(error), repr(error.args), repr(vars(error))]
        if isinstance(error, OSError):
            parts.append(repr((error.filename, error.filename2)))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        return None
    return "\n".join(parts)


#: Shorter texts are left out of the search: "id" or "42" would be found in nearly every message.
_MIN_LENGTH = 4


def _values(event: object) -> set[str]:
    """Return the texts of the values in *event*, nested ones included, that would give it away in a message."""
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
                pass  # words of many a message
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
    # Messages often quote no more than the beginning and the end of a long text.
    ends = {text[:_END] for text in found if len(text) > 2 * _END} | {
        text[-_END:] for text in found if len(text) > 2 * _END
    }
    return {text for text in found | ends if len(text) >= _MIN_LENGTH}


_END = 20


_MAX_DEPTH = 20

#: Fields whose values are not the user's data and are apt to be words of an innocent message.
_HARMLESS = frozenset({"level", "logger", "timestamp", "level_number"})

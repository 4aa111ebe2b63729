"""Delivery of batches to a target, with retries: `RetryPolicy` and `Delivery`.

Shared by `QueueListener`, `BackgroundSink` and `SpoolSink`. Nothing here knows of threads or files: the caller passes
in the function that waits.
"""

from __future__ import annotations

import random as random_module
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from outfall.sinks.core.arguments import checked_seconds
from outfall.sinks.core.item import usable
from outfall.sinks.core.ledger import Outcome
from outfall.sinks.core.reentrancy import delivering
from outfall.sinks.core.reporting import cleaned, describe
from outfall.sinks.core.sink import Sink, checked_sink
from outfall.sinks.errors import (
    LOST_ATTEMPTS,
    OversizeDeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    TemporaryDeliveryError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from outfall.sinks.core.item import Batch, BatchResult, Encoded
    from outfall.sinks.event.units import Span


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to wait before a failed batch is tried again, and how often.

    Waits grow by *factor*, from *start_seconds* to *max_seconds*. With *jitter* each wait is a random part of that,
    between nothing and all of it ("full jitter"), so that many clients do not retry at the same instant. The target can
    make a wait longer (``Retry-After``), never shorter.

    A target that refuses everything until somebody changes something (`PausedDeliveryError`) is tried again after
    *pause_start_seconds*. Each pause is twice as long as the one before, up to *pause_max_seconds*; there is no limit
    to their number.

    Each time is a number of seconds, a timedelta, or text such as ``"1m30s"``; it is stored as seconds.

    Args:
        start_seconds: The first wait, in seconds. With 0 every retry is immediate. Default 0.5.
        factor: The factor between one wait and the next, 1 or more. Default 2.0.
        max_seconds: The longest wait, in seconds. Default 30.0.
        jitter: Whether waits are shortened at random. Default True.
        max_attempts: How often a batch is tried in all, 1 or more. After that its events go to the dead letter sink, or
            count as ``dropped["retries"]``. Default None: without limit. The sink's capacity limits the events that
            wait.
        pause_start_seconds: The first pause, in seconds. Default 1.0.
        pause_max_seconds: The longest pause, in seconds. Default 60.0.

    Raises:
        ValueError: If one of them is out of its range.

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/ for full jitter; RFC 9110, 10.2.3
    for ``Retry-After``.
    """

    start_seconds: Span = 0.5
    factor: float = 2.0
    max_seconds: Span = 30.0
    jitter: bool = True
    max_attempts: int | None = None
    pause_start_seconds: Span = 1.0
    pause_max_seconds: Span = 60.0

    def __post_init__(self) -> None:
        for name in ("start_seconds", "max_seconds", "pause_start_seconds", "pause_max_seconds"):
            seconds = checked_seconds(getattr(self, name), name)
            if seconds == float("inf"):
                msg = f"{name}={seconds!r} has no end"
                raise ValueError(msg)
            object.__setattr__(self, name, seconds)
        if not _is_number(self.factor) or not 1 <= self.factor < float("inf"):
            msg = f"factor={self.factor!r} is not a number from 1 up"
            raise ValueError(msg)
        attempts = self.max_attempts
        if attempts is not None and (not isinstance(attempts, int) or isinstance(attempts, bool) or attempts < 1):
            msg = f"max_attempts={attempts!r} is not a whole number from 1 up, nor None"
            raise ValueError(msg)

    def wait_seconds(self, failures: int, random: Callable[[], float]) -> float:
        """Return the wait after *failures* failures in a row, 1 or more; *random* returns numbers in [0, 1)."""
        start, limit = cast("float", self.start_seconds), cast("float", self.max_seconds)
        longest = _grown(start, self.factor, failures - 1, limit)
        return longest * random() if self.jitter else longest

    def pause_seconds(self, pauses: int) -> float:
        """Return the length of the pause with this number, counted from 1."""
        start, limit = cast("float", self.pause_start_seconds), cast("float", self.pause_max_seconds)
        return _grown(start, 2.0, pauses - 1, limit)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _grown(start: float, factor: float, times: int, limit: float) -> float:
    # A large power overflows a float. The limit is reached long before that.
    return min(limit, start * factor ** min(times, 60)) if factor < 1e5 else min(limit, start if times == 0 else limit)


class Delivery:
    """Delivers batches to a target, one after another, until each event is settled.

    If the target cannot take a batch now, it is tried again after a wait. If the target refuses a batch for good, the
    batch is halved until the event at fault is found. That event goes to the dead letter sink, and the others are
    delivered, in order.

    A batch may get no answer because of its size (`TemporaryDeliveryError.halve_after`, a `TimeoutError`, or several
    times in a row a `ConnectionError`). Then half as much is sent at a time, until that is answered. Each answered
    batch lets the next one be a quarter larger.

    Args:
        target: The sink that gets the batches, by its ``emit_batch``.
        retry: The policy for retries. Default ``RetryPolicy()``.
        dead_letter: A sink for events that *target* refuses. Not owned. Default None: they count as
            ``dropped["rejected"]``.
        settle: Called with an `Outcome` whenever some events are settled.
        tell: Called with an exception and the number of events lost to it, for the error policy.
        pause: Called with a number of seconds. It waits that long, or less, and returns False to stop the delivery.
        random: Returns numbers in [0, 1), for the jitter.

    Raises:
        TypeError: If *dead_letter* is no sink, or *retry* no `RetryPolicy`.

    Use it from one thread at a time.
    """

    def __init__(
        self,
        target: Sink,
        *,
        retry: RetryPolicy | None = None,
        dead_letter: Sink | None = None,
        settle: Callable[[Outcome], None],
        tell: Callable[[Exception, int], None],
        pause: Callable[[float], bool],
        random: Callable[[], float] = random_module.random,
    ) -> None:
        if retry is not None and not isinstance(retry, RetryPolicy):
            msg = f"retry={retry!r} is not a RetryPolicy"
            raise TypeError(msg)
        if dead_letter is not None:
            checked_sink(dead_letter, "dead_letter")
        self._target = target
        self._retry = RetryPolicy() if retry is None else retry
        self._dead_letter = dead_letter
        self._settle = settle
        self._tell = tell
        self._pause = pause
        self._random = random
        #: The number of events in the current attempt.
        self.attempting: int = 0
        #: The most bytes to send in one batch: half of the smallest batch that the target refused as too large.
        self._largest_bytes: float = float("inf")
        #: The same, after batches that got no answer in time. It grows again.
        self._timely_bytes: float = float("inf")
        self._failures = 0
        self._pauses = 0

    def deliver(self, batch: Batch) -> list[Batch]:
        """Deliver *batch*; return the parts that are not settled, in order. There are none unless delivery was stopped.

        Exceptions of the target and of the dead letter sink are handled here, except those that are no `Exception`.
        """
        parts = deque((batch,) if len(batch) else ())
        attempts = 1
        while parts:
            limit = min(self._largest_bytes, self._timely_bytes)
            part = parts.popleft() if limit == float("inf") else self._fitting(parts, limit)
            left: Batch | None
            failure: Exception
            events = self.attempting = len(part)
            try:
                result = self._target.emit_batch(part)
            except (TemporaryDeliveryError, OSError) as error:
                left, failure, retry_after = part, error, getattr(error, "retry_after", None)
            except Exception as error:
                self._split(part, error, parts)
                attempts = 1
                continue
            else:
                if result is None:
                    self._failures = self._pauses = 0
                    self._settle(Outcome(delivered=events))
                left = None if result is None else self._taken(part, result)
                if result is None or left is None:
                    if limit != float("inf"):
                        self._grow(part)
                    attempts = 1
                    continue
                failure, retry_after = TemporaryDeliveryError("the target took a part of a batch"), result.retry_after
            finally:
                self.attempting = 0
            if len(left) < events:
                attempts = 1
            if attempts == self._retry.max_attempts and not isinstance(failure, PausedDeliveryError):
                for item in left:
                    self._refuse(item, failure, "retries")
                attempts = 1
                continue
            parts.appendleft(left)
            self._shrink(left, failure, attempts)
            if not self._wait(failure, retry_after):
                return list(parts)
            attempts += 1
        return []

    def _wait(self, failure: Exception, retry_after: float | None) -> bool:
        """Wait before the next attempt; return False to stop."""
        self._tell(failure, 0)
        if isinstance(failure, PausedDeliveryError):
            self._pauses += 1
            seconds = self._retry.pause_seconds(self._pauses)
        else:
            self._failures += 1
            seconds = self._retry.wait_seconds(self._failures, self._random)
        # The target's wait counts only if it is longer: a server in trouble must not be asked again at once.
        if not self._pause(seconds if retry_after is None else max(seconds, retry_after)):
            return False
        self._settle(Outcome(retried=1))
        return True

    # -- the outcome of a part

    def _taken(self, part: Batch, result: BatchResult) -> Batch | None:
        """Settle the events of *part* that the target has taken or refused; return those to try again, or None."""
        result = usable(result, len(part))
        unknown = result.rejected_unknown
        delivered = len(part) - len(result.retry) - len(result.rejected) - unknown
        if delivered:
            self._failures = self._pauses = 0
        if delivered or unknown:
            self._settle(Outcome(delivered=delivered, dropped={"rejected": unknown} if unknown else {}))
        if unknown:
            self._tell(PermanentDeliveryError("the target refused events and did not say which"), unknown)
        for index, reason in result.rejected.items():
            self._refuse(part[index], PermanentDeliveryError(reason), "rejected")
        return part.part(result.retry) if result.retry else None

    def _split(self, part: Batch, error: Exception, parts: deque[Batch]) -> None:
        """Put the halves of *part* back; if it is a single event, settle it as refused because of *error*."""
        if isinstance(error, OversizeDeliveryError) and len(part) > 1:
            self._largest_bytes = min(self._largest_bytes, _size(part) / 2)
        if len(part) == 1:
            self._refuse(part[0], error, "rejected" if isinstance(error, PermanentDeliveryError) else "error")
            return
        middle = len(part) // 2
        parts.extendleft((part[middle:], part[:middle]))

    @staticmethod
    def _fitting(parts: deque[Batch], limit: float) -> Batch:
        """Return the next batch to send: the first of *parts*, or its beginning if it has more bytes than *limit*."""
        part = parts.popleft()
        size = 0
        for index, data in enumerate(part.data):
            size += len(data)
            if index and size > limit:
                parts.appendleft(part[index:])
                return part[:index]
        return part

    def _shrink(self, left: Batch, failure: Exception, attempts: int) -> None:
        """Reduce the size of batches if the size of *left* may be why the target did not answer."""
        most: int | None
        if isinstance(failure, TemporaryDeliveryError):
            most = failure.halve_after
        elif isinstance(failure, ConnectionError):
            most = LOST_ATTEMPTS
        else:
            most = 1 if isinstance(failure, TimeoutError) else None
        if most is not None and attempts >= most:
            self._timely_bytes = min(self._timely_bytes, _size(left) / 2)

    def _grow(self, part: Batch) -> None:
        """Increase the size of batches after all of *part* was taken."""
        if self._timely_bytes != float("inf"):
            grown = _size(part) * _GROWTH
            if grown > self._timely_bytes:
                self._timely_bytes = grown if grown < _LARGE_BYTES else float("inf")

    def _refuse(self, item: Encoded, error: Exception, reason: str) -> None:
        """Give *item* to the dead letter sink, or count it as dropped."""
        error = error if type(error) in _OWN else _cleaned(error, item)
        if self._dead_letter is not None:
            try:
                # Clear the mark of a delivering thread, so that a dead letter sink on the network accepts the event.
                with delivering(value=False):
                    self._dead_letter.deliver(item.event)
            except Exception as failure:
                self._tell(_cleaned(failure, item), 0)
            else:
                self._settle(Outcome(dead_lettered=1))
                self._tell(error, 0)
                return
        self._settle(Outcome(dropped={reason: 1}))
        self._tell(error, 1)


def _size(batch: Batch) -> int:
    """Return the number of bytes of data in *batch*."""
    return sum(map(len, batch.data))


#: The growth of batches after one that was answered in time.
_GROWTH = 1.25

#: From this size on batches are not limited.
_LARGE_BYTES = 2**30

#: Errors of Outfall's own sinks: they hold no event.
_OWN = frozenset({PermanentDeliveryError, OversizeDeliveryError, TemporaryDeliveryError, PausedDeliveryError})


def _cleaned(error: Exception, item: Encoded) -> Exception:
    told = cleaned(error, item.event)
    return told if isinstance(told, Exception) else PermanentDeliveryError(describe(told))

"""`QueueSink`: puts events into a queue for another thread or process, where a `QueueListener` reads it."""

# `event.__class__ is dict` does not narrow a type for pyright.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import contextlib
import queue as queue_module
from collections import deque
from queue import Full, SimpleQueue
from threading import get_ident
from typing import TYPE_CHECKING, Any

from orjson import dumps

from outfall.sinks.core import lifecycle
from outfall.sinks.core.clock import now
from outfall.sinks.core.lifecycle import here
from outfall.sinks.core.reentrancy import active, thread
from outfall.sinks.core.reporting import report
from outfall.sinks.core.sink import OnError, Sink
from outfall.sinks.delivery.queuelistener import QueueListener, listener_of
from outfall.sinks.delivery.queues import SHUT_DOWN, put_nowait, renew
from outfall.sinks.errors import PermanentDeliveryError, TemporaryDeliveryError
from outfall.sinks.event.depth import is_tracked, too_deep
from outfall.sinks.event.event import LevelledEvent
from outfall.sinks.event.json import OPTIONS, line_to_send
from outfall.sinks.event.levels import NOTSET, NUMBERS, Level, level_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from outfall.sinks.core.item import BatchResult, Encoded

__all__ = ["QueueListener", "QueueSink"]

#: A subclass that overrides one of these does not take the shortcut in `handle`.
_HOOKS = ("deliver", "emit", "prepare", "enqueue", "_put", "_put_now")

_REFUSED: tuple[type[Exception], ...] = (Full, *SHUT_DOWN)


class _FullError(TemporaryDeliveryError):
    """There was no room in the queue."""

    dropped_as = "full"


class _ShutDownError(PermanentDeliveryError):
    """The queue was shut down."""

    dropped_as = "closed"


class QueueSink(Sink):
    """Put each event into a queue, as JSON, for another thread or another process.

    Level and processors apply before. The items are bytes, one JSON object each, which any process can read, with any
    version of Python; later changes of the event have no effect. A `QueueListener` reads the queue. If your own code
    reads it, ``None`` in the queue tells a listener to stop.

    Args:
        queue: The queue: a `queue.SimpleQueue`, which is the fastest, and the only one that signal handlers may use at
            any time; a `queue.Queue`; a queue of `multiprocessing` or of a manager; or any object with ``put_nowait``.
        listener: The listener of the same queue, if it runs in this process: `flush` and `close` then wait until it has
            delivered the enqueued events. It is not owned: it is neither started nor stopped. Default None. Settable.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        TypeError: If *queue* has no ``put_nowait``, unless `enqueue` is overridden.

    An event counts as delivered when it is in the queue. If the queue is full, the event is dropped at once and
    reported, and counted as ``dropped["full"]``; if the queue was shut down, as ``dropped["closed"]``. A level that is
    not a field of the event (of a structlog chain without ``add_log_level``) is added to the JSON as ``level``.
    ``exc_info`` becomes ``exception``, as text.

    `close` does not close the queue. Events that the delivery of a listener or a background sink logs are dropped as
    ``reentrant``. Safe from any thread, and from signal handlers. In a forked child a queue for threads is empty, since
    the parent delivers its items; a queue of `multiprocessing` is shared. At exit, if the listener runs in this
    process, ``handle`` returns after it has delivered the event.

    Source: `logging.handlers.QueueHandler`, whose `prepare` and `enqueue` may be overridden as there; CPython bpo-14976
    on queues and signal handlers.
    """

    delivers_through_loggers = True
    delivers_later = True
    locks_emit = False

    def __init__(
        self,
        queue: Any,
        *,
        listener: QueueListener | None = None,
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        self._queue = self._checked_queue(queue)
        #: The listener of the same queue, or None; settable.
        self.listener: QueueListener | None = listener
        #: The queue's own put if the shortcut may be taken, else None.
        self._put_item: Callable[[bytes], object] | None = None
        super().__init__(level=level, processors=processors, on_error=on_error, name=name)
        self._changed()

    def _checked_queue(self, queue: Any) -> Any:
        usual = type(self).enqueue is QueueSink.enqueue
        if usual and not (callable(getattr(queue, "put_nowait", None)) or callable(getattr(queue, "put", None))):
            msg = f"queue={queue!r} has no put_nowait"
            raise TypeError(msg)
        return queue

    def _fresh_state(self) -> None:
        super()._fresh_state()
        #: The threads that are putting an item into a queue with a lock that is not re-entrant, and the events of
        #: signal handlers that interrupted them.
        self._putting: set[int] = set()
        self._interrupting: deque[Any] = deque()
        #: True once the listener has not delivered in time at exit.
        self._listener_gone = False

    @property
    def queue(self) -> Any:
        """The queue; settable."""
        return self._queue

    @queue.setter
    def queue(self, queue: Any) -> None:
        self._queue = self._checked_queue(queue)
        self._changed()

    def handle(self, event: Mapping[str, Any] | str | bytes) -> None:
        """Take one event; failures go to ``on_error``. Never raises, unless ``on_error`` is ``"raise"``.

        When it returns, the event is in the queue, or it has been counted as dropped.
        """
        # A shortcut for plain events; all others take the pipeline.
        put = self._put_item
        if put is not None and event.__class__ is dict:
            try:
                if not (
                    "exc_info" in event
                    or "exception" in event
                    or "_record" in event
                    or "_logger" in event
                    or "_name" in event
                    or "_from_structlog" in event
                    or (is_tracked(event) and too_deep(event))
                    or (active and thread.delivering)
                    or not here[0]
                ):
                    if self._level:
                        if "level_number" in event:
                            raise LookupError  # it wins over the level, and may have any type
                        if NUMBERS[event["level"]] < self._level:
                            self._ledger.filter()
                            return
                    put(dumps(event, None, OPTIONS))
                    # Without a lock, since an addition without a call in it is atomic: see WriteLock.
                    self._ledger.delivered += 1
                    return
            except Exception:
                pass
            except BaseException:
                self._count_dropped("interrupted")
                raise
        super().handle(event)

    # -- the hooks of logging.handlers.QueueHandler

    def prepare(self, event: dict[str, Any]) -> Any:
        """Return the item for *event*: bytes, one JSON object."""
        data = line_to_send(event)
        carried = event.carried_level if isinstance(event, LevelledEvent) else None
        if carried is None or "level" in event or "level_number" in event:
            return data
        fields: dict[str, Any] = {**event, "level": level_name(carried)}
        return line_to_send(fields)

    def enqueue(self, item: Any) -> None:
        """Put *item* into the queue, without waiting.

        Raises:
            TemporaryDeliveryError: If the queue is full.
            PermanentDeliveryError: If the queue was shut down.
        """
        # Raised outside of the handler, so that the queue's own error does not become its context.
        failure: Exception | None = None
        try:
            self._put_now(item)
        except Full:
            failure = _FullError("the queue is full")
        except SHUT_DOWN:
            failure = _ShutDownError("the queue was shut down")
        if failure is not None:
            raise failure

    def _put_now(self, item: Any) -> None:
        if not isinstance(self._queue, queue_module.Queue):
            put_nowait(self._queue, item)
            return
        # Its lock is not re-entrant: a signal handler or __del__ that logs while this thread holds it would deadlock.
        me = get_ident()
        if me in self._putting:
            self._interrupting.append(item)
            return
        self._putting.add(me)
        try:
            self._queue.put_nowait(item)
        finally:
            self._putting.discard(me)
            while self._interrupting:
                self._put_interrupting()

    def _put_interrupting(self) -> None:
        with contextlib.suppress(IndexError):  # another thread was faster
            item = self._interrupting.popleft()
            try:
                self._put_now(item)
            except _REFUSED:
                # Each was counted as delivered when it was put aside.
                with self._ledger.lock:
                    self._ledger.delivered -= 1
                    self._ledger.dropped["full"] += 1

    # -- the sink

    def emit(self, event: dict[str, Any]) -> None:
        """Put one event into the queue."""
        self.enqueue(self.prepare(event))

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Put each item's data into the queue; items without room are left for a retry."""
        return self._emit_each(batch, lambda item: self.enqueue(item.data))

    def encode(self, event: dict[str, Any]) -> Encoded:
        """Return an item with the result of `prepare`."""
        data = self.prepare(event)
        return self._encoded(event, data if isinstance(data, bytes) else line_to_send(event))

    def _put(self, event: dict[str, Any]) -> Exception | None:
        super()._put(event)
        if lifecycle.exiting():
            self._await_listener()
        return None

    def _await_listener(self) -> None:
        """Wait until the listener has delivered the queue; at exit no later call may do so."""
        listener = self.listener if self.listener is not None else listener_of(self._queue)
        if listener is not None and listener.running and not (self._listener_gone or listener.delivers_in_this_thread):
            self._listener_gone = not listener.flush(lifecycle.patience(self.drain_timeout))

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until `listener` has delivered the enqueued events; without a listener return True at once.

        Args:
            timeout: The time limit in seconds. Default None: `drain_timeout`, 5 s.
        """
        seconds = self._seconds(timeout)
        self._put_remainders(now() + seconds)
        return True if self.listener is None else self.listener.flush(seconds)

    def close(self, timeout: float | None = None) -> bool:
        """Take no more events; return False if `listener` has not delivered all in time.

        The queue stays open.

        Args:
            timeout: The time limit in seconds. Default None: `drain_timeout`, 5 s.
        """
        deadline = now() + self._seconds(timeout)
        if self._closed:
            return self._close_result
        closed = super().close(timeout)
        self._close_result = closed and self.flush(max(0.0, deadline - now()))
        return self._close_result

    def _refresh(self) -> None:
        busy = self._processors or self._closed or self._reporting or lifecycle.exiting()
        own = [hook for hook in _HOOKS if getattr(type(self), hook) is not getattr(QueueSink, hook)]
        self._put_item = None if busy or own or type(self._queue) is not SimpleQueue else self._queue.put

    def _reads_metadata(self) -> bool:
        return bool(self._processors) or type(self).prepare is not QueueSink.prepare

    @property
    def plain(self) -> bool:
        """True if `prepare` is not overridden and there are no processors; see `Forwarding.plain`."""
        own = type(self)
        return own.prepare is QueueSink.prepare and own.encode is QueueSink.encode and not self._processors

    @property
    def keeps_in_memory(self) -> bool:
        """True: events in the queue are not yet delivered by its reader."""
        return True

    def _describe(self) -> str:
        return f"into a {type(self._queue).__name__}"

    def drain(self, timeout: float) -> None:
        """Wait for the listener at exit; from then on ``handle`` waits until each event is delivered."""
        self._changed()
        super().drain(timeout)

    def after_fork(self) -> None:
        """Reset the sink in a forked child: a queue for threads is empty."""
        renew(self._queue)
        super().after_fork()

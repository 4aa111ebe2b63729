"""Events through a queue, to another thread or process: `QueueSink`, and `QueueListener` at the other end."""

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

_REFUSED: tuple[type[Exception], ...] = (Full, *SHUT_DOWN)


class _FullError(TemporaryDeliveryError):
    """There was no room in the queue."""

    dropped_as = "full"


class _ShutDownError(PermanentDeliveryError):
    """The queue was shut down."""

    dropped_as = "closed"


class QueueSink(Sink):
    """Put each event into a queue, as JSON, for another thread or another process.

    Level and processors apply before; what is in the queue is bytes, one JSON object each, that any process can read,
    in any version of Python: changing the event afterwards changes nothing. A `QueueListener` takes it out. Whoever
    reads the queue on his own finds ``None`` in it where a listener is to stop.

    Args:
        queue: The queue: `queue.SimpleQueue`, which costs least and is the one that a signal handler may use at any
            time; `queue.Queue`; one of `multiprocessing`, or of a manager; or anything that has ``put_nowait``.
        listener: The listener of the same queue, if it is in this process: `flush` and `close` then wait until it has
            handed on what was enqueued. It is not owned, so it is neither started nor stopped. Default None. Settable.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        TypeError: If *queue* has no ``put_nowait``, unless `enqueue` is overridden.

    Delivered means: in the queue. If there is no room in it the event is dropped at once, counted as
    ``dropped["full"]``, and ``on_error`` is told; if it was shut down, as ``dropped["closed"]``. A level that came with
    the call and is no field of the event (a structlog chain without ``add_log_level``) is put into the JSON as
    ``level``. ``exc_info`` becomes ``exception``, as text.

    The queue is not closed by `close`. What a listener's or a background sink's delivery logs is dropped as
    ``reentrant``. Safe from any thread, and from signal handlers. After a fork, a queue that belongs to threads is
    empty in the child, since what was in it is the parent's; one of `multiprocessing` is shared, as ever. At exit an
    event is handed on before ``handle`` returns, if the listener runs in this process.

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
        #: The queue's own put, where the short cut may be taken.
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
        #: The threads that are putting something into a queue that cannot be entered twice, and the events of signal
        #: handlers that interrupted them.
        self._putting: set[int] = set()
        self._interrupting: deque[Any] = deque()
        #: True once the listener did not hand on in time at exit.
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
        """Take one event: `deliver` under the error policy. Never raises, unless ``on_error`` is ``"raise"``.

        When it returns, the event is in the queue, or it has been counted as dropped.
        """
        # What the pipeline does, in one function, for the usual event: see FileSink.handle.
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
                            raise LookupError  # it wins over the level, and may be anything
                        if NUMBERS[event["level"]] < self._level:
                            self._ledger.filter()
                            return
                    put(dumps(event, None, OPTIONS))
                    # Without a lock: there is no call from reading it to writing it, see WriteLock.
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
        """Return what to put into the queue for *event*: bytes, one JSON object. Nothing in it is alive."""
        data = line_to_send(event)
        carried = event.carried_level if isinstance(event, LevelledEvent) else None
        if carried is None or "level" in event or "level_number" in event:
            return data
        fields: dict[str, Any] = {**event, "level": level_name(carried)}
        return line_to_send(fields)

    def enqueue(self, item: Any) -> None:
        """Put *item* into the queue, without waiting.

        Raises:
            TemporaryDeliveryError: If it is full.
            PermanentDeliveryError: If it was shut down.
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
        # Its lock is no RLock: a signal handler or __del__ that logs while this thread has it would wait for ever.
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
        with contextlib.suppress(IndexError):  # another thread was here
            item = self._interrupting.popleft()
            try:
                self._put_now(item)
            except _REFUSED:
                # It was counted as delivered when it came.
                with self._ledger.lock:
                    self._ledger.delivered -= 1
                    self._ledger.dropped["full"] += 1

    # -- the way out

    def emit(self, event: dict[str, Any]) -> None:
        """Put one event into the queue."""
        self.enqueue(self.prepare(event))

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Put each item's data into the queue; what there is no room for is left for a retry."""
        return self._emit_each(batch, lambda item: self.enqueue(item.data))

    def encode(self, event: dict[str, Any]) -> Encoded:
        """Return what `prepare` makes of *event*, as a batch item."""
        data = self.prepare(event)
        return self._encoded(event, data if isinstance(data, bytes) else line_to_send(event))

    def _put(self, event: dict[str, Any]) -> Exception | None:
        super()._put(event)
        if lifecycle.exiting():
            self._see_it_off()
        return None

    def _see_it_off(self) -> None:
        """Wait until the listener has handed on what is in the queue, at exit: nothing else waits for it then."""
        listener = self.listener if self.listener is not None else listener_of(self._queue)
        if listener is not None and listener.running and not (self._listener_gone or listener.delivers_in_this_thread):
            self._listener_gone = not listener.flush(lifecycle.patience(self.drain_timeout))

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until `listener` has handed on what was enqueued; without one there is nothing to wait for.

        Args:
            timeout: The time limit in seconds. Default None: `drain_timeout`, 5 s.
        """
        seconds = self._seconds(timeout)
        self._put_remainders(now() + seconds)
        return True if self.listener is None else self.listener.flush(seconds)

    def close(self, timeout: float | None = None) -> bool:
        """Take no more events; idempotent. Return False if `listener` has not handed on all in time.

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
        own = type(self)
        usual = (
            type(self._queue) is SimpleQueue
            and all(
                getattr(own, hook) is getattr(QueueSink, hook)
                for hook in ("deliver", "emit", "prepare", "enqueue", "_put", "_put_now")
            )
            and not (self._processors or self._closed or self._reporting or lifecycle.exiting())
        )
        self._put_item = self._queue.put if usual else None

    def _reads_metadata(self) -> bool:
        return bool(self._processors) or type(self).prepare is not QueueSink.prepare

    @property
    def plain(self) -> bool:
        """See `Forwarding.plain`: of a sink whose `prepare` is the usual one."""
        own = type(self)
        return own.prepare is QueueSink.prepare and own.encode is QueueSink.encode and not self._processors

    @property
    def keeps_in_memory(self) -> bool:
        """Whether it does. True, since whoever reads the queue has yet to put the events out."""
        return True

    def _describe(self) -> str:
        return f"into a {type(self._queue).__name__}"

    def drain(self, timeout: float) -> None:
        """Wait for the listener, at exit; later events are handed on before ``handle`` returns."""
        self._changed()
        super().drain(timeout)

    def after_fork(self) -> None:
        """Begin anew in a forked child: a queue that belongs to threads is empty."""
        renew(self._queue)
        super().after_fork()

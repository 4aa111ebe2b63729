"""Drop-in twins of the handler for queues and of what reads them: `QueueHandler` and `QueueListener`."""

from __future__ import annotations

import copy
import logging
import logging.handlers
import threading
import time
from queue import Full, Queue, SimpleQueue
from typing import TYPE_CHECKING, Any

from outfall.adapters.handlers.twin import Twin, is_own
from outfall.sinks.core import lifecycle
from outfall.sinks.core.reentrancy import thread
from outfall.sinks.core.reporting import SinkFailure, report
from outfall.sinks.delivery.queue import QueueSink
from outfall.sinks.delivery.queuelistener import _MARK, listener_of
from outfall.sinks.delivery.queuelistener import QueueListener as SinksListener
from outfall.sinks.errors import DeliveryError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

#: Queues that nothing but this process reads, and in order.
_FOR_THREADS = (Queue, SimpleQueue)

#: How often the end of other queues is looked for at exit, and how often it has to be seen: what a thread has just
#: taken out, or not yet put in, is nowhere.
_LOOK_SECONDS = 0.005
_LOOKS = 3


class _ItemsSink(QueueSink):
    #: As of `Lent`, which is for sinks that write bytes.
    owner: Any = None

    def put(self, queue: Any, item: Any) -> None:
        """Put *item* into *queue*, and count it; what the queue raises is raised."""
        if queue is not self._queue:
            self.queue = queue
        try:
            self._put_now(item)
        except BaseException as error:
            full = isinstance(error, Full)
            self._count_dropped("full" if full else "error" if isinstance(error, Exception) else "interrupted")
            raise
        self._ledger.delivered += 1
        if lifecycle.exiting():
            listener = listener_of(queue)
            if isinstance(listener, _Reader) and not (self._listener_gone or listener.delivers_in_this_thread):
                # In vain once is enough.
                self._listener_gone = not listener.empty(lifecycle.patience(self.drain_timeout))


class QueueHandler(Twin, logging.handlers.QueueHandler):
    """A drop-in twin of `logging.handlers.QueueHandler`: put each record into a queue, by a `QueueSink`.

    Args:
        queue: Anything with ``put_nowait``.

    Attributes:
        queue: As above; read for each record.
        listener: What `logging.config.dictConfig` puts here: the listener of the queue, or None.

    What is put there is a copy of the record with the formatted text as its message and nothing in it that could not be
    pickled; the record itself stays as it is. ``prepare`` and ``enqueue`` may be overridden. If there is no room in the
    queue, ``handleError`` is told. Where it differs from its namesake on purpose: :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#queuehandler
    """

    listener: Any

    def __init__(self, queue: Any) -> None:
        Twin.__init__(self)
        self.queue = queue
        self.listener = None

    def make_sink(self) -> QueueSink:
        """Return the sink."""
        return _ItemsSink(self.queue, on_error="raise", name=type(self).__name__)

    def prepare(self, record: logging.LogRecord) -> Any:
        """Return what to put into the queue for *record*."""
        text = self.format(record)
        if type(record) is logging.LogRecord:
            prepared = logging.LogRecord.__new__(logging.LogRecord)
            vars(prepared).update(vars(record))
        else:
            prepared = copy.copy(record)
        prepared.msg = prepared.message = text
        prepared.args = prepared.exc_info = prepared.exc_text = prepared.stack_info = None
        return prepared

    def enqueue(self, record: Any) -> None:
        """Put *record*, or whatever ``prepare`` made, into the queue without waiting.

        Raises:
            queue.Full: If there is no room.
        """
        self.sink.put(self.queue, record)

    def emit(self, record: logging.LogRecord) -> None:
        """Put *record* into the queue; a failure goes to ``handleError``."""
        try:
            self.enqueue(self.prepare(record))
        except Exception:
            self.handleError(record)


class _Reader(SinksListener):
    """Reads a queue for a `QueueListener`, whose hooks count."""

    def __init__(self, queue: Any, name: str) -> None:
        #: The listener, while it is started.
        self.owner: Any = None
        super().__init__(queue, name=name)

    def _fresh_state(self) -> None:
        super()._fresh_state()
        #: True while a record has been taken out of the queue and is not yet handled.
        self._busy = False

    def dequeue(self, block: bool) -> Any:
        item = self.owner.dequeue(block)
        self._busy = True
        return item

    def enqueue_sentinel(self) -> None:
        self.owner.enqueue_sentinel()

    def _take(self, run: Any, item: Any) -> None:
        # The mark of a thread that delivers is not for handlers: theirs is to deliver what comes here.
        thread.delivering = False
        if item.__class__ is bytes and item.startswith(_MARK):
            super()._take(run, item)
            return
        try:
            self.owner.handle(item)
            self._delivered += 1
        except Exception as error:
            self._drop("error")
            self._tell(error, item, 1)
        finally:
            self._busy = False
            self._task_done()

    def empty(self, timeout: float) -> bool:
        """Wait until all that is in the queue has been handled; return False if that takes too long."""
        if not self.running:
            return True
        if type(self.queue) in _FOR_THREADS and is_own(self.owner.dequeue, QueueListener.dequeue):
            return self.flush(timeout)
        # Nothing is put into it: others may read it as well, or an override may want to know what it reads.
        deadline = time.monotonic() + timeout
        is_empty = getattr(self.queue, "empty", None)
        looks = 0
        while is_empty is not None and self.running and looks < _LOOKS:
            looks = 0 if self._busy or not is_empty() else looks + 1
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOOK_SECONDS)
        return True

    def drain(self, timeout: float) -> None:
        """Have what is in the queue handled, at exit; it goes on, since other exit hooks still log."""
        if not self.empty(timeout):
            self._tell(DeliveryError("the process ends before all that is in the queue was handled"), None, 0)


class QueueListener(logging.handlers.QueueListener):
    """A drop-in twin of `logging.handlers.QueueListener`: take records out of a queue and hand them to handlers.

    Args:
        queue: Anything with ``get``.
        *handlers: They get each record by their ``handle``, one after the other.
        respect_handler_level: Whether a handler's level applies.

    Attributes:
        queue: As above; read at ``start``.
        handlers: As above, a tuple; read for each record, like the next one.
        respect_handler_level: As above.

    One thread reads and handles. A handler that raises keeps nothing from the others, and does not end the thread: its
    ``handleError`` is told. ``start`` and ``stop`` may be called again, and do nothing where there is nothing to do. At
    exit what is in the queue is handed on, within the deadline that all sinks share. A context manager, too. Where else
    it differs from its namesake on purpose: :doc:`/explanation/handlers`.

    What may be overridden: ``dequeue``, ``prepare``, ``handle``, ``enqueue_sentinel``, ``_sentinel``.

    Source: https://docs.python.org/3/library/logging.handlers.html#queuelistener
    """

    handlers: tuple[logging.Handler, ...]

    #: What ends the reading.
    _sentinel: Any = None

    def __init__(self, queue: Any, *handlers: logging.Handler, respect_handler_level: bool = False) -> None:
        self.queue = queue
        self.handlers = handlers
        self.respect_handler_level = respect_handler_level
        self._thread: threading.Thread | None = None
        self._reader = _Reader(queue, type(self).__name__)

    def dequeue(self, block: bool) -> Any:
        """Return the next record, waiting for one if *block* is true.

        Raises:
            queue.Empty: If there is none, and *block* is false.
        """
        return self.queue.get(block)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]

    def start(self) -> None:
        """Begin to read the queue, in a daemon thread. Does nothing if that has begun."""
        reader = self._reader
        reader.owner = self
        if not reader.running:
            reader.queue = self.queue
            reader._sentinel = self._sentinel
        reader.start()
        run = reader._run
        self._thread = None if run is None else run.threads[0]

    def prepare(self, record: Any) -> Any:
        """Return what to hand on for *record*, by default itself."""
        return record

    def handle(self, record: Any) -> None:
        """Give *record*, prepared, to each handler; a handler that raises is told so by its own ``handleError``."""
        record = self.prepare(record)
        for handler in self.handlers:
            if self.respect_handler_level and record.levelno < handler.level:
                continue
            try:
                handler.handle(record)
            except Exception as error:
                self._tell(handler, record, error)

    def _tell(self, handler: Any, record: Any, error: Exception) -> None:
        try:
            handler.handleError(record)
        except Exception:
            report(SinkFailure(type(handler).__name__, error, 1, time.time()))

    def enqueue_sentinel(self) -> None:
        """Put into the queue what ends the reading."""
        self.queue.put_nowait(self._sentinel)

    def stop(self) -> None:
        """Hand on what is in the queue, however long that takes, and end the thread."""
        self._reader.stop(threading.TIMEOUT_MAX / 2)
        if not self._reader.running:
            # Kept until here: a listener that nobody stops goes on, though nobody else holds it.
            self._reader.owner = self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

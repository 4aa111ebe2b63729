"""Drop-in twins of `QueueHandler` and `QueueListener`."""

from __future__ import annotations

import copy
import logging
import logging.handlers
import threading
import time
import weakref
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any, ClassVar

from outfall.adapters.handlers.base import Account, Transient, Twin, account_of, is_not_overridden
from outfall.sinks.core import lifecycle
from outfall.sinks.core.clock import now
from outfall.sinks.core.reporting import SinkFailure, report
from outfall.sinks.delivery.queues import renew
from outfall.sinks.errors import DeliveryError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

_QueueHandler = logging.handlers.QueueHandler
_QueueListener = logging.handlers.QueueListener

#: At exit a queue counts as empty after this many looks in a row, at this interval: an item that a thread has just
#: taken out, or not yet put in, cannot be seen.
_LOOK_SECONDS = 0.005
_LOOKS = 3

#: The number of unreadable items in a row after which the queue itself counts as broken.
_GARBAGE_IN_A_ROW = 100

#: The started listeners, by the identity of their queue.
_listeners: weakref.WeakValueDictionary[int, QueueListener] = weakref.WeakValueDictionary()


class _QueueAccount(Account):
    """The account of a handler that puts records into a queue."""

    def __init__(self, handler: logging.Handler) -> None:
        self._handler = weakref.ref(handler)
        #: True once waiting for a listener has timed out.
        self.listener_hangs = False
        super().__init__(type(handler).__name__)

    def after_fork(self) -> None:
        """Empty a queue for threads in a forked child: the parent delivers those records."""
        renew(getattr(self._handler(), "queue", None))
        super().after_fork()


class QueueHandler(Twin, _QueueHandler):
    """A drop-in twin of `logging.handlers.QueueHandler`: put each record into a queue.

    Args:
        queue: Anything with ``put_nowait``.

    Attributes:
        queue: As above; read for each record.
        listener: The listener of the queue, which `logging.config.dictConfig` sets; or None.

    The queue gets a copy of the record. Its message is the formatted text, and it has no arguments, exception or stack,
    which could not be pickled; the record itself does not change. A full queue is an error that ``handleError`` gets.
    ``prepare`` and ``enqueue`` may be overridden. Deliberate differences from its namesake:
    :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#queuehandler
    """

    listener: Any = None

    def __init__(self, queue: Any) -> None:
        _QueueHandler.__init__(self, queue)
        self.listener = None
        # Now: the account empties the queue in a child that is forked later.
        account_of(self)

    def _outfall_make_sink(self) -> Account:
        return _QueueAccount(self)

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
        """Put *record*, the result of ``prepare``, into the queue without waiting.

        Raises:
            queue.Full: If there is no room.
        """
        account = account_of(self)
        queue: Any = self.queue
        try:
            queue.put_nowait(record)
        except BaseException as error:
            full = isinstance(error, Full)
            account._ledger.drop("full" if full else "error" if isinstance(error, Exception) else "interrupted")
            raise
        account._ledger.delivered += 1
        if lifecycle.exiting():
            _await_listener(account, queue)


def _await_listener(account: Any, queue: Any) -> None:
    """Wait until the listener of *queue* has handled its items: at exit no later call may do so."""
    listener = _listeners.get(id(queue))
    if listener is None or listener.queue is not queue or getattr(account, "listener_hangs", False):
        return
    if listener._thread is not threading.current_thread():
        # A listener that was once too slow is not waited for again.
        account.listener_hangs = not listener._outfall_exit.await_end(lifecycle.patience(account.drain_timeout))


class _Exit(Transient):
    """The hooks of a listener for forks and for the exit of the process."""

    delivers_later: ClassVar[bool] = True

    @property
    def has_owner(self) -> bool:
        """False: only the exit hook drains it."""
        return False

    def __init__(self, listener: QueueListener) -> None:
        self._listener = weakref.ref(listener)
        lifecycle.join(self)
        # The drain has to run before multiprocessing closes its queues.
        lifecycle.arm()

    def await_end(self, timeout: float) -> bool:
        """Wait up to *timeout* seconds until the queue is empty and handled; return False if it is not."""
        listener = self._listener()
        if listener is None:
            return True
        deadline = now() + timeout
        looks = 0
        while looks < _LOOKS:
            thread = listener._thread
            if thread is None or not thread.is_alive():
                return True
            looks = looks + 1 if _is_idle(listener) else 0
            if now() >= deadline:
                return False
            time.sleep(_LOOK_SECONDS)
        return True

    def hasten(self, deadline: float) -> None:
        """Do nothing: the thread does not linger."""

    def drain(self, timeout: float) -> None:
        """Wait at exit until the queue is handled; the thread continues, since other exit hooks still log."""
        listener = self._listener()
        if listener is not None and not self.await_end(timeout):
            _report(listener, DeliveryError("the process ends before all that is in the queue was handled"), 0)

    def after_fork(self) -> None:
        """Reset the listener in a forked child: it is not started, and a queue for threads is empty."""
        listener = self._listener()
        if listener is not None:
            renew(listener.queue)
            listener._thread = None
            listener._outfall_busy = False


def _is_idle(listener: Any) -> bool:
    queue = listener.queue
    if isinstance(queue, Queue):
        # Includes items taken out until their task_done.
        return not queue.unfinished_tasks
    if listener._outfall_busy:
        return False
    try:
        # For a queue of multiprocessing's this includes items not yet written to the pipe.
        return not queue.qsize()
    except (AttributeError, NotImplementedError):
        is_empty = getattr(queue, "empty", None)
        return is_empty is None or bool(is_empty())


def _report(listener: Any, error: Exception, events: int) -> None:
    report(SinkFailure(type(listener).__name__, error, events, time.time()))


class QueueListener(_QueueListener):
    """A drop-in twin of `logging.handlers.QueueListener`: take records out of a queue and pass them to handlers.

    Args:
        queue: Anything with ``get``.
        *handlers: The handlers. The ``handle`` of each is called with each record, in this order.
        respect_handler_level: Whether a handler's level applies.

    Attributes:
        queue: As above.
        handlers: As above, a tuple; read for each record, like the next one.
        respect_handler_level: As above.

    One thread reads the queue and calls the handlers. If a handler raises, its ``handleError`` is called; the other
    handlers still get the record, and the thread continues. ``stop`` may be called on a listener that was not started.
    At exit the queued records are handled within the deadline that all sinks share. The listener is a context manager.
    Other deliberate differences from its namesake: :doc:`/explanation/handlers`.

    May be overridden: ``dequeue``, ``prepare``, ``handle``, ``enqueue_sentinel``, ``_sentinel``, ``_monitor``.

    Source: https://docs.python.org/3/library/logging.handlers.html#queuelistener
    """

    handlers: tuple[logging.Handler, ...]

    #: The item that ends the thread.
    _sentinel: Any = None
    #: True while the thread handles a record that it took out of the queue.
    _outfall_busy = False
    _outfall_exit: Any = None

    def start(self) -> None:
        """Start a daemon thread that reads the queue.

        Raises:
            RuntimeError: If it is started already, as since Python 3.14.
        """
        thread = getattr(self, "_thread", None)
        if thread is not None and thread.is_alive():
            msg = "Listener already started"
            raise RuntimeError(msg)
        if getattr(self, "_outfall_exit", None) is None:
            self._outfall_exit = _Exit(self)
        _listeners[id(self.queue)] = self
        _QueueListener.start(self)

    def handle(self, record: Any) -> None:
        """Prepare *record* and give it to each handler; if one raises, call its ``handleError`` and continue."""
        record = self.prepare(record)
        respect = self.respect_handler_level
        for handler in self.handlers:
            if respect and record.levelno < handler.level:
                continue
            try:
                handler.handle(record)
            except Exception as error:
                try:
                    handler.handleError(record)
                except Exception:
                    report(SinkFailure(type(handler).__name__, error, 1, time.time()))

    def _monitor(self) -> None:
        queue: Any = self.queue
        task_done = getattr(queue, "task_done", _nothing)
        direct = is_not_overridden(self.dequeue, _QueueListener.dequeue)
        failures = 0
        while True:
            try:
                record = self.queue.get(True) if direct else self.dequeue(True)  # type: ignore[call-arg]
                self._outfall_busy = True
            except Empty:  # a subclass's dequeue may time out
                continue
            except Exception as error:
                failures += 1
                if not _is_garbage(error) or failures > _GARBAGE_IN_A_ROW:
                    _report_unless_closed(self, error)
                    return
                _report(self, error, 1)
                task_done()
                continue
            failures = 0
            if record is self._sentinel:
                self._outfall_busy = False
                task_done()
                return
            try:
                self.handle(record)
            except Exception as error:
                _report(self, error, 1)
            self._outfall_busy = False
            task_done()

    def stop(self) -> None:
        """Wait until the handlers have had all queued records, without a time limit, and end the thread."""
        thread = getattr(self, "_thread", None)
        if thread is None:
            return
        while thread.is_alive():
            try:
                self.enqueue_sentinel()
            except Full:
                time.sleep(_LOOK_SECONDS)
            else:
                break
        if thread is not threading.current_thread():
            thread.join()
        self._thread = None

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


def _nothing() -> None:
    """Stand in for the ``task_done`` of a queue that has none."""


def _is_garbage(error: Exception) -> bool:
    """Return True if *error* is about an unreadable item, and False if the queue itself is closed or broken."""
    return not isinstance(error, (OSError, EOFError, ValueError)) and type(error).__name__ != "ShutDown"


def _report_unless_closed(listener: Any, error: Exception) -> None:
    """Report why the thread ends, unless the queue was closed, as happens at exit."""
    closed = getattr(getattr(listener.queue, "_reader", None), "closed", False) or type(error).__name__ == "ShutDown"
    if not closed:
        _report(listener, error, 0)

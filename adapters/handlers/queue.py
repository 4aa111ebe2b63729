"""Drop-in twins of the handler for queues and of what reads them: `QueueHandler` and `QueueListener`."""

from __future__ import annotations

import copy
import logging
import logging.handlers
import threading
import time
import weakref
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any, ClassVar

from outfall.adapters.handlers.base import Account, Kept, Twin, account_of, untouched
from outfall.sinks.core import lifecycle
from outfall.sinks.core.reporting import SinkFailure, report
from outfall.sinks.delivery.queues import renew
from outfall.sinks.errors import DeliveryError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

_QueueHandler = logging.handlers.QueueHandler
_QueueListener = logging.handlers.QueueListener

#: How often the end of a queue is looked for at exit, and how often it has to be seen: what a thread has just taken
#: out, or not yet put in, is nowhere.
_LOOK_SECONDS = 0.005
_LOOKS = 3

#: After so many items in a row that cannot be read it is rather the queue that is broken.
_GARBAGE_IN_A_ROW = 100

#: The listeners that have been started, by the identity of their queue.
_listeners: weakref.WeakValueDictionary[int, QueueListener] = weakref.WeakValueDictionary()


class _Putting(Account):
    """The account of a handler whose records go into a queue."""

    def __init__(self, handler: logging.Handler) -> None:
        self._handler = weakref.ref(handler)
        #: True once a listener was waited for in vain.
        self.listener_hangs = False
        super().__init__(type(handler).__name__)

    def after_fork(self) -> None:
        """Begin anew in a forked child: what was in a queue for threads is the parent's."""
        renew(getattr(self._handler(), "queue", None))
        super().after_fork()


class QueueHandler(Twin, _QueueHandler):
    """A drop-in twin of `logging.handlers.QueueHandler`: put each record into a queue.

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

    listener: Any = None

    def __init__(self, queue: Any) -> None:
        _QueueHandler.__init__(self, queue)
        self.listener = None
        # Now, so that a child that is forked later knows what is the parent's.
        account_of(self)

    def _outfall_make_sink(self) -> Account:
        return _Putting(self)

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
    """Wait until the listener of *queue* has handled what is in it: at exit nobody may come after."""
    listener = _listeners.get(id(queue))
    if listener is None or listener.queue is not queue or getattr(account, "listener_hangs", False):
        return
    if listener._thread is not threading.current_thread():
        # In vain once is enough.
        account.listener_hangs = not listener._outfall_exit.await_end(lifecycle.patience(account.drain_timeout))


class _Exit(Kept):
    """What a listener has to do with forks and the exit of the process."""

    delivers_later: ClassVar[bool] = True

    @property
    def has_owner(self) -> bool:
        """Nobody drains it but the exit itself."""
        return False

    def __init__(self, listener: QueueListener) -> None:
        self._listener = weakref.ref(listener)
        lifecycle.join(self)
        # Before multiprocessing closes its queues.
        lifecycle.arm()

    def await_end(self, timeout: float) -> bool:
        """Wait until all that is in the queue has been handled; return False if that takes too long."""
        listener = self._listener()
        if listener is None:
            return True
        deadline = time.monotonic() + timeout
        looks = 0
        while looks < _LOOKS:
            thread = listener._thread
            if thread is None or not thread.is_alive():
                return True
            looks = looks + 1 if _is_idle(listener) else 0
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOOK_SECONDS)
        return True

    def hasten(self, deadline: float) -> None:
        """Do nothing: the thread does not linger."""

    def drain(self, timeout: float) -> None:
        """Have what is in the queue handled, at exit; it goes on, since other exit hooks still log."""
        listener = self._listener()
        if listener is not None and not self.await_end(timeout):
            _tell(listener, DeliveryError("the process ends before all that is in the queue was handled"), 0)

    def after_fork(self) -> None:
        """Begin anew in a forked child: not started, and a queue for threads is empty."""
        listener = self._listener()
        if listener is not None:
            renew(listener.queue)
            listener._thread = None
            listener._outfall_busy = False


def _is_idle(listener: Any) -> bool:
    queue = listener.queue
    if isinstance(queue, Queue):
        # What was taken out counts until task_done.
        return not queue.unfinished_tasks
    if listener._outfall_busy:
        return False
    try:
        # Of multiprocessing's it also counts what is still on its way into the pipe.
        return not queue.qsize()
    except (AttributeError, NotImplementedError):
        is_empty = getattr(queue, "empty", None)
        return is_empty is None or bool(is_empty())


def _tell(listener: Any, error: Exception, events: int) -> None:
    report(SinkFailure(type(listener).__name__, error, events, time.time()))


class QueueListener(_QueueListener):
    """A drop-in twin of `logging.handlers.QueueListener`: take records out of a queue and hand them to handlers.

    Args:
        queue: Anything with ``get``.
        *handlers: They get each record by their ``handle``, one after the other.
        respect_handler_level: Whether a handler's level applies.

    Attributes:
        queue: As above.
        handlers: As above, a tuple; read for each record, like the next one.
        respect_handler_level: As above.

    One thread reads and handles. A handler that raises keeps nothing from the others, and does not end the thread: its
    ``handleError`` is told. ``stop`` may be called when it has not been started. At exit what is in the queue is handed
    on, within the deadline that all sinks share. A context manager, too. Where else it differs from its namesake on
    purpose: :doc:`/explanation/handlers`.

    What may be overridden: ``dequeue``, ``prepare``, ``handle``, ``enqueue_sentinel``, ``_sentinel``, ``_monitor``.

    Source: https://docs.python.org/3/library/logging.handlers.html#queuelistener
    """

    handlers: tuple[logging.Handler, ...]

    #: What ends the reading.
    _sentinel: Any = None
    #: True while a record has been taken out of the queue and is not yet handled.
    _outfall_busy = False
    _outfall_exit: Any = None

    def start(self) -> None:
        """Begin to read the queue, in a daemon thread.

        Raises:
            RuntimeError: If that has begun; on every version, as since Python 3.14.
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
        """Give *record*, prepared, to each handler; a handler that raises is told so by its own ``handleError``."""
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
        direct = untouched(self.dequeue, _QueueListener.dequeue)
        failures = 0
        while True:
            try:
                record = self.queue.get(True) if direct else self.dequeue(True)  # type: ignore[call-arg]
                self._outfall_busy = True
            except Empty:  # of an override that does not wait for ever
                continue
            except Exception as error:
                failures += 1
                if not _is_garbage(error) or failures > _GARBAGE_IN_A_ROW:
                    _tell_unless_closed(self, error)
                    return
                _tell(self, error, 1)
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
                _tell(self, error, 1)
            self._outfall_busy = False
            task_done()

    def stop(self) -> None:
        """Hand on what is in the queue, however long that takes, and end the thread."""
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
    """Return True if *error* is about an item that was there; else it is the queue that is closed or gone."""
    return not isinstance(error, (OSError, EOFError, ValueError)) and type(error).__name__ != "ShutDown"


def _tell_unless_closed(listener: Any, error: Exception) -> None:
    """Tell why the reading ends, unless somebody has closed the queue, as happens at exit."""
    closed = getattr(getattr(listener.queue, "_reader", None), "closed", False) or type(error).__name__ == "ShutDown"
    if not closed:
        _tell(listener, error, 0)

"""Events that a thread of the sink's own delivers later: what `BackgroundSink` and `SpoolSink` have in common."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from structlog import DropEvent

from outfall.sinks.core import threads
from outfall.sinks.core.arguments import checked_count, checked_seconds
from outfall.sinks.core.clock import now as monotonic
from outfall.sinks.core.item import BatchResult, Encoded
from outfall.sinks.core.lifecycle import here, notice_fork
from outfall.sinks.core.reentrancy import delivering
from outfall.sinks.core.sink import OnError, Sink
from outfall.sinks.delivery.delivery import Delivery, RetryPolicy
from outfall.sinks.errors import TemporaryDeliveryError

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterable, Sequence

    from outfall.sinks.core.ledger import Outcome, SinkStats
    from outfall.sinks.event.levels import Level

#: What to do with an event that there is no room for.
ON_FULL = ("block", "drop_newest", "drop_oldest")


class FullError(TemporaryDeliveryError):
    """There was no room for an event."""

    dropped_as = "overflow"


class DeferredSink(Sink):
    """What `BackgroundSink` and `SpoolSink` have in common: events are kept, and a thread delivers them to *target*.

    The arguments are described there.

    Raises:
        ValueError: If *block_timeout*, *batch_size* or *linger* is not usable.
        TypeError: If *target* or *dead_letter* is no sink, or *retry* no `RetryPolicy`.

    A generation is the life of one thread: it ends when the sink is closed, and with a fork. What a thread of an
    earlier one still does to the target, and what the target answers it, changes nothing here.
    """

    # A subclass says where events are kept, by _take, and what the thread does, by _work.

    delivers_through_loggers = True
    delivers_later = True
    locks_emit = False
    counts_batches = True

    _generation = 0

    def __init__(
        self,
        target: Sink,
        *,
        block_timeout: float | dt.timedelta,
        batch_size: int,
        linger: float | dt.timedelta,
        retry: RetryPolicy | None,
        dead_letter: Sink | None,
        level: Level,
        processors: Iterable[Callable[[Any, str, Any], Any]],
        on_error: OnError,
        name: str | None,
    ) -> None:
        if not isinstance(target, Sink):
            msg = f"target={target!r} is not a Sink"
            raise TypeError(msg)
        self._target = target
        self._block_seconds = checked_seconds(block_timeout, "block_timeout")
        self._batch_size = checked_count(batch_size, "batch_size", "events")
        self._linger_seconds = checked_seconds(linger, "linger")
        self._retry = retry
        self._dead_letter = dead_letter
        super().__init__(level=level, processors=processors, on_error=on_error, name=name)
        target.surround(self)
        self._changed()

    def _fresh_state(self) -> None:
        super()._fresh_state()
        #: What wakes the thread: the one queue whose put() may be called from a signal handler in the midst of itself.
        self._wakeups: SimpleQueue[None] = SimpleQueue()
        self._worker: threading.Thread | None = None
        self._generation += 1
        generation = self._generation
        self._delivery = self._new_delivery(lambda seconds: self._pause(seconds, generation))
        #: Until when flush or close waits for the thread, and whether it has to stop then; by the monotonic clock.
        self._urgent_until = 0.0
        self._stopping = False
        #: True once somebody has waited for room in vain, until there is some.
        self._impatient = False

    def _new_delivery(self, pause: Callable[[float], bool]) -> Delivery:
        generation = self._generation

        def tell(error: Exception, events: int) -> None:
            if generation == self._generation:
                self._told(error, events)

        return Delivery(
            self._target,
            retry=self._retry,
            dead_letter=self._dead_letter,
            settle=lambda outcome: self._settle(outcome, generation),
            tell=tell,
            pause=pause,
        )

    # -- what a subclass implements

    def _take(self, item: Encoded) -> None:
        """Keep *item*, making room for it as the policy says.

        Raises:
            FullError: If there is none.
        """
        raise NotImplementedError

    def _work(self, generation: int) -> None:
        """Deliver what is kept until this *generation* ends, or the sink is closed; in the thread."""
        raise NotImplementedError

    def _pause(self, seconds: float, generation: int) -> bool:
        """Wait before the next attempt; return False if the delivery has to stop."""
        raise NotImplementedError

    def _settle(self, outcome: Outcome, generation: int) -> None:
        """Count what became of some events."""
        raise NotImplementedError

    def _settle_all(self, deadline: float) -> bool:
        """Wait until all that is kept now is settled; return False if *deadline* came first."""
        raise NotImplementedError

    def _not_started(self) -> None:
        """Have the next event try to start the thread again. Called under the lock."""
        raise NotImplementedError

    # -- what applications call

    @property
    def target(self) -> Sink:
        """Where the events go."""
        return self._target

    def flush(self, timeout: float | None = None) -> bool:
        """Have everything delivered that was accepted so far; return True when all of it is settled.

        Args:
            timeout: Seconds. None stands for `Sink.drain_timeout`, 5 s.
        """
        if not here[0]:
            notice_fork()
        deadline = monotonic() + self._seconds(timeout)
        self._put_remainders(deadline)
        settled = self._settle_all(deadline)
        flushed = self._target.flush(max(0.0, deadline - monotonic()))
        return settled and flushed

    # -- what the pipeline calls

    def emit(self, event: dict[str, Any]) -> None:
        """Keep one event."""
        self._put(event)

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Keep each item; what there is no room for is left for a retry."""
        for index, item in enumerate(batch):
            try:
                self._take(item)
            except (TemporaryDeliveryError, OSError):
                if index == 0:
                    raise
                return BatchResult(retry=range(index, len(batch)))
        return None

    def encode(self, event: dict[str, Any]) -> Encoded:
        """Return *event* as a batch item for the target, past the target's level and processors.

        Raises:
            DropEvent: If the target filters it.
        """
        item = self._target.make_item(event)
        if item is None:
            raise DropEvent
        return item

    def _put(self, event: dict[str, Any]) -> Exception | None:
        self._take(self.encode(event))
        return None

    @property
    def behind(self) -> tuple[Sink, ...]:
        """See `Forwarding.behind`."""
        return (self._target,)

    def restore_item(self, data: bytes, level: float, time: float) -> Encoded:
        """Return what the target makes of it; see `Forwarding.restore_item`."""
        return self._target.restore_item(data, level, time)

    def _reads_metadata(self) -> bool:
        return self._prepare_reads_metadata()

    def _prepare_reads_metadata(self) -> bool:
        return bool(self._processors) or self._target._prepare_reads_metadata()

    # -- the thread

    def _rouse(self) -> None:
        """Have the thread look for work, starting it if it does not run; it may be that none can be started."""
        if self._worker is not None:
            self._wakeups.put(None)
            return
        with self._lock:
            if self._worker is not None:
                return
            worker = threading.Thread(
                target=self._run, args=(self._generation,), name=f"outfall {self.name}", daemon=True
            )
            # Said before it runs, so that an event from a signal handler does not start another.
            self._worker = worker
            try:
                self._start(worker)
            except BaseException as error:
                # The interpreter is going down, or there are too many threads, or an interrupt came: the next event
                # tries again. A thread that runs nevertheless finds here, under the lock, what it is.
                if not worker.is_alive():
                    self._worker = None
                    self._not_started()
                if not isinstance(error, RuntimeError):
                    raise

    def _start(self, worker: threading.Thread) -> None:
        threads.start(worker)

    def _run(self, generation: int) -> None:
        with self._lock:
            if self._worker is not threading.current_thread():
                return
        self._work(generation)

    def hasten(self, deadline: float) -> None:
        """Have the thread linger no more, at exit; until *deadline* `Sink.drain` waits for it."""
        super().hasten(deadline)
        if self._worker is not None and not self._closed:
            self._urgent_until = max(self._urgent_until, deadline)
            self._wakeups.put(None)

    # -- counting and telling

    def _told(self, error: Exception, events: int) -> None:
        # Not under the mark of a delivering thread: what on_error logs, other sinks may take.
        with delivering(value=False):
            self._fail_unraised(error, None, events=events)

    def _stats(self) -> SinkStats:
        return self._ledger.stats(self.name, targets=(self._target.stats(),))

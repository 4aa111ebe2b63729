"""What the listeners of all brokers have in common: `BrokerListener`."""

from __future__ import annotations

import contextlib
import threading
import time as time_module
from random import random
from typing import TYPE_CHECKING, Any, ClassVar

import orjson
from structlog import DropEvent

from outfall.adapters.brokers.client import HasClient, timeout_of
from outfall.adapters.brokers.lane import Lane, Run, Ticket
from outfall.sinks.core import lifecycle, threads
from outfall.sinks.core.arguments import checked_count, checked_seconds
from outfall.sinks.core.bells import Bells
from outfall.sinks.core.clock import now
from outfall.sinks.core.item import Batch
from outfall.sinks.core.ledger import Ledger
from outfall.sinks.core.logginglock import released
from outfall.sinks.core.reentrancy import delivering
from outfall.sinks.core.reporting import SinkFailure, cleaned, describe, report
from outfall.sinks.core.sink import Sink, checked_sink
from outfall.sinks.core.threads import check_threads
from outfall.sinks.delivery.delivery import RetryPolicy
from outfall.sinks.delivery.telling import Telling
from outfall.sinks.errors import (
    DeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    SinkClosedError,
    reason_of,
)
from outfall.sinks.event.event import METADATA, LevelledEvent
from outfall.sinks.event.json import loads
from outfall.sinks.event.levels import level_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from typing_extensions import Self

    from outfall.sinks.core.ledger import SinkStats
    from outfall.sinks.event.units import Span


class Reading:
    """Messages as they came from a broker, in columns: what is done for each of them is done for every event.

    Args:
        tokens: What the broker is told when they have been settled: one for each, or fewer.
        bodies: Their bodies.
        levels: The level numbers that came beside a body, by its place. Default None: there are none.
        time_of: Returns when the message at a place happened, in seconds since the epoch, as far as the broker knows;
            it is asked where the body has no ``timestamp``. Default None: nothing is known.
    """

    __slots__ = ("bodies", "levels", "time_of", "tokens")

    def __init__(
        self,
        tokens: list[Any],
        bodies: list[bytes],
        levels: Mapping[int, float | None] | None = None,
        time_of: Callable[[int], float | None] | None = None,
    ) -> None:
        self.tokens: list[Any] = tokens
        self.bodies: list[bytes] = bodies
        self.levels: Mapping[int, float | None] = {} if levels is None else levels
        self.time_of: Callable[[int], float | None] = _unknown if time_of is None else time_of

    def __len__(self) -> int:
        return len(self.bodies)


def _unknown(_place: int) -> None:
    return None


class BrokerListener(HasClient, Telling):
    """A listener that takes events from a broker and hands them to *sinks*, in batches.

    A subclass sets what it needs before it calls this constructor, and implements `_read`, `_acknowledge`,
    `_disconnect`, `_failure` and `_describe`. All of them are called by one thread, the reader. A thread for each sink
    delivers.

    Args:
        *sinks: Where the events go. Not owned.
        respect_sink_level: Whether a sink's own level applies.
        batch_size: How many messages are read, and given to a sink, at a time.
        retry: When a batch that a sink could not take is tried again, and when the broker is, that could not be read.
        dead_letter: A sink that gets what a sink refuses for good, and messages that are no events. Not owned.
        timeout: Seconds that connecting may take, and each exchange with the broker.
        on_error: Called with a `SinkFailure` for each failure.
        name: The name of the listener in reports and stats.

    A batch is acknowledged once each sink has settled all of it. Two batches are under way at most: what is not read is
    left to other processes.
    """

    delivers_later: ClassVar[bool] = True
    has_owner = False

    #: What `stop` and `flush` take for *timeout* None, in seconds. Settable.
    drain_timeout: float = 5.0

    #: How many batches may be under way.
    _READ_AHEAD: ClassVar[int] = 2

    #: How long a read may wait for a message while there is nothing else to do, in seconds.
    _READ_SECONDS: ClassVar[float] = 0.2

    def __init__(
        self,
        *sinks: Sink,
        respect_sink_level: bool = False,
        batch_size: int = 500,
        retry: RetryPolicy | None = None,
        dead_letter: Sink | None = None,
        timeout: Span,
        on_error: Callable[[SinkFailure], object] = report,
        name: str | None = None,
    ) -> None:
        for sink in sinks:
            checked_sink(sink, "sinks")
        if not callable(on_error):
            msg = f"on_error={on_error!r} is not callable"
            raise TypeError(msg)
        #: Settable while it is stopped.
        self.sinks: tuple[Sink, ...] = sinks
        self.respect_sink_level: bool = bool(respect_sink_level)
        self.on_error: Callable[[SinkFailure], object] = on_error
        self.name: str = type(self).__name__ if name is None else str(name)
        self._batch_size = checked_count(batch_size, "batch_size", "events")
        self._retry = retry
        self._dead_letter = dead_letter
        self._timeout = timeout_of(timeout)
        self._fresh_state()
        for sink in sinks:
            Lane(self, sink, Ledger())  # refuses what a delivery cannot use
        lifecycle.join(self)

    def _fresh_state(self) -> None:
        self._forget_client()
        #: Around start and stop.
        self._life = threading.RLock()
        self._run: Run | None = None
        self._last_reader: threading.Thread | None = None
        self._ledger = Ledger()
        #: By the identity of the sink, which is kept with it; and what delivers to it, while it is started.
        self._accounts: dict[int, tuple[Sink, Ledger]] = {}
        self._bells = Bells()

    # -- what a subclass implements, all in the reader's thread

    def _read(self, number: int, seconds: float) -> Reading | None:
        """Return *number* messages at most, waiting *seconds* for the first; connect if there is no connection.

        Returns:
            What has come, which is empty if the broker has no more for this listener; None if nothing came, and that
            is not sure.
        """
        raise NotImplementedError

    def _acknowledge(self, tokens: list[Any]) -> None:
        """Tell the broker that the messages of *tokens* are settled."""
        raise NotImplementedError

    def _disconnect(self, seconds: float) -> None:
        """Give back what was read and is not acknowledged, and end the connection, within *seconds*."""
        raise NotImplementedError

    def _failure(self, error: Exception) -> DeliveryError:
        """Return what *error*, raised by the client, means. It must hold no event and no secret."""
        raise NotImplementedError

    def _describe(self) -> str:
        """Return what it listens to, without credentials."""
        raise NotImplementedError

    def _look_after(self) -> None:
        """Do what has to be done now and then while messages are under way. Called often."""

    def _bury(self, tokens: list[Any], place: int) -> bool:
        """Hand a message, which is no event, to the broker's own place for such; return True if the broker has it."""
        return False

    # -- what applications call

    @property
    def running(self) -> bool:
        """True between `start` and `stop`."""
        run = self._run
        return run is not None and run.thread is not None and run.thread.is_alive()

    @property
    def connected(self) -> bool:
        """True while it is started and the last attempt to read has reached the broker."""
        run = self._run
        return run is not None and run.connected and self.running

    def start(self) -> Self:
        """Begin to read; return the listener. Does nothing if it has been started.

        Raises:
            RuntimeError: If no thread can be started any more.
        """
        check_threads()
        with self._life:
            if self.running:
                return self
            self.stop()
            run = Run([Lane(self, sink, self._account(sink)) for sink in self.sinks], self._last_reader)
            run.thread = threading.Thread(target=self._listen, args=(run,), name=f"outfall {self.name}", daemon=True)
            # Before the reader runs, which asks for it.
            self._run = run
            try:
                threads.start(run.thread)
            except BaseException:
                run.stopping = run.abandoned = True
                self._run = None
                raise
            self._last_reader = run.thread
        return self

    def stop(self, timeout: float | None = None) -> bool:
        """Read no more, deliver and acknowledge what was read; idempotent.

        Args:
            timeout: The time limit in seconds. Default None: `drain_timeout`, 5 s.

        Returns:
            False if something had to be given up. It is not acknowledged, so the broker gives it to another listener,
            or to the next start; what a sink was given of it comes twice.
        """
        deadline = now() + self._seconds(timeout)
        with self._life:
            run = self._run
            if run is None:
                return True
            run.deadline = min(run.deadline, deadline)
            run.stopping = True
            for lane in run.lanes:
                lane.hasten(deadline)
            run.wake()
            if threading.current_thread() is run.thread:
                return False
            if run.thread is not None:
                # A little more, in which the reader, which has the same deadline, gives up in order.
                released(run.thread.join, max(0.0, deadline - now()) + _GRACE_SECONDS)
            run.abandoned = True
            left = 0
            for lane in run.lanes:
                left += sum(lane.end())
            self._run = None
            self._bells.ring()
        if left or not run.complete:
            waits = sum(ticket.events for ticket in run.tickets)
            msg = f"{self.name} was stopped before its sinks had taken everything; the broker keeps {waits} events"
            self._tell(DeliveryError(msg), 0)
            return False
        return True

    def close(self, timeout: float | None = None) -> bool:
        """Do `stop`."""
        return self.stop(timeout)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until the broker has no more for this listener, and all it gave is settled and acknowledged.

        While it is not started there is nobody to deliver: then True says that nothing it has read waits.

        Args:
            timeout: The time limit in seconds. Default None: `drain_timeout`, 5 s.

        Returns:
            False if that takes too long.
        """
        deadline = now() + self._seconds(timeout)
        run = self._run
        if run is None or not self.running:
            return True
        if threading.current_thread() in (run.thread, *(lane.thread for lane in run.lanes)):
            return False
        wanted = run.rounds + 1

        def done() -> bool:
            return run.empty_round >= wanted or run.stopping

        run.flushing += 1
        try:
            for lane in run.lanes:
                lane.hasten(deadline)
            run.wake()
            while True:
                left = deadline - now()
                if done() or left <= 0:
                    break
                self._bells.wait(left, done)
            return run.empty_round >= wanted
        finally:
            run.flushing -= 1
            if not (run.flushing or run.stopping):
                for lane in run.lanes:
                    lane.urgent_until = 0.0

    def stats(self) -> SinkStats:
        """Return the ledger as it stands: of what was read, with each sink's in ``targets``.

        Delivered here means that all sinks are done with it. What was given back to the broker is not counted. A sink's
        ledger says what became of it there, and has the sink's own among its ``targets``.
        """
        run = self._run
        lanes = {} if run is None else {id(lane.sink): lane for lane in run.lanes}
        targets: list[SinkStats] = []
        for number, (sink, ledger) in list(self._accounts.items()):
            lane = lanes.get(number)
            pending = 0 if lane is None else lane.put - lane.settled
            targets.append(ledger.stats(sink.name, pending=pending, targets=(sink.stats(),)))
        pending = 0 if run is None else sum(ticket.events for ticket in tuple(run.tickets))
        return self._ledger.stats(self.name, pending=pending, targets=tuple(targets))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        sinks = ", ".join(sink.name for sink in self.sinks)
        state = "" if self.running else " stopped"
        return f"<{type(self).__name__} of {self._describe()} to {sinks or 'nothing'}{state}>"

    # -- the reader

    def _listen(self, run: Run) -> None:
        failures = pauses = 0
        if run.before is not None:
            run.before.join()
        with delivering():
            while True:
                if run.stopping:
                    break
                try:
                    self._turn(run)
                except Exception as error:
                    failure = self._meaning(error)
                    run.connected = False
                    self._tell(failure, 0)
                    if isinstance(failure, PausedDeliveryError):
                        pauses += 1
                    else:
                        failures += 1
                    self._wait_after(run, failure, failures, pauses)
                else:
                    failures = pauses = 0
            self._conclude(run)

    def _turn(self, run: Run) -> None:
        """Acknowledge what is settled, and read if there is room; or wait for either."""
        self._settle_with_broker(run)
        under_way = len(run.tickets) + len(run.settled)
        if under_way >= self._READ_AHEAD:
            run.wait(_LOOK_SECONDS)
            return
        run.rounds += 1
        reading = self._read(self._batch_size, 0.0 if under_way or run.flushing else self._READ_SECONDS)
        run.connected = True
        if reading:
            self._hand_on(run, reading)
        elif under_way:
            run.wait(_LOOK_SECONDS)
        elif reading is not None:
            run.empty_round = run.rounds
            self._bells.ring()
        elif run.flushing:
            run.wait(_LOOK_SECONDS)

    def _meaning(self, error: Exception) -> DeliveryError:
        return error if isinstance(error, DeliveryError) else self._failure(error)

    def _under_way(self) -> list[Any]:
        """Return the tokens of the messages that were read and are not acknowledged."""
        run = self._run
        # In this order, since a ticket that is settled moves from the one to the other.
        tickets = () if run is None else (*run.tickets, *run.settled)
        return [token for ticket in tickets for token in ticket.tokens]

    def _settle_with_broker(self, run: Run) -> None:
        self._acknowledge_settled(run)
        self._look_after()

    def _acknowledge_settled(self, run: Run) -> None:
        tokens: list[Any] = []
        settled = tuple(run.settled)
        for ticket in settled:
            tokens += ticket.tokens
        if tokens:
            self._acknowledge(tokens)
            for _ in settled:
                run.settled.popleft()

    def _wait_after(self, run: Run, failure: DeliveryError, failures: int, pauses: int) -> None:
        policy = self._retry or RetryPolicy()
        paused = isinstance(failure, PausedDeliveryError)
        seconds = policy.pause_seconds(pauses) if paused else policy.wait_seconds(failures, random)
        until = now() + seconds
        while True:
            left = until - now()
            if run.stopping or run.flushing or left <= 0:
                break
            run.wait(left)
        if run.flushing:
            run.wait(_LOOK_SECONDS)

    def _conclude(self, run: Run) -> None:
        """Wait for the sinks until the deadline, acknowledge what they have settled, and disconnect."""
        reachable = True
        while True:
            if not run.tickets or run.abandoned or now() >= run.deadline:
                break
            try:
                self._settle_with_broker(run)
            except Exception as error:
                self._tell(self._meaning(error), 0)
                run.wait(min(_RETRY_SECONDS, run.deadline - now()))
            else:
                run.wait(min(_LOOK_SECONDS, run.deadline - now()))
        if not run.abandoned:
            for lane in run.lanes:
                lane.end()
        try:
            self._settle_with_broker(run)
        except Exception as error:
            self._tell(self._meaning(error), 0)
            reachable = False
        with contextlib.suppress(Exception):
            self._disconnect(min(self._timeout, max(_GRACE_SECONDS, run.deadline - now())))
        run.complete = reachable and not run.tickets

    # -- from messages to batches

    def _hand_on(self, run: Run, reading: Reading) -> None:
        ticket = Ticket(reading.tokens)
        run.tickets.append(ticket)
        raws: list[Any] = reading.bodies
        events: list[dict[str, Any]] = []
        as_they_came = not reading.levels and all(map(self._takes_what_came, run.lanes)) and _are_usual(raws)
        if not as_they_came:
            raws, events = self._looked_at(reading)
        ticket.events = len(raws)
        if raws:
            for lane in run.lanes:
                batch = Batch(raws) if as_they_came else self._batch_for(lane, raws, events)
                if len(batch):
                    with self._ledger.lock:
                        ticket.holders += 1
                    lane.add(batch, ticket)
        self._release_ticket(ticket)

    def _takes_what_came(self, lane: Lane) -> bool:
        """Return True if the sink of *lane* would make the same of an event that it was sent as."""
        sink = lane.sink
        return sink.plain and not sink.closed and not (self.respect_sink_level and sink.level)

    def _looked_at(self, reading: Reading) -> tuple[list[Any], list[dict[str, Any]]]:
        """Return what a plain sink is given for each event, None if it has to be rendered; and the events."""
        raws: list[Any] = []
        events: list[dict[str, Any]] = []
        for place, body in enumerate(reading.bodies):
            try:
                event = loads(body)
            except (ValueError, RecursionError):
                event = None
            if type(event) is not dict:
                self._put_aside(reading, place)
                continue
            raw: Any = body
            level = reading.levels.get(place)
            time = None if "timestamp" in event else reading.time_of(place)
            if level is not None or time is not None:
                raw = (body, level, time, False)
            if b"\n" in body or b"\r" in body or not METADATA.isdisjoint(event):
                raw = None
            if raw is not body:
                event = LevelledEvent(event, level, time)
            raws.append(raw)
            events.append(event)
        return raws, events

    def _batch_for(self, lane: Lane, raws: list[Any], events: list[dict[str, Any]]) -> Batch:
        """Return what the sink of *lane* is to be given: the messages as they are, where it would make the same."""
        sink = lane.sink
        respected = self.respect_sink_level
        plain = sink.plain and not sink.closed
        if self._takes_what_came(lane) and None not in raws:
            return Batch(raws)
        items: list[Any] = []
        for raw, event in zip(raws, events, strict=True):
            try:
                if sink.closed:
                    msg = f"{sink.name} is closed"
                    raise SinkClosedError(msg)
                if plain and raw is not None:
                    item = None if respected and level_of(event) < sink.level else raw
                else:
                    item = sink.make_item(event, respect_level=respected)
            except DropEvent:
                item = None
            except Exception as error:
                lane.ledger.drop(reason_of(error))
                told = cleaned(error, event)
                lane.tell(told if isinstance(told, Exception) else DeliveryError(describe(told)), 1)
                continue
            if item is None:
                lane.ledger.filter()
            else:
                items.append(item)
        return Batch(items)

    def _put_aside(self, reading: Reading, place: int) -> None:
        """Give the message at *place*, which is no event, to whoever takes such; else count it as lost."""
        told = PermanentDeliveryError("a message is no JSON object")
        body = reading.bodies[place]
        taken = False
        try:
            if self._dead_letter is not None:
                text = {"event": body.decode("utf-8", "backslashreplace")}
                with delivering(value=False):
                    self._dead_letter.deliver(LevelledEvent(text, reading.levels.get(place), reading.time_of(place)))
                taken = True
            else:
                taken = self._bury(reading.tokens, place)
        except Exception as error:
            self._tell(error, 0, body)
        if taken:
            with self._ledger.lock:
                self._ledger.dead_lettered += 1
        else:
            self._ledger.drop("garbage")
        self._tell(told, 0 if taken else 1)

    def _release_ticket(self, ticket: Ticket) -> None:
        run = self._run
        if run is None:
            return
        with self._ledger.lock:
            ticket.holders -= 1
            if ticket.holders or ticket not in run.tickets:
                return
            # In this order, so that it is in one of them at any moment.
            run.settled.append(ticket)
            run.tickets.remove(ticket)
            self._ledger.delivered += ticket.events
        run.wake()

    # -- counting and telling

    def _account(self, sink: Sink) -> Ledger:
        return self._accounts.setdefault(id(sink), (sink, Ledger()))[1]

    def _seconds(self, timeout: float | None) -> float:
        return lifecycle.patience(self.drain_timeout) if timeout is None else checked_seconds(timeout, "timeout")

    def _tell(self, error: Exception, events: int, item: object = None) -> None:
        told = cleaned(error, item)
        self._ledger.last_error = describe(told)
        self._call_on_error(SinkFailure(self.name, told, events, time_module.time(), 0, self._describe()))

    # -- the process's life, see outfall.sinks.core.lifecycle

    def hasten(self, deadline: float) -> None:
        """Have the threads wait no more, at exit; until *deadline* `drain` waits for them."""
        run = self._run
        if run is not None:
            for lane in run.lanes:
                lane.hasten(deadline)

    def drain(self, timeout: float) -> None:
        """Stop, at exit: what is not acknowledged by then comes again."""
        self.stop(timeout)

    def after_fork(self) -> None:
        """Begin anew in a forked child: not started, and an empty ledger. What was read is the parent's."""
        self._fresh_state()


def _are_usual(bodies: list[bytes]) -> bool:
    """Return True if each of *bodies* is an event that a plain sink may be given as it came, with nothing beside it."""
    # None of the events is kept: hundreds at a time would have the garbage collector look at the whole program. Long
    # integers need not keep their digits, since nothing is made of the event.
    one, two, three, four = METADATA
    try:
        for body in bodies:
            event = orjson.loads(body)
            if type(event) is not dict or "timestamp" not in event:
                return False
            if one in event or two in event or three in event or four in event:
                return False
    except (ValueError, RecursionError):
        return False
    together = b" ".join(bodies)
    return b"\n" not in together and b"\r" not in together


#: How long the reader waits for a sink before it looks around.
_LOOK_SECONDS = 0.05

#: How long it waits at the end before it tries again to acknowledge.
_RETRY_SECONDS = 0.25

#: How long after a deadline what has the same deadline is still waited for.
_GRACE_SECONDS = 0.15

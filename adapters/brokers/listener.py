"""What the listeners of all brokers have in common: `BrokerListener`."""

from __future__ import annotations

import contextlib
import threading
from random import random
from typing import TYPE_CHECKING, Any, ClassVar

import orjson
from structlog import DropEvent

from outfall.adapters.brokers.client import HasClient, timeout_of
from outfall.adapters.brokers.lane import Lane, Run, Ticket
from outfall.sinks.core import lifecycle, threads
from outfall.sinks.core.clock import now
from outfall.sinks.core.item import Batch
from outfall.sinks.core.ledger import Ledger
from outfall.sinks.core.logginglock import released
from outfall.sinks.core.reentrancy import delivering
from outfall.sinks.core.reporting import SinkFailure, cleaned, describe, report
from outfall.sinks.core.threads import check_threads
from outfall.sinks.delivery.delivery import RetryPolicy
from outfall.sinks.delivery.listening import Listening
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

    from typing_extensions import Self

    from outfall.sinks.core.ledger import SinkStats
    from outfall.sinks.core.sink import Sink
    from outfall.sinks.event.units import Span


class Reading:
    """Messages from a broker, as columns: a per-message object would cost time for every event.

    Args:
        tokens: What `_acknowledge` needs once the messages are settled: one for each, or fewer.
        bodies: The bodies of the messages.
        levels: Level numbers from headers, by the message's place. Default None: none has one.
        time_of: Returns the time of the message at a place, in seconds since the epoch, as the broker knows it, or
            None. It is called for messages without a ``timestamp``. Default None: no times are known.
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


class BrokerListener(HasClient, Listening):
    """A listener that takes events from a broker and hands them to *sinks*, in batches.

    A subclass sets its own attributes before it calls this constructor, and implements `_read`, `_acknowledge`,
    `_disconnect`, `_failure` and `_describe`. One thread, the reader, calls all of these. Each sink has a thread that
    delivers to it.

    Args:
        *sinks: Where the events go. Not owned.
        respect_sink_level: Whether a sink's own level applies.
        batch_size: How many messages are read, and given to a sink, at a time.
        retry: When to try again: a batch that a sink could not take, and a read that failed.
        dead_letter: A sink for events that a sink refuses for good, and for messages that are no events. Not owned.
        timeout: Seconds that connecting may take, and each exchange with the broker.
        on_error: Called with a `SinkFailure` for each failure.
        name: The name of the listener in reports and stats.

    Raises:
        ValueError: If a sink keeps events in memory, as a `BackgroundSink` does: they would be acknowledged there.

    A batch is acknowledged once each sink has settled all of it. At most two batches are in flight: the broker keeps
    the rest for other processes.
    """

    #: How many batches may be in flight.
    _READ_AHEAD: ClassVar[int] = 2

    #: How many seconds a read may wait for a message while nothing else is to be done.
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
        self._configure(sinks, respect_sink_level, batch_size, retry, dead_letter, on_error, name)
        self._timeout = timeout_of(timeout)
        self._fresh_state()
        for sink in sinks:
            if sink.keeps_in_memory:
                msg = (
                    f"sinks: {sink!r} keeps events in memory, where a kill would lose what the broker has been told is "
                    f"delivered: give the sink that delivers (sink.target, or open_sink(url, background=False)), or a "
                    f"collector's function the directory of a spool, as in loki_sink(url, labels, spool=directory)"
                )
                raise ValueError(msg)
            Lane(self, sink, Ledger())  # raises for a sink that nothing can be delivered to
        lifecycle.join(self)

    def _fresh_state(self) -> None:
        super()._fresh_state()
        self._run: Run | None = None
        self._forget_client()
        self._last_reader: threading.Thread | None = None

    # -- implemented by subclasses; called by the reader

    def _read(self, number: int, seconds: float) -> Reading | None:
        """Return at most *number* messages; wait at most *seconds* for the first. Connect if there is no connection.

        Returns:
            The messages; an empty reading if the broker has no more for this listener; None if nothing came and it is
            unknown whether there is more.
        """
        raise NotImplementedError

    def _acknowledge(self, tokens: list[Any]) -> None:
        """Acknowledge the messages of *tokens* to the broker."""
        raise NotImplementedError

    def _disconnect(self, seconds: float) -> None:
        """Return unacknowledged messages to the broker and close the connection, within *seconds*."""
        raise NotImplementedError

    def _failure(self, error: Exception) -> DeliveryError:
        """Return the delivery error for *error*, raised by the client. It must hold no event and no secret."""
        raise NotImplementedError

    def _where(self) -> str:
        return self._describe()

    def _look_after(self) -> None:
        """Do periodic work, such as heartbeats, while messages are in flight. Called often."""

    def _bury(self, tokens: list[Any], place: int) -> bool:
        """Give a message that is no event to the broker's dead letters; return True if the broker has taken it."""
        return False

    # -- called by applications

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
        """Start reading; return the listener. Does nothing if it was started before.

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
            # Set before the reader runs, which reads it.
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
        """Stop reading; deliver and acknowledge what was read. Idempotent.

        Args:
            timeout: The time limit in seconds. Default None: `drain_timeout`, 5 s.

        Returns:
            False if some messages were given up. They are not acknowledged, so the broker gives them to another
            listener, or to the next start. What sinks had already taken comes twice.
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
                # The reader has the same deadline. The grace lets it give up in order.
                released(run.thread.join, max(0.0, deadline - now()) + _GRACE_SECONDS)
            run.abandoned = True
            left = 0
            for lane in run.lanes:
                left += lane.end().events
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
        """Wait until the broker has no more for this listener, and all that was read is settled and acknowledged.

        While the listener is not started, return True if nothing it has read waits.

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
        """Return the counts of what was read; ``targets`` has those of each sink.

        Delivered here means that all sinks have settled the event. Messages that went back to the broker are not
        counted. A sink's counts say what this listener delivered to it; its own ``targets`` holds the sink's stats.
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
        """Acknowledge what is settled, then read if there is room; else wait until something is settled."""
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
        """Return the tokens of messages that were read and are not acknowledged."""
        run = self._run
        # In this order: a ticket that is settled moves from the first to the second.
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
        """Return True if the sink of *lane* would render an event to the same bytes that the broker holds."""
        sink = lane.sink
        return sink.plain and not sink.closed and not (self.respect_sink_level and sink.level)

    def _looked_at(self, reading: Reading) -> tuple[list[Any], list[dict[str, Any]]]:
        """Return the item of each event for a plain sink, None if the event has to be rendered; and the events."""
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
        """Return the batch for the sink of *lane*: messages stay unchanged if the sink would render the same bytes."""
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
        """Give the message at *place*, which is no event, to the dead letters; count it as lost if there are none."""
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
            # In this order, so that it is in one of the two at any moment.
            run.settled.append(ticket)
            run.tickets.remove(ticket)
            self._ledger.delivered += ticket.events
        run.wake()

    # -- exit and fork; see outfall.sinks.core.lifecycle

    def drain(self, timeout: float) -> None:
        """Stop, at exit. Messages that are not acknowledged by then come again."""
        self.stop(timeout)

    def after_fork(self) -> None:
        """Reset the listener in a forked child: not started, with empty counts. What was read belongs to the parent."""
        self._fresh_state()


def _are_usual(bodies: list[bytes]) -> bool:
    """Return True if each of *bodies* can go to a plain sink unchanged: a usual event, without metadata."""
    # Keep none of the events: hundreds of new objects would start a garbage collection of the whole program. Long
    # integers may lose digits here, since the event is only looked at.
    parse = orjson.loads
    one, two, three, four = METADATA
    try:
        for body in bodies:
            event = parse(body)
            _ = event["timestamp"]
            if one in event or two in event or three in event or four in event:
                return False
    except (ValueError, RecursionError, KeyError, TypeError):  # the last two: no timestamp, or not an object
        return False
    together = b" ".join(bodies)
    return b"\n" not in together and b"\r" not in together


#: How many seconds the reader waits for a sink before it checks again.
_LOOK_SECONDS = 0.05

#: How many seconds it waits at the end before it retries an acknowledgement.
_RETRY_SECONDS = 0.25

#: How many seconds after its deadline a thread is still waited for.
_GRACE_SECONDS = 0.15

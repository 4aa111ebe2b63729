"""Events out of Kafka: `KafkaListener`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from outfall.adapters.brokers.client import checked_name
from outfall.adapters.brokers.kafkaclient import (
    Said,
    checked_config,
    failure_of,
    immortalize,
    joined,
    made,
)
from outfall.adapters.brokers.listener import BrokerListener, Reading
from outfall.sinks.core.clock import now
from outfall.sinks.core.reporting import SinkFailure, report
from outfall.sinks.event.levels import level_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from outfall.sinks.core.sink import Sink
    from outfall.sinks.delivery.delivery import RetryPolicy
    from outfall.sinks.errors import (
        DeliveryError,
    )
    from outfall.sinks.event.units import Span


class KafkaListener(BrokerListener):
    """Take events from a topic of Kafka and hand them to *sinks*, in batches.

    The listeners of a group, in any number of processes and machines, share the topic's partitions.

    Args:
        servers: Where brokers listen: ``"host1:9092,host2:9092"``, or a sequence of such.
        topic: The topic.
        *sinks: Where the events go, by ``emit_batch``. They are not owned: close them after the listener.
        group: The consumer group. A new group starts with the oldest message. Default ``"outfall"``.
        config: More of librdkafka's configuration, as for `KafkaSink`. Default none.
        respect_sink_level: Whether a sink's level applies. Default False: the level was applied where the event was
            logged.
        batch_size: How many messages are given to a sink at a time. Default 500.
        retry: When to try again: a batch that a sink could not take, and brokers that cannot be reached. Default
            ``RetryPolicy()``: without end.
        dead_letter: A sink for events that a sink refuses for good, and for messages that are no events, as text. Not
            owned. Default None: they are counted as ``dropped``. A `KafkaSink` puts them into another topic.
        timeout: Seconds, a timedelta or text such as ``"2s"``, that a request to a broker may take. When the group
            takes a partition away, the listener keeps it that long at most, to deliver what it has read. Default 10.
        on_error: Called with a `SinkFailure` for each failure. Default `report`, which writes to stderr.
        name: The name of the listener in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If librdkafka refuses *config*, if *config* has a setting that belongs to *servers*, *group* or this
            class, if a sink only keeps events in memory, or if another argument is out of range.
        TypeError: If one of *sinks* or *dead_letter* is no sink, or *on_error* is not callable.
        MissingDependencyError: If confluent-kafka is not installed; the extra ``kafka`` brings it.

    The offset of a message is committed once each sink has settled that message and all before it in the partition. If
    the process dies, or a partition is taken away, the next owner gets all messages that are not committed: nothing is
    lost, and what sinks had already taken comes twice. While sinks are busy the listener pauses reading but keeps
    polling, so that a slow sink does not cost it its partitions.

    Use it as a context manager, or call `start` and `stop`; both may be called again. Safe from any thread. In a forked
    child the listener is not started. At exit it delivers what it has read, and stops.

    Source: https://docs.confluent.io/platform/current/clients/librdkafka/html/md_INTRODUCTION.html.
    """

    def __init__(
        self,
        servers: str | Sequence[str],
        topic: str,
        *sinks: Sink,
        group: str = "outfall",
        config: Mapping[str, Any] | None = None,
        respect_sink_level: bool = False,
        batch_size: int = 500,
        retry: RetryPolicy | None = None,
        dead_letter: Sink | None = None,
        timeout: Span = 10.0,
        on_error: Callable[[SinkFailure], object] = report,
        name: str | None = None,
    ) -> None:
        self._topic = checked_name(topic, "topic")
        self._servers = joined(servers)
        self._group = checked_name(group, "group")
        self._said = Said()
        super().__init__(
            *sinks,
            respect_sink_level=respect_sink_level,
            batch_size=batch_size,
            retry=retry,
            dead_letter=dead_letter,
            timeout=timeout,
            on_error=on_error,
            name=name,
        )
        self._settings: dict[str, Any] = {
            "auto.offset.reset": "earliest",
            "socket.timeout.ms": max(10, int(self._timeout * 1000)),
            **checked_config(config, "group.id", "enable.auto.commit", "enable.auto.offset.store"),
            "bootstrap.servers": self._servers,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "error_cb": self._said.note,
        }
        # Create the client here, so that a wrong configuration raises here.
        self._client = made("Consumer", self._settings)

    def _fresh_state(self) -> None:
        super()._fresh_state()
        #: Whether it has subscribed, and whether the group has assigned its partitions.
        self._subscribed = self._joined = False
        self._partitions: dict[int, _Partition] = {}
        #: Messages that polls returned while reading was paused.
        self._came: list[Any] = []
        self._paused = False
        self._polled = now()

    def _keep(self, client: Any) -> None:
        immortalize(client)

    @property
    def connected(self) -> bool:
        """True while the group has assigned partitions and brokers can be reached."""
        return self._joined and super().connected

    # -- called by the reader; see BrokerListener

    def _read(self, number: int, seconds: float) -> Reading | None:
        consumer = self._opened()
        if self._paused:
            consumer.resume(consumer.assignment())
            self._paused = False
        came = self._came
        if not came and (first := consumer.poll(seconds)) is not None:
            came.append(first)
        if came and len(came) < number:
            came += consumer.consume(number - len(came), 0)
        self._polled = now()
        taken = came[:number]
        del came[:number]
        reading = self._reading_of(taken)
        if reading:
            self._said.clear()
            return reading
        if self._said.down:
            failure = self._said.failure()
            self._said.clear()
            raise failure
        return None if seconds else self._end_of(consumer)

    def _opened(self) -> Any:
        if self._client is None:
            self._client = made("Consumer", self._settings)
        if not self._subscribed:
            self._said.clear()
            self._client.subscribe(
                [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            self._subscribed = True
        return self._client

    def _reading_of(self, messages: list[Any]) -> Reading:
        """Return a reading of *messages*. If all of them are errors, raise the first; else report it."""
        partitions = self._partitions
        errors = [error for message in messages if (error := message.error()) is not None]
        if errors:
            messages = [message for message in messages if message.error() is None]
            failure = failure_of(errors[0])
            if not messages:
                raise failure
            self._tell(failure, 0)
        numbers = [message.partition() for message in messages]
        if not partitions.keys() >= set(numbers):  # some were taken away meanwhile
            messages = [message for message in messages if message.partition() in partitions]
            numbers = [message.partition() for message in messages]
        tokens: list[tuple[_Partition, int]] = []
        for number in set(numbers):
            first, last = numbers.index(number), -1 - numbers[::-1].index(number)
            tokens.append(partitions[number].hold(messages[first].offset(), messages[last].offset()))
        levels = {place: _level_in(headers) for place, each in enumerate(messages) if (headers := each.headers())}

        def time_of(place: int) -> float | None:
            kind, milliseconds = messages[place].timestamp()
            return milliseconds / 1000 if kind else None

        return Reading(tokens, [message.value() or b"" for message in messages], levels, time_of)

    def _end_of(self, consumer: Any) -> Reading | None:
        """Return an empty reading if the partitions of this listener hold no more messages."""
        if not self._joined:
            return None
        new = [_place(self._topic, number) for number, each in self._partitions.items() if each.next < 0]
        if new:
            for place in consumer.committed(new, timeout=self._timeout):
                self._partitions[place.partition].next = place.offset
        ends = self._offsets(consumer, _END)
        if any(each.next < ends[number] for number, each in self._partitions.items()):
            # The broker has deleted the messages before the first offset.
            begins = self._offsets(consumer, _BEGINNING)
            if any(max(each.next, begins[number]) < ends[number] for number, each in self._partitions.items()):
                return None
        return None if self._came else Reading([], [])

    def _offsets(self, consumer: Any, which: int) -> dict[int, int]:
        """Return the first or last offset of each partition, as *which* says, with one request to each broker."""
        places = [_place(self._topic, number, which) for number in self._partitions]
        if not places:  # there are more listeners than partitions
            return {}
        found = consumer.offsets_for_times(places, timeout=self._timeout)
        for place in found:
            if place.error is not None:
                raise failure_of(place.error)
        return {place.partition: place.offset for place in found}

    def _acknowledge(self, tokens: list[tuple[_Partition, int]]) -> None:
        touched: set[_Partition] = set()
        for partition, first in tokens:
            if self._partitions.get(partition.number) is partition:  # else the next owner gets the messages
                partition.held.pop(first, None)
                touched.add(partition)
        consumer = self._client
        if touched and consumer is not None:
            places = [_place(self._topic, each.number, each.settled()) for each in touched]
            try:
                consumer.commit(offsets=places, asynchronous=False)
            except Exception as error:
                if getattr(error.args[0] if error.args else None, "name", str)() not in _TAKEN_AWAY:
                    raise

    def _look_after(self) -> None:
        # The group removes a consumer that does not poll.
        consumer = self._client
        if consumer is None or not self._subscribed or now() - self._polled < _POLL_SECONDS:
            return
        if not self._paused:
            consumer.pause(consumer.assignment())
            self._paused = True
        message = consumer.poll(0)
        if message is not None and message.error() is None:
            self._came.append(message)
        self._polled = now()

    def _disconnect(self, seconds: float) -> None:
        consumer, self._client = self._client, None
        self._subscribed = self._joined = self._paused = False
        self._came.clear()
        if consumer is not None:
            consumer.close()
        self._partitions.clear()

    # -- callbacks of the group, called within a poll

    def _on_assign(self, consumer: Any, places: list[Any]) -> None:
        self._joined = True
        # If a partition was paused when it was taken away, librdkafka returns it paused.
        consumer.resume(places)
        for place in places:
            self._partitions[place.partition] = _Partition(place.partition)

    def _on_revoke(self, consumer: Any, places: list[Any]) -> None:
        run = self._run
        if run is not None:
            deadline = now() + self._timeout
            with contextlib.suppress(Exception):
                while True:
                    self._acknowledge_settled(run)
                    if not (run.tickets or run.settled) or run.stopping or now() >= deadline:
                        break
                    run.wait(_LOOK_SECONDS)
        self._on_lost(consumer, places)

    def _on_lost(self, _consumer: Any, places: list[Any]) -> None:
        # Until the next assignment it is unknown whether there are more messages for this listener.
        self._joined = False
        for place in places:
            self._partitions.pop(place.partition, None)
        # A partition that comes back starts at the first offset that is not committed.
        self._came[:] = [message for message in self._came if message.partition() in self._partitions]

    def _failure(self, error: Exception) -> DeliveryError:
        return failure_of(error)

    def _describe(self) -> str:
        return f"{self._topic!r} of {self._group!r} at {self._servers}"


class _Partition:
    """A partition while it is assigned to this listener."""

    __slots__ = ("held", "next", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        #: The first offset of each unsettled read, in order; and the offset after the last message read, -1 before the
        #: first read.
        self.held: dict[int, None] = {}
        self.next = -1

    def hold(self, first: int, last: int) -> tuple[_Partition, int]:
        """Record that the messages from offset *first* to *last* were read; return the token of this read."""
        self.held[first] = None
        self.next = last + 1
        return self, first

    def settled(self) -> int:
        """Return the first offset that is not settled."""
        return next(iter(self.held), self.next)


def _level_in(headers: list[tuple[str, Any]]) -> float | None:
    for name, value in headers:
        if name == "level" and isinstance(value, bytes):
            return level_of({"level": value.decode("utf-8", "replace")})
    return None


def _place(topic: str, partition: int, offset: int = -1001) -> Any:
    from confluent_kafka import TopicPartition

    return TopicPartition(topic, partition, offset)


#: Errors of a commit for partitions that the group has given to another consumer.
_TAKEN_AWAY = frozenset({"ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID", "REBALANCE_IN_PROGRESS", "_NO_OFFSET", "_STATE"})

#: The offsets that ask for the end of a partition, and for its first message.
_END, _BEGINNING = -1, -2

#: How many seconds a wait may take before it checks again.
_LOOK_SECONDS = 0.2
#: After so many seconds without a read, the listener polls, so that the group keeps it.
_POLL_SECONDS = 1.0

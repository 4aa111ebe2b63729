"""Events to and from Kafka: `KafkaSink` and `KafkaListener`."""

from __future__ import annotations

import contextlib
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from outfall.adapters.brokers.base import BrokerListener, BrokerSink, Message, lacking
from outfall.sinks.core.clock import now
from outfall.sinks.core.item import Batch, BatchResult, Encoded
from outfall.sinks.core.reporting import SinkFailure, report
from outfall.sinks.errors import (
    DeliveryError,
    MissingDependencyError,
    OversizeDeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    TemporaryDeliveryError,
)
from outfall.sinks.event.levels import NOTSET, Level, level_name, level_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from outfall.sinks.core.sink import OnError, Sink
    from outfall.sinks.delivery.delivery import RetryPolicy
    from outfall.sinks.event.units import Span


class KafkaSink(BrokerSink):
    """Produce events to a topic of Kafka, each the JSON of one event.

    Put a background sink or a spool in front: it makes batches, retries, and lets nobody wait. Alone, each event is
    produced, and its delivery awaited, in the thread that logs.

    Args:
        servers: Where brokers listen: ``"host1:9092,host2:9092"``, or a sequence of such.
        topic: The topic. It is not made here, unless the brokers make topics by themselves.
        config: More of librdkafka's configuration, for example
            ``{"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.username": …, "sasl.password": …}``.
            Default none.
        timeout: Seconds, a timedelta or text such as ``"2s"``, that the delivery of a batch may take. Default 10.
        level: Events below it are left out: a name in any case, or a number. Default NOTSET, which takes all.
        processors: Processors of structlog, applied in order to a copy of each event. Default none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: What to call the sink in reports and stats. Default the name of its class.

    Raises:
        ValueError: If *config* is refused by librdkafka, or has what belongs to *servers* or to this class; if
            *servers* or *topic* is empty; if *timeout* is no span of time.
        MissingDependencyError: If confluent-kafka is not installed; the extra ``kafka`` brings it.

    Delivered means that all replicas in sync have the message: the producer is idempotent, with ``acks=all``, so that
    its own retries bring nothing twice, and it tries for as long as it lives. A batch that was not delivered in time
    stays with it; the retry of the background sink or the spool waits on for the same messages, and sends none of them
    again. A new process knows nothing of them: what a spool had not seen confirmed comes twice then.

    A topic that does not exist, a login or a certificate that is refused, and missing rights are a pause
    (`PausedDeliveryError`). An event that is too large is refused for good, the others of its batch are taken. Order
    holds within a partition. Where the JSON has no level there is a header ``level``, the name; where it has no
    ``timestamp``, the message's own timestamp tells the event's time.

    What librdkafka logs goes to the logger ``librdkafka``, and nothing to stderr. Safe from any thread. A forked child
    has a producer of its own. ``flush`` and ``close`` keep their timeout whatever the brokers do.

    Source: https://docs.confluent.io/platform/current/clients/librdkafka/html/md_INTRODUCTION.html.
    """

    def __init__(
        self,
        servers: str | Sequence[str],
        topic: str,
        *,
        config: Mapping[str, Any] | None = None,
        timeout: Span = 10.0,
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        self._topic = _checked_topic(topic)
        self._servers = _joined(servers)
        self._config = _checked_config(config)
        super().__init__(timeout=timeout, level=level, processors=processors, on_error=on_error, name=name)

    def _fresh_state(self) -> None:
        if getattr(self, "_client", None) is not None:
            _immortalize(self._client)
        super()._fresh_state()

    def _connect(self) -> _Producer:
        return _Producer(self._servers, self._topic, self._config)

    def _send(self, client: _Producer, batch: Sequence[Encoded]) -> BatchResult | None:
        return client.produce(batch, self._timeout)

    def _disconnect(self, client: _Producer, seconds: float) -> None:
        client.close()

    def _break_off(self, client: _Producer) -> None:
        client.aborted = True

    def _failure(self, error: Exception) -> DeliveryError:
        return _failure_of(error)

    def _describe(self) -> str:
        return f"to {self._topic!r} at {self._servers}"


class _Flight:
    """The messages that one attempt has produced."""

    __slots__ = ("outcomes", "waiting")

    def __init__(self) -> None:
        #: What became of each: None while it waits, True if it was delivered, or the error.
        self.outcomes: list[Any] = []
        self.waiting = 0

    def settle(self, place: int, error: Any, _message: Any = None) -> None:
        """Take down what became of a message; librdkafka's delivery report."""
        self.outcomes[place] = True if error is None else error
        self.waiting -= 1


class _Producer:
    """Produces batches, and remembers what has not come to an end."""

    def __init__(self, servers: str, topic: str, config: dict[str, Any]) -> None:
        self._topic = topic
        self._settings = {
            "acks": "all",
            "enable.idempotence": True,
            # The retry waits on for the same messages: it would come to an end with nobody to know of it.
            "message.timeout.ms": 0,
            **config,
            "bootstrap.servers": servers,
            "error_cb": self._on_error,
        }
        self._log = _Said()
        self._producer: Any = None
        #: The messages of a batch that was not delivered in time, by the keys of their items.
        self._known: dict[str, tuple[_Flight, int]] = {}
        #: True once nobody waits any more.
        self.aborted = False
        self._open()

    def _open(self) -> Any:
        producer = self._producer
        if producer is None:
            producer = self._producer = _made("Producer", self._settings)
        return producer

    def _on_error(self, error: Any) -> None:
        self._log.note(error)

    def produce(self, batch: Sequence[Encoded], seconds: float) -> BatchResult | None:
        """Produce *batch*, but for what is under way already, and wait *seconds* for all of it; see ``emit_batch``."""
        # In a frame of its own, so that no traceback keeps the producer alive.
        return self._result(self._outcomes(batch, now() + seconds))

    def _outcomes(self, batch: Sequence[Encoded], deadline: float) -> list[Any]:
        producer = self._open()
        flight = _Flight()
        spots = self._recognized(batch, flight)
        try:
            self._produce(producer, batch, flight, spots, deadline)
            while any(of.waiting for of in ({of for of, _ in spots} if spots else (flight,))) and not self.aborted:
                left = deadline - now()
                if left <= 0:
                    break
                producer.flush(min(left, _LOOK_SECONDS))
        finally:
            # An interrupt may have come before all were produced.
            if spots is None and flight.waiting:
                spots = [(flight, place) for place in range(len(flight.outcomes))]
            if spots is not None and any(of.waiting for of in {of for of, _ in spots}):
                self._remember(producer, batch, spots)
        return flight.outcomes if spots is None else [of.outcomes[place] for of, place in spots]

    def _recognized(self, batch: Sequence[Encoded], flight: _Flight) -> list[tuple[_Flight, int]] | None:
        """Return where each item of *batch* is under way, ``(flight, -1)`` for others; None if none is."""
        keys = batch.item_keys if self._known and isinstance(batch, Batch) else []
        if not keys or keys[0] not in self._known:
            self._known = {}
            return None
        return [self._known.get(key, (flight, -1)) for key in keys]

    def _remember(self, producer: Any, batch: Sequence[Encoded], spots: list[tuple[_Flight, int]]) -> None:
        """Note what is under way, for the retry; what nobody will retry is not to be sent any more."""
        if isinstance(batch, Batch):
            self._known |= {key: spot for key, spot in zip(batch.item_keys, spots, strict=False) if spot[1] >= 0}
        else:
            producer.purge(in_flight=False, blocking=False)

    def _produce(
        self,
        producer: Any,
        batch: Sequence[Encoded],
        flight: _Flight,
        spots: list[tuple[_Flight, int]] | None,
        deadline: float,
    ) -> None:
        produce, topic, settle = producer.produce, self._topic, flight.settle
        for place, (body, level, time) in enumerate(lacking(batch)):
            if spots is not None:
                if spots[place][1] >= 0:
                    continue
                spots[place] = (flight, len(flight.outcomes))
            arguments = (topic, body, None, -1, partial(settle, len(flight.outcomes)))
            flight.outcomes.append(None)
            flight.waiting += 1
            try:
                if level is None and time is None:
                    produce(*arguments)
                else:
                    self._produce_with(produce, arguments, level, time)
            except BufferError as error:
                if not self._produce_when_there_is_room(producer, arguments, level, time, deadline):
                    settle(len(flight.outcomes) - 1, error)
            except Exception as error:
                settle(len(flight.outcomes) - 1, error.args[0] if error.args else error)

    @staticmethod
    def _produce_with(produce: Any, arguments: tuple[Any, ...], level: float | None, time: float | None) -> None:
        headers = None if level is None else [("level", level_name(level))]
        # 0 is now, to librdkafka.
        produce(*arguments, headers=headers, timestamp=0 if time is None else int(time * 1000))

    def _produce_when_there_is_room(
        self, producer: Any, arguments: tuple[Any, ...], level: float | None, time: float | None, deadline: float
    ) -> bool:
        """Produce a message for which the producer's own queue had no room; return False if there comes none."""
        while not self.aborted and (left := deadline - now()) > 0:
            producer.poll(min(left, _LOOK_SECONDS))
            with contextlib.suppress(BufferError):
                self._produce_with(producer.produce, arguments, level, time)
                return True
        return False

    def _result(self, outcomes: list[Any]) -> BatchResult | None:
        if outcomes.count(True) == len(outcomes):
            self._log.clear()
            return None
        rejected: dict[int, str] = {}
        retry: list[int] = []
        failure: DeliveryError | None = None
        for place, outcome in enumerate(outcomes):
            if outcome is True:
                continue
            means = self._log.failure() if outcome is None else _failure_of(outcome)
            if isinstance(means, PermanentDeliveryError):
                rejected[place] = means.reason
            else:
                retry.append(place)
            if failure is None or isinstance(means, PausedDeliveryError):
                failure = means
            if outcome is not None and getattr(outcome, "fatal", bool)():
                self.close()  # a producer that has come to this takes nothing any more
        if failure is not None and len(retry) == len(outcomes):
            raise failure
        return BatchResult(retry, rejected)

    def close(self) -> None:
        """Let go of the producer, and of what it has under way."""
        producer, self._producer = self._producer, None
        self._known = {}
        if producer is not None:
            with contextlib.suppress(Exception):
                producer.purge()
                producer.poll(0)


class _Said:
    """The last that librdkafka has told of a connection."""

    #: It says so after what is the matter, each time.
    _ECHO: ClassVar[str] = "_ALL_BROKERS_DOWN"

    def __init__(self) -> None:
        self._error: Any = None
        #: True once no broker is to be reached.
        self.down = False

    def note(self, error: Any) -> None:
        """Remember *error*."""
        if error.name() == self._ECHO:
            self.down = True
        else:
            self._error = error

    def clear(self) -> None:
        """Forget it: something was delivered."""
        self._error = None
        self.down = False

    def failure(self) -> DeliveryError:
        """Return what to say of a message that waits."""
        if self._error is None:
            return TemporaryDeliveryError("no answer from Kafka in time")
        return _failure_of(self._error)


class KafkaListener(BrokerListener):
    """Take events from a topic of Kafka and hand them to *sinks*, in batches.

    The listeners of a group, in any number of processes and machines, share the topic's partitions.

    Args:
        servers: Where brokers listen: ``"host1:9092,host2:9092"``, or a sequence of such.
        topic: The topic.
        *sinks: Where the events go, by ``emit_batch``. They are not owned: close them after the listener.
        group: The consumer group. A group that is new begins with the oldest message. Default ``"outfall"``.
        config: More of librdkafka's configuration, as for `KafkaSink`. Default none.
        respect_sink_level: Whether a sink's level applies. Default False: it has been applied where the event was
            logged.
        batch_size: How many messages are given to a sink at a time. Default 500.
        retry: When a batch that a sink could not take is tried again, and when brokers that are away. Default
            ``RetryPolicy()``: for as long as it takes.
        dead_letter: A sink that gets the events that a sink refuses for good, and messages that are no events, as text.
            Not owned. Default None: they are counted as ``dropped``. A `KafkaSink` puts them into another topic.
        timeout: Seconds, a timedelta or text such as ``"2s"``, that a request to a broker may take, and for which a
            partition that is taken away is kept until what was read of it is delivered. Default 10.
        on_error: Called with a `SinkFailure` for each failure. Default `report`, which writes to stderr.
        name: What to call the listener in reports and stats. Default the name of its class.

    Raises:
        ValueError: If *config* is refused by librdkafka, or has what belongs to *servers*, *group* or this class; if
            another argument is out of range.
        TypeError: If one of *sinks* or *dead_letter* is no sink, or *on_error* is not callable.
        MissingDependencyError: If confluent-kafka is not installed; the extra ``kafka`` brings it.

    The offset of a message is committed once each sink has settled it and all before it in its partition. What is not
    committed when the process dies, or when a partition is taken away, its next owner is given: nothing is lost, and
    what sinks had taken of it comes twice. While sinks are busy nothing is read, but the group hears of this listener,
    so that no slow sink costs it its partitions.

    Use it as a context manager, or call `start` and `stop`; both may be called again. Safe from any thread. A forked
    child has a listener that is not started. At exit it stops, having delivered what it has read.

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
        self._topic = _checked_topic(topic)
        self._servers = _joined(servers)
        if not isinstance(group, str) or not group:
            msg = f"group={group!r} is not the name of a group"
            raise ValueError(msg)
        self._group = group
        self._said = _Said()
        self._consumer: Any = None
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
            **_checked_config(config, "group.id", "enable.auto.commit", "enable.auto.offset.store"),
            "bootstrap.servers": self._servers,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "error_cb": self._said.note,
        }
        # Made here, so that what it refuses is found out here.
        self._consumer = _made("Consumer", self._settings)

    def _fresh_state(self) -> None:
        super()._fresh_state()
        if self._consumer is not None:
            _immortalize(self._consumer)
            self._consumer = None
        #: Whether it has subscribed, and whether the group has told which partitions it has.
        self._subscribed = self._joined = False
        self._partitions: dict[int, _Partition] = {}
        #: Messages that came while it did not want to read.
        self._came: deque[Any] = deque()
        self._paused = False
        self._polled = now()

    @property
    def connected(self) -> bool:
        """True while its group has given it its share of the partitions, and brokers can be reached."""
        return self._joined and super().connected

    # -- the reader's, see BrokerListener

    def _read(self, number: int, seconds: float) -> list[Message] | None:
        consumer = self._opened()
        if self._paused:
            consumer.resume(consumer.assignment())
            self._paused = False
        came = self._came
        if not came:
            first = consumer.poll(seconds)
            if first is not None:
                came.append(first)
        if came and len(came) < number:
            came.extend(consumer.consume(number - len(came), 0))
        self._polled = now()
        messages: list[Message] = []
        while came and len(messages) < number:
            message = self._message(came.popleft())
            if message is not None:
                messages.append(message)
        if messages:
            self._said.clear()
            return messages
        if self._said.down:
            failure = self._said.failure()
            self._said.clear()
            raise failure
        return None if seconds else self._end_of(consumer)

    def _opened(self) -> Any:
        if self._consumer is None:
            self._consumer = _made("Consumer", self._settings)
        if not self._subscribed:
            self._said.clear()
            self._consumer.subscribe(
                [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            self._subscribed = True
        return self._consumer

    def _message(self, raw: Any) -> Message | None:
        error = raw.error()
        if error is not None:
            raise _failure_of(error)
        partition = self._partitions.get(raw.partition())
        if partition is None:  # taken away meanwhile
            return None
        offset = raw.offset()
        partition.held[offset] = None
        partition.next = offset + 1
        kind, milliseconds = raw.timestamp()
        headers = raw.headers()
        return Message(
            (partition, offset),
            raw.value() or b"",
            _level_in(headers) if headers else None,
            milliseconds / 1000 if kind else None,
        )

    def _end_of(self, consumer: Any) -> list[Message] | None:
        """Return an empty list if there is nothing more in the partitions of this listener."""
        if not self._joined:
            return None
        for number, partition in list(self._partitions.items()):
            place = _place(self._topic, number)
            begin, end = consumer.get_watermark_offsets(place, timeout=self._timeout)
            if begin < end and partition.next < 0:
                partition.next = consumer.committed([place], timeout=self._timeout)[0].offset
            if begin < end and partition.next < end:
                return None
        return None if self._came else []

    def _acknowledge(self, tokens: list[Any]) -> None:
        touched: set[_Partition] = set()
        partition: _Partition
        for partition, offset in tokens:
            if self._partitions.get(partition.number) is partition:  # else its next owner is given them
                partition.held.pop(offset, None)
                touched.add(partition)
        consumer = self._consumer
        if touched and consumer is not None:
            places = [_place(self._topic, each.number, next(iter(each.held), each.next)) for each in touched]
            try:
                consumer.commit(offsets=places, asynchronous=False)
            except Exception as error:
                if getattr(error.args[0] if error.args else None, "name", str)() not in _TAKEN_AWAY:
                    raise

    def _look_after(self) -> None:
        # Who does not poll is thrown out of the group.
        consumer = self._consumer
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
        consumer, self._consumer = self._consumer, None
        self._subscribed = self._joined = self._paused = False
        self._came.clear()
        if consumer is not None:
            consumer.close()
        self._partitions.clear()

    # -- what the group tells, within a poll

    def _on_assign(self, consumer: Any, places: list[Any]) -> None:
        self._joined = True
        # librdkafka leaves a partition paused that was taken away while it was, also when it comes back.
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
                    if not run.tickets or run.stopping or now() >= deadline:
                        break
                    run.wait(_LOOK_SECONDS)
        self._on_lost(consumer, places)

    def _on_lost(self, _consumer: Any, places: list[Any]) -> None:
        for place in places:
            self._partitions.pop(place.partition, None)

    def _failure(self, error: Exception) -> DeliveryError:
        return _failure_of(error)

    def _describe(self) -> str:
        return f"{self._topic!r} of {self._group!r} at {self._servers}"


class _Partition:
    """A partition for as long as this listener has it."""

    __slots__ = ("held", "next", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        #: Offsets that are not settled, in order, and the one after the last that came; -1 before there was one.
        self.held: dict[int, None] = {}
        self.next = -1


def _level_in(headers: list[tuple[str, Any]]) -> float | None:
    for name, value in headers:
        if name == "level" and isinstance(value, bytes):
            return level_of({"level": value.decode("utf-8", "replace")})
    return None


def _place(topic: str, partition: int, offset: int = -1001) -> Any:
    from confluent_kafka import TopicPartition

    return TopicPartition(topic, partition, offset)


def _made(kind: str, settings: dict[str, Any]) -> Any:
    """Return a client of confluent-kafka, *kind* a name in it."""
    try:
        import confluent_kafka
    except ImportError:
        raise MissingDependencyError(package="confluent_kafka", extra="kafka") from None
    given = dict(settings)
    if "logger" not in given:
        import logging

        given["logger"] = logger = logging.getLogger("librdkafka")
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
    try:
        return getattr(confluent_kafka, kind)(given)
    except confluent_kafka.KafkaException as error:
        told = error.args[0]
        said = told.str()
    # It names the property, and may hold the value.
    for name, value in settings.items():
        if isinstance(value, str) and value and any(part in name for part in _SECRETS):
            said = said.replace(value, "…")
    msg = f"config: {said}"
    raise ValueError(msg)


def _joined(servers: str | Sequence[str]) -> str:
    joined = servers if isinstance(servers, str) else ",".join(servers)
    if not joined:
        msg = f"servers={servers!r}: there has to be one, such as 'localhost:9092'"
        raise ValueError(msg)
    return joined


def _checked_topic(topic: str) -> str:
    if not isinstance(topic, str) or not topic:
        msg = f"topic={topic!r} is not the name of a topic"
        raise ValueError(msg)
    return topic


def _checked_config(config: Mapping[str, Any] | None, *owned: str) -> dict[str, Any]:
    given = dict(config or {})
    for name in ("bootstrap.servers", "error_cb", *owned):
        if name in given:
            msg = f"config: {name!r} is set by this class and its other arguments"
            raise ValueError(msg)
    return given


def _failure_of(error: Any) -> DeliveryError:
    """Return what *error*, a `KafkaError` or what was raised with one, means. It holds no message."""
    if isinstance(error, DeliveryError):
        return error
    if isinstance(error, BufferError):
        return TemporaryDeliveryError("the producer's own queue is full")
    if isinstance(error, BaseException):
        error = error.args[0] if error.args else error
    name = getattr(error, "name", None)
    if not callable(name):
        return TemporaryDeliveryError(f"Kafka's client failed: {type(error).__name__}")
    told = f"Kafka: {name()}: {error.str()}"
    if name() in _TOO_LARGE:
        return OversizeDeliveryError(told)
    if name() in _REFUSING:
        return PermanentDeliveryError(told)
    if name() in _PAUSING or "certificate verify failed" in told:
        return PausedDeliveryError(told)
    return TemporaryDeliveryError(told)


def _immortalize(client: Any) -> None:
    """Keep *client*, inherited from the process that forked this one, from being taken apart, even at the exit.

    That would wait for threads that only the parent has, or crash.
    """
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))


_TOO_LARGE = frozenset({"MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE"})
_REFUSING = frozenset({"INVALID_MSG", "INVALID_RECORD", "INVALID_TIMESTAMP", "_BAD_MSG", "_INVALID_ARG"})
#: Answers that hold until somebody changes something at the brokers, or here.
_PAUSING = frozenset(
    {
        "_AUTHENTICATION",
        "_UNKNOWN_TOPIC",
        "_UNKNOWN_PARTITION",
        "UNKNOWN_TOPIC_OR_PART",
        "TOPIC_EXCEPTION",
        "TOPIC_AUTHORIZATION_FAILED",
        "GROUP_AUTHORIZATION_FAILED",
        "CLUSTER_AUTHORIZATION_FAILED",
        "SASL_AUTHENTICATION_FAILED",
        "UNSUPPORTED_SASL_MECHANISM",
    }
)
#: Answers to a commit of what the group has given to somebody else.
_TAKEN_AWAY = frozenset({"ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID", "REBALANCE_IN_PROGRESS", "_NO_OFFSET", "_STATE"})
_SECRETS = ("password", "secret", "pem", "token")

#: How often a wait looks around.
_LOOK_SECONDS = 0.2
#: After so long without reading, a listener polls so that its group hears of it.
_POLL_SECONDS = 1.0

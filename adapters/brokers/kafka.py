"""Events into Kafka: `KafkaSink`."""

from __future__ import annotations

import contextlib
from functools import partial
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
from outfall.adapters.brokers.sink import BrokerSink, lacking
from outfall.sinks.core.clock import now
from outfall.sinks.core.item import Batch, BatchResult, Encoded
from outfall.sinks.core.reporting import report
from outfall.sinks.errors import (
    DeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
)
from outfall.sinks.event.levels import NOTSET, Level, level_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from outfall.sinks.core.sink import OnError
    from outfall.sinks.event.units import Span


class KafkaSink(BrokerSink):
    """Produce events to a topic of Kafka, each the JSON of one event.

    Put a background sink or a spool in front of it: that makes batches, retries, and spares callers the wait. Alone,
    the sink produces each event in the calling thread, and waits for its delivery.

    Args:
        servers: Where brokers listen: ``"host1:9092,host2:9092"``, or a sequence of such.
        topic: The topic. It has to exist, unless the brokers create topics on demand.
        config: More of librdkafka's configuration, for example
            ``{"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.username": …, "sasl.password": …}``.
            Default none.
        timeout: Seconds, a timedelta or text such as ``"2s"``, that the delivery of a batch may take. Default 10.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default the name of its class.

    Raises:
        ValueError: If librdkafka refuses *config*, if *config* has a setting that belongs to *servers* or to this
            class, if *servers* or *topic* is empty, or if *timeout* is no span of time.
        MissingDependencyError: If confluent-kafka is not installed; the extra ``kafka`` brings it.

    Delivered means that all in-sync replicas have the message. The producer is idempotent, with ``acks=all``, and
    retries without end; its retries duplicate nothing. A batch that is not delivered in time stays in the producer.
    When the background sink or the spool retries that batch, it waits for the same messages and sends none of them
    again. A new process does not know these messages: a spool sends again what it had not seen confirmed.

    A missing topic, a refused login or certificate, and missing rights are a pause (`PausedDeliveryError`). An event
    that is too large is refused for good, and the rest of its batch is delivered. Order holds within a partition. If
    the JSON has no level, the header ``level`` holds the level's name. If it has no ``timestamp``, the message's own
    timestamp is the time of the event.

    librdkafka logs to the logger ``librdkafka`` and not to stderr. Safe from any thread. A forked child has its own
    producer. ``flush`` and ``close`` keep their timeout whatever the brokers do.

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
        self._topic = checked_name(topic, "topic")
        self._servers = joined(servers)
        self._config = checked_config(config)
        connect = partial(_Producer, self._servers, self._topic, self._config)
        super().__init__(connect, timeout=timeout, level=level, processors=processors, on_error=on_error, name=name)

    def _keep(self, client: Any) -> None:
        immortalize(client)

    def _failure(self, error: Exception) -> DeliveryError:
        return failure_of(error)

    def _describe(self) -> str:
        return f"to {self._topic!r} at {self._servers}"


#: The outcomes of the messages of one attempt: None while a message is in flight, True if it was delivered, or a tuple
#: with the error, because a KafkaError cannot be compared with None.
_Outcomes = list[Any]

#: Where the outcome of a message is: the list of outcomes, and the index in it.
_Spot = tuple[_Outcomes, int]


def _settle(outcomes: _Outcomes, place: int, error: Any, _message: Any = None) -> None:
    """Record the outcome of one message; librdkafka calls it as the delivery report."""
    outcomes[place] = True if error is None else (error,)


class _Producer:
    """Produces batches, and remembers which messages are in flight."""

    def __init__(self, servers: str, topic: str, config: dict[str, Any]) -> None:
        self._topic = topic
        self._settings = {
            "acks": "all",
            "enable.idempotence": True,
            # No limit: a retry waits for these messages, and a time-out between two attempts would go unnoticed.
            "message.timeout.ms": 0,
            **config,
            "bootstrap.servers": servers,
            "error_cb": self._on_error,
        }
        self._log = Said()
        self._producer: Any = None
        #: The messages of a batch that was not delivered in time, by the keys of their items.
        self._known: dict[str, _Spot] = {}
        self._aborted = False
        self._open()

    def _open(self) -> Any:
        producer = self._producer
        if producer is None:
            producer = self._producer = made("Producer", self._settings)
        return producer

    def _on_error(self, error: Any) -> None:
        self._log.note(error)

    def send(self, batch: Sequence[Encoded], seconds: float) -> BatchResult | None:
        """Produce *batch*, apart from messages in flight, and wait *seconds* for all of it; see ``emit_batch``."""
        # A frame of its own, so that no traceback keeps the producer alive.
        return self._result(self._outcomes(batch, now() + seconds))

    def _outcomes(self, batch: Sequence[Encoded], deadline: float) -> _Outcomes:
        producer = self._open()
        outcomes: _Outcomes = []
        spots = self._recognized(batch, outcomes)
        try:
            self._produce(producer, batch, outcomes, spots, deadline)
            while None in _found(outcomes, spots) and not self._aborted:
                left = deadline - now()
                if left <= 0:
                    break
                producer.flush(min(left, _LOOK_SECONDS))
        finally:
            # An interrupt may have come before all messages were produced.
            if None in _found(outcomes, spots):
                self._remember(producer, batch, spots or [(outcomes, place) for place in range(len(outcomes))])
        return _found(outcomes, spots)

    def _recognized(self, batch: Sequence[Encoded], outcomes: _Outcomes) -> list[_Spot] | None:
        """Return the spot of each item of *batch*, ``(outcomes, -1)`` if it is not in flight; None if no item is."""
        keys = batch.item_keys if self._known and isinstance(batch, Batch) else []
        if not keys or keys[0] not in self._known:
            self._known = {}
            return None
        return [self._known.get(key, (outcomes, -1)) for key in keys]

    def _remember(self, producer: Any, batch: Sequence[Encoded], spots: list[_Spot]) -> None:
        """Remember the messages in flight for the retry; withdraw them if nobody will retry."""
        if isinstance(batch, Batch):
            self._known |= {key: spot for key, spot in zip(batch.item_keys, spots, strict=False) if spot[1] >= 0}
        else:
            producer.purge(in_flight=False, blocking=False)

    def _produce(
        self,
        producer: Any,
        batch: Sequence[Encoded],
        outcomes: _Outcomes,
        spots: list[_Spot] | None,
        deadline: float,
    ) -> None:
        produce, topic = producer.produce, self._topic
        for place, (body, level, time) in enumerate(lacking(batch)):
            new = place
            if spots is not None:
                if spots[place][1] >= 0:
                    continue
                new = len(outcomes)
                spots[place] = (outcomes, new)
            arguments = (topic, body, None, -1, partial(_settle, outcomes, new))
            outcomes.append(None)
            try:
                if level is None and time is None:
                    produce(*arguments)
                else:
                    self._produce_with(produce, arguments, level, time)
            except BufferError as error:
                if not self._produce_when_there_is_room(producer, arguments, level, time, deadline):
                    _settle(outcomes, new, error)
            except Exception as error:
                _settle(outcomes, new, error.args[0] if error.args else error)

    @staticmethod
    def _produce_with(produce: Any, arguments: tuple[Any, ...], level: float | None, time: float | None) -> None:
        headers = None if level is None else [("level", level_name(level))]
        # librdkafka takes 0 for the current time.
        produce(*arguments, headers=headers, timestamp=0 if time is None else int(time * 1000))

    def _produce_when_there_is_room(
        self, producer: Any, arguments: tuple[Any, ...], level: float | None, time: float | None, deadline: float
    ) -> bool:
        """Produce a message once the producer's queue has room; return False if it has none before *deadline*."""
        while not self._aborted and (left := deadline - now()) > 0:
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
            means = self._log.failure() if outcome is None else failure_of(outcome[0])
            if isinstance(means, PermanentDeliveryError):
                rejected[place] = means.reason
            else:
                retry.append(place)
            if failure is None or isinstance(means, PausedDeliveryError):
                failure = means
            if outcome is not None and getattr(outcome[0], "fatal", bool)():
                self.close()  # after a fatal error a producer refuses everything
        if failure is not None and len(retry) == len(outcomes):
            raise failure
        return BatchResult(retry, rejected)

    def abort(self) -> None:
        """Make the `send` of another thread fail soon."""
        self._aborted = True

    def close(self, seconds: float = 0) -> None:
        """Close the producer at once, whatever *seconds* allows, and forget its messages in flight."""
        producer, self._producer = self._producer, None
        self._known = {}
        if producer is not None:
            with contextlib.suppress(Exception):
                producer.purge()
                producer.poll(0)


def _found(outcomes: _Outcomes, spots: list[_Spot] | None) -> _Outcomes:
    """Return the outcomes at *spots*, or *outcomes* if *spots* is None."""
    return outcomes if spots is None else [of[place] for of, place in spots if place >= 0]


#: How many seconds a wait may take before it checks again.
_LOOK_SECONDS = 0.2

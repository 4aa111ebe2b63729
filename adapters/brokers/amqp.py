"""Events into RabbitMQ: `AMQPSink`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from outfall.adapters.brokers.sink import BrokerSink, lacking
from outfall.sinks.core.clock import now
from outfall.sinks.core.item import BatchResult, Encoded
from outfall.sinks.core.reporting import report
from outfall.sinks.errors import DeliveryError, PausedDeliveryError, TemporaryDeliveryError
from outfall.sinks.event.levels import NOTSET, Level, level_name

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Sequence

    from outfall.adapters.brokers.amqplink import Addresses, Link
    from outfall.sinks.core.sink import OnError
    from outfall.sinks.event.units import Span


class AMQPSink(BrokerSink):
    """Publish events to RabbitMQ, each the JSON of one event.

    Put a background sink or a spool in front of it: that makes batches, retries, and spares callers the wait. Alone,
    the sink publishes each event in the calling thread, and waits for the confirmation.

    Args:
        url: Where the broker listens: ``amqp://user:password@host:5672/vhost``, with ``amqps://`` for TLS. Several
            hosts, separated by commas, are tried in random order. The query takes what ``pika.URLParameters`` takes,
            such as ``heartbeat=30``. A sequence of such URLs is taken too.
        exchange: The exchange to publish to. Default ``""``, the default exchange, where *routing_key* is the name of a
            queue.
        routing_key: The routing key. Default ``""``, for exchanges that ignore it.
        persistent: Whether a durable queue keeps the messages on disk. Default True.
        timeout: Seconds, a timedelta or text such as ``"2s"``, that connecting may take, and that the confirmation of a
            batch may take after that. Default 10.
        ssl_context: An `ssl.SSLContext` for ``amqps://``. Default None: the result of `ssl.create_default_context`.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default the name of its class.

    Raises:
        ValueError: If *url* is not usable, *timeout* is no span of time, or both *exchange* and *routing_key* are
            empty.
        MissingDependencyError: If pika is not installed; the extra ``amqp`` brings it.

    Delivered means that a queue has the message and the broker has confirmed it. These failures are a pause
    (`PausedDeliveryError`), and the events are kept: no queue is bound, the exchange does not exist, the login is
    refused. Messages that a full queue refuses (``x-overflow=reject-publish``) are tried again, one by one. If the
    connection breaks, unconfirmed messages are sent again, so that some may come twice. The sink declares no exchange
    and no queue. A quorum queue confirms once most of its members have the message.

    If the JSON has no level, the header ``level`` holds the level's name. If it has no ``timestamp``, the header
    ``time`` holds the time in seconds since the epoch, and the property ``timestamp`` holds it in whole seconds.

    The connection stays open, with heartbeats. After a pause, the sink checks it before a batch, and replaces it if the
    broker has closed it or heartbeats were missed. Safe from any thread. A forked child has its own connection.
    ``flush`` and ``close`` keep their timeout whatever the broker does.

    Source: https://www.rabbitmq.com/docs/confirms and https://www.rabbitmq.com/docs/publishers.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        exchange: str = "",
        routing_key: str = "",
        *,
        persistent: bool = True,
        timeout: Span = 10.0,
        ssl_context: ssl.SSLContext | None = None,
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        from outfall.adapters.brokers.amqplink import Addresses

        if not (exchange or routing_key):
            msg = "exchange='' and routing_key='': the default exchange needs the name of a queue as routing_key"
            raise ValueError(msg)
        self._addresses = Addresses(url, ssl_context)
        self._named = exchange or routing_key
        connect = partial(_Publisher, self._addresses, exchange, routing_key, persistent=bool(persistent))
        super().__init__(connect, timeout=timeout, level=level, processors=processors, on_error=on_error, name=name)

    def _failure(self, error: Exception) -> DeliveryError:
        from outfall.adapters.brokers.amqplink import failure_of

        return failure_of(error, repr(self._addresses))

    def _describe(self) -> str:
        return f"to {self._named!r} at {self._addresses!r}"


#: The states of a message. A broker that returns a message confirms it after that.
_WAITING, _CONFIRMED, _REFUSED, _RETURNED, _UNROUTABLE = range(5)


class _Publisher:
    """Publishes batches over a link, and opens the link when it is needed.

    Args:
        addresses: Where the broker listens.
        exchange: The exchange.
        routing_key: The routing key.
        persistent: Whether a durable queue keeps the messages on disk.
    """

    def __init__(self, addresses: Addresses, exchange: str, routing_key: str, *, persistent: bool) -> None:
        from pika import BasicProperties

        self._addresses = addresses
        self._exchange = exchange
        self._routing_key = routing_key
        self._persistent = persistent
        self._make = BasicProperties
        self._usual = self._properties(None, None)
        self._link: Link | None = None
        self._aborted = False
        #: The number of the batch's first message on its channel.
        self._first = 1
        #: The batch's messages, the state of each, and how many of them wait.
        self._bodies: list[bytes] = []
        self._states = bytearray()
        self._waiting = 0
        #: The first places to look for a message that waits, and for one that may be returned.
        self._oldest = self._next_returned = 0

    def _properties(self, level: float | None, time: float | None) -> Any:
        headers: dict[str, str] = {} if level is None else {"level": level_name(level)}
        if time is not None:
            headers["time"] = repr(time)
        return self._make(
            content_type="application/json",
            delivery_mode=2 if self._persistent else 1,
            headers=headers or None,
            timestamp=None if time is None else int(time),
        )

    def send(self, batch: Sequence[Encoded], seconds: float) -> BatchResult | None:
        """Publish *batch* and wait *seconds* for the confirmations; see ``emit_batch``."""
        sound = False
        try:
            link = self._open(seconds)
            failure = self._exchange_all(link, batch, now() + seconds)
            sound = failure is None
        finally:
            self._bodies = []
            if not sound:
                self.close(0)
        return self._outcome(link.peer, failure)

    def _open(self, seconds: float) -> Link:
        from outfall.adapters.brokers.amqplink import Link

        link = self._link
        if link is not None and link.usable():
            return link
        self.close(0)
        deadline = now() + seconds
        link = Link(self._addresses, seconds, self._watch)
        confirming: list[Any] = []
        link.channel.add_on_return_callback(self._on_return)
        link.channel.confirm_delivery(self._on_confirm, confirming.append)
        link.run(lambda: bool(confirming), deadline)
        self._first = 1
        return link

    def _watch(self, link: Link) -> None:
        self._link = link
        if self._aborted:
            link.abort()

    def _exchange_all(self, link: Link, batch: Sequence[Encoded], deadline: float) -> DeliveryError | None:
        """Publish all of *batch*; return the failure if not all is confirmed or refused until *deadline*, or None."""
        self._states = bytearray(len(batch))
        self._waiting = len(batch)
        self._oldest = self._next_returned = 0
        publish = link.channel.basic_publish
        exchange, routing_key, usual = self._exchange, self._routing_key, self._usual
        bodies = self._bodies
        try:
            for body, level, time in lacking(batch):
                bodies.append(body)
                properties = usual if level is None and time is None else self._properties(level, time)
                publish(exchange, routing_key, body, properties, mandatory=True)
            link.run(lambda: not self._waiting, deadline)
        except DeliveryError as error:
            return error
        except Exception as error:
            from outfall.adapters.brokers.amqplink import failure_of

            return failure_of(link.failure or error, link.peer)
        self._first += len(batch)
        return None

    def _outcome(self, peer: str, failure: DeliveryError | None) -> BatchResult | None:
        states = self._states
        confirmed = states.count(_CONFIRMED)
        if confirmed == len(states):
            return None
        if confirmed:
            return BatchResult([place for place, state in enumerate(states) if state != _CONFIRMED])
        if failure is not None:
            raise failure
        where = f"exchange {self._exchange!r} and routing key {self._routing_key!r}"
        if states.count(_REFUSED):
            msg = f"{peer} refuses messages for {where}: the queue is full"
            raise TemporaryDeliveryError(msg)
        msg = f"{peer} has no queue for {where}"
        raise PausedDeliveryError(msg)

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        last = method.delivery_tag - self._first
        places: Iterable[int] = (last,)
        if method.multiple:
            places = range(self._oldest, last + 1)
            self._oldest = last + 1
        states = self._states
        settled = _CONFIRMED if method.NAME == "Basic.Ack" else _REFUSED
        for place in places:
            state = states[place]
            if state == _WAITING:
                states[place] = settled
            elif state == _RETURNED:
                states[place] = _UNROUTABLE
            else:
                continue
            self._waiting -= 1

    def _on_return(self, _channel: Any, _method: Any, _properties: Any, body: bytes) -> None:
        # Returned messages come in order. Messages with the same body are interchangeable.
        count = len(self._bodies)
        for place in (*range(self._next_returned, count), *range(self._next_returned)):
            if self._states[place] == _WAITING and self._bodies[place] == body:
                self._states[place] = _RETURNED
                self._next_returned = place + 1
                return

    def close(self, seconds: float) -> None:
        """Close the connection in order within *seconds*, or drop it."""
        link, self._link = self._link, None
        if link is not None:
            link.close(seconds)

    def abort(self) -> None:
        """Make the call that another thread is waiting in fail at once."""
        self._aborted = True
        link = self._link
        if link is not None:
            link.abort()

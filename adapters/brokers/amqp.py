"""Events to and from RabbitMQ: `AMQPSink` and `AMQPListener`."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

from outfall.adapters.brokers.base import BrokerListener, BrokerSink, Message, lacking
from outfall.sinks.core.arguments import checked_count
from outfall.sinks.core.clock import now
from outfall.sinks.core.item import BatchResult, Encoded
from outfall.sinks.core.reporting import SinkFailure, report
from outfall.sinks.errors import DeliveryError, PausedDeliveryError, TemporaryDeliveryError
from outfall.sinks.event.levels import NOTSET, Level, level_name, level_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Sequence

    from outfall.adapters.brokers.amqplink import Addresses, Link
    from outfall.sinks.core.sink import OnError, Sink
    from outfall.sinks.delivery.delivery import RetryPolicy
    from outfall.sinks.event.units import Span


class AMQPSink(BrokerSink):
    """Publish events to RabbitMQ, each the JSON of one event.

    Put a background sink or a spool in front: it makes batches, retries, and lets nobody wait. Alone, each event is
    published, and its confirmation awaited, in the thread that logs.

    Args:
        url: Where the broker listens: ``amqp://user:password@host:5672/vhost``, with ``amqps://`` for TLS. Several
            hosts, divided by commas, are tried in a random order. The query takes what ``pika.URLParameters`` takes,
            such as ``heartbeat=30``. Or a sequence of such URLs.
        exchange: The exchange to publish to. Default ``""``, the default exchange, where *routing_key* is the name of a
            queue.
        routing_key: The routing key. Default ``""``, for an exchange that does not look at it.
        persistent: Whether the broker is to keep messages on disk, in queues that are durable. Default True.
        timeout: Seconds, a timedelta or text such as ``"2s"``, that connecting may take, and then the confirmation of a
            batch. Default 10.
        ssl_context: An `ssl.SSLContext` for ``amqps://``. Default None: that of `ssl.create_default_context`.
        level: Events below it are left out: a name in any case, or a number. Default NOTSET, which takes all.
        processors: Processors of structlog, applied in order to a copy of each event. Default none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: What to call the sink in reports and stats. Default the name of its class.

    Raises:
        ValueError: If *url* is not usable, *timeout* is no span of time, or both *exchange* and *routing_key* are
            empty.
        MissingDependencyError: If pika is not installed; the extra ``amqp`` brings it.

    Delivered means that the broker has confirmed the message, and that a queue has it: what it returns because no queue
    is bound is kept, as a pause (`PausedDeliveryError`), and so is everything while the exchange does not exist or the
    login is refused. What a full queue refuses (``x-overflow=reject-publish``) is tried again, event by event; so is
    what was not confirmed when the connection broke, which may then come twice. Neither exchange nor queue is declared
    here. A quorum queue confirms once most of its members have the message.

    Where the JSON has no level there is a header ``level``, the name; where it has no ``timestamp``, a header ``time``,
    in seconds since the epoch, and the property ``timestamp``, in whole ones.

    A connection is kept open, with heartbeats; one that was idle is looked at before a batch, and replaced if the
    broker has closed it or has missed heartbeats. Safe from any thread. A forked child has a connection of its own.
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
        self._exchange = exchange
        self._routing_key = routing_key
        self._persistent = bool(persistent)
        super().__init__(timeout=timeout, level=level, processors=processors, on_error=on_error, name=name)

    def _connect(self) -> _Publisher:
        return _Publisher(self._addresses, self._exchange, self._routing_key, persistent=self._persistent)

    def _send(self, client: _Publisher, batch: Sequence[Encoded]) -> BatchResult | None:
        return client.publish(batch, self._timeout)

    def _disconnect(self, client: _Publisher, seconds: float) -> None:
        client.close(seconds)

    def _break_off(self, client: _Publisher) -> None:
        client.abort()

    def _failure(self, error: Exception) -> DeliveryError:
        from outfall.adapters.brokers.amqplink import failure_of

        return failure_of(error, repr(self._addresses))

    def _describe(self) -> str:
        return f"to {self._exchange or self._routing_key!r} at {self._addresses!r}"


#: What becomes of a message: a broker that returns one confirms it after that.
_WAITING, _CONFIRMED, _REFUSED, _RETURNED, _UNROUTABLE = range(5)


class _Publisher:
    """Publishes batches over a link that it opens when it needs one.

    Args:
        addresses: Where the broker listens.
        exchange: The exchange.
        routing_key: The routing key.
        persistent: Whether messages are to be kept on disk.
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
        #: The batch's messages, what became of each, and how many wait.
        self._bodies: list[bytes] = []
        self._states = bytearray()
        self._waiting = 0
        #: The places from which on there may be one that waits, and one that may be returned.
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

    def publish(self, batch: Sequence[Encoded], seconds: float) -> BatchResult | None:
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
        """Publish all of *batch*, and return why not all of it was confirmed or refused until *deadline*."""
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
        # Messages come back in order; of those with the same body, any will do.
        count = len(self._bodies)
        for place in (*range(self._next_returned, count), *range(self._next_returned)):
            if self._states[place] == _WAITING and self._bodies[place] == body:
                self._states[place] = _RETURNED
                self._next_returned = place + 1
                return

    def close(self, seconds: float) -> None:
        """End the connection in order within *seconds*, or else at once."""
        link, self._link = self._link, None
        if link is not None:
            link.close(seconds)

    def abort(self) -> None:
        """Let what another thread waits for here fail at once."""
        self._aborted = True
        link = self._link
        if link is not None:
            link.abort()


class AMQPListener(BrokerListener):
    """Take events from a queue of RabbitMQ and hand them to *sinks*, in batches.

    Any number of listeners, in any number of processes and machines, share a queue.

    Args:
        url: Where the broker listens, as for `AMQPSink`.
        queue: The queue. It is not declared here.
        *sinks: Where the events go, by ``emit_batch``. They are not owned: close them after the listener.
        prefetch: How many messages the broker may hand over that are not acknowledged. Default None: two batches.
        reject: True to reject messages that are no events, which gives them to the queue's own dead letter exchange
            (``x-dead-letter-exchange``); the broker drops them where the queue has none. Not together with
            *dead_letter*. Default False.
        respect_sink_level: Whether a sink's level applies. Default False: it has been applied where the event was
            logged.
        batch_size: How many messages are given to a sink at a time. Default 500.
        retry: When a batch that a sink could not take is tried again, and when a broker that is away. Default
            ``RetryPolicy()``: for as long as it takes.
        dead_letter: A sink that gets the events that a sink refuses for good, and messages that are no events, as text.
            Not owned. Default None: they are counted as ``dropped``.
        timeout: Seconds, a timedelta or text such as ``"2s"``, that connecting may take. Default 10.
        ssl_context: An `ssl.SSLContext` for ``amqps://``. Default None: that of `ssl.create_default_context`.
        on_error: Called with a `SinkFailure` for each failure. Default `report`, which writes to stderr.
        name: What to call the listener in reports and stats. Default the name of its class.

    Raises:
        ValueError: If *url* is not usable, an argument is out of range, or *reject* comes with *dead_letter*.
        TypeError: If one of *sinks* or *dead_letter* is no sink, or *on_error* is not callable.
        MissingDependencyError: If pika is not installed; the extra ``amqp`` brings it.

    A message is acknowledged once each sink has settled it. What is not acknowledged when the process dies, or the
    connection breaks, the broker gives to another listener: nothing is lost, and what sinks had taken of it comes
    twice; ``redelivered`` counts what the broker had given to somebody before.

    Use it as a context manager, or call `start` and `stop`; both may be called again. Safe from any thread. A forked
    child has a listener that is not started. At exit it stops, having delivered what it has read.

    Source: https://www.rabbitmq.com/docs/confirms and https://www.rabbitmq.com/docs/consumers.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        queue: str,
        *sinks: Sink,
        prefetch: int | None = None,
        reject: bool = False,
        respect_sink_level: bool = False,
        batch_size: int = 500,
        retry: RetryPolicy | None = None,
        dead_letter: Sink | None = None,
        timeout: Span = 10.0,
        ssl_context: ssl.SSLContext | None = None,
        on_error: Callable[[SinkFailure], object] = report,
        name: str | None = None,
    ) -> None:
        from outfall.adapters.brokers.amqplink import Addresses

        if not isinstance(queue, str) or not queue:
            msg = f"queue={queue!r} is not the name of a queue"
            raise ValueError(msg)
        if reject and dead_letter is not None:
            msg = "reject=True and dead_letter: what is no event can go to one of them"
            raise ValueError(msg)
        self._addresses = Addresses(url, ssl_context)
        self._queue = queue
        self._reject = bool(reject)
        ahead = 2 * checked_count(batch_size, "batch_size", "events")
        self._prefetch = min(ahead, 0xFFFF) if prefetch is None else checked_count(prefetch, "prefetch", "messages")
        if self._prefetch > 0xFFFF:
            msg = f"prefetch={prefetch!r} is more than the 65535 that the protocol has room for"
            raise ValueError(msg)
        self._link: Link | None = None
        #: Links of the processes that this one was forked from.
        self._inherited: list[Link] = []
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

    def _fresh_state(self) -> None:
        super()._fresh_state()
        if self._link is not None:
            self._inherited.append(self._link)
            self._link = None
        #: How many messages came that the broker had given to somebody before.
        self.redelivered: int = 0
        #: What has come and was not read, and the numbers of what is not acknowledged, oldest first.
        self._came: deque[Message] = deque()
        self._held: dict[int, None] = {}

    # -- the reader's, see BrokerListener

    def _read(self, number: int, seconds: float) -> list[Message] | None:
        link = self._opened()
        came = self._came
        if not came:
            link.step(seconds)
        while True:
            before = len(came)
            if before >= number:
                break
            link.step(0)
            if len(came) == before:
                break
        if came:
            return [came.popleft() for _ in range(min(number, len(came)))]
        if seconds or self._held:
            return None
        # Somebody wants to know. What was on its way to this listener comes before the answer.
        answers: list[Any] = []
        link.channel.queue_declare(self._queue, passive=True, callback=answers.append)
        link.run(lambda: bool(answers), now() + self._timeout)
        return None if came or answers[0].method.message_count else []

    def _opened(self) -> Link:
        from outfall.adapters.brokers.amqplink import Link

        link = self._link
        if link is not None:
            if link.usable():
                return link
            link.close(0)
        self._came.clear()
        self._held.clear()
        deadline = now() + self._timeout
        complete = False
        try:
            link = Link(self._addresses, self._timeout, self._watch)
            channel = link.channel
            consuming: list[Any] = []
            channel.add_on_cancel_callback(self._on_cancel)
            channel.basic_qos(prefetch_count=self._prefetch)
            channel.basic_consume(self._queue, self._on_message, callback=consuming.append)
            link.run(lambda: bool(consuming), deadline)
            complete = True
        finally:
            if not complete:
                self._close(0)
        return link

    def _watch(self, link: Link) -> None:
        self._link = link

    def _on_cancel(self, _frame: Any) -> None:
        if self._link is not None:
            self._link.cancel(f"the queue {self._queue!r} is gone")

    def _on_message(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:
        tag = method.delivery_tag
        self._held[tag] = None
        if method.redelivered:
            self.redelivered += 1
        headers, time = properties.headers, properties.timestamp
        level = None
        if headers:
            name = headers.get("level")
            level = level_of({"level": name}) if name is not None else None
            with contextlib.suppress(TypeError, ValueError):
                time = float(headers.get("time"))
        self._came.append(Message((self._link, tag), body, level, time))

    def _acknowledge(self, tokens: list[Any]) -> None:
        link = self._link
        # What came over another connection the broker has given to somebody already.
        tags = [tag for of, tag in tokens if of is link and self._held.pop(tag, self) is None]
        if link is None or not tags:
            return
        last = max(tags)
        if next(iter(self._held), last + 1) > last:
            link.channel.basic_ack(last, multiple=True)
        else:
            for tag in tags:
                link.channel.basic_ack(tag)
        link.step(0)

    def _look_after(self) -> None:
        # For the heartbeats. That the connection is lost, the next read tells.
        if self._link is not None:
            with contextlib.suppress(DeliveryError):
                self._link.step(0)

    def _bury(self, message: Message) -> bool:
        of, tag = message.token
        link = self._link
        if not self._reject or link is None or of is not link:
            return False
        self._held.pop(tag, None)
        link.channel.basic_reject(tag, requeue=False)
        return True

    def _disconnect(self, seconds: float) -> None:
        self._close(seconds)

    def _close(self, seconds: float) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close(seconds)

    def _failure(self, error: Exception) -> DeliveryError:
        from outfall.adapters.brokers.amqplink import failure_of

        lost = self._link.failure if self._link is not None else None
        return failure_of(lost or error, repr(self._addresses))

    def _describe(self) -> str:
        return f"{self._queue!r} at {self._addresses!r}"

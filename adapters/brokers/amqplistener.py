"""Events out of RabbitMQ: `AMQPListener`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from outfall.adapters.brokers.client import checked_name
from outfall.adapters.brokers.listener import BrokerListener, Reading
from outfall.sinks.core.arguments import checked_count
from outfall.sinks.core.clock import now
from outfall.sinks.core.reporting import SinkFailure, report
from outfall.sinks.errors import DeliveryError
from outfall.sinks.event.levels import level_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from outfall.adapters.brokers.amqplink import Link
    from outfall.sinks.core.sink import Sink
    from outfall.sinks.delivery.delivery import RetryPolicy
    from outfall.sinks.event.units import Span


class AMQPListener(BrokerListener):
    """Take events from a queue of RabbitMQ and hand them to *sinks*, in batches.

    Any number of listeners, in any number of processes and machines, share a queue.

    Args:
        url: Where the broker listens, as for `AMQPSink`.
        queue: The queue. It has to exist.
        *sinks: Where the events go, by ``emit_batch``. They are not owned: close them after the listener.
        prefetch: How many unacknowledged messages the broker may send. Default None: two batches.
        reject: True to reject messages that are no events. The broker gives them to the queue's dead letter exchange
            (``x-dead-letter-exchange``), or drops them if the queue has none. Not together with *dead_letter*. Default
            False.
        respect_sink_level: Whether a sink's level applies. Default False: the level was applied where the event was
            logged.
        batch_size: How many messages are given to a sink at a time. Default 500.
        retry: When to try again: a batch that a sink could not take, and a broker that cannot be reached. Default
            ``RetryPolicy()``: without end.
        dead_letter: A sink for events that a sink refuses for good, and for messages that are no events, as text. Not
            owned. Default None: they are counted as ``dropped``.
        timeout: Seconds, a timedelta or text such as ``"2s"``, that connecting may take. Default 10.
        ssl_context: An `ssl.SSLContext` for ``amqps://``. Default None: the result of `ssl.create_default_context`.
        on_error: Called with a `SinkFailure` for each failure. Default `report`, which writes to stderr.
        name: The name of the listener in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *url* is not usable, an argument is out of range, a sink only keeps events in memory, or *reject*
            comes with *dead_letter*.
        TypeError: If one of *sinks* or *dead_letter* is no sink, or *on_error* is not callable.
        MissingDependencyError: If pika is not installed; the extra ``amqp`` brings it.

    A message is acknowledged once each sink has settled it. If the process dies or the connection breaks, the broker
    gives all unacknowledged messages to another listener: nothing is lost, and what sinks had already taken comes
    twice. ``redelivered`` counts the messages that the broker had given to a listener before.

    Use it as a context manager, or call `start` and `stop`; both may be called again. Safe from any thread. In a forked
    child the listener is not started. At exit it delivers what it has read, and stops.

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

        if reject and dead_letter is not None:
            msg = "reject=True and dead_letter: what is no event can go to one of them"
            raise ValueError(msg)
        self._addresses = Addresses(url, ssl_context)
        self._queue = checked_name(queue, "queue")
        self._reject = bool(reject)
        ahead = 2 * checked_count(batch_size, "batch_size", "events")
        self._prefetch = min(ahead, 0xFFFF) if prefetch is None else checked_count(prefetch, "prefetch", "messages")
        if self._prefetch > 0xFFFF:
            msg = f"prefetch={prefetch!r} is more than the 65535 that the protocol has room for"
            raise ValueError(msg)
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
        #: How many messages the broker had given to a listener before.
        self.redelivered: int = 0
        #: Delivery tags and bodies of messages that wait to be read; level and time, by tag, if headers gave them.
        self._came: list[int] = []
        self._bodies: list[bytes] = []
        self._beside: dict[int, tuple[float | None, float | None]] = {}
        #: The tags of unacknowledged messages, oldest first.
        self._held: dict[int, None] = {}

    # -- called by the reader; see BrokerListener

    def _read(self, number: int, seconds: float) -> Reading | None:
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
            return self._taken(number)
        if seconds or self._held:
            return None
        # The reader asks whether the queue is empty. Messages in flight arrive before the answer.
        answers: list[Any] = []
        link.channel.queue_declare(self._queue, passive=True, callback=answers.append)
        link.run(lambda: bool(answers), now() + self._timeout)
        return None if came or answers[0].method.message_count else Reading([], [])

    def _taken(self, number: int) -> Reading:
        """Return the oldest messages that have arrived, at most *number*."""
        tags, bodies = self._came[:number], self._bodies[:number]
        del self._came[:number], self._bodies[:number]
        beside = [self._beside.pop(tag, (None, None)) for tag in tags] if self._beside else []
        levels = {place: level for place, (level, _) in enumerate(beside) if level is not None}
        return Reading([(self._client, tags)], bodies, levels, (lambda place: beside[place][1]) if beside else None)

    def _opened(self) -> Link:
        from outfall.adapters.brokers.amqplink import Link

        link: Link | None = self._client
        if link is not None:
            if link.usable():
                return link
            link.close(0)
        self._came.clear()
        self._bodies.clear()
        self._beside.clear()
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
                self._disconnect(0)
        return link

    def _watch(self, link: Link) -> None:
        self._client = link

    def _on_cancel(self, _frame: Any) -> None:
        if self._client is not None:
            self._client.cancel(f"the queue {self._queue!r} is gone")

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
        self._came.append(tag)
        self._bodies.append(body)
        if level is not None or time is not None:
            self._beside[tag] = level, time

    def _acknowledge(self, tokens: list[Any]) -> None:
        link = self._client
        # The tags of an earlier connection are void: the broker has given their messages to another listener.
        tags = [tag for of, tags in tokens if of is link for tag in tags if self._held.pop(tag, self) is None]
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
        # Serves the heartbeats. If the connection is lost, the next read raises.
        if self._client is not None:
            with contextlib.suppress(DeliveryError):
                self._client.step(0)

    def _bury(self, tokens: list[Any], place: int) -> bool:
        of, tags = tokens[0]
        link = self._client
        if not self._reject or link is None or of is not link:
            return False
        self._held.pop(tags[place], None)
        link.channel.basic_reject(tags[place], requeue=False)
        return True

    def _disconnect(self, seconds: float) -> None:
        link, self._client = self._client, None
        if link is not None:
            link.close(seconds)

    def _failure(self, error: Exception) -> DeliveryError:
        from outfall.adapters.brokers.amqplink import failure_of

        lost = self._client.failure if self._client is not None else None
        return failure_of(lost or error, repr(self._addresses))

    def _describe(self) -> str:
        return f"{self._queue!r} at {self._addresses!r}"

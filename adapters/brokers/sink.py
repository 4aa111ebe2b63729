"""What the sinks of all brokers have in common: `BrokerSink`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from outfall.adapters.brokers.client import HasClient, timeout_of
from outfall.sinks.core.clock import now
from outfall.sinks.core.item import Batch, BatchResult, Encoded
from outfall.sinks.core.reentrancy import delivering
from outfall.sinks.core.reporting import report
from outfall.sinks.core.sink import OnError, Sink
from outfall.sinks.errors import (
    DeliveryError,
    PermanentDeliveryError,
    TemporaryDeliveryError,
)
from outfall.sinks.event.json import loads
from outfall.sinks.event.levels import NOTSET, Level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from outfall.sinks.event.units import Span


class BrokerSink(HasClient, Sink):
    """A sink that sends events to a broker through the broker's own client library.

    A message is the event's JSON. A subclass sets its own attributes before it calls this constructor, and implements
    `_failure` and `_describe`.

    Args:
        connect: Returns a client, which connects when it is first used. It has the methods ``send(batch, seconds)``,
            which returns or raises once the broker has confirmed or refused each event, as `emit_batch` does, and
            ``close(seconds)``, both called with the lock held; and ``abort()``, called without the lock, which makes an
            exchange that another thread is waiting in fail, if possible.
        timeout: Seconds that connecting may take, and each exchange with the broker.
        level: Events below it are left out.
        processors: structlog processors, applied in order to a copy of each event.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``.
        name: The name of the sink in reports and stats.

    The constructor makes the client without connecting, so that a missing package raises there, and nothing is imported
    at exit. A forked child makes its own client, and does not touch its parent's.
    """

    delivers_through_loggers = True  # the clients log

    # `emit_batch` takes the lock itself, only for the exchange with the broker.
    locks_emit = False

    def __init__(
        self,
        connect: Callable[[], Any],
        *,
        timeout: Span,
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        self._timeout = timeout_of(timeout)
        super().__init__(level=level, processors=processors, on_error=on_error, name=name)
        self._connect = connect
        self._client = connect()

    def _fresh_state(self) -> None:
        super()._fresh_state()
        self._forget_client()

    def _failure(self, error: Exception) -> DeliveryError:
        """Return what *error*, raised by the client, means. It must hold no event and no secret."""
        raise NotImplementedError

    def emit(self, event: dict[str, Any]) -> None:
        """Send one event, without a retry."""
        result = self.emit_batch([self.encode(event)])
        if result is not None:
            if result.retry:
                msg = f"{self._describe()}: the broker does not take it now"
                raise TemporaryDeliveryError(msg, result.retry_after)
            raise PermanentDeliveryError(next(iter(result.rejected.values()), "the broker refused it"))

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Send *batch*; return None if the broker has confirmed all, else the outcome of the others.

        Raises:
            DeliveryError: If it has confirmed none.
        """
        if not len(batch):
            return None
        failure: DeliveryError
        with self._lock:
            self._check_open()
            try:
                with delivering():
                    if self._client is None:
                        self._client = self._connect()
                    return self._client.send(batch, self._timeout)  # type: ignore[no-any-return]
            except DeliveryError as error:
                failure = error
            except Exception as error:
                failure = self._failure(error)
            finally:
                if self._closed:  # close() did not wait for this exchange
                    self._release()
        # Outside of the handler, so that no __context__ keeps an event or a secret.
        raise failure from None

    def _release(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            left = self._timeout if self._deadline is None else max(0.0, self._deadline - now())
            with delivering(), contextlib.suppress(Exception):
                client.close(min(left, self._timeout))

    def _give_up(self) -> None:
        client = self._client
        if client is not None:
            with contextlib.suppress(Exception):
                client.abort()


def lacking(batch: Sequence[Encoded]) -> Iterator[tuple[bytes, float | None, float | None]]:
    """Yield the data of each item in *batch*, with its level and time if the JSON lacks them, else None.

    The JSON is searched, and only parsed where that is not sure: parsing each would halve the rate.
    """
    raws: Any = batch._items if isinstance(batch, Batch) else batch
    for raw in raws:
        if type(raw) is bytes:
            yield raw, None, None
            continue
        data, level, time, stamp = raw if type(raw) is tuple else (raw.data, raw.level, raw.time, False)
        if level is not None:
            # The code of `_has_key`, inlined: this runs for each event.
            place = data.find(b'"level":')
            if (place >= 0 and data.find(b"{", 1, place) < 0) or _has_key(data, "level", "level_number"):
                level = None
        if stamp is not False or _has_key(data, "timestamp"):
            time = None
        yield data, level, time


def _has_key(data: bytes, *keys: str) -> bool:
    """Return True if the JSON object in *data* has one of *keys* at its top level."""
    places = [place for key in keys if (place := data.find(b'"%b":' % key.encode())) >= 0]
    if not places:
        return False
    if data.find(b"{", 1, min(places)) < 0:
        return True
    try:
        return not loads(data).keys().isdisjoint(keys)
    except (ValueError, RecursionError):
        return False

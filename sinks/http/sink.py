"""`HTTPSink`: sends events over HTTP."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal, get_args

from outfall.sinks.core.arguments import checked_size
from outfall.sinks.core.forwarding import reads_data_alone
from outfall.sinks.core.item import Batch, BatchResult, typed
from outfall.sinks.core.reentrancy import delivering
from outfall.sinks.core.reporting import report
from outfall.sinks.core.sink import OnError, Sink
from outfall.sinks.errors import (
    DeliveryError,
    OversizeDeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    SinkClosedError,
    TemporaryDeliveryError,
    extra_module,
)
from outfall.sinks.event.event import NaiveTimestamps, checked_naive, zoned
from outfall.sinks.event.fields import Projection
from outfall.sinks.event.json import line_to_send
from outfall.sinks.event.levels import NOTSET, Level
from outfall.sinks.http.answers import RefusedDeliveryError, clean, failure_of, is_page, quote, told_limit_bytes
from outfall.sinks.http.bodies import NDJSON, BodyFormat, FormURLEncoded, JSONArray, JSONObject
from outfall.sinks.http.endpoint import Endpoint, Request, checked_timeout
from outfall.sinks.http.parts import History, Parts

if TYPE_CHECKING:
    import datetime as dt
    import os
    import ssl
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import requests

    from outfall.sinks.core.item import Encoded
    from outfall.sinks.event.fields import Fields
    from outfall.sinks.event.units import Span
    from outfall.sinks.http.client import Reply, Transport

__all__ = ["NDJSON", "BodyFormat", "FormURLEncoded", "HTTPSink", "JSONArray", "JSONObject"]

#: The methods of requests.
Method = Literal["GET", "POST", "PUT", "PATCH"]
_METHODS = get_args(Method)

#: The default limit of nginx.
_MAX_BODY_BYTES = 1_048_576

#: The number of bytes read of a response if only its status matters.
_MAX_IGNORED_BYTES = 65_536

#: Of the statuses about an event the one that a gateway does not send: the server has read the event and refuses it.
_UNPROCESSABLE = 422


class HTTPSink(Sink):
    """Send events to a URL, one or many in each request.

    Put a `BackgroundSink` or a `SpoolSink` in front: it makes batches and retries, and the thread that logs need not
    wait. Without one, each event is one request, made in the thread that logs and tried once.

    Args:
        url: The URL, ``http://`` or ``https://``; or the path of a Unix socket, ``http+unix:///run/c.sock``. The path
            of the request may follow the socket's after a colon, ``http+unix:///run/c.sock:/push``, or after its
            percent-encoded form, ``http+unix://%2Frun%2Fc.sock/push``. A user name and password are used as *auth*.
        method: ``"POST"`` (default), ``"PUT"``, ``"PATCH"``, or ``"GET"``, which needs a *body* of `FormURLEncoded`.
        body: The format of a request's body, a `BodyFormat`. Default ``JSONObject()``: one event in a request. `NDJSON`
            and `JSONArray` hold many; there are formats for collectors too.
        fields: The fields to send: paths, or a mapping from new names; see `Projection`. Default None: all.
        headers: Further headers. Those whose names look like credentials (``DD-API-KEY``) are treated as secret.
            Default: none.
        auth: User name and password, or any authentication object of requests. Default None.
        token: The token for ``Authorization: Bearer …``: a text, or a callable without arguments that returns one. It
            is called for every request, so also after a response of 401 or 403. Default None.
        token_scheme: The word before the token, such as ``"Splunk"`` or ``"ApiKey"``. Default ``"Bearer"``.
        timeout: Seconds to connect (including TLS), and seconds for the rest, from the first byte of the request to the
            last of the response. Each is a number or a timedelta; a single one counts for both. No request takes longer
            than both together, however slow the server is. Name resolution has its own limits, those of the system.
            Default ``(3.05, 10)``.
        verify: True (default) to trust the certificate authorities of requests, or those in the file named by
            ``REQUESTS_CA_BUNDLE``; the path of a file or directory of others; False to accept any certificate.
        cert: The client's certificate: the path of a file that also holds the key, or the paths of certificate and key.
            Default None.
        ssl_context: An `ssl.SSLContext` to use instead of *verify* and *cert*. Default None.
        proxies: Proxies by scheme, ``{"https": "http://proxy:3128"}``. Default None: those of the environment
            (``HTTPS_PROXY``, ``NO_PROXY`` …), which are read before the first request.
        compression: ``"gzip"``, ``"zstd"`` (with the extra ``zstd``), or None (default).
        max_body_bytes: The largest body, before compression. A batch with a larger body is split into several requests;
            a single event that is too large is refused. Default 1 048 576, the default limit of nginx.
        session: A `requests.Session` of yours, which is not closed. Its adapters, hooks, cookies and headers are used
            as they are. Then *timeout* has the meaning that requests gives it: the second number starts again with each
            byte received. Default None: a session of the sink's own.
        allow_insecure: True to send credentials over plain ``http://`` to a host other than this one. Default False.
        naive_timestamps: The zone of a ``timestamp`` that is text without one: ``"utc"`` (default), as structlog's
            ``TimeStamper`` writes it by default, or ``"local"``, which is sent with the zone.
        max_connection_age: The age after which a connection is replaced by a new one, in seconds, as a timedelta or as
            text such as ``"10m"``, so that a changed address or a new backend of a load balancer is used. Default None:
            a connection is used as long as it works.
        clock: A function that returns epoch seconds, for dates in ``Retry-After``. Default `time.time`.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If an argument is out of range, two of them contradict each other, or credentials would cross the
            network in plain text and *allow_insecure* is not True.
        TypeError: If an argument has the wrong type.
        MissingDependencyError: For ``compression="zstd"`` without zstandard.

    The status of a response determines the outcome:

    - 2xx: the events were taken.
    - 408, 409, 425, 429, 5xx, or no response: `TemporaryDeliveryError`, with the ``Retry-After`` if there is one.
    - 413: `OversizeDeliveryError`. If the response has an ``Upload-Limit``, later bodies keep it.
    - 400 and 422: `PermanentDeliveryError` for an event that is refused while others of its batch are taken; a batch is
      divided to find it. `PausedDeliveryError` if none is taken.
    - All other 4xx, and redirects, which are never followed: `PausedDeliveryError`.

    The last two errors quote the response, shortened, and without values of the events. No error contains a part of an
    event, the URL's path or query, or a credential; neither does the ``repr``.

    Each request has an ``Idempotency-Key``, which is the same at every retry of the batch. Connections are kept alive
    and reused. If the server has closed the connection before it responded, the request is sent once more at once, over
    a new connection and with the same key. After this, or if a response was lost, a server that ignores the key may get
    an event twice.

    Safe from any thread; requests are sent one after the other. A forked child opens its own connection, and does not
    touch the parent's. ``flush`` and ``close`` wait for a request in progress within their timeout; when ``close``
    times out, the request is aborted. ``.netrc`` is not read.

    Source: `logging.handlers.HTTPHandler`, whose ``mapLogRecord`` is `map_event`; RFC 9110;
    https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/.
    """

    delivers_through_loggers = True  # urllib3 and requests log

    # It takes the lock itself, since the callable for tokens must not be called under it.
    locks_emit = False

    def __init__(
        self,
        url: str,
        method: Method = "POST",
        *,
        body: BodyFormat | None = None,
        fields: Fields | Projection | None = None,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | Callable[[Any], Any] | None = None,
        token: str | Callable[[], str] | None = None,
        token_scheme: str = "Bearer",
        timeout: float | dt.timedelta | tuple[float | dt.timedelta, float | dt.timedelta] = (3.05, 10),
        verify: bool | str | os.PathLike[str] = True,
        cert: str | os.PathLike[str] | tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        proxies: Mapping[str, str] | None = None,
        compression: Literal["gzip", "zstd"] | None = None,
        max_body_bytes: int = _MAX_BODY_BYTES,
        session: requests.Session | None = None,
        allow_insecure: bool = False,
        naive_timestamps: NaiveTimestamps = "utc",
        max_connection_age: Span | None = None,
        clock: Callable[[], float] = time.time,
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        self._transport: Transport | None = None
        self._body = _checked_body(body)
        self._compression = compression
        self._compress = _compressor(compression)
        self._method = _checked_method(method, self._body, self._compression)
        self._projection = fields if fields is None or isinstance(fields, Projection) else Projection(fields)
        self._max_body_bytes = _checked_max_body(max_body_bytes)
        self._history = History(max_body_bytes)
        #: True if the format reads the bodies of successful responses.
        self._reads = type(self._body).read is not BodyFormat.read
        self._clock = clock
        self._naive: NaiveTimestamps = checked_naive(naive_timestamps)
        self._endpoint = Endpoint(
            url,
            headers=headers,
            format_headers=self._body.headers,
            auth=auth,
            token=token,
            token_scheme=token_scheme,
            timeout=timeout,
            verify=verify,
            cert=cert,
            ssl_context=ssl_context,
            proxies=proxies,
            session=session,
            allow_insecure=allow_insecure,
            max_connection_age=max_connection_age,
        )
        # Imported now and not with the first request. That is often made by a thread: a child that is forked during
        # its import would keep a half imported module. And when the interpreter ends, imports fail.
        from outfall.sinks.http.client import Transport

        self._transport_class = Transport
        super().__init__(level=level, processors=processors, on_error=on_error, name=name)

    # -- attributes, as the handler has them

    @property
    def url(self) -> str:
        """The URL without credentials; settable."""
        return self._endpoint.url

    @url.setter
    def url(self, url: str) -> None:
        with self._lock:
            self._endpoint.url = url
            self._drop_transport()

    @property
    def method(self) -> str:
        """The method; settable."""
        return self._method

    @method.setter
    def method(self, method: str) -> None:
        self._method = _checked_method(method, self._body, self._compression)

    @property
    def body(self) -> BodyFormat:
        """The format of a request's body."""
        return self._body

    @property
    def timeout(self) -> tuple[float, float]:
        """Seconds to connect, and for the rest of a request; settable."""
        return self._endpoint.timeout

    @timeout.setter
    def timeout(self, timeout: float | dt.timedelta | tuple[float | dt.timedelta, float | dt.timedelta]) -> None:
        self._endpoint.timeout = checked_timeout(timeout)

    # -- methods to override

    def map_event(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return the dict to send for *event*, which must not be changed; the default applies ``fields``.

        Called in the thread that logs, after level and processors. Raise `structlog.DropEvent` to filter the event.
        """
        return event if self._projection is None else self._projection.project(event)

    # -- the sink

    def encode(self, event: dict[str, Any]) -> Encoded:
        """Return an item with the dict to send, rendered, and the level and time of *event* itself."""
        event = zoned(event, self._naive)
        mapped = self.map_event(event)
        if not isinstance(mapped, dict):
            msg = f"map_event returned {type(mapped).__name__}, not a dict"
            raise TypeError(msg)
        prepared = self._body.prepare(mapped)
        item = self._encoded(event, line_to_send(prepared))
        return typed(item, prepared) if self._body.keeps_types else item

    def emit(self, event: dict[str, Any]) -> None:
        """Send one event in one request, without a retry."""
        result = self.emit_batch([self.encode(event)])
        if result is not None:
            # A collector may refuse the event in a response of 2xx.
            if result.retry:
                msg = f"{self._endpoint.peer} asked for the event again"
                raise TemporaryDeliveryError(msg, result.retry_after)
            raise PermanentDeliveryError(
                next(iter(result.rejected.values()), f"{self._endpoint.peer} refused the event")
            )

    @reads_data_alone()  # unless the format reads more: see needs_moment
    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Send *batch* in one request, or in several if the format or ``max_body_bytes`` requires that.

        If the first of several requests fails, its error is raised. If a later one fails, its events and those of the
        requests after it are left for a retry. With one event in each request, sending continues after an event that
        was refused for good.
        """
        return Parts(
            batch if isinstance(batch, Batch) else Batch(batch),
            single=self._body.single,
            encode=self._body.encode,
            send=self._send,
            history=self._history,
        ).send()

    # -- one request

    def _send(self, batch: Batch, body: bytes, key: str) -> BatchResult | None:
        # Not the server's own limit: the server itself refuses a single event that is larger.
        if len(body) > self._max_body_bytes:
            msg = (
                f"{self._endpoint.peer}: the event makes a body of {len(body)} bytes, of {self._max_body_bytes} at most"
            )
            raise OversizeDeliveryError(msg)
        endpoint = self._endpoint
        token = endpoint.token()
        url, data, content = endpoint.request_url, None, {}
        if self._method == "GET":
            url += ("&" if "?" in url else "?") + body.decode("ascii")
        else:
            data, content = body, {"Content-Type": self._body.content_type}
            if self._compress is not None and self._compression is not None:
                data = self._compress(body)
                content["Content-Encoding"] = self._compression
        reply = self._exchange(
            Request(
                self._method,
                url,
                endpoint.headers_for(key, token, content),
                data,
                self._body.max_response_bytes if self._reads else _MAX_IGNORED_BYTES,
            )
        )
        if not 200 <= reply.status < 300:
            raise self._failure(reply, batch, token)
        return self._read(reply, batch, token) if self._reads else None

    def _exchange(self, request: Request) -> Reply:
        with self._lock:
            if self._closed:
                msg = f"{self.name} is closed"
                raise SinkClosedError(msg)
            try:
                with delivering():  # for callers of emit_batch other than sinks
                    transport = self._transport
                    if transport is None:
                        transport = self._transport = self._transport_class(self._endpoint)
                    return transport.exchange(request)
            finally:
                if self._closed:  # close() has timed out meanwhile
                    self._drop_transport()

    def _failure(self, reply: Reply, batch: Batch, token: str | None) -> DeliveryError:
        try:
            own = self._body.refusal(reply.status, reply.headers, reply.body)
        except Exception:
            own = None
        if own is not None:
            return self._cleaned(own, batch, token)
        failure = failure_of(
            reply.status,
            reply.headers,
            peer=self._endpoint.peer,
            now=self._clock(),
            in_url=self._method == "GET",
        )
        assert failure is not None
        if isinstance(failure, OversizeDeliveryError):
            limit = told_limit_bytes(reply.headers)
            if limit is not None:
                self._history.room_bytes = min(limit, self._max_body_bytes)
            return failure
        if type(failure) is TemporaryDeliveryError:
            return failure
        events = [item.event for item in batch]
        said = quote(reply.body, reply.headers, self._endpoint.secrets(token), events)
        message = f"{failure}: {said}" if said else str(failure)
        if isinstance(failure, PausedDeliveryError):
            return PausedDeliveryError(message, failure.retry_after)
        page = is_page(reply.headers, reply.body)
        if reply.status == _UNPROCESSABLE and not page:
            return PermanentDeliveryError(message)
        return RefusedDeliveryError(message, is_page=page)

    def _read(self, reply: Reply, batch: Batch, token: str | None) -> BatchResult | None:
        """Return the result that the body of a successful response states.

        Raises:
            DeliveryError: If no event was taken, or the body cannot be read.
        """
        if not reply.whole:
            msg = f"{self._endpoint.peer} answered {reply.status}, but not all of the answer came"
            raise TemporaryDeliveryError(msg)
        failure = None
        result = None
        try:
            result = self._body.read(reply.status, reply.headers, reply.body, batch)
        except DeliveryError as error:
            failure = self._cleaned(error, batch, token)
        except Exception as error:
            msg = f"{self._endpoint.peer} answered {reply.status}, but what it says cannot be read"
            failure = TemporaryDeliveryError(f"{msg} ({type(error).__name__})")
        if failure is not None:
            raise failure
        if result is None or not result.rejected:
            return result
        secrets = self._endpoint.secrets(token)
        reasons = {
            index: clean(reason, secrets, [batch[index].event] if index in range(len(batch)) else [])
            for index, reason in result.rejected.items()
        }
        return BatchResult(result.retry, reasons, result.rejected_unknown, result.retry_after)

    def _cleaned(self, error: DeliveryError, batch: Batch, token: str | None) -> DeliveryError:
        message = clean(str(error), self._endpoint.secrets(token), [item.event for item in batch])
        kind = type(error)
        if isinstance(error, TemporaryDeliveryError):
            return (PausedDeliveryError if issubclass(kind, PausedDeliveryError) else TemporaryDeliveryError)(
                message, error.retry_after, error.halve_after
            )
        return (OversizeDeliveryError if issubclass(kind, OversizeDeliveryError) else PermanentDeliveryError)(message)

    # -- the rest

    @property
    def plain(self) -> bool:
        """True if events are sent unchanged; see `Forwarding.plain`."""
        own = type(self)
        return (
            own.encode is HTTPSink.encode
            and own.map_event is HTTPSink.map_event
            and own.make_item is Sink.make_item
            and type(self._body).prepare is BodyFormat.prepare
            and self._projection is None
            and "map_event" not in vars(self)
            and not self._processors
            and self._naive == "utc"
        )

    @property
    def needs_moment(self) -> bool:
        """True if the format of the body reads an event's level or time; see `Forwarding.needs_moment`."""
        return super().needs_moment or not getattr(type(self._body).encode, "reads_data_alone", False)

    @property
    def keeps_types(self) -> bool:
        """True if the format of the body does; see `Forwarding.keeps_types`."""
        return self._body.keeps_types

    def _reads_metadata(self) -> bool:
        mapped = type(self).map_event is not HTTPSink.map_event or "map_event" in vars(self)
        return mapped or bool(self._processors)

    def _prepare_reads_metadata(self) -> bool:
        return type(self).encode is not HTTPSink.encode or self._reads_metadata()

    def _drop_transport(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def _release(self) -> None:
        self._drop_transport()

    def _give_up(self) -> None:
        transport = self._transport
        if transport is not None:
            transport.abort()

    def after_fork(self) -> None:
        """Reset the sink in a forked child, without touching the parent's connection."""
        transport, self._transport = self._transport, None
        super().after_fork()
        if transport is not None:
            transport.abandon()

    def _describe(self) -> str:
        return f"{self._method} {type(self._body).__name__} to {self._endpoint!r}"


def _checked_body(body: Any) -> BodyFormat:
    if body is None:
        return JSONObject()
    if not isinstance(body, BodyFormat):
        msg = f"body={body!r} is not a BodyFormat, such as NDJSON()"
        raise TypeError(msg)
    return body


def _checked_method(method: Any, body: BodyFormat, compression: Any) -> str:
    if not isinstance(method, str) or method.upper() not in _METHODS:
        msg = f"method={method!r} is not one of {', '.join(_METHODS)}"
        raise ValueError(msg)
    if method.upper() == "GET" and (not isinstance(body, FormURLEncoded) or compression is not None):
        msg = f"method={method!r} sends the event in the URL, which needs body=FormURLEncoded() and no compression"
        raise ValueError(msg)
    return method.upper()


def _compressor(compression: Any) -> Callable[[bytes], bytes] | None:
    """Return a function that compresses a body. Its modules are imported here, and not later in a thread."""
    if compression is None:
        return None
    if compression == "gzip":
        import gzip

        return lambda body: gzip.compress(body, compresslevel=6, mtime=0)
    if compression == "zstd":
        zstandard = extra_module("zstandard", "zstd")
        return lambda body: zstandard.ZstdCompressor().compress(body)
    msg = f"compression={compression!r} is not 'gzip', 'zstd' or None"
    raise ValueError(msg)


def _checked_max_body(max_body_bytes: int) -> int:
    if checked_size(max_body_bytes, "max_body_bytes") == 0:
        msg = "max_body_bytes=0 leaves no room for an event"
        raise ValueError(msg)
    return max_body_bytes

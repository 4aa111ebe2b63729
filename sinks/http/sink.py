"""Events over HTTP: `HTTPSink`, and the general formats of its bodies."""

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
    MissingDependencyError,
    OversizeDeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    SinkClosedError,
    TemporaryDeliveryError,
)
from outfall.sinks.event.event import NaiveTimestamps, checked_naive, zoned
from outfall.sinks.event.fields import Projection
from outfall.sinks.event.json import line_to_send
from outfall.sinks.event.levels import NOTSET, Level
from outfall.sinks.http.answers import RefusedDeliveryError, clean, failure_of, is_page, quote, told_limit_bytes
from outfall.sinks.http.bodies import NDJSON, BodyFormat, FormURLEncoded, JSONArray, JSONObject
from outfall.sinks.http.endpoint import Endpoint
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

#: What a request may be.
Method = Literal["GET", "POST", "PUT", "PATCH"]
_METHODS = get_args(Method)

#: What nginx takes unless it is told otherwise.
_MAX_BODY_BYTES = 1_048_576

#: What is read of an answer whose status says it all.
_MAX_IGNORED_BYTES = 65_536


class HTTPSink(Sink):
    """Send events to a URL, one or many in a request.

    Put a background sink or a spool in front: it makes batches, retries, and lets nobody wait. Alone, each event is one
    request, made in the thread that logs and tried once.

    Args:
        url: Where to, ``http://`` or ``https://``, or the path of a Unix socket: ``http+unix:///run/c.sock``, with the
            request's path behind a colon, ``http+unix:///run/c.sock:/push``, or behind the encoded path of the socket,
            ``http+unix://%2Frun%2Fc.sock/push``. A user name and password in it are taken out, for *auth*.
        method: ``"POST"`` (default), ``"PUT"``, ``"PATCH"``, or ``"GET"``, which needs a *body* of `FormURLEncoded`.
        body: What a request's body looks like, a `BodyFormat`. Default ``JSONObject()``: one event a request. `NDJSON`
            and `JSONArray` take many; collectors have formats of their own.
        fields: What of an event to send: paths, or a mapping from new names; see `Projection`. Default None: all.
        headers: More headers. Names that look like those of credentials (``DD-API-KEY``) are treated as such.
            Default none.
        auth: User name and password, or any of requests' authentication objects. Default None.
        token: Sent as ``Authorization: Bearer …``: a text, or a callable without arguments that returns one. It is
            called for every request, so after an answer of 401 or 403 too. Default None.
        token_scheme: What stands before the token instead of ``"Bearer"``, such as ``"Splunk"`` or ``"ApiKey"``.
        timeout: Seconds for connecting (TLS included), and for everything else, from the request's first byte to the
            answer's last; each a number or a timedelta, or one for both. No request takes longer than both together,
            however slowly the server takes or gives; the system's resolver of names keeps times of its own. Default
            ``(3.05, 10)``.
        verify: True to trust the certificate authorities that requests trusts, or those in the file that
            ``REQUESTS_CA_BUNDLE`` names (default); the path of a file or directory of others; False to trust anybody.
        cert: The client's certificate: the path of a file with the key in it, or paths of certificate and key. Default
            None.
        ssl_context: An `ssl.SSLContext` to encrypt with, instead of *verify* and *cert*. Default None.
        proxies: Proxies by scheme, ``{"https": "http://proxy:3128"}``. Default None: those of the environment
            (``HTTPS_PROXY``, ``NO_PROXY`` …), which are looked up before the first request.
        compression: ``"gzip"``, ``"zstd"`` (with the extra ``zstd``), or None (default).
        max_body_bytes: The largest body, before compression. A batch with a larger one is sent in several requests; an
            event that is too large alone is refused. Default 1 048 576, which is what nginx takes.
        session: A `requests.Session` of yours, which is not closed: its adapters, hooks, cookies and headers are used
            as they are, so that *timeout* is what requests makes of it: the second number counts anew with each byte
            that comes. Default None: one that is made here.
        allow_insecure: True to send credentials over plain ``http://`` to a host that is not this one. Default False.
        naive_timestamps: What an event's ``timestamp`` of text without a zone is: ``"utc"`` (default), as structlog's
            ``TimeStamper`` writes it unless it is asked for local time, or ``"local"``, which is sent with the zone.
        max_connection_age: Seconds, a timedelta or text such as ``"10m"``, after which the next request is sent over a
            new connection, so that a changed address of the name, or a new backend of a balancer, is found. Default
            None: a connection is used as long as it works.
        clock: What tells the time, in seconds since the epoch, for dates in ``Retry-After``. Default `time.time`.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If an argument is out of range, two of them contradict each other, or credentials would cross the
            network in plain text and *allow_insecure* is not True.
        TypeError: If an argument is of another type.
        MissingDependencyError: For ``compression="zstd"`` without zstandard.

    What an answer means: 2xx, the events were taken. 408, 409, 425, 429, 5xx, and no answer at all:
    `TemporaryDeliveryError` with what ``Retry-After`` says. 413: `OversizeDeliveryError`; if it has an
    ``Upload-Limit``, later bodies keep it. 400 and 422: `PermanentDeliveryError` for an event that is refused while
    others of its batch are taken; a batch is divided to find it. If none is taken, and after all other 4xx and
    redirects, which are never followed: `PausedDeliveryError`. The last two have the server's words, short, and
    without what they repeat of the events. No failure holds a part of an event, the URL's path or query, or a
    credential, nor does the ``repr``.

    Each request has an ``Idempotency-Key``, the batch's: the same whenever the batch is tried again. A connection is
    kept alive and used again. If it turns out to have been closed meanwhile, before any answer came, the request is
    sent once more over a new one at once, with the same key. That, and any answer that was lost on its way, may bring
    an event twice to servers that do not look at the key.

    Safe from any thread; requests leave one after the other. A forked child opens a connection of its own, and leaves
    the parent's alone. ``flush`` and ``close`` wait for a request under way, and keep their timeout whatever it does;
    one that is under way when ``close`` gives up is broken off. ``.netrc`` is not read.

    Source: `logging.handlers.HTTPHandler`, whose ``mapLogRecord`` is `map_event`; RFC 9110;
    https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/.
    """

    delivers_through_loggers = True  # urllib3 and requests log

    # It has its own way of locking: a token's callable is not called under the lock.
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
        self._history = History()
        #: What the server said that it takes at most.
        self._told_bytes: int | None = None
        self._body = _checked_body(body)
        self._compression = compression
        self._compress = _compressor(compression)
        self._method = _checked_method(method, self._body, self._compression)
        self._projection = fields if fields is None or isinstance(fields, Projection) else Projection(fields)
        self._max_body_bytes = _checked_max_body(max_body_bytes)
        #: True if answers tell more than their status.
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
        super().__init__(level=level, processors=processors, on_error=on_error, name=name)

    # -- attributes, as of the handler

    @property
    def url(self) -> str:
        """Where to, without credentials; settable."""
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
        """What a request's body looks like."""
        return self._body

    @property
    def timeout(self) -> tuple[float, float]:
        """Seconds for connecting, and for everything else; settable."""
        return self._endpoint.timeout

    @timeout.setter
    def timeout(self, timeout: float | dt.timedelta | tuple[float | dt.timedelta, float | dt.timedelta]) -> None:
        self._endpoint.timeout = timeout

    # -- what may be overridden

    def map_event(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return what to send of *event*, which must not be changed; the default applies ``fields``.

        Called in the thread that logs, after level and processors. Raise `structlog.DropEvent` to filter the event.
        """
        return event if self._projection is None else self._projection.project(event)

    # -- the sink

    def encode(self, event: dict[str, Any]) -> Encoded:
        """Return what to send of *event*, rendered; its level and its time are those of the event itself."""
        event = zoned(event, self._naive)
        mapped = self.map_event(event)
        if not isinstance(mapped, dict):
            msg = f"map_event returned {type(mapped).__name__}, not a dict"
            raise TypeError(msg)
        prepared = self._body.prepare(mapped)
        item = self._encoded(event, line_to_send(prepared))
        return typed(item, prepared) if self._body.keeps_types else item

    def emit(self, event: dict[str, Any]) -> None:
        """Send one event, in one request, once."""
        result = self.emit_batch([self.encode(event)])
        if result is not None:
            # A collector's answer of 2xx that says otherwise.
            if result.retry:
                msg = f"{self._endpoint.peer} asked for the event again"
                raise TemporaryDeliveryError(msg, result.retry_after)
            raise PermanentDeliveryError(
                next(iter(result.rejected.values()), f"{self._endpoint.peer} refused the event")
            )

    @reads_data_alone()  # but for the body: see needs_moment
    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Send *batch* in one request, or in several where the format or ``max_body_bytes`` asks for that.

        If the first of several fails, its failure is raised. If a later one does, it and what comes after it are left
        for a retry; requests of one event go on after one that was refused for good.
        """
        whole = batch if isinstance(batch, Batch) else Batch(batch)
        if not len(whole):
            return None
        return Parts(
            whole,
            single=self._body.single,
            room_bytes=self._room_bytes,
            encode=self._body.encode,
            send=self._send,
            history=self._history,
        ).send()

    def _room_bytes(self) -> int:
        """Return how large a body of several events may be."""
        told = self._told_bytes
        return self._max_body_bytes if told is None else min(told, self._max_body_bytes)

    # -- one request

    def _send(self, batch: Batch, body: bytes, key: str) -> BatchResult | None:
        # Not what the server told: one event that is larger than that is for the server to refuse.
        if len(body) > self._max_body_bytes:
            msg = (
                f"{self._endpoint.peer}: the event makes a body of {len(body)} bytes, of {self._max_body_bytes} at most"
            )
            raise OversizeDeliveryError(msg)
        token = self._endpoint.token()
        headers = self._headers(key, token)
        url, data = self._endpoint.request_url, body
        if self._method == "GET":
            url += ("&" if "?" in url else "?") + body.decode("ascii")
            reply = self._exchange(url, headers, None)
        else:
            if self._compress is not None:
                data = self._compress(body)
            reply = self._exchange(url, headers, data)
        if not 200 <= reply.status < 300:
            raise self._failure(reply, batch, token)
        return self._read(reply, batch, token)

    def _headers(self, key: str, token: str | None) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "Idempotency-Key": key}
        if self._endpoint.is_bare:
            headers |= {"User-Agent": "outfall", "Accept": "*/*"}
        if self._method != "GET":
            headers["Content-Type"] = self._body.content_type
            if self._compression is not None:
                headers["Content-Encoding"] = self._compression
        return self._endpoint.headers_with(token, headers)

    def _exchange(self, url: str, headers: dict[str, str], data: bytes | None) -> Reply:
        with self._lock:
            if self._closed:
                msg = f"{self.name} is closed"
                raise SinkClosedError(msg)
            transport = self._transport
            if transport is None:
                transport = self._transport = self._endpoint.open()
            try:
                with delivering():  # also where emit_batch was called by no sink
                    return transport.exchange(
                        self._method,
                        url,
                        headers,
                        data,
                        auth=self._endpoint.auth,
                        timeout=self._endpoint.timeout,
                        limit_bytes=self._body.max_response_bytes if self._reads else _MAX_IGNORED_BYTES,
                    )
            finally:
                if self._closed:  # and close() did not wait for it
                    self._drop_transport()

    def _failure(self, reply: Reply, batch: Batch, token: str | None) -> DeliveryError:
        own = None
        if type(self._body).refusal is not BodyFormat.refusal:
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
            told = told_limit_bytes(reply.headers)
            if told is not None:
                self._told_bytes = told
            return failure
        if type(failure) is TemporaryDeliveryError:
            return failure
        events = [item.event for item in batch]
        said = quote(reply.body, reply.headers, self._endpoint.secrets(token), events)
        message = f"{failure}: {said}" if said else str(failure)
        if isinstance(failure, PausedDeliveryError):
            return PausedDeliveryError(message, failure.retry_after)
        return RefusedDeliveryError(message, is_page=is_page(reply.headers, reply.body))

    def _read(self, reply: Reply, batch: Batch, token: str | None) -> BatchResult | None:
        """Return what a successful answer says besides."""
        if not self._reads:
            return None
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
        told = clean(str(error), self._endpoint.secrets(token), [item.event for item in batch])
        kind = type(error)
        if isinstance(error, TemporaryDeliveryError):
            return (PausedDeliveryError if issubclass(kind, PausedDeliveryError) else TemporaryDeliveryError)(
                told, error.retry_after, error.halve_after
            )
        return (OversizeDeliveryError if issubclass(kind, OversizeDeliveryError) else PermanentDeliveryError)(told)

    # -- the rest

    @property
    def plain(self) -> bool:
        """See `Forwarding.plain`: where the events go as they are."""
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
        """See `Forwarding.needs_moment`: where the format of the body looks at an event's level or time."""
        return super().needs_moment or not getattr(type(self._body).encode, "reads_data_alone", False)

    @property
    def keeps_types(self) -> bool:
        """See `Forwarding.keeps_types`: if the format does."""
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
        """Begin anew in a forked child; leave the parent's connection alone."""
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
    """Return what compresses a body. All that it needs is imported here, as the transport is, and not in a thread."""
    if compression is None:
        return None
    if compression == "gzip":
        import gzip

        return lambda body: gzip.compress(body, compresslevel=6, mtime=0)
    if compression == "zstd":
        try:
            import zstandard
        except ImportError:
            raise MissingDependencyError(package="zstandard", extra="zstd") from None
        return lambda body: zstandard.ZstdCompressor().compress(body)
    msg = f"compression={compression!r} is not 'gzip', 'zstd' or None"
    raise ValueError(msg)


def _checked_max_body(max_body_bytes: int) -> int:
    if checked_size(max_body_bytes, "max_body_bytes") == 0:
        msg = "max_body_bytes=0: there has to be room for something"
        raise ValueError(msg)
    return max_body_bytes

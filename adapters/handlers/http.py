"""The drop-in twin of the handler for web servers: `HTTPHandler`."""

from __future__ import annotations

import logging
import logging.handlers
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from outfall.adapters.handlers.twin import Twin, is_own
from outfall.sinks.core.reentrancy import delivering
from outfall.sinks.core.reporting import describe
from outfall.sinks.errors import ReentrantEventError
from outfall.sinks.event.event import LevelledEvent
from outfall.sinks.http.bodies import FormURLEncoded
from outfall.sinks.http.endpoint import Endpoint
from outfall.sinks.http.sink import HTTPSink

if TYPE_CHECKING:
    import http.client
    import ssl
    from collections.abc import Sequence

    from outfall.sinks.core.item import Encoded
    from outfall.sinks.http.client import Reply

#: Those of `HTTPSink`, in seconds.
_TIMEOUT = (3.05, 10.0)

_MAX_BODY_BYTES = 1 << 40
_MAX_ANSWER_BYTES = 65_536


class _FormEvent(LevelledEvent):
    """An event of which a handler has made a form."""

    __slots__ = ("form",)

    def __init__(self, form: str, record: logging.LogRecord) -> None:
        super().__init__({}, record.levelno)
        self.form = form


class _Form(FormURLEncoded):
    def encode(self, batch: Sequence[Encoded]) -> bytes:
        """Return what the handler has made."""
        return batch[0].data


class _FormsSink(HTTPSink):
    #: As of `Lent`, which is for sinks that write bytes.
    owner: Any = None

    _settings: tuple[Any, ...] = ()

    def follow(self, handler: HTTPHandler) -> None:
        """Take over what is another now."""
        settings = (handler.host, handler.url, handler.secure, handler.credentials, handler.context)
        if settings != self._settings:
            with self._lock:
                self._endpoint = _endpoint(*settings)
                self._settings = settings
                self._drop_transport()
        if self.method != handler.method:
            self.method = handler.method

    def encode(self, event: dict[str, Any]) -> Encoded:
        """Return what the handler has made."""
        if isinstance(event, _FormEvent):
            return self._encoded(event, event.form.encode("utf-8"))
        return super().encode(event)

    def put(self, event: _FormEvent) -> None:
        """Send *event*; raise if that failed, which the ledger knows then."""
        try:
            self.deliver(event)
        except ReentrantEventError:
            pass  # counted; what is logged while a record is sent would be sent for ever
        except Exception as error:
            self._ledger.last_error = describe(error)
            raise

    def _exchange(self, url: str, headers: dict[str, str], data: bytes | None) -> Reply:
        owner = self.owner
        if is_own(owner.getConnection, HTTPHandler.getConnection):
            return super()._exchange(url, headers, data)
        from outfall.sinks.http.client import Reply

        parts = urlsplit(url)
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        with self._lock, delivering():
            connection = owner.getConnection(owner.host, owner.secure)
            try:
                connection.request(self.method, target, body=data, headers=headers)
                answer = connection.getresponse()
                body = answer.read(_MAX_ANSWER_BYTES)
                return Reply(answer.status, dict(answer.getheaders()), body, whole=True)
            finally:
                connection.close()


def _endpoint(
    host: str,
    url: str,
    secure: bool,
    credentials: tuple[str, str] | None,
    context: ssl.SSLContext | None,
) -> Endpoint:
    if secure and context is None:
        import ssl

        # As http.client does it, and not with the authorities that requests brings along.
        context = ssl.create_default_context()
    return Endpoint(
        f"{'https' if secure else 'http'}://{host}{url if url.startswith('/') else '/' + url}",
        headers=None,
        format_headers={},
        auth=tuple(credentials) if credentials else None,
        token=None,
        token_scheme="Bearer",
        timeout=_TIMEOUT,
        verify=True,
        cert=None,
        ssl_context=context if secure else None,
        # None at all: those of the environment are what getConnection is for.
        proxies={"http": "", "https": ""},
        session=None,
        # As the original does it, credentials are sent in plain text if that is what is asked for.
        allow_insecure=True,
    )


class HTTPHandler(Twin, logging.handlers.HTTPHandler):
    """A drop-in twin of `logging.handlers.HTTPHandler`: send each record to a web server, as a form, by an `HTTPSink`.

    Args:
        host: Name or address, or ``"host:port"``.
        url: The path, maybe with a query.
        method: ``"GET"``, which puts the form into the query, or ``"POST"``.
        secure: True for HTTPS.
        credentials: ``(user, password)`` for Basic authentication, or None.
        context: An `ssl.SSLContext` for HTTPS. Default None: that of `ssl.create_default_context`.

    Raises:
        ValueError: If *method* is another, or *context* comes without *secure*.

    Attributes:
        host: As above; like the others read for each record.
        url: As above.
        method: As above.
        secure: As above.
        credentials: As above.
        context: As above.

    What may be overridden: ``mapLogRecord``, which returns what to send of a record; ``getConnection``, whose
    connection is used then. Where it differs from its namesake on purpose: :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#httphandler
    """

    def __init__(
        self,
        host: str,
        url: str,
        method: str = "GET",
        secure: bool = False,
        credentials: tuple[str, str] | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        Twin.__init__(self)
        method = method.upper()
        if method not in ("GET", "POST"):
            msg = f"method={method!r} is neither GET nor POST"
            raise ValueError(msg)
        if context is not None and not secure:
            msg = f"context={context!r}: with secure=False nothing is encrypted"
            raise ValueError(msg)
        self.host = host
        self.url = url
        self.method = method
        self.secure = secure
        self.credentials = credentials
        self.context = context

    def make_sink(self) -> HTTPSink:
        """Return the sink."""
        return _FormsSink(
            "http://localhost/",
            body=_Form(),
            max_body_bytes=_MAX_BODY_BYTES,
            on_error="raise",
            name=type(self).__name__,
        )

    def mapLogRecord(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return what to send of *record*: by default all its attributes."""
        return vars(record)

    def getConnection(self, host: str, secure: bool) -> http.client.HTTPConnection:
        """Return a connection to *host*, not yet connected.

        Overridden, what it returns is used for each record, and closed then.
        """
        from http.client import HTTPConnection, HTTPSConnection

        return HTTPSConnection(host, context=self.context) if secure else HTTPConnection(host)

    def emit(self, record: logging.LogRecord) -> None:
        """Send *record*; a failure goes to ``handleError``, and so does an answer other than 2xx."""
        try:
            event = _FormEvent(urlencode(self.mapLogRecord(record)), record)
            with self.at_work() as sink:
                sink.follow(self)
                sink.put(event)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Let go of the connection; the next record makes another."""
        with self.at_work() as sink:
            sink._drop_transport()
            logging.Handler.close(self)

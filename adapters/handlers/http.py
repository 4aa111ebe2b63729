"""The drop-in twin of the handler for web servers: `HTTPHandler`."""

from __future__ import annotations

import logging
import logging.handlers
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from outfall.adapters.handlers.base import Twin, account_of, untouched
from outfall.sinks.core.reentrancy import delivering
from outfall.sinks.core.reporting import describe
from outfall.sinks.errors import ReentrantEventError
from outfall.sinks.event.event import LevelledEvent
from outfall.sinks.http.bodies import FormURLEncoded
from outfall.sinks.http.endpoint import Endpoint
from outfall.sinks.http.sink import HTTPSink

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from outfall.sinks.core.item import Encoded
    from outfall.sinks.http.client import Reply

#: Those of `HTTPSink`, in seconds.
_TIMEOUT = (3.05, 10.0)

_HTTPHandler = logging.handlers.HTTPHandler

#: Headers that `http.client` writes with the request line, and those that are counted here.
_BY_PUTREQUEST = frozenset({"host", "accept-encoding", "content-length", "connection"})

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
    #: The handler that sends now.
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

    def put(self, handler: HTTPHandler, event: _FormEvent) -> None:
        """Send *event* as *handler* says; raise if that failed, which the ledger knows then."""
        try:
            # Around all: a copy of the handler has other attributes.
            with self._lock:
                before, self.owner = self.owner, handler
                try:
                    self.follow(handler)
                    self.deliver(event)
                finally:
                    self.owner = before
        except ReentrantEventError:
            pass  # counted; what is logged while a record is sent would be sent for ever
        except Exception as error:
            self._ledger.last_error = describe(error)
            raise

    def _exchange(self, url: str, headers: dict[str, str], data: bytes | None) -> Reply:
        owner = self.owner
        if untouched(owner.getConnection, _HTTPHandler.getConnection):
            return super()._exchange(url, headers, data)
        from http.client import HTTPResponse

        from outfall.sinks.http.client import Reply

        parts = urlsplit(url)
        with self._lock, delivering():
            # The calls are those of the original: it may be any object that has these methods.
            connection = owner.getConnection(owner.host, owner.secure)
            try:
                connection.putrequest(self.method, f"{parts.path}?{parts.query}" if parts.query else parts.path)
                for name, value in headers.items():
                    if name.lower() not in _BY_PUTREQUEST:
                        connection.putheader(name, value)
                if data is not None:
                    connection.putheader("Content-length", str(len(data)))
                connection.endheaders()
                if data is not None:
                    connection.send(data)
                answer = connection.getresponse()
                if not isinstance(answer, HTTPResponse):
                    return Reply(getattr(answer, "status", 200), {}, b"", whole=True)
                return Reply(answer.status, dict(answer.getheaders()), answer.read(_MAX_ANSWER_BYTES), whole=True)
            finally:
                if hasattr(connection, "close"):
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


class HTTPHandler(Twin, _HTTPHandler):
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

    def _outfall_make_sink(self) -> HTTPSink:
        return _FormsSink(
            "http://localhost/",
            body=_Form(),
            max_body_bytes=_MAX_BODY_BYTES,
            on_error="raise",
            name=type(self).__name__,
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Send *record*; a failure goes to ``handleError``, and so does an answer other than 2xx."""
        try:
            sink = account_of(self, _FormsSink, HTTPHandler._outfall_make_sink)
            sink.put(self, _FormEvent(urlencode(self.mapLogRecord(record)), record))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Let go of the connection; the next record makes another."""
        account = getattr(self, "_outfall_account", None)
        if isinstance(account, _FormsSink):
            account._drop_transport()
        logging.Handler.close(self)

"""The drop-in twin of the handler for web servers: `HTTPHandler`."""

from __future__ import annotations

import logging
import logging.handlers
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from outfall.adapters.handlers.base import Twin, account_of, is_not_overridden
from outfall.sinks.core.reentrancy import delivering
from outfall.sinks.core.reporting import describe
from outfall.sinks.errors import ReentrantEventError
from outfall.sinks.event.event import LevelledEvent
from outfall.sinks.http.bodies import FormURLEncoded
from outfall.sinks.http.endpoint import Endpoint, Request
from outfall.sinks.http.sink import HTTPSink

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from outfall.sinks.core.item import Encoded
    from outfall.sinks.http.client import Reply

#: Seconds to connect and to read, as for `HTTPSink`.
_TIMEOUT = (3.05, 10.0)

_HTTPHandler = logging.handlers.HTTPHandler

#: Headers not passed on to the connection: `http.client` writes the first two, and `_exchange` the length. It uses each
#: connection once.
_BY_PUTREQUEST = frozenset({"host", "accept-encoding", "content-length", "connection"})

_MAX_BODY_BYTES = 1 << 40
_MAX_ANSWER_BYTES = 65_536


class _FormEvent(LevelledEvent):
    """An event that carries the form a handler made of its record."""

    __slots__ = ("form",)

    def __init__(self, form: str, record: logging.LogRecord) -> None:
        super().__init__({}, record.levelno)
        self.form = form


class _Form(FormURLEncoded):
    def encode(self, batch: Sequence[Encoded]) -> bytes:
        """Return the form as the handler made it."""
        return batch[0].data


class _FormsSink(HTTPSink):
    #: The handler whose record is being sent.
    owner: Any = None

    _settings: tuple[Any, ...] = ()

    def follow(self, handler: HTTPHandler) -> None:
        """Apply attributes of *handler* that have changed."""
        settings = (handler.host, handler.url, handler.secure, handler.credentials, handler.context)
        if settings != self._settings:
            with self._lock:
                self._endpoint = _endpoint(*settings)
                self._settings = settings
                self._drop_transport()
        if self.method != handler.method:
            self.method = handler.method

    def encode(self, event: dict[str, Any]) -> Encoded:
        """Return an item with the form as the handler made it."""
        if isinstance(event, _FormEvent):
            return self._encoded(event, event.form.encode("utf-8"))
        return super().encode(event)

    def put(self, handler: HTTPHandler, event: _FormEvent) -> None:
        """Send *event* with the settings of *handler*; record a failure in the ledger, and raise it."""
        try:
            # One lock for both steps: a copy of the handler shares the sink but may have other settings.
            with self._lock:
                before, self.owner = self.owner, handler
                try:
                    self.follow(handler)
                    self.deliver(event)
                finally:
                    self.owner = before
        except ReentrantEventError:
            pass  # counted; sending what was logged during a request would never end
        except Exception as error:
            self._ledger.last_error = describe(error)
            raise

    def _exchange(self, request: Request) -> Reply:
        owner = self.owner
        if is_not_overridden(owner.getConnection, _HTTPHandler.getConnection):
            return super()._exchange(request)
        from http.client import HTTPResponse

        from outfall.sinks.http.client import Reply

        parts, data = urlsplit(request.url), request.body
        with self._lock, delivering():
            # Only methods that the original calls: the connection may be any object that has these.
            connection = owner.getConnection(owner.host, owner.secure)
            try:
                connection.putrequest(self.method, f"{parts.path}?{parts.query}" if parts.query else parts.path)
                for name, value in request.headers.items():
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

        # The system's certificate authorities, as http.client uses them, and not those of requests.
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
        # The original uses no proxy: an application overrides getConnection for one.
        proxies={"http": "", "https": ""},
        session=None,
        # The original sends credentials over plain HTTP too.
        allow_insecure=True,
    )


class HTTPHandler(Twin, _HTTPHandler):
    """A drop-in twin of `logging.handlers.HTTPHandler`: send each record to a web server as a form.

    It uses an `HTTPSink`.

    Args:
        host: Name or address, or ``"host:port"``.
        url: The path, with or without a query.
        method: ``"GET"`` to put the form into the query, or ``"POST"``.
        secure: True for HTTPS.
        credentials: ``(user, password)`` for Basic authentication, or None.
        context: An `ssl.SSLContext` for HTTPS. Default None: the result of `ssl.create_default_context`.

    Raises:
        ValueError: If *method* is neither, or *context* is given without *secure*.

    Attributes:
        host: As above. Each record is sent with the attributes as they are then.
        url: As above.
        method: As above.
        secure: As above.
        credentials: As above.
        context: As above.

    Methods to override: ``mapLogRecord``, which returns the fields of the form; ``getConnection``, which returns the
    connection to use. Deliberate differences from its namesake: :doc:`/explanation/handlers`.

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
        """Send *record*; call ``handleError`` on failure, and on a response other than 2xx."""
        try:
            sink = account_of(self, _FormsSink, HTTPHandler._outfall_make_sink)
            sink.put(self, _FormEvent(urlencode(self.mapLogRecord(record)), record))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Close the connection; the next record opens a new one."""
        account = getattr(self, "_outfall_account", None)
        if isinstance(account, _FormsSink):
            account._drop_transport()
        logging.Handler.close(self)

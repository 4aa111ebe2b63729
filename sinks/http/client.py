"""HTTP requests by `requests`, each of which is over in time: what `HTTPSink` sends through."""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401 - what the first name of a host would import, in a thread that a fork may interrupt  # pyright: ignore[reportUnusedImport]
import errno
import http.client
import io
import os
import queue
import socket
import ssl
from collections import deque
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

import requests
import requests.adapters
import urllib3.connection
import urllib3.connectionpool
import urllib3.exceptions
import urllib3.util.connection

from outfall.sinks.errors import LOST_ATTEMPTS, DeliveryError, PausedDeliveryError, TemporaryDeliveryError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: What is written to an encrypted connection at once: a TLS record.
_RECORD_BYTES = 16_384

_READ_BYTES = 65_536

#: A timeout of nothing would be a socket that does not wait at all.
_LEAST_SECONDS = 0.001


class _Exchange:
    """One request under way: the time it has, and what is known of its connection.

    Args:
        connect_seconds: For connecting, in all.
        total_seconds: For everything else.
    """

    __slots__ = ("connect_seconds", "connected", "due", "fresh", "received", "total_seconds")

    def __init__(self, connect_seconds: float, total_seconds: float) -> None:
        self.connect_seconds = connect_seconds
        self.total_seconds = total_seconds
        #: When it has to be over, by the monotonic clock.
        self.due = monotonic() + connect_seconds + total_seconds
        #: True once a connection was made for it; else one that was there is used.
        self.fresh = False
        #: True once there is a connection to send by.
        self.connected = False
        #: True once a byte of an answer has come.
        self.received = False

    def begin_to_send(self) -> None:
        """Note that there is a connection, so that connecting has had its time."""
        if not self.connected:
            self.connected = True
            self.due = min(self.due, monotonic() + self.total_seconds)

    def left(self) -> float:
        """Return the seconds left.

        Raises:
            TimeoutError: If none are.
        """
        left = self.due - monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class _State:
    """What an adapter and its connections share."""

    def __init__(self) -> None:
        #: What is under way.
        self.exchange = _Exchange(0, 0)
        #: The connections that are open, and their descriptors.
        self.connections: dict[_Paced, int] = {}


# -- connections that keep an exchange's time. requests' own timeout begins anew with each byte that comes.


class _PacedReader(io.RawIOBase):
    """The answer, read in the time that the exchange has left."""

    def __init__(self, sock: Any, exchange: _Exchange) -> None:
        self._sock = sock
        self._exchange = exchange
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._exchange.left())
        size: int | None = self._raw.readinto(buffer)
        if size:
            self._exchange.received = True
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()


class _PacedSocket:
    """What `http.client.HTTPResponse` is given for a socket."""

    def __init__(self, sock: Any, exchange: _Exchange) -> None:
        self._sock = sock
        self._exchange = exchange

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_PacedReader(self._sock, self._exchange))


class _Paced(urllib3.connection.HTTPConnection):
    """A connection that keeps the time of the exchange that it is used for."""

    #: Of the adapter that it belongs to.
    state: _State

    def _new_conn(self) -> socket.socket:
        exchange = self.state.exchange
        try:
            made = self._connect(exchange)
        except OSError as error:
            msg = "not connected"
            raise urllib3.exceptions.NewConnectionError(self, msg) from error
        exchange.fresh = True
        self.state.connections[self] = made.fileno()
        return made

    def _connect(self, exchange: _Exchange) -> socket.socket:
        """Try each address of the name; each has its share of the time that is left for all."""
        deadline = min(monotonic() + exchange.connect_seconds, exchange.due)
        host = str(getattr(self, "_dns_host", self.host)).strip("[]")
        family = urllib3.util.connection.allowed_gai_family()
        addresses = socket.getaddrinfo(host, self.port, family, socket.SOCK_STREAM)
        failure: OSError = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        for index, (kind, _, protocol, _, address) in enumerate(addresses):
            made = socket.socket(kind, socket.SOCK_STREAM, protocol)
            try:
                for option in self.socket_options or ():
                    made.setsockopt(*option)
                share = (deadline - monotonic()) / (len(addresses) - index)
                made.settimeout(max(share, _LEAST_SECONDS))
                made.connect(address)
                # The rest of it is for TLS, whose handshake keeps the socket's timeout as a whole.
                made.settimeout(max(deadline - monotonic(), _LEAST_SECONDS))
            except BaseException as error:
                made.close()
                if not isinstance(error, OSError):
                    raise
                failure = error
            else:
                return made
        try:
            raise failure
        finally:
            del failure  # its traceback holds this frame

    def send(self, data: Any) -> None:
        """Send *data* in the time that is left, also if the peer takes it byte by byte."""
        if self.sock is None:
            self.connect()
        exchange = self.state.exchange
        exchange.begin_to_send()
        sock: Any = self.sock
        if type(sock) is socket.socket:
            sock.settimeout(exchange.left())
            sock.sendall(data)  # as a whole within the timeout, which that of an encrypted socket is not
            return
        view = memoryview(data)
        for start in range(0, len(view), _RECORD_BYTES):
            sock.settimeout(exchange.left())
            sock.sendall(view[start : start + _RECORD_BYTES])

    def response_class(self, sock: Any, *args: Any, **options: Any) -> http.client.HTTPResponse:  # type: ignore[override]
        """Return a response that is read in time; `http.client` calls this to make one."""
        paced: Any = _PacedSocket(sock, self.state.exchange)
        return http.client.HTTPResponse(paced, *args, **options)

    def close(self) -> None:
        # First, so that a child that is forked in between does not close a descriptor that is somebody else's by then.
        self.state.connections.pop(self, None)
        super().close()


# To http.client response_class is a variable.
class _PacedTLS(_Paced, urllib3.connection.HTTPSConnection):  # pyright: ignore[reportIncompatibleVariableOverride]
    """The same, encrypted."""


class _Slots:
    """The free connections of a pool. A queue's lock might be held by another thread when the process forks."""

    def __init__(self, maxsize: int) -> None:
        self._maxsize = maxsize
        self._free: deque[Any] = deque()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        try:
            return self._free.pop()
        except IndexError:
            raise queue.Empty from None

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if len(self._free) >= self._maxsize:
            raise queue.Full
        self._free.append(item)

    def qsize(self) -> int:
        return len(self._free)


class _Pool(urllib3.connectionpool.HTTPConnectionPool):
    QueueCls: Any = _Slots


class _PoolTLS(urllib3.connectionpool.HTTPSConnectionPool):
    QueueCls: Any = _Slots

    def _validate_conn(self, conn: Any) -> None:
        # Without the warning at each request: verify=False is said on purpose.
        if conn.sock is None:
            conn.connect()


class _Adapter(requests.adapters.HTTPAdapter):
    """requests' adapter with connections that keep their time.

    Args:
        context: What to encrypt with, instead of what *verify* and *cert* say; or None.
    """

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self.state = _State()
        state = {"state": self.state}
        self._pools: dict[str, Any] = {
            "http": type("_Pool", (_Pool,), {"ConnectionCls": type("_Paced", (_Paced,), state)}),
            "https": type("_PoolTLS", (_PoolTLS,), {"ConnectionCls": type("_PacedTLS", (_PacedTLS,), state)}),
        }
        super().__init__(pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        if not proxy.lower().startswith("socks"):  # whose connections are of another class
            manager.pool_classes_by_scheme = self._pools
        return manager

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> tuple[Any, Any]:
        host, keywords = super().build_connection_pool_key_attributes(request, verify, cert)
        if self._context is None:
            return host, keywords
        # Nothing else: with authorities beside it they would be loaded into the user's own context.
        # Its mode is said, too: urllib3 before 2.0 would set another one.
        own: dict[str, Any] = {"ssl_context": self._context, "cert_reqs": self._context.verify_mode}
        if not self._context.check_hostname:
            own["assert_hostname"] = False
        return host, own

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        if self._context is None:
            super().cert_verify(conn, url, verify, cert)


# -- what the sink uses


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Args:
        status: The status code.
        headers: The headers; found by names in any case.
        body: The body, decompressed, or its beginning.
        whole: True if the body is all there.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool


class Transport:
    """A session of requests, for one thread at a time.

    Args:
        peer: Who is talked to, for messages: ``"host:port"``.
        session: The user's own session, or None for one that is made here.
        context: See `HTTPSink`, like the next three.
        verify: True, False, or a path.
        cert: A path, a pair of paths, or None.
        proxies: By scheme, or None for those of the environment.
    """

    def __init__(
        self,
        *,
        peer: str,
        session: requests.Session | None,
        context: ssl.SSLContext | None,
        verify: bool | str,
        cert: Any,
        proxies: Mapping[str, str] | None,
    ) -> None:
        self._peer = peer
        self._adapter = _Adapter(context) if session is None else None
        self._session = session if session is not None else requests.Session()
        if self._adapter is not None:
            self._session.mount("http://", self._adapter)
            self._session.mount("https://", self._adapter)
            self._session.headers.clear()
        # In a session that was given, True is overruled by what it has itself.
        self._verify = None if session is not None and verify is True else verify
        self._cert = cert
        self._proxies = dict(proxies or {})
        #: What the arguments and the environment together say.
        self._settings: Any = None
        #: True if it has got an answer before, so that a connection may be there that has ended meanwhile.
        self._used = False
        self._aborted = False

    def exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        auth: Any,
        timeout: tuple[float, float],
        limit_bytes: int,
    ) -> Reply:
        """Send a request and return the answer; once more if the connection turns out to have ended before it.

        Args:
            method: The method.
            url: The URL, without credentials.
            headers: All headers but ``Content-Length`` and what *auth* adds.
            body: The body, or None.
            auth: A callable that gets the prepared request, as requests has it; or None.
            timeout: Seconds for connecting, and for all the rest.
            limit_bytes: How much of the answer to read.

        Raises:
            TemporaryDeliveryError: If there is no answer.
            PausedDeliveryError: If the request cannot be made as it is.

        What is raised names the peer and what happened, and nothing of URL, headers or body.
        """
        exchange = _Exchange(*timeout)
        while True:
            stale = self._used and not exchange.fresh
            try:
                reply = self._exchange(exchange, method, url, headers, body, auth, timeout, limit_bytes)
            except Exception as error:
                again = stale and not (exchange.fresh or exchange.received or self._aborted) and _has_ended(error)
                failure = self._translated(error, exchange, timeout)
                _forget_frames(error)
            else:
                self._used = True
                return reply
            # Not true of the second attempt, so there is no third.
            self._used = False
            if not again:
                break
        # Outside the except clause, so that nothing hangs on to the original, which has the request in it.
        try:
            raise failure
        finally:
            del failure  # its traceback holds this frame, and the frames of who calls

    def _exchange(
        self,
        exchange: _Exchange,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        auth: Any,
        timeout: tuple[float, float],
        limit_bytes: int,
    ) -> Reply:
        if self._adapter is not None:
            self._adapter.state.exchange = exchange
        if self._adapter is None or auth is not None:
            return self._exchange_by_session(method, url, headers, body, auth, timeout, limit_bytes)
        if self._settings is None:
            self._settings = self._session.merge_environment_settings(
                url, self._proxies, stream=True, verify=self._verify, cert=self._cert
            )
        prepared = requests.PreparedRequest()
        prepared.prepare(method=method, url=url, headers=dict(headers), data=body)
        # Not by the session, which would read the whole of a redirect's answer, and a .netrc.
        settings = self._settings
        response = self._adapter.send(
            prepared,
            stream=True,
            timeout=(timeout[0], exchange.left()),
            verify=settings["verify"],
            cert=settings["cert"],
            proxies=settings["proxies"],
        )
        return _read(response, limit_bytes)

    def _exchange_by_session(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        auth: Any,
        timeout: tuple[float, float],
        limit_bytes: int,
    ) -> Reply:
        """Send it with everything that a session does: its hooks, cookies, headers."""
        session = self._session
        read: dict[int, tuple[requests.Response, Reply]] = {}

        def keep(response: requests.Response, **_: Any) -> None:
            reply = _read(response, limit_bytes)
            read[id(response)] = response, reply
            # So that nobody reads it without a limit: the session itself does for redirects.
            response._content = reply.body
            response._content_consumed = True

        hooks = session.hooks.get("response") or []
        response = session.request(
            method,
            url,
            headers=dict(headers),
            data=body,
            # requests looks into .netrc where there is none, and its credentials would take the place of a token.
            auth=_no_auth
            if any(name.lower() == "authorization" for name in headers)
            else auth or session.auth or _no_auth,
            timeout=timeout,
            allow_redirects=False,
            proxies=dict(self._proxies),
            hooks={"response": [keep, *(hooks if isinstance(hooks, (list, tuple)) else [hooks])]},
            stream=True,
            verify=self._verify,
            cert=self._cert,
        )
        if id(response) not in read:  # a hook has put another in its place
            keep(response)
        return read[id(response)][1]

    def abort(self) -> None:
        """End a request that is under way in another thread, if the connection is one of ours."""
        self._aborted = True
        for connection in list(self._adapter.state.connections) if self._adapter is not None else []:
            sock = connection.sock
            if isinstance(sock, socket.socket):
                with contextlib.suppress(OSError):
                    # Not the encrypted socket's own, which would take its state away from under the thread that reads.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connections, if the session is ours."""
        if self._adapter is not None:
            self._session.close()
            # Those of a pool that is no garbage yet, which that leaves open.
            for connection in list(self._adapter.state.connections):
                connection.close()

    def abandon(self) -> None:
        """Let go, in a forked child, of the parent's connections, without a word to the peer."""
        if self._adapter is None:
            _abandon_pools(self._session)
            return
        for connection, descriptor in list(self._adapter.state.connections.items()):
            sock = connection.sock
            with contextlib.suppress(OSError):
                if isinstance(sock, socket.socket):
                    sock.detach()
            # By its number: within a handshake the socket is nobody's yet.
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._adapter.state.connections.clear()

    # -- what failures mean

    def _translated(self, error: Exception, exchange: _Exchange, timeout: tuple[float, float]) -> DeliveryError:
        if isinstance(error, _UNUSABLE):
            return PausedDeliveryError(f"no request to {self._peer} can be made: {type(error).__name__}")
        if not isinstance(error, _TRANSPORTS):
            return TemporaryDeliveryError(f"{self._peer}: the request failed ({type(error).__name__})")
        root = _root(error)
        by_proxy = isinstance(error, requests.exceptions.ProxyError)
        connected = exchange.connected or (self._adapter is None and not isinstance(error, requests.ConnectTimeout))
        if isinstance(root, TimeoutError):
            seconds = timeout[1] if connected else timeout[0]
            what = f"did not answer within {seconds:g} s" if connected else f"could not be reached within {seconds:g} s"
        elif by_proxy:
            what = f"could not be reached through the proxy: {_told(root)}"
        elif connected:
            what = f"was lost: {_told(root)}"
        else:
            what = f"could not be reached: {_told(root)}"
        halve_after = None
        if connected and not by_proxy:
            halve_after = 1 if isinstance(root, TimeoutError) else LOST_ATTEMPTS
        return TemporaryDeliveryError(f"{self._peer} {what}", halve_after=halve_after)


#: The request itself is at fault: an address, a header or a proxy's address that is none.
_UNUSABLE = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidHeader,
    requests.exceptions.MissingSchema,
    UnicodeError,
)


#: What comes from requests and what is below it. Other errors are those of a user's session, hook or auth.
_TRANSPORTS = (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError)


#: Pools of forked parents: one that is garbage is closed, and takes a lock for that, which may be held for ever.
_abandoned: list[Any] = []


def _abandon_pools(session: requests.Session) -> None:
    """Give a user's session fresh connections in a forked child, as if it had been pickled."""
    for adapter in session.adapters.values():
        if isinstance(adapter, requests.adapters.HTTPAdapter):
            _abandoned.append((adapter.poolmanager, adapter.proxy_manager))
            adapter.__setstate__(adapter.__getstate__())


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _read(response: requests.Response, limit_bytes: int) -> Reply:
    """Return *response* with what comes of its body; leave the connection fit for the next request, or closed."""
    parts: list[bytes] = []
    size = 0
    whole = False
    read: Callable[..., bytes] = response.raw.read
    # urllib3's, http.client's and the system's: the status is known all the same.
    with contextlib.suppress(Exception):
        try:
            while size <= limit_bytes:
                part = read(min(_READ_BYTES, limit_bytes + 1 - size), decode_content=True)
                if not part:
                    # urllib3 before 2.0 raises nothing for a body that is cut.
                    whole = not response.raw.length_remaining
                    break
                parts.append(part)
                size += len(part)
        finally:
            if not whole:
                response.close()
    return Reply(response.status_code, response.headers, b"".join(parts)[:limit_bytes], whole)


#: What the others wrap an error in; some of them are errors of the system by their class.
_WRAPPERS = (requests.RequestException, urllib3.exceptions.HTTPError)


def _root(error: BaseException) -> BaseException:
    """Return what *error* is about, below all that requests and urllib3 wrap it in."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, (OSError, http.client.HTTPException)) and not isinstance(error, _WRAPPERS):
            return error
        inner = next(
            (
                found
                for found in (error.__cause__, getattr(error, "reason", None), *error.args, error.__context__)
                if isinstance(found, BaseException)
            ),
            None,
        )
        if inner is None:
            return error
        error = inner
    return error


def _forget_frames(error: BaseException | None) -> None:
    """Let go of the frames that *error* went through: urllib3's hold it themselves, and with it request and pool."""
    while error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        error = error.__context__


def _told(error: BaseException) -> str:
    """Return what happened, in the system's words alone: those of others may repeat the request."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not good: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or type(error).__name__}"
    if isinstance(error, http.client.RemoteDisconnected):
        return "it hung up without an answer"
    if isinstance(error, http.client.HTTPException):
        return f"no answer that is HTTP ({type(error).__name__})"
    if isinstance(error, socket.gaierror):
        return str(error.strerror)
    if isinstance(error, OSError) and isinstance(error.errno, int):
        return os.strerror(error.errno)
    if isinstance(error, OSError) and str(error).startswith("Tunnel connection failed: "):
        status = str(error)[26:29]
        return f"the tunnel was refused with {status}" if status.isdigit() else "the tunnel was refused"
    return type(error).__name__


def _has_ended(error: BaseException) -> bool:
    """Return True if a connection was found at its end, as one is that the peer closed after the last answer."""
    root = _root(error)
    return isinstance(root, (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError))

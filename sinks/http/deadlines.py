"""HTTP connections that keep deadlines: `Adapter`, and all else that uses internals of urllib3 and requests.

The timeout of requests starts again with each byte received. Private names of these libraries are used only in this
module; ``tests/sinks/http/test_deadlines.py`` has a test for each.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import http.client
import io
import os
import queue
import re
import socket
import ssl
import struct
import sys
import weakref
from typing import TYPE_CHECKING, Any

import requests
import requests.adapters
import urllib3.connection
import urllib3.connectionpool
import urllib3.exceptions
import urllib3.response
import urllib3.util.connection
import urllib3.util.wait

from outfall.sinks.core.clock import now as monotonic
from outfall.sinks.network.peer import KEEP_ALIVE

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

# A `__del__` may log when the interpreter ends, and then nothing can be imported any more. Each of these two calls
# imports a module at its first use: urllib3's pools need the one, name resolution the other.
weakref.finalize(lambda: None, int)
codecs.lookup("idna")

#: The modules of the process. When the interpreter ends, `sys` loses this attribute.
_modules = sys.modules

#: The number of bytes to write to an encrypted connection at once: one TLS record.
_RECORD_BYTES = 16_384

_READ_BYTES = 65_536

#: The shortest timeout of a socket; 0 would make it non-blocking.
_LEAST_SECONDS = 0.001

#: If a server sends more interim responses (1xx) than this, the request fails.
_MOST_INTERIM_RESPONSES = 32

#: Matches bytes that are interim responses only, the last of which may be incomplete.
_INTERIM = re.compile(
    rb"(?:HTTP/1\.\d 1\d\d[^\n]*\n(?:[^\r\n][^\n]*\n)*\r?\n)*"
    rb"(?:H?|HT|HTT|HTTP|HTTP/|HTTP/1|HTTP/1\.|HTTP/1\.\d ?|HTTP/1\.\d 1[^\n]*(?:\n[^\r\n][^\n]*)*\n?\r?)",
)


class Exchange:
    """One request in progress: its deadline, and the state of its connection.

    Args:
        connect_seconds: The time to connect.
        total_seconds: The time for the rest.
    """

    __slots__ = ("connect_seconds", "connected", "cut", "due", "fresh", "received", "total_seconds")

    def __init__(self, connect_seconds: float, total_seconds: float) -> None:
        self.connect_seconds: float = connect_seconds
        self.total_seconds: float = total_seconds
        #: The deadline, by the monotonic clock.
        self.due: float = monotonic() + connect_seconds + total_seconds
        #: True once a connection was opened for it; until then it uses an older one.
        self.fresh: bool = False
        #: True once it has a connection to send on.
        self.connected: bool = False
        #: True once a byte of the response was received.
        self.received: bool = False
        #: True if the response came before the whole request was sent: then the connection cannot be used again.
        self.cut: bool = False

    def begin_to_send(self) -> None:
        """Record that there is a connection. The time to connect that was not needed is not added to the rest."""
        self.connected = True
        self.due = min(self.due, monotonic() + self.total_seconds)

    def left(self) -> float:
        """Return the seconds until the deadline.

        Raises:
            TimeoutError: If it has passed.
        """
        left = self.due - monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class _PacedReader(io.RawIOBase):
    """Reads the response to a request before its deadline; `http.client` uses it as the socket.

    Args:
        sock: The socket.
        exchange: The request.
        early: The bytes of the response that were received while the request was sent.
    """

    def __init__(self, sock: Any, exchange: Exchange, early: bytes) -> None:
        self._sock = sock
        self._exchange = exchange
        self._early = early
        self._raw = sock.makefile("rb", buffering=0)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._early:
            part = self._early[: len(buffer)]
            self._early = self._early[len(part) :]
            buffer[: len(part)] = part
            return len(part)
        self._sock.settimeout(self._exchange.left())
        size: int | None = self._raw.readinto(buffer)
        if size:
            self._exchange.received = True
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """A response that skips all interim ones (1xx) before it; `http.client` only skips 100."""

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(_MOST_INTERIM_RESPONSES):
            told: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
            if not 100 <= told[1] < 200:
                return told
            http.client.parse_headers(self.fp)
        msg = "nothing but interim answers"
        raise http.client.HTTPException(msg)


class _Paced(urllib3.connection.HTTPConnection):
    """A connection that keeps the deadline of the request it is used for."""

    #: The adapter, set by a subclass.
    adapter: Adapter
    #: The bytes of the response that were received while the request was sent.
    _early: bytes = b""

    def _new_conn(self) -> socket.socket:
        exchange = self.adapter.exchange
        try:
            made = self._connect(exchange)
        except OSError as error:
            msg = "not connected"
            raise urllib3.exceptions.NewConnectionError(self, msg) from error
        exchange.fresh = True
        exchange.cut = False
        self.adapter.connections[self] = made.fileno()
        return made

    def _connect(self, exchange: Exchange) -> socket.socket:
        """Return a connected socket; each address of the name gets an equal share of the time that is left."""
        deadline = min(monotonic() + exchange.connect_seconds, exchange.due)
        if self.adapter.socket_path is not None:
            return _connect_to_path(self.adapter.socket_path, deadline)
        host = str(getattr(self, "_dns_host", self.host)).strip("[]")
        family = urllib3.util.connection.allowed_gai_family()
        addresses = socket.getaddrinfo(host, self.port, family, socket.SOCK_STREAM)
        failure: OSError = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        for index, (kind, _, protocol, _, address) in enumerate(addresses):
            made = socket.socket(kind, socket.SOCK_STREAM, protocol)
            try:
                for option in (*(self.socket_options or ()), *KEEP_ALIVE):
                    with contextlib.suppress(OSError):  # Python may define an option that the kernel lacks
                        made.setsockopt(*option)
                share = (deadline - monotonic()) / (len(addresses) - index)
                made.settimeout(max(share, _LEAST_SECONDS))
                made.connect(address)
                # The remaining time is for TLS: the timeout of the socket limits the handshake as a whole.
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
        """Send *data* before the deadline, even if the peer takes it byte by byte.

        Raises:
            BrokenPipeError: If the peer responds or closes before it has taken everything. Then urllib3 reads the
                response.
        """
        if self.sock is None:
            self.connect()
        exchange = self.adapter.exchange
        if not exchange.connected:
            exchange.begin_to_send()
        sock: Any = self.sock
        left = memoryview(data)
        try:
            if not isinstance(sock, socket.socket):  # TLS inside the TLS of a proxy
                for start in range(0, len(left), _RECORD_BYTES):
                    sock.settimeout(exchange.left())
                    sock.sendall(left[start : start + _RECORD_BYTES])
                return
            size = _RECORD_BYTES if isinstance(sock, ssl.SSLSocket) else len(left)
            sock.settimeout(0)
            while left:
                try:
                    left = left[sock.send(left[:size]) :]
                except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                    if self._answered(sock, exchange):
                        break
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError):
            # The response that the peer may have sent before can still be read.
            exchange.cut = True
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
        if left:
            exchange.cut = True
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def _answered(self, sock: socket.socket, exchange: Exchange) -> bool:
        """Wait until *sock* can be written to or read from; return True if the peer responds, or has closed."""
        if not urllib3.util.wait.wait_for_socket(sock, read=True, write=True, timeout=exchange.left()):
            raise TimeoutError
        if not urllib3.util.wait.wait_for_read(sock, timeout=0):
            return False
        try:
            heard = sock.recv(_READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False  # these were bytes of TLS itself
        if heard:
            exchange.received = True
        self._early += heard
        return not heard or len(self._early) > _READ_BYTES or _INTERIM.fullmatch(self._early) is None

    def response_class(self, sock: Any, *args: Any, **options: Any) -> http.client.HTTPResponse:  # type: ignore[override]
        """Return a response that is read before the deadline; `http.client` calls this to make one."""
        early, self._early = self._early, b""
        paced: Any = _PacedReader(sock, self.adapter.exchange, early)
        return _Response(paced, *args, **options)

    def getresponse(self) -> Any:
        """Read the response."""
        # urllib3 imports a class here, at each call. When the interpreter ends, the module is not found any more.
        _modules.setdefault("urllib3.response", urllib3.response)
        return super().getresponse()

    def close(self) -> None:
        # First remove it from the list: a child forked after the close must not close the descriptor once more, since
        # its number may belong to another file by then.
        self.adapter.connections.pop(self, None)
        self._early = b""
        super().close()


def _connect_to_path(path: str, deadline: float) -> socket.socket:
    """Return a socket connected to the Unix socket at *path*; wait while the server's queue is full."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # If the queue is full, a socket with a timeout of Python fails at once: connect(2), EAGAIN.
        seconds, part = divmod(max(deadline - monotonic(), _LEAST_SECONDS), 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(part * 1e6)))
        made.connect(path)
        made.settimeout(max(deadline - monotonic(), _LEAST_SECONDS))
    except BaseException as error:
        made.close()
        if isinstance(error, BlockingIOError):
            raise TimeoutError from None
        raise
    return made


# In http.client response_class is a variable.
class _PacedTLS(_Paced, urllib3.connection.HTTPSConnection):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A `_Paced` connection with TLS."""


def _by_socks(socks: ModuleType) -> tuple[type[_Paced], type[_Paced]]:
    """Return the classes of connections through SOCKS proxies, without and with TLS.

    Args:
        socks: `urllib3.contrib.socks`, which needs PySocks.
    """
    usual: Any = socks.SOCKSConnection

    class _PacedSOCKS(_Paced, usual):  # type: ignore[misc]
        """A connection through a SOCKS proxy; each message of the proxy may take the time to connect."""

        def _connect(self, exchange: Exchange) -> socket.socket:
            deadline = min(monotonic() + exchange.connect_seconds, exchange.due)
            self.timeout = max(deadline - monotonic(), _LEAST_SECONDS)
            made: socket.socket = usual._new_conn(self)
            made.settimeout(max(deadline - monotonic(), _LEAST_SECONDS))
            return made

    class _PacedSOCKSTLS(_PacedSOCKS, _PacedTLS):  # pyright: ignore[reportIncompatibleVariableOverride]
        """A connection through a SOCKS proxy, with TLS."""

    return _PacedSOCKS, _PacedSOCKSTLS


def _free_connections(maxsize: int) -> queue.SimpleQueue[Any]:
    """Return the queue for a pool's free connections. Unlike urllib3's, it has no lock that a fork could leave held.

    It need not be limited: each pool has one connection at a time.
    """
    return queue.SimpleQueue()


class _Pool(urllib3.connectionpool.HTTPConnectionPool):
    QueueCls: Any = staticmethod(_free_connections)


class _PoolTLS(urllib3.connectionpool.HTTPSConnectionPool):
    QueueCls: Any = staticmethod(_free_connections)

    def _validate_conn(self, conn: Any) -> None:
        # urllib3 would warn at each request of verify=False, which the user has chosen.
        if conn.sock is None:
            conn.connect()


class Adapter(requests.adapters.HTTPAdapter):
    """The adapter of requests, with connections that keep the deadline of each request. For one thread at a time.

    Args:
        context: The TLS context to use instead of requests' *verify* and *cert*; or None.
        socket_path: The path of a Unix socket to connect to instead of the URL's host; or None.
    """

    #: The request in progress; `Transport` sets it.
    exchange: Exchange

    def __init__(self, context: ssl.SSLContext | None, socket_path: str | None = None) -> None:
        self._context = context
        self.socket_path: str | None = socket_path
        #: The open connections, with their descriptors.
        self.connections: dict[_Paced, int] = {}
        super().__init__(pool_connections=1, pool_maxsize=1)
        self._pools = self._pools_of(_Paced, _PacedTLS)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def _pools_of(self, plain: type[_Paced], encrypted: type[_Paced]) -> dict[str, Any]:
        """Return classes of pools, by scheme, whose connections are of these classes and belong to this adapter."""
        own = {"adapter": self}
        return {
            "http": type("_Pool", (_Pool,), {"ConnectionCls": type(plain.__name__, (plain,), own)}),
            "https": type("_PoolTLS", (_PoolTLS,), {"ConnectionCls": type(encrypted.__name__, (encrypted,), own)}),
        }

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """Return the manager of the pools for *proxy*, whose connections keep the deadline too."""
        known = proxy in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **options)
        if known:
            return manager
        pools = self._pools
        if proxy.lower().startswith("socks"):
            from urllib3.contrib import socks  # requests has imported it to make the manager

            pools = self._pools_of(*_by_socks(socks))
        manager.pool_classes_by_scheme = pools
        return manager

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> tuple[Any, Any]:
        """Return what distinguishes the pool for *request* from others; the user's context replaces TLS settings."""
        host, keywords = super().build_connection_pool_key_attributes(request, verify, cert)
        if self._context is None:
            return host, keywords
        # If certificate authorities were given too, urllib3 would load them into the user's context. The mode is
        # given, since urllib3 before 2.0 would set another one.
        own: dict[str, Any] = {"ssl_context": self._context, "cert_reqs": self._context.verify_mode}
        if not self._context.check_hostname:
            own["assert_hostname"] = False
        return host, own

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Set up TLS for a connection, unless the user's context does."""
        if self._context is None:
            super().cert_verify(conn, url, verify, cert)

    # -- connections

    def abort(self) -> None:
        """Make a request in another thread fail."""
        for connection in list(self.connections):
            sock: Any = connection.sock
            while sock is not None and not isinstance(sock, socket.socket):  # TLS inside TLS
                sock = getattr(sock, "socket", None)
            if sock is not None:
                with contextlib.suppress(OSError):
                    # The method of an encrypted socket would also remove its TLS state, which the other thread uses.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def disconnect(self) -> None:
        """Close all open connections."""
        for connection in list(self.connections):
            connection.close()

    def abandon(self) -> None:
        """Drop the parent's connections in a forked child, without sending anything to the peer."""
        for connection, descriptor in list(self.connections.items()):
            sock = connection.sock
            with contextlib.suppress(OSError):
                if isinstance(sock, socket.socket):
                    sock.detach()
            # Close it by its number: during a handshake the connection has no socket yet.
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.connections.clear()


#: Keeps the pools of forked parents alive. A pool closes itself when it is collected, and needs a lock for that, which
#: a thread of the parent may have held at the fork.
_abandoned: list[Any] = []


def abandon_pools(session: requests.Session) -> None:
    """Give the adapters of a user's session new pools in a forked child, as unpickling does."""
    for adapter in session.adapters.values():
        if isinstance(adapter, requests.adapters.HTTPAdapter):
            _abandoned.append((adapter.poolmanager, adapter.proxy_manager))
            adapter.__setstate__(adapter.__getstate__())


def read_body(response: requests.Response, limit_bytes: int) -> tuple[bytes, bool]:
    """Return the body, decompressed, up to *limit_bytes*, and whether that is all; if not, close the connection."""
    parts: list[bytes] = []
    size = 0
    whole = False
    read: Callable[..., bytes] = response.raw.read
    # No error of urllib3, http.client or the system matters: the status is known.
    with contextlib.suppress(Exception):
        try:
            while size <= limit_bytes:
                part = read(min(_READ_BYTES, limit_bytes + 1 - size), decode_content=True)
                if not part:
                    # urllib3 before 2.0 raises no error for an incomplete body.
                    whole = not response.raw.length_remaining
                    break
                parts.append(part)
                size += len(part)
        finally:
            if not whole:
                response.close()
    return b"".join(parts)[:limit_bytes], whole


def keep_body(response: requests.Response, body: bytes) -> None:
    """Set the body of *response*, so that the session does not read it without a limit, as it does for redirects."""
    response._content = body
    response._content_consumed = True

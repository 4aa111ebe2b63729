"""Connections that keep an exchange's time: all that touches the inside of urllib3 and requests.

requests' own timeout begins anew with each byte that comes. Names that these libraries do not promise are used here and
nowhere else; for each there is a test in ``tests/sinks/http/test_deadlines.py``.
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
from collections import deque
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
from outfall.sinks.network.peer import keep_alive

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

# At the interpreter's end an event may still come, from a `__del__`, and nothing can be imported any more. Each of
# these imports something when it is used first: urllib3 uses the one for its pools, sockets the other for names.
weakref.finalize(lambda: None, int)
codecs.lookup("idna")

#: The modules of the process; `sys` has no such name any more by then.
_modules = sys.modules

#: What is written to an encrypted connection at once: a TLS record.
_RECORD_BYTES = 16_384

_READ_BYTES = 65_536

#: A timeout of nothing would be a socket that does not wait at all.
_LEAST_SECONDS = 0.001

#: Of a server that sends more interim answers than this nothing else is expected.
_MOST_INTERIM_ANSWERS = 32

#: Interim answers, and the beginning of whatever comes after them.
_INTERIM = re.compile(
    rb"(?:HTTP/1\.\d 1\d\d[^\n]*\n(?:[^\r\n][^\n]*\n)*\r?\n)*"
    rb"(?:H?|HT|HTT|HTTP|HTTP/|HTTP/1|HTTP/1\.|HTTP/1\.\d ?|HTTP/1\.\d 1[^\n]*(?:\n[^\r\n][^\n]*)*\n?\r?)",
)


class Exchange:
    """One request under way: the time it has, and what is known of its connection.

    Args:
        connect_seconds: For connecting, in all.
        total_seconds: For everything else.
    """

    connect_seconds: float
    connected: bool
    cut: bool
    due: float
    fresh: bool
    received: bool
    total_seconds: float

    __slots__ = ("connect_seconds", "connected", "cut", "due", "fresh", "received", "total_seconds")

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
        #: True if an answer came before the whole request had left: nothing else can be sent by that connection.
        self.cut = False

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

    exchange: Exchange

    def __init__(self) -> None:
        #: What is under way.
        self.exchange = Exchange(0, 0)
        #: The connections that are open, and their descriptors.
        self.connections: dict[_Paced, int] = {}
        #: The path of the Unix socket to connect to, or None.
        self.socket_path: str | None = None


class _PacedReader(io.RawIOBase):
    """The answer: what was heard early, then what comes in the time that the exchange has left."""

    def __init__(self, sock: Any, exchange: Exchange, early: bytes) -> None:
        self._sock = sock
        self._exchange = exchange
        self._early = early
        self._raw = sock.makefile("rb", buffering=0)

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


class _PacedSocket:
    """What `http.client.HTTPResponse` is given for a socket."""

    def __init__(self, sock: Any, exchange: Exchange, early: bytes) -> None:
        self._sock = sock
        self._exchange = exchange
        self._early = early

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_PacedReader(self._sock, self._exchange, self._early))


class _Response(http.client.HTTPResponse):
    """An answer, after all interim ones (1xx) that come before it; `http.client` knows 100 alone."""

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(_MOST_INTERIM_ANSWERS):
            told: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
            if not 100 <= told[1] < 200:
                return told
            http.client.parse_headers(self.fp)
        msg = "nothing but interim answers"
        raise http.client.HTTPException(msg)


class _Paced(urllib3.connection.HTTPConnection):
    """A connection that keeps the time of the exchange that it is used for."""

    #: Of the adapter that it belongs to.
    state: _State
    #: What came before the request was through.
    _early: bytes = b""

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

    def _connect(self, exchange: Exchange) -> socket.socket:
        """Try each address of the name; each has its share of the time that is left for all."""
        deadline = min(monotonic() + exchange.connect_seconds, exchange.due)
        if self.state.socket_path is not None:
            return _connect_to_path(self.state.socket_path, deadline)
        host = str(getattr(self, "_dns_host", self.host)).strip("[]")
        family = urllib3.util.connection.allowed_gai_family()
        addresses = socket.getaddrinfo(host, self.port, family, socket.SOCK_STREAM)
        failure: OSError = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        for index, (kind, _, protocol, _, address) in enumerate(addresses):
            made = socket.socket(kind, socket.SOCK_STREAM, protocol)
            try:
                for option in self.socket_options or ():
                    made.setsockopt(*option)
                keep_alive(made)
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
        """Send *data* in the time that is left, also if the peer takes it byte by byte.

        Raises:
            BrokenPipeError: If the peer answers, or hangs up, before it has taken all. urllib3 reads the answer then.
        """
        if self.sock is None:
            self.connect()
        exchange = self.state.exchange
        exchange.begin_to_send()
        sock: Any = self.sock
        left = memoryview(data)
        try:
            if not isinstance(sock, socket.socket):  # TLS within the TLS of a proxy
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
            # What it may have said before is still to be read.
            exchange.cut = True
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
        if left:
            exchange.cut = True
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def _answered(self, sock: socket.socket, exchange: Exchange) -> bool:
        """Wait until *sock* takes more, or gives something; return True if that is the beginning of the answer."""
        if not urllib3.util.wait.wait_for_socket(sock, read=True, write=True, timeout=exchange.left()):
            raise TimeoutError
        if not urllib3.util.wait.wait_for_read(sock, timeout=0):
            return False
        try:
            heard = sock.recv(_READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False  # it was TLS's own
        if heard:
            exchange.received = True
        self._early += heard
        return not heard or len(self._early) > _READ_BYTES or _INTERIM.fullmatch(self._early) is None

    def response_class(self, sock: Any, *args: Any, **options: Any) -> http.client.HTTPResponse:  # type: ignore[override]
        """Return a response that is read in time; `http.client` calls this to make one."""
        early, self._early = self._early, b""
        paced: Any = _PacedSocket(sock, self.state.exchange, early)
        return _Response(paced, *args, **options)

    def getresponse(self) -> Any:
        """Read the answer."""
        # urllib3 imports a class for it each time, from modules that are gone at the interpreter's end.
        _modules.setdefault("urllib3.response", urllib3.response)
        return super().getresponse()

    def close(self) -> None:
        # First, so that a child that is forked in between does not close a descriptor that is somebody else's by then.
        self.state.connections.pop(self, None)
        self._early = b""
        super().close()


def _connect_to_path(path: str, deadline: float) -> socket.socket:
    """Return a connection to the Unix socket at *path*, which a server with many waiting may take a while to take."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A socket with a timeout of Python's does not wait where the server's queue is full: connect(2), EAGAIN.
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


# To http.client response_class is a variable.
class _PacedTLS(_Paced, urllib3.connection.HTTPSConnection):  # pyright: ignore[reportIncompatibleVariableOverride]
    """The same, encrypted."""


def _by_socks(socks: ModuleType) -> tuple[type[_Paced], type[_Paced]]:
    """Return the classes of connections, plain and encrypted, through SOCKS proxies.

    Args:
        socks: `urllib3.contrib.socks`, which needs PySocks.
    """
    usual: Any = socks.SOCKSConnection

    class _PacedSOCKS(_Paced, usual):  # type: ignore[misc]
        """A connection through a SOCKS proxy; for each step of the proxy's there is the time for connecting."""

        def _connect(self, exchange: Exchange) -> socket.socket:
            deadline = min(monotonic() + exchange.connect_seconds, exchange.due)
            self.timeout = max(deadline - monotonic(), _LEAST_SECONDS)
            made: socket.socket = usual._new_conn(self)
            made.settimeout(max(deadline - monotonic(), _LEAST_SECONDS))
            return made

    class _PacedSOCKSTLS(_PacedSOCKS, _PacedTLS):  # pyright: ignore[reportIncompatibleVariableOverride]
        """The same, encrypted."""

    return _PacedSOCKS, _PacedSOCKSTLS


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


class Adapter(requests.adapters.HTTPAdapter):
    """requests' adapter with connections that keep their time.

    Args:
        context: What to encrypt with, instead of what *verify* and *cert* say; or None.
        socket_path: The path of a Unix socket to connect to, whatever the URL's host is; or None.
    """

    state: _State

    def __init__(self, context: ssl.SSLContext | None, socket_path: str | None = None) -> None:
        self._context = context
        self.state = _State()
        self.state.socket_path = socket_path
        self._pools = self._pools_of(_Paced, _PacedTLS)
        super().__init__(pool_connections=1, pool_maxsize=1)

    def _pools_of(self, plain: type[_Paced], encrypted: type[_Paced]) -> dict[str, Any]:
        """Return pools whose connections are of these classes, and share the adapter's state."""
        state = {"state": self.state}
        return {
            "http": type("_Pool", (_Pool,), {"ConnectionCls": type(plain.__name__, (plain,), state)}),
            "https": type("_PoolTLS", (_PoolTLS,), {"ConnectionCls": type(encrypted.__name__, (encrypted,), state)}),
        }

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Make the pools; requests calls this."""
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """Return the pools for a proxy, whatever its kind, with connections that keep the time."""
        known = proxy in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **options)
        if known:
            return manager
        pools = self._pools
        if proxy.lower().startswith("socks"):
            from urllib3.contrib import socks  # there, since the line before it has made a manager of it

            pools = self._pools_of(*_by_socks(socks))
        manager.pool_classes_by_scheme = pools
        return manager

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> tuple[Any, Any]:
        """Return what a connection is told from others by: with a context of the user's that alone."""
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
        """Prepare a connection for TLS, unless the user's context does."""
        if self._context is None:
            super().cert_verify(conn, url, verify, cert)

    # -- connections

    def abort(self) -> None:
        """End what is under way in another thread."""
        for connection in list(self.state.connections):
            sock: Any = connection.sock
            while sock is not None and not isinstance(sock, socket.socket):  # TLS within TLS
                sock = getattr(sock, "socket", None)
            if sock is not None:
                with contextlib.suppress(OSError):
                    # Not the encrypted socket's own, which would take its state away from under the thread that reads.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def disconnect(self) -> None:
        """Close the connections, also those of a pool that is no garbage yet."""
        for connection in list(self.state.connections):
            connection.close()

    def abandon(self) -> None:
        """Let go, in a forked child, of the parent's connections, without a word to the peer."""
        for connection, descriptor in list(self.state.connections.items()):
            sock = connection.sock
            with contextlib.suppress(OSError):
                if isinstance(sock, socket.socket):
                    sock.detach()
            # By its number: within a handshake the socket is nobody's yet.
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.state.connections.clear()


#: Pools of forked parents: one that is garbage is closed, and takes a lock for that, which may be held for ever.
_abandoned: list[Any] = []


def abandon_pools(session: requests.Session) -> None:
    """Give a user's session fresh connections in a forked child, as if it had been pickled."""
    for adapter in session.adapters.values():
        if isinstance(adapter, requests.adapters.HTTPAdapter):
            _abandoned.append((adapter.poolmanager, adapter.proxy_manager))
            adapter.__setstate__(adapter.__getstate__())


def read_body(response: requests.Response, limit_bytes: int) -> tuple[bytes, bool]:
    """Return what comes of the body, decompressed, and whether that is all; leave the connection fit, or closed."""
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
    return b"".join(parts)[:limit_bytes], whole


def keep_body(response: requests.Response, body: bytes) -> None:
    """Make *body* that of *response*, so that nobody reads it without a limit: a session does for redirects."""
    response._content = body
    response._content_consumed = True

"""The other end of a socket: its address, its TLS, and waiting for it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import socket
from typing import TYPE_CHECKING, Any, Literal

from outfall.sinks.core.arguments import MAX_PORT, checked_seconds, checked_size
from outfall.sinks.errors import PermanentDeliveryError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from outfall.sinks.event.units import Size, Span

#: The family of Unix sockets; -1 on systems without them.
UNIX: int = getattr(socket, "AF_UNIX", -1)

#: The smallest size limit of an event, in bytes.
LEAST_FRAME_BYTES = 512

#: How often one check reads at most, since a peer may send without end.
MAX_READS = 16

#: Windows has no poll.
POLL: Callable[[], select.poll] | None = getattr(select, "poll", None)


class OversizeError(PermanentDeliveryError):
    """An event that does not fit into a datagram, or a message."""

    dropped_as = "oversize"


#: Options by which the system notices a dead path within a minute: the seconds of silence before the first probe, the
#: seconds between probes, how many probes may stay unanswered, and the milliseconds for which sent data may stay
#: unacknowledged.
KEEP_ALIVE: tuple[tuple[int, int, int], ...] = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (
            ("TCP_KEEPIDLE", 20),
            ("TCP_KEEPALIVE", 20),  # its name on macOS
            ("TCP_KEEPINTVL", 10),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", 50_000),
        )
        if hasattr(socket, name)
    ),
)


def keep_alive(sock: socket.socket) -> None:
    """Make the system check whether the peer of *sock* is still there, with the options that it has."""
    for level, option, value in KEEP_ALIVE:
        # Python may know an option that the kernel does not have.
        with contextlib.suppress(OSError):
            sock.setsockopt(level, option, value)


def await_socket(sock: socket.socket, seconds: float, *, for_reading: bool) -> bool:
    """Wait until *sock* can be written to, or read from; return False if *seconds* passed first."""
    if POLL is not None:
        poll = POLL()
        poll.register(sock, select.POLLIN if for_reading else select.POLLOUT)
        return bool(poll.poll(seconds * 1000))
    ready = select.select([sock], [], [], seconds) if for_reading else select.select([], [sock], [sock], seconds)
    return any(ready)


def waits_of(tls: bool) -> tuple[type[OSError], ...]:
    """Return the exceptions of a non-blocking socket that would have to wait."""
    if not tls:
        return (BlockingIOError,)
    import ssl

    return BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError


def wants_read(wait: BaseException | None) -> bool:
    """Return True if *wait* says that data must be read first, as TLS may require."""
    return type(wait).__name__ == "SSLWantReadError"


def is_refused_tls(error: BaseException) -> bool:
    """Return True if *error* means that one end refused the other's certificate or TLS, not that it closed."""
    try:
        import ssl
    except ImportError:  # a Python without ssl
        return False
    return isinstance(error, ssl.SSLError) and not isinstance(
        error, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
    )


def await_verdict(sock: ssl.SSLSocket, seconds: float) -> bool:
    """Wait until the peer has sent something after a handshake of TLS 1.3; return False if it sends nothing in time.

    With TLS 1.3 a server checks the client's certificate after the client's handshake is over. Then it usually sends
    session tickets, or an alert if it refuses the client. What it sends is discarded.

    Args:
        sock: A connected socket; it is non-blocking afterwards.
        seconds: How long to wait; some servers send nothing.

    Raises:
        OSError: If the peer has refused or closed the connection.
    """
    sock.settimeout(0)
    if sock.version() != "TLSv1.3":
        return True
    if not await_socket(sock, seconds, for_reading=True):
        return False
    try:
        if not sock.recv(65_536):
            raise ConnectionResetError(errno.ECONNRESET, "the peer ended the connection after the handshake")
    except waits_of(tls=True):
        pass
    return True


def heard_refusal(sock: socket.socket) -> OSError | None:
    """Return the alert by which the peer closed a TLS connection, if it can be read without waiting.

    A send over a closed connection fails before the alert is read: see `await_verdict`.
    """
    try:
        sock.settimeout(0)
        for _ in range(MAX_READS):
            if not sock.recv(65_536):
                break
    except OSError as error:
        return error if is_refused_tls(error) else None
    except ValueError:
        pass
    return None


def checked_host(host: str | os.PathLike[str]) -> str:
    """Return *host* as text.

    Raises:
        TypeError: If it is neither text nor a path.
        ValueError: If it is empty, or has a port in it.
    """
    try:
        name = os.fsdecode(host)
    except TypeError:
        msg = f"host={host!r} is neither text nor a path"
        raise TypeError(msg) from None
    if not name:
        msg = f"host={host!r} names nothing to connect to"
        raise ValueError(msg)
    parts = host_and_port(name)
    if parts is not None:
        msg = f"host={host!r} has a port in it; write host={parts[0]!r}, port={parts[1]}"
        raise ValueError(msg)
    return name


def is_host(text: str) -> bool:
    """Return True if *text* may be the name or the address of a host, and is no URL; a port may follow."""
    if host_and_port(text) is None and ":" in text:
        import ipaddress

        try:
            ipaddress.ip_address(text.strip("[]").partition("%")[0])
        except ValueError:
            return False
    return bool(text) and text.isprintable() and not re.search(r"[\s/\\@?#]", text)


def host_and_port(text: str) -> tuple[str, int] | None:
    """Return host and port if *text* is ``host:port``; None for a name, an address or a path."""
    host, colon, port = text.rpartition(":")
    written = bool(colon and host) and port.isdecimal() and "/" not in host and "\0" not in host
    # An IPv6 address contains colons; it is in brackets if a port follows.
    if not written or (":" in host and not host.endswith("]")):
        return None
    return host.strip("[]"), int(port)


def checked_port(port: int | None) -> int | None:
    """Return *port*, 1 to 65535, or None for a Unix socket.

    Raises:
        ValueError: If it is neither, or the system has no Unix sockets.
    """
    if port is None:
        if UNIX == -1:
            msg = "port=None means a Unix socket, which this system does not have"
            raise ValueError(msg)
        return None
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= MAX_PORT:
        msg = f"port={port!r} is not a whole number from 1 to {MAX_PORT}, nor None for a Unix socket"
        raise ValueError(msg)
    return port


def checked_limit(limit: Size, argument: str, least: int = LEAST_FRAME_BYTES) -> int:
    """Return *limit*, the size to which events are shortened, in bytes.

    Raises:
        ValueError: If it is not such a size.
    """
    size = checked_size(limit, argument)
    if not least <= size < 1 << 32:
        msg = f"{argument}={limit!r} is not a number of bytes from {least} to {(1 << 32) - 1}"
        raise ValueError(msg)
    return size


def checked_age(age: Span | None) -> float | None:
    """Return *age*, the greatest age of a connection, in seconds; None for no limit.

    Raises:
        ValueError: If it is not a duration, or zero.
    """
    seconds = None if age is None else checked_seconds(age, "max_connection_age")
    if seconds == 0:
        msg = f"max_connection_age={age!r} leaves no time to send in; None is for connections without a limit"
        raise ValueError(msg)
    return seconds


def checked_tls(tls: ssl.SSLContext | Literal[True] | None, port: int | None) -> ssl.SSLContext | None:
    """Return the TLS context; None for no encryption.

    Raises:
        ValueError: If there is a context for a Unix socket.
        TypeError: If *tls* is no context.
    """
    if tls is not None and port is None:
        msg = f"tls={tls!r} with port=None: a Unix socket is not encrypted"
        raise ValueError(msg)
    if tls is True:
        import ssl

        return ssl.create_default_context()
    return checked_context(tls, "tls", "neither an ssl.SSLContext nor True")


def checked_context(
    context: Any, argument: str = "ssl_context", otherwise: str = "not an ssl.SSLContext"
) -> ssl.SSLContext | None:
    """Return *context*, a TLS context or None.

    Raises:
        TypeError: If it is neither.
    """
    if context is None:
        return None
    import ssl

    if not isinstance(context, ssl.SSLContext):
        msg = f"{argument}={context!r} is {otherwise}"
        raise TypeError(msg)
    return context


def identity_of(sock: socket.socket | None) -> tuple[int, int] | None:
    """Return device and inode of *sock*; None if it is closed or None."""
    try:
        status = os.fstat(-1 if sock is None else sock.fileno())
    except OSError:
        return None
    return status.st_dev, status.st_ino


def checked_factor(factor: float) -> float:
    """Return *factor*, by which failures multiply the wait.

    Raises:
        ValueError: If it is not a number of at least 1.
    """
    if not isinstance(factor, (int, float)) or isinstance(factor, bool) or not 1 <= factor < float("inf"):
        msg = f"retry_factor={factor!r} is not a number from 1 up"
        raise ValueError(msg)
    return factor

"""The other end of a socket: its address, its TLS, and how it is waited for."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import socket
from typing import TYPE_CHECKING, Literal

from outfall.sinks.core.arguments import MAX_PORT, checked_seconds, checked_size
from outfall.sinks.errors import PermanentDeliveryError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from outfall.sinks.event.units import Size, Span

#: The family of Unix sockets, or -1 where there are none.
UNIX: int = getattr(socket, "AF_UNIX", -1)

#: The least that an event may be shortened to.
LEAST_FRAME_BYTES = 512

#: How often one look reads, at most: a peer that floods us is none of ours.
MAX_READS = 16

#: Windows has no poll.
POLL: Callable[[], select.poll] | None = getattr(select, "poll", None)


class OversizeError(PermanentDeliveryError):
    """An event that does not fit into a datagram, or a message."""

    dropped_as = "oversize"


#: Options by which the system notices within a minute that a path has died without a word: the seconds of silence
#: before it asks, those between its questions, how many may have no answer, and the milliseconds for which what was
#: sent may stay unacknowledged.
KEEP_ALIVE: tuple[tuple[int, int, int], ...] = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (
            ("TCP_KEEPIDLE", 20),
            ("TCP_KEEPALIVE", 20),  # what macOS calls it
            ("TCP_KEEPINTVL", 10),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", 50_000),
        )
        if hasattr(socket, name)
    ),
)


def keep_alive(sock: socket.socket) -> None:
    """Let the system notice by itself that the peer of *sock* is gone, as far as it can."""
    for level, option, value in KEEP_ALIVE:
        # A system may know a name that its kernel does not.
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
    """Return what a socket that does not block raises where it would have to."""
    if not tls:
        return (BlockingIOError,)
    import ssl

    return BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError


def wants_read(wait: BaseException | None) -> bool:
    """Return True if *wait* says that there is something to be read first, as TLS may."""
    return type(wait).__name__ == "SSLWantReadError"


def is_refused_tls(error: BaseException) -> bool:
    """Return True if *error* says that one end refused the other's certificate, or its TLS, and not that it is gone."""
    try:
        import ssl
    except ImportError:  # not every Python is built with it
        return False
    return isinstance(error, ssl.SSLError) and not isinstance(
        error, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
    )


def await_verdict(sock: ssl.SSLSocket, seconds: float) -> bool:
    """Wait until the peer has said something after a handshake of TLS 1.3; return False if it kept silent.

    With TLS 1.3 a server looks at the client's certificate after the client's handshake is over. Usually it sends
    session tickets then, or the alert with which it refuses. What it sends is thrown away.

    Args:
        sock: A connected socket, which does not wait afterwards.
        seconds: How long to wait. There are servers that send nothing.

    Raises:
        OSError: If the peer has refused the connection, or ended it.
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
    """Return the alert with which the peer ended a TLS connection, if it can be read now without waiting.

    Sending to a connection that is closed already fails before the alert has been read: see `await_verdict`.
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
    """Return the two if *text* is ``host:port``, as people write it; None for a name, an address, or a path."""
    host, colon, port = text.rpartition(":")
    written = bool(colon and host) and port.isdecimal() and "/" not in host and "\0" not in host
    # An IPv6 address has colons of its own, and brackets if a port follows.
    if not written or (":" in host and not host.endswith("]")):
        return None
    return host.strip("[]"), int(port)


def checked_port(port: int | None) -> int | None:
    """Return *port*, 1 to 65535, or None for a Unix socket.

    Raises:
        ValueError: If it is neither, or there are no Unix sockets.
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
    """Return *limit*, a size that an event can be shortened to, as a number of bytes.

    Raises:
        ValueError: If it is none.
    """
    size = checked_size(limit, argument)
    if not least <= size < 1 << 32:
        msg = f"{argument}={limit!r} is not a number of bytes from {least} to {(1 << 32) - 1}"
        raise ValueError(msg)
    return size


def checked_age(age: Span | None) -> float | None:
    """Return *age*, which a connection may reach, in seconds; None for no limit.

    Raises:
        ValueError: If it is no length of time, or none at all.
    """
    seconds = None if age is None else checked_seconds(age, "max_connection_age")
    if seconds == 0:
        msg = f"max_connection_age={age!r} leaves no time to send in; None is for connections without a limit"
        raise ValueError(msg)
    return seconds


def checked_tls(tls: ssl.SSLContext | Literal[True] | None, port: int | None) -> ssl.SSLContext | None:
    """Return the context to encrypt with, or None.

    Raises:
        ValueError: If there is a context for a Unix socket.
        TypeError: If *tls* is no context.
    """
    if tls is None:
        return None
    import ssl

    if port is None:
        msg = f"tls={tls!r} with port=None: a Unix socket is not encrypted"
        raise ValueError(msg)
    if tls is True:
        return ssl.create_default_context()
    if not isinstance(tls, ssl.SSLContext):
        msg = f"tls={tls!r} is neither an ssl.SSLContext nor True"
        raise TypeError(msg)
    return tls


def identity_of(sock: socket.socket | None) -> tuple[int, int] | None:
    """Return what the system knows *sock* by; None if it is closed, or there is none."""
    try:
        status = os.fstat(-1 if sock is None else sock.fileno())
    except OSError:
        return None
    return status.st_dev, status.st_ino


def checked_factor(factor: float) -> float:
    """Return *factor*, by which waits grow.

    Raises:
        ValueError: If it is no number from 1 up.
    """
    if not isinstance(factor, (int, float)) or isinstance(factor, bool) or not 1 <= factor < float("inf"):
        msg = f"retry_factor={factor!r} is not a number from 1 up"
        raise ValueError(msg)
    return factor

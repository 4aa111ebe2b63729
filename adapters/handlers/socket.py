"""Drop-in twins of the handlers that send pickled records: `SocketHandler` and `DatagramHandler`."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

from outfall.adapters.handlers.base import Transient, TransientTuple, Twin, account_of, count_failure
from outfall.sinks.core import lifecycle
from outfall.sinks.core.clock import now as monotonic
from outfall.sinks.network.peer import await_socket, waits_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_SocketHandler = logging.handlers.SocketHandler
_DatagramHandler = logging.handlers.DatagramHandler

#: The limit for one send, in seconds, on a socket without a timeout.
SECONDS = 1.0

#: Seconds between two checks that the peer has not closed the connection: a check costs as much as a send.
_LOOK_SECONDS = 0.000_05

#: A check reads at most this often. A peer that sends more counts as lost.
_MAX_READS = 16

#: Stands for this process: a forked child gets another object.
_process = Transient()


def _in_child() -> None:
    global _process  # noqa: PLW0603
    _process = Transient()


lifecycle.call_in_child(_in_child)


def remember_process(handler: Any) -> None:
    """Remember that this process made the connection of *handler*."""
    handler._outfall_made_in = _process


def is_usable(handler: Any, sock: Any) -> bool:
    """Return False if the parent process made *sock*, the connection of *handler*, or the peer has closed it."""
    if getattr(handler, "_outfall_made_in", None) not in (None, _process):
        return False
    now = monotonic()
    seen, due = getattr(handler, "_outfall_looked", None) or (None, 0.0)
    if seen is sock and now < due:
        return True
    handler._outfall_looked = TransientTuple((sock, now + _LOOK_SECONDS))
    return not _has_ended(sock)


def _has_ended(sock: Any) -> bool:
    """Return True if the peer has closed *sock*; discard what it has sent."""
    if not isinstance(sock, socket.socket):
        return False
    try:
        if not await_socket(sock, 0, for_reading=True):
            return False
        seconds = sock.gettimeout()
        sock.settimeout(0)
        try:
            return not all(sock.recv(65_536) for _ in range(_MAX_READS))
        finally:
            sock.settimeout(seconds)
    except waits_of(hasattr(sock, "context")):
        return False
    except (OSError, ValueError):
        return True


def close(handler: Any, name: str) -> None:
    """Close *handler* and the connection in its attribute *name*.

    An encrypted connection is shut down first: otherwise the peer may lose the last data.
    """
    handler.acquire()
    try:
        sock = getattr(handler, name)
        if sock:
            setattr(handler, name, None)
            with contextlib.suppress(OSError, ValueError):
                unwrap = getattr(sock, "unwrap", None)
                if unwrap is not None and isinstance(sock, socket.socket):
                    sock.settimeout(SECONDS)
                    unwrap()
            sock.close()
        logging.Handler.close(handler)
    finally:
        handler.release()


def limit_sending(sock: socket.socket) -> None:
    """Limit each send on *sock* to `SECONDS`; otherwise the socket stays blocking."""
    if sys.platform != "win32":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(SECONDS), 0))


class SocketHandler(Twin, _SocketHandler):
    """A drop-in twin of `logging.handlers.SocketHandler`: send pickled records over TCP or a Unix socket.

    Args:
        host: Name or address, IPv4 or IPv6; the path of a Unix socket when *port* is None.
        port: TCP port, or None.

    Attributes:
        host: As above.
        port: As above.
        address: ``(host, port)`` or the path; read at each attempt to connect.
        sock: The socket, or None. Assign another to use it.
        closeOnError: Whether an error closes the connection instead of calling ``handleError``. Default False.
        retryStart: Seconds to wait after a failed attempt to connect. Default 1.0.
        retryFactor: The factor by which each further failure multiplies the wait. Default 2.0.
        retryMax: The longest wait in seconds. Default 30.0.
        retryTime: When the next attempt is due, in epoch seconds; None for at once.
        retryPeriod: The wait before the next attempt, in seconds.

    Like its namesake it connects at the first record, and drops a record that it cannot send without a report; the
    ledger of its ``sink`` counts it. A record after ``close`` connects again. The handler notices that the peer has
    closed the connection, and sends the record once more over a new one. A forked child opens its own connection when
    it sends. Deliberate differences from its namesake: :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#sockethandler
    """

    sock: Any
    retryTime: Any
    retryPeriod: float

    def createSocket(self) -> None:
        """Connect, and set ``sock``; leave it None if the next attempt is not due yet or the attempt fails."""
        retry_time, due = getattr(self, "_outfall_due", None) or (None, 0.0)
        if retry_time is not None and self.retryTime == retry_time and monotonic() >= due:
            # The attempt is due, though the system's clock may have been set back.
            self.retryTime = min(retry_time, time.time())
        _SocketHandler.createSocket(self)
        remember_process(self)
        if not self.sock and self.retryTime is not None and self.retryTime != retry_time:
            self._outfall_due = self.retryTime, monotonic() + self.retryPeriod

    def send(self, s: ReadableBuffer) -> None:
        """Send the frame *s*, or drop it and count it."""
        sock = self.sock
        if sock and not is_usable(self, sock):
            sock.close()
            self.sock = None
        waited = self.retryTime
        for _ in range(2):
            if self.sock is None:
                self.createSocket()
            if not self.sock:
                break
            try:
                self.sock.sendall(s)
            except OSError:
                self.sock.close()
                self.sock = None
            except BaseException as error:
                count_failure(self, error)
                raise
            else:
                account_of(self)._ledger.delivered += 1
                return
        account_of(self)._ledger.drop("error" if waited is None or waited != self.retryTime else "backoff")

    def close(self) -> None:
        """Close the connection."""
        close(self, "sock")


class DatagramHandler(SocketHandler, _DatagramHandler):
    """A drop-in twin of `logging.handlers.DatagramHandler`: send each pickled record as a datagram.

    Args:
        host: Name or address, IPv4 or IPv6; the path of a Unix datagram socket when *port* is None.
        port: UDP port, or None.

    Attributes:
        address: ``(host, port)`` or the path; read for each record.
        sock: The socket, or None. Assign another to use it.

    If a record cannot be sent, ``handleError`` is called. ``makePickle``, ``makeSocket``, ``createSocket`` and ``send``
    may be overridden. Deliberate differences from its namesake: :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#datagramhandler
    """

    def makeSocket(self) -> socket.socket:  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
        """Return a datagram socket for the family of the address."""
        address: Any = self.address
        host, port = (None, None) if self.port is None else address[:2]
        family = socket.AF_UNIX if host is None else socket.getaddrinfo(host, port, 0, socket.SOCK_DGRAM)[0][0]
        made = socket.socket(family, socket.SOCK_DGRAM)
        limit_sending(made)
        return made

    def send(self, s: ReadableBuffer) -> None:
        """Send the datagram *s*.

        Raises:
            OSError: If the system refuses it.
        """
        try:
            if self.sock is None:
                self.createSocket()
            sock: Any = self.sock
            sock.sendto(s, resolved(self, sock))
        except BaseException as error:
            self._outfall_resolved: Any = None
            count_failure(self, error)
            raise
        account = getattr(self, "_outfall_account", None) or account_of(self)
        account._ledger.delivered += 1


def resolved(handler: Any, sock: Any) -> Any:
    """Return the address for datagrams of *handler*; look its name up once, and again after a failure."""
    address = handler.address
    known = getattr(handler, "_outfall_resolved", None)
    if known is not None and known[0] == address and known[1] is sock:
        return known[2]
    if isinstance(address, str) or not isinstance(sock, socket.socket):
        return address
    host, port = address[:2]
    found = socket.getaddrinfo(host, port, sock.family, socket.SOCK_DGRAM)[0][4]
    handler._outfall_resolved = TransientTuple((address, sock, found))
    return found

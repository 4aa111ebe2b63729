"""Drop-in twins of the handlers that send pickled records: `SocketHandler` and `DatagramHandler`."""

# Attributes of the originals are properties here.
# pyright: reportIncompatibleVariableOverride=false

from __future__ import annotations

import errno
import logging
import logging.handlers
import pickle
import socket
import time
from time import monotonic
from typing import TYPE_CHECKING, Any

from outfall.adapters.handlers.twin import Lent, Twin
from outfall.sinks.core.reporting import describe
from outfall.sinks.errors import DeliveryError, TemporaryDeliveryError
from outfall.sinks.network.connection import waits_of
from outfall.sinks.network.datagram import DatagramSink
from outfall.sinks.network.frames import pack_length
from outfall.sinks.network.socket import LOOK_SECONDS, SocketSink

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: How long one sending may take on a socket that has no timeout of its own.
_TIMEOUT_SECONDS = 1.0

#: What the sinks are made with, before they are told an address.
_NO_PORT = 9


class HandlersSink(Lent, SocketSink):
    """What the sinks behind handlers have in common: they send frames, over the sockets that a handler makes."""

    host: str
    port: int | None

    #: Why the last attempt to connect failed: the handler's hook does not raise it.
    _failure: DeliveryError | None = None
    #: True while there is no socket, but something that somebody's makeSocket returned in its place.
    _foreign = False
    #: Where the datagrams of the connected socket go.
    _connected_to: Any = None

    def put(self, data: bytes) -> None:
        """Send *data*; raise if that failed, which the ledger knows then."""
        # Not by handle, whose frames and what it raises hold one another, and all of them the handler.
        try:
            self.put_text(data)
        except Exception as error:
            self._ledger.last_error = describe(error)
            raise
        finally:
            if self._aftermath:
                self._settle()

    # -- to the handler's hooks, and back from their defaults

    def create_socket(self) -> None:
        """Have the handler create a socket, which may mean `connect`."""
        self.owner.createSocket()
        # Not kept: its traceback holds the frames, and they what is being sent.
        failure, self._failure = self._failure, None
        try:
            if self.sock is None:
                raise failure or TemporaryDeliveryError(f"no connection to {self._peer}")
        finally:
            # Its traceback holds this frame.
            del failure

    def connect(self) -> None:
        """Try to have a connection, unless the next attempt is not due yet; why there is none is told by ``send``."""
        self._failure = None
        try:
            super().create_socket()
        except DeliveryError as error:
            self._failure = error

    def _addresses(self) -> list[tuple[int, Any]]:
        address = self.owner.address
        self.host, self.port = (address, None) if isinstance(address, str) else address[:2]
        return super()._addresses()

    # -- sockets of somebody's own

    def _adopt(self, made: Any) -> None:
        self._foreign = not isinstance(made, socket.socket)
        if self._foreign:
            self.sock = made
            return
        try:
            self._connect(made)
        except BaseException:
            made.close()
            raise
        seconds: float | None = made.gettimeout()
        self.timeout: float = seconds or _TIMEOUT_SECONDS
        # Wrapped by somebody's makeSocket: none of these handlers encrypts.
        self._tls = getattr(made, "context", None)
        self._waits = waits_of(self._tls is not None)
        super()._adopt(made)
        self._connected_to = self.owner.address
        if self.owner.sends_itself():
            # For sendall, which does not wait on a socket that does not.
            made.settimeout(seconds)

    def _connect(self, made: socket.socket) -> None:
        """Connect a datagram socket that is not: the handlers of the standard library need none that is."""
        if made.type != socket.SOCK_DGRAM:
            return
        try:
            made.getpeername()
        except OSError:
            pass
        else:
            return
        failure: OSError | None = None
        for family, address in self._addresses():
            if family == made.family:
                try:
                    made.connect(address)
                except OSError as error:
                    failure = error
                else:
                    return
        try:
            raise failure or OSError(errno.EADDRNOTAVAIL, "the name has no address of the socket's family")
        finally:
            # Its traceback holds this frame.
            del failure

    def follow(self, address: Any) -> None:
        """Let go of a datagram socket that is connected to another address."""
        if address != self._connected_to and not self._ends and not self._foreign and self.sock is not None:
            self._disconnect()

    def replace(self, sock: socket.socket | None) -> None:
        """Send over *sock* from now on."""
        self._poll = self._send = self.sock = None
        if sock is not None:
            self._adopt(sock)

    def rest(self) -> None:
        """Let go of the connection; the next event makes another."""
        with self._lock:
            self._part()

    def _has_ended(self) -> bool:
        if self._foreign:
            return False
        now = monotonic()
        if now <= self._look_due:
            return False
        self._look_due = now + LOOK_SECONDS
        return super()._has_ended()

    def _part(self) -> None:
        if self._foreign:
            self._disconnect()
        else:
            super()._part()

    def _transmit(self, data: bytes) -> None:
        if self._foreign:
            self._hand_over(self.sock, data)
        else:
            super()._transmit(data)

    def _hand_over(self, foreign: Any, data: bytes) -> None:
        foreign.sendall(data)

    def after_fork(self) -> None:
        """Begin anew in a forked child."""
        if self._foreign:
            self.sock = None
        super().after_fork()


class _StreamSink(HandlersSink):
    def make_socket(self, timeout: float | None = None) -> socket.socket:
        """Have the handler make a socket, which may mean `made_socket`."""
        return self.owner.makeSocket()  # type: ignore[no-any-return]

    def made_socket(self, timeout: float | None) -> socket.socket:
        """Return a connected socket."""
        made = super().make_socket(timeout)
        if self.port is not None:
            # As the original leaves it: small frames may wait for one another, which costs less than half.
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        return made

    def _back_off(self) -> None:
        owner = self.owner
        self.retry_start, self.retry_max, self.retry_factor = owner.retryStart, owner.retryMax, owner.retryFactor
        super()._back_off()


class _DatagramsSink(_StreamSink, DatagramSink):
    def make_socket(self, timeout: float | None = None) -> socket.socket:
        """Have the handler make a socket, and connect it."""
        made = super().make_socket(timeout)
        if isinstance(made, socket.socket):
            try:
                self._connect(made)
            except BaseException:
                made.close()
                raise
        return made

    def made_socket(self, timeout: float | None) -> socket.socket:
        """Return a socket for the first of the addresses, not connected."""
        return socket.socket(self._addresses()[0][0], socket.SOCK_DGRAM)

    def _hand_over(self, foreign: Any, data: bytes) -> None:
        foreign.sendto(data, self.owner.address)


class SocketHandler(Twin, logging.handlers.SocketHandler):
    """A drop-in twin of `logging.handlers.SocketHandler`: send pickled records over TCP or a Unix socket.

    By a `SocketSink`.

    Args:
        host: Name or address, IPv4 or IPv6; the path of a Unix socket when *port* is None.
        port: TCP port, or None.

    Attributes:
        host: As above.
        port: As above.
        address: ``(host, port)`` or the path; read when it connects.
        sock: The socket, or None. Assign another to use it.
        closeOnError: Whether an error closes the connection instead of being told. Default False.
        retryStart: Seconds to wait after an attempt to connect has failed. Default 1.0.
        retryFactor: What the wait is multiplied by each time it fails again. Default 2.0.
        retryMax: The longest wait. Default 30.0 seconds.
        retryTime: When the next attempt is due, in seconds since the epoch; None for at once.
        retryPeriod: The wait before it, in seconds.

    As with its namesake, a record that cannot be sent is dropped without a word (the ledger of its ``sink`` counts it),
    it connects at the first record, and anew for one that comes after ``close``. ``makePickle``, ``makeSocket`` (which
    may also return something with ``sendall`` and ``close`` alone), ``createSocket`` and ``send`` may be overridden.
    A forked child opens its own connection. Where it differs on purpose: :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#sockethandler
    """

    def __init__(self, host: str, port: int | None) -> None:
        Twin.__init__(self)
        self.host = host
        self.port = port
        self.address: str | tuple[str, int] = host if port is None else (host, port)
        self.closeOnError = False
        self.retryStart: float = 1.0
        self.retryMax: float = 30.0
        self.retryFactor: float = 2.0

    def make_sink(self) -> HandlersSink:
        """Return the sink."""
        return _StreamSink("localhost", _NO_PORT, on_error="raise", name=type(self).__name__)

    def lend(self, sink: HandlersSink) -> None:
        """Have *sink* go by the handler's address."""
        sink.follow(self.address)

    def sends_itself(self) -> bool:
        """Return True if a subclass sends over the socket by a method of its own."""
        return type(self).send not in (SocketHandler.send, DatagramHandler.send)

    @property
    def sock(self) -> socket.socket | None:
        """The socket, or None; settable."""
        return self.sink.sock  # type: ignore[no-any-return]

    @sock.setter
    def sock(self, sock: socket.socket | None) -> None:
        with self.at_work() as sink:
            sink.replace(sock)

    @property
    def retryTime(self) -> float | None:
        """When the next attempt to connect is due, in seconds since the epoch; None for at once. Settable."""
        due = self.sink.retry_time
        # The sink waits by a clock that nobody sets.
        return None if due is None else due - time.monotonic() + time.time()

    @retryTime.setter
    def retryTime(self, due: float | None) -> None:
        self.sink.retry_time = None if due is None else due - time.time() + time.monotonic()

    @property
    def retryPeriod(self) -> float:
        """The wait before it, in seconds; 0 before the first. Settable."""
        return self.sink.retry_period  # type: ignore[no-any-return]

    @retryPeriod.setter
    def retryPeriod(self, seconds: float) -> None:
        self.sink.retry_period = seconds

    def makeSocket(self, timeout: float = 1) -> socket.socket:
        """Return a connected socket.

        Args:
            timeout: Seconds for each address of the name.

        Raises:
            OSError: If none can be connected.
        """
        with self.at_work() as sink:
            return sink.made_socket(timeout)  # type: ignore[no-any-return]

    def createSocket(self) -> None:
        """Have a connection in ``sock``, unless the next attempt is not due yet or it fails."""
        with self.at_work() as sink:
            sink.connect()

    def makePickle(self, record: logging.LogRecord) -> bytes:
        """Return what is sent for *record*: its attributes as a pickle of protocol 1, after its length in four bytes.

        The arguments are merged into the message, and an exception is there as text alone.
        """
        if record.exc_info:
            # For what it leaves in exc_text.
            self.format(record)
        attributes = {**vars(record), "msg": record.getMessage(), "args": None, "exc_info": None}
        attributes.pop("message", None)
        payload = pickle.dumps(attributes, 1)
        return pack_length(len(payload)) + payload

    def send(self, s: ReadableBuffer) -> None:
        """Send *s*, a frame, or drop it without a word."""
        try:
            with self.at_work() as sink:
                sink.put(bytes(s))
        except DeliveryError:
            pass  # counted

    def handleError(self, record: logging.LogRecord) -> None:
        """Close the connection if ``closeOnError`` is set and there is one, else tell of the error."""
        if self.closeOnError and self.sock:
            with self.at_work() as sink:
                sink.rest()
        else:
            logging.Handler.handleError(self, record)

    def emit(self, record: logging.LogRecord) -> None:
        """Send *record*."""
        try:
            self.send(self.makePickle(record))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Close the connection."""
        with self.at_work() as sink:
            sink.rest()
            logging.Handler.close(self)


class DatagramHandler(SocketHandler, logging.handlers.DatagramHandler):
    """A drop-in twin of `logging.handlers.DatagramHandler`: send each pickled record as a datagram.

    By a `DatagramSink`.

    Args:
        host: Name or address, IPv4 or IPv6; the path of a Unix datagram socket when *port* is None.
        port: UDP port, or None.

    Attributes:
        address: ``(host, port)`` or the path; read for each record.
        sock: The socket, or None. Assign another to use it.

    A record that cannot be sent is told to ``handleError``. ``makePickle``, ``makeSocket`` (which need not connect it),
    ``createSocket`` and ``send`` may be overridden. Where it differs from its namesake on purpose:
    :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#datagramhandler
    """

    def make_sink(self) -> HandlersSink:
        """Return the sink."""
        return _DatagramsSink("localhost", _NO_PORT, on_error="raise", name=type(self).__name__)

    def makeSocket(self) -> socket.socket:  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
        """Return a datagram socket for the family of the address."""
        with self.at_work() as sink:
            return sink.made_socket(None)  # type: ignore[no-any-return]

    def send(self, s: ReadableBuffer) -> None:
        """Send *s*, a datagram.

        Raises:
            OSError: If that fails.
        """
        try:
            with self.at_work() as sink:
                sink.put(bytes(s))
        except DeliveryError as error:
            raise OSError(str(error)) from error

"""The connection of a sink: `ConnectedSink` opens it on demand, sends over it, replaces it and closes it."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections import deque
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from outfall.sinks.core.arguments import checked_seconds
from outfall.sinks.core.bytesink import ByteSink
from outfall.sinks.core.clock import now
from outfall.sinks.core.reporting import describe
from outfall.sinks.errors import DeliveryError, PausedDeliveryError, TemporaryDeliveryError
from outfall.sinks.network.peer import (
    MAX_READS,
    POLL,
    UNIX,
    OversizeError,
    await_socket,
    await_verdict,
    checked_age,
    checked_factor,
    checked_host,
    checked_port,
    checked_tls,
    heard_refusal,
    identity_of,
    is_host,
    is_refused_tls,
    keep_alive,
    waits_of,
    wants_read,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from outfall.sinks.event.units import Span
    from outfall.sinks.network.frames import Frames


class BackoffError(TemporaryDeliveryError):
    """The wait before the next attempt to connect is not over."""

    dropped_as = "backoff"


_Data = TypeVar("_Data")


class ConnectedSink(ByteSink):
    """A sink that sends over a socket of its own: it connects, backs off, transmits and closes the connection.

    The arguments are those of `SocketSink`, which describes them; *options* are for `ByteSink`.
    """

    nodelay: bool

    _kind: ClassVar[socket.SocketKind] = socket.SOCK_STREAM
    #: Whether the sink can see that the peer has closed the connection: True for streams.
    _ends: ClassVar[bool] = True
    #: How many datagrams the peer's host has refused; it chooses the address of the name.
    _refusals = 0

    def __init__(
        self,
        host: str | os.PathLike[str],
        port: int | None,
        *,
        tls: ssl.SSLContext | Literal[True] | None,
        nodelay: bool = False,
        timeout: Span,
        max_connection_age: Span | None = None,
        retry_start: Span = 1.0,
        retry_factor: float = 2.0,
        retry_max: Span = 30.0,
        clock: Callable[[], float] = monotonic,
        **options: Any,
    ) -> None:
        #: The connected socket; None if there is none.
        self.sock: socket.socket | None = None
        #: A socket that is being connected. A forked child closes it.
        self._candidate: socket.socket | None = None
        #: Functions for `SocketSink.handle`: one checks whether the peer has closed a stream, one sends. Or None.
        self._poll: Callable[[int], list[Any]] | None = None
        self._send: Callable[[bytes], int] | None = None
        #: When the next checks are due, by the system's monotonic clock: whether the peer has closed the connection,
        #: and whether the socket is still the one that was opened.
        self._look_due = self._check_due = 0.0
        #: Device and inode of the socket; None if the system does not tell.
        self._identity: tuple[int, int] | None = None
        self.host: str = checked_host(host)
        self.port: int | None = checked_port(port)
        if self.port is not None and not is_host(self.host):
            msg = f"host={host!r} is not the name or address of a host"
            raise ValueError(msg)
        #: The argument of `socket.socket.connect`: (host, port), or a path.
        self.address: tuple[str, int] | str = self.host if self.port is None else (self.host, self.port)
        self._tls = checked_tls(tls, self.port)
        self._waits = waits_of(self._tls is not None)
        self.nodelay = bool(nodelay)
        #: Seconds. These attributes may be set at any time.
        self.timeout: float = checked_seconds(timeout, "timeout")
        self.retry_start: float = checked_seconds(retry_start, "retry_start")
        self.retry_max: float = checked_seconds(retry_max, "retry_max")
        self.retry_factor: float = checked_factor(retry_factor)
        if not callable(clock):
            msg = f"clock={clock!r} is not callable"
            raise TypeError(msg)
        self._clock = clock
        #: The time of the next attempt to connect, by the clock; None for at once.
        self.retry_time: float | None = None
        #: The wait before that attempt, in seconds.
        self.retry_period: float = 0.0
        #: Seconds after which a connection is replaced, or None; settable.
        self.max_connection_age: float | None = checked_age(max_connection_age)
        self._connected_at = 0.0
        #: The time of the next attempt to replace the connection, by the clock, if the last one failed.
        self._renewal_due = 0.0
        #: How many connections in a row ended soon after they were made.
        self._short_lived = 0
        #: How many bytes the system took of data that it did not take whole.
        self._taken = 0
        #: Whether the peer has shown that it accepts the connection. With TLS 1.3 the handshake does not show it.
        self._proven = True
        #: How many events were sent before that, and how many had been delivered when the connection was made.
        self._sent_unproven = self._delivered_before = 0
        super().__init__(**options)

    def _fresh_state(self) -> None:
        super()._fresh_state()
        #: True if there is something to do after an event has been sent. Not a class attribute, whose lookup is slower.
        self._aftermath = False
        #: Failures of events that were counted as delivered: the error, and the number of events.
        self._refused: deque[tuple[Exception, int]] = deque()

    # -- connecting

    def make_socket(self, timeout: float | None = None) -> socket.socket:
        """Return a connected socket; called by `create_socket`.

        Args:
            timeout: Seconds for each address of the name. None stands for the sink's *timeout*.

        Raises:
            OSError: If none can be connected.
        """
        # A timeout of zero would make the socket non-blocking.
        seconds = max(self.timeout if timeout is None else timeout, 0.001)
        failure: OSError | None = None
        for family, address in self._addresses():
            made = socket.socket(family, self._kind)
            self._candidate = made
            try:
                made.settimeout(seconds)
                made.connect(address)
                if family != UNIX and self._kind == socket.SOCK_STREAM:
                    keep_alive(made)
                    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, self.nodelay)
                self._proven = True
                if self._tls is not None:
                    began = now()
                    made = self._candidate = self._tls.wrap_socket(made, server_hostname=self.host)
                    # A refusal takes one round trip. The handshake took at least one.
                    self._proven = self._await_verdict(made, min(seconds, _VERDICT_SECONDS + 3 * (now() - began)))
            except OSError as error:
                made.close()
                failure = error
            except BaseException:
                made.close()
                raise
            else:
                return made
            finally:
                self._candidate = None
        try:
            raise failure or OSError(errno.EADDRNOTAVAIL, "the name has no address")
        finally:
            # Its traceback refers to this frame and to its callers.
            del failure

    def _await_verdict(self, made: ssl.SSLSocket, seconds: float) -> bool:
        """Wait until the peer shows that it accepts the connection; return False if it shows nothing in time."""
        return await_verdict(made, seconds)

    def _addresses(self) -> list[tuple[int, Any]]:
        if self.port is None:
            return [(UNIX, self.host)]
        infos = socket.getaddrinfo(self.host, self.port, 0, self._kind)
        found: list[tuple[int, Any]] = [(family, address) for family, _, _, _, address in infos]
        # Connecting a datagram socket succeeds at any address, and a refusal comes later. So each refusal selects the
        # next address: the first one of localhost may be ::1 while the reader listens on 127.0.0.1.
        first = 0 if self._ends else self._refusals % (len(found) or 1)
        return found[first:] + found[:first]

    def create_socket(self) -> None:
        """Connect and store the connection in `sock`, unless the wait after a failure is not over; `send` calls it.

        Raises:
            TemporaryDeliveryError: If there is no connection.
        """
        moment = self._clock()
        if self.retry_time is not None and moment < self.retry_time:
            left = self.retry_time - moment
            msg = f"no connection to {self._peer}; the next attempt is due in {left:.1f} s"
            raise BackoffError(msg, retry_after=left)
        try:
            made = self.make_socket()
        except OSError as error:
            # A name that cannot be encoded raises UnicodeError, a ValueError, which is reported as it is.
            self._back_off()
            msg = f"no connection to {self._peer}: {describe(error)}"
            if is_refused_tls(error):
                msg = f"{msg}; {_ADVICE}"
                raise PausedDeliveryError(msg, retry_after=self.retry_period) from None
            raise TemporaryDeliveryError(msg, retry_after=self.retry_period) from None
        self.retry_time = None
        self._adopt(made)

    def _adopt(self, made: socket.socket) -> None:
        """Use *made*, a connected socket, from now on."""
        # `_push` waits by itself. A socket with a timeout would poll before each send.
        made.settimeout(0)
        self._connected_at = self._clock()
        self._sent_unproven, self._delivered_before = 0, self._ledger.delivered
        self._look_due = self._check_due = self._renewal_due = 0.0
        self._identity = identity_of(made)
        if not self._ends:
            self._send = made.send
            if self.max_connection_age is not None:
                self._poll = _never_ends  # so that `SocketSink.handle` checks the age
        elif POLL is not None:
            poll = POLL()
            poll.register(made, select.POLLIN)
            self._poll, self._send = poll.poll, made.send
        self.sock = made

    # -- sending

    def send(self, data: bytes) -> None:
        """Send *data*: a frame, a datagram, or a syslog message without its framing.

        Connect first if necessary, and try once more after a failure. Called under the sink's lock.

        Raises:
            DeliveryError: If it could not be sent.
        """
        self._send_by(self._transmit, data)

    def _send_by(self, transmit: Callable[[_Data], None], data: _Data) -> None:
        if self.sock is not None and not self._is_ours():
            self._disconnect()
        if self.sock is not None and self._is_aged():
            self._renew()
        if self.sock is None:
            self.create_socket()
        elif self._ends and self._has_ended():
            self._lose_connection()
            self.create_socket()
        try:
            transmit(data)
        except OSError as error:
            self._give_up_on(error)
            self._send_again(transmit, data, error)

    def _give_up_on(self, error: OSError) -> None:
        """Close the socket after a send failed with *error*; raise if a new socket would not help."""
        if self._ends:
            self._lose_connection()
        else:
            self._disconnect()
            if error.errno == errno.EMSGSIZE:
                msg = f"a datagram is too large for the way to {self._peer}"
                raise OversizeError(msg) from None
            if isinstance(error, TimeoutError):
                # One wait for a reader that does not read is enough.
                self._forgive_if_it_lasted()
                self._back_off()
                msg = f"no room for a datagram to {self._peer} within {self.timeout} s"
                raise TemporaryDeliveryError(msg, retry_after=self.retry_period) from None
            # The system reports an earlier datagram's refusal here, or a reader that was replaced.
            if error.errno == errno.ECONNREFUSED:
                self._refusals += 1
        self._ledger.retried += 1

    def _send_again(self, transmit: Callable[[_Data], None], data: _Data, first: OSError) -> None:
        try:
            self.create_socket()
        except BackoffError:
            # The report names the reason why the connection broke, not the wait that follows.
            msg = f"the connection to {self._peer} broke: {describe(first)}"
            raise TemporaryDeliveryError(msg) from None
        try:
            transmit(data)
        except OSError as error:
            self._lose_connection()
            msg = f"the connection to {self._peer} broke twice: {describe(error)}"
            raise TemporaryDeliveryError(msg) from None

    def _on_wire(self, data: bytes) -> bytes:
        """Return *data* with the framing of the current socket."""
        return data

    def _transmit(self, data: bytes) -> None:
        self._push(self._on_wire(data))

    def _push(self, data: bytes) -> None:
        """Send all of *data* within the timeout; if that fails, `_taken` is the number of bytes that were sent."""
        sock = self.sock
        self._taken = sent = 0
        wait: BaseException | None = None
        if sock is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        try:
            try:
                sent = sock.send(data)
            except self._waits as error:
                wait = error
            if sent != len(data):
                self._push_rest(sock, data, sent, wait)
        except OSError:
            raise
        except BaseException:
            # How much was sent is unknown.
            self._disconnect()
            raise
        if not self._proven:
            self._sent_unproven += 1

    def _push_rest(self, sock: socket.socket, data: bytes, sent: int, wait: BaseException | None) -> None:
        view = memoryview(data)
        deadline = now() + self.timeout
        while sent < len(data):
            self._taken = sent
            left = deadline - now()
            if left <= 0 or not await_socket(sock, left, for_reading=wants_read(wait)):
                raise TimeoutError(errno.ETIMEDOUT, "the peer takes nothing more")
            try:
                sent += sock.send(view[sent:])
            except self._waits as error:
                wait = error

    def _push_frames(self, frames: Frames) -> None:
        """Send all of *frames* at once; if that fails, drop those that were sent whole."""
        try:
            self._push(frames.joined())
        except OSError:
            frames.drop_bytes(self._taken)
            raise
        if not self._proven:
            unproven = len(frames) - 1
            self._sent_unproven += unproven

    def _push_datagrams(self, frames: Frames) -> None:
        """Send each of *frames* by itself; if that fails, drop those that were sent."""
        datagrams = frames.each()
        sent, refused = 0, -1
        try:
            while True:
                sock = self.sock
                try:
                    for datagram in islice(datagrams, sent, None):
                        sock.send(datagram)  # type: ignore[union-attr] # pyright: ignore[reportOptionalMemberAccess]
                        sent += 1
                    break
                except self._waits:
                    self._push(datagrams[sent])
                    sent += 1
                except ConnectionRefusedError as error:
                    # It is about an earlier datagram, unless a new socket reports it too.
                    if refused == sent:
                        raise
                    refused = sent
                    self._give_up_on(error)
                    self.create_socket()
        except Exception:
            frames.drop(sent)
            raise

    def _finish(self, data: bytes, sent: int) -> Exception | None:
        """Send the rest of *data*, or all of it over a new connection; return the error if both fail."""
        try:
            sock = self.sock
            if sock is not None:
                self._push_rest(sock, data, sent, None)
        except OSError as error:
            try:
                self._give_up_on(error)
                self._send_again(self._push, data, error)
            except Exception as failure:
                return failure
        return None

    # -- whether the socket is still usable

    def _look(self, moment: float) -> None:
        """Raise LookupError if the connection seems unusable; `SocketSink.handle` calls it now and then."""
        if moment > self._check_due:
            self._check_due = moment + _CHECK_SECONDS
            if self._is_aged() or not self._is_ours():
                raise LookupError
        if self._poll is None or self._poll(0):
            raise LookupError  # most likely the peer has closed the connection
        self._look_due = moment + _LOOK_SECONDS

    def _is_aged(self) -> bool:
        """Return True if the connection has reached `max_connection_age`."""
        age = self.max_connection_age
        if age is None:
            return False
        moment = self._clock()
        return moment - self._connected_at >= age and moment >= self._renewal_due

    def _renew(self) -> None:
        """Replace the connection by a new one; keep it if a new one cannot be made."""
        try:
            made = self.make_socket()
        except (OSError, UnicodeError, DeliveryError):
            self.retry_time = None  # a connection exists
            self._renewal_due = self._clock() + min(self.max_connection_age or 0.0, self.retry_max)
            return
        try:
            self._part()
        except BaseException:
            made.close()
            raise
        self._adopt(made)

    def _is_ours(self) -> bool:
        """Return False if other code has closed the descriptor, whose number may belong to another file now."""
        return self._identity is None or self._identity == identity_of(self.sock)

    def _has_ended(self) -> bool:
        """Return True if the peer has closed the connection; discard what it has sent."""
        sock = self.sock
        try:
            if self._poll is not None:
                if not self._poll(0):
                    return False
            elif sock is None or not select.select([sock], [], [], 0)[0]:
                return sock is None
            for _ in range(MAX_READS):
                if sock is None or not sock.recv(65_536):
                    return True
        except self._waits:
            self._proven = True  # it has sent data of TLS itself
            return False
        except (OSError, ValueError) as error:
            self._note_refusal(error)
            return True
        return False

    def _note_refusal(self, error: BaseException) -> None:
        """Count events as lost that were sent to a peer which then refused the connection with *error*."""
        if self._proven or not self._sent_unproven or not is_refused_tls(error):
            return
        # A wrapper counts the events of its batches. They are reported, but they are not in this ledger.
        with self._ledger.lock:
            counted = min(self._ledger.delivered - self._delivered_before, self._sent_unproven)
            self._ledger.delivered -= counted
            self._ledger.dropped["error"] += counted
        msg = (
            f"{self._peer} has refused the connection after {self._sent_unproven} events were sent, which are lost: "
            f"{describe(error)}; {_ADVICE}"
        )
        self._refused.append((PausedDeliveryError(msg), self._sent_unproven))
        self._sent_unproven = 0
        self._aftermath = True

    # -- closing

    def _lose_connection(self) -> None:
        """Close a broken connection; after the third short-lived one in a row, wait before the next attempt."""
        if not self._proven and self.sock is not None:
            refusal = heard_refusal(self.sock)
            if refusal is not None:
                self._note_refusal(refusal)
        self._disconnect()
        self._forgive_if_it_lasted()
        self._short_lived += 1
        if self._short_lived > _SHORT_LIVED_ALLOWED:
            self._back_off()

    def _forgive_if_it_lasted(self) -> None:
        """Reset the waits if the socket worked for some time before it failed."""
        if self._clock() - self._connected_at >= self.retry_start:
            self._short_lived = 0
            self.retry_period = 0.0

    def _back_off(self) -> None:
        grown = self.retry_period * self.retry_factor or self.retry_start
        self.retry_period = min(grown, self.retry_max)
        self.retry_time = self._clock() + self.retry_period

    def _disconnect(self) -> None:
        sock, ours = self.sock, self._is_ours()
        self.sock = self._poll = self._send = self._identity = None
        if sock is not None:
            with contextlib.suppress(OSError):
                if ours:
                    sock.close()
                else:
                    sock.detach()  # closing it would close the file that has the number now

    def _part(self) -> None:
        """Close the connection so that the peer can read everything that was sent."""
        sock = self.sock
        if sock is not None and self._ends:
            # Unread data from the peer would make the system reset the connection, and the peer would lose what it has
            # not read yet.
            self._has_ended()
            if self._tls is not None:
                try:
                    sock.unwrap()  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]
                except (OSError, ValueError) as error:
                    self._note_refusal(error)
            with contextlib.suppress(OSError):
                # The method of an SSLSocket would end TLS, and alerts would arrive encrypted.
                socket.socket.shutdown(sock, socket.SHUT_WR)
            if self._tls is not None:
                self._await_end(sock)
        self._disconnect()

    def _await_end(self, sock: socket.socket) -> None:
        """Wait until the peer has closed the connection too, at most until the deadline.

        A TLS 1.3 server sends session tickets when it finishes its handshake. The client may have sent its events and
        closed its socket long before. The tickets would then reset the connection.
        """
        deadline = now() + self.timeout if self._deadline is None else self._deadline
        while (left := deadline - now()) > 0 and await_socket(sock, left, for_reading=True):
            try:
                if not sock.recv(65_536):
                    return
            except self._waits:
                self._proven = True
            except (OSError, ValueError) as error:
                self._note_refusal(error)
                return

    def _release(self) -> None:
        self._part()

    def after_fork(self) -> None:
        """Start without a connection in a forked child; the parent's stays as it is."""
        if not self._is_ours():
            self._disconnect()
        for sock in (self.sock, self._candidate):
            if sock is not None:
                # This closes the child's copy of the descriptor only. The peer and the TLS session do not notice.
                with contextlib.suppress(OSError, ValueError):
                    os.close(sock.detach())
        self.sock = self._candidate = self._poll = self._send = self._identity = None
        self.retry_time = None
        self.retry_period = 0.0
        self._short_lived = 0
        super().after_fork()

    def __del__(self) -> None:
        # A sink that is no longer referenced does not leak its connection. When the interpreter ends, the names of this
        # module may be gone.
        try:
            self._disconnect()
        except Exception:
            return

    @property
    def _peer(self) -> str:
        if self.port is None:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def _describe(self) -> str:
        return f"to {self._peer}"


def _never_ends(_milliseconds: int) -> list[Any]:
    return []


#: Frames that follow within this time share one check, which costs a fifth of a send.
_LOOK_SECONDS = 0.000_05
#: The seconds between two checks whether the socket is still the one that was opened.
_CHECK_SECONDS = 1.0
#: Datagrams need no clock: each 256th one is checked.
CHECK_MASK = 0xFF
#: How long a server may take after a TLS handshake to show that it accepts the client, in seconds. Three times the
#: duration of the handshake is added.
_VERDICT_SECONDS = 0.1
_SHORT_LIVED_ALLOWED = 2
_ADVICE = "check tls and the certificates of both sides"

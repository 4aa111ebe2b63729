"""The receiving end of `SocketSink` and `DatagramSink`: `SocketListener`."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from outfall.sinks.core import lifecycle, threads
from outfall.sinks.core.arguments import checked_choice, checked_count, checked_seconds
from outfall.sinks.core.clock import now as monotonic
from outfall.sinks.core.logginglock import released
from outfall.sinks.core.reporting import REPORT_INTERVAL_SECONDS, SinkFailure, cleaned, report
from outfall.sinks.core.sink import Sink, checked_sink
from outfall.sinks.core.threads import check_threads
from outfall.sinks.errors import PermanentDeliveryError
from outfall.sinks.network.bound import BoundSocket, checked_address
from outfall.sinks.network.frames import (
    LENGTH_BYTES,
    MAX_FRAME_BYTES,
    Codec,
    FrameError,
    JSONFrames,
    delimiter_of,
    length_of,
)
from outfall.sinks.network.incoming import Incoming

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from typing_extensions import Self

    from outfall.sinks.event.units import Size, Span


@dataclass(frozen=True, slots=True)
class ListenerStats:
    """The counts of a `SocketListener` so far.

    Args:
        name: The listener's name.
        connections: Open connections.
        accepted: Connections accepted in all; 0 for datagrams.
        events: Events passed to the sinks.
        rejected: Connections that were closed, and frames and datagrams that were discarded, by reason: ``garbage``
            (not an event), ``oversize``, ``signature``, ``truncated`` (the peer closed before its frame was complete),
            ``timeout`` (a frame took too long), ``idle``, ``overload`` (too many connections, or too much in memory),
            ``tls`` (the handshake failed).
        failed: How often a sink raised, which it does only with ``on_error="raise"``.
    """

    name: str
    connections: int = 0
    accepted: int = 0
    events: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict[str, int])
    failed: int = 0


class SocketListener:
    """Receive what `SocketSink` and `DatagramSink` send, and pass the events to *sinks*.

    Args:
        address: (host, port), IPv4 or IPv6, to listen on; port 0 for any free port. Or the path of a Unix socket.
            Anyone who can connect can send events: use a loopback address, TLS with client certificates, or
            `SignedFrames`.
        sinks: The sinks whose `Sink.handle` gets the events. They are not owned: close them after the listener.
        kind: ``"stream"`` (default) for TCP and Unix stream sockets, ``"datagram"`` for UDP and Unix datagrams.
        codec: The form of a frame. Default ``JSONFrames()``. `JSONLines` reads lines of JSON from any sender. Only
            `PickleFrames` unpickles, which runs code of the peer's choice.
        max_frame_bytes: Length of a frame, line or datagram above which it is refused. Default 1 MiB. An oversized
            frame is read and discarded, and the next ones are received. A length above 64 MiB is garbage, and the
            connection is closed.
        max_connections: How many connections may be open at once; further ones are closed at once. Default 1 024. The
            process's limit of open files applies too.
        max_buffered_bytes: The limit of the bytes of incomplete frames in memory, for all connections together.
            Default 64 MiB. Above it, the connection with most of them is closed.
        frame_timeout: Seconds, a timedelta or text such as ``"2s"``, within which a frame must be complete after its
            first byte, and a new connection must have sent its first frame. Default 10.0.
        idle_timeout: Seconds, a timedelta or text such as ``"2s"``, for which a connection may be silent between two
            frames. Default 3 600. None for no limit.
        tls: An `ssl.SSLContext` for servers, with a certificate. Default None: no encryption.
        on_error: Called with a `SinkFailure` for each refused connection, frame or datagram, for each sink that
            raised, and for errors of the system. Each reason is reported at most once in 30 seconds. Default
            `report`.
        name: The name of the listener in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If an argument is out of range, or *tls* comes with datagrams.
        TypeError: If *address*, one of *sinks*, *codec* or *on_error* is of another type.

    One thread serves all connections and calls the sinks: a slow sink slows all senders down, until their timeouts
    pass. Put a `BackgroundSink` in front of a target that may be slow. Garbage, an invalid signature, or a frame that
    is not complete in time closes the connection that sent it, and is counted; all others are served. An oversized
    frame, or a bad line, is discarded alone. Reports contain nothing of what was sent.

    Use it as a context manager, or call `start` and `stop`; both may be called again. Safe from any thread. In a forked
    child the listener is not started, and the parent's connections are left alone. At the exit of the process it passes
    on what has come, and stops.

    Source: "Sending and receiving logging events across a network" in Python's logging cookbook.
    """

    delivers_later: ClassVar[bool] = False
    has_owner = False

    def __init__(
        self,
        address: tuple[str, int] | str | os.PathLike[str],
        *sinks: Sink,
        kind: Literal["stream", "datagram"] = "stream",
        codec: Codec | None = None,
        max_frame_bytes: Size = MAX_FRAME_BYTES,
        max_connections: int = 1024,
        max_buffered_bytes: Size = 64 * 1024 * 1024,
        frame_timeout: Span = 10.0,
        idle_timeout: Span | None = 3600.0,
        tls: ssl.SSLContext | None = None,
        on_error: Callable[[SinkFailure], object] = report,
        name: str | None = None,
    ) -> None:
        self._given_address = checked_address(address)
        for sink in sinks:
            checked_sink(sink, "sinks")
        checked_choice(kind, "kind", ("stream", "datagram"))
        if codec is not None and (isinstance(codec, type) or not callable(getattr(codec, "decode", None))):
            msg = f"codec={codec!r} is no codec, such as JSONFrames()"
            raise TypeError(msg)
        if tls is not None and (kind == "datagram" or not hasattr(tls, "wrap_socket")):
            msg = f"tls={tls!r} with kind={kind!r}: an ssl.SSLContext, for streams alone"
            raise ValueError(msg)
        if not callable(on_error):
            msg = f"on_error={on_error!r} is not callable"
            raise TypeError(msg)
        self.sinks: tuple[Sink, ...] = sinks
        self.kind = kind
        self.codec: Codec = JSONFrames() if codec is None else codec
        self.max_frame_bytes: int = checked_count(max_frame_bytes, "max_frame_bytes", "bytes")
        self.max_connections: int = checked_count(max_connections, "max_connections", "connections")
        self.max_buffered_bytes: int = checked_count(max_buffered_bytes, "max_buffered_bytes", "bytes")
        self.frame_timeout: float = checked_seconds(frame_timeout, "frame_timeout")
        self.idle_timeout: float | None = (
            None if idle_timeout is None else checked_seconds(idle_timeout, "idle_timeout")
        )
        self._tls = tls
        self.on_error = on_error
        self.name: str = type(self).__name__ if name is None else str(name)
        self._fresh_state()
        lifecycle.join(self)

    def _fresh_state(self) -> None:
        #: Held during start and stop.
        self._lock = threading.RLock()
        #: Guards the counts.
        self._ledger_lock = threading.RLock()
        self._accepted = self._events = self._failed = 0
        self._rejected: defaultdict[str, int] = defaultdict(int)
        self._told: dict[str, tuple[float, int]] = {}
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._stop_deadline = 0.0
        self._selector: selectors.BaseSelector | None = None
        self._bound: BoundSocket | None = None
        self._wake: tuple[socket.socket, socket.socket] | None = None
        # The attributes from here on belong to the thread.
        self._peers: dict[socket.socket, Incoming] = {}
        self._buffered = 0
        self._sweep_due = 0.0
        #: When accepting continues after there were too many open files.
        self._accept_again: float | None = None

    # -- methods for applications

    @property
    def address(self) -> tuple[str, int] | str:
        """The bound address, with its real port; before `start` and after `stop` the argument *address*."""
        bound = self._bound
        return (None if bound is None else bound.address) or self._given_address

    @property
    def running(self) -> bool:
        """True between `start` and `stop`."""
        return self._thread is not None

    def start(self) -> Self:
        """Bind the address, start to receive, and return the listener. Does nothing if it is running.

        Raises:
            OSError: If the address cannot be bound.
        """
        check_threads()
        with self._lock:
            if self._thread is not None:
                return self
            self._stopping = False
            kind = socket.SOCK_STREAM if self.kind == "stream" else socket.SOCK_DGRAM
            bound = BoundSocket(self._given_address, kind, min(self.max_connections, _BACKLOG))
            selector = selectors.DefaultSelector()
            wake = socket.socketpair()
            selector.register(bound.sock, selectors.EVENT_READ)
            for end in wake:
                end.setblocking(False)
            selector.register(wake[0], selectors.EVENT_READ)
            self._bound, self._selector, self._wake = bound, selector, wake
            if self.kind == "datagram":
                # One byte more than the limit of a datagram. Pages that are never written take no memory.
                self._room = memoryview(bytearray(min(self.max_frame_bytes, _GREATEST_DATAGRAM) + LENGTH_BYTES + 1))
            # A daemon, so that the process can end without `stop`; `drain` stops it then.
            self._thread = threading.Thread(target=self._run, name=f"outfall {self.name}", daemon=True)
            try:
                threads.start(self._thread)
            except BaseException:
                self._thread = None
                self._close_all()
                raise
        return self

    def stop(self, timeout: float | None = None) -> bool:
        """Pass on what has come so far, close all connections and release the address; idempotent.

        Args:
            timeout: Seconds. None stands for 5.

        Returns:
            False if a sink was still busy at the timeout; what had come and was not passed on is lost.
        """
        seconds = lifecycle.patience(_STOP_SECONDS) if timeout is None else checked_seconds(timeout, "timeout")
        with self._lock:
            thread = self._thread
            if thread is None:
                return True
            self._stop_deadline = monotonic() + seconds
            self._stopping = True
            self._wake_up()
            if thread is threading.current_thread():  # called by a sink
                return False
            released(thread.join, seconds)
            if thread.is_alive():
                return False
            self._thread = None
            return True

    def stats(self) -> ListenerStats:
        """Return the counts as they stand."""
        with self._ledger_lock:
            return ListenerStats(
                self.name, len(self._peers), self._accepted, self._events, dict(self._rejected), self._failed
            )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "" if self.running else " stopped"
        return f"<{type(self).__name__} {self.kind} {self.address!r}{state}>"

    # -- the socket

    def _wake_up(self) -> None:
        wake = self._wake
        if wake is not None:
            with contextlib.suppress(OSError):  # it is full, so the thread wakes anyway
                wake[1].send(b"!")

    def _close_all(self) -> None:
        bound, self._bound = self._bound, None
        selector, self._selector = self._selector, None
        wake, self._wake = self._wake, None
        for open_one in (selector, bound, *(wake or ())):
            if open_one is not None:
                open_one.close()

    # -- the thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                try:
                    self._serve(self._patience())
                except Exception as error:
                    self._tell("internal", error)
                    time.sleep(0.01)  # so that no error makes a busy loop
            self._finish()
        finally:
            for peer in list(self._peers.values()):
                self._drop(peer)
            self._close_all()

    def _patience(self) -> float | None:
        if self._accept_again is not None:
            return _ACCEPT_PAUSE_SECONDS
        return self._sweep_seconds if self._peers else None

    @property
    def _sweep_seconds(self) -> float:
        shortest = min(self.frame_timeout, self.idle_timeout or self.frame_timeout)
        return min(1.0, max(0.01, shortest / 4))

    def _serve(self, patience: float | None) -> bool:
        """Wait for data and receive it; return True if any came."""
        selector = self._selector
        if selector is None or self._bound is None:
            return False
        bound = self._bound.sock
        ready = selector.select(patience)
        now = monotonic()
        if self._accept_again is not None and now >= self._accept_again:
            self._accept_again = None
            selector.register(bound, selectors.EVENT_READ)
        for key, _ in ready:
            sock: Any = key.fileobj
            if sock is bound:
                if self.kind == "stream":
                    self._accept(bound, now)
                else:
                    self._receive_datagrams(bound)
            elif key.data is None:
                with contextlib.suppress(OSError):
                    sock.recv(4096)
            elif sock in self._peers:  # it may have been closed because of another one
                self._receive(key.data, now)
        if now >= self._sweep_due:
            self._sweep_due = now + self._sweep_seconds
            self._sweep(now)
        return bool(ready)

    def _accept(self, bound: socket.socket, now: float) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                made, _address = bound.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:
                if error.errno in _NO_DESCRIPTORS and self._selector is not None:
                    # The connection waits in the system until a file can be opened. Asking again at once would be a
                    # busy loop.
                    self._selector.unregister(bound)
                    self._accept_again = now + _ACCEPT_PAUSE_SECONDS
                self._tell("accept", error)
                return
            if len(self._peers) >= self.max_connections:
                made.close()
                self._reject("overload", f"there are {self.max_connections} connections already")
                continue
            self._add(made, now)

    def _add(self, made: socket.socket, now: float) -> None:
        try:
            made.setblocking(False)
            if self._tls is not None:
                made = self._tls.wrap_socket(made, server_side=True, do_handshake_on_connect=False)
        except OSError:  # it is closed already
            made.close()
            self._reject("tls", "the connection was gone before the handshake")
            return
        peer = Incoming(made, now, handshaking=self._tls is not None)
        if self._selector is not None:
            self._selector.register(made, selectors.EVENT_READ, peer)
        with self._ledger_lock:
            self._peers[made] = peer
            self._accepted += 1

    def _receive(self, peer: Incoming, now: float) -> None:
        """Receive once from *peer*, and pass on the complete frames."""
        if peer.handshaking and not self._shake_hands(peer):
            return
        data, ended = peer.receive(now)
        if data:
            self._take(peer, data, now)
        if ended and peer.sock in self._peers:
            self._part_with(peer, "the peer was gone")

    def _part_with(self, peer: Incoming, why: str) -> None:
        """Close a connection that the peer has closed; an unterminated last line counts."""
        if peer.unfinished and delimiter_of(self.codec):
            line = b"" if peer.skipping else peer.last_line()
            if line.strip():
                try:
                    self._pass_on(line, "line")
                except FrameError:
                    self._reject("truncated", f"{why} after {len(line)} bytes of a line")
            self._drop(peer)
        elif peer.unfinished:
            self._refuse(peer, "truncated", f"{why} after {len(peer.buffer)} bytes of a frame")
        else:
            self._drop(peer)

    def _shake_hands(self, peer: Incoming) -> bool:
        before = peer.interest
        try:
            over = peer.shake_hands()
        except FrameError as error:
            self._refuse(peer, error.reason, str(error))
            return False
        if peer.interest != before and self._selector is not None:
            self._selector.modify(peer.sock, peer.interest, peer)
        return over

    def _take(self, peer: Incoming, data: bytes, now: float) -> None:
        """Pass on the complete frames in what came."""
        delimiter, limit = delimiter_of(self.codec), self.max_frame_bytes
        if delimiter:
            self._pass_on_each(peer.lines(data, now, limit, delimiter))
        else:
            try:
                for payload in peer.frames(data, now, limit):
                    self._pass_on(payload, "frame")
            except FrameError as error:
                self._refuse(peer, error.reason, str(error))
                return
        self._buffered += len(peer.buffer) - peer.counted
        peer.counted = len(peer.buffer)
        if self._buffered > self.max_buffered_bytes:
            greatest = max(self._peers.values(), key=lambda each: len(each.buffer))
            self._refuse(greatest, "overload", f"{self._buffered} bytes of half frames are in memory")

    def _pass_on_each(self, payloads: Iterable[bytes | int]) -> None:
        """Pass on the events in *payloads*; a bad one does not affect the others."""
        for payload in payloads:
            try:
                self._pass_on(payload, "line")
            except FrameError as error:
                self._reject(error.reason, str(error))

    def _pass_on(self, payload: bytes | int, what: str) -> None:
        """Pass the event in *payload* to the sinks; a number is the length of one that is too long.

        Raises:
            FrameError: If it is not an event.
        """
        if isinstance(payload, int):
            more = " or more" if what == "line" else ""
            limit = self.max_frame_bytes
            self._reject("oversize", f"a {what} of {payload} bytes{more} came, where max_frame_bytes={limit}")
        else:
            self._hand_on(self._decoded(payload))

    def _decoded(self, payload: bytes) -> dict[str, Any]:
        try:
            return self.codec.decode(payload)
        except FrameError:
            raise
        except Exception as error:
            # Only the message of a FrameError is known to contain nothing of the payload.
            msg = f"the codec raised {type(error).__name__}"
        raise FrameError(msg)

    def _receive_datagrams(self, bound: socket.socket) -> None:
        for _ in range(_DATAGRAMS_AT_ONCE):
            try:
                data = bytes(self._room[: bound.recv_into(self._room)])
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._tell("receive", error)
                return
            self._take_datagram(data)

    def _take_datagram(self, data: bytes) -> None:
        prefix = LENGTH_BYTES if self.codec.length_in_datagrams else 0
        if len(data) - prefix > self.max_frame_bytes:
            self._reject("oversize", f"a datagram of more than {self.max_frame_bytes} bytes")
            return
        delimiter = delimiter_of(self.codec)
        if delimiter:
            self._pass_on_each(line for line in data.split(delimiter) if line.strip())
        elif prefix and (len(data) < prefix or length_of(data) != len(data) - prefix):
            self._reject("garbage", f"a datagram of {len(data)} bytes that does not begin with its length")
        else:
            self._pass_on_each((data[prefix:],))

    def _hand_on(self, event: dict[str, Any]) -> None:
        for sink in self.sinks:
            try:
                sink.handle(event)
            except Exception as error:
                with self._ledger_lock:
                    self._failed += 1
                self._tell(f"sink {sink.name}", cleaned(error, event))
        with self._ledger_lock:
            self._events += 1

    def _sweep(self, now: float) -> None:
        """Close the connections whose timeout has passed."""
        for peer in list(self._peers.values()):
            begun = peer.unfinished or not peer.proven
            if begun and now - peer.began > self.frame_timeout:
                self._refuse(peer, "timeout", f"a frame was not whole after {self.frame_timeout} s")
            elif not begun and self.idle_timeout is not None and now - peer.heard > self.idle_timeout:
                self._refuse(peer, "idle", f"nothing came for {self.idle_timeout} s")

    def _finish(self) -> None:
        """Receive what has come until `stop` was called, within its timeout."""
        # Nothing waits here any more. A connection that is not accepted yet may have sent everything already.
        idle = False
        while not idle and monotonic() < self._stop_deadline:
            try:
                idle = not self._serve(0)
            except Exception as error:
                self._tell("internal", error)
                return
        for peer in list(self._peers.values()):
            if peer.unfinished:
                self._part_with(peer, "stopped")

    # -- closing, counting and reporting

    def _refuse(self, peer: Incoming, reason: str, why: str) -> None:
        self._drop(peer)
        self._reject(reason, why)

    def _drop(self, peer: Incoming) -> None:
        self._buffered -= peer.counted
        peer.counted = 0
        # Unregister it before closing: a copy of the descriptor in a forked child would keep it in the epoll set.
        if self._selector is not None:
            with contextlib.suppress(KeyError, ValueError, OSError):
                self._selector.unregister(peer.sock)
        with self._ledger_lock:
            self._peers.pop(peer.sock, None)
        with contextlib.suppress(OSError):
            peer.sock.close()

    def _reject(self, reason: str, why: str) -> None:
        with self._ledger_lock:
            self._rejected[reason] += 1
        self._tell(reason, PermanentDeliveryError(why))

    def _tell(self, cause: str, error: BaseException) -> None:
        now = monotonic()
        last, suppressed = self._told.get(cause, (None, 0))
        if last is not None and now - last < REPORT_INTERVAL_SECONDS:
            self._told[cause] = last, suppressed + 1
            return
        self._told[cause] = now, 0
        try:
            where = f"{self.kind} {self.address!r}"
            self.on_error(SinkFailure(self.name, error, 0, time.time(), suppressed, where))
        except Exception as raised:
            report(SinkFailure(self.name, cleaned(raised, None), 0, time.time()))

    # -- fork and exit, see outfall.sinks.core.lifecycle

    def hasten(self, deadline: float) -> None:
        """Do nothing: events are passed on at once."""

    def drain(self, timeout: float) -> None:
        """Stop, at exit: a thread that runs while the interpreter ends can do harm."""
        self.stop(timeout)

    def after_fork(self) -> None:
        """Reset the listener in a forked child: stopped; it closes its copies of the parent's sockets, nothing more."""
        peers, selector, bound, wake = self._peers, self._selector, self._bound, self._wake
        self._fresh_state()
        for sock in (*list(peers), bound and bound.sock, *(wake or ())):
            if sock is not None:
                with contextlib.suppress(OSError, ValueError):
                    os.close(sock.detach())
        if selector is not None:
            # Closing the copy does not change the parent's selector; unregistering would.
            with contextlib.suppress(OSError):
                selector.close()


_STOP_SECONDS = 5.0
_BACKLOG = 1024
#: Linux limits a datagram of a Unix socket by the send buffer, which may be set to this and more.
_GREATEST_DATAGRAM = 64 * 1024 * 1024
_ACCEPTS_AT_ONCE = 128
_DATAGRAMS_AT_ONCE = 256
_ACCEPT_PAUSE_SECONDS = 0.1
_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

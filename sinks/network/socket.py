"""Events sent in frames over a connection: `SocketSink`."""

# For pyright as in file.py: `event.__class__ is dict` narrows nothing, and `holding` is read from the frame.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportUnusedVariable=false
# pyright: reportFunctionMemberAccess=false

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from orjson import dumps

from outfall.sinks.core.arguments import checked_seconds
from outfall.sinks.core.bytesink import ByteSink
from outfall.sinks.core.forwarding import reads_data_alone
from outfall.sinks.core.item import BatchResult, data_of
from outfall.sinks.core.lock import HAND_TAKEN, TURN
from outfall.sinks.core.reporting import describe, report
from outfall.sinks.core.sink import OnError, Sink
from outfall.sinks.errors import (
    DeliveryError,
    PausedDeliveryError,
    ReentrantEventError,
    TemporaryDeliveryError,
    reason_of,
)
from outfall.sinks.event.depth import is_tracked, too_deep
from outfall.sinks.event.fit import shortened
from outfall.sinks.event.json import OPTIONS, OrjsonRenderer
from outfall.sinks.event.levels import NOTSET, NUMBERS, Level
from outfall.sinks.network.connection import (
    MAX_READS,
    POLL,
    UNIX,
    OversizeError,
    await_socket,
    await_verdict,
    checked_host,
    checked_limit,
    checked_port,
    checked_tls,
    heard_refusal,
    is_refused_tls,
    waits_of,
    wants_read,
)
from outfall.sinks.network.frames import LENGTH_BYTES, MAX_FRAME_BYTES, Codec, JSONFrames, pack_length

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from outfall.sinks.core.item import Encoded
    from outfall.sinks.event.units import Size, Span


#: What of a batch goes by one ``send``: a slow peer takes that much within any timeout that makes sense.
_CHUNK_BYTES = 65_536

# What SocketSink._express says: take the whole pipeline; render and send; look at the level first.
PIPELINE, DIRECT, DIRECT_WITH_LEVEL = range(3)


class SocketSink(ByteSink):
    """Send each event in a frame to *host*:*port*, over TCP or a Unix socket.

    Args:
        host: Name or address, IPv4 or IPv6; the path of a Unix socket when *port* is None.
        port: TCP port, 1 to 65535, or None.
        codec: How an event becomes a frame. Default ``JSONFrames()``. `PickleFrames` for the standard library's
            receivers, `SignedFrames` for who must be sure of the sender.
        max_frame_bytes: Size of a frame, without the four bytes of its length, above which the longest text fields are
            shortened and the event gets ``"truncated": true``; if that is not enough, the largest fields are left out.
            Default 1 MiB, which is what `SocketListener` takes by default; at least 512. Settable.
        tls: An `ssl.SSLContext` to encrypt with, which may hold a client certificate, or True for
            ``ssl.create_default_context()``. Default None: no encryption. The server's certificate has to name *host*,
            unless the context says otherwise.
        timeout: Seconds, a timedelta or text such as ``"2s"``, that one connecting (to each address of the name) or one
            sending may take. Default 1.0. The system's resolver of names keeps times of its own.
        retry_start: Seconds, a timedelta or text such as ``"2s"``, to wait after a connection failed. Default 1.0.
        retry_factor: What the wait is multiplied by each time it fails again. Default 2.0.
        retry_max: The longest wait. Default 30.0 seconds.
        clock: What tells the time for these waits. Default `time.monotonic`; for tests.
        renderer: What makes an event text or bytes, a renderer of structlog. Default ``OrjsonRenderer()``. A listener
            with `JSONFrames` takes JSON objects only.
        encoding: How text is encoded. Default UTF-8.
        errors: What to do with characters that *encoding* does not have. Default ``"backslashreplace"``.
        level: Events below it are left out: a name in any case, or a number. Default NOTSET, which takes all.
        processors: Processors of structlog, applied in order to a copy of each event. Default none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: What to call the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *port*, *max_frame_bytes*, *timeout* or one of the retry arguments is out of range, or *tls*
            comes without a port.
        TypeError: If *host*, *codec* or *tls* is of another type.

    It connects at the first event. When `handle` returns, the operating system has the whole frame; whether the peer
    has read it cannot be known, since nothing is acknowledged: what was on its way when a connection breaks is lost
    and counted as delivered. Where that matters put a spool and HTTP in its place.

    With TLS 1.3 a server refuses a client's certificate after the handshake is over. So the first event waits for the
    server's first word after it, for a tenth of a second and three times the handshake's time at most. Where the
    refusal comes even later, what was sent before is counted as ``dropped["error"]`` after all, and told; what a
    wrapper has counted as delivered is told.

    A connection that the peer has closed in the meantime is noticed before the next event is sent, and made anew. An
    event whose sending fails is sent once more after connecting again; a frame sent in part makes a connection
    unusable, and it is closed. If no connection can be had, the event is counted as ``dropped["error"]``; those that
    come until the next attempt, which the application does not have to wait for, as ``dropped["backoff"]``.
    ``on_error`` is told of each failed attempt, with the number of events lost since the last one that was told, and
    not of each event. A peer that keeps closing new connections is treated like one that cannot be reached.

    So `handle` takes three timeouts at most: to send, connect, and send again; a peer that does not read is the only
    reason for as much.

    Safe from any thread; an event from a signal handler that interrupts a send is sent right after it. A forked child
    opens its own connection, and leaves the parent's alone. ``close`` waits for a send in progress, and with TLS until
    the peer has read everything and ended the connection too, both within its timeout. Without TLS what the operating
    system has is still transmitted afterwards, and the peer sees an orderly end.

    Source: `logging.handlers.SocketHandler`, whose `make_socket`, `create_socket`, `make_frame` (``makePickle``) and
    `send` may be overridden as there; CPython bpo-10252 on what is lost when the receiver restarts.
    """

    _kind: ClassVar[socket.SocketKind] = socket.SOCK_STREAM
    #: Whether the peer's end of a connection can be seen.
    _ends: ClassVar[bool] = True
    #: The attribute that limits the size of an event.
    _limited_by: ClassVar[str] = "max_frame_bytes"
    #: How many datagrams the peer's host has refused.
    _refusals = 0
    #: The class for whose methods the hot path stands in, and these methods: one that is overridden turns it off.
    _hot_class: ClassVar[type[SocketSink]]
    _hot_hooks: ClassVar[tuple[str, ...]] = ("deliver", "emit", "render", "write", "send", "make_frame", "_put")

    def __init__(
        self,
        host: str | os.PathLike[str],
        port: int | None,
        *,
        codec: Codec | None = None,
        max_frame_bytes: Size = MAX_FRAME_BYTES,
        tls: ssl.SSLContext | Literal[True] | None = None,
        timeout: Span = 1.0,
        retry_start: Span = 1.0,
        retry_factor: float = 2.0,
        retry_max: Span = 30.0,
        clock: Callable[[], float] = monotonic,
        renderer: Callable[[Any, str, Any], str | bytes] | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        #: The connected socket, or None.
        self.sock: socket.socket | None = None
        #: A socket that is being connected, for a forked child to close.
        self._candidate: socket.socket | None = None
        #: The methods of the two that the hot path calls, while there is a connection.
        self._poll: Callable[[int], list[Any]] | None = None
        self._send: Callable[[bytes], int] | None = None
        #: When, by the system's monotonic clock, the next look is due whether the peer has closed.
        self._look_due = 0.0
        self.host: str = checked_host(host)
        self.port: int | None = checked_port(port)
        #: What `socket.socket.connect` is given: (host, port), or a path.
        self.address: tuple[str, int] | str = self.host if self.port is None else (self.host, self.port)
        self._codec: Codec = JSONFrames() if codec is None else _checked_codec(codec)
        self.max_frame_bytes: int = checked_limit(max_frame_bytes, "max_frame_bytes")
        self._tls = checked_tls(tls, self.port)
        self._waits = waits_of(self._tls is not None)
        #: Seconds; all of these may be set at any time.
        self.timeout: float = checked_seconds(timeout, "timeout")
        self.retry_start: float = checked_seconds(retry_start, "retry_start")
        self.retry_max: float = checked_seconds(retry_max, "retry_max")
        self.retry_factor: float = _checked_factor(retry_factor)
        self._clock = clock
        #: When, by the clock, the next attempt to connect may be made; None for at once.
        self.retry_time: float | None = None
        #: The wait before it, in seconds.
        self.retry_period: float = 0.0
        self._connected_at = 0.0
        #: How many connections in a row have ended soon after they were made.
        self._short_lived = 0
        #: Whether the peer has shown that it accepts the connection, which with TLS 1.3 the handshake does not.
        self._proven = True
        #: What was sent before it has, and how many events had been delivered when the connection was made.
        self._sent_unproven = self._delivered_before = 0
        super().__init__(
            renderer=renderer,
            encoding=encoding,
            errors=errors,
            level=level,
            processors=processors,
            on_error=on_error,
            name=name,
        )
        if not callable(clock):
            msg = f"clock={clock!r} is not callable"
            raise TypeError(msg)

    def _fresh_state(self) -> None:
        super()._fresh_state()
        #: Events dropped while backing off that on_error has not been told of.
        self._untold = 0
        self._sending = False
        #: Frames of events that came from a signal handler during a send of the same thread.
        self._interrupting: deque[bytes] = deque()
        self._given_up = False
        #: What to tell of events that were counted as delivered, and how many they are.
        self._refusals_untold: deque[tuple[Exception, int]] = deque()
        #: True if `_settle` has something to do.
        self._aftermath = False

    # -- what applications call

    def handle(self, event: Mapping[str, Any] | str | bytes) -> None:
        """Take one event: `deliver` under the error policy. Never raises, unless ``on_error`` is ``"raise"``.

        When it returns, the operating system has the event, or it has been counted as dropped.
        """
        # What the pipeline does, in one function, for the usual event on a healthy connection: see FileSink.handle.
        # Whatever is unusual starts anew in the pipeline; until a part of the frame has gone nothing has happened.
        express = self._express
        if express and event.__class__ is dict:
            torn = False
            try:
                if not (
                    "exc_info" in event
                    or "_record" in event
                    or "_logger" in event
                    or "_name" in event
                    or "_from_structlog" in event
                    or (is_tracked(event) and too_deep(event))
                ):
                    if express != DIRECT:
                        if "level_number" in event:
                            raise LookupError  # it wins over the level, and may be anything
                        if NUMBERS[event["level"]] < self._level:
                            self._ledger.filter()
                            return
                    data = dumps(event, None, OPTIONS)
                    if len(data) > self.max_frame_bytes:
                        raise LookupError
                    data = pack_length(len(data)) + data
                    # Taking the lock by hand: see WriteLock.
                    turn = self._turn
                    del turn[0]
                    holding = True
                    try:
                        now = monotonic()
                        if now > self._look_due:
                            if self._poll(0):  # type: ignore[misc] # None goes to the pipeline
                                raise LookupError  # most likely the peer has closed
                            self._look_due = now + LOOK_SECONDS
                        sent = self._send(data)  # type: ignore[misc]
                        if sent != len(data):
                            torn = True
                            self._finish(data, sent)
                        self._ledger.delivered += 1
                    except Exception:
                        raise
                    except BaseException:
                        # How much the system had taken is not known.
                        self._disconnect()
                        raise
                    finally:
                        try:
                            holding = False
                            turn += TURN
                        finally:
                            pass
                    if self._aftermath:
                        self._settle()
                    return
            except Exception as error:
                if torn:
                    self._ledger.drop("error")
                    self._apply_policy(error, event, 1)
                    if self._aftermath:
                        self._settle()
                    return
            except BaseException:
                self._ledger.drop("interrupted")
                raise
        self._handle_in_full(event)

    def _handle_in_full(self, event: Mapping[str, Any] | str | bytes) -> None:
        try:
            self.deliver(event)
        except ReentrantEventError:
            pass  # counted; a report could be what feeds the loop
        except Exception as error:
            self._apply_policy(error, event, self._events_lost_to(error))
        else:
            if self._aftermath:
                self._settle()

    def _apply_policy(self, error: Exception, event: object, events: int) -> None:
        """Tell of *error*, and of what was lost before, unless it is one more event lost while backing off."""
        if isinstance(error, _BackoffError) and self.on_error != "raise":
            with self._ledger.lock:
                self._untold += events
                self._aftermath = True
        else:
            untold = self._take_untold()
            self._fail(error, event, events=events + untold, suppressed=untold)

    def _finish(self, data: bytes, sent: int) -> None:
        """Send the rest of *data*, or all of it once more over a new connection."""
        try:
            sock = self.sock
            if sock is not None:
                self._transmit_rest(sock, data, sent, None)
        except OSError as error:
            self._lose_connection()
            self._ledger.retried += 1
            self._send_again(data, error)

    def _settle(self) -> None:
        """Do what was left undone: send what came from signal handlers, tell of what was dropped while backing off."""
        if self._interrupting:
            with self._lock:
                if not (self._sending or self._lock._borrowed):
                    self._sending = True
                    try:
                        self._send_interrupting()
                    finally:
                        self._sending = False
        if self._given_up:
            with self._lock:
                self._disconnect()
        with self._ledger.lock:
            self._aftermath = bool(self._interrupting)
            untold, self._untold = self._untold, 0
            refused = list(self._refusals_untold)
            self._refusals_untold.clear()
        for error, events in refused:
            self._fail(error, None, events=events)
        if untold:
            told = TemporaryDeliveryError(f"there was no connection to {self._peer}")
            self._fail(told, None, events=untold, suppressed=untold - 1)

    def _refresh(self) -> None:
        self._turn = self._lock.turn
        own = type(self)
        renderer = self._renderer
        usual = (
            all(getattr(own, hook) is getattr(self._hot_class, hook) for hook in self._hot_hooks)
            and type(renderer) is OrjsonRenderer
            and renderer.is_plain
            and type(self._codec) is JSONFrames
            and self._tls is None
            and not (self._terminator or self._processors or self._closed or self._reporting)
        )
        self._express = PIPELINE if not usual else DIRECT_WITH_LEVEL if self._level else DIRECT

    @property
    def codec(self) -> Codec:
        """How an event becomes a frame; settable."""
        return self._codec

    @codec.setter
    def codec(self, codec: Codec) -> None:
        self._codec = _checked_codec(codec)
        self._changed()

    def close(self, timeout: float | None = None) -> bool:
        """Let go of the connection; idempotent. Return False if a send in progress had to be given up.

        Events that come later are counted as ``dropped["closed"]``.

        Args:
            timeout: Seconds to wait for a send in progress. None stands for `drain_timeout`, 5 s.
        """
        closed = super().close(timeout)
        refused = bool(self._refusals_untold)
        if self._untold or refused:
            self._settle()
        return closed and not refused

    def _take_untold(self) -> int:
        with self._ledger.lock:
            untold, self._untold = self._untold, 0
        return untold

    # -- the hooks of logging.handlers.SocketHandler

    def make_socket(self, timeout: float | None = None) -> socket.socket:
        """Return a connected socket; called by `create_socket`.

        Args:
            timeout: Seconds for each address of the name. None stands for the sink's *timeout*.

        Raises:
            OSError: If none can be connected.
        """
        seconds = self.timeout if timeout is None else timeout
        failure: OSError | None = None
        for family, address in self._addresses():
            made = socket.socket(family, self._kind)
            self._candidate = made
            try:
                # Zero would be a socket that does not wait at all.
                made.settimeout(max(seconds, 0.001))
                made.connect(address)
                if family != UNIX and self._kind == socket.SOCK_STREAM:
                    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                self._proven = True
                if self._tls is not None:
                    began = monotonic()
                    made = self._candidate = self._tls.wrap_socket(made, server_hostname=self.host)
                    # A refusal takes one way there and back, of which the handshake has had at least one.
                    patience = min(seconds, VERDICT_SECONDS + 3 * (monotonic() - began))
                    self._proven = await_verdict(made, patience)
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
            # Its traceback holds this frame, and the frames of who calls.
            del failure

    def _addresses(self) -> list[tuple[int, Any]]:
        if self.port is None:
            return [(UNIX, self.host)]
        found = socket.getaddrinfo(self.host, self.port, 0, self._kind)
        return [(family, address) for family, _, _, _, address in found]

    def create_socket(self) -> None:
        """Have a connection in `sock`, unless the next attempt is not due yet; called by `send` if there is none.

        Raises:
            TemporaryDeliveryError: If there is none.
        """
        now = self._clock()
        if self.retry_time is not None and now < self.retry_time:
            left = self.retry_time - now
            msg = f"no connection to {self._peer}; the next attempt is due in {left:.1f} s"
            raise _BackoffError(msg, retry_after=left)
        try:
            made = self.make_socket()
        except OSError as error:
            # UnicodeError is what a name no resolver may be asked for raises; it is a ValueError and told as it is.
            self._back_off()
            msg = f"no connection to {self._peer}: {describe(error)}"
            if is_refused_tls(error):
                msg = f"{msg}; check tls and the certificates of both sides"
                raise PausedDeliveryError(msg, retry_after=self.retry_period) from None
            raise TemporaryDeliveryError(msg, retry_after=self.retry_period) from None
        self.retry_time = None
        self._adopt(made)

    def _adopt(self, made: socket.socket) -> None:
        """Send over *made*, which is connected, from now on."""
        # Waiting is done by _transmit: a socket with a timeout asks the system before each send.
        made.settimeout(0)
        self._connected_at = self._clock()
        self._sent_unproven, self._delivered_before = 0, self._ledger.delivered
        if self._ends and POLL is not None:
            poll = POLL()
            poll.register(made, select.POLLIN)
            self._poll = poll.poll
        self._send = made.send
        self.sock = made

    def make_frame(self, event: dict[str, Any]) -> bytes:
        """Return the bytes to send for *event*: its length in four bytes, big-endian, and what the codec makes of it.

        An event that is too large is shortened. Called outside the sink's lock.

        Raises:
            PermanentDeliveryError: If it cannot be made small enough.
        """
        data = self._frame(self.codec.encode(event, self.render))
        return data if len(data) <= self._limit else self._shortened(event)

    def _frame_of(self, item: Encoded) -> bytes:
        data = self._frame(self.codec.encode_item(item))
        return data if len(data) <= self._limit else self._shortened(item.event)

    def _frame(self, payload: bytes) -> bytes:
        return pack_length(len(payload)) + payload

    @property
    def _limit(self) -> int:
        return self.max_frame_bytes + LENGTH_BYTES

    def _shortened(self, event: dict[str, Any]) -> bytes:
        data = shortened(event, lambda short: self._frame(self.codec.encode(short, self.render)), self._limit)
        if data is None:
            msg = f"the event cannot be made to fit into {self._limited_by}={getattr(self, self._limited_by)}"
            raise OversizeError(msg)
        return data

    def send(self, data: bytes) -> None:
        """Send *data*, a frame, connecting first if need be, and once more if that fails.

        Called under the sink's lock.

        Raises:
            DeliveryError: If it could not be sent.
        """
        if self.sock is None:
            self.create_socket()
        elif self._ends and self._has_ended():
            self._lose_connection()
            self.create_socket()
        try:
            self._transmit(data)
        except OSError as error:
            self._lose_connection()
            self._ledger.retried += 1
            self._send_again(data, error)

    def _send_again(self, data: bytes, first: OSError) -> None:
        try:
            self.create_socket()
        except _BackoffError:
            # The application is not told of a wait that it has not yet been told the reason of.
            msg = f"the connection to {self._peer} broke: {describe(first)}"
            raise TemporaryDeliveryError(msg) from None
        try:
            self._transmit(data)
        except OSError as error:
            self._lose_connection()
            msg = f"the connection to {self._peer} broke twice: {describe(error)}"
            raise TemporaryDeliveryError(msg) from None

    # -- what datagrams have in common; SysLogSink sends some as well

    def _after_refusals(self, addresses: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
        """Return *addresses*, to be tried in turn: each takes a datagram, and that nobody listens shows afterwards."""
        # As may be at ::1 of localhost, for a reader at 127.0.0.1.
        first = self._refusals % (len(addresses) or 1)
        return addresses[first:] + addresses[:first]

    def _send_datagram_again(self, data: bytes, error: OSError, too_large: str) -> None:
        """Send *data*, a datagram that failed with *error*, on a new socket, where that may be of use.

        Raises:
            DeliveryError: If it is of none, or fails too; *too_large* says it of one that the network refuses for its
                size.
        """
        self._disconnect()
        if error.errno == errno.EMSGSIZE:
            msg = f"{too_large} to {self._peer}"
            raise OversizeError(msg) from None
        if isinstance(error, TimeoutError):
            # Once is enough to wait for a reader that does not read.
            self._back_off()
            msg = f"no room for a datagram to {self._peer} within {self.timeout} s"
            raise TemporaryDeliveryError(msg, retry_after=self.retry_period) from None
        # Told by the system with this event, it is about an earlier one, or about a reader that was replaced.
        if error.errno == errno.ECONNREFUSED:
            self._refusals += 1
        self._ledger.retried += 1
        self._send_again(data, error)

    # -- the way out

    def emit(self, event: dict[str, Any]) -> None:
        """Send one event."""
        self.write(self.make_frame(event))

    def write(self, data: bytes) -> None:
        """Send *data*, one frame."""
        if self._sending or self._lock._borrowed:
            # A signal handler or __del__ came between in this very thread; a frame must not land within another.
            self._interrupting.append(data)
            self._aftermath = True
            return
        self._sending = True
        try:
            try:
                self.send(data)
            finally:
                if self._interrupting:
                    self._send_interrupting()
        finally:
            self._sending = False
            if self._given_up:
                self._disconnect()

    def _send_interrupting(self) -> None:
        while self._interrupting:
            try:
                self.send(self._interrupting.popleft())
            except Exception as error:
                # It was counted as delivered when it came.
                self._ledger.delivered -= 1
                self._ledger.drop(reason_of(error))
                self._untold += 1
                self._aftermath = True

    @property
    def needs_moment(self) -> bool:
        """See `Forwarding.needs_moment`: a frame of JSON is the item's data."""
        return super().needs_moment or type(self._codec) is not JSONFrames

    @property
    def takes_any_number(self) -> bool:
        """See `Forwarding.takes_any_number`: on a stream frames are sent together."""
        return super().takes_any_number and self._ends and type(self._codec) is JSONFrames

    @reads_data_alone(any_number=True)
    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Send each item in a frame of its own; what comes after one that could not be sent is left for a retry.

        On a stream many frames go by one ``send``.
        """
        own = type(self)
        usual = all(getattr(own, hook) is getattr(SocketSink, hook) for hook in ("write", "send", "_frame_of"))
        if not (usual and self._ends and type(self._codec) is JSONFrames):
            return self._emit_each(batch, lambda item: self.write(self._frame_of(item)))
        payloads = data_of(batch)
        if max(map(len, payloads), default=0) > self.max_frame_bytes:
            return self._emit_each(batch, lambda item: self.write(self._frame_of(item)))
        frames = [pack_length(len(data)) + data for data in payloads]
        first = size = 0
        with self._lock:
            for place, frame in enumerate(frames, 1):
                size += len(frame)
                # In chunks, each with the whole timeout: what a slow peer has taken is not sent again.
                if size < _CHUNK_BYTES and place < len(frames):
                    continue
                try:
                    self.write(b"".join(frames[first:place]))
                except (DeliveryError, OSError) as error:
                    if not first:
                        raise
                    return BatchResult(range(first, len(frames)), retry_after=getattr(error, "retry_after", None))
                first, size = place, 0
        return None

    def _put(self, event: dict[str, Any]) -> Exception | None:
        if type(self).emit is not SocketSink.emit:
            return Sink._put(self, event)
        frame = self.make_frame(event)
        delivered = False
        try:
            with self._lock:
                self._check_open()
                self.write(frame)
                self._ledger.delivered += 1
                delivered = True
        except BaseException:
            if delivered:  # interrupted at the way out, and counted as that
                self._ledger.delivered -= 1
            raise
        return None

    def _note_refusal(self, error: BaseException) -> None:
        """Count what was sent to a peer that has refused the connection with *error* as lost."""
        if self._proven or not self._sent_unproven or not is_refused_tls(error):
            return
        # A wrapper has counted by itself what came in a batch: it is told, and our ledger is right.
        with self._ledger.lock:
            counted = min(self._ledger.delivered - self._delivered_before, self._sent_unproven)
            self._ledger.delivered -= counted
            self._ledger.dropped["error"] += counted
        msg = (
            f"{self._peer} has refused the connection after {self._sent_unproven} events were sent, which are lost: "
            f"{describe(error)}; check tls and the certificates of both sides"
        )
        self._refusals_untold.append((PausedDeliveryError(msg), self._sent_unproven))
        self._sent_unproven = 0
        self._aftermath = True

    def _transmit(self, data: bytes) -> None:
        """Have the system take all of *data*, within the timeout; on failure some of it may have gone."""
        sock = self.sock
        if sock is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        try:
            try:
                sent = sock.send(data)
            except self._waits as error:
                sent = 0
                self._transmit_rest(sock, data, 0, error)
            else:
                if sent != len(data):
                    self._transmit_rest(sock, data, sent, None)
        except OSError:
            raise
        except BaseException:
            # How much the system had taken is not known then.
            self._disconnect()
            raise
        if not self._proven:
            self._sent_unproven += 1

    def _transmit_rest(self, sock: socket.socket, data: bytes, sent: int, wait: BaseException | None) -> None:
        view = memoryview(data)
        deadline = monotonic() + self.timeout
        while sent < len(data):
            left = deadline - monotonic()
            if left <= 0 or not await_socket(sock, left, for_reading=wants_read(wait)):
                raise TimeoutError(errno.ETIMEDOUT, "the peer takes nothing more")
            try:
                sent += sock.send(view[sent:])
            except self._waits as error:
                wait = error

    def _has_ended(self) -> bool:
        """Return True if the peer has closed the connection; what it has sent is thrown away."""
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
            self._proven = True  # it has sent what is for TLS alone
            return False
        except (OSError, ValueError) as error:
            self._note_refusal(error)
            return True
        return False

    # -- the connection

    def _lose_connection(self) -> None:
        """Let go of a connection that broke; from the third in a row that was short-lived, wait before the next."""
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
        """Begin the waits anew if the socket that is of no more use was good for some time."""
        if self._clock() - self._connected_at >= self.retry_start:
            self._short_lived = 0
            self.retry_period = 0.0

    def _back_off(self) -> None:
        first = not self.retry_period
        self.retry_period = min(
            self.retry_start if first else self.retry_period * self.retry_factor,
            self.retry_max,
        )
        self.retry_time = self._clock() + self.retry_period

    def _disconnect(self) -> None:
        sock, self.sock = self.sock, None
        self._poll = self._send = None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()

    def _release(self) -> None:
        self._part()

    def _part(self) -> None:
        """End the connection in order, so that the peer can read all that was sent."""
        sock = self.sock
        if sock is not None and self._ends:
            # What the peer has sent and nobody has read would make the system reset the connection, and the peer lose
            # what it has not read yet.
            self._has_ended()
            if self._tls is not None:
                try:
                    sock.unwrap()  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]
                except (OSError, ValueError) as error:
                    self._note_refusal(error)
            with contextlib.suppress(OSError):
                # Not by the method of an SSLSocket, which forgets TLS and would give us the alert undeciphered.
                socket.socket.shutdown(sock, socket.SHUT_WR)
            if self._tls is not None:
                self._await_end(sock)
        self._disconnect()

    def _await_end(self, sock: socket.socket) -> None:
        """Wait until the peer has ended it too, no longer than until the deadline.

        A TLS 1.3 server sends session tickets when it finishes its handshake, which may be long after the client has
        sent its events and gone. They would come to a socket that is closed, and reset the connection.
        """
        deadline = monotonic() + self.timeout if self._deadline is None else self._deadline
        while (left := deadline - monotonic()) > 0 and await_socket(sock, left, for_reading=True):
            try:
                if not sock.recv(65_536):
                    return
            except self._waits:
                self._proven = True
            except (OSError, ValueError) as error:
                self._note_refusal(error)
                return

    def _give_up(self) -> None:
        # The thread that is in the midst of sending lets go of the connection.
        self._given_up = self._aftermath = True

    @property
    def _peer(self) -> str:
        if self.port is None:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def _describe(self) -> str:
        return f"to {self._peer}"

    def drain(self, timeout: float) -> None:
        """End an encrypted connection in order, at exit; the sink stays open, and a later event makes a new one."""
        if self._tls is not None and not self._closed and self._lock.acquire(timeout):
            try:
                self._deadline = monotonic() + timeout
                if not self._sending:
                    self._part()
            finally:
                self._deadline = None
                self._lock.release()

    def after_fork(self) -> None:
        """Begin anew in a forked child: no connection, the parent's is neither used nor shut down."""
        for sock in (self.sock, self._candidate):
            if sock is not None:
                # The child's copy of the descriptor alone: nothing is told to the peer, nor to a TLS session.
                with contextlib.suppress(OSError, ValueError):
                    os.close(sock.detach())
        self.sock = self._candidate = self._poll = self._send = None
        self.retry_time = None
        self.retry_period = 0.0
        self._short_lived = 0
        super().after_fork()

    def __del__(self) -> None:
        # A sink nobody holds any more does not leak its connection. At the end of the interpreter the names of this
        # module may be gone already.
        try:
            self._disconnect()
        except Exception:
            return


class _BackoffError(TemporaryDeliveryError):
    """The next attempt to connect is not due yet."""

    dropped_as = "backoff"


SocketSink._hot_class = SocketSink
HAND_TAKEN.add(SocketSink.handle.__code__)

#: How long a server may take, after a TLS handshake, to say that it accepts the client; and three times as long as the
#: handshake took.
VERDICT_SECONDS = 0.1
#: Frames that follow one another more closely share one look: it takes a fifth of the time that sending does.
LOOK_SECONDS = 0.000_05
_SHORT_LIVED_ALLOWED = 2


def _checked_codec(codec: Codec) -> Codec:
    if isinstance(codec, type) or not all(callable(getattr(codec, part, None)) for part in ("encode", "decode")):
        msg = f"codec={codec!r} is no codec, such as JSONFrames()"
        raise TypeError(msg)
    return codec


def _checked_factor(factor: float) -> float:
    if not isinstance(factor, (int, float)) or isinstance(factor, bool) or not 1 <= factor < float("inf"):
        msg = f"retry_factor={factor!r} is not a number from 1 up"
        raise ValueError(msg)
    return factor

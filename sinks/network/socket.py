"""Events in frames over a connection: `SocketSink`."""

# WriteLock reads `holding` from the frame; `type(renderer) is OrjsonRenderer` does not narrow a callable for pyright.
# pyright: reportFunctionMemberAccess=false, reportUnusedVariable=false

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict

from orjson import dumps

from outfall.sinks.core.clock import now
from outfall.sinks.core.forwarding import reads_data_alone
from outfall.sinks.core.item import BatchResult, data_of
from outfall.sinks.core.lifecycle import here
from outfall.sinks.core.lock import HAND_TAKEN, TURN
from outfall.sinks.core.sink import Sink
from outfall.sinks.errors import ReentrantEventError, TemporaryDeliveryError, reason_of
from outfall.sinks.event.depth import is_tracked, too_deep
from outfall.sinks.event.event import TextEvent
from outfall.sinks.event.fit import shortened
from outfall.sinks.event.json import OPTIONS, OrjsonRenderer
from outfall.sinks.event.levels import NUMBERS
from outfall.sinks.network.connection import CHECK_MASK, BackoffError, ConnectedSink
from outfall.sinks.network.frames import (
    LENGTH_BYTES,
    MAX_FRAME_BYTES,
    Codec,
    Frames,
    JSONFrames,
    JSONLines,
    as_json,
    delimiter_of,
    has_line_breaks,
    pack_length,
)
from outfall.sinks.network.peer import OversizeError, checked_limit

if TYPE_CHECKING:
    import os
    import ssl
    from collections.abc import Iterable, Mapping, Sequence

    from typing_extensions import Unpack

    from outfall.sinks.core.item import Encoded
    from outfall.sinks.core.sink import OnError
    from outfall.sinks.event.levels import Level
    from outfall.sinks.event.units import Size, Span

#: The bytes of a batch that go by one ``send``; a slow peer takes them within any sensible timeout.
_CHUNK_BYTES = 65_536


#: Returns the frame of a plain event, given the sink, the event and its JSON. It raises if the pipeline has to do it.
MakeFrame = Callable[[Any, Any, bytes], bytes]


def _counted(sink: Any, event: Any, line: bytes) -> bytes:
    size = len(line)
    if size > sink.max_frame_bytes:
        raise LookupError
    return pack_length(size) + line


def _line(sink: Any, event: Any, line: bytes) -> bytes:
    if len(line) > sink.max_frame_bytes:
        raise LookupError
    return line + b"\n"


#: Codecs whose payload is the item's data as `OrjsonRenderer` renders it.
PLAIN_CODECS = (JSONFrames, JSONLines)


class RetryOptions(TypedDict, total=False):
    """Arguments that `SocketSink` and its subclasses pass on; its docstring describes them."""

    retry_start: Span
    retry_factor: float
    retry_max: Span
    clock: Callable[[], float]
    level: Level
    processors: Iterable[Callable[[Any, str, Any], Any]]
    on_error: OnError
    name: str | None


class SocketSink(ConnectedSink):
    """Send each event in a frame or a line to *host*:*port*, over TCP or a Unix socket.

    Args:
        host: Name or address, IPv4 or IPv6; the path of a Unix socket when *port* is None.
        port: TCP port, 1 to 65535, or None.
        codec: The form of a frame. Default ``JSONFrames()``, which `SocketListener` receives by default. `JSONLines` is
            for Logstash, Vector, syslog-ng and other readers of lines, `PickleFrames` for the standard library's
            receivers, `SignedFrames` for receivers that must verify the sender.
        max_frame_bytes: Size of a frame or line, without its length or line feed, above which the longest text fields
            are shortened and the event gets ``"truncated": true``; if that is not enough, the largest fields are left
            out. Default 1 MiB, the default limit of `SocketListener`; at least 512. Settable.
        tls: An `ssl.SSLContext`, which may contain a client certificate, or True for
            ``ssl.create_default_context()``. Default None: no encryption. The server's certificate must name *host*
            unless the context disables that check.
        nodelay: Send each frame at once (TCP_NODELAY). Default False: small frames are sent together
            while the peer has not acknowledged earlier ones (Nagle's algorithm), which halves the system's time.
        timeout: Seconds, a timedelta or text such as ``"2s"``, that one attempt to connect (to each address of the
            name) or one send may take. Default 1.0. The system's name resolver has timeouts of its own.
        max_connection_age: Seconds, a timedelta or text such as ``"10m"``, after which a new connection replaces the
            old one. It follows a changed address of the name, or a new backend of a balancer. If no new connection can
            be made, the old one stays in use. Default None: a connection lasts as long as it works.
        encoding: The encoding of text. Default UTF-8.
        errors: How to treat characters that *encoding* does not have. Default ``"backslashreplace"``.
        renderer: A structlog renderer that returns text or bytes. Default ``OrjsonRenderer()``. A listener
            with `JSONFrames` takes JSON objects only.
        retry_start: Seconds, a timedelta or text such as ``"2s"``, to wait after a connection failed. Default 1.0.
        retry_factor: The factor by which each further failure multiplies the wait. Default 2.0.
        retry_max: The longest wait in seconds. Default 30.0.
        clock: The clock of these waits and ages, for tests. Default `time.monotonic`.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *port*, *max_frame_bytes*, *timeout* or one of the retry arguments is out of range, or *tls*
            comes without a port.
        TypeError: If *host*, *codec* or *tls* is of another type.

    It connects at the first event. When `handle` returns, the operating system has the whole frame. The peer
    acknowledges nothing: frames that are in transit when a connection breaks are lost, and counted as delivered. If
    that matters, use a spool and HTTP instead.

    With TLS 1.3 a server refuses a client's certificate after the handshake is over. So the first event waits until
    the server sends something, for at most a tenth of a second and three times the duration of the handshake. If the
    refusal comes later, the events sent before it are counted as ``dropped["error"]`` after all, and reported; those
    that a wrapper has counted as delivered are only reported.

    The sink notices before the next event that the peer has closed the connection, and makes a new one. An event whose
    send fails is sent once more over a new connection. A connection is closed if a frame was sent in part. If no
    connection can be made, the event is counted as ``dropped["error"]``. Events until the next attempt are counted as
    ``dropped["backoff"]``, and the application does not wait for them. ``on_error`` is called for each failed attempt
    with the number of events lost since the last call, not for each event. A peer that keeps closing new connections
    is treated like an unreachable one.

    So `handle` takes three timeouts at most: to send, to connect, and to send again. Only a peer that does not read
    makes it take that long.

    Safe from any thread; an event from a signal handler that interrupts a send is sent right after it. A forked child
    opens its own connection and leaves the parent's alone. ``close`` waits for a send in progress, and with TLS until
    the peer has read everything and closed the connection too, both within its timeout. Without TLS the operating
    system transmits afterwards what it has, and the peer sees an orderly end.

    Source: `logging.handlers.SocketHandler`, whose ``make_socket``, ``create_socket``, ``make_frame`` (``makePickle``)
    and ``send`` may be overridden as there; CPython bpo-10252 on what is lost when the receiver restarts.
    """

    #: The name of the attribute that limits the size of an event.
    _limited_by: ClassVar[str] = "max_frame_bytes"
    #: The shortcut of `handle` replaces these methods of this class; a subclass that overrides one turns it off.
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
        nodelay: bool = False,
        timeout: Span = 1.0,
        max_connection_age: Span | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        renderer: Callable[[Any, str, Any], str | bytes] | None = None,
        **options: Unpack[RetryOptions],
    ) -> None:
        self._codec: Codec = JSONFrames() if codec is None else _checked_codec(codec)
        self.max_frame_bytes: int = checked_limit(max_frame_bytes, "max_frame_bytes")
        super().__init__(
            host,
            port,
            tls=tls,
            nodelay=nodelay,
            timeout=timeout,
            max_connection_age=max_connection_age,
            encoding=encoding,
            errors=errors,
            renderer=renderer,
            **options,
        )

    def _fresh_state(self) -> None:
        super()._fresh_state()
        #: How many events were dropped while backing off and are not reported yet.
        self._untold = 0
        self._sending = False
        #: What a signal handler has sent during a send of the same thread: the function that sends it, and the data.
        self._interrupting: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._given_up = False

    # -- methods for applications

    def handle(self, event: Mapping[str, Any] | str | bytes) -> None:
        """Take one event: `deliver` under the error policy. Never raises, unless ``on_error`` is ``"raise"``.

        When it returns, the operating system has the event, or it has been counted as dropped.
        """
        # The shortcut: the pipeline's steps for a plain event over a healthy connection. It takes the turn by hand:
        # see WriteLock. In all other cases, and after a failure before anything was sent, the pipeline starts over.
        make = self._make_usual
        given: Any = event
        if make is not None:
            failure = None
            settled = False
            try:
                if not (
                    given.__class__ is not dict
                    or "exc_info" in given
                    or "exception" in given  # its parts are sent too
                    or "_record" in given
                    or "_logger" in given
                    or "_name" in given
                    or "_from_structlog" in given
                    or (is_tracked(given) and too_deep(given))
                ):
                    level = self._level
                    if level:
                        if "level_number" in given:  # it wins over the level, and may be anything
                            raise LookupError
                        if NUMBERS[given["level"]] < level:
                            self._ledger.filtered += 1
                            return
                    data = make(self, given, dumps(given, None, OPTIONS))
                    turn = self._turn
                    if turn:
                        del turn[0]
                        holding = True
                        try:
                            ledger = self._ledger
                            if self._poll is not None:
                                moment = monotonic()
                                if moment > self._look_due:
                                    self._look(moment)
                            elif not (ledger.delivered & CHECK_MASK or self._is_ours()):
                                raise LookupError
                            if not here[0]:
                                raise LookupError
                            send: Any = self._send
                            sent = send(data)
                            if sent != len(data):
                                failure = self._finish(data, sent)
                            if failure is None:
                                ledger.delivered += 1
                        except ConnectionRefusedError as error:
                            # The system reports a refused datagram only once: the pipeline would not see it.
                            self._give_up_on(error)
                            raise
                        except Exception:
                            raise
                        except BaseException:
                            # How much was sent is unknown.
                            self._disconnect()
                            raise
                        finally:
                            try:
                                holding = False
                                turn += TURN
                            finally:
                                pass
                    else:
                        failure = self._await_turn(data)
                    settled = True
            except Exception:
                pass
            except BaseException:
                self._ledger.drop("interrupted")
                raise
            if settled:
                if failure is not None:
                    self._ledger.drop(reason_of(failure))
                    self._apply_policy(failure, event, 1)
                if self._aftermath:
                    self._settle()
                return
        try:
            self.deliver(event)
        except ReentrantEventError:
            pass  # it is counted; a report could cause the loop
        except Exception as error:
            self._apply_policy(error, event, self._events_lost_to(error))
        else:
            if self._aftermath:
                self._settle()

    def _apply_policy(self, error: Exception, event: object, events: int) -> None:
        """Report *error* and the events lost before it; count an event that was lost while backing off."""
        if isinstance(error, BackoffError) and self.on_error != "raise":
            with self._ledger.lock:
                self._untold += events
                self._aftermath = True
        else:
            untold = self._take_untold()
            self._fail(error, event, events=events + untold, suppressed=untold)

    def _settle(self, *, raising: bool = True) -> None:
        """Send what signal handlers have logged meanwhile, and report events that were dropped or refused before."""
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
        self._aftermath = bool(self._interrupting)
        untold = self._take_untold()
        losses: list[tuple[Exception, int, int]] = [(error, events, 0) for error, events in self._refused]
        self._refused.clear()
        if untold:
            losses.append((TemporaryDeliveryError(f"there was no connection to {self._peer}"), untold, untold - 1))
        for error, events, suppressed in losses:
            if raising:
                self._fail(error, None, events=events, suppressed=suppressed)
            else:
                self._fail_unraised(error, None, events=events)

    def _refresh(self) -> None:
        self._turn = self._lock.turn
        own = type(self)
        renderer: object = self._renderer
        usual = (
            all(getattr(own, hook) is getattr(self._hot_class, hook) for hook in self._hot_hooks)
            and type(renderer) is OrjsonRenderer
            and renderer.is_plain
            and type(self._codec) in PLAIN_CODECS
            and self._tls is None
            and not (self._terminator or self._processors or self._closed or self._reporting)
        )
        #: Returns the frame of a plain event for the shortcut; None turns it off.
        self._make_usual = self._usual_frame() if usual else None

    def _usual_frame(self) -> MakeFrame | None:
        return _line if type(self._codec) is JSONLines else _counted

    @property
    def codec(self) -> Codec:
        """The form of a frame; settable."""
        return self._codec

    @codec.setter
    def codec(self, codec: Codec) -> None:
        self._codec = _checked_codec(codec)
        self._changed()

    def close(self, timeout: float | None = None) -> bool:
        """Close the connection; idempotent. Return False if a send in progress had to be given up.

        It is also False if the peer has refused the connection after events were sent. Later events are counted as
        ``dropped["closed"]``.

        Args:
            timeout: Seconds to wait for a send in progress. None stands for `drain_timeout`, 5 s.
        """
        closed = super().close(timeout)
        refused = bool(self._refused)
        if self._untold or refused:
            self._settle()
        return closed and not refused

    def drain(self, timeout: float) -> None:
        """Close an encrypted connection in order, at exit; the sink stays open, and a later event makes a new one."""
        if self._tls is not None and not self._closed and self._lock.acquire(timeout):
            try:
                self._deadline = now() + timeout
                if not self._sending:
                    self._part()
            finally:
                self._deadline = None
                self._lock.release()

    def _take_untold(self) -> int:
        with self._ledger.lock:
            untold, self._untold = self._untold, 0
        return untold

    # -- frames

    def make_frame(self, event: dict[str, Any]) -> bytes:
        """Return the bytes to send for *event*: the length in four bytes, big-endian, and the codec's payload.

        If the codec has a delimiter, as `JSONLines` has, the delimiter ends the payload, and no length precedes it. Nor
        does one in a datagram, unless the codec says so, as `PickleFrames` does. An event that is too large is
        shortened. Called outside the sink's lock.

        Raises:
            PermanentDeliveryError: If it cannot be shortened enough.
        """
        data = self._whole_frame(event)
        return data if len(data) <= self._limit else self._shortened(event, self._whole_frame)

    def _frame_of(self, item: Encoded) -> bytes:
        data = self._frame(self.codec.encode_item(item))
        return data if len(data) <= self._limit else self._shortened(item.event, self._whole_frame)

    def _whole_frame(self, event: dict[str, Any]) -> bytes:
        return self._frame(self.codec.encode(event, self.render))

    def _frame(self, payload: bytes) -> bytes:
        delimiter = delimiter_of(self._codec)
        return payload + delimiter if delimiter else pack_length(len(payload)) + payload

    @property
    def _limit(self) -> int:
        return self.max_frame_bytes + (len(delimiter_of(self._codec)) or LENGTH_BYTES)

    def _shortened(self, event: dict[str, Any], make: Callable[[dict[str, Any]], bytes]) -> bytes:
        """Return the result of *make* for *event*, shortened to the limit.

        Raises:
            OversizeError: If it cannot be shortened enough.
        """
        data = shortened(event, make, self._limit)
        if data is None:
            msg = f"the event cannot be made to fit into {self._limited_by}={getattr(self, self._limited_by)}"
            raise OversizeError(msg)
        return data

    # -- sending

    def emit(self, event: dict[str, Any]) -> None:
        """Send one event."""
        self.write(self.make_frame(event))

    def write(self, data: bytes) -> None:
        """Send *data*, one frame."""
        self._send_undivided(self.send, data)

    def _send_undivided(self, send: Callable[[Any], None], data: Any) -> None:
        """Call ``send(data)``; if its thread is sending a frame already, in a signal handler, do so right after."""
        if self._sending or self._lock._borrowed:
            self._interrupting.append((send, data))
            self._aftermath = True
            return
        self._sending = True
        try:
            try:
                send(data)
            finally:
                if self._interrupting:
                    self._send_interrupting()
        finally:
            self._sending = False
            if self._given_up:
                self._disconnect()

    def _send_interrupting(self) -> None:
        while self._interrupting:
            send, data = self._interrupting.popleft()
            try:
                send(data)
            except Exception as error:
                # The event was counted as delivered when it came.
                self._ledger.delivered -= 1
                self._ledger.drop(reason_of(error))
                self._untold += 1
                self._aftermath = True

    def _put(self, event: dict[str, Any]) -> Exception | None:
        if type(self).emit is not SocketSink.emit:
            return Sink._put(self, event)
        self._put_frame(self.write, self.make_frame(event))
        return None

    def _put_frame(self, write: Callable[[bytes], None], frame: bytes) -> None:
        delivered = False
        try:
            with self._lock:
                self._check_open()
                write(frame)
                self._ledger.delivered += 1
                delivered = True
        except BaseException:
            if delivered:  # interrupted after the send, and counted as interrupted
                self._ledger.delivered -= 1
            raise

    def _await_turn(self, data: bytes) -> Exception | None:
        """Wait for the turn and send *data*, a complete frame; return the error if that fails."""
        try:
            self._put_frame(partial(self._send_undivided, partial(self._send_by, self._push)), data)
        except Exception as error:
            return error
        return None

    def _push_together(self, frames: Frames) -> None:
        (self._push_frames if self._ends else self._push_datagrams)(frames)

    # -- batches

    def encode(self, event: dict[str, Any]) -> Encoded:
        """Return *event*, rendered, as a batch item; already rendered text becomes JSON."""
        if isinstance(event, TextEvent):
            return self._encoded(event, as_json(event, self.render))
        return super().encode(event)

    _usual_encode = encode

    @property
    def needs_moment(self) -> bool:
        """See `Forwarding.needs_moment`: False if a frame is the item's data."""
        return super().needs_moment or type(self._codec) not in PLAIN_CODECS

    @property
    def takes_any_number(self) -> bool:
        """See `Forwarding.takes_any_number`: True for a stream, whose frames are sent together."""
        return super().takes_any_number and self._ends and type(self._codec) in PLAIN_CODECS

    @reads_data_alone(any_number=True)
    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Send each item in a frame of its own; after a failure leave the rest for a retry.

        On a stream many frames go by one ``send``. Frames that the system took whole before a connection broke are not
        sent again.
        """
        own = type(self)
        usual = all(getattr(own, hook) is getattr(self._hot_class, hook) for hook in ("write", "send", "_frame_of"))
        frames = self._frames_together(batch) if usual and not (self._sending or self._lock._borrowed) else None
        if frames is None:
            result = self._emit_each(batch, lambda item: self.write(self._frame_of(item)))
        else:
            result = self._emit_together(frames)
        if self._aftermath:
            # An exception would say that nothing of the batch was taken.
            self._settle(raising=False)
        return result

    def _frames_together(self, batch: Sequence[Encoded]) -> Frames | None:
        """Return the frames of *batch*; None if each has to be made and sent by itself."""
        payloads, kind = data_of(batch), type(self._codec)
        if kind is JSONFrames:
            frames = Frames(payloads, heads=None if self._ends else b"")
        # The output of another renderer, or a spooled item of another sink, may contain line breaks.
        elif kind is JSONLines and not has_line_breaks(b"".join(payloads)):
            frames = Frames(payloads, end=b"\n")
        else:
            return None
        return frames if frames.longest <= self._limit else None

    def _emit_together(self, frames: Frames) -> BatchResult | None:
        """Send *frames* in chunks, each within the whole timeout."""
        rejected: dict[int, str] = {}
        done = 0
        with self._lock:
            for chunk in frames.chunks(_CHUNK_BYTES):
                end = done + len(chunk)
                while True:
                    if done == end:
                        break
                    try:
                        self._send_undivided(partial(self._send_by, self._push_together), chunk)
                        done = end
                    except OversizeError as error:
                        done = end - len(chunk) + 1
                        rejected[done - 1] = error.reason
                        chunk.drop(1)
                    except Exception as error:
                        done = end - len(chunk)
                        if not done:
                            raise
                        wait = getattr(error, "retry_after", None)
                        return BatchResult(range(done, len(frames)), rejected, retry_after=wait)
        return BatchResult(rejected=rejected) if rejected else None

    def _give_up(self) -> None:
        # The sending thread closes the connection when it has finished.
        self._given_up = self._aftermath = True


SocketSink._hot_class = SocketSink
HAND_TAKEN.add(SocketSink.handle.__code__)


def _checked_codec(codec: Codec) -> Codec:
    if isinstance(codec, type) or not all(callable(getattr(codec, part, None)) for part in ("encode", "decode")):
        msg = f"codec={codec!r} is no codec, such as JSONFrames()"
        raise TypeError(msg)
    return codec

"""Sinks for streams: `StreamSink`, and `NullSink`, which discards events."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import select
import sys
import time
from _thread import get_ident
from collections import deque
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from outfall.sinks.core import lifecycle
from outfall.sinks.core.arguments import checked_seconds
from outfall.sinks.core.bytesink import ByteSink, RenderOptions
from outfall.sinks.core.clock import now as monotonic
from outfall.sinks.core.forwarding import reads_data_alone
from outfall.sinks.core.item import BatchResult, data_of
from outfall.sinks.core.sink import Sink
from outfall.sinks.errors import DeliveryError
from outfall.sinks.event.json import OrjsonRenderer
from outfall.sinks.files.console import RENDERERS, renderer_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from outfall.sinks.core.item import Encoded
    from outfall.sinks.core.ledger import SinkStats
    from outfall.sinks.event.units import Span


class StreamSink(ByteSink):
    r"""Write each event to a stream, text or binary, and flush it.

    Args:
        stream: Any object with ``write``; ``flush`` is optional. Default None: at each event the current
            ``sys.stderr``, which pytest, notebooks and daemons replace. Text streams get text and binary streams bytes.
            A stream of another type gets text; if it raises a TypeError, it gets bytes from then on.
        timeout: How long an event waits for room in a non-blocking pipe, socket or terminal, in seconds or as a
            timedelta. Default 5.0. After a wait that timed out, events are dropped at once until there is room again.
        color: Without *renderer*: False (default) writes lines of JSON; True writes coloured text for people;
            ``"auto"`` writes text on a terminal and wherever ``FORCE_COLOR`` is set, coloured unless ``NO_COLOR`` is
            set, and JSON elsewhere. `structlog.dev.ConsoleRenderer` makes the text, without the local variables of a
            traceback; an event that it cannot render is written nevertheless.
        encoding: The encoding of text for a binary stream. Default UTF-8.
        errors: How to treat characters that *encoding* does not have. Default ``"backslashreplace"``.
        terminator: The text after each event. Default ``"\n"``. Settable; read for each event.
        renderer: A structlog renderer that returns text or bytes. Default ``OrjsonRenderer()``.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        TypeError: If *stream* has no ``write``.
        ValueError: If *timeout* is negative or not a number, or *color* is not one of the three, or is given with
            *renderer*.

    Each event is one ``write``, followed by a ``flush``. Characters that a text stream's encoding does not have are
    written as backslash escapes. Safe from any thread. An event from a signal handler that interrupts a write of this
    sink is written right after that write. ``close`` flushes and leaves the stream open.

    Lines are never torn. An event counts as ``pending`` if the stream has taken a part of it, or if it is in the
    stream's buffer after a failed flush (a full pipe, a full disk). Its rest is written before anything else; until
    then other events are dropped.

    In a forked child: if another thread was writing at the moment of the fork, by this sink or another one on the same
    stream, the stream's own lock stays locked in the child. The sink then writes to the stream's descriptor directly.
    It cannot know of writes by other code than sinks (`print` in a thread).

    Source: `logging.StreamHandler`.
    """

    shows_people = True

    def __init__(
        self,
        stream: Any = None,
        *,
        timeout: Span = 5.0,
        color: Literal["auto"] | bool = False,
        encoding: str | None = None,
        errors: str | None = None,
        terminator: str = "\n",
        **options: Unpack[RenderOptions],
    ) -> None:
        self._timeout = checked_seconds(timeout, "timeout")
        if color not in ("auto", True, False):
            msg = f"color={color!r} is none of 'auto', True, False"
            raise ValueError(msg)
        renderer = options.get("renderer")
        if color and renderer is not None:
            msg = f"color={color!r} chooses a renderer, and renderer= is given too: leave one of the two out"
            raise ValueError(msg)
        self._color: Literal["auto"] | bool = color
        if color:
            options["renderer"] = renderer_for(stream, color)
        super().__init__(encoding=encoding, errors=errors, terminator=terminator, **options)
        #: Data of events from a signal handler during a write of the same thread.
        self._interrupting: deque[str | bytes] = deque()
        self._writing = False
        #: The descriptor to write to instead of the stream, in a child that must not use the stream.
        self._descriptor: int | None = None
        #: Whether the stream takes text; None until the first write has shown it.
        self._takes_text: bool | None = None
        #: Whether to write to the current `sys.stderr`.
        self._follows_stderr = stream is None
        #: What has to be written before anything else: the rest of an event, or a terminator for half a line.
        self._rest = b""
        #: True if a flush has failed and data is still in the stream's buffer.
        self._unflushed = False
        #: The number of events in `_rest` and in the stream's buffer; whether the last failed event is among them.
        self._pending = 0
        self._taken = False
        #: True after a wait for room has timed out: then no event waits until there is room again.
        self._stalled = False
        self._bind(sys.stderr if stream is None else stream)

    @property
    def stream(self) -> Any:
        """The stream; replace it with `set_stream`. None if there is no stderr."""
        return sys.stderr if self._follows_stderr else self._stream

    def set_stream(self, stream: Any) -> Any:
        """Flush the old stream and write to *stream* from now on; return the old one, or None if both are the same.

        A failed flush is reported to ``on_error``, with the number of events lost.

        Raises:
            TypeError: If *stream* has no ``write``; the old one is kept.
        """
        failure: Exception | None = None
        with self._lock:
            old = self.stream
            if stream is old:
                self._follows_stderr = False
                return None
            _check_stream(stream)
            try:
                self._flush()
            except Exception as error:
                failure = error
            self._follows_stderr = False
            if self._color and isinstance(self.renderer, RENDERERS):
                self.renderer = renderer_for(stream, self._color)
            self._bind(stream)
            lost, self._lost = self._lost, 0
        if failure is not None:
            self._fail(failure, None, events=lost)
        return old

    def write(self, data: str | bytes) -> None:
        """Write *data* by one call of the stream's ``write``, and flush. A text stream gets text unchanged."""
        if self._writing:
            # A signal handler or __del__ interrupted a write of this thread; streams refuse or garble nested writes.
            self._interrupting.append(data)
            return
        self._writing = True
        try:
            _in_use[id(self)] = (get_ident(), _lock_of(self._stream))
            self._taken = False
            try:
                self._write_and_flush(data)
            except BaseException:
                taken = self._taken
                self._write_interrupting()
                self._taken = taken
                raise
            if self._interrupting:
                self._write_interrupting(counted_elsewhere=1)
        finally:
            self._writing = False
            _in_use.pop(id(self), None)

    def _has_taken_part(self) -> bool:
        self._pending += self._taken
        return self._taken

    @reads_data_alone(any_number=True)
    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Write all items by one call of the stream's ``write``, and flush; items without room are to be retried."""
        if type(self).write is not StreamSink.write:
            return super().emit_batch(batch)
        data = data_of(batch)
        end = len(self._item_end)
        with self._lock:
            self._check_open()
            try:
                self.write(self._joined(batch))
            except OSError as error:
                if not self._taken:
                    raise
                failure = error
            else:
                return None
            ends = list(accumulate(len(item) + end for item in data))
            written = ends[-1] - len(self._rest)
            # An item that was written in part counts as taken: its rest will follow. The caller retries the others.
            taken = next(index for index, at in enumerate(ends) if at > written or at == ends[-1]) + 1
            if self._rest:
                self._rest = self._rest[: ends[taken - 1] - written]
        self._fail_unraised(failure, None)
        return BatchResult(retry=range(taken, len(data))) if taken < len(data) else None

    def _write_interrupting(self, counted_elsewhere: int = 0) -> None:
        """Write the events of signal handlers, despite failures; count the lost ones, except *counted_elsewhere*."""
        failures: list[Exception] = []
        while self._interrupting:
            self._taken = False
            try:
                self._write_and_flush(self._interrupting.popleft())
            except Exception as error:
                if self._taken:
                    self._ledger.delivered -= 1
                    self._pending += 1
                else:
                    failures.append(error)
        self._taken = False
        if not failures:
            return
        # Each was counted as delivered when `write` put it into the queue.
        lost = len(failures) - counted_elsewhere
        self._ledger.delivered -= lost
        self._lost += lost
        if lost:
            self._count_dropped("error", lost)
        if counted_elsewhere:
            raise failures[-1]

    def _write_and_flush(self, data: str | bytes) -> None:
        if self._follows_stderr and sys.stderr is not self._stream:
            if self._rest or self._unflushed:
                with contextlib.suppress(OSError, ValueError):
                    self._flush()
            self._bind(sys.stderr)
        stream = self._stream
        if self._descriptor is not None:
            _write_all(self._descriptor, self._in_stream_encoding(data))
            return
        if stream is None:
            msg = "there is no stream: sys.stderr is None"
            raise DeliveryError(msg)
        if self._raw is not None and (self._is_raw or self._rest or not _blocks(self._fileno)):
            self._write_raw(self._in_stream_encoding(data))
            return
        if self._unflushed:
            # The data in the stream's buffer comes first.
            stream.flush()
            self._settle()
        if self._takes_text is False:
            stream.write(self._as_bytes(data))
        else:
            self._write_text(stream, data)
        try:
            if hasattr(stream, "flush"):
                stream.flush()
        except OSError:
            self._taken = self._unflushed = self._buffers
            raise

    # -- streams that may take a part of the data

    def _write_raw(self, data: bytes) -> None:
        """Write *data* below the stream's buffers, since these do not tell how much they still hold."""
        deadline = self._deadline
        if deadline is None:
            deadline = monotonic() + (0.0 if self._stalled else self._timeout)
        self._empty(deadline)
        self._rest = data
        try:
            self._write_rest(deadline)
        except BaseException as error:
            if len(self._rest) == len(data):
                self._rest = b""
            elif isinstance(error, Exception):
                self._taken = True
            else:
                # Interrupted after the write returned: how much the stream took is unknown, so end the line.
                self._rest = self._terminator_bytes
            raise
        self._stalled = False

    def _empty(self, deadline: float) -> None:
        """Write the rest of earlier events, and the contents of the stream's buffer."""
        while self._stream is not self._raw:
            try:
                self._stream.flush()
                break
            except BlockingIOError:
                self._await_room(deadline)
        if self._rest:
            self._write_rest(deadline)
        self._settle()

    def _write_rest(self, deadline: float) -> None:
        while self._rest:
            try:
                written = self._raw.write(self._rest)
            except BlockingIOError:
                written = None
            if written:
                self._rest = self._rest[written:]
            else:
                self._await_room(deadline)

    def _await_room(self, deadline: float) -> None:
        if self._fileno is None or not _CAN_POLL:
            raise BlockingIOError(errno.EAGAIN, "the stream has no room now")
        poll = select.poll()
        poll.register(self._fileno, select.POLLOUT)
        if not poll.poll(1000 * max(0.0, deadline - monotonic())):
            self._stalled = True
            raise TimeoutError(errno.ETIMEDOUT, "nobody reads it", self._describe())
        if monotonic() >= deadline:
            raise TimeoutError(errno.ETIMEDOUT, "there is not enough room", self._describe())
        time.sleep(0.000_1)  # there is room, but not enough for a write that goes whole or not at all

    def _settle(self) -> None:
        """Count the pending events as delivered."""
        self._unflushed = False
        if self._pending:
            with self._ledger.lock:
                self._ledger.delivered += self._pending
                self._pending = 0

    def _leave_stream(self) -> None:
        """Count the pending events as lost, since the stream is replaced or closed."""
        self._rest = b""
        self._unflushed = False
        lost, self._pending = self._pending, 0
        if lost:
            self._count_dropped("error", lost)
            self._lost += lost

    def _stats(self) -> SinkStats:
        stats, pending = super()._stats(), self._pending
        return replace(stats, pending=pending, accepted=stats.accepted + pending) if pending else stats

    def _write_text(self, stream: Any, data: str | bytes) -> None:
        text = self._as_text(data)
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(stream, "encoding", None) or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except TypeError:
            if self._takes_text is not None:
                raise
            stream.write(self._as_bytes(data))
            self._takes_text = False
        else:
            self._takes_text = True

    def _bind(self, stream: Any) -> None:
        _check_stream(stream)
        if stream is not getattr(self, "_stream", None):
            self._leave_stream()
        self._stream = stream
        self._descriptor = self._takes_text = None
        self._stalled = False
        if isinstance(stream, (io.TextIOBase, codecs.StreamReaderWriter, codecs.StreamWriter)):
            # Those of `codecs` are named, since their ``mode`` is that of the binary stream below.
            self._takes_text = True
        elif isinstance(stream, (io.RawIOBase, io.BufferedIOBase)):
            self._takes_text = False
        else:
            # tempfile.SpooledTemporaryFile is an `io.IOBase` in both modes, text and binary.
            mode = getattr(stream, "mode", "b" if isinstance(stream, io.IOBase) else "")
            self._takes_text = False if "b" in str(mode) else None
        self._find_layers(stream)
        self._bypass_locked_stream()

    def _find_layers(self, stream: Any) -> None:
        """Find the raw stream below *stream*, which is used if a write may take a part of the data."""
        self._raw: Any = None
        self._fileno: int | None = None
        binary: Any = stream
        if isinstance(stream, io.TextIOWrapper):
            # A stream that translates text, as on Windows, cannot be bypassed.
            usual = type(stream).write is io.TextIOWrapper.write and _CAN_POLL
            binary = stream.buffer if usual else None
        raw = binary.raw if type(binary) in (io.BufferedWriter, io.BufferedRandom) else binary
        #: Whether a failed flush leaves the unwritten data in the stream's buffer.
        self._buffers = isinstance(stream, io.TextIOWrapper) or isinstance(binary, io.BufferedIOBase)
        self._is_raw = raw is binary
        if isinstance(raw, io.RawIOBase):
            self._raw = raw
            with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream in memory, or a closed one
                self._fileno = raw.fileno()

    def _in_stream_encoding(self, data: str | bytes) -> bytes:
        """Return *data* as the stream itself would encode it."""
        if not self._takes_text:
            return self._as_bytes(data)
        stream = self._stream
        text, encoding = self._as_text(data), getattr(stream, "encoding", None) or "utf-8"
        try:
            return text.encode(encoding, getattr(stream, "errors", None) or "strict")
        except UnicodeEncodeError:
            return text.encode(encoding, "backslashreplace")

    def _as_text(self, data: str | bytes) -> str:
        return data if isinstance(data, str) else data.decode(self._data_encoding, "replace")

    def _as_bytes(self, data: str | bytes) -> bytes:
        return data.encode(self._bare_encoding, self._errors) if isinstance(data, str) else data

    @property
    def _data_encoding(self) -> str:
        """The encoding of the result of `render`."""
        return "utf-8" if type(self._renderer) is OrjsonRenderer else self._bare_encoding

    def _flush(self) -> None:
        stream = self._stream
        flush = getattr(stream, "flush", None)
        if self._descriptor is not None:
            return
        if getattr(stream, "closed", False):
            if self._pending:
                self._leave_stream()
                msg = "the stream was closed before it had taken all events"
                raise DeliveryError(msg)
            return
        if self._rest or self._unflushed:
            try:
                if self._raw is not None and (self._rest or not _blocks(self._fileno)):
                    self._empty(monotonic() if self._deadline is None else self._deadline)
                else:
                    stream.flush()
                    self._settle()
            except OSError:
                if self._closed:
                    self._leave_stream()
                raise
        if flush is not None:
            flush()

    def _describe(self) -> str:
        label = getattr(self._stream, "name", None)
        return str(label) if isinstance(label, (str, int)) else f"on {type(self._stream).__name__}"

    def after_fork(self) -> None:
        """Reset the sink in a forked child; bypass a stream whose lock another thread held at the fork."""
        super().after_fork()
        # The parent writes the rest of its events.
        self._rest = b""
        self._unflushed = self._writing = False
        self._pending = 0
        self._interrupting.clear()
        self._bypass_locked_stream()

    def _bypass_locked_stream(self) -> None:
        """Write to the stream's descriptor if a thread of the parent has left the stream's lock locked."""
        holder = _lock_of(self._stream)
        if any(stuck is holder for stuck in _stuck):
            with contextlib.suppress(Exception):  # streams in memory raise, but have no such lock
                self._descriptor = self._stream.fileno()


#: The thread of each write in progress, and the object with the stream's own lock, by the id of the sink.
_in_use: dict[int, tuple[int, Any]] = {}

#: In a forked child: the objects whose lock a thread of the parent has left locked.
_stuck: list[Any] = []


def _lock_of(stream: Any) -> Any:
    # The lock of a text stream is that of its buffer, which other sinks may write to directly.
    try:
        return stream.buffer
    except Exception:
        return stream


def _in_child() -> None:
    me = get_ident()
    _stuck.extend(holder for thread, holder in _in_use.values() if thread != me and holder is not None)
    _in_use.clear()


lifecycle.call_in_child(_in_child)


def _check_stream(stream: Any) -> None:
    if stream is not None and not callable(getattr(stream, "write", None)):
        msg = f"stream={stream!r} has no write method"
        raise TypeError(msg)


_CAN_POLL = hasattr(select, "poll")


def _blocks(descriptor: int | None) -> bool:
    """Return True unless *descriptor* is non-blocking, so that a write may take a part of the data, or nothing."""
    if descriptor is None or not _CAN_POLL:
        return True
    try:
        # Read for each event: other processes that share a standard stream may change it.
        return os.get_blocking(descriptor)
    except OSError:
        return True


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class NullSink(Sink):
    """Discard events; they count as delivered.

    Use it where a sink is required but no output is wanted.

    Args:
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Source: `logging.NullHandler`.
    """

    shows_people = True

    def emit(self, event: dict[str, Any]) -> None:
        """Do nothing with *event*."""

    @reads_data_alone(any_number=True)
    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Do nothing with *batch*."""
        return None if type(self).emit is NullSink.emit else super().emit_batch(batch)

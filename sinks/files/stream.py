"""Sinks for streams: `StreamSink`, and `NullSink`, which goes nowhere."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from _thread import get_ident
from collections import deque
from typing import TYPE_CHECKING, Any

from outfall.sinks.core import lifecycle
from outfall.sinks.core.reporting import report
from outfall.sinks.core.sink import ByteSink, OnError, Sink
from outfall.sinks.errors import DeliveryError
from outfall.sinks.event.json import OrjsonRenderer
from outfall.sinks.event.levels import NOTSET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from outfall.sinks.core.item import BatchResult, Encoded


class StreamSink(ByteSink):
    r"""Write each event to a stream, text or binary, and flush it.

    Args:
        stream: Anything with ``write``, and ``flush`` if it has one. Default ``sys.stderr`` as it is at construction.
            Text streams get text, binary ones bytes; one that is neither by type gets text, and bytes from then on if
            it refuses that with a TypeError.
        terminator: What ends each event. Default ``"\n"``. Settable; read at each event.
        renderer: See `ByteSink`. ``structlog.dev.ConsoleRenderer()`` for people.
        encoding: How text is encoded for a binary stream. Default UTF-8.
        errors: See `ByteSink`.
        level: See `Sink`.
        processors: See `Sink`.
        on_error: See `Sink`.
        name: See `Sink`.

    Raises:
        TypeError: If *stream* has no ``write``.

    Each event is one ``write``, followed by a ``flush``. A character that a text stream's encoding does not have is
    written as a backslash escape. Safe from any thread; an event from a signal handler that interrupts a write of this
    sink is written right after it. ``close`` flushes and leaves the stream open.

    In a forked child: if another thread was writing at the moment of the fork, by this sink or another on the same
    stream, that stream's own lock stays locked for ever in the child; the sink then writes to the stream's descriptor
    directly. What others than sinks were writing to the stream (`print` from a thread) is not known here.

    Source: `logging.StreamHandler`.
    """

    def __init__(
        self,
        stream: Any = None,
        *,
        terminator: str = "\n",
        renderer: Callable[[Any, str, Any], str | bytes] | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        level: str | float = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        super().__init__(
            renderer=renderer,
            encoding=encoding,
            errors=errors,
            terminator=terminator,
            level=level,
            processors=processors,
            on_error=on_error,
            name=name,
        )
        #: Data of events that came from a signal handler during a write of the same thread.
        self._interrupting: deque[str | bytes] = deque()
        self._writing = False
        #: Where to write instead of the stream, in a child that must not touch it.
        self._descriptor: int | None = None
        #: None until the first write has shown it.
        self._takes_text: bool | None = None
        self._bind(sys.stderr if stream is None else stream)

    @property
    def stream(self) -> Any:
        """The stream; replace it with `set_stream`. None if there was no stderr."""
        return self._stream

    def set_stream(self, stream: Any) -> Any:
        """Go on with *stream*, having flushed the old one; return the old one, or None if it is the same.

        A flush that fails goes to ``on_error``.

        Raises:
            TypeError: If *stream* has no ``write``; the old one is kept.
        """
        failure: Exception | None = None
        with self._lock:
            old = self._stream
            if stream is old:
                return None
            _check_stream(stream)
            try:
                self._flush()
            except Exception as error:
                failure = error
            self._bind(stream)
        if failure is not None:
            self._fail(failure, None, events=0)
        return old

    def write(self, data: str | bytes) -> None:
        """Write *data* by one call of the stream's ``write``, and flush. Text goes to a text stream as it is."""
        if self._writing:
            # A signal handler or __del__ came between in this very thread; streams refuse or garble a nested write.
            self._interrupting.append(data)
            return
        self._writing = True
        try:
            _in_use[id(self)] = (get_ident(), _lock_of(self._stream))
            try:
                self._write_and_flush(data)
            except BaseException:
                self._write_interrupting()
                raise
            if self._interrupting:
                self._write_interrupting(counted_elsewhere=1)
        finally:
            self._writing = False
            _in_use.pop(id(self), None)

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Write all items by one call of the stream's ``write``, and flush."""
        if type(self).write is not StreamSink.write:
            return super().emit_batch(batch)
        with self._lock:
            self.write(self._joined(batch))
        return None

    def _write_interrupting(self, counted_elsewhere: int = 0) -> None:
        """Write what came meanwhile, whatever fails; what is lost is counted, but for *counted_elsewhere*, if any."""
        failures: list[Exception] = []
        while self._interrupting:
            try:
                self._write_and_flush(self._interrupting.popleft())
            except Exception as error:
                failures.append(error)
        if not failures:
            return
        # All were counted as delivered when they came.
        lost = len(failures) - counted_elsewhere
        self._delivered -= lost
        self._lost += lost
        if lost:
            self._count_dropped("error", lost)
        if counted_elsewhere:
            raise failures[-1]

    def _write_and_flush(self, data: str | bytes) -> None:
        stream = self._stream
        if self._descriptor is not None:
            if self._takes_text:
                encoding = getattr(stream, "encoding", None) or "utf-8"
                data = self._as_text(data).encode(encoding, "backslashreplace")
            _write_all(self._descriptor, self._as_bytes(data))
            return
        if stream is None:
            msg = "there is no stream: sys.stderr was None"
            raise DeliveryError(msg)
        if self._takes_text is False:
            _write_binary(stream, self._as_bytes(data))
        else:
            self._write_text(stream, data)
        self._flush_stream(stream)

    def _flush_stream(self, stream: Any) -> None:
        """Flush *stream* after a write, if it can be."""
        flush = getattr(stream, "flush", None)
        if flush is not None:
            flush()

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
            _write_binary(stream, self._as_bytes(data))
            self._takes_text = False
        else:
            self._takes_text = True

    def _bind(self, stream: Any) -> None:
        _check_stream(stream)
        self._stream = stream
        self._descriptor = self._takes_text = None
        if isinstance(stream, (io.TextIOBase, codecs.StreamReaderWriter, codecs.StreamWriter)):
            # Those of codecs too: what they say of their mode is that of the binary stream below.
            self._takes_text = True
        elif isinstance(stream, io.IOBase) or "b" in str(getattr(stream, "mode", "")):
            self._takes_text = False
        self._go_round()

    def _as_text(self, data: str | bytes) -> str:
        return data if isinstance(data, str) else data.decode(self._data_encoding, "replace")

    def _as_bytes(self, data: str | bytes) -> bytes:
        return data.encode(self._bare_encoding, self._errors) if isinstance(data, str) else data

    @property
    def _data_encoding(self) -> str:
        """How `render` has encoded what it returns."""
        return "utf-8" if type(self._renderer) is OrjsonRenderer else self._bare_encoding

    def _flush(self) -> None:
        flush = getattr(self._stream, "flush", None)
        if flush is not None and self._descriptor is None and not getattr(self._stream, "closed", False):
            flush()

    def _describe(self) -> str:
        label = getattr(self._stream, "name", None)
        return str(label) if isinstance(label, (str, int)) else f"on {type(self._stream).__name__}"

    def after_fork(self) -> None:
        """Begin anew in a forked child; go round a stream whose lock another thread held at the fork."""
        super().after_fork()
        self._writing = False
        self._interrupting.clear()
        self._go_round()

    def _go_round(self) -> None:
        """Write to the stream's descriptor if a thread of the parent has left its lock locked."""
        holder = _lock_of(self._stream)
        if any(stuck is holder for stuck in _stuck):
            with contextlib.suppress(Exception):  # whatever a stream in memory raises; it has no such lock
                self._descriptor = self._stream.fileno()


#: By the sink that is writing: its thread, and what has the stream's own lock.
_in_use: dict[int, tuple[int, Any]] = {}

#: In a forked child: those whose lock was left locked by a thread of the parent.
_stuck: list[Any] = []


def _lock_of(stream: Any) -> Any:
    # A text stream has none; its buffer, which other sinks may write to directly, has.
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


def _write_binary(stream: Any, data: bytes) -> None:
    written = stream.write(data)
    # A raw stream may take a part; BufferedIOBase and most others take all and return the length, or None.
    while isinstance(stream, io.RawIOBase) and written != len(data):
        if not written:
            raise BlockingIOError(errno.EAGAIN, "the stream takes no more now")
        data = data[written:]
        written = stream.write(data)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class NullSink(Sink):
    """Take events and put them nowhere; they count as delivered.

    Use where a sink is required but no output is wanted.

    Args:
        level: See `Sink`.
        processors: See `Sink`.
        on_error: See `Sink`.
        name: See `Sink`.

    Source: `logging.NullHandler`.
    """

    def emit(self, event: dict[str, Any]) -> None:
        """Do nothing with *event*."""

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Do nothing with *batch*."""
        return None if type(self).emit is NullSink.emit else super().emit_batch(batch)

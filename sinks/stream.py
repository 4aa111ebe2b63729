"""Sinks for streams: `StreamSink`, and `NullSink`, which goes nowhere."""

from __future__ import annotations

import io
import os
import sys
from collections import deque
from typing import TYPE_CHECKING, Any

from outfall.sinks.base import ByteSink, OnError, Sink
from outfall.sinks.errors import DeliveryError
from outfall.sinks.failures import report
from outfall.sinks.levels import NOTSET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


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

    In a forked child: if another thread was writing at the moment of the fork, that stream's own lock stays locked for
    ever in the child; the sink then writes to the stream's descriptor directly.

    Source: `logging.StreamHandler`.
    """

    def __init__(
        self,
        stream: Any = None,  # noqa: ANN401 - anything with write
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
        self._interrupting: deque[bytes] = deque()
        self._writing = False
        self._bind(sys.stderr if stream is None else stream)

    @property
    def stream(self) -> Any:  # noqa: ANN401
        """The stream; replace it with `set_stream`. None if there was no stderr."""
        return self._stream

    def set_stream(self, stream: Any) -> Any:  # noqa: ANN401
        """Go on with *stream*, having flushed the old one; return the old one, or None if it is the same."""
        with self._lock:
            old = self._stream
            if stream is old:
                return None
            self._flush()
            self._bind(stream)
        return old

    def write(self, data: bytes) -> None:
        """Write *data* by one call of the stream's ``write``, and flush."""
        if self._writing:
            # A signal handler or __del__ came between in this very thread; streams refuse or garble a nested write.
            self._interrupting.append(data)
            return
        self._writing = True
        try:
            self._write_and_flush(data)
            while self._interrupting:
                self._write_and_flush(self._interrupting.popleft())
        finally:
            self._writing = False

    def _write_and_flush(self, data: bytes) -> None:
        stream = self._stream
        if self._descriptor is not None:
            _write_all(self._descriptor, data)
            return
        if stream is None:
            msg = "there is no stream: sys.stderr was None"
            raise DeliveryError(msg)
        if self._takes_text is False:
            _write_binary(stream, data)
        else:
            self._write_text(stream, data)
        flush = getattr(stream, "flush", None)
        if flush is not None:
            flush()

    def _write_text(self, stream: Any, data: bytes) -> None:  # noqa: ANN401
        text = data.decode(self._encoding, "replace")
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(stream, "encoding", None) or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except TypeError:
            if self._takes_text is not None:
                raise
            _write_binary(stream, data)
            self._takes_text = False
        else:
            self._takes_text = True

    def _bind(self, stream: Any) -> None:  # noqa: ANN401
        if stream is not None and not callable(getattr(stream, "write", None)):
            msg = f"stream={stream!r} has no write method"
            raise TypeError(msg)
        self._stream = stream
        self._descriptor: int | None = None
        #: None until the first write has shown it.
        self._takes_text: bool | None = None
        if isinstance(stream, io.TextIOBase):
            self._takes_text = True
        elif isinstance(stream, io.IOBase) or "b" in str(getattr(stream, "mode", "")):
            self._takes_text = False

    def _flush(self) -> None:
        flush = getattr(self._stream, "flush", None)
        if flush is not None and self._descriptor is None and not getattr(self._stream, "closed", False):
            flush()

    def _describe(self) -> str:
        label = getattr(self._stream, "name", None)
        return str(label) if isinstance(label, (str, int)) else f"on {type(self._stream).__name__}"

    def after_fork(self) -> None:
        """Begin anew in a forked child; go round a stream whose lock another thread held at the fork."""
        busy = self._writing and not self._lock.acquire(0)
        super().after_fork()
        self._writing = False
        self._interrupting.clear()
        if busy:
            try:
                self._descriptor = self._stream.fileno()
            except (AttributeError, OSError, ValueError):
                self._descriptor = None  # in memory, so without a lock of the system's


def _write_binary(stream: Any, data: bytes) -> None:  # noqa: ANN401
    written = stream.write(data)
    # A raw stream may take a part; BufferedIOBase and most others take all and return the length, or None.
    while isinstance(written, int) and 0 < written < len(data) and isinstance(stream, io.RawIOBase):
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

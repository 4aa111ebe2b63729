"""Drop-in twins of the handlers for streams: `StreamHandler`, and `NullHandler`, which goes nowhere."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from outfall.adapters.handlers.twin import NO_LOCK, Lent, Twin, is_own
from outfall.sinks.files.stream import StreamSink

if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[Any]
else:
    _StreamHandler = logging.StreamHandler


class HandlersStreamSink(Lent, StreamSink):
    """The sink behind a `StreamHandler`."""

    def _flush_stream(self, stream: Any) -> None:
        owner = self.owner
        if owner is None or is_own(owner.flush, StreamHandler.flush):
            super()._flush_stream(stream)
        else:
            owner.flush()

    def bind(self, stream: Any) -> None:
        """Write to *stream* from now on."""
        if stream is not self._stream:
            self._bind(stream)

    def flush_now(self) -> None:
        """Flush the stream, or raise what its ``flush`` raises."""
        super()._flush_stream(self._stream)


def ended(made: Any, terminator: Any) -> Any:
    """Return what a handler's formatter has made of a record with *terminator* behind it, to be one write."""
    if isinstance(made, bytes) and isinstance(terminator, str):
        # A renderer of structlog's that makes bytes, in a ProcessorFormatter.
        return made + terminator.encode()
    return made + terminator


class StreamHandler(Twin, _StreamHandler):
    r"""A drop-in twin of `logging.StreamHandler`: write each record to a stream, text or binary, and flush it.

    Args:
        stream: Anything with ``write``, and ``flush`` if it has one. Default ``sys.stderr`` as it is at construction.

    Attributes:
        stream: The stream. Assign another, or use ``setStream``, which flushes this one first.
        terminator: What ends each record. Default ``"\n"``; read at each record.

    ``close`` neither flushes nor closes the stream. Where it differs from its namesake on purpose:
    :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#streamhandler
    """

    stream: Any
    _streams: HandlersStreamSink

    def __init__(self, stream: Any = None) -> None:
        Twin.__init__(self)
        self.stream = sys.stderr if stream is None else stream

    def make_sink(self) -> HandlersStreamSink:
        """Return the sink."""
        # Renderer and encoding are for streams of bytes: text goes to a stream of text as it is.
        return HandlersStreamSink(_Nowhere(), renderer=_never, on_error="raise", name=type(self).__name__)

    def lend(self, sink: Any) -> None:
        """Have *sink* write to the stream that is the handler's now."""
        sink.bind(self.stream)

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record* and flush the stream; a failure goes to `handleError`."""
        try:
            text, terminator = self.format(record), self.terminator
            self._write_to_stream(text + terminator if text.__class__ is str else ended(text, terminator))
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)

    @property
    def _stream_sink(self) -> HandlersStreamSink:
        """The sink that writes to streams: in handlers of files not the one that writes to the file."""
        made: HandlersStreamSink
        made = self._streams = self.sink
        return made

    def _write_to_stream(self, text: str | bytes) -> None:
        # What at_work() does, without its calls.
        lock = self.lock or NO_LOCK
        lock.acquire()
        try:
            try:
                sink = self._streams
            except AttributeError:
                sink = self._stream_sink
            before, sink.owner = sink.owner, self
            try:
                stream = self.stream
                if sink.stream is not stream:
                    sink.bind(stream)
                sink.put_text(text)
            finally:
                sink.owner = before
        finally:
            lock.release()

    def flush(self) -> None:
        """Flush the stream, if it can be.

        Raises:
            Exception: What the stream's ``flush`` raises.
        """
        stream = self.stream
        if stream and hasattr(stream, "flush"):
            self.acquire()
            try:
                sink = self._stream_sink
                sink.bind(stream)
                sink.flush_now()
            finally:
                self.release()

    def setStream(self, stream: Any) -> Any:
        """Set the stream, having flushed the old one; return the old one, or None if it is the same.

        Raises:
            Exception: What the old stream's ``flush`` raised; the new one is set all the same.
        """
        if stream is self.stream:
            return None
        self.acquire()
        try:
            old = self.stream
            try:
                self.flush()
            finally:
                self.stream = stream
        finally:
            self.release()
        return old


class _Nowhere:
    """What a sink is made with before it is told of its stream."""

    def write(self, text: str) -> int:
        """Take nothing."""
        raise NotImplementedError


def _never(logger: Any, name: str, event: Any) -> str:
    raise NotImplementedError


class NullHandler(Twin, logging.NullHandler):
    """A drop-in twin of `logging.NullHandler`: do nothing.

    Source: https://docs.python.org/3/library/logging.handlers.html#nullhandler
    """

    def handle(self, record: logging.LogRecord) -> Any:
        """Do nothing with *record*."""

    def emit(self, record: logging.LogRecord) -> None:
        """Do nothing with *record*."""

    def createLock(self) -> None:
        """Make no lock, since nothing needs one."""
        self.lock: Any = None

    def _at_fork_reinit(self) -> None:
        pass

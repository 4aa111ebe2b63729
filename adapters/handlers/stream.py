"""Drop-in twins of `StreamHandler` and `NullHandler`."""

from __future__ import annotations

import codecs
import io
import logging
from typing import TYPE_CHECKING, Any

from outfall.adapters.handlers.base import Twin, account_of, count_failure

if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[Any]
else:
    _StreamHandler = logging.StreamHandler
_NullHandler = logging.NullHandler

#: Streams of text. Those of `codecs` are named, since their ``mode`` is that of the binary stream below.
_TEXT = (io.TextIOBase, codecs.StreamReaderWriter, codecs.StreamWriter)

_flush = _StreamHandler.flush


class StreamHandler(Twin, _StreamHandler):
    r"""A drop-in twin of `logging.StreamHandler`: write each record to a stream, text or binary, and flush it.

    Args:
        stream: Any object with ``write``; ``flush`` is optional. Default ``sys.stderr`` as it is at construction.

    Attributes:
        stream: The stream. Assign another, or call ``setStream``, which flushes the old stream first.
        terminator: The text that ends each record. Default ``"\n"``; read for each record.

    ``close`` neither flushes nor closes the stream. Deliberate differences from its namesake:
    :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#streamhandler
    """

    stream: Any

    def __init__(self, stream: Any = None) -> None:
        _StreamHandler.__init__(self, stream)

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record* and flush the stream; call `handleError` on failure."""
        try:
            write(self, record)
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)

    def setStream(self, stream: Any) -> Any:
        """Flush the old stream and set the new one; return the old one, or None if both are the same.

        Raises:
            Exception: The exception of the old stream's ``flush``; the new stream is set nevertheless.
        """
        old = self.stream
        if stream is old:
            return None
        self.acquire()
        try:
            try:
                self.flush()
            finally:
                self.stream = stream
        finally:
            self.release()
        return old


def write(handler: Any, record: logging.LogRecord) -> None:
    """Write *record* to the stream of *handler*, flush the stream, and count the outcome."""
    try:
        text, stream = handler.format(record), handler.stream
        if text.__class__ is str:
            # One write for both, so that output of other threads and processes cannot come in between.
            text += handler.terminator
            try:
                stream.write(text)
            except (TypeError, UnicodeEncodeError) as error:
                _write_otherwise(stream, text, error)
        else:
            data = with_terminator(text, handler.terminator)
            stream.write(data if not isinstance(data, bytes) or _is_binary(stream) else data.decode("utf-8", "replace"))
        flush = handler.flush
        if getattr(flush, "__func__", None) is not _flush:
            flush()
        elif stream and hasattr(stream, "flush"):
            stream.flush()
        account = getattr(handler, "_outfall_account", None) or account_of(handler)
        account._ledger.delivered += 1
    except BaseException as error:
        count_failure(handler, error)
        raise


def _write_otherwise(stream: Any, text: str, error: TypeError | UnicodeEncodeError) -> None:
    """Write *text* encoded to a stream of bytes, or escaped to one of text; raise *error* if neither applies."""
    if isinstance(error, UnicodeEncodeError) and isinstance(stream, _TEXT):
        stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
    elif isinstance(error, TypeError) and _is_binary(stream):
        stream.write(text.encode("utf-8", "backslashreplace"))
    else:
        raise error


def with_terminator(made: Any, terminator: Any) -> Any:
    """Return *made*, the result of a formatter, followed by *terminator*."""
    if isinstance(made, bytes) and isinstance(terminator, str):
        # A ProcessorFormatter returns bytes if structlog's renderer does.
        return made + terminator.encode()
    return made + terminator


def _is_binary(stream: Any) -> bool:
    if isinstance(stream, _TEXT):
        return False
    mode = getattr(stream, "mode", None)
    return isinstance(stream, io.IOBase) or (isinstance(mode, str) and "b" in mode)


class NullHandler(Twin, _NullHandler):
    """A drop-in twin of `logging.NullHandler`: do nothing.

    Source: https://docs.python.org/3/library/logging.handlers.html#nullhandler
    """

    if TYPE_CHECKING:
        lock: Any
    else:
        # The original's, which do nothing, and not those of `Twin`.
        filter = _NullHandler.filter
        handle = _NullHandler.handle

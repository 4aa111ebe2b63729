"""Drop-in twins of the handlers for streams: `StreamHandler`, and `NullHandler`, which goes nowhere."""

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

#: Streams of text. Those of codecs too: what they say of their mode is that of the binary stream below.
_TEXT = (io.TextIOBase, codecs.StreamReaderWriter, codecs.StreamWriter)

_flush = _StreamHandler.flush


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

    def __init__(self, stream: Any = None) -> None:
        _StreamHandler.__init__(self, stream)

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record* and flush the stream; a failure goes to `handleError`."""
        try:
            write(self, record)
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)

    def setStream(self, stream: Any) -> Any:
        """Set the stream, having flushed the old one; return the old one, or None if it is the same.

        Raises:
            Exception: What the old stream's ``flush`` raised; the new one is set all the same.
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
    """Write *record* to the stream of *handler* and flush it; count it, whatever becomes of it."""
    try:
        text, stream = handler.format(record), handler.stream
        if text.__class__ is str:
            # One write: what other threads and processes write must not come in between.
            text += handler.terminator
            try:
                stream.write(text)
            except (TypeError, UnicodeEncodeError) as error:
                _write_otherwise(stream, text, error)
        else:
            data = ended(text, handler.terminator)
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
    """Write *text* to a stream of bytes, or with escapes; raise *error* where it is no fault of the text's."""
    if isinstance(error, UnicodeEncodeError) and isinstance(stream, _TEXT):
        stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
    elif isinstance(error, TypeError) and _is_binary(stream):
        stream.write(text.encode("utf-8", "backslashreplace"))
    else:
        raise error


def ended(made: Any, terminator: Any) -> Any:
    """Return what a handler's formatter has made of a record with *terminator* behind it, to be one write."""
    if isinstance(made, bytes) and isinstance(terminator, str):
        # A renderer of structlog's that makes bytes, in a ProcessorFormatter.
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
        # Not those of `Twin`: the original does nothing there.
        filter = _NullHandler.filter
        handle = _NullHandler.handle

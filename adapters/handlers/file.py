"""Drop-in twins of the handlers for files: `FileHandler` and `WatchedFileHandler`."""

from __future__ import annotations

import io
import logging
import os
from typing import Any

from outfall.adapters.handlers import stream as streams
from outfall.adapters.handlers.base import account_of, count_failure, untouched
from outfall.adapters.handlers.openfile import OpenFile, open_file
from outfall.adapters.handlers.stream import StreamHandler

_FileHandler = logging.FileHandler
_flush = logging.StreamHandler.flush

#: What `open` returns for files; a stream of any other kind is somebody's own.
_FILES = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


class FileHandler(StreamHandler, _FileHandler):
    """A drop-in twin of `logging.FileHandler`: append each record to a file.

    Args:
        filename: Path of the file; made absolute once, here.
        mode: ``"a"`` to append (default), ``"w"`` to truncate when first opened, ``"x"`` to insist on a new file.
        encoding: How text is encoded. Default None: the locale's.
        delay: Open at the first record instead of now. Default False.
        errors: What to do with characters that *encoding* does not have, as in ``open``. Default None: they are written
            as backslash escapes.

    Attributes:
        baseFilename: The absolute path. Changes to it, to *mode*, *encoding* and *errors* act when the file is next
            opened.
        stream: The open file, or None. Assign any stream, and the records go there.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If *mode* is none.
        LookupError: If *encoding* or *errors* is not known.

    A record reaches the operating system whole or not at all, past the stream's buffer, where the stream is the one
    that ``_open`` of this class returned. Where it differs from its namesake on purpose: :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#filehandler
    """

    stream: Any

    #: Of the stream that this class's ``_open`` has returned last.
    _outfall_file: OpenFile | None = None
    #: True while ``_open`` is called for a file that must not be truncated.
    _outfall_append = False

    def __init__(
        self,
        filename: str | os.PathLike[str],
        mode: str = "a",
        encoding: str | None = None,
        delay: bool = False,
        errors: str | None = None,
    ) -> None:
        # So that a child that is forked before the first record knows that it is not the first.
        self._outfall_process = os.getpid()
        _FileHandler.__init__(self, os.fsdecode(filename), mode, encoding, delay, errors)

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record*, to the file unless there is another stream; a failure goes to `handleError`."""
        if self.stream is None and not untouched(self.emit, FileHandler.emit):
            # What is raised is raised to a subclass, which may catch it.
            self.stream = opened(self)
        try:
            append(self, record)
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)

    def _open(self) -> Any:
        """Open the file in its mode, and return the stream; a subclass may return any other."""
        mode = self.mode
        if getattr(self, "_outfall_append", False):
            mode = mode.replace("w", "a").replace("x", "a")
        stream = open_file(self, mode)
        self._outfall_opened = self.baseFilename, self.mode
        self._outfall_file = None
        if type(stream) in _FILES:
            self._outfall_file = OpenFile(stream, self.baseFilename, binary="b" in mode, terminator=self.terminator)
        return stream


def append(handler: Any, record: logging.LogRecord) -> None:
    """Write *record* to the file of *handler*, a `logging.FileHandler`, or to what it has as stream; count it."""
    stream = handler.stream
    if stream is None:
        stream = handler.stream = opened(handler)
    file = getattr(handler, "_outfall_file", None)
    if file is None or file.stream is not stream:
        streams.write(handler, record)
        return
    account = getattr(handler, "_outfall_account", None) or account_of(handler)
    try:
        file.append(handler.format(record), handler.terminator)
        flush = handler.flush
        if getattr(flush, "__func__", None) is not _flush:
            flush()
        account._ledger.delivered += 1
    except BaseException as error:
        count_failure(handler, error)
        raise


def opened(handler: Any) -> Any:
    """Return the stream that ``_open`` of *handler* gives; what was written to the file before is not truncated."""
    last = getattr(handler, "_outfall_opened", None)
    if last == (handler.baseFilename, handler.mode) or getattr(handler, "_outfall_process", None) not in (
        None,
        os.getpid(),
    ):
        handler._outfall_append = True
    try:
        return handler._open()
    finally:
        handler._outfall_append = False


def current_file(handler: Any) -> Any:
    """Return the `OpenFile` below the stream of *handler*; None if there is none, or the stream is somebody's own."""
    file = getattr(handler, "_outfall_file", None)
    return file if file is not None and file.stream is handler.stream else None

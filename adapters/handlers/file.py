"""The drop-in twin of the handler for files: `FileHandler`."""

from __future__ import annotations

import io
import logging
import os
from typing import Any

from outfall.adapters.handlers import stream as streams
from outfall.adapters.handlers.base import account_of, count_failure, is_not_overridden
from outfall.adapters.handlers.openfile import OpenFile, open_file
from outfall.adapters.handlers.stream import StreamHandler

_FileHandler = logging.FileHandler
_flush = logging.StreamHandler.flush

#: The types that `open` returns for files; a stream of any other type is the application's own.
_FILES = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


class FileHandler(StreamHandler, _FileHandler):
    """A drop-in twin of `logging.FileHandler`: append each record to a file.

    Args:
        filename: Path of the file. The constructor makes a relative path absolute.
        mode: ``"a"`` to append (default), ``"w"`` to truncate when first opened, ``"x"`` to fail if the file exists.
        encoding: The encoding of text. Default None: the locale's.
        delay: Open the file at the first record instead of now. Default False.
        errors: How to treat characters that *encoding* does not have, as in ``open``. Default None:
            ``"backslashreplace"``.

    Attributes:
        baseFilename: The absolute path. Changes to it, to *mode*, *encoding* and *errors* apply when the file is next
            opened.
        stream: The open file, or None. Assign any other stream to send the records there.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If *mode* is not a mode of ``open``.
        LookupError: If *encoding* or *errors* is unknown.

    A record reaches the operating system whole or not at all, bypassing the stream's buffer. This does not hold for
    other streams than those that ``_open`` of this class returns. Deliberate differences from its namesake:
    :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#filehandler
    """

    stream: Any

    #: The file below the stream that this class's ``_open`` returned last.
    _outfall_file: OpenFile | None = None
    #: True while ``_open`` is called for a file that it must not truncate.
    _outfall_append = False

    def __init__(
        self,
        filename: str | os.PathLike[str],
        mode: str = "a",
        encoding: str | None = None,
        delay: bool = False,
        errors: str | None = None,
    ) -> None:
        # By its process id a child, forked before the file is opened, knows that it must not truncate it.
        self._outfall_process = os.getpid()
        _FileHandler.__init__(self, os.fsdecode(filename), mode, encoding, delay, errors)

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record* to the stream, by default the file; call `handleError` on failure."""
        if self.stream is None and not is_not_overridden(self.emit, FileHandler.emit):
            # Outside the try: a subclass's emit may catch the exception.
            self.stream = open_stream(self)
        try:
            append(self, record)
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)

    def _open(self) -> Any:
        """Open the file in its mode and return the stream; a subclass may return any stream."""
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
    """Write *record* to the stream of *handler*, a `logging.FileHandler`, and count it."""
    stream = handler.stream
    if stream is None:
        stream = handler.stream = open_stream(handler)
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


def open_stream(handler: Any) -> Any:
    """Return a stream by ``_open`` of *handler*, without truncating a file that the handler has opened before."""
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
    """Return the `OpenFile` below the stream of *handler*; None if the stream is the application's own, or closed."""
    file = getattr(handler, "_outfall_file", None)
    return file if file is not None and file.stream is handler.stream else None

"""Drop-in twins of the handlers for files that roll over: `BaseRotatingHandler`, and by size `RotatingFileHandler`."""

from __future__ import annotations

import logging
import logging.handlers
import os
from os import SEEK_END as _SEEK_END
from os import lseek as _lseek
from typing import TYPE_CHECKING, Any

from outfall.adapters.handlers.file import FileHandler, HandlersFile, text_encoding
from outfall.adapters.handlers.twin import is_own
from outfall.sinks.files.by_size import RotatingFileSink
from outfall.sinks.files.rotating import BaseRotatingFileSink

if TYPE_CHECKING:
    from collections.abc import Callable

    _BaseRotatingFileSink = BaseRotatingFileSink
else:
    _BaseRotatingFileSink = object


#: Windows moves no file that is open.
_CLOSE_FIRST = os.name == "nt"


class HandlersRotatingFile(HandlersFile, _BaseRotatingFileSink):
    """Mixed into the class of a sink behind a `BaseRotatingHandler`."""

    #: What is being written, and the bytes of it.
    _record: logging.LogRecord | None = None
    _data = b""

    # -- for the handler

    def put_record(self, record: logging.LogRecord) -> None:
        """Write what the owner makes of *record*, having rolled over if that is due, or raise.

        Raises:
            Exception: What befell it, or the rollover: then the record has been written.
        """
        owner = self.owner
        data = self.data_of(record)
        if self.is_early(owner, len(data)) and self.write_directly(data):
            return
        outer = self._record, self._data
        self._record, self._data = record, data
        try:
            # Of the system and not counted: others may have written, and this is cheap beside formatting.
            self._size = None
            self.put_text(data)
        finally:
            self._record, self._data = outer
        failure, self._rotation_failure = self._rotation_failure, None
        if failure is not None:
            raise failure

    def is_early(self, owner: Any, size: int) -> bool:
        """Return True if it is plain that no rollover is due before *size* more bytes are written."""
        return False

    def bytes_of(self, record: logging.LogRecord) -> bytes:
        """Return what the owner would write for *record*."""
        if record is self._record:
            return self._data
        return self.data_of(record)

    def is_due_for(self, record: logging.LogRecord) -> bool:
        """Do what the owner's ``shouldRollover`` does unless that is overridden."""
        if record is not self._record:
            self._size = None
        return super().should_rollover(self.bytes_of(record))

    def roll_over(self) -> None:
        """Do what the owner's ``doRollover`` does unless that is overridden."""
        owner = self.owner
        stream = owner.stream
        if stream is not None and (_CLOSE_FIRST or not self.is_current(stream)):
            # What somebody else buffers has to be in the file before that is moved.
            owner.stream = None
            stream.close()
        self._move_files()
        if owner.stream is None and not owner.delay:
            owner.stream = owner._open()

    def _move_files(self) -> None:
        super().do_rollover()

    def default_rotation_filename(self, default_name: str) -> str:
        """Do what the owner's ``rotation_filename`` does unless that is overridden."""
        return super().rotation_filename(default_name)

    def default_rotate(self, source: str, dest: str) -> None:
        """Do what the owner's ``rotate`` does unless that is overridden."""
        super().rotate(source, dest)

    # -- what the sink does, by way of the handler

    def should_rollover(self, data: bytes) -> bool:
        """Ask the owner."""
        return bool(self.owner.shouldRollover(self._record))

    def do_rollover(self) -> None:
        """Have the owner do it."""
        self.owner.doRollover()

    def rotation_filename(self, default_name: str) -> str:
        """Ask the owner."""
        return os.fsdecode(self.owner.rotation_filename(default_name))

    def rotate(self, source: str, dest: str) -> None:
        """Have the owner do it."""
        self.owner.rotate(source, dest)

    def get_files_to_delete(self) -> list[str]:
        """Return none: retention is the owner's business."""
        return []

    def _current_size(self) -> int:
        owner = self.owner
        if owner.stream is None or self.is_current(owner.stream):
            return super()._current_size()
        # A stream of somebody else's making, which its own position tells most of.
        position: int = owner.stream.tell()
        return position

    def _write_or_reopen(self, data: bytes, ends: Any) -> None:
        owner = self.owner
        if owner.stream is None:
            # A rollover has left it closed.
            owner.stream = owner._open()
        if not self.is_current(owner.stream):
            owner.write_elsewhere(data)
        else:
            super()._write_or_reopen(data, ends)

    def _notice_others(self, what: str) -> None:
        """Say nothing: the namesake bears with others on its file."""


class HandlersBaseRotatingFileSink(HandlersRotatingFile, BaseRotatingFileSink):
    """The sink behind a handler whose class says itself when and how to roll over."""


class HandlersRotatingFileSink(HandlersRotatingFile, RotatingFileSink):
    """The sink behind a `RotatingFileHandler`."""

    def is_early(self, owner: Any, size: int) -> bool:
        """Return True if it is plain that no rollover is due before *size* more bytes are written."""
        limit = owner.maxBytes
        if not is_own(owner.shouldRollover, RotatingFileHandler.shouldRollover):
            return False
        if limit <= 0:
            return True
        try:
            return bool(_lseek(self._fd, 0, _SEEK_END) + size <= limit)
        except OSError:
            return False

    def _move_files(self) -> None:
        if self.backup_count > 0:
            super()._move_files()


class BaseRotatingHandler(FileHandler, logging.handlers.BaseRotatingHandler):
    """A drop-in twin of `logging.handlers.BaseRotatingHandler`, what the handlers that roll over have in common.

    For subclasses with ``shouldRollover(record)`` and ``doRollover()`` of their own.

    Args:
        filename: See `FileHandler`.
        mode: See `FileHandler`.
        encoding: See `FileHandler`.
        delay: See `FileHandler`.
        errors: See `FileHandler`.

    Attributes:
        namer: Makes the name of a rotated file from its default name; None for the default name. Also a method.
        rotator: Called with source and destination instead of the renaming; None to rename. Also a method.

    Raises:
        OSError: If the file cannot be opened.

    A rollover that fails costs no record: see `outfall.BaseRotatingFileSink`. ``handleError`` is told once, with the
    record that was written when it failed.

    Source: https://docs.python.org/3/library/logging.handlers.html#baserotatinghandler
    """

    stream: Any

    namer: Callable[[str], str] | None = None
    rotator: Callable[[str, str], None] | None = None

    def __init__(
        self,
        filename: str | os.PathLike[str],
        mode: str,
        encoding: str | None = None,
        delay: bool = False,
        errors: str | None = None,
    ) -> None:
        FileHandler.__init__(self, filename, mode, encoding, delay, errors)
        self.encoding = encoding

    def make_sink(self) -> Any:
        """Return the sink."""
        return self._made(HandlersBaseRotatingFileSink)

    def lend(self, sink: Any) -> None:
        """Tell *sink* how to name and move files, and how lines end."""
        super().lend(sink)
        sink.namer, sink.rotator = self.namer, self.rotator

    if TYPE_CHECKING:
        # Of subclasses; the namesake has none either.
        def shouldRollover(self, record: logging.LogRecord) -> bool: ...  # noqa: D102
        def doRollover(self) -> None: ...  # noqa: D102

    def rotation_filename(self, default_name: str) -> str:
        """Return the name for a rotated file: what `namer` makes of *default_name*, or that."""
        with self.at_work() as sink:
            name: str = sink.default_rotation_filename(default_name)
        return name

    def rotate(self, source: str, dest: str) -> None:
        """Move *source* to *dest*, by `rotator` if there is one; a *source* that is not there is no error."""
        with self.at_work() as sink:
            sink.default_rotate(source, dest)

    def renew_stream(self) -> None:
        """Have the file that stands at the path now opened, or with *delay* closed until the next record."""
        if not self.delay:
            super().renew_stream()
            return
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.close()

    def _emit_elsewhere(self, record: logging.LogRecord) -> None:
        try:
            if self.shouldRollover(record):
                self.doRollover()
        except Exception:
            self.handleError(record)
        if self.stream is None:
            self.stream = self._open()
        super()._emit_elsewhere(record)

    def write_elsewhere(self, data: bytes) -> None:
        """Write *data* to a stream that is not the sink's file; for the sink."""
        self._write_to_stream(data)


class RotatingFileHandler(BaseRotatingHandler, logging.handlers.RotatingFileHandler):
    """A drop-in twin of `logging.handlers.RotatingFileHandler`: roll over before the file grows beyond a size.

    Args:
        filename: See `FileHandler`.
        mode: See `FileHandler`. With *maxBytes* it is ``"a"``.
        maxBytes: Size in bytes that the file does not exceed, unless one record alone does. Default 0: it never rolls
            over.
        backupCount: How many rotated files to keep. Default 0: it never rolls over.
        encoding: See `FileHandler`.
        delay: See `FileHandler`.
        errors: See `FileHandler`.

    Raises:
        OSError: If the file cannot be opened.

    Source: https://docs.python.org/3/library/logging.handlers.html#rotatingfilehandler
    """

    stream: Any

    def __init__(
        self,
        filename: str | os.PathLike[str],
        mode: str = "a",
        maxBytes: int = 0,
        backupCount: int = 0,
        encoding: str | None = None,
        delay: bool = False,
        errors: str | None = None,
    ) -> None:
        if maxBytes > 0:
            mode = "a"
        if "b" not in mode:
            encoding = text_encoding(encoding)
        self.maxBytes = maxBytes
        self.backupCount = backupCount
        BaseRotatingHandler.__init__(self, filename, mode, encoding, delay, errors)

    def make_sink(self) -> Any:
        """Return the sink."""
        return self._made(HandlersRotatingFileSink)

    def lend(self, sink: Any) -> None:
        """Tell *sink* the bounds, how to name and move files, and how lines end."""
        super().lend(sink)
        sink.max_bytes, sink.backup_count = self.maxBytes, self.backupCount

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        """Return True if *record* would make the file larger than `maxBytes`, and there may be backups."""
        if self.stream is None:
            self.stream = self._open()
        with self.at_work() as sink:
            due: bool = sink.is_due_for(record)
        return due

    def doRollover(self) -> None:
        """Roll over now: shift the numbered files, move the file to ``.1`` and open a new one.

        Raises:
            OSError: If the file system refuses; the file goes on as it is.
            Exception: Whatever `namer` and `rotator` raise.
        """
        with self.at_work() as sink:
            sink.roll_over()

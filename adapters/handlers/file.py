"""Drop-in twins of the handlers for files: `FileHandler` and `WatchedFileHandler`."""

# WriteLock reads `holding` from the frame.
# pyright: reportUnusedVariable=false

from __future__ import annotations

import codecs
import io
import logging
import logging.handlers
import os
import time
from os import write as _os_write
from typing import TYPE_CHECKING, Any

from outfall.adapters.handlers.filestream import FileStream
from outfall.adapters.handlers.stream import HandlersStreamSink, StreamHandler, ended
from outfall.adapters.handlers.twin import NO_LOCK, Lent, Twin, is_own
from outfall.sinks.core.bytesink import _split_byte_order_mark
from outfall.sinks.core.lock import HAND_TAKEN, TURN
from outfall.sinks.core.reporting import SinkFailure, report
from outfall.sinks.files.file import _NOT_OPEN, FileSink, _checked_mode
from outfall.sinks.files.watched import WatchedFileSink

if TYPE_CHECKING:
    _FileSink = FileSink
else:
    _FileSink = object

# Not known to typeshed.
text_encoding: Any = vars(io)["text_encoding"]


class HandlersFile(Lent, _FileSink):
    """Mixed into the class of a sink behind a `FileHandler`.

    The file is open for as long as the `FileStream` that stands for it is, which the handler has as its ``stream``.
    """

    base_filename: str
    mode: str

    #: Of the stream that stands for the open file; None while there is none.
    token: object | None = None
    #: What the handler's file was called, and how it was opened, when that was last done.
    _last: tuple[str, str] | None = None

    # -- for the handler

    def open_anew(self) -> FileStream:
        """Open the path that the owner has now, in its mode, and return the stream that stands for it.

        A file that was opened before is appended to, unless the owner has got another mode since.
        """
        owner = self.owner
        path, mode = os.fsdecode(owner.baseFilename), _checked_mode(owner.mode)
        encoding = _real_encoding(owner.encoding)
        errors = "backslashreplace" if owner.errors is None else owner.errors
        with self._lock:
            if self._last not in (None, (path, mode)):
                self._opened_before = False
            self.base_filename, self.mode = path, mode
            self._encoding, self._errors = encoding, errors
            self._bare_encoding, self._byte_order_mark = _split_byte_order_mark(encoding, errors)
            FileSink._exchange(self)
            self._last = (path, mode)
            if self._regular:
                os.lseek(self.descriptor(), 0, os.SEEK_END)  # for the stream's tell()
            token = self.token = object()
        return FileStream(self, token, encoding=self._bare_encoding, errors=errors, mode=mode)

    def is_current(self, stream: Any) -> bool:
        """Return True if *stream* stands for the file that is open."""
        return stream.__class__ is FileStream and stream.token is self.token

    def encoded(self, text: str | bytes) -> bytes:
        """Return *text* as it is written."""
        return text.encode(self._bare_encoding, self._errors) if isinstance(text, str) else bytes(text)

    def put_record(self, record: logging.LogRecord) -> None:
        """Write what the owner makes of *record*, or raise.

        Raises:
            Exception: What befell it, or the file: then the record may have been written.
        """
        data = self.data_of(record)
        if not self.write_directly(data):
            self.put_text(data)

    def data_of(self, record: logging.LogRecord) -> bytes:
        """Return what the owner makes of *record*, as it is written."""
        owner = self.owner
        text, terminator = owner.format(record), owner.terminator
        if text.__class__ is not str or terminator.__class__ is not str:
            return self.encoded(ended(text, terminator))
        data: bytes = (text + terminator).encode(self._bare_encoding, self._errors)
        return data

    def write_directly(self, data: bytes) -> bool:
        """Write *data* past the pipeline; return False where only that will do, nothing having been written then."""
        # As in FileSink.handle: until the write nothing has happened, and a failed write has been undone.
        if self._may_block:
            return False
        try:
            turn = self._turn
            del turn[0]
            holding = True
            try:
                written = _os_write(self._fd, data)
                if written != len(data):
                    self._finish(data, written, (len(data),))
                self._ledger.delivered += 1
                return True
            finally:
                try:
                    holding = False
                    turn += TURN
                finally:
                    pass
        except Exception:
            return False
        except BaseException:
            self._count_dropped("interrupted")
            raise

    # -- for the stream

    def descriptor(self) -> int:
        """Return the descriptor of the open file."""
        return self._fd if self._fd != _NOT_OPEN else self._parked_fd

    def append(self, data: bytes) -> int:
        """Write *data*, which is no record, to the end of the file; return its length."""
        with self._lock:
            FileSink._write_whole(self, data, (len(data),))
        return len(data)

    def let_go(self, token: object) -> None:
        """Close the file if the stream of *token* stands for it."""
        with self._lock:
            if token is not self.token:
                return
            self.token = None
            descriptor = self.descriptor()
            FileSink._install(self, _NOT_OPEN, b"")
            if descriptor != _NOT_OPEN:
                os.close(descriptor)

    # -- what the sink does, by way of the handler

    def handle_error(self, failure: SinkFailure) -> None:
        """Raise *failure* to the handler that uses the sink; at exit, where none does, tell it by `report`."""
        if self.owner is None:
            report(failure)
        else:
            super().handle_error(failure)

    def _exchange(self) -> None:
        if self.owner is None:
            super()._exchange()
        else:
            self.owner.renew_stream()


HAND_TAKEN.add(HandlersFile.write_directly.__code__)


class _HandlersFileSink(HandlersFile, FileSink):
    pass


def _real_encoding(encoding: str | None) -> str:
    """Return the encoding that `open` would choose for *encoding*.

    Raises:
        LookupError: If there is none of that name.
    """
    if encoding is None or encoding == "locale":
        return io.TextIOWrapper(io.BytesIO(), encoding="locale").encoding
    codecs.lookup(encoding)
    return encoding


def never_rendered(logger: Any, name: str, event: Any) -> str:
    """Stand in as the renderer of a sink that is given text."""
    raise NotImplementedError


class FileHandler(StreamHandler, logging.FileHandler):
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

    Where it differs from its namesake on purpose: :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#filehandler
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        mode: str = "a",
        encoding: str | None = None,
        delay: bool = False,
        errors: str | None = None,
    ) -> None:
        self.baseFilename: str = os.path.abspath(os.fsdecode(filename))
        self.mode = mode
        self.encoding: str | None = encoding if "b" in mode else text_encoding(encoding)
        self.errors = errors
        self.delay = delay
        self._builtin_open = open
        Twin.__init__(self)
        self.stream: Any = None
        # Now, so that a child that is forked before the first record knows that it is not the first.
        self._sink = self.make_sink()
        if not delay:
            self.stream = self._open()

    def make_sink(self) -> Any:
        """Return the sink."""
        return self._made(_HandlersFileSink)

    def _made(self, kind: Any) -> Any:
        return kind(self.baseFilename, delay=True, renderer=never_rendered, on_error="raise", name=type(self).__name__)

    @property
    def _stream_sink(self) -> HandlersStreamSink:
        made = self.__dict__.get("_streams")
        if made is None:
            made = self._streams = StreamHandler.make_sink(self)
        return made

    def lend(self, sink: Any) -> None:
        """Tell *sink* how lines end, for a half one that stands in the file."""
        terminator = self.terminator
        if sink.terminator is not terminator and isinstance(terminator, str):
            sink.terminator = terminator

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record*, to the file unless there is another stream; a failure goes to `handleError`."""
        try:
            # What at_work() does, without its calls.
            lock = self.lock or NO_LOCK
            lock.acquire()
            try:
                stream = self.stream
                if stream is None:
                    stream = self.stream = self._open()
                try:
                    sink = self._sink
                except AttributeError:
                    sink = self.sink
                if stream.__class__ is FileStream and stream.token is sink.token:
                    before, sink.owner = sink.owner, self
                    try:
                        sink.put_record(record)
                    finally:
                        sink.owner = before
                    if type(self).flush is not FileHandler.flush or "flush" in self.__dict__:
                        self.flush()
                else:
                    self._emit_elsewhere(record)
            finally:
                lock.release()
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)

    def _emit_elsewhere(self, record: logging.LogRecord) -> None:
        """Write *record* to a stream that is not the sink's file."""
        self._write_to_stream(ended(self.format(record), self.terminator))

    def flush(self) -> None:
        """Flush the stream, if it can be. There is nothing to flush in the handler's own file."""
        stream = self.stream
        if isinstance(stream, FileStream):
            stream.flush()
        else:
            StreamHandler.flush(self)

    def close(self) -> None:
        """Flush and close the file; a record that comes later opens it again, to append.

        Raises:
            OSError: If the file system says so.
        """
        self.acquire()
        try:
            if self.stream:
                try:
                    self.flush()
                finally:
                    stream, self.stream = self.stream, None
                    if hasattr(stream, "close"):
                        stream.close()
        finally:
            try:
                Twin.close(self)
            finally:
                self.release()

    def _open(self) -> Any:
        """Open the file and return the stream; a subclass may return any other."""
        with self.at_work() as sink:
            return sink.open_anew()

    def renew_stream(self) -> None:
        """Have `_open` open the file that stands at the path now; for the sink.

        Raises:
            OSError: If it cannot be opened; the stream stays what it is.
        """
        old, self.stream = self.stream, self._open()
        if old is not None and old is not self.stream:
            old.close()


class HandlersWatchedFile(HandlersFile, WatchedFileSink):
    """The sink behind a `WatchedFileHandler`."""

    def put_record(self, record: logging.LogRecord) -> None:
        """Look after the file and write what the owner makes of *record*, or raise; see `HandlersFile`."""
        owner = self.owner
        self._device, self._inode = owner.dev, owner.ino
        try:
            data = self.data_of(record)
        except Exception:
            # Also for a record that is none, as the namesake does.
            self._attend()
            raise
        if is_own(owner.reopenIfNeeded, WatchedFileHandler.reopenIfNeeded) and self.append_undisturbed(data):
            return
        self._attend()
        # Once is enough: what becomes of the file meanwhile, the next look finds out.
        attending, self._attending = self._attending, True
        try:
            self.put_text(data)
        finally:
            self._attending = attending
        raised: Exception | None = None
        while self._notices:
            error, _ = self._notices.popleft()
            error.__context__ = raised
            raised = error
        if raised is not None:
            raise raised

    def look_last(self) -> None:
        """Write again what a truncation has cost, and `report` what cannot be: there is no record to blame."""
        with self._lock:
            self._flush()
        while self._notices:
            error, events = self._notices.popleft()
            report(SinkFailure(self.name, error, events, time.time()))

    def reopen_if_needed(self) -> None:
        """Have the owner look whether the path still leads to the open file."""
        if self.owner is None:
            super().reopen_if_needed()
        else:
            self.owner.reopenIfNeeded()

    def look(self) -> None:
        """Do what the owner does unless that is overridden."""
        super().reopen_if_needed()

    def watch(self, device: int, inode: int) -> None:
        """Take the open file for that of *device* and *inode*, whatever it is."""
        self._device, self._inode = device, inode

    @property
    def watched(self) -> tuple[int, int]:
        """Device and inode of the open file."""
        return self._device, self._inode


class WatchedFileHandler(FileHandler, logging.handlers.WatchedFileHandler):
    """A drop-in twin of `logging.handlers.WatchedFileHandler`, for a file that ``logrotate`` moves, say.

    Args:
        filename: See `FileHandler`.
        mode: See `FileHandler`.
        encoding: See `FileHandler`.
        delay: See `FileHandler`.
        errors: See `FileHandler`.

    Attributes:
        dev: Device of the open file, or -1.
        ino: Inode of the open file, or -1.

    Raises:
        OSError: If the file cannot be opened.

    What it does when the file is moved, deleted or truncated: see `outfall.WatchedFileSink`.

    Source: https://docs.python.org/3/library/logging.handlers.html#watchedfilehandler
    """

    dev: int
    ino: int
    stream: Any

    def __init__(
        self,
        filename: str | os.PathLike[str],
        mode: str = "a",
        encoding: str | None = None,
        delay: bool = False,
        errors: str | None = None,
    ) -> None:
        self.dev, self.ino = -1, -1
        FileHandler.__init__(self, filename, mode, encoding, delay, errors)
        # For a subclass's _open.
        self._statstream()

    def make_sink(self) -> Any:
        """Return the sink."""
        return self._made(HandlersWatchedFile)

    def lend(self, sink: Any) -> None:
        """Tell *sink* which file the handler takes for its own, and how lines end."""
        FileHandler.lend(self, sink)
        sink.watch(self.dev, self.ino)

    def close(self) -> None:
        """Look once more whether the file was truncated, then flush and close it; see `FileHandler`."""
        with self.at_work() as sink:
            if sink.is_current(self.stream):
                sink.look_last()
        FileHandler.close(self)

    def _open(self) -> Any:
        """Open the file and return the stream; a subclass may return any other."""
        with self.at_work() as sink:
            stream = sink.open_anew()
            self.dev, self.ino = sink.watched
            return stream

    def _statstream(self) -> None:
        """Set `dev` and `ino` to those of the open file."""
        if self.stream is None:
            return
        status = os.fstat(self.stream.fileno())
        self.dev, self.ino = status.st_dev, status.st_ino

    def reopenIfNeeded(self) -> None:
        """Look whether the path still leads to the open file, and open it anew if not; each record does so before.

        Raises:
            Exception: What befell the file.
        """
        stream = self.stream
        if stream is None:
            return
        with self.at_work() as sink:
            if sink.is_current(stream):
                sink.look()
            elif self._is_moved():
                stream.flush()
                stream.close()
                self.stream = None
                self.stream = self._open()
                self._statstream()

    def _is_moved(self) -> bool:
        try:
            status = os.stat(self.baseFilename)
        except FileNotFoundError:
            return True
        return (status.st_dev, status.st_ino) != (self.dev, self.ino)

    def _emit_elsewhere(self, record: logging.LogRecord) -> None:
        self.reopenIfNeeded()
        super()._emit_elsewhere(record)

"""The drop-in twin of `WatchedFileHandler`, for a file that other programs move or truncate."""

from __future__ import annotations

import logging
import logging.handlers
import time
from typing import TYPE_CHECKING, Any

from outfall.adapters.handlers import file as files
from outfall.adapters.handlers.base import Transient, account_of, count_failure, is_not_overridden
from outfall.adapters.handlers.file import FileHandler
from outfall.sinks.core.reporting import SinkFailure, report
from outfall.sinks.files.output import NOT_OPEN
from outfall.sinks.files.watched import WatchedFileSink

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from outfall.adapters.handlers.openfile import OpenFile

_WatchedFileHandler = logging.handlers.WatchedFileHandler
_flush = logging.StreamHandler.flush


class WatchedFileHandler(FileHandler, _WatchedFileHandler):
    """A drop-in twin of `logging.handlers.WatchedFileHandler`: append to a file that others rotate, such as logrotate.

    Args:
        filename: Path of the file. The constructor makes a relative path absolute.
        mode: ``"a"`` to append (default), ``"w"`` to truncate, ``"x"`` to fail if the file exists.
        encoding: The encoding of text. Default None: the locale's.
        delay: Open the file at the first record instead of now. Default False.
        errors: How to treat characters that *encoding* does not have, as in ``open``. Default None:
            ``"backslashreplace"``.

    Attributes:
        dev: Device of the open file, or -1.
        ino: Inode of the open file, or -1.

    Raises:
        OSError: If the file cannot be opened.

    `outfall.WatchedFileSink` documents what happens when the file is moved, deleted or truncated.

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
        FileHandler.__init__(self, filename, mode, encoding, delay, errors)
        self.dev, self.ino = -1, -1
        self._statstream()

    def _outfall_make_sink(self) -> Any:
        return _Watch(self.baseFilename, delay=True, renderer=_never, on_error="raise", name=type(self).__name__)

    def reopenIfNeeded(self) -> None:
        """Reopen the file if another one, or none, is at its path; `emit` calls this before each record.

        Raises:
            Exception: If the file cannot be opened, or records were lost by a truncation.
        """
        watch = _watch_of(self)
        if watch is None:
            _WatchedFileHandler.reopenIfNeeded(self)
        else:
            watch.use(self, watch.look)

    def emit(self, record: logging.LogRecord) -> None:
        """Reopen the file if need be and write *record*; call `handleError` if either fails."""
        if self.stream is None and not is_not_overridden(self.emit, WatchedFileHandler.emit):
            # Outside the try: a subclass's emit may catch the exception.
            self.stream = files.open_stream(self)
            self._statstream()
        try:
            watch: Any = getattr(self, "_outfall_account", None)
            file = getattr(self, "_outfall_file", None)
            if watch.__class__ is _Watch and watch.file is file and file is not None and file.stream is self.stream:
                watch.put(self, record)
                return
            if self.stream is None:
                self.stream = files.open_stream(self)
                self._statstream()
            watch = _watch_of(self)
            if watch is None:
                self.reopenIfNeeded()
                files.append(self, record)
            else:
                watch.put(self, record)
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Restore records lost by a truncation, then flush and close the file."""
        watch = _watch_of(self)
        if watch is not None:
            watch.use(self, watch.look_last)
        FileHandler.close(self)


def _watch_of(handler: Any) -> Any:
    """Return the `_Watch` of the file of *handler*; None if there is no file, or it is the application's own."""
    file = files.current_file(handler)
    if file is None:
        return None
    watch = account_of(handler)
    if not isinstance(watch, _Watch):
        return None
    if watch.file is not file:
        watch.bind(file)
    return watch


class _Watch(Transient, WatchedFileSink):  # type: ignore[misc]
    """A sink that watches the open file of a handler: it notices when other programs move or truncate the file."""

    #: The open file; the handler closes it.
    file: OpenFile | None = None
    #: The handler, during a call of `use` only: a lasting reference would make a cycle.
    owner: Any = None

    def bind(self, file: OpenFile) -> None:
        """Watch *file* from now on."""
        self.file, self.base_filename = file, file.path
        self._regular, self._opened_before = file.regular, True
        self._install(file.descriptor, b"")

    def use(self, handler: Any, function: Any, *arguments: Any) -> Any:
        """Call *function* with *handler* as the owner."""
        before, self.owner = self.owner, handler
        try:
            self._device, self._inode = handler.dev, handler.ino
            return function(*arguments)
        finally:
            self.owner = before

    def put(self, handler: Any, record: logging.LogRecord) -> None:
        """Reopen the file if need be and write *record*; raise if either fails, even if the record was written."""
        # Inlined `is_not_overridden`: this runs for each record.
        own = getattr(handler.reopenIfNeeded, "__func__", None) is WatchedFileHandler.reopenIfNeeded
        file: Any = self.file
        try:
            if not own:
                handler.reopenIfNeeded()
                file = files.current_file(handler)
                if file is not self.file:
                    files.append(handler, record)
                    return
            try:
                data = file.bytes_of(handler.format(record), handler.terminator)
            except Exception:
                # The original reopens before it formats, so also for a record that cannot be formatted.
                if own:
                    handler.reopenIfNeeded()
                raise
            self._device, self._inode = handler.dev, handler.ino
            file.stream.flush()
            unusual = file.byte_order_mark or file.half_line >= 0 or file.flags >= 0
            if unusual or not self.append_undisturbed(data):
                self.use(handler, self._put_watching, data, own)
                self._ledger.delivered += 1
            flush = handler.flush
            if getattr(flush, "__func__", None) is not _flush:
                flush()
        except BaseException as error:
            count_failure(handler, error)
            raise
        if self._notices:
            self._raise_notices()

    def _put_watching(self, data: bytes, look: bool) -> None:
        handler: Any = self.owner
        with self._lock:
            # Notices of this look are raised only after *data* is written. Later changes are left to the next look.
            attending, self._attending = self._attending, True
            try:
                if look:
                    handler.reopenIfNeeded()
                file = files.current_file(handler)
                if file is not None:
                    data = file.ready(data)
                    (self if file is self.file else file).write(data)
                else:
                    handler.stream.write(data if "b" in handler.mode else data.decode(handler.stream.encoding))
                    handler.stream.flush()
            finally:
                self._attending = attending

    def look(self) -> None:
        """Reopen the file if another one is at its path; restore records lost by a truncation."""
        with self._lock:
            self._look()
        if not self._attending:
            self._raise_notices()

    def look_last(self) -> None:
        """Restore records lost by a truncation; `report` failures, since no record could be passed to `handleError`."""
        with self._lock:
            self._flush()
        while self._notices:
            error, events = self._notices.popleft()
            report(SinkFailure(self.name, error, events, time.time()))

    def _raise_notices(self) -> None:
        raised: Exception | None = None
        while self._notices:
            error, _ = self._notices.popleft()
            error.__context__ = raised
            raised = error
        if raised is not None:
            raise raised

    # -- methods of the sink that go through the handler

    def handle_error(self, failure: SinkFailure) -> None:
        """Report *failure*; this happens only at exit, outside any call of the handler."""
        report(failure)

    def _write_or_reopen(self, data: bytes, ends: Sequence[int]) -> None:
        file: Any = self.file
        file.write(data)

    def _exchange(self) -> None:
        handler = self.owner
        if handler is None:
            return
        old, handler.stream = handler.stream, files.open_stream(handler)
        if old is not None and old is not handler.stream:
            old.close()
        handler._statstream()
        file = files.current_file(handler)
        if file is not None:
            self.bind(file)

    def _release(self) -> None:
        self._fd = self._parked_fd = NOT_OPEN
        super()._release()


def _never(logger: Any, name: str, event: Any) -> str:
    """Stand in for a renderer: the sink gets text that is rendered already."""
    raise NotImplementedError

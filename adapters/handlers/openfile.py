"""The file below a handler's ``stream``: `OpenFile`, which appends a record whole or not at all."""

from __future__ import annotations

import codecs
import contextlib
import errno
import importlib
import os
import select
import stat
from os import write as _os_write
from typing import Any

from outfall.adapters.handlers.base import Transient
from outfall.adapters.handlers.stream import with_terminator
from outfall.sinks.files.opening import ends_with, ends_within_line

#: None on Windows.
fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)


class OpenFile(Transient):
    """The descriptor below a stream that ``open`` returned; records bypass the stream's buffer.

    Args:
        stream: The stream.
        path: The path of the opened file.
        binary: Whether it is a stream of bytes; text is then encoded as UTF-8.
        terminator: The text that ends each record.
    """

    binary: bool
    byte_order_mark: bytes
    flags: int
    half_line: int
    path: str
    regular: bool
    stream: Any
    terminator: str

    __slots__ = (
        "binary",
        "byte_order_mark",
        "descriptor",
        "flags",
        "half_line",
        "path",
        "regular",
        "stream",
        "terminator",
    )

    def __init__(self, stream: Any, path: str, *, binary: bool, terminator: Any) -> None:
        self.stream, self.path = stream, path
        self.terminator = terminator if isinstance(terminator, str) else ""
        self.binary = binary
        encoding, _ = self.codec()
        self.descriptor: int = stream.fileno()
        self.regular = stat.S_ISREG(os.fstat(self.descriptor).st_mode)
        #: The byte order mark: the codec puts it before each record, but it belongs at the start of the file alone.
        self.byte_order_mark = b"" if binary else "".encode(encoding)
        #: The size of the file if it ends in half a line, else -1.
        self.half_line = -1
        #: The flags of a descriptor opened without O_APPEND, else -1. Writing a record sets O_APPEND for that one
        #: write, since other processes may append to the file or truncate it; applications that write to the stream
        #: themselves may still seek.
        self.flags = -1
        if self.regular:
            if fcntl is not None:
                flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
                self.flags = -1 if flags & os.O_APPEND else flags
            if self.terminator:
                self._look_for_half_line()

    def codec(self) -> tuple[str, str]:
        """Return the encoding of text and its error handler; both may change with the stream's."""
        return ("utf-8", "backslashreplace") if self.binary else (self.stream.encoding, self.stream.errors)

    def append(self, text: Any, terminator: Any) -> None:
        """Append the record *text* and *terminator*, whole or not at all; flush the stream's buffer before."""
        stream = self.stream
        if text.__class__ is str and terminator.__class__ is str and not self.binary:
            data: bytes = (text + terminator).encode(stream.encoding, stream.errors)
        else:
            data = self.bytes_of(text, terminator)
        # The code of `ready` and `write`, inlined: this runs for each record.
        stream.flush()
        if self.byte_order_mark or self.half_line >= 0:
            data = self._begun(data)
        if self.flags >= 0:
            self.write(data)
            return
        try:
            written = _os_write(self.descriptor, data)
        except OSError:
            self.write(data)
        else:
            if written != len(data):
                self._finish(data, written)

    def bytes_of(self, text: Any, terminator: Any) -> bytes:
        """Return the bytes of the record *text* and *terminator*, each text or bytes."""
        if text.__class__ is str and terminator.__class__ is str and not self.binary:
            data: bytes = (text + terminator).encode(self.stream.encoding, self.stream.errors)
            return data
        made = with_terminator(text, terminator)
        return made.encode(*self.codec()) if isinstance(made, str) else bytes(made)

    def ready(self, data: bytes) -> bytes:
        """Flush the stream; return *data* after a terminator for half a line, and without a second byte order mark.

        Raises:
            ValueError: If the stream is closed.
        """
        self.stream.flush()
        return self._begun(data) if self.byte_order_mark or self.half_line >= 0 else data

    def write(self, data: bytes) -> None:
        """Write *data*, as `ready` returned it, to the end of the file, whole or not at all."""
        if self.flags < 0:
            self._write(data)
            return
        self._set_flags(self.flags | os.O_APPEND)
        try:
            self._write(data)
        finally:
            if self.flags >= 0:
                self._set_flags(self.flags)

    def _set_flags(self, flags: int) -> None:
        with contextlib.suppress(OSError):  # the application closed the descriptor: the write handles that
            fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags)

    def _write(self, data: bytes) -> None:
        try:
            written = _os_write(self.descriptor, data)
        except OSError as error:
            if error.errno in (errno.EBADF, errno.ESTALE):
                self._open_again()
            elif not isinstance(error, BlockingIOError) or self.regular:
                raise
            written = 0
        if written != len(data):
            self._finish(data, written)

    def size(self) -> int:
        """Return the size of the file."""
        return os.fstat(self.descriptor).st_size

    def is_replaced(self) -> bool:
        """Return True if another file is at the path now."""
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        except OSError:
            return False

    def _begun(self, data: bytes) -> bytes:
        mark, size = self.byte_order_mark, self.size() if self.regular else 0
        half, self.half_line = self.half_line, -1
        if mark and size:
            data = data[len(mark) :]
        elif mark and self.regular:
            # Not by the stream, which would write a second one later.
            os.write(self.descriptor, mark)
            self.stream.seek(0, os.SEEK_END)
            data = data[len(mark) :]
        if 0 <= half == size:
            data = (self.terminator or "\n").encode(self.codec()[0])[len(mark) :] + data
        return data

    def _look_for_half_line(self) -> None:
        cut = len(self.byte_order_mark)
        with contextlib.suppress(OSError, UnicodeError):
            encoding, _ = self.codec()
            if ends_within_line(self.path, [end.encode(encoding)[cut:] for end in (self.terminator, "\n")]):
                self.half_line = self.size()

    def _finish(self, data: bytes, written: int) -> None:
        """Write the rest of *data* after a short write; if that fails, remove the written part from the file."""
        view = memoryview(data)
        try:
            while written < len(data):
                try:
                    written += _os_write(self.descriptor, view[written:])
                except BlockingIOError:
                    if self.regular:
                        raise
                    poll = select.poll()
                    poll.register(self.descriptor, select.POLLOUT)
                    poll.poll()
        except BaseException:
            if written and self.regular:
                self._take_back(data[:written])
            raise

    def _take_back(self, part: bytes) -> None:
        """Remove *part*, half a record, from the end of the file; else let the next record end its line first."""
        with contextlib.suppress(OSError):
            if ends_with(self.path, self.descriptor, part):
                os.ftruncate(self.descriptor, self.size() - len(part))
                return
        with contextlib.suppress(OSError):
            self.half_line = self.size()

    def _open_again(self) -> None:
        """Open the file again under the number of the descriptor, which the application has closed."""
        fresh = os.open(self.path, _APPEND, 0o666)
        self.flags = -1
        if fresh != self.descriptor:
            try:
                os.dup2(fresh, self.descriptor, inheritable=False)
            finally:
                os.close(fresh)


def open_file(handler: Any, mode: str) -> Any:
    """Open the file of *handler*, a `logging.FileHandler`, by ``open``, and return the stream.

    There are two differences from the original. Without *errors*, characters that the encoding does not have are
    written as escapes. Opening a pipe that has no reader fails instead of blocking.
    """
    path, binary = handler.baseFilename, "b" in mode
    options: dict[str, Any] = {}
    if not binary:
        encoding, errors = handler.encoding, handler.errors
        if encoding not in (None, "locale"):
            # An unknown encoding raises before `open` creates or truncates the file.
            codecs.lookup(encoding)
        options.update(encoding=encoding, errors="backslashreplace" if errors is None else errors)
    if _is_pipe(path):
        options["opener"] = _open_pipe
    # At the end of the interpreter the name `open` may be gone (CPython bpo-26789).
    return (handler._builtin_open if hasattr(handler, "_builtin_open") else open)(path, mode, **options)


def _is_pipe(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _open_pipe(path: str, flags: int) -> int:
    # Only opening is non-blocking: otherwise it waits for a reader.
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    os.set_blocking(descriptor, True)
    return descriptor

"""The file that a handler has open, below its ``stream``: `OpenFile`, which appends whole records or nothing."""

from __future__ import annotations

import codecs
import contextlib
import errno
import importlib
import os
import select
import stat
import time
from os import write as _os_write
from typing import Any

from outfall.adapters.handlers.base import Kept
from outfall.adapters.handlers.stream import ended

#: Not on Windows.
fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None

_READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)

#: How often half a line at the end of a file is looked at: another process may be in the midst of writing its line.
_LOOKS = 4


class OpenFile(Kept):
    """The descriptor below a stream that ``open`` has made; records go past the stream's buffer.

    Args:
        stream: The stream.
        path: What was opened.
        binary: Whether it is a stream of bytes; text is then encoded as UTF-8.
        terminator: What ends the handler's records.
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
        #: What the codec would put before each record, and belongs to the beginning of the file alone.
        self.byte_order_mark = b"" if binary else "".encode(encoding)
        #: How long the file is whose end is half a line, or -1.
        self.half_line = -1
        #: The flags of a descriptor that does not append by itself, or -1. Only records are appended whatever the mode,
        #: since others may append to the file or truncate it; who writes by hand may seek.
        self.flags = -1
        if self.regular:
            if fcntl is not None:
                flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
                self.flags = -1 if flags & os.O_APPEND else flags
            if self.terminator:
                self._look_for_half_line()

    def codec(self) -> tuple[str, str]:
        """Return how text is encoded, and what is done with characters that cannot be; the stream may change both."""
        return ("utf-8", "backslashreplace") if self.binary else (self.stream.encoding, self.stream.errors)

    def append(self, text: Any, terminator: Any) -> None:
        """Append a record, *text* and *terminator*, whole or not at all, after what the stream still buffers."""
        stream = self.stream
        if text.__class__ is str and terminator.__class__ is str and not self.binary:
            data: bytes = (text + terminator).encode(stream.encoding, stream.errors)
        else:
            data = self.bytes_of(text, terminator)
        # What is written here, and not by a call of `ready` and `write`, is what each record needs.
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
        """Return a record, *text* and *terminator*, each text or bytes, as it is written."""
        if text.__class__ is str and terminator.__class__ is str and not self.binary:
            data: bytes = (text + terminator).encode(self.stream.encoding, self.stream.errors)
            return data
        made = ended(text, terminator)
        return made.encode(*self.codec()) if isinstance(made, str) else bytes(made)

    def ready(self, data: bytes) -> bytes:
        """Flush the stream; return *data* with what must come before it in the file, and without what must not.

        Raises:
            ValueError: If the stream is closed.
        """
        self.stream.flush()
        return self._begun(data) if self.byte_order_mark or self.half_line >= 0 else data

    def write(self, data: bytes) -> None:
        """Write *data*, a record that is `ready`, to the end of the file, whole or not at all."""
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
        with contextlib.suppress(OSError):  # closed by somebody, which the write finds out
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
            # The stream would write another.
            os.write(self.descriptor, mark)
            self.stream.seek(0, os.SEEK_END)
            data = data[len(mark) :]
        if 0 <= half == size:
            data = (self.terminator or "\n").encode(self.codec()[0])[len(mark) :] + data
        return data

    def _look_for_half_line(self) -> None:
        cut = len(self.byte_order_mark)
        with contextlib.suppress(OSError, UnicodeError):  # not ours to read: then nothing can be known
            encoding, _ = self.codec()
            ends = tuple({end.encode(encoding)[cut:] for end in (self.terminator, "\n")})
            reader = os.open(self.path, _READ)
            try:
                size = 0
                for attempt in range(_LOOKS):
                    size = os.fstat(reader).st_size
                    if not size or _tail(reader, size, max(map(len, ends))).endswith(ends):
                        return
                    time.sleep(0.001 * attempt)
                self.half_line = size
            finally:
                os.close(reader)

    def _finish(self, data: bytes, written: int) -> None:
        """Write the rest of *data* after a short write, or take back the part of it that stands in the file."""
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
        """Remove *part*, half a record, from the end of the file; where that cannot be done, have it ended."""
        with contextlib.suppress(OSError):
            reader = os.open(self.path, _READ)
            try:
                size = self.size()
                # Others may append to it, or move it: ours is only what can be read at its end.
                same = os.path.samestat(os.fstat(reader), os.fstat(self.descriptor))
                if same and _tail(reader, size, len(part) + 1)[-len(part) :] == part and self.size() == size:
                    os.ftruncate(self.descriptor, size - len(part))
                    return
            finally:
                os.close(reader)
        with contextlib.suppress(OSError):
            self.half_line = self.size()

    def _open_again(self) -> None:
        """Put the file at the path in the place of a descriptor that somebody closed, under the same number."""
        fresh = os.open(self.path, _APPEND, 0o666)
        self.flags = -1
        if fresh != self.descriptor:
            try:
                os.dup2(fresh, self.descriptor, inheritable=False)
            finally:
                os.close(fresh)


def open_file(handler: Any, mode: str) -> Any:
    """Open the file of *handler*, a `logging.FileHandler`, as it would, and return the stream.

    The stream is one as ``open`` makes it; unlike the original, characters that the encoding does not have are no
    error where *handler* says nothing of errors, and a pipe without a reader is one.
    """
    path, binary = handler.baseFilename, "b" in mode
    options: dict[str, Any] = {}
    if not binary:
        encoding, errors = handler.encoding, handler.errors
        if encoding not in (None, "locale"):
            # Before there is a file, or one is truncated.
            codecs.lookup(encoding)
        options.update(encoding=encoding, errors="backslashreplace" if errors is None else errors)
    if _is_pipe(path):
        options["opener"] = _open_pipe
    return getattr(handler, "_builtin_open", open)(path, mode, **options)


def _is_pipe(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _open_pipe(path: str, flags: int) -> int:
    # Not blocking for the opening alone: it would wait for a reader.
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    os.set_blocking(descriptor, True)
    return descriptor


def _tail(descriptor: int, size: int, length: int) -> bytes:
    """Return the last *length* bytes of a file of *size*."""
    os.lseek(descriptor, max(0, size - length), os.SEEK_SET)
    return os.read(descriptor, length)

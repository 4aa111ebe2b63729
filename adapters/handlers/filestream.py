"""The stream of a handler whose file is a sink's: `FileStream`."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from outfall.adapters.handlers.file import HandlersFile


class FileStream(io.TextIOWrapper):
    """What a file handler has as its ``stream``: a text stream, like `open` makes, on the file that its sink has open.

    What is written to it goes to the end of the file at once, between the records. Closing it closes the file. It is
    for writing alone, whatever the mode.

    Args:
        sink: The sink.
        token: What tells this opening of the file from others.
        encoding: How text is encoded.
        errors: What is done with characters that the encoding does not have.
        mode: What `open` would have been given.
    """

    def __init__(self, sink: HandlersFile, token: object, *, encoding: str, errors: str, mode: str) -> None:
        self.token = token
        self.mode: Any = mode
        # newline: nothing is translated, as sinks translate nothing.
        super().__init__(_OpenFile(sink, token), encoding, errors, newline="", write_through=True)


class _OpenFile(io.RawIOBase):
    """The bytes below a `FileStream`."""

    def __init__(self, sink: HandlersFile, token: object) -> None:
        self._sink = sink
        self._token = token
        self.name = sink.base_filename

    @property
    def closed(self) -> bool:
        """True when it is closed, or another opening has taken its place."""
        return super().closed or self._sink.token is not self._token

    def fileno(self) -> int:
        self._check()
        return self._sink.descriptor()

    def isatty(self) -> bool:
        return os.isatty(self.fileno())

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        try:
            os.lseek(self.fileno(), 0, os.SEEK_CUR)
        except OSError:
            return False
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return os.lseek(self.fileno(), offset, whence)

    def truncate(self, size: int | None = None, /) -> int:
        length = self.tell() if size is None else size
        os.ftruncate(self.fileno(), length)
        return length

    def write(self, data: ReadableBuffer, /) -> int:
        self._check()
        return self._sink.append(bytes(data))

    def close(self) -> None:
        self._sink.let_go(self._token)
        super().close()

    def _check(self) -> None:
        if self.closed:
            msg = "I/O operation on closed file."
            raise ValueError(msg)

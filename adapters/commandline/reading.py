"""Reads lines of event files: all, the last ones, or new ones of a file that rotates or is truncated meanwhile."""

from __future__ import annotations

import contextlib
import glob
import gzip
import io
import os
import sys
import zlib
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from outfall.sinks.event.event import timestamp_of
from outfall.sinks.event.json import loads
from outfall.sinks.files.compression import ENDINGS, UNFINISHED, open_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BLOCK = 1 << 16


@dataclass(frozen=True)
class Line:
    """A line of a file.

    Args:
        data: Its bytes, without the line break.
        event: The event; None if the line is not a JSON object.
        time: The event's time in epoch seconds, or None.
    """

    data: bytes
    event: dict[str, Any] | None
    time: float | None

    @classmethod
    def of(cls, data: bytes) -> Line:
        """Return the line with this *data*."""
        try:
            event: Any = loads(data) if data.lstrip()[:1] == b"{" else None
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            return cls(data, None, None)
        return cls(data, event, timestamp_of(event))


def open_events(name: str) -> IO[bytes]:
    """Open an event file, plain or compressed by gzip or zstd; ``"-"`` is stdin.

    Raises:
        OSError: If it cannot be read.
        MissingDependencyError: If it is compressed by zstd, and zstandard is not installed.
    """
    return sys.stdin.buffer if name == "-" else open_lines(name)


def lines_of(name: str, complain: Callable[[str], None]) -> Iterator[Line]:
    """Give what `raw_lines_of` does as lines."""
    return map(Line.of, raw_lines_of(name, complain))


def raw_lines_of(name: str, complain: Callable[[str], None]) -> Iterator[bytes]:
    """Yield all lines of a file; of a truncated compressed file, those that can be read."""
    with contextlib.ExitStack() as stack:
        file = open_events(name)
        if name != "-":
            stack.callback(file.close)
        rest = b""
        try:
            # What is there, without waiting for a whole block of it: stdin may be slow.
            read: Callable[[int], bytes] = getattr(file, "read1", file.read)
            while block := read(_BLOCK):
                *whole, rest = (rest + block).split(b"\n")
                yield from whole
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            complain(f"{name!r} is cut off: {error}")
        except Exception as error:
            if type(error).__name__ != "ZstdError":
                raise
            complain(f"{name!r} is cut off: {error}")
        if rest:
            yield rest


def last_lines(
    name: str,
    count: int,
    wanted: Callable[[Line], bool],
    complain: Callable[[str], None],
    end: int | None = None,
) -> list[Line]:
    """Return the last *count* lines of a file for which *wanted* is true; read a plain file backwards.

    Args:
        name: The path, or ``"-"``.
        count: The number of lines.
        wanted: The condition.
        complain: Called with a message if a compressed file is truncated.
        end: The position before which a plain file is read; half a line there is left out. Default None: the end.
    """
    found: list[Line] = []
    if not count:
        return found
    if name != "-":
        with open_events(name) as file:
            if isinstance(file, io.BufferedReader) and file.seekable():
                for line in map(Line.of, _backwards(file, end)):
                    if wanted(line):
                        found.append(line)
                        if len(found) == count:
                            break
                return found[::-1]
    for line in lines_of(name, complain):
        if wanted(line):
            found.append(line)
            if len(found) > 2 * count:
                del found[:-count]
    return found[-count:]


def _backwards(file: IO[bytes], end: int | None) -> Iterator[bytes]:
    """Yield the lines of *file* before *end*, the last one first, without half a line at *end*."""
    at = file.seek(0, os.SEEK_END) if end is None else end
    pieces: list[bytes] = []
    last = True
    while at:
        step = min(_BLOCK, at)
        at -= step
        file.seek(at)
        block = file.read(step)
        first, *rest = block.split(b"\n")
        if rest:
            pieces.append(rest.pop())
            line = b"".join(reversed(pieces))
            if not last or (line and end is None):
                yield line
            last = False
            yield from reversed(rest)
            pieces = []
        pieces.append(first)
    line = b"".join(reversed(pieces))
    if line and not (last and end is not None):
        yield line


class Followed:
    """A file that is followed while it grows, is moved away, or is truncated.

    Half a line is given once it is complete. When another file is at the path, the rest of the old file comes first,
    then the files that were moved away in between, then the new file.

    Args:
        name: The path. The file need not exist.
        at_end: Whether to start at the end of the file instead of its beginning.
    """

    def __init__(self, name: str, *, at_end: bool) -> None:
        self.name = name
        self._file: IO[bytes] | None = None
        self._rest = b""
        self._position = 0
        #: The last bytes before the position. If they change, the file was truncated and written again.
        self._before = b""
        #: The identity of each file that has been read, or was there at the start.
        self._known: set[tuple[int, int]] = set()
        #: The first block of each of these files, uncompressed. It identifies a file that is compressed later.
        self._heads: set[bytes] = set()
        for path in self._siblings():
            with contextlib.suppress(OSError), open(path, "rb") as file:
                self._learn(file)
        self._open()
        if self._file is not None and at_end:
            self._file.seek(0, os.SEEK_END)
            self._position = self._file.tell()
            self._before = self._bytes_before()
            self._skip_half()

    def _open(self) -> None:
        try:
            self._file = open(self.name, "rb")  # noqa: SIM115 - closed by close()
        except OSError:
            self._file = None
        self._position, self._before, self._rest = 0, b"", b""

    def _learn(self, file: IO[bytes]) -> None:
        """Remember *file*, to which nobody writes any more, as one that was read."""
        self._known.add(_identity(os.fstat(file.fileno())))
        file.seek(0)
        self._heads.add(file.read(_BLOCK))

    def _skip_half(self) -> None:
        """Keep the half line at the end of the file, so that `read` gives it once it is complete."""
        assert self._file is not None
        start = self._position
        while start:
            step = min(_BLOCK, start)
            self._file.seek(start - step)
            block = self._file.read(step)
            cut = block.rfind(b"\n")
            if cut >= 0:
                self._rest = block[cut + 1 :] + self._rest
                break
            self._rest = block + self._rest
            start -= step
        self._file.seek(self._position)

    @property
    def is_missing(self) -> bool:
        """True if there is no file that can be read."""
        return self._file is None

    @property
    def position(self) -> int:
        """The position in the file, in bytes: the next line is read from here."""
        return self._position

    def read(self) -> Iterator[Line]:
        """Yield the complete lines written since the last call."""
        if self._file is None:
            yield from self._reopened()
            return
        if self._was_truncated():
            self._position, self._rest, self._before = 0, b"", b""
        yield from self._new_lines(self._file)
        try:
            status = os.stat(self.name)
        except OSError:
            return
        old = os.fstat(self._file.fileno())
        if _identity(status) == _identity(old):
            return
        # Lines written between the read and the rollover.
        yield from self._new_lines(self._file)
        if self._rest:
            yield Line.of(self._rest)
        self._learn(self._file)
        self._file.close()
        yield from self._reopened()

    def _reopened(self) -> Iterator[Line]:
        """Open the file that is at the path now; yield the lines of files moved away in between, then its lines."""
        self._open()
        if self._file is not None:
            self._known.add(_identity(os.fstat(self._file.fileno())))
        for between in self._moved_in_between():
            yield from map(Line.of, between.rstrip(b"\n").split(b"\n"))
        if self._file is not None:
            yield from self._new_lines(self._file)

    def _moved_in_between(self) -> list[bytes]:
        """Return the contents of the files that were created and moved away since the last call, oldest first."""
        found: list[tuple[int, bytes]] = []
        again = True
        while again:
            again = False
            for path in self._siblings():
                # A file that is being compressed cannot be read completely yet: the next call tries again.
                with contextlib.suppress(Exception):
                    status = os.stat(path)
                    if _identity(status) in self._known:
                        continue
                    with open_lines(path) as file:
                        data = file.read()
                    again = True
                    if _identity(os.stat(path)) != _identity(status):
                        continue  # another file has been moved there in the meantime
                    self._known.add(_identity(status))
                    if data and not (path.endswith(ENDINGS) and data[:_BLOCK] in self._heads):
                        self._heads.add(data[:_BLOCK])
                        found.append((status.st_mtime_ns, data))
        return [data for _, data in sorted(found, key=lambda each: each[0])]

    def _new_lines(self, file: IO[bytes]) -> Iterator[Line]:
        file.seek(self._position)
        while block := file.read(_BLOCK):
            self._position += len(block)
            *whole, self._rest = (self._rest + block).split(b"\n")
            yield from map(Line.of, whole)
        self._before = self._bytes_before()

    def _bytes_before(self) -> bytes:
        if self._file is None:
            return b""
        start = max(0, self._position - 64)
        self._file.seek(start)
        return self._file.read(self._position - start)

    def _was_truncated(self) -> bool:
        file = self._file
        if file is None:
            return False
        return os.fstat(file.fileno()).st_size < self._position or self._bytes_before() != self._before

    def _siblings(self) -> Iterator[str]:
        """Yield the paths that a rollover may have moved this file to."""
        for path in glob.glob(f"{glob.escape(self.name)}.*"):
            if not path.endswith((".lock", UNFINISHED)) and os.path.isfile(path):
                yield path

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino

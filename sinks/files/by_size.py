"""Files that roll over by size: `RotatingFileSink`."""

from __future__ import annotations

import errno
import os
import re
from os import write as _os_write
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from outfall.sinks.core.arguments import checked_size
from outfall.sinks.errors import SinkError
from outfall.sinks.files import compression as compressing
from outfall.sinks.files.file import FileSink
from outfall.sinks.files.rotating import BaseRotatingFileSink, RotationOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Unpack

    from outfall.sinks.event.units import Size
    from outfall.sinks.files.opening import Mode

#: The default number of rotated files. Without a limit the disk would fill up.
_BACKUP_COUNT = 5


class RotatingFileSink(BaseRotatingFileSink):
    r"""Append each event to a file that rolls over before it grows beyond a size.

    ``app.log`` becomes ``app.log.1``, ``app.log.1`` becomes ``app.log.2`` and so on up to *backup_count*; the oldest is
    deleted.

    Args:
        filename: Path of the file; a relative one is resolved now.
        mode: ``"a"`` to append (default), ``"w"`` to truncate, ``"x"`` to fail if the file is there. With *max_bytes*
            ``"w"`` means ``"a"``: truncating at a restart would lose events that were never rotated.
        max_bytes: The largest size of the file in encoded bytes, terminators included, or as text such as ``"50 MB"``.
            Only a single event that is larger exceeds it. Default 0: the file never rolls over.
        backup_count: How many rotated files to keep. Default 5 with *max_bytes*, unless *max_age* or *max_total_bytes*
            says what to keep. With 0 and none of these it never rolls over, as with
            `logging.handlers.RotatingFileHandler`.
        encoding: The encoding of text. Default UTF-8.
        delay: Open the file at the first event instead of now. Default False.
        errors: How to treat characters that *encoding* does not have. Default ``"backslashreplace"``.
        namer: Called with the default path of a rotated file; returns the path to use. Default None.
        rotator: Called with the file's path and the new path, to move the file. Default None: it is renamed.
        max_age: The largest age of rotated files, in seconds, as a timedelta, or as text such as ``"10 days"``. Default
            None: no limit.
        max_total_bytes: The largest size of all rotated files together, in bytes or as text such as ``"2 GB"``. Default
            None: no limit.
        compression: ``"gzip"``, ``"zstd"``, or a callable that compresses rotated files. Default None.
        multiprocess: True if other processes write to this file too. Default False.
        permissions: Permission bits of a file that is made, such as ``0o640``. Default None: those of the process's
            umask.
        buffer_bytes: Size of the buffer in memory, in bytes or as text such as ``"64 KiB"``. Default 0: each event is
            written at once.
        flush_interval: Time after which the next event writes the buffer: seconds, a timedelta, or text such
            as ``"500 ms"``. Default 1.
        flush_level: An event of this level or above writes the buffer at once. Default ``"error"``.
        timeout: How long an event waits for the reader of a pipe or terminal that is full, as a span like
            *flush_interval*. Default 5.
        terminator: The text after each event. Default ``"\n"``.
        renderer: A structlog renderer that returns text or bytes. Default ``OrjsonRenderer()``.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: As `BaseRotatingFileSink`.

    An empty file, or one that is not a regular file, never rolls over. The sink counts the size itself. When the count
    reaches *max_bytes*, it asks the system, and so notices that another program has truncated the file. With
    *multiprocess* each event costs one ``stat``, which events that follow within microseconds share. The file may
    exceed *max_bytes* by one event of each process. A rotated file that an idle process still has open is compressed
    once that process has switched to the current file.

    Source: `logging.handlers.RotatingFileHandler`.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        mode: Mode = "a",
        max_bytes: Size = 0,
        backup_count: int | None = None,
        encoding: str | None = None,
        delay: bool = False,
        errors: str | None = None,
        **options: Unpack[RotationOptions],
    ) -> None:
        self.max_bytes: int = checked_size(max_bytes, "max_bytes")
        if backup_count is None:
            limited = options.get("max_age") is not None or options.get("max_total_bytes") is not None
            backup_count = _BACKUP_COUNT if max_bytes and not limited else 0
        if isinstance(mode, str) and max_bytes:
            mode = cast("Mode", mode.replace("w", "a"))
        super().__init__(filename, mode, encoding, delay, errors, backup_count=backup_count, **options)

    _counts_size = True
    _hot_hooks = (*FileSink._hot_hooks, "should_rollover")

    def _line_writer(self) -> Callable[[Any, bytes], bool] | None:
        return super()._line_writer() or RotatingFileSink._write_counted

    def _rolls_by_size_alone(self) -> bool:
        return self._rolls() and not self.multiprocess

    def _write_counted(self, data: bytes) -> bool:
        """Write *data*, a line, if the file has room for it; return False if the pipeline has to write it."""
        if monotonic() >= self._verify_at:
            return False
        size = len(data)
        # Attributes may be set at any time, so they are read for each event. In the usual case there is no call from
        # here to the write, so no signal handler runs that counts as well.
        file = self._shared_file
        if file.size is not None and file.size + size <= self.max_bytes:
            file.size += size
        elif self._rolls():
            return False
        else:
            file.size = None  # not counted while no limit needs it
        written = _os_write(self._fd, data)
        if written != size:
            self._finish(data, written)
        return True

    def _is_bound_by_size(self) -> bool:
        return self._rolls()

    def _rolls(self) -> bool:
        return (
            self.max_bytes > 0
            and self._regular
            and (self.backup_count > 0 or self.max_age is not None or self.max_total_bytes is not None)
        )

    def should_rollover(self, data: bytes) -> bool:
        """Return True if *data* would make the file larger than `max_bytes`."""
        if not self._rolls():
            return False
        limit = self.max_bytes - len(data)
        # A file that holds nothing but a byte order mark still counts as empty.
        return self._current_size(limit) > max(limit, len(self._prefix))

    def do_rollover(self) -> None:
        """Roll over now: shift the numbered files, move the file to ``.1`` and open a new one.

        Raises:
            OSError: If the file system refuses. The current file is kept.
            Exception: Whatever `namer` and `rotator` raise.
        """
        try:
            self._roll_over()
        except BaseException:
            self._bounded_by = None  # there may be more files than the limit now
            raise

    #: The settings at the last listing of the directory, if shifting alone has limited the number of files since then.
    _bounded_by: tuple[object, ...] | None = None

    def get_files_to_delete(self) -> list[str]:
        """Return the paths of the files to delete; see `BaseRotatingFileSink.get_files_to_delete`."""
        kept = self.backup_count
        settings = kept, self.namer, self.max_age, self.max_total_bytes
        if settings == self._bounded_by:
            return []
        if kept and self.max_age is None and self.max_total_bytes is None and self._start_of_rotated():
            # From now on shifting limits the number, if the only file beyond the limit is the one just shifted there.
            highest = max((-file.age[0] for file in self.rotated_files()), default=0)
            self._bounded_by = settings if highest <= kept + 1 else None
        return super().get_files_to_delete()

    def _make_way(self) -> tuple[str, list[str]]:
        """Shift the numbered files up by one, up to the first free number."""
        # Stop at the first gap: after a shift that failed or was killed, the files above it have moved already.
        names, there = self._numbers_in_use()
        if len(there) == len(names):  # an interrupted rotation has left one file too many
            for ending in there.pop():
                os.unlink(names[-1] + ending)
        surplus: list[str] = []  # deleted after the rotation has succeeded, so that a failure deletes nothing
        for number in range(len(there), 0, -1):
            for ending in there[number - 1]:
                os.replace(names[number - 1] + ending, names[number] + ending)
                if number == self.backup_count:
                    surplus.append(names[number] + ending)
        return names[0], surplus

    def _numbers_in_use(self) -> tuple[list[str], list[list[str]]]:
        """Return the names up to the first free one, and the endings of the files that exist for each name before it.

        Raises:
            OSError: If a directory has one of the names.
            SinkError: If `namer` gives all numbers the same name, although more than one file is to be kept.
        """
        names = [self.rotation_filename(f"{self.base_filename}.1")]
        there: list[list[str]] = []
        while True:
            found: list[str] = []
            for ending in self._endings:
                path = names[-1] + ending
                if os.path.lexists(path):
                    if os.path.isdir(path) and not os.path.islink(path):
                        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
                    found.append(ending)
            if (
                len(found) > 1
                and not found[0]
                and compressing.finish_placing(names[-1], [names[-1] + ending for ending in found[1:]])
            ):
                found.pop(0)  # else a kill between the two shifts would give both files different numbers
            if not found:
                return names, there
            there.append(found)
            if 0 < self.backup_count < len(names):
                return names, there
            name = self.rotation_filename(f"{self.base_filename}.{len(names) + 1}")
            if name == names[-1]:
                if self.backup_count:
                    return names, there
                msg = f"namer gives all rotated files the name {name!r}"
                raise SinkError(msg)
            names.append(name)

    def names_of_rotated(self, file_name: str) -> Iterator[tuple[tuple[float, int], str]]:
        """Yield the default name for each number in *file_name*; the lowest number is the newest file."""
        for match in re.finditer(r"[1-9][0-9]*", file_name):
            number = match.group()
            yield (-float(number), 0), f"{self.base_filename}.{number}"


RotatingFileSink._hot_class = RotatingFileSink

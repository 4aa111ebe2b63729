"""Files that roll over by time: `TimedRotatingFileSink`."""

from __future__ import annotations

import contextlib
import os
import re
import time
from os import write as _os_write
from typing import TYPE_CHECKING, Any

from outfall.sinks.core.arguments import checked_seconds, checked_size
from outfall.sinks.files.birthtime import birth_time
from outfall.sinks.files.dated import DatedName
from outfall.sinks.files.file import FileSink
from outfall.sinks.files.opening import Mode, checked_path
from outfall.sinks.files.output import VERIFY_SECONDS
from outfall.sinks.files.rotating import BaseRotatingFileSink, RotationOptions
from outfall.sinks.files.schedule import Schedule, When

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Unpack

    from outfall.sinks.event.units import Size
    from outfall.sinks.files.rotating import RotatedFile

#: A file's birth time and its last write time come from clocks with different resolutions.
_GRAIN_SECONDS = 1.0

_DAY_SECONDS = 86_400


class TimedRotatingFileSink(BaseRotatingFileSink):
    r"""Append each event to a file that rolls over as time passes, and optionally by size.

    ``app.log`` becomes ``app.log.2026-02-28``, named by the start of its interval. An existing file is never
    overwritten: if the name exists, the next file gets ``.1``, ``.2`` and so on.

    Args:
        filename: Path of the file; a relative one is resolved now. With a date in its name,
            ``"app-{date:%Y-%m-%d}.jsonl"``, the current file is named by the date of its interval, and no file is
            renamed.
        when: The unit, in any case: ``"S"`` seconds, ``"M"`` minutes, ``"H"`` hours, ``"D"`` days, ``"midnight"``, or
            ``"W0"`` (Monday) to ``"W6"``. Default None: ``"midnight"`` if *max_age* is a day or more, else ``"H"``.
        interval: The number of units in an interval. Default 1. Ignored for weekdays.
        backup_count: How many rotated files to keep. Default 0: all.
        encoding: The encoding of text. Default UTF-8.
        delay: Open the file at the first event instead of now. Default False.
        utc: Whether days, weekdays and names are in UTC instead of local time. Default False.
        at_time: The time of day of the rollover, for ``midnight`` and weekdays. Default None: midnight; for a weekday
            the midnight at its end.
        errors: How to treat characters that *encoding* does not have. Default ``"backslashreplace"``.
        max_bytes: Also roll over before the file grows beyond this size, in bytes or as text such as ``"50 MB"``.
            Default 0: by time alone.
        link: Path of a symbolic link to the current file, for a *filename* with a date. Default None.
        mode: ``"a"`` to append (default), ``"w"`` to truncate, ``"x"`` to fail if the file is there. ``"w"`` truncates
            what an earlier process has left.
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
        ValueError: If *when*, *interval* or *at_time* is invalid; if the date in *filename* cannot be parsed from the
            name, or is coarser than *when* without *max_bytes*; if *link* is not a link; and as `BaseRotatingFileSink`.

    Intervals of seconds, minutes, hours and days are counted from the start of the file, without a jump when daylight
    saving time changes; midnight and weekdays go by the wall clock. A restart continues the interval, which began with
    the file's birth; if that is unknown, with the newest rotated file, or with the last write. The first event after
    the end of the interval causes the rollover, and its time determines the next interval. An empty file never rolls
    over.

    Source: `logging.handlers.TimedRotatingFileHandler`.
    """

    base_filename: str

    def __init__(
        self,
        filename: str | os.PathLike[str],
        when: When | None = None,
        interval: int = 1,
        backup_count: int = 0,
        encoding: str | None = None,
        delay: bool = False,
        utc: bool = False,
        at_time: dt.time | None = None,
        errors: str | None = None,
        *,
        max_bytes: Size = 0,
        link: str | os.PathLike[str] | None = None,
        mode: Mode = "a",
        **options: Unpack[RotationOptions],
    ) -> None:
        if when is None:
            # An age in days suggests one file a day.
            max_age = options.get("max_age")
            kept = 0.0 if max_age is None else checked_seconds(max_age, "max_age")
            when = "midnight" if kept >= _DAY_SECONDS else "h"
        self._schedule = Schedule(when, interval, utc=utc, at_time=at_time)
        self.max_bytes: int = checked_size(max_bytes, "max_bytes")
        dated = isinstance(filename, (str, bytes, os.PathLike)) and DatedName.is_one(os.fsdecode(filename))
        path = checked_path(filename, dated=dated)
        #: The file's name, if it has a date in it, and the link to the file.
        self._dated = DatedName(path, self._schedule) if DatedName.is_one(path) else None
        self._link = _checked_link(link, dated=self._dated is not None)
        if self._dated is not None:
            if not self.max_bytes and self._dated.is_coarse:
                msg = (
                    f"filename={os.fspath(filename)!r}: its date is the same in several intervals of when={when!r}; "
                    "give max_bytes, or a finer date"
                )
                raise ValueError(msg)
            filename = self._dated.path_at(time.time())
        #: The start of the current file's interval, in epoch seconds; None until it is known.
        self._start: float | None = None
        #: The ages of files that are older than their names say, because the clock was set back.
        self._overtaken: set[tuple[float, int]] = set()
        self._trusted_from = self._trusted_until = 0.0
        #: The time of the next rollover, in epoch seconds; settable.
        self.rollover_at: float = 0.0
        super().__init__(filename, mode, encoding, delay, errors, backup_count=backup_count, **options)

    @property
    def when(self) -> str:
        """The unit, in upper case."""
        return self._schedule.when

    @property
    def interval(self) -> int:
        """The number of units in an interval."""
        return self._schedule.interval

    @property
    def utc(self) -> bool:
        """Whether days, weekdays and names are in UTC."""
        return self._schedule.utc

    @property
    def at_time(self) -> dt.time | None:
        """The time of day of the rollover, for midnight and weekdays."""
        return self._schedule.at_time

    @property
    def suffix(self) -> str:
        """The `time.strftime` format of the suffix of rotated files."""
        return self._schedule.suffix

    def compute_rollover(self, current_time: float) -> float:
        """Return the end of the interval that contains *current_time*, both in epoch seconds."""
        return self._schedule.next_after(current_time, current_time if self._start is None else self._start)

    _counts_size = True
    _hot_hooks = (*FileSink._hot_hooks, "should_rollover")

    def _line_writer(self) -> Callable[[Any, bytes], bool] | None:
        return TimedRotatingFileSink._write_shared if self.multiprocess else TimedRotatingFileSink._write_counted

    def _write_counted(self, data: bytes) -> bool:
        """Write *data*, a line, if the file need not roll over; return False if the pipeline has to write it."""
        size = len(data)
        now = time.time()
        if now >= self.rollover_at or not self._trusted_from <= now < self._trusted_until:
            return False
        # No call from here to the write, so no signal handler runs that counts as well.
        file = self._shared_file
        if file.size is not None:
            if self.max_bytes and file.size + size > self.max_bytes:
                return False
            file.size += size
        elif self.max_bytes:
            return False
        written = _os_write(self._fd, data)
        if written != size:
            self._finish(data, written)
        return True

    def _verify(self) -> None:
        super()._verify()
        self._trust()

    def _trust(self) -> None:
        # By the clock that the shortcut reads anyway. If that clock is set, events take the pipeline for a second.
        self._trusted_from = time.time()
        self._trusted_until = self._trusted_from + VERIFY_SECONDS

    def _write_shared(self, data: bytes) -> bool:
        return time.time() < self.rollover_at and super()._write_shared(data)

    def _is_bound_by_size(self) -> bool:
        return self.max_bytes > 0

    def should_rollover(self, data: bytes) -> bool:
        """Return True if the file's interval has ended, or if *data* would make the file larger than `max_bytes`."""
        size = self._current_size()
        now = time.time()
        if self._dated is not None and self._dated.path_at(now) != self.base_filename:
            return True  # also if the clock was set back to an earlier interval
        if self._start is None:
            self._begin(now, size)
        if not (self._regular and size > len(self._prefix)):
            if now >= self.rollover_at:
                self._begin(now, 0)  # the file is empty: its first event determines the interval
            return False
        if now < self.rollover_at and not (self.max_bytes and size + len(data) > self.max_bytes):
            return False
        size = self._current_size(-1)
        return size > 0 and (now >= self.rollover_at or size + len(data) > self.max_bytes)

    def do_rollover(self) -> None:
        """Roll over now: rename the file by its interval and open a new one.

        Raises:
            OSError: If the file system refuses. The current file is kept.
            Exception: The exceptions of `namer` and `rotator`.
        """
        self._roll_over()

    def _move_file(self) -> bool:
        now = time.time()
        path = self.base_filename if self._dated is None else self._dated.path_at(now)
        if path != self.base_filename:
            self._go_on_to(path)
        else:
            if self._start is None:
                self._begin(now, self._current_size())
            try:
                if not super()._move_file():
                    return False
            finally:
                self._found = None
        self._begin(now, 0)
        return True

    #: During a rollover: the rotated files, and the one that the rollover adds.
    _found: tuple[list[RotatedFile], RotatedFile] | None = None

    def _make_way(self) -> tuple[str, Sequence[str]]:
        files = self.rotated_files()
        name = self._free_name([file.age for file in files])
        path = os.path.abspath(name)
        made = self._as_rotated(path)
        if made is not None and os.path.dirname(path) == self._directory_of_rotated():
            self._found = files, made
        return name, ()

    def _go_on_to(self, path: str) -> None:
        """Write to *path* from now on, the file of another interval."""
        before, self.base_filename = self.base_filename, path
        try:
            self._exchange()
        except BaseException:
            self.base_filename = before
            raise
        try:
            self._tidy_up()
        except Exception as error:
            self._notice = error

    def _point_link(self) -> None:
        """Make the symbolic link point to the current file."""
        link = self._link
        if link is None:
            return
        try:
            target = os.path.relpath(self.base_filename, os.path.dirname(link))
            if os.path.islink(link) and os.readlink(link) == target:
                return
            made = f"{link}.{os.getpid()}.new"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(made)
            os.symlink(target, made)
            os.replace(made, link)
        except OSError as error:
            self._note(error)

    def _free_name(self, ages: list[tuple[float, int]]) -> str:
        """Return a free name for the file to rotate, one that sorts as the newest of its interval.

        Numbers of files that retention has deleted are not used again, because the file would then count as the oldest.
        If the current file's name has a date, only a number is added.

        Args:
            ages: The ages of all rotated files.
        """
        stem, start = self.base_filename, self._start
        if self._dated is None:
            stem += f".{self._schedule.text_of(start or 0.0)}"
            named = [age[0] for age, name in self.names_of_rotated(os.path.basename(stem)) if name == stem]
            start = max(named, default=None)
        number = max((number + 1 for other, number in ages if other == start), default=int(self._dated is not None))
        while True:
            name = self.rotation_filename(f"{stem}.{number}" if number else stem)
            if not any(os.path.lexists(name + ending) for ending in self._endings):
                break
            number += 1
        if self._dated is None and start is not None:
            made = (start, number)
            # After the clock was set back, files named by a later time are older.
            self._overtaken.intersection_update(ages)
            self._overtaken.update(older for older in ages if older > made)
        return name

    def rotated_files(self) -> list[RotatedFile]:
        """Return the rotated files, newest first; see `BaseRotatingFileSink.rotated_files`."""
        now = time.time()
        found = self._found
        if found is not None and os.path.lexists(found[1].path):  # else it is not moved yet, or has been renamed
            files = sorted((*found[0], found[1]), key=lambda file: file.age, reverse=True)
        else:
            files = super().rotated_files()
        if self._dated is not None:
            # Another process may write to the file of a later interval already: it has read the clock a moment later.
            return [file for file in files if file.age[0] <= now]
        # A file named by a time in the future was named before the clock was set back.
        return sorted(files, key=lambda file: file.age in self._overtaken or file.age[0] > now)

    def _install(self, descriptor: int, prefix: bytes) -> None:
        super()._install(descriptor, prefix)
        self._trust()
        if self._shared_file.identity != self._installed:
            # Another file than before: determine its interval.
            self._installed = self._shared_file.identity
            self._begin_again()
            self._point_link()

    #: Device and inode of the file that `_start` belongs to.
    _installed: tuple[int, int] | None = None

    def _begin_again(self) -> None:
        """Determine the interval of a file that was opened."""
        now = time.time()
        with contextlib.suppress(OSError):
            state = os.stat(self.base_filename)
            self._begin(now, state.st_size)

    def _begin(self, now: float, size: int) -> None:
        """Set the interval of the current file; if its *size* is 0, its first event comes *now*."""
        schedule = self._schedule
        if self._dated is not None:
            self._start = self._dated.start_of(now)
            self.rollover_at = self._dated.end_of(self._start)
            return
        if size:
            self._start = self._start_of_existing(now)
        else:
            self._start = schedule.start_of(now, now if self._start is None else self._start)
        self.rollover_at = schedule.next_after(self._start, self._start)

    def _start_of_existing(self, now: float) -> float:
        """Return the start of the interval of a file that contains events."""
        schedule = self._schedule
        last_write = min(os.stat(self.base_filename).st_mtime, now)
        newest = max((file.age[0] for file in self.rotated_files() if file.age[0] <= now), default=None)
        birth = birth_time(self.base_filename)
        # The birth time of a copied, restored or touched file says nothing about its events.
        if birth is not None and birth <= last_write + _GRAIN_SECONDS and (newest is None or birth >= newest):
            # Use the sink's intervals if there are any, so that several processes agree. Names for midnight are exact,
            # so that a restart continues to count days; other names lack the parts below their unit.
            anchor = newest if newest is not None and schedule.when == "MIDNIGHT" else birth
            return schedule.start_of(birth, anchor if self._start is None else self._start)
        if newest is None:
            return schedule.start_of(last_write, last_write)
        if newest <= last_write:
            return schedule.start_of(last_write, newest)
        # The file's times contradict the names of the rotated files: it was started when the newest one's interval
        # ended, or later.
        following = schedule.next_after(newest, newest)
        return following if following <= now else newest

    def sample_of_rotated(self) -> str:
        """Return the default name of a rotated file; rotated files are searched for in its directory."""
        return self.base_filename if self._dated else f"{self.base_filename}.{self._schedule.text_of(0.0)}"

    def _start_of_defaults(self) -> str:
        return super()._start_of_defaults() if self._dated is None else self._dated.before

    def names_of_rotated(self, file_name: str) -> Iterator[tuple[tuple[float, int], str]]:
        """Yield the default name for each time in *file_name*, without a number and with each number in it."""
        if self._dated is not None:
            yield from self._dated.files_like(file_name)
            return
        for match in self._schedule.pattern.finditer(file_name):
            text = match.group()
            start = self._schedule.parse(text)
            if start is None:
                continue
            stem = f"{self.base_filename}.{text}"
            yield (start, 0), stem
            for number in re.findall(r"(?<![0-9])[1-9][0-9]*(?![0-9])", file_name):
                yield (start, int(number)), f"{stem}.{number}"


def _checked_link(link: str | os.PathLike[str] | None, *, dated: bool) -> str | None:
    if link is None:
        return None
    path = checked_path(link)
    if not dated:
        msg = f"link={os.fspath(link)!r}: without a date in filename the file has one name, and needs no link"
        raise ValueError(msg)
    if os.path.lexists(path) and not os.path.islink(path):
        msg = f"link={os.fspath(link)!r} is no symbolic link, and would be lost: move it away first"
        raise ValueError(msg)
    return path


TimedRotatingFileSink._hot_class = TimedRotatingFileSink

"""The drop-in twin of the handler for files that roll over by time: `TimedRotatingFileHandler`."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import logging.handlers
import os
import re
import time
from typing import TYPE_CHECKING, Any

from outfall.adapters.handlers.file import text_encoding
from outfall.adapters.handlers.rotating import BaseRotatingHandler, HandlersRotatingFile
from outfall.adapters.handlers.twin import is_own
from outfall.sinks.files.by_time import TimedRotatingFileSink
from outfall.sinks.files.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds in the units of *when*, by its first letter.
_UNITS = {"S": 1, "M": 60, "H": 3600, "D": 86_400, "W": 7 * 86_400}
_DAY = _UNITS["D"]


class HandlersTimedRotatingFile(HandlersRotatingFile, TimedRotatingFileSink):
    """The sink behind a `TimedRotatingFileHandler`.

    Intervals are as in the handler's documentation: the first ends one interval after the file's last modification, and
    each other one interval after the rollover before.
    """

    rollover_at: float

    # -- for the handler

    def after(self, moment: int) -> int:
        """Return when an interval ends that begins at *moment*: what ``computeRollover`` does unless overridden."""
        owner = self.owner
        if not _is_of_the_calendar(owner.when):
            end: int = moment + owner.interval
            return end
        return int(self._schedule_of(owner).next_after(moment, moment))

    def expired_files(self) -> list[str]:
        """Return what ``getFilesToDelete`` does unless overridden: the oldest files, without the newest to be kept."""
        surplus = self.rotated_files()[self.backup_count :] if self.backup_count > 0 else []
        return [file.path for file in reversed(surplus)]

    def is_due_for(self, record: logging.LogRecord) -> bool:
        """Do what ``shouldRollover`` does unless that is overridden."""
        self._start, self._size = 0.0, None
        return TimedRotatingFileSink.should_rollover(self, b"")

    def is_early(self, owner: Any, size: int) -> bool:
        """Return True if it is plain that no rollover is due."""
        return time.time() < owner.rolloverAt and is_own(owner.shouldRollover, TimedRotatingFileHandler.shouldRollover)

    def _move_files(self) -> None:
        self._start = 0.0
        super()._move_files()

    @staticmethod
    def _schedule_of(owner: Any) -> Schedule:
        at: dt.time | None = owner.atTime
        days = max(1, int(owner.interval) // _DAY)
        # Whole seconds of the wall clock, as documented.
        at = None if at is None else at.replace(microsecond=0, tzinfo=None)
        when, count = ("MIDNIGHT", days) if owner.when == "MIDNIGHT" else (f"W{owner.dayOfWeek}", 1)
        return Schedule(when, count, utc=bool(owner.utc), at_time=at)

    # -- what the sink does, by way of the handler

    def get_files_to_delete(self) -> list[str]:
        """Ask the owner, if it keeps a number of them."""
        owner = self.owner
        return list(owner.getFilesToDelete()) if owner.backupCount > 0 else []

    def _begin(self, now: float, size: int) -> None:
        owner = self.owner
        self._start = 0.0
        self.rollover_at = owner.rolloverAt = owner.computeRollover(int(now))

    def _begin_again(self) -> None:
        # The handler knows when the interval ends, whatever file is opened.
        self._start = 0.0

    def _text_of_interval(self) -> str:
        owner = self.owner
        end = owner.rolloverAt
        if _is_of_the_calendar(owner.when) and not owner.utc:
            # By the wall clock, whose days may have 23 or 25 hours.
            wall = dt.datetime.fromtimestamp(end) - dt.timedelta(seconds=owner.interval)  # noqa: DTZ006
            return time.strftime(owner.suffix, wall.timetuple())
        start = end - owner.interval
        return time.strftime(owner.suffix, time.gmtime(start) if owner.utc else time.localtime(start))

    def sample_of_rotated(self) -> str:
        """Return the default name of some rotated file, which tells the directory they are in."""
        return f"{self.base_filename}.{self._text_of_interval()}"

    def names_of_rotated(self, file_name: str) -> Iterator[tuple[tuple[float, int], str]]:
        """Give the default names that *file_name* could have been made of, by the owner's ``extMatch``."""
        pattern = re.compile(self.owner.extMatch)
        prefix = os.path.basename(self.base_filename) + "."
        rest = file_name[len(prefix) :] if file_name.startswith(prefix) else ""
        numbered = re.fullmatch(r"(.*)\.([1-9][0-9]*)", rest, re.DOTALL)
        if pattern.fullmatch(rest):
            yield (self._time_of(rest, file_name), 0), f"{self.base_filename}.{rest}"
        if numbered and pattern.fullmatch(numbered[1]):
            yield (self._time_of(numbered[1], file_name), int(numbered[2])), f"{self.base_filename}.{rest}"
        found = pattern.search(file_name)
        while found:
            stem = f"{self.base_filename}.{found[0]}"
            moment = self._time_of(found[0], file_name)
            yield (moment, 0), stem
            for number in re.findall(r"(?<![0-9])[1-9][0-9]*(?![0-9])", file_name):
                yield (moment, int(number)), f"{stem}.{number}"
            found = pattern.search(file_name, found.start() + 1)

    def _time_of(self, text: str, file_name: str) -> float:
        """Return the time that *text* in *file_name* stands for: by the owner's ``suffix``, else of the last write."""
        suffix = self.owner.suffix
        # Without a year it is no time, and Python 3.13 and later warn.
        if any(directive in suffix for directive in ("%Y", "%y", "%c", "%x")):
            with contextlib.suppress(ValueError, OverflowError):
                return dt.datetime.strptime(text, suffix).timestamp()  # noqa: DTZ007 - only compared with its like
        with contextlib.suppress(OSError):
            return os.stat(os.path.join(os.path.dirname(self.base_filename), file_name)).st_mtime
        return 0.0


def _is_of_the_calendar(when: str) -> bool:
    return when == "MIDNIGHT" or when.startswith("W")


class TimedRotatingFileHandler(BaseRotatingHandler, logging.handlers.TimedRotatingFileHandler):
    """A drop-in twin of `logging.handlers.TimedRotatingFileHandler`: roll over as time passes.

    Args:
        filename: See `FileHandler`.
        when: The unit, in any case: ``"S"``, ``"M"``, ``"H"`` (default), ``"D"``, ``"midnight"``, or ``"W0"`` (Monday)
            to ``"W6"``.
        interval: How many units; default 1. Not used for weekdays.
        backupCount: How many rotated files to keep. Default 0: all.
        encoding: See `FileHandler`.
        delay: See `FileHandler`.
        utc: Whether times are in UTC instead of local time. Default False.
        atTime: The time of day of the rollover, for ``midnight`` and weekdays. Default None: midnight.
        errors: See `FileHandler`.

    Attributes:
        when: The unit, in upper case.
        interval: The length of an interval in seconds.
        dayOfWeek: With weekdays, 0 for Monday to 6.
        suffix: The `time.strftime` format of what the names of rotated files get.
        extMatch: A pattern for what `suffix` makes; set both together.
        rolloverAt: When the file rolls over, in epoch seconds.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If *when* is none of the units.

    Source: https://docs.python.org/3/library/logging.handlers.html#timedrotatingfilehandler
    """

    stream: Any
    dayOfWeek: int

    def __init__(
        self,
        filename: str | os.PathLike[str],
        when: str = "h",
        interval: int = 1,
        backupCount: int = 0,
        encoding: str | None = None,
        delay: bool = False,
        utc: bool = False,
        atTime: dt.time | None = None,
        errors: str | None = None,
    ) -> None:
        self.when: str = when.upper()
        self.backupCount = backupCount
        self.utc = utc
        self.atTime = atTime
        # What the units are called, and the names that the documentation gives, are the schedule's business.
        self.suffix: str = Schedule(self.when).suffix
        fields = re.sub("%[a-zA-Z]", r"\\d{2}", self.suffix.replace("%Y", r"\d{4}"))
        self.extMatch: re.Pattern[str] = re.compile(rf"(?<!\d){fields}(?!\d)", re.ASCII)
        weekly = self.when.startswith("W")
        if weekly:
            self.dayOfWeek = int(self.when[1])
        self.interval: int = _UNITS["D" if self.when == "MIDNIGHT" else self.when[0]] * (1 if weekly else interval)
        self.rolloverAt = 0
        BaseRotatingHandler.__init__(self, filename, "a", text_encoding(encoding), delay, errors)
        try:
            last = os.stat(self.baseFilename).st_mtime
        except FileNotFoundError:
            last = time.time()
        self.rolloverAt: int = self.computeRollover(int(last))

    def make_sink(self) -> Any:
        """Return the sink."""
        return self._made(HandlersTimedRotatingFile)

    def lend(self, sink: Any) -> None:
        """Tell *sink* when to roll over, how many files to keep, how to name and move them, and how lines end."""
        super().lend(sink)
        sink.rollover_at, sink.backup_count = self.rolloverAt, self.backupCount

    def computeRollover(self, currentTime: int) -> int:
        """Return the end of an interval that begins at *currentTime*, both in epoch seconds."""
        with self.at_work() as sink:
            end: int = sink.after(currentTime)
        return end

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        """Return True if the interval has ended, and there is something in the file."""
        if time.time() < self.rolloverAt:
            return False
        if self.stream is None:
            self.stream = self._open()
        with self.at_work() as sink:
            due: bool = sink.is_due_for(record)
        return due

    def getFilesToDelete(self) -> list[str]:
        """Return the paths of the oldest rotated files beyond `backupCount`, oldest first."""
        with self.at_work() as sink:
            paths: list[str] = sink.expired_files()
        return paths

    def doRollover(self) -> None:
        """Roll over now: move the file to the name of its interval and open a new one.

        Raises:
            OSError: If the file system refuses; the file goes on as it is.
            Exception: Whatever `namer` and `rotator` raise.
        """
        with self.at_work() as sink:
            sink.roll_over()

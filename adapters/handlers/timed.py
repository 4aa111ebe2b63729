"""The drop-in twin of `TimedRotatingFileHandler`, which rolls a file over by time."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import logging.handlers
import os
import re
import time
from typing import TYPE_CHECKING, Any

from outfall.adapters.handlers import file as files
from outfall.adapters.handlers.rotating import BaseRotatingHandler, move_aside, quick
from outfall.sinks.files.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Iterator

_TimedRotatingFileHandler = logging.handlers.TimedRotatingFileHandler

_DAY = 86_400


class TimedRotatingFileHandler(BaseRotatingHandler, _TimedRotatingFileHandler):
    """A drop-in twin of `logging.handlers.TimedRotatingFileHandler`: append records to a file that rolls over by time.

    Args:
        filename: Path of the file. The constructor makes a relative path absolute.
        when: The unit, in any case: ``"S"``, ``"M"``, ``"H"`` (default), ``"D"``, ``"midnight"``, or ``"W0"`` (Monday)
            to ``"W6"``.
        interval: The number of units between two rollovers. Default 1.
        backupCount: The number of rotated files to keep. Default 0: all.
        encoding: The encoding of text. Default None: the locale's.
        delay: Open the file at the first record instead of now. Default False.
        utc: Whether times are in UTC instead of local time. Default False.
        atTime: The time of day of the rollover, for ``midnight`` and weekdays. Default None: midnight.
        errors: How to treat characters that *encoding* does not have, as in ``open``. Default None:
            ``"backslashreplace"``.

    Attributes:
        when: The unit, in upper case.
        interval: The length of an interval in seconds.
        dayOfWeek: For weekdays, 0 for Monday to 6.
        suffix: The `time.strftime` format of the suffix of rotated files.
        extMatch: A pattern that matches what `suffix` produces; set both together.
        rolloverAt: When the file rolls over, in epoch seconds.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If *when* is not one of the units.

    Source: https://docs.python.org/3/library/logging.handlers.html#timedrotatingfilehandler
    """

    stream: Any

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
        # An invalid *when* raises here, before a file is created.
        suffix = Schedule(when).suffix
        self._outfall_process = os.getpid()
        _TimedRotatingFileHandler.__init__(
            self, os.fsdecode(filename), when, interval, backupCount, encoding, delay, utc, atTime, errors
        )
        # As in Python 3.13, where the date may be anywhere in the name.
        fields = re.sub("%[a-zA-Z]", r"\\d{2}", suffix.replace("%Y", r"\d{4}"))
        self.extMatch: re.Pattern[str] = re.compile(rf"(?<!\d){fields}(?!\d)", re.ASCII)

    def computeRollover(self, currentTime: int) -> int:
        """Return the end of an interval that begins at *currentTime*, both in epoch seconds."""
        end: int = currentTime + self.interval
        if not _is_of_the_calendar(self.when):
            return end
        # As documented: whole seconds, wall-clock time.
        at: dt.time | None = None if self.atTime is None else self.atTime.replace(microsecond=0, tzinfo=None)
        days = max(1, int(self.interval) // _DAY)
        if self.when == "MIDNIGHT":
            return int(Schedule(self.when, days, utc=bool(self.utc), at_time=at).next_after(currentTime, currentTime))
        weekly = Schedule(f"W{self.dayOfWeek}", utc=bool(self.utc), at_time=at)
        moment: float = currentTime
        for _ in range(max(1, days // 7)):
            moment = weekly.next_after(moment, moment)
        return int(moment)

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        """Return True if the interval has ended."""
        now = int(time.time())
        if now < self.rolloverAt:
            return False
        if os.path.exists(self.baseFilename) and not os.path.isfile(self.baseFilename):
            # Not a regular file; check again after an interval.
            self.rolloverAt = self.computeRollover(now)
            return False
        return True

    def getFilesToDelete(self) -> list[str]:
        """Return the paths of the oldest rotated files beyond `backupCount`, oldest first."""
        if self.backupCount <= 0:
            return []
        found = _rotated_files(self)
        return sorted(found, key=lambda path: (found[path][0], path))[: -self.backupCount]

    def doRollover(self) -> None:
        """Roll over now: move the file to the name of its interval and open a new one.

        Raises:
            OSError: If the file system refuses; logging continues in the same file.
            Exception: The exceptions of `namer` and `rotator`.
        """
        now = int(time.time())
        moved = move_aside(self, lambda: _free_name(self))
        if moved and self.backupCount > 0:
            for path in self.getFilesToDelete():
                with contextlib.suppress(FileNotFoundError):  # another process removed it
                    os.remove(path)
        if not self.delay:
            self.stream = self._open() if moved else files.open_stream(self)
        self.rolloverAt: int = self.computeRollover(now)


def _is_of_the_calendar(when: str) -> bool:
    return when == "MIDNIGHT" or when.startswith("W")


def _text_of_interval(handler: Any) -> str:
    end = handler.rolloverAt
    if _is_of_the_calendar(handler.when) and not handler.utc:
        # Subtract in wall-clock time: a day may have 23 or 25 hours.
        wall = dt.datetime.fromtimestamp(end) - dt.timedelta(seconds=handler.interval)  # noqa: DTZ006
        return time.strftime(handler.suffix, wall.timetuple())
    start = end - handler.interval
    return time.strftime(handler.suffix, time.gmtime(start) if handler.utc else time.localtime(start))


def _free_name(handler: Any) -> str:
    """Return the name for the file of the interval that ends; if the name is taken, add an unused number.

    The number is higher than that of any file of the interval: a number that retention freed would make the newest file
    look like the oldest.
    """
    stem = f"{handler.baseFilename}.{_text_of_interval(handler)}"
    name: str = handler.rotation_filename(stem)
    if handler.backupCount <= 0 and not os.path.lexists(name):
        return name
    number = max(
        (age[1] for age, made_of in _rotated_files(handler).values() if made_of in (stem, f"{stem}.{age[1]}")),
        default=0 if os.path.lexists(name) else -1,
    )
    if number < 0:
        return name
    while os.path.lexists(name := handler.rotation_filename(f"{stem}.{number + 1}")):
        number += 1
    return name


def _rotated_files(handler: Any) -> dict[str, tuple[tuple[float, int], str]]:
    """Return the age and the default name (before `namer`) of each rotated file, by path."""
    sample = handler.rotation_filename(f"{handler.baseFilename}.{_text_of_interval(handler)}")
    directory = os.path.dirname(sample)
    found: dict[str, tuple[tuple[float, int], str]] = {}
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        for age, made_of in _possible_names(handler, name, path):
            if path not in found and path != handler.baseFilename and handler.rotation_filename(made_of) == path:
                found[path] = age, made_of
    return found


def _possible_names(handler: Any, file_name: str, path: str) -> Iterator[tuple[tuple[float, int], str]]:
    """Yield each age and default name that *file_name* may stand for, by the handler's ``extMatch``."""
    pattern = re.compile(handler.extMatch)
    prefix = os.path.basename(handler.baseFilename) + "."
    rest = file_name[len(prefix) :] if file_name.startswith(prefix) else ""
    numbered = re.fullmatch(r"(.*)\.([1-9][0-9]*)", rest, re.DOTALL)
    if pattern.fullmatch(rest):
        yield (_time_of(handler, rest, path), 0), f"{handler.baseFilename}.{rest}"
    if numbered and pattern.fullmatch(numbered[1]):
        yield (_time_of(handler, numbered[1], path), int(numbered[2])), f"{handler.baseFilename}.{rest}"
    found = pattern.search(file_name)
    while found:
        stem = f"{handler.baseFilename}.{found[0]}"
        moment = _time_of(handler, found[0], path)
        yield (moment, 0), stem
        for number in re.findall(r"(?<![0-9])[1-9][0-9]*(?![0-9])", file_name):
            yield (moment, int(number)), f"{stem}.{number}"
        found = pattern.search(file_name, found.start() + 1)


def _time_of(handler: Any, text: str, path: str) -> float:
    """Return the time that *text* in the name of *path* means by ``suffix``, else the time of the last write."""
    suffix = handler.suffix
    # A suffix without a year gives no absolute time; Python 3.13 and later warn about parsing it.
    if any(directive in suffix for directive in ("%Y", "%y", "%c", "%x")):
        with contextlib.suppress(ValueError, OverflowError):
            return dt.datetime.strptime(text, suffix).timestamp()  # noqa: DTZ007 - only compared with its like
    with contextlib.suppress(OSError):
        return os.stat(path).st_mtime
    return 0.0


def _is_early(handler: Any, size: int) -> bool:
    return bool(time.time() < handler.rolloverAt)


quick[TimedRotatingFileHandler.shouldRollover] = _is_early, False

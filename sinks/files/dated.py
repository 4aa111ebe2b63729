"""File names with a date in them: `DatedName`."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
from typing import TYPE_CHECKING

from outfall.sinks.files.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Iterator

_PLACE = re.compile(r"\{date:([^{}]+)\}")

#: Sorts the current file of an interval after the full files of the interval.
_LAST = 10**9

#: How many intervals are examined, to see whether each has a name of its own.
_INTERVALS = 400

#: Results of `DatedName.is_coarse`, which takes some 40 ms, by format and schedule.
_coarse: dict[tuple[object, ...], bool] = {}


class DatedName:
    """A path with a date in its name, ``"app-{date:%Y-%m-%d}.jsonl"``, which gives each interval its own file.

    Args:
        template: The path.
        schedule: When another file starts.

    Raises:
        ValueError: If the date is in the name of a directory, comes twice, or has a format that cannot be parsed.
    """

    before: str

    def __init__(self, template: str, schedule: Schedule) -> None:
        self._schedule = schedule
        # Hours and smaller units are counted from midnight, so that all processes agree.
        self._day = Schedule("midnight", utc=schedule.utc)
        self._directory, name = os.path.split(template)
        parts = _PLACE.split(name)
        if len(parts) != 3 or _PLACE.search(self._directory):
            msg = f"filename={template!r}: one date is needed, in the name of the file and not of a directory"
            raise ValueError(msg)
        #: The part of the name before the date, the date's format, and the part after it.
        self.before, self._format, self._after = parts
        self._names = re.compile(
            rf"{re.escape(self.before)}(.+?){re.escape(self._after)}(?:\.([1-9][0-9]*))?", re.DOTALL
        )
        moment = dt.datetime(2024, 2, 28, 13, 45, 59, tzinfo=dt.timezone.utc).timestamp()
        text = self._text_of(self.start_of(moment))
        # Without a year names would repeat, and Python warns about parsing a day without a year.
        if not re.search("%[YGyxc]", self._format) or self._parse(text) is None or os.sep in text:
            msg = f"filename={template!r}: {self._format!r} is no form of a date with a year that can be read again"
            raise ValueError(msg)

    @staticmethod
    def is_one(path: str) -> bool:
        """Return True if *path* has a placeholder for a date."""
        return _PLACE.search(path) is not None

    @property
    def is_coarse(self) -> bool:
        """Whether several intervals may share a name: for example, hourly intervals if the format has no hour."""
        schedule = self._schedule
        key = (self._format, schedule.when, schedule.interval, schedule.utc, schedule.at_time)
        if key not in _coarse:
            _coarse[key] = self._find_coarse()
        return _coarse[key]

    def _find_coarse(self) -> bool:
        start = self.start_of(dt.datetime(2024, 1, 1, 12, tzinfo=dt.timezone.utc).timestamp())
        names: set[str] = set()
        for _ in range(_INTERVALS):
            text = self._text_of(start)
            read = self._parse(text)
            if text in names or read is None or self._day.start_of(read, read) != self._day.start_of(start, start):
                return True
            names.add(text)
            start = self.end_of(start)
        return False

    def start_of(self, moment: float) -> float:
        """Return the start of the interval that *moment* is in, both in epoch seconds."""
        return self._schedule.start_of(moment, self._day.start_of(moment, moment))

    def end_of(self, start: float) -> float:
        """Return the end of the interval that begins at *start*; intervals below a day also end at midnight."""
        day = self._day.start_of(start, start)
        end = self._schedule.next_after(start, day if self._schedule.when in {"S", "M", "H"} else start)
        return min(end, self._day.next_after(day, day)) if self._schedule.when in {"S", "M", "H"} else end

    def path_at(self, moment: float) -> str:
        """Return the path of the file that is current at *moment*."""
        text = self._text_of(self.start_of(moment))
        return os.path.join(self._directory, f"{self.before}{text}{self._after}")

    def files_like(self, file_name: str) -> Iterator[tuple[tuple[float, int], str]]:
        """Yield the age and the path of the file *file_name*, if it has a name of this form."""
        found = self._names.fullmatch(file_name)
        start = None if found is None else self._parse(found[1])
        if found is not None and start is not None:
            number = int(found[2]) if found[2] else _LAST
            yield (start, number), os.path.join(self._directory, file_name)

    def _text_of(self, start: float) -> str:
        zone = dt.timezone.utc if self._schedule.utc else None
        return dt.datetime.fromtimestamp(start, zone).strftime(self._format)

    def _parse(self, text: str) -> float | None:
        with contextlib.suppress(ValueError, OverflowError, OSError):
            found = dt.datetime.strptime(text, self._format)  # noqa: DTZ007 - local time, or UTC below
            if found.strftime(self._format) == text:
                return (found.replace(tzinfo=dt.timezone.utc) if self._schedule.utc else found).timestamp()
        return None

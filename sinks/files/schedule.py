"""The times at which a file rolls over: `Schedule`."""

from __future__ import annotations

import datetime as dt
import math
import re
import time
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

#: The units of `logging.handlers.TimedRotatingFileHandler`, in any case.
When = Literal[
    "S", "M", "H", "D", "MIDNIGHT", "W0", "W1", "W2", "W3", "W4", "W5", "W6",
    "s", "m", "h", "d", "midnight", "w0", "w1", "w2", "w3", "w4", "w5", "w6",
]  # fmt: skip

_DAY: Final = 86_400
_WEEK: Final = 7
#: The epoch was a Thursday, three days after a Monday.
_EPOCH_WEEKDAY: Final = 3
#: No local time has ever been as far from UTC as this: the record is 15:56 hours (Manila before 1844).
_REACH: Final = 16 * 3600
_EPOCH: Final = dt.datetime(1970, 1, 1)  # by the wall clock
#: The first and last seconds of the years of four digits: strftime pads earlier years on some platforms only.
_FIRST_NAME: Final = (dt.datetime(1000, 1, 1) - _EPOCH) // dt.timedelta(seconds=1)
_LAST_NAME: Final = (dt.datetime(9999, 12, 31, 23, 59, 59) - _EPOCH) // dt.timedelta(seconds=1)
#: In days; longer than the calendar, and exact in a float when converted to seconds.
_FOR_EVER: Final = 10**7


class _Unit(NamedTuple):
    seconds: int
    suffix: str


_SUFFIX_OF_DAYS: Final = "%Y-%m-%d"
_UNITS: Final = {
    "S": _Unit(1, "%Y-%m-%d_%H-%M-%S"),
    "M": _Unit(60, "%Y-%m-%d_%H-%M"),
    "H": _Unit(3600, "%Y-%m-%d_%H"),
    "D": _Unit(_DAY, _SUFFIX_OF_DAYS),
}
_WEEKDAYS: Final = tuple(f"W{number}" for number in range(_WEEK))


def _pattern_of(suffix: str) -> re.Pattern[str]:
    # With groups, from which `Schedule.parse` takes the numbers.
    fields = re.sub("%[a-zA-Z]", r"(\\d\\d)", suffix.replace("%Y", r"(\d{4})"))
    return re.compile(rf"(?<!\d){fields}(?!\d)", re.ASCII)


_PATTERNS: Final = {
    suffix: _pattern_of(suffix) for suffix in (_SUFFIX_OF_DAYS, *(unit.suffix for unit in _UNITS.values()))
}


@dataclass(frozen=True, init=False)
class Schedule:
    """The times at which a time-rotated file rolls over, and the names of its rotated files. No clock, no I/O.

    A schedule divides time into intervals, without gaps. Each interval begins at a *boundary*, which belongs to it, and
    its file is named by that boundary.

    ============  =========================================  ========================
    *when*        boundaries                                 suffix
    ============  =========================================  ========================
    ``S``         every *interval* seconds from the anchor   ``2024-03-31_23-59-58``
    ``M``         every *interval* minutes from the anchor   ``2024-03-31_23-59``
    ``H``         every *interval* hours from the anchor     ``2024-03-31_23``
    ``D``         every *interval* days of 24 h, likewise    ``2024-03-31``
    ``midnight``  at *at_time* on every *interval*-th day,   ``2024-03-31``
                  counted from the anchor's
    ``W0``-``W6`` at *at_time* on each Monday (``W0``),      ``2024-03-31``
                  Tuesday, … Sunday (``W6``); without it at
                  the midnight that ends this day
    ============  =========================================  ========================

    Args:
        when: One of the above, in any case. Default ``"h"``.
        interval: The number of units between two boundaries, a whole number from 1 up. Default 1. Ignored for weekdays.
        utc: Use UTC instead of local time. Default False.
        at_time: Time of day of the boundaries of ``midnight`` and weekdays, without time zone; its ``fold`` is ignored.
            Default None: midnight, where a day begins, and where a weekday ends. Ignored for ``S``, ``M``, ``H`` and
            ``D``.

    Raises:
        ValueError: If an argument is invalid; the message names the argument and the value.

    Local time is that of the process, including ``TZ`` and `time.tzset`, read at each call. **A boundary at a time of
    day is the first moment at which the local clock shows that time or a later one.** If clocks are put forward over
    that time, the boundary is the moment of the change. If clocks are put back over it, the boundary is the first of
    the two moments, and the second is none. So days may have 23 or 25 hours. ``S``, ``M``, ``H`` and ``D`` count
    elapsed seconds, whatever the clock shows. A day that a zone skipped (Samoa, 30 December 2011) has no interval; with
    an *at_time* its interval lasts from the start of the next day until that time.

    Two different boundaries of ``midnight`` or of a weekday never have the same name. Boundaries of the other units
    may: in the hour that a zone repeats, and when the name is too coarse to distinguish them, such as two of ``D`` in
    a day of 25 hours.

    Moments are epoch seconds. Outside of the range of the platform's ``localtime`` (Windows: before 1970 and after the
    year 3000), standard time is assumed; names stop at the years 1000 and 9999. No method raises for a finite number.

    Immutable, and so safe from any thread.

    As in `logging.handlers.TimedRotatingFileHandler`, a weekday without a time of day means the midnight that *ends*
    this day, and with ``datetime.time(0)`` the one that begins it.

    Source: `logging.handlers.TimedRotatingFileHandler`; :pep:`495` on gaps and folds.
    """

    when: str
    interval: int
    utc: bool
    at_time: dt.time | None

    def __init__(
        self, when: str = "h", interval: int = 1, *, utc: bool = False, at_time: dt.time | None = None
    ) -> None:
        # Not generated by dataclass, which cannot convert arguments.
        for name, value in (
            ("when", _checked_when(when)),
            ("interval", _checked_interval(interval)),
            ("utc", _checked_utc(utc)),
            ("at_time", _checked_at_time(at_time)),
        ):
            object.__setattr__(self, name, value)

    @property
    def suffix(self) -> str:
        """The `strftime` format of the names, as documented for `logging`'s handler."""
        unit = _UNITS.get(self.when)
        return unit.suffix if unit else _SUFFIX_OF_DAYS

    @property
    def pattern(self) -> re.Pattern[str]:
        """The pattern of a name with this suffix, for ``finditer``, without a digit before or after it.

        Matches never overlap. A match need not be a valid time (``2024-99-99``): call `parse`.
        """
        return _PATTERNS[self.suffix]

    def start_of(self, moment: float, anchor: float) -> float:
        """Return the start of the interval that contains *moment*.

        Args:
            moment: Epoch seconds.
            anchor: A moment, in epoch seconds, from which intervals are counted: the start of one of them (``S``,
                ``M``, ``H``, ``D``), or any moment in the first day of one (``midnight``). It is ignored for weekdays,
                and for ``midnight`` with an interval of 1.

        Returns:
            The latest boundary that is not after *moment*.
        """
        unit = _UNITS.get(self.when)
        if unit:
            return self._grid(unit, moment, anchor)[0]
        return self._start_of_day(self._first_day(moment, anchor))

    def next_after(self, moment: float, anchor: float) -> float:
        """Return the first boundary after *moment*: the end of its interval, and the start of the next one.

        Args:
            moment: Epoch seconds.
            anchor: See `start_of`.
        """
        unit = _UNITS.get(self.when)
        if unit:
            return self._grid(unit, moment, anchor)[1]
        return self._start_of_day(self._first_day(moment, anchor) + self._days)

    def text_of(self, start: float) -> str:
        """Return the name of the interval that begins at *start*.

        For ``midnight`` and weekdays it is the date of the boundary, even if clocks were put forward over the boundary
        and past midnight. For any other moment it is the name of the natural interval that contains it: the second,
        minute, hour, day (from *at_time* to *at_time*) or week.
        """
        if self.when in _UNITS:
            whole = math.floor(start)
            wall = whole + self._offset(whole)
        else:
            wall = self._week_start(self._day_of(start)) * _DAY
        # datetime's strftime imports a module, which fails at the end of the interpreter; a rollover may occur then.
        return time.strftime(self.suffix, time.gmtime(min(max(wall, _FIRST_NAME), _LAST_NAME)))

    def parse(self, text: str) -> float | None:
        """Return the earliest start that `text_of` names *text*, or None if there is none.

        For example, None for ``2024-02-30``, for an hour that a zone skipped, and for a Tuesday with ``W0``.
        """
        found = self.pattern.fullmatch(text)
        if not found:
            return None
        try:
            named = dt.datetime(*map(int, found.groups()))  # type: ignore[arg-type]
        except ValueError:
            return None
        since_epoch = named - _EPOCH
        if self.when in _UNITS:
            start = self._first_reading(since_epoch.days * _DAY + since_epoch.seconds)
        else:
            start = self._start_of_day(since_epoch.days)
        return start if self.text_of(start) == text else None

    # -- counted seconds

    def _grid(self, unit: _Unit, moment: float, anchor: float) -> tuple[float, float]:
        step = float(min(unit.seconds * self.interval, _FOR_EVER * _DAY))
        index = math.floor((moment - anchor) / step)
        # The quotient is rounded, like anchor and moment, so a boundary may appear to be just before itself.
        if anchor + index * step > moment:
            index -= 1
        elif anchor + (index + 1) * step <= moment:
            index += 1
        return anchor + index * step, anchor + (index + 1) * step

    # -- calendar days, numbered from the epoch

    @property
    def _days(self) -> int:
        return min(self.interval, _FOR_EVER) if self.when == "MIDNIGHT" else _WEEK

    def _first_day(self, moment: float, anchor: float) -> int:
        """Return the first day of the interval that contains *moment*."""
        day = self._day_of(moment)
        if self.when == "MIDNIGHT":
            return day if self.interval == 1 else day - (day - self._day_of(anchor)) % self._days
        return self._week_start(day)

    def _week_start(self, day: int) -> int:
        """Return the latest day, at most *day*, that is the schedule's weekday; for ``midnight`` return *day*."""
        if self.when == "MIDNIGHT":
            return day
        # Without a time of day, it is the midnight at the end of the weekday, as in logging.
        weekday = int(self.when[1]) + (self.at_time is None)
        return day - (day + _EPOCH_WEEKDAY - weekday) % _WEEK

    def _day_of(self, moment: float) -> int:
        """Return the last day that has begun at *moment*; a day begins at *at_time*."""
        # Count down from a day that has certainly not begun. The date on the clock does not serve: when the clock is
        # put back over midnight, it shows yesterday's date again.
        day = math.floor((moment + _REACH) / _DAY) + 1
        while self._start_of_day(day) > moment:
            day -= 1
        return day

    def _start_of_day(self, day: int) -> float:
        at = self.at_time
        if at is None:
            return self._first_reading(day * _DAY)
        seconds: float = at.hour * 3600 + at.minute * 60 + at.second
        if at.microsecond:
            seconds += at.microsecond / 1e6
        return self._first_reading(day * _DAY + seconds)

    # -- the local clock

    def _offset(self, moment: int) -> int:
        """Return by how many seconds the clock, local or UTC, is ahead of UTC at *moment*."""
        if self.utc:
            return 0
        try:
            return time.localtime(moment).tm_gmtoff
        except (OverflowError, OSError, ValueError):
            return -time.timezone

    def _first_reading(self, wall: float) -> float:
        """Return the first moment at which the clock shows *wall*, a reading as if in UTC, or a later reading."""
        low, high = math.floor(wall) - _REACH, math.floor(wall) + _REACH
        before, after = self._offset(low), self._offset(high)
        reached = wall - before
        if before == after:
            return float(reached)
        # The clock was changed near here. Find the first moment under the new rule.
        while high - low > 1:
            middle = (low + high) // 2
            if self._offset(middle) == before:
                low = middle
            else:
                high = middle
        return float(reached if reached < high else max(high, wall - after))


def _checked_when(when: str) -> str:
    known = (*_UNITS, "MIDNIGHT", *_WEEKDAYS)
    if not isinstance(when, str) or when.upper() not in known:
        msg = f"when={when!r} is not one of {', '.join(known)}, in any case"
        raise ValueError(msg)
    return when.upper()


def _checked_interval(interval: int) -> int:
    if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
        msg = f"interval={interval!r} is not a whole number from 1 up"
        raise ValueError(msg)
    return interval


def _checked_utc(utc: bool) -> bool:
    if not isinstance(utc, bool):
        msg = f"utc={utc!r} is not True or False"
        raise ValueError(msg)  # noqa: TRY004 - one error for every argument that is not usable
    return utc


def _checked_at_time(at_time: dt.time | None) -> dt.time | None:
    if at_time is None:
        return None
    if not isinstance(at_time, dt.time):
        msg = f"at_time={at_time!r} is not a datetime.time"
        raise ValueError(msg)  # noqa: TRY004
    if at_time.tzinfo is not None:
        msg = f"at_time={at_time!r} has a time zone: give a time without one, and utc=True for UTC"
        raise ValueError(msg)
    return at_time

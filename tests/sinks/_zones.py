"""Time zones for the tests: the process's own, and what they are checked against."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import time
import zoneinfo
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Each has something that trips a plain port up.
ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",  # half an hour of daylight saving
    "Africa/Casablanca",  # four changes a year, around Ramadan
    "America/Sao_Paulo",  # changes at midnight, which so is left out
    "Asia/Beirut",  # the same
    "Asia/Dhaka",  # from 23:00 to 24:00, once
    "Pacific/Apia",  # left out 2011-12-30
]


@contextlib.contextmanager
def local_zone(name: str) -> Iterator[zoneinfo.ZoneInfo]:
    """Let local time be that of the zone *name*; give the zone."""
    if not hasattr(time, "tzset"):
        pytest.skip("this platform cannot change its local time (no time.tzset)")
    try:
        zone = zoneinfo.ZoneInfo(name)
    except zoneinfo.ZoneInfoNotFoundError:
        pytest.skip(f"the system knows no zone {name} (no tzdata)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", name)
        time.tzset()
        try:
            for year in (2011, 2024):
                now = dt.datetime(year, 7, 1, tzinfo=zone)
                if now.utcoffset() != dt.timedelta(seconds=time.localtime(now.timestamp()).tm_gmtoff):
                    pytest.skip(f"the C library and zoneinfo do not agree about {name}")
            yield zone
        finally:
            patch.undo()
            time.tzset()


@functools.cache
def changes(zone: zoneinfo.ZoneInfo) -> list[int]:
    """Return the moments from 1990 to 2037 at which the clock is changed in *zone*, to the quarter of an hour."""

    def offset(moment: int) -> dt.timedelta | None:
        return dt.datetime.fromtimestamp(moment, zone).utcoffset()

    found = []
    for day in range(7305 * 86_400, 24_837 * 86_400, 86_400):
        if offset(day) != offset(day + 86_400):
            found += [
                moment for moment in range(day + 900, day + 86_401, 900) if offset(moment) != offset(moment - 900)
            ]
    return found

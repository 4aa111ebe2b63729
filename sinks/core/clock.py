"""The clock by which this package measures how long it waits."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Return the seconds since some moment, the same number as `time.monotonic`. Tests that freeze time stop that one, and
#: a wait that is measured by a clock that stands still has no end; nobody stops this one.
now: Callable[[], float] = (
    partial(time.clock_gettime, getattr(time, "CLOCK_UPTIME_RAW", time.CLOCK_MONOTONIC))
    if hasattr(time, "clock_gettime")
    else partial(time.monotonic)
)

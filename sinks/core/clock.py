"""The clock that this package measures waits by."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Return the same number as `time.monotonic`. Libraries that freeze time in tests replace that function, and a wait
#: measured by a frozen clock never ends; they do not replace this one.
now: Callable[[], float] = (
    partial(time.clock_gettime, getattr(time, "CLOCK_UPTIME_RAW", time.CLOCK_MONOTONIC))
    if hasattr(time, "clock_gettime")
    else partial(time.monotonic)
)

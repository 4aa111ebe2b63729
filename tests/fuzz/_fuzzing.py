"""What the fuzz tests share: a few examples each time, and hours of them if asked for."""

from __future__ import annotations

import os
import sys
import time
from functools import wraps
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, Phase, given, settings

if TYPE_CHECKING:
    from collections.abc import Callable

#: How long each fuzz test goes on finding new examples, in seconds; without it, a few that are always the same.
SECONDS = float(os.environ.get("OUTFALL_FUZZ_SECONDS") or 0)

#: How many examples a test has in the suite, and in each of the rounds of a long run.
_IN_SUITE, _IN_ROUND = 40, 300


def fuzz(**strategies: Any) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Call the decorated check with what *strategies* draw, by name.

    In the suite the examples are few and always the same. With ``OUTFALL_FUZZ_SECONDS`` new ones are tried for so
    long, and how many is told on stderr. What fails is kept in ``.hypothesis`` and tried first the next time, until it
    has become a test of its own.
    """

    def decorate(check: Callable[..., None]) -> Callable[[], None]:
        options: dict[str, Any] = {
            "deadline": None,
            "suppress_health_check": list(HealthCheck),
            "max_examples": _IN_ROUND if SECONDS else _IN_SUITE,
            "derandomize": not SECONDS,
            "phases": [Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink],
        }
        if not SECONDS:
            options["database"] = None
        tried = 0

        @wraps(check)
        def counted(**drawn: Any) -> None:
            nonlocal tried
            tried += 1
            check(**drawn)

        def test() -> None:
            deadline = time.monotonic() + SECONDS
            while True:
                settings(**options)(given(**strategies)(counted))()
                if time.monotonic() >= deadline:
                    break
            if SECONDS:
                sys.__stderr__.write(f"\n{check.__name__}: {tried} examples\n")

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate

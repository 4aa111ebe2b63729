"""Waits for another thread that an interrupt cannot break."""

from __future__ import annotations

import contextlib
from _thread import allocate_lock
from typing import TYPE_CHECKING, Any

from outfall.sinks.core.clock import now
from outfall.sinks.core.logginglock import released

if TYPE_CHECKING:
    from collections.abc import Callable

#: A lock's ``acquire`` refuses very long timeouts.
LONGEST_WAIT_SECONDS = 86_400.0


class Bells:
    """Wakes all threads that wait for a change.

    Each thread waits on a lock of its own, and holds no other lock meanwhile. `threading.Condition` is not used, nor
    `threading.Event`, which is made of one: it releases its lock and acquires it again. A KeyboardInterrupt in between
    is replaced by a RuntimeError, since the lock is not held.

    A forked child must make a new object.
    """

    def __init__(self) -> None:
        self._bells: list[Any] = []

    def __len__(self) -> int:
        """Return the number of waiting threads."""
        return len(self._bells)

    def wait(self, seconds: float, done: Callable[[], object]) -> bool:
        """Wait until *done* is true; return False if *seconds* pass first.

        *done* is called at the beginning and after each `ring`: make it true before calling `ring`. This thread is
        registered before the first call, so that no `ring` is missed.
        """
        deadline = now() + seconds
        bell = allocate_lock()
        bell.acquire()
        self._bells.append(bell)
        try:
            while True:
                if done():
                    return True
                left = min(deadline - now(), LONGEST_WAIT_SECONDS)
                if left <= 0 or not released(bell.acquire, True, left):
                    return bool(done())
        finally:
            self._bells.remove(bell)

    def ring(self) -> None:
        """Let all waiting threads look whether what they wait for is true."""
        for bell in tuple(self._bells):
            with contextlib.suppress(RuntimeError):  # another thread has released it
                bell.release()


class Flag:
    """A flag that becomes true once, and that threads can wait for."""

    def __init__(self) -> None:
        self._bells = Bells()
        self._value = False

    def is_set(self) -> bool:
        """Return whether the flag is true."""
        return self._value

    def set(self) -> None:
        """Make the flag true, and wake all waiting threads."""
        self._value = True
        self._bells.ring()

    def wait(self, seconds: float) -> bool:
        """Wait until the flag is true; return False if *seconds* pass first."""
        return self._value or self._bells.wait(seconds, self.is_set)

"""Waiting for another thread, in a way that an interrupt cannot break."""

from __future__ import annotations

import contextlib
from _thread import allocate_lock
from typing import TYPE_CHECKING, Any

from outfall.sinks.core.logginglock import released

if TYPE_CHECKING:
    from collections.abc import Callable

#: Longer waits are too long for the system's clock.
LONGEST_WAIT_SECONDS = 86_400.0


class Bells:
    """Wakes all threads that wait for something to change.

    Each of them waits on a lock of its own and holds nothing meanwhile. `threading.Condition` gives up the lock that it
    is used with and takes it again: a KeyboardInterrupt that comes in between is replaced by the RuntimeError of a lock
    that is not held. `threading.Event` is made of one.

    A forked child makes new ones.
    """

    def __init__(self) -> None:
        self._bells: list[Any] = []

    def __len__(self) -> int:
        """Return how many threads wait."""
        return len(self._bells)

    def wait(self, seconds: float, done: Callable[[], object]) -> bool:
        """Wait until `ring` is called, unless *done* is true already; return False if *seconds* pass first.

        Who rings makes *done* true before; it is asked for when `ring` knows of this thread.
        """
        bell = allocate_lock()
        bell.acquire()
        self._bells.append(bell)
        try:
            return bool(done()) or released(bell.acquire, True, min(max(0.0, seconds), LONGEST_WAIT_SECONDS))
        finally:
            self._bells.remove(bell)

    def ring(self) -> None:
        """Wake all who wait."""
        for bell in tuple(self._bells):
            with contextlib.suppress(RuntimeError):  # rung already
                bell.release()


class Flag:
    """Something that becomes true once, and that threads wait for."""

    def __init__(self) -> None:
        self._bells = Bells()
        self._value = False

    def is_set(self) -> bool:
        """Return whether it is true."""
        return self._value

    def set(self) -> None:
        """Make it true, and wake all who wait."""
        self._value = True
        self._bells.ring()

    def wait(self, seconds: float) -> bool:
        """Wait until it is true; return False if *seconds* pass first."""
        return self._value or self._bells.wait(seconds, self.is_set) or self._value

"""The lock around a sink's write."""

from __future__ import annotations

import sys
import time
from _thread import get_ident
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import CodeType, FrameType, TracebackType

    from typing_extensions import Self

#: What is put back on a `WriteLock.turn`; a tuple, so that ``turn += TURN`` is one step of the interpreter.
TURN = (None,)

#: The code of functions that take and give a turn by hand, holding it while their local ``holding`` is true.
HAND_TAKEN: set[CodeType] = set()


class WriteLock:
    """A re-entrant mutex that a hot path can take and give without calling anything.

    `threading.RLock` costs a quarter of a microsecond a use, more than all the rest that `FileSink.handle` adds to the
    bare system call. Here the right to go on is the one item of the list `turn`, and the hot path takes and gives it in
    single interpreter steps, between which neither another thread nor a signal handler can come::

        turn = self._lock.turn
        del turn[0]            # IndexError: somebody else has it
        holding = True
        try:
            ...
        finally:
            turn += TURN

    There is no call between taking it and the ``try``, so a KeyboardInterrupt cannot lose it. A function that does this
    adds its code object to `HAND_TAKEN`: a signal handler or ``__del__`` that logs while its own thread holds the turn
    that way finds the frame on its stack and goes on, as with an RLock.

    Everybody else uses it like an RLock, with ``with`` or `acquire` and `release`. Who must wait polls, from 50 µs to
    1 ms, instead of queueing: whoever holds the turn rarely keeps it for longer than one ``write``.

    A forked child must make a new one.
    """

    __slots__ = ("_borrowed", "_depth", "_owner", "turn")

    def __init__(self) -> None:
        self.turn: list[None] = [None]
        self._owner = 0
        self._depth = 0
        self._borrowed = False

    def acquire(self, timeout: float = -1) -> bool:
        """Take the lock; return False if *timeout* seconds passed first (a negative one waits for ever)."""
        me = get_ident()
        if self._owner == me:
            self._depth += 1
            return True
        deadline = None if timeout < 0 else time.monotonic() + timeout
        pauses = 0
        while True:
            try:
                del self.turn[0]
            except IndexError:
                if deadline is not None and time.monotonic() >= deadline:
                    return False
                pauses += 1
                if self._pause(pauses):
                    self._borrowed = True
                    break
            else:
                break
        self._owner = me
        self._depth = 1
        return True

    def release(self) -> None:
        """Give the lock back, once for every `acquire`."""
        self._depth -= 1
        if self._depth == 0:
            borrowed = self._borrowed
            self._borrowed = False
            self._owner = 0
            if not borrowed:
                self.turn += TURN

    def __enter__(self) -> Self:
        # Not acquire(): a KeyboardInterrupt on the way back from a call would leave the lock taken and nobody to
        # release it. Between `del` and the return there is no place for one.
        me = get_ident()
        if self._owner == me:
            self._depth += 1
            return self
        pauses = 0
        while True:
            try:
                del self.turn[0]
            except IndexError:
                pauses += 1
                if self._pause(pauses):
                    self._borrowed = True
                    break
            else:
                break
        self._owner = me
        self._depth = 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def _pause(self, pauses: int) -> bool:
        """Wait a little, the longer the more often; return True if this very thread has the turn, taken by hand."""
        # A look at the stack costs more than two yields, and mostly the turn is back by then.
        if pauses == _YIELDS + 1:
            frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - nothing public shows the caller's frames
            while frame is not None:
                if frame.f_code in HAND_TAKEN:
                    names = frame.f_locals
                    if names.get("turn") is self.turn and names.get("holding"):
                        return True
                frame = frame.f_back
        time.sleep(0 if pauses <= _YIELDS else min(0.000_05 * pauses, 0.001))
        return False


_YIELDS = 2

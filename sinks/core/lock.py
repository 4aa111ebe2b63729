"""The lock around a sink's write."""

from __future__ import annotations

import sys
import time
from _thread import get_ident
from sys import is_finalizing
from typing import TYPE_CHECKING

from outfall.sinks.core import lifecycle
from outfall.sinks.core.clock import now
from outfall.sinks.core.logginglock import held, released

if TYPE_CHECKING:
    from types import CodeType, FrameType, TracebackType
    from typing import SupportsIndex

    from typing_extensions import Self

#: Added to `WriteLock.turn` to release the lock; a tuple, so that ``turn += TURN`` is one step of the interpreter.
TURN = (None,)

#: The code objects of functions that take a turn inline. Such a function holds it while its local ``holding`` is true.
HAND_TAKEN: set[CodeType] = set()

#: Without the global lock, other threads may run between any two steps of the interpreter.
HAS_GLOBAL_LOCK: bool = getattr(sys, "_is_gil_enabled", lambda: True)()


class _Turn(list[None]):
    """A list whose one item is the right to hold the lock."""

    __slots__ = ()


class _ReservedTurn(_Turn):
    """A turn that a waiter has reserved: other threads cannot delete the item."""

    __slots__ = ()

    def __delitem__(self, index: SupportsIndex | slice) -> None:
        raise IndexError


class WriteLock:
    """A re-entrant mutex that a hot path can acquire and release without a call.

    `threading.RLock` costs a quarter of a microsecond for each use, more than everything else that `FileSink.handle`
    adds to the bare system call. Here the one item of the list `turn` is the right to hold the lock. The hot path takes
    it and puts it back in single steps of the interpreter, in which neither another thread nor a signal handler runs::

        turn = self._lock.turn
        del turn[0]            # IndexError: another thread has it
        holding = True
        try:
            ...
        finally:
            try:
                holding = False
                turn += TURN
            finally:
                pass

    There is no call between taking it and the ``try``, so a KeyboardInterrupt cannot lose it. The inner ``try`` is for
    Python 3.10, which checks for signals at the beginning of a handler, unless that begins with a ``try``.

    A function that does this adds its code object to `HAND_TAKEN`. If a signal handler or ``__del__`` logs while its
    own thread holds the turn that way, the lock finds the frame on the stack, and is re-entrant as an RLock is.

    All other code uses the lock like an RLock, with ``with`` or with `acquire` and `release` in one function. A waiter
    polls, every 50 µs to 1 ms, instead of queueing: the owner rarely holds the lock for longer than one ``write``.

    Threads that log without a pause hold the lock whenever they release the interpreter, in ``write``, so a waiter that
    polls could find it taken every time. After a while the waiter reserves the lock: it exchanges the class of the turn
    for one whose item only the waiter can delete. The hot path needs no check for that.

    A KeyboardInterrupt may come at the entry of ``__exit__``, before its first line runs, and no code can prevent that.
    So the lock remembers the frame that acquired it. A waiter takes the lock over if that frame has finished.

    A forked child must make a new lock.
    """

    __slots__ = ("_borrowed", "_frame", "_owner", "_reserved", "depth", "turn")

    def __init__(self) -> None:
        self.turn: list[None] = _Turn(TURN)
        #: The thread that has reserved the turn, with its frame; or None.
        self._reserved: tuple[int, FrameType] | None = None
        self._owner = 0
        #: The frame that acquired the lock; None while it is free.
        self._frame: FrameType | None = None
        #: How often the holding thread has acquired the lock; taking the turn inline counts too.
        self.depth: int = 0
        #: True if an outer frame of the same thread has taken the turn inline. That frame puts it back.
        self._borrowed = False

    # A signal handler or another thread can run only at calls, at the start of a function, and where a loop jumps back.
    # Statements below that must be atomic have none of these between them.

    def acquire(self, timeout: float = -1) -> bool:
        """Acquire the lock; return False if *timeout* seconds pass first (a negative one waits for ever)."""
        return self._take(sys._getframe(1), None if timeout < 0 else timeout)

    def release(self) -> None:
        """Release the lock, once for every `acquire`."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        frame = sys._getframe(1)
        me = get_ident()
        try:
            del self.turn[0]
            self._borrowed, self.depth, self._owner, self._frame = False, 1, me, frame
        except IndexError:
            self._take(frame, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        depth = self.depth - 1
        self.depth = depth
        if depth == self._borrowed:
            self._owner = 0
            self._frame = None
            if not self._borrowed:
                self.turn += TURN

    def _take(self, frame: FrameType, seconds: float | None) -> bool:
        reservation: tuple[int, FrameType] | None = None
        me = get_ident()
        turn = self.turn
        pauses = 0
        lends = held()
        began = now()
        try:
            while True:
                try:
                    del turn[0]
                    self._borrowed, self.depth, self._owner, self._frame = False, 1, me, frame
                except IndexError:
                    pass
                else:
                    return True
                # Compare threads, not frames: a signal handler of the same thread may run here.
                if self._reserved is not None and self._reserved[0] == me and turn:
                    turn *= 0
                    self._borrowed, self.depth, self._owner, self._frame = False, 1, me, frame
                    return True
                if self._owner == me:
                    if self._take_from_the_dead():
                        continue
                    self.depth += 1
                    return True
                waited = now() - began
                late = seconds is not None and waited >= seconds
                # Walking the stack costs more than two yields, after which the turn is mostly back.
                if (late or pauses == _YIELDS) and self._taken_by_hand(frame):
                    self._borrowed, self.depth, self._owner, self._frame = True, 2, me, frame
                    return True
                if pauses > _YIELDS and is_finalizing():
                    # The interpreter is shutting down: other threads no longer run, so none of them releases the lock.
                    self._reserved, self._owner, self._frame = None, 0, None
                    turn.__class__ = _Turn
                    turn[:] = TURN
                    continue
                if late:
                    return False
                if waited >= _PATIENCE_SECONDS and self._reserved is None:
                    reservation = self._reserved = (me, frame)
                    turn.__class__ = _ReservedTurn
                pauses += 1
                if pauses % _PAUSES_BETWEEN_LOOKS == 0:
                    self._take_from_the_dead()
                pause = 0.000_05 if reservation is not None else min(0.000_05 * pauses, 0.001)
                if pauses <= _YIELDS:
                    pause = 0.0
                if lends:
                    released(time.sleep, pause)
                else:
                    time.sleep(pause)
        finally:
            if reservation is not None and self._reserved is reservation:
                self._reserved = None
                turn.__class__ = _Turn

    def _taken_by_hand(self, frame: FrameType | None) -> bool:
        """Return True if *frame* or one of its callers has taken the turn inline."""
        while frame is not None:
            if frame.f_code in HAND_TAKEN:
                names = frame.f_locals
                if names.get("turn") is self.turn and names.get("holding"):
                    return True
            frame = frame.f_back
        return False

    def _take_from_the_dead(self) -> bool:
        """Release the lock if the frame that acquired it has finished; return False if it still runs."""
        reserved = self._reserved
        dead = reserved is not None and _has_ended(reserved[1], reserved[0])
        if dead and self._reserved is reserved:
            self._reserved = None
            self.turn.__class__ = _Turn
        owner, frame = self._owner, self._frame
        if frame is not None and not _has_ended(frame, owner):
            return False
        # A finished frame will never release the lock. Only one thread passes this comparison, since no other thread
        # runs between it and the assignment.
        if frame is not None and self._frame is frame:
            self._frame = None
            self._owner = 0
            if not self._borrowed:
                self.turn += TURN
        return True


def _has_ended(frame: FrameType, thread: int) -> bool:
    """Return True if *frame*, of *thread*, has finished."""
    if thread == get_ident():
        return not _runs(frame, sys._getframe())
    # In a child that C code has forked, Python still lists the parent's threads. Reading their stacks, whose memory is
    # reused by now, crashes Python 3.11 and 3.12.
    return not lifecycle.forked_in_c() and not _runs(frame, sys._current_frames().get(thread))


def _runs(sought: FrameType | None, frame: FrameType | None) -> bool:
    """Return True if *sought* is *frame* or one of its callers."""
    # A frame that finishes meanwhile keeps its f_back, so the walk along a running thread's stack misses no frame.
    while frame is not None:
        if frame is sought:
            return True
        frame = frame.f_back
    return False


_YIELDS = 2
_PATIENCE_SECONDS = 0.02
_PAUSES_BETWEEN_LOOKS = 16

"""What happens to all sinks of a process when it forks and when it exits."""

from __future__ import annotations

import atexit

# Imported for its atexit hook as well: ours must be registered after logging's, to run before it.
import logging
import mmap
import os
import sys
import time
import weakref
from _thread import get_ident
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from outfall.sinks.core.clock import now

if TYPE_CHECKING:
    from collections.abc import Callable

#: How long the exit hook lets all sinks together drain, in seconds.
EXIT_DEADLINE_SECONDS = 5.0

#: Beyond that time a flush or close without a timeout of its own still waits so long, for a lock that is held a moment.
_LEAST_SECONDS = 0.1

#: Runs before ours at exit, so that what it still logs finds sinks that were drained but are open.
_: Callable[..., None] = logging.shutdown


class Participant(Protocol):
    """What a sink lets this module do to it."""

    #: Whether a thread delivers, which may be told to make haste before it is waited for.
    delivers_later: ClassVar[bool]

    @property
    def has_owner(self) -> bool:
        """Whether another participant owns this one, and drains it with itself."""
        ...

    def hasten(self, deadline: float) -> None:
        """Have a thread that delivers linger no more; until *deadline*, by the monotonic clock, it is waited for."""

    def drain(self, timeout: float) -> None:
        """Put out what waits, within *timeout* seconds, and keep nothing back from now on."""

    def after_fork(self) -> None:
        """Replace locks, connections and queues that belong to the parent. Called in the child."""


#: Not a WeakSet: going through one fails if another thread adds to it meanwhile, while list() of a set is one step.
_participants: set[weakref.ref[Any]] = set()
_in_child: list[Callable[[], None]] = []
_at_end: list[Callable[[], None]] = []


class _State:
    pid = os.getpid()
    draining = False
    #: Until when the exit may wait for sinks, by the monotonic clock, and how much of its time it has spent.
    deadline = 0.0
    spent = 0.0
    armed = False
    forked_in_c = False


def exiting() -> bool:
    """Return True once the exit hook has begun: whatever comes now must not wait in a buffer."""
    return _State.draining


def forked_in_c() -> bool:
    """Return True in a child whose fork Python was not told of: it takes the parent's threads for its own."""
    return _State.forked_in_c


def patience(seconds: float) -> float:
    """Return how long who has *seconds* to wait may do so: once the process exits, not beyond what all sinks share."""
    if not _State.draining:
        return seconds
    return min(seconds, max(_LEAST_SECONDS, _State.deadline - now()))


def join(participant: Participant) -> None:
    """Have *participant* told of forks and of the exit for as long as it lives (it is held weakly)."""
    _participants.add(weakref.ref(participant, _participants.discard))


def participants() -> list[Any]:
    """Return what takes part and is alive: sinks, listeners."""
    return [participant for reference in list(_participants) if (participant := reference()) is not None]


def call_in_child(function: Callable[[], None]) -> None:
    """Have *function* called in every forked child, before any sink is told."""
    _in_child.append(function)


def call_at_end(function: Callable[[], None]) -> None:
    """Have *function* called when the exit hook has drained all sinks."""
    _at_end.append(function)


def drain() -> None:
    """Drain every open sink, all under one deadline. They stay open: other exit hooks may still log.

    Runs at exit by `atexit`, and where Python runs no `atexit` (children of `multiprocessing`) by
    `multiprocessing.util.Finalize`; where it runs by both, what the first has left of the time is for the second.

    Raises:
        BaseException: What the last of those sinks that raised has raised (one whose ``on_error`` is ``"raise"``),
            when all have been drained.
    """
    if not here[0]:
        notice_fork()
    begin = now()
    _State.draining = True
    deadline = _State.deadline = begin + max(0.0, EXIT_DEADLINE_SECONDS - _State.spent)
    # All threads at once, so that a target that is away costs the others no time. What others own goes last: it may be
    # in the hands of its owner's thread.
    living = sorted(participants(), key=lambda participant: (participant.has_owner, participant.delivers_later))
    failure: BaseException | None = None
    steps: tuple[Callable[[Participant], None], ...] = (
        lambda participant: participant.hasten(deadline),
        lambda participant: participant.drain(max(0.0, deadline - now())),
    )
    for step in steps:
        for participant in living:
            try:
                step(participant)
            except BaseException as error:
                failure = error
    _State.spent += now() - begin
    for function in _at_end:
        function()
    if failure is not None:
        raise failure


class _ByNumber:
    """Stands for `_page` where there is none: the process's number is asked for each time."""

    value: int = 1

    def __getitem__(self, index: int) -> int:
        return self.value if os.getpid() == _State.pid else 0

    def __setitem__(self, index: int, value: int) -> None:
        self.value = value


def _page() -> mmap.mmap | _ByNumber:
    """Return a page of memory that the system fills with zeros in a forked child."""
    if sys.platform != "linux":
        return _ByNumber()
    try:
        made = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        made.madvise(_MADV_WIPEONFORK)
    except (OSError, ValueError, AttributeError):
        return _ByNumber()
    return made


#: Linux 4.14 has it, Python has no name for it: https://man7.org/linux/man-pages/man2/madvise.2.html
_MADV_WIPEONFORK = 18

#: ``here[0]`` is 0 in a child that was forked without a word to Python, as uWSGI does in C, until `notice_fork` was
#: called there. Asked for each event: it costs 15 ns, the process's number 50 to 120.
here: mmap.mmap | _ByNumber = _page()
here[0] = 1

#: Which thread tells the sinks of such a child.
_noticing: dict[int, tuple[int]] = {}


def notice_fork() -> None:
    """Do in a forked child what Python's own fork would have done; called where ``here[0]`` is 0.

    Threads that come meanwhile wait until it is done.
    """
    me = (get_ident(),)
    first = _noticing.setdefault(os.getpid(), me)
    if first is me:
        _after_fork_in_child(in_c=True)
    while not here[0] and first != me:
        time.sleep(0.000_5)


def _after_fork_in_child(*, in_c: bool = False) -> None:
    _State.pid = os.getpid()
    _State.forked_in_c = in_c
    _State.draining = False
    _State.spent = 0.0
    for function in _in_child:
        function()
    try:
        _tell_all()
    finally:
        here[0] = 1
        _noticing.clear()
        arm()


def _tell_all() -> None:
    failure: Exception | None = None
    for participant in participants():
        try:
            participant.after_fork()
        except Exception as error:
            failure = error
    if failure is not None:
        raise failure


class _Anchor:
    """What `multiprocessing.util.register_after_fork` holds on to."""


_anchor = _Anchor()


def arm() -> None:
    """Have all sinks drained before `multiprocessing` closes its queues at exit; called when it may have come up since.

    Its own hook runs before ours if it was imported later.
    """
    # multiprocessing is not imported for this: whoever is, or is about to make, one of its children has it already.
    util = sys.modules.get("multiprocessing.util")
    if util is None or _State.armed:
        return
    _State.armed = True
    # A child first clears the finalizers it inherited and then runs these, so here is the place to register anew.
    util.register_after_fork(_anchor, _arm_finalizer)
    _arm_finalizer(_anchor)


def _arm_finalizer(_anchor: _Anchor) -> None:
    util = sys.modules["multiprocessing.util"]
    # Before the queues of multiprocessing close (their priority is 10): a sink may put its events there.
    util.Finalize(None, drain, exitpriority=100)


atexit.register(drain)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork_in_child)
arm()

"""The hooks that fork and exit of the process call for all sinks."""

from __future__ import annotations

import atexit

# Imported for its atexit hook as well: the hook below must be registered after it, to run before it.
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

#: The time limit of the exit hook, in seconds, for draining all sinks together.
EXIT_DEADLINE_SECONDS = 5.0

#: After that time a flush or close without a timeout still waits this long, for locks that are held for a moment.
_LEAST_SECONDS = 0.1

#: Keeps the import of `logging`. Its hook runs after the one below: what is still logged then finds sinks that are
#: drained but open.
_: Callable[..., None] = logging.shutdown


class Participant(Protocol):
    """The protocol of objects that take part in fork and exit: sinks and listeners."""

    #: Whether a thread delivers events, so that `hasten` helps before `drain`.
    delivers_later: ClassVar[bool]

    @property
    def has_owner(self) -> bool:
        """Whether another participant owns this one and drains it."""
        ...

    def hasten(self, deadline: float) -> None:
        """Make the delivering thread send waiting events at once; `drain` waits until *deadline* (monotonic clock)."""

    def drain(self, timeout: float) -> None:
        """Put out all waiting events within *timeout* seconds, and buffer no more from now on."""

    def after_fork(self) -> None:
        """Replace the parent's locks, connections and queues; called in the child."""


#: Not a WeakSet: iterating over one fails if another thread adds to it meanwhile; list() of a set is atomic.
_participants: set[weakref.ref[Any]] = set()
_in_child: list[Callable[[], None]] = []
_at_end: list[Callable[[], None]] = []


class _State:
    pid = os.getpid()
    draining = False
    #: The deadline of the exit hook, by the monotonic clock, and the time it has spent so far.
    deadline = 0.0
    spent = 0.0
    armed = False
    forked_in_c = False


def exiting() -> bool:
    """Return True once the exit hook has begun: from then on no event may wait in a buffer."""
    return _State.draining


def forked_in_c() -> bool:
    """Return True in a child that C code has forked: Python still believes that the parent's threads run in it."""
    return _State.forked_in_c


def patience(seconds: float) -> float:
    """Return the time limit for a wait of *seconds*; during the exit, at most what is left of the shared deadline."""
    if not _State.draining:
        return seconds
    return min(seconds, max(_LEAST_SECONDS, _State.deadline - now()))


def join(participant: Participant) -> None:
    """Register *participant* for fork and exit; only a weak reference is kept."""
    _participants.add(weakref.ref(participant, _participants.discard))


def participants() -> list[Any]:
    """Return the registered participants that still exist."""
    return [participant for reference in list(_participants) if (participant := reference()) is not None]


def call_in_child(function: Callable[[], None]) -> None:
    """Register *function* to be called in every forked child, before the participants' ``after_fork``."""
    _in_child.append(function)


def call_at_end(function: Callable[[], None]) -> None:
    """Register *function* to be called after the exit hook has drained all sinks."""
    _at_end.append(function)


def drain() -> None:
    """Drain every open sink under one deadline. Sinks stay open, since other exit hooks may still log.

    `atexit` calls this at exit. Children of `multiprocessing` run no `atexit` hooks: there
    `multiprocessing.util.Finalize` calls it. If both do, the second call has the time that the first has left.

    Raises:
        BaseException: The last exception of a sink (one whose ``on_error`` is ``"raise"``), after all were drained.
    """
    if not here[0]:
        notice_fork()
    begin = now()
    _State.draining = True
    deadline = _State.deadline = begin + max(0.0, EXIT_DEADLINE_SECONDS - _State.spent)
    # First hasten all threads, so that they work at the same time. Owned sinks come last, since their owner's thread
    # may be using them.
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
    """Stands in for the page of memory where there is none, by comparing process ids."""

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


#: Since Linux 4.14; Python has no name for it. https://man7.org/linux/man-pages/man2/madvise.2.html
_MADV_WIPEONFORK = 18

#: ``here[0]`` is 0 in a child that C code has forked without Python's hooks, as uWSGI does, until `notice_fork` is
#: called. It is read for each event, in 15 ns; ``os.getpid()`` takes 50 to 120 ns.
here: mmap.mmap | _ByNumber = _page()
here[0] = 1

#: The thread that runs the hooks in such a child, by process id.
_noticing: dict[int, tuple[int]] = {}


def notice_fork() -> None:
    """Run the hooks that Python's own fork would have run; called in a child, if ``here[0]`` is 0.

    Other threads that call it meanwhile wait until the hooks have run.
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
        _call_after_fork()
    finally:
        here[0] = 1
        _noticing.clear()
        arm()


def _call_after_fork() -> None:
    failure: Exception | None = None
    for participant in participants():
        try:
            participant.after_fork()
        except Exception as error:
            failure = error
    if failure is not None:
        raise failure


class _Anchor:
    """An object for `multiprocessing.util.register_after_fork`, which keeps a weak reference."""


_anchor = _Anchor()


def arm() -> None:
    """Register `drain` to run before `multiprocessing` closes its queues at exit, if that module is imported.

    Called whenever the module may have been imported since: then its own atexit hook runs before `drain`.
    """
    # multiprocessing need not be imported here: a process that is its child, or makes one, has imported it.
    util = sys.modules.get("multiprocessing.util")
    if util is None or _State.armed:
        return
    _State.armed = True
    # A child first clears the finalizers that it inherited, and then calls the functions registered here.
    util.register_after_fork(_anchor, _arm_finalizer)
    _arm_finalizer(_anchor)


def _arm_finalizer(_anchor: _Anchor) -> None:
    util = sys.modules["multiprocessing.util"]
    # A higher priority runs first. The queues of multiprocessing, where a sink may put events, close with 10.
    util.Finalize(None, drain, exitpriority=100)


atexit.register(drain)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork_in_child)
arm()

"""The lock around a sink's write."""

from __future__ import annotations

import ast
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from outfall.sinks.core.lock import HAND_TAKEN, TURN, WriteLock
from tests.sinks._processes import PATIENCE_SECONDS, ROOT, check, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _take_by_hand(lock: WriteLock, then: Callable[[], object]) -> None:
    turn = lock.turn
    del turn[0]
    holding = True
    try:
        then()
    finally:
        try:
            holding = False
            turn += TURN
        finally:
            pass


HAND_TAKEN.add(_take_by_hand.__code__)


def _elsewhere(function: Callable[[], bool]) -> bool:
    """Return what *function* returns in another thread."""
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(PATIENCE_SECONDS)
    return results[0]


def _free(lock: WriteLock, patience: float = 0) -> bool:
    """Return True if another thread can take the lock."""

    def take_and_give() -> bool:
        taken = lock.acquire(patience)
        if taken:
            lock.release()
        return taken

    return _elsewhere(take_and_give)


@contextmanager
def _interrupted_at_entry(function: Callable[..., object], occurrence: int = 1) -> Iterator[None]:
    """Raise KeyboardInterrupt where a signal's would come: as *function* begins, before its first line."""
    left = occurrence
    before = sys.gettrace()

    def trace(frame, event, argument):
        nonlocal left
        if event == "call" and frame.f_code is function.__code__:
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def _use(lock: WriteLock) -> None:
    with lock:
        pass


def _use_twice(lock: WriteLock) -> None:
    with lock:
        _use(lock)


def _acquire_and_release(lock: WriteLock) -> None:
    lock.acquire()
    try:
        pass
    finally:
        lock.release()


def test_one_thread_at_a_time():
    """What is done under the lock by many threads is done as if by one."""
    lock = WriteLock()
    total = 0

    def add():
        nonlocal total
        for _ in range(300):
            with lock:
                seen = total
                time.sleep(0)
                total = seen + 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert total == 1200


def test_the_same_thread_may_take_it_again():
    """It is free for others only when each acquire has had its release."""
    lock = WriteLock()
    with lock:
        assert lock.acquire(0)
        with lock:
            assert not _free(lock)
        lock.release()
        assert not _free(lock)
    assert _free(lock)


def test_acquire_gives_up_when_its_time_is_over():
    """A timeout is kept, and False says that the lock was not taken."""
    lock = WriteLock()
    with lock:
        begin = time.monotonic()
        assert not _elsewhere(lambda: lock.acquire(0.05))
        assert 0.05 <= time.monotonic() - begin < PATIENCE_SECONDS / 2
    assert _free(lock)


def test_acquire_gives_up_where_the_clock_stands_still(monkeypatch):
    """As it does in tests that freeze the time: the pauses themselves are counted."""
    lock = WriteLock()
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(lock.acquire(0.05)))
    instant = time.monotonic()
    with lock, monkeypatch.context() as frozen:
        frozen.setattr(time, "monotonic", lambda: instant)
        thread.start()
        # By C's own clock, which stands still for nobody.
        thread.join(PATIENCE_SECONDS)
    assert results == [False]
    assert _free(lock)


def test_acquire_waits_for_its_turn():
    """Without a timeout a waiting thread gets the lock when it is given back."""
    lock = WriteLock()
    results: list[bool] = []
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        results.append(lock.acquire())
        lock.release()

    with lock:
        thread = threading.Thread(target=wait)
        thread.start()
        assert waiting.wait(PATIENCE_SECONDS)
        time.sleep(0.01)
        assert not results
    thread.join(PATIENCE_SECONDS)
    assert results == [True]


def test_taken_by_hand_it_is_closed_to_other_threads():
    """The hot path's way of taking it excludes those who use it as a lock."""
    lock = WriteLock()
    seen: list[bool] = []
    _take_by_hand(lock, lambda: seen.append(_free(lock, 0.03)))
    assert seen == [False]
    assert _free(lock)


def test_taken_as_a_lock_it_cannot_be_taken_by_hand():
    """The hot path finds no turn while somebody uses it as a lock."""
    lock = WriteLock()
    with lock, pytest.raises(IndexError):
        _take_by_hand(lock, lambda: None)
    _take_by_hand(lock, lambda: None)


@pytest.mark.parametrize("timeout", [-1, 0, 5])
def test_who_took_it_by_hand_may_take_it_as_a_lock(timeout):
    """A signal handler's event goes on below the write it interrupts, and does not give the turn away."""
    lock = WriteLock()
    seen: list[object] = []

    def interrupt() -> None:
        seen.append(lock.acquire(timeout))
        with lock:
            seen.append(_free(lock))
        lock.release()
        seen.append(_free(lock))
        with lock:
            pass
        seen.append(lock.turn[:])

    _take_by_hand(lock, interrupt)
    assert seen == [True, False, False, []]
    assert lock.turn == [None]


def test_a_frame_that_no_longer_holds_the_turn_lends_it_to_nobody():
    """Only a frame that is between taking and giving counts, of this very lock."""
    lock, other = WriteLock(), WriteLock()
    results: list[bool] = []

    def take_other() -> None:
        with lock:  # so that the thread below has to ask its stack
            results.append(_elsewhere(lambda: _nested_acquire(other, lock)))

    take_other()
    assert results == [False]


def _nested_acquire(by_hand: WriteLock, lock: WriteLock) -> bool:
    results: list[bool] = []
    _take_by_hand(by_hand, lambda: results.append(lock.acquire(0.02)))
    return results[0]


@pytest.mark.parametrize("use", [_use, _use_twice, _acquire_and_release])
@pytest.mark.parametrize("function", [WriteLock.__enter__, WriteLock.__exit__, WriteLock.release, WriteLock.acquire])
@pytest.mark.parametrize("occurrence", [1, 2])
def test_an_interrupt_at_any_entry_does_not_lose_the_lock(use, function, occurrence):
    """After a KeyboardInterrupt on the way in or out, this thread and all others can take it, one at a time."""
    lock = WriteLock()
    try:
        with _interrupted_at_entry(function, occurrence):
            use(lock)
    except KeyboardInterrupt:
        pass
    assert _free(lock, PATIENCE_SECONDS)

    try:
        with _interrupted_at_entry(function, occurrence):
            use(lock)
    except KeyboardInterrupt:
        pass
    with lock:
        assert not _free(lock, 0.05)
    assert _free(lock)
    assert lock.turn == [None]


def test_an_interrupt_below_the_hot_path_does_not_lose_the_lock():
    """A borrowed turn that was never given back is the hot path's to give, once."""
    lock = WriteLock()

    def interrupt() -> None:
        with _interrupted_at_entry(WriteLock.__exit__):
            _use(lock)

    with pytest.raises(KeyboardInterrupt):
        _take_by_hand(lock, interrupt)
    assert lock.turn == [None]
    with lock:
        assert not _free(lock, 0.05)
    assert _free(lock)
    assert lock.turn == [None]


def test_a_holder_deep_in_calls_is_not_taken_for_dead():
    """However long and wherever the holder is busy, waiting threads do not take the lock from it."""
    lock = WriteLock()
    stop = threading.Event()
    inside = threading.Event()

    def dig(depth: int) -> int:
        return depth and dig(depth - 1)

    def hold() -> None:
        with lock:
            inside.set()
            while not stop.is_set():
                dig(20)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert inside.wait(PATIENCE_SECONDS)
        assert not _free(lock, 0.15)
    finally:
        stop.set()
        thread.join(PATIENCE_SECONDS)
    assert _free(lock)


@pytest.mark.parametrize("way", ["del lock.turn[0]", "lock.acquire()"], ids=["by hand", "by acquire"])
def test_what_a_thread_holds_that_the_end_of_the_interpreter_has_stopped_is_taken_over(way):
    """A daemon thread that holds the lock then never runs again, so nobody waits for it."""
    script = f"""
        import builtins, os, threading
        from outfall.sinks.core.lock import WriteLock
        class Last:
            def __init__(self, lock, write=os.write):
                self.lock, self.write = lock, write
            def __del__(self):
                for _ in range(2):
                    with self.lock:
                        self.write(1, b"taken ")
        lock = WriteLock()
        def hold():
            {way}
            held.set()
            threading.Event().wait()
        held = threading.Event()
        threading.Thread(target=hold, daemon=True).start()
        held.wait()
        builtins.last = Last(lock)
        """
    assert check(script) == "taken taken "


def test_who_waits_is_served_although_others_never_pause():
    """Threads that write in a tight loop, letting go of the interpreter in each write, starve nobody."""
    lock = WriteLock()
    stop = threading.Event()
    null = os.open(os.devnull, os.O_WRONLY)

    def work() -> None:
        while not stop.is_set():
            try:
                _take_by_hand(lock, lambda: os.write(null, b"x"))
            except IndexError:
                with lock:
                    os.write(null, b"x")

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        longest = 0.0
        for _ in range(200):
            begin = time.monotonic()
            with lock:
                pass
            longest = max(longest, time.monotonic() - begin)
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        os.close(null)
    assert longest < PATIENCE_SECONDS / 2
    assert type(lock.turn) is type(WriteLock().turn)


class _Holder(threading.Thread):
    """A thread that has the lock until it is told to give it back."""

    def __init__(self, lock: WriteLock) -> None:
        super().__init__()
        self.lock, self.inside, self.enough = lock, threading.Event(), threading.Event()
        self.start()
        assert self.inside.wait(PATIENCE_SECONDS)

    def run(self) -> None:
        with self.lock:
            self.inside.set()
            self.enough.wait(PATIENCE_SECONDS)

    def give(self) -> None:
        self.enough.set()
        self.join(PATIENCE_SECONDS)


def test_a_turn_reserved_by_one_thread_is_not_taken_by_another():
    """Whoever has waited for long goes next, before anybody who comes in between."""
    lock = WriteLock()
    holder = _Holder(lock)
    taken = threading.Event()
    enough = threading.Event()

    def wait() -> None:
        with lock:
            taken.set()
            enough.wait(PATIENCE_SECONDS)

    waiting = threading.Thread(target=wait)
    waiting.start()
    until(lambda: lock._reserved)
    holder.give()
    assert not lock.acquire(0)
    with pytest.raises(IndexError):
        _take_by_hand(lock, lambda: None)
    assert taken.wait(PATIENCE_SECONDS)
    enough.set()
    waiting.join(PATIENCE_SECONDS)
    _take_by_hand(lock, lambda: None)


def test_giving_up_a_reservation_leaves_the_lock_to_others():
    """A thread whose patience or time ends while it waits does not bar the way."""
    lock = WriteLock()
    holder = _Holder(lock)
    assert not lock.acquire(0.06)
    assert lock._reserved is None
    holder.give()
    _take_by_hand(lock, lambda: None)


def test_an_interrupt_while_waiting_leaves_the_lock_to_others():
    """KeyboardInterrupt ends the waiting and takes nothing."""
    lock = WriteLock()
    holder = _Holder(lock)
    main = threading.get_ident()

    def interrupt(*_):
        raise KeyboardInterrupt

    def soon() -> None:
        until(lambda: lock._reserved)
        signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    thread = threading.Thread(target=soon)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            lock.acquire()
    finally:
        thread.join(PATIENCE_SECONDS)
        signal.signal(signal.SIGUSR1, before)
    holder.give()
    assert _free(lock)
    _take_by_hand(lock, lambda: None)


def test_a_signal_handler_uses_the_lock_while_its_thread_waits_for_it():
    """The handler goes first, on the reservation of the very wait that it interrupts."""
    lock = WriteLock()
    holder = _Holder(lock)
    main = threading.get_ident()
    order: list[str] = []

    def handle(*_):
        holder.enough.set()
        with lock:
            order.append("handler")

    def soon() -> None:
        until(lambda: lock._reserved)
        signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle)
    thread = threading.Thread(target=soon)
    thread.start()
    try:
        with lock:
            order.append("thread")
            assert not _free(lock)
    finally:
        thread.join(PATIENCE_SECONDS)
        signal.signal(signal.SIGUSR1, before)
        holder.give()
    assert order == ["handler", "thread"]
    assert _free(lock)


def test_two_waiting_threads_do_not_both_take_over():
    """A lock that its holder lost goes to one of those who wait for it, not to several."""
    for _ in range(20):
        lock = WriteLock()
        with pytest.raises(KeyboardInterrupt), _interrupted_at_entry(WriteLock.__exit__):
            _use(lock)
        inside = 0
        most = 0

        def work(lock: WriteLock = lock) -> None:
            nonlocal inside, most
            with lock:
                inside += 1
                most = max(most, inside)
                time.sleep(0.001)
                inside -= 1

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        assert most == 1
        assert lock.turn == [None]


@pytest.mark.skipif(sys.gettrace() is not None, reason="under a tracer interrupts come faster than events get through")
def test_interrupts_at_random_instants_never_lose_the_lock():
    """A thousand KeyboardInterrupts from a timer leave the lock exclusive and every thread going on."""
    check(
        """
        import random, signal, sys, threading, time
        from outfall.sinks.core.lock import WriteLock

        lock, inside, worst, theirs, stop = WriteLock(), 0, 0, 0, False

        def use():
            global inside, worst
            with lock:
                # An interrupt may come anywhere in here, so the count is put back by who counted.
                inside += 1
                try:
                    worst = max(worst, inside)
                finally:
                    inside -= 1

        def other():
            global theirs
            while not stop:
                with lock:
                    theirs += 1

        def interrupt(*_):
            raise KeyboardInterrupt

        thread = threading.Thread(target=other)
        thread.start()
        signal.signal(signal.SIGALRM, interrupt)
        caught = before = 0
        end = time.monotonic() + 20
        while caught < 500 and time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.0005))
                while True:
                    use()
            except KeyboardInterrupt:
                caught += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        before = theirs
        while theirs == before:
            assert time.monotonic() < end + 20
            time.sleep(0.001)
        stop = True
        thread.join(60)
        assert lock.acquire(60)
        lock.release()
        assert lock.turn == [None], lock.turn
        assert worst == 1, worst
        """
    )


@pytest.mark.skipif(sys.gettrace() is not None, reason="under a tracer interrupts come faster than events get through")
def test_interrupts_never_lose_the_turn_of_who_took_it_by_hand():
    """Neither in the midst of what fails nor where its handlers begin, where Python 3.10 looks for signals."""
    check(
        """
        import random, signal, time
        from outfall.sinks.core.lock import WriteLock
        from tests.sinks.core.test_lock import _take_by_hand

        lock, caught = WriteLock(), 0

        def fail():
            raise LookupError

        def interrupt(*_):
            raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, interrupt)
        end = time.monotonic() + 20
        while caught < 1500 and time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.0002))
                while True:
                    try:
                        _take_by_hand(lock, fail)
                    except LookupError:
                        pass
            except KeyboardInterrupt:
                caught += 1
                assert lock.turn == [None], caught
        """
    )


def test_who_takes_the_turn_by_hand_gives_it_back_as_the_lock_asks_for():
    """Each ``finally`` that gives a turn back, wherever that is, begins with a ``try``."""
    endings = [
        node.finalbody
        for folder in ("sinks", "adapters")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Try) and any("turn += TURN" in ast.unparse(each) for each in node.finalbody)
    ]
    assert endings
    assert [ast.dump(ending[0]) for ending in endings if len(ending) > 1 or not isinstance(ending[0], ast.Try)] == []

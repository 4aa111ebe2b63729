"""Waiting for another thread."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from outfall.sinks.core.bells import Bells, Flag
from tests.sinks._processes import PATIENCE_SECONDS, check, until


def test_a_ring_wakes_all_who_wait():
    """Each has its own bell, and waits on if what it waits for has not come."""
    bells = Bells()
    due: list[None] = []
    woken: list[bool] = []
    threads = [
        threading.Thread(target=lambda: woken.append(bells.wait(PATIENCE_SECONDS, lambda: due))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    until(lambda: len(bells) == 3)
    bells.ring()
    assert len(bells) == 3
    due.append(None)
    bells.ring()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert woken == [True] * 3
    assert not bells


def test_what_is_done_already_is_not_waited_for():
    """And what never is ends after the time."""
    bells = Bells()
    assert bells.wait(PATIENCE_SECONDS, lambda: True)
    assert not bells.wait(0.01, lambda: False)
    assert not bells


def test_a_wait_ends_by_its_own_time_where_the_clock_stands_still(monkeypatch):
    """Tests freeze time; a wait is not measured by that clock."""
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    assert not Flag().wait(0.01)


def test_a_flag_that_is_set_stays_set():
    """For those who come later too."""
    flag = Flag()
    assert not flag.is_set()
    flag.set()
    assert flag.is_set()
    assert flag.wait(0)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_an_interrupt_comes_through_whenever_it_comes():
    """A thousand, at all moments of a wait that ends at once or late: none is replaced by another error."""
    # In a program of its own: what pytest's plug-ins do when garbage is collected would swallow one now and then.
    check(
        """
        import signal
        from outfall.sinks.core.bells import Bells

        bells, fired, came = Bells(), [], 0

        def interrupt(_number, _frame):
            fired.append(1)
            raise KeyboardInterrupt

        def attempt(seconds):
            signal.setitimer(signal.ITIMER_REAL, seconds)
            while not fired:
                bells.wait(0.000_1, lambda: len(fired) > 5)

        signal.signal(signal.SIGALRM, interrupt)
        for number in range(1000):
            fired.clear()
            try:
                attempt(0.000_05 + 0.000_001 * (number % 100))
            except KeyboardInterrupt:
                came += 1
        assert came == 1000, came
        """
    )

"""gevent, eventlet and others that put something else in the place of threads."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from tests.sinks._processes import check

INTERRUPTED = """
import signal, threading, time
from outfall.sinks.core import threads

def interrupt(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
came = 0
for number in range(1_000):  # an interrupt that comes in a finalizer is ignored
    thread = threading.Thread(target=int, daemon=True)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.000_001 * (1 + number % 120))
        threads.start(thread)
        time.sleep(0.001)
    except KeyboardInterrupt:
        came += 1
assert came > 500
until = time.monotonic() + 30
while threading.active_count() > 1:
    assert time.monotonic() < until, threading.enumerate()
    time.sleep(0.01)
"""

REPLACED = """
import queue, sys
import outfall
told = []
sinks = [
    outfall.BackgroundSink(outfall.NullSink(), on_error=told.append),
    outfall.SpoolSink(outfall.NullSink(), sys.argv[1], on_error=told.append),
]
import _thread
real = _thread.start_new_thread
_thread.start_new_thread = lambda *args, **kwargs: real(*args, **kwargs)
for number, sink in enumerate(sinks, 1):
    sink.handle({"event": "x", "level": "info"})
    assert "import outfall after it" in str(told[-1].error), told
    assert (len(told), told[-1].events) == (number, 1)
    assert sum(sink.stats().dropped.values()) == 1, sink.stats()
    assert sink.flush(60)
    assert sink.close(60)
for start in (
    outfall.QueueListener(queue.Queue(), outfall.NullSink()).start,
    outfall.SocketListener(("127.0.0.1", 0), outfall.NullSink()).start,
):
    try:
        start()
    except outfall.SinkError as error:
        assert "import outfall after it" in str(error)
    else:
        raise AssertionError(start)
outfall.FileSink(sys.argv[1] + "/a").handle({"event": "x"})
"""

GEVENT = """
from gevent import monkey
monkey.patch_all()
import queue, sys
import outfall
target = outfall.FileSink(sys.argv[1] + "/out")
with outfall.BackgroundSink(target, capacity=2, linger=0) as sink:
    for number in range(50):
        sink.handle({"event": "x", "level": "info", "n": number})
    assert sink.flush(30)
    assert sink.stats().delivered == 50, sink.stats()
with outfall.SpoolSink(outfall.NullSink(), sys.argv[1] + "/spool") as sink:
    sink.handle({"event": "x", "level": "info"})
    assert sink.flush(30)
    assert sink.stats().delivered == 1
"""


def test_threads_that_are_replaced_later_are_refused_with_what_to_do(tmp_path):
    """At the first event, or at start: it does not hang. Sinks without a thread go on."""
    check(REPLACED, tmp_path)


def test_threads_that_are_replaced_first_are_no_matter(tmp_path):
    """With gevent, whose patch comes before the import."""
    pytest.importorskip("gevent")
    check(GEVENT, tmp_path, env={"PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], *filter(None, sys.path)])})


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_an_interrupt_while_a_thread_starts_leaves_no_thread_that_hangs():
    """And what comes through is the interrupt, not the RuntimeError of a lock of `threading`."""
    check(INTERRUPTED)

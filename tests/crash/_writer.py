"""A process that logs through a spool, from several threads, until it is killed."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time

from outfall import NDJSON, HTTPSink, RetryPolicy, SinkClosedError, SpoolSink
from outfall.sinks.spool import sink as spools
from outfall.sinks.spool.cursor import CursorFile
from outfall.sinks.spool.store import Store
from outfall.sinks.spool.stores import Depot
from tests.sinks._kills import arm

STAMP = "2026-11-22T14:16:24.327371Z"

#: Nobody lives longer than this, should the kill not come.
_LIFE_SECONDS = 20.0


#: Where a kill is the most awkward.
_PLACES = [
    *[(HTTPSink, "emit_batch")] * 5,
    (CursorFile, "write"),
    (Depot, "adopt"),
    (Depot, "begin"),
    (Depot, "settle"),
    (Depot, "tidy"),
    (Store, "create"),
    (Store, "roll"),
    (Store, "pass_on"),
    (Store, "shift"),
    (Store, "remove"),
]


def _arm_place(owner, name, times, *, after):
    """Have this process kill itself before *owner*'s function is called so many times, or after."""
    real = getattr(owner, name)
    left = [times]

    def called(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, called)


def make_spool(url, directory, chance):
    """Return a spool whose files are small and whose waits are short."""
    logging.raiseExceptions = False
    target = HTTPSink(url, body=NDJSON(), timeout=(1, 2))
    return SpoolSink(
        target,
        directory,
        segment_bytes=chance.choice([400, 2_000, 20_000]),
        batch_size=chance.choice([2, 7, 30]),
        linger=chance.choice([0, 0.002]),
        fsync=chance.choice(["never", "never", "never", "interval", "always"]),
        fsync_interval=0.005,
        retry=RetryPolicy(start_seconds=0.001, max_seconds=0.005, pause_start_seconds=0.01, pause_max_seconds=0.01),
        # What is not stored must not be noted as if it were; what the thread meets is not written to stderr.
        on_error="raise",
    )


def start(process, url, directory, journal, seed):
    """Fork a writer that is number *process*; return its process id.

    In *journal* it writes down what `handle` has returned for. Two in three kill themselves, at a call of the system or
    in a function of the spool; that may be while it recovers what others have left.
    """
    pid = os.fork()
    if pid == 0:
        try:
            _write(process, url, directory, journal, random.Random(seed))
        finally:
            os._exit(1)
    return pid


def _write(process, url, directory, path, chance):
    journal = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    note = os.write
    how = chance.random()
    if how < 0.35:
        arm(chance.randrange(chance.choice([30, 150, 400])), spools, "_os_write")
    elif how < 0.65:
        _arm_place(*chance.choice(_PLACES), chance.randrange(3), after=chance.random() < 0.5)
    sink = make_spool(url, directory, chance)

    most = chance.choice([5, 20, 60])
    pause = chance.choice([0, 0.0001, 0.001])

    def log(thread, pauses):
        for number in range(most):
            event = {
                "event": "e",
                "process": process,
                "thread": thread,
                "number": number,
                "pad": "x" * (number * 7 % 90),
            }
            if number % 5:
                event["timestamp"] = STAMP
            try:
                sink.handle(event)
            except SinkClosedError:
                return
            note(journal, b"%d %d\n" % (thread, number))
            if pause:
                time.sleep(pauses.random() * pause)

    for thread in range(chance.choice([1, 3])):
        threading.Thread(target=log, args=(thread, random.Random(thread)), daemon=True).start()
    if chance.random() < 0.2:
        # Some end in order, with others of their threads still at it.
        time.sleep(chance.random() * 0.03)
        sink.close(chance.choice([0, 0.05]))
        os._exit(0)
    time.sleep(_LIFE_SECONDS)

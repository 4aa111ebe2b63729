"""Threads: whether they are still what they were at import, and a start that an interrupt cannot break."""

from __future__ import annotations

import _thread
import threading

from outfall.sinks.errors import SinkError

_start_new_thread = _thread.start_new_thread


def check_threads() -> None:
    """Raise if somebody has put other threads in the place of the system's since this package was imported.

    gevent and eventlet do so. A thread would then be a greenlet, and would hold up all others with the locks and queues
    that this package has imported before.

    Raises:
        SinkError: If so.
    """
    if _thread.start_new_thread is not _start_new_thread:
        msg = (
            "threads have been replaced since outfall was imported, as gevent and eventlet do; "
            "call monkey.patch_all() (or monkey_patch()) first, and import outfall after it"
        )
        raise SinkError(msg)


def start(thread: threading.Thread) -> None:
    """Start *thread*.

    `threading.Thread.start` waits on a condition that the new thread notifies. An interrupt that comes while the
    condition's lock is held leaves it held, and the new thread hangs before its first line. Interrupts come to the main
    thread alone, so there another thread makes the call. An interrupt of this wait leaves it to run to its end: the
    caller may find that *thread* starts after `start` has raised.

    Raises:
        RuntimeError: If no thread can be started.
    """
    if threading.current_thread() is not threading.main_thread():
        thread.start()
        return
    failures: list[BaseException] = []
    ended = _thread.allocate_lock()
    ended.acquire()

    def work() -> None:
        try:
            thread.start()
        except BaseException as error:
            failures.append(error)
        finally:
            ended.release()

    _thread.start_new_thread(work, ())
    ended.acquire()
    if failures:
        raise failures[0]

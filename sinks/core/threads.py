"""Threads: detects gevent's replacements, starts a thread despite interrupts, and calls functions for asyncio."""

from __future__ import annotations

import _thread
import threading
from contextlib import suppress
from sys import is_finalizing
from typing import TYPE_CHECKING

from outfall.sinks.errors import SinkError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_start_new_thread = _thread.start_new_thread


def check_threads() -> None:
    """Raise if the `threading` module was patched after this package was imported, as by gevent or eventlet.

    A thread would then be a greenlet. The locks and queues that this package imported before the patch would block all
    greenlets.

    Raises:
        SinkError: If the module was patched.
    """
    if _thread.start_new_thread is not _start_new_thread:
        msg = (
            "threads have been replaced since outfall was imported, as gevent and eventlet do; "
            "call monkey.patch_all() (or monkey_patch()) first, and import outfall after it"
        )
        raise SinkError(msg)


def start(thread: threading.Thread) -> None:
    """Start *thread*; an interrupt of the main thread cannot break it.

    `threading.Thread.start` waits on a condition that the new thread notifies. An interrupt that comes while the
    condition's lock is held leaves it held, and the new thread hangs before its first line. Only the main thread gets
    interrupts, so if it calls this, another thread makes the call. If an interrupt ends the wait for that thread,
    *thread* may start after `start` has raised.

    Raises:
        RuntimeError: If no thread can be started.
    """
    if is_finalizing():  # before Python 3.12 `start` would wait for ever
        msg = "the interpreter is shutting down"
        raise RuntimeError(msg)
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


async def in_thread(function: Callable[[float | None], bool], timeout: float | None) -> bool:
    """Call ``function(timeout)`` in a new thread and return its result; asyncio's pool may be busy, or shut down."""
    import asyncio
    import contextvars

    loop = asyncio.get_running_loop()
    future: asyncio.Future[bool] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: bool, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def work() -> None:
        result, failure = False, None
        try:
            result = context.run(function, timeout)
        except BaseException as error:
            failure = error
        with suppress(RuntimeError):  # the loop is closed, so nothing waits for the result
            loop.call_soon_threadsafe(settle, result, failure)

    try:
        threading.Thread(target=work, name="outfall waits for asyncio", daemon=True).start()
    except RuntimeError:  # the interpreter is shutting down, or there are too many threads
        return function(timeout)
    return await future

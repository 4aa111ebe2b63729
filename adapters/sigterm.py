"""Drains the sinks at SIGTERM, for `configure`: by default the signal ends Python without its exit hooks."""

from __future__ import annotations

import contextlib
import os
import signal
from _thread import start_new_thread
from typing import TYPE_CHECKING, Any, NoReturn

from outfall.sinks.core import lifecycle

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


#: The program's own handler, by the handler of a set-up that calls it.
_before: dict[Any, Any] = {}


def drain_on_sigterm(in_force: Callable[[], bool]) -> Callable[[], None]:
    """Install a handler that drains all sinks at SIGTERM and then calls the old one; return a function to restore it.

    Args:
        in_force: Called at a signal. If it returns False, only the old handler is called.

    Nothing changes if the process ignores the signal, or handles it outside of Python. Call it in the main thread.
    """
    installed = signal.getsignal(signal.SIGTERM)
    before = _before.get(installed, installed)
    if before is None or before is signal.SIG_IGN:
        return lambda: None

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        if callable(before):
            if in_force():
                # Failures are counted. The interrupted code does not expect an exception.
                with contextlib.suppress(Exception):
                    lifecycle.drain()
            before(number, frame)
            return
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if not in_force():
            _end()
        try:
            # In a thread: the interrupted code may hold a lock that a sink needs, and has to continue. Starting a
            # `threading.Thread` takes a lock too, which that code may hold.
            start_new_thread(_drain_and_end, ())
        except RuntimeError:
            _drain_and_end()

    def restore() -> None:
        if signal.getsignal(signal.SIGTERM) is on_sigterm:
            with contextlib.suppress(ValueError):  # not the main thread: the handler stays installed, without effect
                signal.signal(signal.SIGTERM, installed)
        _before.pop(on_sigterm, None)

    _before[on_sigterm] = before
    signal.signal(signal.SIGTERM, on_sigterm)
    return restore


def _drain_and_end() -> None:
    try:
        lifecycle.drain()
    finally:
        _end()


def _end() -> NoReturn:
    """End the process as SIGTERM does by default."""
    os.kill(os.getpid(), signal.SIGTERM)
    # The signal does not end the first process of a container without a handler.
    os._exit(128 + signal.SIGTERM)

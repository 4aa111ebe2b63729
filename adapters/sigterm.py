"""SIGTERM, at which Python ends a process without its exit hooks: `configure` has the sinks drained first."""

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


#: Handlers of set-ups, and the program's own one that each calls.
_before: dict[Any, Any] = {}


def drain_on_sigterm(in_force: Callable[[], bool]) -> Callable[[], None]:
    """Drain all sinks at SIGTERM, before that does what it did so far; return what puts the old handler back.

    Args:
        in_force: Called at a signal. If it returns False, the signal does only what it did so far.

    A process that ignores the signal, or handles it outside of Python, stays as it is. To be called in the main thread.
    """
    installed = signal.getsignal(signal.SIGTERM)
    before = _before.get(installed, installed)
    if before is None or before is signal.SIG_IGN:
        return lambda: None

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        if callable(before):
            if in_force():
                # What failed is counted, and the interrupted code does not expect an exception.
                with contextlib.suppress(Exception):
                    lifecycle.drain()
            before(number, frame)
            return
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if not in_force():
            _end()
        try:
            # The interrupted code may hold what a sink needs, so it goes on meanwhile. A `threading.Thread` would need
            # a lock to start, which that code may hold as well.
            start_new_thread(_drain_and_end, ())
        except RuntimeError:
            _drain_and_end()

    def restore() -> None:
        if signal.getsignal(signal.SIGTERM) is on_sigterm:
            with contextlib.suppress(ValueError):  # not in the main thread: the handler stays, and is not in force
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
    # The first process of a container: the system spares it, if it has no handler.
    os._exit(128 + signal.SIGTERM)

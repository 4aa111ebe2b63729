"""Re-entrancy: keeps track of what each thread does in sinks, so that no sink gets what its own delivery logs."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

    from outfall.sinks.core.sink import Sink


class _Thread(threading.local):
    def __init__(self) -> None:
        #: The sinks whose on_error is running in this thread.
        self.reporting: list[Sink] = []
        #: True while this thread runs a delivery whose code may log.
        self.delivering = False
        #: The last error that `Sink.deliver` raised although it had put the event out.
        self.settled: Exception | None = None


thread: _Thread = _Thread()

#: One item for each delivery that is running. While the list is empty, the slower `thread` need not be read.
active: list[None] = []


@contextmanager
def delivering(*, value: bool = True) -> Generator[None, None, None]:
    """Mark this thread as delivering: meanwhile sinks with ``delivers_through_loggers`` drop its events as reentrant.

    Args:
        value: False removes the mark, around other code that a delivery calls, such as ``on_error``. Default True.
    """
    before = thread.delivering
    active.append(None)
    thread.delivering = value
    try:
        yield
    finally:
        thread.delivering = before
        active.pop()

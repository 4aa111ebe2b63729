"""What each thread is doing inside sinks right now, so that a sink is not fed with what its own delivery logs."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

    from outfall.sinks.core.sink import Sink


class _Thread(threading.local):
    def __init__(self) -> None:
        #: Sinks whose on_error is running in this thread.
        self.reporting: list[Sink] = []
        #: True while this thread delivers for a sink whose delivery runs code that logs.
        self.delivering = False
        #: The last error that `Sink.deliver` raised for an event that was nevertheless put out.
        self.settled: Exception | None = None


thread: _Thread = _Thread()

#: One item for each thread that delivers right now: while it is empty nobody need ask `thread`, which costs.
active: list[None] = []


@contextmanager
def delivering(*, value: bool = True) -> Generator[None, None, None]:
    """Mark this thread as one that delivers: meanwhile no sink with ``delivers_through_loggers`` takes its events.

    With False the mark is taken away: for what a delivering thread calls of others, an ``on_error`` for example.
    """
    before = thread.delivering
    active.append(None)
    thread.delivering = value
    try:
        yield
    finally:
        thread.delivering = before
        active.pop()

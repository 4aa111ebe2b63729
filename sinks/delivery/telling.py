"""Calls of ``on_error`` by listeners: their own, and those of their sinks."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING

from outfall.sinks.core.reentrancy import delivering
from outfall.sinks.core.reporting import SinkFailure, cleaned, report

if TYPE_CHECKING:
    from collections.abc import Callable

    from outfall.sinks.core.sink import Sink


class Telling:
    """The part of a listener that calls ``on_error``: its own, and that of a sink that was given one."""

    if TYPE_CHECKING:
        name: str
        on_error: Callable[[SinkFailure], object]

    def _tell_of_sink(self, sink: Sink, error: Exception, events: int) -> None:
        if sink.on_error is not report and sink.on_error != "raise":
            sink._fail(error, None, events=events)
        self._call_on_error(sink._failed_with(error, events))

    def _call_on_error(self, failure: SinkFailure) -> None:
        try:
            with delivering(value=False):
                self.on_error(failure)
        except Exception as raised:
            report(SinkFailure(self.name, cleaned(raised, None), 0, time()))

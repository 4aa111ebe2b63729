"""The drop-in twin of the handler for the event log of Windows: `NTEventLogHandler`."""

from __future__ import annotations

import logging
import logging.handlers
from typing import Any

from outfall.adapters.handlers.base import Twin, account_of
from outfall.sinks.errors import MissingDependencyError
from outfall.sinks.event.event import TextEvent
from outfall.sinks.system.eventlog import NTEventLogSink

_NTEventLogHandler = logging.handlers.NTEventLogHandler


class _Entry(TextEvent):
    """The text of a record, with the record and handler that the hooks need."""

    __slots__ = ("handler", "record")

    def __init__(self, handler: NTEventLogHandler, record: logging.LogRecord) -> None:
        super().__init__(handler.format(record), record.levelno)
        self.handler, self.record = handler, record


class _EntriesSink(NTEventLogSink):
    def get_message_id(self, event: Any) -> int:
        return event.handler.getMessageID(event.record)  # type: ignore[no-any-return]

    def get_event_category(self, event: Any) -> int:
        return event.handler.getEventCategory(event.record)  # type: ignore[no-any-return]

    def get_event_type(self, event: Any) -> int:
        return event.handler.getEventType(event.record)  # type: ignore[no-any-return]


class NTEventLogHandler(Twin, _NTEventLogHandler):
    """A drop-in twin of `logging.handlers.NTEventLogHandler`: report each record to the event log of Windows.

    It uses an `NTEventLogSink`, which needs pywin32. Without pywin32 the constructor prints a notice to stdout, and the
    handler does nothing.

    Args:
        appname: The source's name. The constructor makes a registry entry for it.
        dllname: The file with the message texts. Default: pywin32's ``win32service.pyd``.
        logtype: ``"Application"``, ``"System"`` or ``"Security"``.

    Attributes:
        appname: As above. This and the next two are read for each record.
        typemap: Event types by level number.
        deftype: The event type of levels that *typemap* does not have.
        dllname: The registered file.
        logtype: As above.

    Methods to override: ``getMessageID``, ``getEventCategory``, ``getEventType``. Deliberate differences from its
    namesake: :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#nteventloghandler
    """

    _welu: Any

    def __init__(self, appname: str, dllname: str | None = None, logtype: str = "Application") -> None:
        logging.Handler.__init__(self)
        self.appname = appname
        self.dllname: Any = dllname
        self.logtype = logtype
        try:
            sink = account_of(self)
        except MissingDependencyError as error:
            print(f"{type(self).__name__} will log nothing: {error}")  # noqa: T201 - as its namesake does
            self._welu = None
            return
        self._welu = sink._welu
        self.dllname = sink.dllname
        self.deftype: int = sink.deftype
        self.typemap: dict[int, int] = sink.typemap

    def _outfall_make_sink(self) -> NTEventLogSink:
        return _EntriesSink(
            self.appname, self.dllname or None, self.logtype, on_error="raise", name=type(self).__name__
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Report *record*; call ``handleError`` on failure."""
        if not self._welu:
            return
        try:
            sink = account_of(self, _EntriesSink, NTEventLogHandler._outfall_make_sink)
            with sink._lock:
                sink.appname, sink._welu = self.appname, self._welu
                sink.deliver(_Entry(self, record))
        except Exception:
            self.handleError(record)

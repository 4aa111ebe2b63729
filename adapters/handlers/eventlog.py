"""The drop-in twin of the handler for the event log of Windows: `NTEventLogHandler`."""

from __future__ import annotations

import logging
import logging.handlers
from typing import Any

from outfall.adapters.handlers.twin import Lent, Twin
from outfall.sinks.errors import MissingDependencyError
from outfall.sinks.event.event import TextEvent
from outfall.sinks.system.eventlog import NTEventLogSink


class _Entry(TextEvent):
    """The text of a record, and the record for the hooks."""

    __slots__ = ("record",)

    def __init__(self, text: str | bytes, record: logging.LogRecord) -> None:
        super().__init__(text, record.levelno)
        self.record = record


class _EntriesSink(Lent, NTEventLogSink):
    def get_message_id(self, event: Any) -> int:
        return self.owner.getMessageID(event.record)  # type: ignore[no-any-return]

    def get_event_category(self, event: Any) -> int:
        return self.owner.getEventCategory(event.record)  # type: ignore[no-any-return]

    def get_event_type(self, event: Any) -> int:
        return self.owner.getEventType(event.record)  # type: ignore[no-any-return]


class NTEventLogHandler(Twin, logging.handlers.NTEventLogHandler):
    """A drop-in twin of `logging.handlers.NTEventLogHandler`: report each record to the event log of Windows.

    By an `NTEventLogSink`, which needs pywin32. Without it this handler says so on stdout, once, and does nothing.

    Args:
        appname: The source's name. A registry entry is made for it.
        dllname: The file with the message texts. Default: pywin32's ``win32service.pyd``.
        logtype: ``"Application"``, ``"System"`` or ``"Security"``.

    Attributes:
        appname: As above; read at each record, like the next two.
        typemap: Event types by level number.
        deftype: The event type of levels that *typemap* does not have.
        dllname: The file that was registered.
        logtype: As above.

    What may be overridden: ``getMessageID``, ``getEventCategory``, ``getEventType``. Where it differs from its namesake
    on purpose: :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#nteventloghandler
    """

    _welu: Any

    def __init__(self, appname: str, dllname: str | None = None, logtype: str = "Application") -> None:
        Twin.__init__(self)
        self.appname = appname
        self.dllname: Any = dllname
        self.logtype = logtype
        try:
            sink = self.sink
        except MissingDependencyError as error:
            print(f"{type(self).__name__} will log nothing: {error}")  # noqa: T201 - as its namesake does
            self._welu = None
            return
        self._welu = sink._welu
        self.dllname = sink.dllname
        self.deftype: int = sink.deftype
        self.typemap: dict[int, int] = sink.typemap

    def make_sink(self) -> NTEventLogSink:
        """Return the sink."""
        return _EntriesSink(
            self.appname, self.dllname or None, self.logtype, on_error="raise", name=type(self).__name__
        )

    def lend(self, sink: Any) -> None:
        """Have *sink* report under the handler's name."""
        sink.appname, sink._welu = self.appname, self._welu

    def getMessageID(self, record: logging.LogRecord) -> int:
        """Return the number of the message in the file *dllname*; 1 is the text itself in pywin32's."""
        return 1

    def getEventCategory(self, record: logging.LogRecord) -> int:
        """Return the category of *record*; by default 0, which is none."""
        return 0

    def getEventType(self, record: logging.LogRecord) -> int:
        """Return the type of *record*: what *typemap* has for its level, else *deftype*."""
        return self.typemap.get(record.levelno, self.deftype)

    def emit(self, record: logging.LogRecord) -> None:
        """Report *record*; a failure goes to ``handleError``."""
        if not self._welu:
            return
        try:
            entry = _Entry(self.format(record), record)
            with self.at_work() as sink:
                sink.deliver(entry)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Close the handler; the source stays registered, because the Event Viewer needs it."""
        logging.Handler.close(self)

"""The Windows event log: `NTEventLogSink`."""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from outfall.sinks.core.bytesink import ByteSink
from outfall.sinks.core.reporting import report
from outfall.sinks.errors import DeliveryError, MissingDependencyError
from outfall.sinks.event.event import TextEvent
from outfall.sinks.event.json import OrjsonRenderer
from outfall.sinks.event.levels import NOTSET, Level, level_of, parse_level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from outfall.sinks.core.item import BatchResult, Encoded
    from outfall.sinks.core.sink import OnError

#: The limit of one string of an event, in UTF-16 units.
MAX_STRING_UNITS = 31_839

#: ERROR_ACCESS_DENIED of Windows.
_ACCESS_DENIED = 5

_CUT = " … (cut)"


class NTEventLogSink(ByteSink):
    r"""Report each event to the Windows event log, under an application's name.

    Needs pywin32, the extra ``windows``. Outfall's tests use a double of pywin32's functions: CI does **not run it on
    Windows**.

    Args:
        appname: The name of the source in the Event Viewer. It gets a registry entry.
        dllname: The file with the message texts, ``.dll`` or ``.exe``. Default None: pywin32's ``win32service.pyd``,
            whose message 1 is the text itself.
        logtype: ``"Application"``, ``"System"`` or ``"Security"``. Default ``"Application"``.
        typemap: Event types by level, a name or a number, in place of the default ones; see `typemap`. Default None.
        renderer: A structlog renderer that returns text or bytes. Default ``OrjsonRenderer()``.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        MissingDependencyError: If pywin32 is not installed, which is for Windows only.
        ValueError: If *appname* or *logtype* is empty, or a key of *typemap* is not a level.
        Exception: The error of pywin32 if the source cannot be registered, unless access was denied.

    Registering a source requires an administrator's rights. Without them the sink continues, since the source may have
    been registered when the program was installed, and calls ``on_error`` with no event lost (`report` if that is
    ``"raise"``). If the source is not registered, the Event Viewer shows the events with a warning before the text.

    A string of an event has at most 31 839 UTF-16 units. Longer texts are cut and marked, since Windows would refuse
    the event. The Event Viewer replaces ``%1`` and the like: in JSON the sign is escaped, in other texts a space is
    inserted. NUL, which would end the text, becomes ``\x00``.

    When `handle` returns, the event log service has the event. Safe from any thread. The sink holds nothing between
    events, and ``close`` has nothing to wait for. The source stays registered, because the Event Viewer needs it to
    show the events.

    Source: `logging.handlers.NTEventLogHandler`; CPython gh-92007 for denied access;
    https://learn.microsoft.com/en-us/windows/win32/api/winbase/nf-winbase-reporteventw for the limits.
    """

    #: Event types by level number, settable. Other levels have the type of the next lower one in it, so a custom level
    #: between WARNING and ERROR is a warning; levels below the lowest have the type of the lowest.
    typemap: dict[float, int]

    def __init__(
        self,
        appname: str,
        dllname: str | os.PathLike[str] | None = None,
        logtype: str = "Application",
        *,
        typemap: Mapping[str, int] | Mapping[int, int] | None = None,
        renderer: Callable[[Any, str, Any], str | bytes] | None = None,
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        self.appname: str = _checked_name(appname, "appname")
        self.logtype: str = _checked_name(logtype, "logtype")
        self._welu, types = _imported("win32evtlogutil"), _imported("win32evtlog")
        #: The type of events if no other is known.
        self.deftype: int = types.EVENTLOG_ERROR_TYPE
        if typemap is None:
            self.typemap = {
                logging.DEBUG: types.EVENTLOG_INFORMATION_TYPE,
                logging.INFO: types.EVENTLOG_INFORMATION_TYPE,
                logging.WARNING: types.EVENTLOG_WARNING_TYPE,
                logging.ERROR: types.EVENTLOG_ERROR_TYPE,
                logging.CRITICAL: types.EVENTLOG_ERROR_TYPE,
            }
        else:
            self.typemap = {parse_level(key, "typemap"): kind for key, kind in typemap.items()}
        if dllname is None:
            # Beside the folder of the module: …/win32/lib/win32evtlogutil.py.
            folder = os.path.dirname(os.path.dirname(self._welu.__file__))
            dllname = os.path.join(folder, "win32service.pyd")
        self.dllname: str = os.fspath(dllname)
        super().__init__(
            renderer=renderer,
            level=level,
            processors=processors,
            on_error=on_error,
            name=name,
        )
        self._register()

    def _register(self) -> None:
        denied: Exception | None = None
        try:
            self._welu.AddSourceToRegistry(self.appname, self.dllname, self.logtype)
        except Exception as error:
            if getattr(error, "winerror", None) != _ACCESS_DENIED:
                raise
            denied = DeliveryError(
                f"access to the registry was denied: {self.appname!r} is not registered as a source of events, "
                "unless it was before; an administrator can do that"
            )
        if denied is not None:
            self._fail_unraised(denied, None)

    # -- the hooks

    def get_message_id(self, event: dict[str, Any]) -> int:
        """Return the number of the message in the file *dllname*. Default 1, pywin32's message that is the text."""
        return 1

    def get_event_category(self, event: dict[str, Any]) -> int:
        """Return the category of *event*. Default 0: none."""
        return 0

    def get_event_type(self, event: dict[str, Any]) -> int:
        """Return the type of *event*, by its level in `typemap`."""
        level = level_of(event)
        typemap = self.typemap
        if level in typemap:
            return typemap[level]
        if not typemap:
            return self.deftype
        return typemap[max((known for known in typemap if known < level), default=min(typemap))]

    # -- the sink

    def emit(self, event: dict[str, Any]) -> None:
        """Report one event."""
        self._report(event, self.render(event), is_text=isinstance(event, TextEvent))

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Report each item; the event log accepts one at a time."""
        return self._emit_each(batch, self._report_item)

    def _report_item(self, item: Encoded) -> None:
        event = item.event
        if level_of(event) != item.level:
            # The renderer may have left the level out.
            event["level_number"] = item.level
        self._report(event, item.data, is_text=not item.data.startswith(b"{"))

    def _report(self, event: dict[str, Any], data: bytes, *, is_text: bool) -> None:
        text = data.decode("utf-8", "backslashreplace")
        if type(self.renderer) is OrjsonRenderer and not is_text:
            text = re.sub(r"%(?=\d)", r"\\u0025", text)
        else:
            text = re.sub(r"%(?=\d)", "% ", text).replace("\0", "\\x00")
        number, category, kind = self.get_message_id(event), self.get_event_category(event), self.get_event_type(event)
        self._welu.ReportEvent(self.appname, number, category, kind, [_shortened(text)])

    def _describe(self) -> str:
        return f"{self.appname!r} in {self.logtype}"


def _shortened(text: str) -> str:
    data = text.encode("utf-16-le", "surrogatepass")
    if len(data) <= 2 * MAX_STRING_UNITS:
        return text
    # Half of a character that was cut apart is removed.
    kept = data[: 2 * (MAX_STRING_UNITS - len(_CUT))].decode("utf-16-le", "ignore")
    return kept + _CUT


def _checked_name(name: str, argument: str) -> str:
    if not isinstance(name, str) or not name or "\0" in name:
        msg = f"{argument}={name!r} is not a name"
        raise ValueError(msg)
    return name


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        pass
    if sys.platform != "win32":
        raise _WindowsOnlyError(module, "windows")
    raise MissingDependencyError(module, "windows")


class _WindowsOnlyError(MissingDependencyError):
    """Nothing can be installed here: pywin32 is for Windows only."""

    def __str__(self) -> str:
        return f"NTEventLogSink works on Windows only, and this is {sys.platform}; SysLogSink is for other systems"

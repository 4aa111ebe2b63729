"""A stand-in for the part of pywin32 that reports to the event log.

As `win32evtlogutil` and `win32evtlog` of pywin32 311: the same names, parameters, defaults and constants, and the
limits that Windows itself sets for what is reported. The registry and the log are two lists.
"""

from __future__ import annotations

import sys
import types

#: A string of an event is limited to so many UTF-16 units (ReportEventW).
MAX_STRING = 31_839


class error(Exception):
    """What pywin32 raises for a failed call of Windows."""

    def __init__(self, winerror, funcname, strerror) -> None:
        super().__init__(winerror, funcname, strerror)
        self.winerror = winerror
        self.funcname = funcname
        self.strerror = strerror


class Windows:
    """The modules, and what they wrote."""

    def __init__(self) -> None:
        #: (application, DLL, log) of each source.
        self.sources = []
        #: (source, id, category, type, strings) of each event.
        self.events = []
        #: What the next call raises.
        self.registry_error = None
        self.report_error = None
        log = types.ModuleType("win32evtlog")
        log.EVENTLOG_SUCCESS = 0
        log.EVENTLOG_ERROR_TYPE = 1
        log.EVENTLOG_WARNING_TYPE = 2
        log.EVENTLOG_INFORMATION_TYPE = 4
        log.EVENTLOG_AUDIT_SUCCESS = 8
        log.EVENTLOG_AUDIT_FAILURE = 16
        util = types.ModuleType("win32evtlogutil")
        util.__file__ = "/python/Lib/site-packages/win32/lib/win32evtlogutil.py"
        util.AddSourceToRegistry = self._add_source
        util.RemoveSourceFromRegistry = self._remove_source
        util.ReportEvent = self._report
        self.win32evtlog = log
        self.win32evtlogutil = util

    def install(self, monkeypatch):
        """Let ``import win32evtlog`` find this."""
        monkeypatch.setitem(sys.modules, "win32evtlog", self.win32evtlog)
        monkeypatch.setitem(sys.modules, "win32evtlogutil", self.win32evtlogutil)

    def _add_source(
        self,
        appName,
        msgDLL=None,
        eventLogType="Application",
        eventLogFlags=None,
        categoryDLL=None,
        categoryCount=0,
    ):
        if self.registry_error is not None:
            raise self.registry_error
        for text in (appName, msgDLL, eventLogType):
            if not isinstance(text, str):
                raise TypeError(f"a registry value is a string, not {text!r}")
        self.sources.append((appName, msgDLL, eventLogType))

    def _remove_source(self, appName, eventLogType="Application"):
        raise AssertionError("a sink does not remove its source: the Event Viewer needs it")

    def _report(self, appName, eventID, eventCategory=0, eventType=1, strings=None, data=None, sid=None):
        if self.report_error is not None:
            raise self.report_error
        for number, limit in ((eventID, 2**32), (eventCategory, 2**16), (eventType, 2**16)):
            if type(number) is not int or not 0 <= number < limit:
                raise TypeError(f"{number!r} is no number for ReportEvent")
        if eventType not in (0, 1, 2, 4, 8, 16):
            raise error(87, "ReportEvent", "The parameter is incorrect.")
        if not isinstance(strings, (list, tuple)) or not all(isinstance(text, str) for text in strings):
            raise TypeError("strings is a sequence of strings")
        for text in strings:
            if len(text.encode("utf-16-le", "surrogatepass")) // 2 > MAX_STRING:
                raise error(1734, "ReportEvent", "The array bounds are invalid.")
        # Windows takes strings up to their first NUL.
        self.events.append((appName, eventID, eventCategory, eventType, [text.split("\0")[0] for text in strings]))

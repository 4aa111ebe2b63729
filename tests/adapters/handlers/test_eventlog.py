"""The drop-in handler for the event log of Windows, beside its original, on a stand-in for pywin32."""

from __future__ import annotations

import importlib
import inspect
import logging
import logging.handlers
import re
import sys

import pytest
from hypothesis import HealthCheck, assume, given, settings

from outfall.adapters import handlers
from tests.adapters._records import Errors, formatters, records, twin_of
from tests.doubles.win32 import Windows, error

ERROR, WARNING, INFORMATION = 1, 2, 4
PATIENT = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


@pytest.fixture(params=["logging.handlers", "outfall.adapters.handlers"])
def module(request):
    """Give the originals, then the twins."""
    return importlib.import_module(request.param)


@pytest.fixture
def windows(monkeypatch):
    """Give a machine with an event log."""
    made = Windows()
    made.install(monkeypatch)
    return made


def record(message="hello", level=logging.ERROR):
    """Return a record."""
    return logging.makeLogRecord({"msg": message, "levelno": level, "levelname": logging.getLevelName(level)})


def test_same_names_order_and_defaults():
    """The constructor and the methods have the parameters of the original."""
    original, twin = logging.handlers.NTEventLogHandler, handlers.NTEventLogHandler
    assert issubclass(twin, original)
    for method, value in vars(original).items():
        if inspect.isfunction(value):
            ours = inspect.signature(getattr(twin, method)).parameters.values()
            theirs = inspect.signature(value).parameters.values()
            assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs], method


def test_the_source_is_registered(module, windows):
    """By default with pywin32's file of messages; the attributes tell."""
    handler = module.NTEventLogHandler("shop")
    assert (handler.appname, handler.logtype) == ("shop", "Application")
    assert handler.dllname == "/python/Lib/site-packages/win32/win32service.pyd"
    assert handler.deftype == ERROR
    assert handler.typemap == {10: INFORMATION, 20: INFORMATION, 30: WARNING, 40: ERROR, 50: ERROR}
    handler = module.NTEventLogHandler("shop", "own.dll", "System")
    assert handler.dllname == "own.dll"
    assert windows.sources == [
        ("shop", "/python/Lib/site-packages/win32/win32service.pyd", "Application"),
        ("shop", "own.dll", "System"),
    ]
    handler.close()


@PATIENT
@given(record=records(), formatter=formatters())
def test_the_same_entry(windows, record, formatter):
    """The same is reported by both, or both tell of an error; NUL and places to fill apart."""
    assume(not re.search(r"\0|%\d", str(record.msg)))
    got = []
    for module in (logging.handlers, handlers):
        handler = module.NTEventLogHandler("shop")
        handler.setFormatter(formatter())
        errors = Errors(handler)
        handler.handle(twin_of(record))
        got.append("error" if errors else windows.events.pop())
    assert got[0] == got[1]


def test_what_may_be_overridden(module, windows):
    """Message ID, category and type come from three methods, which get the record."""

    class Handler(module.NTEventLogHandler):
        def getMessageID(self, record):
            return 7 + super().getMessageID(record)

        def getEventCategory(self, record):
            return len(record.getMessage()) + super().getEventCategory(record)

        def getEventType(self, record):
            return WARNING if record.name == "odd" else super().getEventType(record)

    handler = Handler("shop")
    handler.handle(record("four"))
    odd = record("three")
    odd.name = "odd"
    handler.handle(odd)
    handler.getMessageID = lambda record: 3
    handler.handle(record("four"))
    assert windows.events == [
        ("shop", 8, 4, ERROR, ["four"]),
        ("shop", 8, 5, WARNING, ["three"]),
        ("shop", 3, 4, ERROR, ["four"]),
    ]


def test_attributes_act_at_once(module, windows):
    """Name, map and default type are read at each record; a level that is not in the map has the default."""
    handler = module.NTEventLogHandler("shop")
    handler.handle(record(level=35))
    handler.typemap = {35: WARNING}
    handler.handle(record(level=35))
    handler.deftype = INFORMATION
    handler.appname = "other"
    handler.handle(record())
    assert [(event[0], event[3]) for event in windows.events] == [
        ("shop", ERROR),
        ("shop", WARNING),
        ("other", INFORMATION),
    ]


def test_a_failure_is_told(module, windows, capsys):
    """handleError is told, which prints."""
    handler = module.NTEventLogHandler("shop")
    windows.report_error = error(1717, "ReportEvent", "The interface is unknown.")
    handler.handle(record())
    assert "Logging error" in capsys.readouterr().err


def test_without_pywin32_it_says_so_and_does_nothing(module, monkeypatch, capsys):
    """A line on stdout at construction is all; records are taken and nothing is told."""
    monkeypatch.setitem(sys.modules, "win32evtlogutil", None)
    monkeypatch.setitem(sys.modules, "win32evtlog", None)
    handler = module.NTEventLogHandler("shop")
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert err == ""
    handler.handle(record())
    handler.flush()
    handler.close()
    assert capsys.readouterr() == ("", "")


def test_denied_access_to_the_registry_is_no_error(module, windows):
    """The source may have been registered before; any other error is one."""
    windows.registry_error = error(5, "RegCreateKeyEx", "Access is denied.")
    handler = module.NTEventLogHandler("shop")
    handler.handle(record())
    assert len(windows.events) == 1
    windows.registry_error = error(1018, "RegCreateKeyEx", "Illegal operation.")
    with pytest.raises(error):
        module.NTEventLogHandler("shop")


def test_denied_access_to_the_registry_is_reported(windows, monkeypatch):
    """Once, as sinks report; the original says nothing."""
    told = []
    monkeypatch.setattr("outfall.sinks.core.sink.report", told.append)
    windows.registry_error = error(5, "RegCreateKeyEx", "Access is denied.")
    logging.handlers.NTEventLogHandler("shop")
    assert told == []
    handlers.NTEventLogHandler("shop")
    assert [(failure.sink, failure.events) for failure in told] == [("NTEventLogHandler", 0)]


def test_the_source_stays_registered(module, windows):
    """Close does not remove it: the stand-in would fail."""
    handler = module.NTEventLogHandler("shop")
    handler.close()
    assert len(windows.sources) == 1


def test_texts_that_windows_would_refuse_or_change(windows):
    """One that is too long is cut, and %1 is not taken for a place to fill; the original loses the first."""
    handler = handlers.NTEventLogHandler("shop")
    errors = Errors(handler)
    handler.handle(record("x" * 40_000))
    handler.handle(record("100%1"))
    handler.handle(record("a\0b"))
    assert errors == []
    assert len(windows.events[0][4][0]) == 31_839
    assert windows.events[1][4] == ["100% 1"]
    assert windows.events[2][4] == ["a\\x00b"]
    original = logging.handlers.NTEventLogHandler("shop")
    errors = Errors(original)
    original.handle(record("x" * 40_000))
    assert len(errors) == 1

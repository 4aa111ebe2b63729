"""Events in the event log of Windows, or rather in a stand-in for what pywin32 does."""

from __future__ import annotations

import json
import re
import sys
import types
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from outfall.sinks.errors import DeliveryError, MissingDependencyError
from outfall.sinks.system import eventlog
from outfall.sinks.system.eventlog import MAX_STRING_UNITS, NTEventLogSink
from outfall.sinks.testing import SinkContract, assert_balanced
from tests.doubles.win32 import Windows, error

if TYPE_CHECKING:
    from outfall import Sink

ERROR, WARNING, INFORMATION = 1, 2, 4


@pytest.fixture
def windows(monkeypatch):
    """Give a machine with an event log."""
    made = Windows()
    made.install(monkeypatch)
    return made


class TestContract(SinkContract):
    """The sink keeps the contract."""

    @pytest.fixture(autouse=True)
    def _windows(self, windows) -> None:
        self.windows = windows

    def make_sink(self, **options: Any) -> Sink:
        return NTEventLogSink("shop", **options)

    def received(self, sink: Sink) -> list[dict[str, Any]]:
        return [json.loads(strings[0]) for *_, strings in self.windows.events]


# -- construction


def test_the_source_is_registered_with_the_file_of_pywin32(windows):
    """By default the messages are those of win32service.pyd, where logging looks for it."""
    NTEventLogSink("shop").close()
    assert windows.sources == [("shop", "/python/Lib/site-packages/win32/win32service.pyd", "Application")]


def test_the_source_is_registered_as_told(windows, tmp_path):
    """The file may be a path object, and the log another one."""
    sink = NTEventLogSink("shop", tmp_path / "messages.dll", "System")
    assert windows.sources == [("shop", str(tmp_path / "messages.dll"), "System")]
    assert (sink.appname, sink.dllname, sink.logtype) == ("shop", str(tmp_path / "messages.dll"), "System")


@pytest.mark.parametrize("module", ["win32evtlog", "win32evtlogutil"])
def test_without_pywin32_the_extra_is_named(windows, monkeypatch, module):
    """On Windows: a missing package is said at construction, with what to install."""
    monkeypatch.setattr(eventlog, "sys", types.SimpleNamespace(platform="win32"))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=re.escape("outfall[windows]")) as caught:
        NTEventLogSink("shop")
    assert (caught.value.package, caught.value.extra) == (module, "windows")


@pytest.mark.skipif(sys.platform == "win32", reason="for other systems")
def test_on_other_systems_nothing_is_to_be_installed():
    """It says that it is for Windows, and what is for this system."""
    with pytest.raises(MissingDependencyError, match=r"Windows only.*SysLogSink"):
        NTEventLogSink("shop")


def test_denied_access_to_the_registry_is_told_and_no_obstacle(windows):
    """An ordinary user logs to a source that an administrator has registered."""
    windows.registry_error = error(5, "RegCreateKey", "Access is denied.")
    failures = []
    with NTEventLogSink("shop", on_error=failures.append) as sink:
        sink.handle({"event": "all the same"})
        assert sink.stats().delivered == 1
    [failure] = failures
    assert isinstance(failure.error, DeliveryError)
    assert failure.events == 0
    assert "registry" in str(failure.error)
    assert len(windows.events) == 1


def test_denied_access_is_no_error_to_raise(windows, capfd):
    """With on_error="raise" it is reported: the source may well be there."""
    windows.registry_error = error(5, "RegCreateKey", "Access is denied.")
    NTEventLogSink("shop", on_error="raise", name="raised").close()
    assert "raised 'shop' in Application had a failure" in capfd.readouterr().err


def test_another_failure_to_register_is_raised(windows):
    """What is not about access is a fault of the arguments or the machine."""
    windows.registry_error = error(1018, "RegCreateKey", "Illegal operation on a key marked for deletion.")
    with pytest.raises(error, match="1018"):
        NTEventLogSink("shop")


@pytest.mark.parametrize("arguments", [("",), (None,), ("a\0b",), ("shop", None, "")])
def test_names_are_checked(windows, arguments):
    """An empty name is refused before anything is registered."""
    with pytest.raises(ValueError, match="is not a name"):
        NTEventLogSink(*arguments)
    assert windows.sources == []


def test_a_typemap_with_an_unknown_level_is_refused(windows):
    """The argument and the value are named."""
    with pytest.raises(ValueError, match="typemap='no-such'"):
        NTEventLogSink("shop", typemap={"no-such": 1})


# -- what is reported


@pytest.mark.parametrize(
    ("level", "kind"),
    [
        ("debug", INFORMATION),
        ("info", INFORMATION),
        ("warning", WARNING),
        ("error", ERROR),
        ("critical", ERROR),
        ("trace", INFORMATION),
        (25, INFORMATION),
        (35, WARNING),
        (60, ERROR),
        ("no-such-level", ERROR),
        (None, INFORMATION),
    ],
)
def test_the_type_follows_the_level(windows, level, kind):
    """The types are those of the handler; a level between two has the lower one's."""
    with NTEventLogSink("shop") as sink:
        sink.handle({"event": "hello", "level": level})
    [(source, number, category, reported, _)] = windows.events
    assert (source, number, category, reported) == ("shop", 1, 0, kind)


def test_the_typemap_can_be_given_and_set(windows):
    """By names or numbers at construction, by numbers later; an empty one makes all errors."""
    with NTEventLogSink("shop", typemap={"info": 0, 40: 16}) as sink:
        assert sink.typemap == {20: 0, 40: 16}
        sink.handle({"event": "success", "level": "info"})
        sink.handle({"event": "failure", "level": "error"})
        sink.typemap = {20: 8}
        sink.handle({"event": "audited", "level": "error"})
        sink.typemap = {}
        sink.handle({"event": "unknown", "level": "info"})
    assert [event[3] for event in windows.events] == [0, 16, 8, ERROR]


def test_the_hooks_may_be_overridden(windows):
    """Number, category and type are a subclass's to choose, for single events and in batches."""

    class Sink(NTEventLogSink):
        def get_message_id(self, event):
            return event["id"]

        def get_event_category(self, event):
            return 7

        def get_event_type(self, event):
            return 8

    with Sink("shop") as sink:
        sink.handle({"event": "one", "id": 100})
        sink.emit_batch([sink.encode({"event": "two", "id": 101})])
    assert [event[1:4] for event in windows.events] == [(100, 7, 8), (101, 7, 8)]


def test_a_batch_keeps_levels_that_the_renderer_leaves_out(windows):
    """The type of an event that waited is that of its level, whatever its text says."""
    with NTEventLogSink("shop", renderer=lambda _logger, _name, event: event["event"]) as sink:
        sink.emit_batch([sink.encode({"event": "late", "level": "warning"}), sink.encode({"event": "x", "level": 40})])
    assert [(event[3], event[4]) for event in windows.events] == [(WARNING, ["late"]), (ERROR, ["x"])]


def test_the_renderer_makes_the_text(windows):
    """Any structlog renderer will do."""
    with NTEventLogSink("shop", renderer=structlog.processors.LogfmtRenderer()) as sink:
        sink.handle({"event": "grüße", "n": 1})
        sink.handle("rendered elsewhere")
    assert [event[4] for event in windows.events] == [["event=grüße n=1"], ["rendered elsewhere"]]


def test_a_long_text_is_cut_and_marked(windows):
    """Windows refuses strings over its limit; what is cut has no half character."""
    with NTEventLogSink("shop", renderer=lambda _logger, _name, event: event["event"]) as sink:
        sink.handle({"event": "x" * MAX_STRING_UNITS})
        sink.handle({"event": "x" * (MAX_STRING_UNITS + 1)})
        sink.handle({"event": "x" + "😀" * MAX_STRING_UNITS})
        assert sink.stats().delivered == 3
    texts = [event[4][0] for event in windows.events]
    assert texts[0] == "x" * MAX_STRING_UNITS
    assert texts[1].endswith("xx … (cut)")
    assert len(texts[1]) == MAX_STRING_UNITS
    assert texts[2].encode("utf-8").decode().endswith("😀 … (cut)")


def test_percent_signs_are_no_places_to_fill(windows):
    """The Event Viewer would put other strings for %1; JSON stays JSON."""
    event = {"event": "at 99%2 of \\%1", "address": "fe80::1%10", "share": "5 %"}
    with NTEventLogSink("shop") as sink:
        sink.handle(event)
        sink.renderer = lambda _logger, _name, event: event["address"]
        sink.handle(event)
        sink.handle("%1 rendered")
    first, second, third = (event[4][0] for event in windows.events)
    assert json.loads(first) == event
    assert not any(re.search(r"%\d", text) for text in (first, second, third))
    assert second == "fe80::1% 10"


def test_nul_does_not_end_the_text(windows):
    """What comes after a NUL is not lost."""
    with NTEventLogSink("shop") as sink:
        sink.handle("before\0after")
        sink.handle({"event": "before\0after"})
    assert windows.events[0][4] == ["before\\x00after"]
    assert json.loads(windows.events[1][4][0])["event"] == "before\0after"


def test_a_refused_event_is_counted_and_told(windows):
    """A full log, or a service that is not there, costs the event alone."""
    failures = []
    with NTEventLogSink("shop", on_error=failures.append) as sink:
        windows.report_error = error(1722, "RegisterEventSource", "The RPC server is unavailable.")
        sink.handle({"event": "lost"})
        windows.report_error = None
        sink.handle({"event": "found"})
        stats = sink.stats()
    assert (stats.delivered, stats.dropped) == (1, {"error": 1})
    assert_balanced(stats)
    assert "1722" in str(failures[0].error)


def test_close_leaves_the_source_registered(windows):
    """The Event Viewer needs it; the stand-in's RemoveSourceFromRegistry would raise."""
    assert NTEventLogSink("shop").close()


def test_the_repr_names_source_and_log(windows):
    """Which log it is, is what one wants to know."""
    assert repr(NTEventLogSink("shop", logtype="System")) == "<NTEventLogSink 'shop' in System>"

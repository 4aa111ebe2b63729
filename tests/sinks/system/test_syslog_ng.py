"""SysLogSink, read by a real syslog-ng."""

from __future__ import annotations

import itertools
import json
import re
import socket

import pytest

from outfall.sinks.system.syslog import SysLogSink
from tests.sinks._processes import ROOT
from tests.sinks._syslog_ng import SyslogNg

pytestmark = [pytest.mark.service, pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="Unix alone")]

STREAM = socket.SOCK_STREAM
TIME = "2026-03-14T15:09:26.535897Z"
PROGRAMS = itertools.count()
#: Sources, as the how-to pairs them with a format and a framing.
WAYS = {
    "syslog": {"format": "rfc5424"},
    "network": {"framing": "lf"},
    "structured": {"format": "rfc5424", "framing": "lf"},
    "udp": {},
    "udp_syslog": {"format": "rfc5424"},
    "datagram": {},
}


@pytest.fixture(scope="module")
def daemon(require_service, tmp_path_factory):
    """Give a syslog-ng that takes messages by every way."""
    with SyslogNg(require_service("syslog-ng"), tmp_path_factory.mktemp("s")) as made:
        yield made


def _sink(daemon, way, program):
    kind = STREAM if way in ("syslog", "network", "structured") else None
    address = daemon.datagram if way == "datagram" else ("127.0.0.1", daemon.ports[way])
    return SysLogSink(address, "local3", kind, timeout=10, on_error="raise", ident=f"{program}: ", **WAYS[way])


def _events(messages, way):
    """Return the fields of each message, which RFC 3164 has as JSON."""
    if WAYS[way].get("format") == "rfc5424":
        return [message["data"] for message in messages]
    return [json.loads(message["message"]) for message in messages]


@pytest.mark.parametrize("way", WAYS)
def test_events_arrive_with_their_fields(daemon, way):
    """By each of its sources, one message for each event."""
    program = f"fields{next(PROGRAMS)}"
    fields = {"level": "notice", "order": "17", "note": 'say "hi"] \\ Grüße', "lines": "one\ntwo"}
    with _sink(daemon, way, program) as sink:
        for number in range(3):
            sink.handle({"event": f"order {number}", "timestamp": TIME, **fields})
    messages = daemon.wait(program, 3)
    assert [(message["facility"], message["severity"]) for message in messages] == [("local3", "notice")] * 3
    for number, event in enumerate(_events(messages, way)):
        assert event["order"] == "17"
        assert event["note"] == 'say "hi"] \\ Grüße'
        assert event["lines"] in ("one\ntwo", "one\\ntwo")
        if WAYS[way].get("format") == "rfc5424":
            assert messages[number]["message"] == f"order {number}"
            assert messages[number]["time"] == TIME.replace("Z", "+00:00")
        else:
            assert event["event"] == f"order {number}"


@pytest.mark.parametrize("way", WAYS)
def test_the_longest_message_by_default_arrives_whole(daemon, way):
    """One at the limit as it is, one over it shortened by the sink and by nobody else."""
    program = f"whole{next(PROGRAMS)}"
    with _sink(daemon, way, program) as sink:
        assert sink.max_message_bytes == (2048 if way.startswith("udp") else 8096)

        def frame(length):
            return sink.make_frame({"event": "x", "text": "y" * length, "z": "end", "timestamp": TIME})

        length = sink._limit - len(frame(0))
        for each in (length, length + 1, length + 100_000):
            sink.handle({"event": "x", "text": "y" * each, "z": "end", "timestamp": TIME})
    events = _events(daemon.wait(program, 3), way)
    assert [event["z"] for event in events] == ["end"] * 3
    assert [bool(event.get("truncated")) for event in events] == [False, True, True]
    assert len(events[0]["text"]) == length


def test_the_configuration_in_the_documentation(require_service, tmp_path):
    """The configuration of the how-to writes the line that it shows."""
    page = (ROOT / "docs" / "how-to" / "syslog-ng.md").read_text(encoding="utf-8")
    configuration, shown = (body for body in re.findall(r"```none\n(.*?)```", page, re.DOTALL))
    configuration = configuration.replace("%", "%%").replace("/var/log/shop.jsonl", "%(directory)s/out.jsonl")
    configuration = configuration.replace("port(601)", "port(%(syslog)d)").replace("port(514)", "port(%(network)d)")
    event = {"event": "order placed", "level": "notice", "order": 17, "note": 'say "hi"', "tags": ["a", "b"]}
    with SyslogNg(require_service("syslog-ng"), tmp_path, configuration) as daemon:
        with _sink(daemon, "syslog", "shop") as sink:
            sink.handle({**event, "timestamp": TIME})
        with _sink(daemon, "network", "lines") as sink:
            sink.handle(event)
        assert daemon.wait("shop", 1) == [json.loads(shown)]
        [line] = daemon.wait("lines", 1)
        assert json.loads(line["message"]) == event

"""JSONLines: what a listener makes of lines, and what syslog-ng and rsyslogd make of a sink's."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket

import pytest

from outfall import BackgroundSink, CaptureSink, DatagramSink, JSONLines, SignedFrames, SocketListener, SocketSink
from outfall.sinks.core.item import Encoded
from tests.sinks._processes import until
from tests.sinks._rsyslogd import Rsyslogd
from tests.sinks._syslog_ng import SyslogNg

LOOPBACK = ("127.0.0.1", 0)
NUMBERS = itertools.count()
FIELDS = {"level": "info", "text": 'Grüße\nin "two" lines\r\n', "nul": "a\0b", "number": 17, "big": 2**60, "none": None}


def _plain(event):
    """Give the event a form that keeps the hot path off, and is rendered the same."""
    return {**event, "_name": "info"}


@contextlib.contextmanager
def _listening(address=LOOPBACK, **options):
    with CaptureSink() as sink:
        options.setdefault("on_error", lambda _: None)
        with SocketListener(address, sink, codec=JSONLines(), **options) as listener:
            yield listener, sink.events


# -- the sink


@pytest.mark.parametrize("way", ["tcp", "unix", "udp"])
def test_each_event_is_a_line(tmp_path, way):
    """On the hot path, by the pipeline and in batches: JSON and a line feed, and nothing else."""
    unix, kind = way == "unix", socket.SOCK_DGRAM if way == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET, kind) as peer:
        peer.bind(str(tmp_path / "s") if unix else LOOPBACK)
        peer.settimeout(60)
        target = (peer.getsockname(), None) if unix else peer.getsockname()
        made = DatagramSink if way == "udp" else SocketSink
        if way != "udp":
            peer.listen()
        with made(*target, codec=JSONLines(), on_error="raise") as sink:
            for number in range(3):
                sink.handle({"event": number})
            sink.handle(_plain({"event": 3}))
            sink.handle("te\nxt")
            sink.emit_batch([Encoded(b'{"event":5}', 20, 0.0), Encoded(b'{"event":6}', 20, 0.0)])
            lines = [b'{"event":%d}\n' % number for number in (0, 1, 2, 3)]
            lines += [b'{"event":"te\\nxt"}\n', b'{"event":5}\n', b'{"event":6}\n']
            if way == "udp":
                assert [peer.recv(65_536) for _ in lines] == lines
            else:
                with peer.accept()[0] as connection, connection.makefile("rb") as stream:
                    assert [stream.readline() for _ in lines] == lines
        assert sink.stats().delivered == 5


def test_a_large_event_is_shortened_to_a_line(tmp_path):
    """The limit is that of the line without its line feed; over UDP the line feed has to fit in too."""
    with (
        _listening() as (listener, events),
        SocketSink(*listener.address, codec=JSONLines(), max_frame_bytes=512) as sink,
    ):
        sink.handle({"event": "a" * 500})  # 512 bytes with its braces
        sink.handle({"event": "b" * 501})
        until(lambda: len(events) == 2)
        assert events[0] == {"event": "a" * 500}
        assert events[1]["truncated"] is True
    with DatagramSink("127.0.0.1", 9, codec=JSONLines(), max_datagram_bytes=512) as sink:
        assert len(sink.make_frame({"event": "a" * 499})) == 512
        assert b'"truncated":true' in sink.make_frame({"event": "a" * 500})
        assert len(sink.make_frame({"event": "a" * 5000})) <= 512


def test_lines_of_another_renderer_are_escaped_in_batches_too():
    """A renderer's line break tears no line, in whatever way the event goes."""
    with _listening() as (listener, events):
        sink = SocketSink(
            *listener.address, codec=JSONLines(), renderer=lambda _, __, event: json.dumps(event, indent=1)
        )
        with BackgroundSink(sink) as background:
            for number in range(10):
                background.handle({"event": "a\nb", "n": number})
            assert background.flush(60)
            until(lambda: len(events) == 10)
        assert [event["n"] for event in events] == list(range(10))
        assert listener.stats().rejected == {}


# -- the listener


def test_a_number_that_json_does_not_have_is_taken():
    """Python's own json writes it, and so do loggers of others."""
    with _listening() as (listener, events):
        with socket.create_connection(listener.address, 10) as client:
            client.sendall(b'{"event":1,"x":NaN}\n{"event":2,"x":-Infinity}\n')
        until(lambda: len(events) == 2)
    assert [str(event["x"]) for event in events] == ["nan", "-inf"]


@pytest.mark.parametrize("bad", [b"garbage", b"[1]", b'{"half":', b"\xff\xfe", b"GET / HTTP/1.1", b'{"a":1}{"b":2}'])
def test_a_garbage_line_costs_that_line_alone(bad):
    """The lines around it are taken, and so is what comes over the same connection afterwards."""
    with _listening() as (listener, events):
        with socket.create_connection(listener.address, 10) as client:
            client.sendall(b'{"event":1}\n' + bad + b'\n{"event":2}\r\n\r\n \n{"event":3')
            until(lambda: len(events) == 2)
            client.sendall(b"}\n" + bad + b"\n")
            until(lambda: len(events) == 3)
            until(lambda: listener.stats().rejected == {"garbage": 2})
            assert listener.stats().connections == 1
        until(lambda: not listener.stats().connections)
        assert [event["event"] for event in events] == [1, 2, 3]
        assert listener.stats().rejected == {"garbage": 2}


def test_a_last_line_without_a_break_counts():
    """If it is a whole event; half of one is told."""
    with _listening() as (listener, events):
        for last in (b'{"event":"whole"}', b'{"event":"ha'):
            with socket.create_connection(listener.address, 10) as client:
                client.sendall(b'{"event":"first"}\n' + last)
        until(lambda: listener.stats().rejected == {"truncated": 1})
        until(lambda: len(events) == 3)
        assert [event["event"] for event in events].count("whole") == 1


def test_a_last_line_counts_when_the_listener_stops():
    """The peer is connected still."""
    with _listening() as (listener, events):
        with socket.create_connection(listener.address, 10) as client:
            client.sendall(b'{"event":1}')
            until(lambda: listener._buffered)
            assert listener.stop()
        assert [event["event"] for event in events] == [1]


@pytest.mark.parametrize("pieces", [1, 7, 1000])
def test_lines_may_come_in_any_pieces(pieces):
    """The line's length is not known before its end has come."""
    with _listening() as (listener, events):
        data = b"".join(json.dumps({"event": number, **FIELDS}).encode() + b"\n" for number in range(20))
        with socket.create_connection(listener.address, 10) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for start in range(0, len(data), pieces):
                client.sendall(data[start : start + pieces])
        until(lambda: len(events) == 20)
        assert events == [{"event": number, **FIELDS} for number in range(20)]


@pytest.mark.parametrize("pieces", [100, 100_000])
def test_a_line_too_long_costs_itself_alone(pieces):
    """It is thrown away as it comes, and counted once."""
    with _listening(max_frame_bytes=512) as (listener, events):
        data = b'{"event":1}\n' + b"x" * 5000 + b'\n{"event":2}\n' + b"y" * 513 + b'\n{"event":3}\n'
        with socket.create_connection(listener.address, 10) as client:
            for start in range(0, len(data), pieces):
                client.sendall(data[start : start + pieces])
            until(lambda: len(events) == 3)
            assert listener._buffered <= 512
        assert [event["event"] for event in events] == [1, 2, 3]
        assert listener.stats().rejected == {"oversize": 2}


def test_a_line_that_never_ends_is_bounded_in_memory_and_time():
    """The connection is closed when its time is up, though bytes keep coming."""
    with _listening(max_frame_bytes=512) as (listener, _):
        with socket.create_connection(listener.address, 10) as client, contextlib.suppress(ConnectionError):
            client.sendall(b"x" * 1000)
            until(lambda: listener.stats().rejected == {"oversize": 1})
            listener.frame_timeout = 0.05
            listener._sweep_due = 0.0
            listener._wake_up()
            assert client.recv(1) == b""
        until(lambda: listener.stats().rejected == {"oversize": 1, "timeout": 1})


def test_a_datagram_may_have_several_lines():
    """Each is an event, with a line feed at the end or without."""
    with _listening(kind="datagram") as (listener, events):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b'{"event":1}\n{"event":2}', listener.address)
            client.sendto(b'garbage\n{"event":3}\n', listener.address)
        until(lambda: len(events) == 3)
        assert [event["event"] for event in events] == [1, 2, 3]
        assert listener.stats().rejected == {"garbage": 1}


def test_signed_lines_are_signed_frames():
    """A signature may have any byte, so a length stands before it."""
    codec = SignedFrames(b"0123456789abcdef", JSONLines())
    with CaptureSink() as sink, SocketListener(LOOPBACK, sink, codec=codec) as listener:
        with SocketSink(*listener.address, codec=codec, on_error="raise") as sender:
            for number in range(50):
                sender.handle({"event": number})
        until(lambda: len(sink.events) == 50)


# -- real receivers


SYSLOG_NG = """@version: 3.38
options { stats-freq(0); dns-cache(no); use-dns(no); };
source s_lines {
  network(ip("127.0.0.1") port(%(network)d) transport("tcp") flags(no-parse));
  network(ip("127.0.0.1") port(%(udp)d) transport("udp") flags(no-parse));
  unix-dgram("%(directory)s/datagram" flags(no-parse));
};
parser p_json { json-parser(prefix("data.")); };
destination d_all {
  file("%(directory)s/out.jsonl" template("$(format-json --scope none program=${data.program} --key data.*)\\n"));
};
log { source(s_lines); parser(p_json); destination(d_all); };
"""
RSYSLOGD = """
global(workDirectory="{directory}" net.enableDNS="off" maxMessageSize="64k")
module(load="imudp")
module(load="imtcp")
module(load="mmjsonparse")
template(name="line" type="list") {{ property(name="$!all-json-plain") constant(value="\\n") }}
ruleset(name="all") {{
  action(type="mmjsonparse" cookie="" useRawMsg="on")
  action(type="omfile" file="{directory}/out.jsonl" template="line")
}}
input(type="imudp" address="127.0.0.1" port="{udp}" ruleset="all")
input(type="imtcp" address="127.0.0.1" port="{tcp}" ruleset="all")
"""


@pytest.mark.service
@pytest.mark.parametrize("way", ["network", "udp", "datagram"])
def test_syslog_ng_parses_lines(syslog_ng, way):
    """By its json-parser: each event once, with its fields."""
    program = f"lines{next(NUMBERS)}"
    target = (syslog_ng.datagram, None) if way == "datagram" else ("127.0.0.1", syslog_ng.ports[way])
    with (SocketSink if way == "network" else DatagramSink)(*target, codec=JSONLines(), on_error="raise") as sink:
        for number in range(20):
            sink.handle({"event": "e", "program": program, "n": number, "text": FIELDS["text"]})
    messages = syslog_ng.wait(program, 20)
    assert sorted(int(message["data"]["n"]) for message in messages) == list(range(20))
    assert {message["data"]["text"] for message in messages} == {FIELDS["text"]}


@pytest.mark.service
@pytest.mark.parametrize("way", ["tcp", "udp"])
def test_rsyslogd_parses_lines(rsyslogd, way):
    """By its mmjsonparse: each event once, with its fields and their types."""
    program = f"lines{next(NUMBERS)}"
    made, port = (SocketSink, rsyslogd.tcp) if way == "tcp" else (DatagramSink, rsyslogd.udp)
    with made("127.0.0.1", port, codec=JSONLines(), on_error="raise") as sink:
        for number in range(20):
            sink.handle(
                {"event": "e", "program": program, "n": number, "text": FIELDS["text"], "list": [1, {"a": True}]}
            )
    found = []

    def read():
        lines = rsyslogd.output.read_bytes().split(b"\n") if rsyslogd.output.exists() else []
        found[:] = [event for event in map(json.loads, filter(None, lines[:-1])) if event["program"] == program]
        return len(found) == 20

    until(read)
    assert sorted(event["n"] for event in found) == list(range(20))
    assert all(event["text"] == FIELDS["text"] and event["list"] == [1, {"a": True}] for event in found)


@pytest.fixture(scope="module")
def syslog_ng(require_service, tmp_path_factory):
    """Give a syslog-ng that reads lines of JSON."""
    with SyslogNg(require_service("syslog-ng"), tmp_path_factory.mktemp("n"), SYSLOG_NG) as made:
        yield made


@pytest.fixture(scope="module")
def rsyslogd(require_service, tmp_path_factory):
    """Give an rsyslogd that reads lines of JSON."""
    with Rsyslogd(require_service("rsyslogd"), tmp_path_factory.mktemp("r"), configuration=RSYSLOGD) as made:
        yield made

"""SysLogSink, against sockets on loopback; tests/sinks/system/test_rsyslog.py has it read by a real daemon."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import re
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from structlog.processors import KeyValueRenderer

from outfall import BackgroundSink
from outfall.sinks.core.item import Batch
from outfall.sinks.errors import DeliveryError
from outfall.sinks.event.json import OrjsonRenderer
from outfall.sinks.system.syslog import SysLogSink
from outfall.sinks.testing import SinkContract, assert_balanced
from tests.sinks._processes import PATIENCE_SECONDS, in_fork, until
from tests.sinks._rsyslogd import fields_of
from tests.sinks._wire import Clock, Datagrams, Stream, free_port, has_ipv6
from tests.sinks._zones import local_zone

needs_unix = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets on this system")
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
TIME = "2026-03-14T15:09:26.535897Z"


@pytest.fixture
def datagrams():
    """Give a UDP peer."""
    with Datagrams() as made:
        yield made


@pytest.fixture
def stream():
    """Give a TCP peer."""
    with Stream() as made:
        yield made


@pytest.fixture
def short_path(tmp_path_factory):
    """Give a path that is short enough for a Unix socket."""
    return str(tmp_path_factory.mktemp("s") / "log")


def unframed(data, framing):
    """Return the messages in *data* as a daemon tells them apart."""
    if framing == "octet":
        found = []
        while data:
            length, _, data = data.partition(b" ")
            found.append(data[: int(length)])
            data = data[int(length) :]
        return found
    end = {"lf": b"\n", "nul": b"\0"}[framing]
    assert not data or data.endswith(end)
    return data.split(end)[:-1]


@needs_unix
class TestSysLogSink(SinkContract):
    """RFC 3164 to a Unix socket."""

    @pytest.fixture(autouse=True)
    def _peer(self, short_path):
        self.peer = short_path
        self.messages = []
        with Datagrams(short_path, socket.AF_UNIX) as made:
            made.socket.settimeout(None)
            reader = threading.Thread(target=self._read, args=(made.socket,))
            reader.start()
            yield
            self._send(b"last")
            reader.join(60)

    def _read(self, reader):
        while (message := reader.recv(70_000)) != b"last":
            self.messages.append(message)

    def _send(self, message):
        with socket.socket(socket.AF_UNIX, DATAGRAM) as sender:
            sender.connect(self.peer)
            sender.send(message)

    def make_sink(self, **options):
        return SysLogSink(self.peer, timeout=30, **options)

    def received(self, sink):
        self._send(b"all")
        until(lambda: b"all" in self.messages)
        return [json.loads(message[message.index(b"{") :].rstrip(b"\0")) for message in self.messages[:-1]]


class TestStructuredSysLogSink(SinkContract):
    """RFC 5424 by UDP."""

    @pytest.fixture(autouse=True)
    def _peer(self, datagrams):
        self.peer = datagrams

    def make_sink(self, **options):
        return SysLogSink(self.peer.address, format="rfc5424", **options)


class TestStreamSysLogSink(SinkContract):
    """RFC 5424 by TCP."""

    @pytest.fixture(autouse=True)
    def _peer(self, stream):
        self.peer = stream

    def make_sink(self, **options):
        return SysLogSink(self.peer.address, socktype=STREAM, format="rfc5424", **options)


# -- facilities and priorities


def test_all_names_of_the_standard_library():
    """Facilities and priorities are those of SysLogHandler, by name and by constant."""
    theirs = logging.handlers.SysLogHandler
    assert SysLogSink.priority_names == theirs.priority_names
    assert SysLogSink.facility_names == theirs.facility_names
    constants = {name: value for name, value in vars(theirs).items() if name.startswith("LOG_")}
    assert {name: getattr(SysLogSink, name) for name in constants} == constants


def test_priorities_are_encoded(datagrams):
    """Names and numbers mean the same."""
    with SysLogSink(datagrams.address) as sink:
        assert sink.encode_priority("local7", "debug") == sink.encode_priority(23, 7) == 191
        assert sink.encode_priority("kern", "panic") == 0
        for facility, priority in (("no-such", "info"), ("user", "no-such"), (24, 0), (0, 8), (-1, 0), (True, 0)):
            with pytest.raises(ValueError, match=r"no-such|24|8|-1|True"):
                sink.encode_priority(facility, priority)


@pytest.mark.parametrize(
    ("event", "severity"),
    [
        ({"level": "debug"}, 7),
        ({"level": "INFO"}, 6),
        ({}, 6),
        ({"level": "notice"}, 5),
        ({"level": "warn"}, 4),
        ({"level": "exception"}, 3),
        ({"level": "fatal"}, 2),
        ({"level": "alert"}, 1),
        ({"level": "emerg"}, 0),
        ({"level": "trace"}, 7),
        ({"level": 35}, 4),
        ({"level": "level 26"}, 5),
        ({"level": 1000}, 2),
        ({"level": "no-such-level"}, 4),
        ({"level": "debug", "level_number": 40}, 3),
        ({"level": ["odd"]}, 4),
    ],
)
def test_levels_are_mapped(datagrams, event, severity):
    """Each level has its priority; one without a name of its own goes by its number, one unknown is a warning."""
    with SysLogSink(datagrams.address, 0) as sink:
        sink.handle({"event": "x", **event})
    assert datagrams.next().startswith(b"<%d>" % severity)


def test_registered_levels_go_by_their_number(datagrams):
    """A level registered with logging is between its neighbours."""
    logging.addLevelName(45, "SYSLOG_TEST_LEVEL")
    with SysLogSink(datagrams.address, "kern") as sink:
        sink.handle({"event": "x", "level": "syslog_test_level"})
    assert datagrams.next().startswith(b"<3>")


def test_the_mapping_can_be_overridden(datagrams):
    """A subclass has its own table, or its own way."""

    class WithTable(SysLogSink):
        priority_map = {"audit": "alert"}  # noqa: RUF012

    class WithWay(SysLogSink):
        def map_priority(self, level):
            return "emerg" if level == "audit" else super().map_priority(level)

        def encode_priority(self, facility, priority):
            return super().encode_priority("local0", priority)

    for kind, prefix in ((WithTable, b"<9>"), (WithWay, b"<128>")):
        with kind(datagrams.address) as sink:
            sink.handle({"event": "x", "level": "audit"})
        assert datagrams.next().startswith(prefix)


def test_a_mapping_to_nothing_known_costs_its_event(datagrams):
    """An override that returns nonsense is told, and does not raise into the application."""

    class Wrong(SysLogSink):
        def map_priority(self, level):
            return "loud"

    failures = []
    with Wrong(datagrams.address, on_error=failures.append) as sink:
        sink.handle({"event": "x"})
        assert sink.stats().dropped == {"error": 1}
    assert "loud" in str(failures[0].error)


# -- RFC 3164


def test_what_the_handler_sends(datagrams):
    """Text is sent byte by byte as SysLogHandler sends it."""
    handler = logging.handlers.SysLogHandler(datagrams.address, "local1")
    handler.ident = "shop: "
    handler.emit(logging.makeLogRecord({"msg": "hällo", "levelname": "ERROR", "levelno": 40}))
    handler.close()
    expected = datagrams.next()
    with SysLogSink(datagrams.address, "local1", ident="shop: ", renderer=lambda *_: "hällo") as sink:
        sink.handle({"event": "hällo", "level": "error"})
    assert datagrams.next() == expected


def test_ident_facility_and_nul_act_at_once(datagrams):
    """They are settable, and checked."""
    with SysLogSink(datagrams.address, renderer=lambda *_: "x") as sink:
        sink.handle({})
        sink.ident, sink.facility, sink.append_nul = "a\n: ", "KERN", False
        sink.handle({})
        with pytest.raises(TypeError, match="ident=None"):
            sink.ident = None
        with pytest.raises(ValueError, match="facility='no'"):
            sink.facility = "no"
        with pytest.raises(TypeError, match="append_nul=1"):
            sink.append_nul = 1
    assert [datagrams.next(), datagrams.next()] == [b"<14>x\0", b"<6>a\\n: x"]


@pytest.mark.parametrize(
    ("framing", "append_nul", "sent"),
    [
        ("octet", None, b"5 <14>x"),
        ("octet", True, b"6 <14>x\0"),
        ("lf", None, b"<14>x\n"),
        ("lf", True, b"<14>x\0\n"),
        ("nul", None, b"<14>x\0"),
        ("nul", True, b"<14>x\0"),
        (None, None, b"<14>x\n"),
    ],
)
def test_framings(stream, framing, append_nul, sent):
    """In a stream messages are told apart as asked for."""
    with SysLogSink(
        stream.address, socktype=STREAM, framing=framing, append_nul=append_nul, renderer=lambda *_: "x"
    ) as sink:
        sink.handle({})
        sink.handle({})
    assert stream.whole() == sent * 2


_EVENTS = st.dictionaries(
    st.sampled_from(["event", "level", "text", "level_number"]),
    st.text(st.characters(codec="utf-8") | st.sampled_from("\x7f\x85\x9b\0\n\r<"), max_size=20)
    | st.sampled_from(["info", "ERROR", "warn", "notice", "nothing known", 20, None, True])
    | st.text("x", min_size=1990, max_size=2050),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(event=_EVENTS, ident=st.sampled_from(["", "shop: ", "Büro: "]), kind=st.sampled_from([DATAGRAM, STREAM]))
@example(event={"event": "a\x7fb", "level": "info"}, ident="", kind=STREAM)
@example(event={"event": "a\x85b", "level": "info"}, ident="", kind=DATAGRAM)
@example(event={"event": "x", "level": "info", "level_number": 50}, ident="", kind=DATAGRAM)
def test_the_short_cut_sends_what_the_pipeline_sends(event, ident, kind):
    """Byte by byte, in datagrams and in streams."""
    received = []
    for odd in (False, True):
        with (Datagrams if kind == DATAGRAM else Stream)() as daemon:
            made = {**event, "_name": "info"} if odd else event
            with SysLogSink(daemon.address, "local3", kind, ident=ident, timeout=10, on_error="raise") as sink:
                sink.handle({"event": "connects", "level": "info"})
                sink.handle(made)
            received.append((daemon.next(), daemon.next()) if kind == DATAGRAM else daemon.whole())
    assert received[0] == received[1]


def test_the_usual_event_takes_the_short_cut(datagrams, monkeypatch):
    """From the second event on the pipeline is not asked, whatever is set meanwhile; what is odd takes it."""
    with SysLogSink(datagrams.address, on_error="raise") as sink:
        sink.handle({"event": 1, "level": "info"})
        asked = []
        monkeypatch.setattr(sink, "deliver", asked.append)
        sink.handle({"event": 2, "level": "info"})
        sink.facility, sink.ident, sink.append_nul = "local7", "shop: ", False
        sink.handle({"event": 3, "level": "error"})
        sink.level = "error"
        sink.handle({"event": 4, "level": "info"})
        assert (asked, sink.stats().delivered, sink.stats().filtered) == ([], 3, 1)
        for odd in (
            {"event": 5, "level": "alert", "level_number": 70},
            {"event": "é", "level": "error"},
            {"event": "\x7f", "level": "error"},
            {"event": 5, "level": "error", "exc_info": None},
            {"event": "x" * 3000, "level": "error"},
        ):
            sink.handle(odd)
        assert len(asked) == 5
    assert [datagrams.next() for _ in range(3)] == [
        b'<14>{"event":1,"level":"info"}\0',
        b'<14>{"event":2,"level":"info"}\0',
        b'<187>shop: {"event":3,"level":"error"}',
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"format": "rfc5424"},
        {"renderer": OrjsonRenderer(sort_keys=True)},
        {"processors": [lambda logger, name, event: event]},
        {"socktype": STREAM, "framing": "octet"},
    ],
)
def test_the_short_cut_is_off_where_it_would_be_wrong(datagrams, stream, options, monkeypatch):
    """What is asked for beyond the usual message is done."""
    address = stream.address if "socktype" in options else datagrams.address
    with SysLogSink(address, on_error="raise", **options) as sink:
        sink.handle({"event": 1, "level": "info"})
        asked = []
        monkeypatch.setattr(sink, "deliver", asked.append)
        sink.handle({"event": 2, "level": "info"})
        assert len(asked) == 1


def test_behind_a_thread_text_keeps_its_level_and_time(datagrams):
    """A renderer's text does not say them, so that they have to travel beside it."""
    target = SysLogSink(datagrams.address, renderer=lambda logger, name, event: event["event"])
    with BackgroundSink(target) as sink:
        sink.handle({"event": "no money left", "level": "error"})
        assert sink.flush(60)
    assert datagrams.next() == b"<11>no money left\0"


@pytest.mark.parametrize("form", ["rfc3164", "rfc5424"])
def test_a_batch_on_a_stream_goes_by_one_send(stream, form):
    """Each message framed, with its own priority."""
    with SysLogSink(stream.address, socktype=STREAM, format=form, framing="lf", on_error="raise") as sink:
        pushed, push = [], sink._push
        sink._push = lambda data: pushed.append(data) or push(data)
        levels = ["info", "error", "debug"] * 10
        batch = [sink.encode({"event": "x", "level": level, "timestamp": TIME}) for level in levels]
        assert sink.emit_batch(batch) is None
        assert len(pushed) == 1
    messages = unframed(stream.whole(), "lf")
    priorities = {"info": b"<14>", "error": b"<11>", "debug": b"<15>"}
    assert [message[:4] for message in messages] == [priorities[level] for level in levels]


ALL_KINDS = [
    {"event": "plain", "level": "info", "timestamp": TIME},
    {"event": "a debug one", "level": "debug", "timestamp": TIME, "n": 1},
    {"event": "gr\u00fc\u00df dich", "level": "error", "timestamp": TIME},
    {"event": "del \x7f and c1 \x85", "level": "warning", "timestamp": TIME},
    {"event": "a level of one's own", "level": "level 35", "timestamp": TIME},
    {"event": "its number wins", "level": "info", "level_number": 50, "timestamp": TIME},
    {"event": "no level", "timestamp": TIME},
    {"event": "nobody knows it", "level": "strange", "timestamp": TIME},
    {"event": "long " + "x" * 3_000, "level": "info", "timestamp": TIME},
    "text\nof two lines\x01\x7f\n",
    b"bytes\r\n<11>not a message of its own",
]


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize(
    ("socktype", "options"),
    [
        (DATAGRAM, {}),
        (STREAM, {"framing": "lf"}),
        (STREAM, {"framing": "octet"}),
        (STREAM, {"framing": "nul"}),
        (STREAM, {"framing": "lf", "format": "rfc5424"}),
    ],
    ids=str,
)
def test_behind_a_thread_the_messages_are_the_same(socktype, options, alike):
    """Whatever is in the events: what is quick for a batch of usual ones makes no difference."""
    events = [event for event in ALL_KINDS for _ in range(3)] if not alike else ALL_KINDS[:2] * 5
    if options.get("format") == "rfc5424":  # a text has the time at which it came
        events = [event for event in events if isinstance(event, dict)]
    found = []
    for around in (lambda sink: sink, lambda sink: BackgroundSink(sink, linger=60)):
        with Datagrams() if socktype == DATAGRAM else Stream() as peer:
            target = SysLogSink(
                peer.address, "local3", socktype, ident="shop: ", max_message_bytes=1_000, on_error="raise", **options
            )
            with around(target) as sink:
                for event in events:
                    sink.handle(event)
                assert sink.flush(60)
                if socktype == DATAGRAM:
                    found.append([peer.next() for _ in events])
            if socktype == STREAM:
                found.append(peer.whole())
    assert found[0] == found[1]


def test_line_ends_of_a_renderer_are_dropped(datagrams):
    """A message ends where it ends."""
    with SysLogSink(datagrams.address, renderer=lambda *_: "two\nlines\r\n", append_nul=False) as sink:
        sink.handle({})
    assert datagrams.next() == b"<14>two\\nlines"


# -- RFC 5424

HEADER = re.compile(
    rb"<(?P<pri>\d{1,3})>1 (?P<time>\S+) (?P<host>\S+) (?P<app>\S+) (?P<pid>\S+) (?P<msgid>\S+) "
    rb"(?P<sd>-|(?:\[(?:[^\"\]]|\"(?:[^\"\\\]]|\\.)*\")*\])+)(?: (?P<msg>.*))?",
    re.DOTALL,
)


def header_of(message):
    """Return the parts of a message of RFC 5424."""
    match = HEADER.fullmatch(message)
    assert match, message
    return {name: value.decode() for name, value in match.groupdict(b"").items()}


def test_the_header(datagrams):
    """Time, host, program, process and message id are where they belong."""

    class WithKind(SysLogSink):
        def get_message_id(self, event):
            return f"kind {event['kind']}"

    with WithKind(datagrams.address, "local4", format="rfc5424", ident="my shop: ") as sink:
        sink.handle({"event": "sold", "level": "error", "timestamp": TIME, "kind": 5})
    assert header_of(datagrams.next()) == {
        "pri": str(20 * 8 + 3),
        "time": TIME,
        "host": socket.gethostname(),
        "app": "my_shop",
        "pid": str(os.getpid()),
        "msgid": "kind_5",
        "sd": '[outfall@32473 level="error" kind="5"]',
        "msg": "sold",
    }


@pytest.mark.parametrize(
    ("argv", "app"),
    [
        (["/usr/bin/shop.py", "x"], "shop.py"),
        (["/srv/shop/__main__.py"], "shop"),
        (["-c"], "-"),
        ([""], "-"),
        ([], "-"),
    ],
)
def test_the_program_is_known_by_its_name(datagrams, monkeypatch, argv, app):
    """Without an ident it is the program's file, or its package."""
    monkeypatch.setattr("sys.argv", argv)
    with SysLogSink(datagrams.address, format="rfc5424") as sink:
        sink.handle({"event": "x"})
    assert header_of(datagrams.next())["app"] == app


@pytest.mark.parametrize(
    ("timestamp", "text"),
    [
        (TIME, TIME),
        ("2026-03-14T17:09:26.500000+02:00", "2026-03-14T15:09:26.500000Z"),
        (1773500966.535897, TIME),
    ],
)
def test_the_time_is_the_events_own(datagrams, timestamp, text):
    """Whatever form it has, it is in the header and no field."""
    with SysLogSink(datagrams.address, format="rfc5424") as sink:
        sink.handle({"event": "x", "timestamp": timestamp})
    header = header_of(datagrams.next())
    assert (header["time"], header["sd"]) == (text, "-")


def test_a_time_that_cannot_be_read_stays_a_field(datagrams):
    """It is not lost, and the header has now."""
    before = time.time()
    with SysLogSink(datagrams.address, format="rfc5424") as sink:
        sink.handle({"event": "x", "timestamp": "soon"})
    header = header_of(datagrams.next())
    assert fields_of(header["sd"]) == {"timestamp": "soon"}
    assert header["time"] >= time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(before))


def test_a_batch_keeps_the_time_it_was_made(datagrams):
    """An item without a timestamp has that of its encoding, whenever it is sent."""
    with SysLogSink(datagrams.address, format="rfc5424") as sink:
        item = sink.encode({"event": "x", "level": "no-such-level", "number": 1})
        until(lambda: time.time() > item.time + 0.001)
        sink.emit_batch([item])
    header = header_of(datagrams.next())
    assert float(f"0.{header['time'][-7:-1]}") == pytest.approx(item.time % 1, abs=1e-6)
    assert fields_of(header["sd"]) == {"level": "no-such-level", "number": "1"}
    assert header["pri"] == "12"


def test_the_message_may_have_a_renderer(datagrams):
    """MSG is what it makes; the fields are structured data all the same."""
    with SysLogSink(datagrams.address, format="rfc5424", renderer=KeyValueRenderer(key_order=["event"])) as sink:
        sink.handle({"event": "x", "a": [1]})
    header = header_of(datagrams.next())
    assert (header["msg"], fields_of(header["sd"])) == ("event='x' a=[1]", {"a": "[1]"})


@pytest.mark.parametrize(("naive", "hour"), [("utc", "07"), ("local", "11")])
@pytest.mark.parametrize("wrap", [lambda sink: sink, BackgroundSink])
def test_a_time_without_a_zone_is_what_the_sink_takes_it_for(datagrams, naive, hour, wrap):
    """UTC unless it is told that it is local time; the header says it in UTC."""
    with local_zone("America/New_York"):
        sink = wrap(SysLogSink(datagrams.address, format="rfc5424", naive_timestamps=naive))
        sink.handle({"event": "x", "timestamp": "2024-05-06T07:08:09"})
        sink.close()
    assert f"2024-05-06T{hour}:08:09" in datagrams.next().decode()


def test_an_exception_is_a_field(datagrams):
    """exc_info is rendered; metadata and hostile values cost nothing."""
    with SysLogSink(datagrams.address, format="rfc5424") as sink:
        try:
            raise ValueError("oops")
        except ValueError:
            sink.handle({"event": "failed", "exc_info": True, "_logger": object()})
    fields = fields_of(header_of(datagrams.next())["sd"])
    assert fields.keys() == {"exception_type", "exception_message", "exception"}
    assert fields["exception"].endswith("ValueError: oops")


def test_the_element_has_the_name_asked_for(datagrams):
    """structured_data_id names it, and its number goes with the whole names too."""
    with SysLogSink(datagrams.address, format="rfc5424", structured_data_id="shop@99") as sink:
        sink.handle({"event": "x", "a": "b", "n" * 33: "c"})
    assert fields_of(header_of(datagrams.next())["sd"], "shop@99", "names@99") == {"a": "b", "n" * 33: "c"}


def test_a_message_that_is_no_text_is_json(datagrams):
    """An event may be anything."""
    with SysLogSink(datagrams.address, format="rfc5424") as sink:
        sink.handle({"event": {"a": 1}})
        sink.handle({"no": "event"})
    assert header_of(datagrams.next())["msg"] == '{"a":1}'
    assert datagrams.next().endswith(b"]")


# -- forging

TEXT = st.one_of(
    st.text(st.characters(exclude_categories=())),
    st.text('\n\r\0\x85\u2028"]\\[= <13>1\t'),
    st.sampled_from(["\n<13>x", "\0<13>x", "9 <13>forge", '"] <13>1 - - - - - -', "\r\n", "\x1b[2J"]),
)
EVENTS = st.dictionaries(
    TEXT, st.one_of(TEXT, st.integers(), st.none(), st.floats(), st.lists(TEXT, max_size=3)), max_size=6
)


@pytest.mark.parametrize("form", ["rfc3164", "rfc5424"])
@pytest.mark.parametrize("framing", ["octet", "lf", "nul"])
def test_no_event_is_two_messages_in_a_stream(form, framing):
    """However hostile events, texts and ident are, a daemon tells as many messages apart as were sent."""
    sink = SysLogSink(socktype=STREAM, format=form, framing=framing)
    text_sink = SysLogSink(socktype=STREAM, format=form, framing=framing, renderer=lambda *_: rendered[0])
    rendered = [""]

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.one_of(EVENTS, TEXT), min_size=1, max_size=4), TEXT, st.integers(480, 600))
    def check(events, ident, limit):
        stream, messages = b"", []
        for each in (sink, text_sink):
            each.ident, each.max_message_bytes = ident, limit
            for event in events:
                given_event = event if isinstance(event, dict) else {"event": event}
                rendered[0] = event if isinstance(event, str) else ident
                for message in (each.make_frame(given_event), each._frame_of(each.encode(given_event))):
                    messages.append(message)
                    stream += each._on_wire(message)
        assert unframed(stream, framing) == messages
        for message in messages:
            assert len(message) <= limit
            assert re.match(rb"<\d+>", message)
            message.decode()
            if framing != "octet":
                assert not re.search(rb"[\x00-\x1f\x7f]|\xc2[\x80-\x9f]", message)
            if form == "rfc5424":
                header_of(message)

    check()


@settings(max_examples=100)
@example({"\ud800": "\udfff"})
@example({"\x80\x80\ud800\U00010000": None})
@given(EVENTS)
def test_structured_data_is_read_back(event):
    """Any event's fields are those that were logged, with names whole and values as text or JSON."""
    sink = SysLogSink(socktype=STREAM, format="rfc5424", max_message_bytes=1_000_000)
    for taken in ("event", "timestamp", "level", "level_number", "exc_info"):
        event.pop(taken, None)
    expected = json.loads(OrjsonRenderer()(None, None, event))
    fields = fields_of(header_of(sink.make_frame({"event": "x", **event}))["sd"])
    assert len(fields) == len(expected)
    for name, value in expected.items():
        shown = fields.get(name, fields.get(name.replace("\0", "\\u0000")))
        if isinstance(value, str):
            assert shown == value.replace("\0", "\\u0000")
        else:
            assert json.loads(shown) == value


def test_a_value_cannot_forge_a_datagram(datagrams):
    """One event is one datagram, with control characters escaped."""
    with SysLogSink(datagrams.address, format="rfc5424") as sink:
        sink.handle({"event": "a\n<13>b", "field": "\0\x7f\x85"})
        sink.handle("\n\0")
    assert header_of(datagrams.next())["msg"] == "a\\n<13>b"
    assert header_of(datagrams.next())["msg"] == "\\n\\u0000"


# -- long messages


def test_json_is_shortened_and_valid(datagrams):
    """A JSON message that is too long stays JSON, marked, with its short fields."""
    with SysLogSink(datagrams.address, ident="shop: ", max_message_bytes=480) as sink:
        sink.handle({"event": "é" * 999, "n": 5})
        sink.emit_batch([sink.encode({"event": "é" * 999, "n": 5})])
    for _ in range(2):
        message = datagrams.next()
        assert 470 < len(message) <= 480
        event = json.loads(message.partition(b"shop: ")[2].rstrip(b"\0"))
        assert (event["n"], event["truncated"], event["event"].strip("é")) == (5, True, "")


@pytest.mark.parametrize("size", range(480, 486))
def test_text_is_cut_between_characters(datagrams, size):
    """What a renderer made is cut at its end, never within a character."""
    with SysLogSink(datagrams.address, renderer=lambda *_: "世" * 999, max_message_bytes=size) as sink:
        sink.handle({"event": "x"})
        sink.handle("界" * 999)
    for _ in range(2):
        message = datagrams.next()
        assert size - 3 < len(message) <= size
        assert message.decode().endswith(("世\0", "界\0"))


def test_structured_data_is_shortened_and_valid(datagrams):
    """Long values are cut, large fields left out, and what is left parses."""
    with SysLogSink(datagrams.address, format="rfc5424", max_message_bytes=600) as sink:
        sink.handle({"event": "é" * 999, "quotes": '"' * 999, "n": 5})
        sink.handle({"event": "x", **{f"field{number}": number for number in range(999)}})
        sink.handle({"event": "x", "list": list(range(999)), "n": 5})
    for fewest in ({"n", "quotes", "truncated"}, {"truncated"}, {"n", "truncated"}):
        message = datagrams.next()
        assert len(message) <= 600
        assert fewest <= fields_of(header_of(message)["sd"]).keys()


def test_what_a_renderer_makes_too_long_loses_its_fields_last(datagrams):
    """A renderer that makes the same long text of anything has that cut, with a valid header before it."""
    with SysLogSink(datagrams.address, format="rfc5424", renderer=lambda *_: "é" * 999, max_message_bytes=600) as sink:
        sink.handle({"event": "x", "a": "b"})
    header = header_of(datagrams.next())
    assert (header["sd"], header["msg"].strip("é")) == ("-", "")


# -- connections


def test_nothing_has_to_be_there_at_construction(short_path):
    """A missing host, port or Unix socket is found out with the first event, told, and counted."""
    for address in (("127.0.0.1", free_port()), ("no-such-host.invalid", 514), short_path):
        failures = []
        clock = Clock()
        with SysLogSink(address, socktype=STREAM, on_error=failures.append, clock=clock) as sink:
            assert sink.sock is None
            for _ in range(3):
                sink.handle({"event": "x"})
            clock.now += 1
            sink.handle({"event": "x"})
            assert sink.stats().dropped == {"error": 2, "backoff": 2}
        assert sum(failure.events for failure in failures) == 4
        assert all(isinstance(failure.error, DeliveryError) for failure in failures)
        assert_balanced(sink.stats())


@needs_unix
@pytest.mark.parametrize(("peer", "sent"), [(Datagrams, b"<14>x\0"), (Stream, b"<14>x\n")])
def test_a_path_is_tried_with_datagrams_and_then_a_stream(short_path, peer, sent):
    """Without a socktype the daemon's own kind is found, as for /dev/log."""
    with peer(short_path, socket.AF_UNIX) as made, SysLogSink(short_path, renderer=lambda *_: "x") as sink:
        sink.handle({})
        assert sink.socktype is None
        sink.close()
        assert (made.whole() if peer is Stream else made.next()) == sent


@needs_unix
def test_a_path_that_changes_its_kind(short_path):
    """A daemon that is replaced by one of the other kind is found again."""
    sink = SysLogSink(short_path, renderer=lambda *_: "x", retry_start=0)
    with Datagrams(short_path, socket.AF_UNIX) as made:
        sink.handle({})
        assert made.next() == b"<14>x\0"
    Path(short_path).unlink()
    with Stream(short_path, socket.AF_UNIX) as made:
        sink.handle({})
        sink.close()
        assert made.whole() == b"<14>x\n"
    assert sink.stats().delivered == 2


@needs_unix
def test_why_a_path_cannot_be_connected_is_told(short_path):
    """A path that a dead daemon has left refuses."""
    with Datagrams(short_path, socket.AF_UNIX):
        pass
    failures = []
    with SysLogSink(short_path, on_error=failures.append) as sink:
        sink.handle({"event": "x"})
    assert "refused" in str(failures[0].error)


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")
def test_ipv6():
    """The address may be one of IPv6."""
    with Datagrams(("::1", 0), socket.AF_INET6) as made, SysLogSink(["::1", made.address[1]]) as sink:
        sink.handle({"event": "x"})
        assert b"x" in made.next()


def test_a_connection_that_was_closed_is_made_anew(stream):
    """The event after the daemon closed the connection goes over a new one."""
    with SysLogSink(stream.address, socktype=STREAM, renderer=lambda *_: "x") as sink:
        for number in range(1, 4):
            sink.handle({})
            until(lambda: b"".join(stream.data) == b"<14>x\n" * number)  # noqa: B023 - called at once
            if number < 3:
                stream.hang_up()
                until(lambda: stream.ended == number)  # noqa: B023
        assert sink.stats().delivered == 3
    assert stream.whole(3) == b"<14>x\n" * 3


def test_an_event_whose_sending_fails_is_sent_once_more(stream):
    """A broken connection costs no event that the system had not taken."""
    with SysLogSink(stream.address, socktype=STREAM, renderer=lambda *_: "x") as sink:
        sink.handle({})
        until(lambda: stream.data)
        sink._has_ended = lambda: False  # the peer closes as soon as it is told, which the sink may notice first
        sink.sock.shutdown(socket.SHUT_WR)
        sink.handle({})
        assert (sink.stats().delivered, sink.stats().retried) == (2, 1)
    assert stream.whole(2) == b"<14>x\n" * 2


def test_a_refused_datagram_is_noticed_and_the_next_sent_again():
    """The host's answer that nobody listens comes with a later event; where somebody does by then, it arrives."""
    with Datagrams() as made:
        address = made.address
    with SysLogSink(address, renderer=lambda *_: "x") as sink:
        sink.handle({})  # gone, and nobody says so
        with Datagrams(address) as made:
            until(lambda: sink.handle({}) or made.so_far())
        stats = sink.stats()
        assert_balanced(stats)
        assert not stats.dropped


@pytest.mark.parametrize("events", [1, 2, 600])
def test_a_batch_of_datagrams_to_a_host_where_nobody_listens(events):
    """Its answers that nobody does hold nothing up; from the first one that somebody takes on, each arrives."""
    # An address of this process alone, where there are many: nobody else is given the port in between.
    host = f"127.1.{os.getpid() >> 8 & 255}.{os.getpid() % 255 or 1}" if sys.platform == "linux" else "127.0.0.1"
    with Datagrams((host, 0)) as made:
        address = made.address
    with SysLogSink(address, renderer=lambda *_: "x", on_error="raise") as sink:
        batch = Batch([sink.encode({})] * events)
        assert sink.emit_batch(batch) is None
        with Datagrams(address) as made:
            assert sink.emit_batch(batch) is None
            assert [made.next() for _ in range(min(events, 20))] == [b"<14>x\0"] * min(events, 20)


@needs_unix
def test_of_a_batch_of_datagrams_what_finds_no_room_is_left_for_a_retry(short_path):
    """A daemon at a path that does not read: what it has room for is sent, once."""
    with (
        Datagrams(short_path, socket.AF_UNIX) as made,
        SysLogSink(short_path, timeout=0.05, on_error="raise") as sink,
    ):
        batch = Batch([sink.encode({"event": number}) for number in range(5_000)])
        result = sink.emit_batch(batch)
        sent = result.retry[0]
        assert list(result.retry) == list(range(sent, 5_000))
        assert not result.rejected
        messages = made.so_far()
        assert [json.loads(message[4:].rstrip(b"\0"))["event"] for message in messages] == list(range(sent))


def test_a_name_whose_first_address_has_no_daemon(datagrams, monkeypatch):
    """A refused datagram has the next one sent to the next address of the name."""
    port = datagrams.address[1]
    # All of 127.0.0.0/8 is loopback on Linux alone; another port of the one address will do.
    found = [(socket.AF_INET, DATAGRAM, 17, "", ("127.0.0.1", number)) for number in (_dead_port(), port)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
    with SysLogSink(("localhost", port), renderer=lambda *_: "x") as sink:
        until(lambda: sink.handle({}) or datagrams.so_far())
        before = sink.stats().delivered
        for _ in range(5):
            sink.handle({})
        assert sink.stats().delivered == before + 5
    assert datagrams.so_far() == [b"<14>x\0"] * 5


def _dead_port():
    with Datagrams() as made:
        return made.address[1]


def test_a_datagram_that_the_network_refuses_for_its_size(datagrams):
    """It is counted as oversize, and the next is sent."""
    failures = []
    with SysLogSink(datagrams.address, max_message_bytes=100_000, on_error=failures.append) as sink:
        sink.handle({"event": "x" * 90_000})
        sink.handle({"event": "small"})
        assert sink.stats().dropped == {"oversize": 1}
    assert b"small" in datagrams.next()
    assert "too large" in str(failures[0].error)


@needs_unix
def test_a_daemon_that_does_not_read_costs_a_timeout_and_not_more(short_path):
    """A full Unix socket blocks for the timeout, then backs off; with room again events are sent."""
    clock = Clock()
    with (
        Datagrams(short_path, socket.AF_UNIX) as made,
        SysLogSink(short_path, timeout=0.05, clock=clock, on_error=lambda failure: None) as sink,
    ):
        until(lambda: sink.handle({"event": "x" * 1000}) or sink.stats().dropped)
        for _ in range(100):
            sink.handle({"event": "y"})
        assert sink.stats().dropped == {"error": 1, "backoff": 100}
        made.so_far()
        clock.now += 1
        sink.handle({"event": "z"})
        assert b"z" in made.next()
        assert_balanced(sink.stats())


def test_close_keeps_its_time_while_a_send_hangs():
    """A daemon that takes the connection and never reads holds close no longer than it was told."""
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(1)
        sink = SysLogSink(
            deaf.getsockname(),
            socktype=STREAM,
            timeout=PATIENCE_SECONDS,
            max_message_bytes=50_000_000,
            on_error=lambda failure: None,
        )
        thread = threading.Thread(target=sink.handle, args=({"event": "x" * 20_000_000},))
        thread.start()
        until(lambda: sink._sending)
        begin = time.monotonic()
        assert not sink.flush(0.1)
        assert not sink.close(0.1)
        assert time.monotonic() - begin < PATIENCE_SECONDS / 2
        deaf.close()
        thread.join(PATIENCE_SECONDS)
    assert_balanced(sink.stats())


def test_a_forked_child_has_its_own_socket_and_process_id(stream):
    """Parent and child write to connections of their own, under their own ids."""
    with SysLogSink(stream.address, socktype=STREAM, format="rfc5424") as sink:
        sink.handle({"event": "parent"})

        def child():
            sink.handle({"event": "child"})
            assert sink.close()

        in_fork(child)
        sink.handle({"event": "parent"})
    stream.whole(2)
    one, other = ([header_of(message) for message in unframed(bytes(data), "octet")] for data in stream.data)
    assert [each["msg"] for each in one] == ["parent", "parent"]
    assert [each["msg"] for each in other] == ["child"]
    assert {each["pid"] for each in one} == {str(os.getpid())}
    assert other[0]["pid"] != str(os.getpid())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"address": 5}, "address=5"),
        ({"address": ("a",)}, "address="),
        ({"address": ""}, "address=''"),
        ({"address": ("localhost", None)}, "address="),
        ({"address": ("localhost", 0)}, "0"),
        ({"address": ("localhost", "514")}, "'514'"),
        ({"facility": "local8"}, "facility='local8'"),
        ({"facility": 24}, "facility=24"),
        ({"socktype": socket.SOCK_RAW}, "socktype="),
        ({"timeout": -1}, "timeout=-1"),
        ({"format": "rfc9999"}, "format='rfc9999'"),
        ({"framing": "cr"}, "framing='cr'"),
        ({"ident": 5}, "ident=5"),
        ({"append_nul": "yes"}, "append_nul='yes'"),
        ({"structured_data_id": "a@1"}, "structured_data_id='a@1'"),
        ({"structured_data_id": "a b", "format": "rfc5424"}, "structured_data_id='a b'"),
        ({"structured_data_id": "a" * 33, "format": "rfc5424"}, "structured_data_id="),
        ({"structured_data_id": "", "format": "rfc5424"}, "structured_data_id=''"),
        ({"tls": True, "address": "/dev/log"}, "tls=True"),
        ({"tls": True, "socktype": DATAGRAM}, "tls=True"),
        ({"tls": "yes"}, "tls='yes'"),
        ({"address": "localhost:514"}, "address=('localhost', 514)"),
        ({"address": "[::1]:514"}, "address=('::1', 514)"),
        ({"max_message_bytes": 479}, "max_message_bytes=479"),
        ({"max_message_bytes": "a lot"}, "max_message_bytes='a lot'"),
    ],
)
def test_misconfiguration_raises_and_names_the_argument(options, words):
    """What cannot work is refused at construction."""
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        SysLogSink(**options)


def test_defaults():
    """They are those of the handler, and what the formats ask for."""
    sink = SysLogSink()
    assert (sink.address, sink.facility, sink.socktype) == (("localhost", 514), 1, DATAGRAM)
    assert (sink.format, sink.framing, SysLogSink(format="rfc5424").framing) == ("rfc3164", "lf", "octet")
    assert (sink.max_message_bytes, SysLogSink("/dev/log").max_message_bytes) == (2048, 8096)
    assert SysLogSink(max_message_bytes="64 KiB").max_message_bytes == 65_536
    encrypted = SysLogSink(("localhost", 6514), tls=True)
    assert encrypted.max_message_bytes == 8096
    assert (encrypted.socktype, encrypted.framing) == (STREAM, "octet")

"""JournaldSink, read by a real systemd-journald, and by a reader written from the specification."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import logging
import os
import re
import shutil
import signal
import socket
import threading
import uuid

import pytest

from outfall import BackgroundSink, JournaldSink, OrjsonRenderer
from outfall.sinks.system import journald as journald_module
from outfall.sinks.testing import SinkContract, assert_balanced
from tests.sinks._processes import in_fork, until
from tests.sinks._wire import Clock
from tests.sinks.system._journald import PROGRAM, Journald, receive

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="Unix alone")

IDENTIFIERS = itertools.count()
NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


@pytest.fixture(scope="module")
def journald():
    """Give a journal of its own."""
    if os.geteuid() != 0 or not os.path.exists(PROGRAM) or shutil.which("journalctl") is None:
        pytest.skip("systemd-journald is not installed here, or does not run without root")
    try:
        made = Journald()
    except (AssertionError, OSError) as error:
        pytest.skip(f"systemd-journald does not run here: {error}")
    yield made
    made.close()


@pytest.fixture
def journal(tmp_path):
    """Give a socket that takes entries."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "journal"))
        made.settimeout(60)
        yield made


@pytest.fixture
def small_datagrams(monkeypatch):
    """Make an entry of 100 kB too large for a datagram, whatever the machine's limit is."""
    monkeypatch.setattr(journald_module, "_SEND_BUFFER_BYTES", 50_000)


def _sink(journal, **options):
    options.setdefault("on_error", "raise")
    return JournaldSink(journal.getsockname(), **options)


class TestJournaldSink(SinkContract):
    """A socket that takes entries."""

    @pytest.fixture(autouse=True)
    def _peers(self, tmp_path):
        self.directory = tmp_path
        with contextlib.ExitStack() as self.stack:
            yield

    def make_sink(self, **options):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.stack.callback(self.socket.close)
        self.stack.callback(self.socket.shutdown, socket.SHUT_RDWR)
        self.socket.bind(str(self.directory / str(len(list(self.directory.iterdir())))))
        threading.Thread(target=self._read, args=(self.socket,), daemon=True).start()
        return JournaldSink(self.socket.getsockname(), **options)

    def _read(self, peer):
        with contextlib.suppress(OSError):
            while peer.recv(1):
                pass

    def received(self, sink):
        return None  # the system keeps a few entries alone of those that nobody reads


# -- entries


def test_each_field_is_one_of_the_entry(journal):
    """Text as it is, the rest as JSON; the message, the level and the place in the code where the journal has them."""
    event = {
        "event": "order placed",
        "level": "warning",
        "logger": "shop",
        "timestamp": "2026-03-14T15:09:26.535897Z",
        "pathname": "/srv/shop.py",
        "lineno": 17,
        "func_name": "place",
        "order": 17,
        "paid": True,
        "note": None,
        "tags": ["a", {"b": 1}],
        "text": "Grüße",
        "raw": b"\x00\xff\n",
        "share": float("nan"),
        "huge": 2**70,
    }
    with _sink(journal, identifier="shop") as sink:
        sink.handle(event)
    assert receive(journal) == {
        "MESSAGE": [b"order placed"],
        "PRIORITY": [b"4"],
        "SYSLOG_IDENTIFIER": [b"shop"],
        "LEVEL": [b"warning"],
        "LOGGER": [b"shop"],
        "TIMESTAMP": [b"2026-03-14T15:09:26.535897Z"],
        "CODE_FILE": [b"/srv/shop.py"],
        "CODE_LINE": [b"17"],
        "CODE_FUNC": [b"place"],
        "ORDER": [b"17"],
        "PAID": [b"true"],
        "NOTE": [b"null"],
        "TAGS": [b'["a",{"b":1}]'],
        "TEXT": ["Grüße".encode()],
        "RAW": [b"\x00\xff\n"],
        "SHARE": [b"nan"],
        "HUGE": [str(2**70).encode()],
    }


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        *zip(("emerg", "alert", "critical", "error", "warn", "notice", "INFO", "debug"), range(8), strict=True),
        *((35, 4), (logging.DEBUG, 7), ("nonsense", 4), (None, 6)),
    ],
)
def test_the_priority_is_the_levels(journal, level, priority):
    """As SysLogSink maps it, in a batch too."""
    event = {"event": "e"} if level is None else {"event": "e", "level": level}
    with BackgroundSink(_sink(journal), linger=0) as sink:
        sink.target.handle(event)
        sink.handle(event)
        for _ in range(2):
            assert receive(journal)["PRIORITY"] == [b"%d" % priority]


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("user.id", "USER_ID"),
        ("_private", "PRIVATE"),
        ("__", "FIELD"),
        ("", "FIELD"),
        ("2fa", "FIELD_2FA"),
        ("Größe", "GR__E"),
        ("a=b\nMESSAGE=forged", "A_B_MESSAGE_FORGED"),
        ("priority", "PRIORITY_2"),
        ("MESSAGE", "MESSAGE_2"),
        ("syslog_identifier", "SYSLOG_IDENTIFIER_2"),
        ("message_id", "MESSAGE_ID_2"),
        ("_machine_id", "MACHINE_ID"),
    ],
)
def test_names_are_such_as_the_journal_takes(journal, name, made):
    """What it would leave out, or take for its own, gets another name; nothing is lost and nothing forged."""
    with _sink(journal) as sink:
        sink.handle({"event": "true one", name: "value"})
    fields = receive(journal)
    assert fields["MESSAGE"] == [b"true one"]
    assert fields[made] == [b"value"]


def test_no_two_fields_have_one_name(journal):
    """Long ones and those that differ in what a name may not have stay apart, and have 64 characters at most."""
    names = ["a.b", "a-b", "A_B", "a b", "x" * 64, "x" * 65, "x" * 66, "x" * 66 + ".", "x" * 66 + "-"]
    with _sink(journal) as sink:
        sink.handle({"event": "e", **{name: name for name in names}})
    fields = receive(journal)
    assert all(NAME.fullmatch(name) for name in fields)
    values = [value.decode() for got in fields.values() for value in got]
    assert set(names) <= set(values)
    assert all(len(got) == 1 for got in fields.values())


def test_no_value_forges_a_field(journal):
    """A line feed in a value is a part of it."""
    with _sink(journal, identifier="shop\nPRIORITY=0") as sink:
        sink.handle({"event": "one\nPRIORITY=0\nMESSAGE=two", "field": "a\nPRIORITY=0", "level": "info"})
    fields = receive(journal)
    assert fields["MESSAGE"] == [b"one\nPRIORITY=0\nMESSAGE=two"]
    assert fields["PRIORITY"] == [b"6"]


def test_what_is_beyond_1024_fields_goes_into_one(journal):
    """The journal would throw the whole entry away."""
    event = {"event": "e", **{f"f{number}": number for number in range(2000)}}
    with _sink(journal) as sink:
        sink.handle(event)
    fields = receive(journal)
    assert sum(map(len, fields.values())) == 1024
    rest = json.loads(fields["FIELDS"][0])
    named = {name.lower(): int(fields[name][0]) for name in fields if re.fullmatch(r"F\d+", name)}
    assert {**named, **rest} == {f"f{number}": number for number in range(2000)}


def test_exactly_1024_fields_need_no_rest(journal):
    """One more does."""
    with _sink(journal) as sink:
        for extra in (0, 1):
            sink.handle({"event": "e", **{f"f{number}": number for number in range(1021 + extra)}})
            fields = receive(journal)
            assert len(fields) == 1024
            assert ("FIELDS" in fields) is bool(extra)


def test_fields_chooses_what_has_a_name(journal):
    """The others are in one, as JSON."""
    with _sink(journal, fields=["user"]) as sink:
        sink.handle({"event": "e", "user": "ada", "order": 17, "level": "info"})
    fields = receive(journal)
    assert set(fields) == {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "USER", "FIELDS"}
    assert json.loads(fields["FIELDS"][0]) == {"order": 17, "level": "info"}


def test_the_message_id_is_a_uuid(journal):
    """The same for all, or by the event; what is none is left out."""
    one, other = uuid.uuid4(), uuid.uuid4()
    with _sink(journal, message_id=str(one)) as sink:
        sink.handle({"event": "e"})
        assert receive(journal)["MESSAGE_ID"] == [one.hex.encode()]
    with _sink(journal, message_id=lambda event: {"a": other.hex, "b": "none"}.get(event["event"])) as sink:
        for event, expected in (("a", [other.hex.encode()]), ("b", None), ("c", None)):
            sink.handle({"event": event})
            assert receive(journal).get("MESSAGE_ID") == expected


@pytest.mark.usefixtures("small_datagrams")
@pytest.mark.parametrize("size", [10_000, 500_000])
def test_a_large_entry_goes_in_a_sealed_file(journal, size):
    """One that no datagram can carry; nobody can change the file any more, and no descriptor is left."""
    before = os.listdir("/proc/self/fd")
    with _sink(journal) as sink:
        sink.handle({"event": "e", "text": "x" * size})
        seals = []
        received = journal.recvmsg

        class Peer:
            def recvmsg(self, *arguments):
                made = received(*arguments)
                for _, _, passed in made[1]:
                    seals.append(fcntl.fcntl(int.from_bytes(passed, "little"), fcntl.F_GET_SEALS))
                return made

        assert receive(Peer())["TEXT"] == [b"x" * size]
        assert seals == ([15] if size > 100_000 else [])
    assert len(os.listdir("/proc/self/fd")) <= len(before)


def test_an_entry_over_the_limit_is_shortened(journal):
    """Marked, and what is short is whole."""
    with _sink(journal, max_entry_bytes=2000) as sink:
        sink.handle({"event": "e", "text": "x" * 10_000, "order": 17})
    fields = receive(journal)
    assert (fields["TRUNCATED"], fields["ORDER"]) == ([b"true"], [b"17"])
    assert 1000 < len(fields["TEXT"][0]) < 2000


def test_an_entry_that_cannot_be_shortened_is_dropped(journal):
    """The journal gets nothing of it, not even the event as JSON."""
    with _sink(journal, identifier="x" * 600, max_entry_bytes=512, on_error=lambda _: None) as sink:
        sink.handle({"event": "e"})
        assert sink.stats().dropped == {"oversize": 1}
    with _sink(journal) as sink:
        sink.handle({"event": "next"})
    assert receive(journal)["MESSAGE"] == [b"next"]


def test_text_of_somebody_else_and_another_renderer(journal):
    """Text is the message; a renderer makes the message and no more."""
    with _sink(journal) as sink:
        sink.handle("ready\nmade")
        assert receive(journal)["MESSAGE"] == [b"ready\nmade"]
    with _sink(journal, renderer=OrjsonRenderer()) as sink:
        sink.handle({"event": "e", "n": 1})
        fields = receive(journal)
        assert (json.loads(fields["MESSAGE"][0]), fields["N"]) == ({"event": "e", "n": 1}, [b"1"])


def test_an_exception_is_fields(journal):
    """The traceback has line feeds, and is whole."""
    with _sink(journal) as sink:
        try:
            raise ValueError("boom")
        except ValueError:
            sink.handle({"event": "failed", "level": "error", "exc_info": True})
    fields = receive(journal)
    assert fields["EXCEPTION"][0].startswith(b"Traceback")
    assert fields["EXCEPTION"][0].endswith(b"ValueError: boom")


def test_behind_a_wrapper_bytes_stay_bytes(journal):
    """The journal's fields are bytes; what waits in memory keeps them."""
    with BackgroundSink(_sink(journal), linger=0) as sink:
        sink.handle({"event": "e", "raw": b"\xff\0\n", "nan": float("nan")})
        fields = receive(journal)
    assert (fields["RAW"], fields["NAN"]) == ([b"\xff\0\n"], [b"nan"])


def test_behind_a_wrapper_the_time_is_that_of_the_event(journal):
    """An entry that waited says when it happened."""
    with BackgroundSink(_sink(journal), linger=0) as sink:
        sink.handle({"event": "e"})
        assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|\+00:00)", receive(journal)["TIMESTAMP"][0])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"fields": "user"}, TypeError),
        ({"fields": [1]}, TypeError),
        ({"message_id": "none"}, ValueError),
        ({"identifier": 1}, TypeError),
        ({"max_entry_bytes": 100}, ValueError),
        ({"path": ""}, ValueError),
    ],
)
def test_wrong_arguments_are_refused(options, error):
    """At construction, by their names."""
    with pytest.raises(error, match="host" if "path" in options else next(iter(options))):
        JournaldSink(**options)


# -- the journal's absence


def test_an_absent_journal_costs_the_event_and_is_found_later(tmp_path):
    """Counted, told, and nobody waits; when it is there it gets the next event that tries."""
    clock, failures = Clock(), []
    sink = JournaldSink(tmp_path / "journal", on_error=failures.append, clock=clock)
    for _ in range(3):
        sink.handle({"event": "lost"})
    assert sink.stats().dropped == {"error": 1, "backoff": 2}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "journal"))
        clock.now += 60
        sink.handle({"event": "found"})
        assert receive(journal)["MESSAGE"] == [b"found"]
    assert sum(failure.events for failure in failures) == 3
    sink.close()
    assert_balanced(sink.stats())


@pytest.mark.usefixtures("small_datagrams")
def test_a_journal_that_does_not_read_costs_one_timeout(journal):
    """What finds no room is counted and told, a large entry too."""
    failures = []
    with _sink(journal, timeout=0.01, on_error=failures.append) as sink:
        for number in range(2000):
            sink.handle({"event": number})
            if failures:
                break
        sink.retry_time = None
        sink.handle({"event": "large", "text": "x" * 500_000})
        dropped = sink.stats().dropped
        assert dropped["error"] == 2
    assert_balanced(sink.stats())


def test_a_forked_child_sends_by_a_socket_of_its_own(journal):
    """The parent's goes on."""
    with _sink(journal) as sink:
        sink.handle({"event": "before"})
        in_fork(lambda: sink.handle({"event": "child"}))
        sink.handle({"event": "after"})
    assert [receive(journal)["MESSAGE"][0] for _ in range(3)] == [b"before", b"child", b"after"]


# -- a real journal


@pytest.mark.usefixtures("small_datagrams")
def test_a_real_journal_reads_every_field(journald):
    """Names, binary values, many fields and large ones."""
    identifier = f"real{next(IDENTIFIERS)}"
    kind = str(uuid.uuid4())
    events = [
        {"event": "plain", "level": "error", "order": 17, "pathname": "/srv/shop.py", "lineno": 3, "func_name": "f"},
        {"event": "two\nlines", "_odd name": "Grüße\n世界", "2fa": True},
        {"event": "large", "text": "x" * 1_000_000},
        {"event": "many", **{f"f{number}": number for number in range(1500)}},
        {"event": "nul", "text": "a\0b"},
    ]
    with JournaldSink(journald.socket, identifier, message_id=kind, timeout=10, on_error="raise") as sink:
        for event in events:
            sink.handle(event)
    got = {json.dumps(entry["MESSAGE"]): entry for entry in journald.wait(identifier, len(events))}
    plain, lines, large, many = (got[json.dumps(event["event"])] for event in events[:4])
    assert (plain["PRIORITY"], plain["ORDER"], plain["CODE_FILE"], plain["CODE_LINE"], plain["CODE_FUNC"]) == (
        "3",
        "17",
        "/srv/shop.py",
        "3",
        "f",
    )
    assert plain["MESSAGE_ID"] == uuid.UUID(kind).hex
    assert (lines["ODD_NAME"], lines["FIELD_2FA"]) == ("Grüße\n世界", "true")
    assert large["TEXT"] == "x" * 1_000_000
    rest = json.loads(many["FIELDS"])
    assert len(rest) + sum(bool(re.fullmatch(r"F\d+", name)) for name in many) == 1500
    assert got[json.dumps("nul")]["TEXT"] in ("a\0b", list(b"a\0b"))


def test_a_killed_journal_is_told_and_found_again(journald):
    """Events while it is away are counted; the first after its return is taken."""
    identifier, clock, failures = f"real{next(IDENTIFIERS)}", Clock(), []
    with JournaldSink(journald.socket, identifier, timeout=10, clock=clock, on_error=failures.append) as sink:
        sink.handle({"event": "before"})
        journald.wait(identifier, 1)
        journald.stop(signal.SIGKILL)
        sink.handle({"event": "lost"})
        assert sink.stats().dropped == {"error": 1}
        assert [failure.events for failure in failures] == [1]
        journald.start()
        clock.now += 60
        sink.handle({"event": "after"})
        until(lambda: len(journald.wait(identifier, 2)) == 2)
    assert [entry["MESSAGE"] for entry in journald.wait(identifier, 2)] == ["before", "after"]
    assert_balanced(sink.stats())

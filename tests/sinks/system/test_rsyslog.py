"""SysLogSink, read by a real rsyslogd."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import os
import re
import signal
import socket
import ssl
from pathlib import Path

import pytest
import trustme

from outfall.sinks.errors import SinkError
from outfall.sinks.system.syslog import SysLogSink
from outfall.sinks.testing import assert_balanced
from tests.sinks._processes import ROOT, until
from tests.sinks._rsyslogd import Rsyslogd, fields_of

pytestmark = [pytest.mark.service, pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="Unix alone")]

STREAM = socket.SOCK_STREAM
TRANSPORTS = ("udp", "tcp octet", "tcp lf", "datagram", "stream octet", "stream lf")
APPS = itertools.count()
TIME = "2026-03-14T15:09:26.535897Z"
FIELDS = {
    "level": "notice",
    "quotes": 'a "quoted" word',
    "brackets": "[a][b]]",
    "backslashes": "C:\\new\\",
    "all at once": '\\"]\\]"',
    "utf8": "Grüße, 世界 🎉",
    "empty": "",
    "Größe": "odd name",
    'a=b]"c %~': "odder name",
    "": "no name",
    "a_name_of_more_than_thirty_two_characters": "long",
    "a_name_of_more_than_thirty_two_characters_too": "long, too",
}
CONTROLS = {"lines": "one\ntwo\r\n<13>1 - - - - - - three", "tab": "a\tb", "escape": "\x1b[31mred", "c1": "a\x85b\x9bc"}
HOSTILE = (
    "\n<13>forged: LF",
    "\r\n<13>1 - - forged - - - CRLF",
    "\0<13>forged: NUL",
    "\n20 <13>forged: counted\n",
    "\x85<13>forged: NEL\u2028<13>forged: LS",
    '"] \n<13>forged: "quoted',
)


@pytest.fixture(scope="module")
def rsyslogd(require_service, tmp_path_factory):
    """Give a daemon that takes messages by every way."""
    with Rsyslogd(require_service("rsyslogd"), _directory(tmp_path_factory)) as daemon:
        yield daemon


def _directory(tmp_path_factory):
    made = tmp_path_factory.mktemp("r")
    # A socket's path has some hundred characters at most.
    assert len(str(made)) < 80
    return made


def _sink(daemon, transport, app, **options):
    way, _, framing = transport.partition(" ")
    address = ("127.0.0.1", getattr(daemon, way)) if way in ("udp", "tcp") else getattr(daemon, way)
    if framing:
        options |= {"framing": framing}
    kind = STREAM if way in ("tcp", "stream") else None
    return SysLogSink(address, "local3", kind, timeout=10, on_error="raise", ident=f"{app}: ", **options)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_rfc_5424_arrives_with_its_fields(rsyslogd, transport):
    """rsyslog reads header, structured data and message as what was logged."""
    app = f"fields{next(APPS)}"
    with _sink(rsyslogd, transport, app, format="rfc5424") as sink:
        sink.handle({"event": 'sold ] "out" \\', "timestamp": TIME, **FIELDS})
        sink.handle({"event": "none", "timestamp": TIME})
        sink.handle("text of somebody's")
    first, second, third = rsyslogd.wait(app, 3)
    assert fields_of(first["sd"]) == FIELDS
    assert first["msg"] == 'sold ] "out" \\'
    assert (first["facility"], first["severity"], first["procid"]) == ("local3", "5", str(os.getpid()))
    assert first["host"] == socket.gethostname()
    assert dt.datetime.fromisoformat(first["time"].replace("Z", "+00:00")) == dt.datetime.fromisoformat(
        TIME[:-1] + "+00:00"
    )
    # mmpstrucdata of this rsyslog makes names lower-case.
    by_rsyslog = first["parsed"]["rfc5424-sd"]["outfall@32473"]
    assert sorted(by_rsyslog.values()) == sorted(FIELDS.values())
    assert by_rsyslog["backslashes"] == FIELDS["backslashes"]
    whole = first["parsed"]["rfc5424-sd"]["names@32473"]
    assert set(whole.values()) == {name for name in FIELDS if len(name) > 32 or not name}
    assert all(by_rsyslog[short] == FIELDS[name] for short, name in whole.items())
    assert (second["msg"], second["sd"]) == ("none", "-")
    assert (third["msg"], third["sd"], third["severity"]) == ("text of somebody's", "-", "6")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_control_characters_arrive_or_are_escaped(rsyslogd, transport):
    """Over TCP with counted octets values arrive to the character, else with control characters as in JSON."""
    app = f"controls{next(APPS)}"
    with _sink(rsyslogd, transport, app, format="rfc5424") as sink:
        sink.handle({"event": "a\nb", **CONTROLS})
    [message] = rsyslogd.wait(app, 1)
    fields = fields_of(message["sd"])
    if transport.endswith("octet"):
        assert (message["msg"], fields) == ("a\nb", CONTROLS)
        assert message["parsed"]["rfc5424-sd"]["outfall@32473"] == CONTROLS
    else:
        assert message["msg"] == "a\\nb"
        assert fields["lines"] == "one\\ntwo\\r\\n<13>1 - - - - - - three"
        assert {name: json.loads(f'"{value}"') for name, value in fields.items()} == CONTROLS


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_rfc_3164_arrives_as_json(rsyslogd, transport):
    """The program's name is read from ident, and the rest is the JSON."""
    app = f"bsd{next(APPS)}"
    event = {"event": "a\nb", **FIELDS, **CONTROLS, "nul": "a\0b"}
    with _sink(rsyslogd, transport, app) as sink:
        sink.handle(event)
        sink.handle("plain\ntext")
    first, second = rsyslogd.wait(app, 2)
    assert json.loads(first["msg"]) == event
    assert (first["facility"], first["severity"]) == ("local3", "5")
    assert second["msg"].strip() == ("plain\ntext" if transport.endswith("octet") else "plain\\ntext")


@pytest.mark.parametrize("form", ["rfc3164", "rfc5424"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_no_value_becomes_a_message(rsyslogd, transport, form):
    """As many messages arrive as were logged, none by another name, whatever stands in names, values and ident."""
    app = f"hostile{next(APPS)}"
    with _sink(rsyslogd, transport, app, format=form) as sink:
        for hostile in HOSTILE:
            sink.handle({"event": hostile, hostile: hostile, "nested": {hostile: [hostile]}})
            sink.handle(hostile)
        sink.handle({"event": "last"})
    messages = rsyslogd.wait(app, 2 * len(HOSTILE) + 1)
    assert len(messages) == 2 * len(HOSTILE) + 1
    assert "last" in messages[-1]["msg"]
    assert rsyslogd.messages("forged") == []


def test_every_facility_and_priority_arrives(rsyslogd):
    """All 192 combinations are what rsyslog says they are."""
    app = f"table{next(APPS)}"

    class ByNumber(SysLogSink):
        def map_priority(self, level):
            return next(name for name, number in self.priority_names.items() if number == int(level))

    with ByNumber(("127.0.0.1", rsyslogd.tcp), socktype=STREAM, ident=f"{app}: ", on_error="raise") as sink:
        for facility, priority in itertools.product(range(24), range(8)):
            sink.facility = facility
            sink.handle({"event": "x", "level": str(priority)})
    messages = rsyslogd.wait(app, 192)
    assert [int(message["pri"]) for message in messages] == list(range(192))


def test_long_messages_arrive_cut(rsyslogd):
    """A message over the limit is one message, with structured data that rsyslog reads."""
    app = f"long{next(APPS)}"
    with _sink(rsyslogd, "tcp octet", app, format="rfc5424") as sink:
        sink.handle({"event": "é" * 9_000, "text": '"]\\' * 9_000, "short": "kept"})
    [message] = rsyslogd.wait(app, 1)
    fields = fields_of(message["sd"])
    assert (fields["short"], fields["truncated"]) == ("kept", "true")
    assert message["msg"].strip("é") == ""


@pytest.fixture(scope="module")
def usual(require_service, tmp_path_factory):
    """Give a daemon that takes messages of the size that it takes by default."""
    with Rsyslogd(require_service("rsyslogd"), _directory(tmp_path_factory), size="") as daemon:
        yield daemon


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("form", ["rfc3164", "rfc5424"])
def test_the_longest_message_by_default_arrives_whole(usual, transport, form):
    """One at the limit as it is, one over it shortened by the sink and by nobody else."""
    app = f"whole{next(APPS)}"
    with _sink(usual, transport, app, format=form) as sink:
        assert sink.max_message_bytes == (2048 if transport == "udp" else 8096)
        limit = sink._limit

        def frame(length):
            return sink.make_frame({"event": "x", "text": "y" * length, "z": "end", "timestamp": TIME})

        length = limit - len(frame(0))
        assert len(frame(length)) == limit
        for each in (length, length + 1, length + 100_000):
            sink.handle({"event": "x", "text": "y" * each, "z": "end", "timestamp": TIME})
    messages = usual.wait(app, 3)
    if form == "rfc5424":
        events = [fields_of(message["sd"]) for message in messages]
    else:
        events = [json.loads(message["msg"]) for message in messages]
    assert [event["z"] for event in events] == ["end"] * 3
    assert [bool(event.get("truncated")) for event in events] == [False, True, True]
    assert len(events[0]["text"]) == length


def test_a_batch_arrives(rsyslogd):
    """Batch items arrive like events, with the time at which they were encoded."""
    app = f"batch{next(APPS)}"
    for form in ("rfc3164", "rfc5424"):
        with _sink(rsyslogd, "tcp", app, format=form) as sink:
            batch = [sink.encode({"event": "batched", "level": "error", "number": n}) for n in range(3)]
            assert sink.emit_batch(batch) is None
    messages = rsyslogd.wait(app, 6)
    assert [message["severity"] for message in messages] == ["3"] * 6
    assert sorted(fields_of(message["sd"]).get("number", "-") for message in messages) == ["-"] * 3 + ["0", "1", "2"]


def test_the_configuration_in_the_documentation(require_service, tmp_path_factory):
    """rsyslog with the how-to's configuration writes the line that the how-to shows."""
    page = (ROOT / "docs" / "how-to" / "syslog.md").read_text(encoding="utf-8")
    configuration, shown, _ = (body for body in re.findall(r"```none\n(.*?)```", page, re.DOTALL))
    event = {"event": "order placed", "level": "notice", "order": 17, "note": 'say "hi"', "tags": ["a", "b"]}
    directory = _directory(tmp_path_factory)
    with Rsyslogd(require_service("rsyslogd"), directory) as daemon:
        output = directory / "shop.jsonl"
        configuration = configuration.replace("/var/log/shop.jsonl", str(output)).replace("601", str(daemon.tcp))
        work = f'global(workDirectory="{directory}")\n'
        # With its own inputs the helper's readiness would wait for what this configuration does not have.
        daemon.stop()
        daemon.start(work + configuration, ready=daemon.takes_tcp)
        with SysLogSink(("127.0.0.1", daemon.tcp), "local0", STREAM, format="rfc5424", ident="shop") as sink:
            sink.handle({**event, "timestamp": TIME})
        until(lambda: output.exists() and output.read_bytes().endswith(b"\n"))
    assert json.loads(output.read_bytes()) == json.loads(shown)


@pytest.fixture(scope="module")
def authority():
    """Give a certificate authority."""
    return trustme.CA()


@pytest.fixture(scope="module")
def encrypted(require_service, tmp_path_factory, authority):
    """Give a daemon that takes TLS alone by TCP."""
    program = require_service("rsyslogd")
    drivers = {
        name: plugin
        for name, plugin in (("gtls", "lmnsd_gtls.so"), ("ossl", "lmnsd_ossl.so"))
        if any(Path("/usr").glob(f"lib*/**/rsyslog/{plugin}"))
    }
    if not drivers:
        require_service("rsyslogd's TLS driver")
    directory = _directory(tmp_path_factory)
    authority.cert_pem.write_to_path(directory / "ca.pem")
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    certificate.private_key_pem.write_to_path(directory / "key.pem")
    name = next(iter(drivers))
    driver = f'streamDriver.name="{name}" streamDriver.mode="1" streamDriver.authMode="anon"'
    defaults = "".join(
        f'defaultNetstreamDriver{part}="{directory}/{file}.pem" '
        for part, file in (("CAFile", "ca"), ("CertFile", "cert"), ("KeyFile", "key"))
    )
    with Rsyslogd(program, directory, driver, defaults) as daemon:
        yield daemon


@pytest.mark.parametrize("form", ["rfc3164", "rfc5424"])
def test_tls(encrypted, authority, form):
    """Messages arrive encrypted, by octet counting as RFC 5425 has it, from who trusts the daemon's authority."""
    app = f"tls{next(APPS)}"
    context = ssl.create_default_context()
    authority.configure_trust(context)
    address = ("localhost", encrypted.tcp)
    with SysLogSink(address, tls=context, format=form, timeout=10, ident=f"{app}: ", on_error="raise") as sink:
        for number in range(100):
            sink.handle({"event": "secret\n", "number": str(number)})
    messages = encrypted.wait(app, 100)
    if form == "rfc5424":
        assert [fields_of(message["sd"]) for message in messages] == [{"number": str(n)} for n in range(100)]
    else:
        assert [json.loads(message["msg"])["number"] for message in messages] == [str(n) for n in range(100)]


def test_tls_to_a_daemon_that_is_not_trusted(encrypted):
    """Nothing is sent to a daemon whose certificate nobody vouches for."""
    app = f"tls{next(APPS)}"
    failures = []
    address = ("localhost", encrypted.tcp)
    with SysLogSink(address, tls=True, timeout=10, ident=f"{app}: ", on_error=failures.append) as sink:
        sink.handle({"event": "secret"})
        assert sink.stats().dropped == {"error": 1}
    assert "CERTIFICATE_VERIFY_FAILED" in str(failures[0].error)
    assert encrypted.messages(app) == []


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL], ids=["terminated", "killed"])
def test_a_restart_loses_no_more_than_the_kernel_had_taken(require_service, tmp_path_factory, by):
    """What was sent over the new connection arrives, each once; what is lost is the end of what went over the old."""
    app = f"restart{next(APPS)}"
    with Rsyslogd(require_service("rsyslogd"), _directory(tmp_path_factory)) as daemon:
        sink = _sink(daemon, "tcp octet", app, format="rfc5424", retry_start=0.01, retry_max=0.05)
        #: What the operating system has taken, by number, and over which connection; and what it has not.
        taken, dropped, connections = {}, [], []

        def send(number):
            try:
                sink.deliver({"event": "x", "number": str(number)})
            except SinkError:
                dropped.append(number)
            else:
                if not any(sink.sock is known for known in connections):
                    connections.append(sink.sock)
                taken[number] = len(connections) - 1

        numbers = itertools.count()
        for number in itertools.islice(numbers, 2_000):
            send(number)
        daemon.stop(by)
        for number in itertools.islice(numbers, 200):
            send(number)
        assert dropped
        daemon.start()

        def reconnected():
            send(next(numbers))
            return len(connections) == 2

        until(reconnected)
        for number in itertools.islice(numbers, 1_000):
            send(number)
        sink.close()
        over_new = [number for number, connection in taken.items() if connection == 1]
        until(lambda: str(over_new[-1]) in {fields_of(message["sd"])["number"] for message in daemon.messages(app)})
        arrived = [int(fields_of(message["sd"])["number"]) for message in daemon.messages(app)]
    assert len(set(arrived)) == len(arrived)
    assert [number for number in arrived if number >= over_new[0]] == over_new
    over_old = [number for number in arrived if number < over_new[0]]
    assert over_old == list(range(len(over_old)))
    assert not set(dropped) & set(arrived)
    stats = sink.stats()
    assert_balanced(stats)
    assert stats.delivered == len(taken)
    assert sum(stats.dropped.values()) == len(dropped)


@pytest.mark.parametrize("path", ["datagram", "stream"])
def test_a_unix_socket_that_appears_and_is_replaced(require_service, tmp_path_factory, path):
    """A daemon that comes late, or again, gets the events from then on; the others are counted."""
    app = f"late{next(APPS)}"
    directory = _directory(tmp_path_factory)
    failures = []
    sink = SysLogSink(
        str(directory / path), ident=f"{app}: ", timeout=10, retry_start=0.01, retry_max=0.05, on_error=failures.append
    )
    sink.handle({"event": "nobody there"})
    with Rsyslogd(require_service("rsyslogd"), directory) as daemon:
        delivered = 0
        for again in range(2):
            if again:
                daemon.stop()
                daemon.start()

            def arrives():
                sink.handle({"event": "there"})
                return sink.stats().delivered > delivered  # noqa: B023 - called at once

            until(arrives)
            until(lambda: len(daemon.messages(app)) > again)  # noqa: B023
            delivered = sink.stats().delivered
        sink.close()
    assert_balanced(sink.stats())
    assert sink.stats().dropped
    assert failures

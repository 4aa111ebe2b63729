"""Connections that age, and how the system is asked to look after them."""

from __future__ import annotations

import contextlib
import inspect
import socket
import ssl
import time

import pytest
import trustme

from outfall import DatagramSink, FluentSink, GELFDatagramSink, JournaldSink, JSONLines, SocketSink, SysLogSink
from outfall.sinks.network.connection import ConnectedSink
from outfall.sinks.network.socket import RetryOptions
from outfall.sinks.testing import assert_balanced
from tests.sinks._processes import until
from tests.sinks._wire import Clock, Datagrams, Receiver, Stream


@pytest.fixture
def names(monkeypatch):
    """Give a dict from names to addresses, which may change at any time."""
    found = {}
    asked = []
    real = socket.getaddrinfo

    def resolved(host, *rest):
        asked.append(host)
        address = found.get(host, host)
        if address is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(address, *rest)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    found[""] = asked
    return found


def _both_ways(sink, number):
    """Send one event on the hot path, and one by the pipeline."""
    sink.handle({"event": number, "level": "info"})
    sink.handle({"event": number, "level": "info", "_name": "info"})


def test_a_changed_address_is_found_when_the_connection_is_old_enough(names):
    """The old connection ends in order, with all that was sent over it; not one event is lost."""
    clock = Clock()
    with Receiver() as old, Receiver(address=("127.0.0.2", old_port(old))) as new:
        names["logs.example"] = "127.0.0.1"
        sink = SocketSink("logs.example", old.target[1], max_connection_age="1m", clock=clock, on_error="raise")
        _both_ways(sink, 1)
        names["logs.example"] = "127.0.0.2"
        clock.now += 59
        sink._look_due = sink._check_due = 0.0  # a second has passed
        _both_ways(sink, 2)
        assert len(old.wait(4)) == 4
        clock.now += 1
        sink._look_due = sink._check_due = 0.0
        _both_ways(sink, 3)
        assert len(new.wait(2)) == 2
        until(lambda: old.endings == [b""])
        assert len(old.payloads) == 4
        sink.close()
        assert sink.stats().delivered == 6
        assert sink.stats().retried == 0


def old_port(receiver):
    """Give the port of *receiver*, for another address."""
    return receiver.target[1]


def test_the_hot_path_notices_the_age_within_a_second(names):
    """No event of a row that goes on has to take the pipeline by itself."""
    clock = Clock()
    with Receiver() as receiver, SocketSink(*receiver.target, max_connection_age=60, clock=clock) as sink:
        sink.handle({"event": 1, "level": "info"})
        clock.now += 60
        sink._look_due = sink._check_due = 0.0  # a second has passed
        sink.handle({"event": 2, "level": "info"})
        receiver.wait(2)
        assert len(receiver.connections) == 2


@pytest.mark.parametrize("gone", ["name", "peer"])
def test_the_old_connection_stays_where_no_new_one_can_be_had(names, gone):
    """A name server that is down, or a peer that takes no new connections, costs no event and no attempt each."""
    clock = Clock()
    with Stream() as peer:
        names["logs.example"] = "127.0.0.1"
        sink = SocketSink(
            "logs.example", peer.address[1], codec=JSONLines(), max_connection_age=60, clock=clock, on_error="raise"
        )
        sink.handle({"event": 1, "level": "info"})
        until(lambda: peer.connections)
        if gone == "name":
            names["logs.example"] = None
        else:
            names["logs.example"] = "127.0.0.3"
        clock.now += 60
        asked = len(names[""])
        for _ in range(5):
            sink._look_due = sink._check_due = 0.0
            _both_ways(sink, 2)
        assert len(names[""]) == asked + 1
        clock.now += 30
        sink._look_due = sink._check_due = 0.0
        _both_ways(sink, 3)
        assert len(names[""]) == asked + 2
        sink.close()
        assert sink.stats().delivered == 13
        assert len(peer.connections) == 1


@pytest.mark.parametrize("kind", ["datagram", "syslog"])
def test_a_datagram_goes_to_the_new_address(names, kind):
    """Nothing else would tell that the old one is nobody's any more."""
    clock = Clock()
    with Datagrams() as old, Datagrams(("127.0.0.2", old.address[1])) as new:
        names["logs.example"] = "127.0.0.1"
        port = old.address[1]
        options = {"max_connection_age": 60, "clock": clock, "on_error": "raise"}
        if kind == "syslog":
            sink = SysLogSink(("logs.example", port), **options)
        else:
            sink = DatagramSink("logs.example", port, **options)
        for _ in range(300):
            sink.handle({"event": 1, "level": "info"})
        assert len(old.so_far()) > 100
        names["logs.example"] = "127.0.0.2"
        clock.now += 60
        sink._look_due = sink._check_due = 0.0  # a second has passed
        sink.handle({"event": 2, "level": "info"})
        assert b'"event":2' in new.next()
        assert len(names[""]) == 2
        sink.close()
        assert_balanced(sink.stats())


def test_without_a_limit_no_name_is_asked_for_again(names):
    """However old it is."""
    clock = Clock()
    with Receiver() as receiver, SocketSink(*receiver.target, clock=clock) as sink:
        sink.handle({"event": 1})
        clock.now += 1e9
        _both_ways(sink, 2)
        receiver.wait(3)
        assert len(names[""]) == 1


def test_an_old_tls_connection_is_ended_in_order():
    """The peer reads all, and its end of the connection too."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    clock = Clock()
    with Receiver(context=server) as receiver:
        sink = SocketSink(
            *receiver.target, tls=client, timeout=10, max_connection_age=60, clock=clock, on_error="raise"
        )
        for number in range(5):
            sink.handle({"event": number})
            clock.now += 60
        sink.close()
        receiver.wait(5)
        until(lambda: len(receiver.endings) == 5)
        assert receiver.endings == [b""] * 5


@pytest.mark.parametrize("age", [0, -1, "soon", True])
def test_an_age_is_a_length_of_time(age):
    """None is for no limit, and zero for nothing."""
    with pytest.raises(ValueError, match="max_connection_age"):
        SocketSink("127.0.0.1", 9, max_connection_age=age)


def test_a_path_that_dies_is_noticed_by_the_system_within_a_minute():
    """It asks after 20 seconds of silence, and gives up what nobody acknowledges after 50."""
    with Receiver() as receiver, SocketSink(*receiver.target) as sink:
        sink.handle({"event": 1})
        assert sink.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        known = {}
        with contextlib.suppress(OSError):
            for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT"):
                if hasattr(socket, name):
                    known[name] = sink.sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
    if "TCP_USER_TIMEOUT" in known:
        assert known["TCP_USER_TIMEOUT"] <= 60_000
    if len(known) >= 3:
        assert known["TCP_KEEPIDLE"] + known["TCP_KEEPINTVL"] * known["TCP_KEEPCNT"] <= 60


# -- arguments that are passed on


def test_arguments_that_are_passed_on_have_the_types_of_the_class_that_takes_them():
    """A type checker sees the same whether a class has an argument of its own or passes it on."""
    passed_on = {name: annotation.__forward_arg__ for name, annotation in RetryOptions.__annotations__.items()}
    known = ConnectedSink.parameters()
    assert {name: known[name].annotation for name in passed_on} == passed_on


@pytest.mark.parametrize(
    ("kind", "others"),
    [
        (SocketSink, {"terminator"}),
        (DatagramSink, {"tls", "nodelay", "max_frame_bytes", "terminator"}),
        (SysLogSink, {"codec", "nodelay", "encoding", "terminator"}),
        (JournaldSink, {"tls", "codec", "max_connection_age", "encoding", "terminator"}),
        (FluentSink, {"codec", "renderer", "encoding", "terminator"}),
        (GELFDatagramSink, {"tls", "codec", "renderer", "encoding", "terminator"}),
    ],
)
def test_a_class_shows_and_takes_what_it_passes_on_and_no_more(kind, others):
    """Its signature has each argument with its default; what only a base class takes is refused by name."""
    shown = inspect.signature(kind).parameters
    assert shown.keys() == kind.parameters().keys()
    assert {name: shown[name].default for name in ("retry_start", "retry_factor", "retry_max", "clock")} == {
        "retry_start": 1.0,
        "retry_factor": 2.0,
        "retry_max": 30.0,
        "clock": time.monotonic,
    }
    assert not others & shown.keys()
    for name in others:
        with pytest.raises(TypeError, match=f"{kind.__name__} has no argument {name}"):
            kind(**{name: None})

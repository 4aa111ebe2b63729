"""The drop-in handlers for sockets and syslog, beside their originals.

What is asked with `module` is asked of both, so that it is true of the standard library too; what is asked of
`outfall.adapters.handlers` alone is where it differs on purpose.
"""

from __future__ import annotations

import copy
import gc
import importlib
import inspect
import json
import logging
import logging.config
import logging.handlers
import pickle
import pickletools
import socket
import ssl
import struct
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outfall.adapters import handlers
from outfall.sinks.testing import assert_balanced
from tests.adapters._records import Errors, closing, exc_info, formatters, records, twin_of
from tests.sinks._processes import in_fork, until
from tests.sinks._wire import Datagrams, Receiver, Stream, free_port, has_ipv6

NAMES = ["SocketHandler", "DatagramHandler", "SysLogHandler"]
PATIENT = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")
#: True of the standard library from that version on, and here on all.
since_311 = pytest.mark.skipif(sys.version_info < (3, 11), reason="not so in logging before Python 3.11")


@pytest.fixture(params=["logging.handlers", "outfall.adapters.handlers"])
def module(request):
    """Give the originals, then the twins."""
    return importlib.import_module(request.param)


@pytest.fixture
def receiver():
    """Give a TCP peer that takes frames."""
    with Receiver() as made:
        yield made


@pytest.fixture
def datagrams():
    """Give a UDP peer."""
    with Datagrams() as made:
        yield made


@pytest.fixture
def stream():
    """Give a TCP peer that takes bytes."""
    with Stream() as made:
        yield made


@pytest.fixture
def path(tmp_path_factory):
    """Give a path that is short enough for a Unix socket."""
    return str(tmp_path_factory.mktemp("s") / "log")


def record(message="hello", level=logging.INFO, **attributes):
    """Return a record."""
    return logging.makeLogRecord(
        {"msg": message, "levelno": level, "levelname": logging.getLevelName(level), **attributes}
    )


# -- what all of them are


@pytest.mark.parametrize("name", NAMES)
def test_same_names_order_and_defaults(name):
    """The constructor and the methods have the parameters of the original."""
    original, twin = getattr(logging.handlers, name), getattr(handlers, name)
    assert issubclass(twin, original)
    for method, value in vars(original).items():
        if inspect.isfunction(value) and (method == "__init__" or not method.startswith("_")):
            ours = inspect.signature(getattr(twin, method)).parameters.values()
            # Since Python 3.14; on every version here.
            added = [p for p in ours if (name, method, p.name) == ("SysLogHandler", "__init__", "timeout")]
            ours = [p for p in ours if p not in added or sys.version_info >= (3, 14)]
            assert [(p.name, p.default, p.kind) for p in ours] == [
                (p.name, p.default, p.kind) for p in inspect.signature(value).parameters.values()
            ], method


def made(module, name, address):
    """Return a handler of that name for *address*."""
    kind = getattr(module, name)
    return kind(address) if name == "SysLogHandler" else kind(*address)


@pytest.mark.parametrize("name", NAMES)
def test_a_handler_dies_with_its_last_reference(module, name):
    """Nothing but its user holds a handler, and it makes no cycle."""
    handler = made(module, name, ("127.0.0.1", 9) if name != "SocketHandler" else ("127.0.0.1", free_port()))
    handler.handleError = lambda record: None
    handler.handle(record())
    if handler.__dict__.get("socket") is not None:
        handler.socket.close()  # the original leaks it
    if handler.__dict__.get("sock") is not None:
        handler.sock.close()
    gone = weakref.ref(handler)
    gc.disable()
    try:
        del handler
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", NAMES)
def test_shutdown_closes_it(name, monkeypatch):
    """logging.shutdown closes the socket."""
    with Receiver() as receiver, Datagrams() as datagrams:
        handler = made(handlers, name, (receiver if name == "SocketHandler" else datagrams).address)
        handler.handle(record())
        attribute = "socket" if name == "SysLogHandler" else "sock"
        sock = getattr(handler, attribute)
        assert sock.fileno() >= 0
        logging.shutdown([weakref.ref(handler)])
        assert getattr(handler, attribute) is None
        assert sock.fileno() == -1


# -- SocketHandler


def test_the_attributes_of_a_socket_handler(module):
    """It does not connect at construction, and its attributes say what it will do."""
    handler = module.SocketHandler("127.0.0.1", 9)
    names = ("host", "port", "address", "sock", "closeOnError", "retryTime", "retryStart", "retryMax", "retryFactor")
    assert [getattr(handler, name) for name in names] == [
        *("127.0.0.1", 9, ("127.0.0.1", 9)),
        *(None, False, None, 1.0, 30.0, 2.0),
    ]
    assert module.SocketHandler("/dev/here", None).address == "/dev/here"


@PATIENT
@given(record=records(), formatter=formatters())
def test_the_same_pickle(record, formatter):
    """makePickle returns the same bytes, or fails alike."""
    frames = []
    for module in (logging.handlers, handlers):
        handler = module.SocketHandler("127.0.0.1", 9)
        handler.setFormatter(formatter())
        own = twin_of(record)
        try:
            frames.append(handler.makePickle(own))
        except Exception as error:
            frames.append(type(error))
        # What it leaves in the record, where the next handler finds it.
        frames.append((own.exc_text, own.args, own.msg, own.exc_info))
    assert frames[:2] == frames[2:]


def test_what_is_in_a_pickle(module):
    """The message merged, no arguments, no exception but its text, no message attribute; protocol 1, after a length."""
    handler = module.SocketHandler("127.0.0.1", 9)
    sent = record("%s: %d", args=("a", 1), exc_info=exc_info(), user="bob")
    sent.message = "old"
    frame = handler.makePickle(sent)
    (length,) = struct.unpack(">L", frame[:4])
    payload = frame[4:]
    assert length == len(payload)
    assert max(opcode.proto for opcode, _, _ in pickletools.genops(payload)) == 1
    attributes = pickle.loads(payload)
    assert attributes["msg"] == "a: 1"
    assert attributes["args"] is attributes["exc_info"] is None
    assert "ValueError: bad value" in attributes["exc_text"]
    assert "message" not in attributes
    assert attributes["user"] == "bob"
    # The record is the application's, and other handlers'.
    assert (sent.msg, sent.args) == ("%s: %d", ("a", 1))
    assert sent.exc_info is not None
    # What receivers do with it.
    assert logging.makeLogRecord(attributes).getMessage() == "a: 1"


def test_records_arrive_in_frames(module, receiver):
    """A logger's records come whole and in order, over one connection."""
    log = logging.Logger("shop", logging.INFO)
    handler = module.SocketHandler(*receiver.target)
    log.addHandler(handler)
    with closing(handler):
        for number in range(3):
            log.info("order %d", number, extra={"number": number})
        payloads = receiver.wait(3)
    assert [pickle.loads(payload)["msg"] for payload in payloads] == ["order 0", "order 1", "order 2"]
    assert [pickle.loads(payload)["number"] for payload in payloads] == [0, 1, 2]
    until(lambda: receiver.endings == [b""])


def test_a_frame_of_megabytes_arrives(module, receiver):
    """What the system does not take at once is sent all the same."""
    handler = module.SocketHandler(*receiver.target)
    with closing(handler):
        handler.handle(record("x" * 5_000_000))
        [payload] = receiver.wait(1)
    assert len(pickle.loads(payload)["msg"]) == 5_000_000


def test_a_unix_socket(module, path):
    """With port None the host is the path of a Unix socket."""
    with Receiver(socket.AF_UNIX, path) as receiver, closing(module.SocketHandler(path, None)) as (handler,):
        handler.handle(record("by path"))
        assert pickle.loads(receiver.wait(1)[0])["msg"] == "by path"


def test_nobody_there_is_no_error(module):
    """Without a peer a record is dropped without a word, and the next attempts are farther and farther apart."""
    handler = module.SocketHandler("127.0.0.1", free_port())
    errors = Errors(handler)
    handler.retryMax = 5.0
    periods = []
    for _ in range(4):
        before = time.time()
        handler.handle(record())
        assert handler.sock is None
        assert before + handler.retryPeriod <= handler.retryTime + 0.01
        assert handler.retryTime - 0.01 <= time.time() + handler.retryPeriod
        periods.append(handler.retryPeriod)
        handler.retryTime = 0  # due since 1970
    assert periods == [1.0, 2.0, 4.0, 5.0]
    assert errors == []


def test_how_long_it_waits_can_be_set(module):
    """retryStart and retryFactor act after construction."""
    handler = module.SocketHandler("127.0.0.1", free_port())
    handler.retryStart, handler.retryFactor = 0.25, 3.0
    handler.handle(record())
    assert handler.retryPeriod == 0.25
    handler.retryTime = 0
    handler.handle(record())
    assert handler.retryPeriod == 0.75


def test_it_does_not_try_again_before_it_is_due(module):
    """createSocket is called for each record, and makeSocket only when the next attempt is due."""
    calls = []

    class Handler(module.SocketHandler):
        def makeSocket(self, timeout=1):
            calls.append(timeout)
            raise OSError("no")

    handler = Handler("127.0.0.1", 9)
    handler.handle(record())
    handler.handle(record())
    handler.createSocket()
    assert calls == [1]
    handler.retryTime = None
    handler.handle(record())
    assert calls == [1, 1]


def test_it_connects_when_the_peer_is_there_again(module):
    """A record that comes when the next attempt is due is sent, and no wait is left."""
    port = free_port()
    handler = module.SocketHandler("127.0.0.1", port)
    with closing(handler):
        handler.handle(record("lost"))
        with Receiver(address=("127.0.0.1", port)) as receiver:
            handler.retryTime = time.time() - 1
            handler.handle(record("sent"))
            assert pickle.loads(receiver.wait(1)[0])["msg"] == "sent"
            assert handler.retryTime is None


def test_what_cannot_be_pickled_is_told(module, receiver, capsys):
    """handleError gets the record, and prints where it failed; the next one is sent."""
    handler = module.SocketHandler(*receiver.target)
    with closing(handler):
        handler.handle(record("bad", lock=lambda: None))
        assert "Logging error" in capsys.readouterr().err
        handler.handle(record("good"))
        assert pickle.loads(receiver.wait(1)[0])["msg"] == "good"


def test_errors_close_the_connection_if_told_to(module, receiver, capsys):
    """With closeOnError an error closes the connection, and is told only if there is none."""
    handler = module.SocketHandler(*receiver.target)
    with closing(handler):
        handler.closeOnError = True
        handler.handle(record("good"))
        handler.handle(record("bad", lock=lambda: None))
        assert handler.sock is None
        assert capsys.readouterr().err == ""
        handler.handle(record("bad", lock=lambda: None))
        assert "Logging error" in capsys.readouterr().err
        handler.handle(record("again"))
        # Over two connections, which the receiver may hear in any order.
        assert sorted(pickle.loads(payload)["msg"] for payload in receiver.wait(2)) == ["again", "good"]


def test_a_closed_handler_connects_again(module, receiver):
    """A record after close, from another exit hook for example, is sent over a new connection."""
    handler = module.SocketHandler(*receiver.target)
    with closing(handler):
        handler.handle(record("before"))
        handler.close()
        assert handler.sock is None
        handler.handle(record("after"))
        assert len(receiver.wait(2)) == 2


@pytest.mark.parametrize("hook", ["makePickle", "makeSocket", "createSocket", "send", "emit", "handleError", "close"])
@pytest.mark.usefixtures("own_logging")
def test_hooks_of_a_socket_handler(module, receiver, hook):
    """Each documented method can be overridden, in a subclass or on the instance, and calls of the original work."""
    calls = []

    class Handler(module.SocketHandler):
        pass

    def override(self, *args):
        calls.append(hook)
        return getattr(super(Handler, self), hook)(*args)

    setattr(Handler, hook, override)
    subclass, instance = Handler(*receiver.target), module.SocketHandler(*receiver.target)
    own = getattr(instance, hook)
    setattr(instance, hook, lambda *args: (calls.append("instance"), own(*args))[1])
    logging.raiseExceptions = False
    for handler in (subclass, instance):
        handler.handle(record("sent"))
        handler.handle(record("bad", lock=lambda: None))
        handler.close()
    assert calls.count("instance") == calls.count(hook) == {"makePickle": 2, "emit": 2}.get(hook, 1)
    assert [pickle.loads(payload)["msg"] for payload in receiver.wait(2)] == ["sent", "sent"]


def test_sockets_of_ones_own(module, receiver):
    """The socket may be made elsewhere, set from outside, or be nothing but something with sendall and close."""

    class Keeper:
        def __init__(self):
            self.sent, self.closed = [], 0

        def sendall(self, data):
            self.sent.append(bytes(data))

        def close(self):
            self.closed += 1

    keeper = Keeper()
    handler = module.SocketHandler("127.0.0.1", 9)
    handler.makeSocket = lambda: keeper
    handler.handle(record("kept"))
    assert handler.sock is keeper
    handler.close()
    assert pickle.loads(keeper.sent[0][4:])["msg"] == "kept"
    assert keeper.closed == 1
    handler = module.SocketHandler("127.0.0.1", 9)
    handler.sock = socket.create_connection(receiver.target)
    with closing(handler):
        handler.handle(record("over it"))
        assert pickle.loads(receiver.wait(1)[0])["msg"] == "over it"


def test_a_forked_child_makes_anew_what_stands_for_a_socket():
    """When it sends; until then what the parent has is there to be used by a subclass."""

    class Keeper:
        def sendall(self, data):
            pass

        def close(self):
            pass

    handler = handlers.SocketHandler("127.0.0.1", 9)
    handler.makeSocket = Keeper
    handler.handle(record())
    parents = handler.sock

    def log():
        assert handler.sock is parents
        handler.handle(record())
        assert handler.sock is not parents

    in_fork(log)
    handler.handle(record())
    assert handler.sock is parents


def test_a_subclass_may_send_itself(module, receiver):
    """An overridden send finds a socket on which sendall waits."""

    class Handler(module.SocketHandler):
        def send(self, s):
            if self.sock is None:
                self.createSocket()
            self.sock.sendall(s)

    with closing(Handler(*receiver.target)) as (handler,):
        handler.handle(record("y" * 5_000_000))
        assert len(pickle.loads(receiver.wait(1)[0])["msg"]) == 5_000_000
        assert handler.sock.gettimeout() == 1


def test_encryption_by_an_overridden_make_socket(module):
    """A socket wrapped in TLS by makeSocket works, records larger than its buffers and the end included."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)

    class Handler(module.SocketHandler):
        def makeSocket(self, timeout=1):
            return client.wrap_socket(super().makeSocket(10), server_hostname=self.host)

    with Receiver(context=server) as receiver, closing(Handler(*receiver.target)) as (handler,):
        handler.handle(record("secret"))
        handler.handle(record("z" * 1_000_000))
        assert [len(pickle.loads(payload)["msg"]) for payload in receiver.wait(2)] == [6, 1_000_000]
        assert len(receiver.certificates) == 1
        if module is handlers:
            handler.close()
            # In order, as TLS has it.
            until(lambda: receiver.endings == [b""])


def test_another_address_acts_at_the_next_connection(module, receiver):
    """Address is read when it connects."""
    handler = module.SocketHandler("127.0.0.1", free_port())
    with closing(handler):
        handler.address = receiver.target
        handler.handle(record())
        receiver.wait(1)


def test_a_hang_up_between_two_records_costs_none(receiver):
    """A connection that the peer has closed is noticed before the next record, which the original loses."""
    handler = handlers.SocketHandler(*receiver.target)
    with closing(handler):
        handler.handle(record("first"))
        receiver.wait(1)
        receiver.hang_up()
        handler.handle(record("second"))
        assert pickle.loads(receiver.wait(2)[1])["msg"] == "second"


def test_the_original_loses_a_record_to_a_hang_up(receiver):
    """Which is why the twin differs."""
    handler = logging.handlers.SocketHandler(*receiver.target)
    with closing(handler):
        handler.handle(record("first"))
        receiver.wait(1)
        receiver.hang_up()
        handler.handle(record("lost"))
        until(lambda: receiver.endings)
        handler.handle(record("lost or not"))
        handler.handle(record("last"))
        until(lambda: pickle.loads(receiver.payloads[-1])["msg"] == "last")
        assert "lost" not in [pickle.loads(payload)["msg"] for payload in receiver.payloads]


def test_a_record_whose_sending_fails_is_sent_once_more(receiver):
    """Over a new connection, where the original loses it without a word."""

    class Breaking(socket.socket):
        def send(self, data, *flags):
            raise ConnectionResetError(104, "reset")

        def sendall(self, data, *flags):
            raise ConnectionResetError(104, "reset")

    for module in (logging.handlers, handlers):
        with closing(module.SocketHandler(*receiver.target)) as (handler,):
            breaking = Breaking()
            breaking.connect(receiver.target)
            handler.sock = breaking
            handler.handle(record(module.__name__))
            handler.handle(record("next"))
    assert [pickle.loads(payload)["msg"] for payload in receiver.wait(3)] == ["next", handlers.__name__, "next"]


def test_a_peer_that_takes_nothing_is_given_up():
    """The time is that of the socket, which makeSocket gives a second."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        handler = handlers.SocketHandler(*deaf.getsockname())
        make = handler.makeSocket
        handler.makeSocket = lambda: make(0.2)
        with closing(handler):
            handler.handle(record("x" * 20_000_000))
            assert handler.sink.stats().dropped == {"error": 1}


def test_a_clock_that_is_set_back_makes_no_wait_longer(monkeypatch):
    """The original waits an hour longer."""
    attempts = []
    for module in (logging.handlers, handlers):
        handler = module.SocketHandler("127.0.0.1", 9)

        def make(module=module):
            attempts.append(module)
            raise OSError

        handler.makeSocket = make
        handler.handle(record())
        with monkeypatch.context() as patch:
            now, elapsed = time.time(), time.monotonic()
            patch.setattr(time, "time", lambda now=now: now - 3600)
            patch.setattr("outfall.adapters.handlers.socket.monotonic", lambda elapsed=elapsed: elapsed + 1.1)
            handler.handle(record())
            assert handler.retryPeriod == (1.0 if module is logging.handlers else 2.0)
    assert attempts == [logging.handlers, handlers, handlers]


def test_a_name_is_looked_up_once(monkeypatch):
    """And again after a failure, not for each record."""
    looked_up = []
    original = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: (looked_up.append(args[0]), original(*args))[1])
    with Datagrams() as peer, closing(handlers.DatagramHandler("localhost", peer.address[1])) as (handler,):
        handler.address = ("127.0.0.1", peer.address[1])
        for _ in range(3):
            handler.handle(record())
            peer.next()
        assert len(looked_up) <= 2
        before = len(looked_up)
        handler.close()
        handler.handle(record())
        assert len(looked_up) > before


def test_the_ledger_counts_what_is_dropped(receiver):
    """What the handler drops without a word is in the stats of its sink."""
    handler = handlers.SocketHandler("127.0.0.1", free_port())
    handler.handle(record())
    handler.handle(record())
    stats = handler.sink.stats()
    assert stats.dropped == {"error": 1, "backoff": 1}
    assert_balanced(stats)
    handler.address, handler.retryTime = receiver.target, None
    with closing(handler):
        handler.handle(record())
        assert handler.sink.stats().delivered == 1


def test_a_forked_child_has_a_connection_of_its_own(receiver):
    """Parent and child log over one connection each."""
    handler = handlers.SocketHandler(*receiver.target)
    with closing(handler):
        handler.handle(record("parent"))
        receiver.wait(1)

        def log():
            handler.handle(record("child"))
            handler.close()

        in_fork(log)
        receiver.wait(2)
        handler.handle(record("parent again"))
        assert [pickle.loads(payload)["msg"] for payload in receiver.wait(3)] == ["parent", "child", "parent again"]


def test_a_copy_works_when_the_first_is_gone(module, receiver):
    """copy.copy gives a handler that goes on by itself."""
    handler = module.SocketHandler(*receiver.target)
    handler.handle(record("first"))
    other = copy.copy(handler)
    assert (other.host, other.sock) == (handler.host, handler.sock)
    del handler
    with closing(other):
        other.handle(record("second"))
        assert len(receiver.wait(2)) == 2


# -- DatagramHandler


@PATIENT
@given(record=records(), formatter=formatters())
def test_the_same_datagram(datagrams, record, formatter):
    """The same bytes come from both, or both tell of an error."""
    sent = []
    for module in (logging.handlers, handlers):
        with closing(module.DatagramHandler(*datagrams.address)) as (handler,):
            handler.setFormatter(formatter())
            errors = Errors(handler)
            handler.handle(twin_of(record))
            sent.append("error" if errors else datagrams.next())
    assert sent[0] == sent[1]


def test_a_datagram_is_one_frame(module, datagrams):
    """The length stands before the pickle in a datagram too, and nothing connects before the first record."""
    with closing(module.DatagramHandler(*datagrams.address)) as (handler,):
        assert isinstance(handler, module.SocketHandler)
        assert (handler.sock, handler.closeOnError) == (None, False)
        handler.handle(record("one"))
        data = datagrams.next()
        assert handler.sock.type == socket.SOCK_DGRAM
    assert struct.unpack(">L", data[:4]) == (len(data) - 4,)
    assert pickle.loads(data[4:])["msg"] == "one"


def test_a_unix_datagram_socket(module, path):
    """With port None the host is the path of a Unix datagram socket."""
    with Datagrams(path, socket.AF_UNIX) as peer, closing(module.DatagramHandler(path, None)) as (handler,):
        handler.handle(record("by path"))
        assert pickle.loads(peer.next()[4:])["msg"] == "by path"


def test_a_datagram_that_cannot_be_sent_is_told(module, path, capsys):
    """Where SocketHandler is silent, handleError is told; send raises an OSError."""
    handler = module.DatagramHandler(path, None)
    errors = Errors(handler)
    with closing(handler):
        handler.handle(record())
        assert len(errors) == 1
        with pytest.raises(OSError):  # noqa: PT011 - of whichever kind
            handler.send(b"frame")
    handler = module.DatagramHandler("127.0.0.1", 9)
    with closing(handler):
        handler.handle(record("x" * 70_000))
        assert "Logging error" in capsys.readouterr().err


def test_another_address_acts_at_the_next_datagram(module, datagrams):
    """Address is read for each record."""
    with Datagrams() as other, closing(module.DatagramHandler(*datagrams.address)) as (handler,):
        handler.handle(record("here"))
        datagrams.next()
        handler.address = other.address
        handler.handle(record("there"))
        assert pickle.loads(other.next()[4:])["msg"] == "there"
        assert datagrams.so_far() == []


@pytest.mark.parametrize("hook", ["makePickle", "makeSocket", "createSocket", "send", "emit", "close"])
def test_hooks_of_a_datagram_handler(module, datagrams, hook):
    """Each documented method can be overridden, and calls of the original work."""
    calls = []

    class Handler(module.DatagramHandler):
        pass

    def override(self, *args):
        calls.append(hook)
        return getattr(super(Handler, self), hook)(*args)

    setattr(Handler, hook, override)
    handler = Handler(*datagrams.address)
    handler.handle(record("sent"))
    assert pickle.loads(datagrams.next()[4:])["msg"] == "sent"
    handler.close()
    assert calls == [hook]


def test_a_datagram_socket_of_ones_own(module, datagrams):
    """makeSocket may return a socket that is not connected, with options and an address of its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        source = probe.getsockname()

    class Handler(module.DatagramHandler):
        def makeSocket(self):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.bind(source)
            return sock

    with closing(Handler(*datagrams.address)) as (handler,):
        handler.handle(record())
        assert datagrams.socket.recvfrom(70_000)[1] == source

    class Fake:
        def sendto(self, data, address):
            self.sent = (bytes(data), address)

        def close(self):
            pass

    handler = module.DatagramHandler("127.0.0.1", 9)
    handler.makeSocket = Fake
    with closing(handler):
        handler.handle(record("kept"))
        assert pickle.loads(handler.sock.sent[0][4:])["msg"] == "kept"
        assert handler.sock.sent[1] == ("127.0.0.1", 9)


@needs_ipv6
def test_datagrams_over_ipv6():
    """The family is that of the address; the original knows IPv4 alone."""
    with Datagrams(("::1", 0), socket.AF_INET6) as peer:
        with closing(handlers.DatagramHandler("::1", peer.address[1])) as (handler,):
            handler.handle(record("six"))
            assert pickle.loads(peer.next()[4:])["msg"] == "six"
        original = logging.handlers.DatagramHandler("::1", peer.address[1])
        errors = Errors(original)
        with closing(original):
            original.handle(record())
        assert len(errors) == 1


def test_a_refused_datagram_costs_no_other(datagrams):
    """The record at which it shows that an earlier one was refused is sent all the same."""
    handler = handlers.DatagramHandler("127.0.0.1", free_port())
    errors = Errors(handler)
    with closing(handler):
        for _ in range(3):
            handler.handle(record())
        assert errors == []
        assert handler.sink.stats().delivered == 3


# -- SysLogHandler


def syslogs(module, address, **options):
    """Return a handler and what its handleError is told."""
    handler = module.SysLogHandler(address, **options)
    return handler, Errors(handler)


@PATIENT
@given(
    record=records(),
    formatter=formatters(),
    facility=st.sampled_from(["user", "local7", "kern", "no-such", 1, 23]),
    ident=st.sampled_from(["", "shop: ", "ü "]),
    append_nul=st.booleans(),
)
def test_the_same_syslog_datagram(datagrams, record, formatter, facility, ident, append_nul):
    """The same bytes come from both, or both tell of an error; exceptions apart."""
    record.exc_info = None
    sent = []
    for module in (logging.handlers, handlers):
        handler, errors = syslogs(module, datagrams.address, facility=facility)
        with closing(handler):
            handler.setFormatter(formatter())
            handler.ident, handler.append_nul = ident, append_nul
            handler.handle(twin_of(record))
            sent.append("error" if errors else datagrams.next())
    assert sent[0] == sent[1]


@PATIENT
@given(messages=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30), max_size=4))
def test_the_same_syslog_stream(messages):
    """Over TCP the same bytes come from both: each message with a NUL after it."""
    sent = []
    for module in (logging.handlers, handlers):
        with Stream() as peer:
            handler, errors = syslogs(module, peer.address, socktype=socket.SOCK_STREAM)
            with closing(handler):
                for message in messages:
                    handler.handle(record(message))
            assert errors == []
            sent.append(peer.whole())
    assert sent[0] == sent[1] == b"".join(b"<14>%s\0" % message.encode() for message in messages)


@pytest.mark.parametrize("socktype", [socket.SOCK_DGRAM, socket.SOCK_STREAM, None])
def test_syslog_at_a_path(module, path, socktype):
    """At a path it sends over the kind of socket that was asked for, by default datagrams."""
    peer = Stream(path, socket.AF_UNIX) if socktype == socket.SOCK_STREAM else Datagrams(path, socket.AF_UNIX)
    with peer:
        handler, errors = syslogs(module, path, socktype=socktype)
        assert handler.unixsocket is True
        assert handler.socktype == (socktype or socket.SOCK_DGRAM)
        with closing(handler):
            handler.handle(record("by path"))
        assert errors == []
        assert (peer.whole() if socktype == socket.SOCK_STREAM else peer.next()) == b"<14>by path\0"


def test_syslog_at_the_path_of_a_stream(module, path):
    """Where datagrams do not go and no kind was asked for, it is a stream; socktype tells."""
    with Stream(path, socket.AF_UNIX) as peer:
        handler, _ = syslogs(module, path)
        assert handler.socktype == socket.SOCK_STREAM
        with closing(handler):
            handler.handle(record("falls back"))
        assert peer.whole() == b"<14>falls back\0"


@since_311
def test_a_missing_path_is_no_error_at_construction(module, path):
    """Nothing is raised; records are told to handleError until the daemon is there, and the first one then is sent."""
    handler, errors = syslogs(module, path)
    handler.handle(record("lost"))
    handler.handle(record("lost too"))
    assert len(errors) == 2
    with Datagrams(path, socket.AF_UNIX) as peer, closing(handler):
        handler.handle(record("sent"))
        assert peer.next() == b"<14>sent\0"
        assert len(errors) == 2


def test_a_daemon_that_starts_anew_costs_no_record(module, path):
    """At a path a failed send is repeated over a new socket."""
    first = Datagrams(path, socket.AF_UNIX)
    handler, errors = syslogs(module, path)
    with closing(handler):
        with first:
            handler.handle(record("one"))
            first.next()
        Path(path).unlink()
        with Datagrams(path, socket.AF_UNIX) as second:
            handler.handle(record("two"))
            assert second.next() == b"<14>two\0"
    assert errors == []


def test_the_attributes_of_a_syslog_handler(module, datagrams):
    """The default is UDP to localhost's port 514, facility user, from construction on."""
    handler = module.SysLogHandler()
    with closing(handler):
        assert handler.address == ("localhost", 514)
        assert handler.facility == handler.LOG_USER == 1
        assert handler.unixsocket is False
        assert handler.socktype == socket.SOCK_DGRAM
        assert handler.socket.type == socket.SOCK_DGRAM
        assert (handler.ident, handler.append_nul) == ("", True)
    if module is handlers or sys.version_info >= (3, 11):
        assert handler.socket is None
    handler, _ = syslogs(module, list(datagrams.address))
    with closing(handler):
        handler.address = datagrams.address
        handler.handle(record())
        assert datagrams.next() == b"<14>hello\0"


def test_the_numbers_and_names_are_those_of_the_original():
    """LOG_ constants and the three maps."""
    original, twin = logging.handlers.SysLogHandler, handlers.SysLogHandler
    constants = {name: value for name, value in vars(original).items() if name.startswith("LOG_")}
    assert len(constants) == 32
    assert constants == {name: getattr(twin, name) for name in constants}
    for name in ("priority_names", "facility_names", "priority_map"):
        assert getattr(twin, name) == getattr(original, name)


def test_encode_priority(module):
    """Names or numbers of facility and priority become one number; a name nobody knows is a KeyError."""
    handler = module.SysLogHandler()
    with closing(handler):
        assert handler.encodePriority("local0", "err") == 16 * 8 + 3
        assert handler.encodePriority(handler.LOG_MAIL, handler.LOG_DEBUG) == 2 * 8 + 7
        assert handler.encodePriority("cron", 2) == 9 * 8 + 2
        with pytest.raises(KeyError):
            handler.encodePriority("no-such", "err")
        with pytest.raises(KeyError):
            handler.encodePriority("user", "no-such")


@pytest.mark.parametrize(
    ("level", "priority"),
    [(10, 7), (20, 6), (30, 4), (40, 3), (50, 2), (25, 4), (5, 4)],
)
def test_levels_become_priorities(module, datagrams, level, priority):
    """The five levels have theirs, and every other is a warning."""
    handler, _ = syslogs(module, datagrams.address)
    with closing(handler):
        assert handler.mapPriority("no such level") == "warning"
        handler.handle(record(level=level))
        assert datagrams.next() == b"<%d>hello\0" % (8 + priority)


def test_what_a_subclass_of_syslog_may_override(module, datagrams):
    """Class attributes and methods of a subclass count, and those set later."""

    class Handler(module.SysLogHandler):
        ident = "shop: "
        append_nul = False
        priority_map = {"INFO": "notice"}  # noqa: RUF012 - as in the original

        def encodePriority(self, facility, priority):
            return super().encodePriority("local1", priority)

    with closing(Handler(datagrams.address)) as (handler,):
        handler.handle(record())
        assert datagrams.next() == b"<%d>shop: hello" % (17 * 8 + 5)
        handler.mapPriority = lambda name: name.lower()
        handler.append_nul = True
        handler.ident = ""
        handler.handle(record(level=logging.ERROR))
        assert datagrams.next() == b"<%d>hello\0" % (17 * 8 + 3)


def test_create_socket_can_be_overridden(module, datagrams):
    """It is called at construction, and for a record when there is no socket; it may set one that is not connected."""
    calls = []

    class Handler(module.SysLogHandler):
        def createSocket(self):
            calls.append(self.socket if calls else None)
            self.unixsocket = False
            self.socktype = socket.SOCK_DGRAM
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    if sys.version_info < (3, 11) and module is logging.handlers:
        pytest.skip("not so in logging before Python 3.11")
    with closing(Handler(datagrams.address)) as (handler,):
        assert calls == [None]
        handler.handle(record("first"))
        assert datagrams.next() == b"<14>first\0"
        handler.close()
        handler.handle(record("again"))
        assert datagrams.next() == b"<14>again\0"
        assert calls == [None, None]


def test_a_subclass_may_make_and_use_a_stream_itself(module, stream):
    """An overridden createSocket may set a stream, and an overridden emit finds a socket on which sendall waits."""

    class Handler(module.SysLogHandler):
        append_nul = False

        def createSocket(self):
            self.unixsocket = False
            self.socktype = socket.SOCK_STREAM
            self.socket = socket.create_connection(stream.address)

        def emit(self, record):
            if record.getMessage() == "own":
                assert self.socket.gettimeout() is None
                self.socket.sendall(b"own\n")
            else:
                super().emit(record)

    if sys.version_info < (3, 11) and module is logging.handlers:
        pytest.skip("not so in logging before Python 3.11")
    with closing(Handler(stream.address)) as (handler,):
        handler.handle(record("own"))
        handler.handle(record("line\n"))
    assert stream.whole() == b"own\n<14>line\n"


def test_a_stream_that_a_subclass_makes_is_one(stream):
    """Without a NUL its messages end with a line break too."""

    class Handler(handlers.SysLogHandler):
        append_nul = False

        def createSocket(self):
            self.socket = socket.create_connection(stream.address)

    with closing(Handler(stream.address)) as (handler,):
        handler.handle(record("line"))
    assert stream.whole() == b"<14>line\n"


def test_a_syslog_address_may_be_another_later(module, datagrams):
    """Address is read for each datagram."""
    handler, _ = syslogs(module, ("127.0.0.1", free_port()))
    with closing(handler):
        handler.address = datagrams.address
        handler.handle(record())
        assert datagrams.next() == b"<14>hello\0"


def test_a_daemon_that_is_not_there_is_no_error_at_construction():
    """Over TCP too, as documented, where the original raises; records are told to handleError, and later sent."""
    port = free_port()
    with pytest.raises(ConnectionRefusedError):
        logging.handlers.SysLogHandler(("127.0.0.1", port), socktype=socket.SOCK_STREAM)
    # Before 3.11 the half-built original is in logging's list already, and cannot be closed from there.
    gc.collect()
    handler, errors = syslogs(handlers, ("127.0.0.1", port), socktype=socket.SOCK_STREAM)
    with Stream(("127.0.0.1", port)) as peer:
        with closing(handler):
            # The attempt at construction delays no other.
            handler.handle(record("the first"))
        assert peer.whole() == b"<14>the first\0"
    assert errors == []


def test_failures_of_syslog_over_tcp_are_told():
    """Each record that is lost is told, also those between two attempts to connect."""
    handler, errors = syslogs(handlers, ("127.0.0.1", free_port()), socktype=socket.SOCK_STREAM)
    for _ in range(3):
        handler.handle(record())
    assert len(errors) == 3
    assert handler.sink.stats().dropped == {"error": 1, "backoff": 2}


def test_syslog_over_tcp_connects_anew(stream):
    """A connection that the daemon has closed costs no record, where the original loses records for ever."""
    handler, errors = syslogs(handlers, stream.address, socktype=socket.SOCK_STREAM)
    with closing(handler):
        handler.handle(record("one"))
        until(lambda: stream.data and stream.data[0] == b"<14>one\0")
        stream.hang_up()
        until(lambda: stream.ended)
        handler.handle(record("two"))
    assert stream.whole(2) == b"<14>one\0<14>two\0"
    assert errors == []


def test_the_original_never_connects_to_syslog_anew(stream):
    """Which is why the twin differs."""
    handler, errors = syslogs(logging.handlers, stream.address, socktype=socket.SOCK_STREAM)
    with closing(handler):
        handler.handle(record("one"))
        until(lambda: stream.data and stream.data[0] == b"<14>one\0")
        stream.hang_up()
        until(lambda: stream.ended)
        # The first finds out, or the second.
        handler.handle(record("two"))
        until(lambda: (handler.handle(record("more")), len(errors) > 2)[1])
        assert stream.whole() == b"<14>one\0"


def test_exceptions_are_not_sent(datagrams):
    """As documented, the text of an exception is left out, though the original sends it; unless one asks for it."""
    handler, _ = syslogs(handlers, datagrams.address)
    with closing(handler):
        sent = record("failed", exc_info=exc_info())
        handler.handle(sent)
        assert datagrams.next() == b"<14>failed\0"
        assert sent.exc_info is not None
        handler.handle(record("failed", exc_text="Traceback of another handler"))
        assert datagrams.next() == b"<14>failed\0"
        handler.send_exc_info = True
        handler.handle(sent)
        assert b"ValueError: bad value" in datagrams.next()
    original, _ = syslogs(logging.handlers, datagrams.address)
    with closing(original):
        original.handle(record("failed", exc_info=exc_info()))
        assert b"ValueError: bad value" in datagrams.next()


@pytest.mark.parametrize("append_nul", [True, False])
def test_a_message_ends_where_it_ends(append_nul):
    """Over a stream no text is two messages, nor two messages one."""
    with Stream() as peer:
        handler, _ = syslogs(handlers, peer.address, socktype=socket.SOCK_STREAM)
        handler.append_nul = append_nul
        with closing(handler):
            handler.handle(record("one\n<0>forged\0<0>forged\n"))
            handler.handle(record("two"))
        messages = peer.whole().split(b"\0" if append_nul else b"\n")
    assert len(messages) == 3
    assert messages[1:] == [b"<14>two", b""]
    assert messages[0].startswith(b"<14>one")


def test_lone_surrogates_cost_no_record(datagrams):
    """Half a character is escaped; to the original it is an error."""
    handler, errors = syslogs(handlers, datagrams.address)
    with closing(handler):
        handler.handle(record("half \ud83d"))
        assert datagrams.next() == b"<14>half \\ud83d\0"
    assert errors == []
    original, errors = syslogs(logging.handlers, datagrams.address)
    with closing(original):
        original.handle(record("half \ud83d"))
    assert len(errors) == 1


@pytest.mark.parametrize("kind", ["stream", "datagrams"])
def test_timeout_is_that_of_the_socket(kind, stream, datagrams):
    """On every version, as since Python 3.14."""
    address, socktype = (stream, socket.SOCK_STREAM) if kind == "stream" else (datagrams, socket.SOCK_DGRAM)
    with closing(handlers.SysLogHandler(address.address, "user", socktype, 0.5)) as (handler,):
        assert (handler.timeout, handler.socket.gettimeout()) == (0.5, 0.5)
    with closing(handlers.SysLogHandler(address.address, socktype=socktype)) as (handler,):
        assert (handler.timeout, handler.socket.gettimeout()) == (None, None)


def test_a_daemon_that_reads_nothing_is_waited_for_a_second(path):
    """Though the socket blocks, as the original's, which waits for ever."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(path)
        handler, errors = syslogs(handlers, path)
        with closing(handler):
            assert handler.socket.gettimeout() is None
            for _ in range(2000):
                handler.handle(record("x" * 500))
                if errors:
                    break
        assert errors


@pytest.mark.parametrize("name", ["SocketHandler", "SysLogHandler"])
def test_an_owners_tls_connects_anew(name):
    """A socket that an overridden method wraps in TLS is made again by it when the peer has gone."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)

    class Socket(handlers.SocketHandler):
        def makeSocket(self, timeout=1):
            return client.wrap_socket(super().makeSocket(10), server_hostname=self.host)

    class SysLog(handlers.SysLogHandler):
        def createSocket(self):
            super().createSocket()
            self.socket.settimeout(60)
            self.socket = client.wrap_socket(self.socket, server_hostname="127.0.0.1")

    with Receiver(context=server) as receiver:
        if name == "SocketHandler":
            handler = Socket(*receiver.target)
        else:
            handler = SysLog(receiver.target, socktype=socket.SOCK_STREAM)
            handler.append_nul = False
            # A frame of the receiver's, of which the end is the last byte.
            handler.format = lambda given: given.getMessage()
            handler.encodePriority = lambda *names: 0
        errors = Errors(handler)
        with closing(handler):
            if name == "SocketHandler":
                handler.handle(record("first"))
                receiver.wait(1)
            first = handler.sock if name == "SocketHandler" else handler.socket
            until(lambda: len(receiver.certificates) == 1)
            receiver.hang_up()
            handler.handle(record("second"))
            until(lambda: len(receiver.certificates) == 2)
            second = handler.sock if name == "SocketHandler" else handler.socket
            assert second is not first
            assert isinstance(second, ssl.SSLSocket)
        assert errors == []


def test_an_overridden_connect_unixsocket_is_called(module, path):
    """At construction, and when the daemon has started anew."""
    calls = []

    class Handler(module.SysLogHandler):
        def _connect_unixsocket(self, address):
            calls.append(address)
            super()._connect_unixsocket(address)

    with Datagrams(path, socket.AF_UNIX):
        handler = Handler(path)
    Path(path).unlink()
    with Datagrams(path, socket.AF_UNIX) as peer, closing(handler):
        handler.handle(record())
        assert peer.next() == b"<14>hello\0"
    assert calls == [path, path]


def test_a_missing_path_is_told_as_it_is(path):
    """`handleError` sees the error of the system."""
    handler = handlers.SysLogHandler(path)
    seen = []
    handler.handleError = lambda given: seen.append(sys.exc_info()[0])
    handler.handle(record())
    assert seen == [FileNotFoundError]
    handler.close()


@since_311
def test_attributes_may_be_set_in_any_order(module):
    """A subclass that never calls the constructor sets what it likes first."""

    class Handler(module.SysLogHandler):
        def __init__(self):
            logging.Handler.__init__(self)
            self.socket = None
            self.address = ("127.0.0.1", 9)
            self.facility = 1
            self.socktype = socket.SOCK_DGRAM
            self.unixsocket = False
            self.createSocket()

    handler = Handler()
    with closing(handler):
        handler.handle(record())
        assert handler.socket is not None


def test_emit_takes_no_lock(module, receiver):
    """A thread that a subclass has emit for it can be joined under the handler's lock, as `logging.shutdown` does."""

    class Handler(module.SocketHandler):
        def __init__(self, *address):
            super().__init__(*address)
            self.pool = ThreadPoolExecutor(1)

        def emit(self, given):
            self.pool.submit(super().emit, given)

        def close(self):
            self.pool.shutdown(wait=True)
            super().close()

    handler = Handler(*receiver.target)
    with handler.lock:
        handler.handle(record())
        handler.close()
    receiver.wait(1)


# -- configuration


def test_they_are_configured_by_dicts(module, receiver, datagrams):
    """dictConfig makes them; an address may be a list, as JSON has it."""
    name = module.__name__
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"short": {"format": "{levelname} {message}", "style": "{"}},
        "handlers": {
            "socket": {"class": f"{name}.SocketHandler", "host": receiver.address[0], "port": receiver.address[1]},
            "udp": {"class": f"{name}.DatagramHandler", "host": "127.0.0.1", "port": datagrams.address[1]},
            "syslog": {
                "class": f"{name}.SysLogHandler",
                "address": list(datagrams.address),
                "facility": "local3",
                "formatter": "short",
                ".": {"append_nul": False},
            },
        },
        "loggers": {"twins.wire": {"level": "INFO", "handlers": ["socket", "udp", "syslog"], "propagate": False}},
    }
    logging.config.dictConfig(json.loads(json.dumps(config)))
    log = logging.getLogger("twins.wire")
    log.info("configured")
    assert pickle.loads(receiver.wait(1)[0])["msg"] == "configured"
    got = sorted([datagrams.next(), datagrams.next()])
    assert pickle.loads(got[0][4:])["msg"] == "configured"
    assert got[1] == b"<%d>INFO configured" % (19 * 8 + 6)
    for handler in log.handlers:
        if isinstance(handler, logging.handlers.SysLogHandler):
            assert handler.address == datagrams.address
        handler.close()
    log.handlers.clear()


@pytest.mark.usefixtures("own_logging")
def test_they_are_configured_by_files(module, tmp_path, datagrams):
    """fileConfig makes them."""
    name = module.__name__
    file = tmp_path / "logging.ini"
    file.write_text(
        f"""
[loggers]
keys=root
[handlers]
keys=syslog,udp
[formatters]
keys=short
[logger_root]
level=INFO
handlers=syslog,udp
[handler_syslog]
class={name}.SysLogHandler
args=(("127.0.0.1", {datagrams.address[1]}), {name}.SysLogHandler.LOG_LOCAL0)
formatter=short
[handler_udp]
class={name}.DatagramHandler
args=("127.0.0.1", {datagrams.address[1]})
[formatter_short]
format=%(levelname)s %(message)s
""".replace(f"{name}.SysLogHandler.LOG", "handlers.SysLogHandler.LOG")
    )
    logging.config.fileConfig(file, disable_existing_loggers=False)
    root = logging.getLogger()
    root.warning("from a file")
    assert datagrams.next() == b"<%d>WARNING from a file\0" % (16 * 8 + 4)
    assert pickle.loads(datagrams.next()[4:])["msg"] == "from a file"
    for handler in root.handlers:
        handler.close()
    root.handlers.clear()

"""The drop-in handler for queues and what reads them, beside their originals.

What is asked with `module` is asked of both; what is asked of `outfall.adapters.handlers` alone is where it differs on
purpose.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import logging
import logging.config
import logging.handlers
import multiprocessing
import pickle
import queue
import sys
import threading

import pytest
from hypothesis import HealthCheck, given, settings

from outfall.adapters import handlers
from outfall.sinks.testing import assert_balanced
from tests.adapters._records import Errors, FailingFormatter, exc_info, formatters, records, twin_of
from tests.sinks._http import Server
from tests.sinks._processes import check, in_fork, until

MODULES = [logging.handlers, handlers]
PATIENT = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
since_312 = pytest.mark.skipif(sys.version_info < (3, 12), reason="dictConfig knows of queues since Python 3.12")


@pytest.fixture(params=["logging.handlers", "outfall.adapters.handlers"])
def module(request):
    """Give the originals, then the twins."""
    return importlib.import_module(request.param)


def record(message="hello", level=logging.INFO, **attributes):
    """Return a record."""
    return logging.makeLogRecord(
        {"msg": message, "levelno": level, "levelname": logging.getLevelName(level), **attributes}
    )


class Keeper(logging.Handler):
    """A handler that keeps the messages, and where they came."""

    def __init__(self, level=logging.NOTSET):
        super().__init__(level)
        self.messages = []
        self.threads = set()
        self.errors = Errors(self)

    def emit(self, record):
        self.messages.append(record.getMessage())
        self.threads.add(threading.current_thread())


class Broken(Keeper):
    """One that fails, and not in emit."""

    def handle(self, record):
        super().handle(record)
        raise OSError("broken")


@pytest.mark.parametrize("name", ["QueueHandler", "QueueListener"])
def test_same_names_order_and_defaults(name):
    """The constructor and the methods have the parameters of the original."""
    original, twin = getattr(logging.handlers, name), getattr(handlers, name)
    assert issubclass(twin, original)
    for method, value in vars(original).items():
        if inspect.isfunction(value) and method != "_monitor":
            ours = inspect.signature(getattr(twin, method)).parameters.values()
            theirs = inspect.signature(value).parameters.values()
            assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs], method


# -- QueueHandler


@PATIENT
@given(record=records(), formatter=formatters())
def test_the_same_item(record, formatter):
    """The same record is put into the queue by both, and the record they were given stays as it was."""
    got = []
    for module in MODULES:
        records = queue.SimpleQueue()
        handler = module.QueueHandler(records)
        handler.setFormatter(formatter())
        errors = Errors(handler)
        own = twin_of(record)
        before = dict(vars(own))
        handler.handle(own)
        assert vars(own).items() >= {name: before[name] for name in ("msg", "args", "exc_info")}.items()
        item = "error" if errors else vars(records.get_nowait())
        if item != "error":
            item.pop("stack_info")  # kept by the original until Python 3.11
        got.append(item)
    assert got[0] == got[1]


def test_what_is_in_the_queue(module):
    """A copy of the record: text as message, no arguments, no exception, no stack; it can be pickled."""
    records = queue.Queue()
    handler = module.QueueHandler(records)
    assert handler.queue is records
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    given_record = record("%s and %d", args=("one", 2), exc_info=exc_info(), user="bob")
    handler.handle(given_record)
    item = records.get_nowait()
    assert item is not given_record
    assert item.msg == item.message
    assert item.msg.startswith("INFO one and 2\nTraceback")
    assert item.msg.endswith("ValueError: bad value")
    assert item.args is item.exc_info is item.exc_text is None
    assert item.user == "bob"
    assert (given_record.msg, given_record.args) == ("%s and %d", ("one", 2))
    assert given_record.exc_info is not None
    assert pickle.loads(pickle.dumps(item)).getMessage() == item.msg


def test_a_record_of_a_class_of_its_own_stays_one(module):
    """A subclass of LogRecord is copied as such."""

    class Record(logging.LogRecord):
        def getMessage(self):
            return super().getMessage().upper()

    records = queue.Queue()
    module.QueueHandler(records).handle(Record("n", 20, "p", 1, "shout", (), None))
    assert type(records.get_nowait()) is Record


def test_it_puts_without_waiting(module):
    """put_nowait is all that is asked of a queue."""

    class Minimal:
        def __init__(self):
            self.items = []

        def put_nowait(self, item):
            self.items.append(item)

    minimal = Minimal()
    handler = module.QueueHandler(minimal)
    handler.handle(record("one"))
    handler.queue = other = Minimal()
    handler.handle(record("two"))
    assert [item.msg for item in minimal.items] == ["one"]
    assert [item.msg for item in other.items] == ["two"]


def test_a_full_queue_is_told(module, capsys):
    """The record is dropped, and handleError told, which prints; enqueue raises queue.Full."""
    records = queue.Queue(1)
    handler = module.QueueHandler(records)
    handler.handle(record("fits"))
    handler.handle(record("does not"))
    assert "queue.Full" in capsys.readouterr().err
    assert records.qsize() == 1
    with pytest.raises(queue.Full):
        handler.enqueue(record())


def test_a_failing_formatter_is_told(module):
    """The record is not enqueued."""
    handler = module.QueueHandler(queue.Queue())
    handler.setFormatter(FailingFormatter())
    errors = Errors(handler)
    handler.handle(record())
    assert len(errors) == 1
    assert handler.queue.empty()


def test_what_may_be_overridden(module):
    """Prepare may return anything, and enqueue put it anywhere; originals can be called, and room made."""

    class Handler(module.QueueHandler):
        def prepare(self, record):
            return super().prepare(record).getMessage().encode()

        def enqueue(self, record):
            try:
                super().enqueue(record)
            except queue.Full:
                self.queue.get_nowait()
                super().enqueue(record)

    handler = Handler(queue.Queue(2))
    errors = Errors(handler)
    for message in ("1", "2", "3"):
        handler.handle(record(message))
    assert [handler.queue.get_nowait() for _ in range(2)] == [b"2", b"3"]
    assert errors == []


def test_there_is_no_listener_unless_somebody_sets_one():
    """It is dictConfig that does, since Python 3.12."""
    handler = handlers.QueueHandler(queue.Queue())
    assert handler.listener is None
    handler.listener = listener = handlers.QueueListener(handler.queue)
    assert copy.copy(handler).listener is listener


@pytest.mark.parametrize("make", [queue.Queue, queue.SimpleQueue, queue.LifoQueue, multiprocessing.Queue])
def test_any_queue(module, make):
    """Of threads, of processes; with task_done and without."""
    records = make()
    keeper = Keeper()
    handler = module.QueueHandler(records)
    for number in range(5):
        handler.handle(record(str(number), user="bob"))
    if make is multiprocessing.Queue:
        until(lambda: not records.empty())
    listener = module.QueueListener(records, keeper)
    if make is queue.LifoQueue:
        # The sentinel would come first.
        listener.start()
        until(lambda: len(keeper.messages) == 5)
    else:
        listener.start()
    listener.stop()
    assert sorted(keeper.messages) == ["0", "1", "2", "3", "4"]
    if make is multiprocessing.Queue:
        records.close()
        records.join_thread()


def test_the_ledger_of_a_queue_handler():
    """What is in the queue is delivered; what there was no room for is counted."""
    handler = handlers.QueueHandler(queue.Queue(2))
    Errors(handler)
    for _ in range(3):
        handler.handle(record())
    stats = handler.sink.stats()
    assert (stats.delivered, stats.dropped) == (2, {"full": 1})
    assert_balanced(stats)


# -- QueueListener


def test_it_hands_on_in_order_and_in_one_thread(module):
    """Each handler gets each record, by its handle, in a daemon thread; stop waits until all are handled."""
    records = queue.Queue()
    first, second = Keeper(), Keeper()
    second.addFilter(lambda each: each.getMessage() != "1")
    listener = module.QueueListener(records, first, second)
    assert (listener.queue, listener.handlers, listener.respect_handler_level) == (records, (first, second), False)
    assert listener._thread is None
    for number in range(100):
        records.put(record(str(number)))
    listener.start()
    thread = listener._thread
    assert thread.daemon
    listener.stop()
    assert not thread.is_alive()
    assert listener._thread is None
    assert first.messages == [str(number) for number in range(100)]
    assert second.messages == [message for message in first.messages if message != "1"]
    assert first.threads == second.threads == {thread}


@pytest.mark.parametrize("respect", [True, False])
def test_the_level_of_a_handler(module, respect):
    """It applies only if respect_handler_level is true, which may be set at any time."""
    high = Keeper(logging.ERROR)
    listener = module.QueueListener(queue.Queue(), high, respect_handler_level=not respect)
    listener.respect_handler_level = respect
    listener.handle(record("low"))
    listener.handle(record("high", logging.ERROR))
    assert high.messages == (["high"] if respect else ["low", "high"])


def test_each_item_is_done_once(module):
    """task_done is called for each record and for the sentinel, after it was handled: join returns."""

    class Counting(queue.Queue):
        done = 0

        def task_done(self):
            super().task_done()
            self.done += 1

    records = Counting()
    keeper = Keeper()
    listener = module.QueueListener(records, keeper)
    for number in range(3):
        records.put(record(str(number)))
    listener.start()
    records.join()
    assert keeper.messages == ["0", "1", "2"]
    listener.stop()
    records.join()
    assert records.done == 4


def test_what_of_a_listener_may_be_overridden(module):
    """dequeue, prepare, handle, enqueue_sentinel and the sentinel."""
    calls = []

    class Listener(module.QueueListener):
        _sentinel = "the end"

        def dequeue(self, block):
            calls.append(("dequeue", block))
            return super().dequeue(block)

        def prepare(self, record):
            return logging.makeLogRecord({"msg": super().prepare(record).msg.upper()})

        def handle(self, record):
            calls.append("handle")
            super().handle(record)

        def enqueue_sentinel(self):
            calls.append("enqueue_sentinel")
            super().enqueue_sentinel()

    keeper = Keeper()
    records = queue.SimpleQueue()
    records.put(record("one"))
    listener = Listener(records, keeper)
    listener.start()
    until(lambda: keeper.messages)
    listener.stop()
    assert keeper.messages == ["ONE"]
    assert calls.count(("dequeue", True)) == 2
    assert calls.count("handle") == calls.count("enqueue_sentinel") == 1
    with pytest.raises(queue.Empty):
        listener.dequeue(False)
    listener.enqueue_sentinel()
    assert records.get() == "the end"


def test_it_can_be_started_again(module):
    """After stop, on what came meanwhile, with other handlers."""
    records = queue.Queue()
    keeper, other = Keeper(), Keeper()
    listener = module.QueueListener(records, keeper)
    listener.start()
    listener.stop()
    records.put(record("meanwhile"))
    listener.handlers = (other,)
    listener.start()
    listener.stop()
    assert keeper.messages == []
    assert other.messages == ["meanwhile"]


def test_a_sentinel_from_elsewhere_ends_the_reading(module):
    """Whoever puts it there; stop returns then."""
    records = queue.Queue()
    keeper = Keeper()
    listener = module.QueueListener(records, keeper)
    listener.start()
    records.put(record("before"))
    records.put(None)
    thread = listener._thread
    thread.join(60)
    assert not thread.is_alive()
    assert keeper.messages == ["before"]


def test_many_threads_and_one_listener(module):
    """Each record arrives once."""
    records = queue.Queue()
    keeper = Keeper()
    handler = module.QueueHandler(records)
    listener = module.QueueListener(records, keeper)
    listener.start()

    def log(thread):
        for number in range(100):
            handler.handle(record(f"{thread}-{number}"))

    threads = [threading.Thread(target=log, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    listener.stop()
    assert sorted(keeper.messages) == sorted(f"{thread}-{number}" for thread in range(4) for number in range(100))


@pytest.mark.parametrize("reader", MODULES)
@pytest.mark.parametrize("writer", MODULES)
def test_original_and_twin_understand_each_other(writer, reader):
    """A twin's handler feeds an original's listener, and the other way round."""
    records = queue.Queue()
    keeper = Keeper()
    handler = writer.QueueHandler(records)
    listener = reader.QueueListener(records, keeper)
    listener.start()
    handler.handle(record("%s", args=("understood",)))
    listener.stop()
    assert keeper.messages == ["understood"]


@since_312
@pytest.mark.parametrize("described", ["plain", "both", "named"])
def test_dict_config_knows_it(module, described):
    """The keys queue, listener and handlers; the listener is the handler's."""
    name = module.__name__
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {
            "keeper": {"()": Keeper, "level": "ERROR"},
            "queue": {"class": f"{name}.QueueHandler", "handlers": ["keeper"], "respect_handler_level": True},
        },
        "loggers": {"twins.queue": {"level": "INFO", "handlers": ["queue"], "propagate": False}},
    }
    if described != "plain":
        config["handlers"]["queue"]["queue"] = (
            {"()": "queue.Queue", "maxsize": 7}
            if described == "both"
            else "tests.adapters.handlers.test_queue.make_queue"
        )
        config["handlers"]["queue"]["listener"] = f"{name}.QueueListener"
    logging.config.dictConfig(config)
    log = logging.getLogger("twins.queue")
    [handler] = log.handlers
    assert type(handler) is module.QueueHandler
    assert isinstance(handler.queue, queue.Queue)
    listener = handler.listener
    assert isinstance(listener, logging.handlers.QueueListener)
    if described != "plain":
        assert type(listener) is module.QueueListener
        assert handler.queue.maxsize == 7
    assert listener.respect_handler_level
    [keeper] = listener.handlers
    listener.start()
    log.info("low")
    log.error("high")
    listener.stop()
    assert keeper.messages == ["high"]
    log.handlers.clear()


def make_queue():
    """Return a queue."""
    return queue.Queue(7)


def test_a_handler_for_a_queue_by_factory(module):
    """On every version dictConfig makes it of a factory and its arguments."""
    records = queue.SimpleQueue()
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"queue": {"()": f"{module.__name__}.QueueHandler", "queue": records}},
            "loggers": {"twins.factory": {"level": "INFO", "handlers": ["queue"], "propagate": False}},
        }
    )
    log = logging.getLogger("twins.factory")
    log.info("made")
    assert records.get_nowait().getMessage() == "made"
    log.handlers.clear()


# -- where the twin differs


def test_a_raising_handler_ends_nothing():
    """The others get the record, it gets the next ones, and its handleError is told; the original's thread ends."""
    broken, keeper = Broken(), Keeper()
    records = queue.Queue()
    listener = handlers.QueueListener(records, broken, keeper)
    listener.start()
    for number in range(3):
        records.put(record(str(number)))
    listener.stop()
    assert broken.messages == keeper.messages == ["0", "1", "2"]
    assert len(broken.errors) == 3
    assert keeper.errors == []


def test_the_original_ends_with_a_raising_handler(monkeypatch):
    """Which is why the twin differs."""
    died = []
    monkeypatch.setattr(threading, "excepthook", lambda args: died.append(args.exc_type))
    broken, keeper = Broken(), Keeper()
    records = queue.Queue()
    listener = logging.handlers.QueueListener(records, broken, keeper)
    listener.start()
    records.put(record("0"))
    until(lambda: died)
    assert (broken.messages, keeper.messages) == (["0"], [])


def test_a_handler_that_will_not_be_told_ends_nothing(monkeypatch):
    """Whatever handleError does, and whatever the handler is."""
    told = []
    monkeypatch.setattr("outfall.adapters.handlers.queue.report", told.append)

    class Worse(Broken):
        def __init__(self):
            super().__init__()
            self.handleError = self.refuse

        def refuse(self, record):
            raise RuntimeError("no")

    keeper = Keeper()
    listener = handlers.QueueListener(queue.Queue(), Worse(), keeper)
    listener.handle(record("one"))
    assert keeper.messages == ["one"]
    assert [(failure.sink, type(failure.error), failure.events) for failure in told] == [("Worse", OSError, 1)]


def test_starting_twice_is_an_error():
    """On every version, as since Python 3.14; before, the original starts another thread, which nobody can stop."""
    records = queue.Queue()
    keeper = Keeper()
    listener = handlers.QueueListener(records, keeper)
    listener.start()
    thread = listener._thread
    with pytest.raises(RuntimeError, match="already started"):
        listener.start()
    assert listener._thread is thread
    records.put(record("once"))
    listener.stop()
    listener.stop()
    assert keeper.messages == ["once"]


def test_an_overridden_monitor_reads_the_queue(module):
    """It is what the thread runs."""

    class Own(module.QueueListener):
        def _monitor(self):
            while True:
                item = self.dequeue(True)
                if item is self._sentinel:
                    return
                read.append(item.getMessage())
                self.handle(item)

    read = []
    keeper = Keeper()
    records = queue.Queue()
    listener = Own(records, keeper)
    listener.start()
    records.put(record("one"))
    listener.stop()
    assert read == keeper.messages == ["one"]


def test_a_sentinel_that_ended_the_reading_is_not_followed_by_another():
    """Stop puts none into the queue of a thread that has ended, where it would end the next start at once."""
    records = queue.Queue()
    keeper = Keeper()
    listener = handlers.QueueListener(records, keeper)
    listener.start()
    thread = listener._thread
    records.put(None)
    thread.join(60)
    listener.stop()
    records.put(record("later"))
    listener.start()
    listener.stop()
    assert keeper.messages == ["later"]


def test_a_dequeue_that_gives_up_waiting_ends_nothing():
    """An override with a timeout, as documented, may raise queue.Empty; the original's thread ends then."""

    class Impatient(handlers.QueueListener):
        empty = 0

        def dequeue(self, block):
            try:
                return self.queue.get(block, 0.001)
            except queue.Empty:
                self.empty += 1
                raise

    records = queue.Queue()
    keeper = Keeper()
    listener = Impatient(records, keeper)
    listener.start()
    until(lambda: listener.empty > 1)
    records.put(record("late"))
    listener.stop()
    assert keeper.messages == ["late"]


def test_stop_waits_for_room_in_a_full_queue():
    """Where the original raises queue.Full, and the thread goes on."""
    going = threading.Event()

    class Slow(Keeper):
        def emit(self, record):
            going.wait(60)
            super().emit(record)

    class Listener(handlers.QueueListener):
        def enqueue_sentinel(self):
            try:
                super().enqueue_sentinel()
            except queue.Full:
                going.set()
                raise

    records = queue.Queue(1)
    keeper = Slow()
    listener = Listener(records, keeper)
    listener.start()
    records.put(record("1"))
    until(records.empty)
    records.put(record("2"))
    listener.stop()
    assert going.is_set()
    assert keeper.messages == ["1", "2"]


def test_stopping_from_a_handler_does_not_hang():
    """The thread ends when the record is handled; the original raises RuntimeError in it."""

    class Stopping(Keeper):
        def emit(self, record):
            super().emit(record)
            listener.stop()

    keeper = Stopping()
    records = queue.Queue()
    listener = handlers.QueueListener(records, keeper)
    listener.start()
    thread = listener._thread
    records.put(record("stop"))
    thread.join(60)
    assert not thread.is_alive()
    assert keeper.errors == []
    listener.stop()


def test_what_cannot_be_unpickled_ends_nothing(monkeypatch):
    """One item that makes get raise is lost alone; the original's thread ends."""

    class Torn(queue.Queue):
        torn = True

        def get(self, block=True, timeout=None):
            item = super().get(block, timeout)
            if self.torn:
                self.torn = False
                raise pickle.UnpicklingError("torn")
            return item

    records = Torn()
    keeper = Keeper()
    listener = handlers.QueueListener(records, keeper)
    told = []
    monkeypatch.setattr("outfall.adapters.handlers.queue.report", told.append)
    for message in ("torn", "whole"):
        records.put(record(message))
    listener.start()
    listener.stop()
    assert keeper.messages == ["whole"]
    assert [(failure.sink, type(failure.error), failure.events) for failure in told] == [
        ("QueueListener", pickle.UnpicklingError, 1)
    ]


@pytest.mark.parametrize("kind", ["queue.Queue", "queue.SimpleQueue", "queue.PriorityQueue", "multiprocessing.Queue"])
def test_at_exit_what_is_in_the_queue_is_handed_on(kind):
    """Nobody has to call stop; what other exit hooks log is handed on too. The original loses it."""
    if kind == "queue.PriorityQueue":
        # Records have no order, so what is put there is something else.
        prepare, back = "(lambda record: (next(numbers), record))", "(lambda item: item[1])"
    else:
        prepare = back = "(lambda record: record)"
    script = f"""
        import itertools, multiprocessing
        numbers = itertools.count()
        import atexit, importlib, logging, queue, sys, time
        log = logging.getLogger()
        atexit.register(log.warning, "last")  # runs after Outfall's hook
        module = importlib.import_module(sys.argv[1])
        class Slow(logging.StreamHandler):
            def emit(self, record):
                time.sleep(0.01)
                super().emit(record)
        records = {kind}()
        listener = module.QueueListener(records, Slow(sys.stdout))
        listener.prepare = {back}
        listener.start()
        handler = module.QueueHandler(records)
        handler.prepare = {prepare}
        log.addHandler(handler)
        module.QueueListener(records)  # never started
        for number in range(20):
            log.warning("%d", number)
        """
    expected = [*map(str, range(20)), "last"]
    if kind == "multiprocessing.Queue":
        expected.pop()  # it has been closed by then
    assert check(script, "outfall.adapters.handlers").split() == expected


def test_at_exit_a_handler_that_hangs_is_waited_for_once(monkeypatch):
    """What is logged after that does not wait for it again; what it logs itself does not wait at all."""
    hangs, released = threading.Event(), threading.Event()
    records = queue.Queue()
    handler = handlers.QueueHandler(records)
    handler.sink.drain_timeout = 0.05

    class Hanging(Keeper):
        def emit(self, record):
            if record.getMessage() == "one":
                handler.handle(logging.makeLogRecord({"msg": "from within"}))
                hangs.set()
                released.wait(60)
            super().emit(record)

    keeper = Hanging()
    listener = handlers.QueueListener(records, keeper)
    told = []
    monkeypatch.setattr("outfall.adapters.handlers.queue.report", told.append)
    monkeypatch.setattr("outfall.sinks.core.lifecycle._State.draining", True)
    listener.start()
    waits = []
    wait = listener._outfall_exit.await_end
    monkeypatch.setattr(listener._outfall_exit, "await_end", lambda timeout: (waits.append(timeout), wait(timeout))[1])
    for message in ("one", "two", "three"):
        handler.handle(record(message))
    assert waits == [0.05]
    listener._outfall_exit.drain(0.01)
    assert [failure.events for failure in told] == [0]
    assert hangs.wait(60)  # what comes behind the end that stop() puts into the queue is not handled
    released.set()
    listener.stop()
    # It comes from another thread, which a busy machine may let run after the wait.
    assert sorted(keeper.messages) == ["from within", "one", "three", "two"]
    assert [message for message in keeper.messages if message != "from within"] == ["one", "two", "three"]


def test_a_forked_child_has_an_empty_queue_and_a_listener_to_start():
    """What was in a queue for threads is the parent's."""
    records = queue.Queue()
    keeper = Keeper()
    handler = handlers.QueueHandler(records)
    listener = handlers.QueueListener(records, keeper)
    listener.start()
    handler.handle(record("parent"))
    until(lambda: keeper.messages)

    def log():
        keeper.messages.clear()
        handler.handle(record("child"))
        listener.start()
        listener.stop()
        assert keeper.messages == ["child"]

    in_fork(log)
    listener.stop()
    assert keeper.messages == ["parent"]


def test_handlers_that_deliver_over_networks_take_what_a_listener_hands_them():
    """They are not taken for somebody who logs in the midst of delivering."""
    with Server() as server:
        target = handlers.HTTPHandler(f"{server.host}:{server.port}", "/")
        errors = Errors(target)
        records = queue.Queue()
        with handlers.QueueListener(records, target):
            records.put(record("over the network"))
        target.close()
        assert errors == []
        assert [request.query["msg"] for request in server.requests] == [["over the network"]]


def test_it_is_a_context_manager():
    """As the original is from Python 3.14 on."""
    records = queue.Queue()
    keeper = Keeper()
    with handlers.QueueListener(records, keeper) as listener:
        assert listener._thread.is_alive()
        records.put(record("inside"))
    assert keeper.messages == ["inside"]
    assert listener._thread is None

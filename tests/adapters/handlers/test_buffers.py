"""The drop-in handlers that keep records in memory, beside their originals.

What is asked with `module` is asked of both; what is asked of `outfall.adapters.handlers` alone is where it differs on
purpose.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import importlib
import inspect
import logging
import logging.config
import logging.handlers
import sys
import threading
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from outfall.adapters import handlers
from outfall.sinks.testing import assert_balanced
from tests.sinks._processes import check, in_fork

MODULES = [logging.handlers, handlers]


@pytest.fixture(params=["logging.handlers", "outfall.adapters.handlers"])
def module(request):
    """Give the originals, then the twins."""
    return importlib.import_module(request.param)


class Keeper(logging.Handler):
    """A handler that keeps what it handles, and fails when it is told to."""

    def __init__(self, level=logging.NOTSET):
        super().__init__(level)
        self.records = []
        self.emitted = []
        self.fail_at = ()
        self.error = OSError("target")

    def handle(self, record):
        self.records.append(record.getMessage())
        if record.getMessage() in self.fail_at:
            raise self.error
        return super().handle(record)

    def emit(self, record):
        self.emitted.append(record.getMessage())


def record(message="hello", level=logging.INFO):
    """Return a record."""
    return logging.makeLogRecord({"msg": message, "levelno": level, "levelname": logging.getLevelName(level)})


def messages(handler):
    """Return what is in its buffer."""
    return [each.getMessage() for each in handler.buffer]


@pytest.mark.parametrize("name", ["BufferingHandler", "MemoryHandler"])
def test_same_names_order_and_defaults(name):
    """The constructor and the methods have the parameters of the original."""
    original, twin = getattr(logging.handlers, name), getattr(handlers, name)
    assert issubclass(twin, original)
    for method, value in vars(original).items():
        if inspect.isfunction(value):
            ours = inspect.signature(getattr(twin, method)).parameters.values()
            theirs = inspect.signature(value).parameters.values()
            assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs], method
    assert issubclass(handlers.MemoryHandler, handlers.BufferingHandler)


# -- BufferingHandler


def test_a_buffering_handler_flushes_at_capacity(module):
    """The buffer is a list of the records themselves, and flushing empties it."""
    handler = module.BufferingHandler(3)
    assert (handler.capacity, handler.buffer) == (3, [])
    first = record("1")
    handler.handle(first)
    handler.handle(record("2"))
    assert handler.buffer[0] is first
    assert isinstance(handler.buffer, list)
    handler.handle(record("3"))
    assert handler.buffer == []
    handler.handle(record("4"))
    handler.flush()
    assert handler.buffer == []
    handler.handle(record("5"))
    handler.close()
    assert handler.buffer == []


def test_capacity_and_buffer_act_at_once(module):
    """Both may be set, and the buffer changed."""
    handler = module.BufferingHandler(100)
    handler.handle(record("1"))
    handler.capacity = 2
    handler.handle(record("2"))
    assert handler.buffer == []
    mine = [record("3")]
    handler.buffer = mine
    handler.capacity = 9
    handler.handle(record("4"))
    assert handler.buffer is mine
    assert messages(handler) == ["3", "4"]


def test_a_subclass_puts_the_records_somewhere(module):
    """Overriding flush and shouldFlush is what the class is for; close flushes too."""
    batches = []

    class Digest(module.BufferingHandler):
        def shouldFlush(self, record):
            return record.getMessage() == "now" or super().shouldFlush(record)

        def flush(self):
            if self.buffer:
                batches.append(messages(self))
                self.buffer = []

    handler = Digest(3)
    for message in ("1", "2", "3", "4", "now", "last"):
        handler.handle(record(message))
    assert batches == [["1", "2", "3"], ["4", "now"]]
    handler.close()
    assert batches[2:] == [["last"]]


def test_a_failing_flush_closes_all_the_same(module):
    """What flush raises is raised by close, and logging has forgotten the handler."""

    class Failing(module.BufferingHandler):
        def flush(self):
            raise OSError("flush")

    handler = Failing(1)
    handler.set_name("failing")
    with pytest.raises(OSError, match="flush"):
        handler.close()
    assert "failing" not in logging._handlers
    with pytest.raises(OSError, match="flush"):
        handler.handle(record())


def test_the_ledger_of_a_buffering_handler():
    """What waits is pending, and what flush throws away is counted."""
    handler = handlers.BufferingHandler(3)
    for number in range(5):
        handler.handle(record(str(number)))
    stats = handler.sink.stats()
    assert (stats.accepted, stats.pending, stats.dropped) == (5, 2, {"discarded": 3})
    handler.close()
    assert_balanced(handler.sink.stats())


# -- MemoryHandler


@pytest.mark.parametrize(("capacity", "level", "flushed"), [(3, 20, 3), (99, 40, 1), (99, 50, 1), (99, 39, 0)])
def test_it_flushes_when_full_or_at_its_level(module, capacity, level, flushed):
    """A record at the flush level or above, ERROR by default, or the one that fills the buffer, hands on all."""
    target = Keeper()
    handler = module.MemoryHandler(capacity, target=target)
    assert (handler.flushLevel, handler.target, handler.flushOnClose) == (logging.ERROR, target, True)
    for number in range(flushed or 1):
        handler.handle(record(str(number), level))
    assert target.records == [str(number) for number in range(flushed)]
    assert len(handler.buffer) == (0 if flushed else 1)


def test_the_target_handles(module):
    """It is target.handle that is called, so that the target's filters apply; its level does not."""
    target = Keeper(logging.CRITICAL)
    target.addFilter(lambda record: record.getMessage() != "filtered")
    handler = module.MemoryHandler(2, target=target)
    handler.handle(record("filtered"))
    handler.handle(record("passes"))
    assert target.records == ["filtered", "passes"]
    assert target.emitted == ["passes"]


def test_without_a_target_records_are_kept(module):
    """However many; a target that is set later gets them with the next flush."""
    handler = module.MemoryHandler(2)
    for number in range(5):
        handler.handle(record(str(number), logging.ERROR))
    handler.flush()
    assert len(handler.buffer) == 5
    target = Keeper()
    handler.setTarget(target)
    assert target.records == []
    handler.flush()
    assert target.records == ["0", "1", "2", "3", "4"]
    handler.target = other = Keeper()
    handler.handle(record("5", logging.ERROR))
    assert other.records == ["5"]
    handler.setTarget(None)
    assert handler.target is None


def test_flush_level_and_flush_on_close_act_at_once(module):
    """Both may be set."""
    target = Keeper()
    handler = module.MemoryHandler(99, logging.CRITICAL, target, False)
    handler.handle(record("kept", logging.ERROR))
    assert target.records == []
    handler.flushLevel = logging.INFO
    handler.handle(record("flushes"))
    assert target.records == ["kept", "flushes"]
    handler.flushLevel = logging.ERROR
    handler.handle(record("late"))
    handler.flushOnClose = True
    handler.close()
    assert target.records == ["kept", "flushes", "late"]


@pytest.mark.parametrize("flush", [True, False])
def test_close_lets_go_of_the_target(module, flush):
    """Close flushes, unless flushOnClose is False, and sets the target to None, which it does not close."""
    target = Keeper()
    target.close = lambda: pytest.fail("closed")
    handler = module.MemoryHandler(9, target=target, flushOnClose=flush)
    handler.handle(record("last"))
    handler.close()
    assert target.records == (["last"] if flush else [])
    assert handler.target is None
    kept = weakref.ref(target)
    del target
    assert kept() is None


@pytest.mark.parametrize("hook", ["emit", "flush", "close", "shouldFlush", "setTarget"])
def test_hooks_of_a_memory_handler(module, hook):
    """Each documented method can be overridden, and calls of the original work."""
    calls = []

    class Handler(module.MemoryHandler):
        pass

    def override(self, *args):
        calls.append(hook)
        return getattr(super(Handler, self), hook)(*args)

    setattr(Handler, hook, override)
    handler = Handler(2)
    target = Keeper()
    handler.setTarget(target)
    handler.handle(record("1"))
    handler.handle(record("2"))
    assert target.records == ["1", "2"]
    handler.close()
    assert hook in calls


def test_a_copy_shares_the_buffer(module):
    """copy.copy gives a handler on the same list."""
    handler = module.MemoryHandler(9, target=Keeper())
    other = copy.copy(handler)
    other.handle(record("1"))
    assert messages(handler) == ["1"]
    other.flush()
    assert handler.target.records == ["1"]
    assert handler.buffer == []


def test_many_threads(module):
    """Each record is handed on once."""
    target = Keeper()
    handler = module.MemoryHandler(7, target=target)

    def log(thread):
        for number in range(200):
            handler.handle(record(f"{thread}-{number}"))

    threads = [threading.Thread(target=log, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handler.close()
    assert sorted(target.records) == sorted(f"{thread}-{number}" for thread in range(4) for number in range(200))


def test_dict_config(module):
    """Target by name, and the flush level's name."""
    name = module.__name__
    # 3.12.1 does not know the original's by name.
    level = "CRITICAL" if module is handlers or sys.version_info >= (3, 13) else logging.CRITICAL
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {
                "keeper": {"()": Keeper},
                "memory": {
                    "class": f"{name}.MemoryHandler",
                    "capacity": 9,
                    "flushLevel": level,
                    "target": "keeper",
                    "flushOnClose": False,
                },
            },
            "loggers": {"twins.memory": {"handlers": ["memory"], "propagate": False}},
        }
    )
    log = logging.getLogger("twins.memory")
    [handler] = log.handlers
    log.error("kept")
    assert messages(handler) == ["kept"]
    log.critical("flushes")
    assert handler.target.records == ["kept", "flushes"]
    handler.close()
    log.handlers.clear()


def test_shutdown_flushes(module):
    """At exit what waits is handed on, and a digest is made of what waits for one."""
    out = check(
        """
        import importlib, logging, sys
        module = importlib.import_module(sys.argv[1])
        class Digest(module.BufferingHandler):
            def flush(self):
                if self.buffer:
                    print([each.getMessage() for each in self.buffer])
                    self.buffer.clear()
        log = logging.getLogger()
        log.addHandler(module.MemoryHandler(9, target=logging.StreamHandler(sys.stdout)))
        log.addHandler(Digest(9))
        log.warning("one")
        log.warning("two")
        """,
        module.__name__,
    )
    assert sorted(out.splitlines()) == ["['one', 'two']", "one", "two"]


class Script(RuleBasedStateMachine):
    """The same operations on both; where no target fails, both are the same."""

    def __init__(self):
        super().__init__()
        self.pairs = [(module.MemoryHandler(4, target=None), Keeper(), Keeper(25)) for module in MODULES]

    @rule(level=st.sampled_from([10, 20, 35, 40, 50]), message=st.sampled_from("abc"))
    def log(self, level, message):
        for handler, *_ in self.pairs:
            handler.handle(record(message, level))

    @rule(which=st.sampled_from([None, 1, 2]), by=st.booleans())
    def target(self, which, by):
        for pair in self.pairs:
            target = None if which is None else pair[which]
            if by:
                pair[0].setTarget(target)
            else:
                pair[0].target = target

    @rule(capacity=st.integers(0, 5), level=st.sampled_from([20, 40, 60]), on_close=st.booleans())
    def configure(self, capacity, level, on_close):
        for handler, *_ in self.pairs:
            handler.capacity, handler.flushLevel, handler.flushOnClose = capacity, level, on_close

    @rule()
    def flush(self):
        for handler, *_ in self.pairs:
            handler.flush()

    @rule()
    def take_one(self):
        for handler, *_ in self.pairs:
            del handler.buffer[:1]

    @rule()
    def close(self):
        for handler, *_ in self.pairs:
            handler.close()
            # Where the original keeps them though it is documented to clear the buffer.
            handler.buffer.clear()

    @invariant()
    def are_the_same(self):
        first, second = (
            (messages(handler), one.records, other.records, handler.shouldFlush(record()))
            for handler, one, other in self.pairs
        )
        assert first == second


TestScript = Script.TestCase


@pytest.mark.parametrize("make", [list, collections.deque, lambda: collections.deque(maxlen=3)])
def test_the_buffer_may_be_of_any_kind(module, make):
    """A deque, for a ring of the newest."""
    target = Keeper()
    handler = module.MemoryHandler(9, target=target)
    handler.buffer = buffer = make()
    for message in ("1", "2", "3", "4"):
        handler.handle(record(message))
    expected = messages(handler)
    handler.flush()
    assert target.records == expected
    assert handler.buffer is buffer
    assert not buffer


def test_what_an_overridden_flush_holds_back_is_kept_by_close(module):
    """It is the subclass's to keep."""

    class Holding(module.MemoryHandler):
        def flush(self):
            calls.append(len(self.buffer))

    calls = []
    handler = Holding(9, target=Keeper(), flushOnClose=False)
    handler.handle(record("held"))
    handler.close()
    assert messages(handler) == ["held"]
    assert calls == [1]


def test_a_sink_of_ones_own_is_an_attribute_as_any_other(module):
    """A subclass may call what it writes to that."""

    class Mine(module.MemoryHandler):
        def __init__(self, sink):
            super().__init__(1, target=Keeper())
            self.sink = sink

    handler = Mine("mine")
    handler.handle(record())
    assert handler.sink == "mine"
    assert handler.target.records == ["hello"]


# -- where the twin differs


def test_a_failing_target_gets_no_record_twice():
    """It gets the others too, and what it raised first is raised; the original gives it the whole buffer again."""
    seen = []
    for module in MODULES:
        target = Keeper()
        target.fail_at = ("2",)
        handler = module.MemoryHandler(99, target=target)
        for number in range(1, 5):
            handler.handle(record(str(number)))
        with pytest.raises(OSError, match="target"):
            handler.flush()
        target.fail_at = ()
        handler.flush()
        seen.append(target.records)
    assert seen == [["1", "2", "1", "2", "3", "4"], ["1", "2", "3", "4"]]
    stats = handler.sink.stats()
    assert (stats.delivered, stats.dropped) == (3, {"error": 1})


def test_what_the_target_logs_itself_does_not_go_round():
    """A record that the target logs while it is given others goes with the next flush; the original recurses."""

    class Talkative(Keeper):
        def handle(self, each):
            super().handle(each)
            if each.getMessage() == "one":
                handler.handle(record("echo", logging.ERROR))

    handler = handlers.MemoryHandler(1, target=Talkative())
    handler.handle(record("one"))
    assert messages(handler) == ["echo"]
    handler.flush()
    assert handler.target.records == ["one", "echo"]


def test_an_interrupt_while_handing_on_keeps_the_rest():
    """A KeyboardInterrupt passes through, and what was not handed on yet is still in the buffer."""
    target = Keeper()
    target.fail_at, target.error = ("2",), KeyboardInterrupt()
    handler = handlers.MemoryHandler(99, target=target)
    for number in range(1, 5):
        handler.handle(record(str(number)))
    with pytest.raises(KeyboardInterrupt):
        handler.flush()
    assert messages(handler) == ["3", "4"]
    target.fail_at = ()
    handler.flush()
    assert target.records == ["1", "2", "3", "4"]


def test_close_clears_the_buffer():
    """As documented; the original keeps what it did not flush."""
    left = []
    for module in MODULES:
        handler = module.MemoryHandler(9, target=Keeper(), flushOnClose=False)
        handler.handle(record("left"))
        handler.close()
        left.append(messages(handler))
    assert left == [["left"], []]
    assert handler.sink.stats().dropped == {"discarded": 1}


def test_a_forked_child_begins_with_an_empty_buffer():
    """What was logged before the fork is handed on by the parent alone, where the original's child does so too."""
    counts = []
    for module in MODULES:
        target = Keeper()
        handler = module.MemoryHandler(9, target=target)
        handler.handle(record("before"))

        def look(handler=handler, target=target, module=module):
            handler.flush()
            assert target.records == ([] if module is handlers else ["before"])

        in_fork(look)
        handler.flush()
        counts.append(target.records)
    assert counts == [["before"], ["before"]]


def test_a_level_may_have_a_name():
    """On every version of Python, and without dictConfig."""
    handler = handlers.MemoryHandler(9, "critical", Keeper())
    assert handler.flushLevel == logging.CRITICAL
    with pytest.raises(ValueError, match="flushLevel"):
        handlers.MemoryHandler(9, "no-such")


@given(st.lists(st.integers(0, 9), max_size=20), st.sets(st.integers(0, 9)))
def test_every_record_is_accounted_for(numbers, failing):
    """Whatever fails, each record is delivered, dropped or pending."""
    target = Keeper()
    target.fail_at = {str(number) for number in failing}
    handler = handlers.MemoryHandler(3, target=target)
    for number in numbers:
        with contextlib.suppress(OSError):
            handler.handle(record(str(number)))
    stats = handler.sink.stats()
    assert stats.accepted == len(numbers)
    assert stats.accepted == stats.delivered + sum(stats.dropped.values()) + stats.pending
    assert sorted([*target.records, *messages(handler)]) == sorted(map(str, numbers))

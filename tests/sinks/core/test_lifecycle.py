"""Forks, exits and the children of multiprocessing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import weakref

import pytest

from outfall.sinks.core import lifecycle
from outfall.sinks.core.sink import Sink
from outfall.sinks.files.file import FileSink
from tests.sinks._processes import PATIENCE_SECONDS, check, events_of, in_fork, run


@pytest.fixture
def path(tmp_path):
    """Give the path of a log file that is not there yet."""
    return tmp_path / "app.jsonl"


def _numbers(path):
    return [event["n"] for event in events_of(path)]


# -- exit


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("pass", 0),
        ("sys.exit(3)", 3),
        ("raise RuntimeError", 1),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("threading.Thread(target=lambda: sink.handle({'level': 'info', 'n': 2})).start()", 0),
    ],
    ids=["at the end", "sys.exit", "an exception", "an interrupt", "a thread"],
)
def test_what_waits_is_written_at_exit(path, ending, status):
    """However the interpreter ends by itself, no buffered event is lost."""
    result = run(
        f"""
        import sys, threading
        from outfall.sinks.files.file import FileSink
        sink = FileSink(sys.argv[1], buffer_bytes=1_000_000, flush_interval=1000)
        sink.handle({{"level": "info", "n": 1}})
        {ending}
        """,
        path,
    )
    assert result.returncode == status, result.stderr
    assert _numbers(path) == ([1, 2] if "Thread" in ending else [1])


@pytest.mark.parametrize("when", ["before", "after"], ids=["registered before the import", "registered after it"])
def test_exit_handlers_may_still_log(path, when):
    """What comes after the drain is written at once: sinks stay open, and buffer nothing any more."""
    register = 'atexit.register(lambda: sink.handle({"level": "info", "n": 2}))'
    result = run(
        f"""
        import atexit, sys
        {register if when == "before" else "pass"}
        from outfall.sinks.files.file import FileSink
        {register if when == "after" else "pass"}
        sink = FileSink(sys.argv[1], buffer_bytes=1_000_000, flush_interval=1000)
        sink.handle({{"level": "info", "n": 1}})
        """,
        path,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert _numbers(path) == [1, 2]


@pytest.mark.parametrize(
    "make",
    [
        "FileSink(path)",
        "RotatingFileSink(path, max_bytes=50, backup_count=9, compression='gzip')",
        "TimedRotatingFileSink(path, 'midnight', max_bytes=50)",
        "MemorySink(9, target=FileSink(path))",
    ],
)
@pytest.mark.parametrize(
    "last",
    # In the cycle the sink is finalized first.
    ["builtins.last = Last(sink)", "last = Last(sink); sink.owner = last; del sink, last"],
    ids=["later", "with the sink"],
)
def test_an_object_that_ends_with_the_interpreter_may_still_log(tmp_path, make, last):
    """Its events are written, a rollover included, though no thread can be started."""
    result = run(
        f"""
        import builtins, sys
        from outfall import FileSink, MemorySink, RotatingFileSink, TimedRotatingFileSink
        path = sys.argv[1]
        sink = {make}
        class Last:
            def __init__(self, sink):
                self.sink = sink
            def __del__(self):
                for n in range(2, 5):
                    self.sink.handle({{"level": "info", "n": n}})
                    self.sink.flush(1)
        sink.handle({{"level": "info", "n": 1}})
        {last}
        """,
        tmp_path / "app",
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(number for path in tmp_path.iterdir() for number in _numbers(path)) == [1, 2, 3, 4]


def test_a_sink_made_at_exit_buffers_nothing(path):
    """There is nobody left to write what it would keep back."""
    check(
        """
        import atexit, os, sys
        def late():
            from outfall.sinks.files.file import FileSink
            sink = FileSink(sys.argv[1], buffer_bytes=1_000_000)
            sink.handle({"level": "info", "n": 1})
            os._exit(0)
        atexit.register(late)
        import outfall.sinks.files.file
        """,
        path,
    )
    assert _numbers(path) == [1]


def test_the_drain_comes_before_that_of_logging(path):
    """logging.shutdown closes handlers, which may still log to sinks."""
    check(
        """
        import sys
        from outfall.sinks.files.file import FileSink
        import logging
        class Last(logging.Handler):
            def close(self):
                sink.handle({"level": "info", "n": 2})
                super().close()
        sink = FileSink(sys.argv[1], buffer_bytes=1_000_000)
        handler = Last()
        sink.handle({"level": "info", "n": 1})
        """,
        path,
    )
    assert _numbers(path) == [1, 2]


def test_one_failing_sink_leaves_no_other_undrained(tmp_path):
    """An audit sink that raises at exit, and a full device, cost the other sinks nothing."""
    check(
        """
        import os, sys
        from outfall.sinks.core import lifecycle
        from outfall.sinks.files.file import FileSink
        sinks = []
        for n in range(5):
            sinks.append(FileSink("/dev/full", buffer_bytes=1_000_000, on_error="raise"))
            sinks.append(FileSink(f"{sys.argv[1]}/{n}", buffer_bytes=1_000_000))
        for sink in sinks:
            sink.handle({"level": "info", "n": 1})
        try:
            lifecycle.drain()
        except OSError:
            os._exit(0)  # no finalizer may do what the drain has left undone
        """,
        tmp_path,
    )
    assert [_numbers(tmp_path / str(n)) for n in range(5)] == [[1]] * 5


def test_the_exit_waits_for_no_sink_beyond_its_deadline(tmp_path):
    """Sinks on pipes that nobody reads share one deadline."""
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        check(
            """
            import sys, time
            from outfall.sinks.core import lifecycle
            from outfall.sinks.files.file import FileSink
            lifecycle.EXIT_DEADLINE_SECONDS = 0.2
            sinks = [FileSink(sys.argv[1], buffer_bytes=10_000_000, flush_interval=1000) for _ in range(300)]
            for sink in sinks:
                sink.handle({"level": "info", "event": "x" * 70_000})
            begin = time.monotonic()
            lifecycle.drain()
            # A minute if each had its own.
            assert time.monotonic() - begin < 30, time.monotonic() - begin
            assert all(sink.stats().pending == 1 for sink in sinks)
            """,
            tmp_path / "fifo",
        )
    finally:
        os.close(reader)


def test_all_that_waits_at_the_exit_waits_within_one_deadline(tmp_path):
    """Several handlers, each with a collector that is away: `logging.shutdown` flushes and closes them one by one."""
    check(
        """
        import atexit, logging, os, sys, time
        from outfall import BackgroundSink, HTTPSink, SinkHandler, SpoolSink
        from outfall.sinks.core import lifecycle
        lifecycle.EXIT_DEADLINE_SECONDS = 0.5
        quiet = lambda failure: None
        for number in range(2):
            here = BackgroundSink(HTTPSink("http://127.0.0.1:9/"), on_error=quiet)
            disk = SpoolSink(HTTPSink("http://127.0.0.1:9/"), f"{sys.argv[1]}/{number}", on_error=quiet)
            for sink in (here, disk):
                logging.getLogger().addHandler(SinkHandler(sink))
        logging.error("nobody is there")
        begin = time.monotonic()
        lifecycle.drain()  # by multiprocessing, as it may be
        lifecycle.drain()  # by atexit
        logging.shutdown()
        # 40 seconds if each flush had its own time.
        assert time.monotonic() - begin < 30, time.monotonic() - begin
        """,
        tmp_path,
    )


def test_the_second_of_two_exit_hooks_has_what_the_first_has_left():
    """`multiprocessing` runs one before it waits for its children, and `atexit` another."""
    check(
        """
        from outfall import Sink
        from outfall.sinks.core import lifecycle
        now = [1000.0]
        lifecycle.now = lambda: now[0]
        lifecycle.EXIT_DEADLINE_SECONDS = 0.5
        class Slow(Sink):
            def drain(self, timeout):
                given.append(timeout)
                now[0] += 0.4
        given, sink = [], Slow()
        lifecycle.drain()
        now[0] += 60  # spent by others, as in waiting for children
        lifecycle.drain()
        first, second = given
        assert second <= 0.1001 < first <= 0.5, given
        """
    )


@pytest.mark.slow  # it takes the deadline, which is long enough for a machine that is busy
def test_a_target_that_is_away_costs_the_others_no_time_at_the_exit(tmp_path):
    """However long they linger, they are told to make haste before anybody is waited for."""
    check(
        """
        import os, queue, sys
        from outfall import BackgroundSink, FileSink, HTTPSink, QueueListener, QueueSink, SpoolSink
        from outfall.sinks.core import lifecycle
        lifecycle.EXIT_DEADLINE_SECONDS = 8.0
        directory = sys.argv[1]
        waiting, sinks = queue.SimpleQueue(), []
        listener = QueueListener(waiting, FileSink(f"{directory}/listener"), linger=600)
        listener.start()
        for number in range(6):  # whatever the order they are drained in
            gone = BackgroundSink(HTTPSink("http://127.0.0.1:9/"), on_error=lambda failure: None)
            sinks += [gone, BackgroundSink(FileSink(f"{directory}/{number}"), linger=600)]
        sinks += [SpoolSink(FileSink(f"{directory}/spooled"), f"{directory}/spool", linger=600), QueueSink(waiting)]
        for sink in sinks:
            sink.handle({"level": "info", "n": 1})
        lifecycle.drain()
        os._exit(0)  # no thread may do what the drain has left undone
        """,
        tmp_path,
    )
    for name in [*range(6), "spooled", "listener"]:
        assert _numbers(tmp_path / str(name)) == [1], name


def test_a_sink_that_nobody_holds_is_forgotten():
    """The hooks keep no sink alive."""
    sink = Sink()
    watch = weakref.ref(sink)
    assert sink in lifecycle.participants()
    del sink
    assert watch() is None


def test_draining_while_other_threads_make_sinks_fails_nowhere(monkeypatch):
    """At exit daemon threads go on; what they make meanwhile disturbs nothing."""
    monkeypatch.setattr(lifecycle._State, "draining", False)
    stop = threading.Event()
    failures = []

    def make():
        try:
            while not stop.is_set():
                [Sink() for _ in range(20)]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            lifecycle.participants()
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
    assert failures == []


# -- the children of multiprocessing

_CHILDREN = """
    import sys, threading
    {imports}

    def sink_of(path):
        from outfall.sinks.files.file import FileSink
        return FileSink(path, buffer_bytes=1_000_000, flush_interval=1000)

    def work(path, n, ending):
        global sink
        sink = sink_of(path)
        sink.handle({{"level": "info", "n": n}})
        if ending == "exit":
            sys.exit(3)
        if ending == "raise":
            raise RuntimeError("on purpose")
        if ending == "finalizer":
            # Runs with those of multiprocessing's queues, after the drain, and is told by it that nothing may wait.
            from multiprocessing.util import Finalize
            from outfall.sinks.core import lifecycle
            last = lambda: sink.handle({{"level": "info", "n": n + 100 * lifecycle.exiting()}})
            Finalize(None, last, exitpriority=10)

    def work_in_pool(arguments):
        work(*arguments)

    if __name__ == "__main__":
        import multiprocessing
        context = multiprocessing.get_context(sys.argv[2])
        path = sys.argv[1]
        children = [
            context.Process(target=work, args=(path, n, ending))
            for n, ending in enumerate(sys.argv[3:])
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(50)
        expected = [{{"exit": 3, "raise": 1}}.get(ending, 0) for ending in sys.argv[3:]]
        assert [child.exitcode for child in children] == expected, [child.exitcode for child in children]
        pool = context.Pool(1)
        pool.map(work_in_pool, [(path, 50, "return")])
        pool.close()
        pool.join()
"""


@pytest.mark.parametrize(
    ("method", "imported"),
    [
        ("fork", "first"),
        ("fork", "after multiprocessing"),
        ("fork", "in the child"),
        ("spawn", "first"),
        ("spawn", "in the child"),
        ("forkserver", "first"),
        ("forkserver", "in the child"),
    ],
)
def test_what_waits_is_written_when_a_child_of_multiprocessing_ends(tmp_path, path, method, imported):
    """Where Python runs no atexit the buffer is written all the same, whatever came first."""
    imports = {
        "first": "import outfall.sinks.files.file, multiprocessing.util",
        "after multiprocessing": "import multiprocessing.util, outfall.sinks.files.file",
        "in the child": "",
    }[imported]
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(_CHILDREN).format(imports=imports))
    endings = ["return", "finalizer", "exit", "raise"] if imported == "first" else ["finalizer"]
    result = subprocess.run(
        [sys.executable, script, path, method, *endings],
        timeout=PATIENCE_SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    late = 100 + endings.index("finalizer")
    assert sorted(_numbers(path)) == [*range(len(endings)), 50, late]


def test_a_child_of_multiprocessing_leaves_the_inherited_buffer_to_the_parent(path):
    """Forked with events in the buffer, the child's exit writes its own alone."""
    check(
        """
        import multiprocessing, sys
        from outfall.sinks.files.file import FileSink
        sink = FileSink(sys.argv[1], buffer_bytes=1_000_000, flush_interval=1000)
        sink.handle({"level": "info", "n": "parent"})
        child = multiprocessing.get_context("fork").Process(target=sink.handle, args=({"level": "info", "n": "child"},))
        child.start()
        child.join(50)
        assert child.exitcode == 0
        """,
        path,
    )
    assert _numbers(path) == ["child", "parent"]


# -- forks


def test_a_plain_forked_child_that_exits_writes_its_buffer(path):
    """os.fork and sys.exit: atexit runs there, and finds only the child's events."""
    check(
        """
        import os, sys
        from outfall.sinks.files.file import FileSink
        sink = FileSink(sys.argv[1], buffer_bytes=1_000_000, flush_interval=1000)
        sink.handle({"level": "info", "n": "parent"})
        pid = os.fork()
        if pid == 0:
            sink.handle({"level": "info", "n": "child"})
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        """,
        path,
    )
    assert _numbers(path) == ["child", "parent"]


def test_a_child_has_fresh_locks_and_an_empty_ledger(path):
    """Whatever thread of the parent held the sink's locks, the child's first event is written."""
    sink = FileSink(path, level="info")
    sink.handle({"level": "info", "n": 1})
    sink.handle({"level": "debug", "n": 2})
    held, enough = threading.Event(), threading.Event()

    def hold():
        with sink._ledger.lock, sink._lock:
            held.set()
            enough.wait(PATIENCE_SECONDS)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(PATIENCE_SECONDS)

    def child():
        # Which the hot path uses too.
        assert sink._turn is sink._lock.turn
        stats = sink.stats()
        assert (stats.accepted, stats.delivered, stats.filtered) == (0, 0, 0), stats
        sink.handle({"level": "info", "n": 3})
        sink.handle({"level": "debug", "n": 4})
        stats = sink.stats()
        assert (stats.accepted, stats.delivered, stats.filtered) == (1, 1, 1), stats
        assert sink.flush(1)
        assert sink.close(1)

    try:
        in_fork(child)
    finally:
        enough.set()
        thread.join(PATIENCE_SECONDS)
    sink.handle({"level": "info", "n": 5})
    assert _numbers(path) == [1, 3, 5]
    assert sink.stats().delivered == 2


def test_a_grandchild_is_a_child_too(path):
    """What was fresh in the child is fresh again in its own."""
    sink = FileSink(path, buffer_bytes=1000)
    sink.handle({"level": "info", "n": 1})

    def grandchild():
        sink.handle({"level": "info", "n": 3})
        assert sink.close()

    def child():
        sink.handle({"level": "info", "n": 2})
        in_fork(grandchild)
        assert sink.close()

    in_fork(child)
    sink.close()
    assert _numbers(path) == [3, 2, 1]


def test_one_sink_that_fails_after_a_fork_leaves_the_others_their_locks(path):
    """A subclass's own after_fork that raises costs no other sink anything."""
    check(
        """
        import os, sys, threading
        from outfall.sinks.core.sink import Sink
        from outfall.sinks.files.file import FileSink

        class Broken(Sink):
            def after_fork(self):
                raise RuntimeError("on purpose")

        sinks = [Broken() for _ in range(5)] + [FileSink(sys.argv[1]) for _ in range(5)] + [Broken() for _ in range(5)]
        inside = threading.Event()
        def hold():
            for sink in sinks[5:10]:
                sink._lock.acquire()
            inside.set()
            threading.Event().wait()
        threading.Thread(target=hold, daemon=True).start()
        inside.wait()
        pid = os.fork()
        if pid == 0:
            import signal
            signal.alarm(60)
            for n, sink in enumerate(sinks[5:10]):
                sink.handle({"n": n})
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        os._exit(0)
        """,
        path,
    )
    assert _numbers(path) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["file", "buffered file", "pipeline", "stream"])
def test_forks_from_threads_under_load(path, kind):
    """No child hangs, none writes the parent's events, and each event of parent and children is there once."""
    making = {
        "file": "FileSink(path)",
        "buffered file": "FileSink(path, buffer_bytes=3000)",
        "pipeline": "FileSink(path, processors=[lambda l, n, e: e])",
        "stream": "StreamSink(open(path, 'ab', buffering=0))",
    }[kind]
    out = check(
        f"""
        import os, signal, sys, threading, time, warnings
        from outfall.sinks.files.file import FileSink
        from outfall.sinks.files.stream import StreamSink
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks under threads, which is the point

        path = sys.argv[1]
        sink = {making}
        stop, counts = False, [0, 0, 0]

        def work(thread):
            while not stop:
                sink.handle({{"who": thread, "level": "info", "n": counts[thread], "x": "x" * 100}})
                counts[thread] += 1
                if counts[thread] % 50 == 0:
                    time.sleep(0.001)

        def fork(who):
            for round_ in range(12):
                pid = os.fork()
                if pid == 0:
                    signal.alarm(60)
                    for n in range(20):
                        sink.handle({{"who": f"{{who}}.{{round_}}", "level": "info", "n": n}})
                    stats = sink.stats()
                    good = stats.accepted == 20 and sink.close(60)
                    os._exit(0 if good else 1)
                status = os.waitpid(pid, 0)[1]
                if status:
                    print("a child ended with", status, flush=True)
                    os._exit(1)

        threads = [threading.Thread(target=work, args=(t,)) for t in range(3)]
        forkers = [threading.Thread(target=fork, args=(f"fork{{f}}",)) for f in range(2)]
        for thread in threads + forkers:
            thread.start()
        for thread in forkers:
            thread.join()
        stop = True
        for thread in threads:
            thread.join()
        assert sink.close(60)
        assert sink.stats().delivered == sum(counts), (sink.stats(), counts)
        print(*counts)
        """,
        path,
    )
    counts = [int(count) for count in out.split()]
    seen: dict[object, list[int]] = {}
    for event in events_of(path):
        seen.setdefault(event["who"], []).append(event["n"])
    for thread, count in enumerate(counts):
        assert seen.pop(thread) == list(range(count))
    assert seen == {f"fork{f}.{round_}": list(range(20)) for f in range(2) for round_ in range(12)}


# -- forks that Python hears nothing of

_FORKED_IN_C = """
    import ctypes, json, os, pathlib, signal, sys, threading, time

    def others():
        "The state of all other threads, and how often each has waited for something."
        found = []
        for task in pathlib.Path("/proc/self/task").iterdir():
            if int(task.name) != threading.get_native_id():
                lines = (task / "status").read_text().splitlines()
                found.append([line for line in lines if line.startswith(("State", "voluntary"))])
        return found

    def others_rest():
        "Whether no other thread waits for the interpreter: one that does looks for it every few milliseconds."
        before, until = others(), time.monotonic() + 0.03
        while time.monotonic() < until:
            pass
        return before == others() and all("sleeping" in lines[0] for lines in before)

    def await_rest():
        "Wait until no other thread does: a child that is forked in C has nobody who hands the interpreter on to it."
        while not others_rest():
            time.sleep(0.005)
"""

_DELIVERING_IN_C = (
    _FORKED_IN_C
    + """
    from outfall import BackgroundSink, FileSink, MemorySink, SpoolSink

    path, kind, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    sink = {
        "background": lambda: BackgroundSink(FileSink(path)),
        "spool": lambda: SpoolSink(FileSink(path), path + ".spool"),
        "memory": lambda: MemorySink(1000, target=FileSink(path)),
        "buffered file": lambda: FileSink(path, buffer_bytes=1_000_000, flush_interval=1000),
    }[kind]()
    for n in range(3):
        sink.handle({"level": "info", "event": "e", "who": 0, "n": n, "timestamp": 1.5})
    if kind in ("background", "spool"):
        sink.flush(30)
    for child in (1, 2):
        await_rest()
        pid = ctypes.PyDLL(None).fork()
        if pid == 0:
            signal.alarm(60)
            def log(who):
                for n in range(20):
                    sink.handle({"level": "info", "event": "e", "who": who, "n": n, "timestamp": 1.5})
            making = [threading.Thread(target=log, args=(child * 10 + t,)) for t in range(threads)]
            for thread in making:
                thread.start()
            log(child * 10 + 9)
            for thread in making:
                thread.join()
            stats = sink.stats()
            os._exit(0 if sink.flush(30) and sink.close(30) and stats.accepted == 20 * (threads + 1) else 1)
        assert os.waitpid(pid, 0)[1] == 0
    assert sink.close(30)
"""
)


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
@pytest.mark.parametrize(
    ("kind", "threads"),
    [("background", 0), ("background", 3), ("spool", 0), ("spool", 3), ("memory", 0), ("buffered file", 3)],
)
def test_a_child_that_was_forked_in_c_delivers_its_own_events_and_no_others(path, kind, threads):
    """As uWSGI does it, without a word to Python: each event of parent and children is there once."""
    check(_DELIVERING_IN_C, path, kind, threads)
    seen: dict[object, list[int]] = {}
    for event in events_of(path):
        seen.setdefault(event["who"], []).append(event["n"])
    made = [child * 10 + who for child in (1, 2) for who in (*range(threads), 9)]
    assert seen == {0: [0, 1, 2]} | {who: list(range(20)) for who in made}


_CONTENDED_IN_C = (
    _FORKED_IN_C
    + """
    from outfall.sinks.core import lifecycle
    from outfall.sinks.core.lock import WriteLock

    rest = threading.Barrier(4)

    def deep(calls):
        "Rest with that many calls on the stack."
        return list(map(deep, [calls - 1])) if calls else (rest.wait(), threading.Event().wait())

    for _ in range(3):
        threading.Thread(target=deep, args=(20,), daemon=True).start()
    rest.wait()
    await_rest()
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        signal.alarm(60)
        lifecycle.notice_fork()
        lock, times = WriteLock(), []

        def wait():
            json.loads("[" * 100 + "]" * 100)  # all over the stack that another thread had
            with lock:
                times.append(1)

        waiting = [threading.Thread(target=wait) for _ in range(3)]
        with lock:
            for thread in waiting:
                thread.start()
            time.sleep(0.2)
            assert not times
        for thread in waiting:
            thread.join()
        os._exit(0 if len(times) == 3 else 1)
    assert os.waitpid(pid, 0)[1] == 0
"""
)


@pytest.mark.skipif(sys.platform != "linux", reason="what a fork in C is known by")
def test_threads_of_a_child_that_was_forked_in_c_wait_for_one_another():
    """They look at no stack of the parent's threads, which they stand on: that crashes Python 3.11 and 3.12."""
    check(_CONTENDED_IN_C)


def test_where_no_memory_is_wiped_a_child_is_known_by_its_number(monkeypatch):
    """A system that does not know how gets a question for the process's number."""
    monkeypatch.setattr(lifecycle, "_MADV_WIPEONFORK", 9_999)
    here = lifecycle._page()
    assert isinstance(here, lifecycle._ByNumber)
    here[0] = 1
    assert here[0]
    monkeypatch.setattr(os, "getpid", lambda: 4_000_000)
    assert not here[0]

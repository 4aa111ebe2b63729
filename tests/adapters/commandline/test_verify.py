"""``outfall verify``: what was written is found whole, and whatever is done to it afterwards is found."""

from __future__ import annotations

import gzip
import os
import re
import signal
import subprocess
import threading

import pytest

from outfall import BackgroundSink, ChainedRenderer, FanoutSink, FileSink, RotatingFileSink, TimedRotatingFileSink
from outfall.adapters.commandline.main import main
from outfall.sinks.event.chained import sealed_line
from tests.sinks._processes import check, in_fork, start

KEY = b"a key of thirty-two bytes, or so"
OTHER = b"another key of thirty-two bytes."


@pytest.fixture
def verify(tmp_path, capsys):
    """Return a function that runs the command over files; it returns the exit code and what was printed."""
    key = tmp_path / "key"
    key.write_bytes(KEY + b"\n")

    def run(*arguments, keys=(key,)):
        given = [text for each in keys for text in ("--key-file", str(each))]
        code = main(["verify", *map(str, arguments), *given])
        return code, capsys.readouterr().out

    return run


def write(path, count=10, *, kind=FileSink, key=KEY, **options):
    """Write so many events to the file at *path*, by a sink of its own."""
    with kind(path, renderer=ChainedRenderer(key), on_error="raise", **options) as sink:
        for number in range(count):
            sink.handle({"event": "paid", "level": "info", "number": number})


def numbers(*paths):
    """Return the numbers of the lines in files."""
    return [sealed_line(line).number for path in paths for line in path.read_bytes().splitlines()]


def test_what_was_written_is_whole(verify, tmp_path):
    """In one go, and over restarts, each of which goes on where the last one ended."""
    path = tmp_path / "audit.jsonl"
    for _ in range(3):
        write(path)
    assert numbers(path) == list(range(1, 31))
    code, told = verify(path, "--expect", 30)
    assert (code, told) == (0, "30 lines in 1 files, numbers 1 to 30: nothing is changed or missing\n")


def swapped(lines):
    """Return *lines* with two of them in each other's place."""
    lines[3], lines[6] = lines[6], lines[3]
    return lines


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda lines: [line.replace(b'"number":4', b'"number":9') for line in lines], ":5: number 5 was changed"),
        (lambda lines: lines[:4] + lines[5:], ":5: number 6 follows 4: 5 is missing"),
        (lambda lines: lines[:4] + lines[7:], ":5: number 8 follows 4: 3 missing"),
        (swapped, ":4: number 7 follows 3"),
        (lambda lines: lines[:5] + lines[4:], ":6: number 5 follows 5: out of place, or there twice"),
        (lambda lines: [*lines[:4], b'{"event":"added"}\n', *lines[4:]], ":5: the line is not sealed"),
        (lambda lines: [*lines[:4], b"added\n", *lines[4:]], ":5: the line is not sealed"),
        (lambda lines: [*lines[:4], lines[4].upper(), *lines[5:]], "number 6 follows 4"),
        (lambda lines: [line.replace(b'"n":5', b'"n":50') for line in lines], ":5: number 50 was changed"),
        (lambda lines: [re.sub(rb'"mac":"..', b'"mac":"00', line) for line in lines], ":1: number 1 was changed"),
        (lambda lines: [re.sub(rb',"_chain".*', b"}", line) for line in lines], "there is no sealed line"),
        (lambda lines: [], "there is no sealed line"),
    ],
)
def test_what_is_changed_afterwards_is_found(verify, tmp_path, change, told):
    """Each kind of change ends with 1 and names file and line."""
    path = tmp_path / "audit.jsonl"
    write(path)
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    code, said = verify(path)
    assert code == 1
    assert told in said


def test_one_change_is_told_once(verify, tmp_path):
    """What follows a changed line is as it was."""
    path = tmp_path / "audit.jsonl"
    write(path)
    path.write_bytes(path.read_bytes().replace(b'"number":4', b'"number":9'))
    _, said = verify(path)
    assert len(said.splitlines()) == 2


def test_what_is_cut_off_at_the_end_shows_against_the_position(verify, tmp_path):
    """Without it, it cannot show: the rest is as it was written."""
    path = tmp_path / "audit.jsonl"
    write(path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:7]))
    assert verify(path)[0] == 0
    code, said = verify(path, "--expect", 10)
    assert code == 1
    assert "the lines end at 7, but 10 is expected" in said


def test_a_cut_before_a_restart_shows(verify, tmp_path):
    """The next process has gone on from a line that is missing then."""
    path = tmp_path / "audit.jsonl"
    write(path)
    write(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:8] + lines[10:]))
    code, said = verify(path)
    assert code == 1
    assert ":9: number 11 follows a line that is missing" in said


@pytest.mark.parametrize("kind", [RotatingFileSink, TimedRotatingFileSink])
@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
@pytest.mark.parametrize("options", [{}, {"multiprocess": True}, {"buffer_bytes": 900}])
def test_across_rotation_compression_and_restart(verify, tmp_path, kind, compression, options):
    """The chain goes through all files, which may be named in any order; none is larger than it may be."""
    path = tmp_path / "audit.jsonl"
    for _ in range(3):
        write(path, 20, kind=kind, max_bytes=1_500, backup_count=100, compression=compression, **options)
    files = sorted(tmp_path.glob("audit.jsonl*"))
    assert len(files) > 5
    assert all(file.stat().st_size <= 1_500 for file in files)
    code, said = verify(*files, "--expect", 60)
    assert (code, f"60 lines in {len(files)} files, numbers 1 to 60" in said) == (0, True), said


def test_a_restart_right_after_a_rotation_goes_on_from_the_rotated_file(verify, tmp_path):
    """The file itself is empty then; the rotated one may be compressed already."""
    path = tmp_path / "audit.jsonl"
    for compression in (None, "gzip"):
        with RotatingFileSink(
            path, max_bytes=10**6, backup_count=5, renderer=ChainedRenderer(KEY), compression=compression
        ) as sink:
            sink.handle({"event": "a"})
            sink.do_rollover()
    write(path, 1, kind=RotatingFileSink, max_bytes=10**6)
    assert numbers(path) == [3]
    code, said = verify(*tmp_path.glob("audit*"))
    assert (code, "begins" in said) == (0, False), said


def test_what_retention_has_deleted_is_told_and_no_failure(verify, tmp_path):
    """It says at which number the lines begin; a file out of the middle is a failure."""
    path = tmp_path / "audit.jsonl"
    write(path, 40, kind=RotatingFileSink, max_bytes=1_500, backup_count=3)
    files = sorted(tmp_path.glob("audit.jsonl*"))
    code, said = verify(*files)
    first = min(numbers(*files))
    assert first > 1
    assert code == 0
    assert f"begins at {first}" in said
    code, said = verify(*(file for file in files if not file.name.endswith(".2")))
    assert code == 1
    assert "missing" in said


def test_the_key_changes_from_one_process_to_the_next(verify, tmp_path):
    """With both keys all is whole; with one the other's lines do not fit; a key may be in the environment."""
    path, other = tmp_path / "audit.jsonl", tmp_path / "other"
    other.write_bytes(OTHER)
    write(path)
    write(path, key=OTHER)
    write(path)
    assert numbers(path) == list(range(1, 31))
    assert verify(path, keys=(tmp_path / "key", other))[0] == 0
    code, said = verify(path)
    assert (code, said.count("made with another key")) == (1, 10)
    code, said = verify(path, keys=(other,))
    assert (code, said.count("made with another key")) == (1, 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIT_KEY", OTHER.decode())
        assert verify(path, "--key-env", "AUDIT_KEY")[0] == 0


def test_a_wrong_key_is_asked_about(verify, tmp_path):
    """All lines fail, so the key is what to look at."""
    path, other = tmp_path / "audit.jsonl", tmp_path / "other"
    other.write_bytes(OTHER)
    write(path)
    assert "is it the right one?" in verify(path, keys=(other,))[1]


def test_threads_are_numbered_in_the_order_of_their_lines(verify, tmp_path):
    """Eight at once, by the short cut, by a buffer and behind a thread."""
    for name, make in {
        "plain": lambda path: FileSink(path, renderer=ChainedRenderer(KEY)),
        "buffer": lambda path: FileSink(path, renderer=ChainedRenderer(KEY), buffer_bytes=4_096),
        "behind": lambda path: BackgroundSink(FileSink(path, renderer=ChainedRenderer(KEY))),
        "fanout": lambda path: FanoutSink(FileSink(path, renderer=ChainedRenderer(KEY)), FileSink(f"{path}.2")),
    }.items():
        path = tmp_path / name
        with make(path) as sink:

            def log(sink=sink):
                for number in range(100):
                    sink.handle({"event": "paid", "level": "info", "number": number})

            threads = [threading.Thread(target=log) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert numbers(path) == list(range(1, 801))
        assert verify(path, "--expect", 800)[0] == 0


def test_forked_children_have_chains_of_their_own(verify, tmp_path):
    """Parent and children write to one file at once, each line of which has its place."""
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, renderer=ChainedRenderer(KEY), on_error="raise")
    sink.handle({"event": "parent", "level": "info"})
    for _ in range(3):
        in_fork(lambda: [sink.handle({"event": "child", "level": "info"}) for _ in range(20)])
        sink.handle({"event": "parent", "level": "info"})
    sink.close()
    code, said = verify(path)
    assert (code, "64 lines" in said) == (0, True), said


WRITER = """
    import sys
    from outfall import ChainedRenderer, RotatingFileSink
    sink = RotatingFileSink(
        sys.argv[1], max_bytes=20_000, backup_count=1_000, renderer=ChainedRenderer(sys.argv[2]), multiprocess=True
    )
    for number in range(1_000_000):
        if number == 300:
            print(number, flush=True)
        sink.handle({"event": "paid", "level": "info", "number": number, "filler": "x" * (number % 500)})
"""


def test_processes_that_are_killed_leave_nothing_that_looks_changed(verify, tmp_path):
    """Two at a time on one file that rotates, killed while they write: half lines are told, all others are whole."""
    path = tmp_path / "audit.jsonl"
    for _ in range(3):
        writers = [start(WRITER, path, KEY.decode(), stdout=subprocess.PIPE) for _ in range(2)]
        try:
            for writer in writers:
                assert writer.stdout.readline() == b"300\n"  # it goes on
        finally:
            for writer in writers:
                os.kill(writer.pid, signal.SIGKILL)
                writer.wait()
                writer.stdout.close()
    code, said = verify(*tmp_path.glob("audit*"))
    assert code == 0, said


def test_half_a_line_is_told_and_the_next_process_goes_on(verify, tmp_path):
    """Wherever the kill has cut the line."""
    path = tmp_path / "audit.jsonl"
    write(path, 3)
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for cut in (1, 10, len(last) // 2, len(last) - 2):
        path.write_bytes(whole + last[:cut])
        write(path, 2)
        code, said = verify(path, "--expect", 5)
        assert (code, "half a line" in said) == (0, True), said


def test_a_line_behind_half_of_another_is_seen(verify, tmp_path):
    """Two processes on one file: what is glued to a dead one's half line, and written again, is there once."""
    path = tmp_path / "audit.jsonl"
    write(path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[0][:50] + lines[1] + lines[1] + lines[2])
    code, said = verify(path, "--expect", 3)
    assert (code, "with number 2 behind it" in said) == (0, True), said
    path.write_bytes(lines[0] + lines[0][:50] + lines[1] + lines[2])
    assert verify(path, "--expect", 3)[0] == 0
    path.write_bytes(lines[0] + lines[0][:50] + lines[1].replace(b"paid", b"owed") + lines[2])
    assert verify(path)[0] == 1


LIMITED = """
    import resource, signal, sys
    from outfall import ChainedRenderer, FileSink
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    lost = []
    options = {"buffer_bytes": int(sys.argv[3])}
    with FileSink(sys.argv[1], renderer=ChainedRenderer(sys.argv[2]), on_error=lost.append, **options) as sink:
        for limit in (2_000, 2_100, 5_000, resource.RLIM_INFINITY):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            for number in range(20):
                sink.handle({"event": "paid", "level": "info", "number": number})
            sink.flush()
    print(sink.stats().delivered, sink.stats().dropped["error"])
"""


@pytest.mark.parametrize("buffer_bytes", [0, 500])
def test_a_write_that_fails_takes_its_number_back(verify, tmp_path, buffer_bytes):
    """A file that can grow no more costs events and no numbers: what is in the file is whole."""
    path = tmp_path / "audit.jsonl"
    delivered, dropped = map(int, check(LIMITED, path, KEY.decode(), buffer_bytes).split())
    assert dropped > 10
    assert delivered + dropped == 80
    code, said = verify(path, "--expect", delivered)
    assert (code, "half" in said) == (0, False), said
    assert numbers(path) == list(range(1, delivered + 1))


def test_a_signal_handlers_event_has_a_number_after_the_one_it_interrupts(verify, tmp_path):
    """It waits until the line is written that it came into."""
    path = tmp_path / "audit.jsonl"

    class Interrupted(ChainedRenderer):
        def seal(self, data, last_line):
            if b"outer" in data:
                sink.handle({"event": "handler", "level": "info"})
            return super().seal(data, last_line)

    with FileSink(path, renderer=Interrupted(KEY), on_error="raise") as sink:
        for _ in range(3):
            sink.handle({"event": "outer", "level": "info"})
            sink.handle({"event": "after", "level": "info", "level_number": 20})
    assert verify(path, "--expect", 9)[0] == 0
    assert numbers(path) == list(range(1, 10))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["missing.jsonl", "--key-file", "key"], "'missing.jsonl' cannot be read"),
        (["audit.jsonl"], "no key: write --key-file FILE or --key-env NAME"),
        (["audit.jsonl", "--key-file", "none"], "'none' cannot be read"),
        (["audit.jsonl", "--key-env", "NO_SUCH_VARIABLE"], "there is no such environment variable"),
        (["audit.jsonl", "--key-file", "short"], "at least 16 bytes are needed"),
        (["broken.gz", "--key-file", "key"], "'broken.gz' cannot be"),
    ],
)
def test_what_cannot_be_looked_at_ends_with_2(tmp_path, monkeypatch, capsys, arguments, told):
    """So that a job that checks does not take a wrong argument for a change."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "short").write_bytes(b"short")
    (tmp_path / "broken.gz").write_bytes(gzip.compress(b"x" * 1_000)[:20])
    write(tmp_path / "audit.jsonl", 1)
    assert main(["verify", *arguments]) == 2
    assert told in capsys.readouterr().err

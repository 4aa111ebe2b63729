"""What anybody can see of a spool from outside."""

from __future__ import annotations

import json
import os
import shutil
import threading

import pytest

from outfall import CaptureSink, RetryPolicy, SpoolSink, SpoolStatus, TemporaryDeliveryError
from outfall.sinks.spool import status as spoolstatus
from outfall.sinks.testing import FailingSink, StuckSink
from tests.sinks._processes import PATIENCE_SECONDS, until

STAMP = "2026-11-22T14:16:24.500000Z"
TIME = 1795356984.5


def event(number):
    """Return an event that happened at TIME."""
    return {"event": "e", "timestamp": STAMP, "n": number}


def _left_behind(directory, *numbers, **options):
    sink = SpoolSink(FailingSink(TemporaryDeliveryError("away")), directory, on_error=lambda _: None, **options)
    for number in numbers:
        sink.handle(event(number))
    sink.close(0)


def test_a_spool_with_nothing_in_it(tmp_path):
    """No stores, no events; a directory that no spool has used is an error."""
    with pytest.raises(FileNotFoundError, match="there is no spool in it"):
        SpoolStatus.read(tmp_path)
    SpoolSink(CaptureSink(), tmp_path).close()
    status = SpoolStatus.read(tmp_path)
    assert (status.stores, status.events, status.bytes, status.oldest) == ((), 0, 0, None)
    assert status.directory == str(tmp_path)


def test_no_directory_is_an_error(tmp_path):
    """What is not there, or is a file, cannot be read."""
    with pytest.raises(FileNotFoundError):
        SpoolStatus.read(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        SpoolStatus.read(tmp_path / "file")


def test_what_a_dead_process_left_is_counted(tmp_path):
    """Events and bytes that are not delivered, and when the oldest of them happened; nothing is changed."""
    _left_behind(tmp_path, *range(10), segment_bytes=200)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    status = SpoolStatus.read(tmp_path)
    [store] = status.stores
    assert (store.pid, store.alive, store.events, store.problem) == (os.getpid(), False, 10, None)
    assert status.bytes == store.bytes == sum(len(json.dumps(event(n), separators=(",", ":"))) + 1 for n in range(10))
    assert status.oldest == store.oldest == TIME
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_running_process_is_seen_at_work(tmp_path):
    """It is alive, has something in flight, and its account can be read."""
    target = StuckSink()
    sink = SpoolSink(target, tmp_path, linger=0, batch_size=4)
    for number in range(10):
        sink.handle(event(number))
    assert target.stuck.wait(PATIENCE_SECONDS)
    status = SpoolStatus.read(tmp_path)
    [store] = status.stores
    assert (store.alive, store.events) == (True, 10)
    assert 1 <= store.in_flight <= 4
    target.release()
    assert sink.flush(PATIENCE_SECONDS)
    status = SpoolStatus.read(tmp_path)
    [store] = status.stores
    assert (store.alive, store.events, store.in_flight, store.oldest) == (True, 0, 0, None)
    ledger = store.ledger
    assert (ledger["accepted"], ledger["delivered"], ledger["spooled"], ledger["dropped"]) == (10, 10, 0, {})
    assert ledger["time"] > 0
    sink.close()
    assert SpoolStatus.read(tmp_path).stores == ()


def test_why_nothing_moves_can_be_read(tmp_path):
    """The last error is in the account while the target is away."""
    sink = SpoolSink(
        FailingSink(TemporaryDeliveryError("the collector is away")),
        tmp_path,
        linger=0,
        retry=RetryPolicy(start_seconds=0.01, max_seconds=0.01),
        on_error=lambda _: None,
    )
    sink.handle(event(1))

    def told():
        ledgers = [store.ledger for store in SpoolStatus.read(tmp_path).stores]
        return any(
            ledger and ledger["last_error"] and "the collector is away" in ledger["last_error"] for ledger in ledgers
        )

    until(told)
    sink.close(0)


def test_reading_does_not_keep_others_from_adopting(tmp_path):
    """The lock is held for an instant alone."""
    _left_behind(tmp_path, 1, 2)
    stop = threading.Event()

    def read():
        while not stop.is_set():
            SpoolStatus.read(tmp_path)

    reader = threading.Thread(target=read)
    reader.start()
    sink = SpoolSink(CaptureSink(), tmp_path)
    try:

        def adopted():
            sink._worker.adopt_due = 0
            sink.start()
            return sink.stats().delivered == 2

        until(adopted)
    finally:
        stop.set()
        reader.join()
        sink.close()


@pytest.mark.parametrize("name", ["00000009.v2.ndjson", "cursor.json"])
def test_files_of_a_later_version_are_said_to_be_there(tmp_path, name):
    """The rest is read."""
    _left_behind(tmp_path, 1)
    [store] = SpoolStatus.read(tmp_path).stores
    (tmp_path / store.name / name).write_text('{"format":2}')
    _left_behind(tmp_path, 2)
    first, second = SpoolStatus.read(tmp_path).stores
    assert "format 2" in first.problem
    assert (second.problem, second.events) == (None, 1)


def test_a_garbled_cursor_means_all_that_is_there(tmp_path):
    """As it will be delivered."""
    _left_behind(tmp_path, 1, 2)
    [store] = SpoolStatus.read(tmp_path).stores
    (tmp_path / store.name / "cursor.json").write_text("garbage")
    (tmp_path / store.name / "status.json").write_text("garbage")
    [store] = SpoolStatus.read(tmp_path).stores
    assert (store.events, store.in_flight, store.ledger) == (2, 0, None)


def test_a_store_that_vanishes_meanwhile_is_left_out(tmp_path, monkeypatch):
    """Delivered between the listing and the look."""
    _left_behind(tmp_path, 1)

    def gone(path):
        monkeypatch.undo()
        shutil.rmtree(path)
        raise FileNotFoundError(path)

    monkeypatch.setattr(spoolstatus, "unsettled", gone)
    assert SpoolStatus.read(tmp_path).stores == ()


def test_a_corrupt_first_line_has_no_time(tmp_path):
    """It counts, but does not say when it happened."""
    _left_behind(tmp_path, 1)
    [path] = tmp_path.rglob("*.ndjson")
    path.write_bytes(b"garbage\n")
    (path.parent / "cursor.json").unlink(missing_ok=True)
    [store] = SpoolStatus.read(tmp_path).stores
    assert (store.events, store.oldest) == (1, None)

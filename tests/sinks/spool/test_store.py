"""What a process has on disk: recovered after a kill at any instant, adopted once, damaged without harm to the rest."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from outfall.sinks.core.item import data_in
from outfall.sinks.core.lock import WriteLock
from outfall.sinks.errors import SinkError
from outfall.sinks.spool import store as stores
from outfall.sinks.spool.cursor import Cursor, CursorFile, NewerFormatError
from outfall.sinks.spool.segments import Appender
from outfall.sinks.spool.store import Store, owner_of, stores_in
from outfall.sinks.spool.stores import Depot
from tests.sinks._kills import Journal
from tests.sinks._processes import in_fork


def write_cursor(path, cursor):
    """Have the store at *path* say that it is delivered up to *cursor*."""
    file = CursorFile(path)
    file.write(cursor)
    file.close()


def _depot(directory, **options):
    given = {"max_bytes": 10**6, "segment_bytes": 40, "drops_oldest": False, "sync": False, **options}
    return Depot(str(directory), WriteLock(), **given)


def _append(depot, *numbers, by="w"):
    for number in numbers:
        with depot._lock:
            assert depot.append(b'{"by":"%b","n":%d}\n' % (by.encode(), number))


def _next(depot, lines):
    depot.tidy()
    return depot.next(lines, 10**6)


def _deliver(depot, *, lines=2, note=None, most=10**6):
    """Deliver what there is, *lines* at a time, and return it."""
    delivered = []
    while most and (found := _next(depot, lines)) is not None:
        store, portion = found
        depot.begin(store, portion)
        events = [json.loads(data_in(raw)) for raw in portion.raws]
        if note is not None:
            note(json.dumps({"key": portion.key, "events": events}))
        depot.settle(store, portion)
        delivered += events
        most -= 1
    depot.tidy()
    return delivered


def _numbers(events):
    return [event["n"] for event in events]


def _only_store(directory):
    [path] = stores_in(str(directory))
    return Path(path)


def _left_behind(directory, numbers, *, delivered=0, **options):
    """Have a process die with these events in a store, some of them delivered; return the store's path."""

    def live_and_die():
        depot = _depot(directory, **options)
        _append(depot, *numbers)
        assert len(_deliver(depot, lines=1, most=delivered)) == delivered

    before = set(stores_in(str(directory)))
    in_fork(live_and_die)
    [path] = set(stores_in(str(directory))) - before
    return Path(path)


def test_two_who_start_at_once_adopt_a_store_once(tmp_path):
    """Of several processes that find the same dead stores, each store has one new owner."""
    for round_ in range(5):
        directory = tmp_path / str(round_)
        directory.mkdir()
        for number in range(4):
            _left_behind(directory, [number])
        journal = Journal(tmp_path / f"{round_}.journal")
        ready_reader, ready_writer = os.pipe()
        pids = []
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                try:
                    os.read(ready_reader, 1)
                    depot = _depot(directory)
                    depot.adopt()
                    depot.adopt()
                    for event in _deliver(depot):
                        journal.note(json.dumps(event["n"]))
                    depot.close()
                finally:
                    os._exit(0)
            pids.append(pid)
        os.write(ready_writer, b"123")
        for pid in pids:
            os.waitpid(pid, 0)
        os.close(ready_reader)
        os.close(ready_writer)
        assert sorted(journal.lines()) == ["0", "1", "2", "3"]
        journal.close()


# -- owners


def test_a_store_belongs_to_one_process_while_it_lives(tmp_path):
    """What has an owner is not adopted, in the same process or another; what has lost it is."""
    depot = _depot(tmp_path)
    _append(depot, 1)
    path = _only_store(tmp_path)
    assert owner_of(path.name) == os.getpid()
    other = _depot(tmp_path)
    other.adopt()
    assert not other.adopted
    in_fork(lambda: _depot(tmp_path).adopt())
    depot.close()
    other.adopt()
    assert (len(other.adopted), other.adopted_events) == (1, 1)
    assert _numbers(_deliver(other)) == [1]
    assert stores_in(str(tmp_path)) == []
    other.close()


def test_a_forked_child_does_not_keep_the_parents_store(tmp_path):
    """The lock is the parent's alone: it ends with the parent's, though a child lives on."""
    depot = _depot(tmp_path)
    _append(depot, 1)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            depot.forget()
            os.close(writer)
            os.read(reader, 1)
        finally:
            os._exit(0)
    depot.close()
    other = _depot(tmp_path)
    other.adopt()
    assert other.adopted_events == 1
    os.close(writer)
    os.close(reader)
    os.waitpid(pid, 0)
    other.close()


def test_names_that_are_no_stores_are_left_alone(tmp_path):
    """Files and directories of others in a spool's directory are not touched."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "00000000000000000001-1-00000000").touch()
    (tmp_path / "notes.txt").touch()
    depot = _depot(tmp_path)
    depot.adopt()
    assert not depot.adopted
    assert Store.adopt(str(tmp_path / "mine")) is None
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(SinkError, match="'mine' is no name of a store"):
        owner_of("mine")
    assert stores_in(str(tmp_path / "nowhere")) == []


def test_a_new_store_that_is_taken_for_a_dead_one_is_made_again(tmp_path, monkeypatch):
    """Between being made and being locked it may be adopted, and removed since it is empty: then another is made."""
    real, stolen = stores._locked, []

    def steal(path):
        if not stolen:
            stolen.append(path)
            other = _depot(tmp_path)
            with monkeypatch.context() as patch:
                patch.setattr(stores, "_locked", real)
                other.adopt()
                other.tidy()
                other.close()
        return real(path)

    monkeypatch.setattr(stores, "_locked", steal)
    depot = _depot(tmp_path)
    _append(depot, 1)
    assert stores_in(str(tmp_path)) != stolen
    assert _numbers(_deliver(depot)) == [1]
    depot.close()


def test_an_empty_store_is_removed(tmp_path):
    """A process that was killed before its first event leaves nothing that stays."""
    in_fork(lambda: Store.create(str(tmp_path)))
    depot = _depot(tmp_path)
    depot.adopt()
    depot.tidy()
    assert stores_in(str(tmp_path)) == []
    assert not depot.adopted


def test_older_stores_come_first(tmp_path, monkeypatch):
    """Of several dead stores the one that was made first is delivered first; a clock set back only changes that."""
    times = iter([3, 1, 2])
    for number in (3, 1, 2):
        monkeypatch.setattr(stores.time, "time_ns", lambda: next(times) * 10**18)
        depot = _depot(tmp_path)
        _append(depot, number)
        depot.close()
    depot = _depot(tmp_path)
    depot.adopt()
    assert _numbers(_deliver(depot)) == [1, 2, 3]


def test_own_and_adopted_events_take_turns(tmp_path):
    """Neither what is new nor what was left has to wait for all of the other."""
    _left_behind(tmp_path, range(100, 106))
    depot = _depot(tmp_path)
    _append(depot, *range(6))
    depot.adopt()
    assert _numbers(_deliver(depot, lines=1)) == [0, 100, 1, 101, 2, 102, 3, 103, 4, 104, 5, 105]
    depot.close()


# -- the batch in flight


@pytest.mark.parametrize("lines", [1, 3, 50])
def test_what_was_in_flight_comes_again_as_it_was(tmp_path, lines):
    """The same events under the same key, though batches have another size now."""
    keys = Journal(tmp_path / "journal")

    def live_and_die():
        depot = _depot(tmp_path / "spool", segment_bytes=10**6)
        _append(depot, *range(10))
        _deliver(depot, lines=2, most=1)
        store, portion = depot.next(4, 10**6)
        depot.begin(store, portion)
        keys.note(portion.key)

    in_fork(live_and_die)
    depot = _depot(tmp_path / "spool")
    depot.adopt()
    assert depot.adopted_events == 8
    store, portion = depot.next(lines, 1)
    assert [json.loads(data_in(raw))["n"] for raw in portion.raws] == [2, 3, 4, 5]
    assert [portion.key] == keys.lines()
    # Given back, it comes again.
    depot.leave()
    assert depot.next(lines, 1) == (store, portion)
    depot.begin(store, portion)
    depot.settle(store, portion)
    assert _numbers(_deliver(depot)) == [6, 7, 8, 9]
    keys.close()


def test_what_rests_is_not_sent_again(tmp_path):
    """Once the cursor says that all is settled, a kill repeats nothing."""

    def live_and_die():
        depot = _depot(tmp_path)
        _append(depot, *range(10))
        _deliver(depot)
        depot.rest()

    in_fork(live_and_die)
    depot = _depot(tmp_path)
    depot.adopt()
    assert depot.adopted_events == 0
    assert _deliver(depot) == []
    depot.tidy()
    assert stores_in(str(tmp_path)) == []


# -- damage


def test_a_corrupt_line_costs_itself_alone(tmp_path):
    """Lines that are no events are passed over and counted, wherever they are."""
    path = _left_behind(tmp_path, range(10), segment_bytes=10**6)
    segment = path / "00000001.v1.ndjson"
    with segment.open("rb") as file:
        lines = file.read().splitlines(keepends=True)
    lines[0] = b"garbage\n"
    lines[4] = lines[4].replace(b"n", b"\xff")
    lines[9] = lines[9][:5]
    with segment.open("wb") as file:
        file.writelines(lines)
    depot = _depot(tmp_path)
    depot.adopt()
    assert _numbers(_deliver(depot)) == [1, 2, 3, 5, 6, 7, 8]
    assert (depot.adopted_events, dict(depot.lost)) == (10, {"corrupt": 3})
    assert sum(events for _, events in depot.news) == 3


@pytest.mark.parametrize("zeros", [1, 20, 4096, 2**20])
def test_a_zeroed_tail_costs_what_it_has_overwritten(tmp_path, zeros):
    """As a loss of power leaves it: zeros in the place of the last lines."""
    path = _left_behind(tmp_path, range(10), segment_bytes=10**6)
    segment = path / "00000001.v1.ndjson"
    with segment.open("r+b") as file:
        file.seek(-20, os.SEEK_END)
        file.write(b"\0" * zeros)
    depot = _depot(tmp_path)
    depot.adopt()
    events = _numbers(_deliver(depot))
    # The last line was one zero longer than its end is overwritten with; with less it is a whole one again.
    assert events[:8] == list(range(8))
    assert depot.adopted_events == len(events) + depot.lost["corrupt"]
    assert depot.lost["corrupt"] >= 1
    assert stores_in(str(tmp_path)) == []


def test_events_beside_zeros_are_kept(tmp_path):
    """Where zeros stand in the place of whole lines, the events before and after them are delivered."""
    path = _left_behind(tmp_path, [1], segment_bytes=10**6)
    with (path / "00000001.v1.ndjson").open("ab") as file:
        file.write(b'{"n":2}' + b"\0" * 30 + b'{"n":3}\n\0\0\0{"n":4}\n{"n":5}\n')
    depot = _depot(tmp_path)
    depot.adopt()
    assert _numbers(_deliver(depot)) == [1, 2, 3, 4, 5]
    # More events than lines: the account has both.
    assert depot.adopted_events == 5
    assert not depot.lost["corrupt"]


@pytest.mark.parametrize("content", [None, b"", b"garbage", b"\0" * 256])
def test_without_a_cursor_it_begins_with_what_is_there(tmp_path, content):
    """A cursor that is missing or garbled costs a repetition, and is told of."""
    path = _left_behind(tmp_path, range(10), delivered=5)
    (path / "cursor.json").unlink()
    if content is not None:
        (path / "cursor.json").write_bytes(content)
    depot = _depot(tmp_path)
    depot.adopt()
    [(error, events)] = depot.news
    assert ("missing" if content is None else "garbled") in str(error)
    assert events == 0
    # Two to a segment: the first two segments are no more.
    assert _numbers(_deliver(depot)) == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (Cursor(1, 10**6), "ahead of the data"),
        (Cursor(9, 3), "ahead of the data"),
        (Cursor(9, 0), "ahead of the data"),
        (Cursor(1, 17, 10**6, "key"), "ahead of the data"),
        (Cursor(1, 5), "into the midst of a line"),
        (Cursor(1, 17, 20, "key"), "into the midst of a line"),
    ],
)
def test_a_cursor_that_cannot_be_right_is_not_believed(tmp_path, place, wrong):
    """Ahead of the data, or between lines: what is there is delivered from its beginning, and it is told of."""
    path = _left_behind(tmp_path, range(10), segment_bytes=10**6)
    write_cursor(str(path), place)
    depot = _depot(tmp_path)
    depot.adopt()
    [(error, _)] = depot.news
    assert wrong in str(error)
    assert _numbers(_deliver(depot)) == list(range(10))


@pytest.mark.parametrize("place", [Cursor(2, 0), Cursor(1, 170)])
def test_a_cursor_past_the_end_of_all_means_all_is_settled(tmp_path, place):
    """As a kill leaves it between the last cursor and the removal of the last segment."""
    path = _left_behind(tmp_path, range(10), segment_bytes=10**6)
    write_cursor(str(path), place)
    depot = _depot(tmp_path)
    depot.adopt()
    assert (depot.news, _deliver(depot)) == ([], [])
    depot.tidy()
    assert stores_in(str(tmp_path)) == []


def test_the_cursor_moves_on_when_its_segment_was_given_up(tmp_path):
    """A segment that on_full has removed is passed over."""
    path = _left_behind(tmp_path, range(10))
    write_cursor(str(path), Cursor(1, 17, 34, "key"))
    (path / "00000001.v1.ndjson").unlink()
    depot = _depot(tmp_path)
    depot.adopt()
    assert depot.news == []
    assert _numbers(_deliver(depot)) == [2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("name", ["00000009.v2.ndjson", "cursor.json"])
def test_a_later_format_is_left_alone_and_told_once(tmp_path, name):
    """What a later version has written stays as it is, for that version; the rest is adopted."""
    path = _left_behind(tmp_path, [1])
    with (path / name).open("w") as file:
        file.write('{"format":2}')
    _left_behind(tmp_path, [2])
    before = sorted(path.iterdir())
    depot = _depot(tmp_path)
    depot.adopt()
    depot.adopt()
    [(error, _)] = depot.news
    assert isinstance(error, NewerFormatError)
    assert _numbers(_deliver(depot)) == [2]
    assert sorted(path.iterdir()) == before
    depot.close()


def test_numbers_of_segments_are_never_used_again(tmp_path):
    """After all segments were removed by somebody, new ones are not taken for old ones by the cursor."""
    depot = _depot(tmp_path)
    _append(depot, *range(6))
    _deliver(depot, lines=1, most=5)
    path = _only_store(tmp_path)
    depot.out.close()
    depot.own._reader.forget()
    for segment in path.glob("*.ndjson"):
        segment.unlink()
    depot.check()
    assert depot.lost["lost"] == 1
    _append(depot, 6, 7)
    depot.close()
    other = _depot(tmp_path)
    other.adopt()
    assert _numbers(_deliver(other)) == [6, 7]


# -- files removed under it


def test_a_deleted_directory_is_made_anew(tmp_path):
    """What is open is written again where it was; what was only on disk is counted as lost."""
    depot = _depot(tmp_path / "spool")
    _append(depot, *range(6))
    # Two to a segment: the first is read, the last is written, the second is closed.
    assert _numbers(_deliver(depot, lines=1, most=1)) == [0]
    shutil.rmtree(tmp_path / "spool")
    depot.check()
    _append(depot, 6)
    assert dict(depot.lost) == {"lost": 2}
    assert sum(events for _, events in depot.news) == 2
    # Somebody else finds it after a death.
    depot.rest()
    depot.close()
    other = _depot(tmp_path / "spool")
    other.adopt()
    assert _numbers(_deliver(other)) == [1, 4, 5, 6]


def test_a_directory_moved_away_is_made_anew(tmp_path):
    """Moved is as deleted: events go where the directory should be."""
    depot = _depot(tmp_path / "spool")
    _append(depot, 1)
    (tmp_path / "spool").rename(tmp_path / "elsewhere")
    depot.check()
    _append(depot, 2)
    path = _only_store(tmp_path / "spool")
    with (path / "00000001.v1.ndjson").open("rb") as file:
        assert len(file.readlines()) == 2
    assert _numbers(_deliver(depot)) == [1, 2]
    depot.close()


def test_what_cannot_be_on_disk_is_not_taken(tmp_path):
    """While the directory can not be made anew, append raises; afterwards it goes on by itself."""
    depot = _depot(tmp_path / "spool")
    _append(depot, 1)
    shutil.rmtree(tmp_path / "spool")
    (tmp_path / "spool").touch()
    depot.check()
    depot.check()
    with pytest.raises(OSError, match="Not a directory"):
        _append(depot, 2)
    assert len(depot.news) == 1, "told once"
    # What it has open it delivers meanwhile.
    (tmp_path / "spool").unlink()
    depot.check()
    _append(depot, 3)
    assert _numbers(_deliver(depot)) == [1, 3]
    depot.close()


def test_an_adopted_store_that_vanishes_is_lost(tmp_path):
    """What somebody removes while it waits is counted, and does not stop the rest."""
    path = _left_behind(tmp_path, range(6))
    depot = _depot(tmp_path)
    depot.adopt()
    _append(depot, 10)
    assert _numbers(_deliver(depot, lines=1, most=1)) == [10]
    shutil.rmtree(path)
    with pytest.raises(FileNotFoundError):
        depot.next(1, 100)
    assert _deliver(depot) == []
    depot.tidy()
    assert not depot.adopted
    assert (depot.adopted_events, dict(depot.lost)) == (6, {"lost": 6})
    depot.close()


def test_a_segment_cut_by_somebody_costs_what_was_cut(tmp_path):
    """As `> file` does it: what is gone is counted, and new events are read where they are."""
    depot = _depot(tmp_path, segment_bytes=10**6)
    _append(depot, *range(4))
    assert _numbers(_deliver(depot, lines=2, most=1)) == [0, 1]
    path = _only_store(tmp_path)
    os.truncate(path / "00000001.v1.ndjson", 0)
    _append(depot, 4)
    depot.check()
    _append(depot, 5)
    assert _numbers(_deliver(depot)) == [4, 5]
    depot.settle_missing()
    assert depot.lost["corrupt"] == 2
    assert depot.waiting() == 0
    depot.close()
    assert stores_in(str(tmp_path)) == []


def test_lines_appended_by_somebody_are_delivered_too(tmp_path):
    """They are events like others, and accounted for."""
    depot = _depot(tmp_path, segment_bytes=10**6)
    _append(depot, 1)
    path = _only_store(tmp_path)
    with (path / "00000001.v1.ndjson").open("ab") as file:
        file.write(b'{"n":2}\n')
    depot.check()
    _append(depot, 3)
    assert _numbers(_deliver(depot)) == [1, 2, 3]
    assert depot.out.events == 3
    assert depot.waiting() == 0
    depot.close()


# -- bounds


def test_there_is_no_room_beyond_the_bound(tmp_path):
    """append says so, until something is delivered."""
    depot = _depot(tmp_path, max_bytes=100)
    _append(depot, *range(5))  # 17 bytes each
    with depot._lock:
        assert not depot.append(b'{"by":"w","n":6}\n')
    assert depot.size == 85
    _deliver(depot, lines=1, most=2)
    _append(depot, 6)
    assert _numbers(_deliver(depot)) == [2, 3, 4, 6]
    depot.close()


def test_one_full_segment_makes_room_when_it_is_delivered(tmp_path):
    """What is written to can be removed as well, once all in it is delivered."""
    depot = _depot(tmp_path, max_bytes=40, segment_bytes=40)
    for number in range(20):
        _append(depot, number)
        if number % 2:
            with depot._lock:
                assert not depot.append(b'{"by":"w","n":100}\n')
            assert _numbers(_deliver(depot)) == [number - 1, number]
    depot.close()


def test_the_oldest_segment_makes_room(tmp_path):
    """Under that policy the oldest goes, adopted ones first, but not the one that is being delivered."""
    _left_behind(tmp_path, range(100, 104))
    depot = _depot(tmp_path, max_bytes=150, drops_oldest=True)
    depot.adopt()
    assert depot.size == 76
    _append(depot, *range(4))
    store, portion = depot.next(1, 1000)
    assert store is depot.own
    depot.begin(store, portion)
    _append(depot, *range(4, 20))
    depot.settle(store, portion)
    left = _numbers(_deliver(depot))
    assert left[0] == 1  # of the segment that was being delivered
    assert left[1:] == list(range(20 - len(left) + 1, 20))
    assert depot.adopted_events == 4
    assert depot.lost["overflow"] == 24 - 1 - len(left)
    assert sum(events for _, events in depot.news) == depot.lost["overflow"]
    assert depot.size <= 150
    depot.close()


def test_given_up_segments_are_passed_over_after_a_kill(tmp_path):
    """The cursor is behind then, and not mistaken."""

    def live_and_die():
        depot = _depot(tmp_path, max_bytes=100, drops_oldest=True)
        _append(depot, *range(3))
        _deliver(depot, lines=1, most=1)
        _append(depot, *range(3, 20))

    in_fork(live_and_die)
    depot = _depot(tmp_path)
    depot.adopt()
    assert depot.news == []
    events = _numbers(_deliver(depot))
    assert events == list(range(20 - len(events), 20))
    assert len(events) >= 3


def test_a_new_segment_that_cannot_be_made_is_no_loss(tmp_path, monkeypatch):
    """Events go on into the one that is open, and it is told of; not with every event."""
    depot = _depot(tmp_path)
    _append(depot, 1, 2)

    def fail(_path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(Appender, "create", staticmethod(fail))
        _append(depot, *range(3, 9))
        assert 1 <= len(depot.news) < 6
        assert _numbers(_deliver(depot)) == list(range(1, 9))
    _append(depot, *range(9, 20))
    assert _numbers(_deliver(depot)) == list(range(9, 20))
    assert len(depot.own.segments) < 3
    depot.close()


def test_a_file_that_an_interrupt_has_left_is_passed_by(tmp_path):
    """The number of a segment that was made and then not used is not used again."""
    depot = _depot(tmp_path)
    _append(depot, 1, 2)
    path = _only_store(tmp_path)
    (path / "00000002.v1.ndjson").touch()
    _append(depot, 3)
    assert (path / "00000003.v1.ndjson").exists()
    assert _numbers(_deliver(depot)) == [1, 2, 3]
    depot.close()
    assert stores_in(str(tmp_path)) == []


# -- interrupts


def test_what_a_signal_handler_stores_in_the_midst_of_all_is_stored(tmp_path, monkeypatch):
    """At any call of the system that storing makes, another event may be stored by the same thread."""
    for call in range(60):
        depot = _depot(tmp_path / str(call))
        left = [call]
        with monkeypatch.context() as patch:
            for name in ("open", "write", "close", "mkdir"):
                real = getattr(os, name)

                def interrupted(*args, real=real, depot=depot, left=left, **kwargs):
                    left[0] -= 1
                    if left[0] == -1:
                        _append(depot, 1000)
                    result = real(*args, **kwargs)
                    left[0] -= 1
                    if left[0] == -1:
                        _append(depot, 1000)
                    return result

                patch.setattr(os, name, interrupted)
            _append(depot, *range(9))
        events = _numbers(_deliver(depot))
        assert [number for number in events if number != 1000] == list(range(9))
        assert depot.out.events == len(events)
        assert depot.waiting() == 0
        assert (1000 in events) == (left[0] < 0)
        depot.close()
    assert left[0] > 0, "not all places were tried"


def test_threads_append_while_one_delivers(tmp_path):
    """Nothing is lost, torn or out of order."""
    depot = _depot(tmp_path, segment_bytes=500)

    def write(by):
        _append(depot, *range(300), by=by)

    threads = [threading.Thread(target=write, args=(f"t{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    events = []
    while any(thread.is_alive() for thread in threads):
        events += _deliver(depot, lines=7)
    events += _deliver(depot, lines=7)
    for number in range(4):
        assert [event["n"] for event in events if event["by"] == f"t{number}"] == list(range(300))
    assert depot.waiting() == 0
    depot.close()
    assert stores_in(str(tmp_path)) == []


# -- the medium


def test_synced_at_once(tmp_path, monkeypatch):
    """With sync every event is on the medium when append returns, and every cursor when a batch is begun."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    depot = _depot(tmp_path, sync=True)
    _append(depot, 1)
    path = _only_store(tmp_path)
    # The first cursor and its name, the new segment's name, and then what is in it.
    assert synced == [path / "cursor.json", path, path, path / "00000001.v1.ndjson"]
    synced.clear()
    store, portion = depot.next(1, 100)
    depot.begin(store, portion)
    assert synced == [path / "cursor.json"]
    depot.close()


def test_synced_when_asked(tmp_path, monkeypatch):
    """sync has all written that was appended since the last one, segments that are full by now included."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    depot = _depot(tmp_path)
    depot.sync()
    _append(depot, *range(4))
    _deliver(depot, lines=1, most=1)
    assert synced == []
    depot.sync()
    path = _only_store(tmp_path)
    names = {str(name.relative_to(path)) for name in synced}
    assert names == {"00000001.v1.ndjson", "00000002.v1.ndjson", "cursor.json", "."}
    depot.close()


def test_an_appender_without_a_file_is_no_trouble(tmp_path):
    """Nothing to check, nothing to sync, nothing to remove before the first event."""
    depot = _depot(tmp_path)
    depot.check()
    depot.tidy()
    depot.rest()
    depot.retire()
    depot.settle_missing()
    assert depot.waiting() == 0
    assert isinstance(depot.out, Appender)
    depot.close()
    assert list(tmp_path.iterdir()) == []


def test_retiring_leaves_nothing_behind(tmp_path):
    """At exit a store in which all is settled is removed; the next event makes another."""
    depot = _depot(tmp_path)
    _append(depot, *range(4))
    depot.retire()
    assert len(stores_in(str(tmp_path))) == 1, "there is something in it"
    _deliver(depot)
    depot.retire()
    assert stores_in(str(tmp_path)) == []
    _append(depot, 4)
    assert depot.out.events == 5
    assert _numbers(_deliver(depot)) == [4]
    depot.close()


def test_a_kill_repeats_one_batch_though_there_are_many_stores(tmp_path):
    """Before a batch of one store is sent, that of another is recorded as settled."""
    _left_behind(tmp_path, range(100, 110), segment_bytes=10**6)

    def live_and_die():
        depot = _depot(tmp_path, segment_bytes=10**6)
        _append(depot, *range(10))
        depot.adopt()
        assert _numbers(_deliver(depot, lines=2, most=3)) == [0, 1, 100, 101, 2, 3]

    in_fork(live_and_die)
    depot = _depot(tmp_path)
    depot.adopt()
    events = _numbers(_deliver(depot))
    assert sorted(events) == [*range(2, 10), *range(102, 110)], "only the last batch is repeated"

"""How often a directory is listed: once for all sinks that are opened in it one after another."""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path

import pytest

from outfall import RotatingFileSink, TimedRotatingFileSink
from outfall.sinks.files import listing
from outfall.sinks.files.compression import Compressor
from outfall.sinks.files.listing import names_in

SINKS = {
    "size": lambda path: RotatingFileSink(path, max_bytes=1000),
    "size, compressed": lambda path: RotatingFileSink(path, max_bytes=1000, compression="gzip"),
    "time": TimedRotatingFileSink,
    "time, kept": lambda path: TimedRotatingFileSink(path, backup_count=3),
    "dated": lambda path: TimedRotatingFileSink(f"{path}-{{date:%Y-%m-%d}}", when="midnight", backup_count=3),
}


@pytest.fixture
def listings(monkeypatch):
    """Count how often directories are listed, and the names looked at for a rotated file."""
    counts = {"listed": 0, "looked at": 0}

    def counted(function, what):
        def call(*args):
            counts[what] += 1
            return function(*args)

        return call

    # As of a file system that stamps each change by itself, whether or not this one does.
    monkeypatch.setattr(listing, "_lasts", lambda stamp: True)
    # Its thread looks too, at moments of its own.
    monkeypatch.setattr(Compressor, "start", lambda self: None)
    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, counted(getattr(os, name), "listed"))
    for kind in (RotatingFileSink, TimedRotatingFileSink):
        monkeypatch.setattr(kind, "_as_rotated", counted(kind._as_rotated, "looked at"))
    return counts


@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
@pytest.mark.parametrize("make", SINKS)
def test_many_sinks_in_one_directory_share_a_listing(tmp_path, listings, make, there):
    """What each of them costs does not grow with how many there are."""
    paths = [tmp_path / f"{number}.log" for number in range(40)]
    if there:
        for path in paths:
            with SINKS[make](path) as sink:
                sink.handle({"event": "x"})
            path.with_name(f"{path.name}.1.gz").touch()
        listings.update(dict.fromkeys(listings, 0))
    sinks = [SINKS[make](path) for path in paths]
    assert listings["listed"] <= 2
    assert listings["looked at"] <= 4 * len(paths)
    for sink in sinks:
        sink.close()


def test_a_listing_is_never_older_than_the_directory(tmp_path):
    """What others add, rename or remove is seen by the next look, also between two sinks that are opened."""
    (tmp_path / "a.1").touch()
    assert names_in(str(tmp_path)) == ["a.1"]
    with RotatingFileSink(tmp_path / "a"):
        assert names_in(str(tmp_path), "a") == ["a", "a.1"]
    (tmp_path / "a.1").rename(tmp_path / "a.2")
    with RotatingFileSink(tmp_path / "b"):
        assert names_in(str(tmp_path), "a.") == ["a.2"]
    (tmp_path / "a.2").unlink()
    assert names_in(str(tmp_path)) == ["a", "b"]


def test_a_file_that_another_thread_opens_meanwhile_makes_no_name_come_twice(tmp_path, monkeypatch):
    """Retention would count that file's bytes twice, and delete another one early."""

    class Name(str):
        __slots__ = ()

        def startswith(self, *args):
            if not (tmp_path / "a.0").exists():
                with listing.kept_up(str(tmp_path / "a.0")):
                    (tmp_path / "a.0").touch()
            return super().startswith(*args)

    monkeypatch.setattr(listing, "_lasts", lambda stamp: True)
    for name in ("a.1", "a.2"):
        (tmp_path / name).touch()
    names_in(str(tmp_path))
    listing._last[0].names[:] = map(Name, ("a.1", "a.2"))
    assert names_in(str(tmp_path), "a.") == ["a.1", "a.2"]
    assert names_in(str(tmp_path), "a.") == ["a.0", "a.1", "a.2"]


def test_retention_at_the_start_sees_what_came_since_the_last_sink(tmp_path):
    """Though the directory has been listed for that one a moment ago."""
    for number in range(5):
        path = tmp_path / f"{number}.log"
        for backup in range(1, 5):
            path.with_name(f"{path.name}.{backup}").touch()
        RotatingFileSink(path, max_bytes=1000, backup_count=2).close()
        assert sorted(each.name for each in tmp_path.glob(f"{number}.*")) == [
            path.name,
            *(f"{path.name}.{n}" for n in (1, 2)),
        ]


def test_a_clock_of_coarse_ticks_makes_no_listing_last(tmp_path, monkeypatch):
    """Two changes within a tick have one stamp there: nobody can tell that a name has come since the listing."""
    monkeypatch.setattr(listing, "_stamp_of", lambda directory: (0, 0, time.time_ns() // 10**9 * 10**9 + 10**9))
    monkeypatch.setattr(listing, "_fine", set())
    for number in range(5):
        (tmp_path / f"a.{number}").touch()
        with RotatingFileSink(tmp_path / f"b{number}"):
            assert len(names_in(str(tmp_path), "a.")) == number + 1


@pytest.mark.parametrize("name", ["app.log", "app-{date:%Y-%m-%d}.log"], ids=["plain", "dated"])
def test_a_rollover_by_time_looks_for_rotated_files_once(tmp_path, monkeypatch, name):
    """For the free name and for retention, which keeps the newest files."""
    looks = []

    def counted(*args):
        looks.append(args)
        return names_in(*args)

    monkeypatch.setattr("outfall.sinks.files.rotating.names_in", counted)
    with TimedRotatingFileSink(tmp_path / name, when="midnight", backup_count=3) as sink:
        for number in range(6):
            sink.handle({"n": number})
            looks.clear()
            sink.do_rollover()
            assert len(looks) == 1
            assert len(sink.rotated_files()) == min(number + 1, 3)
        assert [Path(file.path).read_text() for file in sink.rotated_files()] == [f'{{"n":{n}}}\n' for n in (5, 4, 3)]


def test_retention_by_time_finds_what_a_rotator_gave_another_name(tmp_path):
    """A rotator that compresses by itself adds an ending of its own."""

    def compress(source, dest):
        Path(f"{dest}.gz").write_bytes(gzip.compress(Path(source).read_bytes()))
        Path(source).unlink()

    with TimedRotatingFileSink(tmp_path / "app.log", when="midnight", backup_count=2, rotator=compress) as sink:
        for number in range(5):
            sink.handle({"n": number})
            sink.do_rollover()
            assert len(list(tmp_path.glob("app.log.*.gz"))) == min(number + 1, 2)
        assert [gzip.decompress(Path(file.path).read_bytes()) for file in sink.rotated_files()] == [
            b'{"n":4}\n',
            b'{"n":3}\n',
        ]

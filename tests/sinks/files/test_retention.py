"""How many rotated files are kept: backup_count, max_age, max_total_bytes, and which files are a sink's own."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import time_machine

from outfall import RotatingFileSink, TimedRotatingFileSink
from tests.sinks._rotated import by_name, in_order, line

if TYPE_CHECKING:
    from outfall.sinks.core.reporting import SinkFailure


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file, in a directory of its own."""
    return tmp_path / "app.log"


@pytest.fixture
def failures() -> list[SinkFailure]:
    """What on_error is told."""
    return []


def _write(sink: RotatingFileSink, *numbers: int) -> None:
    for number in numbers:
        sink.handle(line(number))


def _make(path: Path, *endings: str, size: int = 20, age: float = 0) -> None:
    """Make rotated files of *path*; each is an hour older than the one before, beginning with *age* seconds."""
    for position, ending in enumerate(endings):
        file = Path(f"{path}{ending}")
        file.write_bytes(b"x" * (size - 1) + b"\n")
        when = time.time() - age - 3600 * position
        os.utime(file, (when, when))


def _endings(path: Path) -> list[str]:
    return sorted(file.name.removeprefix(path.name) for file in path.parent.iterdir() if file != path)


NUMBERED = (".1", ".2", ".3.gz", ".4")
DATED = (".2024-02-28", ".2024-02-27.1", ".2024-02-27.gz", ".2024-02-25")
KINDS = pytest.mark.parametrize(
    ("make", "rotated"), [(RotatingFileSink, NUMBERED), (TimedRotatingFileSink, DATED)], ids=["numbered", "dated"]
)


def _sink(make: type, path: Path, **options: Any) -> Any:
    return make(path, **({"when": "midnight"} if make is TimedRotatingFileSink else {}), **options)


@KINDS
@pytest.mark.parametrize(
    ("bound", "kept"),
    [
        ({}, 4),
        ({"backup_count": 3}, 3),
        ({"backup_count": 9}, 4),
        ({"max_age": 2.5 * 3600}, 3),
        ({"max_age": dt.timedelta(minutes=90)}, 2),
        ({"max_age": dt.timedelta(days=1)}, 4),
        ({"max_total_bytes": 80}, 4),
        ({"max_total_bytes": 79}, 3),
        ({"max_total_bytes": 39}, 1),
        ({"max_total_bytes": 0}, 0),
        ({"backup_count": 3, "max_age": 1.5 * 3600, "max_total_bytes": 1000}, 2),
        ({"backup_count": 1, "max_age": 1.5 * 3600, "max_total_bytes": 1000}, 1),
        ({"backup_count": 3, "max_age": 1.5 * 3600, "max_total_bytes": 20}, 1),
    ],
    ids=str,
)
def test_a_start_deletes_the_oldest_beyond_any_bound(path, make, rotated, bound, kept):
    """Each bound acts at construction, whichever is exceeded first decides, and the newest are kept."""
    _make(path, *rotated)
    _sink(make, path, **bound).close()
    assert _endings(path) == sorted(rotated[:kept])


def test_each_rollover_deletes_what_is_too_old(path):
    """max_age goes by the last write of each file."""
    with RotatingFileSink(path, max_bytes=20, max_age=5000) as sink:
        _make(path, ".1", ".2", ".3", age=1000)
        _write(sink, 1, 2)
    assert _endings(path) == [".1", ".2", ".3"]  # .1 is new, .2 was .1 and .3 was .2; .4 is 8200 s old


def test_each_rollover_deletes_what_is_too_much(path):
    """max_total_bytes counts the rotated files, the new one too."""
    with RotatingFileSink(path, max_bytes=20, max_total_bytes=60) as sink:
        _write(sink, *range(10))
    assert by_name(path.parent) == {"app.log": [9], "app.log.1": [8], "app.log.2": [7], "app.log.3": [6]}


def test_a_rollover_by_hand_applies_retention_as_well(path):
    """do_rollover keeps the bounds, whoever calls it."""
    with RotatingFileSink(path, max_total_bytes=40) as sink:
        for number in range(6):
            _write(sink, number)
            sink.do_rollover()
    assert by_name(path.parent) == {"app.log": [], "app.log.1": [5], "app.log.2": [4]}


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_file_that_stands_twice_counts_once(path, compression):
    """A kill while a compressed file took the plain one's place costs no older file."""
    _make(path, ".1", ".2", ".3")
    Path(f"{path}.2.gz").touch()
    state = Path(f"{path}.2").stat()
    os.utime(f"{path}.2.gz", ns=(state.st_atime_ns, state.st_mtime_ns))
    with RotatingFileSink(path, max_bytes=1000, backup_count=3) as sink:
        assert _endings(path) == [".1", ".2.gz", ".3"]
        assert sink.stats().last_error is None


def test_a_directory_of_lookalikes_of_numbered_files_keeps_them_all(path):
    """What the sink would not name so itself is never deleted, shifted or compressed."""
    lookalikes = [
        "app.log.bak",
        "app.log.1.bak",
        "app.log.1_extra",
        "app.log.01",
        "app.log.0",
        "app.log.-1",
        "app.log.1.gz.gz",
        "app.log.1.xz",
        "app.log.1 ",
        "app.log.1.2",
        "app.log1",
        "app.log.2024-01-01",
        "app.log.１",  # noqa: RUF001 - a digit, but not one of ours
        "xapp.log.1",
        "app.logs.1",
        "APP.LOG.1",
        "app-worker.log.1",
        ".app.log.1",
        "1",
    ]
    for name in lookalikes:
        path.with_name(name).write_text(name)
    path.with_name("app.log.7").mkdir()
    path.with_name("target").write_text("precious")
    path.with_name("app.log.9").symlink_to("target")
    path.with_name("app.log.11").symlink_to("nowhere")
    _make(path, ".5", ".6")
    options = {"backup_count": 1, "max_age": 10, "max_total_bytes": 1, "compression": "gzip"}
    with RotatingFileSink(path, max_bytes=20, **options) as sink:
        assert not path.with_name("app.log.5").exists()
        _write(sink, *range(5))
        sink.namer = None
    assert {name: path.with_name(name).read_text() for name in lookalikes} == {name: name for name in lookalikes}
    assert path.with_name("app.log.7").is_dir()
    assert path.with_name("target").read_text() == "precious"
    assert path.with_name("app.log.9").is_symlink()
    assert path.with_name("app.log.11").is_symlink()


def test_a_directory_of_lookalikes_of_dated_files_keeps_them_all(path):
    """Dates that are none, and names with more or less around them, are somebody else's."""
    lookalikes = [
        "app.log.2024-01-01.bak",
        "app.log.2024-01-01_extra",
        "app.log.2024-01-01_12",
        "app.log.2024-01-01.0",
        "app.log.2024-01-01.01",
        "app.log.2024-01-01.1.1",
        "app.log.2024-1-1",
        "app.log.2024-13-01",
        "app.log.2023-02-29",
        "app.log.2024-01-01.xz",
        "app.log.2024-01-01 ",
        "app.log.12024-01-01",
        "app.log.1",
        "app.log-2024-01-01",
        "app.log2024-01-01",
        "xapp.log.2024-01-01",
        "app.logs.2024-01-01",
        "app-worker.log.2024-01-01",
        "2024-01-01",
    ]
    for name in lookalikes:
        path.with_name(name).write_text(name)
    path.with_name("app.log.2024-01-02").mkdir()
    path.with_name("target").write_text("precious")
    path.with_name("app.log.2024-01-03").symlink_to("target")
    _make(path, ".2024-02-05", ".2024-02-06.3")
    options = {"backup_count": 1, "max_age": 10, "max_total_bytes": 1, "compression": "gzip"}
    with TimedRotatingFileSink(path, "midnight", max_bytes=20, **options) as sink:
        assert not path.with_name("app.log.2024-02-05").exists()
        assert not path.with_name("app.log.2024-02-06.3").exists()
        _write(sink, *range(5))
    assert {name: path.with_name(name).read_text() for name in lookalikes} == {name: name for name in lookalikes}
    assert path.with_name("app.log.2024-01-02").is_dir()
    assert path.with_name("target").read_text() == "precious"
    assert path.with_name("app.log.2024-01-03").is_symlink()


def test_the_files_are_those_that_namer_would_name_so(path):
    """With a namer its names are the sink's own, and the default ones are somebody else's."""
    _make(path, ".1", ".2", ".3")
    _make(path.with_name("archive"), "-1.log", "-2.log", "-3.log", "-04.log")

    def namer(name):
        return str(path.with_name(f"archive-{name.rpartition('.')[2]}.log"))

    RotatingFileSink(path, max_bytes=1000, backup_count=1, namer=namer).close()
    kept = ["app.log", "app.log.1", "app.log.2", "app.log.3", "archive-04.log", "archive-1.log"]
    assert sorted(file.name for file in path.parent.iterdir()) == kept


def test_a_namer_that_pads_and_moves(path):
    """Zeros before the number and another directory are no obstacle."""
    archive = path.parent / "old"
    archive.mkdir()
    (archive / "app.0010.log.bak").touch()

    def namer(name):
        return str(archive / f"app.{int(name.rpartition('.')[2]):04}.log")

    with RotatingFileSink(path, max_bytes=20, max_total_bytes=220, namer=namer) as sink:
        _write(sink, *range(15))
        kept = ["app.0010.log.bak", *(f"app.{number:04}.log" for number in range(1, 12))]
        assert sorted(by_name(archive)) == sorted(kept)
        sink.max_total_bytes = 40
        _write(sink, 15)
    assert sorted(by_name(archive)) == ["app.0001.log", "app.0002.log", "app.0010.log.bak"]


def test_the_current_file_is_never_deleted(path):
    """Not even by a namer that takes it for a rotated one."""
    with RotatingFileSink(
        f"{path}.1", max_bytes=1000, max_total_bytes=0, max_age=0, namer=lambda name: name.removesuffix(".1")
    ) as sink:
        _write(sink, 1)
        assert sink.get_files_to_delete() == []


def test_a_subclass_may_decide_what_is_deleted(path):
    """get_files_to_delete is the hook of TimedRotatingFileHandler, here for all rotating files."""

    class KeepsEven(RotatingFileSink):
        def get_files_to_delete(self) -> list[str]:
            return [file.path for file in self.rotated_files() if int(file.path[-1]) % 2]

    _make(path, ".1", ".2", ".3", ".4")
    KeepsEven(path, max_bytes=1000, backup_count=1).close()
    assert _endings(path) == [".2", ".4"]


def test_rotated_files_tells_them_newest_first(path):
    """With path, ending and age, numbers as numbers."""
    _make(path, ".10", ".9.gz", ".1", ".2.zst")
    with RotatingFileSink(path) as sink:
        files = sink.rotated_files()
    assert [file.path.removeprefix(str(path)) for file in files] == [".1", ".2.zst", ".9.gz", ".10"]
    assert [file.ending for file in files] == ["", ".zst", ".gz", ""]
    assert files[0].age > files[1].age


def test_retention_that_fails_does_not_keep_files_from_rolling(path, failures, monkeypatch):
    """An old file that cannot be deleted is told, costs no event and lets no file grow beyond its bound."""
    stubborn = Path(f"{path}.9")
    stubborn.touch()
    real = os.unlink

    def unlink(name, *args, **options):
        if str(name) == str(stubborn):
            raise PermissionError(13, os.strerror(13), name)
        real(name, *args, **options)

    monkeypatch.setattr(os, "unlink", unlink)
    with RotatingFileSink(path, max_bytes=20, backup_count=3, on_error=failures.append) as sink:
        _write(sink, *range(4))
        assert sink.stats().delivered == 4
    monkeypatch.undo()
    stubborn.unlink()
    assert in_order(path) == [0, 1, 2, 3]
    assert len(list(path.parent.iterdir())) == 4
    assert failures
    assert {type(failure.error) for failure in failures} == {PermissionError}
    assert {failure.events for failure in failures} == {0}


def test_a_namer_that_raises_at_the_start_is_told(path, failures):
    """The sink is made all the same, and takes events."""

    def namer(name):
        raise RuntimeError("no name")

    with RotatingFileSink(path, max_bytes=1000, backup_count=3, namer=namer, on_error=failures.append) as sink:
        assert [(str(failure.error), failure.events) for failure in failures] == [("no name", 0)]
        _write(sink, 1)
    assert by_name(path.parent) == {"app.log": [1]}


def _kept(path: Path) -> list[int]:
    """Return the numbers of the events in all files, compressed ones too."""
    files = [file for file in path.parent.iterdir() if file.suffix != ".outfall-tmp"]
    texts = [gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes() for file in files]
    return sorted(json.loads(found)["n"] for text in texts for found in text.splitlines())


def _shuffled(default_name: str) -> str:
    """Name rotated files so that their names say nothing about their order, but can be told from one another."""
    directory, name = os.path.split(default_name)
    return os.path.join(directory, f"{name[::-1]}.{name}")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "gzip"},
        {"multiprocess": True},
        {"namer": lambda name: f"{name}.jsonl"},
        {"namer": _shuffled, "compression": "gzip"},
        {"when": "H"},
        {"when": "W3", "max_bytes": 0},
    ],
    ids=["midnight", "compressed", "processes", "suffix", "shuffled names", "hourly", "by hand"],
)
def test_of_several_rollovers_in_one_interval_the_newest_are_kept(path, options):
    """A number that retention has freed is not given again, so that no new file counts as an old one."""
    options = {"when": "midnight", "max_bytes": 100, **options}
    with TimedRotatingFileSink(path, backup_count=3, **options) as sink:
        for number in range(40):
            sink.handle({"n": number, "event": "x" * 60})
            if not options["max_bytes"]:
                sink.do_rollover()
    kept = _kept(path)
    assert kept == list(range(40 - len(kept), 40))
    assert len(kept) == (4 if options["max_bytes"] else 3)


def test_a_restart_goes_on_with_the_numbers_of_its_interval(path):
    """What an earlier process rotated in the same interval is older, whatever of it is left."""
    for number in range(9):
        with TimedRotatingFileSink(path, when="midnight", backup_count=2) as sink:
            sink.handle({"n": number})
            sink.do_rollover()
    assert _kept(path) == [7, 8]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("back", [1800, 5 * 3600, 400 * 86_400])
def test_a_clock_that_is_put_back_makes_no_new_file_an_old_one(path, back, restart):
    """What was rotated last is kept, though the names of the files before it speak of a later time."""
    begin = 1_700_000_000
    moments = [*range(begin, begin + 6 * 3600, 3600), *range(begin + 5 * 3600 - back, begin + 12 * 3600 - back, 3600)]
    sink = None
    for number, moment in enumerate(moments):
        with time_machine.travel(moment, tick=False):
            sink = sink or TimedRotatingFileSink(path, when="S", backup_count=4)
            sink.handle({"n": number})
            sink.do_rollover()
            if restart:
                sink.close()
                sink = None
    assert sink is None or sink.close()
    assert _kept(path) == list(range(len(moments) - 4, len(moments)))


def test_a_clock_that_ran_ahead_does_not_stop_rotation(path):
    """A file named for a far future costs neither the next rollovers nor the newest files."""
    Path(f"{path}.2099-01-01").write_text('{"n": -1}\n')
    path.write_text('{"n": 0}\n')
    with TimedRotatingFileSink(path, when="midnight", backup_count=2) as sink:
        assert sink.rollover_at < time.time() + 2 * 86_400
        for number in (1, 2):
            sink.handle({"n": number})
            sink.do_rollover()
    assert _kept(path) == [0, 1, 2]

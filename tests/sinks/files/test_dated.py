"""Files whose own name has the date: which one is written when, the link to it, retention, many processes, clocks."""

from __future__ import annotations

import datetime as dt
import json
import os
import time

import pytest
import time_machine

from outfall import RotatingFileSink, TimedRotatingFileSink
from tests.sinks._processes import check, start

UTC = dt.timezone.utc
NAME = "app-{date:%Y-%m-%d}.jsonl"


@pytest.fixture
def clock():
    """Give a clock that is set by `move_to`: noon of the 27th, UTC."""
    with time_machine.travel(dt.datetime(2026, 11, 27, 12, tzinfo=UTC), tick=False) as made:
        yield made


def days(directory, pattern="app-*"):
    """Return the names of the files there, with the events in each."""
    return {
        path.name: [json.loads(line)["event"] for line in path.read_bytes().splitlines()]
        for path in sorted(directory.glob(pattern))
    }


def opened(directory, name=NAME, **options):
    """Return a sink for files of a day each in *directory*."""
    options = {"when": "midnight", "utc": True, "on_error": "raise", **options}
    # The short cut looks at most once a second whether the clock was put back.
    sink = TimedRotatingFileSink(directory / name, **options)
    sink._verify_at = sink._trusted_until = 0.0
    return sink


def test_each_day_has_a_file_of_its_own_name_from_the_start(tmp_path, clock):
    """Nothing is renamed, an empty file of the day before gets nothing, and the link leads to the newest."""
    with opened(tmp_path, link=tmp_path / "app.jsonl") as sink:
        sink.handle({"event": "a", "level": "info"})
        assert os.readlink(tmp_path / "app.jsonl") == "app-2026-11-27.jsonl"
        clock.move_to(dt.datetime(2026, 11, 27, 23, 59, 59, tzinfo=UTC))
        sink.handle({"event": "b", "level": "info"})
        clock.move_to(dt.datetime(2026, 11, 28, tzinfo=UTC))
        sink.handle({"event": "c", "level": "info"})
        assert (tmp_path / "app.jsonl").read_bytes() == (tmp_path / "app-2026-11-28.jsonl").read_bytes()
        clock.move_to(dt.datetime(2026, 12, 5, 1, tzinfo=UTC))
        sink.handle({"event": "d", "level": "info"})
    assert days(tmp_path) == {
        "app-2026-11-27.jsonl": ["a", "b"],
        "app-2026-11-28.jsonl": ["c"],
        "app-2026-12-05.jsonl": ["d"],
    }
    assert os.readlink(tmp_path / "app.jsonl") == "app-2026-12-05.jsonl"
    assert [path.name for path in tmp_path.iterdir() if "new" in path.name] == []


def test_a_restart_appends_to_the_file_of_the_day(tmp_path, clock):
    """And the next day's process begins the next day's."""
    for day in (27, 27, 28):
        clock.move_to(dt.datetime(2026, 11, day, 13, tzinfo=UTC))
        with opened(tmp_path) as sink:
            sink.handle({"event": str(day), "level": "info"})
    assert days(tmp_path) == {"app-2026-11-27.jsonl": ["27", "27"], "app-2026-11-28.jsonl": ["28"]}


def test_an_idle_sink_writes_its_first_event_to_the_day_it_comes_on(tmp_path, clock):
    """Though the file of the day before was opened for it, and is empty."""
    with opened(tmp_path) as sink:
        clock.move_to(dt.datetime(2026, 11, 28, 9, tzinfo=UTC))
        sink.handle({"event": "a", "level": "info"})
    assert days(tmp_path) == {"app-2026-11-27.jsonl": [], "app-2026-11-28.jsonl": ["a"]}


def test_a_clock_that_is_put_back_leads_back(tmp_path, clock):
    """A clock that was years ahead for a moment does not keep the file for years."""
    with opened(tmp_path) as sink:
        clock.move_to(dt.datetime(2036, 1, 1, tzinfo=UTC))
        sink.handle({"event": "ahead", "level": "info"})
        clock.move_to(dt.datetime(2026, 11, 27, 14, tzinfo=UTC))
        sink._verify_at = sink._trusted_until = 0.0  # a second later
        sink.handle({"event": "back", "level": "info"})
    assert days(tmp_path) == {"app-2026-11-27.jsonl": ["back"], "app-2036-01-01.jsonl": ["ahead"]}


@pytest.mark.parametrize(("options", "kept"), [({"backup_count": 2}, 3), ({"max_age": "2 days 12h"}, 4)])
def test_retention_knows_its_own_files_alone(tmp_path, clock, options, kept):
    """The oldest days go; other files, the link and the file that is written stay."""
    for other in (
        "app-.jsonl",
        "app-2026-11-99.jsonl",
        "app-2026-11-1.jsonl",
        "xapp-2026-01-01.jsonl",
        "app-2026-01-01.log",
    ):
        (tmp_path / other).touch()
    with opened(tmp_path, link=tmp_path / "app.jsonl", **options) as sink:
        for day in range(20, 27):
            clock.move_to(dt.datetime(2026, 11, day, 12, tzinfo=UTC))
            sink.handle({"event": f"{day}", "level": "info"})
            os.utime(
                sink.base_filename, (clock_now := dt.datetime(2026, 11, day, 12, tzinfo=UTC).timestamp(), clock_now)
            )
    ours = [name for name, events in days(tmp_path).items() if events]
    assert [name[-8:-6] for name in ours] in (
        [f"{day}" for day in range(27 - kept, 27)],
        [f"{day}" for day in (24, 25, 26)],
    )
    assert len(list(tmp_path.glob("*2026-01-01*"))) == 2
    assert (tmp_path / "app-2026-11-99.jsonl").exists()
    assert (tmp_path / "app-2026-11-1.jsonl").exists()


def test_days_without_events_push_out_no_day_with_events(tmp_path, clock):
    """A sink that gets no event leaves an empty file; of those too there are no more than backup_count."""
    for day in range(1, 30):
        clock.move_to(dt.datetime(2026, 11, day, tzinfo=UTC))
        with opened(tmp_path, backup_count=2) as sink:
            if day in (1, 2, 3, 20):
                sink.handle({"event": str(day), "level": "info"})
    names = [path.name for path in tmp_path.iterdir()]
    assert [events for events in days(tmp_path).values() if events] == [["3"], ["20"]]
    assert len(names) == 5, names


@pytest.mark.parametrize("multiprocess", [False, True])
def test_days_that_are_over_are_compressed(tmp_path, clock, multiprocess):
    """The one that is written is not."""
    with opened(tmp_path, compression="gzip", backup_count=10, multiprocess=multiprocess) as sink:
        for day in (27, 28, 29):
            clock.move_to(dt.datetime(2026, 11, day, 12, tzinfo=UTC))
            sink.handle({"event": f"{day}", "level": "info"})
    names = sorted(path.name for path in tmp_path.glob("app*"))
    assert names == ["app-2026-11-27.jsonl.gz", "app-2026-11-28.jsonl.gz", "app-2026-11-29.jsonl"]


def test_a_day_of_many_bytes_has_numbered_files(tmp_path, clock):
    """With max_bytes the full ones get numbers, in order; a coarser date is allowed then."""
    with opened(tmp_path, "app-{date:%Y-%m}.jsonl", max_bytes=100) as sink:
        for number in range(6):
            sink.handle({"event": f"{number}", "level": "info"})
    found = days(tmp_path)
    assert list(found) == ["app-2026-11.jsonl", "app-2026-11.jsonl.1", "app-2026-11.jsonl.2"][: len(found)]
    assert [event for name in [*sorted(found)[1:], min(found)] for event in found[name]] == list("012345")
    assert all(path.stat().st_size <= 100 for path in tmp_path.glob("app*"))


@pytest.mark.parametrize(
    ("when", "date", "names"),
    [
        ("H", "%Y%m%dT%H", ["app-20261127T12.jsonl", "app-20261127T13.jsonl"]),
        ("M", "%Y-%m-%d_%H-%M", ["app-2026-11-27_12-00.jsonl", "app-2026-11-27_13-30.jsonl"]),
        ("W0", "%G-W%V-%u", ["app-2026-W48-2.jsonl"]),
    ],
)
def test_other_intervals_have_names_of_their_starts(tmp_path, clock, when, date, names):
    """Hours and minutes by the clock, as all processes have them."""
    with opened(tmp_path, f"app-{{date:{date}}}.jsonl", when=when) as sink:
        sink.handle({"event": "a", "level": "info"})
        clock.move_to(dt.datetime(2026, 11, 27, 13, 30, 59, tzinfo=UTC))
        sink.handle({"event": "b", "level": "info"})
    assert list(days(tmp_path)) == names


def test_the_file_of_a_later_interval_is_neither_deleted_nor_compressed(tmp_path, clock):
    """Another process, which is ahead by a moment, writes to it already."""
    later = tmp_path / "app-2026-11-28.jsonl"
    later.write_bytes(b"{}\n")
    with opened(tmp_path, NAME, when="midnight", backup_count=1, compression="gzip") as sink:
        sink.handle({"event": "a", "level": "info"})
    with opened(tmp_path, NAME, when="midnight", max_age=0.001) as sink:
        sink.handle({"event": "b", "level": "info"})
    assert later.read_bytes() == b"{}\n"


WRITER = """
    import sys, time, time_machine, datetime as dt
    from outfall import TimedRotatingFileSink
    midnight = dt.datetime(2026, 11, 28, tzinfo=dt.timezone.utc)
    # One clock for all, whenever each of them got so far.
    moment = midnight + dt.timedelta(seconds=time.time() - float(sys.argv[4]))
    with time_machine.travel(moment, tick=True):
        left = lambda: midnight.timestamp() - time.time()
        while left() > 0.1:
            time.sleep(0.01)
        with TimedRotatingFileSink(
            sys.argv[1], when="midnight", utc=True, multiprocess=True, compression="gzip", link=sys.argv[2]
        ) as sink:
            number, over = 0, False
            while not over or number < 200:
                over = left() <= -0.3
                sink.handle({"event": sys.argv[3], "level": "info", "number": number})
                number += 1
        assert not sink.stats().dropped
        print(number)
"""


def test_many_processes_go_over_midnight_together(tmp_path):
    """None loses or tears an event, whichever begins the new day's file; the link leads there."""
    link = tmp_path / "now.jsonl"
    midnight = time.time() + 1.5
    writers = [start(WRITER, tmp_path / NAME, link, each, midnight, stdout=-1) for each in range(3)]
    counts = []
    for writer in writers:
        out, _ = writer.communicate(timeout=60)
        assert writer.returncode == 0
        counts.append(int(out))
    import gzip

    lines = []
    for path in tmp_path.glob("app-*"):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines += [json.loads(line) for line in data.splitlines()]
    for each, count in enumerate(counts):
        assert sorted(line["number"] for line in lines if line["event"] == str(each)) == list(range(count))
    assert os.readlink(link) == "app-2026-11-28.jsonl"


def test_local_days_are_those_of_the_wall_clock(tmp_path):
    """Without utc, over a change of daylight saving time too."""
    script = """
        import os, sys, time, datetime as dt, time_machine
        os.environ["TZ"] = "Europe/Berlin"; time.tzset()
        from outfall import TimedRotatingFileSink
        begin = dt.datetime(2026, 10, 24, 21, 30, tzinfo=dt.timezone.utc).timestamp()
        with time_machine.travel(begin, tick=False) as clock:
            with TimedRotatingFileSink(sys.argv[1], when="midnight", on_error="raise") as sink:
                for hour in range(30):
                    clock.move_to(begin + 3_600 * hour)
                    sink.handle({"event": str(hour), "level": "info"})
    """
    check(script, tmp_path / NAME)
    assert {name: len(events) for name, events in days(tmp_path).items()} == {
        "app-2026-10-24.jsonl": 1,
        "app-2026-10-25.jsonl": 25,
        "app-2026-10-26.jsonl": 4,
    }


def test_a_link_that_is_a_file_is_refused(tmp_path, clock):
    """It would be lost; one without a date in the name has no use."""
    (tmp_path / "app.jsonl").write_text("kept")
    with pytest.raises(ValueError, match=r"link=.*is no symbolic link"):
        opened(tmp_path, link=tmp_path / "app.jsonl")
    assert (tmp_path / "app.jsonl").read_text() == "kept"
    with pytest.raises(ValueError, match="without a date"):
        opened(tmp_path, "app.jsonl.x", link=tmp_path / "other")


def test_a_link_that_cannot_be_made_costs_no_event(tmp_path, clock):
    """It is told, and the file is written."""
    told = []
    with opened(tmp_path, link=tmp_path / "none" / "app.jsonl", on_error=told.append) as sink:
        sink.handle({"event": "a", "level": "info"})
    assert days(tmp_path) == {"app-2026-11-27.jsonl": ["a"]}
    assert told


@pytest.mark.parametrize(
    ("name", "when"),
    [
        ("app-{date:%Y-%m}.jsonl", "midnight"),
        ("app-{date:%Y-%m-%d}.jsonl", "H"),
        ("app-{date:%H}.jsonl", "H"),
        ("app-{date:%H-%M-%S}.jsonl", "S"),
        ("app-{date:%d}.jsonl", "W0"),
        ("app-{date:%Y-W%W}.jsonl", "W0"),
        ("app-{date:plain}.jsonl", "midnight"),
        ("{date:%Y}/app-{date:%Y-%m-%d}.jsonl", "midnight"),
        ("{date:%Y}/app.jsonl", "midnight"),
    ],
)
def test_a_date_that_tells_no_intervals_apart_is_refused(tmp_path, name, when):
    """At construction; so is one in the name of a directory."""
    with pytest.raises(ValueError, match="filename="):
        TimedRotatingFileSink(tmp_path / name, when=when)


def test_other_sinks_refuse_a_date_and_name_the_sink_that_has_one(tmp_path):
    """A date is what a sink by time has; other braces are part of the name."""
    with pytest.raises(ValueError, match="TimedRotatingFileSink"):
        RotatingFileSink(tmp_path / NAME, max_bytes=1_000)
    with RotatingFileSink(tmp_path / "app-{tenant}.jsonl", max_bytes=1_000) as sink:
        sink.handle({"event": "a"})
    assert (tmp_path / "app-{tenant}.jsonl").exists()


def test_a_url_with_a_date_is_by_time(tmp_path, clock):
    """In a URL the percent signs are encoded."""
    from outfall import open_sink

    with open_sink(
        f"file:{tmp_path}/app-{{date:%25Y-%25m-%25d}}.jsonl?when=midnight&utc=true&link={tmp_path}/now"
    ) as sink:
        sink.handle({"event": "a", "level": "info"})
    assert days(tmp_path) == {"app-2026-11-27.jsonl": ["a"]}
    assert (tmp_path / "now").is_symlink()

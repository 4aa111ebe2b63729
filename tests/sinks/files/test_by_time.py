"""TimedRotatingFileSink: which event goes to which file, and which files are its own."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import time_machine
from hypothesis import given, settings
from hypothesis import strategies as st

from outfall.sinks.files import by_time as timed
from outfall.sinks.files.by_time import TimedRotatingFileSink
from outfall.sinks.files.schedule import Schedule
from outfall.sinks.testing import assert_balanced
from tests.sinks._zones import ZONES, changes, local_zone

if TYPE_CHECKING:
    import zoneinfo
    from collections.abc import Callable, Iterator

DAY = 86_400
SECONDS = {"S": 1, "M": 60, "H": 3600, "D": DAY, "MIDNIGHT": DAY} | {f"W{number}": 7 * DAY for number in range(7)}


class World:
    """A directory with one log in it, where time is what the test says, for the clock and for the file system."""

    def __init__(
        self, directory: Path, patch: pytest.MonkeyPatch, traveller: time_machine.Coordinates, **options: Any
    ) -> None:
        self.directory = directory
        self.path = directory / "app.log"
        self.options = options
        self.births_known = True
        self._traveller = traveller
        self._births: dict[int, float] = {}
        self._inode = 0
        self._count = 0
        self.moments: list[float] = []
        self.sink: TimedRotatingFileSink | None = None
        patch.setattr(timed, "birth_time", self._birth_time)

    def _birth_time(self, path: str) -> float | None:
        return self._births.get(os.stat(path).st_ino) if self.births_known else None

    def start(self) -> TimedRotatingFileSink:
        """Begin a process, so to speak."""
        self.sink = TimedRotatingFileSink(self.path, on_error="raise", **self.options)
        return self.sink

    def stop(self) -> None:
        """End it."""
        if self.sink is not None:
            self.sink.close()
            assert_balanced(self.sink.stats())
            self.sink = None

    def log(self, moment: float) -> None:
        """Have an event happen at *moment*, epoch seconds."""
        self._traveller.move_to(moment)
        sink = self.sink or self.start()
        sink.handle({"event": self._count, "at": moment})
        self._count += 1
        self.moments.append(moment)
        state = self.path.stat()
        if state.st_ino != self._inode:
            self._inode = state.st_ino
            self._births[state.st_ino] = moment
        os.utime(self.path, (moment, moment))

    def log_at(self, *readings: str) -> None:
        """Have an event happen whenever the local clock reads one of *readings*."""
        for reading in readings:
            self.log(dt.datetime.fromisoformat(reading).timestamp())

    def files(self) -> dict[str, list[int]]:
        """Return the numbers of the events in each file, by name, in the order of the first event."""
        read = {
            path.name: [json.loads(line)["event"] for line in path.read_text().splitlines()]
            for path in self.directory.iterdir()
        }
        return dict(sorted(read.items(), key=lambda item: item[1]))

    def check_whole(self) -> None:
        """Check that the files together hold each event once, and in order."""
        assert list(itertools.chain(*self.files().values())) == list(range(self._count))


@pytest.fixture
def make_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., World]]:
    """A function that gives a World for the sink's arguments."""
    worlds: list[World] = []
    with time_machine.travel(0, tick=False) as traveller:

        def make(**options: Any) -> World:
            worlds.append(World(tmp_path, monkeypatch, traveller, **options))
            return worlds[-1]

        yield make
        for world in worlds:
            world.stop()


@pytest.fixture(autouse=True)
def _in_berlin() -> Iterator[None]:
    """Local time is Berlin's, unless the test says otherwise."""
    with local_zone("Europe/Berlin"):
        yield


class TestIntervals:
    """Which event goes to which file."""

    @pytest.mark.parametrize(
        ("when", "readings", "name"),
        [
            ("s", ("2024-05-01 10:20:30", "2024-05-01 10:20:31"), "app.log.2024-05-01_10-20-30"),
            ("M", ("2024-05-01 10:20:30", "2024-05-01 10:21:30"), "app.log.2024-05-01_10-20"),
            ("h", ("2024-05-01 10:20:30", "2024-05-01 11:20:30"), "app.log.2024-05-01_10"),
            ("D", ("2024-05-01 10:20:30", "2024-05-02 10:20:30"), "app.log.2024-05-01"),
            ("Midnight", ("2024-05-01 10:20:30", "2024-05-02 00:00:00"), "app.log.2024-05-01"),
            ("w1", ("2024-05-02 10:20:30", "2024-05-08 00:00:00"), "app.log.2024-05-01"),
        ],
    )
    def test_the_first_event_after_an_interval_begins_a_new_file(
        self, when: str, readings: tuple[str, str], name: str, make_world: Callable[..., World]
    ) -> None:
        """A file is named for the start of its interval and ends with it, not a moment earlier."""
        world = make_world(when=when)
        world.log_at(readings[0])
        world.log(dt.datetime.fromisoformat(readings[1]).timestamp() - 0.001)
        assert world.files() == {"app.log": [0, 1]}
        world.log_at(readings[1])
        assert world.files() == {name: [0, 1], "app.log": [2]}

    @pytest.mark.parametrize("interval", [2, 3, 5])
    @pytest.mark.parametrize("when", ["S", "M", "H", "D", "MIDNIGHT"])
    def test_an_interval_may_be_of_several_units(
        self, when: str, interval: int, make_world: Callable[..., World]
    ) -> None:
        """With interval=n a file holds n units, and the next n follow."""
        world = make_world(when=when, interval=interval)
        begin = dt.datetime(2024, 5, 1).timestamp()  # noqa: DTZ001
        for unit in range(3 * interval):
            world.log(begin + unit * SECONDS[when])
        assert [len(events) for events in world.files().values()] == [interval] * 3
        world.check_whole()

    def test_weekdays_do_not_use_the_interval(self, make_world: Callable[..., World]) -> None:
        """With interval=3 a week is still a week."""
        world = make_world(when="w0", interval=3)
        world.log_at("2024-01-02", "2024-01-08 23:59:59", "2024-01-09", "2024-01-16")
        assert world.files() == {"app.log.2024-01-02": [0, 1], "app.log.2024-01-09": [2], "app.log": [3]}

    def test_the_time_of_day_moves_the_rollover(self, make_world: Callable[..., World]) -> None:
        """With at_time a day lasts from that time to that time, and has the name of the day it begins on."""
        world = make_world(when="midnight", at_time=dt.time(6))
        world.log_at("2024-05-02 05:59:59", "2024-05-02 06:00", "2024-05-03 05:59:59", "2024-05-03 06:00")
        assert world.files() == {"app.log.2024-05-01": [0], "app.log.2024-05-02": [1, 2], "app.log": [3]}

    def test_utc_days_are_those_of_utc(self, make_world: Callable[..., World]) -> None:
        """With utc the file rolls over at midnight UTC, which is two in the morning in Berlin's summer."""
        world = make_world(when="midnight", utc=True)
        world.log_at("2024-05-02 01:59:59", "2024-05-02 02:00")
        assert world.files() == {"app.log.2024-05-01": [0], "app.log": [1]}

    def test_days_without_events_leave_no_files(self, make_world: Callable[..., World]) -> None:
        """After days of silence the old file has the name of its own day, and the new one is today's."""
        world = make_world(when="midnight")
        world.log_at("2024-05-01 12:00", "2024-05-09 12:00", "2024-05-09 23:59:59", "2024-05-10")
        assert world.files() == {"app.log.2024-05-01": [0], "app.log.2024-05-09": [1, 2], "app.log": [3]}

    def test_the_clock_put_forward_over_the_rollover(self, make_world: Callable[..., World]) -> None:
        """Where half past two is left out, the file rolls over when the clock is put forward, once."""
        world = make_world(when="midnight", at_time=dt.time(2, 30))
        world.log_at(
            "2024-03-30 12:00", "2024-03-31 01:59:59", "2024-03-31 03:00", "2024-03-31 03:30", "2024-04-01 02:30"
        )
        assert world.files() == {"app.log.2024-03-30": [0, 1], "app.log.2024-03-31": [2, 3], "app.log": [4]}

    def test_the_clock_put_back_over_the_rollover(self, make_world: Callable[..., World]) -> None:
        """Where half past two is repeated, the file rolls over at the first and not at the second."""
        world = make_world(when="midnight", at_time=dt.time(2, 30))
        first = dt.datetime(2024, 10, 27, 2, 30).timestamp()  # noqa: DTZ001
        for moment in (first - 1, first, first + 1800, first + 3600, first + 7200):
            world.log(moment)
        assert world.files() == {"app.log.2024-10-26": [0], "app.log": [1, 2, 3, 4]}

    def test_the_repeated_hour_overwrites_nothing(self, make_world: Callable[..., World]) -> None:
        """Two hours of one name give two files, the second with a number."""
        world = make_world(when="h")
        first = dt.datetime(2024, 10, 27, 2).timestamp()  # noqa: DTZ001
        for hour in range(4):
            world.log(first + hour * 3600)
        assert world.files() == {
            "app.log.2024-10-27_02": [0],
            "app.log.2024-10-27_02.1": [1],
            "app.log.2024-10-27_03": [2],
            "app.log": [3],
        }

    def test_a_clock_set_back_overwrites_nothing(self, make_world: Callable[..., World]) -> None:
        """When the machine's clock is set back a day, no file is lost and none is begun before its time."""
        world = make_world(when="midnight")
        world.log_at("2024-05-01 12:00", "2024-05-02 12:00", "2024-05-01 13:00", "2024-05-02 13:00", "2024-05-03 01:00")
        assert world.files() == {"app.log.2024-05-01": [0], "app.log.2024-05-02": [1, 2, 3], "app.log": [4]}

    def test_size_and_time_together(self, make_world: Callable[..., World]) -> None:
        """With max_bytes an interval may have several files, numbered in order, and the next interval begins anew."""
        world = make_world(when="midnight", max_bytes=80)  # two events of 31 bytes
        world.log_at(*(f"2024-05-01 0{hour}:00" for hour in range(5)), *(f"2024-05-02 0{hour}:00" for hour in range(3)))
        assert world.files() == {
            "app.log.2024-05-01": [0, 1],
            "app.log.2024-05-01.1": [2, 3],
            "app.log.2024-05-01.2": [4],
            "app.log.2024-05-02": [5, 6],
            "app.log": [7],
        }

    def test_a_name_that_is_taken_is_left_alone(self, make_world: Callable[..., World]) -> None:
        """A file that has the name already, whoever made it, is not overwritten."""
        world = make_world(when="midnight")
        world.log_at("2024-05-01 12:00")
        for name in ("app.log.2024-05-01", "app.log.2024-05-01.1"):
            (world.directory / name).write_text('{"event": -1}\n')
        world.log_at("2024-05-02 12:00")
        assert world.files()["app.log.2024-05-01"] == world.files()["app.log.2024-05-01.1"] == [-1]
        assert world.files()["app.log.2024-05-01.2"] == [0]


class TestRestarts:
    """The clock goes on while nobody is there."""

    @pytest.mark.parametrize("births_known", [True, False])
    @pytest.mark.parametrize("when", ["midnight", "w2", "d", "h"])
    def test_a_restart_within_the_interval_goes_on_with_the_file(
        self, when: str, births_known: bool, make_world: Callable[..., World]
    ) -> None:
        """A restart soon after the last event changes nothing."""
        world = make_world(when=when)
        world.births_known = births_known
        world.log_at("2024-05-01 12:00")
        world.stop()
        world.log_at("2024-05-01 12:01")
        assert world.files() == {"app.log": [0, 1]}

    @pytest.mark.parametrize("births_known", [True, False])
    @pytest.mark.parametrize(
        ("when", "name"), [("midnight", "05-01"), ("w0", "04-30"), ("d", "05-01"), ("h", "05-01_12")]
    )
    def test_a_restart_after_days_rolls_over_what_was_left(
        self, when: str, name: str, births_known: bool, make_world: Callable[..., World]
    ) -> None:
        """A file from an interval that ended meanwhile is rotated by the first event, under its own name."""
        world = make_world(when=when)
        world.births_known = births_known
        world.log_at("2024-05-01 12:00")
        world.stop()
        world.log_at("2024-05-09 12:00")
        assert world.files() == {f"app.log.2024-{name}": [0], "app.log": [1]}

    @pytest.mark.parametrize("when", ["H", "D"])
    def test_restarts_that_come_often_do_not_put_the_rollover_off(
        self, when: str, make_world: Callable[..., World]
    ) -> None:
        """A process that is restarted ten times per interval rolls over as often as one that is not."""
        world = make_world(when=when)
        begin, step = dt.datetime(2024, 5, 1, 12).timestamp(), SECONDS[when] / 10  # noqa: DTZ001
        for count in range(31):
            world.log(begin + count * step)
            world.stop()
        assert [len(events) for events in world.files().values()] == [10, 10, 10, 1]

    @pytest.mark.parametrize(
        "births_known",
        [
            True,
            False,
        ],
    )
    def test_days_are_counted_on_across_restarts(self, births_known: bool, make_world: Callable[..., World]) -> None:
        """Every second day stays every second day, though the process begins anew on the days between."""
        world = make_world(when="midnight", interval=2)
        world.births_known = births_known
        world.log_at("2024-05-01 12:00", "2024-05-04 12:00")
        world.stop()
        world.log_at("2024-05-05 12:00")
        assert world.files() == {"app.log.2024-05-01": [0], "app.log.2024-05-03": [1], "app.log": [2]}


class TestDeletion:
    """Only what is surely its own is deleted."""

    LOOK_ALIKES = (
        "app.log.2024-01-01.bak",
        "app.log.2024-01-01_extra",
        "app.log.2024-01-01_10",
        "app.log.2024-01-01.01",
        "app.log.2024-01-01.0",
        "app.log.2024-01-01.-1",
        "app.log.2024-01-01~",
        "app.log.2024-1-1",
        "app.log.2024-02-30",
        "app.log.12024-01-01",
        "app.log.2024-01-011",
        "app.log.2024-01-01.gz.tmp",
        "app.log.2024-01-01.gz.gz",
        "app.log.old.2024-01-01",
        "app.log-2024-01-01",
        "app.log2024-01-01",
        "app.log.",
        "app.logs.2024-01-01",
        "app-errors.log.2024-01-01",
        "other.app.log.2024-01-01",
        "APP.LOG.2024-01-01",
        "app.log.1",
        "2024-01-01",
    )

    def test_look_alikes_stay(self, make_world: Callable[..., World]) -> None:
        """With backup_count=1 in a directory full of similar names, only rotated files go."""
        world = make_world(when="midnight", backup_count=1)
        for name in self.LOOK_ALIKES:
            (world.directory / name).write_text("")
        (world.directory / "app.log.2023-12-24").mkdir()
        (world.directory / "app.log.2023-12-25").symlink_to("app.log.1")
        for name in ("app.log.2023-12-26", "app.log.2023-12-26.1", "app.log.2023-12-27.gz"):
            (world.directory / name).write_text("")
        world.log_at("2024-05-01", "2024-05-02", "2024-05-03")
        left = {path.name for path in world.directory.iterdir()}
        kept = {"app.log", "app.log.2024-05-02", "app.log.2023-12-24", "app.log.2023-12-25"}
        assert left - set(self.LOOK_ALIKES) == kept
        assert left >= set(self.LOOK_ALIKES)

    def test_another_days_weekly_files_stay(self, make_world: Callable[..., World]) -> None:
        """A weekly sink takes a date that is not its weekday for somebody else's file."""
        world = make_world(when="w0", backup_count=1)
        for name in ("app.log.2024-01-01", "app.log.2024-01-02"):  # a Monday, a Tuesday
            (world.directory / name).write_text("")
        world.log_at("2024-05-01", "2024-05-08")
        assert {path.name for path in world.directory.iterdir()} == {
            "app.log", "app.log.2024-01-01", "app.log.2024-04-30"
        }  # fmt: skip

    def test_only_names_that_come_back_from_the_namer_are_its_own(self, make_world: Callable[..., World]) -> None:
        """With a namer, what it would not have made is kept, the default name too."""

        def namer(default: str) -> str:
            base, _, text = default.partition(".log.")
            return f"{base}-{text}.log"

        world = make_world(when="midnight", backup_count=1, namer=namer)
        strangers = {"app.log.2024-01-01", "app-2024-01-01.log.bak", "app-2024-01-01-x.log", "my-app-2024-01-01.log"}
        for name in (*strangers, "app-2024-01-01.log", "app-2024-01-01.1.log"):
            (world.directory / name).write_text("")
        world.log_at("2024-05-01", "2024-05-02")
        assert {path.name for path in world.directory.iterdir()} == strangers | {"app.log", "app-2024-05-01.log"}

    def test_the_newest_stay(self, make_world: Callable[..., World]) -> None:
        """backup_count=2 keeps the two newest, those with a number counted by it."""
        world = make_world(when="h", backup_count=2)
        first = dt.datetime(2024, 10, 27, 1).timestamp()  # noqa: DTZ001
        for hour in range(4):
            world.log(first + hour * 3600)
        assert world.files() == {"app.log.2024-10-27_02": [1], "app.log.2024-10-27_02.1": [2], "app.log": [3]}

    def test_without_a_bound_nothing_is_deleted(self, make_world: Callable[..., World]) -> None:
        """backup_count=0 keeps all."""
        world = make_world(when="midnight")
        world.log_at(*(f"2024-05-{day:02}" for day in range(1, 31)))
        assert len(world.files()) == 30
        world.check_whole()


class TestArguments:
    """What is refused, and what can be asked."""

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"when": "w7"}, "when='w7'"),
            ({"when": "fortnight"}, "when='fortnight'"),
            ({"when": 5}, "when=5"),
            ({"interval": 0}, "interval=0"),
            ({"interval": 1.5}, "interval=1.5"),
            ({"at_time": "12:00"}, "at_time='12:00'"),
            ({"at_time": dt.time(1, tzinfo=dt.timezone.utc)}, "at_time=datetime.time(1, 0, tzinfo="),
            ({"utc": "no"}, "utc='no'"),
            ({"backup_count": -1}, "backup_count=-1"),
            ({"max_bytes": -1}, "max_bytes=-1"),
        ],
    )
    def test_what_cannot_be_used_is_named(self, options: dict[str, Any], named: str, tmp_path: Path) -> None:
        """A bad argument is a ValueError with its name and value, before any file is made."""
        with pytest.raises(ValueError, match=r"=") as caught:
            TimedRotatingFileSink(tmp_path / "app.log", **options)
        assert named in str(caught.value)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("max_age", "when"),
        [
            (None, "H"),
            (3600, "H"),
            (dt.timedelta(hours=23), "H"),
            (86_400, "MIDNIGHT"),
            (dt.timedelta(days=10), "MIDNIGHT"),
        ],
    )
    def test_without_when_the_unit_goes_by_how_long_files_are_kept(
        self, max_age: float | dt.timedelta | None, when: str, tmp_path: Path
    ) -> None:
        """Who keeps files for ten days gets ten files, not 240; a unit that is given counts."""
        path = tmp_path / "app.log"
        with TimedRotatingFileSink(path, max_age=max_age) as sink:
            assert sink.when == when
        with TimedRotatingFileSink(path, "h", max_age=max_age) as sink:
            assert sink.when == "H"

    def test_what_was_documented_can_be_asked(self, make_world: Callable[..., World]) -> None:
        """The schedule's arguments are attributes, and the next rollover is the end of the interval."""
        world = make_world(when="midnight", interval=2, at_time=dt.time(6))
        world.log_at("2024-05-01 12:00")
        sink = world.sink
        assert sink is not None
        assert (sink.when, sink.interval, sink.utc, sink.at_time) == ("MIDNIGHT", 2, False, dt.time(6))
        assert sink.suffix == "%Y-%m-%d"
        expected = dt.datetime(2024, 5, 3, 6).timestamp()  # noqa: DTZ001
        assert sink.rollover_at == sink.compute_rollover(dt.datetime(2024, 5, 1, 13).timestamp()) == expected  # noqa: DTZ001


# -- whole years, in all zones

SCHEDULES = st.fixed_dictionaries(
    {
        "when": st.sampled_from([*SECONDS, *["MIDNIGHT"] * 4]),
        "interval": st.integers(1, 5),
        "utc": st.booleans(),
        "at_time": st.none() | st.times(),
    }
)


@st.composite
def histories(draw: st.DrawFn, zone: zoneinfo.ZoneInfo, seconds: float) -> list[float]:
    """Moments in order, from 1990 to 2037, some close together and some far apart, some near a clock's change."""
    near = st.sampled_from(changes(zone) or [1_000_000_000])
    start = draw(near.map(lambda change: change - 2.0 * DAY) | st.floats(631_152_000, 2_100_000_000))
    steps = draw(st.lists(st.floats(0.0, 1.0) | st.integers(0, 3).map(float) | st.floats(1.0, 9.0), max_size=20))
    moments = itertools.accumulate((step * seconds for step in steps), initial=float(int(start)))
    # In quarters of a second, which floats, their sums and the clock that is travelled in hold exactly: what falls on a
    # boundary falls on it everywhere.
    return [round(4 * moment) / 4 for moment in moments]


@pytest.mark.parametrize("restarts", [False, True], ids=["one process", "restarts"])
@pytest.mark.parametrize("name", ZONES)
def test_the_files_divide_the_events_by_their_intervals(name: str, restarts: bool) -> None:
    """Whatever happens when, each file holds the events of one interval in order, and no file is lost."""
    with local_zone(name) as zone:

        @settings(max_examples=12)
        @given(st.data())
        def check(data: st.DataObject) -> None:
            options = data.draw(SCHEDULES)
            schedule = Schedule(**options)
            moments = data.draw(histories(zone, SECONDS[schedule.when] * schedule.interval / 2))
            with (
                tempfile.TemporaryDirectory() as directory,
                pytest.MonkeyPatch.context() as patch,
                time_machine.travel(0, tick=False) as traveller,
            ):
                world = World(Path(directory), patch, traveller, **options)
                world.births_known = data.draw(st.booleans())
                for moment in moments:
                    if restarts and data.draw(st.booleans()):
                        world.stop()
                    world.log(moment)
                world.stop()
                world.check_whole()
                check_division(world, schedule, exact=not restarts)

        check()


def check_division(world: World, schedule: Schedule, *, exact: bool) -> None:
    """Check which events are together; where processes began anew, as far as the files tell them."""
    files = world.files()
    natural = schedule.when.startswith("W") or (schedule.when == "MIDNIGHT" and schedule.interval == 1)
    if not (exact or natural):
        return  # what is left of the start is a birth or a name; that nothing is lost was checked
    anchor = world.moments[0]
    by_start = {
        start: list(group)
        for start, group in itertools.groupby(
            range(len(world.moments)), lambda number: schedule.start_of(world.moments[number], anchor)
        )
    }
    assert list(files.values()) == list(by_start.values())
    *rotated, current = files
    assert current == "app.log"
    texts = [schedule.text_of(start) for start in by_start][:-1]
    assert [name.split(".")[2] for name in rotated] == texts
    if natural or len(set(texts)) == len(texts):
        assert rotated == [f"app.log.{text}" for text in texts]
    else:
        assert len(set(rotated)) == len(rotated)

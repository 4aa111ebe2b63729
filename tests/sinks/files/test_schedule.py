"""The policy of rotation by time: boundaries and names."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import pickle
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outfall.sinks.files.schedule import Schedule
from tests.sinks._zones import ZONES, changes, local_zone

if TYPE_CHECKING:
    import zoneinfo
UNITS = {"S": 1, "M": 60, "H": 3600, "D": 86_400}
WEEKDAYS = [f"W{number}" for number in range(7)]
CALENDAR = ["MIDNIGHT", *WEEKDAYS]
DAY = 86_400


def local(text: str, fold: int = 0) -> float:
    """Return the moment at which the clock of the process reads *text*."""
    return dt.datetime.fromisoformat(text).replace(fold=fold).timestamp()


def shown(moment: float) -> str:
    """Return what the clock of the process reads at *moment*."""
    return dt.datetime.fromtimestamp(moment).isoformat(" ")  # noqa: DTZ006


def boundaries(schedule: Schedule, first: str, count: int, anchor: float = 0.0) -> list[str]:
    """Return what the clock reads at *count* boundaries from the interval on that holds the moment *first*."""
    moment = schedule.start_of(local(first), anchor)
    found = [shown(moment)]
    while len(found) < count:
        moment = schedule.next_after(moment, anchor)
        found.append(shown(moment))
    return found


class TestArguments:
    """What a schedule takes and what it refuses."""

    @pytest.mark.parametrize(
        ("when", "suffix", "text"),
        [
            ("s", "%Y-%m-%d_%H-%M-%S", "2024-02-29_13-45-59"),
            ("m", "%Y-%m-%d_%H-%M", "2024-02-29_13-45"),
            ("h", "%Y-%m-%d_%H", "2024-02-29_13"),
            ("d", "%Y-%m-%d", "2024-02-29"),
            ("midnight", "%Y-%m-%d", "2024-02-29"),
            ("w2", "%Y-%m-%d", "2024-02-29"),
        ],
    )
    def test_each_unit_has_the_documented_suffix(self, when: str, suffix: str, text: str) -> None:
        """A unit's names are as documented for the handler in logging, and its pattern matches them."""
        schedule = Schedule(when, utc=True)
        moment = dt.datetime(2024, 2, 29, 13, 45, 59, tzinfo=dt.timezone.utc).timestamp()
        assert schedule.suffix == suffix
        assert schedule.text_of(moment) == text
        assert schedule.pattern.fullmatch(text)

    @pytest.mark.parametrize("when", ["s", "M", "h", "D", "midnight", "Midnight", "MIDNIGHT", "w0", "W6"])
    def test_the_unit_may_be_in_any_case(self, when: str) -> None:
        """A unit is known in any case and kept in upper case."""
        assert Schedule(when).when == when.upper()

    def test_what_is_left_out_is_an_hour_of_local_time(self) -> None:
        """A schedule without arguments has intervals of one hour, local time and no time of day."""
        schedule = Schedule()
        assert (schedule.when, schedule.interval, schedule.utc, schedule.at_time) == ("H", 1, False, None)

    @pytest.mark.parametrize("when", ["", "w", "W7", "W-1", "w10", "midnigh", " h", "hour", "W\u0663", 1, None, b"h"])
    def test_a_unit_that_is_none_is_refused(self, when: object) -> None:
        """An unknown unit is refused with a message that names it."""
        with pytest.raises(ValueError, match=r"^when=") as caught:
            Schedule(when)  # type: ignore[arg-type]
        assert repr(when) in str(caught.value)

    @pytest.mark.parametrize("interval", [0, -1, 1.0, 1.5, True, "1", None, math.nan])
    def test_an_interval_that_is_none_is_refused(self, interval: object) -> None:
        """An interval that is not a whole number from 1 up is refused with a message that names it."""
        with pytest.raises(ValueError, match=r"^interval=") as caught:
            Schedule("h", interval)  # type: ignore[arg-type]
        assert repr(interval) in str(caught.value)

    @pytest.mark.parametrize("utc", [1, 0, None, "yes"])
    def test_a_utc_that_is_no_bool_is_refused(self, utc: object) -> None:
        """Something other than True or False for utc is refused with a message that names it."""
        with pytest.raises(ValueError, match=r"^utc=") as caught:
            Schedule("h", utc=utc)  # type: ignore[arg-type]
        assert repr(utc) in str(caught.value)

    @pytest.mark.parametrize(
        "at_time",
        ["12:00", 12, dt.datetime(2024, 1, 1, 12), dt.timedelta(hours=12), dt.time(12, tzinfo=dt.timezone.utc)],  # noqa: DTZ001
    )
    def test_a_time_of_day_that_is_none_is_refused(self, at_time: object) -> None:
        """A time of day that is no naive datetime.time is refused with a message that names it."""
        with pytest.raises(ValueError, match=r"^at_time=") as caught:
            Schedule("midnight", at_time=at_time)  # type: ignore[arg-type]
        assert repr(at_time) in str(caught.value)

    @pytest.mark.parametrize("when", UNITS)
    def test_counted_units_do_not_use_the_time_of_day(self, when: str) -> None:
        """at_time is taken and not used for seconds, minutes, hours and days."""
        plain, timed = Schedule(when), Schedule(when, at_time=dt.time(12, 34, 56))
        assert timed.next_after(1e9 + 0.5, 77.0) == plain.next_after(1e9 + 0.5, 77.0)
        assert timed.text_of(1e9) == plain.text_of(1e9)

    def test_a_schedule_is_a_value(self) -> None:
        """A schedule cannot be changed; it compares by its arguments, and can be hashed and pickled."""
        schedule = Schedule("midnight", 2, utc=True, at_time=dt.time(1))
        with pytest.raises(dataclasses.FrozenInstanceError):
            schedule.interval = 3  # type: ignore[misc]
        assert schedule == Schedule("MIDNIGHT", 2, utc=True, at_time=dt.time(1)) != Schedule("MIDNIGHT")
        assert pickle.loads(pickle.dumps(schedule)) == schedule
        assert len({schedule, Schedule("MIDNIGHT", 2, utc=True, at_time=dt.time(1))}) == 1
        assert repr(schedule) == "Schedule(when='MIDNIGHT', interval=2, utc=True, at_time=datetime.time(1, 0))"


class TestBoundaries:
    """Where one interval ends and the next begins."""

    def test_counted_units_are_counted_from_the_anchor(self) -> None:
        """The intervals of seconds, minutes, hours and days are counted from the anchor in both directions."""
        for when, seconds in UNITS.items():
            for interval in (1, 2, 5):
                schedule, step = Schedule(when, interval), seconds * interval
                for index in (-3, -1, 0, 1, 7):
                    start = 1e9 + 0.25 + index * step
                    assert schedule.start_of(start, 1e9 + 0.25) == start
                    assert schedule.start_of(start + step - 0.125, 1e9 + 0.25) == start
                    assert schedule.next_after(start, 1e9 + 0.25) == start + step

    def test_a_boundary_belongs_to_the_interval_it_begins(self) -> None:
        """At midnight sharp the new day has begun, and the moment before it has not."""
        with local_zone("Europe/Berlin"):
            schedule, midnight = Schedule("midnight"), local("2024-05-01")
            assert schedule.start_of(midnight, 0.0) == midnight
            assert schedule.next_after(midnight, 0.0) == local("2024-05-02")
            assert schedule.next_after(math.nextafter(midnight, 0.0), 0.0) == midnight

    def test_days_are_as_long_as_the_clock_makes_them(self) -> None:
        """Midnight to midnight is 23 hours where the clock is put forward and 25 where it is put back."""
        with local_zone("Europe/Berlin"):
            schedule = Schedule("midnight")
            for day, hours in (("2024-03-31", 23), ("2024-06-01", 24), ("2024-10-27", 25)):
                start = schedule.start_of(local(day + " 12:00"), 0.0)
                assert shown(start) == day + " 00:00:00"
                assert schedule.next_after(start, 0.0) - start == hours * 3600

    def test_counted_days_are_of_24_hours(self) -> None:
        """A day of unit D has 24 hours whatever the clock does."""
        with local_zone("Europe/Berlin"):
            noon = local("2024-03-30 12:00")
            assert shown(Schedule("d").next_after(noon, noon)) == "2024-03-31 13:00:00"

    def test_a_time_that_the_clock_leaves_out_is_when_it_is_put_forward(self) -> None:
        """A boundary in a gap is the end of the gap, on that day alone."""
        with local_zone("Europe/Berlin"):
            found = boundaries(Schedule("midnight", at_time=dt.time(2, 30)), "2024-03-30 12:00", 3)
        assert found == ["2024-03-30 02:30:00", "2024-03-31 03:00:00", "2024-04-01 02:30:00"]

    def test_a_time_that_the_clock_repeats_is_a_boundary_once(self) -> None:
        """A boundary in a fold is the first of the two moments, and the second is none."""
        with local_zone("Europe/Berlin"):
            schedule = Schedule("midnight", at_time=dt.time(2, 30))
            first, second = local("2024-10-27 02:30"), local("2024-10-27 02:30", fold=1)
            assert second - first == 3600
            assert schedule.next_after(first - 1, 0.0) == first
            assert schedule.start_of(second, 0.0) == first
            assert schedule.next_after(first, 0.0) == local("2024-10-28 02:30")

    @pytest.mark.parametrize(
        ("zone", "day", "reading"),
        [
            ("America/New_York", "2024-03-10", "2024-03-10 03:00:00"),
            ("Europe/Berlin", "2024-03-31", "2024-03-31 03:00:00"),
            ("Australia/Lord_Howe", "2024-10-06", "2024-10-06 02:30:00"),
            ("Africa/Casablanca", "2024-04-14", "2024-04-14 03:00:00"),
        ],
    )
    def test_each_zone_puts_the_clock_forward_in_its_own_way(self, zone: str, day: str, reading: str) -> None:
        """A quarter past two is left out by an hour in most zones, by half an hour in one, and after Ramadan in one."""
        with local_zone(zone):
            found = boundaries(Schedule("midnight", at_time=dt.time(2, 15)), day + " 12:00", 1)
        assert found == [reading]

    @pytest.mark.parametrize(("zone", "day"), [("America/Sao_Paulo", "2018-11-04"), ("Asia/Beirut", "2024-03-31")])
    def test_a_day_without_a_midnight_begins_at_one(self, zone: str, day: str) -> None:
        """Where the clock goes from midnight to one, the day begins there, and has its own name."""
        with local_zone(zone):
            schedule = Schedule("midnight")
            assert boundaries(schedule, day + " 12:00", 1) == [day + " 01:00:00"]
            assert schedule.text_of(schedule.start_of(local(day + " 12:00"), 0.0)) == day

    def test_a_day_that_was_left_out_has_no_interval(self) -> None:
        """In Samoa 29 December 2011 was followed by the 31st, and so is the interval."""
        with local_zone("Pacific/Apia"):
            schedule = Schedule("midnight")
            assert boundaries(schedule, "2011-12-29 12:00", 3) == [
                "2011-12-29 00:00:00", "2011-12-31 00:00:00", "2012-01-01 00:00:00"
            ]  # fmt: skip
            assert schedule.parse("2011-12-30") is None

    def test_a_weekday_that_was_left_out_begins_with_the_next_day(self) -> None:
        """A week that begins on a day that was left out keeps that day's name, and can be found by it."""
        with local_zone("Pacific/Apia"):
            schedule = Schedule("w3")
            start = schedule.start_of(local("2012-01-02"), 0.0)
            assert shown(start) == "2011-12-31 00:00:00"
            assert schedule.text_of(start) == "2011-12-30"
            assert schedule.parse("2011-12-30") == start
            assert shown(schedule.next_after(start, 0.0)) == "2012-01-06 00:00:00"

    def test_a_rollover_put_past_midnight_keeps_the_name_of_its_day(self) -> None:
        """Where half past eleven is left out together with midnight, two boundaries on one date have two names."""
        with local_zone("Asia/Dhaka"):
            schedule = Schedule("midnight", at_time=dt.time(23, 30))
            start = schedule.next_after(local("2009-06-19 12:00"), 0.0)
            following = schedule.next_after(start, 0.0)
            assert [shown(start), shown(following)] == ["2009-06-20 00:00:00", "2009-06-20 23:30:00"]
            assert [schedule.text_of(start), schedule.text_of(following)] == ["2009-06-19", "2009-06-20"]
            assert [schedule.parse("2009-06-19"), schedule.parse("2009-06-20")] == [start, following]

    def test_a_clock_put_back_over_midnight_does_not_bring_yesterday_back(self) -> None:
        """What happens when the clock shows yesterday's last hour again belongs to the day that has begun."""
        with local_zone("America/St_Johns"):
            schedule = Schedule("midnight")
            start = schedule.next_after(local("2010-11-06 12:00"), 0.0)
            assert shown(start + 120) == "2010-11-06 23:02:00"
            assert schedule.start_of(start + 120, 0.0) == start
            assert schedule.text_of(start) == "2010-11-07"

    def test_utc_takes_no_notice_of_local_time(self) -> None:
        """With utc, days begin at midnight UTC and are named for it."""
        with local_zone("Pacific/Apia"):
            schedule = Schedule("midnight", utc=True)
            start = schedule.start_of(1e9, 0.0)
            assert start % DAY == 0
            assert schedule.text_of(start) == "2001-09-09"
            assert schedule.parse("2001-09-09") == start
            assert Schedule("h", utc=True).text_of(1e9) == "2001-09-09_01"

    def test_a_change_of_the_zone_is_noticed(self) -> None:
        """A schedule follows time.tzset."""
        schedule = Schedule("midnight")
        with local_zone("UTC"):
            assert schedule.start_of(1e9, 0.0) == 999_993_600
        with local_zone("America/New_York"):
            assert schedule.start_of(1e9, 0.0) == 999_921_600

    @pytest.mark.parametrize(("number", "day"), [(number, f"{number + 1:02}") for number in range(7)])
    def test_weekdays_begin_with_monday(self, number: int, day: str) -> None:
        """W0 is Monday and W6 Sunday, from midnight to midnight; 1 January 2024 was a Monday."""
        with local_zone("Europe/Berlin"):
            assert boundaries(Schedule(f"w{number}", at_time=dt.time(0)), f"2024-01-{day} 00:00", 2) == [
                f"2024-01-{day} 00:00:00", f"2024-01-{int(day) + 7:02} 00:00:00"
            ]  # fmt: skip

    def test_weekdays_do_not_use_the_interval(self) -> None:
        """An interval of 3 leaves a weekday as it is."""
        assert Schedule("w2", 3).next_after(1e9, 5.0) == Schedule("w2").next_after(1e9, 0.0)

    def test_no_time_of_day_is_the_start_of_a_day_and_the_end_of_a_weekday(self) -> None:
        """None is midnight; a weekday is over then, as with logging's handler, and begins with a time of 0:00."""
        with local_zone("UTC"):
            assert boundaries(Schedule("midnight"), "2024-01-03 12:00", 1) == ["2024-01-03 00:00:00"]
            assert boundaries(Schedule("w0"), "2024-01-03", 1) == ["2024-01-02 00:00:00"]
            assert boundaries(Schedule("w6"), "2024-01-03", 1) == ["2024-01-01 00:00:00"]
            assert boundaries(Schedule("w0", at_time=dt.time(0)), "2024-01-03", 1) == ["2024-01-01 00:00:00"]

    def test_before_its_time_of_day_a_weekday_has_not_begun(self) -> None:
        """On Monday morning a week that begins on Mondays at noon is still the last one."""
        with local_zone("America/New_York"):
            found = boundaries(Schedule("w0", at_time=dt.time(12)), "2024-01-08 11:59:59", 2)
        assert found == ["2024-01-01 12:00:00", "2024-01-08 12:00:00"]

    def test_days_are_counted_from_the_one_the_anchor_is_in(self) -> None:
        """With an interval of 3, every third day has a boundary, counted from the day that holds the anchor."""
        with local_zone("Europe/Berlin"):
            schedule, anchor = Schedule("midnight", 3, at_time=dt.time(6)), local("2024-03-29 05:59")
            assert boundaries(schedule, "2024-03-29 05:59", 3, anchor) == [
                "2024-03-28 06:00:00", "2024-03-31 06:00:00", "2024-04-03 06:00:00"
            ]  # fmt: skip
            assert boundaries(schedule, "2024-03-28 05:59", 1, anchor) == ["2024-03-25 06:00:00"]

    @pytest.mark.parametrize("when", CALENDAR)
    def test_single_days_and_weeks_need_no_anchor(self, when: str) -> None:
        """With an interval of 1 the anchor changes nothing for midnight and weekdays."""
        schedule = Schedule(when)
        assert len({schedule.next_after(1e9, anchor) for anchor in (0.0, 1e9, -5e8, 2e9 + 0.5)}) == 1

    def test_a_fraction_of_a_second_counts(self) -> None:
        """A time of day is heeded to the microsecond."""
        schedule = Schedule("midnight", utc=True, at_time=dt.time(0, 0, 1, 500_000))
        assert schedule.next_after(10 * DAY, 0.0) == 10 * DAY + 1.5
        assert schedule.parse(schedule.text_of(10 * DAY + 1.5)) == 10 * DAY + 1.5


class TestNames:
    """From the start of an interval to its name and back."""

    def test_an_hour_that_is_repeated_has_one_name(self) -> None:
        """Two hours may have one name; it stands for the first of them."""
        with local_zone("Europe/Berlin"):
            schedule, first = Schedule("h"), local("2024-10-27 02:00")
            assert schedule.text_of(first) == schedule.text_of(first + 3600) == "2024-10-27_02"
            assert schedule.parse("2024-10-27_02") == first

    def test_an_hour_that_is_left_out_is_no_time(self) -> None:
        """There is no start whose name is an hour that the clock leaves out."""
        with local_zone("Europe/Berlin"):
            assert Schedule("h").parse("2024-03-31_02") is None
            assert Schedule("m").parse("2024-03-31_02-59") is None
            assert Schedule("s").parse("2024-03-31_03-00-00") == local("2024-03-31 03:00")

    def test_an_hour_that_is_cut_short_begins_where_the_clock_enters_it(self) -> None:
        """A name stands for the first moment the clock reads something of that name."""
        with local_zone("America/St_Johns"):  # put forward at one minute past midnight
            assert shown(Schedule("h").parse("2010-03-14_01") or 0) == "2010-03-14 01:01:00"
        with local_zone("Australia/Lord_Howe"):  # put forward by half an hour
            assert shown(Schedule("h").parse("2024-10-06_02") or 0) == "2024-10-06 02:30:00"

    @pytest.mark.parametrize(
        ("when", "text"),
        [
            ("d", "2024-02-30"),
            ("d", "2023-02-29"),
            ("d", "2024-13-01"),
            ("d", "0000-01-01"),
            ("d", "0999-12-31"),
            ("d", "2024-1-1"),
            ("d", "2024-01-01 "),
            ("d", "2024-01-01\n"),
            ("d", "x2024-01-01"),
            ("d", "2024-01-01_10"),
            ("d", "202\u0664-01-01"),
            ("d", ""),
            ("h", "2024-01-01"),
            ("h", "2024-01-01_24"),
            ("m", "2024-01-01_23-60"),
            ("s", "2024-01-01_23-59-60"),
            ("w0", "2024-01-01"),
        ],
    )
    def test_what_is_no_name_is_not_taken_for_one(self, when: str, text: str) -> None:
        """A text that no start is named by gives None."""
        assert Schedule(when, utc=True).parse(text) is None

    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("app.log.2024-01-02", ["2024-01-02"]),
            ("2024-01-02-app.log", ["2024-01-02"]),
            ("app_2024-01-02_old_2024-01-03.log", ["2024-01-02", "2024-01-03"]),
            ("2023-01-2024-01-02", ["2024-01-02"]),
            ("app.log.12024-01-02", []),
            ("app.log.2024-01-023", []),
            ("app.log.2024-01", []),
            ("app.log.202\u0664-01-02", []),
        ],
    )
    def test_names_are_found_in_other_text(self, name: str, found: list[str]) -> None:
        """The pattern finds what looks like a name within a text, next to anything but digits."""
        assert [match.group() for match in Schedule("midnight").pattern.finditer(name)] == found

    def test_a_longer_suffix_is_not_found_in_a_shorter_one(self) -> None:
        """Each unit finds only what is as long as its own names, but may find that within a longer one."""
        name = "app.log.2024-01-02_03-04"
        found = {when: [match.group() for match in Schedule(when).pattern.finditer(name)] for when in UNITS}
        assert found == {"S": [], "M": ["2024-01-02_03-04"], "H": ["2024-01-02_03"], "D": ["2024-01-02"]}

    @pytest.mark.parametrize("when", CALENDAR)
    def test_any_moment_has_the_name_of_its_day_or_week(self, when: str) -> None:
        """A moment that is no boundary is named as the interval that holds it."""
        schedule = Schedule(when, utc=True, at_time=dt.time(6))
        for moment in (1e9, 1e9 + DAY / 2, 1e9 + DAY):
            assert schedule.text_of(moment) == schedule.text_of(schedule.start_of(moment, 0.0))


class TestExtremes:
    """Moments that no log knows, and platforms that know less."""

    @pytest.mark.parametrize("when", [*UNITS, *CALENDAR])
    @pytest.mark.parametrize("moment", [-1e15, -1e11, -3e10, -1.0, 0.0, 0.5, 4e9, 2.6e11, 1e12, 7e16, 1e300])
    def test_no_moment_is_refused(self, when: str, moment: float) -> None:
        """For a clock that is centuries off, nothing raises and nothing is endless."""
        schedule = Schedule(when, 3)
        if abs(moment) < 1e12:
            assert schedule.start_of(moment, 5.5) <= moment < schedule.next_after(moment, 5.5)
        else:
            schedule.start_of(moment, 5.5)
            schedule.next_after(moment, 5.5)
        text = schedule.text_of(moment)
        assert schedule.pattern.fullmatch(text)
        schedule.parse(text)

    @pytest.mark.parametrize("when", [*UNITS, "MIDNIGHT"])
    @pytest.mark.parametrize("interval", [10**6, 10**12, 10**400])
    def test_no_interval_is_too_long(self, when: str, interval: int) -> None:
        """An interval that ends after all time has passed never ends."""
        schedule = Schedule(when, interval)
        for moment in (1e9 - 1, 1e9, 2e9):
            start, end = schedule.start_of(moment, 1e9), schedule.next_after(moment, 1e9)
            assert start <= moment < end
            assert schedule.start_of(end, 1e9) == end

    @pytest.mark.parametrize("error", [OSError, OverflowError, ValueError])
    def test_where_local_time_ends_standard_time_holds(
        self, error: type[Exception], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A localtime that knows neither early nor late years is done without."""
        true_localtime = time.localtime

        def localtime(moment: float) -> time.struct_time:
            if not 0 <= moment < 4e9:
                raise error(moment)
            return true_localtime(moment)

        with local_zone("Europe/Berlin"):
            monkeypatch.setattr(time, "localtime", localtime)
            schedule = Schedule("midnight")
            for moment in (-1e9, -1.0, 0.0, 5e9):
                start = schedule.start_of(moment, 0.0)
                assert start <= moment < schedule.next_after(moment, 0.0)
                assert schedule.parse(schedule.text_of(start)) == start
                assert start % DAY == DAY - 3600


# -- whole years, in all zones


def moments(zone: zoneinfo.ZoneInfo) -> st.SearchStrategy[float]:
    """Moments from 1990 to 2037, many of them near a change of the clock."""
    anywhere = st.floats(631_152_000, 2_145_916_800)
    if not changes(zone):
        return anywhere
    near = st.builds(lambda change, by: change + by, st.sampled_from(changes(zone)), st.floats(-1.5 * DAY, 1.5 * DAY))
    on_the_hour = st.builds(
        lambda change, by: float(change + by * 900), st.sampled_from(changes(zone)), st.integers(-120, 120)
    )
    return st.one_of(anywhere, near, on_the_hour)


SCHEDULES = st.builds(
    Schedule,
    st.sampled_from([*UNITS, *["MIDNIGHT"] * 4, *WEEKDAYS]),
    st.integers(1, 5),
    utc=st.booleans(),
    at_time=st.none() | st.times(),
)
#: As coarse as the reference below.
CALENDAR_SCHEDULES = st.builds(
    Schedule,
    st.sampled_from(["MIDNIGHT"] * 4 + WEEKDAYS),
    st.integers(1, 5),
    at_time=st.none() | st.builds(lambda quarters: dt.time(quarters // 4, quarters % 4 * 15), st.integers(0, 95)),
)


#: When whole days or midnights were left out, once only.
EVENTFUL = {"Pacific/Apia": 2011, "Asia/Dhaka": 2009, "America/Sao_Paulo": 2017}


def slow_boundaries(schedule: Schedule, zone: zoneinfo.ZoneInfo, year: int) -> dict[dt.date, float]:
    """Return the moment of the rollover for each date of *year* and a week around it, by reading the clock.

    It looks at the clock every quarter of an hour: the first time it reads the time of day on that date, or later, is
    the boundary.
    """
    wanted = dt.datetime.combine(dt.date(year, 1, 1) - dt.timedelta(7), schedule.at_time or dt.time())
    moment = int(wanted.replace(tzinfo=dt.timezone.utc).timestamp()) - DAY
    reading = dt.datetime.fromtimestamp(moment, zone).replace(tzinfo=None)
    found = {}
    while wanted.date() < dt.date(year + 1, 1, 8):
        while reading < wanted:
            moment += 900
            reading = dt.datetime.fromtimestamp(moment, zone).replace(tzinfo=None)
        found[wanted.date()] = float(moment)
        wanted += dt.timedelta(1)
    return found


@pytest.mark.parametrize("name", ZONES)
def test_intervals_divide_the_time(name: str) -> None:
    """Every moment is in one interval; where it ends the next begins, and names lead back to the start."""
    with local_zone(name) as zone:

        @settings(max_examples=40)
        @given(SCHEDULES, moments(zone), moments(zone))
        def check(schedule: Schedule, moment: float, anchor: float) -> None:
            start, end = schedule.start_of(moment, anchor), schedule.next_after(moment, anchor)
            assert start <= moment < end
            assert schedule.start_of(start, anchor) == start
            assert schedule.start_of(math.nextafter(end, 0.0), anchor) == start
            assert schedule.next_after(start, anchor) == end
            assert schedule.next_after(math.nextafter(start, 0.0), anchor) == start
            assert schedule.start_of(end, anchor) == end
            check_name(schedule, start, zone)
            if schedule.when in UNITS:
                assert end - start == UNITS[schedule.when] * schedule.interval
            else:
                assert schedule.text_of(start) < schedule.text_of(end)

        check()


def check_name(schedule: Schedule, start: float, zone: zoneinfo.ZoneInfo) -> None:
    """Check that the name of *start* leads back to it, as far as names tell starts apart."""
    text = schedule.text_of(start)
    assert schedule.pattern.fullmatch(text)
    parsed = schedule.parse(text)
    assert parsed is not None
    assert schedule.text_of(parsed) == text
    if schedule.when not in UNITS:
        assert parsed == start
        return
    assert parsed <= start
    named = dt.datetime.strptime(text, schedule.suffix).replace(tzinfo=dt.timezone.utc if schedule.utc else zone)
    if named.astimezone(dt.timezone.utc).astimezone(named.tzinfo) == named:  # no gap
        assert parsed == named.timestamp()


@pytest.mark.parametrize("name", ZONES)
def test_the_boundaries_of_whole_years_are_what_the_clock_says(name: str) -> None:
    """From January to December the boundaries of days and weeks are those found by watching the clock."""
    with local_zone(name) as zone:

        @settings(max_examples=3)
        @given(
            CALENDAR_SCHEDULES, st.integers(1990, 2037) | st.just(EVENTFUL.get(name, 2024)), st.integers(0, 366 * 24)
        )
        def check(schedule: Schedule, year: int, hours: int) -> None:
            reference = slow_boundaries(schedule, zone, year)
            first, last = local(f"{year}-01-01"), local(f"{year}-12-31 23:00")
            anchor = first + hours * 3600
            dates = list(reference)
            if schedule.when == "MIDNIGHT":
                origin = max(date for date in dates if reference[date] <= anchor)
                kept = [date for date in dates if (date - origin).days % schedule.interval == 0]
            else:
                weekday = (int(schedule.when[1]) + (schedule.at_time is None)) % 7
                kept = [date for date in dates if date.weekday() == weekday]
            expected = sorted({reference[date] for date in kept})
            found = [schedule.start_of(first, anchor)]
            while found[-1] <= last:
                found.append(schedule.next_after(found[-1], anchor))
            assert found == [moment for moment in expected if found[0] <= moment <= found[-1]]
            assert found[1] > first
            texts = [schedule.text_of(moment) for moment in found]
            assert texts == sorted(set(texts))
            assert [schedule.parse(text) for text in texts] == found

        check()


@pytest.mark.parametrize("name", ["Europe/Berlin", "Australia/Lord_Howe", "Pacific/Apia"])
def test_a_year_of_hours_leaves_none_out(name: str) -> None:
    """Hour after hour of a year, in which the clock is changed, follow each other without gap or overlap."""
    with local_zone(name):
        schedule, anchor = Schedule("h"), local("2011-01-01")
        found = [anchor]
        while found[-1] < local("2012-01-01"):
            found.append(schedule.next_after(found[-1], anchor))
        assert found == [anchor + index * 3600 for index in range(len(found))]
        texts = [schedule.text_of(moment) for moment in found]
        repeated = len(texts) - len(set(texts))
        assert repeated == {"Europe/Berlin": 1, "Australia/Lord_Howe": 1, "Pacific/Apia": 1}[name]


def test_the_zone_of_the_process_is_as_before() -> None:
    """The zones that the tests set do not outlive them."""
    was = time.localtime(1e9).tm_gmtoff
    with local_zone("Pacific/Apia"):
        pass
    assert time.localtime(1e9).tm_gmtoff == was

"""Level names and numbers."""

from __future__ import annotations

import logging
import math

import pytest

from outfall.sinks.event.event import LevelledEvent
from outfall.sinks.event.levels import INFO, NOTSET, NUMBERS, UNKNOWN, level_name, level_of, parse_level

NAMES = {
    "notset": 0,
    "trace": 5,
    "debug": 10,
    "info": 20,
    "msg": 20,
    "informational": 20,
    "notice": 25,
    "warning": 30,
    "warn": 30,
    "error": 40,
    "err": 40,
    "exception": 40,
    "failure": 40,
    "critical": 50,
    "fatal": 50,
    "crit": 50,
    "alert": 50,
    "emerg": 50,
    "emergency": 50,
    "panic": 50,
}


@pytest.fixture
def register():
    """Register level names as `logging.addLevelName` does, and forget them afterwards."""
    to_name, to_level = logging._levelToName.copy(), logging._nameToLevel.copy()
    yield logging.addLevelName
    logging._levelToName.clear()
    logging._levelToName.update(to_name)
    logging._nameToLevel.clear()
    logging._nameToLevel.update(to_level)


class Hostile:
    """Raises at whatever is done with it."""

    @property
    def __class__(self):
        raise ZeroDivisionError

    def __eq__(self, other):
        raise ZeroDivisionError

    __hash__ = None


class HostileText(str):
    """Text whose methods raise."""

    __slots__ = ()

    def strip(self, *args):
        raise ZeroDivisionError

    def __hash__(self):
        raise ZeroDivisionError


@pytest.mark.parametrize(("name", "number"), NAMES.items())
@pytest.mark.parametrize(
    "spell", [str, str.upper, str.capitalize, str.swapcase, lambda n: f" {n}\n", lambda n: n[0] + n[1:].upper()]
)
def test_a_name_or_alias_means_its_number_in_any_case(name, number, spell):
    """Names and aliases are known in every case, with blanks around them too."""
    assert parse_level(spell(name)) == number
    assert level_of({"level": spell(name)}) == number


@pytest.mark.parametrize("name", NAMES)
def test_the_usual_spellings_cost_one_lookup(name):
    """Lower case, upper case and capitalised are in the table itself."""
    assert NUMBERS[name] == NUMBERS[name.upper()] == NUMBERS[name.capitalize()] == NAMES[name]


@pytest.mark.parametrize("number", [0, 7, 30, 30.5, -1, math.inf, UNKNOWN])
def test_a_number_is_a_level(number):
    """Any number is taken as it is, as a setting and in an event."""
    assert parse_level(number) == number
    assert level_of({"level": number}) == number


@pytest.mark.parametrize(
    ("text", "number"), [("30", 30), (" 5 ", 5), ("0", 0), ("level 35", 35), ("LEVEL 35", 35), ("Level 7", 7)]
)
def test_digits_as_text_are_a_number(text, number):
    """A number that came as text counts, also as logging words a level without a name."""
    assert parse_level(text) == number
    assert level_of({"level": text}) == number


@pytest.mark.parametrize("registered", ["verbose", "VERBOSE", "Verbose"])
@pytest.mark.parametrize("given", ["verbose", "VERBOSE", "Verbose", " verbose "])
def test_a_name_registered_with_logging_is_known_in_any_case(register, registered, given):
    """What logging.addLevelName registered is a level here."""
    register(15, registered)
    assert parse_level(given) == 15
    assert level_of({"level": given}) == 15


def test_a_registered_level_of_two_words_is_known(register):
    """A registered name may have a blank in it."""
    register(33, "Very Important")
    assert level_of({"level": "very important"}) == 33


def test_the_names_of_structlog_win_over_the_registry(register):
    """A registration cannot change what "info" means."""
    register(3, "info")
    assert parse_level("info") == 20


@pytest.mark.parametrize(
    ("level", "error"),
    [
        ("loud", ValueError),
        ("", ValueError),
        ("level loud", ValueError),
        ("9" * 5000, ValueError),
        (math.nan, ValueError),
        (None, TypeError),
        (True, TypeError),
        ([], TypeError),
        (b"info", TypeError),
    ],
)
def test_what_is_no_level_is_refused_by_name_and_value(level, error):
    """Misconfiguration names the argument and the value."""
    with pytest.raises(error, match="flush_level=") as caught:
        parse_level(level, "flush_level")
    assert repr(level)[:20] in str(caught.value)


def test_the_argument_is_called_level_unless_told_otherwise():
    """The message is about ``level`` by default, and says what would be right."""
    with pytest.raises(ValueError, match=r"^level='loud' is not a known level; .*warning.*addLevelName"):
        parse_level("loud")


@pytest.mark.parametrize("level", ["loud", "", "9" * 5000, True, [], math.nan, b"info"])
def test_an_event_whose_level_nobody_knows_passes_every_filter(level):
    """An unknown level is above all others, and finding that out never raises."""
    assert level_of({"level": level}) == UNKNOWN > 10**9


@pytest.mark.parametrize("make", [Hostile, lambda: HostileText("info")])
def test_a_hostile_level_passes_every_filter(make):
    """A level that raises when it is looked at is one nobody knows."""
    assert level_of({"level": make()}) == UNKNOWN


@pytest.mark.parametrize("number", [0, 10, 45.5, -3])
def test_level_number_wins_over_level(number):
    """The number is what counts where an event has both."""
    assert level_of({"level_number": number, "level": "error"}) == number


@pytest.mark.parametrize("number", [None, "10", True, math.nan, []])
def test_a_level_number_that_is_no_number_leaves_it_to_level(number):
    """The name counts where the number is none."""
    assert level_of({"level_number": number, "level": "error"}) == 40


def test_a_hostile_level_number_is_an_unknown_level():
    """A value that raises when it is looked at makes the level unknown, and does not raise."""
    assert level_of({"level_number": Hostile(), "level": "error"}) == UNKNOWN


@pytest.mark.parametrize("event", [{}, {"level": None}, {"level_number": None}, {"event": "x"}])
def test_no_level_at_all_counts_as_info(event):
    """An event without a level is informational."""
    assert level_of(event) == INFO


def test_the_carried_level_counts_where_the_event_has_none():
    """What the method's name said counts, but for an event's own level."""
    assert level_of(LevelledEvent({}, 40)) == 40
    assert level_of(LevelledEvent({}, NOTSET)) == NOTSET
    assert level_of(LevelledEvent({}, None)) == INFO
    assert level_of(LevelledEvent({"level": "debug"}, 40)) == 10
    assert level_of(LevelledEvent({"level_number": 5}, 40)) == 5


@pytest.mark.parametrize("name", ["notset", "trace", "debug", "info", "warning", "error", "critical"])
def test_a_number_has_the_name_of_structlog(name):
    """The seven levels have one name each, in lower case, whatever type their number is of."""
    assert level_name(NAMES[name]) == level_name(float(NAMES[name])) == name


@pytest.mark.parametrize("number", [35, 7, 1])
def test_a_number_without_a_name_is_worded_as_logging_does_and_read_back(number):
    """The made-up name leads back to the number."""
    assert level_name(number) == f"level {number}"
    assert level_of({"level": level_name(number)}) == number


def test_a_registered_number_has_its_registered_name(register):
    """Uncommon numbers are looked up in logging's registry."""
    register(15, "VERBOSE")
    assert level_name(15) == level_name(15.0) == "verbose"

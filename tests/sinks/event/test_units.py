"""Sizes and spans as people write them."""

from __future__ import annotations

import datetime as dt

import pytest

from outfall.sinks.core.arguments import checked_count, checked_seconds, checked_size
from outfall.sinks.event.units import bytes_of, seconds_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50 MB", 50_000_000),
        ("50MB", 50_000_000),
        ("50mb", 50_000_000),
        (" 1 GiB ", 1 << 30),
        ("64 KiB", 65_536),
        ("64 kib", 65_536),
        ("10 kB", 10_000),
        ("1.5 MB", 1_500_000),
        ("0.5 KiB", 512),
        ("1 TB", 10**12),
        ("1024", 1_024),
        ("7 B", 7),
        ("7 bytes", 7),
        ("0", 0),
    ],
)
def test_a_size_is_a_number_and_a_unit(text, expected):
    """By 1 000 or by 1 024, in any case, with a blank or none."""
    assert bytes_of(text) == expected
    assert checked_size(text, "max_bytes") == expected


@pytest.mark.parametrize(
    "text", ["", " ", "MB", "50 M", "50 XB", "-1 MB", "1,5 MB", "50 MB 3", "1.5 B", "0x10", "\u0661 MB", "1e3"]
)
def test_a_wrong_size_names_argument_and_value(text):
    """What is no size says so, and what would be one."""
    with pytest.raises(ValueError, match=r"^max_bytes=") as caught:
        checked_size(text, "max_bytes")
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1h30m", 5_400.0),
        ("7 days", 604_800.0),
        ("1 week 2 days", 777_600.0),
        ("250 ms", 0.25),
        ("1.5 h", 5_400.0),
        ("90", 90.0),
        ("0.5", 0.5),
        ("2 Minutes", 120.0),
        ("1d", 86_400.0),
        ("3s 5ms", 3.005),
        ("0s", 0.0),
    ],
)
def test_a_span_is_numbers_with_units(text, expected):
    """Short names or long ones, in any case, added up; a bare number is seconds."""
    assert seconds_of(text) == expected
    assert checked_seconds(text, "timeout") == expected


@pytest.mark.parametrize("text", ["", "h", "1 month", "1y", "1h30", "-1s", "1h, 2m", "1:30", "inf", "nan", "1 h x"])
def test_a_wrong_span_names_argument_and_value(text):
    """Months have no fixed length, and what is no span at all says what would be one."""
    with pytest.raises(ValueError, match=r"^timeout=") as caught:
        checked_seconds(text, "timeout")
    assert repr(text) in str(caught.value)


def test_numbers_and_timedeltas_stay_what_they_are():
    """Text is one more way, not another meaning."""
    assert checked_seconds(1.5, "timeout") == 1.5
    assert checked_seconds(dt.timedelta(minutes=2), "timeout") == 120.0
    assert checked_count("2 kB", "max_bytes", "bytes") == 2_000
    with pytest.raises(ValueError, match="capacity='5' is not a whole number of events"):
        checked_size("5", "capacity", "events")
    with pytest.raises(ValueError, match="max_bytes='0 B' is not 1 or more bytes"):
        checked_count("0 B", "max_bytes", "bytes")

"""Batch items and results."""

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest

from outfall.sinks.core.item import BatchResult, Encoded
from outfall.sinks.event.json import OrjsonRenderer


def test_an_encoded_event_gives_its_event_back():
    """A line of JSON is read back as the dict it was, with or without its line end."""
    event = {"event": "é\n", "n": [1, 2.5, None, {"a": True}]}
    for end in (b"", b"\n", b"\r\n"):
        assert Encoded(OrjsonRenderer().render(event) + end, 20, 1.0).event == event


def test_each_access_gives_a_dict_of_its_own():
    """Who changes what was read changes nobody else's."""
    item = Encoded(b'{"a":[1]}', 20, 1.0)
    item.event["a"].append(2)
    assert item.event == {"a": [1]}


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**30, 10**3_500, 2**63, -(2**63), 10**19])
def test_a_huge_integer_comes_back_digit_for_digit(number):
    """Decoding does not make a float of what was rendered as an integer."""
    again = Encoded(OrjsonRenderer().render({"n": number, "deep": [{"n": -1}]}), 20, 1.0).event["n"]
    assert (again, type(again)) == (number, int)


def test_many_digits_in_a_float_or_a_text_are_no_harm():
    """Only integers are read otherwise; the rest stays as it is."""
    assert Encoded(b'{"f":0.12345678901234567890123,"t":"1234567890123456789012"}', 20, 1.0).event == {
        "f": 0.12345678901234567890123,
        "t": "1234567890123456789012",
    }


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain text\n", "plain text"),
        (b"two\nlines\r\n", "two\nlines"),
        (b"", ""),
        (b"123", "123"),
        (b'"text"', '"text"'),
        (b"[1]\n", "[1]"),
        (b"null", "null"),
        (b"12345678901234567890", "12345678901234567890"),
        (b'{"half": ', '{"half": '),
        (b"\xff\xfe caf\xc3\xa9", "\\xff\\xfe café"),
        (b"[" * 100_000, "[" * 100_000),
        (b"[" * 100_000 + b"1" * 20, "[" * 100_000 + "1" * 20),
        (b'{"n":' + b"9" * 5_000 + b"}x", '{"n":' + "9" * 5_000 + "}x"),
    ],
)
def test_what_is_no_json_object_is_the_message_of_an_event(data, text):
    """Text that another renderer made is one field, and reading it never fails."""
    assert Encoded(data, 20, 1.0).event == {"event": text}


def test_a_batch_item_cannot_be_changed_and_can_be_pickled():
    """What waits in a queue stays what it was."""
    item = Encoded(b"{}", 20, 1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        item.level = 30
    assert not hasattr(item, "__dict__")
    assert pickle.loads(pickle.dumps(item)) == item


def test_a_batch_result_by_default_says_that_all_were_taken():
    """Nothing named is nothing refused."""
    result = BatchResult()
    assert (result.retry, result.rejected, result.rejected_unknown, result.retry_after) == ((), {}, 0, None)


def test_batch_results_share_nothing_and_cannot_be_changed():
    """Two results have two dicts."""
    assert BatchResult().rejected is not BatchResult().rejected
    with pytest.raises(dataclasses.FrozenInstanceError):
        BatchResult().retry = (1,)


def test_the_json_of_the_renderer_is_what_any_reader_reads():
    """The decoder here and Python's agree."""
    data = OrjsonRenderer().render({"event": "x", "big": 2**70, "f": 1e300, "u": "\u2028"})
    assert Encoded(data, 20, 1.0).event == json.loads(data)

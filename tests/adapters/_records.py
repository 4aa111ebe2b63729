"""Log records of all kinds, and formatters, for comparing handlers with their originals."""

from __future__ import annotations

import contextlib
import logging
import sys

import structlog
from hypothesis import strategies as st
from structlog.stdlib import ProcessorFormatter

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)

MESSAGES = st.one_of(
    TEXT.map(lambda text: (text, None)),
    st.sampled_from(
        [
            ("plain", None),
            ("%s and %d", ("one", 2)),
            ("%(who)s", {"who": "bob"}),
            ("100 %", None),
            (42, None),
            (["a", "list"], None),
            (ValueError("as a message"), None),
            ("two %s", ("many", "arguments")),
            ("lines\nof\ttext\r\n", None),
        ]
    ),
)

EXTRA = st.dictionaries(
    st.sampled_from(["user", "order_id", "message_", "größe", "a b"]),
    st.one_of(TEXT, st.integers(), st.booleans(), st.none(), st.lists(st.integers(), max_size=3)),
    max_size=3,
)


def exc_info(error=None, cause=None):
    """Return what `sys.exc_info` says of an error that was raised."""
    try:
        raise error or ValueError("bad value") from cause
    except BaseException:
        return sys.exc_info()


_EXCEPTIONS = [None, (None, None, None), exc_info(), exc_info(KeyError("k"), OSError(5, "io"))]


@st.composite
def records(draw, messages=MESSAGES):
    """Draw a record."""
    message, args = draw(messages)
    record = logging.LogRecord(
        name=draw(st.sampled_from(["root", "shop.orders", "ünï"])),
        level=draw(st.sampled_from([0, 5, 10, 20, 25, 30, 40, 50, 70])),
        pathname="/srv/shop/orders.py",
        lineno=draw(st.integers(0, 1000)),
        msg=message,
        args=(args,) if isinstance(args, dict) else args,
        exc_info=draw(st.sampled_from(_EXCEPTIONS)),
        func="place",
        sinfo=draw(st.sampled_from([None, "Stack (most recent call last):\n  here"])),
    )
    vars(record).update(draw(EXTRA))
    return record


def twin_of(record):
    """Return another record with the same attributes."""
    return logging.makeLogRecord(vars(record))


class FailingFormatter(logging.Formatter):
    """A formatter that fails."""

    def format(self, record):
        raise LookupError("cannot")


def formatters():
    """Draw a function that makes a formatter, or None for none."""
    return st.sampled_from(
        [
            lambda: None,
            lambda: logging.Formatter("%(levelname)s:%(name)s:%(message)s"),
            lambda: logging.Formatter("{created:.3f} {levelname} {message}", style="{"),
            lambda: logging.Formatter("$name-$message", style="$"),
            lambda: logging.Formatter("%(message)s", defaults={"user": "?"}),
            lambda: logging.Formatter("%(no_such)s"),
            lambda: ProcessorFormatter(
                processors=[ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()]
            ),
            FailingFormatter,
        ]
    )


class Errors(list):
    """What `handleError` was told of: the records; as an instance's method, in the place of the class's."""

    def __init__(self, handler):
        super().__init__()
        handler.handleError = self.append


@contextlib.contextmanager
def closing(*handlers):
    """Close the handlers at the end."""
    try:
        yield handlers
    finally:
        for handler in handlers:
            handler.close()

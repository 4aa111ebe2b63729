"""The exceptions: their tree, what they say, and that they survive a queue between processes."""

from __future__ import annotations

import copy
import pickle

import pytest

from outfall.sinks import errors
from outfall.sinks.errors import (
    DeliveryError,
    MissingDependencyError,
    OversizeDeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    ReentrantEventError,
    SinkClosedError,
    SinkError,
    TemporaryDeliveryError,
)

ALL = [
    DeliveryError("x"),
    MissingDependencyError("zstandard", "zstd"),
    OversizeDeliveryError("too large"),
    PausedDeliveryError("no such token", 2.0),
    PermanentDeliveryError("too large"),
    ReentrantEventError("x"),
    SinkClosedError("x"),
    SinkError("x"),
    TemporaryDeliveryError("busy", 1.5),
]


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (SinkError, Exception),
        (SinkClosedError, SinkError),
        (ReentrantEventError, SinkError),
        (MissingDependencyError, SinkError),
        (DeliveryError, SinkError),
        (TemporaryDeliveryError, DeliveryError),
        (PermanentDeliveryError, DeliveryError),
        (PausedDeliveryError, TemporaryDeliveryError),
        (OversizeDeliveryError, PermanentDeliveryError),
    ],
)
def test_the_tree_is_the_one_drawn(error, base):
    """Each class has the one base that the module's docstring draws, and is drawn there."""
    assert error.__bases__ == (base,)
    assert error is ReentrantEventError or error.__name__ in errors.__doc__


def test_every_exception_of_the_module_is_looked_at_here():
    """A new class needs a line in these tests."""
    made = {value for value in vars(errors).values() if isinstance(value, type)}
    assert made == {type(error) for error in ALL}


@pytest.mark.parametrize(
    ("error", "reason"),
    [(SinkClosedError, "closed"), (ReentrantEventError, "reentrant"), (SinkError, "error"), (DeliveryError, "error")],
)
def test_an_error_says_under_which_reason_the_loss_is_counted(error, reason):
    """The key of the ledger is part of the class."""
    assert error.dropped_as == reason


def test_a_missing_dependency_names_the_package_and_the_command():
    """The message can be pasted into a shell."""
    error = MissingDependencyError("zstandard", "zstd")
    assert str(error) == "zstandard is not installed; install it with: pip install 'outfall[zstd]'"
    assert (error.package, error.extra) == ("zstandard", "zstd")


def test_a_delivery_error_needs_no_details():
    """Whoever writes a sink may raise the bare class."""
    assert TemporaryDeliveryError().retry_after is None
    assert str(TemporaryDeliveryError()) == ""
    assert PermanentDeliveryError().reason == ""


def test_a_delivery_error_carries_what_the_target_said():
    """The wait and the reason are attributes, the message is the text."""
    assert (str(TemporaryDeliveryError("busy", 2)), TemporaryDeliveryError("busy", retry_after=2).retry_after) == (
        "busy",
        2,
    )
    assert (str(PermanentDeliveryError("bad")), PermanentDeliveryError("bad").reason) == ("bad", "bad")


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_an_error_survives_copying_and_pickling(error, again):
    """Multiprocessing sends errors between processes, attributes and all."""
    twin = again(error)
    assert (type(twin), str(twin), vars(twin)) == (type(error), str(error), vars(error))

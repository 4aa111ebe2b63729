"""What the tests of brokers share."""

from __future__ import annotations

import pytest

from outfall import open_sinks
from outfall.adapters.brokers.sink import BrokerSink


@pytest.fixture(autouse=True)
def _none_left_open():
    """Close the sinks that a test leaves open: for a socket that the garbage collector closes, Python warns."""
    yield
    for sink in open_sinks():
        if isinstance(sink, BrokerSink):
            sink.close(0)

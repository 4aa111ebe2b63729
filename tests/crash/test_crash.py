"""Processes that log through a spool are killed, and nothing is lost."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.sinks._processes import ROOT


def _crash(*arguments):
    # Without a tracer, which a kill would cost its data, and a child much of its short life.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE_", "COV_CORE_"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash", *arguments],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    # With the seed in it, for `make crash`.
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_hundred_kills_lose_nothing():
    """Of what handle returned for everything arrives, whole, in order; a kill repeats at most one batch, by its key."""
    told = _crash("--kills", "200", "--calls", "0", "--backlog", "0")
    stored, arrived = map(int, re.search(r"(\d+) events stored, (\d+) arrived", told).groups())
    assert arrived >= stored > 20


def test_a_kill_at_any_call_of_the_system_loses_nothing():
    """What is on disk is recovered from a kill before each call in turn, and from one more while recovering."""
    told = _crash("--kills", "0", "--calls", "2", "--backlog", "0")
    assert int(re.search(r"killed before (\d+) of some \d+ calls", told)[1]) > 20


def test_a_large_backlog_is_delivered_in_order_in_little_memory():
    """A hundred thousand events here; `make crash` has a million."""
    assert "100000 events piled up and were delivered in order" in _crash(
        "--kills", "0", "--calls", "0", "--backlog", "100000"
    )

"""The benchmarks measure what they say; nothing here is about how long anything takes."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
import requests

from benchmarks import sustained
from benchmarks.__main__ import main
from benchmarks.collector import collector
from benchmarks.events import REQUEST_ID
from benchmarks.groups import GROUPS
from benchmarks.harness import Figures, Group, Row, measure, nothing_written
from benchmarks.shippers import SHIPPERS, Shipper


@contextmanager
def _idle(directory):
    yield lambda events: None


def _taking(seconds):
    """Give a set-up whose runs claim to take so many seconds for each event, one after the other."""
    claims = iter(seconds)

    @contextmanager
    def setup(directory):
        yield lambda events: next(claims) * events

    return setup


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_each_group_runs_and_prints_its_rows(group, tmp_path, capsys):
    """Every row is measured and in the table, or is said to lack a library that is not installed."""
    arguments = ["--only", group.name, "--rounds", "2", "--events", "16" if group.unit == "µs" else "1"]
    assert main([*arguments, "--directory", str(tmp_path), "--json", str(tmp_path / "figures.json")]) == 0
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["libraries"]["orjson"] in printed
    assert figures["python"] in printed
    assert [each["name"] for each in figures["groups"]] == [group.name]
    for row, made in zip(group.rows, figures["groups"][0]["rows"], strict=True):
        assert made["name"] == row.name
        line = next(line for line in printed.splitlines() if line.startswith(f"  {row.name}  ") or row.name in line)
        if made["missing"]:
            assert made["missing"] in line
        else:
            assert len(made["samples"]) == 2
            assert made["median"] > 0


def test_files_are_removed(tmp_path):
    """Nothing is left of what the rows wrote."""
    measure(GROUPS[0], tmp_path, rounds=1, events=3)
    assert list(tmp_path.iterdir()) == []


def test_rows_take_turns(tmp_path):
    """One round of all rows comes after the other, the first to warm up."""
    turns = []

    def noting(name):
        @contextmanager
        def setup(directory):
            yield lambda events: turns.append((name, events))

        return setup

    rows = tuple(Row(name, noting(name), proof=nothing_written) for name in "ABC")
    measure(Group("turns", "", rows), tmp_path, rounds=2, events=5)
    assert turns == [(name, 5) for name in "ABC" * 3]


def test_ratios_are_taken_within_each_round(tmp_path):
    """A machine that slows down in the midst of the measurement changes medians, not ratios."""
    floor = Row("floor", _taking([9, 1, 1, 10]), proof=nothing_written)
    twice = Row("twice", _taking([9, 2, 2, 20]), floor="floor", budget=2.0, proof=nothing_written)
    above = Row("above", _taking([9, 3, 3, 30]), floor="floor", peer="twice", budget=1.4, proof=nothing_written)
    _, second, third = measure(Group("ratios", "", (floor, twice, above)), tmp_path, rounds=3, events=4)
    assert (second.floor_ratio, second.peer_ratio, second.met) == (2.0, None, True)
    assert (third.floor_ratio, third.peer_ratio, third.met) == (3.0, 1.5, False)
    assert second.median == pytest.approx(2e6)


def test_a_budget_without_anything_to_compare_with_is_absolute():
    """It is in the unit of the group."""
    row = Row("import", _idle, budget=25)
    assert Figures(row, (24.0, 25.0, 26.0)).met is True
    assert Figures(row, (25.0, 26.0, 27.0)).met is False


def test_a_row_whose_library_is_missing_is_left_out(tmp_path):
    """The others are measured, and what is compared with it has no ratio and no verdict."""

    @contextmanager
    def needs_more(directory):
        import no_such_library

        yield no_such_library

    missing = Row("missing", needs_more)
    other = Row("other", _idle, peer="missing", budget=1.0, proof=nothing_written)
    first, second = measure(Group("missing", "", (missing, other)), tmp_path, rounds=1, events=1)
    assert first.missing == "no_such_library is not installed"
    assert (first.median, first.met) == (None, None)
    assert second.median is not None
    assert (second.peer_ratio, second.met) == (None, None)


def test_a_row_that_writes_too_little_is_found_out(tmp_path):
    """Figures for work that was not done are worse than none."""
    with pytest.raises(AssertionError, match="0 lines for 7 events"):
        measure(Group("idle", "", (Row("idle", _idle),)), tmp_path, rounds=1, events=7)


def test_a_row_that_writes_something_else_is_found_out(tmp_path):
    """As many lines are not enough: they have to hold the event."""

    @contextmanager
    def setup(directory):
        path = directory / "events.jsonl"
        yield lambda events: path.write_text("{}\n" * events) and None

    with pytest.raises(AssertionError, match="not the event"):
        measure(Group("other", "", (Row("other", setup),)), tmp_path, rounds=1, events=1)


def test_the_share_that_arrives_is_shown(tmp_path, capsys, monkeypatch):
    """Where not all has to arrive, the table says what did."""
    shares = iter([1.0, 0.5, 0.25, 0.75])
    lossy = Row("lossy", _idle, proof=lambda directory, events: next(shares))
    group = Group("shares", "", (lossy, Row("other", _idle, proof=nothing_written)))
    first, second = measure(group, tmp_path, rounds=3, events=1)
    assert (first.shares, first.arrived) == ((0.5, 0.25, 0.75), 0.5)
    assert second.arrived is None
    monkeypatch.setattr("benchmarks.__main__.GROUPS", (group,))
    shares = iter([1.0, 0.5])
    assert main(["--rounds", "1", "--events", "1", "--directory", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith(("  lossy", "  other"))] == ["50.0%", "-"]


def test_the_collector_counts():
    """What came, of whatever format, and nothing else."""
    with collector() as peer:
        assert peer.counts() == (0, 0, 0)
        body = f"a {REQUEST_ID} b {REQUEST_ID}".encode()
        for method in ("POST", "PUT"):
            requests.request(method, peer.url, data=body, timeout=30)
        assert peer.wait(4, 30)[0] == 4
        assert peer.counts(forget=True) == (4, 2, 2 * len(body))
        assert peer.wait(1, 0)[0] == 0


def test_the_sustained_benchmark_runs(capsys):
    """Each way has a line: what it logged, what it cost, what arrived; or that its library is missing."""
    assert sustained.main(["--seconds", "0.1", "--rate", "500", "--only", "NDJSON", "--only", "floor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [shipper.name for shipper in SHIPPERS if "NDJSON" in shipper.name or "floor" in shipper.name]
    assert len(names) == 3
    for name in names:
        [line] = [line for line in lines if line.strip().startswith(f"{name} ")]
        assert "100.0%" in line


def test_a_way_whose_library_is_missing_is_said_to_be(capsys, monkeypatch):
    """The others are measured."""

    @contextmanager
    def needs_more(url):
        import no_such_library

        yield no_such_library

    monkeypatch.setattr(sustained, "SHIPPERS", (Shipper("missing", needs_more),))
    assert sustained.main(["--seconds", "0.1"]) == 0
    assert "no_such_library is not installed" in capsys.readouterr().out


def test_a_group_refuses_rows_that_do_not_fit():
    """Two rows of one name, or a floor that is not in the group, would make ratios of the wrong rows."""
    row = Row("a", _idle)
    with pytest.raises(ValueError, match="two rows"):
        Group("g", "", (row, row))
    with pytest.raises(ValueError, match="'b'"):
        Group("g", "", (replace(row, floor="b"),))


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--events", "-1"], ["--only", "nothing"]])
def test_nonsense_is_refused(arguments, capsys):
    """Counts are 1 or more, groups are those there are."""
    with pytest.raises(SystemExit):
        main(arguments)
    assert arguments[1] in capsys.readouterr().err

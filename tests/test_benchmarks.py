"""The benchmarks measure what they say; nothing here is about how long anything takes."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import requests

from benchmarks import charts, scale, sustained, walks, words
from benchmarks.__main__ import main
from benchmarks.collector import collector
from benchmarks.events import REQUEST_ID
from benchmarks.groups import GROUPS
from benchmarks.harness import Figures, Group, Row, measure, nothing_written
from benchmarks.shippers import SHIPPERS, Shipper

# They measure other code than users run, and it is the same everywhere.
pytestmark = pytest.mark.slow


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


def test_costs_are_shown_beside_what_they_grow_with(tmp_path, capsys):
    """Each number has a column of figures, in tables that are published too."""
    few = ["--sinks", "2", "3", "--files", "3", "--event-bytes", "2048", "--spool-bytes", "4096"]
    assert scale.main([*few, "--publish", str(tmp_path / "scale.inc")]) == 0
    printed = capsys.readouterr().out
    _, *tables = (tmp_path / "scale.inc").read_text(encoding="utf-8").split("\n\n")
    assert [len(table.splitlines()) for table in tables] == [5, 5, 5, 3, 3, 3, 4, 6]
    assert all(table.split("|")[1].strip() in printed for table in tables)
    assert "| bytes an event | 2 KiB |" in tables[-2]


def test_a_walk_counts_calls_and_changes_of_module(tmp_path):
    """An event into a file is one call; every other way takes more, and comes into other modules."""
    found = dict(walks.walks(tmp_path))
    usual = found.pop("an event into a file")
    assert usual.jumps <= usual.calls <= 3
    assert all(walk.calls > walk.jumps > 0 for walk in found.values())


# The HTTPHandler of logging leaves each connection to the garbage collector, which then warns.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_each_group_runs_and_prints_its_rows(group, tmp_path, capsys):
    """Every row is measured and in the table, or is said to lack a library that is not installed."""
    arguments = ["--only", group.name, "--rounds", "1", "--events", "16" if group.unit == "µs" else "1"]
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
            assert len(made["samples"]) == 1
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


# -- what is made of the figures


@pytest.fixture
def results():
    """Give results of all groups, with figures that are easily told."""
    groups = [
        {
            "name": group.name,
            "about": group.about,
            "unit": group.unit,
            "rounds": 3,
            "events": 10,
            "rows": [
                {
                    "name": row.name,
                    "missing": None,
                    "median": 2.5,
                    "spread": 0.25,
                    "floor": row.floor,
                    "floor_ratio": None if row.floor is None else 1.25,
                    "peer": row.peer,
                    "peer_ratio": None if row.peer is None else 0.25,
                    "budget": row.budget,
                    "met": None if row.budget is None else True,
                    "arrived": None,
                }
                for row in group.rows
            ],
        }
        for group in GROUPS
    ]
    about = {"date": "2026-01-02", "machine": "m", "system": "s", "file system": "f", "load": 0.5, "python": "p"}
    return {**about, "libraries": {"outfall": "1", "loguru": None}, "groups": groups}


def _row(results, group, name):
    rows = next(each["rows"] for each in results["groups"] if each["name"] == group)
    return next(row for row in rows if row["name"] == name)


@pytest.mark.parametrize("chart", charts.CHARTS, ids=lambda chart: chart.slug)
def test_a_chart_has_a_bar_for_each_row_it_names(chart, results):
    """Every row is among those that are measured, at least one is ours and has a budget; both themes are XML."""
    bars = charts.bars_of(chart, results)
    assert any(bar.ours and bar.budget is not None for bar in bars)
    for theme in charts.THEMES:
        root = ET.fromstring(charts.draw(chart, bars, theme))
        text = "".join(root.itertext())
        assert all(bar.label in text and bar.text in text for bar in bars)
        assert f"{chart.axis}; {'more' if chart.by == 'rate' else 'less'} is better" in text


def test_a_budget_that_is_not_kept_needs_a_reason(results):
    """A figure above its budget is not published without a word on why."""
    _row(results, "file", "FileSink").update(name="no such row", met=False)
    with pytest.raises(KeyError):
        words.budgets_of(results)


def test_every_budget_has_a_chart():
    """A row with a budget is on the page in a chart."""
    shown = {bar[:2] for chart in charts.CHARTS for bar in chart.bars}
    budgets = {(group.name, row.name) for group in GROUPS for row in group.rows if row.budget is not None}
    assert budgets <= shown


def test_a_missing_library_and_lost_events_are_told(results):
    """A chart says what it does not have, and a bar what did not arrive."""
    _row(results, "stdlib", "loguru, serialize=True").update(median=None, floor_ratio=None, missing="no loguru")
    _row(results, "collectors", "OpenTelemetry: BatchLogRecordProcessor, OTLP").update(arrived=0.5, floor_ratio=4.0)
    found = {chart.slug: charts.bars_of(chart, results) for chart in charts.CHARTS}
    assert [bar.text for bar in found["file"] if bar.value is None] == ["no loguru"]
    assert "0.25, 50.0% lost" in [bar.text for bar in found["collectors"]]


def test_what_is_published_can_be_published_again(results, tmp_path):
    """Charts and texts come from the figures alone, name the machine, and say which budget was not kept."""
    _row(results, "file", "FileSink").update(floor_ratio=1.5, met=False)
    charts.publish(tmp_path, results)
    before = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    charts.publish(tmp_path)
    assert before == {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert "2026-01-02" in before["machine.inc"]
    assert "outfall 1" in before["machine.inc"]
    assert "loguru" not in before["machine.inc"]
    [line] = [line for line in before["budgets.inc"].splitlines() if line.startswith("| FileSink |")]
    assert f"| 1.50 | 1.25 | **no**: {words.REASONS['FileSink']} |" in line
    assert before["summary.inc"].count("\n| ") == 11
    assert {f"{chart.slug}-{theme.name}.svg" for chart in charts.CHARTS for theme in charts.THEMES} < before.keys()


def test_the_page_shows_every_chart():
    """In both themes."""
    page = (Path(__file__).parents[1] / "docs" / "explanation" / "benchmarks.md").read_text(encoding="utf-8")
    for chart in charts.CHARTS:
        for theme in charts.THEMES:
            assert f"../benchmarks/{chart.slug}-{theme.name}.svg\n:class: only-{theme.name}\n" in page


@pytest.mark.parametrize(
    ("ratio", "status", "word"),
    [
        (1.0, 0, "1 budgets kept"),
        (2.15, 0, "1 budgets kept"),
        (2.3, 1, "exceeded: g: sink"),
        (None, 2, "not looked at"),
    ],
)
def test_a_check_tells_by_its_status(ratio, status, word, monkeypatch, capsys, tmp_path):
    """A tenth above a budget is forgiven, more is 1, a budget that nothing can be said of is 2."""

    @contextmanager
    def absent(directory):
        raise ModuleNotFoundError(name="no_such_library")
        yield

    floor = Row("floor", _taking([1] * 9) if ratio else absent, proof=nothing_written)
    sink = Row("sink", _taking([ratio or 1] * 9), floor="floor", budget=2.0, proof=nothing_written)
    free = Group("free", "", (Row("never measured", _taking([])),))
    monkeypatch.setattr("benchmarks.__main__.GROUPS", (free, Group("g", "", (floor, sink), rounds=3)))
    assert main(["--check", "--directory", str(tmp_path)]) == status
    assert word in capsys.readouterr().out


def test_a_group_has_few_rounds_where_they_take_long(tmp_path):
    """With a limit of time, no round is begun after it, but a few are had."""
    group = Group("g", "", (Row("idle", _idle, proof=nothing_written),), rounds=1_000)
    [figures] = measure(group, tmp_path, seconds=0.0)
    assert len(figures.samples) == 3


def test_parts_are_not_published(capsys, tmp_path):
    """A page of some groups would show the others as they were on another machine."""
    with pytest.raises(SystemExit):
        main(["--only", "file", "--publish", str(tmp_path)])
    assert "--only" in capsys.readouterr().err

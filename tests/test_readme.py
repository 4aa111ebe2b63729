"""The README: what it shows runs, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import structlog

import outfall
from outfall.adapters.setup import _outlet
from tests.code_blocks import blocks, run_page

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BASES = {"Sink", "ByteSink", "BaseRotatingFileSink", "BufferingSink"}
TEXT = README.read_text(encoding="utf-8")


@pytest.mark.usefixtures("own_logging")
def test_the_examples_run_and_print_what_the_page_shows(tmp_path, monkeypatch, capfd):
    """Each Python block runs from top to bottom, and its output is the one printed below it."""
    monkeypatch.chdir(tmp_path)
    run_page(README)
    assert "stock is low" in capfd.readouterr().err


def test_the_first_example_is_a_short_one():
    """A newcomer meets about ten lines of code."""
    first = next(block for block in blocks(README) if block.language == "python")
    assert len([line for line in first.body.splitlines() if line.strip()]) <= 10


def test_the_page_is_short():
    """It can be read at one go."""
    assert len(TEXT.splitlines()) <= 170


def test_every_link_leads_to_a_file():
    """No relative link is broken."""
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).is_file()] == []


def test_the_commands_are_targets_of_the_makefile():
    """Every make command that is shown exists."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"make (\w+)", TEXT))
    assert {"demo", "test"} <= targets
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_the_table_lists_every_sink_and_no_other():
    """Each public sink has its row; a sink that does not exist has none."""
    listed = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    public = [getattr(outfall, name) for name in outfall.__all__]
    sinks = {kind.__name__ for kind in public if isinstance(kind, type) and issubclass(kind, outfall.Sink)}
    assert sorted(listed) == sorted(sinks - BASES)


#: The code in the table of tasks, with the task.
TASKS = [
    (task, code)
    for row in TEXT.partition("What to write for common tasks")[2].partition("\n## ")[0].splitlines()
    if row.startswith("| ")
    for task, _, cell in [row.strip("| ").partition(" | ")]
    for code in re.findall(r"`((?:log = |with )?(?:outfall|structlog)\.[^`]+)`", cell)
]


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize(("task", "code"), TASKS, ids=[task for task, _ in TASKS])
def test_what_the_table_says_can_be_written(task, code, tmp_path, monkeypatch, capsys):
    """Each entry is a whole statement, which opens what it names and connects to nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OUTFALL_SINKS", "file:env.jsonl")
    (tmp_path / "logging.toml").write_text('[sinks.file]\nurl = "file:app.jsonl"\n')
    names: dict[str, Any] = {"outfall": outfall, "structlog": structlog}
    try:
        exec(code.replace(": …", ": outfall.get_logger('shop').info('x')"), names)
        if "app.jsonl" in code:
            outfall.get_logger("shop").info("x")
            assert '"event":"x"' in (tmp_path / "app.jsonl").read_text()
        if "sink" in names:
            assert [event["event"] for event in names["sink"].events] == ["x"]
        if "log" in names:
            names["log"].info("stock is low", left=3)
            assert "stock is low" in capsys.readouterr().out
    finally:
        structlog.contextvars.clear_contextvars()
        if _outlet.setup is not None:
            _outlet.setup.close(1)


def test_the_table_has_the_tasks():
    """So that the test above looks at them."""
    assert len(TASKS) >= 12

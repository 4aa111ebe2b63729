"""The guarantees: each sink is in each section, and the tests that are named are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import outfall

ROOT = Path(__file__).parent
PAGE = (ROOT.parent / "docs" / "explanation" / "guarantees.md").read_text(encoding="utf-8")
FAULTS = (
    "Target down",
    "Target slow",
    "Target rejecting",
    "Disk full",
    "kill -9",
    "Power loss",
    "Fork",
    "Exit without close",
    "Re-entrant logging",
    "10 threads",
    "8 processes",
)
#: The words for what needs no test, and for what has none.
CANNOT_HAPPEN, UNTESTED = "\N{EN DASH}", "not tested"

#: Classes to derive from, which put events nowhere themselves.
BASES = {"Sink", "ByteSink", "BaseRotatingFileSink"}
SINKS = {
    name
    for name in outfall.__all__
    if isinstance(kind := getattr(outfall, name), type) and issubclass(kind, outfall.Sink) and name not in BASES
}


def entries(fault: str) -> list[tuple[list[str], str, list[str]]]:
    """Return what a fault's section says: sinks, the word for it, and the tests."""
    section = PAGE.partition(f"\n## {fault}\n")[2].partition("\n## ")[0]
    found = []
    for entry in re.split(r"\n(?=`\w+Sink`)", section)[1:]:
        head, _, text = entry.partition("\n: ")
        names, _, word = head.partition(" — ")
        found.append((re.findall(r"`(\w+)`", names), word.strip(), re.findall(r"`([\w/]+\.py::[\w:]+)`", text)))
    return found


@cache
def _classes(path: Path) -> dict[str, ast.ClassDef | None]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: dict[str, ast.ClassDef | None] = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    return found | {node.name: None for node in tree.body if isinstance(node, ast.FunctionDef)}


def exists(test: str) -> bool:
    """Return True if pytest would collect *test*: a function of its file, or a method of a class or a base of it."""
    file, *names = test.split("::")
    path = ROOT / file
    if not path.is_file():
        return False
    found = _classes(path)
    if len(names) == 1:
        return found.get(names[0], 0) is None and names[0].startswith("test_")
    found = {**_classes(ROOT.parent / "sinks" / "testing.py"), **found}
    name, method = names
    while isinstance(kind := found.get(name), ast.ClassDef):
        if any(isinstance(node, ast.FunctionDef) and node.name == method for node in kind.body):
            return True
        name = next((base.id for base in kind.bases if isinstance(base, ast.Name)), "")
    return False


def test_the_sections_are_the_faults():
    """And nothing else has the form of one."""
    assert tuple(re.findall(r"^## (.*)$", PAGE, re.MULTILINE)) == FAULTS


@pytest.mark.parametrize("fault", FAULTS)
def test_each_section_speaks_of_every_sink_once(fault):
    """A new sink has to say what becomes of its events in each fault, in a word and in a sentence."""
    said = entries(fault)
    assert sorted(sink for sinks, _, _ in said for sink in sinks) == sorted(SINKS)
    assert [sinks for sinks, word, _ in said if not word] == []


@pytest.mark.parametrize("fault", FAULTS)
def test_each_promise_names_a_test_that_is_there(fault):
    """What is said is shown by tests, all of which exist, unless it cannot happen or is said to be untested."""
    for sinks, word, tests in entries(fault):
        assert bool(tests) == (word not in {CANNOT_HAPPEN, UNTESTED}), sinks
        assert [test for test in tests if not exists(test)] == []


def test_a_test_that_is_not_there_is_noticed():
    """The test above can fail."""
    assert exists("test_guarantees.py::test_the_sections_are_the_faults")
    assert exists("sinks/test_contract.py::TestFileSink::test_a_forked_child_begins_anew")
    for wrong in (
        "test_guarantees.py::test_no_such_thing",
        "test_no_such_file.py::test_the_sections_are_the_faults",
        "sinks/test_contract.py::TestFileSink::test_no_such_thing",
        "sinks/test_contract.py::TestNoSuchSink::test_a_forked_child_begins_anew",
        "test_guarantees.py::exists",
    ):
        assert not exists(wrong)

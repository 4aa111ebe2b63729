"""The documentation: its examples run, it names everything that is public, and its links lead somewhere.

That it builds without a warning is what ``make docs`` says.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import os
import re
import signal
import sys
from pathlib import Path

import pytest

import outfall
from outfall.sinks import testing
from tests.code_blocks import blocks, files_of_others, run_page
from tests.sinks._processes import check

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
REFERENCE = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").rglob("*.md"))


def _name(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def _has_code(page: Path) -> bool:
    return any(block.language == "python" for block in blocks(page))


@pytest.mark.parametrize("page", [page for page in PAGES if _has_code(page)], ids=_name)
@pytest.mark.usefixtures("own_logging")
@pytest.mark.filterwarnings("default")
def test_the_examples_of_a_page_run_and_print_what_it_shows(page, tmp_path, monkeypatch):
    """The code blocks of a page run from top to bottom, and what they print is what stands below them."""
    text = page.read_text(encoding="utf-8")
    if "os.fork" in text and not hasattr(os, "fork"):
        pytest.skip("the example forks")
    monkeypatch.chdir(tmp_path)
    if any(
        word in text for word in ("open_sinks()", "close_all()", "register(registry)")
    ):  # which are about all of a process, and this one has more
        check("import pathlib, sys, tests.code_blocks as it; assert it.run_page(pathlib.Path(sys.argv[1]))", page)
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run_page(page) > 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_there_are_examples():
    """The test above does not pass for want of pages."""
    assert {"tutorial.md", "how-to/own-sink.md"} <= {_name(page) for page in PAGES if _has_code(page)}


def _documented() -> set[str]:
    directives = r"^(?:\.\. (?:auto(?:class|function|exception)|py:data)::|```\{sink\}) (\w+)$"
    return set(re.findall(directives, REFERENCE, re.MULTILINE))


def test_the_reference_has_every_public_name():
    """What `outfall` and `outfall.sinks.testing` export is in the reference."""
    assert set(outfall.__all__) | set(testing.__all__) <= _documented()


def test_the_reference_has_no_name_that_is_gone():
    """What the reference names is public."""
    assert _documented() <= set(outfall.__all__) | set(testing.__all__)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_to_pages(page):
    """No relative link is broken, and no page is left out of the contents."""
    text = page.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).is_file()] == []


#: What comes with Outfall, and the extra by which something else does.
WITH_OUTFALL = {"outfall", "structlog", "orjson", "requests"}
EXTRAS = {"prometheus_client": "outfall[prometheus]"}


def _imports(code: str) -> set[str]:
    """Return the packages that *code* imports."""
    nodes = list(ast.walk(ast.parse(code)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("page", [page for page in PAGES if _has_code(page)], ids=_name)
def test_a_page_says_what_to_install(page):
    """Before the first block that imports what does not come with Outfall, there is the command that installs it."""
    code = [block for block in blocks(page) if block.language == "python"]
    files = [block.caption or "" for block in code] + list(files_of_others(page))
    known = WITH_OUTFALL | set(sys.stdlib_module_names) | {Path(name).stem for name in files}
    lines = page.read_text(encoding="utf-8").splitlines()
    for block in code:
        commands = " ".join(re.findall(r"pip install (.*)", "\n".join(lines[: block.line])))
        missing = [name for name in _imports(block.body) - known if EXTRAS.get(name, name) not in commands]
        assert missing == [], f"{page.name}:{block.line}"


def _calls(page: Path) -> list[ast.Call]:
    """Return the calls of public names in the inline code of *page*; what runs in blocks is tested by running it."""
    calls = []
    for code in re.findall(r"(?<!`)`([^`\n]+\))`(?!`)", page.read_text(encoding="utf-8")):
        with contextlib.suppress(SyntaxError):
            calls += [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in outfall.__all__]


@pytest.mark.parametrize("page", [page for page in PAGES if _calls(page)], ids=_name)
def test_calls_in_the_text_fit_the_signatures(page):
    """Code in a sentence or a table, which nobody runs, gives public names arguments that they have."""
    for call in _calls(page):
        given = [None for argument in call.args if not isinstance(argument, ast.Starred)]
        named = {keyword.arg: None for keyword in call.keywords if keyword.arg}
        inspect.signature(getattr(outfall, call.func.id)).bind_partial(*given, **named)


def test_levels_of_the_reference_are_those_of_the_code():
    """The table of level names says what the sinks understand."""
    from outfall.sinks.event.levels import NUMBERS

    rows = re.findall(r"^\| (\d+) \| (.*) \|$", REFERENCE, re.MULTILINE)
    table = {name: int(number) for number, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert table == {name: number for name, number in NUMBERS.items() if name.islower()}


def test_every_reason_for_a_loss_is_explained():
    """Whatever stands in ``dropped`` is in the table, and the table has nothing else."""
    root = DOCS.parent
    code = "\n".join(
        path.read_text("utf-8") for folder in ("sinks", "adapters") for path in (root / folder).rglob("*.py")
    )
    counted = r'(?:_count_dropped\(|dropped_as\b[^"\n]*= |\b_?dropped\[|dropped=\{)"([a-z]+)"'
    page = (DOCS / "explanation" / "errors.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `([a-z]+)` \|", page.partition("Reasons in `dropped`")[2], re.MULTILINE))
    assert set(re.findall(counted, code)) <= explained
    assert {reason for reason in explained if f'"{reason}"' not in code} == set()

"""Where modules belong: imports between the folders of the package go one way."""

from __future__ import annotations

import ast
import dis
import sys
import tokenize
import types
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: What each folder of ``sinks/`` may import besides itself. ``errors`` imports nothing, and any module may import it.
ALLOWED = {
    "event": set(),
    "core": {"event"},
    "files": {"core", "event"},
    "network": {"core", "event"},
    # SysLogSink sends by the connections of `network`.
    "system": {"core", "event", "network"},
    # How a peer refuses a certificate is heard in `network` for all that speak TLS.
    "mail": {"core", "event", "network"},
    "http": {"core", "event", "network"},
    # QueueListener reads what is in a queue as a frame of JSON.
    "delivery": {"core", "event", "network"},
    "routing": {"core", "event", "delivery"},
    "spool": {"core", "event", "delivery", "routing"},
    "shaping": {"core", "event"},
    "testing": {"core", "event", "delivery"},
    "errors": set(),
}


#: So many lines of code a module may have: none is longer without a second idea in it.
LONGEST = 450

_NO_CODE = {"COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER", "ENCODING"}


def _lines_of_code(path):
    """Return how many lines of the module at *path* have code: neither blank, nor comment, nor docstring."""
    with path.open("rb") as file:
        tokens = [token for token in tokenize.tokenize(file.readline) if tokenize.tok_name[token.type] not in _NO_CODE]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if documented and ast.get_docstring(node) is not None:
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_no_module_is_long():
    """A module is one idea."""
    modules = [path for folder in ("sinks", "adapters") for path in (ROOT / folder).rglob("*.py")]
    modules = [path for path in modules if path.read_bytes().count(b"\n") > LONGEST]
    long = {path.relative_to(ROOT).as_posix() for path in modules if _lines_of_code(path) > LONGEST}
    assert long == set()


def _imported(path):
    """Give the dotted name of each module of the package that the module at *path* imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("outfall"):
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("outfall"))


def _edges():
    """Give each import between folders of ``sinks/``: from which, to which, and the file it stands in."""
    for path in (ROOT / "sinks").rglob("*.py"):
        place = path.relative_to(ROOT / "sinks").parts
        folder = place[0].removesuffix(".py")
        for name in _imported(path):
            target = [*name.split("."), ""][2]
            if name.startswith("outfall.sinks.") and target in ALLOWED and target not in (folder, "errors"):
                yield folder, target, "/".join(place)


def test_folders_import_one_another_one_way():
    """No folder imports one that it is not meant to know, and so the graph has no circle."""
    TopologicalSorter(ALLOWED).prepare()  # raises CycleError
    wrong = sorted({f"{file}: imports {target}" for folder, target, file in _edges() if target not in ALLOWED[folder]})
    assert wrong == []


def test_each_folder_is_in_the_graph():
    """A new folder gets its place here."""
    folders = {path.name for path in (ROOT / "sinks").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {name for name in ALLOWED if name not in ("testing", "errors", "shaping")}


def test_sinks_import_no_adapter():
    """Adapters import sinks, never the reverse."""
    wrong = [
        path.name
        for path in (ROOT / "sinks").rglob("*.py")
        for name in _imported(path)
        if name.startswith("outfall.adapters")
    ]
    assert wrong == []


#: Modules whose locks and threads an interrupt must not break.
_WAITING = sorted(path for folder in ("delivery", "spool") for path in (ROOT / "sinks" / folder).glob("*.py"))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the jumps are where they belong")
@pytest.mark.parametrize("path", _WAITING, ids=lambda path: path.name)
def test_no_loop_of_a_module_that_waits_jumps_back_outside_the_try_around_it(path):
    """From Python 3.12 on a condition at a loop's end does so: an interrupt there skips `finally` and `__exit__`."""
    waiting = [compile(path.read_text(encoding="utf-8"), str(path), "exec")]
    outside = []
    while waiting:
        code = waiting.pop()
        waiting += (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
        bytecode = dis.Bytecode(code)
        instructions = {instruction.offset: instruction for instruction in bytecode}

        def handlers(offset, entries=bytecode.exception_entries):
            found = set()
            left = [offset]
            while left:
                place = left.pop()
                new = {entry.target for entry in entries if entry.start <= place < entry.end} - found
                found |= new
                left += new
            return found

        outside += (
            f"{code.co_name}, line {instruction.positions.lineno if instruction.positions else '?'}"
            for instruction in instructions.values()
            if instruction.opname == "JUMP_BACKWARD"
            and not handlers(instruction.offset)
            and any(instructions[target].opname == "PUSH_EXC_INFO" for target in handlers(instruction.argval))
        )
    assert not outside


#: Attributes that one thread alone changes, and no signal handler.
_ONES_OWN = {"spent", "_buffered", "_events_astray", "_read_to", "_ready_at"}


def test_nothing_is_called_while_an_attribute_is_added_to():
    """After a call a signal handler or another thread may run, and what it added to the attribute would be lost."""
    wrong = []
    for path in (ROOT / "sinks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Attribute)):
                continue
            calls = any(isinstance(part, ast.Call) for part in ast.walk(node.value))
            if calls and node.target.attr not in _ONES_OWN:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert wrong == []

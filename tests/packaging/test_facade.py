"""The facade: what `outfall` exports, and what importing it costs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import outfall

# Imported on first use by the sinks that need them; most programs never do.
HEAVY = ["requests", "smtplib", "multiprocessing"]


def _literal_all() -> list[str]:
    tree = ast.parse(Path(outfall.__file__).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            names = ast.literal_eval(node.value)
            assert isinstance(names, list)
            return names
    pytest.fail("outfall/__init__.py assigns no __all__")


def test_all_is_a_literal_that_names_every_public_name_once():
    """What `__all__` lists and what the facade has are the same, so that no name is public by accident."""
    names = _literal_all()
    # Submodules become attributes when they are imported; `annotations` is what a __future__ import leaves.
    public = [
        name
        for name in dir(outfall)
        if not name.startswith("_") and name != "annotations" and not isinstance(getattr(outfall, name), ModuleType)
    ]
    assert sorted(names) == sorted(public)


def test_every_name_in_all_can_be_imported():
    """A star import gives exactly what `__all__` promises."""
    namespace: dict[str, object] = {}
    exec("from outfall import *", namespace)
    assert sorted(namespace.keys() - {"__builtins__"}) == sorted(_literal_all())


def test_a_name_that_is_not_there_raises():
    """A misspelt name is an AttributeError, not a surprise later."""
    with pytest.raises(AttributeError, match="FileSnk"):
        _ = outfall.FileSnk


def test_the_version_is_the_distribution_s_only_one():
    """No module repeats the version: the metadata is the one place that has it."""
    assert not hasattr(outfall, "__version__")


def _modules_after(code: str) -> set[str]:
    # Coverage measures children by importing itself, and multiprocessing with it, into each of them.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(result.stdout.split())


def test_importing_a_file_sink_imports_nothing_heavy():
    """`from outfall import FileSink` brings no HTTP client, no SMTP client and no multiprocessing."""
    modules = _modules_after("from outfall import FileSink")
    assert "outfall" in modules
    assert [name for name in HEAVY if name in modules] == []

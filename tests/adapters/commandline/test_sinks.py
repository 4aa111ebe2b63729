"""``outfall sinks``: which URLs there are, what is installed, and what an extra would add."""

from __future__ import annotations

import json
import re
import sys
from importlib import metadata

import pytest

from outfall.adapters.commandline import sinks, terminal
from outfall.adapters.commandline.main import main
from outfall.adapters.urls.kinds import SCHEMES
from tests.sinks._processes import ROOT


@pytest.fixture
def run(capsys):
    """Give a function that runs the command; it returns the exit code, stdout and stderr."""

    def run(*arguments):
        return main(["sinks", *arguments]), *capsys.readouterr()

    return run


def test_each_scheme_has_a_line(run):
    """An example, its sinks, what it is."""
    code, out, err = run()
    assert (code, err) == (0, "")
    for scheme, kind in SCHEMES.items():
        assert f"{kind.example} " in out, scheme
        assert kind.about in out
    made = json.loads(run("--json")[1])
    assert [each["scheme"] for each in made["schemes"]][: len(SCHEMES)] == list(SCHEMES)


def test_each_extra_has_a_line(run):
    """Those of the distribution that users install, and no other."""
    text = (ROOT / "pyproject.toml").read_text()
    table = text.partition("[project.optional-dependencies]")[2].partition("\n# Extras and not")[0]
    assert {each["extra"] for each in json.loads(run("--json")[1])["extras"]} == set(
        re.findall(r"^(\w+) = \[", table, re.MULTILINE)
    )


def test_what_is_missing_says_how_to_install_it(run, monkeypatch):
    """An extra, and the schemes that need it."""
    monkeypatch.setattr(sinks, "find_spec", lambda module: None if module in ("zstandard", "redis") else object())
    out = run()[1]
    assert re.search(r"zstd +pip install 'outfall\[zstd\]'", out)
    assert re.search(r"redis://\S+ .*\(needs the extra redis\)", out)
    assert re.search(r"cli +installed", out)


def test_a_scheme_has_its_options(run):
    """By name, with what each takes; those that are a choice too."""
    out = run("http:")[1]
    assert re.search(r"^body +ndjson \| json \| array \| form$", out, re.MULTILINE)
    assert re.search(r"^headers +Mapping\[str, str\]", out, re.MULTILINE)
    assert "level" in json.loads(run("file", "--json")[1])["options"]
    code, _, err = run("htp")
    assert (code, "did you mean 'http'" in err) == (2, True)


def test_plug_ins_are_listed(run, monkeypatch):
    """With what they lead to; their options are their own."""
    entry = metadata.EntryPoint("memo", "shop.sinks:memo", "outfall.sinks")
    monkeypatch.setattr(metadata, "entry_points", lambda *, group: [entry] if group == "outfall.sinks" else [])
    assert re.search(r"memo: +by shop.sinks:memo", run()[1])
    assert run("memo")[0] == 2


def test_a_terminal_and_a_pipe_show_the_same(capsys, monkeypatch):
    """With rich, and without it."""
    rows = [("a", "1,234"), ("b [bold]x", "\x1b[2J")]
    terminal.table(("NAME", "NUMBER"), rows)
    plain = capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    terminal.table(("NAME", "NUMBER"), rows)
    with_rich = capsys.readouterr().out
    assert plain.split() == with_rich.split()
    assert "\\x1b[2J" in plain
    monkeypatch.setitem(sys.modules, "rich.console", None)
    terminal.table(("NAME", "NUMBER"), rows)
    assert capsys.readouterr().out == plain


def test_the_module_of_each_extra_is_known():
    """Also of those that only some Pythons need."""
    assert all(module for module, _ in sinks._all_extras().values())

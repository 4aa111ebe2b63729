"""The code in a Markdown page, run as its reader would run it.

In README.md and in docs/ every fenced block of these languages is executed:

- ``python``: run, in the order of the page. A block that imports from ``outfall`` begins anew, as for a reader who
  copies it alone: in an empty namespace, with nothing set up, and in a folder with nothing but the files of the page.
  The other blocks go on from there. With a ``:caption:`` it is a file of that name, written and not run; so is
  ``toml``.
- ``text`` and ``json``: what the code since the last such block prints, exactly but for the times in it.
- ``console``: commands after ``$ `` and what they print. Known are ``python``, ``pytest``, ``cat`` and, not run,
  ``pip``, ``make`` and the making of an environment.

Other languages (``yaml``, ``none`` …) are not looked at.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import socketserver
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from outfall import Sink
from outfall.adapters.setup import _outlet

#: What a block has that can be copied alone.
BEGINS_ANEW = re.compile(r"^(?:import|from) outfall\b", re.MULTILINE)
FENCE = re.compile(r"^(?P<mark>```+)(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=mark)$", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"^:(?P<name>[\w-]+):\s*(?P<value>.*)\n", re.MULTILINE)

#: What differs from run to run, and what stands for it in a comparison.
VOLATILE = [
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?"), "<time>"),
    (re.compile(r"^\.+ +\[100%\]$", re.MULTILINE), "<dots>"),
    (re.compile(r"\d+ passed in \d+\.\d+s"), "<n> passed"),
    (re.compile(r" at 0x[0-9a-f]+"), " at <address>"),
]


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    caption: str | None
    body: str
    #: Number of the body's first line in the page.
    line: int


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of *page*, MyST's ``{code-block}`` directive included."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        words, body, start = match["info"].split(), match["body"], match.start("body")
        options: dict[str, str] = {}
        if words and words[0] == "{code-block}":
            while option := OPTION.match(body):
                options[option["name"]] = option["value"].strip()
                start += option.end()
                body = body[option.end() :]
            words = words[1:]
        found.append(Block(words[0] if words else "", options.get("caption"), body, text.count("\n", 0, start) + 1))
    return found


def files_of_others(page: Path) -> dict[str, str]:
    """Return the files of other pages that *page* uses, as it says in a comment: ``% files of collectors.md``."""
    others = re.findall(r"^% files of (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {block.caption: block.body for name in others for block in blocks(page.parent / name) if block.caption}


def comparable(output: str) -> str:
    """Return *output* without what differs from run to run."""
    for pattern, stand_in in VOLATILE:
        output = pattern.sub(stand_in, output)
    return "\n".join(line.rstrip() for line in output.strip().splitlines())


def _compare(printed: str, shown: str, where: str) -> None:
    printed, shown = comparable(printed), comparable(shown)
    assert printed == shown, f"{where}\nprinted:\n{printed}\nshown:\n{shown}"


def run_page(page: Path) -> int:
    """Run the blocks of *page* in the current directory and in new ones in it; return how many were run or compared.

    Raises:
        AssertionError: If something was printed that the page does not say, or the other way round.
        Exception: Whatever the code raises, with the page's own line numbers.
    """
    namespace: dict[str, Any] = {}
    printed, looked_at = io.StringIO(), 0
    base = Path.cwd()
    files = files_of_others(page)
    for name, body in files.items():
        Path(name).write_text(body, encoding="utf-8")
    sys.path.insert(0, "")
    try:
        for block in blocks(page):
            where = f"{page.name}:{block.line}"
            if block.language in ("python", "toml") and block.caption:
                files[block.caption] = block.body
                Path(block.caption).write_text(block.body, encoding="utf-8")
            elif block.language == "python":
                if BEGINS_ANEW.search(block.body):
                    _end(namespace)
                    namespace = {"__name__": "__main__"}
                    os.chdir(tempfile.mkdtemp(dir=base))
                    for name, body in files.items():
                        Path(name).write_text(body, encoding="utf-8")
                code = compile("\n" * (block.line - 1) + block.body, str(page), "exec")
                with contextlib.redirect_stdout(printed):
                    exec(code, namespace)
            elif block.language in ("text", "json"):
                _compare(printed.getvalue(), block.body, where)
                # The same object goes on: sinks hold on to the stream that they were made with.
                printed.seek(0)
                printed.truncate()
            elif block.language == "console":
                for command, expected in _commands(block.body):
                    _run_command(command, expected, where)
            else:
                continue
            looked_at += 1
    finally:
        _end(namespace)
        os.chdir(base)
        sys.path.remove("")
        for name in files:
            server = getattr(sys.modules.pop(name.removesuffix(".py"), None), "server", None)
            if isinstance(server, socketserver.BaseServer):
                server.shutdown()
                server.server_close()
    assert not printed.getvalue(), f"{page.name} does not show: {printed.getvalue()}"
    return looked_at


def _end(namespace: dict[str, Any]) -> None:
    """Undo what the code in *namespace* has set up; a page may leave that to the exit."""
    if _outlet.setup is not None:
        _outlet.setup.close()
    for value in namespace.values():
        if isinstance(value, Sink):
            value.close()
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def _commands(body: str) -> list[tuple[str, str]]:
    """Return each command of a console block with what is shown of its output."""
    return [
        (part.partition("\n")[0], part.partition("\n")[2]) for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]
    ]


def _run_command(command: str, expected: str, where: str) -> None:
    program, *arguments = shlex.split(command)
    if program in ("pip", "make", ".") or arguments[:2] == ["-m", "venv"]:
        return
    if program == "cat":
        output = "".join(Path(name).read_text(encoding="utf-8") for name in arguments)
    else:
        assert program in ("python", "pytest"), f"{where}: {program} is not a command that is run here"
        # Coverage of an example says nothing, and pytest's plugins take longer than the tests.
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE_", "PYTEST_"))}
        environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        options = ["-m", "pytest", "-p", "no:cacheprovider", "--rootdir=."] if program == "pytest" else []
        result = subprocess.run(
            [sys.executable, *options, *arguments],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, f"{where}: {command}\n{result.stdout}"
        output = result.stdout
    _compare(output, expected, f"{where}: {command}")

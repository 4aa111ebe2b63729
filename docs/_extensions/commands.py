"""The directive ``commands``: the help of ``outfall`` and of each of its commands, as the program prints it."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any
from unittest import mock

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from outfall.adapters.commandline.main import _parser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("commands", _Commands)
    return {"parallel_read_safe": True}


class _Commands(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        found: list[nodes.Node] = []
        with mock.patch.dict(os.environ, {"COLUMNS": "88", "NO_COLOR": "1"}):
            for parser in _parsers(_parser()):
                section = nodes.section(ids=[nodes.make_id(parser.prog)])
                section += nodes.title(text=parser.prog)
                section += nodes.literal_block(parser.format_help(), parser.format_help(), language="none")
                found.append(section)
        return found


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in dict.fromkeys(action.choices.values()):
                yield from _parsers(each)

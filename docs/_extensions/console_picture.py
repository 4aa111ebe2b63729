"""The directive ``console-picture``: runs its Python code, and shows what the console would as an SVG."""

from __future__ import annotations

import contextlib
import io
import os
import re
from typing import TYPE_CHECKING, Any
from unittest import mock

from docutils import nodes
from rich.console import Console
from rich.text import Text
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("console-picture", _Picture)
    return {"parallel_read_safe": True}


class _Picture(SphinxDirective):
    has_content = True

    def run(self) -> list[nodes.Node]:
        stderr = io.StringIO()
        with mock.patch.dict(os.environ, {"FORCE_COLOR": "1", "NO_COLOR": ""}), contextlib.redirect_stderr(stderr):
            exec("\n".join(self.content), {"__name__": "__main__"})  # noqa: S102 - the page is ours
        console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
        console.print(Text.from_ansi(stderr.getvalue()))
        picture = console.export_svg(title="stderr", unique_id="console")
        # Fonts of other hosts are not asked for.
        picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)
        return [nodes.raw("", f'<div class="console-picture">{picture}</div>', format="html")]

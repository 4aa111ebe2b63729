"""The directive ``url-schemes``: the table of the URLs that `outfall.open_sink` knows, made of its own registry."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("url-schemes", SchemesDirective)
    return {"parallel_read_safe": True}


class SchemesDirective(SphinxDirective):
    """Show a row for each sink: its URLs, what they lead to, and the options that are not the sink's own."""

    def run(self) -> list[nodes.Node]:
        """Generate a table in Markdown."""
        schemes = importlib.import_module("outfall.adapters.urls.kinds").SCHEMES
        outfall = importlib.import_module("outfall")
        rows: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Any]] = {}
        for kind in schemes.values():
            rows.setdefault((kind.sinks, tuple(kind.choices)), []).append(kind)
        lines = ["| URL | sink | what |", "| --- | --- | --- |"]
        for (sinks, _), kinds in rows.items():
            roles = [
                f"{{py:{'class' if isinstance(getattr(outfall, name), type) else 'func'}}}`~outfall.{name}`"
                for name in sinks
            ]
            told = [kinds[0].about]
            told += [
                f"`{option}=` is {', '.join(f'`{choice}`' for choice in choices)}, the first by default"
                for option, (_, choices) in kinds[0].choices.items()
            ]
            told += [f"extra `{kinds[0].extra}`"] if kinds[0].extra else []
            urls = " ".join(f"`{kind.example}`" for kind in kinds)
            lines.append(f"| {urls} | {', '.join(roles)} | {'; '.join(told)} |")
        return self.parse_text_to_nodes("\n".join(lines))

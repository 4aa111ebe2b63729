"""The matrix of guarantees: made of the sections below it, so that each promise stands in one place.

A section is a fault, and a term of its definition lists is "`Sink`, `Sink` — word". The directive ``guarantees``
becomes a table with a symbol for each word, which leads to the term. The tests that a definition names are folded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from sphinx.application import Sphinx

#: What the words in the terms come to. A word that is not here depends on something else: on a target, on an option.
SYMBOLS = {
    "✓": {"kept", "waits", "no wait", "written", "taken", "others get it", "next gets it"},
    "◐": {"bounded", "set aside", "seconds lost", "what has left", "flusher waits", "by fsync", "on_full"},
    "✗": {"lost", "lost, reported", "dropped", "refused"},
    "\N{EN DASH}": {"\N{EN DASH}", "no matter"},
    "?": {"not tested"},
}


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive, and what fills it when the page has been read."""
    app.add_node(_Placeholder)
    app.add_directive("guarantees", _Directive)
    app.connect("doctree-read", _fill)
    return {"parallel_read_safe": True}


class _Placeholder(nodes.General, nodes.Element):
    pass


class _Directive(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        return [_Placeholder()]


def symbol_of(word: str) -> str:
    """Return the symbol that stands for *word*."""
    return next((symbol for symbol, words in SYMBOLS.items() if word in words), "→")


def _fill(_app: Sphinx, document: nodes.document) -> None:
    for placeholder in list(document.findall(_Placeholder)):
        faults: list[str] = []
        cells: dict[str, dict[str, tuple[str, str]]] = {}
        for section in document.findall(nodes.section):
            terms = [term for term in section.findall(nodes.term) if term.parent.parent.parent is section]
            if not terms:
                continue
            faults.append(fault := section[0].astext())
            for term in terms:
                sinks, _, word = term.astext().partition(" — ")
                place = nodes.make_id(f"{fault} {sinks}")
                term["ids"].append(place)
                for sink in sinks.split(", "):
                    cells.setdefault(sink, {})[fault] = (word, place)
                _fold_tests(term.parent)
        placeholder.replace_self(_table(faults, cells))


def _fold_tests(item: nodes.Element) -> None:
    for paragraph in list(item.findall(nodes.paragraph)):
        if paragraph.astext().startswith("Shown by "):
            opened = nodes.raw("", "<details class='tests'><summary>Tests</summary>", format="html")
            paragraph.replace_self([opened, paragraph.deepcopy(), nodes.raw("", "</details>", format="html")])


def _table(faults: list[str], cells: dict[str, dict[str, tuple[str, str]]]) -> nodes.table:
    body = nodes.tbody()
    for sink, row in sorted(cells.items()):
        entries: list[nodes.Element] = [nodes.paragraph("", "", nodes.literal("", sink))]
        for fault in faults:
            word, place = row[fault]
            link = nodes.reference("", symbol_of(word), internal=True, refuri=f"#{place}", reftitle=f"{fault}: {word}")
            entries.append(nodes.paragraph("", "", link))
        body += _row(entries)
    titles = [nodes.paragraph(text=title) for title in ("sink", *faults)]
    columns = [nodes.colspec(colwidth=width) for width in (3, *[1] * len(faults))]
    group = nodes.tgroup("", *columns, nodes.thead("", _row(titles)), body, cols=len(columns))
    return nodes.table("", group, classes=["guarantees"])


def _row(entries: list[Any]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", entry) for entry in entries))

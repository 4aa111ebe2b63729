"""Directives of the reference: ``sink`` shows a class, its shared parameters and its hooks; ``names`` lists all names.

Members of a sink that only writers of sinks and wrappers use are those that `dir()` leaves out.
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import TYPE_CHECKING, Any

from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docutils import nodes
    from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Register both directives."""
    app.add_directive("sink", SinkDirective)
    app.add_directive("names", NamesDirective)
    return {"parallel_read_safe": True}


class _Generated(SphinxDirective):
    def parsed(self, lines: list[str]) -> list[nodes.Node]:
        text = StringList(lines, source=f"<{self.name} {' '.join(self.arguments)}>")
        # MyST parses what its directives give it as Markdown.
        return self.parse_text_to_nodes("\n".join(["```{eval-rst}", *text, "```"]))


class SinkDirective(_Generated):
    """Show a sink: what its user calls, the parameters that it shares, then the hooks for writers of sinks."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Generate reStructuredText for the class that is named."""
        outfall = importlib.import_module("outfall")
        sink = getattr(outfall, self.arguments[0])
        inside = frozenset().union(*(vars(each).get("_inside", ()) for each in sink.__mro__))
        own = [name for name, value in vars(sink).items() if name in inside and getattr(value, "__doc__", None)]
        lines = [".. currentmodule:: outfall", "", f".. autoclass:: {sink.__name__}"]
        if own:
            lines.append(f"   :exclude-members: {', '.join(own)}")
        if shared := list(_shared_parameters(sink)):
            lines += ["", ".. rubric:: Parameters that other sinks have too", ""]
            for name, base, sentence in shared:
                lines += [f"``{name}`` (of `{base.__name__}`)", f"   {sentence}", ""]
        hooks = [name for name in own if callable(getattr(sink, name))]
        if hooks:
            lines += ["", ".. rubric:: Hooks for writers of sinks", ""]
            for name in hooks:
                lines += [f".. automethod:: {sink.__name__}.{name}", ""]
        return self.parsed(lines)


def _shared_parameters(sink: type) -> Iterator[tuple[str, type, str]]:
    """Give what *sink* takes and a base class explains: the name, the base class, the first sentence."""
    explained = set(_arguments_of(sink))
    for name in sink.parameters():  # type: ignore[attr-defined]
        for base in sink.__mro__[1:]:
            sentences = _arguments_of(base)
            if name not in explained and name in sentences:
                explained.add(name)
                yield name, base, sentences[name]


def _arguments_of(kind: type) -> dict[str, str]:
    """Return the first sentence about each argument in the docstring of *kind*."""
    found = re.search(r"^Args:\n((?:    .*\n|\n)+)", f"{inspect.cleandoc(kind.__doc__ or '')}\n", re.MULTILINE)
    if not found:
        return {}
    entries = re.split(r"^    (?=\w+: )", found[1], flags=re.MULTILINE)[1:]
    split = (" ".join(entry.split()).partition(": ") for entry in entries)
    return {name: re.split(r"(?<=[.]) (?=[A-Z])", text)[0] for name, _, text in split}


class NamesDirective(_Generated):
    """List every public name with the first line of its docstring."""

    def run(self) -> list[nodes.Node]:
        """Generate a definition list."""
        outfall = importlib.import_module("outfall")
        lines: list[str] = [".. currentmodule:: outfall", ""]
        public = sorted(outfall.__all__, key=str.casefold)
        for name in public:
            made = getattr(outfall, name)
            text = made.__doc__ if inspect.isclass(made) or inspect.isroutine(made) else None
            first = inspect.cleandoc(text or "A type alias.").partition("\n\n")[0]
            text = re.sub(r"(?<!`)`(\w+)`(?!`)", lambda word: word[0] if word[1] in public else f"`{word[0]}`", first)
            lines += [f"`{name}`", f"   {' '.join(text.split())}", ""]
        return self.parsed(lines)

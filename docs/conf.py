"""How Sphinx builds the documentation: ``make docs``. It needs no network."""

from __future__ import annotations

import importlib
import inspect
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "Outfall"
author = "The Outfall authors"
project_copyright = author
version = release = version_of("outfall")

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "commands",
    "console_picture",
    "figures",
    "guarantees",
    "public_names",
    "url_schemes",
]
exclude_patterns = ["_build", "_extensions"]
nitpicky = True
# The parts that `Sink` and `FileSink` are made of, and what listeners share, are shown as bases, and
# documented nowhere.
nitpick_ignore = [
    ("py:class", "outfall.sinks.core.guard.Guarded"),
    ("py:class", "outfall.sinks.core.chain.InChain"),
    ("py:class", "outfall.sinks.files.output.Output"),
    ("py:class", "outfall.adapters.brokers.listener.BrokerListener"),
    ("py:class", "outfall.sinks.delivery.listening.Listening"),
]

# -- Text

myst_enable_extensions = ["deflist", "substitution"]
myst_heading_anchors = 3
# In docstrings `name` is a reference, to a name of ours or to one that _URLS below knows.
default_role = "py:obj"

# -- Reference

add_module_names = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 80

# -- HTML

copybutton_prompt_text = "$ "

html_theme = "furo"
html_title = f"Outfall {release}"
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["outfall.css"]
html_js_files = ["tables.js"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}


# -- References to other projects
#
# sphinx.ext.intersphinx would fetch their inventories at each build. What is referred to are a few names in a few
# pages, whose anchors are the names themselves.

_PYTHON = "https://docs.python.org/3/library/"
_URLS = {
    **{
        module: f"{_PYTHON}{module}.html"
        for module in (
            "collections",
            "inspect",
            "collections.abc",
            "datetime",
            "enum",
            "hmac",
            "http.client",
            "logging",
            "logging.config",
            "logging.handlers",
            "multiprocessing",
            "os",
            "queue",
            "socket",
            "ssl",
            "sys",
            "threading",
            "time",
            "typing",
            "uuid",
        )
    },
    "print": _PYTHON + "functions.html",
    "str": _PYTHON + "stdtypes.html",
    "structlog": "https://www.structlog.org/en/stable/api.html",
    "requests": "https://requests.readthedocs.io/en/latest/api/",
    "orjson": "https://github.com/ijl/orjson",
}

# Types in signatures, which are annotations and thus without their module.
_TYPES = {
    "Any": "typing.Any",
    "Callable": "collections.abc.Callable",
    "Collection": "collections.abc.Collection",
    "Iterable": "collections.abc.Iterable",
    "Mapping": "collections.abc.Mapping",
    "Sequence": "collections.abc.Sequence",
    "DropEvent": "structlog.DropEvent",
    "NoReturn": "typing.NoReturn",
    "ExcInfo": "sys.exc_info",
    "Fields": "outfall.Projection",
    "Key": "outfall.Throttle",
    "OnError": "outfall.OnError",
    "Level": "outfall.Level",
    "Callsite": "structlog.processors.CallsiteParameter",
    "Size": "outfall.Size",
    "Span": "outfall.Span",
    "NaiveTimestamps": "outfall.NaiveTimestamps",
    "Destination": "outfall.Destination",
    "ReadableBuffer": "collections.abc.Buffer",
}


def setup(app: Sphinx) -> None:
    """Connect what follows to Sphinx's events."""
    app.connect("autodoc-process-signature", _without_factories)
    app.connect("missing-reference", _resolve)


def _without_factories(*arguments: Any) -> tuple[str | None, str | None]:
    """Show the default of a dataclass field that is made anew as what is made; all of ours are dicts."""
    *_, signature, returns = arguments
    return signature and signature.replace("<factory>", "{}"), returns


def _resolve(
    _app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Element | None:
    """Find what Sphinx did not: our own names under the name they are documented by, and those of others."""
    target: str = node["reftarget"]
    # Modules that are imported under a short name.
    target = _TYPES.get(target, f"datetime.{target[3:]}" if target.startswith("dt.") else target)
    if target.startswith("Forwarding."):
        target = f"outfall.sinks.core.forwarding.{target}"
    domain = env.domains["py"]
    names = list(_documented_names(target, node.get("py:class")))
    for name in names:
        found = domain.resolve_xref(env, node["refdoc"], env.app.builder, "obj", name, node, content)
        if found is not None:
            return found
    for name in names:
        page = _page_of(name)
        if page is not None and name != "str":  # Sphinx leaves the built-in types in signatures as they are
            return nodes.reference("", "", content, internal=False, refuri=page if name in _URLS else f"{page}#{name}")
    return None


def _documented_names(target: str, class_name: str | None) -> Iterator[str]:
    """Give what may be documented for *target*: a class by its module, an inherited member, a class's parameter."""
    head, _, name = target.rpartition(".")
    outfall = importlib.import_module("outfall")
    handlers = importlib.import_module("outfall.adapters.handlers")
    if name in outfall.__all__ and (not head or head.startswith("outfall.")):
        yield f"outfall.{name}"
    yield target
    # A class that is not public stands for the public one that it derives from.
    made = getattr(sys.modules.get(head), name, None)
    if head.startswith("outfall.") and inspect.isclass(made):
        yield from (f"outfall.{base.__name__}" for base in made.__mro__ if base.__name__ in outfall.__all__)
    wanted = head or (class_name or "").rpartition(".")[2]
    owner = getattr(outfall, wanted, None) or getattr(handlers, wanted, None)
    if inspect.isclass(owner):
        bases = [base for base in owner.__mro__ if name in vars(base)]
        yield from (f"outfall.{base.__name__}.{name}" for base in bases)
        yield from (f"outfall.adapters.handlers.{base.__name__}.{name}" for base in bases)
        yield from (f"{base.__module__}.{base.__name__}.{name}" for base in bases)
        if name in inspect.signature(owner.__init__).parameters:
            yield f"outfall.{owner.__name__}"


def _page_of(target: str) -> str | None:
    """Return the page of another project's documentation that has *target*."""
    module = target
    while module:
        if module in _URLS:
            return _URLS[module]
        module = module.rpartition(".")[0]
    return None

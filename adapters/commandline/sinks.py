"""``outfall sinks``: lists the schemes of URLs and the extras, and says which are installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from outfall.adapters.commandline.arguments import DONE, add_command, unusable
from outfall.adapters.commandline.terminal import say, say_json, table
from outfall.adapters.urls import options_of, schemes
from outfall.adapters.urls.kinds import SCHEMES
from outfall.adapters.urls.registry import unknown_scheme
from outfall.sinks.event.json import OrjsonRenderer

if TYPE_CHECKING:
    import argparse

    from outfall.adapters.commandline.arguments import Commands

#: The extras without a scheme of their own: the module that each installs, and its purpose.
_EXTRAS = {
    "cli": ("rich", "progress and tables of this command in colour"),
    "otel": ("opentelemetry.proto", "encoding=protobuf for otlp+http: and otlp+https:, and metrics"),
    "prometheus": ("prometheus_client", "the ledgers of all sinks as metrics for Prometheus"),
    "toml": ("tomllib" if sys.version_info >= (3, 11) else "tomli", "configure_from() and outfall check"),
    "windows": ("win32evtlog", "NTEventLogSink, on Windows"),
    "zstd": ("zstandard", "compression=zstd, and outfall tail of .zst files"),
}


def add(commands: Commands) -> None:
    """Add ``sinks`` to the *commands*."""
    parser = add_command(
        commands,
        "sinks",
        about="list the sinks that a URL can name, and the extras",
        description=(
            "List the schemes of URLs, including those of installed plug-ins, and the extras. With SCHEME, list its "
            "options and the values that each takes."
        ),
        example="""
            outfall sinks
            outfall sinks loki+https
        """,
    )
    parser.add_argument("scheme", nargs="?", metavar="SCHEME", help="show the options of its URLs")
    parser.add_argument("--json", action="store_true", help="write one JSON object instead of text")
    parser.set_defaults(run=_sinks)


def _sinks(options: argparse.Namespace) -> int:
    if options.scheme is not None:
        return _options(options.scheme.rstrip(":/").lower(), as_json=options.json)
    found: list[dict[str, Any]] = [
        {
            "scheme": name,
            "url": SCHEMES[name].example if name in SCHEMES else f"{name}:",
            "about": about,
            "sinks": list(SCHEMES[name].sinks) if name in SCHEMES else [],
            "extra": SCHEMES[name].extra if name in SCHEMES else None,
            "installed": name not in SCHEMES or _is_installed(SCHEMES[name].client),
        }
        for name, about in schemes().items()
    ]
    extras = sorted(_all_extras().items())
    if options.json:
        shown = [
            {"extra": name, "about": about, "installed": _is_installed(module)} for name, (module, about) in extras
        ]
        say_json(OrjsonRenderer().render({"schemes": found, "extras": shown}))
        return DONE
    table(
        ("URL", "SINK", "WHAT"),
        [
            (
                each["url"],
                " ".join(each["sinks"]),
                each["about"] + ("" if each["installed"] else f" (needs the extra {each['extra']})"),
            )
            for each in found
        ],
    )
    say("")
    table(
        ("EXTRA", "STATE", "WHAT FOR"),
        [
            (name, "installed" if _is_installed(module) else f"pip install 'outfall[{name}]'", about)
            for name, (module, about) in extras
        ],
    )
    return DONE


def _options(scheme: str, *, as_json: bool) -> int:
    if scheme not in SCHEMES:
        if scheme in schemes():
            unusable(f"the scheme {scheme!r} is a plug-in's, which does not list its options: {schemes()[scheme]}")
        unusable(unknown_scheme(scheme))
    if as_json:
        say_json(OrjsonRenderer().render({"scheme": scheme, "options": options_of(scheme)}))
    else:
        say(f"{SCHEMES[scheme].example}: {SCHEMES[scheme].about}")
        say("")
        table(("OPTION", "TAKES"), sorted(options_of(scheme).items()))
    return DONE


def _all_extras() -> dict[str, tuple[str | None, str]]:
    made: dict[str, tuple[str | None, str]] = dict(_EXTRAS)
    for kind in SCHEMES.values():
        if kind.extra is not None and kind.extra not in made:
            made[kind.extra] = (kind.client, ", ".join(kind.sinks))
    return made


def _is_installed(module: str | None) -> bool:
    if module is None:
        return True
    try:
        return find_spec(module) is not None
    except ImportError:  # the package that holds the module is not installed
        return False

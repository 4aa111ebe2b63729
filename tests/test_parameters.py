"""The reference of every public class and function: each parameter is described, with its default."""

from __future__ import annotations

import inspect
import re
import typing
from typing import Any

import pytest

import outfall
from outfall.sinks import testing

PUBLIC = {name: getattr(module, name) for module in (outfall, testing) for name in module.__all__}
ENTRY = re.compile(r"\*{0,2}(?P<name>\w+): (?P<text>.*)")
SEE = re.compile(r"[Ss]ee `(?:outfall\.)?(\w+)`")


def described(thing: Any) -> dict[str, str]:
    """Return what the ``Args`` of a docstring say, by parameter."""
    lines: list[str] = []
    # A subclass that adds no parameter need not say its base's again.
    for kind in inspect.getmro(thing) if inspect.isclass(thing) else (thing,):
        if "Args:" not in lines:
            lines = inspect.cleandoc(kind.__doc__ or "").splitlines()
    entries: dict[str, str] = {}
    if "Args:" not in lines:
        return entries
    name = ""
    for line in lines[lines.index("Args:") + 1 :]:
        if line and not line.startswith("    "):
            break
        match = ENTRY.fullmatch(line[4:])
        if match and not line.startswith("     "):
            name = match["name"]
            entries[name] = match["text"]
        elif name:
            entries[name] += " " + line.strip()
    return entries


def full_text(thing: Any, name: str) -> str:
    """Return what is said of a parameter, and, where that says "See `X`", what X says of it."""
    text = described(thing).get(name, "")
    for other in {found for entry in described(thing).values() for found in SEE.findall(entry)}:
        if name in described(PUBLIC.get(other)) and (SEE.search(text) or "efault" not in text):
            text += " " + described(PUBLIC[other])[name]
    return text


def ways_to_write(default: Any) -> set[str]:
    """Return the texts that tell a default; that there is one is enough where it has no short literal."""
    if isinstance(default, str) and default:
        return {f'"{default}"'.replace("\n", "\\n").replace("\0", "\\0")}
    if isinstance(default, bool) or not isinstance(default, (int, float)):
        return {"default"}
    if float(default).is_integer():
        default = int(default)
    ways = {str(default), f"{float(default)}", f"{default:,}".replace(",", " ")}
    for unit, size in (("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30)):
        if default >= size and default % size == 0:
            ways.add(f"{int(default // size)} {unit}")
    if default == outfall.Sink.__init__.__kwdefaults__["level"]:
        ways.add("NOTSET")
    return ways


#: What is returned and not made by applications: its defaults are nobody's choice.
RESULTS = {"BatchResult", "Encoded", "ListenerStats", "SinkFailure", "SinkStats", "SpoolStatus", "StoreStatus"}
CALLABLE = [
    name
    for name, thing in PUBLIC.items()
    if callable(thing)
    and typing.get_origin(thing) is None  # an alias
    and not getattr(thing, "_is_protocol", False)
    and name != "Setup"  # which `configure` makes
    and not hasattr(thing, "__total__")
    and not (inspect.isclass(thing) and issubclass(thing, BaseException))
]


@pytest.mark.parametrize("name", CALLABLE)
def test_each_parameter_is_described(name):
    """What the signature has, the docstring's Args have, in its order; and nothing that is gone."""
    thing = PUBLIC[name]
    given = [
        each
        for each, it in inspect.signature(thing).parameters.items()
        if it.kind is not it.VAR_KEYWORD or each in described(thing)
    ]
    assert list(described(thing)) == given


@pytest.mark.parametrize("name", [name for name in CALLABLE if name not in RESULTS])
def test_each_default_is_told(name):
    """Whoever reads of a parameter reads what it is if it is not given."""
    thing = PUBLIC[name]
    untold = {
        each: (it.default, full_text(thing, each))
        for each, it in inspect.signature(thing).parameters.items()
        if it.default is not it.empty
        and not any(
            re.search(rf"(?<![\w.]){re.escape(way)}(?![\w]|\.\d)", full_text(thing, each), re.IGNORECASE)
            for way in ways_to_write(it.default)
        )
    }
    assert untold == {}

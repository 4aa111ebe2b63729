"""Reads settings files: `configure_from` sets up logging from TOML."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from outfall.adapters.setup import Setup, configure
from outfall.adapters.urls import Described
from outfall.sinks.core.arguments import nearest
from outfall.sinks.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: The arguments of `configure` that a file may hold, with the types of each, and these in words.
_ARGUMENTS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "console": ((str, bool), '"auto", true or false'),
    "console_level": ((str, int, float), "a level"),
    "level": ((str, int, float), "a level"),
    "levels": ((dict,), "a table of levels by logger"),
    "stdlib": ((bool,), "true or false"),
    "captures_warnings": ((bool,), "true or false"),
    "excepthook": ((bool,), "true or false"),
    "drain_on_sigterm": ((bool,), "true or false"),
    "env": ((bool,), "true or false"),
}


@dataclass(frozen=True)
class Settings:
    """The contents of a settings file.

    Args:
        path: The path of the file.
        arguments: The arguments for `configure`.
        sinks: The sinks, in the order of the file.
    """

    path: str
    arguments: Mapping[str, Any]
    sinks: tuple[Described, ...]


def configure_from(path: str | os.PathLike[str]) -> Setup:
    """Set up structlog and `logging` from a TOML file; calls `configure`.

    Args:
        path: The path of the file. Its table ``[outfall]`` has arguments of `configure`: ``console``,
            ``console_level``, ``level``, ``levels``, ``stdlib``, ``captures_warnings``, ``excepthook``,
            ``drain_on_sigterm``, ``env``. Each table ``[sinks.NAME]`` has the ``url`` of a sink, as `open_sink` takes
            it, and the options that the query of the URL may have, such as ``max_bytes = "50 MB"``. Options with a dot
            may be tables: ``labels = { app = "shop" }``,
            ``spool = { directory = "/var/spool/shop", max_bytes = "1 GB" }``. NAME is the name of the sink.

    Returns:
        The `Setup`.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not TOML, or a table, a key or a value has no meaning; the message names the file and the
            key. Nothing has changed then.
        MissingDependencyError: On Python 3.10, which cannot read TOML, without the extra ``toml``.

    Paths in the file are relative to the working directory.
    """
    settings = read(path)
    try:
        return configure(*settings.sinks, **settings.arguments)  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise _wrong(settings.path, str(error)) from None


def read(path: str | os.PathLike[str]) -> Settings:
    """Read the settings file at *path*, without opening sinks.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not TOML, a table or key is unknown, or a value has the wrong type.
        MissingDependencyError: On Python 3.10 without tomli.
    """
    name = os.fsdecode(path)
    every = tables(path, ("outfall", "sinks"))
    arguments = table(path, every, "outfall", _ARGUMENTS)
    for key, value in arguments.items():
        types, expected = _ARGUMENTS[key]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise _wrong(name, f"[outfall] {key} = {value!r} is not {expected}")
    return Settings(name, arguments, sinks(path, every))


def tables(path: str | os.PathLike[str], known: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return the tables of the file at *path*, which may have the *known* names.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not TOML, has another table, or a value in place of a table.
        MissingDependencyError: On Python 3.10 without tomli.
    """
    name = os.fsdecode(path)
    loads = _reader()
    with open(path, "rb") as file:
        data = file.read()
    try:
        # Editors of Windows write a byte order mark.
        found: dict[str, Any] = loads(data.decode("utf-8-sig"))
    except ValueError as error:
        raise _wrong(name, f"{error}") from None
    _refuse_unknown(name, "table", "", found, known)
    for each in known:
        if not isinstance(found.get(each, {}), dict):
            raise _wrong(name, f"{each} is not a table: write [{each}{'.NAME' if each == 'sinks' else ''}]")
    return found


def table(
    path: str | os.PathLike[str], every: Mapping[str, dict[str, Any]], name: str, known: Iterable[str]
) -> dict[str, Any]:
    """Return the table *name*, which may have the *known* keys.

    Raises:
        ValueError: If it has another key.
    """
    found = every.get(name, {})
    _refuse_unknown(os.fsdecode(path), "key", f"[{name}] ", found, known)
    return found


def sinks(path: str | os.PathLike[str], every: Mapping[str, dict[str, Any]]) -> tuple[Described, ...]:
    """Return the sinks of the tables ``[sinks.NAME]``, in the order of the file.

    Raises:
        ValueError: If a table has no URL.
    """
    return tuple(_sink(os.fsdecode(path), name, given) for name, given in every.get("sinks", {}).items())


def _sink(path: str, name: str, table: Any) -> Described:
    if not isinstance(table, dict):
        raise _wrong(path, f"sinks.{name} is not a table: write [sinks.{name}] and below it url = …")
    options = dict(table)
    url = options.pop("url", None)
    if not isinstance(url, str):
        problem = "has no url" if url is None else "url is not text"
        raise _wrong(path, f'[sinks.{name}] {problem}: write url = "file:app.jsonl"')
    return Described(url, options, name, f"[sinks.{name}]")


def _refuse_unknown(path: str, what: str, where: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    for name in given:
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near!r}?" if near else f"there are {', '.join(known)}"
            raise _wrong(path, f"{where}there is no {what} {name!r}: {hint}")


def _wrong(path: str, message: str) -> ValueError:
    return ValueError(f"{path}: {message}")


def _reader() -> Any:
    """Return the function that parses TOML: that of the standard library, on Python 3.10 that of tomli."""
    try:
        reader: Any = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ImportError:
        raise MissingDependencyError(package="tomli", extra="toml") from None
    return reader.loads

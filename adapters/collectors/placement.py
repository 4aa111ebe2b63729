"""Names fields for formats in which a dot in a name means nesting: `Placement`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from outfall.adapters.collectors.fields import dump

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: The range of signed integers of 64 bits; others become text.
_LEAST, _MOST = -(2**63), 2**63 - 1

#: The number of usual names to remember.
_MOST_NAMES = 1_000

#: Names by level: None stands for a value, a mapping for the names below.
Tree = dict[str, Any]


class Placement:
    """Find a name for each field of an event, so that no name has both a value and names below it.

    Args:
        own: Names at the top that the collector reserves; a field of that name gets ``_`` at its end.
        objects: Names with other names below them in other events; a value of that name gets ``_`` at its end.
        deepest: The number of levels of names; deeper values become JSON as text.
        largest: The largest float.
    """

    def __init__(
        self,
        *,
        own: Iterable[str] = (),
        objects: Iterable[str] = (),
        deepest: int = 20,
        largest: float = float("inf"),
    ) -> None:
        self._own = dict.fromkeys(own)
        self._objects = tuple(objects)
        self._deepest = deepest
        self._largest = largest
        #: A larger float may be an integer that has lost digits.
        self._usual_float = min(largest, float(_MOST))
        #: A cache: names that need no change.
        self._usual: set[str] = set()

    def usual(self, data: bytes) -> dict[str, Any] | None:
        """Return the event in *data* if no field needs another name or value; else None."""
        try:
            event = orjson.loads(data)
        except ValueError:
            return None
        if type(event) is not dict:
            return None
        for value in event.values():
            kind = type(value)
            if kind is str:
                continue
            if kind is int:
                if not _LEAST <= value <= _MOST:
                    return None
            elif kind is dict or kind is list or (kind is float and abs(value) > self._usual_float):
                return None
        if not self._usual.issuperset(event):
            for name in event.keys() - self._usual:
                if "." in name or not name.strip() or name[-1] == "_" or name in self._own or name in self._objects:
                    return None
            if len(self._usual) + len(event) <= _MOST_NAMES:
                self._usual.update(event)
        return event

    def beside(self, made: dict[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
        """Return *made* with the fields of *rest* added after it; no value is lost.

        ``_`` is added to a name that is taken or has other names below it, and to a part of a name that has a value
        elsewhere. An empty or blank part of a name becomes ``_``. Integers beyond 64 bits become text.
        """
        tree: Tree = {**self._own, **{name: {} for name in self._objects}}
        _mark(tree, made)
        self._fill(made, tree, rest, 1)
        return made

    def _fill(self, target: dict[str, Any], tree: Tree, fields: Mapping[str, Any], level: int) -> None:
        """Put *fields* into *target*; *tree* has the names that *target* uses."""
        for name, value in fields.items():
            *above, last = (part if part.strip() else "_" for part in name.split("."))
            node = tree
            path: list[str] = []
            for part in above:
                while node.get(part, node) is None:
                    part += "_"  # noqa: PLW2901 - the same part, by another name
                node = node.setdefault(part, {})
                path.append(part)
            nested = value if isinstance(value, dict) and level + len(above) < self._deepest else None
            free = last
            if nested is None:
                while free in node or (free != last and ".".join([*path, free]) in fields):
                    free += "_"
                node[free] = None
                target[".".join([*path, free])] = self._value(value, level + len(above))
            else:
                while node.get(free, node) is None or (free != last and ".".join([*path, free]) in fields):
                    free += "_"
                inner = target.get(".".join([*path, free]))
                if not isinstance(inner, dict):
                    inner = target[".".join([*path, free])] = {}
                self._fill(inner, node.setdefault(free, {}), nested, level + len(above) + 1)

    def _value(self, value: Any, level: int) -> Any:
        """Return *value* in a form that may be a value at any name."""
        kind = type(value)
        if kind is int:
            return value if _LEAST <= value <= _MOST else str(value)
        if kind is float:
            return repr(value) if abs(value) > self._largest else value  # NaN is a value
        if kind is dict:
            return dump(value).decode()
        if kind is list:
            return self._list(value, level)
        return value

    def _list(self, values: list[Any], level: int) -> list[Any]:
        """Return a list whose mappings agree in which names have values; if they cannot, they become JSON as text."""
        if not any(type(value) in (dict, list) for value in values):
            return [self._value(value, level) for value in values]
        if level < self._deepest and all(type(value) is dict for value in values):
            made: list[dict[str, Any]] = []
            known: Tree = {}
            for value in values:
                tree: Tree = {}
                made.append({})
                self._fill(made[-1], tree, value, level + 1)
                if not _agree(known, tree):
                    break
            else:
                return made
        if any(type(value) is dict or _has_names(value) for value in values):
            return [value if isinstance(value, str) else dump(value).decode() for value in values]
        return [self._value(value, level) for value in values]


def _mark(tree: Tree, made: Mapping[str, Any]) -> None:
    """Record the names of *made* in *tree*."""
    for name, value in made.items():
        *above, last = name.split(".")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        if isinstance(value, dict):
            _mark(node.setdefault(last, {}), value)
        else:
            node[last] = None


def _agree(known: Tree, tree: Tree) -> bool:
    """Add *tree* to *known*; return False if a name has a value in one of them and names below it in the other."""
    for name, below in tree.items():
        other = known.setdefault(name, below)
        if other is None or below is None:
            if other is not below:
                return False
        elif other is not below and not _agree(other, below):
            return False
    return True


def _has_names(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(each, dict) or _has_names(each) for each in value)

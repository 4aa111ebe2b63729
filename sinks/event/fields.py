"""Selects and renames fields of events: `Projection`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union, overload

from structlog import DropEvent

from outfall.sinks.event.event import METADATA, LevelledEvent, without_metadata
from outfall.sinks.event.exceptions import MESSAGE, TYPE
from outfall.sinks.event.json import OrjsonRenderer
from outfall.sinks.event.jsonable import type_name
from outfall.sinks.event.levels import level_of

if TYPE_CHECKING:
    from collections.abc import Callable

#: The path to a value in an event: ``"user.address.city"``, or a tuple of keys.
Path = Union[str, "tuple[Any, ...]"]

#: The type of the argument of `Projection`.
Fields = Union["Sequence[Path]", "Mapping[str, Any]"]


class Constant:
    """A constant value for `Projection`; needed for a text, which would be a path otherwise.

    Args:
        value: The value.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value: Any = value

    def __repr__(self) -> str:
        # Without the value, which may be an API key.
        return "Constant(…)"


class Projection:
    """Select fields of events, and rename them, as the receiver requires.

    Call it with an event; or use it as a structlog processor, in a chain or in a sink's ``processors``. `HTTPSink`
    makes one from its argument ``fields``.

    Args:
        fields: Either the paths of the fields to keep in their places: ``["event", "level", "user.id"]``. Or a mapping
            from new names to the sources of their values. A source is a path, ``{"msg": "event"}``; a callable that
            gets the event, ``{"size": lambda event: len(event["body"])}``; or a constant, ``{"version": 2}``: any value
            that is not a text, tuple or callable. Write ``Constant("shop")`` for a text.

    Raises:
        TypeError: If *fields* is neither, or a path is neither text nor a tuple.
        ValueError: If there is no field, a path is empty, or a new name is a metadata key, which is never written out.

    A path ``"a.b.c"`` leads from one nested mapping to the next; a key that contains the dots itself takes precedence.
    In a tuple, ``("a", "b.c")``, each item is one key. Missing fields are left out. ``"exception"``,
    ``"exception_type"`` and ``"exception_message"`` also exist if the event has an unrendered ``exc_info``. Metadata
    keys do not exist for paths, and callables do not see them.

    If a callable raises, its field gets a text in angle brackets that names the exception, as the renderer does;
    `structlog.DropEvent` filters the event.

    The event is not changed. The result shares nested values with it, unless a part of the value is left out. If the
    level is left out, it still counts for filters. Safe from any thread.

    Source: ``logging.handlers.HTTPHandler.mapLogRecord``, as a value.
    """

    __slots__ = ("_kept", "_made")

    def __init__(self, fields: Fields) -> None:
        #: The paths of fields that are kept in their places.
        self._kept: tuple[_Path, ...] = ()
        #: The new names, with the sources of their values.
        self._made: tuple[tuple[str, _Path | Constant | Callable[[Any], Any]], ...] = ()
        if isinstance(fields, Mapping):
            for name in fields:
                if not isinstance(name, str):
                    msg = f"fields: the new name {name!r} is not text"
                    raise TypeError(msg)
                if name in METADATA:
                    msg = f"fields: {name!r} is a metadata key, which is never written out"
                    raise ValueError(msg)
            self._made = tuple((name, _source(value)) for name, value in fields.items())
        elif isinstance(fields, Sequence) and not isinstance(fields, (str, bytes, bytearray)):
            self._kept = tuple(_Path(path) for path in fields)
        else:
            msg = f"fields: a sequence of paths or a mapping from new names is needed, not {type(fields).__name__}"
            raise TypeError(msg)
        if not self._kept and not self._made:
            msg = f"fields={fields!r}: at least one field is needed"
            raise ValueError(msg)

    def __repr__(self) -> str:
        if self._kept:
            return f"Projection({[path.given for path in self._kept]!r})"
        return f"Projection to {', '.join(name for name, _ in self._made)}"

    @overload
    def __call__(self, event: Mapping[str, Any], /) -> dict[str, Any]: ...
    @overload
    def __call__(self, logger: Any, method_name: str, event_dict: Mapping[str, Any], /) -> dict[str, Any]: ...
    def __call__(self, *given: Any) -> dict[str, Any]:
        """Return the projection of an event. The arguments are the event alone, or those of a structlog processor."""
        if len(given) not in (1, 3):
            msg = f"Projection: an event is needed, or (logger, method_name, event_dict); {len(given)} arguments came"
            raise TypeError(msg)
        event = given[-1]
        made = self.project(event)
        if len(given) == 1 or "level" in made or "level_number" in made:
            return made
        # Keep the level aside: later filters must not take the event for INFO.
        return LevelledEvent(made, level_of(event))

    def project(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Return the projection of *event*."""
        return self._keep(event) if self._kept else self._make(event)

    def _keep(self, event: Mapping[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        ours: set[int] = set()
        for path in self._kept:
            keys = path.keys_in(event)
            if keys:
                _keep(event, made, keys, ours)
        return made

    def _make(self, event: Mapping[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        visible = None
        for name, source in self._made:
            if isinstance(source, _Path):
                keys = source.keys_in(event)
                if keys:
                    made[name] = _value(event, keys)
            elif isinstance(source, Constant):
                made[name] = source.value
            else:
                if visible is None:
                    visible = event if METADATA.isdisjoint(event) else without_metadata(event)
                try:
                    made[name] = source(visible)
                except DropEvent:
                    raise
                except Exception as error:
                    made[name] = f"<unrenderable value: {type_name(error)}>"
        return made


class _Path:
    """A path to a value in an event.

    Args:
        given: The path as the user wrote it.
    """

    __slots__ = ("_exact", "_parts", "given")

    def __init__(self, given: Any) -> None:
        if not isinstance(given, (str, tuple)):
            msg = f"fields: the path {given!r} is neither text nor a tuple of keys"
            raise TypeError(msg)
        if not given:
            msg = f"fields: the path {given!r} is empty"
            raise ValueError(msg)
        self.given = given
        self._exact = given if isinstance(given, tuple) else None
        self._parts = given.split(".") if isinstance(given, str) else []

    def keys_in(self, event: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the keys that lead to the value; an empty tuple if it does not exist."""
        found: tuple[Any, ...] | None
        if self._exact is not None:
            found = self._exact if _leads(event, self._exact) else ()
        elif self.given in event:
            found = (self.given,)
        else:
            found = _search(event, self._parts) if len(self._parts) > 1 else ()
        if found and found[0] in METADATA:
            return ()
        if not found and self.given in _OF_EXCEPTIONS and "exc_info" in event and self.given in _rendered(event):
            return (self.given,)
        return found


def _source(value: Any) -> _Path | Constant | Callable[[Any], Any]:
    if isinstance(value, (str, tuple)):
        return _Path(value)
    source: Constant | Callable[[Any], Any]
    source = value if isinstance(value, Constant) or callable(value) else Constant(value)
    return source


def _leads(event: Any, keys: tuple[Any, ...]) -> bool:
    for key in keys:
        # Here and below by the type, since isinstance reads __class__, which may raise.
        if not issubclass(type(event), Mapping) or key not in event:
            return False
        event = event[key]
    return True


def _search(event: Mapping[Any, Any], parts: list[str]) -> tuple[Any, ...]:
    """Return the keys that lead along *parts*; keys that contain dots are tried first."""
    for size in range(len(parts), 0, -1):
        key = ".".join(parts[:size])
        if key not in event:
            continue
        if size == len(parts):
            return (key,)
        nested = event[key]
        if issubclass(type(nested), Mapping):
            rest = _search(nested, parts[size:])
            if rest:
                return (key, *rest)
    return ()


def _value(event: Mapping[str, Any], keys: tuple[Any, ...]) -> Any:
    if len(keys) == 1 and keys[0] in _OF_EXCEPTIONS and keys[0] not in event:
        return _rendered(event)[keys[0]]
    value: Any = event
    for key in keys:
        value = value[key]
    return value


def _keep(event: Mapping[str, Any], made: dict[Any, Any], keys: tuple[Any, ...], ours: set[int]) -> None:
    """Put the value that *keys* lead to into the same place of *made*, without changing dicts of the event."""
    place = made
    for key in keys[:-1]:
        nested = place.get(key)
        if nested is None:
            nested = place[key] = {}
            ours.add(id(nested))
        elif id(nested) not in ours:
            return  # the whole dict is kept already
        place = nested
    place[keys[-1]] = _value(event, keys)


#: The fields that the renderer makes from ``exc_info``.
_OF_EXCEPTIONS = frozenset({"exception", TYPE, MESSAGE})


def _rendered(event: Mapping[str, Any]) -> dict[Any, Any]:
    return _renderer._prepared({"exc_info": event["exc_info"]})


_renderer = OrjsonRenderer()

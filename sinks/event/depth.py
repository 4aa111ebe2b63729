"""Measures how deep the containers of an event are nested, since orjson does not cope with deep nesting.

orjson 3.10 and 3.11 reserve no room for the brackets that close lists. With 118 of them in a row at the wrong place
they write past the end of their buffer, and may crash or corrupt the process. An event that holds JSON from elsewhere
may be nested like that. So it must not get to orjson, and the check must cost next to nothing.
"""

from __future__ import annotations

from gc import get_referents, is_tracked
from typing import Any

__all__ = ["MAX_LEVELS", "is_tracked", "too_deep"]

#: Containers nested deeper than this are not passed to orjson, which fails at about twice this depth.
MAX_LEVELS = 64


def too_deep(event: Any) -> bool:
    """Return True if lists, tuples or dicts are nested more than `MAX_LEVELS` deep in *event*, itself included.

    A dict or tuple that holds no other container does not count. No code of values is run. For a dict, call the cheaper
    ``is_tracked(event)`` first: before Python 3.14 the garbage collector does not track a dict without containers.
    """
    # Following all of a usual event costs less than looking for the containers in it. Other objects would lead to their
    # classes, and from there to everything.
    layer: Any = get_referents(*get_referents(event))
    if _PLAIN.issuperset(map(type, layer)):
        for _ in range(_FEW):
            if not layer:
                return False
            if len(layer) > _MANY:
                break
            layer = get_referents(*layer)
    layer = (event,)
    for _ in range(MAX_LEVELS):
        # An untracked object is not a container, or holds no other one.
        parts = list(filter(is_tracked, get_referents(*layer)))
        if len(parts) > _FEW or not _CONTAINERS.issuperset(map(type, parts)):
            # Follow containers only, and each object once, by its identity.
            parts = list({id(part): part for part in parts if issubclass(type(part), _KINDS)}.values())
        if not parts:
            return False
        layer = parts
    return True


_KINDS = (list, tuple, dict)
_CONTAINERS = frozenset(_KINDS)
_PLAIN = _CONTAINERS | {str, int, float, bool, type(None)}
_FEW = 8
_MANY = 64

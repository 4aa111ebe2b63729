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
    layer: Any = (event,)
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
_FEW = 8

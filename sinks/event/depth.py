"""How deep the containers of an event are nested, which orjson has to be kept from.

For the brackets that close lists orjson 3.10 and 3.11 reserve no room: with 118 of them in a row, at the wrong place,
they write past the end of their buffer, and what happens to the process then is anybody's guess. Such a nest is in an
event as soon as somebody else's JSON is logged. So it must not get to orjson, and asking must cost next to nothing.
"""

from __future__ import annotations

from gc import get_referents, is_tracked
from typing import Any

__all__ = ["MAX_LEVELS", "is_tracked", "too_deep"]

#: Containers nested deeper than this are not for orjson; it fails from about twice as many on.
MAX_LEVELS = 64


def too_deep(event: Any) -> bool:
    """Return True if lists, tuples or dicts are nested more than `MAX_LEVELS` deep in *event*, itself included.

    A dict or tuple that holds no other container does not count. Runs no code of what is in it. Ask
    ``is_tracked(event)`` of a dict first, which costs less: the garbage collector tracks no dict whose values hold no
    others, until Python 3.14, which tracks all.
    """
    layer: Any = (event,)
    for _ in range(MAX_LEVELS):
        # What is not tracked holds no other container, or is none.
        parts = list(filter(is_tracked, get_referents(*layer)))
        if len(parts) > _FEW or not _CONTAINERS.issuperset(map(type, parts)):
            # Nothing but containers is followed; by identity, so that one in many places is looked at once.
            parts = list({id(part): part for part in parts if issubclass(type(part), _KINDS)}.values())
        if not parts:
            return False
        layer = parts
    return True


_KINDS = (list, tuple, dict)
_CONTAINERS = frozenset(_KINDS)
_FEW = 8

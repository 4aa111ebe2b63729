"""`Guarded`: detects wrong use of a sink's class, and lists its parameters."""

from __future__ import annotations

import inspect
import re
import sys
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from outfall.sinks.core.arguments import unknown_argument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self


class _OfInit:
    """The signature of a class's ``__init__``, since Python 3.10 would show that of the inherited ``__new__``."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        signature = inspect.signature(owner.__init__)  # type: ignore[misc]
        shown = list(signature.parameters.values())[1:]
        if shown and "Unpack" in str(shown[-1].annotation):
            # Arguments that are passed on: shown as the class shows them that takes them.
            known: Mapping[str, inspect.Parameter] = owner.parameters()  # type: ignore[attr-defined]
            others = [known[name] for name in known if name not in signature.parameters]
            shown[-1:] = [each.replace(kind=each.KEYWORD_ONLY) for each in others]
        return signature.replace(parameters=shown)


class Guarded:
    """The part of `Sink` that detects wrong use of its class."""

    __signature__: ClassVar[Any] = _OfInit()

    if not TYPE_CHECKING:  # type checkers should see the signature of each __init__, and no attribute `formatter`

        def __new__(cls, *_args: Any, **kwargs: Any) -> Self:
            """Raise a TypeError for an unknown keyword argument, with the nearest known one."""
            if kwargs:
                known = cls.parameters()
                for name in () if _takes_others(cls) else kwargs:
                    if name not in known:
                        raise unknown_argument(cls.__name__, name, kwargs[name], known, _elsewhere(cls, name))
            return super().__new__(cls)

        # Not __getattr__, which would slow down the interpreter's lookup of every attribute.
        @property
        def formatter(self) -> NoReturn:
            """Raise an AttributeError that names the remedy; `logging.basicConfig` reads this of each handler."""
            msg = f"{type(self).__name__} is a sink and no handler of logging: write SinkHandler(sink)"
            raise AttributeError(msg)

    @classmethod
    def parameters(cls) -> Mapping[str, inspect.Parameter]:
        """Return the parameters of the class by name, including those that it passes to its base classes."""
        known: dict[str, inspect.Parameter] = {}
        #: The names that a class has passed on, or None for any.
        wanted: frozenset[str] | None = None
        for each in cls.__mro__:
            if "__init__" not in vars(each):
                continue
            passes_on = False
            passed = wanted
            for name, parameter in list(_signature(each).parameters.items())[1:]:
                if parameter.kind is parameter.VAR_KEYWORD:
                    passes_on = True
                    passed = _passed_on(cls, parameter) if wanted is None else wanted
                elif parameter.kind is not parameter.VAR_POSITIONAL and (wanted is None or name in wanted):
                    known.setdefault(name, parameter)
            wanted = passed
            if not passes_on:
                break
        return known

    def __dir__(self) -> list[str]:
        """Return the names for completion: those for users of a sink, not those for authors of sinks and wrappers."""
        inside: frozenset[str] = frozenset().union(*(vars(each).get("_inside", ()) for each in type(self).__mro__))
        return [name for name in super().__dir__() if name not in inside]

    def __copy__(self) -> Self:
        """Return the sink itself, so that a logger whose processors hold it can be copied."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the sink itself, so that a logger whose processors hold it can be copied."""
        return self

    def __reduce__(self) -> NoReturn:
        """Raise a TypeError that names the remedy."""
        msg = (
            f"{type(self).__name__} cannot be pickled: it holds locks and open resources; "
            "make a sink in each process, and pickle the arguments to make it with"
        )
        raise TypeError(msg)


def _signature(cls: type) -> inspect.Signature:
    return inspect.signature(vars(cls)["__init__"])


def _passed_on(cls: type, parameter: inspect.Parameter) -> frozenset[str] | None:
    """Return the names in the TypedDict of ``**options``, which is in a module of *cls* or of a base; None for any."""
    found = re.search(r"Unpack\[(\w+)\]", str(parameter.annotation))
    if found is None:
        return None
    for each in cls.__mro__:
        group: Any = getattr(sys.modules.get(each.__module__), found[1], None)
        if group is not None:
            names: frozenset[str] = group.__required_keys__ | group.__optional_keys__
            return names
    return None


def _takes_others(cls: type[Guarded]) -> bool:
    """Return True if a class outside of this package has ``**kwargs``, so that its parameters are not known."""
    return any(
        "__init__" in vars(each)
        and each.__module__.partition(".")[0] != "outfall"
        and any(given.kind is given.VAR_KEYWORD for given in _signature(each).parameters.values())
        for each in cls.__mro__[: cls.__mro__.index(Guarded)]
    )


def _elsewhere(cls: type[Guarded], name: str) -> str:
    """Return a hint if a sink of this package with a similar name has the argument, else ""."""
    facade = sys.modules["outfall"]
    for other in facade.__all__:
        if other != cls.__name__ and other.endswith(cls.__name__):
            found = getattr(facade, other)
            plain = {known.replace("_", ""): known for known in found.parameters()}
            same = plain.get(name.replace("_", "").lower())
            if same is not None:
                return f"; {other} has {same}="
    return ""

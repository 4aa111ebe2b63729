"""What refuses wrong use of a sink's class, and says what it takes: `Guarded`."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from outfall.sinks.core.arguments import unknown_argument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self


class _OfInit:
    """A class has the signature of its ``__init__``; Python 3.10 takes an inherited ``__new__`` first."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        signature = inspect.signature(owner.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class Guarded:
    """The part of `Sink` that refuses wrong use of its class."""

    __signature__: ClassVar[Any] = _OfInit()

    if not TYPE_CHECKING:  # so that checkers see the signatures, and no name that is not there

        def __new__(cls, *_args: Any, **kwargs: Any) -> Self:
            """Refuse keyword arguments that the class does not have, and name the nearest that it has."""
            if kwargs:
                known = cls.parameters()
                for name in () if _takes_others(cls) else kwargs:
                    if name not in known:
                        raise unknown_argument(cls.__name__, name, kwargs[name], known, _elsewhere(cls, name))
            return super().__new__(cls)

        # No __getattr__: with one, the interpreter takes the slow way to every attribute.
        @property
        def formatter(self) -> NoReturn:
            """What `logging.basicConfig` looks at first in a handler."""
            msg = f"{type(self).__name__} is a sink and no handler of logging: write SinkHandler(sink)"
            raise AttributeError(msg)

    @classmethod
    def parameters(cls) -> Mapping[str, inspect.Parameter]:
        """Return the parameters of the class by name, with their defaults, those that it passes on included."""
        known: dict[str, inspect.Parameter] = {}
        for each in cls.__mro__:
            if "__init__" not in vars(each):
                continue
            passes_on = False
            for name, parameter in list(_signature(each).parameters.items())[1:]:
                if parameter.kind is parameter.VAR_KEYWORD:
                    passes_on = True
                elif parameter.kind is not parameter.VAR_POSITIONAL:
                    known.setdefault(name, parameter)
            if not passes_on:
                break
        return known

    def __dir__(self) -> list[str]:
        """Return what a sink's user may want, for completion: not what writers of sinks and wrappers override."""
        inside: frozenset[str] = frozenset().union(*(vars(each).get("_inside", ()) for each in type(self).__mro__))
        return [name for name in super().__dir__() if name not in inside]

    def __copy__(self) -> Self:
        """Return the sink itself, so that a logger whose processors hold it can be copied."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the sink itself, so that a logger whose processors hold it can be copied."""
        return self

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled."""
        msg = (
            f"{type(self).__name__} cannot be pickled: it holds locks and open resources; "
            "make a sink in each process, and pickle the arguments to make it with"
        )
        raise TypeError(msg)


def _signature(cls: type) -> inspect.Signature:
    return inspect.signature(vars(cls)["__init__"])


def _takes_others(cls: type[Guarded]) -> bool:
    """Return True if a class that is not of this package takes whatever it is given, and may know more than it says."""
    return any(
        "__init__" in vars(each)
        and each.__module__.partition(".")[0] != "outfall"
        and any(given.kind is given.VAR_KEYWORD for given in _signature(each).parameters.values())
        for each in cls.__mro__[: cls.__mro__.index(Guarded)]
    )


def _elsewhere(cls: type[Guarded], name: str) -> str:
    """Return a hint if another sink of this package, of a like name, has the argument that *cls* has not."""
    facade = sys.modules["outfall"]
    for other in facade.__all__:
        if other != cls.__name__ and other.endswith(cls.__name__):
            found = getattr(facade, other)
            plain = {known.replace("_", ""): known for known in found.parameters()}
            same = plain.get(name.replace("_", "").lower())
            if same is not None:
                return f"; {other} has {same}="
    return ""

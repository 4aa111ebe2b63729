"""Parses URLs of sinks: `Request` has the place, and the options that each sink takes."""

from __future__ import annotations

import inspect
import os
import re
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from outfall.adapters.urls.values import boolean, converted
from outfall.sinks.core.arguments import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from outfall.adapters.urls.kinds import Kind

#: Options that are not parameters of a sink.
OWN = ("spool", "background", "token_env")


class Request:
    """A parsed URL and its options; a sink takes its options out of it.

    Args:
        scheme: The text before the colon, in lower case.
        kind: The kind of sink that the scheme names.
        rest: The text after the colon.
        options: Options as Python values.
        texts: Options as text, in addition to those of the query.

    Raises:
        ValueError: If the URL has no meaning; the message contains no value that may be a secret.
    """

    def __init__(
        self, scheme: str, kind: Kind, rest: str, options: Mapping[str, Any], texts: Mapping[str, str]
    ) -> None:
        self.scheme = scheme
        self.kind = kind
        rest, fragment_mark, _ = rest.partition("#")
        where, _, query = rest.partition("?")
        self.where = where
        self.texts: dict[str, str] = dict(texts)
        for part in filter(None, query.split("&")):
            name, equals, text = part.partition("=")
            name = unquote(name)
            if not equals:
                msg = f"{scheme}: the option {name!r} has no value: write {name}=…"
                raise ValueError(msg)
            if name in self.texts or name in options:
                msg = f"{scheme}: the option {name!r} is given twice"
                raise ValueError(msg)
            self.texts[name] = unquote(text)
        if fragment_mark:
            msg = f"{scheme}: a '#' has no meaning here: write %23"
            raise ValueError(msg)
        self.values: dict[str, Any] = dict(options)
        self.spool: str | None = self._own("spool", str)
        self.background: bool | None = self._own("background", lambda text: boolean("background", text))
        if self.spool is not None and self.background is not None:
            msg = f"{scheme}: spool= takes the place of a background: leave background= out"
            raise ValueError(msg)
        token_env = self._own("token_env", str)
        self.token: str | None = None
        if token_env is not None:
            self.token = os.environ.get(token_env)
            if not self.token:
                msg = f"{scheme}: token_env={token_env!r} names a variable that the environment does not have"
                raise ValueError(msg)
        try:
            parts = urlsplit(f"x:{where}")
            # With several hosts the port is left to the sink, which takes the whole URL.
            self.host: str | None = parts.hostname
            self.port: int | None = None if "," in parts.netloc else parts.port
            if self.port == 0 or re.search(r"[\s\\]", self.host or ""):
                raise ValueError
        except ValueError:
            msg = f"{scheme}: the host or port of the URL is not usable"
            raise ValueError(msg) from None
        self._login_used = False
        self.user: str | None = None if parts.username is None else unquote(parts.username)
        self.password: str | None = None if parts.password is None else unquote(parts.password)
        self.path: str = unquote(parts.path)
        self.netloc: str = parts.netloc.rpartition("@")[2]

    def _own(self, name: str, convert: Callable[[str], Any]) -> Any:
        if name in self.values:
            return self.values.pop(name)
        return convert(self.texts.pop(name)) if name in self.texts else None

    def take(self, target: Callable[..., Any], prefix: str = "") -> dict[str, Any]:
        """Take the options that are parameters of *target*; return them as keyword arguments.

        Args:
            target: The class or factory.
            prefix: The text before each option's name, such as ``"spool."``.
        """
        taken: dict[str, Any] = {}
        for name, parameter in parameters_of(target).items():
            if name in self.kind.fixed:
                continue
            full = prefix + name
            if full in self.values:
                taken[name] = self.values.pop(full)
            elif full in self.texts:
                taken[name] = converted(full, self.texts.pop(full), str(parameter.annotation))
            elif "Mapping" in str(parameter.annotation):
                dotted = {key: self.texts.pop(key) for key in list(self.texts) if key.startswith(f"{full}.")}
                if dotted:
                    taken[name] = {key[len(full) + 1 :]: text for key, text in dotted.items()}
        return taken

    def chosen(self) -> dict[str, Any]:
        """Take the options that name an object, such as ``framing=lines``; return the objects as keyword arguments.

        Raises:
            ValueError: If a choice is unknown, or the object is given too.
        """
        import outfall

        made: dict[str, Any] = {}
        for option, (parameter, choices) in self.kind.choices.items():
            if parameter in self.values and not (option == parameter and isinstance(self.values[option], str)):
                if option != parameter and (option in self.texts or option in self.values):
                    msg = f"{self.scheme}: {option}= stands for {parameter}=: leave one of the two out"
                    raise ValueError(msg)
                continue
            chosen = self._own(option, str) or next(iter(choices))
            if chosen not in choices:
                msg = f"{self.scheme}: {option}={chosen!r} is none of {', '.join(choices)}"
                raise ValueError(msg)
            made[parameter] = getattr(outfall, choices[chosen])()
        return made

    def refuse_rest(self, targets: Iterable[Callable[..., Any]]) -> None:
        """Raise a ValueError if an option is left that no sink has taken."""
        left = [*self.texts, *self.values]
        if left:
            known = {*OWN, *self.kind.choices, *(name for target in targets for name in parameters_of(target))}
            near = nearest(left[0].partition(".")[0], sorted(known - self.kind.fixed))
            if near == left[0]:
                near = f"spool.{near}"  # the option exists, but of the spool
            hint = f": did you mean {near!r}?" if near else ""
            msg = f"{self.scheme}: there is no option {left[0]!r}{hint}"
            raise ValueError(msg)

    def refuse_place(self) -> None:
        """Raise a ValueError if there is anything between the scheme and the query."""
        if self.where not in ("", "//"):
            msg = f"{self.scheme}: only options may follow the colon"
            raise ValueError(msg)

    def refuse_path(self) -> None:
        """Raise a ValueError if there is a path behind the host."""
        if self.path not in ("", "/"):
            msg = f"{self.scheme}: only options may follow the host and port"
            raise ValueError(msg)

    def refuse_credentials(self, has_token: bool) -> None:
        """Raise a ValueError if there is a user or a token for a sink that takes none."""
        if self.token is not None and not has_token:
            msg = f"{self.scheme}: it takes no token, so token_env has no meaning"
            raise ValueError(msg)
        if self.user is not None and not self._login_used:
            msg = f"{self.scheme}: it takes no user and password: leave them out of the URL"
            raise ValueError(msg)

    @property
    def needed_host(self) -> str:
        """The host.

        Raises:
            ValueError: If the URL has none.
        """
        if not self.host:
            msg = f"{self.scheme}: the URL has no host: write {self.scheme}://host"
            raise ValueError(msg)
        return self.host

    @property
    def file_path(self) -> str:
        """The path of a URL such as ``file:app.jsonl``, ``file:/var/log/app.jsonl`` or ``file:///var/log/app.jsonl``.

        Raises:
            ValueError: If the URL has none, or names another host.
        """
        where = self.where
        if where.startswith("//"):
            host, slash, path = where[2:].partition("/")
            if host not in ("", "localhost"):
                msg = f"{self.scheme}: a file on another host cannot be opened: write {self.scheme}:///path"
                raise ValueError(msg)
            where = slash + path
        path = unquote(where, errors="surrogateescape")  # paths may have bytes that are not UTF-8
        if not path:
            msg = f"{self.scheme}: the URL has no path: write {self.scheme}:app.jsonl"
            raise ValueError(msg)
        return path

    def server_url(self, scheme: str) -> str:
        """Return the server's URL, without credentials and options; options ``query.NAME`` become its query."""
        if not scheme.endswith("unix"):
            _ = self.needed_host
        queries = {name: self.texts.pop(name) for name in list(self.texts) if name.startswith("query.")}
        query = "&".join(f"{quote(name[6:], safe='')}={quote(text, safe='')}" for name, text in queries.items())
        path = self.where.removeprefix("//").partition("/")
        return f"{scheme}://{self.netloc}{path[1]}{path[2]}{'?' if query else ''}{query}"

    @property
    def login(self) -> tuple[str, str] | None:
        """The user and password of the URL, or None. Reading it marks them as used, for `refuse_credentials`."""
        self._login_used = True
        return None if self.user is None else (self.user, self.password or "")


def parameters_of(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the named parameters of *target*, including those of an unpacked TypedDict."""
    found: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            options = re.search(r"Unpack\[(\w+)\]", str(parameter.annotation))
            if options is not None:
                found |= _keys_of(getattr(sys.modules["outfall.adapters.collectors"], options[1]))
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL and name != "self":
            found[name] = parameter
    return found


def _keys_of(mapping: Any) -> dict[str, inspect.Parameter]:
    """Return the keys of a TypedDict as parameters."""
    made: dict[str, inspect.Parameter] = {}
    for base in reversed(getattr(mapping, "__orig_bases__", ())):
        made |= _keys_of(base)
    for name, annotation in getattr(mapping, "__annotations__", {}).items():
        text = getattr(annotation, "__forward_arg__", annotation)
        made[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=text)
    return made

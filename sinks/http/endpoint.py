"""The URL of HTTP requests with credentials and settings: `Endpoint`."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import SplitResult, quote, quote_plus, unquote, urlsplit, urlunsplit

from outfall.sinks.core.arguments import checked_seconds, is_loopback
from outfall.sinks.core.credentials import asked, is_sendable
from outfall.sinks.network.peer import checked_age, checked_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    import requests

    from outfall.sinks.event.units import Span

#: Parts of the names of headers whose values are secret.
_SECRET_PARTS = ("authorization", "token", "secret", "password", "api-key", "apikey", "api_key", "cookie", "access-key")


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request.

    Args:
        method: The method.
        url: The URL, without credentials.
        headers: All headers except ``Content-Length`` and those that an authentication object adds.
        body: The body, or None.
        limit_bytes: The number of bytes of the response to read.
    """

    method: str
    url: str
    headers: dict[str, str]
    body: bytes | None
    limit_bytes: int


class Endpoint:
    """A URL with the settings to reach it; `HTTPSink` documents the arguments.

    Its ``repr`` and its error messages contain only scheme, host and port of the URL.
    """

    #: Host and port, for messages.
    peer: str

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None,
        format_headers: Mapping[str, str],
        auth: Any,
        token: str | Callable[[], str] | None,
        token_scheme: str,
        timeout: Any,
        verify: Any,
        cert: Any,
        ssl_context: ssl.SSLContext | None,
        proxies: Mapping[str, str] | None,
        session: requests.Session | None,
        allow_insecure: bool,
        max_connection_age: Span | None = None,
    ) -> None:
        self.headers: dict[str, str] = {**format_headers, **_checked_headers(headers)}
        self.allow_insecure: bool = bool(allow_insecure)
        #: Seconds to connect, and for the rest of a request.
        self.timeout: tuple[float, float] = checked_timeout(timeout)
        self._token = _checked_token(token)
        self._token_scheme = _checked_scheme(token_scheme)
        self.verify: bool | str = _checked_verify(verify)
        self.cert: str | tuple[str, str] | None = _checked_cert(cert)
        self.session: requests.Session | None = _checked_session(session)
        self.context: ssl.SSLContext | None = checked_context(ssl_context)
        if ssl_context is not None and (verify is not True or cert is not None or session is not None):
            msg = "ssl_context: it replaces verify and cert, and does not apply to your own session"
            raise ValueError(msg)
        self.proxies: dict[str, str] | None = _checked_proxies(proxies)
        self.max_connection_age: float | None = checked_age(max_connection_age)
        if max_connection_age is not None and session is not None:
            msg = "max_connection_age: it does not apply to the connections of your own session"
            raise ValueError(msg)
        own_auth = _checked_auth(auth)
        if own_auth is not None and _split_url(url)[2] is not None:
            msg = "auth=…: the URL has a user name too"
            raise ValueError(msg)
        self._take(url, own_auth)

    def __repr__(self) -> str:
        return self.peer if self.socket_path is not None else f"{urlsplit(self._url).scheme}://{self.peer}"

    @property
    def url(self) -> str:
        """The URL without credentials; settable."""
        return self._url

    @url.setter
    def url(self, url: str) -> None:
        self._take(url, self._auth)

    def _take(self, url: str, auth: _BasicAuth | Callable[[Any], Any] | None) -> None:
        """Use *url*, with its credentials if it has any, else with *auth*.

        Raises:
            ValueError: If the URL or its credentials cannot be used; then nothing changes.
        """
        bare, peer, from_url = _split_url(url)
        if from_url is not None:
            auth = _checked_auth(from_url)
        parts = urlsplit(bare)
        self._check_credentials(parts, peer, auth)
        is_socket = parts.scheme == UNIX
        for argument, value in (("session", self.session), ("proxies", self.proxies)):
            if is_socket and value is not None:
                msg = f"{argument}: {UNIX}:// connects by itself"
                raise ValueError(msg)
        self._url, self.peer = bare, peer
        self._auth: _BasicAuth | Callable[[Any], Any] | None = auth
        #: The path of the Unix socket, or None.
        self.socket_path: str | None = unquote(parts.netloc) if is_socket else None
        #: The URL for requests; for a Unix socket the host is ``localhost``, since HTTP requires one.
        self.request_url: str = urlunsplit(parts._replace(scheme="http", netloc="localhost")) if is_socket else bare
        #: The authentication object, which changes prepared requests; or None.
        self.auth: Callable[[Any], Any] | None = None if isinstance(auth, _BasicAuth) else auth

    def token(self) -> str | None:
        """Return the token for a request, or None if there is none.

        Raises:
            PausedDeliveryError: If the callable fails.
        """
        token = self._token
        if token is None or isinstance(token, str):
            return token
        return asked(token)

    def headers_for(self, key: str, token: str | None, content: Mapping[str, str]) -> dict[str, str]:
        """Return all headers of a request; headers of the user override the others.

        Args:
            key: The ``Idempotency-Key``.
            token: The token, or None.
            content: The headers that describe the body.
        """
        headers = {"Accept-Encoding": "identity", "Idempotency-Key": key}
        if self.session is None:  # else the session adds its own
            headers |= {"User-Agent": "outfall", "Accept": "*/*"}
        headers |= content
        for name in self.headers:
            headers.pop(name.title(), None)
        headers |= self.headers
        if isinstance(self._auth, _BasicAuth):
            headers["Authorization"] = self._auth.header
        elif token is not None:
            headers["Authorization"] = f"{self._token_scheme} {token}"
        return headers

    def secrets(self, token: str | None) -> list[str]:
        """Return the texts that must not occur in any message."""
        found = [value for name, value in self.headers.items() if _is_secret(name)]
        found.append(urlsplit(self._url).query)
        if token is not None:
            found.append(token)
        if isinstance(self._auth, _BasicAuth):
            found += (self._auth.password, self._auth.header)
        return found

    def _check_credentials(self, parts: SplitResult, peer: str, auth: Any) -> None:
        """Check the credentials for a URL.

        Raises:
            ValueError: If there are several, or they would cross the network in plain text.
        """
        authorized = any(name.lower() == "authorization" for name in self.headers)
        if (self._token is not None) + (auth is not None) + authorized > 1:
            msg = "token, auth, headers: more than one of them has the Authorization"
            raise ValueError(msg)
        session = self.session
        credentials = (
            auth is not None
            or self._token is not None
            or any(map(_is_secret, self.headers))
            or (session is not None and (bool(session.auth) or any(map(_is_secret, session.headers))))
        )
        if credentials and parts.scheme == "http" and not (self.allow_insecure or is_loopback(parts.hostname or "")):
            msg = (
                f"url: credentials would cross the network to {peer} in plain text; use https://, "
                "or allow_insecure=True if that is what you want"
            )
            raise ValueError(msg)


class _BasicAuth:
    """A user name and a password for basic authentication (RFC 7617)."""

    __slots__ = ("header", "password")

    def __init__(self, user: str, password: str) -> None:
        self.password = password
        self.header = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")


# -- checks of arguments; no message repeats a secret


def _split_url(url: Any) -> tuple[str, str, tuple[str, str] | None]:
    """Return the URL without credentials and fragment, ``"host:port"``, and the credentials."""
    if not isinstance(url, str):
        msg = f"url: text is needed, not {type(url).__name__}"
        raise TypeError(msg)
    url = with_socket_as_host(url)
    try:
        parts = urlsplit(url)
        unix = parts.scheme == UNIX
        # Not .hostname for the path of a socket, which would be in lower case.
        host, port = (parts.netloc.rpartition("@")[2], None) if unix else (parts.hostname, parts.port)
    except ValueError:
        parts, host, port, unix = urlsplit(""), None, None, False
    if parts.scheme not in ("http", "https", UNIX) or not host or not url.isprintable() or " " in url:
        # The text after the scheme is left out, since it may hold a secret.
        msg = f"url='{url.partition('://')[0][:20]}…' is not http://host…, https://host… or {UNIX}:///path/of/socket"
        raise ValueError(msg)
    credentials = None
    if parts.username is not None or parts.password is not None:
        credentials = (unquote(parts.username or ""), unquote(parts.password or ""))
    if unix:
        peer = f"unix:{_checked_socket_path(unquote(host))}"
    else:
        shown = f"[{host}]" if ":" in host else host
        peer = f"{shown}:{port or (443 if parts.scheme == 'https' else 80)}"
    bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path or "/", parts.query, ""))
    return bare, peer, credentials


#: The scheme of HTTP over a Unix socket.
UNIX = "http+unix"

#: The longest path of a socket on Linux and macOS, in bytes.
_LONGEST_SOCKET_PATH = 107 if sys.platform == "linux" else 103


def with_socket_as_host(url: str) -> str:
    """Return *url* with the percent-encoded path of a Unix socket as its host; other URLs are returned unchanged.

    ``http+unix:///run/c.sock`` and, with a path of its own behind a colon, ``http+unix:///run/c.sock:/push`` become
    ``http+unix://%2Frun%2Fc.sock/push``.
    """
    scheme, mark, rest = url.partition("://")
    if not mark or scheme.lower() != UNIX:
        return url
    credentials, at, place = rest.rpartition("@") if "@" in rest.partition("?")[0].partition("/")[0] else ("", "", rest)
    if not place.startswith("/"):
        return f"{UNIX}://{rest}"
    where, query, asked = place.partition("?")
    socket_path, colon, path = where.partition(":/")
    return f"{UNIX}://{credentials}{at}{quote(unquote(socket_path), safe='')}/{path if colon else ''}{query}{asked}"


def _checked_socket_path(path: str) -> str:
    import socket

    msg = ""
    if not hasattr(socket, "AF_UNIX"):
        msg = "this platform has no Unix sockets"
    elif not path.startswith(("/", "\0")):
        msg = f"{path!r} is not the absolute path of a socket"
    elif len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        msg = f"the path of a socket has at most {_LONGEST_SOCKET_PATH} bytes, not {len(os.fsencode(path))}"
    if msg:
        msg = f"url: {UNIX}://: {msg}"
        raise ValueError(msg)
    return path.replace("\0", "@")


_FRAMING = frozenset({"content-length", "transfer-encoding"})


def _checked_headers(headers: Any) -> dict[str, str]:
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        msg = f"headers: a mapping is needed, not {type(headers).__name__}"
        raise TypeError(msg)
    for name, value in headers.items():
        if not isinstance(name, str) or not name or quote_plus(name, safe="!#$&'*^`|~") != name or "%" in name:
            msg = f"headers: {name!r} is not the name of a header"
            raise ValueError(msg)
        if name.lower() in _FRAMING:
            msg = f"headers: the sink sets {name!r} itself"
            raise ValueError(msg)
        if not is_sendable(value):
            msg = f"headers: the value of {name!r} is not text that can be sent"
            raise ValueError(msg)
    return dict(headers)


def _is_secret(name: str) -> bool:
    return any(part in name.lower() for part in _SECRET_PARTS)


def _checked_auth(auth: Any) -> _BasicAuth | Callable[[Any], Any] | None:
    given: Callable[[Any], Any] | None = auth if auth is None or callable(auth) else None
    if given is not None or auth is None:
        return given
    if not isinstance(auth, (tuple, list)) or len(auth) != 2 or not all(isinstance(part, str) for part in auth):
        msg = "auth=… is not (username, password), two texts, nor a callable"
        raise TypeError(msg)
    return _BasicAuth(auth[0], auth[1])


def _checked_token(token: Any) -> str | Callable[[], str] | None:
    if token is None or callable(token):
        return cast("Callable[[], str] | None", token)
    if not isinstance(token, str):
        msg = f"token: text or a callable is needed, not {type(token).__name__}"
        raise TypeError(msg)
    if not is_sendable(token):
        msg = "token=… is not text that can be sent in a header"
        raise ValueError(msg)
    return token


def _checked_scheme(scheme: Any) -> str:
    if not is_sendable(scheme) or " " in scheme:
        msg = f"token_scheme={scheme!r} is not a word that can be sent in a header"
        raise ValueError(msg)
    return str(scheme)


def checked_timeout(timeout: Any) -> tuple[float, float]:
    """Return seconds to connect, and for the rest of a request.

    Raises:
        ValueError: If *timeout* is not one or two numbers of seconds above 0.
    """
    both = tuple(timeout) if isinstance(timeout, (tuple, list)) else (timeout, timeout)
    if len(both) != 2:
        msg = f"timeout={timeout!r} is not a number of seconds, nor a pair: to connect, and for the rest"
        raise ValueError(msg)
    connect, total = (checked_seconds(seconds, "timeout") for seconds in both)
    if not 0 < connect < float("inf") or not 0 < total < float("inf"):
        msg = f"timeout={timeout!r}: each has to be above 0 and finite"
        raise ValueError(msg)
    return connect, total


def _checked_verify(verify: Any) -> bool | str:
    if isinstance(verify, bool):
        return verify
    if isinstance(verify, (str, os.PathLike)):
        path = os.fspath(verify)
        if not Path(path).exists():
            msg = f"verify={path!r}: there is no such file or directory"
            raise ValueError(msg)
        return str(path)
    msg = f"verify={verify!r} is not True, False or a path"
    raise TypeError(msg)


def _checked_cert(cert: Any) -> str | tuple[str, str] | None:
    if cert is None:
        return None
    pair = isinstance(cert, (tuple, list))
    paths = tuple(cert) if pair else (cert,)
    if len(paths) not in ((2,) if pair else (1,)) or not all(isinstance(path, (str, os.PathLike)) for path in paths):
        msg = f"cert={cert!r} is not a path, nor a pair of paths"
        raise TypeError(msg)
    texts = [str(os.fspath(path)) for path in paths]
    for path in texts:
        if not Path(path).exists():
            msg = f"cert={path!r}: there is no such file"
            raise ValueError(msg)
    return (texts[0], texts[1]) if pair else texts[0]


def _checked_proxies(proxies: Any) -> dict[str, str] | None:
    if proxies is None:
        return None
    if not isinstance(proxies, Mapping) or not all(isinstance(name, str) for name in proxies):
        msg = f"proxies: a mapping from schemes to URLs is needed, not {type(proxies).__name__}"
        raise TypeError(msg)
    return dict(proxies)


def _checked_session(session: Any) -> requests.Session | None:
    if session is None:
        return None
    import requests

    if not isinstance(session, requests.Session):
        msg = f"session={session!r} is not a requests.Session"
        raise TypeError(msg)
    return session

"""The address of a Redis server and the connection to it: `RedisServer`, `RedisLink`."""

from __future__ import annotations

import contextlib
import re
from os import fspath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from outfall.sinks.core.arguments import MAX_PORT
from outfall.sinks.core.clock import now
from outfall.sinks.core.reporting import describe, place_of
from outfall.sinks.errors import (
    LOST_ATTEMPTS,
    DeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    TemporaryDeliveryError,
    extra_module,
)
from outfall.sinks.network.peer import is_refused_tls

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

_PORT = 6379
_SENTINEL_PORT = 26379


class RedisServer:
    """The address of a Redis server, and the login.

    Args:
        url: ``redis://user:password@host:port/database``, or ``rediss://`` for TLS. Several hosts, separated by commas,
            are tried one after another; with *sentinel* they are sentinels.
        username: The user, if not in the URL.
        password: The password, if not in the URL.
        sentinel: The name of the master to ask sentinels for.
        verify: True to trust the authorities that Python trusts, or a file of others; False to trust anybody.
        cert: The client's certificate.
        timeout: Seconds that an exchange may take, connecting included.

    Raises:
        ValueError: If *url* is not usable.
        MissingDependencyError: Without redis-py.

    A redirection by a member of a cluster is followed. No ``repr`` holds the password.
    """

    def __init__(
        self,
        url: str,
        *,
        username: str | None,
        password: str | None,
        sentinel: str | None,
        verify: bool | str | os.PathLike[str],
        cert: Any,
        timeout: float,
    ) -> None:
        if not isinstance(url, str):
            msg = f"url={url!r} is not text"
            raise TypeError(msg)
        found = _URL.fullmatch(url)
        if found is None:
            msg = "url is not redis://host:port/database, nor rediss:// for TLS; its other options are arguments"
            raise ValueError(msg)
        scheme, userinfo, places, database = found.groups()
        if userinfo is not None:
            name, _, secret = userinfo.partition(":")
            username, password = unquote(name) or username, unquote(secret) or password
        self.redis: Any = extra_module("redis", "redis")
        retry = extra_module("redis.retry", "redis").Retry(extra_module("redis.backoff", "redis").NoBackoff(), 0)
        tls: dict[str, Any] = {}
        if scheme.lower() == "rediss":
            tls = {"ssl": True, "ssl_cert_reqs": "required" if verify is not False else "none"}
            tls["ssl_check_hostname"] = verify is not False
            if not isinstance(verify, bool):
                tls["ssl_ca_certs"] = fspath(verify)
            if cert is not None:
                pair = cert if isinstance(cert, tuple) else (cert, cert)
                tls["ssl_certfile"], tls["ssl_keyfile"] = map(fspath, pair)
        self._usual: dict[str, Any] = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": retry,
            "protocol": 2,
            **tls,
        }
        self._login = {"username": username, "password": password, "db": int(database or 0)}
        self.timeout: float = timeout
        self.sentinel = sentinel
        self.places: list[tuple[str, int]] = [
            _place(each, _PORT if sentinel is None else _SENTINEL_PORT) for each in places.split(",")
        ]
        shown = ",".join(f"{host}:{port}" for host, port in self.places)
        self.peer: str = f"{scheme.lower()}://{shown}/{self._login['db']}" + (f" ({sentinel})" if sentinel else "")

    def __repr__(self) -> str:
        return f"<RedisServer {self.peer}>"

    def client(self, place: tuple[str, int], exchange: Exchange) -> Any:
        """Return a client for the server at *place*, or for the master that sentinels name. It connects on first use.

        Connecting, sending and receiving together stop at the deadline of *exchange*.
        """
        usual = {name: value for name, value in self._usual.items() if name != "ssl"}
        tls = "SSL" if "ssl" in self._usual else ""
        if self.sentinel is None:
            kind = getattr(self.redis, f"{tls}Connection")
            pool = self.redis.ConnectionPool(
                connection_class=_timed(kind, exchange), host=place[0], port=place[1], **self._login, **usual
            )
            return self.redis.Redis(connection_pool=pool)
        module = extra_module("redis.sentinel", "redis")
        sentinels = module.Sentinel(self.places, sentinel_kwargs=self._usual, **self._login, **usual)
        kind = getattr(module, f"SentinelManaged{tls}Connection")
        return sentinels.master_for(self.sentinel, connection_class=_timed(kind, exchange))

    def failure(self, error: Exception) -> DeliveryError:
        """Return the delivery error for *error*, raised or answered by redis-py. It repeats no part of an event."""
        text = _told(error)
        named = f"{self.peer}: {text}"
        redis = self.redis
        cause: BaseException | None = error
        while cause is not None:
            if is_refused_tls(cause):
                return PausedDeliveryError(f"{self.peer}: {describe(cause)}")
            cause = cause.__cause__ or cause.__context__
        code = text.partition(" ")[0].removesuffix(":")
        refused = (redis.AuthenticationError, redis.exceptions.AuthorizationError, redis.exceptions.NoPermissionError)
        if isinstance(error, refused) or code in _PAUSING or any(word in text for word in _PAUSING_WORDS):
            return PausedDeliveryError(named)
        if isinstance(error, (redis.ConnectionError, redis.TimeoutError, OSError)):
            halve_after = None
            if isinstance(error, (redis.TimeoutError, TimeoutError)):
                halve_after = 1
            elif " connecting to " not in text:
                halve_after = LOST_ATTEMPTS  # the connection was lost, perhaps because of what was sent
            return TemporaryDeliveryError(named, halve_after=halve_after)
        if code in _TEMPORARY or isinstance(error, _temporary(redis)):
            return TemporaryDeliveryError(named)
        if isinstance(error, redis.ResponseError):
            return PermanentDeliveryError(named)
        return TemporaryDeliveryError(f"{self.peer}: {type(error).__name__}{place_of(error)}")


#: Codes that begin an answer, for errors that last until somebody changes the configuration.
_PAUSING = frozenset({"NOAUTH", "WRONGPASS", "NOPERM", "WRONGTYPE", "DENIED"})
_PAUSING_WORDS = (
    "unknown command",
    "DB index",
    "invalid password",
    "without any password configured",
    "no password is",
)

#: Codes for errors that pass by themselves, or once there is memory again.
_TEMPORARY = frozenset(
    {"OOM", "LOADING", "BUSY", "READONLY", "MASTERDOWN", "MISCONF", "NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN", "MOVED"}
    | {"ASK", "UNBLOCKED", "NOGROUP"}
)


def _temporary(redis: Any) -> tuple[type[Exception], ...]:
    # redis-py removes the code from the text of these.
    exceptions = redis.exceptions
    names = ("OutOfMemoryError", "ReadOnlyError", "AskError", "TryAgainError", "ClusterDownError")
    return tuple(getattr(exceptions, name) for name in names if hasattr(exceptions, name))


def _told(error: Exception) -> str:
    """Return the text of *error* up to the first quote: Redis quotes the arguments of an unknown command."""
    words = re.split(r"['\"`]", str(error), maxsplit=1)[0].strip().rstrip(",:")
    return words[:200] or type(error).__name__


_URL = re.compile(r"(rediss?)://(?:([^@/?#]*)@)?([^/?#@]+)(?:/([0-9]*))?", re.IGNORECASE)


def _place(text: str, port: int) -> tuple[str, int]:
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::([0-9]{1,5}))?", text)
    number = int(found[2]) if found and found[2] else port
    if found is None or not 0 < number <= MAX_PORT:
        msg = f"url: the host or port {text!r} is not usable"
        raise ValueError(msg)
    return unquote(found[1].strip("[]")), number


def _moved(error: Exception) -> tuple[str, int] | None:
    """Return the address that *error*, the answer of a cluster's member, redirects to; None if it is no redirection."""
    place = getattr(error, "host", None), getattr(error, "port", None)
    if type(error).__name__ == "MovedError" and place[1]:
        return str(place[0] or ""), int(place[1])
    found = re.fullmatch(r"MOVED [0-9]+ (.*):([0-9]+)", str(error))  # redis-py 5 raises it as text
    return None if found is None else (found[1], int(found[2]))


class Exchange:
    """The deadline of one exchange: a request and its answer.

    Args:
        seconds: How long each exchange may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = float("inf")

    def begin(self) -> None:
        """Start another exchange: set its deadline."""
        self._deadline = now() + self._seconds

    def left(self) -> float:
        """Return how many seconds are left.

        Raises:
            TimeoutError: If none are.
        """
        left = self._deadline - now()
        if left <= 0:
            msg = "the exchange is not over in time"
            raise TimeoutError(msg)
        return min(left, self._seconds)


class _TimedSocket:
    """A socket for redis-py that keeps to the deadline of an exchange.

    The time-out of a plain socket starts again with each received piece, however small.
    """

    def __init__(self, sock: Any, exchange: Exchange) -> None:
        self._sock, self._exchange = sock, exchange

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def _hurry(self) -> Any:
        if self._sock.gettimeout() != 0:  # with 0, redis-py only asks whether data has arrived
            self._sock.settimeout(self._exchange.left())
        return self._sock

    def sendall(self, *arguments: Any) -> None:
        try:
            self._hurry().sendall(*arguments)
        except OSError as error:
            if isinstance(error, TimeoutError) or is_refused_tls(error):
                raise
            # The server may have sent a reply or a TLS alert before it closed the connection: the client reads it next.

    def recv(self, *arguments: Any) -> Any:
        return self._hurry().recv(*arguments)

    def recv_into(self, *arguments: Any) -> Any:
        return self._hurry().recv_into(*arguments)


def _timed(kind: Any, exchange: Exchange) -> Any:
    """Return a subclass of *kind*, a connection class of redis-py, whose sockets keep to *exchange*."""

    class Timed(kind):  # type: ignore[misc]
        def _connect(self) -> Any:
            self.socket_connect_timeout = exchange.left()
            return _TimedSocket(super()._connect(), exchange)

    return Timed


class RedisLink:
    """The client of one sink or listener. It changes to another server if one fails or redirects.

    Args:
        server: The servers to choose from.
    """

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self.redis: Any = server.redis
        self._next = 0
        self._place = server.places[0]
        self.exchange: Exchange = Exchange(server.timeout)
        #: redis-py's client.
        self.client: Any = server.client(self._place, self.exchange)

    def failed(self, error: Any) -> bool:
        """Change to another server if *error* calls for it; return True if an immediate retry may succeed."""
        redis = self._server.redis
        if self._server.sentinel is not None:
            # The master may have become a replica. A new connection asks the sentinels for the master.
            self.close()
            return False
        moved = _moved(error)
        if moved is not None:
            self._use((moved[0] or self._place[0], moved[1]))
            return True
        gone = isinstance(error, (redis.ConnectionError, redis.TimeoutError, OSError))
        if gone or isinstance(error, redis.exceptions.ReadOnlyError):
            places = self._server.places
            self._next = (self._next + 1) % len(places)
            if places[self._next] != self._place:
                self._use(places[self._next])
        return False

    def call(self, *command: Any, **options: Any) -> Any:
        """Send *command* to the cluster member that it belongs to; return the answer. *options* are redis-py's."""
        self.exchange.begin()
        try:
            return self.client.execute_command(*command, **options)
        except self.redis.ResponseError as error:
            if _moved(error) is None:
                raise
            self.failed(error)
        return self.client.execute_command(*command, **options)

    def pipeline(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Send *commands* in one request; return the answers.

        Raises:
            Exception: The first answer that is an error.
        """
        pipe = self.client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        self.exchange.begin()
        answers: list[Any] = pipe.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def _use(self, place: tuple[str, int]) -> None:
        self.close()
        self._place = place
        self.client = self._server.client(place, self.exchange)

    def close(self, seconds: float = 0) -> None:
        """Close the connection at once, whatever *seconds* allows; the client makes another when it is used again."""
        pool = self.client.connection_pool
        # The clients of the sentinels have connections of their own.
        asked = getattr(getattr(pool, "sentinel_manager", None), "sentinels", ())
        for each in (pool, *(client.connection_pool for client in asked)):
            with contextlib.suppress(Exception):
                each.disconnect()

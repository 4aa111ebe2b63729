"""Events into Redis: `RedisSink`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from outfall.adapters.brokers.client import timeout_of
from outfall.adapters.brokers.redisserver import RedisLink, RedisServer
from outfall.adapters.brokers.sink import BrokerSink, lacking
from outfall.sinks.core.arguments import checked_choice, checked_count, checked_size
from outfall.sinks.core.item import BatchResult, Encoded, data_of
from outfall.sinks.core.reporting import report
from outfall.sinks.errors import DeliveryError, PausedDeliveryError, PermanentDeliveryError, TemporaryDeliveryError
from outfall.sinks.event.levels import NOTSET, Level, level_name

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence

    from outfall.sinks.core.sink import OnError
    from outfall.sinks.event.units import Span

#: The share of the time-out that a server may wait for its replicas.
_SHARE_OF_WAIT = 0.8


class RedisSink(BrokerSink):
    """Append events to a stream of Redis, or to a list.

    Args:
        url: ``redis://user:password@host:port/database``; ``rediss://`` for TLS. Port 6379 and database 0 by default.
            Several hosts, separated by commas, are tried one after another; with *sentinel* they are sentinels, port
            26379.
        key: The stream or list.
        kind: ``"stream"`` (XADD, default) or ``"list"`` (RPUSH, which Logstash and Vector read).
        max_events: About how many events the stream keeps. The oldest are trimmed, even unread ones. Default None: it
            grows until the server has no more memory.
        wait_replicas: How many replicas have to have an event before it counts as delivered. Default 0.
        username: The user, if it is not in the URL. Default None.
        password: The password, if it is not in the URL. Default None.
        sentinel: The master's name, which sentinels are asked for. Default None: *url* names servers.
        timeout: Seconds, a timedelta or text such as ``"2s"``, that a batch and its answers may take, connecting
            included. Default 5.
        verify: With TLS, True to trust the certificate authorities that Python trusts (default), or the path of a file
            of others; False to trust anybody.
        cert: The client's certificate: the path of a file with the key in it, or paths of certificate and key. Default
            None.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *url* is no such URL, *kind* is neither, *max_events* comes with a list, or another argument is
            out of range.
        MissingDependencyError: Without redis-py; it comes with the extra ``redis``.

    An entry of a stream has the event's JSON in its field ``event``. If the JSON has no ``timestamp``, the field
    ``time`` holds the time in seconds since the epoch; if it has no level, the field ``level`` holds the level's name.
    An item of a list is the JSON.

    Delivered means that the server has answered. How safe an event is then depends on the server (``appendfsync``,
    *wait_replicas*). A batch is one pipeline, with an outcome for each event: a full server (``noeviction``) refuses
    those for which it has no memory, and they are tried again. A refused login, or a key of another kind, is a pause:
    the events are kept. If the connection breaks before the answer, the whole batch is sent again, so that events may
    come twice.

    A redirection by a member of a cluster is followed. The client's own retries are off. Put a `BackgroundSink` or
    `SpoolSink` around the sink, which retries; alone, the sink is synchronous and tries once.

    Safe from any thread; batches are sent one after another. It connects at the first event. A forked child makes its
    own connection. ``flush`` and ``close`` keep their timeout whatever the server does: a ``close`` that runs out of
    time aborts the exchange in progress.

    Source: https://redis.io/docs/latest/commands/xadd/ and https://redis.io/docs/latest/commands/wait/.
    """

    def __init__(
        self,
        url: str,
        key: str,
        kind: Literal["stream", "list"] = "stream",
        *,
        max_events: int | None = None,
        wait_replicas: int = 0,
        username: str | None = None,
        password: str | None = None,
        sentinel: str | None = None,
        timeout: Span = 5.0,
        verify: bool | str | os.PathLike[str] = True,
        cert: str | os.PathLike[str] | tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        self._key = checked_key(key)
        self._kind = checked_choice(kind, "kind", KINDS)
        bound: tuple[Any, ...] = ()
        if max_events is not None:
            if kind == "list":
                msg = f"max_events={max_events!r}: a list has no bound; write kind='stream'"
                raise ValueError(msg)
            bound = ("MAXLEN", "~", checked_count(max_events, "max_events", "events"))
        replicas = checked_size(wait_replicas, "wait_replicas", "replicas")
        seconds = timeout_of(timeout)
        self._server = RedisServer(
            url,
            username=username,
            password=password,
            sentinel=sentinel,
            verify=verify,
            cert=cert,
            timeout=seconds,
        )
        connect = partial(_Writer, self._server, self._kind, self._key, bound, replicas)
        super().__init__(connect, timeout=seconds, level=level, processors=processors, on_error=on_error, name=name)

    @property
    def needs_moment(self) -> bool:
        """Whether items need a level and a time: entries of a stream have fields for them, lists do not."""
        return self._kind == "stream"

    def _failure(self, error: Exception) -> DeliveryError:
        return self._server.failure(error)

    def _describe(self) -> str:
        return f"to {self._kind} {self._key} at {self._server.peer}"


class _Writer(RedisLink):
    """Appends batches to a key.

    Args:
        server: Where the server is.
        kind: ``"stream"`` or ``"list"``.
        key: The key.
        bound: The arguments of XADD that bound a stream.
        replicas: How many replicas must have an event.
    """

    def __init__(self, server: RedisServer, kind: str, key: str, bound: tuple[Any, ...], replicas: int) -> None:
        super().__init__(server)
        self._kind, self._key, self._bound, self._replicas = kind, key, bound, replicas

    def abort(self) -> None:
        """Close the connection, so that the `send` of another thread fails."""
        self.close()

    def send(self, batch: Sequence[Encoded], seconds: float) -> BatchResult | None:
        """Append *batch*; see ``emit_batch``."""
        answers = self._exchange(batch, seconds)
        confirmed: Any = answers.pop() if self._replicas else 0
        failures = {at: each for at, each in enumerate(answers) if isinstance(each, Exception)}
        if failures:
            first = next(iter(failures.values()))
            if self.failed(first) and len(failures) == len(answers):
                return self.send(batch, seconds)
            if len(answers) != len(batch):
                raise first  # RPUSH is all or nothing
            return self._result({at: self._server.failure(each) for at, each in failures.items()}, len(batch))
        if isinstance(confirmed, Exception):
            raise confirmed
        if confirmed < self._replicas:
            msg = f"{self._server.peer}: {confirmed} of {self._replicas} replicas have confirmed"
            raise TemporaryDeliveryError(msg)
        return None

    @staticmethod
    def _result(failures: dict[int, DeliveryError], wanted: int) -> BatchResult:
        first = next(iter(failures.values()))
        paused = next((each for each in failures.values() if isinstance(each, PausedDeliveryError)), None)
        if len(failures) == wanted and not isinstance(first, PermanentDeliveryError):
            raise paused or first
        rejected = {at: each.reason for at, each in failures.items() if isinstance(each, PermanentDeliveryError)}
        return BatchResult(retry=[at for at in failures if at not in rejected], rejected=rejected)

    def _exchange(self, batch: Sequence[Encoded], seconds: float) -> list[Any]:
        """Send *batch* in one pipeline; return the answers, exceptions among them."""
        pipe = self.client.pipeline(transaction=False)
        command, key = pipe.execute_command, self._key
        if self._kind == "list":
            command("RPUSH", key, *data_of(batch))
        else:
            head = ("XADD", key, *self._bound, "*", "event")
            for data, level, time in lacking(batch):
                if level is None and time is None:
                    command(*head, data)
                else:
                    more: tuple[Any, ...] = () if level is None else ("level", level_name(level))
                    command(*head, data, *more, *(() if time is None else ("time", repr(time))))
        if self._replicas:
            command("WAIT", self._replicas, max(1, int(seconds * _SHARE_OF_WAIT * 1000)))
        self.exchange.begin()
        try:
            answers: list[Any] = pipe.execute(raise_on_error=False)
        except Exception as error:
            self.failed(error)
            raise
        return answers


KINDS: tuple[Literal["stream", "list"], ...] = ("stream", "list")


def checked_key(key: str) -> str:
    """Return *key* if it is a key's name.

    Raises:
        ValueError: If it is empty.
        TypeError: If it is no text.
    """
    if not isinstance(key, str):
        msg = f"key={key!r} is not text"
        raise TypeError(msg)
    if not key:
        msg = "key='' is empty"
        raise ValueError(msg)
    return key

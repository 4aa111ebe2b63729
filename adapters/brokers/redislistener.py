"""Events out of Redis: `RedisListener`."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import orjson

from outfall.adapters.brokers.client import checked_name, timeout_of
from outfall.adapters.brokers.listener import BrokerListener, Reading
from outfall.adapters.brokers.redis import KINDS, RedisSink, checked_key
from outfall.adapters.brokers.redisserver import RedisLink, RedisServer
from outfall.sinks.core.arguments import checked_choice, checked_seconds
from outfall.sinks.core.clock import now
from outfall.sinks.core.reporting import SinkFailure, report
from outfall.sinks.errors import TemporaryDeliveryError
from outfall.sinks.event.levels import level_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from outfall.sinks.core.sink import Sink
    from outfall.sinks.delivery.delivery import RetryPolicy
    from outfall.sinks.errors import DeliveryError
    from outfall.sinks.event.units import Span

#: The share of the time-out that a read may wait for a message.
_SHARE_OF_READ = 0.5

#: How many signs of life a consumer gives within *claim_after*.
_SIGNS_OF_LIFE = 3

#: How often trimmed events are counted, in seconds.
_COUNT_SECONDS = 1.0

#: How many entries are returned to the group at a time.
_AT_A_TIME = 1_000

#: A consumer without messages is removed after *claim_after* times this without a sign of life.
_FORGOTTEN_AFTER = 10


class RedisListener(BrokerListener):
    """Take events out of a stream of Redis, or a list, and hand them to *sinks*, in batches.

    Any number of listeners, in any number of processes and machines, share the work: each event goes to one listener of
    a *group*. An event is acknowledged once each sink has settled it, so a killed process loses none: after
    *claim_after* another listener takes over its events. Sinks that had some of them already get these twice.

    Args:
        url: As `RedisSink` takes it.
        key: The stream or list.
        *sinks: Where the events go. They are not owned: close them after the listener.
        kind: ``"stream"`` (default) or ``"list"``, whose left end is read.
        group: The consumer group of a stream. If it does not exist, it is created, and starts with the oldest event of
            the stream. Groups are independent of one another. A list has none. Default ``"outfall"``.
        claim_after: Seconds, a timedelta or text such as ``"5m"``, without a sign of life from a listener after which
            others take over its events. A living listener gives three signs of life in that span, however slow its
            sinks are. Default 60.
        respect_sink_level: Whether a sink's level applies. Default False: the level was applied where the event was
            logged. Processors always apply.
        batch_size: How many events are read, and given to a sink, at a time. Default 500.
        retry: When to try again: a batch that a sink could not take, and a server that cannot be reached. Default
            ``RetryPolicy()``: without end.
        dead_letter: A sink for events that a sink refuses for good, and for messages that are no JSON object. Not
            owned. Default None: they are counted as ``dropped["rejected"]`` and ``dropped["garbage"]``.
        dead_letter_key: A stream or list of the same server that gets them instead. Default None.
        username: The user, if it is not in the URL. Default None.
        password: The password, if it is not in the URL. Default None.
        sentinel: The master's name, which sentinels are asked for. Default None.
        timeout: Seconds, a timedelta or text, that an exchange with the server may take, connecting included. Default
            5.
        verify: With TLS, True to trust the certificate authorities that Python trusts (default), or the path of a file
            of others; False to trust anybody.
        cert: The client's certificate: the path of a file with the key in it, or paths of certificate and key. Default
            None.
        on_error: Called with a `SinkFailure` for events lost and attempts that failed. A sink's own ``on_error``, if it
            was given one, is called too. Default `report`.
        name: The name of the listener in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *url* is no such URL, *kind* is neither, a sink only keeps events in memory, or another argument
            is out of range.
        TypeError: If one of *sinks* or *dead_letter* is no sink, or an argument is of another type.
        MissingDependencyError: Without redis-py; it comes with the extra ``redis``.

    The listener reads two batches ahead. A sink that takes nothing holds up the others once two batches wait for it:
    put a `SpoolSink` around it, or give it a listener with a group of its own. A refused batch is divided until the
    events at fault are found, so that they block nothing.

    Events that were trimmed before the group had read them are counted as ``dropped["trimmed"]``, once for the group,
    with servers from 7.0. Events read from a list are kept in another list, ``{key}:processing:NAME``, until they are
    settled.

    Use it as a context manager, or call `start` and `stop`; both may be called again. `stop` returns unsettled events
    to the group. It uses at most two threads and one for each sink. Safe from any thread. In a forked child the
    listener is not started. At exit it stops, within the deadline that all sinks share.

    Needs Redis 6.2 or later.

    Source: https://redis.io/docs/latest/develop/data-types/streams/ on groups of consumers,
    https://redis.io/docs/latest/commands/lmove/ on reliable queues.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *sinks: Sink,
        kind: Literal["stream", "list"] = "stream",
        group: str = "outfall",
        claim_after: Span = 60.0,
        respect_sink_level: bool = False,
        batch_size: int = 500,
        retry: RetryPolicy | None = None,
        dead_letter: Sink | None = None,
        dead_letter_key: str | None = None,
        username: str | None = None,
        password: str | None = None,
        sentinel: str | None = None,
        timeout: Span = 5.0,
        verify: bool | str | os.PathLike[str] = True,
        cert: str | os.PathLike[str] | tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
        on_error: Callable[[SinkFailure], object] = report,
        name: str | None = None,
    ) -> None:
        self._key = checked_key(key)
        self._kind = checked_choice(kind, "kind", KINDS)
        self._group = checked_name(group, "group")
        self._claim_seconds = checked_seconds(claim_after, "claim_after")
        if not 0.01 <= self._claim_seconds < float("inf"):
            msg = f"claim_after={claim_after!r} is not a span from 10 ms up"
            raise ValueError(msg)
        seconds = timeout_of(timeout)
        login: dict[str, Any] = {"username": username, "password": password, "sentinel": sentinel}
        login |= {"verify": verify, "cert": cert}
        self._server = RedisServer(url, timeout=seconds, **login)
        #: The sink for *dead_letter_key*, or None.
        self._own_letters: RedisSink | None = None
        if dead_letter_key is not None:
            if dead_letter is not None:
                msg = f"dead_letter_key={dead_letter_key!r} and dead_letter cannot both be given"
                raise ValueError(msg)
            dead_letter = self._own_letters = RedisSink(
                url, dead_letter_key, kind, timeout=timeout, on_error=on_error, **login
            )
        super().__init__(
            *sinks,
            respect_sink_level=respect_sink_level,
            batch_size=batch_size,
            retry=retry,
            dead_letter=dead_letter,
            timeout=seconds,
            on_error=on_error,
            name=name,
        )

    def _fresh_state(self) -> None:
        super()._fresh_state()
        self._renewed = self._counted = 0.0
        #: The name of this listener at the server.
        self.consumer: str = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"

    def _read(self, number: int, seconds: float) -> Reading:
        reader: _Stream | _List | None = self._client
        if reader is None:
            make = _Stream if self._kind == "stream" else _List
            reader = self._client = make(RedisLink(self._server), self._key, self._group, self.consumer)
            reader.claim_milliseconds = max(1, int(self._claim_seconds * 1000))
        with self._moving(reader):
            if not reader.ready:
                reader.begin(self._under_way())
            claiming = now() >= reader.next_claim
            reading = reader.claim(number, set(self._under_way())) if claiming else None
            if reading:
                with self._ledger.lock:
                    self._ledger.retried += len(reading)
            else:
                if claiming:
                    reader.next_claim = now() + self._claim_seconds / _SIGNS_OF_LIFE
                reading = reader.read(number, min(seconds, self._timeout * _SHARE_OF_READ))
            if claiming or not reading:
                self._count_trimmed(reader)
        return reading

    def _count_trimmed(self, reader: _Stream | _List) -> None:
        run = self._run
        if now() < self._counted and not (run is not None and (run.flushing or run.stopping)):
            return
        self._counted = now() + _COUNT_SECONDS
        trimmed = reader.trimmed()
        if trimmed:
            self._ledger.drop("trimmed", trimmed)
            self._tell(TemporaryDeliveryError("the stream was trimmed before its oldest events were read"), trimmed)

    def _acknowledge(self, tokens: list[Any]) -> None:
        if self._client is not None:
            with self._moving(self._client):
                self._client.acknowledge(tokens)

    def _look_after(self) -> None:
        reader = self._client
        if reader is not None and reader.ready and now() >= self._renewed:
            with self._moving(reader):
                reader.renew(self._under_way())
            self._renewed = now() + self._claim_seconds / _SIGNS_OF_LIFE

    @contextlib.contextmanager
    def _moving(self, reader: _Stream | _List) -> Any:
        """Make *reader* start over after an error, with another server if need be."""
        try:
            yield
        except Exception as error:
            reader.ready = False
            reader.link.failed(error)
            raise

    def _disconnect(self, seconds: float) -> None:
        reader, self._client = self._client, None
        if reader is not None:
            try:
                if reader.ready:
                    reader.give_back()
            finally:
                reader.link.close()
        letters = self._own_letters
        if letters is not None and letters._lock.acquire(seconds):
            try:
                letters._release()  # a listener that is started again connects again
            finally:
                letters._lock.release()

    def _failure(self, error: Exception) -> DeliveryError:
        return self._server.failure(error)

    def _describe(self) -> str:
        return f"{self._kind} {self._key} at {self._server.peer}"


class _Reader:
    """Reads one kind of key. `_Stream` has the docstrings of what both kinds do.

    Args:
        link: The connection.
        key: The key.
        consumer: The name of this consumer.
    """

    def __init__(self, link: RedisLink, key: str, consumer: str) -> None:
        self.link, self._key, self._consumer = link, key, consumer
        #: False before the first read, and after an error.
        self.ready = False
        self.next_claim = 0.0
        self.claim_milliseconds = 0


class _Stream(_Reader):
    """A stream, read through a consumer group."""

    def __init__(self, link: RedisLink, key: str, group: str, consumer: str) -> None:
        super().__init__(link, key, consumer)
        self._group = group
        #: The ID after which to read this consumer's own unacknowledged messages again; None once all are read.
        self._own: bytes | str | None = "0"
        #: Where the search through other consumers' messages continues.
        self._cursor: bytes | str = "0-0"
        self._counts = True

    def begin(self, under_way: list[Any]) -> None:
        """Prepare the first read, or the next one after an error. *under_way* are the tokens of unsettled messages."""
        redis = self.link.redis
        try:
            info = self.link.call("XINFO STREAM", self._key)
            gone = info.get("entries-added", 0) - info["length"]
        except redis.ResponseError:
            gone = 0
        command = ("XGROUP CREATE", self._key, self._group, "0", "MKSTREAM")
        try:
            self.link.call(*command, "ENTRIESREAD", max(0, gone))
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                try:
                    self.link.call(*command)  # before 7.0
                except redis.ResponseError as again:
                    if "BUSYGROUP" not in str(again):
                        raise
        self._own = "0"
        self.next_claim = 0.0
        self.ready = True

    def read(self, number: int, seconds: float) -> Reading:
        """Return messages that no consumer has read."""
        waiting = ("BLOCK", max(1, int(seconds * 1000))) if seconds else ()
        return _reading_of(self._group_read("COUNT", number, *waiting, "STREAMS", self._key, ">"))

    def _group_read(self, *options: Any) -> list[Any]:
        answer = self.link.call("XREADGROUP", "GROUP", self._group, self._consumer, *options)
        return answer[0][1] if answer else []

    def claim(self, number: int, under_way: set[Any]) -> Reading:
        """Return messages that this listener or a dead one has read, and that are neither settled nor *under_way*."""
        while self._own is not None:
            found = self._group_read("COUNT", number, "STREAMS", self._key, self._own)
            self._own = found[-1][0] if found else None
            # Entries that were trimmed have no fields.
            own = [entry for entry in found if entry[0] not in under_way]
            reading = self._kept(own)
            if reading:
                return reading
        while True:
            limits = (self.claim_milliseconds, self._cursor, "COUNT", number)
            answer = self.link.call("XAUTOCLAIM", self._key, self._group, self._consumer, *limits)
            self._cursor = answer[0]
            reading = self._kept([entry for entry in answer[1] if entry[0] not in under_way])
            if reading or self._cursor in _BEGINNING:
                return reading

    def _kept(self, entries: list[Any]) -> Reading:
        """Return the messages of *entries*; acknowledge those that the stream no longer has."""
        gone = [entry[0] for entry in entries if entry[0] and not entry[1]]
        if gone:
            self.acknowledge(gone)
        return _reading_of([entry for entry in entries if entry[1]])

    def acknowledge(self, tokens: list[Any]) -> None:
        """Acknowledge the messages of *tokens*."""
        self.link.call("XACK", self._key, self._group, *tokens)

    def renew(self, tokens: list[Any]) -> None:
        """Give a sign of life for this consumer, which has the messages of *tokens* in flight."""
        if tokens:
            self.link.call("XCLAIM", self._key, self._group, self._consumer, 0, *tokens, "JUSTID", parse_justid=True)

    def give_back(self) -> None:
        """Return this consumer's unacknowledged messages to the others at once, and remove the consumer."""
        who = (self._key, self._group, self._consumer)
        idle = ("IDLE", self.claim_milliseconds, "JUSTID")
        held, place = False, "-"
        # Go by the server's list, which may hold more than is in flight here: removing a consumer drops its messages.
        while True:
            which = (self._key, self._group, place, "+", _AT_A_TIME, self._consumer)
            found = self.link.call("XPENDING", *which, parse_detail=True)
            if not found:
                break
            held = True
            numbers = [each["message_id"] for each in found]
            # Set a long idle time, so that the next claim takes them.
            self.link.call("XCLAIM", *who, 0, *numbers, *idle, parse_justid=True)
            place = f"({numbers[-1].decode()}"
        if not held:
            self.link.call("XGROUP DELCONSUMER", *who)

    def trimmed(self) -> int:
        """Return how many events were trimmed unread since any listener of the group last asked."""
        if not self._counts:
            return 0
        keys = (self._key, _beside(self._key, "trimmed"))
        forgotten = self.claim_milliseconds * _FORGOTTEN_AFTER
        try:
            return int(self.link.call("EVAL", _LOOK, 2, *keys, self._group, forgotten, self._consumer))
        except self.link.redis.ResponseError:  # the user may not run scripts, or the server is older than 7.0
            self._counts = False
            return 0


#: The cursors of an XAUTOCLAIM that is complete.
_BEGINNING = (b"0-0", "0-0")

#: A script that counts events trimmed unread, and removes consumers that have nothing and give no sign of life. A key
#: beside the stream holds the count, so that only one listener of a group reports it. Entries added, less the stream's
#: length, were trimmed. Of these the group has read at most as many as it has read in all. Once it has read the last
#: entry, everything that it has not read was trimmed.
_LOOK = """
local function fields(flat)
  local made = {}
  for at = 1, #flat, 2 do made[flat[at]] = flat[at + 1] end
  return made
end
local stream = fields(redis.call('XINFO', 'STREAM', KEYS[1]))
local new = 0
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = fields(flat)
  local read, added = group['entries-read'], stream['entries-added']
  if group['name'] == ARGV[1] and read and added then
    local lost = added - stream['length'] - read
    if group['last-delivered-id'] == stream['last-generated-id'] then lost = math.max(lost, added - read) end
    local known = tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or '0')
    if lost > known then
      redis.call('HSET', KEYS[2], ARGV[1], lost)
      new = lost - known
    end
  end
end
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = fields(flat)
  if consumer['pending'] == 0 and consumer['idle'] > tonumber(ARGV[2]) and consumer['name'] ~= ARGV[3] then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer['name'])
  end
end
return new
"""


def _reading_of(entries: list[Any]) -> Reading:
    numbers = [number for number, _ in entries]
    bodies: list[Any] = [fields.get(b"event") for _, fields in entries]
    levels: dict[int, float] = {}
    times: dict[int, float] = {}
    if sum([len(fields) for _, fields in entries]) != len(entries) or None in bodies:
        for place, (_, fields) in enumerate(entries):
            if bodies[place] is None:  # not written by Outfall: make an event of its fields
                bodies[place] = orjson.dumps({_text(name): _text(value) for name, value in fields.items()})
            if len(fields) > 1 and b"level" in fields:
                levels[place] = level_of({"level": _text(fields[b"level"])})
            if len(fields) > 1:
                with contextlib.suppress(ValueError):
                    times[place] = float(fields.get(b"time", b""))

    def time_of(place: int) -> float:
        time = times.get(place)
        return int(numbers[place].partition(b"-")[0]) / 1000 if time is None else time

    return Reading(numbers, bodies, levels, time_of)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def _beside(key: str, name: str) -> str:
    """Return the name of a key for which a cluster uses the same slot as for *key*."""
    tagged = "{" in key and "}" in key[key.index("{") + 2 :]
    return f"{key}:{name}" if tagged else f"{{{key}}}:{name}"


class _List(_Reader):
    """A list. Messages that were read are kept in a list of the consumer's own until they are settled."""

    def __init__(self, link: RedisLink, key: str, group: str, consumer: str) -> None:
        super().__init__(link, key, consumer)
        self._consumers = _beside(key, "consumers")
        self._processing = self._processing_of(consumer)
        self._registration = ("SADD", self._consumers, consumer)
        self._again: list[bytes] = []

    def _processing_of(self, consumer: str) -> str:
        return _beside(self._key, f"processing:{consumer}")

    def _alive(self, consumer: str) -> str:
        return _beside(self._key, f"alive:{consumer}")

    def begin(self, under_way: list[Any]) -> None:
        self.renew(under_way)
        # Messages left by a read that failed, or by a stop that ran out of time.
        known = Counter(under_way)
        self._again = []
        for body in self.link.call("LRANGE", self._processing, 0, -1):
            if known[body]:
                known[body] -= 1
            else:
                self._again.append(body)
        self.next_claim = 0.0
        self.ready = True

    def read(self, number: int, seconds: float) -> Reading:
        there = min(number, self.link.call("LLEN", self._key))
        ends = (self._key, self._processing, "LEFT", "RIGHT")
        moves: list[tuple[str, ...]]
        if there:
            moves = [("LMOVE", *ends)] * there
        elif seconds:
            moves = [("BLMOVE", *ends, str(seconds))]
        else:
            return Reading([], [])
        # Register again with each read: another consumer may just have removed this one as dead.
        _, *moved = self.link.pipeline([self._registration, *moves])
        bodies = [body for body in moved if body is not None]
        return Reading(bodies, bodies)

    def claim(self, number: int, under_way: set[Any]) -> Reading:
        if not self._again:
            self._take_over()
        taken, self._again = self._again[:number], self._again[number:]
        return Reading(taken, taken)

    def _take_over(self) -> None:
        """Put the messages of dead consumers back to the end that is read."""
        others = [
            name for each in self.link.call("SMEMBERS", self._consumers) if (name := _text(each)) != self._consumer
        ]
        for consumer in others:
            if self.link.call("EXISTS", self._alive(consumer)):
                continue
            source = self._processing_of(consumer)
            while True:
                left = self.link.call("LLEN", source)
                if not left:
                    break
                self.link.pipeline([("LMOVE", source, self._key, "RIGHT", "LEFT")] * min(left, 1_000))
            self.link.call("SREM", self._consumers, consumer)

    def acknowledge(self, tokens: list[Any]) -> None:
        self.link.pipeline(("LREM", self._processing, 1, body) for body in tokens)

    def renew(self, tokens: list[Any]) -> None:
        alive = ("SET", self._alive(self._consumer), "", "PX", self.claim_milliseconds)
        self.link.pipeline((self._registration, alive))

    def give_back(self) -> None:
        left = self.link.call("LLEN", self._processing)
        moves = [("LMOVE", self._processing, self._key, "RIGHT", "LEFT")] * left
        forget = (("SREM", self._consumers, self._consumer), ("DEL", self._alive(self._consumer)))
        self.link.pipeline((*moves, *forget))

    def trimmed(self) -> int:
        return 0

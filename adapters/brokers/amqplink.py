"""A connection to RabbitMQ, run by the thread that uses it, each step until a deadline."""

from __future__ import annotations

import contextlib
import copy
import random
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from outfall.sinks.core.clock import now
from outfall.sinks.errors import (
    DeliveryError,
    MissingDependencyError,
    OversizeDeliveryError,
    PausedDeliveryError,
    TemporaryDeliveryError,
)

try:
    import pika
    from pika import exceptions
    from pika.adapters.select_connection import IOLoop
    from pika.adapters.utils.nbio_interface import AbstractIOReference
    from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter
except ImportError:
    raise MissingDependencyError(package="pika", extra="amqp") from None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: What a broker replies if it will not do it before somebody has changed something there: no access, no such queue or
#: exchange, a virtual host that does not exist.
_PAUSING_REPLIES = frozenset({402, 403, 404, 530})

#: What it replies to a message that is larger than it takes: 406 is told from its other meanings by the text.
_TOO_LARGE = "message size"


class Addresses:
    """Where brokers listen, and how to log in.

    Args:
        url: ``amqp://user:password@host1:5672,host2:5672/vhost``, or several such URLs. ``amqps://`` encrypts. The
            query takes what ``pika.URLParameters`` takes, such as ``heartbeat=30``.
        ssl_context: An `ssl.SSLContext` for ``amqps://``. Default None: the result of `ssl.create_default_context`.

    Raises:
        ValueError: If a URL is not usable. The message holds no part of it.
        TypeError: If a URL is no text.
    """

    def __init__(self, url: str | Sequence[str], ssl_context: ssl.SSLContext | None = None) -> None:
        self._parameters: list[Any] = []
        for each in [url] if isinstance(url, str) else list(url):
            self._parameters += _parameters(each, ssl_context)
        if not self._parameters:
            msg = "url: there has to be at least one"
            raise ValueError(msg)

    def __repr__(self) -> str:
        return ",".join(f"{each.host}:{each.port}" for each in self._parameters)

    def choices(self, deadline: float) -> Iterator[Any]:
        """Yield the hosts in a random order; each has its share of the time that is left until *deadline*."""
        left = len(self._parameters)
        for each in random.sample(self._parameters, left):
            chosen = copy.copy(each)
            chosen.socket_timeout = chosen.stack_timeout = max((deadline - now()) / left, 0.01)
            left -= 1
            yield chosen


def _parameters(url: Any, ssl_context: ssl.SSLContext | None) -> list[Any]:
    if not isinstance(url, str):
        msg = f"url: {type(url).__name__} is not text"
        raise TypeError(msg)
    made: list[Any] = []
    usable = False
    with contextlib.suppress(Exception):
        parts = urlsplit(url)
        login, at, hosts = parts.netloc.rpartition("@")
        if at and ":" not in login:
            login += ":"
        for host in hosts.split(","):
            parameters = pika.URLParameters(urlunsplit(parts._replace(netloc=f"{login}{at}{host}")))
            if ssl_context is not None:
                parameters.ssl_options = pika.SSLOptions(ssl_context, parameters.host)
            made.append(parameters)
        usable = parts.scheme == "amqps" or (parts.scheme == "amqp" and ssl_context is None)
    if not usable:
        # The URL may hold a password, and so may what was raised for it.
        msg = "url is not usable: write amqp://user:password@host:5672/vhost, or amqps://, which ssl_context is for"
        raise ValueError(msg)
    return made


class Link:
    """A connection with one channel, open when the constructor returns.

    Args:
        addresses: Where to connect to.
        seconds: For how long to try.
        watch: Called with the connection as soon as it can be broken off by `abort`.

    Raises:
        DeliveryError: If it could not be opened.

    For one thread at a time, `abort` apart.
    """

    def __init__(self, addresses: Addresses, seconds: float, watch: Callable[[Link], object]) -> None:
        self._loop = IOLoop()
        self._loop.activate_poller()
        self._services = _Services(self._loop)
        self._connection: Any = None
        self._channel: Any = None
        self.peer: str = repr(addresses)
        #: Why it is not usable any more.
        self.failure: BaseException | None = None
        self._aborted = False
        #: Why the broker lets nobody publish, or None.
        self._blocked: str | None = None
        self._used = now()
        complete = False
        try:
            watch(self)
            self._open(addresses, now() + seconds)
            complete = True
        finally:
            if not complete:
                self.close(0)

    def _open(self, addresses: Addresses, deadline: float) -> None:
        failures: list[DeliveryError] = []
        for parameters in addresses.choices(deadline):
            peer = f"{parameters.host}:{parameters.port}"
            failure = self._connect(parameters, peer, min(deadline, now() + parameters.stack_timeout))
            if failure is None:
                self.peer = peer
                self._open_channel(deadline)
                return
            failures.append(failure)
            if self._aborted:
                break
        # What has to be changed is told rather than what may pass.
        raise next((each for each in failures if isinstance(each, PausedDeliveryError)), failures[0])

    def _connect(self, parameters: Any, peer: str, deadline: float) -> DeliveryError | None:
        """Connect to one host; return why that failed, or None."""
        opened: list[Any] = []
        self._connection = pika.SelectConnection(
            parameters,
            on_open_callback=opened.append,
            on_open_error_callback=self._lose,
            on_close_callback=self._lose,
            custom_ioloop=self._services,
        )
        in_time = self._serve(lambda: bool(opened) or self.failure is not None, deadline)
        failure, self.failure = self.failure, None
        if failure is not None:
            return failure_of(failure, peer)
        if not in_time:
            self._end(now())
            self.failure = None
            return TemporaryDeliveryError(f"no connection to {peer} in time")
        return None

    def _open_channel(self, deadline: float) -> None:
        self._connection.add_on_connection_blocked_callback(self._on_blocked)
        self._connection.add_on_connection_unblocked_callback(self._on_unblocked)
        opened: list[Any] = []
        self._channel = self._connection.channel(on_open_callback=opened.append)
        self._channel.add_on_close_callback(self._lose)
        self.run(lambda: bool(opened), deadline)

    @property
    def channel(self) -> Any:
        """The channel."""
        return self._channel

    def _lose(self, _what: Any, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error

    def _on_blocked(self, _connection: Any, frame: Any) -> None:
        self._blocked = str(frame.method.reason or "no reason given")

    def _on_unblocked(self, _connection: Any, _frame: Any) -> None:
        self._blocked = None

    def cancel(self, why: str) -> None:
        """Regard the connection as lost, until somebody changes something at the broker."""
        self._lose(None, PausedDeliveryError(f"{self.peer}: {why}"))

    # -- running it

    def run(self, done: Callable[[], bool], deadline: float) -> None:
        """Send and receive until *done* returns True.

        Raises:
            DeliveryError: If the connection is lost, or *deadline* passes first.
        """
        in_time = self._serve(lambda: done() or self.failure is not None, deadline)
        if done():
            return
        self.check()
        if not in_time:
            blocked = "" if self._blocked is None else f": it lets nobody publish ({self._blocked})"
            msg = f"{self.peer} did not answer in time{blocked}"
            raise TemporaryDeliveryError(msg)

    def step(self, seconds: float) -> None:
        """Send and receive what can be, waiting *seconds* for it at most.

        Raises:
            DeliveryError: If the connection is lost.
        """
        alarm = self._loop.call_later(seconds, _nothing)
        try:
            self._turn()
        finally:
            self._loop.remove_timeout(alarm)
        self.check()

    def check(self) -> None:
        """Raise if the connection is lost.

        Raises:
            DeliveryError: If it is.
        """
        if self.failure is not None:
            raise failure_of(self.failure, self.peer)

    def _serve(self, done: Callable[[], bool], deadline: float) -> bool:
        """Let the loop turn until *done*; return False if *deadline* passes first, or somebody breaks it off."""
        alarm = self._loop.call_later(max(0.0, deadline - now()), _nothing)
        try:
            while True:
                if done():
                    return True
                if now() >= deadline or self._aborted:
                    return False
                self._turn()
        finally:
            self._loop.remove_timeout(alarm)

    def _turn(self) -> None:
        self._loop.poll()
        self._loop.process_timeouts()
        self._used = now()

    def usable(self) -> bool:
        """Take what has come since it was used last; return False if the connection is lost, or is not to be trusted.

        That is one that was idle for so long that the broker has missed its heartbeats.
        """
        heartbeat = self._connection.params.heartbeat
        if heartbeat and now() - self._used > 2 * heartbeat:
            return False
        with contextlib.suppress(DeliveryError):
            self.step(0)
            return True
        return False

    def abort(self) -> None:
        """Let what another thread waits for here fail at once."""
        self._aborted = True
        with contextlib.suppress(Exception):
            self._loop.add_callback_threadsafe(_nothing)

    # -- the end

    def close(self, seconds: float) -> None:
        """End it in order within *seconds*, or else at once."""
        with contextlib.suppress(Exception):
            if self._connection is not None:
                self._end(now() + seconds)
        with contextlib.suppress(Exception):
            self._loop.close()

    def _end(self, deadline: float) -> None:
        connection = self._connection
        self._aborted = False
        with contextlib.suppress(exceptions.ConnectionWrongStateError):
            connection.close()
        if not self._serve(lambda: connection.is_closed, deadline):
            # There is no public way to end a connection whose peer does not answer.
            connection._terminate_stream(exceptions.ConnectionOpenAborted("no answer"))
            self._serve(lambda: connection.is_closed, now() + _LAST_SECONDS)


class _Services(SelectorIOServicesAdapter):
    """What pika asks for, but for the resolving of names: the thread that pika starts for it holds up the exit."""

    def getaddrinfo(
        self,
        host: str,
        port: int | str,
        on_done: Callable[[Any], None],
        family: int = 0,
        socktype: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> AbstractIOReference:
        """Resolve *host* in a thread that nobody waits for, and call *on_done* in the loop."""
        request = _Resolution(self, on_done)
        try:
            found = socket.getaddrinfo(host, port, family, socktype, proto, flags | socket.AI_NUMERICHOST)
        except OSError:
            arguments = (host, port, family, socktype, proto, flags)
            try:
                threading.Thread(target=request.resolve, args=arguments, daemon=True).start()
            except RuntimeError:  # the interpreter ends
                request.resolve(*arguments)
        else:
            request.finish(found)
        return request


class _Resolution(AbstractIOReference):
    def __init__(self, services: _Services, on_done: Callable[[Any], None]) -> None:
        self._services = services
        self._on_done: Callable[[Any], None] | None = on_done

    def resolve(self, *arguments: Any) -> None:
        """Look the name up."""
        try:
            self.finish(socket.getaddrinfo(*arguments))
        except Exception as error:
            self.finish(error)

    def finish(self, found: Any) -> None:
        """Hand over what was found."""
        with contextlib.suppress(Exception):  # of a loop that is closed
            self._services.add_callback_threadsafe(lambda: self._call(found))

    def _call(self, found: Any) -> None:
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done(found)

    def cancel(self) -> bool:
        """Call nobody; return whether that was to come."""
        was, self._on_done = self._on_done, None
        return was is not None


def failure_of(error: BaseException, peer: str) -> DeliveryError:
    """Return what *error*, raised or reported by pika, means. It holds no message and no password."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, DeliveryError):
            return cause
        if isinstance(cause, (exceptions.ProbableAuthenticationError, exceptions.AuthenticationError)):
            return PausedDeliveryError(f"{peer} refuses the login")
        if isinstance(cause, exceptions.ProbableAccessDeniedError):
            return PausedDeliveryError(f"{peer} refuses access to the virtual host")
        if isinstance(cause, ssl.SSLCertVerificationError):
            return PausedDeliveryError(f"the certificate of {peer} is not trusted: {cause.verify_message}")
        if isinstance(cause, (exceptions.ConnectionClosed, exceptions.ChannelClosed)):
            said = f"{peer} closed the connection: {cause.reply_code} {cause.reply_text}"
            if cause.reply_code in _PAUSING_REPLIES:
                return PausedDeliveryError(said)
            if _TOO_LARGE in cause.reply_text:
                return OversizeDeliveryError(said)
            return TemporaryDeliveryError(said)
    told = causes[-1]
    name = told.strerror if isinstance(told, OSError) and told.strerror else type(told).__name__
    return TemporaryDeliveryError(f"no connection to {peer}: {name}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield *error* and what it was made of."""
    seen: list[Any] = [error]
    for each in seen:
        yield each
        for inner in (getattr(each, "exception", None), *getattr(each, "exceptions", ()), *each.args):
            if isinstance(inner, BaseException) and len(seen) < _MOST_CAUSES:
                seen.append(inner)


def _nothing() -> None:
    """Let the loop turn."""


#: How long a loop still turns to let go of a connection that is broken off.
_LAST_SECONDS = 0.05

_MOST_CAUSES = 20

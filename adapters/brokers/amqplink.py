"""A connection to RabbitMQ without a thread of its own: the calling thread runs it, each step until a deadline."""

from __future__ import annotations

import contextlib
import copy
import random
import re
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

#: Reply codes that hold until somebody changes something at the broker: no access, no such queue or exchange, no such
#: virtual host.
_PAUSING_REPLIES = frozenset({402, 403, 404, 530})

#: Part of the reply to a message that is too large. Its code, 406, has other meanings too.
_TOO_LARGE = "message size"


class Addresses:
    """The addresses of brokers, and the login.

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
        """Yield the hosts in random order, each with an equal share of the time left until *deadline*."""
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
        # pika's own message may hold the password of the URL.
        msg = "url is not usable: write amqp://user:password@host:5672/vhost, or amqps://, which ssl_context is for"
        raise ValueError(msg)
    return made


class Link:
    """A connection with one channel, open when the constructor returns.

    Args:
        addresses: Where to connect to.
        seconds: How long to try.
        watch: Called with the connection before it connects, so that another thread can `abort` it.

    Raises:
        DeliveryError: If it could not be opened.

    Use it from one thread at a time; `abort` may be called from any thread.
    """

    def __init__(self, addresses: Addresses, seconds: float, watch: Callable[[Link], object]) -> None:
        self._loop = IOLoop()
        self._loop.activate_poller()
        self._services = _Services(self._loop)
        self._connection: Any = None
        #: The channel.
        self.channel: Any = None
        self.peer: str = repr(addresses)
        #: Why the connection is lost, or None.
        self.failure: BaseException | None = None
        self._aborted = False
        #: The broker's reason for blocking publishers, or None.
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
        # A failure that somebody has to mend says more than one that passes by itself.
        raise next((each for each in failures if isinstance(each, PausedDeliveryError)), failures[0])

    def _connect(self, parameters: Any, peer: str, deadline: float) -> DeliveryError | None:
        """Connect to one host; return the failure, or None."""
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
        self.channel = self._connection.channel(on_open_callback=opened.append)
        self.channel.add_on_close_callback(self._lose)
        self.run(lambda: bool(opened), deadline)

    def _lose(self, _what: Any, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error

    def _on_blocked(self, _connection: Any, frame: Any) -> None:
        self._blocked = str(frame.method.reason or "no reason given")

    def _on_unblocked(self, _connection: Any, _frame: Any) -> None:
        self._blocked = None

    def cancel(self, why: str) -> None:
        """Mark the connection as lost until somebody changes something at the broker, with *why* as the reason."""
        self._lose(None, PausedDeliveryError(f"{self.peer}: {why}"))

    # -- the event loop

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
            msg = f"{self.peer} did not answer in time"
            if self._blocked is not None:
                msg = f"{msg}: it lets nobody publish ({self._blocked})"
                raise TemporaryDeliveryError(msg)
            raise TemporaryDeliveryError(msg, halve_after=1)

    def step(self, seconds: float) -> None:
        """Send and receive what is ready; wait at most *seconds* for it.

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
        """Run the event loop until *done*; return False if *deadline* passes first, or `abort` is called."""
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
        """Process what has arrived since the last use; return False if the connection is lost or was idle too long.

        After two missed heartbeats the broker regards the connection as closed.
        """
        heartbeat = self._connection.params.heartbeat
        if heartbeat and now() - self._used > 2 * heartbeat:
            return False
        with contextlib.suppress(DeliveryError):
            self.step(0)
            return True
        return False

    def abort(self) -> None:
        """Make the call that another thread is waiting in fail at once."""
        self._aborted = True
        with contextlib.suppress(Exception):
            self._loop.add_callback_threadsafe(_nothing)

    # -- closing

    def close(self, seconds: float) -> None:
        """Close the connection in order within *seconds*, or drop it."""
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
    """pika's input and output services, with name resolution in a daemon thread: pika's own thread delays the exit."""

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
        """Resolve *host* in a daemon thread, and call *on_done* in the loop."""
        request = _Resolution(self, on_done)
        try:
            found = socket.getaddrinfo(host, port, family, socktype, proto, flags | socket.AI_NUMERICHOST)
        except OSError:
            arguments = (host, port, family, socktype, proto, flags)
            try:
                threading.Thread(target=request.resolve, args=arguments, daemon=True).start()
            except RuntimeError:  # the interpreter is shutting down
                request.resolve(*arguments)
        else:
            request.finish(found)
        return request


class _Resolution(AbstractIOReference):
    def __init__(self, services: _Services, on_done: Callable[[Any], None]) -> None:
        self._services = services
        self._on_done: Callable[[Any], None] | None = on_done

    def resolve(self, *arguments: Any) -> None:
        """Resolve the name."""
        try:
            self.finish(socket.getaddrinfo(*arguments))
        except Exception as error:
            self.finish(error)

    def finish(self, found: Any) -> None:
        """Pass *found*, the addresses or the error, to the loop."""
        with contextlib.suppress(Exception):  # the loop may be closed
            self._services.add_callback_threadsafe(lambda: self._call(found))

    def _call(self, found: Any) -> None:
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done(found)

    def cancel(self) -> bool:
        """Drop the callback; return True if it was not called yet."""
        was, self._on_done = self._on_done, None
        return was is not None


def failure_of(error: BaseException, peer: str) -> DeliveryError:
    """Return the delivery error for *error*, raised or reported by pika. It holds no message and no password."""
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
    refused = _REFUSED_TLS.search(str(told))  # pika keeps only the text of the error
    if refused is not None:
        return PausedDeliveryError(f"no TLS with {peer}: {refused[1]}")
    name = told.strerror if isinstance(told, OSError) and told.strerror else type(told).__name__
    return TemporaryDeliveryError(f"no connection to {peer}: {name}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield *error* and the exceptions that it holds, at most `_MOST_CAUSES`."""
    seen: list[Any] = [error]
    for each in seen:
        yield each
        for inner in (getattr(each, "exception", None), *getattr(each, "exceptions", ()), *each.args):
            if isinstance(inner, BaseException) and len(seen) < _MOST_CAUSES:
                seen.append(inner)


def _nothing() -> None:
    """Do nothing: scheduling it wakes the loop."""


#: How many seconds the loop runs to close the socket of an aborted connection.
_LAST_SECONDS = 0.05

_MOST_CAUSES = 20

#: OpenSSL's messages if one side refuses the other's certificate or TLS, without those about the end of a connection.
_REFUSED_TLS = re.compile(r"\[SSL: (?!UNEXPECTED_EOF)(\w+)\]")

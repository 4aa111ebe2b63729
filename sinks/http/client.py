"""Sends HTTP requests by `requests`, within deadlines: `Transport`, which `HTTPSink` uses."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import requests
import urllib3.exceptions

from outfall.sinks.core.clock import now as monotonic
from outfall.sinks.errors import LOST_ATTEMPTS, DeliveryError, PausedDeliveryError, TemporaryDeliveryError
from outfall.sinks.http.deadlines import Adapter, Exchange, abandon_pools, keep_body, read_body

if TYPE_CHECKING:
    from collections.abc import Mapping

    from outfall.sinks.http.endpoint import Endpoint, Request


@dataclass(frozen=True, slots=True)
class Reply:
    """A response.

    Args:
        status: The status code.
        headers: The headers, with names in any case.
        body: The body, decompressed, or its beginning.
        whole: True if the body is complete.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool


class Transport:
    """A session of requests, for one thread at a time.

    Args:
        endpoint: The settings. Those of the connection are read now, its timeout and authentication at each request.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        #: When the current connection was opened, by the monotonic clock.
        self._connected_at = 0.0
        session = endpoint.session
        self._adapter = Adapter(endpoint.context, endpoint.socket_path) if session is None else None
        self._session = requests.Session() if session is None else session
        if self._adapter is not None:
            self._session.mount("http://", self._adapter)
            self._session.mount("https://", self._adapter)
            self._session.headers.clear()
            # The environment's proxies do not apply to Unix sockets.
            self._session.trust_env = endpoint.socket_path is None
        # None leaves the user's session its own setting.
        self._verify = None if session is not None and endpoint.verify is True else endpoint.verify
        self._proxies = dict(endpoint.proxies or {})
        #: The settings of arguments and environment, merged at the first request.
        self._settings: Any = None
        #: True after a response: then there may be an open connection, which the server may have closed meanwhile.
        self._used = False
        self._aborted = False

    def exchange(self, request: Request) -> Reply:
        """Send a request and return the response; send it once more if the server had closed the connection before.

        Raises:
            TemporaryDeliveryError: If there is no response.
            PausedDeliveryError: If such a request cannot be made.

        The errors name the peer and the cause. They contain nothing of URL, headers or body.
        """
        endpoint = self._endpoint
        if _CRASHES and sys.is_finalizing():
            msg = f"{endpoint.peer} is not asked any more: Python 3.13.0 crashes in requests when the interpreter ends"
            raise TemporaryDeliveryError(msg)
        age, timeout = endpoint.max_connection_age, endpoint.timeout
        if self._used and age is not None and self._adapter is not None and monotonic() - self._connected_at >= age:
            self._adapter.disconnect()
        exchange = Exchange(*timeout)
        if self._adapter is not None:
            self._adapter.exchange = exchange
        while True:
            stale = self._used and not exchange.fresh
            try:
                if self._adapter is None or endpoint.auth is not None:
                    reply = self._by_session(request, timeout)
                else:
                    reply = self._by_adapter(request, self._adapter, timeout[0])
            except Exception as error:
                again = stale and not (exchange.fresh or exchange.received or self._aborted) and _has_ended(error)
                failure = self._translated(error, exchange, timeout)
                _forget_frames(error)
            else:
                self._used = True
                if exchange.fresh:
                    self._connected_at = monotonic()
                if exchange.cut and self._adapter is not None:
                    self._adapter.disconnect()
                return reply
            # So `stale` is False for the second attempt, and there is no third.
            self._used = False
            if not again:
                break
        # Outside of the except block: the original error, which holds the request, must not become its context.
        try:
            raise failure
        finally:
            del failure  # its traceback refers to this frame: without this they form a cycle

    def _by_adapter(self, request: Request, adapter: Adapter, connect_seconds: float) -> Reply:
        """Send the request without the session, which would read .netrc, and the whole response of a redirect."""
        if self._settings is None:
            self._settings = self._session.merge_environment_settings(
                request.url, self._proxies, stream=True, verify=self._verify, cert=self._endpoint.cert
            )
        prepared = requests.PreparedRequest()
        prepared.prepare(method=request.method, url=request.url, headers=request.headers, data=request.body)
        response = adapter.send(prepared, timeout=(connect_seconds, adapter.exchange.left()), **self._settings)
        return Reply(response.status_code, response.headers, *read_body(response, request.limit_bytes))

    def _by_session(self, request: Request, timeout: tuple[float, float]) -> Reply:
        """Send the request by the session, with its hooks, cookies and headers."""
        session = self._session
        read: dict[int, tuple[requests.Response, Reply]] = {}

        def keep(response: requests.Response, **_: Any) -> None:
            body, whole = read_body(response, request.limit_bytes)
            read[id(response)] = response, Reply(response.status_code, response.headers, body, whole)
            keep_body(response, body)

        hooks = session.hooks.get("response") or []
        response = session.request(
            request.method,
            request.url,
            headers=request.headers,
            data=request.body,
            # Without auth, requests reads .netrc, whose credentials would replace a token.
            auth=_no_auth
            if any(name.lower() == "authorization" for name in request.headers)
            else self._endpoint.auth or session.auth or _no_auth,
            timeout=timeout,
            allow_redirects=False,
            proxies=dict(self._proxies),
            hooks={"response": [keep, *(hooks if isinstance(hooks, (list, tuple)) else [hooks])]},
            stream=True,
            verify=self._verify,
            cert=self._endpoint.cert,
        )
        if id(response) not in read:  # a hook has replaced the response
            keep(response)
        return read[id(response)][1]

    def abort(self) -> None:
        """Abort a request in another thread; a connection of the user's session is not touched."""
        self._aborted = True
        if self._adapter is not None:
            self._adapter.abort()

    def close(self) -> None:
        """Close the connections, unless the session is the user's."""
        if self._adapter is not None:
            self._session.close()
            self._adapter.disconnect()

    def abandon(self) -> None:
        """Drop the parent's connections in a forked child, without sending anything to the peer."""
        if self._adapter is None:
            abandon_pools(self._session)
        else:
            self._adapter.abandon()

    # -- translation of failures

    def _translated(self, error: Exception, exchange: Exchange, timeout: tuple[float, float]) -> DeliveryError:
        peer = self._endpoint.peer
        if isinstance(error, _UNUSABLE):
            return PausedDeliveryError(f"no request to {peer} can be made: {type(error).__name__}")
        if not isinstance(error, _TRANSPORTS):
            return TemporaryDeliveryError(f"{peer}: the request failed ({type(error).__name__})")
        root = _root(error)
        by_proxy = isinstance(error, requests.exceptions.ProxyError)
        connected = exchange.connected or (self._adapter is None and not isinstance(error, requests.ConnectTimeout))
        if isinstance(root, TimeoutError):
            seconds = timeout[1] if connected else timeout[0]
            what = f"did not answer within {seconds:g} s" if connected else f"could not be reached within {seconds:g} s"
        elif by_proxy:
            what = f"could not be reached through the proxy: {_told(root)}"
        elif connected:
            what = f"was lost: {_told(root)}"
        else:
            what = f"could not be reached: {_told(root)}"
        if _refuses_tls(root):
            return PausedDeliveryError(f"{peer} {what}")
        halve_after = None
        if connected and not by_proxy:
            halve_after = 1 if isinstance(root, TimeoutError) else LOST_ATTEMPTS
        return TemporaryDeliveryError(f"{peer} {what}", halve_after=halve_after)


#: On this version the process crashes if requests makes a response object during the interpreter's last collection.
_CRASHES = sys.version_info[:3] == (3, 13, 0)

#: Errors of the request itself: an invalid address, header or address of a proxy.
_UNUSABLE = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidHeader,
    requests.exceptions.MissingSchema,
    UnicodeError,
)


#: Errors of requests and the layers below. Other errors come from a user's session, hook or auth.
_TRANSPORTS = (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError)


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


#: Errors that wrap other errors; some of them are subclasses of OSError.
_WRAPPERS = (requests.RequestException, urllib3.exceptions.HTTPError)


def _root(error: BaseException) -> BaseException:
    """Return the original error, which requests and urllib3 have wrapped in *error*."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        by_socks = getattr(error, "socket_err", None)  # PySocks keeps the original error here
        if isinstance(error, (OSError, http.client.HTTPException)) and not (by_socks or isinstance(error, _WRAPPERS)):
            return error
        inner = next(
            (
                found
                for found in (by_socks, error.__cause__, getattr(error, "reason", None), *error.args, error.__context__)
                if isinstance(found, BaseException)
            ),
            None,
        )
        if inner is None:
            return error
        error = inner
    return error


def _forget_frames(error: BaseException | None) -> None:
    """Drop the tracebacks of *error* and its contexts: urllib3's frames refer to request, pool and the error itself."""
    while error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        error = error.__context__


def _told(error: BaseException) -> str:
    """Return the cause in the system's words only: messages of other layers may repeat the request."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not good: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or type(error).__name__
        _, alert, words = reason.partition("_ALERT_")
        # An alert comes from the peer: TLSV1_ALERT_UNKNOWN_CA is about the client's certificate.
        return f"TLS alert: {words.lower().replace('_', ' ')}" if alert else f"TLS: {reason}"
    if isinstance(error, http.client.RemoteDisconnected):
        return "it hung up without an answer"
    if isinstance(error, http.client.HTTPException):
        return f"no answer that is HTTP ({type(error).__name__})"
    if isinstance(error, socket.gaierror):
        return str(error.strerror)
    if isinstance(error, OSError) and isinstance(error.errno, int):
        return os.strerror(error.errno)
    if isinstance(error, OSError) and str(error).startswith("Tunnel connection failed: "):
        status = str(error)[26:29]
        return f"the tunnel was refused with {status}" if status.isdigit() else "the tunnel was refused"
    return type(error).__name__


def _refuses_tls(error: BaseException) -> bool:
    """Return True if one side refuses the other's certificate, or both have no version of TLS in common."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return True
    reason = getattr(error, "reason", None) if isinstance(error, ssl.SSLError) else None
    return isinstance(reason, str) and any(words in reason for words in _REFUSALS)


#: Parts of OpenSSL's names for errors that last until the configuration changes.
_REFUSALS = (
    "CERTIFICATE",
    "UNKNOWN_CA",
    "ACCESS_DENIED",
    "HANDSHAKE_FAILURE",
    "PROTOCOL_VERSION",
    "UNSUPPORTED_PROTOCOL",
    "UNRECOGNIZED_NAME",
    "INSUFFICIENT_SECURITY",
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "NO_SHARED_CIPHER",
)


def _has_ended(error: BaseException) -> bool:
    """Return True if the peer had closed the connection, as it may do after a response."""
    root = _root(error)
    return isinstance(root, (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError))

"""Mail servers on loopback: a real one, and one that follows a script."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import email
import email.policy
import socket
import threading

from aiosmtpd.smtp import SMTP, AuthResult

from tests.sinks._processes import PATIENCE_SECONDS, until


class Handler:
    """Keep the mails; answer commands as told."""

    def __init__(self) -> None:
        self.envelopes = []
        #: Replies to RCPT by address, and to the message.
        self.recipient_replies = {}
        self.message_reply = None

    async def handle_RCPT(self, server, session, envelope, address, rcpt_options):
        reply = self.recipient_replies.get(address)
        if reply is not None:
            return reply
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        if self.message_reply is not None:
            return self.message_reply
        envelope.encrypted = session.ssl is not None
        envelope.login = session.auth_data
        envelope.helo = session.host_name
        self.envelopes.append(envelope)
        return "250 2.0.0 OK"


class TokenHandler(Handler):
    """The same, where the login is by an access token, XOAUTH2, as Gmail answers.

    Args:
        token: The one that is taken for any user.
    """

    def __init__(self, token) -> None:
        super().__init__()
        self.token = token
        #: The tokens that came.
        self.tokens = []

    async def auth_XOAUTH2(self, server, args):
        said = dict(part.split("=", 1) for part in base64.b64decode(args[1]).decode().split("\1") if part)
        scheme, _, token = said["auth"].partition(" ")
        assert scheme == "Bearer"
        self.tokens.append(token)
        if token == self.token:
            return AuthResult(success=True, auth_data=said["user"])
        answer = await server.challenge_auth('{"status":"401","schemes":"bearer"}')
        assert answer == b"", answer
        return AuthResult(success=False, handled=False)


class MailServer:
    """An aiosmtpd server in a thread of its own.

    Args:
        context: For STARTTLS, or with *implicit* for TLS from the start.
        implicit: See *context*.
        password: The one that is taken for any user, or None for a server without AUTH.
        handler: What keeps the mails. Default: a `Handler`.
        options: More for `aiosmtpd.smtp.SMTP`.
    """

    def __init__(
        self, context=None, *, implicit=False, password=None, host="127.0.0.1", handler=None, **options
    ) -> None:
        self.handler = Handler() if handler is None else handler
        self.passwords = []
        #: Connections made, and those still open.
        self.connections = 0
        self.open = 0
        if password is not None:
            options["authenticator"] = self._authenticate
            self._password = password.encode()
            if context is None or implicit:
                # aiosmtpd knows of no TLS but STARTTLS.
                options["auth_require_tls"] = False
        if context is not None and not implicit:
            options["tls_context"] = context
        outer = self

        class Protocol(SMTP):
            def connection_made(self, transport):
                # STARTTLS makes it a second time.
                if not getattr(self, "seen", False):
                    self.seen = True
                    outer.connections += 1
                    outer.open += 1
                super().connection_made(transport)

            def connection_lost(self, error):
                outer.open -= 1
                super().connection_lost(error)

        # asyncio turns Nagle's algorithm off, which costs 40 ms a mail, where the protocol is named.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind((host, 0))
        self.host, self.port = self._socket.getsockname()[:2]
        self._loop = asyncio.new_event_loop()
        options = {"hostname": "mail.test", "ident": "test", **options}
        self._server = self._loop.run_until_complete(
            self._loop.create_server(
                lambda: Protocol(self.handler, loop=self._loop, **options),
                sock=self._socket,
                ssl=context if implicit else None,
            )
        )
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def _authenticate(self, server, session, envelope, mechanism, data):
        self.passwords.append(data.password)
        return AuthResult(success=data.password == self._password, handled=False, auth_data=data.login)

    @property
    def address(self):
        """Host and port."""
        return self.host, self.port

    @property
    def mails(self):
        """What has come, as messages."""
        return [email.message_from_bytes(kept.content, policy=email.policy.default) for kept in self.handler.envelopes]

    def wait_until_idle(self):
        """Wait until no connection is open."""
        until(lambda: self.open == 0)

    def close(self):
        """Hang up, and end the thread."""

        async def end():
            self._server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._loop.shutdown_asyncgens()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(PATIENCE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_SECONDS)
        self._loop.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Script:
    """A server that answers as written, and remembers what it heard.

    Args:
        replies: By the verb of a command, ``""`` for the greeting and ``"."`` for the message: bytes to answer, None to
            say nothing and wait for the client to go, or HANG_UP.
    """

    HANG_UP = object()
    USUAL = {  # noqa: RUF012 - never changed
        "": b"220 scripted\r\n",
        "EHLO": b"250-scripted\r\n250 SIZE 1000000\r\n",
        "MAIL": b"250 OK\r\n",
        "RCPT": b"250 OK\r\n",
        "DATA": b"354 go on\r\n",
        ".": b"250 OK\r\n",
        "QUIT": b"221 bye\r\n",
    }

    def __init__(self, replies=None, *, drip_seconds=0.0) -> None:
        self.replies = {**self.USUAL, **(replies or {})}
        self.drip_seconds = drip_seconds
        self.heard = []
        #: How many connections the client has ended or seen ended.
        self.ended = 0
        self._gone = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = self._socket.getsockname()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            if self._gone.is_set():
                connection.close()
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection):
        with connection, connection.makefile("rb") as lines, contextlib.suppress(OSError):
            connection.settimeout(PATIENCE_SECONDS)
            if self._answer(connection, ""):
                for line in lines:
                    self.heard.append(line)
                    verb = line.split()[0].decode().upper() if line.strip() else "?"
                    if not self._answer(connection, verb):
                        break
                    if (
                        verb == "DATA"
                        and self.replies["DATA"][:1] == b"3"
                        and not self._take_message(connection, lines)
                    ):
                        break
            if self.hung_up:
                return
            # None was the answer: wait until the client has had enough.
            lines.read()
        self.ended += 1

    def _take_message(self, connection, lines):
        if self.replies["."] is self.HANG_UP:
            self.heard.append(lines.readline())
            self.hung_up = True
            self.ended += 1
            return False
        for line in lines:
            self.heard.append(line)
            if line == b".\r\n":
                return self._answer(connection, ".")
        return False

    hung_up = False

    def _answer(self, connection, verb):
        reply = self.replies.get(verb, b"502 what?\r\n")
        if reply is self.HANG_UP:
            self.hung_up = True
            self.ended += 1
            return False
        if reply is None:
            return False
        if self.drip_seconds:
            for byte in reply:
                connection.sendall(bytes([byte]))
                if self._gone.wait(self.drip_seconds):
                    return False
        else:
            connection.sendall(reply)
        return True

    def close(self):
        """Stop listening."""
        self._gone.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

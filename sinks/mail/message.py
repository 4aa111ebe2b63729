"""Composes mails from events: subjects from templates, text for people, and the message."""

from __future__ import annotations

import base64
import datetime as dt
import re
import string
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, getaddresses, make_msgid
from typing import TYPE_CHECKING, Any

import orjson

from outfall.sinks.event.event import message_key

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Longer subjects are truncated. RFC 5322 forbids lines over 998 characters, and nobody reads that many.
MAX_SUBJECT_CHARACTERS = 250

#: The number of bytes in an encoded word. It has at most 67 characters then, and "Subject: " fits before it (RFC 2047,
#: section 2).
_WORD_BYTES = 39

#: The longest line of a body in 7 bits (RFC 5322, section 2.1.1).
_MAX_LINE_CHARACTERS = 998

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


# -- addresses


@dataclass(frozen=True, slots=True)
class Mailbox:
    """A mail address, in the form for the server and in the form for the header.

    Args:
        address: ``local@domain`` with the domain in ASCII, or a local part alone.
        header: The address with its display name, in ASCII unless the local part is not.
    """

    address: str
    header: str


def parse_addresses(given: Sequence[str], argument: str) -> list[Mailbox]:
    """Return the mailboxes in *given*; each text has one address, or several separated by commas.

    Raises:
        ValueError: If there is no address, one is invalid, or one contains a line break or other control character.
    """
    for text in given:
        if any(unicodedata.category(char) in _BREAKING for char in text):
            msg = f"{argument}={text!r} has a control character in it"
            raise ValueError(msg)
    pairs = getaddresses(list(given))
    if not pairs:
        msg = f"{argument}={list(given)!r} has no address in it"
        raise ValueError(msg)
    return [_mailbox(name, address, given, argument) for name, address in pairs]


def _mailbox(name: str, address: str, given: Sequence[str], argument: str) -> Mailbox:
    local, at, domain = address.rpartition("@") if "@" in address else (address, "", "")
    try:
        if not domain.isascii():
            domain = domain.encode("idna").decode("ascii")
        address = local + at + domain
        if not local or bool(at) != bool(domain) or re.search(r"[\s<>]", address):
            raise ValueError
        if address.isascii() and at:
            Address(addr_spec=address)
    except (ValueError, MessageError, IndexError):
        msg = f"{argument}={list(given)!r}: {address!r} is not a mail address"
        raise ValueError(msg) from None
    if not name:
        return Mailbox(address, address)
    quoted = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return Mailbox(address, f"{quoted if _is_plain(name) else encoded_words(name)} <{address}>")


# -- subjects


class SubjectTemplate:
    """A template for subjects, with fields of the event in braces.

    ``{event}``, ``{level!r}`` and ``{amount:.2f}`` are replaced as by `str.format`; ``{user.id}`` is the key
    ``user.id`` of the event, or the key ``id`` of the mapping ``user``. Attributes and indexes of objects cannot be
    used. A field that the event does not have is left as it is written, and so is a text that is not a valid format,
    such as ``"{"``.

    Args:
        text: The template.
    """

    __slots__ = ("_parts", "text")

    def __init__(self, text: str) -> None:
        self.text: str = text
        #: Literal texts, and fields as (text in the template, field, conversion, format).
        self._parts: list[str | tuple[str, str, str, str]] = []
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError:
            self._parts.append(text)
            return
        for literal, field, form, conversion in parsed:
            self._parts.append(literal)
            if field is not None:
                written = field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
                self._parts.append(("{" + written + "}", field, conversion or "", form or ""))

    def fill(self, event: Mapping[str, Any]) -> str:
        """Return the subject for *event*; never raises."""
        return "".join(part if isinstance(part, str) else _filled(event, *part) for part in self._parts)


_CONVERSIONS: dict[str, Callable[[object], str]] = {"r": repr, "s": str, "a": ascii}


def _filled(event: Mapping[str, Any], written: str, field: str, conversion: str, form: str) -> str:
    try:
        value: Any = event
        if field == "event":
            field = message_key(event)
        if field in event:
            value = event[field]
        else:
            for key in field.split("."):
                if not isinstance(value, Mapping) or key not in value:
                    return written
                value = value[key]
        if conversion in _CONVERSIONS:
            value = _CONVERSIONS[conversion](value)
        try:
            return format(value, form)
        except (ValueError, TypeError):
            return str(value)
    except Exception:
        return written


#: The categories of characters that must not occur in a header: controls, line and paragraph separators.
_BREAKING = frozenset({"Cc", "Zl", "Zp"})


def one_line(text: str) -> str:
    """Return *text* as a subject: one line without control characters, truncated if it is too long."""
    text = text[: 4 * MAX_SUBJECT_CHARACTERS].encode("utf-8", "backslashreplace").decode()
    text = "".join(" " if unicodedata.category(char) in _BREAKING else char for char in text)
    text = " ".join(text.split())
    return text if len(text) <= MAX_SUBJECT_CHARACTERS else text[: MAX_SUBJECT_CHARACTERS - 1].rstrip() + "…"


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and "=?" not in text


def encoded_words(text: str) -> str:
    """Return *text*, a single line, as the value of a header in ASCII (RFC 2047)."""
    if _is_plain(text):
        return text
    words: list[bytes] = [b""]
    for char in text:
        data = char.encode("utf-8", "backslashreplace")
        if len(words[-1]) + len(data) > _WORD_BYTES:
            words.append(b"")
        words[-1] += data
    return "\r\n ".join(f"=?utf-8?b?{base64.b64encode(word).decode()}?=" for word in words)


# -- bodies


def readable(event: Mapping[str, Any]) -> str:
    """Return *event*, decoded from JSON, as text for people: the message, the fields, the traceback."""
    fields = dict(event)
    message = _shown(fields.pop(message_key(fields), "(no message)"))
    if isinstance(fields.get("exception"), str):  # its last line holds both
        fields.pop("exception_type", None)
        fields.pop("exception_message", None)
    last = [_shown(fields.pop(key)) for key in ("stack_info", "stack", "exception") if fields.get(key)]
    width = max((len(key) for key in fields), default=0) + 2
    lines = [f"{key + ':':<{width}}{_indented(_shown(value), width)}" for key, value in fields.items()]
    text = "\n\n".join(part for part in (message, "\n".join(lines), *last) if part)
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r\n", "\n"))


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # an integer beyond 64 bits
        return str(value)


def _indented(text: str, width: int) -> str:
    return text.replace("\n", "\n" + " " * width)


def compose(
    *,
    sender: Mailbox,
    recipients: Sequence[Mailbox],
    subject: str,
    text: str,
    attachment: tuple[str, str, bytes] | None,
    seconds: float,
) -> bytes:
    """Compose a message (RFC 5322) with MIME parts (RFC 2045); return its bytes.

    Args:
        sender: The mailbox for the header From.
        recipients: The mailboxes for the header To.
        subject: The subject, a single line as `one_line` returns it.
        text: The body.
        attachment: Name, subtype of ``application/`` and content of an attachment, or None.
        seconds: The time for the header Date, in epoch seconds.
    """
    text = text.encode("utf-8", "backslashreplace").decode()
    body = EmailMessage(SMTP)
    short = all(len(line) <= _MAX_LINE_CHARACTERS for line in text.splitlines())
    body.set_content(text, cte="7bit" if text.isascii() and "\0" not in text and short else "base64")
    if attachment is not None:
        name, subtype, content = attachment
        body.add_attachment(content, maintype="application", subtype=subtype, filename=name)
    # Only a server with SMTPUTF8 accepts an address that is not ASCII.
    domain = sender.address.rpartition("@")[2] if "@" in sender.address and sender.address.isascii() else "localhost"
    head = [
        f"From: {sender.header}",
        "To: " + ",\r\n ".join(mailbox.header for mailbox in recipients),
        f"Subject: {encoded_words(subject)}",
        f"Date: {format_datetime(_moment(seconds))}",
        # With a domain: to find the host's own, make_msgid asks a name server, which may take without limit.
        f"Message-ID: {make_msgid(domain=domain)}",
        # RFC 3834: asks for no automatic answers.
        "Auto-Submitted: auto-generated",
    ]
    return ("\r\n".join(head) + "\r\n").encode() + body.as_bytes()


def _moment(seconds: float) -> dt.datetime:
    try:
        moment = dt.datetime.fromtimestamp(seconds, dt.timezone.utc)
    except (ValueError, OverflowError, OSError):
        moment = dt.datetime.min.replace(tzinfo=dt.timezone.utc)
    # RFC 5322, section 3.3: a year is 1900 or later.
    return moment if moment.year >= 1900 else dt.datetime.now(dt.timezone.utc)

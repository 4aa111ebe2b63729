"""Messages of RFC 5424: header, structured data, and their escapes. Pure functions."""

from __future__ import annotations

import json
import re
import time
from functools import lru_cache
from math import isfinite
from typing import TYPE_CHECKING, Any

from outfall.sinks.core.item import Encoded
from outfall.sinks.event.event import METADATA
from outfall.sinks.event.json import OrjsonRenderer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: The text for an unknown value.
NIL = "-"

#: The longest name of an element or a parameter (SD-NAME).
MAX_NAME_LENGTH = 32

_NOT_PRINTABLE = re.compile(r"[^!-~]")
_SD_NAME = re.compile(r'[^\x00-\x20"=\]\x7f-\U0010ffff]{1,32}')
#: Percent-encoded in names: forbidden characters, and the two that have a meaning in encoded names.
_UNFIT = re.compile(r"[^!#$&-<>-\\^-}]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
#: The same in UTF-8.
_CONTROL_BYTES = re.compile(rb"[\x00-\x1f\x7f]|\xc2[\x80-\x9f]")
_ASCII_CONTROLS = bytes([*range(0x20), 0x7F])
_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
_SCALARS = frozenset({str, float, bool, type(None)})
#: The renderer handles larger integers: some have too many digits.
_BITS = 64


def header(priority: int, when: float, origin: str, message_id: str) -> str:
    """Return the header, without a final space.

    Args:
        priority: Facility and severity in one number, 0 to 191.
        when: Seconds since the epoch.
        origin: HOSTNAME, APP-NAME and PROCID, separated by spaces; each of them, and *message_id*, is a `header_field`.
        message_id: At most 32 characters.
    """
    return f"<{priority}>1 {timestamp(when)} {origin} {message_id}"


def header_field(text: str, limit: int) -> str:
    """Return *text* for a header: printable ASCII, ``_`` for other characters, `NIL` for empty text."""
    return _NOT_PRINTABLE.sub("_", text)[:limit] or NIL


def timestamp(when: float) -> str:
    """Return *when*, seconds since the epoch, in UTC with microseconds; `NIL` unless the year has four digits."""
    try:
        seconds, microseconds = divmod(round(when * 1_000_000), 1_000_000)
        return f"{_second(seconds)}.{microseconds:06}Z"
    except (ValueError, OverflowError, OSError):
        return NIL


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    moment = time.gmtime(seconds)
    if not 0 <= moment.tm_year <= 9999:
        raise ValueError
    return (
        f"{moment.tm_year:04}-{moment.tm_mon:02}-{moment.tm_mday:02}"
        f"T{moment.tm_hour:02}:{moment.tm_min:02}:{moment.tm_sec:02}"
    )


def is_name(text: str) -> bool:
    """Return True if *text* is valid as the name of an element or a parameter."""
    return _SD_NAME.fullmatch(text) is not None


@lru_cache(maxsize=1024)
def parameter_name(name: str, attempt: int = 0) -> str:
    """Return the unique name of the parameter for the field *name*.

    A valid name stays as it is. In others invalid characters, ``%`` and ``~`` become ``%`` and two hexadecimal digits
    for each byte of their UTF-8, as in a URL. If the result is longer than 32 characters, or empty, it becomes its
    beginning, ``~`` and 12 digits of its SHA-256; `structured_data` adds the whole name in an element of its own.

    Args:
        name: Any text.
        attempt: Increased if another field has the same digits.
    """
    fitting = _UNFIT.sub(_percent_encoded, name)
    if 1 <= len(fitting) <= MAX_NAME_LENGTH and not attempt:
        return fitting
    return f"{fitting[: MAX_NAME_LENGTH - 1 - _DIGITS]}~{_digits(name, attempt)}"


_DIGITS = 12


def _digits(name: str, attempt: int) -> str:
    import hashlib

    salt = b"\xff%d" % attempt if attempt else b""  # not UTF-8, so that no other name begins with it
    return hashlib.sha256(salt + name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


def _percent_encoded(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))


def structured_data(sd_id: str, fields: Iterable[tuple[str, Any]], *, escape_controls: bool) -> str:
    """Return one element *sd_id* with *fields* as its parameters, or `NIL` if there are none.

    If names had to be abbreviated, a second element, ``names@`` and the enterprise number of *sd_id*, has the whole
    names.

    Args:
        sd_id: A name that `is_name` accepts.
        fields: Names and values; text stays as it is, other values become JSON.
        escape_controls: True to escape control characters as in JSON; False to escape only NUL.
    """
    parameters: list[str] = []
    #: The abbreviated names by their results; all other names differ anyway.
    abbreviated: dict[str, str] = {}
    for name, value in fields:
        short = parameter_name(name)
        if "~" in short:
            attempt = 0
            while abbreviated.setdefault(short, name) != name:
                attempt += 1
                short = parameter_name(name, attempt)
        kind = type(value)
        if kind is int:  # digits need no escape, and json.dumps is slow
            parameters.append(f' {short}="{value}"')
        else:
            text = escaped(value if kind is str else value_text(value), controls=escape_controls)
            parameters.append(f' {short}="{text}"')
    if not parameters:
        return NIL
    made = f"[{sd_id}{''.join(parameters)}]"
    if abbreviated:
        names = "".join(f' {short}="{escaped(name, controls=escape_controls)}"' for short, name in abbreviated.items())
        made += f"[{names_id(sd_id)}{names}]"
    return made


def names_id(sd_id: str) -> str:
    """Return the name of the element with the whole names, which is never *sd_id* itself."""
    enterprise = sd_id.partition("@")[2] or "32473"
    made = f"names@{enterprise}"[:MAX_NAME_LENGTH]
    return made if made != sd_id else f"full{made}"[:MAX_NAME_LENGTH]


def value_text(value: Any) -> str:
    """Return *value*, a JSON value, as JSON."""
    if type(value) is float:
        return repr(value) if isfinite(value) else "null"
    return _json_text(value)


_json_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def escaped(text: str, *, controls: bool) -> str:
    """Return *text* escaped for the quotes of a parameter, with all *controls* escaped, or only NUL."""
    if controls:
        # Printable text has none. This check is many times faster than the expression.
        if not text.isprintable():
            text = _CONTROL.sub(_control_escape, text)
    elif "\0" in text:
        text = text.replace("\0", "\\u0000")
    if "\\" in text:
        text = text.replace("\\", "\\\\")
    if '"' in text:
        text = text.replace('"', '\\"')
    return text.replace("]", "\\]") if "]" in text else text


def without_controls(data: bytes, *, controls: bool = True) -> bytes:
    r"""Return *data*, UTF-8, with *controls* (C0, DEL, C1), or only NUL, escaped as in JSON: ``\n``, ``\u001b``."""
    if not controls:
        return data.replace(b"\0", b"\\u0000")
    # Both checks are many times faster than the expression.
    if data.isascii() and len(data.translate(None, _ASCII_CONTROLS)) == len(data):
        return data
    if _CONTROL_BYTES.search(data) is None:
        return data
    return _CONTROL_BYTES.sub(lambda match: _control_escape(match).encode(), data)


def _control_escape(match: re.Match[str] | re.Match[bytes]) -> str:
    found = match[0]
    character = found if isinstance(found, str) else found.decode()
    return _SHORT_ESCAPES.get(character) or f"\\u{ord(character):04x}"


def plain_fields(event: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of *event* as JSON values, without metadata; never raises."""
    if type(event) is dict and "exc_info" not in event and event.keys().isdisjoint(METADATA):
        # Copied in one step of the interpreter, since another thread may change the event meanwhile.
        fields = event.copy()
        for key, value in fields.items():
            kind = type(value)
            if type(key) is not str or (kind not in _SCALARS and not (kind is int and value.bit_length() <= _BITS)):
                break
        else:
            # Encoding the message finds lone surrogates in values. In names they would be percent-encoded.
            if "".join(fields).isascii() or _is_utf8("".join(fields)):
                return fields
    return rendered_fields(event)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def rendered_fields(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of *event* as JSON values that UTF-8 can encode."""
    return Encoded(_json.render(event), 0, 0.0).event


def cut(data: bytes, limit: int) -> bytes:
    """Return at most *limit* bytes of *data*, UTF-8, without a partial character at the end."""
    if len(data) <= limit:
        return data
    end = limit
    # At most three steps, since data that is not UTF-8 need not lose more.
    while end > max(0, limit - 3) and data[end] & 0xC0 == 0x80:
        end -= 1
    return data[:end]


_json = OrjsonRenderer()

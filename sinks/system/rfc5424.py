"""Messages of RFC 5424: header, structured data, and what may stand in either. Pure functions."""

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

#: What stands for a value that is not known.
NIL = "-"

#: Longest name of an element or a parameter (SD-NAME).
MAX_NAME_LENGTH = 32

_NOT_PRINTABLE = re.compile(r"[^!-~]")
_SD_NAME = re.compile(r'[^\x00-\x20"=\]\x7f-\U0010ffff]{1,32}')
#: What is percent-encoded in a name: whatever may not stand there, and the two characters with a meaning of their own.
_UNFIT = re.compile(r"[^!#$&-<>-\\^-}]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
#: The same in UTF-8.
_CONTROL_BYTES = re.compile(rb"[\x00-\x1f\x7f]|\xc2[\x80-\x9f]")
_ASCII_CONTROLS = bytes([*range(0x20), 0x7F])
_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
_SCALARS = frozenset({str, float, bool, type(None)})
#: Larger integers are the renderer's business: some have too many digits to be shown.
_BITS = 64


def header(priority: int, when: float, origin: str, message_id: str) -> str:
    """Return the header, without a space at its end.

    Args:
        priority: Facility and severity in one number, 0 to 191.
        when: Seconds since the epoch.
        origin: HOSTNAME, APP-NAME and PROCID with spaces between; see `header_field` for each and the following.
        message_id: At most 32 characters.
    """
    return f"<{priority}>1 {timestamp(when)} {origin} {message_id}"


def header_field(text: str, limit: int) -> str:
    """Return *text* as it may stand in a header: printable ASCII, ``_`` for what is not, `NIL` for nothing."""
    return _NOT_PRINTABLE.sub("_", text)[:limit] or NIL


def timestamp(when: float) -> str:
    """Return *when*, seconds since the epoch, in UTC with microseconds; `NIL` if the year has not four digits."""
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
    """Return True if *text* may name an element or a parameter."""
    return _SD_NAME.fullmatch(text) is not None


@lru_cache(maxsize=1024)
def parameter_name(name: str, attempt: int = 0) -> str:
    """Return the name of the parameter for the field *name*: no two fields have the same.

    A name that may stand there does. Else the characters that may not, and ``%`` and ``~``, become ``%`` and two
    hexadecimal digits for each byte of their UTF-8, as in a URL. What then is longer than 32 characters, or empty,
    becomes its beginning, ``~`` and 12 digits of its SHA-256; `structured_data` says the whole name in an element of
    its own.

    Args:
        name: Any text.
        attempt: Counted up where another field has the same digits.
    """
    fitting = _UNFIT.sub(_percent_encoded, name)
    if 1 <= len(fitting) <= MAX_NAME_LENGTH and not attempt:
        return fitting
    return f"{fitting[: MAX_NAME_LENGTH - 1 - _DIGITS]}~{_digits(name, attempt)}"


_DIGITS = 12


def _digits(name: str, attempt: int) -> str:
    import hashlib

    salt = b"\xff%d" % attempt if attempt else b""  # no UTF-8, so that it is no other name's beginning
    return hashlib.sha256(salt + name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


def _percent_encoded(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))


def structured_data(sd_id: str, fields: Iterable[tuple[str, Any]], *, escape_controls: bool) -> str:
    """Return one element *sd_id* with *fields* as its parameters, or `NIL` if there are none.

    Where names had to be abbreviated, a second element, ``names@`` and the enterprise number of *sd_id*, has the whole
    name for each.

    Args:
        sd_id: What `is_name` takes.
        fields: Names and values; text goes as it is, everything else as JSON.
        escape_controls: True to write control characters as JSON does. False leaves all but NUL as they are.
    """
    parameters: list[str] = []
    #: By what they became, the names of which no more than the beginning is left; all others differ anyway.
    abbreviated: dict[str, str] = {}
    for name, value in fields:
        short = parameter_name(name)
        if "~" in short:
            attempt = 0
            while abbreviated.setdefault(short, name) != name:
                attempt += 1
                short = parameter_name(name, attempt)
        kind = type(value)
        if kind is int:  # whose digits need no escape; json.dumps takes its time over them
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
    """Return the name of the element that has the whole names, which is never *sd_id* itself."""
    enterprise = sd_id.partition("@")[2] or "32473"
    made = f"names@{enterprise}"[:MAX_NAME_LENGTH]
    return made if made != sd_id else f"full{made}"[:MAX_NAME_LENGTH]


def value_text(value: Any) -> str:
    """Return *value*, which JSON has, as JSON."""
    if type(value) is float:
        return repr(value) if isfinite(value) else "null"
    return _json_text(value)


_json_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def escaped(text: str, *, controls: bool) -> str:
    """Return *text* as it may stand between the quotes of a parameter, with all *controls* escaped or NUL alone."""
    if controls:
        # What is printable has none; this is many times faster than the expression.
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
    r"""Return *data*, UTF-8, with *controls* (C0, DEL, C1) or NUL alone as JSON writes them: ``\n``, ``\u001b``."""
    if not controls:
        return data.replace(b"\0", b"\\u0000")
    # Both are many times faster than the expression.
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
    """Return *event* as names and values that JSON has, without metadata; never raises."""
    if type(event) is dict and "exc_info" not in event and event.keys().isdisjoint(METADATA):
        # A copy, made in one step of the interpreter: another thread may change the event meanwhile.
        fields = event.copy()
        for key, value in fields.items():
            kind = type(value)
            if type(key) is not str or (kind not in _SCALARS and not (kind is int and value.bit_length() <= _BITS)):
                break
        else:
            # Of the values the message's own encoding finds a lone surrogate; a name's would be percent-encoded.
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
    """Return *event* as names and values that JSON has, all of which UTF-8 has too."""
    return Encoded(_json.render(event), 0, 0.0).event


def cut(data: bytes, limit: int) -> bytes:
    """Return at most *limit* bytes of *data*, UTF-8, ending with a whole character."""
    if len(data) <= limit:
        return data
    end = limit
    # At most three steps: what is no UTF-8 need not lose more.
    while end > max(0, limit - 3) and data[end] & 0xC0 == 0x80:
        end -= 1
    return data[:end]


_json = OrjsonRenderer()

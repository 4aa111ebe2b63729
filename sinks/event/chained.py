"""Lines that cannot be changed unnoticed: `ChainedRenderer`."""

from __future__ import annotations

import os
import re
import weakref
from binascii import b2a_hex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from outfall.sinks.event.json import OrjsonRenderer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_LEAST_KEY_BYTES: Final = 16
_BLOCK_BYTES: Final = 64

#: What the line before the first one has for a code.
NOTHING: Final = "0" * 32

_SEALED = re.compile(
    rb'\{.*"_chain":\{"id":"([0-9a-f]{16})","n":([1-9][0-9]{0,18}),"prev":"([0-9a-f]{32})",'
    rb'"key":"([A-Za-z0-9._-]{1,64})","mac":"([0-9a-f]{32})"\}\}',
    re.DOTALL,
)

#: From the comma before ``"mac"`` to the end of the line: all before it is what the code is of.
_TAIL_BYTES: Final = len(',"mac":""}}') + 32


@dataclass(frozen=True, slots=True)
class SealedLine:
    """A line of a chain, taken apart.

    Args:
        chain: What all lines of one writer have in common: random text.
        number: Its number; the line that a chain follows may be another writer's.
        previous: The code of the line that it follows; `NOTHING` for the first.
        key_id: The id of the key.
        code: Its code.
        covered: What the code is of.
    """

    chain: str
    number: int
    previous: str
    key_id: str
    code: str
    covered: bytes


def sealed_line(line: bytes) -> SealedLine | None:
    """Return *line*, which has no line break, taken apart; None if it is no line of a chain."""
    found = _SEALED.fullmatch(line)
    if found is None:
        return None
    chain, number, previous, key_id, code = (part.decode("ascii") for part in found.groups())
    return SealedLine(chain, int(number), previous, key_id, code, line[:-_TAIL_BYTES])


class ChainKey:
    """A key, ready to make codes: HMAC-SHA256 (RFC 2104), its first half, 128 bits (RFC 4868).

    Args:
        key: At least 16 bytes; text is UTF-8.

    Raises:
        ValueError: If it is shorter.
        TypeError: If it is neither bytes nor text.
    """

    __slots__ = ("_inner", "_outer", "id")

    def __init__(self, key: bytes | str) -> None:
        import hashlib  # not what every file should pay for

        if not isinstance(key, (bytes, str)):
            msg = f"key: bytes are needed, not {type(key).__name__}"
            raise TypeError(msg)
        secret = key.encode() if isinstance(key, str) else key
        if len(secret) < _LEAST_KEY_BYTES:
            msg = (
                f"key: at least {_LEAST_KEY_BYTES} bytes are needed, not {len(secret)}: secrets.token_hex(32) makes one"
            )
            raise ValueError(msg)
        #: What tells it from other keys where nobody has named it.
        self.id: str = hashlib.sha256(b"outfall.ChainedRenderer\0" + secret).hexdigest()[:8]
        if len(secret) > _BLOCK_BYTES:
            secret = hashlib.sha256(secret).digest()
        padded = secret.ljust(_BLOCK_BYTES, b"\0")
        # The states after the key's block, copied for each code: half of the work.
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))

    def code(self, data: bytes) -> bytes:
        """Return the code of *data*: 32 hexadecimal digits."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(data)
        outer.update(inner.digest())
        return b2a_hex(outer.digest()[:16])


class ChainedRenderer:
    """Render JSON lines that are numbered, and bound to one another by a key: what is changed or missing shows.

    For audit logs in files: give it to a `FileSink` or a rotating one as ``renderer``. Each line ends in a field
    ``_chain`` with its number, the code (an HMAC-SHA256) of the line before it, the key's id and its own code.
    ``outfall verify`` reads the files and names each line that is changed, missing or out of place.

    Args:
        key: The secret, at least 16 bytes; text is UTF-8. Whoever has it can make such lines.
        key_id: What to call the key in the lines: letters, digits, ``.``, ``_`` and ``-``, at most 64. Default None:
            eight digits that follow from the key.
        renderer: What makes the JSON. Default ``OrjsonRenderer()``.

    Raises:
        ValueError: If *key* is too short or *key_id* has other characters.
        TypeError: If *key* is neither bytes nor text, or *renderer* is no `OrjsonRenderer`.

    A renderer belongs to one sink, which numbers lines as it writes them; a second sink is refused. A new process goes
    on from the last line in the file, or in the newest rotated one, under a chain id of its own; so does a forked
    child, and several processes on one file each have theirs. A write that fails takes its number back. The key may
    change from one process to the next.

    Source: RFC 2104; https://www.usenix.org/legacy/publications/library/proceedings/sec98/schneier.html for logs on
    machines that may be taken over.
    """

    __slots__ = ("__weakref__", "_key", "_key_id", "_middle", "_owner", "_renderer", "state")

    def __init__(self, key: bytes | str, key_id: str | None = None, *, renderer: OrjsonRenderer | None = None) -> None:
        self._key = ChainKey(key)
        if key_id is not None and (not isinstance(key_id, str) or not re.fullmatch("[A-Za-z0-9._-]{1,64}", key_id)):
            msg = f"key_id={key_id!r} is not a name of letters, digits, '.', '_' and '-', 64 at most"
            raise ValueError(msg)
        if renderer is not None and not isinstance(renderer, OrjsonRenderer):
            msg = f"renderer={renderer!r} is no OrjsonRenderer: a chain is of JSON lines"
            raise TypeError(msg)
        self._key_id = self._key.id if key_id is None else key_id
        self._renderer = OrjsonRenderer() if renderer is None else renderer
        self._owner: weakref.ref[Any] | None = None
        self._middle = b'","key":"%b"' % self._key_id.encode()
        #: What a line's field begins with, its last number and code, as the sink sets it back after a failed write;
        #: None: to be read anew.
        self.state: tuple[bytes, int, bytes] | None = None

    def __repr__(self) -> str:
        return f"ChainedRenderer(key_id={self._key_id!r})"

    @property
    def position(self) -> int:
        """The number of the last line that this process has written; 0 before the first. Keep it elsewhere."""
        return 0 if self.state is None else self.state[1]

    @property
    def is_plain(self) -> bool:
        """Whether the usual event, before it is sealed, is what ``OrjsonRenderer()`` makes of it."""
        return self._renderer.is_plain

    def __call__(self, logger: object, name: str | None, event_dict: Mapping[str, Any]) -> bytes:
        """Return *event_dict* as one line of JSON, not yet sealed."""
        return self._renderer.render(event_dict)

    def claim(self, sink: Any) -> None:
        """Belong to *sink*, which calls this when it gets the renderer.

        Raises:
            ValueError: If it belongs to another one that is open.
        """
        owner = None if self._owner is None else self._owner()
        if owner is not None and owner is not sink and not owner.closed:
            msg = f"renderer: it numbers the lines of {owner!r}; make a ChainedRenderer for each sink"
            raise ValueError(msg)
        self._owner = weakref.ref(sink)

    def seal(self, data: bytes, last_line: Callable[[], bytes | None]) -> bytes:
        r"""Return *data*, a line with its ``\n``, numbered and bound to the one before it.

        The sink calls it under its lock, right before the write, in the order of the lines.

        Args:
            data: The line.
            last_line: Returns the last line of a chain that is in the file, or was in the one before it; None if
                there is none. Called where the state is not known.
        """
        state = self.state
        if state is None:
            before = last_line()
            found = None if before is None else sealed_line(before)
            number, told = (0, NOTHING) if found is None else (found.number, found.code)
            state = b',"_chain":{"id":"%b","n":' % os.urandom(8).hex().encode(), number, told.encode()
        head, number, previous = state
        number += 1
        end = len(data) - 1
        if data[-2:] != b"}\n" or data[:1] != b"{" or data.find(b"\n") != end:  # text that somebody else has rendered
            data = orjson.dumps({"event": data.decode("utf-8", "backslashreplace").rstrip("\r\n")}) + b"\n"
        covered = b'%b%b%d,"prev":"%b%b' % (data[:-2], head if end > 2 else head[1:], number, previous, self._middle)
        code = self._key.code(covered)
        self.state = head, number, code
        return b'%b,"mac":"%b"}}\n' % (covered, code)

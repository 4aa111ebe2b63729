"""Tamper-evident lines of JSON: `ChainedRenderer`."""

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

#: The code that stands for the line before the first one.
NOTHING: Final = "0" * 32

_SEALED = re.compile(
    rb'\{.*"_chain":\{"id":"([0-9a-f]{16})","n":([1-9][0-9]{0,18}),"prev":"([0-9a-f]{32})",'
    rb'"key":"([A-Za-z0-9._-]{1,64})","mac":"([0-9a-f]{32})"\}\}',
    re.DOTALL,
)

#: The length from the comma before ``"mac"`` to the end of the line. The code covers everything before.
_TAIL_BYTES: Final = len(',"mac":""}}') + 32


@dataclass(frozen=True, slots=True)
class SealedLine:
    """A parsed line of a chain.

    Args:
        chain: The random id of the chain, which all lines of one writer have.
        number: The number of the line.
        previous: The code of the line that it follows, which may be another writer's; `NOTHING` for the first line.
        key_id: The id of the key.
        code: The code of the line.
        covered: The bytes that the code covers.
    """

    chain: str
    number: int
    previous: str
    key_id: str
    code: str
    covered: bytes


def sealed_line(line: bytes) -> SealedLine | None:
    """Parse *line*, which has no line break; return None if it is not a line of a chain."""
    found = _SEALED.fullmatch(line)
    if found is None:
        return None
    chain, number, previous, key_id, code = (part.decode("ascii") for part in found.groups())
    return SealedLine(chain, int(number), previous, key_id, code, line[:-_TAIL_BYTES])


class ChainKey:
    """A key for codes: the first half, 128 bits (RFC 4868), of an HMAC-SHA256 (RFC 2104).

    Args:
        key: At least 16 bytes; text is encoded as UTF-8.

    Raises:
        ValueError: If *key* is shorter.
        TypeError: If *key* is neither bytes nor text.
    """

    __slots__ = ("_inner", "_outer", "id")

    def __init__(self, key: bytes | str) -> None:
        import hashlib  # only here, since most programs do not need it

        if not isinstance(key, (bytes, str)):
            msg = f"key: bytes are needed, not {type(key).__name__}"
            raise TypeError(msg)
        secret = key.encode() if isinstance(key, str) else key
        if len(secret) < _LEAST_KEY_BYTES:
            msg = (
                f"key: at least {_LEAST_KEY_BYTES} bytes are needed, not {len(secret)}: secrets.token_hex(32) makes one"
            )
            raise ValueError(msg)
        #: The default id of the key.
        self.id: str = hashlib.sha256(b"outfall.ChainedRenderer\0" + secret).hexdigest()[:8]
        if len(secret) > _BLOCK_BYTES:
            secret = hashlib.sha256(secret).digest()
        padded = secret.ljust(_BLOCK_BYTES, b"\0")
        # The states after the block with the key. Copying them for each code saves half of the work.
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))

    def code(self, data: bytes) -> bytes:
        """Return the code of *data*: 32 hexadecimal digits."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(data)
        outer.update(inner.digest())
        return b2a_hex(outer.digest()[:16])


class ChainedRenderer:
    """Render numbered lines of JSON, linked by authentication codes, so that changed and missing lines are detected.

    Use it for audit logs in files: pass it to a `FileSink` or a rotating file sink as ``renderer``. Each line ends in a
    field ``_chain`` with the line's number, the code (an HMAC-SHA256) of the previous line, the id of the key and the
    line's own code. ``outfall verify`` reads the files and prints each line that is changed, missing or out of place.

    Args:
        key: The secret, at least 16 bytes; text is encoded as UTF-8. Anyone who has it can forge lines.
        key_id: The id of the key in the lines: letters, digits, ``.``, ``_`` and ``-``, at most 64. Default None: eight
            digits computed from the key.
        renderer: The renderer of the JSON. Default ``OrjsonRenderer()``.

    Raises:
        ValueError: If *key* is too short or *key_id* has other characters.
        TypeError: If *key* is neither bytes nor text, or *renderer* is not an `OrjsonRenderer`.

    A renderer belongs to one sink, which numbers lines as it writes them; a second sink is refused. A new process
    continues from the last line in the file, or in the newest rotated file, under a chain id of its own. A forked child
    does the same, and so does each of several processes that use one file. The number of a failed write is used again.
    The key may change from one process to the next.

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
            msg = f"renderer={renderer!r} is not an OrjsonRenderer: a chain consists of JSON lines"
            raise TypeError(msg)
        self._key_id = self._key.id if key_id is None else key_id
        self._renderer = OrjsonRenderer() if renderer is None else renderer
        self._owner: weakref.ref[Any] | None = None
        self._middle = b'","key":"%b"' % self._key_id.encode()
        #: The beginning of the field, and number and code of the last line. The sink restores it after a failed write.
        #: None: read the last line from the file.
        self.state: tuple[bytes, int, bytes] | None = None

    def __repr__(self) -> str:
        return f"ChainedRenderer(key_id={self._key_id!r})"

    @property
    def position(self) -> int:
        """The number of the last line that this process has written; 0 before the first. Keep it elsewhere."""
        return 0 if self.state is None else self.state[1]

    @property
    def is_plain(self) -> bool:
        """Whether plain events, before they are sealed, are rendered as by ``OrjsonRenderer()``."""
        return self._renderer.is_plain

    def __call__(self, logger: object, name: str | None, event_dict: Mapping[str, Any]) -> bytes:
        """Return *event_dict* as one line of JSON, without the field ``_chain``."""
        return self._renderer.render(event_dict)

    def claim(self, sink: Any) -> None:
        """Make *sink* the owner of the renderer; the sink calls this when it gets the renderer.

        Raises:
            ValueError: If another open sink owns it.
        """
        owner = None if self._owner is None else self._owner()
        if owner is not None and owner is not sink and not owner.closed:
            msg = f"renderer: it numbers the lines of {owner!r}; make a ChainedRenderer for each sink"
            raise ValueError(msg)
        self._owner = weakref.ref(sink)

    def seal(self, data: bytes, last_line: Callable[[], bytes | None]) -> bytes:
        r"""Return *data* with the field ``_chain``.

        The sink calls this under its lock, right before the write, in the order of the lines.

        Args:
            data: A line, with its ``\n``.
            last_line: Returns the last sealed line of the file, or of the newest rotated file that has one; None if
                there is none. Called if the state is unknown.
        """
        state = self.state
        if state is None:
            before = last_line()
            found = None if before is None else sealed_line(before)
            number, code_before = (0, NOTHING) if found is None else (found.number, found.code)
            state = b',"_chain":{"id":"%b","n":' % os.urandom(8).hex().encode(), number, code_before.encode()
        head, number, previous = state
        number += 1
        end = len(data) - 1
        if data[-2:] != b"}\n" or data[:1] != b"{" or data.find(b"\n") != end:  # text that was rendered before
            data = orjson.dumps({"event": data.decode("utf-8", "backslashreplace").rstrip("\r\n")}) + b"\n"
        covered = b'%b%b%d,"prev":"%b%b' % (data[:-2], head if end > 2 else head[1:], number, previous, self._middle)
        code = self._key.code(covered)
        self.state = head, number, code
        return b'%b,"mac":"%b"}}\n' % (covered, code)

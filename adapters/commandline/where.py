"""Parses conditions on fields of events, for `outfall tail --where`: ``status>=500 and not user="bot"``."""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any, NoReturn

from outfall.sinks.event.event import timestamp_of
from outfall.sinks.event.levels import parse_level

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Condition = Callable[[Mapping[str, Any]], bool]

#: The grammar, for the help.
GRAMMAR = """\
conditions of --where:
  status>=500                   FIELD OPERATOR VALUE; = != < <= > >=, and ~ for "contains"
  user.name=ann                 a field within a field
  path~"/a b" and not ok=true   and, or, not, parentheses; text with blanks in quotes
  left=3, left="3"              a number, a text: each matches its own type alone; true, false, null too
  level>=warning                levels by their rank
  A field that is missing, or of another type than the value, does not match, whatever the operator."""

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | (?P<operator><=|>=|!=|==|=|<|>|~)
    | (?P<bracket>[()])
    | (?P<word>[^\s"'<>=!~()]+)
    )""",
    re.VERBOSE,
)

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "~": lambda value, wanted: isinstance(value, str) and wanted in value,
}

_CONSTANTS: dict[str, Any] = {"true": True, "false": False, "null": None}


def parse(text: str) -> Condition:
    """Parse *text*; return a function that says whether an event meets the condition.

    Raises:
        ValueError: If *text* is not a condition; the message names the place of the mistake.
    """
    parser = _Parser(text)
    condition = parser.either()
    if parser.kind:
        parser.refuse("'and' or 'or'")
    return condition


class _Parser:
    """A recursive descent parser; `kind` and `token` are those of the next token."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = self.end = 0
        self.advance()

    def advance(self) -> str:
        """Read the next token; return the one before it."""
        before = getattr(self, "token", "")
        self.at = self.end
        if not self.text[self.at :].strip():
            self.kind, self.token = "", ""
            return before
        found = _TOKEN.match(self.text, self.at)
        if found is None:
            self.refuse("a field, an operator or a value")
        self.kind, self.token = str(found.lastgroup), found[str(found.lastgroup)]
        self.end = found.end()
        return before

    def refuse(self, wanted: str) -> NoReturn:
        """Raise the error that says that *wanted* was expected here."""
        rest = self.text[self.at :].strip()
        place = f"at {rest!r}" if rest else "at its end"
        msg = f"{self.text!r} is not a condition: {place} there should be {wanted}"
        raise ValueError(msg)

    def accepts(self, word: str) -> bool:
        """Skip *word*, a word or bracket, if it is the next token; return whether it was."""
        if self.kind in ("word", "bracket") and self.token.lower() == word:
            self.advance()
            return True
        return False

    def either(self) -> Condition:
        """Parse conditions joined by ``or``."""
        parts = [self.all()]
        while self.accepts("or"):
            parts.append(self.all())
        return parts[0] if len(parts) == 1 else lambda event: any(part(event) for part in parts)

    def all(self) -> Condition:
        """Parse conditions joined by ``and``."""
        parts = [self.one()]
        while self.accepts("and"):
            parts.append(self.one())
        return parts[0] if len(parts) == 1 else lambda event: all(part(event) for part in parts)

    def one(self) -> Condition:
        """Parse one condition: after ``not``, in parentheses, or a comparison."""
        if self.accepts("not"):
            inner = self.one()
            return lambda event: not inner(event)
        if self.accepts("("):
            inner = self.either()
            if not self.accepts(")"):
                self.refuse("')'")
            return inner
        return self.comparison()

    def comparison(self) -> Condition:
        """Parse a field, an operator and a value."""
        if self.kind not in ("word", "quoted"):
            self.refuse("a field")
        field = _unquoted(self.advance())
        if self.kind != "operator":
            self.refuse("an operator: = != < <= > >= ~")
        sign = self.advance()
        if self.kind not in ("word", "quoted"):
            self.refuse("a value")
        quoted = self.kind == "quoted"
        token = self.advance()
        wanted = _unquoted(token) if quoted or sign == "~" else _value(token)
        return _comparison(field, sign, wanted)


def _unquoted(token: str) -> str:
    return re.sub(r"\\(.)", r"\1", token[1:-1]) if token[:1] in ("'", '"') else token


def _value(word: str) -> Any:
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    try:
        return int(word)
    except ValueError:
        pass
    try:
        return float(word) if re.match(r"[-+.]?[0-9]", word) else word
    except ValueError:
        return word


def _comparison(field: str, sign: str, wanted: Any) -> Condition:
    compare = _OPERATORS[sign]
    rank = _rank(wanted) if field == "level" and sign != "~" else None
    moment = timestamp_of({"timestamp": wanted}) if field == "timestamp" and isinstance(wanted, str) else None

    def holds(event: Mapping[str, Any]) -> bool:
        value = _lookup(event, field)
        if rank is not None and (number := _rank(value)) is not None:
            return compare(number, rank)
        if moment is not None and (time := timestamp_of({"timestamp": value})) is not None:
            return compare(time, moment)
        if _type(value) is not _type(wanted):
            return False
        try:
            return compare(value, wanted)
        except TypeError:  # null has no order
            return False

    return holds


def _rank(level: Any) -> float | None:
    try:
        return parse_level(level) if isinstance(level, str) else None
    except ValueError:
        return None


def _lookup(event: Mapping[str, Any], field: str) -> Any:
    """Return the value of *field*, or `_MISSING`; names may contain dots themselves."""
    if field in event:
        return event[field]
    head, dot, rest = field.partition(".")
    while dot:
        inner = event.get(head)
        if isinstance(inner, dict) and (value := _lookup(inner, rest)) is not _MISSING:
            return value
        more, dot, rest = rest.partition(".")
        head = f"{head}.{more}"
    return _MISSING


class _Missing:
    """The type of `_MISSING`, which equals no value."""


_MISSING = _Missing()


def _type(value: Any) -> type:
    """Return the type that *value* is comparable with: float for both kinds of numbers, else its own."""
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)

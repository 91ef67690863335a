"""Checks a file's contents before use: unambiguous JSON, and values of the types, ranges and names that a dataclass
declares. A `Fault` says what is wrong; the caller, who knows the file, makes a sentence of it.

    rating: Annotated[int, Between(1, 5)] | None = None
    spans: tuple[Span, ...] = field(default=(), metadata=NEEDED)

`files.py` reads the files.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

T = TypeVar("T")

NEEDED = {"needed": True}
"""Metadata of a field that the file must contain although it has a default. Other fields with a default may be absent,
so that older files stay readable."""

WIDEST = 2**63
"""Limit of whole numbers, unless their field has a smaller one."""

LONGEST_NUMBER = 400
"""Most characters of a number; Python would compute with any length."""


class Fault(ValueError):
    """An invalid value: `why`, and its `path` in the file (`take.spans[2].section`)."""

    def __init__(self, why: str, path: str = "") -> None:
        super().__init__(f"{path} {why}".strip())
        self.why, self.path = why, path

    def within(self, step: str) -> Fault:
        """The same fault with `step` prepended to its path."""
        return Fault(self.why, f"{step}{'.' if self.path and self.path[0] != '[' else ''}{self.path}")


class Newer(ValueError):
    """The file was written by a newer program: its format number."""


@dataclass(frozen=True)
class Between:
    """Least and greatest value of a number."""

    low: float
    high: float


@dataclass(frozen=True)
class Nameable:
    """Marks a text that may become a path, so it must not contain NUL."""


Plain = Annotated[str, Nameable()]


# JSON


def parse(data: bytes | str) -> Any:
    """Parse JSON, with or without a byte order mark. Raises Fault for invalid or ambiguous JSON: duplicate names, NaN,
    infinity, numbers beyond all floats, and nesting deeper than Python's own."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig", "surrogatepass")
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_float
        )
    except Fault:
        raise
    except RecursionError:
        raise Fault("it is nested too deep") from None
    except ValueError as exc:  # of the decoder too
        raise Fault(f"it is no JSON text ({exc})") from exc


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set[str]()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise Fault(f"it has two entries called {shown(twice)}")
    return found


def _constant(text: str) -> float:
    raise Fault(f"it holds {text}, which is no number")


def _integer(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise Fault(f"it holds a number of {len(text):,} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Fault(f"it holds {shown(text)}, which is too large a number")
    return value


def object_of(data: Any) -> dict[str, Any]:
    """Return `data` if it is a JSON object. Raises Fault for anything else."""
    if not isinstance(data, dict):
        raise Fault(f"it is {_kind(data)}, not an object")
    return data


def version(data: Any, newest: int) -> int:
    """Format number of a file's content. Raises Fault when there is none, Newer when it is above `newest`."""
    number = object_of(data).get("format")
    if type(number) is not int or number < 1:
        raise Fault(f"its format is {shown(number)}, and formats are numbered from 1")
    if number > newest:
        raise Newer(shown(number))
    return number


# Values


def build(kind: type[T], data: Any) -> T:
    """Build a value of `kind`, a dataclass or the type of a field of one, from the result of `parse`. Raises Fault for
    the first entry that is missing, unknown, of another type or out of range."""
    made: T = _reader(typing.cast(Any, kind))(data)
    return made


Reader = Callable[[Any], Any]


@functools.cache
def _reader(kind: Any) -> Reader:
    """The function that builds values of a type."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _ruled(_reader(inside[0]), inside[1:])
    if origin in (types.UnionType, typing.Union):
        (some,) = (part for part in inside if part is not types.NoneType)
        reader = _reader(some)
        return lambda data: None if data is None else reader(data)
    if origin is Literal:
        return _one_of({word: word for word in inside})
    if origin is tuple:
        return _tuple(inside)
    if origin is dict:
        return _mapping(_reader(inside[1]))
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind)
    if kind is Any:
        return lambda data: data
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _one_of({member.value: member for member in kind})
    return _plain(kind)


def _plain(kind: Any) -> Reader:
    words = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}[kind]

    def read(data: Any) -> Any:
        if kind is float and type(data) is int and abs(data) < WIDEST:
            return float(data)
        if type(data) is not kind or (kind is float and not math.isfinite(data)):
            raise Fault(f"is {_kind(data)}, not {words}")
        if kind is int and abs(data) >= WIDEST:
            raise Fault("is too large a number")
        return data

    return read


def _ruled(reader: Reader, rules: tuple[Any, ...]) -> Reader:
    def read(data: Any) -> Any:
        value = reader(data)
        for rule in rules:
            if isinstance(rule, Between) and not rule.low <= value <= rule.high:
                raise Fault(f"is {shown(value)}, and may be {rule.low:,} to {rule.high:,}")
            if isinstance(rule, Nameable) and "\0" in value:
                raise Fault("holds a NUL character")
        return value

    return read


def _one_of(known: dict[str, Any]) -> Reader:
    def read(data: Any) -> Any:
        if not isinstance(data, str) or data not in known:
            raise Fault(f"is {_kind(data)}, not one of {', '.join(map(str, known))}")
        return known[data]

    return read


def _tuple(inside: tuple[Any, ...]) -> Reader:
    many = len(inside) == 2 and inside[1] is Ellipsis
    readers = [_reader(part) for part in (inside[:1] if many else inside)]

    def read(data: Any) -> Any:
        if not isinstance(data, list | tuple):
            raise Fault(f"is {_kind(data)}, not a list")
        if not many and len(data) != len(readers):
            raise Fault(f"is a list of {len(data)}, not of {len(readers)}")
        found = []
        for i, item in enumerate(data):
            try:
                found.append(readers[0 if many else i](item))
            except Fault as exc:
                raise exc.within(f"[{i}]") from None
        return tuple(found)

    return read


def _mapping(reader: Reader) -> Reader:
    def read(data: Any) -> Any:
        return {name: _inside(reader, item, name) for name, item in _entries(data).items()}

    return read


def _dataclass(kind: Any) -> Reader:
    hints = typing.get_type_hints(kind, include_extras=True)
    readers = {field.name: _reader(hints[field.name]) for field in dataclasses.fields(kind)}
    missing = (dataclasses.MISSING, dataclasses.MISSING)
    needed = [
        field.name
        for field in dataclasses.fields(kind)
        if field.metadata.get("needed") or (field.default, field.default_factory) == missing
    ]

    def read(data: Any) -> Any:
        entries = _entries(data)
        if unknown := next((name for name in entries if name not in readers), None):
            raise Fault(f"has an entry that is not known: {shown(unknown)}")
        if absent := next((name for name in needed if name not in entries), None):
            raise Fault(f"has no entry called {shown(absent)}")
        return kind(**{name: _inside(readers[name], item, name) for name, item in entries.items()})

    return read


def _inside(reader: Reader, item: Any, name: str) -> Any:
    try:
        return reader(item)
    except Fault as exc:
        raise exc.within(name if name.isidentifier() else shown(name)) from None


def _entries(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise Fault(f"is {_kind(data)}, not an object")
    if odd := next((name for name in data if not isinstance(name, str)), None):
        raise Fault(f"has an entry called {_kind(odd)}")
    return data


def shown(value: Any) -> str:
    """A value for use in a sentence: short, on one line, printable."""
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _kind(data: Any) -> str:
    """The kind of a value in words; small values verbatim."""
    if isinstance(data, dict):
        return "an object"
    if isinstance(data, list | tuple):
        return "a list"
    return "nothing" if data is None else shown(data)

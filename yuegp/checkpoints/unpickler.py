"""Reads pickles as plain data, without running anything in them.

A pickle is a program for a small stack machine, and Python's own reader imports and calls whatever it names. This
reader follows the same instructions but neither imports nor calls: a function or class becomes a `Name`, and the result
of a call is up to our `build`, or else a `Foreign`. Numbers, texts, lists, tuples and dicts come as themselves; dicts
keep only their text keys, as a table of tensors has no others. `torchfile` knows what a torch file contains.

`LONGEST` and `STEPS` bound time and memory: no instruction adds more than one object or reads more than its own bytes,
and nothing that a file could have nested deeply is hashed, compared or walked.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

LONGEST = 32_000_000
"""Most bytes of a pickle; the released codec's has about half a million."""

STEPS = 2_000_000
"""Most instructions: at most some 400 MB of small objects. The released codec's pickle has about 100,000."""


class Unreadable(Exception):
    """The data are no pickle, part of one, or one beyond the limits."""


@dataclass(frozen=True, slots=True)
class Name:
    """A function or class that a pickle names, never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Foreign:
    """Placeholder for an object that only a call of `maker` could make."""

    __slots__ = ("maker",)

    def __init__(self, maker: object) -> None:
        self.maker: object = maker.maker if isinstance(maker, Foreign) else maker


Build = Callable[[Name, tuple[Any, ...]], object]
"""build(maker, arguments) returns the value for a call of `maker`."""


def unpickle(stream: BinaryIO, build: Build, persistent: Callable[[object], object]) -> object:
    """Read the pickle at `stream`, which is left behind its last byte. `persistent` resolves references to things
    outside the pickle. Raises Unreadable."""
    try:
        return _Machine(build, persistent).run(stream)
    except (ValueError, IndexError, KeyError) as exc:  # a broken instruction, an empty stack, an unknown memo
        raise Unreadable(f"{type(exc).__name__} {exc}") from exc


class _Machine:
    """The stack machine: the stack, those saved at each mark, and the memo."""

    def __init__(self, build: Build, persistent: Callable[[object], object]) -> None:
        self.build, self.persistent = build, persistent
        self.stack: list[object] = []
        self.below: list[list[object]] = []
        self.memo: dict[int, object] = {}

    def run(self, stream: BinaryIO) -> object:
        follow = {name: getattr(self, method) for name, method in _METHODS.items()}
        for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if step >= STEPS:
                raise Unreadable(f"more than {STEPS:,} instructions")
            if opcode.name in _VALUES:
                self.stack.append(argument)
            elif opcode.name != "STOP":
                follow[opcode.name](argument)
        return self.stack.pop()

    def _since_mark(self) -> list[object]:
        """Values stacked since the last mark; afterwards `self.stack` is another list."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def _make(self, maker: object, arguments: object) -> None:
        known = isinstance(maker, Name) and isinstance(arguments, tuple)
        self.stack.append(self.build(maker, arguments) if known else Foreign(maker))  # type: ignore[arg-type]

    # Values

    def _none(self, _: object) -> None:
        self.stack.append(None)

    def _newtrue(self, _: object) -> None:
        self.stack.append(True)

    def _newfalse(self, _: object) -> None:
        self.stack.append(False)

    def _empty_list(self, _: object) -> None:
        self.stack.append([])

    def _empty_tuple(self, _: object) -> None:
        self.stack.append(())

    def _empty_dict(self, _: object) -> None:
        self.stack.append({})

    def _empty_set(self, _: object) -> None:
        self.stack.append(Foreign("set"))

    def _frozenset(self, _: object) -> None:
        self._since_mark()
        self.stack.append(Foreign("frozenset"))

    def _next_buffer(self, _: object) -> None:
        self.stack.append(Foreign("buffer"))

    def _ext(self, code: object) -> None:
        self.stack.append(Foreign(f"extension {code}"))

    # Containers

    def _append(self, _: object) -> None:
        item, target = self.stack.pop(), self.stack[-1]
        if type(target) is list:
            target.append(item)

    def _appends(self, _: object) -> None:
        items, target = self._since_mark(), self.stack[-1]
        if type(target) is list:
            target.extend(items)

    def _setitem(self, _: object) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _fill(self.stack[-1], [key, value])

    def _setitems(self, _: object) -> None:
        items = self._since_mark()
        _fill(self.stack[-1], items)

    def _list(self, _: object) -> None:
        items = self._since_mark()
        self.stack.append(items)

    def _dict(self, _: object) -> None:
        items, made = self._since_mark(), dict[str, object]()
        _fill(made, items)
        self.stack.append(made)

    def _tuple(self, _: object) -> None:
        items = self._since_mark()
        self.stack.append(tuple(items))

    def _tuple1(self, _: object) -> None:
        self._last(1)

    def _tuple2(self, _: object) -> None:
        self._last(2)

    def _tuple3(self, _: object) -> None:
        self._last(3)

    def _last(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    # The stack itself

    def _mark(self, _: object) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _pop(self, _: object) -> None:
        self.stack.pop() if self.stack else self._since_mark()

    def _pop_mark(self, _: object) -> None:
        self._since_mark()

    def _dup(self, _: object) -> None:
        self.stack.append(self.stack[-1])

    def _get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def _put(self, index: int) -> None:
        if not 0 <= index < STEPS:
            raise ValueError(f"memo {index}")
        self.memo[index] = self.stack[-1]

    def _memoize(self, _: object) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _proto(self, _: object) -> None:
        """Protocol version; ignored, because all instructions are known."""

    # Instructions for which Python's reader imports or calls

    def _global(self, argument: str) -> None:
        self.stack.append(_named(argument))

    def _stack_global(self, _: object) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Name(module, name) if isinstance(module, str) and isinstance(name, str) else Foreign("name"))

    def _reduce(self, _: object) -> None:
        arguments, maker = self.stack.pop(), self.stack.pop()
        self._make(maker, arguments)

    def _newobj_ex(self, _: object) -> None:
        self.stack.pop()  # keyword arguments
        self._reduce(None)

    def _inst(self, argument: str) -> None:
        self._make(_named(argument), tuple(self._since_mark()))

    def _obj(self, _: object) -> None:
        maker, *arguments = self._since_mark()
        self._make(maker, tuple(arguments))

    def _build(self, _: object) -> None:
        """State of an object, such as the versions beside a table of tensors; dropped."""
        self.stack.pop()

    def _persid(self, reference: object) -> None:
        self.stack.append(self.persistent(reference))

    def _binpersid(self, _: object) -> None:
        self._persid(self.stack.pop())


_VALUES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
"""Instructions that put their argument on the stack."""

_SAME = {
    "BINGET": "GET", "LONG_BINGET": "GET", "BINPUT": "PUT", "LONG_BINPUT": "PUT", "NEWOBJ": "REDUCE",
    "EXT1": "EXT", "EXT2": "EXT", "EXT4": "EXT", "FRAME": "PROTO", "READONLY_BUFFER": "PROTO", "ADDITEMS": "POP_MARK",
}  # fmt: skip
"""Instructions that act here like another one."""

_METHODS = {
    code.name: "_" + _SAME.get(code.name, code.name).lower()
    for code in pickletools.opcodes
    if code.name not in _VALUES and code.name != "STOP"
}


def _named(argument: str) -> Name:
    module, _, name = argument.partition(" ")
    return Name(module, name)


def _fill(target: object, items: list[object]) -> None:
    if len(items) % 2:
        raise ValueError("a key without a value")
    if type(target) is dict:
        target.update((key, value) for key, value in zip(items[::2], items[1::2], strict=True) if type(key) is str)

"""Pickles as data: everything plain comes as it is, and nothing of what they name is imported, called or kept alive."""

from __future__ import annotations

import builtins
import functools
import io
import operator
import os
import pickle
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from yuegp.checkpoints.unpickler import STEPS, Foreign, Name, Unreadable, unpickle

PLAIN = {
    "numbers": [0, -1, 255, 65535, -(2**31), 2**80, 1.5, -0.0, True, False, None],
    "texts": ["", "é" * 300, "a\nb", "\ud800"],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "within": {"a": {"b": [[]]}, "bytes": b"\x00\xff" * 200},
}


def read(data: bytes) -> Any:
    return unpickle(io.BytesIO(data), lambda maker, arguments: Foreign(maker), lambda reference: Foreign(reference))


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_as_they_are(protocol: int) -> None:
    plain = {k: v for k, v in PLAIN.items() if protocol >= 3 or k != "within"}  # older ones call a codec for bytes
    assert read(pickle.dumps(plain, protocol)) == plain


def test_one_list_in_two_places_stays_one() -> None:
    inner: list[int] = [1]
    found = read(pickle.dumps({"a": inner, "b": inner}))
    assert found["a"] is found["b"]


def test_the_stream_is_left_behind_the_pickle() -> None:
    stream = io.BytesIO(pickle.dumps([1]) + pickle.dumps([2]) + b"rest")
    both = [unpickle(stream, lambda m, a: None, lambda r: None) for _ in range(2)]
    assert both == [[1], [2]] and stream.read() == b"rest"


class Trap:
    """Reduces to a call of something that does harm, or would."""

    def __init__(self, maker: Any, *arguments: Any, state: Any = None, items: Any = None) -> None:
        self.parts = (maker, arguments, state, items and iter(items), None)

    def __reduce__(self) -> Any:
        return self.parts

    def __call__(self) -> None:
        """Python refuses to write the call of something that cannot be called."""


def traps(mark: str) -> dict[str, object]:
    code = f"__import__('os').mkdir({mark!r})"
    return {
        "eval": Trap(eval, code),
        "exec": Trap(exec, code),
        "system": Trap(os.system, f"mkdir {mark}"),
        "mkdir": Trap(os.mkdir, mark),
        "getattr": Trap(getattr, Trap(__import__, "os"), "mkdir"),
        "chained": Trap(Trap(functools.partial, os.mkdir, mark)),
        "partial": Trap(functools.partial(os.mkdir, mark)),
        "operator": Trap(operator.methodcaller("mkdir", mark), Trap(__import__, "os")),
        "map": Trap(list, Trap(map, os.mkdir, [mark])),
        "open": Trap(open, mark, "w"),
        "state": Trap(object, state={"__class__": eval, "__setstate__": eval}),
        "items": Trap(dict, items=[[1, 2]]),
        "nested": Trap(pickle.loads, pickle.dumps(Trap(os.mkdir, mark))),
        "setattr": Trap(setattr, Trap(__import__, "builtins"), "len", None),
    }


@pytest.mark.parametrize("name", list(traps("")))
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_is_called(name: str, protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    before, length = set(sys.modules), builtins.len
    found = read(pickle.dumps({"trap": traps(str(mark))[name], "after": [1]}, protocol))
    assert isinstance(found["trap"], Foreign) and found["after"] == [1]
    assert not mark.exists() and builtins.len is length and set(sys.modules) == before


BY_HAND = {
    "INST": b"(S'touch'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch'\no.",
    "NEWOBJ": b"\x80\x02cos\nsystem\nS'touch'\n\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.",
    "EXT1": b"\x80\x02\x82\x01)R.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "PERSID": b"Pos.system\n.",
    "BINPERSID": b"cos\nsystem\nQ.",
    "BUILD": b"cos\nsystem\n}S'__call__'\nceval\neval\nsb.",
    "ADDITEMS": b"\x80\x04\x8f(cos\nsystem\n\x90.",
    "FROZENSET": b"\x80\x04(K\x01\x91.",
    "BUFFER": b"\x80\x05\x97\x98.",
    "stacked": b"\x80\x04K\x01K\x02\x93.",
}


@pytest.mark.parametrize("name", list(BY_HAND))
def test_every_instruction_that_could_make_an_object_makes_a_stand_in(name: str) -> None:
    found = read(BY_HAND[name])
    assert isinstance(found, Foreign | Name)
    assert not hasattr(found, "__dict__") and "__call__" not in dir(found)


def test_a_module_that_only_the_file_names_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sly.py").write_text("open('ran', 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert read(b"csly\nthing\n.") == Name("sly", "thing")
    assert "sly" not in sys.modules and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"", b".", b"garbage", b"K\x01", b"0.", b"t.", b"e.", b"1.", b"h\x05.", b"q\x00.", b"R.", b"b.", b"\x86.",
        b"(K\x01d.", b"}(K\x01u.", b"]K\x01s", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff.", b"\x8a\xff.",
        b"I12x\n.", b"Fx\n.", b"cbroken", b"\x8b\xff\xff\xff\x7f.",
        b"X\xff\xff\xff\x7fa.", b"\x8d" + b"\xff" * 8 + b"a.", b"\xfe.", b"cos\n",
        b"I" + b"9" * 5000 + b"\n.", b"(o.", b"p-1\n.", b"a.", b"r\xff\xff\xff\xff.",
    ],
)  # fmt: skip
def test_what_is_broken_is_said_to_be(data: bytes) -> None:
    with pytest.raises(Unreadable):
        read(data)


def peak_of(data: bytes) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(Unreadable):
            read(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_index_does_not_reserve_memory() -> None:
    """Python's own reader makes room for four thousand million entries here."""
    assert peak_of(b"K\x01r" + struct.pack("<I", 2**32 - 1) + b".") < 1_000_000


def test_a_length_does_not_reserve_memory() -> None:
    assert peak_of(b"\x8e" + struct.pack("<Q", 2**40) + b".") < 1_000_000


def test_the_number_of_instructions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yuegp.checkpoints.unpickler.STEPS", 1000)
    read(b"N" * 999 + b".")
    with pytest.raises(Unreadable, match="1,000 instructions"):
        read(b"N" * 1000 + b".")
    assert STEPS <= 5_000_000


def test_lists_within_lists_cost_no_more_than_their_instructions() -> None:
    """A thousand levels of two references to the next: 2^1000 values for whoever walks, prints, hashes or copies it."""
    deep = b"]" + b"".join(b"q\x00(h\x00h\x00l" for _ in range(1000))
    assert len(read(deep + b".")) == 2
    as_key = b"})" + b"2\x86" * 100 + b"Ns."
    assert read(as_key) == {}


def test_a_pickle_a_million_levels_deep_is_read_and_let_go() -> None:
    assert isinstance(read(b"]" + b"\x85" * 900_000 + b"."), tuple)


def test_keys_that_are_no_texts_are_left_out_and_collisions_cost_nothing() -> None:
    assert read(pickle.dumps({1: "a", ("b",): "c", "d": 5, b"e": 6})) == {"d": 5}

"""Reads files written by `torch.save` (`.pth`, `.pt`, `.bin`): their tensors, offsets and values.

`unpickler` reads the pickle in such a file and runs nothing. Only the parts of a table of tensors are understood:
OrderedDict, defaultdict, storages, torch's tensor rebuilders and parameters. Optimizers, schedulers, configurations and
everything else from the training stay unread.

Reads both layouts: the zip archive since torch 1.6 (`<name>/data.pkl`, `<name>/byteorder`, `<name>/data/<key>`) and the
sequence of pickles before it. Needs no torch, so that a file can be checked before anything loads.
Source: `torch/serialization.py` and `torch/_utils.py`, 1.0 to 2.13.
"""

from __future__ import annotations

import functools
import io
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from yuegp.checkpoints.safetensors import WIDTHS, first_five, refuse_pointer
from yuegp.errors import ModelError, said

from .unpickler import LONGEST, STEPS, Foreign, Name, Unreadable, unpickle

INSTEAD = "Get the copy that holds no pickles: python launch.py models get codec-safetensors"

DIRECTORY = 4_000_000
"""Most bytes of a zip archive's directory; the released codec's has about 200,000."""

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of files from torch before 1.6: a pickle of one number."""


class TorchTensor(NamedTuple):
    """A tensor in a file: `dtype` as safetensors writes it, `strides` in values, `start` as byte offset."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int
    big_endian: bool

    @property
    def span(self) -> int:
        """Number of values from the first to the last, including foreign ones in between."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))


def read_table(path: Path, entry: str | None = None) -> Mapping[str, TorchTensor]:
    """The table of tensors in a torch file, at the top or under `entry`, without its other entries. Takes a tenth of a
    second at most; cached until the file changes. Raises ModelError when the file cannot be read, has no such table, or
    is shorter than its tensors need."""
    refuse_pointer(path)
    try:
        stat = path.stat()
        return _read_table(path, entry, stat.st_size, stat.st_mtime_ns)
    except Unreadable as exc:
        raise ModelError(f"{path} cannot be read: {said(exc)}.", INSTEAD) from exc
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror or exc}.", INSTEAD) from exc


def read_bits(path: Path, tensor: TorchTensor) -> np.ndarray:
    """A tensor's values as unsigned integers of their width, in the tensor's shape, contiguous and in the machine's
    byte order. Raises ModelError when the file has become shorter."""
    width = WIDTHS[tensor.dtype]
    stored = np.dtype(f"{'>' if tensor.big_endian else '<'}u{width}")
    try:
        flat = np.fromfile(path, stored, tensor.span, offset=tensor.start)
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror or exc}.", INSTEAD) from exc
    if len(flat) < tensor.span:
        raise ModelError(f"{path} became shorter while it was read.", INSTEAD)
    strides = [stride * width for stride in tensor.strides]
    shaped = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides)
    return np.asarray(shaped, stored.newbyteorder("="), order="C")


@functools.lru_cache(maxsize=16)
def _read_table(path: Path, entry: str | None, size: int, changed: int) -> Mapping[str, TorchTensor]:
    with path.open("rb") as file:
        head = file.read(512)
        if head.startswith(b"PK\3\4"):
            contents = _zipped(path, file)
        elif head.startswith(MAGIC):
            contents = _in_a_row(file)
        elif head[257:262] == b"ustar":
            raise Unreadable("it is a tar archive, as torch wrote them before 2017")
        else:
            raise Unreadable(f"these {size:,} bytes are no torch file")
        table = _table(path, contents.value, entry)
        return {name: _settled(path, size, name, tensor, contents) for name, tensor in table.items()}


def _table(path: Path, value: object, entry: str | None) -> dict[str, _Loose]:
    """The tensors of the table `value`, or of the one in it under `entry`."""
    if entry is not None:
        if not isinstance(value, dict) or entry not in value:
            raise ModelError(f"{path} has no entry {entry}; it holds {_kind(value)}.", INSTEAD)
        value = value[entry]
    items = value.items() if isinstance(value, dict) else ()
    found = {name: item for name, item in items if isinstance(item, _Loose) and name.isprintable()}
    if value != {} and not found:
        raise ModelError(f"{path} holds something else than a table of tensors: {_kind(value)}.", INSTEAD)
    return found


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return said(f"the entries {first_five(list(value))}") if value else "nothing"
    return said(value.maker) if isinstance(value, Foreign) else f"one {type(value).__name__.strip('_').lower()}"


# Building from pickles


_STORAGES = {
    "FloatStorage": "F32", "DoubleStorage": "F64", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "UntypedStorage": "U8",
}  # fmt: skip
_DTYPES = {
    "float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "uint16": "U16", "uint32": "U32",
    "uint64": "U64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
"""Safetensors' names of torch's types. Complex and quantized tensors are not read."""


class _Storage(NamedTuple):
    """A reference to values: `length` of them from `first`, of the `whole` stored under the key."""

    key: str
    dtype: str
    first: int
    length: int
    whole: int


class _Loose(NamedTuple):
    """A tensor as the pickle describes it, not yet checked against the file."""

    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Builder:
    """Builds tables and tensors from a pickle's calls; everything else becomes a `Foreign`."""

    def __init__(self) -> None:
        self.storages = dict[str, _Storage]()
        self.copied = 0

    def read(self, stream: BinaryIO) -> object:
        return unpickle(stream, self.build, self.persistent)

    def build(self, maker: Name, arguments: tuple[Any, ...]) -> object:
        match maker.module, maker.name:
            case "collections", "OrderedDict" | "defaultdict":
                return self._dict(arguments if maker.name == "OrderedDict" else arguments[1:])
            case "torch", "Size":
                return arguments[0] if len(arguments) == 1 and isinstance(arguments[0], tuple) else Foreign(maker)
            case "torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state":
                return arguments[0] if arguments and isinstance(arguments[0], _Loose) else Foreign(maker)
            case "torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3":
                return _tensor(maker, arguments)
            case "torch._tensor", "_rebuild_from_type_v2":  # a tensor with attributes: function, type, arguments, state
                again = len(arguments) == 4 and isinstance(arguments[0], Name) and isinstance(arguments[2], tuple)
                if again and arguments[0] != maker:
                    return self.build(arguments[0], arguments[2])
        return Foreign(maker)

    def _dict(self, arguments: tuple[Any, ...]) -> object:
        """An empty dict, or one of the pairs that Python 2 passes at once."""
        made = dict[str, object]()
        if arguments and isinstance(arguments[0], list | tuple):
            self.copied += len(arguments[0])
            if self.copied > STEPS:
                raise Unreadable(f"more than {STEPS:,} entries")
            for pair in arguments[0]:
                if isinstance(pair, list | tuple) and len(pair) == 2 and type(pair[0]) is str:
                    made[pair[0]] = pair[1]
        return made

    def persistent(self, reference: Any) -> object:
        """Storage from `("storage", type, key, device, values)`, in old files with a view `(key, first, values)` or
        None."""
        match reference:
            case ("storage", Name() as kind, str(key), _, whole, *view):
                part = view[0] if view and isinstance(view[0], tuple) and len(view[0]) == 3 else (key, 0, whole)
                known = kind.module in ("torch", "torch.cuda", "torch.storage") and kind.name in _STORAGES
                if known and _sizes((whole, *part[1:])):
                    self.storages[key] = made = _Storage(key, _STORAGES[kind.name], part[1], part[2], whole)
                    return made
        return Foreign("storage")


def _tensor(maker: Name, arguments: tuple[Any, ...]) -> object:
    """Tensor from storage, offset, shape, strides; then gradient and hooks, and the type in version 3."""
    if len(arguments) < 4 or not isinstance(arguments[0], _Storage):
        return Foreign(maker)
    storage, offset, shape, strides = arguments[:4]
    dtype = storage.dtype
    if maker.name == "_rebuild_tensor_v3":
        named = arguments[6] if len(arguments) > 6 else None
        dtype = _DTYPES.get(named.name, "") if isinstance(named, Name) and named.module == "torch" else ""
    lists = all(isinstance(sizes, list | tuple) and _sizes(sizes) for sizes in (shape, strides, (offset,)))
    if not dtype or not lists or len(shape) != len(strides):
        return Foreign(maker)
    return _Loose(storage, dtype, offset, tuple(shape), tuple(strides))


def _sizes(values: Any) -> bool:
    return len(values) <= 64 and all(type(value) is int and 0 <= value < 2**48 for value in values)


# Locating the values


class _Contents(NamedTuple):
    """The object that a file's pickle describes, and the location of the values under each key."""

    value: object
    place: Callable[[_Storage], tuple[int, int]]
    """First byte and number of bytes of a storage. Raises Unreadable when the file has none of that key."""
    big_endian: bool


def _settled(path: Path, size: int, name: str, tensor: _Loose, contents: _Contents) -> TorchTensor:
    """Locate a tensor, after checking that it lies within the file and within its storage. Raises Unreadable."""
    start, held = contents.place(tensor.storage)
    width, stored = WIDTHS[tensor.dtype], WIDTHS[tensor.storage.dtype]
    first = tensor.storage.first * stored + tensor.offset * width
    found = TorchTensor(tensor.dtype, tensor.shape, tensor.strides, start + first, contents.big_endian)
    room = min(held, size - start, (tensor.storage.first + tensor.storage.length) * stored) - first
    if found.span * width > room or math.prod(found.shape) > found.span:
        shape = " x ".join(map(str, found.shape))
        raise Unreadable(f"it is damaged, the {shape or 'one'} values of {name} are not in it")
    return found


def _zipped(path: Path, file: BinaryIO) -> _Contents:
    """Contents of a file in the layout since torch 1.6."""
    with _Bounded(path) as limited:
        try:
            found = {item.filename: item for item in zipfile.ZipFile(limited).infolist()}
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as exc:
            raise Unreadable(f"it is damaged or cut short ({exc})") from exc
    pickles = [name for name in found if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Unreadable("it is a zip archive, but not one of torch's")
    prefix = pickles[0].removesuffix("data.pkl")

    def place(name: str) -> tuple[int, int]:
        item = found.get(prefix + name)
        if item is None:
            raise Unreadable(f"it is damaged, {name} is not in it")
        if item.compress_type != zipfile.ZIP_STORED or item.flag_bits & 1:
            raise Unreadable(f"{name} in it is packed; torch does not pack")
        file.seek(max(0, item.header_offset))
        head = file.read(30)
        if head[:4] != b"PK\3\4" or len(head) < 30:
            raise Unreadable(f"it is damaged, {name} is not where it should be")
        names = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        return item.header_offset + 30 + names, item.file_size

    def content(name: str, limit: int) -> bytes:
        start, size = place(name)
        if size > limit:
            raise Unreadable(f"{name} in it has {size:,} bytes")
        file.seek(start)
        return file.read(size)

    order = content("byteorder", 16) if prefix + "byteorder" in found else b"little"
    value = _Builder().read(io.BytesIO(content("data.pkl", LONGEST)))
    return _Contents(value, lambda storage: place(f"data/{storage.key}"), order == b"big")


class _Bounded(io.FileIO):
    """A file that refuses reads larger than an archive's directory may be."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > DIRECTORY:
            raise ValueError(f"its directory is said to have {size:,} bytes")
        return super().read(-1 if size is None else size)


def _in_a_row(file: BinaryIO) -> _Contents:
    """Contents of a file in the layout before torch 1.6: five pickles (a number, a version, the system, the object, the
    storages' keys), then for each key the count of its values (64 bits) and the values; always little endian."""
    file.seek(0)
    stream, builder = io.BytesIO(file.read(LONGEST)), _Builder()
    *_, value, keys = [builder.read(stream) for _ in range(5)]
    places, position = dict[str, tuple[int, int]](), stream.tell()
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key not in builder.storages:
            continue
        storage = builder.storages[key]
        file.seek(position)
        if int.from_bytes(file.read(8), "little") != storage.whole:
            raise Unreadable("it is damaged, its values are not where they should be")
        places[key] = position + 8, storage.whole * WIDTHS[storage.dtype]
        position = sum(places[key])

    def place(storage: _Storage) -> tuple[int, int]:
        if storage.key not in places:
            raise Unreadable("it is damaged, values are missing in it")
        return places[storage.key]

    return _Contents(value, place, False)

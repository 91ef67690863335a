"""Model folders for ExLlamaV2: checked, and single rows of their matrices unpacked without a card.

An EXL2 matrix (in, out) is stored as (names end in):

    q_weight     int32 (words, out)        the values of a column one after the other, a stream of bits, lowest first
    q_groups     int16 (2 groups,)         of each group of rows: bits per value (8, 6, 5, 4, 3 or 2), first word
    q_scale      int32 (groups, out / 8)   a scale from 0 to 15 per group and column, eight to a word, lowest first
    q_scale_max  float16 (groups,)         what a group's scales are multiples of
    q_invperm    int32 (in,)               where each input stands among the packed rows

and a value is (stored - 2^(bits - 1)) (scale + 1)^2 q_scale_max / 256. Source: `reconstruct_kernel` in q_matrix.cu and
the unpacking in quant/qdq_*.cuh of ExLlamaV2 0.3.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from yuegp.checkpoints.config import LlamaConfig, read_config
from yuegp.checkpoints.formats import Place, format_of, tensors
from yuegp.checkpoints.safetensors import safetensors_header
from yuegp.checkpoints.verify import weight_files
from yuegp.errors import ModelError

READS = ("exl2", "float16", "bfloat16", "float32")
FLOATING = ("F16", "BF16", "F32")
_NUMPY = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "I16": "<i2", "I32": "<i4"}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head"

HEAD_BITS = 8
"""Bits per weight of the output layer in the models we make: it is trimmed to the ids that can be drawn, so its size
hardly matters."""


@dataclass(frozen=True)
class ModelFolder:
    """A folder the exl2 engine can load. `kind` is the stored format of its weights."""

    path: Path
    config: LlamaConfig
    kind: str
    places: dict[str, Place]

    @property
    def layer_bytes(self) -> int:
        """Bytes on the card without embedding and output layer: packed matrices as stored, floats at 2 bytes each."""
        total = 0
        for _, (_, place) in self._layers():
            total += 2 * int(np.prod(place.shape)) if place.dtype in FLOATING else place.stop - place.start
        return total

    @property
    def stored_bytes(self) -> int:
        """Bytes of the same tensors in the files."""
        return sum(place.stop - place.start for name, (_, place) in self._layers())

    def _layers(self) -> Iterator[tuple[str, Place]]:
        ends = (EMBEDDING, HEAD + ".")
        return ((name, place) for name, place in self.places.items() if not name.startswith(ends))

    def embedding_rows(self, ids: Sequence[int]) -> Tensor:
        """Rows of the embedding, float16 (n, hidden), read from the file."""
        return self.floats(EMBEDDING, ids)

    def head_rows(self, ids: Sequence[int] | None) -> Tensor:
        """Rows of the output layer, float16 (n, hidden), unpacked if packed; None for the whole vocabulary."""
        return self.floats(HEAD + ".weight", ids)

    def floats(self, name: str, rows: Sequence[int] | None = None) -> Tensor:
        """Rows, or all, of the weight `name` as float16, unpacked if packed."""
        ids = range(self.config.tensors()[name][0]) if rows is None else rows
        if name in self.places:
            return self._rows(name, ids)
        stem = name.removesuffix("weight")
        return torch.from_numpy(unpack({part: self.read(stem + part) for part in PARTS}, ids))

    def read(self, name: str) -> np.ndarray:
        """A stored tensor, mapped from its file; bfloat16 as its bits."""
        if name not in self.places:
            raise ModelError(f"The tensor {name} is missing from {self.path}.", "Download the model again.")
        path, place = self.places[name]
        try:
            return np.memmap(path, _NUMPY[place.dtype], "r", offset=place.start, shape=place.shape)
        except (OSError, ValueError) as exc:  # gone or cut short since its header was read
            raise ModelError(
                f"{path} cannot be read at the tensor {name}: {exc}.", "Download this file again."
            ) from exc

    def _rows(self, name: str, ids: Sequence[int]) -> Tensor:
        rows = torch.from_numpy(self.read(name)[np.fromiter(ids, np.int64, len(ids))])
        if self.places[name][1].dtype == "BF16":
            rows = rows.view(torch.bfloat16)
        return rows.to(torch.float16)


def look_into(folder: Path, weights: str) -> ModelFolder:
    """Open a model folder, checked for everything that would make ExLlamaV2 compute with wrong weights. `weights` is
    the expected format: exl2, or float16 or bfloat16 for unpacked weights. Raises ModelError."""
    config = read_config(folder)
    places = tensors(folder)
    kind = format_of(folder, places)
    if kind not in READS or (kind == "exl2") != (weights == "exl2"):
        raise ModelError(
            f"The weights in {folder} are stored as {kind}; the ExLlamaV2 engine was asked to hold them as {weights}.",
            "Choose the torch engine for this folder, or an EXL2 version of the model.",
        )
    if len(places) < (stored := sum(len(safetensors_header(path)) for path in weight_files(folder))):
        raise ModelError(
            f"{stored - len(places)} tensors are stored more than once in {folder}.",
            "Keep one copy of the model in this folder: delete it and download it again.",
        )
    if config.tied or not any(name.startswith(HEAD + ".") for name in places):
        raise ModelError(
            f"The model in {folder} has no output layer of its own, which the ExLlamaV2 engine needs.",
            "Use the torch engine for this model.",
        )
    found = ModelFolder(folder, config, kind, places)
    for name, shape in config.tensors().items():
        if name in places:
            _check_stored(found, name, FLOATING, shape)
        elif name.removesuffix("weight") + PARTS[0] in places:
            _check_packed(found, name.removesuffix("weight"), *shape)
        else:
            raise ModelError(f"The tensor {name} is missing from {folder}.", "Download the model again.")
    return found


def _check_packed(folder: ModelFolder, stem: str, columns: int, rows: int) -> None:
    """Raise ModelError unless the parts of a packed matrix (in, out) fit together: on the card, a read outside its
    tensors returns garbage or ends all work."""
    columns += -columns % 32  # the converter pads to 32
    groups = _check_stored(folder, stem + "q_groups", ("I16",), None).reshape(-1).astype(int)
    words = _check_stored(folder, stem + "q_weight", ("I32",), None).shape[0]
    bits, firsts = groups[::2], groups[1::2]
    ends = np.append(firsts[1:], words)
    regular = len(groups) % 2 == 0 and firsts[:1].tolist() == [0] and np.isin(bits, (8, 6, 5, 4, 3, 2)).all()
    if (
        not regular
        or (ends <= firsts).any()
        or ((ends - firsts) % bits).any()
        or (int(((ends - firsts) // bits).sum()) * 32 != rows)
    ):
        raise _damaged(folder, stem + "q_groups", f"does not divide {rows} inputs in {words} words into groups")
    _check_stored(folder, stem + "q_weight", ("I32",), (words, columns))
    _check_stored(folder, stem + "q_scale", ("I32",), (len(bits), columns // 8))
    _check_stored(folder, stem + "q_scale_max", ("F16",), (len(bits),))
    order = _check_stored(folder, stem + "q_invperm", ("I32",), (rows,))
    if (np.sort(order) != np.arange(rows)).any():
        raise _damaged(folder, stem + "q_invperm", f"does not name each of {rows} inputs once")


def _check_stored(folder: ModelFolder, name: str, dtypes: Sequence[str], shape: tuple[int, ...] | None) -> np.ndarray:
    """The tensor, mapped, if it has one of `dtypes` and this shape (None: any shape with values), else ModelError."""
    if name in folder.places:
        place = folder.places[name][1]
        if place.dtype not in dtypes or 0 in place.shape or (shape or place.shape) != place.shape:
            wanted = f" and shape {shape}" if shape else ""
            said = f"is {place.dtype} of shape {place.shape}; {' or '.join(dtypes)}{wanted} is expected"
            raise _damaged(folder, name, said)
    return folder.read(name)


def _damaged(folder: ModelFolder, name: str, said: str) -> ModelError:
    return ModelError(f"{folder.places[name][0]}: the tensor {name} {said}.", "Download the model again.")


PARTS = ("q_weight", "q_groups", "q_scale", "q_scale_max", "q_invperm")


def unpack(parts: dict[str, np.ndarray], columns: Sequence[int]) -> np.ndarray:
    """Columns of an EXL2 matrix (in, out) as float16 (n, in), rounded as the card's own unpacking rounds."""
    ids = np.fromiter(columns, np.int64, len(columns))
    words = parts["q_weight"][:, ids].view(np.uint32)
    nibbles = parts["q_scale"][:, ids // 8].view(np.uint32) >> (4 * (ids % 8)).astype(np.uint32) & 15
    top = parts["q_scale_max"] * np.float16(1 / 256)
    groups = parts["q_groups"].reshape(-1, 2).astype(int)
    ends = [*groups[1:, 1], len(words)]
    packed = np.empty((len(parts["q_invperm"]), len(ids)), np.float16)
    row = 0
    for group, ((bits, first), end) in enumerate(zip(groups.tolist(), ends, strict=True)):
        values = unpack_bits(words[first:end], bits)
        scale = ((nibbles[group] + 1) ** 2).astype(np.float16) * top[group]
        packed[row : row + len(values)] = (values.astype(np.int16) - (1 << bits - 1)).astype(np.float16) * scale
        row += len(values)
    return np.ascontiguousarray(packed[np.asarray(parts["q_invperm"], np.int64)].T)


def unpack_bits(words: np.ndarray, bits: int) -> np.ndarray:
    """Values (32 k 32 / bits, n) of the streams of `bits`-bit values in the columns of `words` uint32 (32 k, n)."""
    streams = words.reshape(-1, bits, words.shape[1]).astype(np.uint64)  # `bits` words hold 32 values
    out = np.empty((len(streams), 32, words.shape[1]), np.uint8)
    for i in range(32):
        word, shift = divmod(i * bits, 32)
        value = streams[:, word] >> np.uint64(shift)
        if shift + bits > 32:
            value |= streams[:, word + 1] << np.uint64(32 - shift)
        out[:, i] = value & np.uint64((1 << bits) - 1)
    return out.reshape(-1, words.shape[1])

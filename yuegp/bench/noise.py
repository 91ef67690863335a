"""Weights that are noise, as files: right for speed and memory, meaningless for sound.

Drawing gigabytes of random numbers takes minutes, and nobody's speed depends on which noise it is. So files are cut
from one block that begins again at its end. What a model's folder must hold besides is here too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from yuegp.checkpoints.config import LlamaConfig
from yuegp.errors import DeviceError
from yuegp.files import free_bytes
from yuegp.units import file_size

BLOCK = 1 << 25
"""Values in a block of noise, at most."""

WIDTH = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I16": 2}
"""Bytes of a value, by safetensors' names of the types."""

TYPES = {"float32": "F32", "float16": "F16", "int32": "I32", "int16": "I16"}
"""These names by numpy's."""


class Noise:
    """A block of values as an endless run of bytes. Each tensor goes on where the last one stopped, so that no two
    layers are alike."""

    def __init__(self, block: np.ndarray) -> None:
        self._bytes, self._at = block.view(np.uint8).data, 0

    def take(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes, in pieces."""
        while size:
            piece = self._bytes[self._at : self._at + size]
            self._at = (self._at + len(piece)) % len(self._bytes)
            size -= len(piece)
            yield piece


class Part(NamedTuple):
    """A tensor to be written: its type as safetensors calls it, its shape, and what gives its bytes when it is its
    turn, so that only one tensor is in memory at a time."""

    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[memoryview]]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * WIDTH[self.dtype]


def cut(noise: Noise, dtype: str, shape: tuple[int, ...]) -> Part:
    """A tensor of noise, whose block holds values of that type."""
    size = math.prod(shape) * WIDTH[dtype]
    return Part(dtype, shape, lambda: noise.take(size))


def given(values: np.ndarray) -> Part:
    """A tensor of these values."""
    return Part(TYPES[values.dtype.name], values.shape, lambda: [values.data])


def save(path: Path, parts: Mapping[str, Part]) -> None:
    """A safetensors file, written tensor by tensor: length of the header (u64), header as JSON, values. DeviceError
    when the disk has no room for it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for name, part in parts.items():
        start, stop = stop, stop + part.size
        header[name] = {"dtype": part.dtype, "shape": list(part.shape), "data_offsets": [start, stop]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    if (free := free_bytes(path.parent)) is not None and free < stop:
        raise DeviceError(
            f"Random weights of {file_size(stop)} do not fit into {path.parent}, where {file_size(free)} are free.",
            "Make room there, or let the variable TMPDIR name a folder on a larger disk.",
        )
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, part in parts.items():
            written = sum(file.write(piece) for piece in part.pieces())
            if written != part.size:
                raise ValueError(f"{name} has {written} bytes instead of {part.size}")


def config_of(c: LlamaConfig) -> dict[str, Any]:
    """`config.json` of a model of these sizes, as both engines and transformers read it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden,
        "intermediate_size": c.ffn,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.context,
        "rope_theta": c.rope_theta,
        "rms_norm_eps": c.eps,
        "tie_word_embeddings": c.tied,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """JSON, which is YAML too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")

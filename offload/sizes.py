"""How many bytes things take on a card: weights in every format, KV caches, scratch memory, the codec. Exact integers
where the layout of a format decides, stated assumptions elsewhere. What is done with them is in `plan.py`.

Sources: EXL2's layout and scratch as its source gives them (0.3.2); our own formats as the torch engine keeps them.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from .units import MIB

PREFILL = 1024
"""Most ids that the engines prefill at once, unless they stream: what scratch memory is counted for."""

STREAMED_PREFILL = 2048

PAGE = 256
"""Both engines give a row's KV cache room in multiples of this many ids."""

EXL2_PACK = 32
"""EXL2 pads an output layer to multiples of this many ids."""

SHARED, LARGE, STEP = 20 * MIB, 10 * MIB, 2 * MIB
"""How torch gives out a card's memory: tensors of 1 to 10 MiB share stretches of 20, larger ones get whole steps of 2.
Source: `AllocatorConfig.h` of torch."""

EXL2_SPARE_ROWS = 2048
"""Rows of the embedding that it holds on the card for text, whatever text comes."""

KV_BYTES = {
    "float32": (Fraction(4), Fraction(4)),
    "fp16": (Fraction(2), Fraction(2)),
    "q8": (Fraction(17, 16), Fraction(17, 16)),
    "q6": (Fraction(17, 16), Fraction(9, 16)),
    "q4": (Fraction(9, 16), Fraction(9, 16)),
}
"""Bytes of a key and of a value; the quantized ones with a float16 scale for 32 of them. Q6 is 8-bit keys and 4-bit
values."""

CACHES = tuple(kv for kv in KV_BYTES if kv != "float32")
"""The types of the KV cache that a plan may choose on a card, the best first."""

FLOAT_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}
TORCH_BITS = {**FLOAT_BITS, "int8": 8, "bnb8": 8, "nf4": 4}


class Llama(Protocol):
    """The sizes of a Llama. `context` counts positions, `ffn` is the width of the gated MLP, `tied` says that embedding
    and output layer are one matrix, `kv_values` counts the numbers a position of one row has in the KV cache."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def ffn(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def tied(self) -> bool: ...
    @property
    def kv_values(self) -> int: ...


@dataclass(frozen=True)
class Shapes:
    """A language model as the plan sees it: its widths, and the number of ids whose logits are wanted."""

    config: Llama
    drawn: int

    @property
    def each(self) -> tuple[int, ...]:
        """Weights in each of the seven matrices of one layer."""
        c = self.config
        own, shared = c.hidden * c.heads * c.head_dim, c.hidden * c.kv_heads * c.head_dim
        return (own, shared, shared, own) + (c.hidden * c.ffn,) * 3

    @property
    def matrices(self) -> int:
        """Weights in all of them."""
        return sum(self.each)

    @property
    def outputs(self) -> int:
        """Output features of these matrices together: a scale each, in 8-bit formats."""
        c = self.config
        return (c.heads + 2 * c.kv_heads) * c.head_dim + 2 * c.hidden + 2 * c.ffn

    @property
    def norms(self) -> int:
        return (2 * self.config.layers + 1) * self.config.hidden

    @property
    def table(self) -> int:
        """Weights of the embedding; as many are in the output layer."""
        return self.config.vocab_size * self.config.hidden


@dataclass(frozen=True)
class WeightFormat:
    """A way to hold a model. `bits` per weight of its layers, scales included where the format says so (EXL2)."""

    engine: str
    weights: str
    bits: Fraction
    kv: str = "fp16"
    converted: bool = False
    """Made from weights of another format while they are loaded."""

    def __str__(self) -> str:
        name = {"exl2": f"EXL2 {float(self.bits):g} bit"}.get(self.weights, self.weights)
        return name if self.kv in ("fp16", "float32") else f"{name}, {self.kv.upper()} cache"


def blocks(sizes: Iterable[int]) -> int:
    """Bytes of a card that torch's allocator takes for tensors of these, asked for in this order: each gets the
    smallest place that is left open and large enough."""
    taken, open_places = 0, list[int]()
    for size in sizes:
        if size >= LARGE:
            taken += -(-size // STEP) * STEP
        elif size <= MIB:
            taken += size
        else:
            at = bisect.bisect_left(open_places, size)
            if at == len(open_places):
                taken += SHARED
                left = SHARED - size
            else:
                left = open_places.pop(at) - size
            if left > MIB:
                bisect.insort(open_places, left)
    return taken


def layer_bytes(shapes: Shapes, way: WeightFormat) -> int:
    """One layer's matrices as they are held."""
    return sum(sum(parts) for parts in _parts(shapes, way))


def _parts(shapes: Shapes, way: WeightFormat) -> Iterator[tuple[int, ...]]:
    """Bytes of the tensors that each matrix of a layer is held as: values, and scales where they are not counted among
    them."""
    for n in shapes.each:
        if way.weights == "exl2":
            yield (math.ceil(n * way.bits / 8),)
        elif way.weights in FLOAT_BITS:
            yield (n * FLOAT_BITS[way.weights] // 8,)
        elif way.weights == "nf4":  # a float32 scale for 64 weights
            yield (n // 2, n // 64 * 4)
        else:
            yield (n,)
    if way.weights in ("int8", "bnb8"):  # a float32 scale for each output
        yield (shapes.outputs * 4,)


def float_bytes(way: WeightFormat, device: str) -> int:
    """Bytes of the numbers that are computed with."""
    packed_on_cpu = way.weights not in FLOAT_BITS and device == "cpu"
    return 4 if way.weights == "float32" or packed_on_cpu else 2


@functools.cache
def weight_bytes(shapes: Shapes, way: WeightFormat, resident: int | None = None, device: str = "cuda") -> int:
    """Everything of a model that stays on the device while it is loaded. With `resident`, only so many of its layers
    do, and two more have a place to be streamed into."""
    config, size = shapes.config, float_bytes(way, device)
    kept = [part for parts in _parts(shapes, way) for part in parts] * (config.layers if resident is None else resident)
    body = (sum if device == "cpu" else blocks)(kept) + shapes.norms * size
    if resident is not None:
        body += min(2, config.layers - resident) * layer_bytes(shapes, way)
    head = shapes.drawn * config.hidden * size
    if way.engine == "exl2":  # the rows of the embedding and of the output layer that are in use, and the rotations
        padded = -(-shapes.drawn // EXL2_PACK) * EXL2_PACK * config.hidden * size
        spare = EXL2_SPARE_ROWS * config.hidden * size
        return body + head + padded + spare + 2 * config.context * config.head_dim * 2
    whole = 1 if config.tied or device != "cpu" else 2  # a card gets the rows of the output layer that are in use
    return body + whole * shapes.table * size + head + config.context * config.head_dim // 2 * 8


def streamed_bytes(shapes: Shapes, way: WeightFormat, resident: int | None) -> int:
    """What goes to the card for every pass, because it does not stay there."""
    return 0 if resident is None else max(0, shapes.config.layers - resident) * layer_bytes(shapes, way)


def kv_per_id(shapes: Shapes, kv: str) -> Fraction:
    """Bytes an id of one row takes in the KV cache."""
    return sum(KV_BYTES[kv], Fraction(0)) * shapes.config.kv_values / 2


def cache_bytes(shapes: Shapes, way: WeightFormat, rows: list[int]) -> int:
    """KV caches of rows with room for so many ids each, in whole pages. EXL2 unpacks a quantized cache of one layer at
    a time."""
    held = sum(-(-ids // PAGE) * PAGE for ids in rows)
    if way.engine != "exl2":
        return math.ceil(held * kv_per_id(shapes, way.kv))
    layers, width = shapes.config.layers, shapes.config.kv_values // (2 * shapes.config.layers)
    tensors = []
    for size in KV_BYTES[way.kv]:
        scales = 0 if way.kv == "fp16" else held * width // 32 * 2
        tensors += [math.ceil(held * width * size) - scales, scales] * layers
    return blocks([*tensors, *([held * width * 2] * 2 * (way.kv != "fp16"))])


def scratch_bytes(shapes: Shapes, way: WeightFormat, ids: int, past: int, rows: int = 1, device: str = "cuda") -> int:
    """Scratch of a pass over `ids` ids of each of `rows` rows, that look at `past` ids. Modelled: the residual stream
    and the gated MLP; room to unpack the largest matrix; on a CPU also one layer's attention scores."""
    c, size = shapes.config, float_bytes(way, device)
    flow = rows * ids * (6 * c.hidden + 3 * c.ffn) * size
    scores = rows * ids * c.heads * past * size if device == "cpu" else 0
    if way.weights in FLOAT_BITS:
        return flow + scores
    largest = c.hidden * c.ffn
    return flow + scores + (2 * largest if way.engine == "exl2" else 2 * largest * (4 + size))


@dataclass(frozen=True)
class Sound:
    """Bytes that turning codes into sound takes on its device."""

    weights: int
    scratch: int

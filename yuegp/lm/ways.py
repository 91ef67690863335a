"""The weight formats in which a stored model can run on a machine, and whether the fast engine is available."""

from __future__ import annotations

from fractions import Fraction

from offload.device import SMALL, Card
from offload.sizes import CACHES, FLOAT_BITS, Shapes, WeightFormat

from .exl2 import presence

BITS = {"int8": Fraction(8), "bnb8": Fraction(8), "nf4": Fraction(4)}


def held(stored: str, bits: Fraction, stage: int, card: Card | None, shapes: Shapes) -> tuple[WeightFormat, ...]:
    """The weight formats in which a model `stored` so can run on `card`, or on the processor when None: as it is, and
    quantized while loading. `bits` applies to EXL2 only."""
    if stored == "exl2":
        return tuple(WeightFormat("exl2", "exl2", bits, cache) for cache in CACHES)
    if stored not in FLOAT_BITS:
        return (WeightFormat("torch", stored, BITS[stored], "fp16" if card else "float32"),)
    if card is None:
        small = shapes.config.layers * shapes.matrices + 2 * shapes.table <= SMALL
        kind = "float32" if small else "bfloat16"
        return (WeightFormat("torch", kind, Fraction(FLOAT_BITS[kind]), "float32" if small else "fp16"),)
    half = "float16" if stage == 2 or card.capability < (8, 0) else "bfloat16"
    plain = WeightFormat("torch", half, Fraction(16))
    return (plain, *(WeightFormat("torch", name, BITS[name], converted=True) for name in ("int8", "nf4")))


def lacking(card: Card | None) -> str:
    """What the fast engine still needs here, worded as the object of "needs"; empty when nothing is missing."""
    if card is None:
        return "a graphics card"
    if (0, 0) < card.capability < presence.OLDEST_CARD:
        return f"a newer card than the {card.name}"
    return presence.lacking()

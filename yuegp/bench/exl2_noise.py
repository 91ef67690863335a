"""Random models in the EXL2 layout, without a card and without calibration: every pattern of bits is a valid matrix.
The layout is described in `yuegp/lm/exl2/format.py`.

Bits may be a fraction: matrices are then mixed, as real ones are. Scales come on top, about 0.03 bits per weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yuegp.checkpoints.config import LlamaConfig
from yuegp.errors import DeviceError
from yuegp.lm.exl2.format import EMBEDDING, HEAD, HEAD_BITS
from yuegp.lm.exl2.package import load_package

from .noise import BLOCK, Noise, Part, config_of, cut, given, save, write_json

BITS = 8.0
"""Bits per weight unless others are asked for."""

GROUP = 128
WIDTHS = (8, 6, 5, 4, 3, 2)
SCALE_RMS = float(np.sqrt(np.mean(np.arange(1, 17, dtype=float) ** 4)))
"""Root mean square of (scale + 1)^2 over scales drawn evenly from 0 to 15."""


def check_engine(device: str) -> None:
    """DeviceError where an EXL2 model could not be measured: asked before gigabytes are written for it."""
    if not device.startswith("cuda"):
        raise DeviceError(
            f"EXL2 models run on NVIDIA cards only; this measurement would run on {device}.",
            "Leave --engine exl2 out, or measure on a machine with such a card.",
        )
    load_package(torch.device(device).index or 0)


def write_random(
    folder: Path, config: LlamaConfig, bits: float = BITS, head_bits: float = HEAD_BITS, seed: int = 0
) -> Path:
    """A random model folder; its output layer has `head_bits`. The same arguments give the same bytes."""
    shapes_of, rng = config.tensors(), np.random.default_rng(seed)
    block = min(BLOCK, sum(math.prod(shape) for shape in shapes_of.values()))
    words = Noise(rng.integers(-(2**31), 2**31, block, np.int32))
    rows = Noise(rng.standard_normal(block, np.float32).astype(np.float16))
    parts: dict[str, Part] = {}
    for name, shape in shapes_of.items():
        if packed(name):
            width, std = (head_bits, 2.0) if name.startswith(HEAD) else (bits, 1.0)
            columns = shape[0] + -shape[0] % 32  # the converter pads to 32
            matrix = _matrix(shape[1], columns, width, std / math.sqrt(shape[1]), words, rng)
            parts |= {name.removesuffix("weight") + key: part for key, part in matrix.items()}
        elif name == EMBEDDING:
            parts[name] = cut(rows, "F16", shape)
        else:
            parts[name] = given((1 + 0.05 * rng.standard_normal(shape)).astype(np.float16))
    return write_folder(folder, config_of(config), parts, bits, head_bits)


def write_folder(
    folder: Path, config: Mapping[str, Any], parts: Mapping[str, Part], bits: float, head_bits: float
) -> Path:
    """An EXL2 folder of these tensors; `config` is the plain model's."""
    told = {"quant_method": "exl2", "version": "0.3.2", "bits": bits, "head_bits": head_bits}
    write_json(folder / "config.json", {**config, "quantization_config": told})
    save(folder / "output.safetensors", parts)
    return folder


def packed(name: str) -> bool:
    """Whether EXL2 packs this tensor: all matrices but the embedding."""
    return name != EMBEDDING and "norm" not in name


def groups(rows: int, bits: float) -> list[tuple[int, int]]:
    """(bits, rows) of each group of a matrix with so many inputs: whole groups of 128, the wider ones first."""
    if rows % 32 or not WIDTHS[-1] <= bits <= WIDTHS[0]:
        raise ValueError(f"{rows} inputs at {bits} bits: inputs come in 32s, bits lie between 2 and 8")
    high = min(width for width in WIDTHS if width >= bits)
    low = max(width for width in WIDTHS if width <= bits)
    sizes = [GROUP] * (rows // GROUP) + ([rows % GROUP] if rows % GROUP else [])
    wide = len(sizes) if high == low else round(len(sizes) * (bits - low) / (high - low))
    return [(high if i < wide else low, size) for i, size in enumerate(sizes)]


def group_words(plan: list[tuple[int, int]]) -> np.ndarray:
    """Bits and first word of each group, int16 (2 groups,)."""
    firsts = np.cumsum([0] + [bits * size // 32 for bits, size in plan[:-1]])
    return np.stack([[bits for bits, _ in plan], firsts], 1).astype(np.int16).ravel()


def shapes(rows: int, columns: int, bits: float) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Types and shapes of the parts of a matrix (in, out)."""
    plan = groups(rows, bits)
    return {
        "q_weight": ("I32", (sum(b * size // 32 for b, size in plan), columns)),
        "q_groups": ("I16", (2 * len(plan),)),
        "q_scale": ("I32", (len(plan), columns // 8)),
        "q_scale_max": ("F16", (len(plan),)),
        "q_invperm": ("I32", (rows,)),
    }


def _matrix(
    rows: int, columns: int, bits: float, std: float, words: Noise, rng: np.random.Generator
) -> dict[str, Part]:
    """A random matrix (in, out) of about that standard deviation, its inputs in random order."""
    plan, kinds = groups(rows, bits), shapes(rows, columns, bits)
    top = [std * math.sqrt(12) / 2**b * 256 / SCALE_RMS for b, _ in plan]
    return {
        "q_weight": cut(words, *kinds["q_weight"]),
        "q_groups": given(group_words(plan)),
        "q_scale": cut(words, *kinds["q_scale"]),
        "q_scale_max": given(np.array(top, np.float16)),
        "q_invperm": given(rng.permutation(rows).astype(np.int32)),
    }

"""Write a model folder in the EXL2 layout, without a card and without calibration.

    python tools/make_exl2.py FOLDER [--preset stage1|stage2|tiny] [--bits 8] [--head-bits 6] [--seed N]
    python tools/make_exl2.py FOLDER --from PLAIN [--bits 8] [--head-bits 6]

The first writes random weights at the real shapes (or tiny ones), for measuring speed and memory: every pattern of
bits is a valid matrix. The second rounds the weights of a plain folder to the nearest value: good enough to compare
engines, worse than a calibrated model of as many bits. Bits may be a fraction: matrices are then mixed, as real ones
are. Scales come on top, about 0.03 bits per weight. The layout is described in `yuegp/lm/exl2_format.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.make_set import LM, SIZES, lm_config
from yuegp.checkpoint import LlamaConfig, parse_config
from yuegp.lm.exl2_format import EMBEDDING, HEAD, ModelFolder

GROUP = 128
WIDTHS = (8, 6, 5, 4, 3, 2)
TYPES = {"int32": "I32", "int16": "I16", "float16": "F16"}
SCALE_RMS = float(np.sqrt(np.mean(np.arange(1, 17, dtype=float) ** 4)))
"""Root mean square of (scale + 1)^2 over scales drawn evenly from 0 to 15."""

PRESETS = {
    "stage1": SIZES["released"].stage1,
    "stage2": SIZES["released"].stage2,
    "tiny": LM(vocab=1344, hidden=128, ffn=384, layers=3, heads=4, kv_heads=2, context=2048),
}

Make = Callable[[], np.ndarray]
Plan = list[tuple[str, str, tuple[int, ...], Make]]
"""Tensors to be written: name, numpy type, shape, and what makes them, one at a time."""


def groups(rows: int, bits: float) -> list[tuple[int, int]]:
    """(bits, rows) of each group of a matrix with so many inputs: whole groups of 128, the wider ones first."""
    if rows % 32 or not WIDTHS[-1] <= bits <= WIDTHS[0]:
        raise ValueError(f"{rows} inputs at {bits} bits: inputs come in 32s, bits lie between 2 and 8")
    high = min(width for width in WIDTHS if width >= bits)
    low = max(width for width in WIDTHS if width <= bits)
    sizes = [GROUP] * (rows // GROUP) + ([rows % GROUP] if rows % GROUP else [])
    wide = len(sizes) if high == low else round(len(sizes) * (bits - low) / (high - low))
    return [(high if i < wide else low, size) for i, size in enumerate(sizes)]


def pack_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Values (32 k, n) below 2^bits as streams of 32-bit words, one stream per column: int32 (k bits, n)."""
    blocks = values.reshape(-1, 32, values.shape[1]).astype(np.uint64)
    words = np.zeros((len(blocks), bits + 1, values.shape[1]), np.uint64)
    for i in range(32):
        word, shift = divmod(i * bits, 32)
        placed = blocks[:, i] << np.uint64(shift)
        words[:, word] |= placed & np.uint64(0xFFFFFFFF)
        words[:, word + 1] |= placed >> np.uint64(32)
    return words[:, :bits].reshape(-1, values.shape[1]).astype(np.uint32).view(np.int32)


def pack_nibbles(values: np.ndarray) -> np.ndarray:
    """Values (n, 8 k) below 16, eight to a word: int32 (n, k)."""
    shifted = values.reshape(len(values), -1, 8).astype(np.uint32) << (4 * np.arange(8, dtype=np.uint32))
    return np.bitwise_or.reduce(shifted, axis=2).view(np.int32)


def shapes(rows: int, columns: int, bits: float) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Types and shapes of the parts of a matrix (in, out)."""
    plan = groups(rows, bits)
    return {
        "q_weight": ("int32", (sum(b * size // 32 for b, size in plan), columns)),
        "q_groups": ("int16", (2 * len(plan),)),
        "q_scale": ("int32", (len(plan), columns // 8)),
        "q_scale_max": ("float16", (len(plan),)),
        "q_invperm": ("int32", (rows,)),
    }


def group_words(plan: list[tuple[int, int]]) -> np.ndarray:
    """Bits and first word of each group, int16 (2 groups,)."""
    firsts = np.cumsum([0] + [bits * size // 32 for bits, size in plan[:-1]])
    return np.stack([[bits for bits, _ in plan], firsts], 1).astype(np.int16).ravel()


def random_matrix(rows: int, columns: int, bits: float, std: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A random matrix (in, out) of about that standard deviation."""
    plan, kinds = groups(rows, bits), shapes(rows, columns, bits)
    words = {name: kinds[name][1] for name in ("q_weight", "q_scale")}
    random = {name: rng.integers(-(2**31), 2**31, shape, np.int32) for name, shape in words.items()}
    top = [std * math.sqrt(12) / 2**b * 256 / SCALE_RMS for b, _ in plan]
    return random | {
        "q_groups": group_words(plan),
        "q_scale_max": np.array(top, np.float16),
        "q_invperm": rng.permutation(rows).astype(np.int32),
    }


def round_matrix(weight: np.ndarray, bits: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A matrix (out, in) rounded to the nearest values, its inputs in random order."""
    rows = weight.shape[1]
    plan, order = groups(rows, bits), rng.permutation(rows)
    packed, scales, tops, row = [], [], [], 0
    for width, size in plan:
        part = weight[:, order[row : row + size]].T.astype(np.float32)
        needed = np.abs(part).max(0) / 2 ** (width - 1)
        top = np.float16(max(float(needed.max()), 1e-6))
        scale = np.clip(np.ceil(16 * np.sqrt(needed / np.float32(top))), 1, 16)
        step = scale**2 * np.float32(top * np.float16(1 / 256))
        values = np.clip(np.round(part / step) + 2 ** (width - 1), 0, 2**width - 1)
        packed.append(pack_bits(values.astype(np.uint8), width))
        scales.append(scale.astype(np.uint8) - 1)
        tops.append(top)
        row += size
    return {
        "q_weight": np.concatenate(packed),
        "q_groups": group_words(plan),
        "q_scale": pack_nibbles(np.stack(scales)),
        "q_scale_max": np.array(tops, np.float16),
        "q_invperm": np.argsort(order).astype(np.int32),
    }


def make_random(folder: Path, lm: LM, bits: float, head_bits: float, seed: int = 0) -> Path:
    """A random EXL2 folder. The same arguments give the same bytes; only one tensor is in memory at a time."""
    config = lm_config(lm)
    plan: Plan = []
    for name, shape in parse_config(config).tensors().items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        if not packed(name):
            mean, std = (1.0, 0.05) if len(shape) == 1 else (0.0, 1.0)
            plan.append((name, "float16", shape, lambda r=rng, s=shape, m=mean, d=std: _normal(r, s, m, d)))
            continue
        matrix = (shape[1], shape[0], head_bits if name.startswith(HEAD) else bits)
        std = (2.0 if name.startswith(HEAD) else 1.0) / math.sqrt(shape[1])
        plan += _parts(name, matrix, lambda r=rng, m=matrix, d=std: random_matrix(*m, d, r))
    return _write(folder, config, plan, bits, head_bits)


def make_rounded(folder: Path, source: ModelFolder, bits: float, head_bits: float, seed: int = 0) -> Path:
    """A plain folder's model as EXL2, rounded to the nearest values."""
    config = json.loads((source.path / "config.json").read_text(encoding="utf-8"))
    plan: Plan = []
    for name, shape in source.config.tensors().items():

        def read(n: str = name) -> np.ndarray:
            return source.floats(n).numpy()

        if not packed(name):
            plan.append((name, "float16", shape, read))
            continue
        matrix = (shape[1], shape[0], head_bits if name.startswith(HEAD) else bits)
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        plan += _parts(name, matrix, lambda read=read, b=matrix[2], r=rng: round_matrix(read(), b, r))
    return _write(folder, config, plan, bits, head_bits)


def make_plain(folder: Path, source: ModelFolder) -> Path:
    """An EXL2 folder's model as a plain one in float16: what another engine needs to be compared with it."""
    config = json.loads((source.path / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    plan = [
        (name, "float16", shape, lambda n=name: source.floats(n).numpy()) for name, shape in plain_shapes(source.config)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    _save(folder / "model.safetensors", plan)
    return folder


def plain_shapes(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from config.tensors().items()


def packed(name: str) -> bool:
    """Whether EXL2 packs this tensor: all matrices but the embedding."""
    return name != EMBEDDING and "norm" not in name


def _normal(rng: np.random.Generator, shape: tuple[int, ...], mean: float, std: float) -> np.ndarray:
    return (rng.standard_normal(shape, np.float32) * np.float32(std) + np.float32(mean)).astype(np.float16)


def _parts(name: str, matrix: tuple[int, int, float], make: Callable[[], dict[str, np.ndarray]]) -> Plan:
    """The parts of one packed matrix; it is made when its first part is written and dropped after the last."""
    made: dict[str, np.ndarray] = {}

    def part(key: str) -> np.ndarray:
        if not made:
            made.update(make())
        return made.pop(key)

    stem = name.removesuffix("weight")
    return [(stem + key, kind, shape, lambda k=key: part(k)) for key, (kind, shape) in shapes(*matrix).items()]


def _write(folder: Path, config: dict[str, Any], plan: Plan, bits: float, head_bits: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    told = {"quant_method": "exl2", "version": "0.3.2", "bits": bits, "head_bits": head_bits}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": told}, indent=2), encoding="utf-8")
    _save(folder / "output.safetensors", plan)
    return folder


def _save(path: Path, plan: Plan) -> None:
    """A safetensors file, written tensor by tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for name, kind, shape, _ in plan:
        start, stop = stop, stop + math.prod(shape) * np.dtype(kind).itemsize
        header[name] = {"dtype": TYPES[kind], "shape": list(shape), "data_offsets": [start, stop]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, kind, shape, make in plan:
            values = np.ascontiguousarray(make(), kind)
            if values.shape != shape:
                raise ValueError(f"{name} has shape {values.shape} instead of {shape}")
            file.write(values.tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a model folder in the EXL2 layout.")
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    parser.add_argument("--preset", choices=list(PRESETS), default="tiny", help="shapes of a random model")
    parser.add_argument("--from", dest="source", type=Path, help="a plain folder whose weights are to be rounded")
    parser.add_argument("--bits", type=float, default=8.0)
    parser.add_argument("--head-bits", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.folder.exists() and any(args.folder.iterdir()):
        parser.error(f"{args.folder} is not empty")
    if args.source:
        from yuegp.lm.exl2_format import look_into

        make_rounded(args.folder, look_into(args.source, "float16"), args.bits, args.head_bits, args.seed)
    else:
        make_random(args.folder, PRESETS[args.preset], args.bits, args.head_bits, args.seed)
    written = sum(f.stat().st_size for f in args.folder.iterdir())
    print(f"{args.folder}: {written:,} bytes")


if __name__ == "__main__":
    main()

"""Write a model folder in the EXL2 layout, without a card and without calibration.

    python tools/make_exl2.py FOLDER [--preset stage1|stage2|tiny] [--bits 8] [--head-bits 8] [--seed N]
    python tools/make_exl2.py FOLDER --from PLAIN [--bits 8] [--head-bits 8]

The first writes random weights at the real shapes (or tiny ones), as `bench --engine exl2` does for itself. The second
rounds the weights of a plain folder to the nearest value: good enough to compare engines, worse than a calibrated model
of as many bits. Bits may be a fraction. The layout is described in `yuegp/lm/exl2/format.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.make_set import LM, SIZES, lm_config
from yuegp.bench.exl2_noise import BITS, group_words, groups, packed, shapes, write_folder, write_random
from yuegp.bench.noise import Part, save, write_json
from yuegp.checkpoints.config import parse_config
from yuegp.lm.exl2.format import HEAD, HEAD_BITS, ModelFolder

PRESETS = {
    "stage1": SIZES["released"].stage1,
    "stage2": SIZES["released"].stage2,
    "tiny": LM(vocab=1344, hidden=128, ffn=384, layers=3, heads=4, kv_heads=2, context=2048),
}


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
    """A random EXL2 folder."""
    return write_random(folder, parse_config(lm_config(lm)), bits, head_bits, seed)


def make_rounded(folder: Path, source: ModelFolder, bits: float, head_bits: float, seed: int = 0) -> Path:
    """A plain folder's model as EXL2, rounded to the nearest values. Only one tensor is in memory at a time."""
    parts: dict[str, Part] = {}
    for name, shape in source.config.tensors().items():
        if not packed(name):
            parts[name] = _copied(source, name, shape)
            continue
        width = head_bits if name.startswith(HEAD) else bits
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        make = _once(lambda n=name, w=width, r=rng: round_matrix(source.floats(n).numpy(), w, r))
        for key, (kind, size) in shapes(shape[1], shape[0], width).items():
            parts[name.removesuffix("weight") + key] = Part(kind, size, lambda m=make, k=key: [m(k).data])
    return write_folder(folder, _config(source), parts, bits, head_bits)


def make_plain(folder: Path, source: ModelFolder) -> Path:
    """An EXL2 folder's model as a plain one in float16, so that another engine can be compared with it."""
    config = _config(source)
    config.pop("quantization_config", None)
    write_json(folder / "config.json", config)
    shapes_of = source.config.tensors()
    save(folder / "model.safetensors", {name: _copied(source, name, shape) for name, shape in shapes_of.items()})
    return folder


def _config(source: ModelFolder) -> dict:
    return json.loads((source.path / "config.json").read_text(encoding="utf-8"))


def _copied(source: ModelFolder, name: str, shape: tuple[int, ...]) -> Part:
    """A tensor of `source`, unpacked."""
    return Part("F16", shape, lambda: [source.floats(name).numpy().data])


def _once(make: Callable[[], dict[str, np.ndarray]]) -> Callable[[str], np.ndarray]:
    """A function that returns the parts of one matrix by name, made at the first call and each dropped once
    returned."""
    made: dict[str, np.ndarray] = {}

    def part(key: str) -> np.ndarray:
        if not made:
            made.update(make())
        return made.pop(key)

    return part


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a model folder in the EXL2 layout.")
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    parser.add_argument("--preset", choices=list(PRESETS), default="tiny", help="shapes of a random model")
    parser.add_argument("--from", dest="source", type=Path, help="a plain folder whose weights are to be rounded")
    parser.add_argument("--bits", type=float, default=BITS)
    parser.add_argument("--head-bits", type=float, default=float(HEAD_BITS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.folder.exists() and any(args.folder.iterdir()):
        parser.error(f"{args.folder} is not empty")
    if args.source:
        from yuegp.lm.exl2.format import look_into

        make_rounded(args.folder, look_into(args.source, "float16"), args.bits, args.head_bits, args.seed)
    else:
        make_random(args.folder, PRESETS[args.preset], args.bits, args.head_bits, args.seed)
    written = sum(f.stat().st_size for f in args.folder.iterdir())
    print(f"{args.folder}: {written:,} bytes")


if __name__ == "__main__":
    main()

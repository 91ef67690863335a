"""Verifies model files: safetensors headers, tensors against `config.json`, NaN.

Reads headers and configurations, and weights only to find NaN. `lm/` and `codec/` load weights; `codec.check_codec`
checks a codec folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from yuegp.checked import Fault, Plain, build, object_of, shown
from yuegp.checkpoints.safetensors import (
    AGAIN,
    SCAN_LIMIT,
    StoredTensor,
    first_five,
    refuse_pointer,
    safetensors_header,
    scan_file,
)
from yuegp.errors import ModelError
from yuegp.files import read_json
from yuegp.progress import Progress

from .config import LlamaConfig, read_config, read_entries

# Language models


@dataclass(frozen=True)
class LanguageModel:
    """The language model in a folder: sizes, stored format (one of `registry.STORED`), and bits per weight if the
    format leaves a choice (EXL2)."""

    config: LlamaConfig
    stored: str
    bits: float | None = None


def language_model(folder: Path) -> LanguageModel:
    """The language model in `folder`, from its configuration and the headers of its files. Raises ModelError when there
    is none or it is incomplete."""
    config = read_config(folder)
    return LanguageModel(config, check_tensors(folder, config), exl2_bits(folder))


def check_tensors(folder: Path, config: LlamaConfig, scan: Progress | None = None) -> str:
    """Format of the weights, after checking that the files are whole and hold exactly the configuration's tensors in
    their shapes. Searches small files for NaN, with `scan` all of them. Raises ModelError."""
    found: dict[str, StoredTensor] = {}
    headers = {path: safetensors_header(path) for path in weight_files(folder)}
    total, done = sum(path.stat().st_size for path in headers), 0
    for path, header in headers.items():
        found |= header
        if scan or path.stat().st_size <= SCAN_LIMIT:
            scan_file(path, header, scan and _part_of(scan, done, total))
        done += path.stat().st_size
    wanted, kinds, known = config.tensors(), set[str](), set[str]()
    missing, unreadable, wrong = list[str](), list[str](), list[str]()
    for name, shape in wanted.items():
        stored = _stored_as(name, found)
        if stored is None and name in found:
            unreadable.append(f"{name} ({found[name].dtype})")
        elif stored is None:
            missing.append(name)
        if stored is None:
            continue
        kind, parts = stored
        known.update(parts)
        if len(shape) == 2 and name != "model.embed_tokens.weight":
            kinds.add(kind)
        if complaint := _wrong_shape(kind, name, shape, found):
            wrong.append(complaint)
    extra = [name for name in found if name not in known and not name.endswith("rotary_emb.inv_freq")]
    if missing:
        others = f" It holds {len(extra)} others: {first_five(extra)}." if extra else ""
        raise ModelError(
            f"The weights in {folder} lack {len(missing)} of {len(wanted)} tensors: {first_five(missing)}.{others}",
            "Download the model again; a file is missing, belongs to another model, or is of a kind yuegp cannot read.",
        )
    if unreadable:
        raise ModelError(
            f"The weights in {folder} are quantized in a way that yuegp does not read: {first_five(unreadable)}.",
            "Use the released model, or an EXL2, nf4 or 8-bit copy of it.",
        )
    if wrong:
        raise ModelError(
            f"The weights in {folder} do not have the shapes its config.json promises: {first_five(wrong)}.",
            "config.json and the weights belong to different models; download both again.",
        )
    if extra:
        raise ModelError(
            f"The weights in {folder} hold {len(extra)} tensors that a YuE model does not have: {first_five(extra)}.",
            "The files are of another model or of several; download the model into an empty folder.",
        )
    packed = kinds - set(_FLOATS.values())
    return min(packed or kinds)


def _part_of(progress: Progress, start: int, total: int) -> Progress:
    """A progress callback for one file that reports its part of all files."""
    return lambda name, done, _: progress(name, start + done, total)


_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

_PARTS = {
    "exl2": ({".q_weight", ".q_scale", ".q_scale_max", ".q_groups"}, {".q_invperm", ".q_perm", ".bias"}),
    "nf4": (
        {".weight", ".weight.absmax", ".weight.quant_map", ".weight.quant_state.bitsandbytes__nf4"},
        {".weight.nested_absmax", ".weight.nested_quant_map"},
    ),
    "bnb8": ({".weight", ".SCB"}, {".weight_format"}),
    "int8": ({".weight", ".weight.scale"}, set[str]()),
}
"""The tensors of one matrix in each packed format: needed and optional. Sources: exllamav2's writer, bitsandbytes'
state dicts, `lm/weights/int8.py`."""


def _stored_as(name: str, found: Mapping[str, StoredTensor]) -> tuple[str, set[str]] | None:
    """Stored format of the tensor `name` and the names of its parts; None when it is missing or unreadable."""
    stem = name.removesuffix(".weight")
    for kind, (needed, possible) in _PARTS.items():
        if all(stem + part in found for part in needed):
            return kind, {stem + part for part in needed | possible}
    if name in found and found[name].dtype in _FLOATS:
        return _FLOATS[found[name].dtype], {name}
    return None


def _wrong_shape(kind: str, name: str, shape: tuple[int, ...], found: Mapping[str, StoredTensor]) -> str | None:
    """Why a tensor's stored shape does not fit `shape`, or None; checks a packed one as far as its parts tell."""
    stem = name.removesuffix(".weight")
    if kind == "exl2":  # columns are outputs; the bits of the packed rows vary within a matrix
        have, there = found[stem + ".q_weight"].shape[-1:], shape[:1]
    elif kind == "nf4":
        have, there = (math.prod(found[name].shape),), ((math.prod(shape) + 1) // 2,)
    else:
        have, there = found[name].shape, shape
    return None if have == there else f"{name} {have} instead of {there}"


def exl2_bits(folder: Path) -> float | None:
    """Bits per weight in an EXL2 folder's configuration."""
    try:
        entry = read_entries(folder).get("quantization_config")
    except ModelError:
        return None
    if not isinstance(entry, dict) or entry.get("quant_method") != "exl2":
        return None
    try:
        return build(float, entry.get("bits")) or None
    except Fault:
        return None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a Hugging Face folder: the output of ExLlamaV2's converter, else the shards in its
    index, else all except adapters."""
    if written := sorted(folder.glob("output*.safetensors")):  # the converter leaves the original's index beside it
        return written
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        refuse_pointer(index)
        try:
            shards = sorted(set(build(dict[str, Plain], object_of(read_json(index)).get("weight_map")).values()))
            if out := next((name for name in shards if name != Path(name).name), None):
                raise Fault(f"{shown(out)} is no name of a file beside it")
        except (OSError, Fault) as exc:
            raise ModelError(f"{index} does not list weight files: {exc}.", AGAIN) from exc
        if missing := [name for name in shards if not (folder / name).is_file()]:
            raise ModelError(
                f"{folder} lacks {len(missing)} of its {len(shards)} weight files: {first_five(missing)}.",
                "Download the missing files.",
            )
        return [folder / name for name in shards]
    if files := sorted(path for path in folder.glob("*.safetensors") if path.name != "adapter_model.safetensors"):
        return files
    pickles = [path.name for path in folder.glob("*.bin")]
    raise ModelError(
        f"{folder} holds no safetensors weights" + (f", only {first_five(pickles)}." if pickles else "."),
        "Download the model's .safetensors files.",
    )


# Safetensors: header length (u64, little endian), header as JSON, raw values.

"""Presses a model folder into fewer bits: a complete folder of our int8 or of bitsandbytes' nf4 format.

One shard after the other is written and put in place, so that a broken-off run goes on where it was, and no more than
one tensor of the original and one shard of the result are in memory at a time.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from yuegp import __version__
from yuegp.checked import object_of
from yuegp.checkpoints import formats
from yuegp.checkpoints.config import read_config, read_entries
from yuegp.checkpoints.safetensors import safetensors_header
from yuegp.checkpoints.verify import weight_files
from yuegp.errors import LibraryError, RequestError
from yuegp.files import discard, free_bytes, put, read_json, write_atomic
from yuegp.lm.weights import int8, nf4
from yuegp.locks import lock_handle
from yuegp.progress import Progress, quiet
from yuegp.units import file_size

SHARD_BYTES = 1 << 30
"""Of original weights that go into one shard of the result."""

NOTE = ".quantize.json"
"""What a run that is not finished is about; gone when it is."""

COPIED = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE", "NOTICE")

METHODS: dict[str, dict[str, Any]] = {
    "int8": {"quant_method": int8.METHOD},
    "nf4": {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_compute_dtype": "bfloat16",
    },
}
"""`quantization_config` of each format; nf4's is what transformers writes."""

SHARE = {"int8": 0.51, "nf4": 0.29}
"""Generous size of a pressed 16-bit matrix, for the check of the disk."""


def is_pressed(name: str) -> bool:
    """The matrices of the layers; embedding, output layer and norms stay as they are."""
    return ".layers." in name and name.endswith("_proj.weight")


def pressed(name: str, weight: Tensor, kind: str) -> dict[str, Tensor]:
    """A matrix `X.weight` (out, in) as the tensors that stand for it in a folder of `kind`. One whose rows are no
    whole blocks of nf4, as in models far narrower than YuE's, stays as it is."""
    if kind == "int8":
        values, scale = int8.quantize(weight)
        return {name: values, f"{name}.scale": scale}
    if weight.shape[1] % nf4.BLOCK:
        return {name: weight}
    packed = nf4.Nf4.quantize(weight)
    state = {
        "quant_type": "nf4",
        "blocksize": nf4.BLOCK,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "shape": list(weight.shape),
    }
    return {
        name: packed.codes.view(-1, 1),
        f"{name}.absmax": packed.peaks.view(-1),
        f"{name}.quant_map": torch.tensor(nf4.LEVELS),
        name + nf4.STATE: torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8),
    }


def quantize(source: Path, target: Path, kind: str, credit: str = "", progress: Progress = quiet) -> Path:
    """Write the model in `source` to `target`, pressed to `kind`; what a broken-off run of the same has done is kept.

    RequestError for a source that is pressed already and for a target that holds something else; LibraryError when
    the disk is too small; Cancelled passes through and leaves what is done."""
    if kind not in METHODS:
        raise RequestError(f"There is no format called {kind!r}.", "Use one of: " + ", ".join(METHODS) + ".")
    if (now := formats.stored_as(source)) not in ("float32", "float16", "bfloat16"):
        raise RequestError(f"The model in {source} is pressed already ({now}).", "Name the folder of the full model.")
    read_config(source)
    found = formats.tensors(source)
    shards = _shards({name: place[1].stop - place[1].start for name, place in found.items()})
    job = {"kind": kind, "source": str(source.resolve()), "state": _state(source), "shards": len(shards)}
    with _held(target, job):
        _check_disk(target, kind, found)
        total = sum(place[1].stop - place[1].start for _, place in found.items())
        done, index = 0, dict[str, str]()
        for number, names in enumerate(shards, 1):
            path = target / f"model-{number:05}-of-{len(shards):05}.safetensors"
            if not path.is_file():
                _write_shard(path, {name: found[name][0] for name in names}, kind)
            index |= {name: path.name for name in safetensors_header(path)}
            done += sum(found[name][1].stop - found[name][1].start for name in names)
            progress(f"pressing to {kind}", done, total)
        size = sum((target / name).stat().st_size for name in set(index.values()))
        content = {"metadata": {"total_size": size}, "weight_map": index}
        write_atomic(target / "model.safetensors.index.json", json.dumps(content, indent=1).encode())
        _complete(source, target, kind, credit)
    return target


def _shards(sizes: dict[str, int]) -> list[list[str]]:
    """Names of tensors in order, in groups of at most `SHARD_BYTES`."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name in sorted(sizes):
        if groups[-1] and filled + sizes[name] > SHARD_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += sizes[name]
    return groups


def _state(source: Path) -> list[list[Any]]:
    """Names, sizes and times of the weight files: whether a resumed run still has the same source."""
    return [[p.name, p.stat().st_size, int(p.stat().st_mtime)] for p in weight_files(source)]


def same_job(note: Path, job: dict[str, Any]) -> None:
    """Refuse to go on with a run whose note says another thing than `job`, or cannot be read."""
    try:
        before = object_of(read_json(note))
    except (OSError, ValueError) as exc:
        raise RequestError(
            f"{note} does not say what the broken-off run beside it was: {exc}.",
            f"Remove {note.parent} and begin anew.",
        ) from exc
    if changed := [name for name in job if before.get(name) != job[name]]:
        raise RequestError(
            f"{note.parent} holds a broken-off run with another {' and '.join(changed)}.",
            f"That may not change when a run goes on: choose another folder, or remove {note.parent}.",
        )


@contextlib.contextmanager
def _held(target: Path, job: dict[str, Any]) -> Iterator[None]:
    """The target folder with this job's note in it, for one process at a time."""
    note = target / NOTE
    try:
        target.mkdir(parents=True, exist_ok=True)
        handle = (target / ".lock").open("a+b")
    except OSError as exc:
        raise LibraryError(f"{target} cannot be written: {exc.strerror or exc}.", "Choose another folder.") from exc
    with handle:
        try:
            lock_handle(handle.fileno())
        except BlockingIOError:
            raise LibraryError(
                f"Another program is writing to {target}.", "Wait for it, or choose another folder."
            ) from None
        if note.is_file():
            same_job(note, job)
        elif there := sorted(path.name for path in target.iterdir() if path.name != ".lock"):
            what = "already holds a model" if any(name.endswith(".safetensors") for name in there) else "is not empty"
            raise RequestError(f"{target} {what} ({there[0]}).", "Choose another folder; nothing is written over.")
        else:
            write_atomic(note, json.dumps(job).encode())
        yield
    discard(note)
    with contextlib.suppress(OSError):
        if not (target / ".lock").stat().st_size:  # ours is empty
            discard(target / ".lock")


def _check_disk(target: Path, kind: str, found: dict[str, formats.Place]) -> None:
    needed = sum(
        int((place.stop - place.start) * (SHARE[kind] if is_pressed(name) else 1)) for name, (_, place) in found.items()
    ) - sum(path.stat().st_size for path in target.glob("*.safetensors"))
    free = free_bytes(target)
    if free is not None and free < needed:
        raise LibraryError(
            f"Pressing needs {file_size(needed)} in {target}, and {file_size(free)} are free.",
            "Free some space, or choose a folder on another disk.",
        )


def _write_shard(path: Path, places: dict[str, Path], kind: str) -> None:
    tensors: dict[str, Tensor] = {}
    for name, file in places.items():
        with safe_open(file, "pt") as weights:
            tensor = weights.get_tensor(name)
        tensors |= pressed(name, tensor, kind) if is_pressed(name) else {name: tensor}
    partial = path.with_name(f".{path.name}.part")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata={"format": "pt"})
        put(partial, path)
    except OSError as exc:
        what = f"{path} cannot be written: {exc.strerror or exc}."
        raise LibraryError(what, "Free some space and run again.") from exc
    finally:
        discard(partial)


def _complete(source: Path, target: Path, kind: str, credit: str) -> None:
    """Everything besides weights, so that the folder can stand alone; config.json last."""
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    today = datetime.datetime.now(datetime.UTC).date()
    card = (
        f"# {source.name}, {kind}\n\nPressed from `{source.name}` by yuegp {__version__} with torch "
        f"{torch.__version__} on {today}. Only the matrices of the layers are pressed; embedding, output layer and "
        "norms are as they were.\n" + (f"\n{credit}\n" if credit else "") + "\nThe licence is that of the original.\n"
    )
    write_atomic(target / "README.md", card.encode())
    config = read_entries(source)
    config["quantization_config"] = METHODS[kind]
    write_atomic(target / "config.json", (json.dumps(config, indent=2) + "\n").encode())

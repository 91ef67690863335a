"""The stored format of a model folder's weights, from names and headers alone, without torch.

A folder is a `config.json` and safetensors files: one `model.safetensors`, or shards with an index as transformers
writes them, or files of any name from a converter.
"""

from __future__ import annotations

from pathlib import Path

from yuegp.checkpoints.safetensors import StoredTensor, safetensors_header
from yuegp.checkpoints.verify import weight_files
from yuegp.errors import ModelError

Place = tuple[Path, StoredTensor]
"""A tensor's file and its place in it."""

MARKS = {
    ".q_weight": "exl2",
    ".weight.quant_state.bitsandbytes__nf4": "nf4",
    ".SCB": "bnb8",
    ".weight.scale": "int8",
}
"""Tensor names that only one format has."""

REFUSED = {
    ".weight.quant_state.bitsandbytes__fp4": "bitsandbytes fp4",
    ".qweight": "GPTQ or AWQ",
    ".scales": "GPTQ, AWQ or MLX",
    ".weight_scale": "fp8",
    ".trellis": "EXL3",
}
"""The same for formats that no engine here reads."""

FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

_EMBEDDING = "model.embed_tokens.weight"


def tensors(folder: Path) -> dict[str, Place]:
    """Every stored tensor by name. Raises ModelError for files that are absent, cut short or no safetensors."""
    found: dict[str, Place] = {}
    for path in weight_files(folder):
        found |= {name: (path, place) for name, place in safetensors_header(path).items()}
    return found


def stored_as(folder: Path) -> str:
    """Format of the weights in `folder`: bfloat16, float16, float32, int8 (ours), nf4 or bnb8 (bitsandbytes), exl2.
    Raises ModelError for other formats, and without a language model."""
    return format_of(folder, tensors(folder))


def format_of(folder: Path, found: dict[str, Place]) -> str:
    """`stored_as`, from the tensors already found in `folder`."""
    for ending, kind in MARKS.items():
        if any(name.endswith(ending) for name in found):
            return kind
    for ending, kind in REFUSED.items():
        if any(name.endswith(ending) for name in found):
            raise ModelError(
                f"The weights in {folder} are stored as {kind}, which yuegp does not read.",
                "Use the released bfloat16 model, or an EXL2, nf4 or 8-bit one.",
            )
    if _EMBEDDING not in found:
        raise ModelError(
            f"{folder} holds no language model: there is no tensor {_EMBEDDING}.",
            "Name the folder of a YuE Stage-1 or Stage-2 model.",
        )
    dtype = found[_EMBEDDING][1].dtype
    if dtype not in FLOATS:
        raise ModelError(
            f"The weights in {folder} are stored as {dtype}, which yuegp does not read.",
            "Use the released bfloat16 model.",
        )
    return FLOATS[dtype]

"""Model sets on disk: which there are, where they lie, and whether their files are what they claim to be.

A set is what one song needs: a Stage-1 model, a Stage-2 model, the codec with its upsamplers, a tokenizer, and the
layout of the vocabulary they share. It is either a folder with a `set.json` (the embedded `demo` is one, and
`tools/make_set.py` writes others), or one of YuE's released checkpoints, found by the names of their repositories.

Everything here reads headers and configurations; weights are loaded by `lm/` and `codec/`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .checkpoint import LlamaConfig, read_config
from .errors import ModelError
from .library import home
from .song import Sampling
from .tokenizer import open_tokenizer
from .vocab import YUE_V1, VocabLayout

FORMAT = 1
"""Newest format of `set.json` this program reads."""

SCAN_LIMIT = 200_000_000
"""Bytes up to which `check` reads every weight of a file to look for NaN; larger ones are looked at as they load."""

STAGE2_REPO = "YuE-s2-1B-general"
CODEC_REPO = "xcodec_mini_infer"


@dataclass(frozen=True)
class ModelSet:
    """One set. `stage1` and `stage2` are Hugging Face folders, `codec` is laid out like `xcodec_mini_infer`."""

    id: str
    title: str
    language: str
    mode: str
    """`cot` (no reference), `icl` (wants one) or `both`."""
    stage1: Path
    stage2: Path
    codec: Path
    tokenizer_kind: str
    tokenizer_path: Path | None
    layout: VocabLayout
    licence: str
    credit: str = ""
    """Whom to name when a song is published."""
    note: str = ""
    """What a user should know, for the screen."""
    vocabularies: tuple[int, int] | None = None
    """Vocabulary sizes of the genuine Stage-1 and Stage-2 model, by which a swap of the two is recognised."""
    drawable: tuple[tuple[int, ...], ...] | None = None
    """Codes of codebook 0 that each track may use, vocal first; None for all."""
    section_seconds: float = 30.0
    """Longest section unless a request says otherwise; YuE was trained on sections of up to half a minute."""
    sampling: Sampling = field(default_factory=Sampling)
    """How to draw unless a request says otherwise."""


# Finding


EMBEDDED = {"demo": Path(__file__).parent / "assets" / "demo"}
"""Sets that come with the program. They differ from others in nothing but where they lie."""


class Released(NamedTuple):
    """A released Stage-1 checkpoint; all share one Stage 2 and one codec. Source: the YuE v1 model cards."""

    repo: str
    language: str
    mode: str


RELEASED = {
    f"yue-{language}-{mode}": Released(f"YuE-s1-7B-anneal-{language}-{mode}", language, mode)
    for language in ("en", "zh", "jp-kr")
    for mode in ("cot", "icl")
}
_LANGUAGES = {"en": "English", "zh": "Mandarin and Cantonese", "jp-kr": "Japanese and Korean"}


def models_dir() -> Path:
    """Where downloaded checkpoints lie: `YUEGP_MODELS`, or `models` in the program's home."""
    return Path(os.environ.get("YUEGP_MODELS") or home() / "models").expanduser()


def find(model: str) -> ModelSet:
    """The set named `model`: `demo`, a released id such as `yue-en-cot`, a folder with a `set.json`, or the name of
    such a folder in `models_dir()`. ModelError when there is none or parts of it are absent."""
    if model in EMBEDDED:
        return _read_set(EMBEDDED[model], model)
    if model in RELEASED:
        return _released(model)
    for folder in (models_dir() / model, Path(os.path.expanduser(model))):
        if os.path.isfile(folder / "set.json"):  # unlike Path.is_file, does not raise for an overlong name
            return _read_set(folder, model)
    if os.path.isdir(model):
        raise ModelError(
            f"The folder {model} holds no set.json, so it is not a model set.",
            "Name the folder that holds set.json, or use one of: " + ", ".join(names()) + ".",
        )
    raise ModelError(f"There is no model called {model!r}.", "Choose one of: " + ", ".join(names()) + ".")


def names() -> list[str]:
    """Every name `find` knows, on disk or not: embedded sets, released ids, own sets in `models_dir()`."""
    own = sorted(path.parent.name for path in models_dir().glob("*/set.json"))
    return [*EMBEDDED, *RELEASED, *own]


def _released(model: str) -> ModelSet:
    entry, folder = RELEASED[model], models_dir()
    for repo in (entry.repo, STAGE2_REPO, CODEC_REPO):
        if not (folder / repo).is_dir():
            raise ModelError(
                f"The model {model} needs the folder {repo}, which is not in {folder}.",
                f"Download https://huggingface.co/m-a-p/{repo} into {folder / repo}, or use the model demo.",
            )
    reference = "continues the style of a reference recording" if entry.mode == "icl" else "needs no reference"
    return ModelSet(
        id=model,
        title=f"YuE 7B, {_LANGUAGES[entry.language]}, {reference}",
        language=entry.language,
        mode=entry.mode,
        stage1=folder / entry.repo,
        stage2=folder / STAGE2_REPO,
        codec=folder / CODEC_REPO,
        tokenizer_kind="sentencepiece",
        tokenizer_path=folder / entry.repo / "tokenizer.model",
        layout=YUE_V1,
        licence="Apache-2.0",
        credit="YuE by HKUST/M-A-P",
        vocabularies=(83968, 83840),
    )


def _read_set(folder: Path, name: str) -> ModelSet:
    path = folder / "set.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] > FORMAT:
            raise ModelError(
                f"{path} has format {data['format']}; this yuegp reads up to {FORMAT}.", "Update yuegp to use this set."
            )
        tokenizer, defaults = data["tokenizer"], data.get("defaults", {})
        return ModelSet(
            id=name,
            title=data["title"],
            language=data["language"],
            mode=data["mode"],
            stage1=folder / data["stage1"],
            stage2=folder / data["stage2"],
            codec=folder / data["codec"],
            tokenizer_kind=tokenizer["kind"],
            tokenizer_path=folder / tokenizer["path"] if "path" in tokenizer else None,
            layout=_read_layout(data["layout"]),
            licence=data["licence"],
            credit=data.get("credit", ""),
            note=data.get("note", ""),
            vocabularies=(v[0], v[1]) if (v := data.get("vocabularies")) else None,
            drawable=tuple(map(tuple, d)) if (d := data.get("drawable")) else None,
            section_seconds=float(defaults.get("section_seconds", 30.0)),
            sampling=Sampling(**defaults.get("sampling", {})),
        )
    except OSError as exc:
        raise ModelError(
            f"The model set {folder} cannot be read: {exc.strerror or exc}.", "Check the folder, or copy it again."
        ) from exc
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as exc:
        raise ModelError(
            f"{path} does not describe a model set: {type(exc).__name__} {exc}.",
            "Compare it with set.json in yuegp/assets/demo.",
        ) from exc


def _read_layout(entry: str | dict[str, Any]) -> VocabLayout:
    """A layout by name or field by field. Raises ValueError or TypeError."""
    if entry == YUE_V1.name:
        return YUE_V1
    if not isinstance(entry, dict) or any(not isinstance(v, int) or v < 0 for k, v in entry.items() if k != "name"):
        raise ValueError(f"layout {entry!r} is neither {YUE_V1.name!r} nor a table of ids")
    return VocabLayout(**entry)


# Checking


def check(model_set: ModelSet) -> None:
    """Refuse, with a ModelError, a set that could not make a song: anything absent, cut short, of another kind or
    for another vocabulary, and NaN weights in files up to `SCAN_LIMIT`. Takes milliseconds; loads nothing.

    Which files and tensors a codec folder must hold is `codec.check_codec`'s business."""
    for stage, folder in ((1, model_set.stage1), (2, model_set.stage2)):
        config = read_config(folder)
        _check_vocabulary(model_set, stage, folder, config)
        _check_weights(folder, config)
    if not model_set.codec.is_dir():
        raise ModelError(
            f"The codec folder {model_set.codec} does not exist.",
            f"Download https://huggingface.co/m-a-p/{CODEC_REPO} there.",
        )
    for path in sorted(model_set.codec.rglob("*.safetensors")):
        _scan(path, safetensors_header(path))
    if model_set.tokenizer_path:
        _refuse_pointer(model_set.tokenizer_path)
    open_tokenizer(model_set.tokenizer_kind, model_set.tokenizer_path, model_set.layout)


def _check_vocabulary(model_set: ModelSet, stage: int, folder: Path, config: LlamaConfig) -> None:
    other, size, needed = 3 - stage, config.vocab_size, model_set.layout.smallest_vocabulary[stage]
    if model_set.vocabularies:
        own, others = model_set.vocabularies[stage - 1], model_set.vocabularies[other - 1]
        if size == others != own:
            raise ModelError(
                f"{folder} holds a Stage-{other} model (vocabulary {size:,}), but it stands in Stage {stage}'s place.",
                f"Put the Stage-{stage} model (vocabulary {own:,}) there.",
            )
    if size < needed:
        raise ModelError(
            f"The model in {folder} has a vocabulary of {size:,}; Stage {stage} of this set needs at least {needed:,}.",
            "This is another kind of language model: use a YuE model made for this stage.",
        )


def _check_weights(folder: Path, config: LlamaConfig) -> None:
    """All tensors of the configuration are there, in the right shape, in files of the right length, without NaN."""
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        header = safetensors_header(path)
        found |= header
        _scan(path, header)
    wanted = config.tensors()
    if missing := [name for name in wanted if name not in found]:
        raise ModelError(
            f"The weights in {folder} lack {len(missing)} of {len(wanted)} tensors: {_first(missing)}.",
            "Download the model again; a file is missing or belongs to another model.",
        )
    if packed := [f"{name} ({found[name].dtype})" for name in wanted if found[name].dtype not in _EXPONENT]:
        raise ModelError(
            f"The weights in {folder} are quantized, and this yuegp reads only plain floats: {_first(packed)}.",
            "Use the unquantized model.",
        )
    if wrong := [f"{n} {found[n].shape} instead of {s}" for n, s in wanted.items() if found[n].shape != s]:
        raise ModelError(
            f"The weights in {folder} do not have the shapes its config.json promises: {_first(wrong)}.",
            "config.json and the weights belong to different models; download both again.",
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a Hugging Face folder: the shards its index names, or `model.safetensors`."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        _refuse_pointer(index)
        try:
            shards = sorted({str(v) for v in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise ModelError(f"{index} does not list weight files: {exc}.", "Download this file again.") from exc
        if missing := [name for name in shards if not (folder / name).is_file()]:
            raise ModelError(
                f"{folder} lacks {len(missing)} of its {len(shards)} weight files: {_first(missing)}.",
                "Download the missing files.",
            )
        return [folder / name for name in shards]
    if single.is_file():
        return [single]
    pickles = [path.name for path in folder.glob("*.bin")]
    raise ModelError(
        f"{folder} holds no safetensors weights" + (f", only {_first(pickles)}." if pickles else "."),
        "Download the model's .safetensors files.",
    )


def _first(items: list[str], count: int = 5) -> str:
    return ", ".join(items[:count]) + (f" and {len(items) - count} more" if len(items) > count else "")


def _refuse_pointer(path: Path) -> None:
    """Cloning without git-lfs leaves a note of about 130 bytes in the place of each large file."""
    try:
        with path.open("rb") as file:
            start = file.read(40)
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror or exc}.", "Download this file again.") from exc
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(
            f"{path} is only a git-lfs pointer; the file itself was never downloaded.",
            "Run `git lfs pull` in that folder, or download the file from the model's page.",
        )
    if not start:
        raise ModelError(f"{path} is empty.", "Download this file again.")


# Safetensors: header length (u64, little endian), header as JSON, raw values.


class StoredTensor(NamedTuple):
    """Where a tensor lies: `dtype` as the format writes it (`BF16` …), `start` and `stop` in bytes of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
_EXPONENT: dict[str, tuple[str, int]] = {
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F800000),
    "F64": ("<u8", 0x7FF0000000000000),
}
"""The exponent bits of each float type, as an integer type and a mask: all set means NaN or infinity."""


def safetensors_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, without reading them. ModelError when the file is a stub, is cut short or
    too long, or is no safetensors file."""
    _refuse_pointer(path)
    again = "Download this file again."
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size - 8:
                raise ModelError(
                    f"{path} is cut short or is no safetensors file: it has {size:,} bytes, "
                    f"its first eight announce a header of {length:,}.",
                    again,
                )
            raw = json.loads(file.read(length))
        tensors = {name: _stored(entry, 8 + length) for name, entry in raw.items() if name != "__metadata__"}
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror or exc}.", again) from exc
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ModelError(f"{path} is no safetensors file: {type(exc).__name__} {exc}.", again) from exc
    promised = max((tensor.stop for tensor in tensors.values()), default=8 + length)
    if promised != size:
        state = "cut short" if size < promised else "too long"
        raise ModelError(f"{path} is {state}: it has {size:,} bytes, its header promises {promised:,}.", again)
    return tensors


def _stored(entry: dict[str, Any], base: int) -> StoredTensor:
    shape, (start, stop) = tuple(int(n) for n in entry["shape"]), entry["data_offsets"]
    wanted = math.prod(shape) * _BYTES[entry["dtype"]]
    if start < 0 or min(shape, default=0) < 0 or stop - start != wanted:
        raise ValueError(f"bytes {start} to {stop} for {entry['dtype']} of shape {shape}")
    return StoredTensor(entry["dtype"], shape, base + start, base + stop)


def _scan(path: Path, header: Mapping[str, StoredTensor]) -> None:
    """Refuse NaN and infinite weights in a file of up to `SCAN_LIMIT` bytes."""
    if path.stat().st_size > SCAN_LIMIT:
        return
    broken = []
    for name, tensor in header.items():
        if tensor.dtype not in _EXPONENT:
            continue
        integer, mask = _EXPONENT[tensor.dtype]
        bits = np.fromfile(path, integer, count=math.prod(tensor.shape), offset=tensor.start)
        if np.any((bits & mask) == mask):
            broken.append(name)
    if broken:
        raise ModelError(
            f"{path} holds weights that are not numbers (NaN or infinite): {_first(broken)}.",
            "The file is damaged; download or convert it again.",
        )

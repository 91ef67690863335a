"""Model sets: finds a set by name and checks whether it could make a song.

A set is what one song needs: a Stage-1 model, a Stage-2 model, the codec with its upsamplers, a tokenizer, and the
layout of the vocabulary they share. It is either a folder with a `set.json` (the embedded `demo` is one, and
`tools/make_set.py` writes others), or three checkpoints of `registry`, wherever `locate` finds them on disk.

`verify` checks the files; `lm/` and `codec/` load the weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from yuegp.checked import Between, Fault, Newer, Plain, build, version
from yuegp.checkpoints.safetensors import SCAN_LIMIT as SCAN_LIMIT
from yuegp.checkpoints.safetensors import StoredTensor as StoredTensor
from yuegp.checkpoints.safetensors import refuse_pointer, scan_file
from yuegp.checkpoints.safetensors import safetensors_header as safetensors_header
from yuegp.checkpoints.verify import check_tensors
from yuegp.errors import ModelError
from yuegp.files import read_json
from yuegp.paths import models_dir as models_dir
from yuegp.progress import Progress
from yuegp.song.schema import Sampling
from yuegp.tokens.tokenizer import open_tokenizer
from yuegp.tokens.vocab import YUE_V1, VocabLayout

from . import locate, registry
from .config import LlamaConfig, read_config
from .registry import LANGUAGES, MODES, VOCABULARIES, Checkpoint
from .verify import weight_files as weight_files

FORMAT = 1
"""Newest format of `set.json` that this program reads."""


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
    """Credit to give when a song is published."""
    note: str = ""
    """Note for the user, shown on the screen."""
    vocabularies: tuple[int, int] | None = None
    """Vocabulary sizes of the genuine Stage-1 and Stage-2 models, which reveal a swap of the two."""
    drawable: tuple[tuple[int, ...], ...] | None = None
    """Codes of codebook 0 that each track may use, vocal first; None for all."""
    section_seconds: float = 30.0
    """Longest section unless a request says otherwise; YuE was trained on sections of up to half a minute."""
    sampling: Sampling = field(default_factory=Sampling)
    """Sampling settings unless a request says otherwise."""


# Finding


EMBEDDED = {"demo": Path(__file__).resolve().parents[1] / "assets" / "demo"}
"""Sets that come with the program. Only their location differs from other sets."""


RELEASED = {f"yue-{language}-{mode}": (language, mode) for language in LANGUAGES for mode in MODES}
"""Sets of published checkpoints: a Stage-1 model for this language and mode; all share Stage 2 and codec."""

ROLES = ("stage1", "stage2", "codec")


def find(model: str, first: Sequence[str] = ()) -> ModelSet:
    """The set named `model`: `demo`, a released id such as `yue-en-cot`, a Stage-1 checkpoint such as `s1-en-cot-nf4`,
    a folder with a `set.json`, or the name of such a folder in `models_dir()`. Of several copies on disk, prefers those
    whose ids are in `first`. Raises ModelError when there is none or parts are missing."""
    if model in EMBEDDED:
        return _read_set(EMBEDDED[model], model)
    if parts := candidates(model, first):
        return _assembled(model, parts)
    for folder in (models_dir() / model, Path(os.path.expanduser(model))):
        if os.path.isfile(folder / "set.json"):  # unlike Path.is_file, does not raise for an overlong name
            return _read_set(folder, model)
    if os.path.isdir(model):
        raise ModelError(
            f"The folder {model} holds no set.json, so it is not a model set.",
            "Name the folder that holds set.json, or use one of: " + ", ".join(names()) + ".",
        )
    if faults := registry.usable()[2]:  # the name may stand in an unreadable part
        raise ModelError(f"There is no model called {model!r} that can be read. {faults[0]}", "Mend that file.")
    raise ModelError(f"There is no model called {model!r}.", "Choose one of: " + ", ".join(names()) + ".")


def names() -> list[str]:
    """Every name that `find` accepts, on disk or not: embedded sets, released ids, the user's Stage-1 models, own sets
    in `models_dir()`."""
    added = [c.id for c in registry.usable()[0].values() if c.role == "stage1" and c.id not in registry.CHECKPOINTS]
    own = sorted(path.parent.name for path in models_dir().glob("*/set.json"))
    return [*EMBEDDED, *RELEASED, *added, *own]


def candidates(model: str, first: Sequence[str] = ()) -> dict[str, list[Checkpoint]]:
    """Candidate checkpoints by role, in order of preference: ids in `first`, then those chosen when the set was
    downloaded, then the others, most bits first; the sound model without pickles before those with them. Empty when
    `model` names no set of checkpoints."""
    every, noted, _ = registry.usable()
    if model in RELEASED:
        own = [c for c in every.values() if (c.role, c.language, c.mode) == ("stage1", *RELEASED[model])]
    elif model in every and every[model].role == "stage1":
        own = [every[model]]
    else:
        return {}
    chosen = noted["sets"].get(model, ())
    parts = {"stage1": own} | {role: [c for c in every.values() if c.role == role] for role in ROLES[1:]}
    safe = "codec-safetensors"
    return {
        role: sorted(some, key=lambda c: (c.id != safe, c.id not in first, c.id not in chosen, -c.bits))
        for role, some in parts.items()
    }


def _assembled(model: str, parts: dict[str, list[Checkpoint]]) -> ModelSet:
    chosen = {role: _on_disk(model, some) for role, some in parts.items()}
    checkpoint, folders = chosen["stage1"][0], {role: folder for role, (_, folder) in chosen.items()}
    language, mode = LANGUAGES.get(checkpoint.language, checkpoint.language), MODES.get(checkpoint.mode, "")
    return ModelSet(
        id=model,
        title=f"YuE 7B, {language}, {mode}" if model in RELEASED else f"YuE {checkpoint.id}",
        language=checkpoint.language,
        mode="both" if checkpoint.mode == "any" else checkpoint.mode,
        stage1=folders["stage1"],
        stage2=folders["stage2"],
        codec=folders["codec"],
        tokenizer_kind="sentencepiece",
        tokenizer_path=tokenizer_of(folders.values()) or folders["stage1"] / "tokenizer.model",
        layout=YUE_V1,
        licence="Apache-2.0",
        credit="YuE by HKUST/M-A-P",
        vocabularies=(VOCABULARIES["stage1"], VOCABULARIES["stage2"]),
    )


def _on_disk(model: str, some: list[Checkpoint]) -> tuple[Checkpoint, Path]:
    """The first checkpoint that is on this computer, and its folder. Raises ModelError when none is."""
    for checkpoint in some:
        if folder := locate.locate(checkpoint):
            return checkpoint, folder
    if begun := next((c for c in some if locate.unfinished(c)), None):
        raise ModelError(
            f"The download of {begun.id}, which the model {model} needs, was not finished.",
            f"Go on with it: python launch.py models get {begun.id}.",
        )
    for checkpoint in some:
        if (folder := locate.own_folder(checkpoint)).is_dir():  # incomplete: `check` names the fault
            return checkpoint, folder
    first = max(some, key=lambda c: c.bits if c.repo.startswith("m-a-p/") else 0)
    raise ModelError(
        f"The model {model} needs the folder {first.folder}, which is not in {models_dir()}.",
        f"Download it: python launch.py models get {model}. Or show where it is: python launch.py models add FOLDER. "
        "The model demo needs nothing.",
    )


def tokenizer_of(folders: Iterable[Path]) -> Path | None:
    """A tokenizer.model for a set: in one of these folders, or any other copy we have. Quantized copies often lack it,
    and all are the same."""
    beside = [place for folder in folders for place in (folder, folder / "mm_tokenizer_v0.2_hf")]
    others = (c for c in registry.CHECKPOINTS.values() if c.files and "tokenizer.model" in c.files)
    beside += [locate.own_folder(c) for c in (*others, registry.TOKENIZER)]
    return next((path for place in beside if (path := place / "tokenizer.model").is_file()), None)


@dataclass(frozen=True)
class _Tokenizer:
    kind: str
    path: Plain | None = None


@dataclass(frozen=True)
class _Defaults:
    section_seconds: Annotated[float, Between(1, 3600)] = 30.0
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class _SetFile:
    """Contents of `set.json`. `layout` is a name or a table of ids."""

    title: str
    language: str
    mode: str
    stage1: Plain
    stage2: Plain
    codec: Plain
    tokenizer: _Tokenizer
    layout: Any
    licence: str
    credit: str = ""
    note: str = ""
    vocabularies: tuple[int, int] | None = None
    drawable: tuple[tuple[Annotated[int, Between(0, 1 << 20)], ...], ...] | None = None
    defaults: _Defaults = field(default_factory=_Defaults)


def _read_set(folder: Path, name: str) -> ModelSet:
    path = folder / "set.json"
    try:
        data = read_json(path)
        version(data, FORMAT)
        known = {field.name: data[field.name] for field in fields(_SetFile) if field.name in data}
        found = build(_SetFile, known)
        return ModelSet(
            id=name,
            title=found.title,
            language=found.language,
            mode=found.mode,
            stage1=folder / found.stage1,
            stage2=folder / found.stage2,
            codec=folder / found.codec,
            tokenizer_kind=found.tokenizer.kind,
            tokenizer_path=folder / found.tokenizer.path if found.tokenizer.path is not None else None,
            layout=_read_layout(found.layout),
            licence=found.licence,
            credit=found.credit,
            note=found.note,
            vocabularies=found.vocabularies,
            drawable=found.drawable or None,
            section_seconds=found.defaults.section_seconds,
            sampling=found.defaults.sampling,
        )
    except Newer as exc:
        raise ModelError(
            f"{path} has format {exc}; this yuegp reads up to {FORMAT}.", "Update yuegp to use this set."
        ) from exc
    except OSError as exc:
        raise ModelError(
            f"The model set {folder} cannot be read: {exc.strerror or exc}.", "Check the folder, or copy it again."
        ) from exc
    except Fault as exc:
        raise ModelError(
            f"{path} does not describe a model set: {exc}.", "Compare it with set.json in yuegp/assets/demo."
        ) from exc


def _read_layout(entry: Any) -> VocabLayout:
    """A layout from its name or its fields. Raises Fault."""
    if entry == YUE_V1.name:
        return YUE_V1
    try:
        layout = build(VocabLayout, entry)
    except Fault as exc:
        raise Fault(f"its layout is neither {YUE_V1.name!r} nor a table of ids: {exc}") from exc
    ids = [number for name, number in entry.items() if name != "name"]
    if not all(0 <= number < 1 << 22 for number in ids) or not 2 <= layout.codebooks <= 64:
        raise Fault("its layout holds ids that no vocabulary has")
    if not 1 <= layout.codebook_size <= 1 << 16:
        raise Fault(f"its codebooks are to have {layout.codebook_size} codes")
    return layout


# Checking


def check(model_set: ModelSet, scan: Progress | None = None) -> None:
    """Raise ModelError for a set that could not make a song: files that are missing, cut short, of another kind or for
    another vocabulary, or NaN in small files, and in all files when `scan` is given, which receives progress. Takes
    milliseconds without it; loads nothing. `codec.check_codec` checks the codec folder."""
    for stage, folder in ((1, model_set.stage1), (2, model_set.stage2)):
        config = read_config(folder)
        check_vocabulary(stage, folder, config, model_set.layout, model_set.vocabularies)
        check_tensors(folder, config, scan)
    if not model_set.codec.is_dir():
        raise ModelError(
            f"The codec folder {model_set.codec} does not exist.", "Download it: python launch.py models get codec."
        )
    scan_sound(model_set.codec, scan)
    if model_set.tokenizer_path and model_set.tokenizer_path.is_file():
        refuse_pointer(model_set.tokenizer_path)
    open_tokenizer(model_set.tokenizer_kind, model_set.tokenizer_path, model_set.layout)


def scan_sound(folder: Path, scan: Progress | None = None) -> None:
    """Raise ModelError for NaN in the safetensors files of a codec folder: in small ones, or with `scan` in all."""
    for path in sorted(folder.rglob("*.safetensors")):
        header = safetensors_header(path)
        if scan or path.stat().st_size <= SCAN_LIMIT:
            scan_file(path, header, scan)


def check_vocabulary(
    stage: int, folder: Path, config: LlamaConfig, layout: VocabLayout, vocabularies: tuple[int, int] | None
) -> None:
    """Raise ModelError for a language model of the other stage or for another vocabulary."""
    other, size, needed = 3 - stage, config.vocab_size, layout.smallest_vocabulary[stage]
    if vocabularies:
        own, others = vocabularies[stage - 1], vocabularies[other - 1]
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

"""Every checkpoint the program can use: the published ones, and those a user has added.

A checkpoint is one repository or one folder of it, at one revision, for one role. Three of them make a model set
(`sets`). `locate` finds them on disk, `download` gets them, `pins` has commits and checksums. The data come from the
hub's model cards and listings in 2025 and 2026; None means unknown: the program then asks the hub (files, sizes,
checksums) or reads the files (names and shapes of tensors).
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal, get_args

from yuegp.checked import Between, Fault, Newer, Plain, build, shown, version
from yuegp.errors import LibraryError, ModelError, RequestError
from yuegp.files import read_json, write_atomic
from yuegp.paths import home

from . import filenames, pins

Role = Literal["stage1", "stage2", "codec", "tokenizer"]
"""What a checkpoint is for; `tokenizer` is a file that quantized copies often lack."""

Mode = Literal["any", "cot", "icl"]

Stored = Literal["bfloat16", "float16", "float32", "int8", "nf4", "bnb8", "exl2"]
"""How the matrices are stored."""

STAGE1_PARAMETERS, STAGE2_PARAMETERS = 6_224_613_376, 1_962_543_104
"""Numbers of weights. Source: the published shard sizes, and the tensors that the configurations describe."""

VOCABULARIES = {"stage1": 83968, "stage2": 83840}
"""Vocabulary sizes of the released models, which tell the two stages apart."""

LANGUAGES = {"en": "English", "zh": "Mandarin and Cantonese", "jp-kr": "Japanese and Korean"}
MODES: dict[Mode, str] = {"cot": "needs no reference", "icl": "continues the style of a reference recording"}
STORED: tuple[Stored, ...] = get_args(Stored)


@dataclass(frozen=True)
class Checkpoint:
    """One repository, or one folder of it, at one revision, in one role. Frozen data."""

    id: Plain
    repo: Plain
    """Owner and name on the hub; empty for a plain folder."""
    role: Role
    language: str = "any"
    mode: Mode = "any"
    stored: Stored = "bfloat16"
    bits: Annotated[float, Between(0.1, 64)] = 16
    """Average bits per weight of a matrix."""
    bytes: Annotated[int, Between(0, 2**50)] | None = None
    """Size as published, or of the tensors alone; the hub has the exact one."""
    revision: Plain | None = None
    """The requested branch or tag (or commit, if the user gave one). None: the main branch."""
    commit: Plain | None = None
    """Commit to download, known when this program was made, unless the user wants the newest. Never part of a folder's
    name. None: the newest, which the pin records."""
    subfolder: Plain = ""
    """Its folder in the repository, with `/`, if the repository holds several checkpoints."""
    licence: str | None = None
    files: tuple[Plain, ...] | None = None
    """The needed files of the repository. None: `wanted` selects them."""
    good_for: str = ""
    place: Plain = ""
    """The folder of a checkpoint that was added as a folder."""

    @property
    def folder(self) -> str:
        """Name of its folder among the program's models: the repository's, preceded by the owner's for a user's own
        checkpoint, with branch and subfolder where it has several."""
        name = self.repo.rpartition("/")[2] if self.id in CHECKPOINTS else self.repo.replace("/", "--")
        several = filter(None, (self.revision, self.subfolder.replace("/", "-")))
        return "-".join((name, *several)) if name else self.id

    @property
    def source(self) -> str:
        """Its source in the form that `own` reads: owner/name@branch:subfolder."""
        return self.repo + (f"@{self.revision}" if self.revision else "") + (self.subfolder and f":{self.subfolder}")

    @property
    def about(self) -> int:
        """Size in bytes, as published or else computed from its widths, within a tenth or so."""
        if self.bytes:
            return self.bytes
        if self.role == "codec":
            return CODEC_BYTES
        parameters, width = (STAGE1_PARAMETERS, 4096) if self.role == "stage1" else (STAGE2_PARAMETERS, 2048)
        table = VOCABULARIES[self.role] * width
        head = 8 if self.stored == "exl2" else 16  # ExLlamaV2 quantizes the head too, to 6 or 8 bits
        return int((parameters - 2 * table) * self.bits / 8 + table * 2 + table * head / 8)

    def wanted(self, names: list[str]) -> list[str]:
        """The repository's files to download, in order. Raises ModelError when a needed one is missing."""
        inside = f"{self.subfolder}/" if self.subfolder else ""
        here = [name.removeprefix(inside) for name in names if name.startswith(inside)]
        needed = list(self.files or ())
        if missing := [name for name in needed if name not in here]:
            raise ModelError(
                f"The repository {self.repo} does not hold {', '.join(inside + name for name in missing[:5])}.",
                "Its files were renamed, or this is another revision: look at its page on the hub.",
            )
        if not needed:
            needed = [n for n in here if re.fullmatch(r"config\.json|[^/]+\.safetensors(\.index\.json)?", n)]
        folders = {name.rpartition("/")[0] for name in names if name.endswith(".safetensors")} - {self.subfolder}
        if not needed or (folders and not any(name.endswith(".safetensors") for name in needed)):
            raise self._no_weights(sorted(folders - {""}))
        needed += [n for n in here if n.endswith("tokenizer.model") and n not in needed
                   and (inside + n).rpartition("/")[0] not in folders]  # fmt: skip
        return [inside + name for name in needed]

    def _no_weights(self, found: list[str]) -> ModelError:
        where = f"in its folder {self.subfolder}" if self.subfolder else "at its top"
        at = f" (branch {self.revision})" if self.revision else ""
        if not found:
            hint = f"If another branch holds them, name it: python launch.py models add {self.repo}@BRANCH."
            return ModelError(f"The repository {self.repo}{at} holds no safetensors weights {where}.", hint)
        example = replace(self, subfolder=found[-1]).source
        return ModelError(
            f"The repository {self.repo}{at} holds no safetensors weights {where}, but in {', '.join(found[:8])}.",
            f"Name the folder: python launch.py models add {example}.",
        )

    def local(self, path: str) -> str:
        """Name of a repository's file in the checkpoint's own folder."""
        return path.removeprefix(f"{self.subfolder}/") if self.subfolder else path


CODEC_BYTES = 1_360_444_883 + 72_611_958 + 72_610_550
"""Bytes of the `.pth` files of the sound model."""

_CODEC = ("final_ckpt/config.yaml", "decoders/config.yaml", "semantic_ckpts/hf_1_325000/config.json")
_SOUND = ("final_ckpt/ckpt_00360000", "decoders/decoder_131000", "decoders/decoder_151000")
_SHARDS = tuple(f"model-{n:05}-of-00003.safetensors" for n in (1, 2, 3))


def _published() -> dict[str, Checkpoint]:
    entries: list[Checkpoint] = []
    for language in LANGUAGES:
        for mode in MODES:
            base = Checkpoint(
                id=f"s1-{language}-{mode}",
                repo=(repo := f"m-a-p/YuE-s1-7B-anneal-{language}-{mode}"),
                commit=pins.COMMITS[repo],
                role="stage1",
                language=language,
                mode=mode,
                bytes=2 * STAGE1_PARAMETERS,
                licence="Apache-2.0",
                files=("config.json", "model.safetensors.index.json", *_SHARDS, "tokenizer.model"),
                good_for="the original; smaller ones can be pressed from it",
            )
            entries += [base, *_bitsandbytes(base, f"Alissonerdx/YuE-s1-7B-anneal-{language}-{mode}", 4_230_000_000)]
    stage2 = Checkpoint(
        id="s2",
        repo="m-a-p/YuE-s2-1B-general",
        commit=pins.COMMITS["m-a-p/YuE-s2-1B-general"],
        role="stage2",
        bytes=2 * STAGE2_PARAMETERS,
        licence="Apache-2.0",
        files=("config.json", "model.safetensors", "tokenizer.model"),
        good_for="the original; every language and mode",
    )
    entries += [stage2, *_bitsandbytes(stage2, "Alissonerdx/YuE-s2-1B-general", None)]
    english, small2 = entries[0], stage2
    for base, name in ((english, "YuE-s1-7B-anneal-en-cot"), (small2, "YuE-s2-1B-general")):
        for bits in (3.0, 4.0, 5.0, 6.0, 8.0):
            entries.append(_exl2(base, f"exl2-{bits}", f"Alissonerdx/{name}-exl2-{bits}bpw", bits))
        for branch in ("4.25bpw-h6", "8.0bpw-h8"):
            bits = float(branch.partition("bpw")[0])
            entries.append(_exl2(base, f"exl2-{branch}", f"Doctor-Shotgun/{name}-exl2", bits, revision=branch))
    annuvin = _exl2(english, "exl2-8.0-h8", "Annuvin/YuE-s1-7B-anneal-en-cot-8.0bpw-h8-exl2", 8.0)
    entries.append(replace(annuvin, bytes=6_100_000_000))
    icl = replace(english, id="s1-en-icl", mode="icl")
    entries.append(_exl2(icl, "exl2-8.0", "Ftfyhh/YuE-s1-7B-anneal-en-icl-8.0bpw-exl2", 8.0))
    for bits in (3.0, 4.0, 5.0, 6.0, 8.0):
        folder = f"{bits}bpw"
        entries.append(_exl2(icl, f"exl2-{folder}", "Ftfyhh/YuE-s1-7B-anneal-en-icl-exl2", bits, subfolder=folder))
    asian = replace(english, id="s1-jp-kr-icl", language="jp-kr", mode="icl")
    entries.append(_exl2(asian, "exl2-5.0", "cpchan/YuE-s1-7B-anneal-jp-kr-icl-5.0bpw", 5.0))
    codec = Checkpoint(
        id="codec",
        repo="m-a-p/xcodec_mini_infer",
        commit=pins.COMMITS["m-a-p/xcodec_mini_infer"],
        role="codec",
        stored="float32",
        bits=32,
        bytes=CODEC_BYTES,
        licence="Apache-2.0",
        files=(*_CODEC, *(f"{name}.pth" for name in _SOUND)),
        good_for="the original; read without running code, and rewritten once as safetensors",
    )
    copy = replace(
        codec,
        id="codec-safetensors",
        repo="SceneWorks/xcodec-mini-infer",
        commit=None,
        bytes=743_600_000 + 2 * 72_525_384,
        files=(*_CODEC, *(f"{name}.safetensors" for name in _SOUND)),
        good_for="somebody else's copy of the same numbers without pickles; smaller",
    )
    return {entry.id: entry for entry in (*entries, codec, copy)}


def is_pinned(checkpoint: Checkpoint) -> bool:
    """Whether `pins` has the whole checksum of every weights file of a checkpoint."""
    facts = pins.FILES.get(checkpoint.repo, {})
    weights = [name for name in checkpoint.files or () if name.endswith((".safetensors", ".pth"))]
    return bool(weights) and all(name in facts and len(facts[name].sha256) == 64 for name in weights)


def sound_model() -> Checkpoint:
    """The sound model to download: the copy without pickles once its files are pinned, until then the original."""
    copy = CHECKPOINTS["codec-safetensors"]
    return copy if is_pinned(copy) else CHECKPOINTS["codec"]


def _bitsandbytes(base: Checkpoint, repo: str, nf4_bytes: int | None) -> tuple[Checkpoint, Checkpoint]:
    """The 8-bit and 4-bit copies of a checkpoint."""
    common = replace(base, files=None, licence=None, commit=None)
    return (
        replace(common, id=f"{base.id}-int8", repo=f"{repo}-int8", stored="bnb8", bits=8, bytes=None,
                good_for="half the memory"),
        replace(common, id=f"{base.id}-nf4", repo=f"{repo}-nf4", stored="nf4", bits=4, bytes=nf4_bytes,
                good_for="a third of the memory"),
    )  # fmt: skip


def _exl2(
    base: Checkpoint, name: str, repo: str, bits: float, revision: str | None = None, subfolder: str = ""
) -> Checkpoint:
    """A copy in ExLlamaV2's format, on a branch or in a folder of the repository."""
    return replace(
        base,
        id=f"{base.id}-{name}",
        repo=repo,
        commit=None,
        stored="exl2",
        bits=bits,
        files=None,
        licence=None,
        bytes=None,
        good_for="the fast engine (ExLlamaV2, NVIDIA); pressed with text, not with music",
        revision=revision,
        subfolder=subfolder,
    )


CHECKPOINTS = _published()
"""Published checkpoints by id."""

TOKENIZER = replace(
    CHECKPOINTS["s1-en-cot"], id="tokenizer", role="tokenizer", language="any", mode="any",
    bytes=1_761_962, files=("tokenizer.model",), good_for="",
)  # fmt: skip
"""The tokenizer, the same for all; downloaded by itself when a set's repositories hold none."""


def relatives(checkpoint: Checkpoint) -> list[Checkpoint]:
    """Published checkpoints that can replace a published one, best first: same role, language and mode, nearest in
    bits, the smaller of two equally near. Copies for the fast engine are included, last, only when `checkpoint` is one
    itself, because this file does not know whether that engine is installed."""
    if checkpoint.id == TOKENIZER.id:
        others = (entry for entry in CHECKPOINTS.values() if entry.files and "tokenizer.model" in entry.files)
        return [replace(TOKENIZER, repo=c.repo, commit=c.commit) for c in others if c.repo != checkpoint.repo]
    if checkpoint.id not in CHECKPOINTS:
        return []
    kind = (checkpoint.role, checkpoint.language, checkpoint.mode)
    fast = checkpoint.stored == "exl2"
    alike = [
        entry
        for entry in CHECKPOINTS.values()
        if (entry.role, entry.language, entry.mode) == kind and entry.id != checkpoint.id
        and (fast or entry.stored != "exl2")
    ]  # fmt: skip
    return sorted(alike, key=lambda c: ((c.stored == "exl2") != fast, abs(c.bits - checkpoint.bits), c.bits))


# What users add: `models.json` in the program's home


def known() -> dict[str, Checkpoint]:
    """Every checkpoint by id: the published ones and the user's own."""
    own = (_read_entry(entry) for entry in notes()["checkpoints"])
    return CHECKPOINTS | {entry.id: entry for entry in own}


def usable() -> tuple[dict[str, Checkpoint], dict[str, Any], list[str]]:
    """The readable parts of `known` and `notes`, and sentences on what of `models.json` cannot be read: songs are made
    with the rest. Callers that write use `notes`, which raises."""
    found, faults = dict(CHECKPOINTS), list[str]()
    try:
        noted = notes()
    except ModelError as exc:
        return found, {"checkpoints": [], "places": {}, "sets": {}}, [exc.what]
    for entry in noted["checkpoints"]:
        try:
            own = _read_entry(entry)
            found.setdefault(own.id, own)
        except ModelError as exc:
            faults.append(exc.what)
    return found, noted, faults


def named(name: str) -> Checkpoint:
    """The checkpoint with this id, repository or folder. Raises ModelError when there is none."""
    found = known()
    if name in found:
        return found[name]
    for entry in found.values():
        if name.lower() in (entry.repo.lower(), entry.source.lower(), entry.folder.lower()):
            return entry
    close = sorted(found, key=lambda known_id: (_distance(name.lower(), known_id), known_id))[:4]
    raise ModelError(f"There is no checkpoint called {name!r}.", f"Perhaps one of: {', '.join(close)}.")


def _distance(a: str, b: str) -> float:
    import difflib

    return -difflib.SequenceMatcher(None, a, b).ratio()


NOTES_FORMAT = 1


@dataclass(frozen=True)
class _Notes:
    """Contents of `models.json` besides its format."""

    checkpoints: tuple[Any, ...]
    places: dict[str, Plain]
    sets: dict[str, tuple[str, ...]]


def notes() -> dict[str, Any]:
    """Contents of `models.json`: `checkpoints` (the user's entries), `places` (folder by id), `sets` (three checkpoints
    by name). Raises ModelError when it cannot be read."""
    path = home() / "models.json"
    try:
        data = read_json(path)
        version(data, NOTES_FORMAT)
        noted = {name: data[name] for name in ("checkpoints", "places", "sets") if name in data}
        build(_Notes, noted)
        return noted
    except FileNotFoundError:
        return {"checkpoints": [], "places": {}, "sets": {}}
    except Newer as exc:
        raise ModelError(f"{path} was written by a newer yuegp (format {exc}).", "Update yuegp.") from exc
    except (OSError, Fault) as exc:
        raise ModelError(
            f"{path}, where yuegp notes which models you added, cannot be read: {exc}.",
            "Mend it, or move it away and add your models again.",
        ) from exc


def write_notes(changed: dict[str, Any]) -> None:
    """Write `models.json`. Raises ModelError when that fails."""
    text = json.dumps({"format": NOTES_FORMAT, **changed}, indent=2, ensure_ascii=False)
    try:
        home().mkdir(parents=True, exist_ok=True)
        write_atomic(home() / "models.json", (text + "\n").encode("utf-8", "surrogatepass"))
    except (LibraryError, OSError) as exc:
        reason = exc.what if isinstance(exc, LibraryError) else f"{home()} cannot be written: {exc.strerror or exc}."
        raise ModelError(reason, "Set YUEGP_HOME to a folder that can be written.") from exc


def add(entry: Checkpoint) -> None:
    """Save a user's checkpoint. Raises ModelError when a published one has its id."""
    if entry.id in CHECKPOINTS:
        raise ModelError(f"{entry.id} is the name of a published checkpoint.", "Choose another name with --name.")
    changed = notes()
    changed["checkpoints"] = [e for e in changed["checkpoints"] if _id(e) != entry.id] + [_entry(entry)]
    write_notes(changed)


def _entry(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint's entry in `models.json`, without default values, so that older programs can read it if they know
    all its other fields."""
    usual = {one.name: one.default for one in fields(Checkpoint)}
    return {key: value for key, value in asdict(checkpoint).items() if value != usual[key]}


def remember(place: dict[str, str | None] | None = None, sets: dict[str, list[str]] | None = None) -> None:
    """Save the folders of checkpoints (None removes one) and the three checkpoints of a set's name."""
    changed = notes()
    places = changed["places"] | (place or {})
    changed["places"] = {key: folder for key, folder in places.items() if folder}
    changed["sets"] |= sets or {}
    write_notes(changed)


def forget(checkpoint: str) -> None:
    """Remove a user's checkpoint, or the saved folder of any checkpoint, from the notes."""
    changed = notes()
    changed["checkpoints"] = [e for e in changed["checkpoints"] if _id(e) != checkpoint]
    changed["places"].pop(checkpoint, None)
    write_notes(changed)


def _id(entry: Any) -> Any:
    """Id of an entry of the notes, even an otherwise unreadable one, which stays there."""
    return entry.get("id") if isinstance(entry, dict) else None


def _read_entry(entry: Any) -> Checkpoint:
    try:
        found = build(Checkpoint, entry)
        if re.search(r"[/\\]|^\.*$", found.id) or re.search(r"\\|(^|/)\.*(/|$)", found.revision or "main"):
            raise Fault(f"its name {shown(found.id)} or revision {shown(found.revision)} cannot be that of a folder")
        return replace(found, files=found.files or None)
    except Fault as exc:
        raise ModelError(
            f"An entry of {home() / 'models.json'} does not describe a checkpoint: {exc}.",
            "Mend it, or remove it and add it again.",
        ) from exc


def read_name(name: str) -> dict[str, Any]:
    """Language, mode, stored format, bits and role as far as the name of a repository or folder tells them. YuE's
    makers and the authors of quantized copies use the same naming."""
    text, said = name.lower(), dict[str, Any]()
    if match := re.search(r"(?<![a-z])(en|zh|jp-kr)[-_](cot|icl)(?![a-z])", text):
        said |= {"role": "stage1", "language": match[1], "mode": match[2]}
    if re.search(r"(?<![a-z])s1(?![a-z0-9])|stage[-_]?1", text):
        said["role"] = "stage1"
    if re.search(r"(?<![a-z])s2(?![a-z0-9])|stage[-_]?2", text):
        said["role"] = "stage2"
    if "xcodec" in text:
        said["role"] = "codec"
    wide = re.search(r"(\d+(?:[._]\d+)?)[-_ ]?bpw", text)
    if "exl2" in text or (wide and "exl3" not in text):  # names of EXL2 copies give bits per weight
        said |= {"stored": "exl2"}
        if wide:
            said["bits"] = float(wide[1].replace("_", "."))
    elif "nf4" in text:
        said |= {"stored": "nf4", "bits": 4.0}
    elif "int8" in text:
        said |= {"stored": "bnb8", "bits": 8.0}
    return said


def own(source: str, name: str | None, said: dict[str, Any]) -> Checkpoint:
    """Make a user's checkpoint. `source` is a repository, written `owner/name`, `owner/name@branch`,
    `owner/name:subfolder` or `owner/name@branch:subfolder`, or an absolute folder. The name supplies what `said` lacks.
    Raises RequestError when that is not enough."""
    repo, revision, subfolder = ("", "", "") if (folder := os.path.isabs(source)) else _read_source(source)
    last = os.path.basename(source.rstrip("/\\")) if folder else repo.partition("/")[2]
    whole = "-".join(filter(None, (last, revision, subfolder)))
    known_facts = read_name(whole) | said
    role = known_facts.get("role")
    if role is None or (role == "stage1" and not (known_facts.get("language") and known_facts.get("mode"))):
        raise RequestError(
            f"The name {last} does not say what the model is for.",
            "Say it: --language en --mode cot for a Stage-1 model. Stage-2 models have s2 in their name.",
        )
    if known_facts.get("stored") == "exl2" and "bits" not in known_facts:
        raise RequestError(
            f"The name {whole} does not say how many bits a weight has.",
            f"Name the branch or the folder that holds them: {repo}@8.0bpw or {repo}:8.0bpw. "
            "Its page on the hub shows which there are.",
        )
    bits = {"nf4": 4.0, "bnb8": 8.0, "int8": 8.0, "float32": 32.0}.get(known_facts.get("stored", ""), 16.0)
    entry = Checkpoint(
        id=name or re.sub(r"[^\w.-]+", "-", whole).lower(),
        repo=repo,
        role=role,
        revision=revision or None,
        subfolder=subfolder,
        place=source if folder else "",
        good_for="added by you",
        stored="float32" if role == "codec" else "bfloat16",
        bits=bits,
        files=CHECKPOINTS["codec"].files if role == "codec" else None,
    )
    return replace(entry, **{k: v for k, v in known_facts.items() if k != "role"})


def _read_source(source: str) -> tuple[str, str, str]:
    """Repository, branch and subfolder of `owner/name@branch:subfolder`."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([^:]*))?(?::(.*))?", source)
    hint = "A repository is written owner/name, owner/name@branch, owner/name:folder or owner/name@branch:folder."
    if not match:
        raise RequestError(f"{source!r} is neither a folder here nor the name of a repository.", hint)
    repo, revision, subfolder = match[1], match[2], match[3] and match[3].strip("/")
    for what, text in (("branch", revision), ("folder", subfolder)):
        if text is not None and (fault := filenames.fault(text)):
            raise RequestError(f"{text!r} cannot be the {what} of a repository: {fault}.", hint)
    return repo, revision or "", subfolder or ""

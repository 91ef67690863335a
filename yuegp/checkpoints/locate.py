"""Finds checkpoints on this computer: among our models, in the hub's cache, or in another program's folder.

Other programs' files are used where they are and never changed. A `Pin` records a download of ours: its commit and the
checksum of every file.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from yuegp.checked import Fault, build, object_of
from yuegp.checkpoints.registry import VOCABULARIES, Checkpoint, read_name, usable
from yuegp.errors import ModelError
from yuegp.files import read_json, write_atomic
from yuegp.paths import home, models_dir

from . import comfy_paths, neighbours, strangers
from .verify import language_model, weight_files
from .wander import is_folder, read_small, wander

FRESH_SECONDS = 10
"""Seconds for which the list of other programs' hub caches is reused."""

# Pins


@dataclass
class Pin:
    """Record of a download: written when it begins, kept when the files are removed."""

    repo: str
    revision: str | None
    """The requested revision; None is the main branch."""
    commit: str
    """Its commit, 40 hexadecimal digits."""
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Size and SHA-256 of every verified file."""
    complete: bool = False


def read_pin(checkpoint: Checkpoint) -> Pin | None:
    """The pin of a checkpoint; None without a download of ours. Raises ModelError when it cannot be read."""
    path = pin_path(checkpoint)
    try:
        pin = build(Pin, object_of(read_json(path)))
        if out := next((name for name in pin.files if not _stays_inside(name)), None):
            raise Fault(f"it speaks of {out!r}, which leads out of the model's folder")
        return pin
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, Fault) as exc:
        raise ModelError(f"{path} cannot be read: {exc}.", "Delete it; the download is then checked anew.") from exc


def _stays_inside(name: str) -> bool:
    """Whether a repository's file name stays inside the model's folder on every system."""
    return bool(name) and not (set(name.split("/")) & {"", ".", ".."}) and not any(c in name for c in "\\:\0")


def readable_pin(checkpoint: Checkpoint) -> Pin | None:
    """`read_pin`, but None also when it cannot be read: a complete model is usable without its pin."""
    try:
        return read_pin(checkpoint)
    except ModelError:
        return None


def write_pin(checkpoint: Checkpoint, pin: Pin) -> None:
    """Write a pin. Raises LibraryError when that fails."""
    path = pin_path(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(asdict(pin), indent=2) + "\n").encode())


def pin_path(checkpoint: Checkpoint) -> Path:
    """Path of a checkpoint's pin."""
    return models_dir() / "pins" / f"{checkpoint.folder}.json"


# Finding


def own_folder(checkpoint: Checkpoint) -> Path:
    """The folder we download a checkpoint to."""
    return models_dir() / checkpoint.folder


def unfinished(checkpoint: Checkpoint) -> bool:
    """Whether a download of ours was begun and not finished."""
    pin = readable_pin(checkpoint)
    return pin is not None and not pin.complete and own_folder(checkpoint).is_dir()


def locate(checkpoint: Checkpoint) -> Path | None:
    """The folder that holds a checkpoint: the user's, ours, or the hub's cache; None if none looks complete. Looks at
    names only; `verify` checks the contents."""
    noted = usable()[1]["places"].get(checkpoint.id) or checkpoint.place
    places = [Path(noted)] if noted and is_folder(Path(noted)) else []  # its drive may be disconnected
    if not unfinished(checkpoint):
        places.append(own_folder(checkpoint))
    return next((place for place in (*places, *_cached(checkpoint)) if _looks_whole(place, checkpoint.role)), None)


def is_ours(folder: Path) -> bool:
    """Whether a folder lies among our models and may be removed."""
    inside = os.path.realpath(folder)
    return inside.startswith(os.path.realpath(models_dir()) + os.sep) and not os.path.islink(folder)


def _looks_whole(folder: Path, role: str) -> bool:
    try:
        if role == "codec":
            return all(any(folder.glob(f"{part}/*.{kind}")) for part, kind in _CODEC_PARTS) and any(
                path.suffix in (".safetensors", ".pth") and path.is_file() for path in (folder / "final_ckpt").iterdir()
            )
        return (folder / "config.json").is_file() and all(path.is_file() for path in weight_files(folder))
    except (ModelError, OSError):
        return False


_CODEC_PARTS = (("final_ckpt", "yaml"), ("decoders", "yaml"))


def cache_dir() -> Path:
    """The hub library's own cache. Source: its documentation of HF_HUB_CACHE, HF_HOME and XDG_CACHE_HOME."""
    environment = os.environ
    if own := environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE"):
        return Path(os.path.expandvars(own)).expanduser()
    base = environment.get("HF_HOME") or os.path.join(environment.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expandvars(base)).expanduser() / "hub"


def _cached(checkpoint: Checkpoint) -> Iterator[Path]:
    """Snapshots of a repository (or of its subfolder) in the hub's cache and other programs' caches, in this order: the
    downloaded commit, the pinned one, the wanted revision."""
    if not checkpoint.repo:
        return
    pin = readable_pin(checkpoint)
    for cache in (cache_dir(), *_other_caches(Path.home(), os.environ.get("PINOKIO_HOME"), _moment())):
        folder = cache / f"models--{checkpoint.repo.replace('/', '--')}"
        if not is_folder(folder):
            continue
        named = [pin.commit] if pin else []
        named += [checkpoint.commit] if checkpoint.commit else []
        named.append(_commit(folder, checkpoint.revision) or checkpoint.revision or "main")
        snapshots = [folder / "snapshots" / name / checkpoint.subfolder for name in named]
        yield from (place for place in snapshots if is_folder(place))


@functools.lru_cache(4)
def _other_caches(*seen: object) -> list[Path]:
    """Existing hub caches of other programs. Cached until the settings they depend on change or time passes, because
    every model asks for them."""
    return [cache for cache in neighbours.hub_caches(_surroundings()) if is_folder(cache)]


def _moment() -> int:
    return int(time.monotonic() // FRESH_SECONDS)


def _commit(folder: Path, revision: str | None) -> str:
    """Commit of a branch when it was last downloaded into a hub cache; empty if unknown."""
    return (read_small(folder / "refs" / (revision or "main"), 200) or b"").decode("ascii", "replace").strip()


class Found(NamedTuple):
    """A model on disk: its checkpoint, or None and what is known about it."""

    folder: Path
    checkpoint: Checkpoint | None
    said: dict[str, object]


def identify(folder: Path) -> Found:
    """Identify a folder's checkpoint from its configuration, tensors and name. Raises ModelError without a complete
    model. The description lacks language and mode when the name does not tell them."""
    if (folder / "final_ckpt").is_dir():
        safe = any((folder / "final_ckpt").glob("*.safetensors"))
        return Found(folder, usable()[0]["codec-safetensors" if safe else "codec"], {"role": "codec"})
    model = language_model(folder)
    said = read_name(strangers.name(folder)) | {"stored": model.stored}
    for role, size in VOCABULARIES.items():
        if model.config.vocab_size == size:
            said["role"] = role
    if model.bits:
        said["bits"] = model.bits
    elif model.stored != "exl2":
        said["bits"] = {"nf4": 4.0, "bnb8": 8.0, "int8": 8.0, "float32": 32.0}.get(model.stored, 16.0)
    return Found(folder, _match(said), said)


def _match(said: dict[str, object]) -> Checkpoint | None:
    """The published checkpoint that fits a description."""
    keys = ["role", "stored", "bits"] + ["language", "mode"] * (said.get("role") == "stage1")
    for entry in usable()[0].values():
        if entry.repo and all(key in said and getattr(entry, key) == said[key] for key in keys):
            return entry
    return None


# Searching


class Passed(NamedTuple):
    """A folder with the name or configuration of one of YuE's models that cannot be used."""

    folder: Path
    why: str
    """The reason, a sentence."""


def search(roots: list[Path] | None = None) -> list[Found]:
    """Models in other programs' folders: below `roots`, else below `usual_places()`. Omits damaged ones."""
    return survey(roots)[0]


def survey(roots: list[Path] | None = None) -> tuple[list[Found], list[Passed]]:
    """Models that `search` finds, and folders it rejects although they seem meant for YuE."""
    found, passed = list[Found](), list[Passed]()
    for folder, files in _model_folders(usual_places() if roots is None else roots):
        try:
            strangers.screen(folder, files)
            strangers.refuse_unwritable(folder)
            if is_folder(folder / "final_ckpt") and not _looks_whole(folder, "codec"):
                raise ModelError(f"{folder} lacks files of the sound model.")
            item = identify(folder)
        except strangers.AnotherKind:
            continue  # such folders hold many other models
        except ModelError as exc:
            passed.append(Passed(folder, strangers.readable(exc.what)))
        except OSError as exc:
            passed.append(Passed(folder, strangers.readable(f"{folder} cannot be read: {exc.strerror or exc}.")))
        else:
            other = item.checkpoint and _other_revision(folder, item.checkpoint)
            found += [item] * (not other)
            passed += [Passed(folder, other)] if other else []
    return found, passed


def _other_revision(folder: Path, checkpoint: Checkpoint) -> str:
    """Reason for rejecting a hub-cache snapshot of another revision than the wanted one; empty otherwise."""
    if folder.parent.name != "snapshots":
        return ""
    commit = _commit(folder.parent.parent, checkpoint.revision)
    if commit in ("", folder.name):
        return ""
    return f"{folder} is another revision of {checkpoint.id} than {checkpoint.revision or 'main'}, which is {commit}."


def usual_places() -> list[Path]:
    """Existing folders where other programs for YuE keep models: `YUEGP_MODEL_DIRS`, and those of `neighbours`."""
    listed = [Path(p).expanduser() for p in os.environ.get("YUEGP_MODEL_DIRS", "").split(os.pathsep) if p]
    where = _surroundings()
    theirs = [*neighbours.folders(where), *(cache for cache in neighbours.hub_caches(where) if is_folder(cache))]
    return list(dict.fromkeys([*(place for place in listed if is_folder(place)), *theirs]))


def _surroundings() -> neighbours.Surroundings:
    return neighbours.here(near=[home().resolve().parent])


def _model_folders(roots: list[Path]) -> Iterator[tuple[Path, frozenset[str]]]:
    """Folders other than ours that could be a language model or the codec, each once, with their ordinary files."""
    ours = os.path.realpath(models_dir())
    for folder, files in _walk(roots):
        place = os.path.realpath(folder)
        if place == ours or place.startswith(ours + os.sep):
            continue
        weights = any(name.endswith(".safetensors") for name in files) and strangers.is_named(folder)
        if weights or "config.json" in files or is_folder(folder / "final_ckpt"):
            yield folder, files


def files_named(names: set[str], roots: list[Path] | None = None) -> dict[str, list[Path]]:
    """Files of these names in other programs' folders and the hub's cache; the caller compares checksums."""
    out: dict[str, list[Path]] = {}
    places = usual_places() if roots is None else roots
    for folder, files in _walk([*places, *cache_dir().glob("models--*/snapshots")]):
        for name in names & files:
            out.setdefault(name, []).append(folder / name)
    return out


def _walk(roots: Iterable[Path]) -> Iterator[tuple[Path, frozenset[str]]]:
    """Folders at and below the roots, and the extra model folders of any ComfyUI found on the way."""
    where = _surroundings()
    return wander(
        roots,
        lambda folder, files: [
            path for name in comfy_paths.NAMES if name in files for path in comfy_paths.folders(folder / name, where)
        ],
    )

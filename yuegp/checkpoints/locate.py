"""Where a checkpoint lies on this computer: among our models, in the hub's cache, or in another program's folder.

Other programs' files are used where they are and never changed. `Pin` is what we wrote down about our own downloads:
which commit they are of, and the checksum of every file.
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
"""How long it is taken to hold which other programs have a hub cache of their own."""

# Pins


@dataclass
class Pin:
    """What was downloaded: written when a download begins, kept when the files are removed."""

    repo: str
    revision: str | None
    """What was asked for; None is the main branch."""
    commit: str
    """What that was, 40 hexadecimal digits."""
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Size and SHA-256 of every file that has arrived and was verified."""
    complete: bool = False


def read_pin(checkpoint: Checkpoint) -> Pin | None:
    """The pin of a checkpoint; None when it was never downloaded by us. ModelError when it cannot be read."""
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
    """Whether a file's name in a repository is one that lies in its folder, on every system."""
    return bool(name) and not (set(name.split("/")) & {"", ".", ".."}) and not any(c in name for c in "\\:\0")


def readable_pin(checkpoint: Checkpoint) -> Pin | None:
    """As `read_pin`, and None also when it cannot be read: a model that is whole is used all the same."""
    try:
        return read_pin(checkpoint)
    except ModelError:
        return None


def write_pin(checkpoint: Checkpoint, pin: Pin) -> None:
    """Keep a pin. LibraryError when it cannot be written."""
    path = pin_path(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(asdict(pin), indent=2) + "\n").encode())


def pin_path(checkpoint: Checkpoint) -> Path:
    """Where a checkpoint's pin is kept."""
    return models_dir() / "pins" / f"{checkpoint.folder}.json"


# Finding


def own_folder(checkpoint: Checkpoint) -> Path:
    """Where we download it to."""
    return models_dir() / checkpoint.folder


def unfinished(checkpoint: Checkpoint) -> bool:
    """Whether a download of ours was begun and not ended."""
    pin = readable_pin(checkpoint)
    return pin is not None and not pin.complete and own_folder(checkpoint).is_dir()


def locate(checkpoint: Checkpoint) -> Path | None:
    """The folder that holds a checkpoint: where the user said, ours, or the hub's cache. None when there is none that
    looks whole; whether it is, `verify` says. Looks at names only."""
    noted = usable()[1]["places"].get(checkpoint.id) or checkpoint.place
    places = [Path(noted)] if noted and is_folder(Path(noted)) else []  # it may lie on a drive that is not here now
    if not unfinished(checkpoint):
        places.append(own_folder(checkpoint))
    return next((place for place in (*places, *_cached(checkpoint)) if _looks_whole(place, checkpoint.role)), None)


def is_ours(folder: Path) -> bool:
    """Whether a folder lies among our models, so that it may be removed."""
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
    """Snapshots of a repository in the hub's cache and in other programs' own ones, or its folder in them: what was
    downloaded, what is pinned, the revision wanted."""
    if not checkpoint.repo:
        return
    pin = read_pin(checkpoint)
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
    """Other programs' hub caches that are there. Looked for again when what they depend on has changed, and now and
    then: every model asks for them."""
    return [cache for cache in neighbours.hub_caches(_surroundings()) if is_folder(cache)]


def _moment() -> int:
    return int(time.monotonic() // FRESH_SECONDS)


def _commit(folder: Path, revision: str | None) -> str:
    """What a branch was when it was last fetched into a hub cache; empty when that is not known."""
    return (read_small(folder / "refs" / (revision or "main"), 200) or b"").decode("ascii", "replace").strip()


class Found(NamedTuple):
    """A model on disk: the checkpoint it is, or None with what is known about it."""

    folder: Path
    checkpoint: Checkpoint | None
    said: dict[str, object]


def identify(folder: Path) -> Found:
    """Which checkpoint a folder holds, from its configuration, its tensors and its name. ModelError when it holds no
    model that is whole. `said` lacks language and mode when the name does not tell them."""
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
    """The published checkpoint of that description."""
    keys = ["role", "stored", "bits"] + ["language", "mode"] * (said.get("role") == "stage1")
    for entry in usable()[0].values():
        if entry.repo and all(key in said and getattr(entry, key) == said[key] for key in keys):
            return entry
    return None


# Searching


class Passed(NamedTuple):
    """A folder that is named like one of YuE's models, or holds the configuration of one, and cannot be used."""

    folder: Path
    why: str
    """A sentence."""


def search(roots: list[Path] | None = None) -> list[Found]:
    """Models in other programs' folders: below `roots`, else below `usual_places()`. Damaged ones are left out."""
    return survey(roots)[0]


def survey(roots: list[Path] | None = None) -> tuple[list[Found], list[Passed]]:
    """What `search` finds, and what it passes over though it seems to be meant for YuE."""
    found, passed = list[Found](), list[Passed]()
    for folder, files in _model_folders(usual_places() if roots is None else roots):
        try:
            strangers.screen(folder, files)
            strangers.refuse_unwritable(folder)
            if is_folder(folder / "final_ckpt") and not _looks_whole(folder, "codec"):
                raise ModelError(f"{folder} lacks files of the sound model.")
            item = identify(folder)
        except strangers.AnotherKind:
            continue  # these folders are full of them
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
    """What is wrong with a snapshot in a hub cache that is not of the revision wanted; else nothing."""
    if folder.parent.name != "snapshots":
        return ""
    commit = _commit(folder.parent.parent, checkpoint.revision)
    if commit in ("", folder.name):
        return ""
    return f"{folder} is another revision of {checkpoint.id} than {checkpoint.revision or 'main'}, which is {commit}."


def usual_places() -> list[Path]:
    """Where other programs for YuE keep their models: `YUEGP_MODEL_DIRS`, and what `neighbours` knows of, as far as
    they are there."""
    listed = [Path(p).expanduser() for p in os.environ.get("YUEGP_MODEL_DIRS", "").split(os.pathsep) if p]
    where = _surroundings()
    theirs = [*neighbours.folders(where), *(cache for cache in neighbours.hub_caches(where) if is_folder(cache))]
    return list(dict.fromkeys([*(place for place in listed if is_folder(place)), *theirs]))


def _surroundings() -> neighbours.Surroundings:
    return neighbours.here(near=[home().resolve().parent])


def _model_folders(roots: list[Path]) -> Iterator[tuple[Path, frozenset[str]]]:
    """Folders that could be a language model or the codec, not ours, each once, with their ordinary files."""
    ours = os.path.realpath(models_dir())
    for folder, files in _walk(roots):
        place = os.path.realpath(folder)
        if place == ours or place.startswith(ours + os.sep):
            continue
        weights = any(name.endswith(".safetensors") for name in files) and strangers.is_named(folder)
        if weights or "config.json" in files or is_folder(folder / "final_ckpt"):
            yield folder, files


def files_named(names: set[str], roots: list[Path] | None = None) -> dict[str, list[Path]]:
    """Files of these names in other programs' folders and the hub's cache, to be compared by their checksum."""
    out: dict[str, list[Path]] = {}
    places = usual_places() if roots is None else roots
    for folder, files in _walk([*places, *cache_dir().glob("models--*/snapshots")]):
        for name in names & files:
            out.setdefault(name, []).append(folder / name)
    return out


def _walk(roots: Iterable[Path]) -> Iterator[tuple[Path, frozenset[str]]]:
    """Folders at and below the roots, and those that a ComfyUI found on the way looks into besides."""
    where = _surroundings()
    return wander(
        roots,
        lambda folder, files: [
            path for name in comfy_paths.NAMES if name in files for path in comfy_paths.folders(folder / name, where)
        ],
    )

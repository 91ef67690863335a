"""Where a checkpoint lies on this computer: among our models, in the hub's cache, or in another program's folder.

Other programs' files are used where they are and never changed. `Pin` is what we wrote down about our own downloads:
which commit they are of, and the checksum of every file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from .checked import Fault, build, object_of
from .disk import read_json, write_atomic
from .errors import ModelError
from .library import home
from .registry import VOCABULARIES, Checkpoint, models_dir, read_name, usable
from .verify import language_model, weight_files

DEPTH = 5
"""How far below a given folder models are looked for: ComfyUI's nodes keep theirs four folders down."""


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
    places = [Path(noted)] if noted else []
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
                path.suffix in (".safetensors", ".pth") for path in (folder / "final_ckpt").iterdir()
            )
        return (folder / "config.json").is_file() and bool(weight_files(folder))
    except (ModelError, OSError):
        return False


_CODEC_PARTS = (("final_ckpt", "yaml"), ("decoders", "yaml"))


def cache_dir() -> Path:
    """The hub library's own cache. Source: its documentation of HF_HUB_CACHE, HF_HOME and XDG_CACHE_HOME."""
    environment = os.environ
    if own := environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE"):
        return Path(own).expanduser()
    base = environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(base).expanduser() / "hub"


def _cached(checkpoint: Checkpoint) -> Iterator[Path]:
    """Snapshots of a repository in the hub's cache: the revision wanted, or any when none is."""
    if not checkpoint.repo:
        return
    folder = cache_dir() / f"models--{checkpoint.repo.replace('/', '--')}"
    pin = readable_pin(checkpoint)
    revision = checkpoint.revision or "main"
    named = [pin.commit] if pin else []
    try:
        named.append((folder / "refs" / revision).read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError):
        named.append(revision)
    yield from (folder / "snapshots" / name for name in named)


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
    said = read_name("/".join(folder.parts[-3:])) | {"stored": model.stored}
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


def search(roots: list[Path] | None = None) -> list[Found]:
    """Models in other programs' folders: below `roots`, else below `usual_places()`. Damaged ones are left out."""
    out = []
    for folder in _model_folders(usual_places() if roots is None else roots):
        try:
            out.append(identify(folder))
        except ModelError:
            continue  # a model of another kind: these folders are full of them
    return out


def usual_places() -> list[Path]:
    """Where other programs for YuE keep their models: `YUEGP_MODEL_DIRS`, and their usual folders at home and beside
    our own, as far as they exist."""
    listed = [Path(p).expanduser() for p in os.environ.get("YUEGP_MODEL_DIRS", "").split(os.pathsep) if p]
    near = {Path.home(), home().resolve().parent}
    guessed = [base / name for base in near for name in _OTHERS]
    return [place for place in dict.fromkeys([*listed, *guessed]) if place.is_dir()]


_OTHERS = (
    "ComfyUI/models", "ComfyUI/custom_nodes/ComfyUI_YuE", "pinokio/api", "YuE", "YuEGP", "YuE-exllamav2", "YuE-UI",
    "YuE-Interface", "YuE-extend",
)  # fmt: skip
"""Folders of programs that use the same checkpoints."""


def _model_folders(roots: list[Path]) -> Iterator[Path]:
    """Folders that could be a language model or the codec, not ours, each once."""
    ours, seen = os.path.realpath(models_dir()), set[str]()
    for folder, files in _walk(roots):
        place = os.path.realpath(folder)
        if place in seen or place == ours or place.startswith(ours + os.sep):
            continue
        seen.add(place)
        if (folder / "final_ckpt").is_dir() or (
            "config.json" in files and any(name.endswith(".safetensors") for name in files)
        ):
            yield folder


def files_named(names: set[str], roots: list[Path] | None = None) -> dict[str, list[Path]]:
    """Files of these names in other programs' folders and the hub's cache, to be compared by their checksum."""
    out: dict[str, list[Path]] = {}
    places = usual_places() if roots is None else roots
    for folder, files in _walk([*places, *cache_dir().glob("models--*/snapshots")]):
        for name in names & set(files):
            out.setdefault(name, []).append(folder / name)
    return out


def _walk(roots: list[Path]) -> Iterator[tuple[Path, list[str]]]:
    for root in roots:
        start = len(root.parts)
        for folder, below, files in os.walk(root):
            if len(Path(folder).parts) - start >= DEPTH:
                below.clear()
            below[:] = sorted(name for name in below if not name.startswith(".") and name != "node_modules")
            yield Path(folder), files

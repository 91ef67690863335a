"""Songs on disk: one folder per song, one inside it per take. Readable by people, copyable to another machine.

    songs/<date>-<slug>-<id>/
      song.json            format number, SongInfo, the request as first asked
      lyrics.txt           the lyrics as they were typed
      references/          copies of the reference recordings
      takes/<nnn>/
        take.json          format number, TakeInfo with the take's own request
        stage1.npz         codes (2, 1, frames) int16
        stage2.npz         codes (2, 8, frames) int16, mask (2, frames) bool: the frames that are refined
        leads.npz          codes (seams, 2, 8, frames): what stood before kept codes in their own take
        vocal.flac  instrumental.flac  mix.flac

Nothing is overwritten: creating the folder claims the name. Files appear whole or not at all. Codes are written before
the `take.json` that lists them, so after a crash there may be more codes than spans, never fewer; spans decide. An
error names the damaged file, which stays as it is. Older formats are read through `migrations.py` and rewritten only
when something changes. `audio/files.py` writes the sound.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import secrets
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from yuegp import files
from yuegp.checked import Fault, Newer, build, shown, version
from yuegp.errors import LibraryError, RequestError
from yuegp.song.schema import (
    Reference,
    SongInfo,
    SongRequest,
    Stage,
    TakeInfo,
    request_from_dict,
    take_from_dict,
    to_dict,
)
from yuegp.tokens.vocab import YUE_V1

from .migrations import migrate_song, migrate_take

FORMAT = 3
"""Format number of song.json and take.json. Raised only together with a migration."""

SLUG_BYTES = 60
"""Longest title part of a folder name, in UTF-8 bytes: fits the 255 of file systems and Windows' 260 with the rest."""

T = TypeVar("T")


# Songs


@dataclass
class Song:
    """A song folder. `info` mirrors `song.json`; `request` is the first request. Reference paths are absolute here and
    relative on disk."""

    folder: Path
    info: SongInfo
    request: SongRequest

    def save_info(self, info: SongInfo) -> None:
        """Write `info` to `song.json`."""
        _write_song(self.folder, info, self.request)
        self.info = info

    def take_numbers(self) -> list[int]:
        """Numbers of existing takes, oldest first. Skips folders without take.json, left by an interrupted creation."""
        try:
            folders = [p for p in (self.folder / "takes").iterdir() if _TAKE.fullmatch(p.name)]
            return sorted(int(p.name) for p in folders if (p / "take.json").exists())
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise files.cannot_read(self.folder / "takes", exc) from exc

    def take(self, number: int) -> Take:
        """Open an existing take. Raises LibraryError."""
        folder = self.folder / "takes" / f"{number:03}"
        if not (folder / "take.json").exists():
            known = ", ".join(map(str, self.take_numbers())) or "none"
            raise LibraryError(f"{self.folder} has no take {number}.", f"Takes of this song: {known}.")
        return Take.open(folder)

    def takes(self) -> tuple[list[Take], list[LibraryError]]:
        """The readable takes, oldest first, and the errors of the others."""
        found, faults = list[Take](), list[LibraryError]()
        for number in self.take_numbers():
            try:
                found.append(self.take(number))
            except LibraryError as exc:
                faults.append(exc)
        return found, faults

    def chosen(self, faults: list[LibraryError] | None = None) -> Take:
        """The picked take, else the newest rendered one, else the newest. Skips unreadable takes and appends their
        errors to `faults`; without `faults`, an unreadable picked take raises. Raises LibraryError when none is left
        and when the picked one does not exist."""
        seen = [] if faults is None else faults
        if self.info.picked is not None:
            try:
                return self.take(self.info.picked)
            except LibraryError as exc:
                if faults is None or self.info.picked not in self.take_numbers():
                    raise
                seen.append(exc)
        newest: Take | None = None
        for number in reversed(self.take_numbers()):
            try:
                take = self.take(number)
            except LibraryError as exc:
                seen += [exc] if number != self.info.picked else []
                continue
            if take.info.stage is Stage.RENDERED:
                return take
            newest = newest or take
        if newest:
            return newest
        raise seen[0] if seen else LibraryError(f"{self.folder} has no take yet.", "Make the song again.")

    def new_take(
        self,
        info: TakeInfo,
        codes: np.ndarray | None = None,
        refined: tuple[np.ndarray, np.ndarray] | None = None,
        leads: np.ndarray | None = None,
    ) -> Take:
        """Create a take under the next free number, which replaces the one in `info`; two processes never get the same.
        It may begin with codes (2, 1, frames), refined codes and mask, and leads; it exists once all are written."""
        number = max(self.take_numbers(), default=0)
        while True:
            number += 1
            folder = self.folder / "takes" / f"{number:03}"
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:
                continue
            except OSError as exc:
                raise files.cannot_write(folder, exc) from exc
        info = dataclasses.replace(info, number=number, created=now())
        take = Take(folder, info)
        if refined is not None:
            take.write_refined(*refined)
        if leads is not None:
            take.save_leads(leads)
        take.save_stage1(np.zeros((2, 1, 0), np.int16) if codes is None else codes, info)
        return take


def now() -> str:
    """Current time as songs store it: ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def create(request: SongRequest, root: Path, text: str | None = None) -> Song:
    """Create a song folder under `root`. Copies reference recordings into it and keeps `text` as lyrics.txt.

    song.json is written last: a folder without it was left by an interrupted creation. Raises LibraryError when the
    folder cannot be written, RequestError when a reference cannot be read."""
    folder = _claim(root, f"{datetime.now().date().isoformat()}-{slug(request.title)}")
    try:
        request = dataclasses.replace(request, reference=_copy_references(request.reference, folder))
        if text is not None:
            files.write_atomic(folder / "lyrics.txt", text.encode("utf-8", "surrogatepass"))
        info = SongInfo(title=request.title, created=now())
        _write_song(folder, info, request)
    except BaseException:
        files.discard(folder)
        raise
    return Song(folder, info, request)


def open_song(folder: Path | str) -> Song:
    """Open the song in `folder`. Raises LibraryError when it is absent, damaged or of a newer format."""
    folder = Path(folder)
    if not os.path.lexists(folder / "song.json"):
        raise LibraryError(
            f"{folder} is not a song: there is no song.json in it.", "Name a folder inside your songs folder."
        )
    path = folder / "song.json"
    info, request = _read_json(
        path, lambda data: (build(SongInfo, data["song"]), request_from_dict(data["request"])), migrate_song
    )
    return Song(folder, info, _with_absolute_paths(request, folder))


def _write_song(folder: Path, info: SongInfo, request: SongRequest) -> None:
    stored = _with_relative_paths(request, folder)
    _write_json(folder / "song.json", {"song": to_dict(info), "request": to_dict(stored)})


def _read_take(folder: Path) -> TakeInfo:
    song = folder.parent.parent

    def migrated(data: dict[str, Any]) -> dict[str, Any]:
        request = files.read_json(song / "song.json")["request"] if data["format"] == 1 else {}
        return migrate_take(data, request)

    def made(data: dict[str, Any]) -> TakeInfo:
        info = take_from_dict(data["take"])
        if f"{info.number:03}" != folder.name:
            raise Fault(f"it is of take {info.number}, and lies in the folder of take {folder.name}")
        return info

    info = _read_json(folder / "take.json", made, migrated)
    return dataclasses.replace(info, request=_with_absolute_paths(info.request, song))


def slug(title: str) -> str:
    """Title part of a folder name, valid on every system: keeps letters of any script and emoji; removes separators,
    control and direction characters; at most `SLUG_BYTES` bytes; `song` when nothing is left.

    Reserved names of Windows (`CON`, `NUL` …) need no care, since a date precedes and an id follows."""
    text = "".join(c for c in unicodedata.normalize("NFC", title) if unicodedata.category(c) not in ("Cf", "Cs"))
    text = re.sub(r'[\s\x00-\x1f\x7f-\x9f<>:"/\\|?*]+', "-", text)
    text = text.encode()[:SLUG_BYTES].decode(errors="ignore")
    return text.strip(".-") or "song"


def _claim(root: Path, stem: str) -> Path:
    """Create a folder `<stem>-<id>`, which claims the name."""
    while True:
        folder = root / f"{stem}-{secrets.token_hex(3)}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            return folder
        except FileExistsError as exc:
            if not root.is_dir():
                raise files.cannot_write(root, exc) from exc
        except OSError as exc:
            raise files.cannot_write(folder, exc) from exc


_TAKE = re.compile(r"\d{3}|[1-9]\d{3,5}", re.ASCII)
"""Name of a take's folder."""

REFERENCES = ("mix", "vocal", "instrumental")


def _copy_references(reference: Reference | None, folder: Path) -> Reference | None:
    """Copy the reference's files to `references/`. Returns the reference with its paths there."""
    if reference is None:
        return None
    paths: dict[str, Any] = {}
    for name in REFERENCES:
        if (source := getattr(reference, name)) is None:
            continue
        ending = Path(source).suffix.lower()
        inside = folder / "references" / (name + (ending if re.fullmatch(r"\.\w{1,5}", ending) else ""))
        try:
            data = Path(source).read_bytes()
        except OSError as exc:
            raise RequestError(
                f"The reference {source} cannot be read: {exc.strerror or exc}.", "Choose a file that exists."
            ) from exc
        try:
            inside.parent.mkdir(exist_ok=True)
        except OSError as exc:
            raise files.cannot_write(inside.parent, exc) from exc
        files.write_atomic(inside, data)
        paths[name] = str(inside.resolve())
    return dataclasses.replace(reference, **paths)


def _with_relative_paths(request: SongRequest, folder: Path) -> SongRequest:
    """The request as stored, with reference paths relative to the song folder, which may be moved."""
    if request.reference is None:
        return request
    paths: dict[str, Any] = {
        name: str(PurePosixPath(Path(path).resolve().relative_to(folder.resolve())))
        for name in REFERENCES
        if (path := getattr(request.reference, name)) is not None
    }
    return dataclasses.replace(request, reference=dataclasses.replace(request.reference, **paths))


def _with_absolute_paths(request: SongRequest, folder: Path) -> SongRequest:
    """The request with absolute reference paths. Refuses paths out of the folder, which may come from elsewhere."""
    if request.reference is None:
        return request
    paths: dict[str, Any] = {}
    for name in REFERENCES:
        if (inside := getattr(request.reference, name)) is None:
            continue
        try:
            path = (folder / inside).resolve()
        except (OSError, ValueError, RuntimeError) as exc:  # circular links, or a name that no file can have
            raise files.damaged(folder / "song.json", f"its reference {shown(inside)} is no path") from exc
        if not path.is_relative_to(folder.resolve()):
            raise LibraryError(
                f"{folder / 'song.json'} names a reference outside the song folder: {shown(inside)}.",
                "Copy the file into the song's references folder and correct song.json.",
            )
        paths[name] = str(path)
    return dataclasses.replace(request, reference=dataclasses.replace(request.reference, **paths))


# Takes


@dataclass
class Take:
    """A take's folder. `info` mirrors `take.json`."""

    folder: Path
    info: TakeInfo

    @classmethod
    def open(cls, folder: Path) -> Take:
        """Open the take in `folder`, which must exist. Raises LibraryError."""
        return cls(folder, _read_take(folder))

    def sweep(self) -> None:
        """Remove half-written files of a killed run, recognised by the temporary names of `files` and `audio`. The
        caller must hold the song's lock."""
        for path in self.folder.glob(".*"):
            if _HALF_WRITTEN.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()

    @property
    def vocal(self) -> Path:
        return self.folder / "vocal.flac"

    @property
    def instrumental(self) -> Path:
        return self.folder / "instrumental.flac"

    @property
    def mix(self) -> Path:
        return self.folder / "mix.flac"

    @property
    def frames(self) -> int:
        """Frames of finished sections."""
        return self.info.frames

    def save_info(self, info: TakeInfo) -> None:
        stored = dataclasses.replace(info, request=_with_relative_paths(info.request, self.folder.parent.parent))
        _write_json(self.folder / "take.json", {"take": to_dict(stored)})
        self.info = info

    def save_stage1(self, codes: np.ndarray, info: TakeInfo) -> None:
        """Write codes (2, 1, frames) of the sections in `info.spans`, then `info`."""
        codes = _own_codes(codes, 1)
        if codes.shape[2] != info.frames:
            raise ValueError(f"{codes.shape[2]} frames of codes for spans that end at {info.frames}")
        files.write_npz(self.folder / "stage1.npz", codes=codes)
        self.save_info(info)

    def save_stage2(self, codes: np.ndarray, mask: np.ndarray, info: TakeInfo) -> None:
        """Write codes (2, 8, frames), valid only at frames marked in `mask` (2, frames), then `info`."""
        self.write_refined(codes, mask)
        self.save_info(info)

    def write_refined(self, codes: np.ndarray, mask: np.ndarray) -> None:
        """Write the codes and mask of `save_stage2` without the info."""
        codes, mask = _own_codes(codes, YUE_V1.codebooks), np.asarray(mask)
        if mask.dtype != bool or mask.shape != (2, codes.shape[2]):
            raise ValueError(f"expected a bool mask of shape (2, {codes.shape[2]}), got {mask.dtype} {mask.shape}")
        files.write_npz(self.folder / "stage2.npz", codes=codes, mask=mask)

    def save_leads(self, codes: np.ndarray) -> None:
        """Write the codes before each seam's kept codes in their own take, (seams, 2, 8, frames)."""
        files.write_npz(self.folder / "leads.npz", codes=codes)

    def load_stage1(self) -> np.ndarray:
        """Codes (2, 1, frames) of the finished sections; no frames in a new take."""
        path = self.folder / "stage1.npz"
        if not self.frames and not path.exists():
            return np.zeros((2, 1, 0), np.int16)
        codes = _checked(path, files.read_npz(path, "codes")[0], 1)
        if codes.shape[2] < self.frames:
            raise files.damaged(path, f"it holds {codes.shape[2]} frames, but take.json lists {self.frames}")
        return codes[:, :, : self.frames]

    def load_stage2(self) -> tuple[np.ndarray, np.ndarray]:
        """Codes (2, 8, frames) and mask (2, frames) of the finished sections; unrefined frames are zero and
        unmarked."""
        path, frames = self.folder / "stage2.npz", self.frames
        codes = np.zeros((2, YUE_V1.codebooks, frames), np.int16)
        mask = np.zeros((2, frames), bool)
        if path.exists():
            saved, marked = files.read_npz(path, "codes", "mask")
            saved = _checked(path, saved, YUE_V1.codebooks)
            if marked.dtype != bool or marked.ndim != 2 or marked.shape[0] != 2:
                raise files.damaged(path, f"its mask is {marked.dtype} of shape {marked.shape}")
            if marked.shape[1] != saved.shape[2]:  # format 1 marked chunks of 300 frames
                marked = np.repeat(marked, 300, axis=1)
            known = min(frames, saved.shape[2], marked.shape[1])
            codes[:, :, :known], mask[:, :known] = saved[:, :, :known], marked[:, :known]
        return codes, mask

    def check_codes(self) -> None:
        """Raise LibraryError unless all codes that `info` lists are there and whole. Reads them all."""
        self.load_stage1()
        self.load_stage2()
        self.load_leads()

    def load_leads(self) -> np.ndarray:
        """The leads of `info.seams`, (seams, 2, 8, frames)."""
        path = self.folder / "leads.npz"
        if not self.info.seams:
            return np.zeros((0, 2, YUE_V1.codebooks, 0), np.int16)
        leads = files.read_npz(path, "codes")[0]
        if leads.ndim != 4 or len(leads) < len(self.info.seams):
            raise files.damaged(path, f"it holds leads of shape {leads.shape} for {len(self.info.seams)} seams")
        for lead in leads:
            _checked(path, lead, YUE_V1.codebooks)
        return leads[: len(self.info.seams)]


_HALF_WRITTEN = re.compile(
    r"\.(take\.json|(stage1|stage2|leads)\.npz|(vocal|instrumental|mix)\.flac)\.([0-9a-f]{8}\.tmp|\d{1,10}\.part)"
)


def _own_codes(codes: np.ndarray, codebooks: int) -> np.ndarray:
    """Generated codes as int16. Raises ValueError when they are no valid codes."""
    if fault := _fault(codes, codebooks):
        raise ValueError(f"not codes of shape (2, {codebooks}, frames): {fault}")
    return codes.astype(np.int16)


def _checked(path: Path, codes: np.ndarray, codebooks: int) -> np.ndarray:
    if fault := _fault(codes, codebooks) or (f"they are {codes.dtype}, not int16" if codes.dtype != np.int16 else ""):
        raise files.damaged(path, f"of its codes, {fault}")
    return codes


def _fault(codes: np.ndarray, codebooks: int) -> str:
    if codes.dtype.kind not in "iu" or codes.ndim != 3 or codes.shape[:2] != (2, codebooks):
        return f"the shape is {codes.shape} ({codes.dtype}) instead of (2, {codebooks}, frames)"
    if codes.size and not (0 <= codes.min() and codes.max() < YUE_V1.codebook_size):
        return f"the values reach from {codes.min()} to {codes.max()} instead of 0 to {YUE_V1.codebook_size - 1}"
    return ""


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps({"format": FORMAT, **content}, indent=2, ensure_ascii=False)
    files.write_atomic(path, (text + "\n").encode("utf-8", "surrogatepass"))


def _read_json(
    path: Path, make: Callable[[dict[str, Any]], T], migrate: Callable[[dict[str, Any]], dict[str, Any]]
) -> T:
    try:
        data = files.read_json(path)
        version(data, FORMAT)
        return make(migrate(data))
    except Newer as exc:
        raise LibraryError(
            f"{path} was made by a newer yuegp (format {exc}; this one reads up to {FORMAT}).",
            "Update yuegp to open this song.",
        ) from exc
    except OSError as exc:
        raise files.cannot_read(path, exc) from exc
    except Fault as exc:
        raise files.damaged(path, str(exc)) from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:  # an entry that a migration needs is wrong
        raise files.damaged(path, f"{type(exc).__name__} {exc}") from exc

"""Exports finished takes for other programs, and imports a song's settings from such a file.

Sound is copied sample by sample from the take's 24-bit FLAC files; `audio/mix.py` has limited it, `audio/metadata.py`
writes the tags. Needs no model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import re
import secrets
import unicodedata
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from yuegp import __version__
from yuegp.audio import files, metadata
from yuegp.checked import Fault, Newer, parse, version
from yuegp.errors import LibraryError, RequestError
from yuegp.files import JSON_BYTES, check_writable, discard, patiently
from yuegp.progress import Progress, quiet
from yuegp.song import lyrics
from yuegp.song.notes import Note, NoteCode, note
from yuegp.song.schema import Reference, SongRequest, Stage, TakeInfo, take_from_dict, to_dict
from yuegp.tokens.vocab import FRAMES_PER_SECOND

from . import store
from .migrations import migrate_take
from .store import Song, Take

PARTS = ("mix", "vocal", "instrumental")

KINDS = {"wav16": ("wav16", 16), "wav24": ("wav24", 24), "flac": ("flac24", 24), "mp3": ("mp3", 24)}
"""Kinds of export: the format in `audio.files.FORMATS`, and the bits that samples are rounded to."""

NAME_BYTES = 120
"""Longest title in a file name, in UTF-8 bytes: with ` (2) - instrumental.flac` it stays far below 255."""

PORTS = [f"{port}{n}" for port in ("COM", "LPT") for n in "0123456789¹²³"]
RESERVED = frozenset(["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", *PORTS])
"""Device names on Windows, with any ending."""


# Export


def export(
    song: Song,
    take: Take,
    target: Path | str,
    kind: str = "wav24",
    parts: Sequence[str] = PARTS,
    artist: str = "",
    progress: Progress = quiet,
) -> list[Path]:
    """Write a rendered take as `<title> - mix.wav` and so on, and its words as `<title>.lrc`. Returns the paths.

    `target` is a folder, made when absent, or a name such as `out/Song.wav`: a single part gets exactly this name,
    several get it as their title. When any of the names is taken, all get ` (2)`; nothing is ever overwritten. All
    files are finished before the first appears. `progress` counts the frames of each part.

    `kind` is one of `KINDS`. Samples are rounded to its bits without dither; the takes' own 24 bits are kept. With
    crossover `smooth`, the WAV and FLAC mix is written as the exact sum of the two stems; in lossy MP3 (320 kb/s,
    constant) the sum is only close. The released program's crossover (`yue`) changes only the mix, so stems do not sum
    to it in any format. Limiting is one gain for all three, applied at rendering; its true peak of -1 dB leaves room
    for MP3: noise, square and saw waves at that level decoded to at most 0.91 (measured).

    Raises RequestError for an invalid kind, part or name, LibraryError for a take that is not rendered or is damaged,
    and when the target cannot be written."""
    if kind not in KINDS:
        raise RequestError(f"There is no export format {kind!r}.", f"Choose one of: {', '.join(KINDS)}.")
    parts = tuple(dict.fromkeys(parts))
    wrong = [part for part in parts if part not in PARTS]
    if wrong or not parts:
        what = f"A song has no part called {', '.join(wrong)}." if wrong else "No part of the song was chosen."
        raise RequestError(what, f"Choose from: {', '.join(PARTS)}.")
    if take.info.stage is not Stage.RENDERED:
        raise LibraryError(
            f"Take {take.info.number} of {song.folder} has no sound yet: it has come as far as {take.info.stage}.",
            "Resume the song, then export it.",
        )
    title = song.info.title or take.info.request.title
    ending = "." + files.FORMATS[KINDS[kind][0]]["format"].lower()
    folder, stem, exact = _names(Path(target).expanduser(), title, ending)
    names = {part: f" - {part}{ending}" for part in parts}
    if exact and len(parts) == 1:
        names = {parts[0]: ending}
    with _opened(take) as sounds:
        frames = sounds["mix"].frames
        check_writable(folder, frames * 3 * (len(parts) + 1))
        hidden = folder / f".yuegp-{secrets.token_hex(4)}"
        try:
            hidden.mkdir()
            made = {ending: hidden / part for part, ending in names.items()} | {".lrc": hidden / "lrc"}
            _save(made[".lrc"], lrc(take.info, title).encode("utf-8", "replace"))
            for part in parts:
                path = made[names[part]]
                _encode(path, kind, _samples(sounds, part, kind, take), frames, sounds[part].samplerate, progress)
                _save(path, metadata.embed(path.read_bytes(), _tags(take.info, title, part, artist), names[part]))
            return _put(made, folder, stem)
        except OSError as exc:
            raise LibraryError(
                f"{folder} cannot be written: {exc.strerror or exc}.", "Free some space, or choose another folder."
            ) from exc
        finally:
            discard(hidden)


def _names(target: Path, title: str, ending: str) -> tuple[Path, str, bool]:
    """Folder, name without part and ending, and whether the caller chose that name."""
    suffix = target.suffix.lower()
    if suffix not in (".wav", ".flac", ".mp3") or target.is_dir():
        return target, file_name(title), False
    if suffix != ending:
        raise RequestError(
            f"{target.name} ends in {suffix}, but the format asked for is written as {ending}.",
            f"Name it {target.stem}{ending}, or choose the other format.",
        )
    return target.parent, file_name(target.stem), True


def file_name(title: str) -> str:
    """Beginning of a file name for a title, valid on every system: keeps letters of any script, blanks and emoji;
    removes separators, control and direction characters; at most `NAME_BYTES` bytes; `song` when nothing is left."""
    text = "".join(c for c in unicodedata.normalize("NFC", title) if unicodedata.category(c) not in ("Cf", "Cs"))
    text = re.sub(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\s]+', " ", text)
    text = text.lstrip(" .").encode()[:NAME_BYTES].decode(errors="ignore").rstrip(" .")
    return f"_{text}" if text.split(".")[0].rstrip().upper() in RESERVED else text or "song"


def _put(made: dict[str, Path], folder: Path, stem: str) -> list[Path]:
    """Give finished files their names, with the first number at which all are free. Identical words may exist already,
    from an export of the same take in another format. Returns the paths."""
    for number in itertools.count(1):
        base = stem if number == 1 else f"{stem} ({number})"
        targets = {folder / f"{base}{ending}": path for ending, path in made.items()}
        words = next(path for path in targets if path.suffix == ".lrc")
        same = words.is_file() and words.read_bytes() == made[".lrc"].read_bytes()
        taken = [path for path in targets if os.path.lexists(path)]
        if not taken or (same and taken == [words]):
            break
    for target, source in targets.items():
        if target not in taken:
            patiently(partial(_rename, source, target), target, "written")
    return list(targets)


def _save(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _rename(source: Path, target: Path) -> None:
    """Rename without ever replacing, by a hard link: a plain rename replaces everywhere but on Windows. Raises
    FileExistsError when the name is taken."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError as exc:  # memory sticks and some network disks have no hard links
        if os.path.lexists(target):
            raise FileExistsError(f"{target.name} has appeared meanwhile") from exc
        os.rename(source, target)


# Sound


@contextlib.contextmanager
def _opened(take: Take) -> Iterator[dict[str, Any]]:
    """Open the take's three sound files, by part. Raises LibraryError unless all can be read and fit together."""
    import soundfile

    with contextlib.ExitStack() as stack:
        sounds: dict[str, Any] = {}
        for part in PARTS:
            path: Path = getattr(take, part)
            try:
                sounds[part] = stack.enter_context(soundfile.SoundFile(path))
            except (soundfile.LibsndfileError, OSError) as exc:
                raise _damaged(path, f"it cannot be read as sound ({str(exc).rstrip('.')})") from exc
        shapes = {(s.frames, s.samplerate, s.channels) for s in sounds.values()}
        if len(shapes) > 1 or sounds["mix"].channels != 1:
            raise _damaged(take.folder, "its stems and its mix do not have the same length and rate, in one channel")
        yield sounds


def _damaged(path: Path, why: str) -> LibraryError:
    return LibraryError(f"{path} is damaged: {why}.", "Restore the file from a copy, or make a new take.")


def _samples(sounds: dict[str, Any], part: str, kind: str, take: Take) -> Iterator[np.ndarray]:
    """Yield blocks of a part as int32, rounded to the kind's bits, in the upper bits as libsndfile expects."""
    import soundfile

    lost = 32 - KINDS[kind][1]

    def rounded(name: str, at: int) -> np.ndarray:
        sound = sounds[name]
        count, block = min(files.BLOCK, sound.frames - at), np.zeros(0, np.int32)
        with contextlib.suppress(soundfile.LibsndfileError):
            sound.seek(at)
            block = sound.read(count, dtype="int32")
        if len(block) < count:
            raise _damaged(getattr(take, name), f"its sound cannot be read from {at / sound.samplerate:.1f} s on")
        return (block.astype(np.int64) + (1 << (lost - 1))) >> lost

    summed = part == "mix" and kind != "mp3" and take.info.request.crossover == "smooth"
    top = (1 << (KINDS[kind][1] - 1)) - 1
    for at in range(0, sounds[part].frames, files.BLOCK):
        block = rounded("vocal", at) + rounded("instrumental", at) if summed else rounded(part, at)
        yield (np.clip(block, -top - 1, top) << lost).astype(np.int32)


def _encode(path: Path, kind: str, blocks: Iterator[np.ndarray], frames: int, rate: int, progress: Progress) -> None:
    """Write the blocks as a sound file at `path`, in a temporary folder of ours."""
    import soundfile

    done = 0
    try:
        with soundfile.SoundFile(path, "w", samplerate=rate, channels=1, **files.FORMATS[KINDS[kind][0]]) as file:
            for block in blocks:
                progress(path.name, done, frames)
                file.write(block)
                done += len(block)
        written = soundfile.info(str(path)).frames
        if written != frames:  # libsndfile does not report every short write
            raise OSError(f"only {written} of {frames} frames were written")
    except (soundfile.LibsndfileError, AssertionError) as exc:  # soundfile asserts that writes are complete
        raise OSError(str(exc).rstrip(".") or "the write was cut short") from exc
    progress(path.name, frames, frames)


# Words


def lrc(info: TakeInfo, title: str) -> str:
    """The lyrics with times in LRC, for players and karaoke programs: each section's label at its start, its lines
    spread evenly over it. Omits lines of unmade sections; an instrumental song has labels only."""
    lines = [f"[ti:{' '.join(title.split())}]", f"[re:yuegp {__version__}]"]
    for span in info.spans:
        section = info.request.sections[span.section]
        words = [] if info.request.instrumental else [line for line in section.words.splitlines() if line.strip()]
        lines.append(f"{_time(span.start)}({section.label})")
        for i, line in enumerate(words):
            lines.append(_time(span.start + (span.stop - span.start) * i / len(words)) + line.strip())
    return "\n".join([*lines, _time(info.frames), ""])


def _time(frame: float) -> str:
    hundredths = math.floor(frame * 100 / FRAMES_PER_SECOND)
    return f"[{hundredths // 6000:02}:{hundredths // 100 % 60:02}.{hundredths % 100:02}]"


def _tags(info: TakeInfo, title: str, part: str, artist: str) -> metadata.Tags:
    request = info.request
    credit = info.made_with.credit if info.made_with else ""
    made = f"Model {PurePath(request.model).name}, seed {request.seed}, take {info.number}, {part}."
    return metadata.Tags(
        title=title if part == "mix" else f"{title} ({part})".strip(),
        artist=artist,
        genre=request.tags,
        date=info.created[:10],
        comment="\n".join([metadata.LABEL, *([f"Made with {credit}"] if credit else []), made]),
        lyrics=lyrics.write(request.sections),
        software=f"yuegp {__version__}",
        settings=settings(info, title),
    )


def settings(info: TakeInfo, title: str) -> str:
    """Settings to make the take again, as one line of ASCII: a take.json without this machine's paths, since exported
    songs are passed on. Paths of models and references keep only their last part."""
    request = dataclasses.replace(info.request, title=title, model=PurePath(info.request.model).name)
    if reference := request.reference:
        names: dict[str, Any] = {key: PurePath(path).name for key in PARTS if (path := getattr(reference, key))}
        request = dataclasses.replace(request, reference=dataclasses.replace(reference, **names))
    made_with = info.made_with and dataclasses.replace(info.made_with, model=PurePath(info.made_with.model).name)
    info = dataclasses.replace(info, request=request, made_with=made_with)
    return json.dumps({"format": store.FORMAT, "take": to_dict(info)}, separators=(",", ":"))


# Import


def import_file(path: Path | str) -> tuple[SongRequest, tuple[Note, ...]]:
    """The request a song was made from, and notes: from a file that `export` wrote, or from a song's folder, its
    song.json or a take.json in it.

    Sound files hold no references: they are left out, with a note. Raises RequestError for settings that are missing,
    damaged or of a newer program, LibraryError for a song folder that cannot be read."""
    path = Path(path).expanduser()
    if path.name == "take.json":
        number, song = _number(path), store.open_song(path.absolute().parents[2])
        info = song.take(number).info
        return dataclasses.replace(info.request, title=song.info.title), _notes(info, None)
    if path.is_dir() or path.name == "song.json":
        song = store.open_song(path if path.is_dir() else path.parent)
        return dataclasses.replace(song.request, title=song.info.title), ()
    text = metadata.read_tags(path).settings
    if not text:
        raise RequestError(
            f"{path} carries no settings of yuegp.", "Give a file that yuegp exported and no other program converted."
        )
    info = _read_settings(path, text)
    request = dataclasses.replace(info.request, reference=None)
    return request, _notes(info, info.request.reference)


def _number(path: Path) -> int:
    folder = path.absolute().parent
    if not (folder.parent.name == "takes" and folder.name.isdecimal()):
        raise RequestError(f"{path} does not lie in a song's takes folder.", "Give the take.json inside a song.")
    return int(folder.name)


def _read_settings(path: Path, text: str) -> TakeInfo:
    try:
        if len(text) > JSON_BYTES:
            raise Fault(f"they have {len(text):,} characters")
        data = parse(text)
        version(data, store.FORMAT)
        info = take_from_dict(migrate_take(data, {})["take"])
        if not info.request.sections:
            raise Fault("there are no sections")
        return info
    except Newer as exc:
        raise RequestError(
            f"The settings in {path} are of a newer yuegp (format {exc}; this one reads up to {store.FORMAT}).",
            "Update yuegp to import this file.",
        ) from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        why = str(exc) if isinstance(exc, Fault) else f"{type(exc).__name__} {exc}"
        raise RequestError(f"The settings in {path} are damaged: {why}.", "Import another export of the song.") from exc


def _notes(info: TakeInfo, lost: Reference | None) -> tuple[Note, ...]:
    notes = []
    if lost:
        names = ", ".join(path for path in (lost.mix, lost.vocal, lost.instrumental) if path)
        notes.append(note(NoteCode.REFERENCE_LOST, start=lost.start, end=lost.end, files=names))
    if info.seams or any(span.take != info.number for span in info.spans):
        notes.append(note(NoteCode.TAKE_WAS_JOINED))
    return tuple(notes)

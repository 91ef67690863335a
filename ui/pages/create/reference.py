"""The reference recording on the Create page: its waveform, its window, and what is wrong with it. Only uploads and
files in a song's own folder reach this module. Its messages name files as the user did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder

from ui.texts import Texts
from yuegp.audio import files as sound_files
from yuegp.errors import RequestError
from yuegp.library import store
from yuegp.song.schema import Reference

PEAKS = 360
"""Points of a drawn waveform."""

LONGEST = 20 * 60.0
"""Longest recording in seconds: more than a song, less than a concert."""

WINDOW = 30.0
"""Default length of the window in seconds, as in the released program."""


@dataclass(frozen=True)
class Lent:
    """Copies of a song's reference files, by role, and the window that the song used."""

    files: Mapping[str, str | None] = field(default_factory=lambda: dict.fromkeys(store.REFERENCES))
    window: Mapping[str, float] | None = None


def lend(reference: Reference | None) -> Lent:
    """Copy a song's reference into the uploads folder, from which the page can play it. RequestError when it is
    missing."""
    if reference is None:
        return Lent()
    files = {}
    for role in store.REFERENCES:
        path = getattr(reference, role)
        try:
            files[role] = path and save_file_to_cache(path, get_upload_folder())
        except OSError as exc:
            raise RequestError(
                f"The song's reference {Path(path).name} cannot be read: {exc.strerror or exc}.",
                "Choose the recording again under Create.",
            ) from exc
    return Lent(files, {"start": reference.start, "end": reference.end})


def peaks(path: str) -> list[float]:
    """The loudest sample in each of `PEAKS` equal parts of a file, 0 to 1. RequestError when it is not sound."""
    return [round(min(1.0, float(peak)), 3) for peak in np.nan_to_num(sound_files.peaks(path, PEAKS), posinf=1.0)]


def render(files: Mapping[str, str | None], t: Texts) -> dict[str, Any]:
    """What the script draws for the files given as `mix`, `vocal` and `instrumental`: name, path and peaks of each, the
    seconds they have in common, and `error` when they cannot be used."""
    given = {role: path for role, path in files.items() if path}
    shown: dict[str, Any] = {"files": [], "seconds": 0.0, "error": "", "window": WINDOW}
    if not given:
        return shown
    try:
        seconds = shared(given, t)
        reference = _reference(files, 0.0, seconds)
        if reference:
            sound_files.check_reference(reference)
        drawn = [{"role": role, "name": Path(p).name, "path": p, "peaks": peaks(p)} for role, p in given.items()]
        return {**shown, "files": drawn, "seconds": seconds, "error": "" if reference else t("create.reference.pair")}
    except RequestError as exc:
        return {**shown, "error": said(exc, given)}


def shared(files: Mapping[str, str], t: Texts) -> float:
    """Seconds that the recordings have in common. RequestError when that exceeds `LONGEST`."""
    seconds = min(sound_files.probe(path).seconds for path in files.values())
    if seconds > LONGEST:
        raise RequestError(
            t("create.reference.long", minutes=round(seconds / 60), most=round(LONGEST / 60)),
            t("create.reference.long_hint"),
        )
    return seconds


def reference(files: Mapping[str, str | None], window: Mapping[str, Any] | None) -> Reference | None:
    """A Reference from files by role and a window; None without files. RequestError when half of a pair is missing."""
    start = float((window or {}).get("start") or 0.0)
    end = float((window or {}).get("end") or start + WINDOW)
    found = _reference(files, start, end)
    if found is None and any(files.values()):
        raise RequestError("Only one track of a reference was given.", "Add the other one, or remove it.")
    return found


def _reference(files: Mapping[str, str | None], start: float, end: float) -> Reference | None:
    if mix := files.get("mix"):
        return Reference(mix=mix, start=start, end=end)
    vocal, instrumental = files.get("vocal"), files.get("instrumental")
    if vocal and instrumental:
        return Reference(vocal=vocal, instrumental=instrumental, start=start, end=end)
    return None


def said(exc: RequestError, files: Mapping[str, str | None]) -> str:
    """The error in sentences, with paths on the server shortened to file names."""
    text = f"{exc.what} {exc.hint}".strip()
    for path in filter(None, files.values()):
        text = text.replace(path, Path(path).name)
    return text

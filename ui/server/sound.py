"""Sends the sound files of songs to the page's players: known names inside existing songs, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response

FILES = re.compile(r"(?:mix|vocal|instrumental|hear/(?:section|draft)-\d{2,3})\.flac")
"""Paths inside a take's folder that can be heard."""

TAKE = re.compile(r"\d{1,6}")

KEPT = "private, max-age=3600"
"""Cache-Control of a rendered take, which never changes. Previews can be replaced, so browsers ask for them anew."""


def find(root: Path, song: str, take: str, file: str) -> Path | None:
    """The sound file that a browser asks for; None unless it belongs to a song in `root`, with no symbolic link on the
    way."""
    plain = song and song == Path(song).name and song[0] != "." and not any(c in song for c in "/\\:\0")
    if not plain or not TAKE.fullmatch(take) or not FILES.fullmatch(file):
        return None
    try:
        folder = root.resolve() / song
        wanted = folder / "takes" / f"{int(take):03}" / file
        if not (folder / "song.json").is_file() or not wanted.is_file() or wanted.resolve() != wanted:
            return None
    except (OSError, ValueError):  # no file can have this name
        return None
    return wanted


async def sound_response(request: Request) -> Response:
    """`GET /sound/<song's folder>/<take>/<file>`, whole or in ranges."""
    names = request.path_params
    path = find(request.app.state.context.root, names["song"], names["take"], names["file"])
    if path is None:
        return PlainTextResponse("There is no such sound.", 404)
    keep = "no-cache" if "/" in names["file"] else KEPT
    return FileResponse(path, media_type="audio/flac", headers={"Cache-Control": keep})

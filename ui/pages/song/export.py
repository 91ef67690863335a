"""Sends exported files to the browser: files in a song's `exports` folder, by name, and nothing else."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response

from ui.context import AppContext
from yuegp.errors import LibraryError, YueGPError
from yuegp.library.catalog import refuse_links

EXPORTS = "exports"
"""Folder inside a song's folder for exported files."""


def find(context: AppContext, name: str, file: str) -> Path:
    """A file that was exported from a song. LibraryError for anything else."""
    folder = context.folder(name)
    refuse_links(folder)
    place = folder / EXPORTS
    there = {path.name: path for path in place.iterdir() if path.is_file()} if place.is_dir() else {}
    if file not in there or file.startswith("."):
        raise LibraryError(f"There is no exported file {file[:80]!r} in this song.", "Export it again.")
    return there[file]


async def export_response(request: Request) -> Response:
    """`GET /export/<song's folder>/<file>`, to be saved under the file's own name."""
    names = request.path_params
    try:
        path = find(request.app.state.context, names["song"], names["file"])
    except YueGPError as exc:
        return PlainTextResponse(exc.what, 404)
    return FileResponse(path, filename=path.name)

"""Sends uploaded and exported files, which lie in the uploads folder, to the page's players and to programs.

Gradio's own route for this also takes an address, fetches it and sends it as ours. This route replaces it and knows
paths only."""

from __future__ import annotations

import os
from pathlib import Path

from gradio.utils import get_upload_folder
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response

from .answers import BY_ENDING, media_of


def find(folder: Path, named: str) -> Path | None:
    """The file at the absolute path `named`; None unless it lies in `folder`, also after following symbolic links. The
    name is checked before the disk is: on Windows a path can lead to another machine."""
    if "\0" in named or not os.path.isabs(named):
        return None
    inside = Path(os.path.abspath(folder))
    wanted = Path(os.path.abspath(named))
    try:
        if not wanted.is_relative_to(inside) or not wanted.is_file():
            return None
        return wanted if wanted.resolve().is_relative_to(inside.resolve()) else None
    except OSError:  # no file can have this name
        return None


async def upload_response(request: Request) -> Response:
    """`GET …/gradio_api/file=<path>`, whole or in ranges."""
    path = find(Path(get_upload_folder()), request.path_params["path"])
    if path is None:
        return PlainTextResponse("There is no such file among the uploads.", 403)
    return FileResponse(path, media_type=media_of(BY_ENDING, path.name), headers={"Cache-Control": "private, no-cache"})

"""Where Gradio keeps what is uploaded to the page, and what is handed out for download.

    YUEGP_HOME/uploads/          ours: marked when it is made (`owned`); `uploads-2` where that is somebody else's
      run-<id>/                  of one page, which holds a lock on the mark in it as long as it runs
        <sha256>/<file>   export-…/<file>

What a page that is over has left is removed when another one begins, two days later. What is taken into a song is
copied into the song's folder at once, so nothing here is needed for long.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
from pathlib import Path

from yuegp import owned
from yuegp.locks import lock_handle

NAMES = re.compile(rf"{owned.CACHED.pattern}|export-\w{{8}}|tmp\w{{8}}")
"""What Gradio and `api` make here: a file by its hash, an export, an upload that is still arriving."""

RUN = re.compile(r"run-[0-9a-f]{12}")

_held: list[int] = []
"""The locked marks of this process's folders."""


def begin(home: Path, before: float) -> Path:
    """A new folder for the uploads of this page, in the home of the program, or among the system's temporary files
    where that cannot be written. Removes what other pages have left since before a time."""
    try:
        uploads = owned.folder_in(home, "uploads")
        sweep(uploads, before)
        run = uploads / f"run-{secrets.token_hex(6)}"
        owned.make(run)
        handle = os.open(run / owned.MARK, os.O_RDWR)
        lock_handle(handle)
        _held.append(handle)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="yuegp-uploads-"))
    return run


def sweep(uploads: Path, before: float) -> None:
    """Remove what was uploaded or exported before a time, to pages that are over: Gradio forgets its files when it is
    killed. A folder that is not ours is left alone, and so is whatever is not called as we call things."""
    if not owned.is_ours(uploads):
        return
    for run in [path for path in uploads.iterdir() if RUN.fullmatch(path.name) and owned.is_ours(path)]:
        with contextlib.suppress(OSError):  # BlockingIOError: a page is using it
            handle = os.open(run / owned.MARK, os.O_RDWR)
            try:
                lock_handle(handle)
                for path in [path for path in run.iterdir() if NAMES.fullmatch(path.name)]:
                    if owned.newest(path) < before:
                        owned.remove(path)
            finally:
                os.close(handle)
            if owned.newest(run) < before and [path.name for path in run.iterdir()] == [owned.MARK]:
                owned.remove(run)

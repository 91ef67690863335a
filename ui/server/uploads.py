"""Where Gradio keeps what is uploaded to the page, and what is handed out for download.

    YUEGP_HOME/uploads/          marked as ours (`owned`); `uploads-2` where another program has that folder
      run-<id>/                  of one page, which holds a lock on the mark in it as long as it runs
        <sha256>/<file>   export-…/<file>

When a page starts, it removes what pages that have ended left here more than two days ago. A song copies its files
into its own folder at once, so nothing here is needed for long.
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
"""Names that Gradio and `api` give: a file by its hash, an export, an upload that is still arriving."""

RUN = re.compile(r"run-[0-9a-f]{12}")

_held: list[int] = []
"""The locked marks of this process's folders."""


def begin(home: Path, before: float) -> Path:
    """A new folder for the uploads of this page: in the program's home, or among the system's temporary files where the
    home cannot be written. Removes what ended pages left before the time `before`."""
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
    """Remove uploads and exports of ended pages from before a time: Gradio forgets its files when it is killed. Folders
    without our mark, and files with other names than `NAMES`, stay."""
    if not owned.is_ours(uploads):
        return
    for run in [path for path in uploads.iterdir() if RUN.fullmatch(path.name) and owned.is_ours(path)]:
        with contextlib.suppress(OSError):  # BlockingIOError: a running page uses it
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

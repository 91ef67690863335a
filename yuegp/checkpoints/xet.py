"""Xet, the hub's storage in chunks: a second way for large files beside plain HTTP, taken where it is the faster.

The library's own download by this way (`hf_hub_download`) throws away what has arrived when it is stopped or breaks,
knows no time limit and no stopping. So the package beneath it, hf-xet, is asked for what we need: the bytes of a file,
in order, from any byte on. Everything else (going on, checksums, names on disk) stays `transfer`'s, and whatever fails
here, HTTP goes on at the byte that was reached. Measured with hf-xet 1.8: a stream that waits cannot be stopped from
another thread, so it waits in one of its own; by itself the package would send reports of each transfer, buffer up to
six gigabytes and try for six minutes, and these are turned down.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from yuegp.paths import models_dir

from . import hub
from .hub import HubFile

XET, HTTP = "xet", "http"

TRIAL = 64_000_000
"""Bytes that each way brings before the faster one brings the rest."""

QUEUED = 4
"""Blocks that may wait to be written; one is of at most 64 MB (the size of the storage's containers)."""

BUFFERED = 256_000_000
"""Bytes that the package may hold in memory for all files together."""


class Failed(Exception):
    """This way does not lead to the file, or not now."""


def installed() -> bool:
    """Whether hf-xet is here and the user has not forbidden it (`HF_HUB_DISABLE_XET`)."""
    from huggingface_hub import constants

    return not constants.HF_HUB_DISABLE_XET and importlib.util.find_spec("hf_xet") is not None


@dataclass
class Ways:
    """Which way the next bytes of a large file take: each is tried once, then the faster is kept. For many threads."""

    rates: dict[str, float] = field(default_factory=dict)
    """Bytes a second, as measured."""
    _trying: list[str] = field(default_factory=list)
    _lost: bool | None = None
    """Whether Xet is out of the question; None until somebody asks."""
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def pick(self, file: HubFile, left: int) -> tuple[str, int]:
        """The way, and how many bytes to take by it before asking again, for a file of which `left` are missing. Only
        large ones are kept in chunks, and only for those it is worth a request more."""
        with self._guard:
            if self._lost is None:
                self._lost = not installed()
            if self._lost or not file.sha256 or file.size < 2 * TRIAL:
                return HTTP, left
            if untried := [way for way in (XET, HTTP) if way not in self.rates]:
                way = next((way for way in untried if way not in self._trying), untried[0])
                self._trying.append(way)
                return way, TRIAL
            return max(self.rates, key=lambda way: self.rates[way]), left

    def measured(self, way: str, size: int, seconds: float) -> None:
        """`size` bytes came by this way in so many seconds. Too few say nothing."""
        with self._guard:
            if size >= TRIAL:
                self.rates.setdefault(way, size / max(seconds, 1e-6))

    def drop(self) -> None:
        """Xet has failed: not again in this download."""
        with self._guard:
            self._lost = True


@contextlib.contextmanager
def stream(repo: str, commit: str, file: HubFile, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """The bytes of a file from `start` on, as `hub.stream`. Failed whenever that does not work."""
    try:
        group, info = hub.with_timeout(hub.PATIENCE + hub.CONNECT, lambda: _open(repo, commit, file))
    except Exception as exc:  # whatever another's compiled code raises, there is another way
        raise Failed(str(exc)) from exc
    blocks: queue.Queue[bytes | Exception | None] = queue.Queue(QUEUED)
    over = threading.Event()
    threading.Thread(target=_read, args=(group, info, start, blocks, over), daemon=True, name="xet").start()
    try:
        yield start, _taken(blocks)
    finally:
        over.set()
        with contextlib.suppress(queue.Empty):  # let the other thread see it
            while True:
                blocks.get_nowait()


def _taken(blocks: queue.Queue[bytes | Exception | None]) -> Iterator[bytes]:
    while True:
        try:
            block = blocks.get(timeout=hub.READ)
        except queue.Empty as exc:
            raise Failed(f"nothing came for {hub.READ:g} s") from exc
        if block is None:
            return
        if isinstance(block, Exception):
            raise Failed(str(block)) from block
        yield block


def _read(
    group: Any, info: Any, start: int, blocks: queue.Queue[bytes | Exception | None], over: threading.Event
) -> None:
    try:
        for block in group.download_stream(info, start=start or None):
            if over.is_set():
                return
            blocks.put(block)
        blocks.put(None)
    except Exception as exc:  # raised where the blocks are taken
        blocks.put(exc)
    finally:
        with contextlib.suppress(Exception):
            group.abort()


def _open(repo: str, commit: str, file: HubFile) -> tuple[Any, Any]:
    """A connection to the storage, and what it knows the file by."""
    hub.session()
    found = hub.metadata(repo, commit, file)
    xet, said = found.xet_file_data, (found.etag or "").lower()
    if xet is None:
        raise Failed(f"{file.source} is not kept that way")
    if found.size != file.size or (file.sha256 and len(said) == 64 and not said.startswith(file.sha256)):
        raise Failed(f"{file.source} is another file there")
    if _origin(xet.refresh_route) != _origin(hub.endpoint()):
        raise Failed("the key to it would be asked for elsewhere, with the user's token")
    from hf_xet import XetFileInfo

    group = _session().new_download_stream_group(
        token_refresh_url=xet.refresh_route, token_refresh_headers=hub.headers_for(), custom_headers=hub.agent()
    )
    return group, XetFileInfo(xet.file_hash, file.size)


def _origin(address: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(address)
    return parts.scheme, parts.hostname, parts.port


_held: list[Any] = []
_guard = threading.Lock()


def _session() -> Any:
    """hf-xet's runtime, one for the process, with our limits. It writes nothing outside the models' folder."""
    with _guard:
        if not _held:
            os.environ.setdefault("HF_XET_CACHE", str(models_dir() / ".xet"))  # both are read when it is imported
            os.environ.setdefault("HF_XET_LOG_DEST", os.devnull)
            from hf_xet import XetConfig, XetSession

            settings: dict[str, object] = {
                "telemetry.enabled": False,
                "client.connect_timeout": timedelta(seconds=hub.CONNECT),
                "client.read_timeout": timedelta(seconds=hub.READ),
                "client.retry_max_attempts": 2,
                "client.retry_base_delay": timedelta(seconds=1),
                "client.retry_max_duration": timedelta(seconds=hub.READ),
                "reconstruction.download_buffer_size": BUFFERED,
                "reconstruction.download_buffer_limit": BUFFERED,
                "reconstruction.download_buffer_perfile_size": BUFFERED // 2,
                "reconstruction.min_prefetch_buffer": BUFFERED // 2,
            }
            _held.append(XetSession(XetConfig().with_config(settings)))
        return _held[0]

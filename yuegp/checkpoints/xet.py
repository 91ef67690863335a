"""Downloads large files through Xet, the hub's chunked storage, where that is faster than plain HTTP.

The library's own download through Xet (`hf_hub_download`) discards what has arrived when it is stopped or fails, and
has no time limit. So this file asks the package beneath it, hf-xet, for the bytes of a file, in order, from any byte
on. `transfer` keeps resuming, checksums and names on disk; when Xet fails, HTTP continues at the byte that was reached.
Measured with hf-xet 1.8: a waiting stream cannot be stopped from another thread, so it gets a thread of its own; by
default the package sends reports of each transfer, buffers up to six gigabytes and retries for six minutes, which we
reduce.
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
"""Bytes downloaded by each way before the faster one gets the rest."""

QUEUED = 4
"""Blocks that may wait to be written, each at most 64 MB (the size of the storage's containers)."""

BUFFERED = 256_000_000
"""Most bytes that the package buffers for all files together."""


class Failed(Exception):
    """Xet cannot deliver the file, or not now."""


def installed() -> bool:
    """Whether hf-xet is installed and not disabled (`HF_HUB_DISABLE_XET`)."""
    from huggingface_hub import constants

    return not constants.HF_HUB_DISABLE_XET and importlib.util.find_spec("hf_xet") is not None


@dataclass
class Ways:
    """Chooses HTTP or Xet for the next bytes of a large file: tries each once, then keeps the faster. Thread-safe."""

    rates: dict[str, float] = field(default_factory=dict)
    """Measured bytes per second by way."""
    _trying: list[str] = field(default_factory=list)
    _lost: bool | None = None
    """True if Xet cannot be used; None before the first check."""
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def pick(self, file: HubFile, left: int) -> tuple[str, int]:
        """The way for a file of which `left` bytes are missing, and how many bytes to take before asking again. Only
        large files are stored in chunks and worth the extra request."""
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
        """Record that `size` bytes took `seconds` by this way. Ignores too few bytes."""
        with self._guard:
            if size >= TRIAL:
                self.rates.setdefault(way, size / max(seconds, 1e-6))

    def drop(self) -> None:
        """Stop using Xet in this download, because it failed."""
        with self._guard:
            self._lost = True


@contextlib.contextmanager
def stream(repo: str, commit: str, file: HubFile, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Stream a file from byte `start` on, as `hub.stream` does. Raises Failed for any error."""
    try:
        group, info = hub.with_timeout(hub.PATIENCE + hub.CONNECT, lambda: _open(repo, commit, file))
    except Exception as exc:  # whatever its compiled code raises, HTTP remains
        raise Failed(str(exc)) from exc
    blocks: queue.Queue[bytes | Exception | None] = queue.Queue(QUEUED)
    over = threading.Event()
    threading.Thread(target=_read, args=(group, info, start, blocks, over), daemon=True, name="xet").start()
    try:
        yield start, _taken(blocks)
    finally:
        over.set()
        with contextlib.suppress(queue.Empty):  # unblock the reading thread
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
    except Exception as exc:  # re-raised where the blocks are taken
        blocks.put(exc)
    finally:
        with contextlib.suppress(Exception):
            group.abort()


def _open(repo: str, commit: str, file: HubFile) -> tuple[Any, Any]:
    """A connection to the storage, and its identifier of the file."""
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
    """hf-xet's runtime with our limits, one per process. It writes nothing outside the models' folder."""
    with _guard:
        if not _held:
            os.environ.setdefault("HF_XET_CACHE", str(models_dir() / ".xet"))  # hf-xet reads both when imported
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

"""Previews of an unfinished song: `hear/draft-KK.flac` from the codes of Stage 1 alone, and `hear/section-KK.flac` once
a section is refined. KK is the section's index, from 00. Both tracks, mixed, at 16 kHz.

A thread makes them on the CPU while the song continues, as fast as that leaves time for; late ones are skipped, and a
failure here never stops a song. All are removed when the take has its mix.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from yuegp.audio import files, mix
from yuegp.errors import Cancelled, YueGPError
from yuegp.library.store import Take
from yuegp.owned import is_link, remove
from yuegp.song.schema import Span
from yuegp.tokens.vocab import STAGE2_CHUNK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from yuegp.codec.xcodec import XCodec

FOLDER = "hear"

PREVIEW = re.compile(r"\.?(draft|section)-\d{2,}\.flac(\.\d{1,10}\.part)?")
LEFT_OVER = re.compile(r"\.(draft|section)-\d{2,}\.flac\.\d{1,10}\.part")
"""Names of our files in it, and of half-written ones left by a killed run."""

CEILING = 0.89
"""Largest peak of a preview: -1 dB."""

OVERLAP, FADE = 10, 2
"""Frames of context the codec needs on each side, and frames of the fade from refined to rough sound."""

GIVES_WAY = 4
"""Added to the thread's nice value where the system has one per thread: the song comes first, but a busy machine still
makes previews, and the song does not wait for a thread that holds the interpreter's lock."""


class Previews:
    """The previews of one take. A context manager: leaving it ends the thread. With `on` False it makes none."""

    def __init__(self, take: Take, codec: Path, on: bool = True) -> None:
        self.folder, self._number, self._codec, self._on = take.folder / FOLDER, take.info.number, codec, on
        self._jobs: dict[str, tuple[np.ndarray, int]] = {}
        self._news = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._remove(LEFT_OVER)

    def __enter__(self) -> Previews:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def draft(self, span: Span, codes: np.ndarray) -> None:
        """Request a draft of a written section from its codebook-0 codes (2, frames)."""
        self._ask(f"draft-{span.section:02}.flac", codes[:, None], 0)

    def refined(self, spans: Sequence[Span], codes: np.ndarray, mask: np.ndarray) -> None:
        """Request previews of refined sections, from the song's codes (2, 8, frames), refined where `mask` (2, frames).
        A section counts when all but its last chunk is refined; its last seconds stay rough until the next one is."""
        for span in spans:
            done = np.asarray(mask[:, span.start : span.stop].all(axis=0))
            known = len(done) if done.all() else int(done.argmin())
            name = f"section-{span.section:02}.flac"
            enough = known and known > len(done) - STAGE2_CHUNK
            if enough and span.take == self._number and not (self.folder / name).exists():
                with self._news:
                    self._jobs.pop(f"draft-{span.section:02}.flac", None)
                self._ask(name, codes[:, :, span.start : span.stop].copy(), known)

    def close(self) -> None:
        """Stop, abandoning unfinished previews."""
        with self._news:
            self._closed = True
            self._jobs.clear()
            self._news.notify()
        if self._thread is not None:
            self._thread.join()

    def finish(self) -> None:
        """Wait until every requested preview is written."""
        with self._news:
            self._news.wait_for(lambda: not self._jobs or self._closed)

    def discard(self) -> None:
        """Remove all previews, because the take has its mix."""
        self.close()
        self._remove(PREVIEW)
        with contextlib.suppress(OSError):  # the folder has other contents
            self.folder.rmdir()

    def _remove(self, names: re.Pattern[str]) -> None:
        if not is_link(self.folder):
            for path in self.folder.glob("*"):
                if names.fullmatch(path.name):
                    remove(path)

    def _ask(self, name: str, codes: np.ndarray, known: int) -> None:
        if not self._on or self._closed:
            return
        with self._news:
            self._jobs[name] = (codes, known)
            self._news.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="previews", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own
            thread = threading.get_native_id()
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + GIVES_WAY)
        # A preview is optional: an error that also matters to the song will stop the song itself.
        with contextlib.suppress(Cancelled, YueGPError, OSError, RuntimeError, MemoryError):
            from yuegp.codec import load_codec

            codec = load_codec(self._codec)
            while (job := self._next()) is not None:
                name, codes, known = job
                wave = self._sound(codec, codes, known)
                self.folder.mkdir(exist_ok=True)
                files.write(self.folder / name, wave, codec.sample_rate, "flac16")
                with self._news:
                    self._jobs.pop(name, None)
                    self._news.notify_all()
        with self._news:
            self._closed = True
            self._news.notify_all()

    def _next(self) -> tuple[str, np.ndarray, int] | None:
        """The oldest request; None at the end."""
        with self._news:
            self._news.wait_for(lambda: self._jobs or self._closed)
            if self._closed:
                return None
            name = next(iter(self._jobs))
            return (name, *self._jobs[name])

    def _sound(self, codec: XCodec, codes: np.ndarray, known: int) -> np.ndarray:
        """Mix of codes (2, n, frames), of which the first `known` frames are refined."""

        def stop(what: str, done: int, total: int) -> None:
            if self._closed:
                raise Cancelled

        hop = codec.frame_size
        tracks = []
        for track in codes:
            wave = codec.decode(track[:, :known], stop) if known else np.zeros(0, np.float32)
            if known < track.shape[1]:
                before = min(known, OVERLAP)
                rough = codec.decode(track[:1, known - before :], stop)
                fade = min(before, FADE)
                wave = mix.fade_join(wave, rough[(before - fade) * hop :], fade * hop)
            tracks.append(wave)
        both = tracks[0] + tracks[1]
        return both * np.float32(min(1.0, CEILING / max(float(np.abs(both).max(initial=0.0)), 1e-9)))

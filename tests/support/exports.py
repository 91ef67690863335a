"""Songs to export, with sound and a title."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from yuegp.audio import files, mix
from yuegp.library import store
from yuegp.library.store import Song, Take
from yuegp.song.schema import MadeWith, Section, SongRequest, Span, Stage, TakeInfo

REQUEST = SongRequest(
    sections=(
        Section("verse", "paper lanterns\n\nover the water", 1),
        Section("solo", "", 5),
        Section("Refrain 2", "ランタン\nפנס\nlight up the night", 7),
    ),
    tags="inspiring female airy vocal",
    title="Paper Lanterns",
    seed=2**53 + 1,
    section_seconds=2.0,
)


SPANS = (Span(0, 0, 50, True, 1, 7), Span(1, 50, 75, False, 1, 7), Span(2, 75, 150, True, 1, 7))


FRAMES = 3 * mix.RATE


TITLED = ["Paper Lanterns - mix", "Paper Lanterns - vocal", "Paper Lanterns - instrumental"]


def make_song(root: Path, request: SongRequest = REQUEST, level: float = 0.4, **changes: Any) -> tuple[Song, Take]:
    """A rendered song of noise, written as the pipeline writes one."""
    song = store.create(request, root)
    made = MadeWith("0.1.0", request.model, "t", "cpu", "2", "YuE by HKUST/M-A-P")
    info = TakeInfo(1, song.request, Stage.RENDERED, SPANS, made_with=made)
    take = song.new_take(replace(info, **changes), np.zeros((2, 1, info.frames), np.int16))
    rng = np.random.default_rng(0)
    vocal, instrumental = (rng.uniform(-level, level, FRAMES).astype(np.float32) for _ in range(2))
    for path, wave in ((take.vocal, vocal), (take.instrumental, instrumental), (take.mix, vocal + instrumental)):
        files.write(path, wave, mix.RATE)
    return song, take

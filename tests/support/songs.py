"""Songs for tests of the page and the library, without a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from yuegp.library import catalog, store
from yuegp.library.store import Song
from yuegp.song.schema import Section, SongRequest, Span, Stage, TakeInfo

SECONDS = 2


def add_song(root: Path, title: str, tags: str = "pop piano", words: str = "la la", rating: int | None = None) -> Song:
    """A finished song with a tone for sound."""
    request = SongRequest(sections=(Section("verse", words),), tags=tags, title=title, seed=99)
    song = store.create(request, root)
    take = song.new_take(TakeInfo(number=0, request=song.request))
    wave = (0.3 * np.sin(np.arange(SECONDS * 44100) / 30)).astype(np.float32)
    for path in (take.mix, take.vocal, take.instrumental):
        soundfile.write(path, wave, 44100, subtype="PCM_24")
    codes = np.zeros((2, 1, SECONDS * 50), np.int16)
    spans = (Span(0, 0, SECONDS * 50, True),)
    take.save_stage1(codes, TakeInfo(1, song.request, Stage.RENDERED, spans))
    if rating:
        catalog.rate(song, rating)
    return song

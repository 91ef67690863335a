"""Renders a take's codes to stems and mix, and encodes a reference recording. `codec/` decodes single tracks;
`audio/mix.py` joins them."""

from __future__ import annotations

import math

import numpy as np

from yuegp import codec
from yuegp.audio import files, mix
from yuegp.library.store import Take
from yuegp.song.schema import Reference, Track
from yuegp.tokens.prompts import reference_window

from .plan import FADE, LEAD, Event, Phase, ProgressCallback, SongPlan

REFERENCE_MARGIN = 15
"""Seconds encoded before and after a reference's window. The released program encodes the whole file, because the
codec's semantic branch has a wide context; beyond some seconds that changes nothing and only costs memory."""


def render(plan: SongPlan, take: Take, watch: ProgressCallback, where: str) -> None:
    """Write the stems and the mix of a take whose codes are all refined, with the codec on device `where`."""
    full, _ = take.load_stage2()
    seams, leads = take.info.seams, take.load_leads()
    total = 4 * (full.shape[2] + len(seams) * LEAD)
    base = count = 0

    def progress(what: str, done: int, of: int) -> None:
        nonlocal base, count
        base, count = count if done == 0 else base, (count if done == 0 else base) + done
        watch(Event(Phase.SOUND, f"{track.name.lower()} stem", count, total, "frames", count))

    decoder = codec.load_codec(plan.models.codec, where)
    sounds: list[tuple[np.ndarray, np.ndarray]] = []
    for track in Track:
        upsampler = codec.load_upsampler(plan.models.codec, track, where)
        hops, waves = (decoder.frame_size, upsampler.hop), [np.zeros(0, np.float32)] * 2
        for i, (start, stop) in enumerate(zip((0, *seams), (*seams, full.shape[2]), strict=True)):
            lead = leads[i - 1, track] if i else full[track, :, :0]
            run = np.concatenate([lead, full[track, :, start:stop]], axis=1)
            parts = codec.render_track(decoder, upsampler, run, progress)
            fade = FADE if i else 0  # only the fade of the lead is used
            waves = [
                mix.fade_join(wave, part[(lead.shape[1] - fade) * hop :], fade * hop)
                for wave, part, hop in zip(waves, parts, hops, strict=True)
            ]
        sounds.append((waves[0], waves[1]))
    song = mix.finish(*sounds[Track.VOCAL], *sounds[Track.INSTRUMENTAL], plan.request.crossover)
    for path, wave in ((take.vocal, song.vocal), (take.instrumental, song.instrumental), (take.mix, song.mix)):
        files.write(path, wave, mix.RATE)


def reference_codes(plan: SongPlan, reference: Reference, watch: ProgressCallback, where: str) -> np.ndarray:
    """Codebook-0 codes of a reference's window: (1, frames) for a mix, (2, frames) for a pair."""
    encoder = codec.load_codec(plan.models.codec, where, encode=True)
    paths = [path for path in (reference.mix, reference.vocal, reference.instrumental) if path]
    begin = max(0, math.floor(reference.start) - REFERENCE_MARGIN)
    tracks = []
    for i, path in enumerate(paths):
        watch(Event(Phase.REFERENCE, "listening", i, len(paths), "files", i))
        wave, rate = files.read(path, begin, reference.end + REFERENCE_MARGIN)
        tracks.append(encoder.encode(files.mono16k(wave, rate))[0])
    frames = min(map(len, tracks))
    codes = np.stack([track[:frames] for track in tracks])
    return reference_window(codes, reference.start - begin, reference.end - begin)

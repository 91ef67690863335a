"""Pictures of sound for the report: spectrograms with the onset strength below them, the requested beat marked.

They let the report judge a set without listening; `docs/demo-song.mp3` is for listeners.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .listen import FLUX_RATE, onset_strength

WIDTH, HIGH, LOW = 900, 100, 36
"""Pixels: of a row, of its spectrogram, of its onset strength."""
TOP_HZ = 5000
FLOOR_DB = -80.0
_PAPER, _INK, _BEAT = (250, 249, 246), (40, 60, 90), (200, 70, 50)


@dataclass(frozen=True)
class Row:
    """A sound (samples,) with what is written over it. `beat` is the requested beat in seconds, None for no marks."""

    title: str
    wave: np.ndarray
    rate: int
    beat: float | None = None


def spectrogram(wave: np.ndarray, rate: int) -> Image.Image:
    """Level over time up to `TOP_HZ`, dark where it is loud; the loudest bin is 0 dB."""
    size = 2 ** round(np.log2(rate * 0.05))
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, size // 2), size)[:: max(1, len(wave) // WIDTH)]
    bands = np.abs(np.fft.rfft(frames * np.hanning(size)))[:, : size * TOP_HZ // rate]
    level = 20 * np.log10(bands / (bands.max() + 1e-9) + 10 ** (FLOOR_DB / 20))
    grey = 255 * np.clip(level / FLOOR_DB, 0, 1)
    return Image.fromarray(grey.T[::-1].astype(np.uint8)).resize((WIDTH, HIGH)).convert("RGB")


def beat_phase(flux: np.ndarray, beat: float) -> float:
    """The offset in seconds at which a beat of so many seconds meets the most onsets."""
    phases = np.arange(0, beat, 1 / FLUX_RATE)
    last = len(flux) / FLUX_RATE - 0.01
    hits = [flux[(np.arange(phase, last, beat) * FLUX_RATE).astype(int)] for phase in phases]
    return float(phases[int(np.argmax([hit.mean() for hit in hits]))])


def sheet(drawn: Iterable[Row], path: Path) -> None:
    """All rows below each other, as a PNG."""
    rows = list(drawn)
    step = 16 + HIGH + LOW + 8
    page = Image.new("RGB", (WIDTH, step * len(rows)), _PAPER)
    draw = ImageDraw.Draw(page)
    for index, row in enumerate(rows):
        top = index * step
        draw.text((2, top + 2), row.title, fill=_INK)
        page.paste(spectrogram(row.wave, row.rate), (0, top + 16))
        flux = np.maximum(0, onset_strength(row.wave, row.rate))
        bottom = top + 16 + HIGH + LOW
        scale = WIDTH / len(flux)
        if row.beat:
            for at in np.arange(beat_phase(flux, row.beat), len(flux) / FLUX_RATE, row.beat):
                x = at * FLUX_RATE * scale
                draw.line((x, bottom - LOW, x, bottom), fill=_BEAT)
        heights = flux / (flux.max() + 1e-9) * LOW
        draw.line([(i * scale, bottom - height) for i, height in enumerate(heights)], fill=_INK)
    page.quantize(16).save(path, optimize=True)

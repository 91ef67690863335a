"""The codec: codes to sound and back.

    files      the folder on disk, checked without torch        layout     which tensors there are
    xcodec     codes ⇄ 16 kHz                                    upsampler  codes → 44.1 kHz
    chunks     long sound in bounded memory

`audio/mix.py` mixes the four waves of a song; `audio/files.py` reads and writes sound files. Importing this package is
quick; torch comes with the first load.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from yuegp.progress import Progress, quiet
from yuegp.song.schema import Track

from .files import check_codec

if TYPE_CHECKING:
    from .upsampler import Upsampler
    from .xcodec import XCodec

__all__ = ["check_codec", "load_codec", "load_upsampler", "render_track"]


def load_codec(folder: Path | str, device: str = "cpu", encode: bool = False) -> XCodec:
    """Load the codec of a released folder, for decoding, or with `encode` also for encoding. Raises ModelError."""
    from .xcodec import load

    return load(Path(folder), device, encode)


def load_upsampler(folder: Path | str, track: Track, device: str = "cpu") -> Upsampler:
    """Load the upsampler of one track of a released folder. Raises ModelError."""
    from .upsampler import load

    return load(Path(folder), track, device)


def render_track(
    codec: XCodec, upsampler: Upsampler, codes: np.ndarray, progress: Progress = quiet
) -> tuple[np.ndarray, np.ndarray]:
    """Both sounds of one track's codes (codebook, frame): 16 kHz (320 * frames,) and 44.1 kHz (882 * frames,).

    `progress` is called with "codec" and then "upsampler", in frames; it may raise Cancelled."""
    return codec.decode(codes, progress), upsampler.decode(codes, codec, progress)

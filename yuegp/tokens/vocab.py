"""The vocabulary's layout: which ids are text, which are markers, which are sound.

A language model of the YuE family has one vocabulary for everything. `VocabLayout` names its regions; every id the
program uses is derived from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FRAMES_PER_SECOND = 50
"""Codes per second and track: 16 kHz over a hop of 320 samples."""

STAGE2_CHUNK = 300
"""Frames per chunk in Stage 2's training: six seconds."""


@dataclass(frozen=True)
class VocabLayout:
    """The regions of one vocabulary.

    soa, eoa            start and end of a run of audio ids
    codec               the marker between `soa` and the codes (`<xcodec>`); also where the unconditional row starts
    stage_1, stage_2    Stage 2's prefix markers
    code_start          id of code 0 of codebook 0; code c of codebook k is `code_start + codebook_size * k + c`
    codebooks           levels that Stage 1 and Stage 2 together produce
    text_size           ids below this are text; no marker or code lies there
    """

    name: str
    soa: int
    eoa: int
    codec: int
    stage_1: int
    stage_2: int
    code_start: int
    text_size: int
    codebooks: int = 8
    codebook_size: int = 1024

    def codes_of(self, codebook: int) -> range:
        """The ids of one codebook."""
        if not 0 <= codebook < self.codebooks:
            raise ValueError(f"codebook {codebook} is outside 0..{self.codebooks - 1}")
        start = self.code_start + self.codebook_size * codebook
        return range(start, start + self.codebook_size)

    @property
    def stage1_ids(self) -> tuple[int, ...]:
        """Every id Stage 1 may draw: codebook 0, then end-of-audio at index `codebook_size`."""
        return (*self.codes_of(0), self.eoa)

    @property
    def stage2_ids(self) -> range:
        """Every id Stage 2 may draw: codebooks 1 to 7, in order."""
        return range(self.codes_of(1).start, self.codes_of(self.codebooks - 1).stop)

    @property
    def smallest_vocabulary(self) -> dict[int, int]:
        """Smallest vocabulary size a model needs, by stage (1 or 2)."""
        markers = max(self.soa, self.eoa, self.codec, self.stage_1, self.stage_2) + 1
        return {1: max(markers, self.codes_of(0).stop), 2: max(markers, self.stage2_ids.stop)}


YUE_V1 = VocabLayout(
    name="yue-v1",
    soa=32001,
    eoa=32002,
    codec=32016,
    stage_1=32013,
    stage_2=32017,
    code_start=45334,
    text_size=32000,
)
"""The released vocabulary (mm tokenizer v0.2): LLaMA's 32,000 pieces, markers, then 12 x 1,024 X-Codec codes of
which the first eight codebooks are used."""


def interleave(layout: VocabLayout, codes: np.ndarray) -> list[int]:
    """Codebook-0 codes of both tracks, shape (2, frames), as ids v0 i0 v1 i1 …, vocal first."""
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[0] != 2:
        raise ValueError(f"expected codes of shape (2, frames), got {codes.shape}")
    return (codes.T.reshape(-1).astype(np.int64) + layout.code_start).tolist()


def deinterleave(layout: VocabLayout, ids: Sequence[int]) -> np.ndarray:
    """Inverse of `interleave`: an even number of codebook-0 ids as int16 codes of shape (2, frames)."""
    codes = np.asarray(ids, dtype=np.int64) - layout.code_start
    if codes.size % 2:
        raise ValueError(f"{codes.size} audio ids cannot be split into two tracks of equal length")
    if codes.size and not (0 <= codes.min() and codes.max() < layout.codebook_size):
        raise ValueError(f"ids {min(ids)}..{max(ids)} reach outside codebook 0 ({layout.codes_of(0)})")
    return codes.reshape(-1, 2).T.astype(np.int16)

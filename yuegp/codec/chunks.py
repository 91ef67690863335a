"""Renders long sound in chunks of bounded memory, with the same result as in one go.

A convolutional network sees a limited number of frames to each side. So a chunk is rendered with that much context on
both sides, and the context's samples are dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from yuegp.errors import DeviceError
from yuegp.progress import Progress
from yuegp.shortage import named, shortage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


def in_chunks(
    run: Callable[[int, int], Tensor], frames: int, hop: int, size: int, context: int, what: str, progress: Progress
) -> np.ndarray:
    """Render `hop * frames` float32 samples, `size` frames at a time with `context` frames on each side.

    `run(first, last)` renders the frames `first` to `last`. Progress counts frames."""
    wave = np.empty(frames * hop, dtype=np.float32)
    progress(what, 0, frames)
    for start in range(0, frames, size):
        stop = min(start + size, frames)
        first, last = max(0, start - context), min(frames, stop + context)
        with memory_named(what):
            piece = run(first, last)[(start - first) * hop : (stop - first) * hop].cpu()
        wave[start * hop : stop * hop] = piece.numpy()
        progress(what, stop, frames)
    return wave


@contextmanager
def memory_named(what: str) -> Iterator[None]:
    """Turn running out of memory into a DeviceError that names `what`."""
    try:
        yield
    except Exception as exc:
        kind = shortage(exc)
        if not kind or isinstance(exc, DeviceError):
            raise
        if kind == "RAM":
            raise named(exc, f"in the {what}") from exc
        raise DeviceError(
            f"The graphics card ran out of memory in the {what}.",
            "Render the sound on the CPU, or close other programs that use the card.",
        ) from exc

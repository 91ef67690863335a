"""Making long sound in pieces of bounded memory, with the same result as in one go.

A convolutional network hears only so many frames to each side. A chunk is therefore rendered with that much context
on both sides, and the samples of the context are thrown away.
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
    """`hop * frames` float32 samples from `run(first, last)`, which renders the frames `first` to `last`, `size`
    frames at a time with `context` frames on each side. Progress counts frames."""
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
    """Turn running out of memory into our error."""
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

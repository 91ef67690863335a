"""A whole decoding step as one CUDA graph: some four hundred launches, and the Python between them, become one.

A recording repeats the same operations on the same addresses, so everything that changes from step to step must lie on
the card: the ids, the lengths of the rows, and with our own attention how much of the pool is masked away. A recording
that does not repeat what it was made from is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor

from yuegp.errors import DeviceError

TUNED = 200
"""ExLlamaV2 times its first 200 products of each shape and waits for each, which cannot be recorded."""

TOLERANCE = 0.05
"""Of the logits' norm. Its kernels add in changing order, so a repetition is close, not equal."""


class Record(Protocol):
    """Runs a function once while recording it, and returns what repeats it into the same output tensor."""

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]: ...


class CudaRecord:
    """Records CUDA graphs that share their scratch memory. Call on the stream that is to be recorded."""

    def __init__(self) -> None:
        self._memory = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        with torch.cuda.graph(graph, pool=self._memory, stream=stream, capture_error_mode="thread_local"):
            out = work()
        return out, graph.replay


class Steps:
    """Steps that are recorded once they are warm, and repeated from then on.

    `layers` is how many products of each shape one step makes at least, which says when the package has timed them."""

    def __init__(self, record: Record, layers: int) -> None:
        self._record = record
        self._warm = -(-TUNED // layers) + 2
        self._runs: dict[int, int] = {}
        self._recorded: dict[Hashable, tuple[Tensor, Callable[[], None]]] = {}

    def run(self, n: int, key: Hashable, work: Callable[[], Tensor], undo: Callable[[], object]) -> Tensor:
        """`work`'s result for a step of `n` ids per row. Steps of equal (n, key) use the same tensors.

        `undo` takes back what `work` did to the lengths on the card: a step that is recorded is also done the plain
        way first, and compared."""
        self._runs[n] = self._runs.get(n, 0) + 1
        if (n, key) in self._recorded:
            out, repeat = self._recorded[n, key]
            repeat()
            return out.clone()
        plain = work()
        if self._runs[n] > self._warm:
            undo()
            out, repeat = self._record(work)
            repeat()
            error = float((out - plain).float().norm() / plain.float().norm())
            if not error <= TOLERANCE:
                raise DeviceError(
                    f"A recorded step of the ExLlamaV2 engine is off by {error:.1%} on this card.",
                    "Switch recording off (YUEGP_EXL2_WHOLE_STEP=0).",
                )
            self._recorded[n, key] = (out, repeat)
        return plain

    def forget(self) -> None:
        """Drop all recordings, and count the warm-up anew: the package times a model's products once it is loaded."""
        self._runs.clear()
        self._recorded.clear()

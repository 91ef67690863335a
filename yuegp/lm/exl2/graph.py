"""Records a whole decoding step as one CUDA graph: some four hundred launches, and the Python between them, become one.

A recording repeats the same operations on the same addresses, so everything that changes from step to step must lie on
the card: the ids, the row lengths, and with our own attention the mask over the pool. A recording whose replay differs
from the original step is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor

from yuegp.errors import DeviceError

TUNED = 200
"""Products of each shape that ExLlamaV2 times first, waiting for each: these steps cannot be recorded."""

TOLERANCE = 0.05
"""Allowed error, relative to the logits' norm. The kernels sum in changing order, so a replay is close, not equal."""


class Record(Protocol):
    """Runs a function once while recording it. Returns its output tensor and a function that replays it into that."""

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]: ...


class CudaRecord:
    """Records CUDA graphs that share scratch memory. Call on the stream to be recorded."""

    def __init__(self) -> None:
        self._memory = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        with torch.cuda.graph(graph, pool=self._memory, stream=stream, capture_error_mode="thread_local"):
            out = work()
        return out, graph.replay


class Steps:
    """Records steps once they are warm, and replays them from then on.

    `layers` is the least number of products of each shape per step: it tells when the package has timed them all."""

    def __init__(self, record: Record, layers: int) -> None:
        self._record = record
        self._warm = -(-TUNED // layers) + 2
        self._runs: dict[int, int] = {}
        self._recorded: dict[Hashable, tuple[Tensor, Callable[[], None]]] = {}

    def run(self, n: int, key: Hashable, work: Callable[[], Tensor], undo: Callable[[], object]) -> Tensor:
        """Result of `work` for a step of `n` ids per row. Steps of equal (n, key) use the same tensors.

        `undo` reverts what `work` did to the lengths on the card: a step to be recorded also runs unrecorded first, to
        compare."""
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
        """Drop all recordings and restart the warm-up: the package times a model's products anew after each load."""
        self._runs.clear()
        self._recorded.clear()

"""Records a decoding step of fixed shape once as a CUDA graph, and replays it from then on.

A step of a large model is a thousand small kernels. Launching them one by one costs the processor more time than the
card needs to run them; a graph is one launch. It replays exactly what was recorded, so everything that changes from
step to step lies in tensors at fixed addresses: ids, lengths, caches. Without a card the same step runs unrecorded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .cache import KVCache, StaticView, stretches
from .network import Llama

Key = tuple[int, tuple[int, ...]]
"""Ids per row, and the stretch of each cache."""


class Decoder:
    """Decodes a few ids per row over all rows of one session, whose caches must be `fixed`.

    Row lengths may change freely between steps, through `bank.lengths`; the caches must not move."""

    def __init__(self, network: Llama, banks: Sequence[KVCache]) -> None:
        self._network, self._banks = network, banks
        device = network.embedding.device
        self._record = device.type == "cuda"
        rows = sum(len(bank.lengths) for bank in banks)
        self._lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self._known = [0] * rows
        """Host copy of `_lengths`, so that it is written only after a row was truncated, copied or prefilled."""
        self._ids: dict[int, Tensor] = {}
        self._graphs: dict[Key, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def step(self, ids: Tensor) -> Tensor:
        """Append `ids` (rows, n) to every row. Returns the last hidden states (rows, hidden), valid until the next
        step."""
        n = ids.shape[1]
        lengths = [length for bank in self._banks for length in bank.lengths]
        if lengths != self._known:
            self._lengths.copy_(torch.tensor(lengths))
        key = (n, stretches(self._banks, n))
        own = self._ids.setdefault(n, torch.zeros_like(ids))
        own.copy_(ids)
        if not self._record:
            hidden = self._run(key)
        else:
            if key not in self._graphs:
                self._graphs[key] = self._capture(key)
            graph, hidden = self._graphs[key]
            graph.replay()
        self._lengths += n
        self._known = [length + n for length in lengths]
        for bank in self._banks:
            bank.lengths = [length + n for length in bank.lengths]
        return hidden

    def _run(self, key: Key) -> Tensor:
        n, reach = key
        past = StaticView(self._network.config, self._banks, self._lengths, n, reach, self._network.rotation)
        return self._network.hidden(self._ids[n], past)

    def _capture(self, key: Key) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Record one step. It runs once before, because libraries initialise themselves at first use; the first replay
        writes the same values to the caches again."""
        with torch.cuda.device(self._lengths.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._run(key)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            first = next(iter(self._graphs.values()), None)
            pool = None if first is None else first[0].pool()
            # Thread-local: another thread that uses the card meanwhile must not end the recording.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                hidden = self._run(key)
        return graph, hidden

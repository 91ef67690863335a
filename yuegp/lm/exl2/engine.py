"""The exl2 engine: EXL2 and unpacked 16-bit models on a CUDA card, through ExLlamaV2's kernels.

All rows of a session lie in one pool of pages and go through the weights together, each with its own length: with
guidance, the long conditional row and the short unconditional one. A rewind only lowers a length. Logits are those of
the ids that can be drawn, and stay on the card. After loading, the engine tests itself (`self_test`).

Its products are summed in an order that changes from run to run: equal seeds give songs that are close, not equal.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from offload.parking import ParkedTensors
from offload.sizes import CACHES, KV_BYTES
from yuegp.errors import DeviceError, ModelError
from yuegp.lm.engine import EngineConfig
from yuegp.progress import Progress

from .embedding import Embedding, Head
from .format import ModelFolder, look_into
from .graph import CudaRecord, Record, Steps
from .layers import ROWS, Body, Pass, Rows, pass_errors
from .package import Package, load_package
from .pages import PAGE, Pages
from .self_test import self_test

WHOLE_STEP = "YUEGP_EXL2_WHOLE_STEP"
"""Set to 1 to record whole steps as CUDA graphs, in place of ExLlamaV2's own graphs of parts of layers."""

BUCKET = 4 * PAGE
"""A recorded step without flash-attn attends to a multiple of this many positions."""

RECORDED_ROWS = 32
"""Most positions of all rows together in a recorded step; more are a prefill."""

HOLDS = ("exl2", "float16", "bfloat16")
"""Weight formats of this engine. It computes in float16 and converts bfloat16 to it."""


class Exl2LM:
    """A loaded model. See `LMEngine`. While `abort` is set, a running pass and all later ones raise `Cancelled`; rows
    are then as they were before the pass."""

    warmup = 220
    """Steps of one kind until full speed: ExLlamaV2 times its kernels in the first ones and records its own graphs at
    the 205th (`graph.cuh`)."""

    def __init__(
        self,
        package: Package,
        folder: ModelFolder,
        setup: EngineConfig,
        progress: Progress | None,
        record: Record | None,
    ) -> None:
        def loaded(done: int, total: int) -> None:
            if progress is not None:
                progress("loading", self.weight_bytes * done // max(total, 1), self.weight_bytes)

        self.name = folder.path.name
        self.setup = setup
        self.context = folder.config.context
        self.vocab_size = folder.config.vocab_size
        self.weight_bytes = folder.layer_bytes
        device = torch.device(setup.device)
        if device.type == "cuda":
            device = torch.device("cuda", device.index or 0)
        self.device = str(device)
        self.kv = "fp16" if setup.kv == "same" else setup.kv
        self.kv_bytes = kv_bytes(folder.config.layers, folder.config.kv_heads * folder.config.head_dim, self.kv)
        self._folder, self._record = folder, record
        self._ends: tuple[tuple[int, ...] | None, Embedding, Head] | None = None
        self._body: Body | None = Body(package, folder, device, record is None, loaded)
        self.abort: threading.Event = self._body.stop
        self._sessions: weakref.WeakSet[Exl2Session] = weakref.WeakSet()
        self._aside = ParkedTensors(())

    @classmethod
    def load(cls, folder: Path, setup: EngineConfig, progress: Progress | None = None) -> Self:
        """Load a folder as `setup` says, and test it. Raises DeviceError without a card or ExLlamaV2 or when it
        computes wrong numbers, ModelError for a faulty folder."""
        if setup.kv != "same" and setup.kv not in CACHES:
            raise ValueError(f"there is no KV cache of kind {setup.kv!r}")
        if setup.weights not in HOLDS:
            raise ValueError(f"the exl2 engine cannot hold weights as {setup.weights}")
        if setup.adapters:
            raise ModelError(
                f"The ExLlamaV2 engine cannot merge the {len(setup.adapters)} LoRA adapters asked for.",
                "Use the torch engine, or a model into which they are merged already.",
            )
        card = _card(setup.device)
        found = look_into(folder, setup.weights)
        record = CudaRecord() if os.environ.get(WHOLE_STEP) == "1" else None
        engine = cls(load_package(card), found, setup, progress, record)
        try:
            self_test(engine)
        except BaseException:
            engine.unload()
            raise
        return engine

    def open(self, capacities: Sequence[int], keep: Sequence[int] | None = None, kv: str | None = None) -> Exl2Session:
        """See `LMEngine`. `kv` overrides the engine's kind of KV cache."""
        if self._body is None:
            raise RuntimeError(f"the engine {self.name} was unloaded")
        if too_long := [c for c in capacities if c > self.context]:
            raise ValueError(f"a row of {max(too_long)} ids does not fit the context of {self.context}")
        wanted = None if keep is None else tuple(keep)
        if self._ends is None or self._ends[0] != wanted:
            self._ends = None  # two output layers at once may not fit
            with self._body.lane(), pass_errors():
                parts = self._folder, wanted, self._body.device, self._body.dtype
                self._ends = (wanted, Embedding(self._folder, wanted or (), *parts[2:]), Head(*parts))
        steps = Steps(self._record, self._folder.config.layers) if self._record else None
        session = Exl2Session(self._body, capacities, kv or self.kv, self._ends[1], self._ends[2], steps)
        self._sessions.add(session)
        return session

    def park(self, caches: bool) -> None:
        """Leave the card, but for the small part of embedding and output layer that sessions use: see
        `offload.manager.Offloadable`. The layers are dropped, since the package prepares them on the card, and `unpark`
        reads them again; the caches of open sessions stay, or wait in main memory."""
        if self._body is None:
            raise RuntimeError(f"the engine {self.name} was unloaded")
        sessions = list(self._sessions)
        with self._body.lane():
            self._aside.leave(tensor for session in sessions if caches for tensor in session.caches)
        for session in sessions:
            session.forget_recordings()
        self._body.unload()

    def unpark(self) -> None:
        """Restore the state before `park`. If memory runs out on the way, call it again to continue."""
        if self._body is None:
            raise RuntimeError(f"the engine {self.name} was unloaded")
        self._body.load()
        for session in self._sessions:
            session.found_again()
        with self._body.lane():
            self._aside.back()

    def unload(self) -> None:
        self._ends, self._aside = None, ParkedTensors(())
        if self._body is not None:
            self._body.unload()
        self._body = None


class Exl2Session:
    """Rows in one pool of pages. See `LMSession`."""

    def __init__(
        self, body: Body, capacities: Sequence[int], kv: str, embedding: Embedding, head: Head, steps: Steps | None
    ) -> None:
        self._body, self._embedding, self._head, self._steps = body, embedding, head, steps
        self._pages = Pages(capacities)
        self._pool: Any = body.pool(self._pages.positions, kv)
        with body.lane():
            self._lengths = torch.zeros(len(capacities), dtype=torch.int32, device=body.device)
            self._all = Rows(self._pages, range(len(capacities)), body.device)
            self._single = [Rows(self._pages, range(row, row + 1), body.device) for row in self._all.indices]
        self._fed: dict[int, Tensor] = {}

    def prefill(self, row: int, ids: Sequence[int]) -> Tensor:
        return self._read(row, ids, every=False)[0]

    def score(self, row: int, ids: Sequence[int]) -> Tensor:
        """Append `ids` to one row. Returns the logits of every position (ids, n_keep), to compare caches and bits."""
        return self._read(row, ids, every=True)

    def _read(self, row: int, ids: Sequence[int], every: bool) -> Tensor:
        if not ids:
            raise ValueError("a prefill needs at least one id")
        self._pages.check_room(row, len(ids))
        prompt = torch.tensor([list(ids)])
        logits = []
        with self._body.lane(), pass_errors():
            for start in range(0, len(ids), ROWS):
                x = self._embedding.look_up(prompt[:, start : start + ROWS])
                wanted = x.shape[1] if every else int(start + ROWS >= len(ids))
                hidden = self._forward(self._single[row], x, wanted)[0]
                if wanted:
                    logits.append(self._head(hidden))
            return logits[0] if len(logits) == 1 else torch.cat(logits)

    def step(self, ids: Tensor, select: slice | None = None) -> Tensor:
        if ids.dim() == 1:
            ids = ids[:, None]
        if ids.shape[0] != len(self._all.indices):
            raise ValueError(f"{ids.shape[0]} rows of ids for a session of {len(self._all.indices)} rows")
        for row in self._all.indices:
            self._pages.check_room(row, ids.shape[1])
        width = max(1, ROWS // ids.shape[0])
        with self._body.lane(), pass_errors():
            slots = self._embedding.slots(ids)
            if self._steps and slots is not None and ids.numel() <= RECORDED_ROWS:
                logits = self._recorded(self._steps, slots)
                return logits if select is None else logits[:, select]
            for start in range(0, ids.shape[1], width):
                part = slice(start, start + width)
                x = (
                    self._embedding.look_up(ids[:, part].cpu())
                    if slots is None
                    else self._embedding.table[slots[:, part]]
                )
                hidden = self._forward(self._all, x, int(start + width >= ids.shape[1]))
            return self._head(hidden[:, 0], select)

    def _forward(self, rows: Rows, x: Tensor, wanted: int) -> Tensor:
        """One pass over some rows. Lengths change only when it is complete: a stopped pass leaves them as they were."""
        n, first, stop = x.shape[1], rows.indices.start, rows.indices.stop
        before, lengths = self._pages.lengths[first:stop], self._lengths[first:stop]
        now = Pass(rows, n, before, lengths, tuple(length + n for length in before))
        hidden = self._body.forward(x, self._pool, self._pages, now, wanted)
        lengths.add_(n)
        self._pages.grow(rows.indices, n)
        return hidden

    def _recorded(self, steps: Steps, slots: Tensor) -> Tensor:
        """One step of all rows, recorded or replayed. Its ids lie in the same tensor every time."""
        n = slots.shape[1]
        fed = self._fed.setdefault(n, torch.empty_like(slots))
        fed.copy_(slots)
        room = [count * self._pages.page for count in self._pages.counts]
        widths = tuple(
            min(most, -(-(length + n) // BUCKET) * BUCKET)
            for length, most in zip(self._pages.lengths, room, strict=True)
        )
        now = Pass(self._all, n, list(self._pages.lengths), self._lengths, widths, exact=False)

        def work() -> Tensor:
            hidden = self._body.forward(self._embedding.table[fed], self._pool, self._pages, now)
            self._lengths.add_(n)
            return self._head(hidden[:, 0])

        logits = steps.run(n, widths, work, lambda: self._lengths.sub_(n))
        self._pages.grow(self._all.indices, n)
        return logits

    def truncate(self, row: int, length: int) -> None:
        self._pages.truncate(row, length)
        with self._body.lane():
            self._lengths[row] = length

    def copy(self, src: int, dst: int) -> None:
        begin, to, positions = self._pages.copy(src, dst)
        if src != dst and positions:
            self._body.copy(self._pool, begin, to, positions)
        with self._body.lane():
            self._lengths[dst] = self._pages.lengths[dst]

    def length(self, row: int) -> int:
        return self._pages.lengths[row]

    @property
    def caches(self) -> Sequence[Tensor]:
        """Keys and values of all rows."""
        return [] if self._pool is None else self._pool.all_tensors()

    def forget_recordings(self) -> None:
        """Drop recorded steps, because the memory they refer to is about to be freed."""
        if self._steps:
            self._steps.forget()

    def found_again(self) -> None:
        """Reconnect the pool after the layers were read again."""
        if self._pool is not None:
            self._body.adopt(self._pool)

    def close(self) -> None:
        self._pool, self._steps = None, None
        self._fed.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def kv_bytes(layers: int, kv_width: int, kind: str) -> int:
    """Bytes per position in the pool: keys and values of all layers, and for a quantized cache its share of the one
    unpacked layer that all layers use in turn."""
    keys, values = KV_BYTES[kind]
    return int(layers * kv_width * (keys + values)) + (0 if kind == "fp16" else 4 * kv_width)


def _card(device: str) -> int:
    """Card number of a device name. Raises DeviceError when there is no such card."""
    if not device.startswith("cuda"):
        raise DeviceError(
            f"The ExLlamaV2 engine needs an NVIDIA card; it was asked to run on {device}.", "Use the torch engine."
        )
    if not torch.cuda.is_available():
        raise DeviceError(
            f"No CUDA card can be used here: torch {torch.__version__} finds none.",
            "Use the torch engine, or run `python launch.py` again on a machine with an NVIDIA driver.",
        )
    return torch.device(device).index or 0

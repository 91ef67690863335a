"""The layers of a model inside ExLlamaV2: hidden states in, hidden states out, over a pool of pages.

Embedding and output layer are left out of what the package loads: of the first only some rows are wanted on the card,
of the second only those of ids that can be drawn, and the package would reserve scratch memory for all of it.
The loop over its modules is ours, so that a pass can be stopped between two layers, everything behind the last
attention is computed for the last position only, and a pass can be recorded as one CUDA graph.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offload.units import gigabytes
from yuegp.errors import Cancelled, DeviceError, ModelError, said
from yuegp.shortage import named, shortage

from .attention import sight
from .format import ModelFolder
from .package import Package
from .pages import Pages
from .weights import Weights

ROWS = 1024
"""Positions of all rows that one pass takes at most: sizes the package's scratch memory."""


class Rows:
    """Some rows of a session as the device knows them: where in the pool they begin, and their pages."""

    def __init__(self, pages: Pages, indices: range, device: torch.device) -> None:
        self.indices = indices
        self.starts = [pages.start(row) for row in indices]
        self.begins = torch.tensor(self.starts, device=device)
        self.table = torch.tensor(pages.table(indices), dtype=torch.int32)
        self.table_there = self.table.to(device)


@dataclass(frozen=True)
class Pass:
    """One forward pass of `n` ids per row.

    `before` is how many ids each row holds, `lengths` (rows,) int32 the same on the device. `widths` is how far each
    row looks: exactly to its end, or when `exact` is false up to a bound (see `exl2_attention.sight`)."""

    rows: Rows
    n: int
    before: list[int]
    lengths: Tensor
    widths: tuple[int, ...]
    exact: bool = True


class Body:
    """The loaded layers. `stop` ends the pass under way, or the next one, with `Cancelled`."""

    def __init__(
        self,
        package: Package,
        folder: ModelFolder,
        device: torch.device,
        layer_graphs: bool,
        loaded: Callable[[int, int], None],
    ) -> None:
        """`layer_graphs` lets the package record parts of layers as CUDA graphs, which excludes recording whole steps.
        `loaded(done, total)` counts bytes read; what it raises ends the loading and is passed on."""
        self.device, self.dtype = device, package.dtype
        self.stop = threading.Event()
        self._package, self._folder, self._layer_graphs = package, folder, layer_graphs
        self._model: Any = None
        self._modules: list[Any] = []
        self.load(loaded)

    def load(self, loaded: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Read the layers again after `unload`; nothing where they are here."""
        if self._model is None:
            self._model = self._read(loaded)
            self._modules = list(self._model.modules)
            self._last_attention: int = self._model.last_kv_layer_idx - 1  # the embedding is not among them

    def _read(self, loaded: Callable[[int, int], None]) -> Any:
        wanted = self._folder.config

        def heard(done: int, total: int) -> None:
            if self.stop.is_set():
                raise Cancelled
            loaded(done, total)

        with self.lane(), _load_errors(self._folder):
            settings = self._package.config(str(self._folder.path))
            read = (settings.num_hidden_layers, settings.num_key_value_heads, settings.head_dim, settings.hidden_size)
            if read != (wanted.layers, wanted.kv_heads, wanted.head_dim, wanted.hidden):
                raise ValueError(f"it takes its layers, key heads, head width and width for {read}")
            # A configuration saved by transformers 5 hides rope_theta from the package, which then takes 10000.
            settings.rotary_embedding_base = wanted.rope_theta
            settings.max_seq_len = wanted.context
            settings.max_input_len, settings.max_batch_size = ROWS, 1
            settings.no_sdpa = settings.no_xformers = True  # never the attention without a causal mask
            settings.no_flash_attn = self._package.attention is not None
            settings.no_graphs = not self._layer_graphs
            weights = Weights(self._folder.places, self._folder.stored_bytes, heard)
            settings.tensor_file_map = dict.fromkeys(self._folder.places, weights)
            model = self._package.model(settings)
            model.modules = model.modules[1:-1]
            weights.serve(model.modules)

            def module_loaded(done: int, total: int) -> None:
                heard(weights.total if done == total else weights.done, weights.total)

            try:
                model.load([0.0] * (self.device.index or 0) + [99999.0], callback=module_loaded)
            except BaseException:
                model.unload()
                raise
            finally:
                weights.close()
        return model

    def pool(self, positions: int, kind: str) -> Any:
        """An empty cache with room for that many positions. `kind` is fp16, q8, q6 or q4."""
        with self.lane(), pass_errors():
            return self._package.caches[kind](self._model, batch_size=1, max_seq_len=positions)

    def adopt(self, pool: Any) -> None:
        """Serve a pool that was made before the layers were read again: it asks its model what lies where."""
        pool.model = self._model

    def copy(self, pool: Any, src: int, dst: int, positions: int) -> None:
        """Copy a stretch of a pool to another place in it."""
        with self.lane():
            for tensor in pool.all_tensors():
                tensor[0, dst : dst + positions] = tensor[0, src : src + positions]

    def forward(self, x: Tensor, pool: Any, pages: Pages, now: Pass, wanted: int = 1) -> Tensor:
        """Hidden states `x` (rows, n, hidden), written over, through all layers; their keys and values go to the pool.

        Returns the last `wanted` positions of each row after the final norm, (rows, wanted, hidden); for none of them
        the work ends sooner. To be called inside `lane`."""
        params = self._params(pages, now)
        if self._package.attention:
            r = now.rows
            self._package.attention.sight = sight(r.starts, now.lengths, now.n, now.widths, now.exact, r.begins)
        for index, module in enumerate(self._modules):
            if self.stop.is_set():
                raise Cancelled
            x = module.forward(x, cache=pool, attn_params=params, past_len=0, loras=None)
            if index == self._last_attention and wanted < now.n:
                x = x[:, now.n - wanted :].contiguous()
                if not wanted:
                    break
        return x

    def _params(self, pages: Pages, now: Pass) -> Any:
        """The package's description of a paged pass. It wants its tensors made on the host and would then fetch them,
        and wait, in every pass; here they are on the device already."""
        params = self._package.paged(
            batch_size=len(now.before),
            block_index=now.rows.table,
            cache_seqlens=torch.tensor(now.before, dtype=torch.int32),
            max_cache_seqlen=max(1, *now.before),  # with 0 the package would not unpack a quantized past
            page_size=pages.page,
            q_len=now.n,
        )
        params.block_index, params.cache_seqlens = now.rows.table_there, now.lengths
        if now.n == 1 or not now.exact:
            params.is_sequential = False  # else the place of the new keys would be a number fixed in a recording
        return params

    def unload(self) -> None:
        """Give back all memory but the CUDA context."""
        if self._model is not None:
            self._model.unload()
        self._model, self._modules = None, []
        if self._package.attention:
            self._package.attention.sight = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def stream(self) -> torch.cuda.Stream | None:
        """The stream ExLlamaV2 works on; None before the first load in this process, and on a CPU."""
        return self._package.stream(self.device.index or 0) if self.device.type == "cuda" else None

    @contextlib.contextmanager
    def lane(self) -> Iterator[None]:
        """Work on ExLlamaV2's stream, in order with what was queued before and with what will be queued after."""
        with torch.inference_mode():
            if self.device.type != "cuda":
                yield
                return
            stream, outside = self.stream, torch.cuda.current_stream(self.device)
            if stream is None:  # the package makes one as it loads its first model, on the card that is current
                with torch.cuda.device(self.device):
                    yield
                return
            stream.wait_stream(outside)
            try:
                with torch.cuda.device(self.device), torch.cuda.stream(stream):
                    yield
            finally:  # also after a cancel: what was queued is still under way
                outside.wait_stream(stream)


@contextlib.contextmanager
def _load_errors(folder: ModelFolder) -> Iterator[None]:
    try:
        yield
    except (AssertionError, OSError, KeyError, TypeError, ValueError, RuntimeError) as exc:
        if (kind := shortage(exc)) == "RAM":
            raise named(exc, f"while {folder.path} was read") from exc
        if kind:
            raise DeviceError(
                f"The card has no room for the {gigabytes(folder.layer_bytes, 1)} of weights in {folder.path}.",
                "Close other programs that use the card, or choose a version of the model with fewer bits.",
            ) from exc
        raise ModelError(
            f"ExLlamaV2 cannot load {folder.path}: {said(exc)}.", "Download the model again, or use the torch engine."
        ) from exc


@contextlib.contextmanager
def pass_errors() -> Iterator[None]:
    """What can go wrong on the card in a pass, as DeviceError."""
    try:
        yield
    except RuntimeError as exc:
        if shortage(exc):
            raise DeviceError(
                "The card ran out of memory.", "Close other programs that use the card, or choose a smaller KV cache."
            ) from exc
        raise DeviceError(
            f"ExLlamaV2 failed on the card: {said(exc)}.", "Start again; use the torch engine if it stays."
        ) from exc

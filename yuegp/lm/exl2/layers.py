"""The layers of a model inside ExLlamaV2: hidden states in, hidden states out, over a pool of pages.

The package does not load embedding and output layer: it would keep them whole on the card and reserve scratch memory
for all logits, and only some of their rows are needed. The loop over its modules is ours, so that a pass can stop
between two layers, compute what follows the last attention for the last position only, and be recorded as one CUDA
graph.
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
"""Most positions of all rows together in one pass: sizes the package's scratch memory."""


class Rows:
    """Rows of a session on the device: where they begin in the pool, and their pages."""

    def __init__(self, pages: Pages, indices: range, device: torch.device) -> None:
        self.indices = indices
        self.starts = [pages.start(row) for row in indices]
        self.begins = torch.tensor(self.starts, device=device)
        self.table = torch.tensor(pages.table(indices), dtype=torch.int32)
        self.table_there = self.table.to(device)


@dataclass(frozen=True)
class Pass:
    """One forward pass of `n` ids per row.

    `before` is the number of ids in each row, `lengths` (rows,) int32 the same on the device. `widths` is how many
    positions each row attends to: exactly its length, or a bound when `exact` is false (see `attention.sight`)."""

    rows: Rows
    n: int
    before: list[int]
    lengths: Tensor
    widths: tuple[int, ...]
    exact: bool = True


class Body:
    """The loaded layers. `stop` makes the running pass, or the next one, raise `Cancelled`."""

    def __init__(
        self,
        package: Package,
        folder: ModelFolder,
        device: torch.device,
        layer_graphs: bool,
        loaded: Callable[[int, int], None],
    ) -> None:
        """`layer_graphs` lets the package record parts of layers as CUDA graphs, which excludes recording whole steps.
        `loaded(done, total)` receives bytes read; an exception from it ends the loading."""
        self.device, self.dtype = device, package.dtype
        self.stop = threading.Event()
        self._package, self._folder, self._layer_graphs = package, folder, layer_graphs
        self._model: Any = None
        self._modules: list[Any] = []
        self.load(loaded)

    def load(self, loaded: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Read the layers again after `unload`; does nothing while they are loaded."""
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
        """An empty cache for `positions` positions. `kind` is fp16, q8, q6 or q4."""
        with self.lane(), pass_errors():
            return self._package.caches[kind](self._model, batch_size=1, max_seq_len=positions)

    def adopt(self, pool: Any) -> None:
        """Attach a pool that was made before the layers were read again: it asks its model for the layout."""
        pool.model = self._model

    def copy(self, pool: Any, src: int, dst: int, positions: int) -> None:
        """Copy `positions` positions within a pool, from `src` to `dst`."""
        with self.lane():
            for tensor in pool.all_tensors():
                tensor[0, dst : dst + positions] = tensor[0, src : src + positions]

    def forward(self, x: Tensor, pool: Any, pages: Pages, now: Pass, wanted: int = 1) -> Tensor:
        """Run hidden states `x` (rows, n, hidden), overwritten, through all layers; keys and values go to the pool.

        Returns the last `wanted` positions of each row after the final norm, (rows, wanted, hidden); with 0 it stops
        after the last attention. Call inside `lane`."""
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
        """The package's parameters for a paged pass. Its own way builds the tensors on the host and waits for the copy
        in every pass; here they are on the device already."""
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
        """Free all memory except the CUDA context."""
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
        """Work on ExLlamaV2's stream, in order with the work queued before and after on the caller's stream."""
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
    """Turn errors of the card during a pass into DeviceError."""
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

"""The torch engine: released Hugging Face folders on a CPU or a CUDA card. Deterministic, and needs no compiled wheel.

`weights/reader.py` reads the files, `build.py` builds the network, `network.py` computes; here are the engine and its
sessions.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from offload.parking import ParkedTensors
from offload.units import gigabytes
from yuegp.checkpoints.config import LlamaConfig, read_config
from yuegp.lm.engine import EngineConfig
from yuegp.lm.weights.lora import Adapted, Adapter
from yuegp.lm.weights.nf4 import BLOCK
from yuegp.lm.weights.nf4_kernels import missing
from yuegp.lm.weights.reader import Reader
from yuegp.progress import Progress

from .build import FAMILY, Source, build
from .cache import KVCache, RaggedView
from .graph import Decoder
from .network import Layer, Llama
from .streaming import StreamedLayers

PREFILL = 512
"""Ids per prefill pass: bounds the scratch memory of a long prompt; larger passes are no faster on a CPU."""

STREAMED_PREFILL = 2048
"""The same when every pass moves weights to the card: fewer passes matter more than scratch memory."""

STEP = 2
"""Most ids per row in a decoding step of fixed shape; more are prefilled."""


def compute_type(setup: EngineConfig) -> torch.dtype:
    """Type that `setup` computes in: that of its weights, or for packed ones float32 on a processor and float16 on a
    card, where it is fast on every card and rounds less than bfloat16."""
    if setup.weights in FAMILY:
        return torch.float32 if setup.device == "cpu" else torch.float16
    if setup.weights not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"the torch engine cannot hold weights as {setup.weights!r}")
    return getattr(torch, setup.weights)


def assemble(config: LlamaConfig, source: Source, setup: EngineConfig, progress: Progress | None = None) -> Llama:
    """Build a network as `setup` says. On a card the output layer stays in main memory: sessions copy the part they
    need."""
    device, resident = torch.device(setup.device), setup.resident

    def place(layers: Iterable[Layer]) -> Iterable[Layer]:
        if resident is None or resident >= config.layers:
            return list(layers)
        return StreamedLayers(layers, resident, device)

    if setup.weights == "nf4" and (why := missing(device, compute_type(setup), BLOCK)) and progress:
        progress(f"{why}. Four-bit weights are multiplied by our own way, which is slower", 1, 1)
    with torch.no_grad():
        head_device = torch.device("cpu") if device.type == "cuda" else None
        network = build(config, source, setup.weights, place, head_device)
    if progress and isinstance(network.layers, StreamedLayers):
        passing, total = config.layers - network.layers.resident, config.layers
        sent, seconds = gigabytes(network.layers.streamed_bytes, 1), network.layers.transfer_seconds()
        progress(
            f"{passing} of {total} layers do not stay on the card: {sent} are sent there for every step, "
            f"which takes {seconds:.2f} s each time",
            total,
            total,
        )
    return network


def layer_bytes(layers: Iterable[Layer]) -> int:
    """Bytes of all layers, on any device."""
    if isinstance(layers, StreamedLayers):
        return layers.kept_bytes + layers.streamed_bytes
    return sum(tensor.numel() * tensor.element_size() for layer in layers for tensor in layer.tensors())


def weights_of(network: Llama) -> list[Tensor]:
    """The weights on the network's device; those of the layers only if none are streamed."""
    layers = [] if isinstance(network.layers, StreamedLayers) else list(network.layers)
    tensors = [network.embedding, network.norm, *(tensor for layer in layers for tensor in layer.tensors())]
    if network.head.device == network.embedding.device and not network.config.tied:
        tensors.append(network.head)
    return tensors


def weight_bytes(network: Llama) -> int:
    """Bytes of weights on the network's device."""
    layers = network.layers
    streamed = layers.kept_bytes + layers.room_bytes if isinstance(layers, StreamedLayers) else 0
    return streamed + sum(tensor.numel() * tensor.element_size() for tensor in weights_of(network))


class TorchLM:
    """A loaded Llama. See `LMEngine`."""

    def __init__(self, network: Llama, name: str, setup: EngineConfig | None = None) -> None:
        self._network: Llama | None = network
        self.setup = setup or EngineConfig(
            device=str(network.embedding.device), weights=str(network.embedding.dtype)[6:]
        )
        self.name = name
        self.context = network.config.context
        self.vocab_size = network.config.vocab_size
        self.device = str(network.embedding.device)
        self.dtype = network.embedding.dtype
        self.weight_bytes = weight_bytes(network)
        self.layer_bytes = layer_bytes(network.layers)
        """Bytes of all layers, on any device: what a pass reads besides caches and the output layer."""
        self.fixed = network.embedding.is_cuda and not isinstance(network.layers, StreamedLayers)
        """True if decoding steps have a fixed shape, so that the card can record and replay them."""
        self.kv_bytes = network.config.kv_values * network.embedding.element_size()
        self._sessions: weakref.WeakSet[TorchSession] = weakref.WeakSet()
        self._aside: ParkedTensors | None = None

    @classmethod
    def load(cls, folder: Path, setup: EngineConfig | None = None, progress: Progress | None = None) -> Self:
        """Read `config.json` and the safetensors of a released folder. Raises ModelError for a faulty folder."""
        setup = setup or EngineConfig()
        if setup.kv != "same":
            raise ValueError(f"the torch engine keeps keys and values as it computes, not as {setup.kv!r}")
        config = read_config(folder)
        device = torch.device(setup.device)
        reader = Reader(folder, device, compute_type(setup), progress)
        adapters = [Adapter(Path(path), strength) for path, strength in setup.adapters]
        for adapter in adapters:
            adapter.check(config.tensors())
        return cls(assemble(config, Adapted(reader, adapters), setup, progress), folder.name, setup)

    def open(self, capacities: Sequence[int], keep: Sequence[int] | None = None) -> TorchSession:
        if self._network is None:
            raise RuntimeError(f"the engine {self.name} was unloaded")
        if too_long := [c for c in capacities if c > self.context]:
            raise ValueError(f"a row of {max(too_long)} ids does not fit the context of {self.context}")
        session = TorchSession(self._network, capacities, keep, self.fixed)
        self._sessions.add(session)
        return session

    def park(self, caches: bool) -> None:
        """Move to main memory, with `caches` also those of open sessions: see `offload.manager.Offloadable`."""
        if self._network is None:
            raise RuntimeError(f"the engine {self.name} was unloaded")
        sessions = list(self._sessions)
        for session in sessions:
            session.forget_recordings()
        self._aside = self._aside or ParkedTensors(weights_of(self._network))
        self._aside.leave(bank.kv for session in sessions for bank in session.banks if caches)

    def unpark(self) -> None:
        """Restore the state before `park`."""
        if self._aside is not None:
            self._aside.back()

    def unload(self) -> None:
        self._network = self._aside = None
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


class TorchSession:
    """Rows with their own KV caches. See `LMSession`. Neighbouring rows of equal capacity share one `KVCache`."""

    def __init__(
        self, network: Llama, capacities: Sequence[int], keep: Sequence[int] | None, fixed: bool = False
    ) -> None:
        self._network = network
        self._device = network.embedding.device
        self._pass = STREAMED_PREFILL if isinstance(network.layers, StreamedLayers) else PREFILL
        self._banks: list[KVCache] = []
        self._places: list[tuple[KVCache, int]] = []
        for capacity, count in _runs(capacities):
            bank = KVCache(network.config, count, capacity, network.embedding, fixed)
            self._banks.append(bank)
            self._places += [(bank, i) for i in range(count)]
        self._decoder = Decoder(network, self._banks) if fixed else None
        self._head = network.head
        if keep is not None:
            ids = torch.as_tensor(list(keep), device=network.head.device)
            self._head = network.head.t()[ids].t() if self._device.type == "cuda" else network.head[:, ids]
        self._head = self._head.to(self._device)

    @torch.inference_mode()
    def prefill(self, row: int, ids: Sequence[int]) -> Tensor:
        if not ids:
            raise ValueError("a prefill needs at least one id")
        bank, index = self._places[row]
        self._check_room(bank, bank.lengths[index], len(ids))
        alone = bank.row(index)
        hidden = self._read(torch.tensor([ids], device=self._device), [alone])
        bank.lengths[index] = alone.lengths[0]
        return (hidden @ self._head)[0]

    @torch.inference_mode()
    def step(self, ids: Tensor, select: slice | None = None) -> Tensor:
        ids = ids.to(self._device)
        if ids.dim() == 1:
            ids = ids[:, None]
        if ids.shape[0] != len(self._places):
            raise ValueError(f"{ids.shape[0]} rows of ids for a session of {len(self._places)} rows")
        for bank in self._banks:
            self._check_room(bank, max(bank.lengths), ids.shape[1])
        if self._decoder and ids.shape[1] <= STEP:
            hidden = self._decoder.step(ids)
        else:
            hidden = self._read(ids, self._banks)
        return hidden @ (self._head if select is None else self._head[:, select])

    def _read(self, ids: Tensor, banks: list[KVCache]) -> Tensor:
        """Append `ids` (rows, n) to the rows of `banks` in passes of bounded size. Returns the last hidden states."""
        for start in range(0, ids.shape[1], self._pass):
            part = ids[:, start : start + self._pass]
            hidden = self._network.hidden(part, RaggedView(banks, part.shape[1], self._network.rotation))
            for bank in banks:
                bank.lengths = [length + part.shape[1] for length in bank.lengths]
        return hidden

    def truncate(self, row: int, length: int) -> None:
        bank, index = self._places[row]
        if not 0 <= length <= bank.lengths[index]:
            raise ValueError(f"cannot cut a row of {bank.lengths[index]} ids to {length}")
        bank.lengths[index] = length

    def copy(self, src: int, dst: int) -> None:
        (a, i), (b, j) = self._places[src], self._places[dst]
        length = a.lengths[i]
        self._check_room(b, 0, length)
        b.kv[:, :, j, :, :length] = a.kv[:, :, i, :, :length]
        b.lengths[j] = length

    def length(self, row: int) -> int:
        bank, index = self._places[row]
        return bank.lengths[index]

    @property
    def banks(self) -> Sequence[KVCache]:
        """The caches."""
        return self._banks

    def forget_recordings(self) -> None:
        """Drop recorded steps, because the memory they refer to is about to move."""
        if self._decoder:
            self._decoder = Decoder(self._network, self._banks)

    def close(self) -> None:
        self._banks, self._places = [], []
        if self._decoder:
            self._decoder = None
            if self._device.type == "cuda":
                torch.cuda.empty_cache()  # nothing else can use a recorded step's memory until then

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @staticmethod
    def _check_room(bank: KVCache, length: int, more: int) -> None:
        if length + more > bank.capacity:
            raise ValueError(f"{more} more ids do not fit a row of {length} ids with room for {bank.capacity}")


def _runs(capacities: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of equal capacities as (capacity, how many)."""
    start = 0
    for i in range(1, len(capacities) + 1):
        if i == len(capacities) or capacities[i] != capacities[start]:
            yield capacities[start], i - start
            start = i

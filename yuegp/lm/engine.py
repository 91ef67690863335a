"""The seam between music and language models: what an engine offers, whatever it is made of.

Everything above this file (prompts, sampling, windows, guidance, takes) is written once and serves every engine.
An engine knows integers and logits; it knows no lyrics, no paths of songs, no users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EngineConfig:
    """How an engine stores and runs a language model. Plain data: comparing, printing and saving it loads nothing.

    `weights` is their format in memory: float32, float16, bfloat16, int8, nf4, bnb8 or exl2. `kv` is the type of the KV
    cache: `same` as the engine computes in; exl2 also fp16, q8, q6 and q4. `resident` is the number of layers that stay
    on the card; every pass streams the others from RAM (torch only); None keeps all. `adapters` are folders of LoRA
    adapters to merge at load, each with its strength (torch only; no command sets them yet)."""

    engine: str = "torch"
    device: str = "cpu"
    weights: str = "float32"
    kv: str = "same"
    resident: int | None = None
    adapters: tuple[tuple[str, float], ...] = ()


class LMSession(Protocol):
    """Independent rows, each with its own KV cache. A context manager: leaving it frees the caches."""

    def prefill(self, row: int, ids: Sequence[int]) -> Tensor:
        """Append `ids` to one row. Returns the logits of the last position, shape (n_keep,)."""
        ...

    def step(self, ids: Tensor, select: slice | None = None) -> Tensor:
        """Append ids to every row in ONE pass over the weights.

        `ids` is int64 of shape (rows,) or (rows, n): n ids for each row. Returns the logits of each row's last
        position, shape (rows, n_keep); `select` narrows them to a part of the kept ids, which saves the rest of
        the output layer."""
        ...

    def truncate(self, row: int, length: int) -> None:
        """Forget everything of a row from position `length` on."""
        ...

    def copy(self, src: int, dst: int) -> None:
        """Make row `dst` equal to row `src`, so that several takes share one prompt."""
        ...

    def length(self, row: int) -> int:
        """Ids in a row."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class LMEngine(Protocol):
    """A loaded model."""

    name: str
    context: int
    device: str
    vocab_size: int
    kv_bytes: int
    """Bytes one id of one row takes in the KV cache."""
    setup: EngineConfig
    """The configuration it was loaded with."""
    weight_bytes: int
    """Bytes of weights on the device: without layers that are streamed, caches and scratch memory."""

    def open(self, capacities: Sequence[int], keep: Sequence[int] | None = None) -> LMSession:
        """Open a session with one row per entry of `capacities` (ids each row can hold). `keep` names the ids whose
        logits are wanted, in that order; the output layer is trimmed to them. None keeps the whole vocabulary."""
        ...

    def unload(self) -> None:
        """Free all memory. The engine cannot be used afterwards."""
        ...

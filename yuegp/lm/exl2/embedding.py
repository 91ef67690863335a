"""Embedding and output layer, trimmed to the rows a session uses.

Whole, each takes 656 MiB for Stage 1; a song draws from 1,025 ids of 83,968.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .format import ModelFolder

SPARE = 2048
"""Spare rows on the card for ids that are fed but not drawn: markers, the codebook below the drawn ones."""

ALIGN = 32
"""The output layer is padded to a multiple of this many rows, for faster products; the padding is cut off again."""


class Embedding:
    """Keeps embedding rows on the card for `expected` ids, and for other ids that steps are fed while there is room.

    All other ids, above all prompts, are read from the model's file."""

    def __init__(self, folder: ModelFolder, expected: Sequence[int], device: torch.device, dtype: torch.dtype) -> None:
        self._folder, self._dtype, self._count = folder, dtype, 0
        rows = min(len(expected) + SPARE, folder.config.vocab_size)
        self.table = torch.zeros(rows, folder.config.hidden, device=device, dtype=dtype)
        self._slots = torch.full((folder.config.vocab_size,), -1, device=device)
        self._add(torch.as_tensor(list(expected), dtype=torch.int64))

    def look_up(self, ids: Tensor) -> Tensor:
        """Hidden states (…, hidden) for host ids (…), read from the file."""
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < len(self._slots):
            raise ValueError(f"an id of {int(ids.min())} to {int(ids.max())} is not among the {len(self._slots)}")
        rows = self._folder.embedding_rows(ids.flatten().tolist())
        return rows.to(self.table.device, self._dtype).view(*ids.shape, self.table.shape[1])

    def slots(self, ids: Tensor) -> Tensor | None:
        """Row indices into `table` for `ids` (any device), on the card; None when some do not fit there.

        Waits for the card once per step; a sampler that has just read the drawn ids has waited already."""
        found = self._slots[ids.to(self._slots.device)]
        if bool((found >= 0).all()):
            return found
        fresh = ids[found.to(ids.device) < 0].unique().cpu()
        if self._count + len(fresh) > len(self.table):
            return None
        self._add(fresh)
        return self._slots[ids.to(self._slots.device)]

    def _add(self, ids: Tensor) -> None:
        """Copy rows to the card, as many as still fit."""
        ids = ids[: len(self.table) - self._count]
        places = torch.arange(self._count, self._count + len(ids), device=self.table.device)
        self.table[places] = self.look_up(ids)
        self._slots[ids.to(self._slots.device)] = places
        self._count += len(ids)


class Head:
    """The output layer for `keep` ids, in that order; None for the whole vocabulary."""

    def __init__(
        self, folder: ModelFolder, keep: Sequence[int] | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        weight = folder.head_rows(keep)
        self.size = len(weight)
        self._weight = F.pad(weight, (0, 0, 0, -len(weight) % ALIGN)).to(device, dtype)

    def __call__(self, hidden: Tensor, select: slice | None = None) -> Tensor:
        """Logits (rows, n_keep), or those of `select`, from hidden states (rows, hidden)."""
        if select is None:
            return F.linear(hidden, self._weight)[:, : self.size]
        return F.linear(hidden, self._weight[: self.size][select])

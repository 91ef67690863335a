"""Composed songs as codes, in shards on disk, made with the shipped encoder.

A shard `<split>-<size>-<number>.npz` holds `codes` int16 (2, 8, frames), songs one after the other, `starts`
(songs + 1) and `seeds` (songs). Song i is `make_song(seeds[i], size=size)`: its words and labels need no storing.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from yuegp.codec import files, load_codec
from yuegp.codec.layout import DECODE_CODEBOOKS, SAMPLE_RATE

from .render import render
from .songs import SIZES, Song, make_song

Log = Callable[[str], None]

FIRST_SEED = {"train": 0, "heldout": 10_000_000}
SEEDS_PER_SIZE = 1_000_000
PER_SHARD = {"line": 200, "short": 80, "whole": 40}
COUNTS = {"line": 4000, "short": 1600, "whole": 600}
"""Songs to learn from, by size."""

HELDOUT = {"line": 100, "short": 80, "whole": 40}


class Sample(NamedTuple):
    song: Song
    codes: np.ndarray
    """int16 (2, 8, frames), vocal first."""


class Shard(NamedTuple):
    split: str
    size: str
    number: int
    songs: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.size}-{self.number:04}.npz"

    @property
    def seeds(self) -> range:
        first = FIRST_SEED[self.split] + SIZES.index(self.size) * SEEDS_PER_SIZE + self.number * PER_SHARD[self.size]
        return range(first, first + self.songs)


def read(folder: Path, split: str, sizes: Sequence[str] = SIZES) -> Iterator[Sample]:
    """Songs with their codes, shard by shard, in the order of their seeds."""
    for size in sizes:
        for path in sorted(folder.glob(f"{split}-{size}-*.npz")):
            with np.load(path) as shard:
                codes, starts, seeds = shard["codes"], shard["starts"], shard["seeds"]
            for seed, start, stop in zip(seeds, starts[:-1], starts[1:], strict=True):
                yield Sample(make_song(int(seed), size=size), codes[:, :, start:stop])


def build(
    folder: Path,
    codec_folder: Path,
    counts: Mapping[str, int] = COUNTS,
    workers: int = 1,
    log: Log = print,
    device: str = "cpu",
    heldout: Mapping[str, int] = HELDOUT,
) -> Path:
    """Write the missing shards and return `folder`. Raises ValueError when it holds another codec's."""
    folder.mkdir(parents=True, exist_ok=True)
    made_with = hashlib.sha256((codec_folder / f"{files.CODEC}.safetensors").read_bytes()).hexdigest()
    note = folder / "codec.sha256"
    if note.exists() and note.read_text("utf-8") != made_with:
        raise ValueError(f"{folder} holds codes of another codec; delete it or choose another folder")
    note.write_text(made_with, "utf-8")
    wanted = [shard for shard in shards(counts, heldout) if not (folder / shard.name).exists()]
    start, seconds = time.monotonic(), 0.0
    write = partial(_write, folder, codec_folder, device)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for done, (name, length) in enumerate(pool.imap_unordered(write, wanted), start=1):
            seconds += length
            took = time.monotonic() - start
            log(
                f"dataset: {name}, {done}/{len(wanted)} shards, {seconds / 60:.0f} min of songs at "
                f"{seconds / took:.0f} times real time, {took / done * (len(wanted) - done):.0f} s to go"
            )
    return folder


def shards(counts: Mapping[str, int], heldout: Mapping[str, int]) -> list[Shard]:
    """All shards, held-out ones first, alternating sizes so that early ones include every size."""
    made: list[Shard] = []
    for split, table in (("heldout", heldout), ("train", counts)):
        for size, count in table.items():
            per = PER_SHARD[size]
            made += [Shard(split, size, n, min(per, count - n * per)) for n in range(-(-count // per))]
    total = {(s.split, s.size): sum(t.split == s.split and t.size == s.size for t in made) for s in made}
    return sorted(made, key=lambda s: (s.split != "heldout", s.number / total[s.split, s.size]))


def _write(folder: Path, codec_folder: Path, device: str, shard: Shard) -> tuple[str, float]:
    """Write one shard. Returns its name and the seconds of song in it."""
    import torch

    from .codec import slim

    torch.set_num_threads(1)
    codec = slim(load_codec(codec_folder, device, encode=True))
    codes: list[np.ndarray] = []
    for seed in shard.seeds:
        stems = render(make_song(seed, size=shard.size), SAMPLE_RATE)
        codes.append(np.stack([codec.encode(wave, DECODE_CODEBOOKS) for wave in stems]))
    starts = np.cumsum([0, *(piece.shape[2] for piece in codes)])
    temporary = folder / f".{shard.name}"
    np.savez(temporary, codes=np.concatenate(codes, 2), starts=starts, seeds=np.array(shard.seeds))
    temporary.replace(folder / shard.name)
    return shard.name, float(starts[-1]) / codec.frame_rate

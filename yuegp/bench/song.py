"""A whole song through the real program with random weights, also as on a smaller card: where its seconds go, how often
models change places, and whether the memory it takes is what the plan said.

The weights are noise, in files that are written once and read as a user's are: in the released format, or with Stage 1
in the EXL2 layout. Every section is as long as it may become.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from offload.device import CONTEXT, PRETEND
from offload.units import gigabytes
from yuegp.checkpoints.config import LlamaConfig
from yuegp.codec.files import CODEC, UPSAMPLERS
from yuegp.codec.layout import (
    RATIOS,
    SAMPLE_RATE,
    UPSAMPLED_FRAME,
    CodecWidths,
    UpsamplerWidths,
    decode_shapes,
    upsampler_shapes,
)
from yuegp.generation import pipeline, released
from yuegp.generation.memory import parse_size
from yuegp.generation.options import ANY, ModelOptions
from yuegp.generation.plan import Event
from yuegp.library import store
from yuegp.song.schema import Sampling, Section, SongRequest, TakeInfo
from yuegp.tokens.vocab import FRAMES_PER_SECOND

from .exl2_noise import BITS, check_engine, write_random
from .noise import BLOCK, Noise, config_of, cut, save, write_json

STD = 0.02
SOFT = 0.001
"""Standard deviation of language models' weights, and of the codec's, whose sound must not grow beyond all bounds."""

SMALL = (LlamaConfig(83968, 64, 192, 2, 4, 2, 16, 16384), LlamaConfig(83840, 64, 192, 2, 4, 4, 16, 8192))
SMALL_CODEC = CodecWidths(4, 4, 2, 16), UpsamplerWidths(8, 16, 48, 2)

LABELS = ("verse", "chorus", "verse", "chorus", "bridge", "outro")

MEASURED_SECONDS = {"released": 30.0, "demo": 6.0}


@dataclass(frozen=True)
class SongBenchmark:
    """What to measure: `released` or `demo` (small) shapes, or the model set in `folder`. `vram` rehearses a smaller
    card, `10GB` say. With the engine exl2, Stage 1 is written in its layout at `bits` per weight; with torch, all is
    written as released and held as the memory plan says."""

    preset: str
    device: str
    vram: str | None = None
    folder: Path | None = None
    sections: int = 6
    section_seconds: float | None = None
    engine: str = "torch"
    bits: float = BITS

    @property
    def wishes(self) -> ModelOptions:
        return ModelOptions(engine="exl2") if self.engine == "exl2" else ANY


def run(job: SongBenchmark, say: Callable[[str], None] = print) -> str:
    """Make the song in a folder that is removed afterwards, tell, and return the JSON line."""
    if job.engine == "exl2":
        check_engine(job.device)
    if job.vram:
        parse_size(job.vram)
        os.environ[PRETEND] = job.vram
    with tempfile.TemporaryDirectory(prefix="yuegp bench ") as place:
        folder = job.folder
        if folder is None:
            bits = job.bits if job.engine == "exl2" else None
            held = "" if bits is None else f", Stage 1 as EXL2 of {bits:g} bits"
            say(f"writing random weights of the {job.preset} shapes{held}")
            folder = random_set(Path(place) / "set", job.preset, bits)
        row = _make(job, folder, Path(place) / "songs", say)
    _tell(row, say)
    return json.dumps(row)


def _make(job: SongBenchmark, folder: Path, songs: Path, say: Callable[[str], None]) -> dict[str, Any]:
    seconds = job.section_seconds or MEASURED_SECONDS[job.preset]
    words = "la " * 40
    sections = tuple(Section(LABELS[k % len(LABELS)], words) for k in range(job.sections))
    sampling = Sampling(minimum=2 * round(seconds * FRAMES_PER_SECOND))  # nobody ends a section early
    request = SongRequest(sections, "pop", seed=1, model=str(folder), sampling=sampling, section_seconds=seconds)
    plan = pipeline.plan(request)
    song = store.create(plan.request, songs)
    take = song.new_take(TakeInfo(number=0, request=song.request))
    notes: list[str] = []
    first: list[float] = []
    start = time.perf_counter()

    def watch(event: Event) -> None:
        if event.note:
            notes.append(event.note)
        if not first and any((take.folder / "hear").glob("*.flac")):
            first.append(time.perf_counter() - start)

    meter = _Meter(job.device)
    cast = pipeline.run(replace(plan, request=song.request), take, watch, job.device, wishes=job.wishes)
    total = time.perf_counter() - start
    assert cast is not None
    made = take.frames / FRAMES_PER_SECOND
    return {
        "bench": "song",
        "shapes": job.preset if job.folder is None else folder.name,
        "device": meter.name,
        "vram": job.vram,
        "engine1": str(cast.plan.stage1_format),
        "engine2": str(cast.plan.stage2_format),
        "order": cast.plan.hear,
        "together": cast.plan.together,
        "stage2_batch": cast.plan.stage2_batch,
        "song_seconds": made,
        "seconds": {name: round(took, 2) for name, took in take.info.seconds.items()} | {"all": round(total, 2)},
        "per_second": {name: round(took / made, 3) for name, took in take.info.seconds.items()},
        "first_sound": round(first[0], 2) if first else None,
        "models_brought": cast.swaps,
        "peak": meter.peak(),
        "planned": cast.plan.peak,
        "notes": notes,
    }


def _tell(row: Mapping[str, Any], say: Callable[[str], None]) -> None:
    say(f"{row['song_seconds']:.0f} s of song on {row['device']}" + (f" as {row['vram']}" if row["vram"] else ""))
    say(f"Stage 1 {row['engine1']}, Stage 2 {row['engine2']} {row['stage2_batch']} at once, order: {row['order']}")
    say(f"{'':<8}{'seconds':>10}{'per s of song':>15}")
    for name, took in row["seconds"].items():
        say(f"{name:<8}{took:>10.1f}{took / row['song_seconds']:>15.3f}")
    say(f"models brought {row['models_brought']} times; first sound after {row['first_sound']} s")
    say(f"peak {gigabytes(row['peak'])}, planned {gigabytes(row['planned'])}")
    for note in row["notes"]:
        say(note)


class _Meter:
    """Peak memory of this process: on a card what torch held of it, with the context; else growth of main memory."""

    def __init__(self, device: str) -> None:
        import torch

        gc.collect()
        self._cuda = device.startswith("cuda")
        self.name = torch.cuda.get_device_name() if self._cuda else f"CPU, {torch.get_num_threads()} threads"
        self._start = 0 if self._cuda else _resident_peak()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        import torch

        return torch.cuda.max_memory_reserved() + CONTEXT if self._cuda else _resident_peak() - self._start


def _resident_peak() -> int:
    """Most main memory this process ever held; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# Random weights


def random_set(folder: Path, preset: str, bits: float | None = None) -> Path:
    """A model set of noise in the released layout: `released` shapes (17 GB on disk) or `demo` (small) ones. With
    `bits`, Stage 1 is an EXL2 model of so many per weight (8: 11 GB in all)."""
    real = preset == "released"
    stages = (released.STAGE1, released.STAGE2) if real else SMALL
    codec, upsampler = (CodecWidths(), UpsamplerWidths()) if real else SMALL_CODEC
    for number, config in enumerate(stages, 1):
        place = folder / f"stage{number}"
        if number == 1 and bits is not None:
            write_random(place, config, bits)
            continue
        write_json(place / "config.json", config_of(config))
        _write_noise(place / "model.safetensors", config.tensors(), "BF16")
    _write_noise(folder / "codec" / f"{CODEC}.safetensors", decode_shapes(codec), "F32")
    for name in UPSAMPLERS.values():
        _write_noise(folder / "codec" / f"{name}.safetensors", upsampler_shapes(upsampler), "F32")
    rates = {"ratios": list(RATIOS), "sample_rate": SAMPLE_RATE}
    write_json(folder / "codec" / "final_ckpt" / "config.yaml", {"generator": {"config": rates}})
    hop = {"hop_length": UPSAMPLED_FRAME, "padding": "same"}
    write_json(folder / "codec" / "decoders" / "config.yaml", {"head": {"init_args": hop}})
    parts = {name: name for name in ("stage1", "stage2", "codec")}
    write_json(
        folder / "set.json",
        {"format": 1, "title": "Noise", "language": "any", "mode": "both", "licence": "none", "layout": "yue-v1",
         "tokenizer": {"kind": "bytes"}, **parts},
    )  # fmt: skip
    return folder


def _write_noise(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
    """A safetensors file of these tensors: noise, and ones for what scales (norms, gains, the window)."""
    count = min(BLOCK, sum(math.prod(shape) for shape in shapes.values()))
    std = STD if dtype == "BF16" else SOFT
    values = np.random.default_rng(0).standard_normal(count, np.float32) * np.float32(std)
    noise, ones = Noise(_stored(values, dtype)), Noise(_stored(np.ones(1024, np.float32), dtype))
    scales = ("norm.weight", "layernorm.weight", "alpha", "weight_g", "window", "gamma")
    save(path, {name: cut(ones if name.endswith(scales) else noise, dtype, s) for name, s in shapes.items()})


def _stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 values as they are stored; bfloat16 is the upper half."""
    return values if dtype == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16)

"""A whole song through the real program with random weights, also as on a smaller card: where its seconds go, how often
models change places, and whether the memory it takes is what the plan said.

The weights are files in the released format, written once and read as a user's are: noise, repeated from a block of 32
million values, because nobody's speed depends on which noise it is. Every section is as long as it may become.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from offload.device import CONTEXT, GIB, PRETEND, parse_size
from offload.sizes import RELEASED_STAGE1, RELEASED_STAGE2

from .. import library, pipeline
from ..checkpoint import LlamaConfig
from ..codec.files import CODEC, UPSAMPLERS
from ..codec.layout import (
    RATIOS,
    SAMPLE_RATE,
    UPSAMPLED_FRAME,
    CodecWidths,
    UpsamplerWidths,
    decode_shapes,
    upsampler_shapes,
)
from ..song import Sampling, Section, SongRequest, TakeInfo

BLOCK = 1 << 25
"""Values of noise that files are filled with, again and again."""

STD = 0.02
SOFT = 0.001
"""Standard deviation of language models' weights, and of the codec's, whose sound must not grow beyond all bounds."""

SMALL = (LlamaConfig(83968, 64, 176, 2, 4, 2, 16, 16384), LlamaConfig(83840, 64, 176, 2, 4, 4, 16, 8192))
SMALL_CODEC = CodecWidths(4, 4, 2, 16), UpsamplerWidths(8, 16, 48, 2)

LABELS = ("verse", "chorus", "verse", "chorus", "bridge", "outro")

MEASURED_SECONDS = {"released": 30.0, "demo": 6.0}


@dataclass(frozen=True)
class Job:
    """What to measure: `released` or `demo` (small) shapes, or the model set in `folder`. `vram` rehearses a smaller
    card, `10GB` say."""

    preset: str
    device: str
    vram: str | None = None
    folder: Path | None = None
    sections: int = 6
    section_seconds: float | None = None


def run(job: Job, say: Callable[[str], None] = print) -> str:
    """Make the song in a folder that is removed afterwards, tell, and return the JSON line."""
    if job.vram:
        parse_size(job.vram)
        os.environ[PRETEND] = job.vram
    with tempfile.TemporaryDirectory(prefix="yuegp bench ") as place:
        folder = job.folder
        if folder is None:
            say(f"writing random weights of the {job.preset} shapes")
            folder = random_set(Path(place) / "set", job.preset)
        row = _make(job, folder, Path(place) / "songs", say)
    _tell(row, say)
    return json.dumps(row)


def _make(job: Job, folder: Path, songs: Path, say: Callable[[str], None]) -> dict[str, Any]:
    seconds = job.section_seconds or MEASURED_SECONDS[job.preset]
    words = "la " * 40
    sections = tuple(Section(LABELS[k % len(LABELS)], words) for k in range(job.sections))
    sampling = Sampling(minimum=2 * round(seconds * 50))  # nobody ends a section early
    request = SongRequest(sections, "pop", seed=1, model=str(folder), sampling=sampling, section_seconds=seconds)
    plan = pipeline.plan(request)
    song = library.create(plan.request, songs)
    take = song.new_take(TakeInfo(number=0, request=song.request))
    notes: list[str] = []
    first: list[float] = []
    start = time.perf_counter()

    def watch(event: pipeline.Event) -> None:
        if event.note:
            notes.append(event.note)
        if not first and any((take.folder / "hear").glob("*.flac")):
            first.append(time.perf_counter() - start)

    meter = _Meter(job.device)
    cast = pipeline.run(replace(plan, request=song.request), take, watch, job.device)
    total = time.perf_counter() - start
    assert cast is not None
    made = take.frames / 50
    return {
        "bench": "song",
        "shapes": job.preset if job.folder is None else folder.name,
        "device": meter.name,
        "vram": job.vram,
        "engine1": str(cast.plan.way1),
        "engine2": str(cast.plan.way2),
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
    say(f"peak {row['peak'] / GIB:.2f} GB, planned {row['planned'] / GIB:.2f} GB")
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


def random_set(folder: Path, preset: str) -> Path:
    """A model set of noise in the released layout: `released` shapes (16 GB on disk) or `demo` (small) ones."""
    real = preset == "released"
    stages = (RELEASED_STAGE1.config, RELEASED_STAGE2.config) if real else SMALL
    codec, upsampler = (CodecWidths(), UpsamplerWidths()) if real else SMALL_CODEC
    for number, config in enumerate(stages, 1):
        _write_json(folder / f"stage{number}" / "config.json", _config(config))
        _write_noise(folder / f"stage{number}" / "model.safetensors", config.tensors(), "BF16")
    _write_noise(folder / "codec" / f"{CODEC}.safetensors", decode_shapes(codec), "F32")
    for name in UPSAMPLERS.values():
        _write_noise(folder / "codec" / f"{name}.safetensors", upsampler_shapes(upsampler), "F32")
    rates = {"ratios": list(RATIOS), "sample_rate": SAMPLE_RATE}
    _write_json(folder / "codec" / "final_ckpt" / "config.yaml", {"generator": {"config": rates}})
    hop = {"hop_length": UPSAMPLED_FRAME, "padding": "same"}
    _write_json(folder / "codec" / "decoders" / "config.yaml", {"head": {"init_args": hop}})
    parts = {name: name for name in ("stage1", "stage2", "codec")}
    _write_json(
        folder / "set.json",
        {"format": 1, "title": "Noise", "language": "any", "mode": "both", "licence": "none", "layout": "yue-v1",
         "tokenizer": {"kind": "bytes"}, **parts},
    )  # fmt: skip
    return folder


def _config(c: LlamaConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden,
        "intermediate_size": c.ffn,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.context,
        "rope_theta": c.rope_theta,
        "rms_norm_eps": c.eps,
        "tie_word_embeddings": c.tied,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """JSON, which is YAML too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _write_noise(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
    """A safetensors file of these tensors: noise, and ones for what scales (norms, gains, the window)."""
    size = {"BF16": 2, "F32": 4}[dtype]
    header, stop = {}, 0
    for name, shape in shapes.items():
        start, stop = stop, stop + size * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    largest = max(int(np.prod(shape)) for shape in shapes.values())
    std = STD if dtype == "BF16" else SOFT
    noise = np.random.default_rng(0).standard_normal(min(BLOCK, largest), np.float32) * np.float32(std)
    blocks = {"noise": _packed(noise, dtype), "ones": _packed(np.ones(len(noise), np.float32), dtype)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            scales = name.endswith(("norm.weight", "layernorm.weight", "alpha", "weight_g", "window", "gamma"))
            block = memoryview(blocks["ones" if scales else "noise"])
            left = size * int(np.prod(shape))
            while left:
                left -= file.write(block[: min(left, len(block))])


def _packed(values: np.ndarray, dtype: str) -> bytes:
    """Float32 values as bytes of `dtype`; bfloat16 is the upper half."""
    return (values if dtype == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16)).tobytes()

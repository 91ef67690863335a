"""One language model at the sizes of the released ones, with random weights made where they shall live: speed at
several lengths of context, memory, and whether a step repeats exactly.

What is possible is measured beside it: a step must at least read all weights and all keys and values once, and a plain
copy on the same device, in the same run, shows how many bytes it moves in a second.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offload.units import GIB, MIB, gigabytes
from yuegp.checkpoints.config import LlamaConfig, read_config
from yuegp.checkpoints.sets import find
from yuegp.errors import RequestError
from yuegp.generation import released
from yuegp.lm import EngineConfig, LMEngine, LMSession, open_engine
from yuegp.lm.llama.build import FAMILY
from yuegp.lm.llama.engine import TorchLM, assemble, compute_type
from yuegp.lm.weights.int8 import Int8
from yuegp.lm.weights.nf4 import BLOCK, Nf4
from yuegp.lm.weights.packed import Matrix
from yuegp.progress import Progress
from yuegp.tokens.vocab import YUE_V1

from .exl2_noise import BITS, check_engine, write_random

STEPS, REPEATS, WARMUP = 32, 100, 3
"""Steps that are timed, repeats of one step, and steps before them unless an engine asks for more: ExLlamaV2 tries its
kernels out in its first ones, and records its graphs later still."""

LONGEST_WARMUP = 256
"""Room left for them in the context."""

SHAPES = {"stage1": released.STAGE1, "stage2": released.STAGE2}
CONTEXTS = {"stage1": (1024, 8192, 16000), "stage2": (304, 1500, 2700), "demo": (256, 1024, 2000)}
SMALL_CONTEXTS = (64, 256)


@dataclass(frozen=True)
class LMBenchmark:
    """What to measure. `rows` are as many as Stage 1 with guidance has, or as Stage 2 has chunks at once. Random
    weights are made in memory, or with `bits` written to `folder`, in the EXL2 layout."""

    preset: str
    setup: EngineConfig
    config: LlamaConfig
    contexts: tuple[int, ...]
    rows: int
    keep: tuple[int, ...]
    folder: Path | None = None
    bits: float | None = None

    @property
    def random(self) -> bool:
        return self.folder is None or self.bits is not None


def job(
    preset: str,
    setup: EngineConfig,
    layers: int | None = None,
    contexts: Sequence[int] | None = None,
    rows: int | None = None,
    folder: Path | None = None,
    bits: float = BITS,
) -> LMBenchmark:
    """A measurement with everything that was left open filled in. On a processor the released shapes are made an
    eighth as wide and four layers deep, unless `layers` asks for the real ones. DeviceError when the machine lacks
    what the engine needs for random weights; nothing was written then."""
    if preset == "demo":
        folder = folder or find("demo").stage1
    if folder is not None:
        config = read_config(folder)
    else:
        if setup.engine == "exl2":
            check_engine(setup.device)
        config = replace(SHAPES[preset], layers=layers or SHAPES[preset].layers)
        if setup.device == "cpu" and layers is None:
            c = config
            config = replace(
                c, hidden=c.hidden // 8, ffn=c.ffn // 8, layers=4, heads=c.heads // 8, kv_heads=max(1, c.kv_heads // 8)
            )
    small = setup.device == "cpu" and layers is None and preset != "demo"
    chosen = tuple(contexts or (SMALL_CONTEXTS if small else CONTEXTS[preset]))
    room = config.context - STEPS - LONGEST_WARMUP - 1
    if wrong := [n for n in chosen if not 1 <= n <= room]:
        raise RequestError(
            f"A context of {wrong[0]} ids cannot be measured with this model.", f"Choose from 1 to {room} ids."
        )
    ids = YUE_V1.stage1_ids if preset == "stage1" else YUE_V1.stage2_ids
    keep = tuple(ids if ids[-1] < config.vocab_size else range(config.vocab_size))
    written = bits if folder is None and setup.engine == "exl2" else None
    return LMBenchmark(preset, setup, config, chosen, rows or (8 if preset == "stage2" else 2), keep, folder, written)


def run(job: LMBenchmark, say: Callable[[str], None] = print) -> str:
    """Measure, tell, and return the JSON line. Random EXL2 weights lie on the disk meanwhile."""
    if job.bits is None:
        return _run(job, say)
    with tempfile.TemporaryDirectory(prefix="yuegp bench ") as place:
        say(f"writing random weights of {job.bits:g} bits")
        return _run(replace(job, folder=write_random(Path(place) / "model", job.config, job.bits)), say)


def _run(job: LMBenchmark, say: Callable[[str], None]) -> str:
    device = torch.device(job.setup.device)
    meter = _Meter(device)
    bandwidth = copy_bandwidth(device)
    start = time.perf_counter()
    engine = _engine(job, lambda what, done, total: say(what) if what != "loading" else None)
    meter.settle()
    loaded, steady = time.perf_counter() - start, meter.used()
    say(
        f"{job.preset}: {job.config.layers} layers of {job.config.hidden}, {gigabytes(engine.weight_bytes)} as "
        f"{job.setup.weights} on {meter.name}; {'loaded' if job.folder else 'made'} in {loaded:.1f} s; "
        f"a copy moves {bandwidth / 1e9:.0f} GB/s"
    )
    say(f"{'context':>8} {'rows':>5} {'prefill/s':>10} {'ms/step':>9} {'ids/s':>8} {'floor ms':>9} {'share':>6}")
    figures = []
    for context in job.contexts:
        figure = _measure(job, engine, meter, context, bandwidth)
        figures.append(figure)
        say(
            f"{context:>8} {job.rows:>5} {figure['prefill_ids_per_s']:>10.0f} {figure['ms_per_step']:>9.3f} "
            f"{figure['ids_per_s']:>8.1f} {figure['floor_ms']:>9.3f} {figure['share_of_copy']:>6.0%}"
        )
    distinct, peak = _distinct(job, engine), meter.peak()
    start = time.perf_counter()
    engine.unload()
    del engine
    gc.collect()
    meter.settle()
    unloaded, left = time.perf_counter() - start, meter.used()
    say(
        f"one step repeated {REPEATS} times: {distinct} different result{'s' if distinct != 1 else ''}; "
        f"memory steady {gigabytes(steady)}, peak {gigabytes(peak)}, after unloading {gigabytes(left)} "
        f"({meter.what}); unloaded in {unloaded:.2f} s"
    )
    return json.dumps(
        {
            "bench": "lm",
            "preset": job.preset,
            "setup": {k: v for k, v in vars(job.setup).items() if k != "adapters"},
            "shape": vars(job.config),
            "device": meter.name,
            "torch": torch.__version__,
            "random_weights": job.random,
            "bits": job.bits,
            "copy_gb_per_s": round(bandwidth / 1e9, 2),
            "load_s": round(loaded, 3),
            "unload_s": round(unloaded, 3),
            "steady_bytes": steady,
            "peak_bytes": peak,
            "left_bytes": left,
            "distinct_of_100": distinct,
            "contexts": figures,
        }
    )


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that a plain copy reads and writes on this device, together; the best of several."""
    size = GIB if device.type == "cuda" else 128 * MIB
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    best = float("inf")
    for _ in range(6):
        _settle(device)
        start = time.perf_counter()
        target.copy_(source)
        _settle(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size / best


def _engine(job: LMBenchmark, progress: Progress) -> LMEngine:
    if job.folder is not None:
        return open_engine(job.folder, job.setup, progress)
    source = _Random(torch.device(job.setup.device), compute_type(job.setup), job.setup.weights)
    return TorchLM(assemble(job.config, source, job.setup, progress), "random", job.setup)


class _Random:
    """Random tensors of a network's names and shapes, made on the device. See `lm.build.Source`."""

    def __init__(self, device: torch.device, dtype: torch.dtype, weights: str) -> None:
        self._device, self._dtype, self._kind = device, dtype, FAMILY.get(weights)

    def floats(self, name: str, shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
        tensor = torch.empty(shape, dtype=self._dtype, device=device or self._device)
        return tensor.fill_(1) if len(shape) == 1 else tensor.normal_(0, 0.02)

    def matrix(self, name: str, shape: tuple[int, ...]) -> Matrix:
        rows, width = shape
        if self._kind is Int8:
            values = torch.randint(-127, 128, shape, dtype=torch.int8, device=self._device)
            return Int8(values, torch.full((rows, 1), 0.02 / 73, device=self._device))
        if self._kind is Nf4 and width % BLOCK == 0:
            codes = torch.randint(0, 256, (rows, width // 2), dtype=torch.uint8, device=self._device)
            return Nf4(codes, torch.full((rows, width // BLOCK), 0.04, device=self._device))
        return self.floats(name, shape)


def _measure(job: LMBenchmark, engine: LMEngine, meter: _Meter, context: int, bandwidth: float) -> dict[str, Any]:
    """Fill a session to `context` ids and time steps from there. Stage 1 has one long and one short row for each
    take, as guidance has; Stage 2's rows are equally long."""
    lengths = [context] * job.rows
    if job.preset != "stage2":
        lengths[job.rows // 2 :] = [max(1, min(context // 2, 1500))] * (job.rows - job.rows // 2)
    warmup = getattr(engine, "warmup", WARMUP)
    with engine.open([length + STEPS + warmup for length in lengths], job.keep) as lm:
        meter.settle()
        start = time.perf_counter()
        lm.prefill(0, _ids(job, context))
        meter.settle()
        filled = time.perf_counter() - start
        _fill(job, lm, lengths)
        ids = torch.tensor(_ids(job, job.rows), device=engine.device)
        for _ in range(warmup):
            lm.step(ids)
        meter.settle()
        start = time.perf_counter()
        for _ in range(STEPS):
            lm.step(ids)
        meter.settle()
        seconds = (time.perf_counter() - start) / STEPS
    size = 2 if job.setup.engine == "exl2" else compute_type(job.setup).itemsize
    layers: int = getattr(engine, "layer_bytes", engine.weight_bytes)
    caches = engine.kv_bytes * (sum(lengths) + job.rows * (warmup + STEPS // 2))
    read = layers + caches + job.config.hidden * len(job.keep) * size  # and the part of the output layer that is wanted
    return {
        "context": context,
        "rows": job.rows,
        "prefill_ids_per_s": round(context / filled, 1),
        "ms_per_step": round(1000 * seconds, 4),
        "ids_per_s": round((job.rows if job.preset == "stage2" else 1) / seconds, 2),
        "floor_ms": round(1000 * read / bandwidth, 4),
        "share_of_copy": round(read / bandwidth / seconds, 4),
    }


def _fill(job: LMBenchmark, lm: LMSession, lengths: Sequence[int]) -> None:
    """Read ids into every row but the first, which is full. A row as long as an earlier one becomes a copy of it."""
    for row, length in enumerate(lengths):
        source = list(lengths).index(length)
        if source < row:
            lm.copy(source, row)
        elif row:
            lm.prefill(row, _ids(job, length))


def _ids(job: LMBenchmark, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, job.config.vocab_size, (count,), generator=generator).tolist()


def _distinct(job: LMBenchmark, engine: LMEngine) -> int:
    """How many different logits one step gives when it is repeated."""
    context = min(job.contexts)
    ids = torch.tensor(_ids(job, job.rows), device=engine.device)
    seen = set()
    with engine.open([context + 1] * job.rows, job.keep) as lm:
        lm.prefill(0, _ids(job, context))
        _fill(job, lm, [context] * job.rows)
        for _ in range(REPEATS):
            seen.add(lm.step(ids).float().cpu().numpy().tobytes())
            for row in range(job.rows):
                lm.truncate(row, context)
    return len(seen)


class _Meter:
    """Memory of the device, and when it is done: allocated bytes of a card, resident bytes of this process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self.name = torch.cuda.get_device_name(device) if self._cuda else "cpu"
        self.what = "allocated on the card" if self._cuda else "resident in this process"
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(device)

    def settle(self) -> None:
        _settle(self._device)

    def used(self) -> int:
        if self._cuda:
            return torch.cuda.memory_allocated(self._device)
        return _resident("VmRSS")

    def peak(self) -> int:
        if self._cuda:
            return torch.cuda.max_memory_allocated(self._device)
        return _resident("VmHWM")


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _resident(entry: str) -> int:
    """Bytes of this process in main memory, now or at most, as Linux knows them; 0 elsewhere."""
    page = Path("/proc/self/status")
    lines = page.read_text("utf-8").splitlines() if page.is_file() else []
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(entry))

"""Presses a model folder to EXL2 with ExLlamaV2's own converter, calibrated on rows of real audio tokens.

Two passes, each in a process of its own and each resumed where it was broken off: the first measures what every layer
loses at every bitrate, once per model; the second presses to the wanted bits. Needs a CUDA card.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from offload.units import GIB, memory_size
from yuegp import __version__
from yuegp.checkpoints import formats
from yuegp.checkpoints.config import read_config
from yuegp.checkpoints.verify import weight_files
from yuegp.errors import Cancelled, DeviceError, LibraryError, ModelError, RequestError
from yuegp.files import discard, free_bytes, replace, write_atomic
from yuegp.lm.exl2.format import HEAD_BITS
from yuegp.owned import is_link
from yuegp.progress import Progress, quiet
from yuegp.shortage import shortage_in
from yuegp.units import file_size

from .quantize import same_job

NEED_VRAM = 8 * GIB
"""What the package's documentation asks for at YuE's width."""

_STATUS = re.compile(r"\[STATUS\](.*)\[/STATUS\]")

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class ConversionJob:
    """What is pressed, from which rows (files of `rows.save`), to how many bits per weight."""

    source: Path
    target: Path
    rows: Path
    held: Path
    bits: float
    head_bits: int = HEAD_BITS

    @property
    def work(self) -> Path:
        """The converter's own folder; removed when the model is finished."""
        return self.target.with_name(f".{self.target.name}.work")

    @property
    def measurement(self) -> Path:
        """What the layers lose at each bitrate: beside the target, used again for every other bitrate."""
        return self.target.parent / f"{self.source.name}.{self._rows_mark}.measurement.json"

    @property
    def _rows_mark(self) -> str:
        return hashlib.sha256(self.held.read_bytes()).hexdigest()[:8]


def check(job: ConversionJob, free_vram: int | None) -> None:
    """Refuse what cannot work, before anything is computed. `free_vram` in bytes, None without a card."""
    if not 2 <= job.bits <= 8:
        raise RequestError(f"{job.bits:g} bits per weight is outside 2 to 8.", "Choose 4, 5, 6 or 8.")
    if (now := formats.stored_as(job.source)) not in ("float32", "float16", "bfloat16"):
        raise RequestError(
            f"The model in {job.source} is pressed already ({now}).", "Name the folder of the full model."
        )
    config = read_config(job.source)
    if job.target.exists() and any(job.target.iterdir()):
        raise RequestError(f"{job.target} is not empty.", "Choose another folder; nothing is written over.")
    if free_vram is None:
        raise DeviceError(
            "Pressing to EXL2 needs an NVIDIA card, and none is here.", "Press to int8 or nf4 instead: any machine can."
        )
    if free_vram < NEED_VRAM:
        raise DeviceError(
            f"Pressing to EXL2 needs {memory_size(NEED_VRAM)} of free VRAM; {memory_size(free_vram)} are free.",
            "Close other programs that use the card.",
        )
    size = sum(path.stat().st_size for path in weight_files(job.source))
    states = job.rows.stat().st_size // 8 * config.hidden * 2  # a half per hidden value of every row
    needed = int(size * (job.bits / 16 + 0.1) * 2) + states * 2
    job.target.parent.mkdir(parents=True, exist_ok=True)
    free = free_bytes(job.target.parent)
    if free is not None and free < needed:
        raise LibraryError(
            f"Pressing needs about {file_size(needed)} beside {job.target}, and {file_size(free)} are free.",
            "Free some space, or choose a folder on another disk.",
        )


def convert(job: ConversionJob, credit: str = "", progress: Progress = quiet) -> Path:
    """Run both passes and complete the folder. A run with the same job goes on; bits may change between runs, for each
    has a target of its own, rows and source may not. `Cancelled` from `progress` stops the converter and keeps what it
    has done."""
    _same_source(job)
    if not job.measurement.is_file():
        partial = job.work / "measurement.json"
        _run(job, "measure", ["-om", str(partial), "-i", str(job.source), "-o", str(job.work / "measure")], progress)
        replace(partial, job.measurement)
    arguments = ["-m", str(job.measurement), "-i", str(job.source), "-o", str(job.work / "press")]
    arguments += ["-b", f"{job.bits:g}", "-hb", str(job.head_bits), "-cf", str(job.work / "model")]
    _run(job, "press", arguments, progress)
    for name in ("tokenizer.model", "LICENSE", "NOTICE"):
        if (job.source / name).is_file():
            shutil.copyfile(job.source / name, job.work / "model" / name)
    card = (
        f"# {job.source.name}, EXL2 {job.bits:g} bits per weight\n\nPressed from `{job.source.name}` by yuegp "
        f"{__version__} with ExLlamaV2's converter, calibrated on audio tokens (`{job.rows.name}`).\n"
        + (f"\n{credit}\n" if credit else "")
        + "\nThe licence is that of the original.\n"
    )
    write_atomic(job.work / "model" / "README.md", card.encode())
    if job.target.exists():
        job.target.rmdir()
    replace(job.work / "model", job.target)
    discard(job.work)
    return job.target


def _same_source(job: ConversionJob) -> None:
    note, state = job.work / "job.json", [[p.name, p.stat().st_size] for p in weight_files(job.source)]
    rows = hashlib.sha256(job.rows.read_bytes()).hexdigest()
    content = {"source": str(job.source.resolve()), "state": state, "rows": rows}
    if is_link(job.work) or (job.work.is_dir() and not note.is_file() and any(job.work.iterdir())):
        raise RequestError(f"{job.work} holds something else.", "Move it away: pressing needs a folder of that name.")
    job.work.mkdir(parents=True, exist_ok=True)
    if note.is_file():
        same_job(note, content)
    write_atomic(note, json.dumps(content).encode())


def _run(job: ConversionJob, what: str, arguments: Sequence[str], progress: Progress) -> None:
    command = [sys.executable, "-m", "quant.exl2_convert", str(job.rows), str(job.held), "--", *arguments, "-so"]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment.update(PYTHONUNBUFFERED="1", PYTHONUTF8="1")  # it prints names of folders, and reads JSON
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
        )
    except OSError as exc:
        raise DeviceError(f"The converter could not be started: {exc}.", "Run `yuegp doctor`.") from exc
    last: list[str] = []
    assert child.stdout is not None
    try:
        for line in child.stdout:
            last = [*last[-9:], line.strip()]
            for stage, done, total in _stages(line):
                progress(f"{what}: {stage}", done, total)
    except (Cancelled, KeyboardInterrupt):
        child.terminate()
        child.wait()
        raise
    if child.wait():
        said = next((line for line in reversed(last) if line), "nothing")
        if kind := shortage_in("\n".join(last)):
            what, user = ("The card's memory", "use the card") if kind == "card" else ("The memory (RAM)", "take much")
            hint = f"Close other programs that {user}, and run again: it goes on."
            raise DeviceError(f"{what} ran out while pressing: {said}", hint)
        what = f"ExLlamaV2's converter gave up: {said}"
        raise ModelError(what, "Run again to go on; `yuegp doctor` checks the engine.")


def _stages(line: str) -> Iterator[tuple[str, int, int]]:
    """The converter's own words on how far it is."""
    if match := _STATUS.search(line):
        try:
            status = json.loads(match[1])
            yield str(status["stage"]), round(1000 * float(status["completion"])), 1000
        except (ValueError, KeyError, TypeError):
            return

"""The border to `offload`: from a song's plan and the models on disk to its question, from its answer to how engines
are opened, and from its errors to ours. Reads configurations and headers; loads no torch, and no weights before
`opener`'s answer is called."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from offload import device as offload_device
from offload import errors, planner
from offload.device import Card, Machine
from offload.plan import MemoryPlan, MemoryRequest
from offload.sizes import CACHES, FLOAT_BITS, Shapes, Sound, WeightFormat
from yuegp.checkpoints.config import read_config
from yuegp.checkpoints.sets import ModelSet, find
from yuegp.checkpoints.verify import exl2_bits
from yuegp.codec.files import CODEC, ENTRIES, UPSAMPLERS, codec_file, header, shapes_of
from yuegp.codec.layout import CodecWidths, UpsamplerWidths
from yuegp.errors import DeviceError, RequestError
from yuegp.lm import EngineConfig, LMEngine, open_engine, stored_as
from yuegp.lm.ways import BITS, held
from yuegp.lm.ways import lacking as _lacking
from yuegp.song.schema import Track
from yuegp.tokens.prompts import Prompts
from yuegp.tokens.vocab import STAGE2_CHUNK

from .options import ANY, AUTO, ModelOptions
from .released import sound

if TYPE_CHECKING:
    from .plan import SongPlan

CHUNK_IDS = 9 * STAGE2_CHUNK + 2
"""Positions of a chunk in Stage 2's cache; as `stage2.chunk_ids` counts them."""

LIBRARY = tuple(
    WeightFormat("exl2", "exl2", Fraction(bits), kv) for bits in ("8", "6", "5", "4.25", "4") for kv in CACHES
)
"""Formats that Stage 1 can be quantized to for the fast engine."""


# Errors


class DoesNotFit(DeviceError):
    """There is not enough memory for a song. `nearest` is a lesser song that would fit, with its plan."""

    def __init__(self, found: errors.DoesNotFit) -> None:
        super().__init__(found.what, found.hint)
        self.nearest = found.nearest


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn what `offload` refuses into this program's errors, which have the same sentences."""
    try:
        yield
    except errors.DoesNotFit as exc:
        raise DoesNotFit(exc) from exc
    except errors.NoSuchSize as exc:
        raise RequestError(exc.what, exc.hint) from exc
    except errors.OffloadError as exc:
        raise DeviceError(exc.what, exc.hint) from exc


machine = memory_errors()(offload_device.machine)
place = memory_errors()(offload_device.place)
parse_size = memory_errors()(offload_device.parse_size)
plan_memory = memory_errors()(planner.plan)


# Engines


def engine_config(plan: MemoryPlan, stage: int) -> EngineConfig:
    """How the plan holds the model of a stage (1 or 2)."""
    way, resident = (plan.stage1_format, plan.resident) if stage == 1 else (plan.stage2_format, None)
    return EngineConfig(way.engine, plan.device, way.weights, way.kv if way.engine == "exl2" else "same", resident)


def opener(models: ModelSet) -> Callable[[int, MemoryPlan], LMEngine]:
    """What loads the model of a stage as a plan says: for `ModelManager`."""
    folders = {1: models.stage1, 2: models.stage2}
    return lambda stage, plan: open_engine(folders[stage], engine_config(plan, stage))


# Requests


def ways(folder: Path, stage: int, card: Card | None) -> tuple[WeightFormat, ...]:
    """Formats in which the model in `folder` can run here, as stored and quantized. Raises DeviceError when it needs a
    card or package that is missing."""
    stored = stored_as(folder)
    if stored == "exl2" and (lacking := _lacking(card)):
        raise DeviceError(
            f"The model in {folder} is an EXL2 model, which needs {lacking}.",
            "Use the unquantized model, or set the program up again with `python launch.py`.",
        )
    bits = _exl2_bits(folder) if stored == "exl2" else Fraction(16)
    return held(stored, bits, stage, card, Shapes(read_config(folder), 0))


def wished(
    models: ModelSet, card: Card | None, wishes: ModelOptions
) -> tuple[tuple[WeightFormat, ...], tuple[WeightFormat, ...]]:
    """Formats of both models that satisfy `wishes` here. Raises DeviceError or RequestError when none does."""
    if wishes.fast and (lacking := _lacking(card)):
        repair = ", or run `python launch.py --repair`." if card else "."
        raise DeviceError(
            f"The engine exl2, its EXL2 models and its quantized KV caches need {lacking}.",
            f"Leave engine, quantization and KV cache on auto{repair}",
        )
    ways1, ways2 = ways(models.stage1, 1, card), ways(models.stage2, 2, card)
    if card is None and wishes.weights in BITS and {way.weights for way in ways1} <= FLOAT_BITS.keys():
        ways1 += (
            WeightFormat("torch", wishes.weights, BITS[wishes.weights], "float32", converted=True),
        )  # not offered unasked
    found = tuple(way for way in ways1 if _fulfils(way, wishes))
    if not found:
        stored = stored_as(models.stage1)
        only = "by the engine exl2" if stored == "exl2" else "by the engine torch, its KV cache not quantized"
        smaller = ", or pressed to int8 or nf4" if stored in FLOAT_BITS else ""
        raise RequestError(
            f"The model {models.id} is stored as {stored}. It can be held so{smaller}, {only}: not with engine "
            f"{wishes.engine}, quantization {wishes.weights}, KV cache {wishes.kv}.",
            "Leave them on auto, or use a copy of the model that is stored so: `python launch.py models list --all`.",
        )
    return found, tuple(way for way in ways2 if wishes.engine in (AUTO, way.engine)) or ways2


def _fulfils(way: WeightFormat, wishes: ModelOptions) -> bool:
    held = {"bnb8": "int8"}.get(way.weights, "float" if way.weights in FLOAT_BITS else way.weights)
    cache = "fp16" if way.kv == "float32" else way.kv
    return all(asked in (AUTO, is_) for asked, is_ in zip(
        (wishes.engine, wishes.weights, wishes.kv), (way.engine, held, cache), strict=True
    ))  # fmt: skip


def _exl2_bits(folder: Path) -> Fraction:
    return Fraction(exl2_bits(folder) or 8).limit_denominator(100)


def sound_of(models: ModelSet) -> Sound:
    """Sizes of the set's codec, from the shapes of its tensors."""
    names = (CODEC, UPSAMPLERS[Track.VOCAL])
    codec, upsampler = (shapes_of(header(codec_file(models.codec, name), ENTRIES.get(name))) for name in names)
    return sound(CodecWidths.of(codec), UpsamplerWidths.of(upsampler))


def longest(prompts: Prompts, sections: int, budget: int) -> int:
    """Ids of a song of `sections` sections that all use their budget."""
    frame = 1 + len(prompts.close)
    return len(prompts.head) + sum(len(prompts.openings[k]) + budget + frame for k in range(sections))


def need(
    plan: SongPlan, prompts: Prompts, card: Card | None, sections: int, takes: int = 1, wishes: ModelOptions = ANY
) -> MemoryRequest:
    """Memory request to write and refine `sections` more sections of a song with the models as `wishes` says."""
    models, layout = plan.models, plan.models.layout
    ways1, ways2 = wished(models, card, wishes)
    return MemoryRequest(
        stage1=Shapes(read_config(models.stage1), len(layout.stage1_ids)),
        stage2=Shapes(read_config(models.stage2), len(layout.stage2_ids)),
        sound=sound_of(models),
        ways1=ways1,
        ways2=ways2,
        sections=max(1, sections),
        budget=plan.budget,
        longest=longest(prompts, plan.count, plan.budget),
        guided=plan.request.sampling.guidance != 1 or plan.request.sampling.guidance_later != 1,
        takes=takes,
        chunk=CHUNK_IDS,
    )


def foresee(plan: SongPlan, here: Machine, device: str = "auto", wishes: ModelOptions = ANY) -> MemoryPlan:
    """The memory plan of a song on this machine, before anything loads; a reference counts by its length. Raises
    DoesNotFit, DeviceError or RequestError."""
    from .plan import prompts_of

    card = None if device == "cpu" else here.card
    return plan_memory(need(plan, prompts_of(plan), card, plan.count, wishes=wishes), card, here.ram_free)


def allow(model: str, wishes: ModelOptions, here: Machine, device: str = "auto") -> None:
    """Raise DeviceError or RequestError, before anything is queued, if `model` cannot run as `wishes` says here."""
    if wishes != ANY:
        wished(find(model), None if device == "cpu" else here.card, wishes)

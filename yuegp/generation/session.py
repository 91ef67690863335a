"""One run of a take: both language models in turn, progress, and a smaller plan when memory runs out. `pipeline`
decides what is missing and in which order; `render` turns codes into sound."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np

from offload.device import Card, cap
from offload.manager import ModelManager
from yuegp import __version__
from yuegp.errors import Cancelled, DeviceError
from yuegp.library.store import Take
from yuegp.lm import LMEngine
from yuegp.shortage import named, shortage
from yuegp.song.schema import MadeWith, Span, Stage, TakeInfo

from .memory import engine_config, machine, memory_errors, need, opener, place, plan_memory
from .options import ANY, ModelOptions
from .plan import Event, Phase, ProgressCallback, SongPlan, missing_sections, prompts_of
from .previews import Previews
from .render import reference_codes, render
from .stage1 import SectionCodes, Stage1Input, write_sections
from .stage2 import CHUNK, Chunk, chunks, refine

T = TypeVar("T")


class GenerationSession:
    """One run of a take: its models, its progress, and the Stage-1 session kept open between sections."""

    def __init__(
        self,
        plan: SongPlan,
        take: Take,
        watch: ProgressCallback,
        device: str,
        previews: bool = True,
        wishes: ModelOptions = ANY,
    ) -> None:
        self.plan, self.take, self.watch, self.device, self.wishes = plan, take, watch, device, wishes
        self._heard = Previews(take, plan.models.codec, previews)
        self._models: ModelManager[LMEngine] | None = None
        self._stage1_input: Stage1Input | None = None
        self._writing: Generator[SectionCodes, None, None] | None = None
        self._made, self._last, self._note = 0, ("", 0), ""

    def __enter__(self) -> GenerationSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self._heard.close()
        self._close_stage1_session()
        if self._models:
            self._models.clear()

    def open(self, hear: str | None = None, takes: int = 1) -> None:
        """Plan the memory and prepare the models. Raises DoesNotFit when memory is too small, RequestError or
        DeviceError for model options that cannot be satisfied."""
        if self._models:
            self._models.clear()
        plan, (card, ram) = self.plan, _card(self.device)
        asked = need(plan, prompts_of(plan), card, len(missing_sections(plan, self.take)), takes, self.wishes)
        memory = plan_memory(asked, card, ram)
        if hear is not None:
            memory = replace(memory, hear=hear)
        self._models = ModelManager(memory, opener(plan.models), card, ram)

    @property
    def models(self) -> ModelManager[LMEngine]:
        """The model manager."""
        if self._models is None:
            raise RuntimeError("nothing was planned yet")
        return self._models

    def run_with_fallback(self, stage: int, work: Callable[[], None]) -> None:
        """Run `work`; when memory runs out, run it again with a smaller plan. It skips what it has already saved."""
        while True:
            try:
                work()
                return
            except Exception as exc:  # running out of memory appears as many exception types
                if not shortage(exc):
                    raise
            # outside of the handler: its traceback would keep the memory that must be freed
            self._close_stage1_session()
            with memory_errors():
                change = self.models.fall_back(stage)
            self._note = f"{self._note} {change}".strip()

    def _where_there_is_room(self, work: Callable[[str], T], where: str) -> T:
        """Run the codec's `work` after offloading the models: on the card, or on the CPU when memory runs out there."""
        self._close_stage1_session()
        self.models.clear()
        try:
            return work(where)
        except Exception as exc:
            if not shortage(exc):
                raise
            if where == "cpu" and isinstance(exc, DeviceError):
                raise
            if where == "cpu":
                raise named(exc, "while the codec worked") from exc
        self.models.clear()
        self._note = "Memory ran out on the card. The sound is worked on by the CPU."
        return work("cpu")

    # Stage 1

    def write(self) -> None:
        """Write the missing sections up to the next kept one, refining on the way what is due."""
        take = self.take
        while todo := missing_sections(self.plan, take):
            self.run_with_fallback(1, lambda todo=todo: self._write_one(todo))  # type: ignore[misc]
            if missing_sections(self.plan, take) and self._due():
                if not self.models.keeps_sessions(1):
                    self._close_stage1_session()
                self.run_with_fallback(2, lambda: self.refine(whole=False))
                self._made = 0
        self._close_stage1_session()
        take.save_info(replace(take.info, stage=Stage.STAGE1))

    def _write_one(self, todo: range) -> None:
        take = self.take
        spans = take.info.spans
        finished = spans[:-1] if spans and spans[-1].open else spans
        with _timed(take, "stage1"):
            score = self.score()
            with self.models.engine(1) as engine:
                if self._writing is None:
                    written = take.load_stage1()
                    past = [written[:, 0, span.start : span.stop] for span in finished]
                    opened = written[:, 0, spans[-1].start : spans[-1].stop] if finished != spans else None
                    seed = self.plan.request.seed
                    self._writing = write_sections(engine, score, seed, todo, past, opened, self.progress)
                section = next(self._writing)
            written = take.load_stage1()[:, :, : finished[-1].stop if finished else 0]
            start, stop = written.shape[2], written.shape[2] + section.codes.shape[1]
            span = Span(section.section, start, stop, section.ended, take.info.number, self.plan.request.seed)
            written = np.concatenate([written, section.codes[:, None]], axis=2)
            take.save_stage1(written, replace(take.info, spans=(*finished, span), made_with=self.made_with()))
        self._heard.draft(span, section.codes)

    def score(self) -> Stage1Input:
        """The input of Stage 1; encodes a reference once."""
        if self._stage1_input is None:
            plan = self.plan
            codes = None
            if plan.request.reference:
                listen = partial(reference_codes, plan, plan.request.reference, self.emit)
                codes = self._where_there_is_room(listen, self.models.plan.sound_device)
            prompts = prompts_of(plan, codes)
            self._stage1_input = Stage1Input(
                prompts, plan.request.sampling, plan.budget, plan.models.drawable, self.take.info.muted
            )
        return self._stage1_input

    def progress(self, what: str, done: int, total: int, finished: int | None = None) -> None:
        """Report Stage 1's progress over the whole song, of which `finished` sections are written."""
        self._made += done - self._last[1] if what == self._last[0] else 0
        self._last = (what, done)
        if finished is None:
            finished = sum(not span.open for span in self.take.info.spans)
        plan = self.plan
        before = finished * plan.budget
        self.emit(
            Event(Phase.WRITING, f"{what} of {plan.count}", before + done, plan.count * plan.budget, "ids", self._made)
        )

    def emit(self, event: Event) -> None:
        note, self._note = self._note, ""
        self.watch(replace(event, note=note) if note else event)

    def _close_stage1_session(self) -> None:
        """Close Stage 1's session; its sections are saved, and a new session continues from there."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.close()

    # Stage 2

    def _due(self) -> bool:
        """Whether written sections should be refined before more are written."""
        memory = self.models.plan
        if memory.order == "stages":
            return False
        _, mask = self.take.load_stage2()
        ready = len(_ready(mask))
        if memory.hear == "first" and mask.any():
            return ready >= memory.stage2_batch
        return ready > 0

    def refine(self, whole: bool = True) -> None:
        """Refine all chunks that lack codebooks 1 to 7; without `whole`, except the last one if it may still grow."""
        take = self.take
        codes = take.load_stage1()[:, 0]
        full, mask = take.load_stage2()
        todo = chunks(mask) if whole else _ready(mask)
        total, before = mask.size, int(mask.sum())

        def progress(what: str, count: int, of: int) -> None:
            self.emit(Event(Phase.REFINING, "both tracks", before + count, total, "frames", count))

        if not todo:
            return
        with _timed(take, "stage2"), self.models.engine(2) as engine:
            for batch in refine(engine, self.plan.models.layout, codes, todo, self.models.plan.stage2_batch, progress):
                for chunk, refined in ((finished.chunk, finished.codes) for finished in batch):
                    frames = slice(chunk.start, chunk.start + chunk.frames)
                    full[chunk.track, :, frames] = refined
                    mask[chunk.track, frames] = True
                take.save_stage2(full, mask, take.info)
        if not whole:
            self._heard.refined(take.info.spans, full, mask)

    # Sound

    def render(self) -> None:
        """Render stems and mix, on the card if it has room for the codec, else on the CPU."""
        self._heard.close()
        with _timed(self.take, "sound"):
            self._where_there_is_room(
                lambda where: render(self.plan, self.take, self.emit, where), self.models.plan.sound_device
            )
        self.take.save_info(replace(self.take.info, stage=Stage.RENDERED))
        self._heard.discard()

    def made_with(self) -> MadeWith:
        import torch

        setup = engine_config(self.models.plan, 1)
        return MadeWith(
            yuegp=__version__,
            model=self.plan.models.id,
            engine=f"{setup.engine} {self.models.plan.stage1_format}"
            if setup.engine == "torch"
            else str(self.models.plan.stage1_format),
            device=setup.device,
            torch=torch.__version__,
            credit=self.plan.models.credit,
        )


def _ready(mask: np.ndarray) -> list[Chunk]:
    """The chunks of `mask` (2, frames) that will not grow although more sections follow."""
    return [chunk for chunk in chunks(mask) if chunk.frames == CHUNK or chunk.start + chunk.frames < mask.shape[1]]


def _card(device: str) -> tuple[Card | None, int]:
    """The card to use (None for the CPU), and the bytes of free RAM. Raises DeviceError when there is no such
    device."""
    placement = place(0, device)
    here = machine()
    if placement.device == "cpu":
        return None, here.ram_free
    cap(here, placement.device)
    return here.card, here.ram_free


@contextlib.contextmanager
def _timed(take: Take, stage: str) -> Iterator[None]:
    """Add the wall seconds spent inside to take.json, also for a stopped run, whose finished parts are kept."""
    start = time.monotonic()

    def spent() -> TakeInfo:
        before = take.info.seconds.get(stage, 0.0)
        return replace(take.info, seconds={**take.info.seconds, stage: round(before + time.monotonic() - start, 2)})

    try:
        yield
        take.info = spent()
    except Cancelled:
        take.save_info(spent())
        raise

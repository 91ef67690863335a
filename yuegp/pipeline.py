"""A whole song: make a plan, then run it, saving every finished part.

`plan` refuses what cannot work before anything heavy loads (no torch). `run` goes on from whatever the take folder
already holds, so an interrupted song is resumed by running it again, and equals an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from . import __version__, audio, lyrics, models, tags
from .errors import GenerationError, RequestError
from .library import Take
from .prompts import Prompts, budget_ids, build, prompt_limit, reference_window
from .song import MadeWith, Reference, Section, SongRequest, Span, Stage, Track
from .tokenizer import open_tokenizer
from .vocab import FRAMES_PER_SECOND

if TYPE_CHECKING:
    from offload.device import Placement

    from .lm import LMEngine

LONGEST_SECTION = 60.0
"""Twice what the model was trained to write in one go; beyond, sections only fall apart."""

CROSSOVERS = ("smooth", "yue")

REFERENCE_MARGIN = 15
"""Seconds heard before and after a reference's window. The released program encodes the whole file, because the
codec's semantic branch listens far; beyond some seconds that changes nothing and only costs memory."""

STAGE2_ROWS = 16
"""Most chunks refined at once on a CPU: more are no faster, and finished batches are saved less often."""

MEMORY_SHARE = 0.5
"""Share of the free memory that Stage 2's caches may take."""

BYTES_PER_SECOND = 3 * 44_100 * 3
"""Disk for a second of song: two stems and a mix at 24 bits, before FLAC makes them smaller."""


@dataclass(frozen=True)
class Event:
    """Progress of one stage: `done` of `total` units, `made` of which were computed in this run."""

    stage: str
    what: str
    done: int
    total: int
    unit: str
    made: int


Watch = Callable[[Event], None]


@dataclass(frozen=True)
class SongPlan:
    """What will be done. `request` is complete: nothing in it is left to a default."""

    request: SongRequest
    models: models.ModelSet
    sections: tuple[Section, ...]
    """The sections as the model reads them: known labels, and no words in an instrumental song."""
    tags: str
    count: int
    """Sections to make."""
    budget: int
    """Audio ids a section may have."""
    seconds: float
    """Longest the song can become."""
    notes: tuple[str, ...]

    @property
    def disk_bytes(self) -> int:
        return int(self.seconds * BYTES_PER_SECOND)


# Planning


def plan(request: SongRequest) -> SongPlan:
    """Everything that can be decided without a model. Raises RequestError or ModelError for what cannot work."""
    _check_values(request)
    line = tags.parse(request.tags)
    notes = [*tags.advise(line, lyrics.language(request.sections), request.instrumental)]
    sections = tuple(replace(s, label=lyrics.trained_label(s.label)) for s in request.sections)
    if request.instrumental:
        line = tags.without_voice(line)
        if any(s.words for s in sections):
            notes.append("The song is instrumental: the words of the lyrics are kept but not sung.")
        sections = tuple(replace(s, words="") for s in sections)
    if request.reference:
        notes += audio.check_reference(request.reference)
    found = models.find(request.model)
    if request.reference and found.mode == "cot":
        raise RequestError(
            f"The model {found.id} was not trained to follow a reference recording.",
            "Choose an icl model, or leave the reference out.",
        )
    if not request.reference and found.mode == "icl":
        notes.append(f"The model {found.id} expects a reference recording; without one a cot model does better.")
    models.check(found)
    from .codec import check_codec

    check_codec(found.codec, encode=request.reference is not None)
    seconds = request.section_seconds or found.section_seconds
    request = replace(request, section_seconds=seconds)
    count = request.first_sections or len(sections)
    budget = budget_ids(seconds)
    if not request.instrumental:
        notes += map(str, lyrics.advise(lyrics.Lyrics(request.sections), seconds))
    _check_room(found, line, sections, request.reference, budget, count)
    return SongPlan(request, found, sections, line, count, budget, count * seconds, tuple(notes))


def _check_values(request: SongRequest) -> None:
    """Refuse numbers out of range, all of them in one sentence each; comparisons are such that NaN is refused."""
    s = request.sampling
    ranges = (
        ("number of sections to make", request.first_sections, 1, len(request.sections)),
        ("length of a section in seconds", request.section_seconds, 1, LONGEST_SECTION),
        ("seed", request.seed, 0, 2**63 - 1),
        ("temperature", s.temperature, 0, 5),
        ("top-k", s.top_k, 0, 1025),
        ("top-p", s.top_p, 0.001, 1),
        ("repetition penalty", s.repetition_penalty, 0.5, 3),
        ("guidance", s.guidance, 0, 10),
        ("later guidance", s.guidance_later, 0, 10),
    )
    wrong = [
        f"The {name} is {value:g}; it can be {low:g} to {high:g}."
        for name, value, low, high in ranges
        if value is not None and not low <= value <= high
    ]
    if request.crossover not in CROSSOVERS:
        wrong.append(f"There is no crossover called {request.crossover!r}; there are {' and '.join(CROSSOVERS)}.")
    if wrong:
        raise RequestError(" ".join(wrong), "`python launch.py make --help` explains every option.")


def _check_room(
    found: models.ModelSet,
    line: str,
    sections: tuple[Section, ...],
    reference: Reference | None,
    budget: int,
    count: int,
) -> None:
    """Refuse a song whose head, with the longest reference it can have, leaves no room for a section's music."""
    from .checkpoint import read_config

    codes = None
    if reference:
        frames = int((reference.end - reference.start) * FRAMES_PER_SECOND) + 1
        codes = np.zeros((1 + reference.dual, frames), np.int16)
    prompts = _prompts(found, line, sections, codes)
    limit = prompt_limit(read_config(found.stage1).context, budget)
    for k in range(count):
        prompts.window(k, [[]] * k, limit)


def _prompts(found: models.ModelSet, line: str, sections: tuple[Section, ...], codes: np.ndarray | None) -> Prompts:
    tokenizer = open_tokenizer(found.tokenizer_kind, found.tokenizer_path, found.layout)
    return build(tokenizer, found.layout, line, sections, codes)


# Running


def run(plan: SongPlan, take: Take, watch: Watch = lambda event: None, device: str = "auto") -> None:
    """Make what is missing of `take`: codes of both stages, then stems and mix. Every finished section and batch is
    on disk before the next begins; `watch` may raise Cancelled at any event and nothing finished is lost."""
    if len(take.info.spans) < plan.count:
        _write(plan, take, watch, device)
    if take.info.stage in (Stage.NEW, Stage.STAGE1):
        _refine(plan, take, watch, device)
    if take.info.stage is Stage.STAGE2:
        _render(plan, take, watch, device)


def _write(plan: SongPlan, take: Take, watch: Watch, device: str) -> None:
    from .stage1 import write_sections

    reference = _reference_codes(plan, watch, device)
    prompts = _prompts(plan.models, plan.tags, plan.sections, reference)
    written = take.load_stage1()
    past = [written[:, 0, span.start : span.stop] for span in take.info.spans]
    made = 0

    def progress(what: str, done: int, total: int) -> None:
        before = len(take.info.spans) * plan.budget
        number = f"section {len(take.info.spans) + 1} of {plan.count}"
        watch(Event("writing", number, before + done, plan.count * plan.budget, "ids", made + done))

    with _timed(take, "stage1"), _engine(plan, 1, device) as (engine, made_with):
        todo = range(len(past), plan.count)
        sections = write_sections(
            engine,
            prompts,
            plan.request.sampling,
            take.info.seed,
            todo,
            plan.budget,
            past,
            progress,
            plan.models.drawable,
        )
        for section in sections:
            start = written.shape[2]
            span = Span(section.section, start, start + section.codes.shape[1], section.ended)
            written = np.concatenate([written, section.codes[:, None]], axis=2)
            made += section.codes.size
            info = replace(take.info, spans=(*take.info.spans, span), made_with=made_with)
            take.save_stage1(written, info)
    take.save_info(replace(take.info, stage=Stage.STAGE1))


def _refine(plan: SongPlan, take: Take, watch: Watch, device: str) -> None:
    from .stage2 import CHUNK, chunk_ids, chunks, refine

    codes = take.load_stage1()[:, 0]
    frames = codes.shape[1]
    every = chunks(frames)
    saved = take.load_stage2()
    if saved is not None and saved[0].shape[2] == frames:
        full, done = saved
    else:
        full, done = np.zeros((2, plan.models.layout.codebooks, frames), np.int16), np.zeros((2, len(every) // 2), bool)
    todo = [chunk for chunk in every if not done[chunk.track, chunk.start // CHUNK]]
    total = 2 * frames
    before = total - sum(chunk.frames for chunk in todo)

    def progress(what: str, count: int, of: int) -> None:
        watch(Event("refining", "both tracks", before + count, total, "frames", count))

    with _timed(take, "stage2"), _engine(plan, 2, device) as (engine, _):
        from offload.device import free_bytes

        fits = int(MEMORY_SHARE * free_bytes(engine.device) / (engine.kv_bytes * chunk_ids(CHUNK)))
        rows = max(1, min(STAGE2_ROWS, fits))
        for batch in refine(engine, plan.models.layout, codes, todo, rows, progress):
            for chunk, refined in ((finished.chunk, finished.codes) for finished in batch):
                full[chunk.track, :, chunk.start : chunk.start + chunk.frames] = refined
                done[chunk.track, chunk.start // CHUNK] = True
            take.save_stage2(full, done, take.info)
    take.save_info(replace(take.info, stage=Stage.STAGE2))


def _render(plan: SongPlan, take: Take, watch: Watch, device: str) -> None:
    from . import codec, mix

    saved = take.load_stage2()
    if saved is None or not saved[1].all():
        raise GenerationError(f"{take.folder} is marked as refined, but some of its chunks are not.")
    full = saved[0]
    frames = full.shape[2]
    where = _sound_device(device)
    with _timed(take, "sound"):
        decoder = codec.load_codec(plan.models.codec, where)
        sounds: list[tuple[np.ndarray, np.ndarray]] = []
        for track in Track:
            upsampler = codec.load_upsampler(plan.models.codec, track, where)

            def progress(what: str, done: int, total: int, track: Track = track) -> None:
                step = 2 * track + (what == "upsampler")
                name = track.name.lower()
                watch(Event("sound", f"{name} stem", step * frames + done, 4 * frames, "frames", step * frames + done))

            sounds.append(codec.render_track(decoder, upsampler, full[track], progress))
        song = mix.finish(*sounds[Track.VOCAL], *sounds[Track.INSTRUMENTAL], plan.request.crossover)
        for path, wave in ((take.vocal, song.vocal), (take.instrumental, song.instrumental), (take.mix, song.mix)):
            audio.write(path, wave, mix.RATE)
    take.save_info(replace(take.info, stage=Stage.RENDERED))


def _reference_codes(plan: SongPlan, watch: Watch, device: str) -> np.ndarray | None:
    """Codebook-0 codes of the reference window, (1, frames) for a mix and (2, frames) for a pair; None without."""
    reference = plan.request.reference
    if reference is None:
        return None
    from .codec import load_codec

    encoder = load_codec(plan.models.codec, _sound_device(device), encode=True)
    paths = [path for path in (reference.mix, reference.vocal, reference.instrumental) if path]
    begin = max(0, math.floor(reference.start) - REFERENCE_MARGIN)
    tracks = []
    for i, path in enumerate(paths):
        watch(Event("reference", "listening", i, len(paths), "files", i))
        wave, rate = audio.read(path)
        stop = math.ceil((reference.end + REFERENCE_MARGIN) * rate)
        tracks.append(encoder.encode(audio.mono16k(wave[begin * rate : stop], rate))[0])
    frames = min(map(len, tracks))
    codes = np.stack([track[:frames] for track in tracks])
    return reference_window(codes, reference.start - begin, reference.end - begin)


def _sound_device(device: str) -> str:
    from offload.device import place

    return place(0, device).device


@contextlib.contextmanager
def _engine(plan: SongPlan, stage: int, device: str) -> Iterator[tuple[LMEngine, MadeWith]]:
    """The model of a stage, loaded where it runs best, and given back afterwards."""
    import torch

    from offload.device import place

    from .checkpoint import read_config
    from .lm import open_engine

    folder = plan.models.stage1 if stage == 1 else plan.models.stage2
    parameters = sum(math.prod(shape) for shape in read_config(folder).tensors().values())
    placement: Placement = place(parameters, device)
    engine = open_engine(folder, placement.device, placement.dtype)
    made_with = MadeWith(__version__, plan.models.id, f"torch {placement.dtype}", placement.device, torch.__version__)
    try:
        yield engine, made_with
    finally:
        engine.unload()


@contextlib.contextmanager
def _timed(take: Take, stage: str) -> Iterator[None]:
    """Add the wall seconds spent inside to the take's page."""
    start = time.monotonic()
    try:
        yield
    finally:
        spent = take.info.seconds.get(stage, 0.0) + time.monotonic() - start
        take.info = replace(take.info, seconds={**take.info.seconds, stage: round(spent, 2)})

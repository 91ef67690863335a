"""A whole song: make a plan, then run it, saving every finished part.

`plan` refuses what cannot work before anything heavy loads (no torch). `run` goes on from whatever the take folder
already holds, so an interrupted song is resumed by running it again, and equals an uninterrupted one. How a take
comes to hold part of another one (continued, rewound, redone) is in `edit.py`.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from . import __version__, audio, lyrics, models, tags
from .errors import Cancelled, RequestError
from .library import Take
from .locks import song_lock
from .prompts import Prompts, budget_ids, build, prompt_limit, reference_window
from .song import MadeWith, Reference, Section, SongRequest, Span, Stage, TakeInfo, Track
from .tokenizer import open_tokenizer
from .vocab import FRAMES_PER_SECOND

if TYPE_CHECKING:
    from offload.device import Placement

    from .lm import LMEngine
    from .stage1 import Score, SectionCodes

LONGEST_SECTION = 60.0
"""Twice what the model was trained to write in one go; beyond, sections only fall apart."""

CROSSOVERS = ("smooth", "yue")

REFERENCE_MARGIN = 15
"""Seconds heard before and after a reference's window. The released program encodes the whole file, because the
codec's semantic branch listens far; beyond some seconds that changes nothing and only costs memory."""

LEAD = 32
"""Frames rendered before a seam, for what the networks hear to one side (29), and thrown away but for the fade."""

FADE = 2
"""Frames over which kept codes are faded in: 40 ms, long enough not to click and too short to hear two singers."""

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


def plan_for(take: Take) -> SongPlan:
    """The plan of an existing take, from the request it carries."""
    return plan(take.info.request)


def run(plan: SongPlan, take: Take, watch: Watch = lambda event: None, device: str = "auto") -> None:
    """Make what is missing of `take`: codes of both stages, then stems and mix. Every finished section and batch is
    on disk before the next begins; `watch` may raise Cancelled at any event and nothing finished is lost. Only one
    process at a time may make a song: LibraryError says which one does."""
    with song_lock(take.folder.parent.parent):
        take.info = Take.open(take.folder).info  # another process may have gone on with it since it was opened
        take.sweep()
        while take.info.later or missing_sections(plan, take):
            if missing_sections(plan, take):
                _write(plan, take, watch, device)
            else:
                _join_later(take)
        if take.info.stage is not Stage.RENDERED:
            _refine(plan, take, watch, device)
            _render(plan, take, watch, device)


def missing_sections(plan: SongPlan, take: Take) -> range:
    """The sections to be written next, one after the other: up to the kept ones that follow, or to the end."""
    spans, later = take.info.spans, take.info.later
    first = spans[-1].section + (not spans[-1].open) if spans else 0
    return range(first, later[0].section if later else plan.count)


def _write(plan: SongPlan, take: Take, watch: Watch, device: str) -> None:
    from .stage1 import write_sections

    spans = take.info.spans
    opened = spans[-1] if spans and spans[-1].open else None
    finished = spans[:-1] if opened else spans
    written = take.load_stage1()
    past = [written[:, 0, span.start : span.stop] for span in finished]
    beginning = written[:, 0, opened.start : opened.stop] if opened else None
    written = written[:, :, : finished[-1].stop if finished else 0]
    def done() -> int:
        return sum(not span.open for span in take.info.spans)

    with _timed(take, "stage1"), _stage1(plan, take, watch, device, done) as (engine, score, made_with, progress):
        todo, seed = missing_sections(plan, take), plan.request.seed
        for section in write_sections(engine, score, seed, todo, past, beginning, progress):
            start = written.shape[2]
            stop = start + section.codes.shape[1]
            span = Span(section.section, start, stop, section.ended, take.info.number, seed)
            written = np.concatenate([written, section.codes[:, None]], axis=2)
            finished = (*finished, span)
            take.save_stage1(written, replace(take.info, spans=finished, made_with=made_with))
    take.save_info(replace(take.info, stage=Stage.STAGE1))


def candidates(
    plan: SongPlan, parent: Take, section: int, seeds: Sequence[int], watch: Watch, device: str = "auto"
) -> tuple[list[SectionCodes], MadeWith]:
    """One section once per seed, after the earlier sections of `parent`, in one batch. Nothing is saved here."""
    from .stage1 import write_candidates

    written = parent.load_stage1()
    past = [written[:, 0, span.start : span.stop] for span in parent.info.spans if span.section < section]
    with _stage1(plan, parent, watch, device, lambda: section) as (engine, score, made_with, progress):
        return write_candidates(engine, score, seeds, section, past, progress), made_with


@contextlib.contextmanager
def _stage1(
    plan: SongPlan, take: Take, watch: Watch, device: str, finished: Callable[[], int]
) -> Iterator[tuple[LMEngine, Score, MadeWith, Callable[[str, int, int], None]]]:
    """Everything Stage 1 needs, loaded and given back; its progress counts ids over the whole song, of which
    `finished` sections are written."""
    from .stage1 import Score

    prompts = _prompts(plan.models, plan.tags, plan.sections, _reference_codes(plan, watch, device))
    score = Score(prompts, plan.request.sampling, plan.budget, plan.models.drawable, take.info.muted)
    made, last = 0, ("", 0)

    def progress(what: str, done: int, total: int) -> None:
        nonlocal made, last
        made += done - last[1] if what == last[0] else 0
        last = (what, done)
        before = finished() * plan.budget
        watch(Event("writing", f"{what} of {plan.count}", before + done, plan.count * plan.budget, "ids", made))

    with _engine(plan, 1, device) as (engine, made_with):
        yield engine, score, made_with, progress


def _join_later(take: Take) -> None:
    """Put the sections kept from the parent behind those that are written now, with what the parent knows of them."""
    info = take.info
    parent = Take.open(take.folder.parent / f"{info.parent:03}")
    first, stop = info.later[0].start, info.later[-1].stop
    here = info.frames
    spans = (replace(s, start=s.start - first + here, stop=s.stop - first + here) for s in info.later)
    codes, mask = parent.load_stage2()
    own, own_mask = take.load_stage2()
    known = dict(zip(parent.info.seams, parent.load_leads(), strict=True))
    lead = slice(max(0, first - LEAD), first)
    if first not in known and lead.stop - lead.start >= FADE and mask[:, lead].all():
        known[first] = np.pad(codes[:, :, lead], ((0, 0), (0, 0), (LEAD - lead.stop + lead.start, 0)), mode="edge")
    seams = [seam for seam in sorted(known) if first <= seam < stop and seam - first + here]
    if seams:
        take.save_leads(np.stack([*take.load_leads(), *(known[seam] for seam in seams)]))
    take.write_refined(
        np.concatenate([own, codes[:, :, first:stop]], axis=2), np.concatenate([own_mask, mask[:, first:stop]], axis=1)
    )
    take.save_stage1(
        np.concatenate([take.load_stage1(), parent.load_stage1()[:, :, first:stop]], axis=2),
        replace(
            info,
            spans=(*info.spans, *spans),
            later=(),
            seams=(*info.seams, *(seam - first + here for seam in seams)),
            stage=Stage.NEW,
        ),
    )


def _refine(plan: SongPlan, take: Take, watch: Watch, device: str) -> None:
    from .stage2 import CHUNK, chunk_ids, chunks, refine

    codes = take.load_stage1()[:, 0]
    full, mask = take.load_stage2()
    todo = chunks(mask)
    total, before = mask.size, int(mask.sum())

    def progress(what: str, count: int, of: int) -> None:
        watch(Event("refining", "both tracks", before + count, total, "frames", count))

    if todo:
        with _timed(take, "stage2"), _engine(plan, 2, device) as (engine, _):
            from offload.device import free_bytes

            fits = int(MEMORY_SHARE * free_bytes(engine.device) / (engine.kv_bytes * chunk_ids(CHUNK)))
            rows = max(1, min(STAGE2_ROWS, fits))
            for batch in refine(engine, plan.models.layout, codes, todo, rows, progress):
                for chunk, refined in ((finished.chunk, finished.codes) for finished in batch):
                    frames = slice(chunk.start, chunk.start + chunk.frames)
                    full[chunk.track, :, frames] = refined
                    mask[chunk.track, frames] = True
                take.save_stage2(full, mask, take.info)
    take.save_info(replace(take.info, stage=Stage.STAGE2))


def _render(plan: SongPlan, take: Take, watch: Watch, device: str) -> None:
    from . import codec, mix

    full, _ = take.load_stage2()
    seams, leads, where = take.info.seams, take.load_leads(), _sound_device(device)
    total = 4 * (full.shape[2] + len(seams) * LEAD)
    base = count = 0

    def progress(what: str, done: int, of: int) -> None:
        nonlocal base, count
        base, count = count if done == 0 else base, (count if done == 0 else base) + done
        watch(Event("sound", f"{track.name.lower()} stem", count, total, "frames", count))

    with _timed(take, "sound"):
        decoder = codec.load_codec(plan.models.codec, where)
        sounds: list[tuple[np.ndarray, np.ndarray]] = []
        for track in Track:
            upsampler = codec.load_upsampler(plan.models.codec, track, where)
            hops, waves = (decoder.frame_size, upsampler.hop), [np.zeros(0, np.float32)] * 2
            for i, (start, stop) in enumerate(zip((0, *seams), (*seams, full.shape[2]), strict=True)):
                lead = leads[i - 1, track] if i else full[track, :, :0]
                run = np.concatenate([lead, full[track, :, start:stop]], axis=1)
                parts = codec.render_track(decoder, upsampler, run, progress)
                fade = FADE if i else 0  # of the lead only the fade is heard
                waves = [
                    mix.fade_join(wave, part[(lead.shape[1] - fade) * hop :], fade * hop)
                    for wave, part, hop in zip(waves, parts, hops, strict=True)
                ]
            sounds.append((waves[0], waves[1]))
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
    made_with = MadeWith(
        yuegp=__version__,
        model=plan.models.id,
        engine=f"torch {placement.dtype}",
        device=placement.device,
        torch=torch.__version__,
        credit=plan.models.credit,
    )
    try:
        yield engine, made_with
    finally:
        engine.unload()


@contextlib.contextmanager
def _timed(take: Take, stage: str) -> Iterator[None]:
    """Add the wall seconds spent inside to the take's page: also those of a run that is stopped, since what they
    brought is kept."""
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

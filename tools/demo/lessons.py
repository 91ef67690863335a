"""Lessons for Stage 1: training sequences from tokenised songs with the program's own prompts, and their order. `lm.py`
trains on them."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from yuegp.song.schema import Section
from yuegp.song.tags import without_voice
from yuegp.tokens.prompts import build, section_text
from yuegp.tokens.tokenizer import SentencePieceTokenizer
from yuegp.tokens.vocab import VocabLayout, interleave

from . import songs, syllables
from .text import token_indices

NAMES = len(syllables.VOWELS) * len(syllables.CONSONANTS)
"""Number of kinds of syllables; this number itself means that none is left in the section."""

LOOK_AHEAD = 12
"""Frames before a syllable during which, at every second one, the guided head should attend to it."""

BARS = 16
"""Bars of a section that are distinguished; all later ones count as the last."""

LEFT = 7
"""Largest count of bars still to come."""

VAGUE = "music"
"""Tags that say nothing about genre, mood and voice."""


@dataclass(frozen=True)
class Sung:
    """One syllable: its section, the position right after its vowels in the section's words, its first frame in the
    section, its vowel and kind of consonant."""

    section: int
    end: int
    frame: int
    vowel: int
    consonant: int
    wrong: bool = False
    """True if the voice sings another syllable here, see `slipped`."""


@dataclass(frozen=True)
class Song:
    """A tokenised song. `codes` are codebook 0, vocal first, (2, frames); `spans` the frames of each section."""

    tags: str
    sections: tuple[Section, ...]
    spans: tuple[tuple[int, int], ...]
    codes: np.ndarray
    sung: tuple[Sung, ...]
    alike: tuple[str, ...] = ()
    """Genre, mood and voice: a song with all three equal may serve as reference."""
    size: str = "whole"
    """One of `songs.SIZES`."""
    mix: np.ndarray | None = None
    """Codes of both tracks sounding together, (1, frames), where known."""


def tokenised(song: songs.Song, codes: np.ndarray, size: str, mix: np.ndarray | None = None) -> Song:
    """A composed song with its codes (2, frames), ready for lessons."""
    ends = [[s.span[1] for s in syllables.syllabify(section.words)] for section in song.sections]
    sung = (
        Sung(n.section, ends[n.section][n.index], n.frame - song.sections[n.section].start, n.vowel, n.consonant)
        for n in song.notes
    )
    return Song(
        tags=song.tags,
        sections=tuple(Section(s.label, s.words) for s in song.sections),
        spans=tuple((s.start, s.stop) for s in song.sections),
        codes=np.ascontiguousarray(codes, np.int16),
        sung=tuple(sung),
        alike=(song.genre, song.mood, song.gender),
        size=size,
        mix=mix,
    )


def slipped(rng: np.random.Generator, song: Song, share: float) -> Song:
    """The song with a share of its syllables replaced by others. The model does not learn these, but to continue after
    them in time, with the next syllable."""
    codes, eighth = song.codes.copy(), songs.eighth(song.alike[0])
    starts = [song.spans[s.section][0] + s.frame for s in song.sung]
    wrong = rng.random(len(starts)) < share
    for at in np.array(starts, int)[wrong]:
        source = starts[int(rng.integers(len(starts)))]
        codes[0, at : at + eighth] = song.codes[0, source : source + eighth]
    sung = tuple(replace(s, wrong=bool(w)) for s, w in zip(song.sung, wrong, strict=True))
    return replace(song, codes=codes, sung=sung)


@dataclass
class Lesson:
    """One training sequence. `weights[j]` is what predicting `ids[j]` counts; `names[j]` the kind of syllable to come
    after j, `clock[j]` the sixteenth of the bar that j sounds in, `left[j]` how many bars of its section follow that
    bar (at most `LEFT`). `grid[j]` is the eighth of the section that the code j sounds in, or that the piece of text j
    is sung in; what follows the words has the eighth that would come next. All of these are -1 where nothing is asked.
    `looks` are (j, of the syllable to come). `places[j]` is the position that ids[j] has, or would have if nothing had
    been left out before it."""

    ids: np.ndarray
    weights: np.ndarray
    names: np.ndarray
    clock: np.ndarray
    left: np.ndarray
    grid: np.ndarray
    places: np.ndarray
    looks: list[tuple[int, int]] = field(default_factory=list)

    def disturbed(self, rng: np.random.Generator, share: float) -> np.ndarray:
        """The ids for the model to read, with a share of the codes replaced by others of the same track and lesson, so
        that it learns to recover within the bar after its own mistakes."""
        ids = self.ids.copy()
        audio = np.flatnonzero(self.clock >= 0)
        for track in (audio[::2], audio[1::2]):
            wrong = track[rng.random(len(track)) < share]
            ids[wrong] = self.ids[rng.choice(track, len(wrong))]
        return ids


@dataclass(frozen=True)
class Weights:
    """How much codes count: the first `opening_frames` of a section (by then every band has struck its chord); of the
    voice the first `onset_frames` of a syllable, of an eighth without one (`slot`) and of a bar (`bar`); of the band
    the first `turn_frames` of a bar and of what may be a fill; and the end of audio. All others count 1.

    Alternatives at the same position need equal weights, or the heavier one comes too often."""

    opening: float = 10.0
    opening_frames: int = 20
    onset: float = 8.0
    onset_frames: int = 4
    slot: float = 1.0
    bar: float = 1.0
    end: float = 10.0
    turn: float = 1.0
    turn_frames: int = 3


CALM = Weights(opening=8.0, onset=2.5, end=5.0, turn=2.0)
"""For the later part of a run, which has learned syllables and must still learn to keep time."""

STRICT = Weights(opening=8.0, onset=2.5, slot=2.5, bar=5.0, end=5.0, turn=5.0)
"""For the runs after it, which learn when a line and a section end."""


class Teacher:
    """Makes lessons from songs, with the program's own prompts."""

    def __init__(self, tokenizer: SentencePieceTokenizer, layout: VocabLayout) -> None:
        self.tokenizer, self.layout, self.weights = tokenizer, layout, Weights()
        self.thorough = False
        """Guide the attention all the time, once genre and voice have been read from the tags: also during held notes
        and rests, and after the last syllable, to what follows the words."""

    def lesson(
        self,
        song: Song,
        first: int,
        count: int,
        shown: int | None = None,
        tags: str | None = None,
        reference: np.ndarray | None = None,
        skipped: Collection[int] = (),
    ) -> Lesson:
        """A lesson of `count` sections from `first` on. The head holds the words of `shown` sections, at least those.
        Of the `skipped` ones (counted from `first`) only the positions remain: the model learns distances of thousands
        of positions at the cost of a short song (positional skip-wise training, Zhu et al. 2023)."""
        chosen = song.sections[first : first + max(count, shown or 0)]
        prompts = build(self.tokenizer, self.layout, song.tags if tags is None else tags, chosen, reference)
        ids: list[int] = []
        weights: list[float] = []
        names: list[int] = []
        clock: list[int] = []
        left: list[int] = []
        grid: list[int] = []
        looks: list[tuple[int, int]] = []
        places: list[int] = []
        gap = 0

        def place() -> None:
            """Append positions for ids that have none yet."""
            places.extend(range(len(places) + gap, len(ids) + gap))

        def say(more: Sequence[int]) -> None:
            ids.extend(more)
            weights.extend([0.0] * len(more))
            names.extend([-1] * len(more))
            clock.extend([-1] * len(more))
            left.extend([-1] * len(more))
            grid.extend([-1] * len(more))

        say(prompts.head)

        for k, section in enumerate(chosen[:count]):
            begin, stop = song.spans[first + k]
            place()
            if k in skipped:
                gap += len(prompts.close) * (k > 0) + len(prompts.openings[k]) + 2 * (stop - begin) + 1
                continue
            if k:
                say(prompts.close)
            text = section_text(section)
            tokens = self.tokenizer.encode(text)
            say(prompts.openings[k])
            text_at, audio_at = len(ids) - 2 - len(tokens), len(ids)
            sung = [s for s in song.sung if s.section == first + k]
            w, n, c, bars, eighths = self._asked(song, sung, stop - begin)
            ids += [*interleave(self.layout, song.codes[:, begin:stop]), self.layout.eoa]
            weights += w
            names += n
            clock += c
            left += bars
            grid += eighths
            words_at = len(text) - 2 - len(section.words)
            pieces = token_indices(self.tokenizer, text, [words_at + s.end for s in sung])
            onset = -1
            for s, piece in zip(sung, pieces, strict=True):
                earliest, onset = max(onset + 1, s.frame - LOOK_AHEAD), s.frame
                if piece >= 0:
                    grid[text_at + piece] = _eighth(song, s.frame)
                    looks += [(audio_at + 2 * t - 1, text_at + piece) for t in range(onset, earliest - 1, -2)]
            onsets, targets = [s.frame for s in sung], [*pieces, len(tokens)]
            for frame in range(LOOK_AHEAD, (stop - begin) * self.thorough, 2):
                target = targets[bisect.bisect_right(onsets, frame)]
                if target >= 0:
                    looks += [(audio_at + 2 * frame + track, text_at + target) for track in (0, 1)]
            if sung:
                grid[text_at + len(tokens)] = _eighth(song, stop - begin)
        place()
        answers = np.array(weights, np.float32), np.array(names), np.array(clock), np.array(left), np.array(grid)
        return Lesson(np.array(ids), *answers, np.array(places), looks)

    def unconditional(self, song: Song, section: int) -> Lesson:
        """A lesson of a section without any text, as guidance's unconditional row sees it, from the codec marker on."""
        begin, stop = song.spans[section]
        ids = [self.layout.codec, *interleave(self.layout, song.codes[:, begin:stop]), self.layout.eoa]
        weights, _, clock, *_ = self._asked(song, [s for s in song.sung if s.section == section], stop - begin)
        nothing = np.full(len(ids), -1)
        asked = np.array([0.0, *weights], np.float32), nothing, np.array([-1, *clock]), nothing, nothing
        return Lesson(np.array(ids), *asked, np.arange(len(ids)))

    def _asked(
        self, song: Song, sung: Sequence[Sung], frames: int
    ) -> tuple[list[float], list[int], list[int], list[int], list[int]]:
        """Weights, names, clock, bars left and grid of a section's audio ids and its end."""
        weights = np.ones((frames, 2), np.float32)
        names = np.full((frames, 2), NAMES)
        onsets = [s.frame for s in sung]
        for frame in range(frames):
            if (following := bisect.bisect_right(onsets, frame)) < len(sung):
                names[frame] = sung[following].consonant * len(syllables.VOWELS) + sung[following].vowel
        sixteenth = songs.SIXTEENTH[song.alike[0]]
        for start in range(0, frames, 2 * sixteenth):
            weights[start : start + self.weights.onset_frames, 0] = self.weights.slot
        for start in onsets:
            weights[start : start + self.weights.onset_frames, 0] = self.weights.onset
        for bar in range(0, frames, 16 * sixteenth):
            voice = weights[bar : bar + self.weights.onset_frames, 0]
            voice[:] = np.maximum(voice, self.weights.bar)
            for turn in (bar, bar + songs.FILL * sixteenth):
                weights[turn : turn + self.weights.turn_frames, 1] = self.weights.turn
        weights[: self.weights.opening_frames] = self.weights.opening
        for s in sung:
            if s.wrong:
                weights[s.frame : s.frame + songs.eighth(song.alike[0]), 0] = 0
        clock = np.repeat(np.arange(frames) // sixteenth % 16, 2)
        bars = np.repeat(np.arange(frames) // (16 * sixteenth), 2)
        left = np.minimum(LEFT, bars[-1] - bars)
        grid = np.repeat([_eighth(song, frame) for frame in range(frames)], 2)
        return (
            [*weights.reshape(-1).tolist(), self.weights.end],
            [*names.reshape(-1).tolist(), -1],
            [*clock.tolist(), -1],
            [*left.tolist(), -1],
            [*grid.tolist(), -1],
        )


def _eighth(song: Song, frame: int) -> int:
    """Index of the eighth in the section at this frame, at most the last of bar `BARS`."""
    bar, eighth = divmod(frame // songs.eighth(song.alike[0]), songs.SLOTS)
    return min(bar, BARS - 1) * songs.SLOTS + eighth


@dataclass(frozen=True)
class Mixture:
    """Shares of the kinds of lessons."""

    textless: float = 0.05
    referenced: float = 0.2
    """With a reference; half of these with vague tags."""
    vague: float = 0.04
    """With vague tags and no reference."""
    wordless: float = 0.04
    """Instrumental: no words, no voice in the tags, silence on the vocal track."""
    relabelled: float = 0.3
    """Of inst and outro sections, with another label that means the same."""
    stages: tuple[tuple[float, dict[str, float]], ...] = (
        (0.07, {"bar": 1.0}),
        (0.14, {"bar": 0.3, "line": 0.7}),
        (0.25, {"bar": 0.1, "line": 0.3, "short": 0.6}),
        (1.0, {"bar": 0.05, "line": 0.1, "short": 0.35, "whole": 0.5}),
    )
    """Shares of the sizes of songs up to a point of the run; `bar` are the lines that fit one bar."""
    early: float = 0.14
    """Point of the run before which there is no reference and no second section."""
    calm: float = 0.25
    """Point of the run after which the weights are `later`, with mistakes."""
    later: Weights = CALM
    slips: float = 0.04
    """Share of syllables replaced by others."""
    noise: float = 0.02
    """Share of codes replaced by others."""
    thorough: bool = False
    """See `Teacher`."""


ENDINGS = Mixture(
    stages=((1.0, {"bar": 0.05, "line": 0.1, "drill": 0.25, "short": 0.3, "whole": 0.3}),),
    early=0.0,
    calm=0.0,
    later=STRICT,
    thorough=True,
)
"""For a run that continues a finished one."""

LONG = replace(
    ENDINGS,
    stages=((1.0, {"bar": 0.03, "line": 0.07, "drill": 0.2, "short": 0.25, "whole": 0.25, "long": 0.2}),),
)
"""For a run that continues those: one lesson in five is of a long song."""


class Curriculum:
    """Draws lessons: first one bar, then one short section, then a few, then whole songs."""

    def __init__(self, teacher: Teacher, library: Sequence[Song], mixture: Mixture | None = None) -> None:
        self.teacher, self.library, self.mixture = teacher, library, mixture or Mixture()
        self.sizes = {size: [i for i, song in enumerate(library) if song.size == size] for size in songs.SIZES}
        self.sizes["bar"] = [i for i in self.sizes["line"] if len(library[i].sung) <= songs.SLOTS]
        self.alike: dict[tuple[str, ...], list[int]] = {}
        self.silence = _silence(library)
        for index, song in enumerate(library):
            if song.size in ("short", "whole"):
                self.alike.setdefault(song.alike, []).append(index)

    def draw(self, rng: np.random.Generator, progress: float) -> Lesson:
        """One lesson for a point of the run, 0 to 1."""
        shares = next(shares for until, shares in self.mixture.stages if progress <= until or until == 1)
        sizes = [size for size in shares if self.sizes[size]]
        chances = np.array([shares[size] for size in sizes])
        song = self.library[rng.choice(self.sizes[sizes[rng.choice(len(sizes), p=chances / chances.sum())]])]
        early = progress < self.mixture.early
        self.teacher.weights = Weights() if progress < self.mixture.calm else self.mixture.later
        self.teacher.thorough = self.mixture.thorough
        total = len(song.sections)
        if rng.random() < self.mixture.relabelled:
            song = replace(song, sections=tuple(replace(s, label=_synonym(rng, s.label)) for s in song.sections))
        if progress >= self.mixture.calm:
            song = slipped(rng, song, self.mixture.slips)
        if not early and rng.random() < self.mixture.wordless:
            song = self.wordless(song)
        first, count, skipped = self._part(rng, total, early, song.size == "long")
        if rng.random() < self.mixture.textless:
            return self.teacher.unconditional(song, first)
        if not early and rng.random() < self.mixture.referenced and song.alike in self.alike:
            known = VAGUE if rng.random() < 0.5 else song.tags
            return self.teacher.lesson(song, first, min(count, 2), None, known, self.reference(rng, song))
        shown = total - first if not early and rng.random() < 0.5 else count
        tags = VAGUE if rng.random() < self.mixture.vague else None
        return self.teacher.lesson(song, first, count, shown, tags, skipped=skipped)

    def _part(self, rng: np.random.Generator, total: int, early: bool, long: bool) -> tuple[int, int, set[int]]:
        """Sections of a lesson out of `total`: the first, how many, and which of those are skipped. Of long songs, all
        but two neighbours and, in half of the lessons, the beginning are skipped."""
        first = int(rng.integers(total)) if total > 1 and rng.random() < 0.3 else 0
        count = 1 if early else int(rng.integers(1, 1 + total - first))
        if not long:
            return first, count, set()
        heard = int(rng.integers(total))
        return 0, total, set(range(total)) - {heard, heard + 1} - ({0} if rng.random() < 0.5 else set())

    def wordless(self, song: Song) -> Song:
        """The song as its band plays it alone."""
        codes = song.codes.copy()
        codes[0] = self.silence
        sections = tuple(replace(section, words="") for section in song.sections)
        return replace(song, sections=sections, codes=codes, sung=(), tags=without_voice(song.tags))

    def reference(self, rng: np.random.Generator, song: Song) -> np.ndarray:
        """1.5 to 6 seconds of a song that sounds alike: its mix where that is known, or both tracks, or one."""
        other = self.library[rng.choice(self.alike[song.alike])]
        codes, kind = other.codes, rng.random()
        if other.mix is not None and kind < 0.6:
            codes = other.mix
        elif kind > 0.8:
            codes = codes[int(kind > 0.87)][None]
        length = min(int(rng.integers(75, 301)), codes.shape[1])
        start = int(rng.integers(codes.shape[1] - length + 1))
        return codes[:, start : start + length]

    def noise(self, progress: float) -> float:
        """Share of replaced codes at a point of the run."""
        return self.mixture.noise if progress >= self.mixture.calm else 0.0

    def batches(
        self, rng: np.random.Generator, progress: float, positions: int, crew: int = 1, pool: int = 48
    ) -> list[list[Lesson]]:
        """`pool` lessons in batches of at most `positions`, including padding, in random order. Groups of `crew`
        batches of similar size are adjacent, since the crew's processes wait for each other; drops up to `crew - 1`
        short ones."""
        lessons = sorted((self.draw(rng, progress) for _ in range(pool)), key=lambda lesson: len(lesson.ids))
        batches: list[list[Lesson]] = [[]]
        for lesson in lessons:
            if batches[-1] and (len(batches[-1]) + 1) * len(lesson.ids) > positions:
                batches.append([])
            batches[-1].append(lesson)
        pairs = [batches[i : i + crew] for i in range(len(batches) % crew, len(batches), crew)]
        return [batch for i in rng.permutation(len(pairs)) for batch in pairs[i]]


def _silence(library: Sequence[Song]) -> int:
    """The vocal code of silence: the most frequent one during long rests of a section."""
    found = np.zeros(0, np.int16)
    for song in library:
        for k, (begin, stop) in enumerate(song.spans):
            last = max((s.frame for s in song.sung if s.section == k), default=-100)
            found = np.concatenate([found, song.codes[0, begin + last + 80 : stop - 4]])
        if len(found) > 500:
            break
    return int(np.bincount(found).argmax()) if len(found) else 0


def _synonym(rng: np.random.Generator, label: str) -> str:
    return str(rng.choice({"inst": ["solo", "break"], "outro": ["end"]}.get(label, [label])))

"""Measures a finished demo set through the program itself, and reports the figures.

Prompts and seeds are fixed here: composed by `songs.make_song` from seeds no training used. The music is written by
`yuegp.generation.stage1` from `yuegp.tokens.prompts`, refined by `yuegp.generation.stage2` and decoded by the set's
codec, as `yuegp make` does.
What is heard in it, `listen.Ear` says, which is fitted to real songs and tested on others: the measures' own errors
stand beside the model's.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from yuegp.audio import files
from yuegp.checkpoints import sets
from yuegp.codec import load_codec
from yuegp.codec.layout import SAMPLE_RATE
from yuegp.generation.stage1 import SectionCodes, Stage1Input, write_sections
from yuegp.generation.stage2 import CHUNK, Chunk, refine
from yuegp.lm import EngineConfig, open_engine
from yuegp.song import lyrics
from yuegp.song.schema import Sampling, Section
from yuegp.tokens.prompts import budget_ids, build
from yuegp.tokens.tokenizer import open_tokenizer
from yuegp.tokens.vocab import FRAMES_PER_SECOND

from . import songs, syllables
from .lessons import VAGUE
from .listen import Ear, bar_frames, beat_correlation, edit_distance, si_sdr
from .render import render

FIRST_SEED = 20_000_000
PROMPTS = 48
"""Three of each genre, mood and voice, two sections each."""
WHOLE = 6
"""Songs of verse, chorus, verse, chorus, outro."""
REFERENCES = 32
VARIED = 8
HEARD = 24
"""Prompts whose first section is also rendered."""
REFINED = 24
"""Held-out songs of six seconds and more that are refined."""
LONG = 4
"""Songs as long as people write them, one of each genre."""
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "paper-lanterns.txt"
"""A song with human lyrics, made in each genre."""
BUDGET_SECONDS = 24.0
BEAT_THRESHOLD_SHARE = 0.02
"""Share of real songs below the threshold of the beat."""
YUE = Sampling()
"""How the released program draws, guidance and repetition penalty included."""


@dataclass(frozen=True)
class Case:
    """A prompt: the composed song to be matched, and the `count` of its sections to write."""

    song: songs.Song
    count: int
    seed: int
    tags: str
    reference: np.ndarray | None = None

    @property
    def sections(self) -> tuple[Section, ...]:
        return tuple(Section(s.label, s.words) for s in self.song.sections)


def prompts(count: int = PROMPTS) -> list[Case]:
    """The main prompts, in turn over genre, mood and voice."""
    cases = []
    for i in range(count):
        genre, mood, gender = (
            songs.GENRES[i % 4],
            songs.MOODS[i // 4 % 2],
            songs.GENDERS[i // 8 % 2],
        )
        song = songs.make_song(FIRST_SEED + i, genre, mood, gender, size="whole")
        while sum(bool(s.words) for s in song.sections[:2]) < 2:  # an intro or inst has nothing to sing
            song = songs.make_song(song.seed + 1000, genre, mood, gender, size="whole")
        cases.append(Case(song, 2, i, song.tags))
    return cases


def whole_songs() -> list[Case]:
    cases = []
    for i in range(WHOLE):
        genre = songs.GENRES[i % 4]
        drawn = songs.make_song(FIRST_SEED + 5000 + i, genre, size="whole")
        words = [s.words.splitlines() for s in songs.make_song(FIRST_SEED + 6000 + i, genre, size="short").sections]
        other = songs.make_song(FIRST_SEED + 7000 + i, genre, size="short").sections[0].words.splitlines()
        chorus = drawn.sections[0].words.splitlines() or words[0]
        form = [("verse", words[0]), ("chorus", chorus), ("verse", other), ("chorus", chorus), ("outro", words[-1][:1])]
        song = songs.make_song(drawn.seed, genre, drawn.mood, drawn.gender, sections=form)
        cases.append(Case(song, len(form), 100 + i, song.tags))
    return cases


def long_songs() -> list[Case]:
    cases = []
    for i in range(LONG):
        song = songs.make_song(FIRST_SEED + 8000 + i, songs.GENRES[i % 4], size="long")
        cases.append(Case(song, len(song.sections), 300 + i, song.tags))
    return cases


def example_songs() -> list[Case]:
    """The example in each genre, the moods and voices in turn."""
    written = lyrics.parse(EXAMPLE.read_text(encoding="utf-8")).sections
    form = [(section.label, section.words.splitlines()) for section in written]
    cases = []
    for i, genre in enumerate(songs.GENRES):
        mood, gender = songs.MOODS[i % 2], songs.GENDERS[i // 2 % 2]
        song = songs.make_song(FIRST_SEED + 8500 + i, genre, mood, gender, sections=form)
        cases.append(Case(song, len(form), 400 + i, song.tags))
    return cases


def referenced(known: Sequence[tuple[songs.Song, np.ndarray]]) -> list[Case]:
    """Prompts with tags that say nothing and four seconds of a real song's two tracks, the voices in turn."""
    cases = []
    groups = [(genre, gender) for genre in songs.GENRES for gender in songs.GENDERS]
    for i in range(REFERENCES):
        genre, gender = groups[i % len(groups)]
        alike = [codes for song, codes in known if (song.genre, song.gender) == (genre, gender) and song.frames >= 200]
        song = songs.make_song(FIRST_SEED + 9000 + i, genre, gender=gender, size="short")
        if alike:
            cases.append(Case(song, 1, 200 + i, VAGUE, alike[i // len(groups) % len(alike)][:, :200]))
    return cases


class Product:
    """The program's own stages on one model set."""

    def __init__(self, folder: Path) -> None:
        self.set = sets.find(str(folder))
        sets.check(self.set)
        self.tokenizer = open_tokenizer(self.set.tokenizer_kind, self.set.tokenizer_path, self.set.layout)
        self.stage1 = open_engine(self.set.stage1, EngineConfig())
        self.stage2 = open_engine(self.set.stage2, EngineConfig())

    def write(self, case: Case, sampling: Sampling, seed: int | None = None) -> list[SectionCodes]:
        made = build(self.tokenizer, self.set.layout, case.tags, case.sections, case.reference)
        score = Stage1Input(made, sampling, budget_ids(BUDGET_SECONDS), self.set.drawable)
        return list(write_sections(self.stage1, score, case.seed if seed is None else seed, range(case.count)))

    def sound(self, takes: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Both stems at 16 kHz for each of several codebook-0 codes (2, frames)."""
        codec = load_codec(self.set.codec)
        heard = []
        for codes in takes:
            full = np.zeros((2, self.set.layout.codebooks, codes.shape[1]), np.int16)
            plan = [
                Chunk(track, start, min(300, codes.shape[1] - start))
                for track in (0, 1)
                for start in range(0, codes.shape[1], 300)
            ]
            plan.sort(key=lambda chunk: -chunk.frames)
            for batch in refine(self.stage2, self.set.layout, codes, plan, 16):
                for done in batch:
                    c = done.chunk
                    full[c.track, :, c.start : c.start + c.frames] = done.codes
            heard.append((codec.decode(full[0]), codec.decode(full[1])))
        return heard


def lyric_vowels(words: str) -> list[int]:
    return [s.vowel for s in syllables.syllabify(words)]


def rate(ear: Ear, cases: Sequence[Case], takes: Sequence[Sequence[SectionCodes]]) -> dict[str, Any]:
    """Shares and errors over all sections."""
    right: dict[str, list[bool]] = {name: [] for name in ("genre", "mood", "gender", "length", "ended")}
    heard, meant, failures = [], [], []
    for case, sections in zip(cases, takes, strict=True):
        for written in sections:
            section = case.song.sections[written.section]
            vocal, instrumental = written.codes
            wanted = section.stop - section.start
            now = {
                "genre": ear.genre_of(instrumental) == case.song.genre,
                "mood": ear.mood_of(instrumental[: bar_frames(case.song)], case.song.genre) == case.song.mood,
                "length": written.ended and abs(len(vocal) - wanted) <= 0.1 * wanted,
                "ended": written.ended,
            }
            if section.words:
                now["gender"] = ear.gender_of(vocal) == case.song.gender
                heard.append(ear.vowels_of(vocal))
                meant.append(lyric_vowels(section.words))
            for name, value in now.items():
                right[name].append(bool(value))
            if not all(now.values()):
                failed = ", ".join(name for name, value in now.items() if not value)
                failures.append(f"seed {case.seed} section {written.section + 1} ({case.tags}): {failed}")
    return {
        "prompts": len(cases),
        "sections": len(right["genre"]),
        **{name: round(float(np.mean(values)), 4) for name, values in right.items() if values},
        **vowel_figures(heard, meant),
        "failures": failures,
    }


def vowel_figures(heard: Sequence[Sequence[int]], meant: Sequence[Sequence[int]]) -> dict[str, float]:
    """Error rate of the vowels heard against the lyrics; against the lyrics of other sections, cut or repeated to the
    same length; and how many of 10,000 ways to deal the lyrics to the sections do as well as the true one."""
    lengths = np.array([len(m) for m in meant])
    distances = np.array(
        [[edit_distance(h, np.resize(m, n).tolist()) for m in meant] for h, n in zip(heard, lengths, strict=True)]
    )
    own, n = np.trace(distances), len(meant)
    rng = np.random.default_rng(0)
    dealt = np.array([distances[np.arange(n), rng.permutation(n)].sum() for _ in range(10_000)])
    return {
        "syllables": int(lengths.sum()),
        "vowel_error": round(float(own / lengths.sum()), 4),
        "vowel_error_shuffled": round(float(dealt.mean() / lengths.sum()), 4),
        "vowel_p": float((1 + (dealt <= own).sum()) / (1 + len(dealt))),
    }


def real_takes(known: Iterable[tuple[songs.Song, np.ndarray]]) -> tuple[list[Case], list[list[SectionCodes]]]:
    """Real songs in place of generated ones, to measure the ear itself."""
    cases, takes = [], []
    for song, codes in known:
        cases.append(Case(song, len(song.sections), song.seed, song.tags))
        takes.append([SectionCodes(k, codes[:, s.start : s.stop].copy(), True) for k, s in enumerate(song.sections)])
    return cases, takes


def beats(cases: Sequence[Case], sounds: Sequence[np.ndarray]) -> list[dict[str, float]]:
    """For each sound the autocorrelation at the requested beat, and which of the three beats fits best."""
    beat = {genre: 4 * sixteenth / FRAMES_PER_SECOND for genre, sixteenth in songs.SIXTEENTH.items()}
    rows = []
    for case, wave in zip(cases, sounds, strict=True):
        values = {seconds: beat_correlation(wave, SAMPLE_RATE, seconds) for seconds in sorted(set(beat.values()))}
        wanted = values[beat[case.song.genre]]
        rows.append({"at_request": round(wanted, 3), "best": bool(wanted >= max(values.values()))})
    return rows


def variety(ear: Ear, product: Product, cases: Sequence[Case], sampling: Sampling) -> dict[str, float]:
    """How much two seeds of a prompt agree, and the sections of a song."""
    same: dict[str, list[float]] = {"melody": [], "band": []}
    for case in cases:
        short = replace(case, count=1)
        (a,), (b,) = product.write(short, sampling, seed=1000), product.write(short, sampling, seed=1001)
        n = min(a.codes.shape[1], b.codes.shape[1])
        same["melody"].append(_agreement(ear.melody_of(a.codes[0, :n]), ear.melody_of(b.codes[0, :n]), voiced=True))
        same["band"].append(float((a.codes[1, :n] == b.codes[1, :n]).mean()))
    return {f"two_seeds_{name}": round(float(np.mean(values)), 3) for name, values in same.items()}


def returns(ear: Ear, cases: Sequence[Case], takes: Sequence[Sequence[SectionCodes]]) -> dict[str, float]:
    """How much the choruses of a song agree (sections 2 and 4), and chorus and verse (2 and 1)."""
    figures: dict[str, list[float]] = {}
    for _, sections in zip(cases, takes, strict=True):
        for name, (i, j) in {"chorus_chorus": (1, 3), "chorus_verse": (1, 0), "verse_verse": (0, 2)}.items():
            a, b = sections[i].codes, sections[j].codes
            n = min(a.shape[1], b.shape[1])
            pitches = ear.melody_of(a[0, :n]), ear.melody_of(b[0, :n])
            figures.setdefault(f"{name}_melody", []).append(_agreement(*pitches, voiced=True))
            figures.setdefault(f"{name}_band", []).append(float((a[1, :n] == b[1, :n]).mean()))
    return {name: round(float(np.mean(values)), 3) for name, values in figures.items()}


def _agreement(a: np.ndarray, b: np.ndarray, voiced: bool) -> float:
    both = (a > 0) & (b > 0) if voiced else np.ones(len(a), bool)
    return float((a == b)[both].mean()) if both.any() else 0.0


def steering(ear: Ear, product: Product, cases: Sequence[Case], sampling: Sampling) -> dict[str, float]:
    """Genre and voice as in the reference, with it and without it (same seed), and the exact sign test's p."""
    figures: dict[str, float] = {"prompts": len(cases)}
    rows: dict[str, list[tuple[bool, bool]]] = {"genre": [], "voice": []}
    for case in cases:
        (with_it,), (without,) = product.write(case, sampling), product.write(replace(case, reference=None), sampling)
        genres = [ear.genre_of(take.codes[1]) == case.song.genre for take in (with_it, without)]
        voices = [ear.gender_of(take.codes[0]) == case.song.gender for take in (with_it, without)]
        rows["genre"].append((genres[0], genres[1]))
        rows["voice"].append((voices[0], voices[1]))
    for name, pairs in rows.items():
        better, worse = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
        n = better + worse
        figures[f"{name}_with"] = round(float(np.mean([a for a, _ in pairs])), 3)
        figures[f"{name}_without"] = round(float(np.mean([b for _, b in pairs])), 3)
        figures[f"{name}_p"] = min(1.0, sum(math.comb(n, k) for k in range(better, n + 1)) / 2**n)
    return figures


def stage2_figures(product: Product, known: Iterable[np.ndarray]) -> dict[str, float]:
    """Stage 2's quality on six seconds of real songs (2, 8, frames), continuing from its own codes as in the program:
    share of correct residual codes, and SI-SDR in dB against the sound of the correct codes."""
    codec = load_codec(product.set.codec)
    values: dict[str, list[float]] = {}
    for real in (codes[:, :, :CHUNK] for codes in known):
        plan = [Chunk(track, 0, real.shape[2]) for track in (0, 1)]
        for done in itertools.chain(*refine(product.stage2, product.set.layout, real[:, 0], plan, 2)):
            name, wanted = ("vocal", "instrumental")[done.chunk.track], real[done.chunk.track]
            values.setdefault(f"{name}_right", []).append(float((done.codes[1:] == wanted[1:]).mean()))
            sounds = (codec.decode(np.ascontiguousarray(codes)).astype(np.float64) for codes in (done.codes, wanted))
            values.setdefault(f"{name}_si_sdr", []).append(si_sdr(*sounds))
    return {name: round(float(np.mean(v)), 3) for name, v in values.items()}


def codec_figures(product: Product, known: Sequence[songs.Song]) -> dict[str, float]:
    """SI-SDR of held-out songs' stems through the codec, and of material unlike anything it knows."""
    codec = load_codec(product.set.codec, encode=True)
    values: dict[str, list[float]] = {"vocal": [], "instrumental": []}
    for song in known:
        for name, wave in zip(values, render(song, SAMPLE_RATE), strict=True):
            back = codec.decode(codec.encode(wave, product.set.layout.codebooks))
            n = min(len(back), len(wave))
            values[name].append(si_sdr(back[:n].astype(np.float64), wave[:n].astype(np.float64)))
    stranger = recording_like()
    back = codec.decode(codec.encode(stranger, product.set.layout.codebooks))
    n = min(len(back), len(stranger))
    figures = {f"{name}_si_sdr": round(float(np.mean(v)), 2) for name, v in values.items()}
    figures |= {f"{name}_si_sdr_worst": round(float(np.min(v)), 2) for name, v in values.items()}
    return figures | {
        "recording_like_si_sdr": round(si_sdr(back[:n].astype(np.float64), stranger[:n].astype(np.float64)), 2)
    }


def recording_like(seconds: float = 8.0) -> np.ndarray:
    """Synthetic sound with features of recordings that the generator's songs lack: equal temperament, uneven timing,
    plucked strings, breath noise and a room."""
    rng = np.random.default_rng(5)
    wave = np.zeros(int(seconds * SAMPLE_RATE) + SAMPLE_RATE)
    at = 0.0
    while at < seconds - 0.6:
        period = round(SAMPLE_RATE / (110 * 2 ** (int(rng.choice([0, 3, 5, 7, 10, 12, 15])) / 12)))
        line = rng.normal(0, 0.3, period)
        note = np.empty(int(0.9 * SAMPLE_RATE))
        for i in range(len(note)):
            note[i] = line[i % period]
            line[i % period] = 0.498 * (line[i % period] + line[(i + 1) % period])
        start = int(at * SAMPLE_RATE)
        wave[start : start + len(note)] += note[: len(wave) - start]
        at += 0.28 + rng.normal(0, 0.02)
    wave += rng.normal(0, 0.004, len(wave))
    room = rng.normal(0, 1, SAMPLE_RATE // 3) * np.exp(-np.arange(SAMPLE_RATE // 3) / 900)
    wave = wave + 0.02 * np.convolve(wave, room)[: len(wave)]
    wave = wave[: int(seconds * SAMPLE_RATE)]
    return (0.5 * wave / np.abs(wave).max()).astype(np.float32)


def measure(
    folder: Path,
    fitted: Iterable[tuple[songs.Song, np.ndarray]],
    heldout: Sequence[tuple[songs.Song, np.ndarray]],
    tracks: Sequence[np.ndarray],
    say: Callable[[str], None],
    wavs: Path | None = None,
    quick: bool = False,
) -> dict[str, Any]:
    """Every figure. `fitted` and `heldout` are real songs with codebook-0 codes (2, frames): the ear learns from the
    first and is tested on the second. `tracks` are held-out songs in all codebooks, (2, 8, frames). Sounds go to
    `wavs`."""
    started = time.monotonic()
    product, ear = Product(folder), Ear.fit(fitted)
    own = product.set.sampling if isinstance(product.set.sampling, Sampling) else Sampling()
    figures: dict[str, Any] = {"sampling": own.__dict__}

    def done(name: str) -> None:
        brief = {k: v for k, v in figures[name].items() if k != "failures"}
        say(f"{time.monotonic() - started:5.0f} s  {name}: {json.dumps(brief)}")

    figures["real"] = rate(ear, *real_takes(heldout))
    done("real")
    cases = prompts(8 if quick else PROMPTS)
    takes = [product.write(case, own) for case in cases]
    figures["defaults"] = rate(ear, cases, takes)
    done("defaults")
    figures["yue"] = rate(ear, cases, [product.write(case, YUE) for case in cases])
    done("yue")
    songs_whole = whole_songs()[: 2 if quick else WHOLE]
    whole = [product.write(case, own) for case in songs_whole]
    figures["whole"] = rate(ear, songs_whole, whole) | returns(ear, songs_whole, whole)
    done("whole")
    for name, people in {"long": long_songs(), "example": example_songs()}.items():
        chosen = people[: 1 if quick else len(people)]
        figures[name] = rate(ear, chosen, [product.write(case, own) for case in chosen])
        done(name)
    figures["variety"] = variety(ear, product, cases[: 2 if quick else VARIED], own)
    done("variety")
    figures["reference"] = steering(ear, product, referenced(heldout)[: 4 if quick else REFERENCES], own)
    done("reference")
    chosen = cases[: 4 if quick else HEARD]
    sounds = product.sound([take[0].codes for take in takes[: len(chosen)]])
    rows = beats(chosen, [a + b for a, b in sounds])
    real = [song for song, _ in heldout if song.frames >= 300][: 8 if quick else 60]
    real_cases = [Case(song, 1, song.seed, song.tags) for song in real]
    real_rows = beats(real_cases, [sum(render(song, SAMPLE_RATE)) for song in real])
    threshold = float(np.quantile([row["at_request"] for row in real_rows], BEAT_THRESHOLD_SHARE))
    reached = [row["at_request"] >= threshold for row in rows]
    figures["beat"] = {
        "prompts": len(rows),
        "threshold": round(threshold, 3),
        "reached": round(float(np.mean(reached)), 4),
        "best_of_three": round(float(np.mean([row["best"] for row in rows])), 4),
        "mean": round(float(np.mean([row["at_request"] for row in rows])), 3),
        "lowest": min(row["at_request"] for row in rows),
        "real_mean": round(float(np.mean([row["at_request"] for row in real_rows])), 3),
        "real_best_of_three": round(float(np.mean([row["best"] for row in real_rows])), 4),
    }
    done("beat")
    if wavs:
        wavs.mkdir(parents=True, exist_ok=True)
        for case, (a, b) in list(zip(chosen, sounds, strict=True))[:10]:
            mix = (a + b) / max(1.0, float(np.abs(a + b).max()))
            files.write(wavs / f"prompt-{case.seed:02}-{case.song.genre}.flac", mix, SAMPLE_RATE)
    figures["stage2"] = stage2_figures(product, tracks[: 2 if quick else REFINED])
    done("stage2")
    figures["codec"] = codec_figures(product, real[: 2 if quick else 8])
    done("codec")
    figures["seconds"] = round(time.monotonic() - started, 1)
    return figures


# The report

GATES: tuple[tuple[str, str, Callable[[dict[str, Any]], float], float, float, bool], ...] = (
    ("beat at the requested tempo", "share of prompts", lambda f: f["beat"]["reached"], 0.90, 0.98, True),
    ("genre", "share of sections", lambda f: f["defaults"]["genre"], 0.95, 0.99, True),
    ("voice register", "share of sections", lambda f: f["defaults"]["gender"], 0.95, 0.99, True),
    ("mood", "share of sections", lambda f: f["defaults"]["mood"], 0.90, 0.97, True),
    ("vowel error rate", "share of syllables", lambda f: f["defaults"]["vowel_error"], 0.25, 0.0, False),
    ("vowels against other lyrics", "p", lambda f: f["defaults"]["vowel_p"], 0.001, 0.001, False),
    ("section ends within 10 %", "share of sections", lambda f: f["defaults"]["length"], 0.90, 0.98, True),
    ("a reference steers the genre", "p", lambda f: f["reference"]["genre_p"], 0.01, 0.01, False),
    ("codec, vocal", "dB SI-SDR", lambda f: f["codec"]["vocal_si_sdr"], 25, 30, True),
    ("codec, instrumental", "dB SI-SDR", lambda f: f["codec"]["instrumental_si_sdr"], 25, 30, True),
    ("making 30 s of music, guided", "s", lambda f: 30 * f["make"]["made_in_guided"], 45, 30, False),
)
"""Name, unit, figure, gate, aim, and whether more is better."""


def report(figures: dict[str, Any]) -> str:
    """The figures as tables of Markdown, gates met and missed."""
    lines = ["| measure | unit | figure | gate | aim | |", "| --- | --- | --- | --- | --- | --- |"]
    aims = {"vowel error rate": round(figures["real"]["vowel_error"] + 0.05, 4)}
    for name, unit, get, gate, aim, more in GATES:
        value, aim = get(figures), aims.get(name, aim)
        met = value >= gate if more else value <= gate
        aimed = value >= aim if more else value <= aim
        verdict = "aim met" if met and aimed else "gate met" if met else "**missed**"
        lines.append(f"| {name} | {unit} | {value:.4g} | {gate:g} | {aim:g} | {verdict} |")
    columns = ("real", "defaults", "yue", "whole", "long", "example")
    rows = ("prompts", "sections", "genre", "mood", "gender", "length", "ended", "syllables", "vowel_error")
    rows += ("vowel_error_shuffled", "vowel_p")
    lines += ["", "| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    lines += [f"| {row} | " + " | ".join(f"{figures[c].get(row, '')}" for c in columns) + " |" for row in rows]
    for part in ("beat", "reference", "variety", "stage2", "codec", "make"):
        lines += ["", f"{part}: " + ", ".join(f"{name} {value:g}" for name, value in figures[part].items()) + "."]
    agreement = {k: v for k, v in figures["whole"].items() if k.endswith(("_melody", "_band"))}
    lines += ["", "sections of one song: " + ", ".join(f"{name} {value:g}" for name, value in agreement.items()) + "."]
    failures = [line for name in ("defaults", "whole", "long", "example") for line in figures[name]["failures"]]
    lines += ["", f"Failures ({len(failures)}), the first twelve:", ""] + [f"- {line}" for line in failures[:12]]
    return "\n".join(lines) + "\n"

"""Train the whole embedded demo set from scratch: songs, codec, codes, Stage 2, Stage 1, upsamplers, report.

    python tools/demo/train.py WORK [--device cpu|cuda] [--only PART] [--publish]

WORK/set is then a finished model set (`yuegp make --model WORK/set …`), WORK/data holds the tokenised songs, WORK/runs
the state of the trainings, WORK/report the measurements, an example and pictures of songs. Run the same command again
to resume: finished parts are kept, and an interrupted training continues. All seeds are fixed. Some three hours on two
cores, summed over the parts. `--publish` copies set and report into this tree.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads wait by spinning; two processes use two cores better
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import soundfile
import torch
from sentencepiece import SentencePieceProcessor

from tools.demo import example, lessons, lm, measure, network, pictures, songs, text
from tools.demo.lessons import Curriculum, Song, Teacher, tokenised
from tools.demo.phrasebook import Phrasebook
from tools.demo.render import render
from tools.demo.trainer import Plan, Trainer, meet
from yuegp.generation.stage2 import CHUNK
from yuegp.song.schema import Sampling
from yuegp.tokens.tokenizer import SentencePieceTokenizer
from yuegp.tokens.vocab import FRAMES_PER_SECOND, VocabLayout

STEPS = (
    (("codec", "codes"),),
    (("stage1", "endings", "long"),),
    (("stage2",), ("upsamplers",)),
    (("report",),),
)
"""Steps in order; two processes, one per core, make the parts of a step in parallel."""

PARTS = [part for step in STEPS for lane in step for part in lane]
SHARED = ("stage1", "endings", "long")
"""Parts that `CREW` processes make together on a CPU, one for each core."""
CREW = 2

STAGE1 = Plan(tokens=24_000_000, batch=1600, muon=0.003, adam=0.004, look=0.5, name=0.5, left=0.3, where=0.3)
ENDINGS = Plan(tokens=8_000_000, batch=1600, muon=0.002, adam=0.002, hold=0.2, left=0.3, where=0.3, seed=2)
"""Continues from the end of `STAGE1`: learns when lines and sections end."""
LONG = Plan(tokens=8_000_000, batch=1600, muon=0.002, adam=0.002, hold=0.2, left=0.3, where=0.3, seed=3)
"""Continues from half way between those two ends (one makes some sections too short, the other some too long): learns
songs as long as people write them."""
SHIPPED = {STAGE1: 0.125, ENDINGS: 0.125, LONG: 0.75}
"""Shares of the three ends in the shipped weights: three quarters of the way of the last run. Its end is best with long
songs, its beginning with short ones."""
STAGE2 = Plan(tokens=30_000_000, batch=3000, muon=0.004, adam=0.004)
CONTEXT = 16384
SECTION_SECONDS = 24.0
SAMPLING = Sampling(temperature=0.7, repetition_penalty=1.0, guidance=1.0, guidance_later=1.0)
"""Best sampling settings for the set, found on prompts that the report does not use; see docs/demo-model.md."""

PHRASED = {"line": 6000, "short": 3000, "whole": 1000, "drill": 3000, "long": 1500}
"""Composed songs for Stage 1, by size, whose codes are looked up."""
FIRST_SEED = 40_000_000
"""First seed of these songs; no other part of the training and no measure uses seeds from here on."""
MIXES = 160
"""Songs whose mix is encoded as well."""

FITTED_SONGS, ASKED_SONGS = 400, 24
"""Songs that the measures' ear learns from, and held-out ones to evaluate Stage 1 during training."""

CARD = """# Demo model set

A very small set of models in exactly the architecture and file formats of YuE v1, for trying the program without
downloads: an X-Codec-shaped codec with two upsamplers, a Stage-1 and a Stage-2 Llama, and a tokenizer of its own. It
hums the vowels of your words to small synthetic bands, mostly as they are written; now and then a section comes out too
short or too long, most often the last of a long song. It is no small YuE: the real voice comes with the YuE weights.

Licence: Apache-2.0. Provenance: trained from random numbers by `tools/demo/train.py` on songs that the program in
`tools/demo/songs.py` composed and rendered; no recording, no lyrics and no weights of anybody else went into it.
Figures: `docs/demo-model.md`.
"""

FIGURES_FROM, FIGURES_TO = "<!-- figures, written by tools/demo/train.py -->", "<!-- end of figures -->"
"""Markers around the figures that `publish` writes into docs/demo-model.md."""

Say = Callable[[str], None]

_SPAWN = multiprocessing.get_context("spawn")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--only", choices=PARTS, action="append", help="just this part; may be given several times")
    parser.add_argument("--publish", action="store_true", help="afterwards, put the set and its report into this tree")
    chosen = parser.parse_args()
    started = time.monotonic()
    for step in STEPS:
        lanes = [[part for part in lane if part in (chosen.only or PARTS)] for lane in step]
        with tempfile.TemporaryDirectory() as folder:
            made = []
            for lane in filter(None, lanes):
                crew = CREW if chosen.device == "cpu" and set(lane) <= set(SHARED) else 1
                for rank in range(crew):
                    together = (Path(folder) / lane[0], rank, crew)
                    arguments = (lane, chosen.work, chosen.device, started, *together)
                    made.append(_SPAWN.Process(target=make, args=arguments))
            for process in made:
                process.start()
            for process in made:
                process.join()
        if any(process.exitcode for process in made):
            raise SystemExit("This part broke off, see above. Run the same command again to go on.")
    if chosen.publish:
        publish(chosen.work)


def make(
    parts: Sequence[str], work: Path, device: str, started: float, place: Path, rank: int = 0, crew: int = 1
) -> None:
    """Make parts of the set, one after the other, in a process of their own, or in several that meet at `place`."""
    torch.set_num_threads(1)
    if crew > 1:
        meet(place, rank, crew)

    def say(line: str) -> None:
        if not rank:
            print(f"{time.monotonic() - started:6.0f} s  {line}", flush=True)

    for part in parts:
        say(f"--- {part}")
        globals()[f"make_{part}"](work, device, say)


def make_codec(work: Path, device: str, say: Say) -> None:
    from tools.demo import codec

    codec.build(work / "set" / "codec", say, device)


def make_codes(work: Path, device: str, say: Say) -> None:
    from tools.demo import dataset

    dataset.build(work / "data", work / "set" / "codec", workers=os.cpu_count() or 1, log=say, device=device)
    make_phrasebook(work, device, say)
    tokenizer_of(work)


def make_phrasebook(work: Path, device: str, say: Say) -> None:
    """Make the codes of every note and bar, and of some songs' mixes, for references: by seed, in
    WORK/data/mixes.npz."""
    from tools.demo.codec import slim
    from yuegp.codec import load_codec
    from yuegp.codec.layout import SAMPLE_RATE

    book, mixes = work / "data" / "phrasebook.npz", work / "data" / "mixes.npz"
    if book.exists() and mixes.exists():
        return
    codec = slim(load_codec(work / "set" / "codec", device, encode=True))
    Phrasebook.make(codec, say).save(book)
    encoded = {}
    for song in composed({"short": MIXES}):
        encoded[str(song.seed)] = codec.encode(np.sum(render(song, SAMPLE_RATE), axis=0)).astype(np.int16)
    np.savez(mixes, **encoded)
    say(f"{len(encoded)} mixes")


def make_upsamplers(work: Path, device: str, say: Say) -> None:
    from tools.demo import upsamplers

    upsamplers.train(work / "set" / "codec", work / "set" / "codec", log=say, device=device)


def make_stage2(work: Path, device: str, say: Say) -> None:
    """Train Stage 2 on both tracks of the short and whole songs, all codebooks."""
    from tools.demo import dataset

    tokenizer = tokenizer_of(work)
    layout = text.layout_of(tokenizer.size)
    config = network.stage_config(layout, 2, hidden=128, ffn=384, layers=4, heads=4, kv_heads=2)
    samples = dataset.read(work / "data", "train", ("short", "whole"))
    tracks = [track for sample in samples for track in sample.codes]
    say(f"Stage 2: {sum(t.shape[1] for t in tracks) / 3000:.0f} min of tracks")
    model, _ = lm.train_stage2(config, layout, tracks, STAGE2, work / "runs" / "stage2.pt", device, say)
    network.export(model, work / "set" / "stage2", CONTEXT)
    heldout = [track for sample in dataset.read(work / "data", "heldout", ("short",)) for track in sample.codes]
    say("Stage 2, held out: " + json.dumps(lm.stage2_accuracy(model, layout, heldout[:40], device)))


def make_stage1(work: Path, device: str, say: Say) -> None:
    learn(work, device, say, lessons.Mixture(), STAGE1)


def make_endings(work: Path, device: str, say: Say) -> None:
    learn(work, device, say, lessons.ENDINGS, ENDINGS, {STAGE1: 1.0})


def make_long(work: Path, device: str, say: Say) -> None:
    model, trainer = learn(work, device, say, lessons.LONG, LONG, {STAGE1: 0.5, ENDINGS: 0.5})
    if not trainer.rank:
        model.load_state_dict(between(work, SHIPPED))
        network.export(model.llama, work / "set" / "stage1", CONTEXT)


def run_of(work: Path, plan: Plan) -> Path:
    """File with the state of a run of Stage 1."""
    return work / "runs" / f"stage1-{plan.seed}.pt"


def between(work: Path, shares: Mapping[Plan, float]) -> dict[str, torch.Tensor]:
    """Mean of the final weights of finished runs, by `shares`."""
    return lm.mean([run_of(work, plan) for plan in shares], list(shares.values()))


def learn(
    work: Path, device: str, say: Say, mixture: lessons.Mixture, plan: Plan, after: Mapping[Plan, float] | None = None
) -> tuple[lm.Stage1, Trainer]:
    """Train a run of Stage 1, from the mean of others' ends or from scratch."""
    from tools.demo import dataset

    tokenizer = tokenizer_of(work)
    layout = text.layout_of(tokenizer.size)
    curriculum = Curriculum(Teacher(tokenizer, layout), library(work), mixture)
    asked = [
        tokenised(sample.song, sample.codes[:, 0], size)
        for size in ("line", "short")
        for sample in itertools.islice(dataset.read(work / "data", "heldout", (size,)), ASKED_SONGS // 2)
    ]
    say(f"Stage 1: {len(curriculum.library)} songs")
    config = network.stage_config(layout, 1, hidden=128, ffn=384, layers=6, heads=4, kv_heads=2)
    begin = between(work, after) if after else None
    return lm.train_stage1(config, curriculum, plan, run_of(work, plan), device, say, asked, begin)


def make_report(work: Path, device: str, say: Say) -> None:
    from tools.demo import dataset

    write_entry(work / "set", text.layout_of(tokenizer_of(work).size))
    fitted = [(s.song, s.codes[:, 0]) for s in dataset.read(work / "data", "train", ("short", "whole"))]
    unheard = list(dataset.read(work / "data", "heldout", ("short", "whole")))
    heldout = [(s.song, s.codes[:, 0]) for s in unheard]
    tracks = [s.codes for s in unheard if s.codes.shape[2] >= CHUNK]
    figures = measure.measure(work / "set", fitted[-FITTED_SONGS:], heldout, tracks, say, work / "listen")
    report = work / "report"
    report.mkdir(exist_ok=True)
    pictures.sheet(heard(work / "listen"), report / "songs.png")
    figures["make"] = example.example(work / "set", report)
    (report / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (report / "figures.md").write_text(measure.report(figures), encoding="utf-8")


def heard(folder: Path) -> Iterator[pictures.Row]:
    """Rows for the rendered songs, `prompt-NN-genre.flac`."""
    for path in sorted(folder.glob("prompt-*.flac")):
        wave, rate = soundfile.read(path, dtype="float32")
        beat = 4 * songs.SIXTEENTH[path.stem.split("-")[2]] / FRAMES_PER_SECOND
        yield pictures.Row(path.stem, wave[: 8 * rate], rate, beat)


def publish(work: Path) -> None:
    """Copy a finished set into the package, and its report into the documentation."""
    root = Path(__file__).resolve().parents[2]
    shipped, docs = root / "yuegp" / "assets" / "demo", root / "docs"
    shutil.rmtree(shipped)
    shutil.copytree(work / "set", shipped, ignore=shutil.ignore_patterns("drawable.json"))
    for name in ("song.mp3", "song.png", "songs.png"):
        shutil.copyfile(work / "report" / name, docs / f"demo-{name}")
    page = docs / "demo-model.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(FIGURES_FROM)
    _, _, after = rest.partition(FIGURES_TO)
    figures = (work / "report" / "figures.md").read_text(encoding="utf-8")
    page.write_text(f"{before}{FIGURES_FROM}\n{figures}{FIGURES_TO}{after}", encoding="utf-8")


def tokenizer_of(work: Path) -> SentencePieceTokenizer:
    """The set's tokenizer, written first if it is missing."""
    path = work / "set" / "tokenizer.model"
    if not path.is_file():
        text.train(path)
    size = SentencePieceProcessor(model_file=str(path)).get_piece_size()
    return SentencePieceTokenizer(path, size)


def composed(counts: Mapping[str, int]) -> Iterator[songs.Song]:
    """Songs for Stage 1, so many of each size."""
    for size, count in counts.items():
        for n in range(count):
            yield songs.make_song(FIRST_SEED + songs.SIZES.index(size) * 1_000_000 + n, size=size)


def library(work: Path) -> list[Song]:
    """Songs to learn from: composed ones with their codes looked up, then those that were encoded whole."""
    from tools.demo import dataset

    book = Phrasebook.load(work / "data" / "phrasebook.npz")
    mixes = dict(np.load(work / "data" / "mixes.npz"))
    made = [
        tokenised(song, book.codes(song), size, mixes.get(str(song.seed)))
        for size, count in PHRASED.items()
        for song in composed({size: count})
    ]
    return made + [
        tokenised(sample.song, sample.codes[:, 0], size)
        for size in songs.SIZES
        for sample in dataset.read(work / "data", "train", (size,))
    ]


def write_entry(folder: Path, layout: VocabLayout) -> None:
    """Write `set.json` and the model card."""
    drawable = json.loads((folder / "drawable.json").read_text(encoding="utf-8"))
    usual = asdict(Sampling())
    own = {name: value for name, value in asdict(SAMPLING).items() if value != usual[name]}
    entry = {
        "format": 1,
        "title": "Demo",
        "language": "any",
        "mode": "both",
        "licence": "Apache-2.0",
        "note": "A tiny model for trying the program: it hums the vowels of your words to a small band. The real "
        "voice comes with the YuE weights.",
        "layout": asdict(layout),
        "tokenizer": {"kind": "sentencepiece", "path": "tokenizer.model"},
        "stage1": "stage1",
        "stage2": "stage2",
        "codec": "codec",
        "vocabularies": [network.vocabulary(layout, 1), network.vocabulary(layout, 2)],
        "drawable": drawable,
        "defaults": {"section_seconds": SECTION_SECONDS, **({"sampling": own} if own else {})},
    }
    (folder / "set.json").write_text(json.dumps(entry) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(CARD, encoding="utf-8")


if __name__ == "__main__":
    main()

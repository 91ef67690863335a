"""The language half of the demo set's training, at sizes that take seconds: tokenizer, lessons, networks, the ear."""

from __future__ import annotations

import bisect
import multiprocessing
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.demo import lessons, listen, lm, network, phrasebook, pictures, songs, syllables, text  # noqa: E402
from tools.demo import train as train_demo  # noqa: E402
from tools.demo.trainer import Plan, Trainer, meet  # noqa: E402
from yuegp.lm import EngineConfig, open_engine  # noqa: E402
from yuegp.song.schema import Section  # noqa: E402
from yuegp.tokens.prompts import build  # noqa: E402
from yuegp.tokens.tokenizer import SentencePieceTokenizer  # noqa: E402
from yuegp.tokens.vocab import VocabLayout, interleave  # noqa: E402

torch.set_num_threads(1)


def stand_in(song: songs.Song) -> np.ndarray:
    """Codes (2, frames) that a codec could have made of the song: equal sounds have equal codes."""
    codes = np.zeros((2, song.frames), np.int16)
    codes[1] = 450

    def code(*what: object) -> int:
        return zlib.crc32(repr(what).encode())

    for note in song.notes:
        for t in range(note.frames):
            kind = (note.vowel, note.consonant if t < 3 else None, song.pitch(note), min(t, 3), song.gender)
            codes[0, note.frame + t] = 1 + code(*kind) % 449
    for bar in song.bars:
        for t in range(16 * song.sixteenth):
            fill = bar.fill and t >= songs.FILL * song.sixteenth
            codes[1, bar.frame + t] = 450 + code(song.genre, bar.chord, bar.part, bar.variant, fill, t) % 574
    return codes


def known(seeds: range, size: str = "short") -> list[tuple[songs.Song, np.ndarray]]:
    composed = [songs.make_song(seed, size=size) for seed in seeds]
    return [(song, stand_in(song)) for song in composed]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return SentencePieceTokenizer(path, text.train(path).text_size)


@pytest.fixture(scope="module")
def layout(tokenizer: SentencePieceTokenizer) -> VocabLayout:
    return text.layout_of(tokenizer.size)


def spelled(tokenizer: SentencePieceTokenizer, ids: list[int]) -> list[str]:
    names = text.pieces()
    signs = [tokenizer._pieces.id_to_piece(i) for i in ids]
    return [
        names[ord(s) - text.PRIVATE] if len(s) == 1 and 0 <= ord(s) - text.PRIVATE < len(names) else s for s in signs
    ]


def test_one_syllable_is_one_piece(tokenizer: SentencePieceTokenizer) -> None:
    ids = tokenizer.encode("[verse]\nWe FOLDED lanterns, oh Oh\nlove the little\n")
    assert spelled(tokenizer, ids) == (
        "[verse] | \n | we | fo | de | la | te | o | o | \n | lo | ve. | the. | li | le | \n".split(" | ")
    )


def test_a_word_of_the_tags_has_a_piece_of_its_own(tokenizer: SentencePieceTokenizer) -> None:
    """By syllables alone `male` is the end of `female`, and `electronic` begins as `electric` does."""
    ids = tokenizer.encode("[Genre] Indie-Rock, FEMALE male, K-pop airy\n")
    assert spelled(tokenizer, ids) == (
        "[Genre]  | i | die | ro | <indie-rock> | fe | ma | le | <female> | ma | le. | <male> | po | <k-pop> | ai | ry "
        "| <airy> | \n"
    ).split(" | ")
    assert "<rock>" not in spelled(tokenizer, tokenizer.encode("[Genre] rocket, maleficent\n"))
    genres = [word for tag in {t for tags in songs._GENRE_TAGS.values() for t in tags} for word in tag.split()]
    assert {word.lower() for word in genres} | set(songs.GENDERS) <= set(songs.TAG_WORDS)


def test_a_word_of_the_tags_is_sung_like_any_other(tokenizer: SentencePieceTokenizer) -> None:
    words = "Dark house, happy\nfemale dance all night\n"
    ends = [s.span[1] for s in syllables.syllabify(words)]
    at = text.token_indices(tokenizer, words, ends)
    names = spelled(tokenizer, tokenizer.encode(words))
    assert [names[i] for i in at] == "da hou ha py fe ma da a ni".split()


def test_the_tokenizer_is_small_reproducible_and_refuses_no_text(tmp_path: Path) -> None:
    first, second = tmp_path / "a.model", tmp_path / "b.model"
    assert text.train(first) == text.train(second)
    assert first.read_bytes() == second.read_bytes() and len(first.read_bytes()) < 200_000
    tokenizer = SentencePieceTokenizer(first, text.train(first).text_size)
    for words in ("慢一点", "naïve <SOA> \U0001f600 ", "", "123", "\ue000", "hmm"):
        assert all(0 <= i < tokenizer.size for i in tokenizer.encode(words))


def test_every_sung_syllable_has_its_piece(tokenizer: SentencePieceTokenizer) -> None:
    for seed in range(60):
        for section in songs.make_song(seed).sections:
            sung = syllables.syllabify(section.words)
            at = text.token_indices(tokenizer, section.words, [s.span[1] for s in sung])
            names = spelled(tokenizer, tokenizer.encode(section.words))
            for syllable, index in zip(sung, at, strict=True):
                vowels = section.words[slice(*syllable.span)].lower()
                assert names[index].rstrip(".").endswith(vowels)
            assert len(set(at)) == len(at)


def test_a_lesson_is_what_the_product_would_read(tokenizer: SentencePieceTokenizer, layout: VocabLayout) -> None:
    song, codes = known(range(3, 4), "whole")[0]
    ready = lessons.tokenised(song, codes, "whole")
    lesson = lessons.Teacher(tokenizer, layout).lesson(ready, 0, 2, reference=codes[:, :20])
    prompts = build(tokenizer, layout, song.tags, [Section(s.label, s.words) for s in song.sections[:2]], codes[:, :20])
    audio = [interleave(layout, codes[:, s.start : s.stop]) for s in song.sections[:2]]
    assert lesson.ids.tolist() == [*prompts.context(1, audio, [0]), *audio[1], layout.eoa]
    asked = lesson.ids[lesson.weights > 0]
    assert asked.tolist() == [*audio[0], layout.eoa, *audio[1], layout.eoa]


def test_a_skipped_section_leaves_its_places_and_nothing_else(
    tokenizer: SentencePieceTokenizer, layout: VocabLayout
) -> None:
    song, codes = known(range(44_000_002, 44_000_003), "long")[0]
    ready, teacher = lessons.tokenised(song, codes, "long"), lessons.Teacher(tokenizer, layout)
    count = len(song.sections)
    whole, some = teacher.lesson(ready, 0, count), teacher.lesson(ready, 0, count, skipped={1, 2})
    assert whole.places.tolist() == list(range(len(whole.ids)))
    assert len(some.ids) < len(whole.ids) and some.places[-1] == whole.places[-1]
    for name in ("ids", "weights", "names", "clock", "left", "grid"):
        assert np.array_equal(getattr(some, name), getattr(whole, name)[some.places]), name
    looks = {(int(some.places[at]), int(some.places[to])) for at, to in some.looks}
    assert looks == {(at, to) for at, to in whole.looks if {at, to} <= set(some.places.tolist())}
    jump = int(np.flatnonzero(np.diff(some.places) > 1)[0])
    assert some.ids[jump] == layout.eoa and whole.ids[some.places[jump + 1] - 1] == layout.eoa


def test_a_position_counts_as_it_is_placed(layout: VocabLayout) -> None:
    torch.manual_seed(0)
    model = network.Llama(network.stage_config(layout, 1, hidden=32, ffn=48, layers=2, heads=2, kv_heads=1))
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    at_once, _ = model(ids)
    later, _ = model(ids, places=torch.arange(300, 305)[None])
    torch.testing.assert_close(at_once, later, rtol=1e-3, atol=1e-4)  # what counts is how far apart two are
    apart, _ = model(ids, places=torch.tensor([[0, 1, 302, 303, 304]]))
    torch.testing.assert_close(at_once[:, :2], apart[:, :2])
    assert not torch.allclose(at_once[:, 2:], apart[:, 2:], atol=1e-2)


def test_a_lesson_looks_at_the_syllable_to_come(tokenizer: SentencePieceTokenizer, layout: VocabLayout) -> None:
    song, codes = known(range(5, 6))[0]
    ready = lessons.tokenised(song, codes, "short")
    lesson = lessons.Teacher(tokenizer, layout).lesson(ready, 0, len(ready.sections))
    names = spelled(tokenizer, [int(lesson.ids[to]) for _, to in lesson.looks])
    at_onset = {}
    for (at, to), name in zip(lesson.looks, names, strict=True):
        assert to < at
        at_onset[at] = name
    first = song.notes[0]
    start = int(np.flatnonzero(lesson.ids == layout.codec)[0])
    assert at_onset[start].rstrip(".")[-1:] in "aeiouy"
    assert lesson.names[start + 1] == 5 * song.notes[1].consonant + song.notes[1].vowel and first.frame == 0


def test_a_thorough_lesson_looks_all_the_time_and_then_at_the_end_of_the_words(
    tokenizer: SentencePieceTokenizer, layout: VocabLayout
) -> None:
    """Who looks away while a note is held does not know whether another line is to come."""
    song, codes = known(range(5, 6))[0]
    teacher = lessons.Teacher(tokenizer, layout)
    teacher.thorough = True
    lesson = teacher.lesson(lessons.tokenised(song, codes, "short"), 0, 1)
    looks, start = dict(lesson.looks), int(np.flatnonzero(lesson.ids == layout.codec)[0]) + 1
    onsets = [note.frame for note in song.notes if note.section == 0]
    targets = []
    frames = range(lessons.LOOK_AHEAD, song.sections[0].stop, 2)
    for frame in frames:
        assert looks[start + 2 * frame] == looks[start + 2 * frame + 1] < start
        targets.append(looks[start + 2 * frame])
        assert (lesson.ids[targets[-1]] == layout.soa) == (frame >= onsets[-1])
    assert targets == sorted(targets)
    following = [bisect.bisect_right(onsets, frame) for frame in frames]
    assert [targets.index(target) for target in targets] == [following.index(n) for n in following]


def test_a_lesson_knows_the_sixteenth_it_is_in(tokenizer: SentencePieceTokenizer, layout: VocabLayout) -> None:
    song, codes = known(range(5, 6))[0]
    lesson = lessons.Teacher(tokenizer, layout).lesson(lessons.tokenised(song, codes, "short"), 0, 1)
    clock = lesson.clock[lesson.clock >= 0]
    assert len(clock) == 2 * song.sections[0].stop and lesson.ids[lesson.clock >= 0].min() >= layout.code_start
    assert clock.tolist() == [frame // song.sixteenth % 16 for frame in range(song.sections[0].stop) for _ in range(2)]


def test_a_lesson_knows_in_which_eighth_a_code_sounds_and_a_word_is_sung(
    tokenizer: SentencePieceTokenizer, layout: VocabLayout
) -> None:
    song, codes = known(range(5, 6))[0]
    lesson = lessons.Teacher(tokenizer, layout).lesson(lessons.tokenised(song, codes, "short"), 0, 1)
    sung = [note.frame // songs.eighth(song.genre) for note in song.notes if note.section == 0]
    total = songs.SLOTS * songs.bars_of(song.sections[0].label, song.sections[0].words)
    assert lesson.grid[(lesson.grid >= 0) & (lesson.clock < 0)].tolist() == [*sung, total]
    audio = lesson.grid[lesson.clock >= 0]
    assert (audio % songs.SLOTS == lesson.clock[lesson.clock >= 0] // 2).all()
    assert (np.diff(audio) >= 0).all() and audio[-1] + 1 == total


def test_disturbed_codes_are_others_of_the_same_track(tokenizer: SentencePieceTokenizer, layout: VocabLayout) -> None:
    song, codes = known(range(5, 6))[0]
    lesson = lessons.Teacher(tokenizer, layout).lesson(lessons.tokenised(song, codes, "short"), 0, 2)
    read = lesson.disturbed(np.random.default_rng(0), 0.1)
    audio = np.flatnonzero(lesson.clock >= 0)
    changed = read != lesson.ids
    assert not changed[lesson.clock < 0].any() and 0.02 < changed[audio].mean() < 0.1
    for track in (0, 1):
        assert set(read[audio[track::2]]) <= set(lesson.ids[audio[track::2]])
    assert (lesson.disturbed(np.random.default_rng(0), 0.0) == lesson.ids).all()


def test_a_slip_is_not_learned_and_what_follows_it_is(tokenizer: SentencePieceTokenizer, layout: VocabLayout) -> None:
    song, codes = known(range(5, 6))[0]
    right = lessons.tokenised(song, codes, "short")
    slipped = lessons.slipped(np.random.default_rng(1), right, 0.3)
    wrong = [s.wrong for s in slipped.sung]
    assert 0 < sum(wrong) < len(wrong) and (slipped.codes[1] == right.codes[1]).all()
    lesson = lessons.Teacher(tokenizer, layout).lesson(slipped, 0, len(slipped.sections))
    vocal = np.flatnonzero(lesson.clock >= 0)[::2]
    for place, s in enumerate(slipped.sung):
        start = slipped.spans[s.section][0] + s.frame
        assert (lesson.weights[vocal[start]] == 0) == s.wrong, place
        sound = slice(start, start + songs.eighth(song.genre))
        assert s.wrong or (slipped.codes[0, sound] == codes[0, sound]).all(), place


def test_an_exported_model_answers_as_in_training(tmp_path: Path, layout: VocabLayout) -> None:
    for stage in (1, 2):
        model = network.Llama(network.stage_config(layout, stage, hidden=16, ffn=24, layers=2, heads=4, kv_heads=2))
        network.export(model, tmp_path / str(stage), 512, torch.float32)
        ids = [5, 9, 700, layout.soa, layout.code_start + 3]
        engine = open_engine(tmp_path / str(stage), EngineConfig())
        with engine.open([64], None) as session:
            answered = session.prefill(0, ids)
        hidden, _ = model(torch.tensor([ids]))
        torch.testing.assert_close(answered, hidden[0, -1] @ model.head.T, rtol=1e-4, atol=1e-4)


def test_training_learns_and_a_resumed_run_equals_an_unbroken_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: SentencePieceTokenizer,
    layout: VocabLayout,
) -> None:
    library = [lessons.tokenised(song, codes, "line") for song, codes in known(range(12), "line")]
    teacher = lessons.Teacher(tokenizer, layout)
    config = network.stage_config(layout, 1, hidden=16, ffn=24, layers=2, heads=2, kv_heads=1)
    plan = Plan(tokens=40_000, batch=400, muon=0.02, adam=0.02)

    def train(name: str, seen: list[str]) -> lm.Stage1:
        curriculum = lessons.Curriculum(teacher, library)
        return lm.train_stage1(config, curriculum, plan, tmp_path / name, "cpu", seen.append)[0]

    whole = train("whole.pt", lines := [])
    assert "tokens/s" in lines[-1]
    before = lm.heed(lm.Stage1(config), teacher, library)
    after = lm.heed(whole, teacher, library)
    assert after["instrumental"] < before["instrumental"] - 1

    def power_cut(trainer: Trainer) -> None:
        if trainer.tokens > 20_000:
            raise KeyboardInterrupt

    monkeypatch.setattr("tools.demo.trainer.SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        save = Trainer.save
        patch.setattr(Trainer, "save", lambda trainer: (save(trainer), power_cut(trainer)))
        train("resumed.pt", [])
    again = train("resumed.pt", [])
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    curriculum = lessons.Curriculum(teacher, library)
    on, begin = tmp_path / "on.pt", tmp_path / "whole.pt"
    longer = lm.train_stage1(config, curriculum, plan, on, "cpu", lines.append, begin=lm.mean([begin], [1.0]))[0]
    assert lm.heed(longer, teacher, library)["instrumental"] < after["instrumental"]
    between = lm.mean([begin, on], [0.25, 0.75])
    for name, weight in whole.state_dict().items():
        assert torch.allclose(between[name], weight / 4 + 3 * longer.state_dict()[name] / 4, atol=1e-6), name


def _average(place: Path, rank: int, crew: int, folder: Path) -> None:
    """A run of two batches, one for each of a crew of two; also what a lone process does, as a crew of one."""
    torch.set_num_threads(1)
    if crew > 1:
        meet(place, rank, crew)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    named = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"layers": model})})
    trainer = Trainer(named, Plan(tokens=28), folder / f"{crew}.pt", "cpu", [].append)

    def batches(rng: np.random.Generator, progress: float) -> Iterator[tuple[torch.Tensor, int, dict[str, float]]]:
        drawn = [torch.from_numpy(rng.normal(size=(4 + n, 3)).astype(np.float32)) for n in range(3)]
        losses = [model(batch).square().mean() for batch in drawn]
        if crew > 1:
            for batch, loss in trainer.share(list(zip(drawn, losses, strict=True))):  # the third is one too many
                yield loss, 2 * len(batch) + rank, {}
        else:
            yield (losses[0] + losses[1]) / 2, 19, {}

    trainer.run(batches)
    torch.save(model.state_dict(), folder / f"{crew}-{rank}.pt")


def test_processes_that_share_a_run_learn_as_one_would_from_all_their_batches(tmp_path: Path) -> None:
    _average(tmp_path / "unused", 0, 1, tmp_path)
    spawn = multiprocessing.get_context("spawn")
    pair = [spawn.Process(target=_average, args=(tmp_path / "here", rank, 2, tmp_path)) for rank in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(120)
    assert [process.exitcode for process in pair] == [0, 0]
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for name in alone:
        torch.testing.assert_close(first[name], alone[name])
        assert torch.equal(first[name], second[name])
    saved = torch.load(tmp_path / "2.pt", weights_only=True)
    assert saved["where"][:2] == torch.load(tmp_path / "1.pt", weights_only=True)["where"][:2]


def test_stage_2_learns_from_the_ids_the_product_feeds(layout: VocabLayout) -> None:
    codes = np.random.default_rng(0).integers(0, 1024, (1, 8, 4))
    ids, targets = lm.stage2_batch(layout, codes, np.random.default_rng(0), noise=0.0)
    given = (codes[0, 0] + layout.code_start).tolist()
    frames = [int(codes[0, k, t]) + layout.code_start + 1024 * k for t in range(4) for k in range(8)]
    assert ids[0].tolist() == [layout.soa, layout.stage_1, *given, layout.stage_2, *frames]
    assert np.array_equal(targets[0], codes[0, 1:].T)
    misled, same = lm.stage2_batch(layout, codes, np.random.default_rng(0), noise=0.0, history=1.0)
    assert np.array_equal(same, targets) and misled[0, : 4 + 3].tolist() == ids[0, : 4 + 3].tolist()
    read = misled[0, 4 + 3 :].reshape(4, 8) - layout.code_start - 1024 * np.arange(8)
    assert np.array_equal(read[:, 0], codes[0, 0])
    at = [[t for t in range(4) if np.array_equal(codes[0, 1:, t], frame[1:])] for frame in read]
    assert all(at) and at != [[0], [1], [2], [3]]  # whole frames, of other moments
    model = network.Llama(network.stage_config(layout, 2, hidden=8, ffn=8, layers=1, heads=2, kv_heads=1))
    logits = lm.stage2_logits(model, layout, torch.from_numpy(ids), 4)
    hidden, _ = model(torch.from_numpy(ids))
    at = 2 + 4 + 1 + 8 * 2 + 3  # frame 2, where residual 3 stands: residual 4 is foretold
    expected = hidden[0, at] @ model.head[layout.codes_of(4).start : layout.codes_of(4).stop].T
    torch.testing.assert_close(logits[3, 2], expected)


def test_looking_codes_up_equals_encoding_the_whole_song(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Codec:
        """Hears nothing but how loud a frame is."""

        def encode(self, wave: np.ndarray) -> np.ndarray:
            return (1e4 * np.abs(wave.reshape(-1, 320)).mean(1)).astype(int)[None] % 1024

    monkeypatch.setattr(songs, "GENRES", ("rock",))
    monkeypatch.setattr(songs, "GENDERS", ("female",))
    monkeypatch.setattr(songs, "SIXTEENTH", {"rock": 5})
    phrasebook.Phrasebook.make(Codec()).save(tmp_path / "book.npz")  # type: ignore[arg-type]
    book = phrasebook.Phrasebook.load(tmp_path / "book.npz")
    song = songs.make_song(3, "rock", gender="female", size="whole")
    encoded = np.stack([Codec().encode(stem)[0] for stem in phrasebook.render(song, 16000)])
    assert book.agreement([(song, encoded)]) == (1.0, 1.0)


def test_the_ear_hears_what_songs_hold() -> None:
    ear = listen.Ear.fit(known(range(200)))
    wrong = total = 0
    for song, (vocal, instrumental) in known(range(10_000, 10_012)):
        assert ear.genre_of(instrumental) == song.genre and ear.gender_of(vocal) == song.gender
        meant = [note.vowel for note in song.notes]
        wrong += listen.edit_distance(ear.vowels_of(vocal), meant)
        total += len(meant)
    assert wrong < 0.25 * total


def test_the_beat_is_found_where_it_is() -> None:
    clicks = np.zeros(16000 * 8)
    clicks[::8000] = 1.0
    wave = clicks + np.random.default_rng(0).normal(0, 0.001, len(clicks))
    assert listen.beat_correlation(wave, 16000, 0.5) > 0.8 > 0.3 > listen.beat_correlation(wave, 16000, 0.37)
    assert listen.edit_distance([1, 2, 3], [1, 3, 4]) == 2


def test_the_marks_of_a_picture_stand_on_the_beat(tmp_path: Path) -> None:
    clicks = np.random.default_rng(0).normal(0, 0.001, 16000 * 4)
    clicks[3200::8000] += 1.0
    assert pictures.beat_phase(np.maximum(0, listen.onset_strength(clicks, 16000)), 0.5) == pytest.approx(0.2, abs=0.03)
    pictures.sheet([pictures.Row("clicks", clicks, 16000, 0.5)] * 2, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_every_part_of_the_training_is_made_and_every_run_has_its_own_file(tmp_path: Path) -> None:
    for part in train_demo.PARTS:
        assert callable(getattr(train_demo, f"make_{part}")), part
    assert set(train_demo.SHARED) <= set(train_demo.PARTS)
    assert len({train_demo.run_of(tmp_path, plan) for plan in train_demo.SHIPPED}) == 3
    assert sum(train_demo.SHIPPED.values()) == 1

"""Damaged and hostile files in the place of ours: each is named in a sentence, and nothing beside it suffers.

`fixtures/hostile` holds files that stopped the program once; the others are made here, by changing good ones in many
ways that are the same at every run."""

from __future__ import annotations

import copy
import io
import json
import os
import random
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ui import settings
from ui.context import AppContext
from ui.pages import library as library_page
from ui.pages import progress
from ui.pages import queue as queue_page
from ui.pages.song import page
from ui.shell import sendable
from ui.texts import Texts
from yuegp import checked, paths
from yuegp.audio import files
from yuegp.checkpoints import config, locate, registry, sets
from yuegp.codec.files import check_codec, hubert_config
from yuegp.errors import LibraryError, ModelError, YueGPError
from yuegp.files import read_json
from yuegp.jobs import eta
from yuegp.jobs.queue import Queue
from yuegp.library import catalog, export, store
from yuegp.library.store import Song
from yuegp.song.schema import Edit, EditKind, MadeWith, Section, SongRequest, Span, Stage, TakeInfo
from yuegp.system import environment

HOSTILE = Path(__file__).resolve().parents[1] / "fixtures" / "hostile"
T = Texts()

REQUEST = SongRequest((Section("verse", "la la"), Section("chorus", "lo lo")), "pop piano", "Tune", 3)


@pytest.fixture
def root() -> Path:
    return paths.home() / "songs"


def make(root: Path, title: str = "Tune", takes: int = 2) -> Song:
    """A song of rendered takes, the second one from the first."""
    song = store.create(replace(REQUEST, title=title), root)
    made = MadeWith("0.1", "demo", "torch", "cpu", "2.13")
    codes = np.arange(2 * 8 * 100, dtype=np.int16).reshape(2, 8, 100) % 1024
    for number in range(1, takes + 1):
        spans = (Span(0, 0, 60, True, 1, 3), Span(1, 60, 100, False, number, 3))
        seconds = {"stage1": 1.5, "stage2": 2.0, "sound": 0.5}
        info = TakeInfo(
            0, song.request, Stage.RENDERED, spans, parent=number - 1 or None, made_with=made, seconds=seconds
        )
        song.new_take(info, codes[:, :1], (codes, np.ones((2, 100), bool)))
    return song


def look_everywhere(root: Path) -> dict[str, catalog.SongSummary]:
    """What every part of the program makes of the songs folder. Raises whatever any of them raises."""
    context, listing = AppContext(root, Queue()), library_page.Listing(root)
    found = {entry.folder.name: entry for entry in catalog.entries(root)}
    catalog.search(found.values(), "la", rating=2, tag="piano", language="en", sort="length")
    for model in ("demo", "x"):
        eta.estimate(eta.learn(eta.earlier_takes(root, model, "cpu"), "cpu"), eta.Workload(3000, 2), eta.Observed())
    answers: list[Any] = [library_page.render(context, listing, listing, {}, T), queue_page.render(context, T)]
    for name in found:
        answers += [page.render(context, {"song": name}, True, T), progress.render(context, name, T)]
    for answer in answers:
        json.dumps(sendable(answer), ensure_ascii=False, allow_nan=False).encode()
    environment._songs()
    environment._queue()
    return found


def test_a_wrong_type_in_one_take_stops_no_song(root: Path) -> None:
    """The issue's own case: the time estimate reads all songs."""
    good, bad = make(root), make(root, takes=1)
    shutil.copy(HOSTILE / "eta-take.json", bad.folder / "takes" / "001" / "take.json")
    found = look_everywhere(root)
    assert found[good.folder.name].broken is None
    reason = found[bad.folder.name].broken or ""
    assert "take.json is damaged and was left as it is: seconds.stage1 is 'fast', not a number" in reason
    assert len(eta.earlier_takes(root, "demo", "cpu")) == 2
    assert [name for name, _ in environment._songs()[1]] == [bad.folder.name]


@pytest.mark.parametrize("folder", sorted(path.name for path in HOSTILE.glob("mut-*")))
def test_files_that_stopped_the_program_once_are_named(folder: str, root: Path) -> None:
    good, bad = make(root), make(root, takes=5)
    (file,) = (HOSTILE / folder).iterdir()
    place = bad.folder.joinpath(*file.name.split("__"))
    shutil.copy(file, place)
    found = look_everywhere(root)
    assert found[good.folder.name].broken is None and not found[good.folder.name].damaged
    (reason,) = catalog.faults(bad.folder)
    assert str(place) in reason and "was left as it is" in reason
    assert place.read_bytes() == file.read_bytes()


def test_a_damaged_take_is_passed_over_and_named(root: Path) -> None:
    song = make(root)
    (song.folder / "takes" / "002" / "take.json").write_text("{")
    entry = look_everywhere(root)[song.folder.name]
    assert entry.stage is Stage.RENDERED and entry.broken is None and "002" in entry.damaged
    (row,) = library_page.render(AppContext(root, Queue()), library_page.Listing(root), None, {}, T)["rows"]  # type: ignore[arg-type]
    assert row["heard"] and row["state"] and "is damaged" in row["damaged"]
    assert [name for name, _ in environment._songs()[1]] == [song.folder.name]
    assert song.chosen().info.number == 1
    song.save_info(replace(song.info, picked=2))
    with pytest.raises(LibraryError, match="is damaged"):
        song.chosen()


# Changed in many ways

VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 1.5, 2**31, 10**400, -(10**30), 1e308, float("nan"), float("inf"), "", "x", "\0",
    "\ud800", "../../x", "/etc/passwd", "1", [], {}, [[]], {"a": 1}, [1, "a", None], "é" * 300,
]  # fmt: skip


def nodes(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value, as its container and its key."""
    for key in list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield data, key
        yield from nodes(data[key])


def changed_json(good: bytes, luck: random.Random) -> bytes:
    data = copy.deepcopy(json.loads(good))
    holder, key = luck.choice(list(nodes(data)))
    way = luck.randrange(4)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, dict):
        holder[luck.choice(["x", "format", "\0", "number"])] = luck.choice(VALUES)
    else:
        holder[key] = luck.choice(VALUES)
    return json.dumps(data).encode()


def changed_bytes(good: bytes, luck: random.Random) -> bytes:
    data = bytearray(good)
    for _ in range(luck.choice([1, 1, 2, 8])):
        data[luck.randrange(len(data))] ^= 1 << luck.randrange(8)
    if luck.randrange(3) == 0:
        del data[luck.randrange(len(data)) :]
    return bytes(data)


ODD = {
    "empty": b"",
    "nothing": b"null",
    "a list": b"[]",
    "no JSON": b"\x00" * 64,
    "not UTF-8": b'{"format": 2, "x": "\xff\xfe"}',
    "UTF-16": '{"format": 2}'.encode("utf-16"),
    "nested": b"[" * 200_000,
    "nested objects": b'{"a":' * 100_000,
    "format 0": b'{"format": 0}',
    "format -1": b'{"format": -1}',
    "format as text": b'{"format": "2"}',
    "format true": b'{"format": true}',
    "format 2.0": b'{"format": 2.0}',
    "newer": b'{"format": 1000000000}',
    "far newer": b'{"format": 1' + b"0" * 390 + b"}",
    "digits": b'{"format": 1' + b"0" * 9000 + b"}",
    "too large a number": b'{"format": 1e999}',
    "twice": b'{"format": 2, "format": 2}',
}


def variants(good: bytes, count: int, seed: int) -> Iterator[bytes]:
    yield from ODD.values()
    luck = random.Random(seed)
    for i in range(count):
        yield (changed_json if i % 3 else changed_bytes)(good, luck)


@pytest.mark.parametrize("name", ["song.json", "takes/001/take.json", "takes/002/take.json"])
def test_pages_of_a_song_changed_in_many_ways(name: str, root: Path) -> None:
    good, song = make(root, takes=1), make(root, "Odd")
    path = song.folder / name
    before = path.read_bytes()
    for content in variants(before, 40, 7):
        path.write_bytes(content)
        found = look_everywhere(root)
        assert found[good.folder.name].broken is None and path.read_bytes() == content, content[:200]


def test_the_queue_changed_in_many_ways(root: Path) -> None:
    song, queue = make(root), Queue()
    for take in (1, 2):
        queue.add(song.folder, take)
    before = queue.path.read_bytes()
    for content in variants(before, 40, 8):
        queue.path.write_bytes(content)
        look_everywhere(root)
        for call in (queue.pause_all, queue.claim, queue.resume_all, queue.clear):
            try:
                call()
            except YueGPError as exc:
                assert str(queue.path) in exc.what and exc.hint and queue.path.read_bytes() == content


@pytest.mark.parametrize("name", ["stage1.npz", "stage2.npz"])
def test_codes_changed_in_many_ways(name: str, root: Path) -> None:
    take = make(root, takes=1).take(1)
    path = take.folder / name
    before, luck = path.read_bytes(), random.Random(9)
    whole = [take.load_stage1(), *take.load_stage2()]
    for _ in range(150):
        path.write_bytes(changed_bytes(before, luck))
        try:
            found = [take.load_stage1(), *take.load_stage2()]
            assert all(np.array_equal(a, b) for a, b in zip(found, whole, strict=True))
        except LibraryError as exc:
            assert str(path) in exc.what and exc.hint


def packed(header: str, values: bytes, name: str = "codes.npy", **options: Any) -> bytes:
    """A file as numpy writes it, but for what is asked for."""
    out, head = io.BytesIO(), header.encode("latin-1")
    with zipfile.ZipFile(out, "w", options.get("how", zipfile.ZIP_DEFLATED)) as file:
        for _ in range(options.get("times", 1)):
            file.writestr(name, b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + values)
    data = bytearray(out.getvalue())
    if options.get("encrypted"):
        data[6] |= 1
        data[data.rindex(b"PK\1\2") + 8] |= 1
    return bytes(data)


def header(shape: str, descr: str = "<i2") -> str:
    return "{'descr': '" + descr + "', 'fortran_order': False, 'shape': " + shape + ", }\n"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "content",
    [
        packed(header("(2, 1, 100)"), bytes(400), encrypted=True),
        packed(header("(2, 1, 100)"), bytes(400), how=zipfile.ZIP_LZMA),
        packed(header("(2, 1, 100)"), bytes(400), how=zipfile.ZIP_BZIP2),
        packed(header("(2, 1, 100)"), bytes(400), times=2),
        packed(header("(2, 1, 100)"), bytes(400), name="../codes.npy"),
        packed(header("(2, 1, 100)"), bytes(399)),
        packed(header("(2, 1, 100)"), bytes(401)),
        packed(header("(2, 1, 400000000)"), bytes(400)),
        packed(header("(2, 1, 99999999999)"), bytes(400)),
        packed(header("(2, 1, -100)"), bytes(400)),
        packed(header("(2, 1, 100)", "|O"), b"cos\nsystem\n(S'touch x'\ntR."),
        packed(header("(2, 1, 100)", "<M8"), bytes(1600)),
        packed("{'descr': " + "(" * 9000, bytes(400)),
        packed("{'descr': '\\x00", bytes(400)),
        packed("", b""),
    ],
)
def test_crafted_codes_are_refused_before_they_cost_memory(content: bytes, root: Path) -> None:
    take = make(root, takes=1).take(1)
    path = take.folder / "stage1.npz"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(LibraryError, match=r"stage1\.npz is damaged and was left as it is"):
            take.load_stage1()
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_a_bomb_of_zeros_is_not_unpacked(root: Path) -> None:
    take = make(root, takes=1).take(1)
    (take.folder / "stage1.npz").write_bytes(packed(header("(2, 1, 90000000)"), bytes(2**26)))
    with pytest.raises(LibraryError, match="is to have 360,000,000 bytes"):
        take.load_stage1()


# In the place of a file


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_huge_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**30)  # a hole: costs no disk


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes among files on this system")
@pytest.mark.parametrize("put", [a_folder, a_pipe, a_device, a_huge_file])
def test_what_is_no_file_is_neither_waited_for_nor_read_to_its_end(put: Callable[[Path], None], root: Path) -> None:
    good = make(root)
    odd = [make(root, f"Odd {i}").folder for i in range(4)]
    Queue().add(good.folder, 1)
    places_ = [folder / name for folder, name in zip(
        odd, ("song.json", "takes/002/take.json", "takes/001/stage1.npz", "takes/001/stage2.npz"), strict=True
    )]  # fmt: skip
    places_ += [Queue().folder / "progress.json", settings.path(), paths.home() / "models.json"]
    for path in places_:
        path.unlink(missing_ok=True)
        put(path)
    found = look_everywhere(root)
    assert found[good.folder.name].broken is None and settings.load() == settings.Settings()
    assert {name for name, _ in environment._songs()[1]} == {folder.name for folder in odd}
    assert len(environment._damaged(paths.home())) == 2 and "demo" in sets.names() and sets.find("demo")


# Notes


@pytest.mark.parametrize("name", ["models.json", "settings.json"])
def test_our_notes_changed_in_many_ways_stop_nothing(name: str) -> None:
    registry.add(registry.own("me/yue-s2-tune", None, {}))
    registry.remember({"s2": "/nowhere"}, {"yue-en-cot": ["s1-en-cot", "s2", "codec"]})
    settings.save(settings.Settings("zh"))
    path = paths.home() / name
    for content in variants(path.read_bytes(), 45, 10):
        path.write_bytes(content)
        assert "demo" in sets.names() and sets.find("demo").id == "demo"
        assert settings.load().language in ("", "zh", "en", "ja", "ko")
        with pytest.raises(ModelError):
            sets.find("yue-en-cot")
        environment._damaged(paths.home())
        for call in (lambda: registry.remember({"codec": None}), lambda: settings.save(settings.Settings("ja"))):
            try:
                call()
            except YueGPError as exc:
                assert name in exc.what and exc.hint and path.read_bytes() == content
            else:
                break


def test_a_damaged_entry_of_models_json_stops_no_other_and_stays(root: Path) -> None:
    registry.add(registry.own("me/yue-s2-tune", None, {}))
    path = paths.home() / "models.json"
    noted = json.loads(path.read_text())
    odd = [{"id": "x"}, 5, {**noted["checkpoints"][0], "id": "y", "role": "drums"}]
    odd += [{**noted["checkpoints"][0], "id": "z", "revision": "../../.."}]
    path.write_text(json.dumps({**noted, "checkpoints": [*odd, *noted["checkpoints"]]}))
    assert "yue-s2-tune" in registry.usable()[0] and not {"x", "y", "z"} & set(registry.usable()[0])
    assert len(environment._damaged(paths.home())) == 4
    registry.remember({"codec": "/there"})
    assert json.loads(path.read_text())["checkpoints"][:4] == odd


def test_records_of_downloads_changed_in_many_ways() -> None:
    s2 = registry.CHECKPOINTS["s2"]
    locate.write_pin(s2, locate.Pin(s2.repo, None, "0" * 40, {"config.json": (5, "0" * 64)}, True))
    path = locate.pin_path(s2)
    before = path.read_bytes()
    for content in [*variants(before, 80, 11), before.replace(b"config.json", b"../../x.json")]:
        path.write_bytes(content)
        assert locate.locate(s2) is None and not locate.unfinished(s2)
        try:
            assert locate.read_pin(s2)
        except ModelError as exc:
            assert str(path) in exc.what and exc.what in environment._damaged(paths.home())


# Models


@pytest.mark.parametrize("name", ["layers.json", "vocabulary.json"])
def test_configurations_that_never_ended_are_refused(name: str, tmp_path: Path) -> None:
    shutil.copy(HOSTILE / "configs" / name, tmp_path / "config.json")
    with pytest.raises(ModelError, match=r"config\.json"):
        config.read_config(tmp_path)


def test_configurations_changed_in_many_ways(tmp_path: Path) -> None:
    demo = sets.find("demo")
    codec = Path(shutil.copytree(demo.codec, tmp_path / "codec"))
    (tmp_path / "llama").mkdir()
    (tmp_path / "set").mkdir()
    hubert = next(codec.glob("semantic_ckpts/*/config.json"))
    calls: dict[Path, tuple[bytes, Callable[[], object]]] = {
        tmp_path / "llama" / "config.json": (
            (demo.stage1 / "config.json").read_bytes(),
            lambda: len(config.read_config(tmp_path / "llama").tensors()),
        ),
        hubert: (hubert.read_bytes(), lambda: hubert_config(codec)),
        tmp_path / "set" / "set.json": (
            (sets.EMBEDDED["demo"] / "set.json").read_bytes(),
            lambda: sets.find(str(tmp_path / "set")),
        ),
    }
    for path, (good, call) in calls.items():
        for content in variants(good, 80, 12):
            path.write_bytes(content)
            try:
                call()
            except ModelError as exc:
                assert exc.hint
        path.write_bytes(good)


@pytest.mark.parametrize("name", ["final_ckpt/config.yaml", "decoders/config.yaml"])
def test_yaml_changed_in_many_ways(name: str, tmp_path: Path) -> None:
    codec = Path(shutil.copytree(sets.find("demo").codec, tmp_path / "codec"))
    path, luck = codec / name, random.Random(13)
    good = path.read_bytes()
    odd = [
        b"",
        b"- a",
        b"a: 2001-99-99",
        b"? [a]\n: b",
        b"[" * 5_000,
        b"&a [*a]",
        b"\0",
        b"!!python/object:os.system x",
    ]
    for content in [*odd, *(changed_bytes(good, luck) for _ in range(20))]:
        path.write_bytes(content)
        try:
            check_codec(codec, encode=True)
        except ModelError as exc:
            assert exc.hint


# Sound and settings in it


def test_a_cut_flac_is_a_sentence_and_a_wrong_xing_header_is_not_believed() -> None:
    with pytest.raises(YueGPError, match="damaged or cut short: nothing can be decoded after 1"):
        files.probe(HOSTILE / "trunc.flac")
    info = files.probe(HOSTILE / "xing.mp3")
    assert 3 < info.seconds < 5 and files.read(HOSTILE / "xing.mp3")[0].shape == (info.frames, 1)
    assert len(files.peaks(HOSTILE / "xing.mp3", 50)) <= 50


def test_sound_files_changed_in_many_ways(tmp_path: Path) -> None:
    wave, luck = np.sin(np.arange(30000, dtype=np.float32)) * 0.5, random.Random(14)
    for kind, ending in (("wav16", "wav"), ("flac16", "flac"), ("mp3", "mp3"), ("float", "wav")):
        path = tmp_path / f"good.{ending}"
        files.write(path, wave, 16000, kind)
        good = path.read_bytes()
        for i in range(40):
            odd = tmp_path / f"{kind}-{i}.{ending}"
            content = bytearray(good)
            for _ in range(4):
                content[luck.randrange(64)] ^= 1 << luck.randrange(8)
            odd.write_bytes(content[: luck.randrange(len(content))] if i % 4 == 0 else content)
            for call in (files.probe, files.read, export.import_file):
                try:
                    call(odd)
                except YueGPError as exc:
                    assert exc.hint


def test_settings_inside_exports_changed_in_many_ways(root: Path) -> None:
    good = export.settings(make(root).take(2).info, "Tune").encode()
    for content in variants(good, 150, 15):
        text = content.decode("utf-8", "replace")
        try:
            export._read_settings(Path("x.wav"), text)
        except YueGPError as exc:
            assert "x.wav" in exc.what and exc.hint


# The checker itself


def test_what_we_write_reads_back_the_same(root: Path) -> None:
    info = make(root).take(2).info
    assert checked.build(TakeInfo, checked.parse(json.dumps(asdict(info)))) == info
    path = root / "bom.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"format": 1}')
    assert read_json(path) == {"format": 1}, "Windows' editor puts a mark before it"


def test_files_as_they_were_written_before_they_were_checked_open_unchanged(tmp_path: Path) -> None:
    """`fixtures/today` is a home that the program wrote before there was a checker: nothing in it counts as damaged."""
    shutil.copytree(Path(__file__).resolve().parents[1] / "fixtures" / "today", paths.home())
    before = {path: path.read_bytes() for path in sorted(paths.home().rglob("*")) if path.is_file()}
    song = store.open_song(paths.home() / "songs" / "2026-12-01-today-abc123")
    takes, faults = song.takes()
    assert len(takes) == 3 and not faults and not catalog.faults(song.folder) and song.chosen().info.number == 1
    assert (song.info.rating, song.request.seed, song.request.title) == (5, 2**63 - 1, "Today's song ☃")
    assert song.request.reference and song.request.reference.mix == str(song.folder / "references" / "mix.wav")
    assert takes[0].info.seconds == {"stage1": 6.79, "stage2": 10, "sound": 0.0}
    assert takes[1].info.kept_sections == (Span(1, 100, 200, False, 1, 7),) and takes[1].info.parent == 1
    assert [take.info.edit for take in takes] == [
        None,
        Edit(EditKind.REDO, 0),
        Edit(EditKind.REWIND_SECOND, seconds=3.0),
    ]
    assert takes[2].info.spans[-1].open and takes[2].load_leads().shape == (1, 2, 8, 32)
    paused, failed = Queue().jobs()
    assert (paused.wishes.weights, paused.batch_takes, paused.take) == ("nf4", (2, 3), 2)
    assert (failed.what, failed.trace, failed.last and failed.last.ready) == ("Out of memory.", "T", (0, 1))
    assert settings.load() == settings.Settings("ko") and not environment._damaged(paths.home())
    assert {"my tune", "yue-s1-en-cot-x"} <= set(registry.known()) == set(registry.usable()[0])
    pin = locate.read_pin(registry.CHECKPOINTS["s2"])
    assert pin and pin.files["sub/x.safetensors"] == (2**40, "b" * 64) and not pin.complete
    assert {path: path.read_bytes() for path in before} == before

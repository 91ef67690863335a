"""The whole way of models and songs under Windows' rules for files (`windows.py`), with a virus scanner that looks at
every file twice before it can be moved; and the rules themselves."""

from __future__ import annotations

import ast
import errno
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from exports import TITLED, make_song
from hub_server import Hub
from released import STAGE1, STAGE2, write_released
from repository import ROOT
from safetensors import safe_open
from safetensors.torch import save_file
from windows import WindowsRules

from quant import quantize
from tools.make_set import SIZES, write_codec
from ui import settings
from yuegp import files
from yuegp.checkpoints import locate, sets, transfer
from yuegp.checkpoints.registry import CHECKPOINTS
from yuegp.codec.convert import convert, source_of
from yuegp.errors import LibraryError, ModelError, YueGPError
from yuegp.generation import pipeline
from yuegp.jobs.queue import JobProgress, Queue, State
from yuegp.library import catalog, export, store
from yuegp.song.schema import Section, SongRequest, Stage, TakeInfo
from yuegp.system import provision

SET = [CHECKPOINTS[name] for name in ("s1-en-cot", "s2", "codec")]


def refusal(code: int | None, call: Callable[..., object], *args: object, number: int | None = None) -> OSError:
    with pytest.raises(OSError) as caught:
        call(*args)
    assert getattr(caught.value, "winerror", None) == code
    assert number is None or caught.value.errno == number
    return caught.value


@pytest.fixture
def scanner(windows_rules: WindowsRules) -> WindowsRules:
    """The rules, and a scanner that has every file open for two tries to move or remove it."""
    windows_rules.scan()
    return windows_rules


def left_over(root: Path) -> list[str]:
    """Temporary files and folders that somebody forgot."""
    return [str(path) for path in root.rglob("*") if path.name.startswith(".") and path.name not in (".lock", ".trash")]


# What the sources must not rely on

SOURCES = [
    path for folder in ("yuegp", "offload", "quant", "ui", "installer", "tools", "scripts")
    for path in sorted((ROOT / folder).rglob("*")) if path.suffix == ".py" or path.name == "check"
] + [ROOT / "launch.py"]  # fmt: skip


OPENS = {"mode", "buffering", "errors", "newline"}
"""What `Path.open` takes; other methods of this name open no files, nor do those of our classes (`Take.open`)."""


def without_encoding(source: str) -> list[str]:
    """Calls that read or write text in the encoding of the system, which is cp1252 or worse on Windows."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).split(".")[-1]
        words = {word.arg: ast.unparse(word.value) for word in node.keywords}
        given = [ast.unparse(value) for value in node.args]
        method = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) not in ("io", "codecs", "os")
        mode = words.get("mode") or next(iter(given[0 if method else 1 :]), "'r'")
        text = {
            "read_text": not given,
            "write_text": len(given) < 2,
            "open": bool(re.fullmatch(r"'[rwax+t]+'", mode)) and len(given) < (3 if method else 4),
            "fdopen": "b" not in mode,
            "NamedTemporaryFile": "mode" in words and "b" not in words["mode"],
        }.get(name, words.get("text") == "True" or words.get("universal_newlines") == "True")
        ours = name == "open" and method and (words.keys() - OPENS or ast.unparse(node)[0].isupper())
        if text and "encoding" not in words and not ours:
            found.append(f"line {node.lineno}: {ast.unparse(node)[:80]}")
    return found


def test_text_is_read_and_written_in_a_named_encoding() -> None:
    found = {path: without_encoding(path.read_text("utf-8")) for path in SOURCES}
    assert len(found) > 150 and {str(path): lines for path, lines in found.items() if lines} == {}


def test_a_missing_encoding_is_found() -> None:
    wrong = """
open(p)
open(p, "w")
p.open("a")
p.open()
io.open(p, mode="r")
p.read_text()
p.write_text(s)
run(c, text=True)
Popen(c, universal_newlines=True)
NamedTemporaryFile(mode="w+")
"""
    assert len(without_encoding(wrong)) == 10
    right = """
open(p, "rb")
open(p, encoding="utf-8")
p.open("xb")
p.read_text("utf-8")
p.write_text(s, "utf-8")
run(c, text=True, encoding="utf-8")
engine.open([3], keep)
making.open(takes=2)
Take.open(folder)
os.open(p, flags)
"""
    assert without_encoding(right) == []


DIRECT = {
    "yuegp/library/export.py": 2,  # flushed before it is closed; renamed inside of `disk.patiently`
    "yuegp/library/catalog.py": 2,  # the same; and an empty folder of ours on systems other than Windows
    "yuegp/system/provision.py": 2,  # empty folders, inside of `files.patiently`
    "yuegp/library/store.py": 1,  # a sweep, which leaves what cannot go
    "yuegp/generation/previews.py": 1,  # an empty folder, or one that somebody uses and stays
    "yuegp/owned.py": 3,  # an empty folder inside of `files.patiently`; links
    "quant/exl2.py": 1,  # an empty folder
    "installer/install.py": 5,  # inside of `record.patiently`; a sweep that leaves what cannot go
    "installer/own_folders.py": 1,  # a sweep that leaves what cannot go
    "installer/record.py": 1,
}
"""How often files are moved, removed or flushed past `disk`, by file; `tools/` is for us."""


def moves(source: str) -> list[str]:
    """Calls that Windows refuses while somebody has the file open, or that flush."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if node.attr in ("unlink", "rmdir", "rmtree") or re.fullmatch(
                r"os\.(replace|rename|renames|remove|fsync)|shutil\.move", name
            ):
                found.append(f"line {node.lineno}: {name}")
        if isinstance(node, ast.Call) and not node.keywords and len(node.args) == 1:
            name = ast.unparse(node.func)
            if name.endswith(".replace") and name not in ("os.replace", "dataclasses.replace"):
                found.append(f"line {node.lineno}: {name}")
    return found


def test_files_are_moved_removed_and_flushed_through_one_door() -> None:
    """A new place of this kind belongs into `disk`, or at least into `disk.patiently`."""
    found = {path.relative_to(ROOT).as_posix(): moves(path.read_text("utf-8")) for path in SOURCES}
    shipped = {name: lines for name, lines in found.items() if not name.startswith(("tools/", "yuegp/files.py"))}
    more = {name: lines for name, lines in shipped.items() if len(lines) > DIRECT.get(name, 0)}
    assert more == {}
    assert len(moves("os.replace(a, b)\na.replace(b)\nf(p.unlink)\nshutil.rmtree(a)\n's'.replace('a', 'b')")) == 4


# The rules


def test_only_what_may_be_written_is_flushed(windows_rules: WindowsRules, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    with path.open("rb") as file:
        refusal(None, os.fsync, file.fileno(), number=errno.EBADF)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    (tmp_path / "folder").mkdir()
    refusal(None, os.open, tmp_path / "folder", os.O_RDONLY, number=errno.EACCES)


@pytest.mark.parametrize("how", ["open", "os.open", "mmap", "safetensors", "torch", "soundfile"])
def test_what_anybody_has_open_stays_where_it_is(windows_rules: WindowsRules, tmp_path: Path, how: str) -> None:
    path, other, folder = tmp_path / "songs" / "a.flac", tmp_path / "b", tmp_path / "songs"
    folder.mkdir()
    other.write_bytes(b"new")
    if how == "soundfile":
        soundfile.write(path, np.zeros(100), 16000)
    elif how == "torch":
        torch.save({"a": torch.zeros(5000)}, path)
    else:
        save_file({"a": torch.zeros(5000)}, path)
    held = {
        "open": lambda: path.open("rb"),
        "os.open": lambda: os.fdopen(os.open(path, os.O_RDONLY)),
        "mmap": lambda: np.memmap(path, np.uint8, "r"),
        "safetensors": lambda: safe_open(path, "pt"),
        "torch": lambda: torch.load(path, weights_only=True, mmap=True),
        "soundfile": lambda: soundfile.SoundFile(path),
    }[how]()
    assert refusal(5, os.replace, other, path).errno == errno.EACCES
    assert isinstance(refusal(32, os.rename, path, tmp_path / "c"), PermissionError)
    refusal(5, os.rename, folder, tmp_path / "moved")
    assert refusal(5 if how in ("mmap", "safetensors", "torch") else 32, path.unlink).errno == errno.EACCES
    with pytest.raises(PermissionError):
        shutil.rmtree(folder)
    if how in ("mmap", "safetensors", "torch"):
        refusal(None, path.open, "wb", number=errno.EINVAL)
    del held
    os.replace(other, path)
    shutil.rmtree(folder)


def test_what_is_there_is_replaced_by_replace_alone_and_never_when_read_only(
    windows_rules: WindowsRules, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1"), two.write_bytes(b"2")
    assert isinstance(refusal(183, os.rename, one, two), FileExistsError)
    two.chmod(0o444)
    refusal(5, os.replace, one, two)
    refusal(5, os.unlink, two)
    with pytest.raises(LibraryError, match=r"two cannot be written: it is marked as read-only\."):
        files.write_atomic(two, b"3")
    assert two.read_bytes() == b"2" and left_over(tmp_path) == []


def test_names_are_windows_own(windows_rules: WindowsRules, tmp_path: Path) -> None:
    for name in ("a<b", "a:b", 'a"', "a|b", "what?", "*", "a\nb", "a\\b"):
        refusal(None, open, tmp_path / name, "w", number=errno.EINVAL)
        refusal(123, os.mkdir, tmp_path / name)
    for name in ("CON", "aux.txt", "nul.tar.gz", "Com1", "lpt¹.md"):
        refusal(None, open, tmp_path / name, "w")
        refusal(267, os.mkdir, tmp_path / name)
    (tmp_path / "Song. ").mkdir()
    assert os.listdir(tmp_path) == ["Song"] and (tmp_path / "sONG").is_dir()
    refusal(183, os.mkdir, tmp_path / "SONG")
    refusal(None, open, tmp_path / ("x" * 240), "w", number=errno.ENOENT)
    refusal(206, os.mkdir, tmp_path / ("x" * 230))
    refusal(1314, os.symlink, tmp_path / "Song", tmp_path / "link")
    windows_rules.exfat = True
    refusal(1, os.link, tmp_path / "Song", tmp_path / "link")


# Putting in place


def test_a_file_that_somebody_looks_at_is_put_in_place_within_a_second(scanner: WindowsRules, tmp_path: Path) -> None:
    path = tmp_path / "song.json"
    for text in (b"one", b"two"):
        files.write_atomic(path, text)
        assert path.read_bytes() == text
    assert scanner.refused and left_over(tmp_path) == []
    assert sum(files.PAUSES) == pytest.approx(1.0) and list(files.PAUSES) == sorted(files.PAUSES)


@pytest.mark.parametrize("code", [5, 32])
def test_a_file_that_stays_open_is_named_and_both_stay_whole(
    windows_rules: WindowsRules, tmp_path: Path, code: int
) -> None:
    path, temporary = tmp_path / "take.json", tmp_path / "made"
    path.write_bytes(b"old"), temporary.write_bytes(b"new")
    windows_rules.scan("take.json", 1000, code)
    for call in (lambda: files.put(temporary, path), lambda: files.write_atomic(path, b"newer")):
        with pytest.raises(files.InUse, match=r"take\.json cannot be written: another program has it open") as caught:
            call()
        assert "Close what uses it" in caught.value.hint and caught.value.__cause__ is not None
    assert path.read_bytes() == b"old" and temporary.read_bytes() == b"new" and left_over(tmp_path) == []
    assert windows_rules.pauses == [*files.PAUSES] * 2, "about a second each"
    with pytest.raises(files.InUse, match=r"take\.json cannot be removed"):
        files.remove(path)
    with pytest.raises(files.InUse, match=r"take\.json cannot be removed"):
        files.remove_tree(tmp_path)


def test_a_name_or_a_path_that_windows_refuses_is_told_so(windows_rules: WindowsRules, tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="this disk allows no such name"):
        files.check_writable(tmp_path / "my: songs")
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with pytest.raises(LibraryError, match="the path is too long for Windows"):
        files.write_atomic(deep / "a file of some length.json", b"")


# Models


def test_models_are_downloaded_converted_used_and_removed(
    hub: Hub, tmp_path: Path, yue_tokenizer: Path, scanner: WindowsRules
) -> None:
    write_released(hub.root / "m-a-p", pth=True)
    shutil.copy(yue_tokenizer, hub.root / "m-a-p" / STAGE1 / "tokenizer.model")
    folders = provision.execute(provision.order(SET))
    assert source_of(folders[2] / "final_ckpt" / "ckpt_00360000.safetensors")
    sets.check(sets.find("yue-en-cot"))
    assert scanner.refused["replace"] and left_over(locate.models_dir()) == []
    for checkpoint in SET:
        assert provision.remove(checkpoint) and not locate.own_folder(checkpoint).exists()


def test_a_file_that_cannot_be_put_in_place_is_kept_as_it_arrived(hub: Hub, windows_rules: WindowsRules) -> None:
    write_released(hub.root / "m-a-p")
    windows_rules.scan("model.safetensors", 1000)
    order = provision.order([SET[1]])
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be written: another program has it open"):
        provision.execute(order)
    part = transfer.part_of(locate.own_folder(SET[1]) / "model.safetensors")
    assert part.read_bytes() == (hub.root / "m-a-p" / STAGE2 / "model.safetensors").read_bytes()
    windows_rules._scans.clear()
    provision.execute(provision.order([SET[1]]))
    assert hub.log.count("model.safetensors") <= 1 or not part.exists()


@pytest.mark.parametrize("exfat", [False, True])
def test_files_of_other_programs_are_taken_without_links(
    hub: Hub, tmp_path: Path, windows_rules: WindowsRules, exfat: bool
) -> None:
    """No second names on a memory stick, no symbolic links without developer mode: then they are copied."""
    write_released(hub.root / "m-a-p")
    windows_rules.exfat = exfat
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    shutil.copy(hub.root / "m-a-p" / STAGE2 / "model.safetensors", theirs)
    from yuegp.checkpoints import download

    folder = download.fetch(download.plan(SET[1]), others=[theirs])
    assert (folder / "model.safetensors").stat().st_nlink == (1 if exfat else 2)
    assert (folder / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()


def test_a_codec_is_converted(tmp_path: Path, scanner: WindowsRules) -> None:
    write_codec(tmp_path / "codec", SIZES["tiny"].codec, seed=1, pth=True)
    assert len(convert(tmp_path / "codec")) == 3 and convert(tmp_path / "codec") == []
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_model_is_pressed(tmp_path: Path, scanner: WindowsRules, kind: str) -> None:
    source = sets.find("demo").stage2
    quantize.quantize(source, tmp_path / "pressed", kind)
    assert sorted(path.name for path in (tmp_path / "pressed").iterdir() if path.name.startswith(".")) == []
    with pytest.raises(YueGPError, match="already holds a model"):
        quantize.quantize(source, tmp_path / "pressed", kind)


# Songs


def test_a_song_is_made_changed_thrown_away_and_restored(tiny_set: Path, tmp_path: Path, scanner: WindowsRules) -> None:
    request = SongRequest(
        (Section("verse", "one two three"), Section("outro", "six")), "pop piano", title='What? "A/B": CON.',
        seed=5, model=str(tiny_set), section_seconds=1.0,
    )  # fmt: skip
    plan = pipeline.plan(request)
    song = store.create(plan.request, tmp_path / "songs", "[verse]\none two three")
    take = song.new_take(TakeInfo(number=0, request=song.request))
    pipeline.run(replace(plan, request=song.request), take)
    assert take.info.stage is Stage.RENDERED and scanner.refused
    catalog.rename(song, "NUL")
    catalog.pick(song, 1)
    again = song.new_take(TakeInfo(number=0, request=song.request))
    pipeline.run(replace(plan, request=song.request), again)
    exported = export.export(store.open_song(song.folder), take, tmp_path / "out", "flac")
    assert exported[0].name == "_NUL - mix.flac"
    assert store.open_song(song.folder).take_numbers() == [1, 2]
    assert left_over(tmp_path) == []
    gone = catalog.trash(song.folder, tmp_path / "songs")
    assert not song.folder.exists() and (gone / "song.json").is_file()
    back = catalog.restore(gone.name, tmp_path / "songs")
    assert store.open_song(back).take_numbers() == [1, 2]


def test_a_song_that_is_playing_is_not_thrown_away_half(tmp_path: Path, windows_rules: WindowsRules) -> None:
    song, take = make_song(tmp_path / "songs")
    with take.mix.open("rb"), pytest.raises(LibraryError, match="cannot be moved: another program has it open"):
        catalog.trash(song.folder, tmp_path / "songs")
    assert store.open_song(song.folder).take(1).mix.is_file()
    catalog.trash(song.folder, tmp_path / "songs")


@pytest.mark.parametrize(
    "title",
    ["CON", "aux.txt", "com¹", "CONIN$", "a:b", "what?*", "<b>|\"quoted\"", "dots...", "blank ", "..", "x" * 400,
     "ü" * 200, "💿" * 90, "tab\there", "a\\b/c", "\u202eevil", "lpt1 .mix"],
)  # fmt: skip
def test_songs_of_any_title_are_kept_and_exported(tmp_path: Path, windows_rules: WindowsRules, title: str) -> None:
    song, take = make_song(tmp_path / "songs")
    song.save_info(replace(song.info, title=title))
    store.create(replace(song.request, title=title), tmp_path / "songs")
    assert len(catalog.entries(tmp_path / "songs")) == 2
    first = export.export(song, take, tmp_path / "out", "wav16")
    song.save_info(replace(song.info, title=title.swapcase()))
    second = export.export(song, take, tmp_path / "out", "wav16")
    assert len({str(path).casefold() for path in first + second if path.suffix == ".wav"}) == 6
    assert sorted(os.listdir(tmp_path / "out")) == sorted({path.name for path in first + second})


@pytest.mark.parametrize("exfat", [False, True])
def test_exports_come_through_a_scanner(tmp_path: Path, scanner: WindowsRules, exfat: bool) -> None:
    scanner.exfat = exfat
    song, take = make_song(tmp_path / "songs")
    for kind in ("wav24", "mp3"):
        made = export.export(song, take, tmp_path / "out", kind)
        assert [path.stem for path in made[:3]] == TITLED
    assert left_over(tmp_path) == []


def test_paths_in_stored_files_are_the_same_on_every_system(tmp_path: Path, windows_rules: WindowsRules) -> None:
    from yuegp.song.schema import Reference

    soundfile.write(tmp_path / "heard.wav", np.zeros(16000), 16000)
    reference = Reference(mix=str(tmp_path / "heard.wav"))
    song = store.create(SongRequest((Section("verse", "la"),), "pop", reference=reference), tmp_path / "songs")
    take = song.new_take(TakeInfo(number=0, request=song.request))
    for path in (song.folder / "song.json", take.folder / "take.json"):
        assert '"references/mix.wav"' in path.read_text("utf-8")


def test_queue_and_settings_are_kept(tmp_path: Path, scanner: WindowsRules) -> None:
    song = store.create(SongRequest((Section("verse", "la"),), "pop", section_seconds=6), tmp_path / "songs")
    song.new_take(TakeInfo(1, song.request))
    queue = Queue(tmp_path / "home")
    job = queue.add(song.folder, 1)
    queue.save_progress(JobProgress(job.number, State.RUNNING, "writing"))
    with queue.work():
        assert [other.number for other in queue.jobs()] == [job.number]
    settings.save(settings.Settings("zh"))
    settings.save(settings.Settings("ja"))
    assert settings.load().language == "ja" and left_over(tmp_path) == []

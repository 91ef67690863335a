"""Nothing is deleted that the program did not make: every sweep, with a user's own files in its way."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from installer import install
from quant import exl2, quantize, rows
from ui import settings
from ui.server import serve, uploads
from yuegp import owned
from yuegp.checkpoints import locate, registry, transfer
from yuegp.errors import LibraryError, RequestError
from yuegp.generation.previews import Previews
from yuegp.library import store
from yuegp.locks import LOCK, song_lock
from yuegp.song.schema import Section, SongRequest, TakeInfo
from yuegp.system import provision

OLD = (0, 0)


def put(path: Path, content: bytes = b"mine") -> Path:
    """A user's file, from long ago, as are its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    for place in (path, *path.parents[:3]):
        os.utime(place, OLD)
    return path


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A music folder of a user's, which is to be the program's home."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    home = tmp_path / "music"
    put(home / "uploads" / "photos" / "2019" / "a.jpg")
    put(home / "uploads" / ("0" * 64) / "my own.wav")
    put(home / "uploads" / "tmpabcdefgh")
    put(home / "hear" / "draft-00.flac")
    monkeypatch.setenv("YUEGP_HOME", str(home))
    return home


# Uploads


def test_starting_the_page_deletes_nothing_of_a_music_folder(home: Path) -> None:
    """The issue's own case: `YUEGP_HOME=~/music`, and a folder `uploads/photos` in it."""
    before = everything(home)
    for _ in range(2):
        serve.prepare()
    after = everything(home)
    assert before.items() <= after.items()
    place = Path(os.environ["GRADIO_TEMP_DIR"])
    assert place.parent == home / "uploads-2" and owned.is_ours(place) and not owned.is_ours(home / "uploads")
    assert all(name.startswith("uploads-2") for name in after.keys() - before.keys())


def test_old_uploads_of_a_page_that_is_over_go_and_nothing_else(tmp_path: Path) -> None:
    theirs = put(tmp_path / "elsewhere" / "song.wav")
    over = end_of_a_page(tmp_path)
    swept = [put(over / name) for name in (f"{'a' * 64}/x.wav", "export-abc123_x/Tune - mix.mp3", "tmp1234abcd")]
    (over / ("b" * 64)).symlink_to(theirs.parent)
    inside = over / ("c" * 64) / "link.wav"
    inside.parent.mkdir()
    inside.symlink_to(theirs)
    os.utime(over / ("b" * 64), OLD, follow_symlinks=False)
    os.utime(inside, OLD, follow_symlinks=False)
    os.utime(inside.parent, OLD)
    kept = [put(over / "photos" / "a.jpg"), put(over.parent / "photos" / "b.jpg"), put(over.parent / "run-mine" / "c")]
    fresh = over / ("d" * 64) / "x.wav"
    fresh.parent.mkdir()
    fresh.write_bytes(b"new")
    serve.uploads.sweep(over.parent, time.time() - 60)
    assert not any(path.exists() for path in swept) and theirs.read_bytes() == b"mine"
    assert not os.path.lexists(over / ("b" * 64)) and not os.path.lexists(inside.parent)
    assert all(path.exists() for path in (*kept, fresh, over))


def test_a_page_that_is_over_leaves_no_folder_behind_in_the_end(tmp_path: Path) -> None:
    over = end_of_a_page(tmp_path)
    put(over / ("a" * 64) / "x.wav")
    for path in (over, over / owned.MARK):
        os.utime(path, OLD)
    uploads.sweep(over.parent, time.time() + 60)
    assert not over.exists() and owned.is_ours(over.parent)


def end_of_a_page(home: Path) -> Path:
    """The folder of a page whose process has ended."""
    code = (
        "import sys; from pathlib import Path; from ui.server import uploads; "
        "print(uploads.begin(Path(sys.argv[1]), 0))"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code, str(home)], cwd=root, capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


def test_two_pages_of_one_home_leave_each_others_uploads_alone(tmp_path: Path) -> None:
    first = uploads.begin(tmp_path, time.time())
    upload = put(first / ("a" * 64) / "x.wav")
    second = uploads.begin(tmp_path, time.time() + 60)
    assert upload.exists() and second != first and second.parent == first.parent


def test_a_home_that_cannot_be_written_and_a_link_in_the_place_of_uploads(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert uploads.begin(tmp_path / "file", 0).is_dir(), "among the system's temporary files"
    put(tmp_path / "theirs" / "a.jpg")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "uploads").symlink_to(tmp_path / "theirs")
    (tmp_path / "theirs" / owned.MARK).write_bytes(owned.MARKED)
    assert uploads.begin(tmp_path / "home", time.time()).parent == tmp_path / "home" / "uploads-2"
    uploads.sweep(tmp_path / "home" / "uploads", time.time())
    assert (tmp_path / "theirs" / "a.jpg").exists()


def test_settings_of_another_program_are_not_written_over(home: Path) -> None:
    for content in (b'{"theme": "dark"}', b"{", b'{"format": 99, "language": "en"}'):
        put(home / "settings.json", content)
        with pytest.raises(LibraryError, match="was left as it is"):
            settings.save(settings.Settings("ja"))
        assert (home / "settings.json").read_bytes() == content
    (home / "settings.json").unlink()
    settings.save(settings.Settings("ja"))
    settings.save(settings.Settings("ko"))
    assert settings.load().language == "ko"


# Songs


def test_what_a_killed_run_left_is_swept_and_a_users_hidden_files_are_not(tmp_path: Path) -> None:
    request = SongRequest((Section("verse", "la"),), "pop")
    take = store.create(request, tmp_path).new_take(TakeInfo(0, request))
    gone = [put(take.folder / name) for name in (".take.json.0123abcd.tmp", ".mix.flac.4711.part")]
    kept = [put(take.folder / name) for name in (".notes.tmp", ".my mix.part", ".mix.flac.part", ".stage1.npz.x.tmp")]
    take.sweep()
    assert not any(path.exists() for path in gone) and all(path.exists() for path in kept)


def test_previews_go_and_what_else_lies_there_stays(tmp_path: Path) -> None:
    request = SongRequest((Section("verse", "la"),), "pop")
    take = store.create(request, tmp_path).new_take(TakeInfo(0, request))
    hear = take.folder / "hear"
    gone = [put(hear / name) for name in ("draft-00.flac", "section-12.flac", ".draft-01.flac.7.part")]
    kept = put(hear / "my favourite.flac")
    Previews(take, tmp_path, on=False).discard()
    assert not any(path.exists() for path in gone) and kept.exists()
    kept.unlink()
    Previews(take, tmp_path, on=False).discard()
    assert not hear.exists()
    theirs = put(tmp_path / "theirs" / "draft-00.flac")
    hear.symlink_to(theirs.parent)
    Previews(take, tmp_path, on=False).discard()
    assert theirs.exists()


def test_another_programs_lock_file_stays_as_it_is(tmp_path: Path) -> None:
    file = put(tmp_path / LOCK, b"locked by git annex")
    with song_lock(tmp_path):
        pass
    assert file.read_bytes() == b"locked by git annex"


# Models


def test_removing_a_model_deletes_what_was_downloaded_and_nothing_else() -> None:
    s2 = registry.CHECKPOINTS["s2"]
    folder = locate.own_folder(s2)
    downloaded = put(folder / "config.json", b"{}")
    changed = put(folder / "model.safetensors", b"tuned by me")
    arriving = put(folder / "tokenizer.model.part")
    notes, other = put(folder / "my notes.txt"), put(folder / "takes" / "a.safetensors.part")
    replaced = put(folder / "config.json.replaced.bad")
    files = {path.name: (path.stat().st_size, hashlib.sha256(b"{}").hexdigest()) for path in (downloaded, changed)}
    locate.write_pin(s2, locate.Pin(s2.repo, None, "0" * 40, files, True))
    os.utime(changed)
    os.utime(locate.pin_path(s2), (1, 1))
    assert provision.remove(s2) == 6
    assert not downloaded.exists() and not arriving.exists()
    assert all(path.read_bytes() for path in (changed, notes, other, replaced))


def test_a_model_folder_that_we_did_not_download_is_only_forgotten() -> None:
    s2 = registry.CHECKPOINTS["s2"]
    mine = put(locate.own_folder(s2) / "model.safetensors")
    assert provision.remove(s2) == 0 and mine.exists()


def test_what_is_put_aside_takes_no_name_that_is_taken(tmp_path: Path) -> None:
    put(tmp_path / "a.replaced.bad")
    aside = transfer.set_aside(put(tmp_path / "a", b"new"), "replaced")
    assert aside.name == "a.replaced-2.bad" and (tmp_path / "a.replaced.bad").read_bytes() == b"mine"


@pytest.mark.parametrize("there", ["README.md", "LICENSE", "model.safetensors"])
def test_pressing_writes_into_no_folder_that_holds_something(there: str, tmp_path: Path) -> None:
    file = put(tmp_path / there)
    with pytest.raises(RequestError, match=there), quantize._held(tmp_path, {"kind": "int8"}):
        pass
    assert file.read_bytes() == b"mine"
    file.unlink()
    put(tmp_path / LOCK, b"mine")
    with quantize._held(tmp_path, {"kind": "int8"}):
        pass
    assert (tmp_path / LOCK).read_bytes() == b"mine"


def test_a_work_folder_of_somebody_else_is_not_taken_for_the_converters(tmp_path: Path) -> None:
    job = exl2.ConversionJob(tmp_path / "source", tmp_path / "out", put(tmp_path / "rows"), put(tmp_path / "held"), 4.0)
    put(tmp_path / "source" / "model.safetensors")
    kept = put(job.work / "thesis.txt")
    with pytest.raises(RequestError, match="holds something else"):
        exl2._same_source(job)
    assert kept.exists()


def test_rows_are_not_written_over_a_model(tmp_path: Path) -> None:
    import numpy as np

    file = put(tmp_path / "stage1.safetensors")
    with pytest.raises(RequestError, match="holds no rows"):
        rows.save(file, np.zeros((1, 4), np.int64), layout="x")
    assert file.read_bytes() == b"mine"
    rows.save(tmp_path / "a.safetensors", np.zeros((1, 4), np.int64), layout="x")
    rows.save(tmp_path / "a.safetensors", np.ones((1, 4), np.int64), layout="x")


# The door


def test_taking_an_environment_away_leaves_what_else_lies_in_its_folder(tmp_path: Path) -> None:
    venv, kept = tmp_path / ".venv", put(tmp_path / ".launch" / "old" / "backup" / "thesis.txt")
    put(venv / "launch.json", install.MADE_BY.encode())
    earlier = put(tmp_path / ".launch" / "old" / ".venv-17" / "x")
    install.clear(tmp_path, venv)
    assert not venv.exists() and not earlier.exists() and kept.exists()


@pytest.mark.parametrize("wrong", [Path.unlink, lambda path: path.write_bytes(b"a file of mine")])
def test_a_folder_is_ours_by_its_mark_alone(wrong: Callable[[Path], object], tmp_path: Path) -> None:
    ours = owned.folder_in(tmp_path, "uploads")
    assert owned.is_ours(ours) and owned.folder_in(tmp_path, "uploads") == ours
    wrong(ours / owned.MARK)
    assert not owned.is_ours(ours) and owned.folder_in(tmp_path, "uploads").name == "uploads-2"

"""What the hub, a mirror or whatever sits between may answer: odd listings, other files, other people's pages."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from downloads import ENTRY, SIZE, refusal, same
from hub_server import Handler, Hub

from yuegp import paths
from yuegp.checkpoints import download, filenames, locate, registry, transfer
from yuegp.checkpoints import hub as hub_room
from yuegp.checkpoints.hub import HubUnreachable, NotOffered
from yuegp.checkpoints.registry import Checkpoint
from yuegp.system import provision


@pytest.fixture
def repo(hub: Hub) -> Path:
    folder = hub.root / ENTRY.repo
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(np.random.default_rng(0).bytes(SIZE))
    (folder / "config.json").write_bytes(b'{"model_type": "llama"}')
    return folder


def siblings(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[dict[str, Any]], Any]:
    def edit(body: dict[str, Any]) -> dict[str, Any]:
        change(body["siblings"])
        return body

    return edit


def nothing_fetched(hub: Hub) -> bool:
    return not any("/resolve/" in path for _, path, _ in hub.log) and not locate.own_folder(ENTRY).exists()


# Listings


@pytest.mark.parametrize(
    "name",
    [
        *("../../.bashrc", "/etc/passwd", "a/../../b", "./a", "a//b", "", ".", "..", "..\\x", "a\\b", "C:x", "C:/x"),
        *("a\0b", "a\nb", "CON", "con.json", "aux.safetensors", "sub/NUL.txt", "COM1", "com¹.bin", "prn .txt"),
        *("model.", "model ", "sub./a", "sub /a", " a", "what?.txt", "a*", 'a"b', "a<b", "a|b", "x" * 256, "歌" * 90),
    ],
)
def test_a_name_that_could_not_be_written_everywhere_is_known(name: str) -> None:
    assert filenames.fault(name)
    with pytest.raises(ValueError, match="a file called"):
        hub_room._file({"rfilename": name, "size": 1})


@pytest.mark.parametrize(
    "name",
    ["config.json", "final_ckpt/ckpt_1.pth", "白底.png", "..a", "a..b", ".git", "con-x", "console.txt", "x" * 255],
)
def test_a_name_that_is_only_unusual_is_none_of_those(name: str) -> None:
    assert filenames.fault(name) == ""


@pytest.mark.parametrize("name", ["..\\..\\evil.safetensors", "aux.safetensors", "a\0.safetensors", "C:x.safetensors"])
def test_weights_under_an_impossible_name_are_refused_before_a_byte(hub: Hub, repo: Path, name: str) -> None:
    hub.listed = siblings(lambda files: files.append({"rfilename": name, "size": 3, "blobId": "0" * 40}))
    error = refusal(lambda: download.get(ENTRY))
    assert "lists a file called" in error.what and nothing_fetched(hub)


def test_impossible_names_of_files_nobody_wants_are_passed_over(hub: Hub, repo: Path) -> None:
    """cpchan's copy has pictures with Chinese names; other repositories have aux.py, or a picture called `?.png`."""
    odd = ["../../x.png", "assets/logo/?.png", "aux.py", "白底.png"]
    hub.listed = siblings(lambda files: files.extend({"rfilename": n, "size": 1, "blobId": None} for n in odd))
    assert same(download.get(ENTRY), repo)


def test_two_files_that_windows_takes_for_one_are_refused(hub: Hub, repo: Path) -> None:
    hub.listed = siblings(lambda files: files.append(files[-1] | {"rfilename": "MODEL.safetensors"}))
    assert "one file on Windows" in refusal(lambda: download.get(ENTRY)).what and nothing_fetched(hub)


def test_one_name_listed_twice_with_other_content_is_refused(hub: Hub, repo: Path) -> None:
    hub.listed = siblings(lambda files: files.append(files[0] | {"size": 1}))
    assert "listed twice" in refusal(lambda: download.get(ENTRY)).what and nothing_fetched(hub)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.pop("siblings") and body,
        lambda body: body | {"siblings": None},
        lambda body: body | {"siblings": "none"},
        lambda body: body | {"siblings": [None]},
        lambda body: body | {"siblings": [{}]},
        lambda body: body | {"sha": None},
        lambda body: body | {"sha": "main"},
        lambda body: body | {"sha": "../../../x"},
        lambda body: [],
        lambda body: None,
        lambda body: "please sign in",
        lambda body: {"error": "no"},
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_a_sentence(hub: Hub, repo: Path, change: Callable[[Any], Any]) -> None:
    hub.listed = change
    error = refusal(lambda: download.get(ENTRY))
    assert "does not understand" in error.what and "sign-in page" in error.hint and len(error.what) < 400
    assert nothing_fetched(hub)


@pytest.mark.parametrize("size", [-5, "70000", 1.5, True, [70_000]])
def test_a_size_that_is_no_number_of_bytes_is_refused(hub: Hub, repo: Path, size: object) -> None:
    hub.listed = siblings(lambda files: files[-1].update(size=size))
    assert "with the size" in refusal(lambda: download.get(ENTRY)).what and nothing_fetched(hub)


def test_a_checksum_that_is_none_is_refused(hub: Hub, repo: Path) -> None:
    hub.listed = siblings(lambda files: files[-1]["lfs"].update(sha256="0" * 63 + "g"))
    assert "with the checksum" in refusal(lambda: download.get(ENTRY)).what and nothing_fetched(hub)


def test_a_mirror_that_lists_no_sizes_is_asked_for_each_files(hub: Hub, repo: Path) -> None:
    def bare(files: list[dict[str, Any]]) -> None:
        for file in files:
            name = file["rfilename"]
            file.clear()
            file.update(rfilename=name, size=None)

    hub.listed = siblings(bare)
    planned = download.plan(ENTRY)
    assert {file.name: file.size for file in planned.files} == {"config.json": 23, "model.safetensors": SIZE}
    assert all(file.sha256 or file.blob for file in planned.files)
    hub.damage["model.safetensors"] = 5
    assert "arrived damaged" in refusal(lambda: download.fetch(planned)).what
    hub.damage.clear()
    assert same(download.get(ENTRY), repo)


# What comes in the place of a file


def page(handler: Handler, data: bytes) -> None:
    handler.answer(200, b"<html>Welcome to the hotel</html>", Content_Type="text/html; charset=utf-8")


def pointer(handler: Handler, data: bytes) -> None:
    note = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 70000\n"
    handler.answer(200, note, Content_Type="text/plain")


def longer(handler: Handler, data: bytes) -> None:
    handler.answer(200, data + b"more")


def other_part(handler: Handler, data: bytes) -> None:
    handler.answer(206, data[5:], Content_Range=f"bytes 5-{len(data) - 1}/{len(data)}")


def other_whole(handler: Handler, data: bytes) -> None:
    handler.answer(206, data[10_000:], Content_Range="bytes 10000-99999/100000")


@pytest.mark.parametrize(
    ("instead", "words"),
    [
        (page, "sends a web page in the place of model.safetensors"),
        (pointer, "git-lfs' note"),
        (longer, "sends 70,004 bytes as model.safetensors, which has 70,000"),
        (other_part, "another part of model.safetensors"),
        (other_whole, "sends 100,000 bytes as model.safetensors"),
    ],
)
@pytest.mark.parametrize("begun", [0, 10_000])
def test_what_is_not_the_file_spoils_nothing_that_has_arrived(
    hub: Hub, repo: Path, instead: Callable[[Handler, bytes], None], words: str, begun: int
) -> None:
    """A sign-in page at the beginning of a part would be found out by the checksum, five gigabytes later."""
    part = locate.own_folder(ENTRY) / "model.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes((repo / "model.safetensors").read_bytes()[:begun])
    hub.answers["model.safetensors"] = instead
    if begun and instead is pointer:
        pytest.skip("what a server without ranges sends begins anew")
    error = refusal(lambda: download.get(ENTRY))
    if begun or instead not in (other_part, other_whole):
        assert words in error.what
    assert part.stat().st_size == begun and not list(part.parent.glob("*.bad"))
    hub.answers.clear()
    hub.log.clear()
    assert same(download.get(ENTRY), repo)
    assert hub.gets("model.safetensors")[-1] == (f"bytes={begun}-" if begun else None)


def test_a_file_other_than_the_listed_one_is_refused_before_a_byte(hub: Hub, repo: Path) -> None:
    """The hub names the checksum in its answer too (X-Linked-Etag), before it sends one on."""
    planned = download.plan(ENTRY)
    (repo / "model.safetensors").write_bytes(b"y" * SIZE)
    hub.commits[ENTRY.repo] = planned.commit  # a mirror that mixes revisions up
    error = refusal(lambda: download.fetch(planned))
    assert "has another model.safetensors than was listed" in error.what
    assert (locate.own_folder(ENTRY) / "model.safetensors.part").stat().st_size == 0


def test_another_file_between_two_pieces_is_found_out_by_the_checksum(hub: Hub, repo: Path) -> None:
    planned = download.plan(ENTRY)
    hub.cuts["model.safetensors"] = [10_000]
    pieces: list[str | None] = []

    def changed(handler: Handler, data: bytes) -> None:
        pieces.append(handler.headers.get("Range"))
        del hub.answers["model.safetensors"]
        hub.damage["model.safetensors"] = 60_000  # what follows is of a file changed meanwhile, with another ETag
        handler.answer(206 if pieces[0] else 200, data[:10_000], Content_Length=SIZE, ETag='"one"')
        handler.connection.shutdown(2)

    hub.answers["model.safetensors"] = changed
    assert "arrived damaged: checksum" in refusal(lambda: download.fetch(planned)).what


def test_a_server_that_has_no_such_part_is_asked_for_all(hub: Hub, repo: Path) -> None:
    def nothing_there(handler: Handler, data: bytes) -> None:
        if handler.headers.get("Range"):
            return handler.answer(416, b"", Content_Range=f"bytes */{len(data)}")
        handler.answer(200, data)

    hub.answers["model.safetensors"], hub.cuts["model.safetensors"] = nothing_there, [10_000]
    part = locate.own_folder(ENTRY) / "model.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes((repo / "model.safetensors").read_bytes()[:10_000])
    assert same(download.get(ENTRY), repo)


def test_a_proxy_that_packs_what_it_was_told_not_to_pack_is_understood(hub: Hub, repo: Path) -> None:
    def packed(handler: Handler, data: bytes) -> None:
        part = gzip.compress(data)
        if (span := handler.headers.get("Range")) and span != "bytes=0-":
            rest = f"bytes 10000-{SIZE - 1}/{SIZE}"
            return handler.answer(206, part[:50], Content_Encoding="gzip", Content_Range=rest)
        handler.answer(200, part, Content_Encoding="gzip")

    hub.answers["model.safetensors"] = hub.answers["config.json"] = packed
    part = locate.own_folder(ENTRY) / "model.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes((repo / "model.safetensors").read_bytes()[:10_000])
    assert same(download.get(ENTRY), repo)


def test_a_promise_of_fewer_bytes_than_there_are_is_gone_on_from(hub: Hub, repo: Path) -> None:
    """Proxies that count with 31 bits do that with files of more than two gigabytes."""

    def short(handler: Handler, data: bytes) -> None:
        del hub.answers["model.safetensors"]
        handler.answer(200, data[:30_000])

    hub.answers["model.safetensors"] = short
    assert same(download.get(ENTRY), repo) and hub.gets("model.safetensors")[-1] == "bytes=30000-"


def test_an_address_that_has_run_out_is_asked_for_again_and_not_called_a_gate(hub: Hub, repo: Path) -> None:
    """The store's 403 means that a signed address is too old, or this computer's clock wrong: no owner to be asked."""
    times: list[int] = []

    def expired(handler: Handler, data: bytes) -> None:
        times.append(1)
        if len(times) == 2:
            del hub.answers["model.safetensors"]
        handler.answer(403, b"<Error><Code>AccessDenied</Code></Error>", Content_Type="application/xml")

    hub.answers["model.safetensors"] = expired
    assert same(download.get(ENTRY), repo) and len(times) == 2
    (locate.own_folder(ENTRY) / "model.safetensors").unlink()
    hub.answers["model.safetensors"] = lambda handler, data: handler.answer(403, b"")
    error = refusal(lambda: download.get(ENTRY), HubUnreachable)
    assert "where the hub keeps the files" in error.what and "clock" in error.hint


@pytest.mark.parametrize(
    ("status", "headers", "wait"),
    [
        (429, {"Retry-After": "90"}, "Wait 90 seconds"),
        (429, {"RateLimit": '"resolvers";r=0;t=123'}, "Wait 123 seconds"),
        (429, {"Retry-After": "Fri, 31 Dec 2099 23:59:59 GMT"}, "Wait 2"),
        (503, {"Retry-After": "120"}, "Wait 120 seconds"),
    ],
)
def test_a_hub_that_says_how_long_to_wait_is_quoted_and_not_pressed(
    hub: Hub, repo: Path, status: int, headers: dict[str, str], wait: str
) -> None:
    hub.status, hub.more = [status] * 9, headers
    error = refusal(lambda: download.get(ENTRY), HubUnreachable)
    assert f"slow down ({status})" in error.what and wait in error.hint
    assert len(hub.status) >= 9 - 2  # each file was asked for once


@pytest.mark.parametrize("value", ["0", "soon", "", "-3", "Fri, 31 Dec 1999 23:59:59 GMT", "1" * 400])
def test_a_wait_that_is_over_or_none_is_no_reason_to_give_up(hub: Hub, repo: Path, value: str) -> None:
    hub.status, hub.more = [429, 429], {"Retry-After": value}
    assert same(download.get(ENTRY), repo)


# Tokens


def test_a_token_that_has_expired_does_not_keep_anybody_from_what_is_for_all(
    hub: Hub, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub refuses every request with a bad token, for public repositories too; other programs leave such behind."""
    monkeypatch.setattr(hub_room, "_REJECTED", set())
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    hub.expired = "hf_expired"
    assert same(download.get(ENTRY), repo)
    assert [path for _, path, _ in hub.log].count("/api/models/somebody/model/revision/main") == 2
    assert "Bearer hf_expired" in hub.tokens["hub"] and hub_room._REJECTED == {"hf_expired"}


def test_a_token_is_not_blamed_for_what_nobody_is_shown(hub: Hub, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_room, "_REJECTED", set())
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    hub.refuse["me/private"] = 401, "RepoNotFound"
    refusal(lambda: hub_room.listing("me/private"), NotOffered)
    assert hub_room._REJECTED == set()


# Proxies


@pytest.mark.parametrize(
    ("address", "shown", "words"),
    [
        ("socks5://me:secret@127.0.0.1:9", "socks5://127.0.0.1:9", "socksio, which speaks SOCKS, is not installed"),
        ("socks5h://127.0.0.1:9", "socks5h://127.0.0.1:9", "socksio, which speaks SOCKS, is not installed"),
        ("socks4://127.0.0.1:9", "socks4://127.0.0.1:9", "that is no proxy's address"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_one_sentence(hub: Hub, address: str, shown: str, words: str) -> None:
    """`ALL_PROXY=socks5://…` ended in an ImportError. The command itself, in a Python that lacks socksio."""
    code = (
        "import sys; sys.modules['socksio'] = None\n"
        "from yuegp.cli.main import main; sys.exit(main(['models', 'get', 's2', '--yes']))"
    )
    env = os.environ | {
        "HF_HUB_OFFLINE": "0",
        "ALL_PROXY": address,
        "NO_PROXY": "",
        "HF_ENDPOINT": "http://hub.invalid",
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
    assert f"name the proxy {shown}, and" in done.stderr and words in done.stderr and "secret" not in done.stderr


def test_a_socks_proxy_is_spoken_to_where_the_package_is_installed(
    hub: Hub, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("socksio")
    from huggingface_hub.utils import close_session

    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    close_session()
    assert "cannot be reached" in refusal(lambda: hub_room.listing("a/b"), HubUnreachable).what


# Repositories with folders


FOLDERS = "somebody/YuE-s1-7B-anneal-en-icl-exl2"


@pytest.fixture
def folders(hub: Hub) -> Path:
    """A repository that keeps its bit widths in folders, as Ftfyhh's does: five files in each, two beside them."""
    top = hub.root / FOLDERS
    for n, bits in enumerate(("3.0bpw", "8.0bpw")):
        (top / bits).mkdir(parents=True)
        (top / bits / "output.safetensors").write_bytes(np.random.default_rng(n).bytes(30_000))
        for name in ("config.json", "generation_config.json", "tokenizer.model", "model.safetensors.index.json"):
            (top / bits / name).write_bytes(f"{bits} {name}".encode())
    (top / "measurement.json").write_bytes(b"{}")
    (top / "README.md").write_bytes(b"copies")
    return top


def test_only_the_folder_that_was_named_is_downloaded_and_found_again(hub: Hub, folders: Path) -> None:
    entry = registry.own(f"{FOLDERS}:8.0bpw", None, {})
    assert (entry.bits, entry.language, entry.mode, entry.stored) == (8.0, "en", "icl", "exl2")
    registry.add(entry)
    folder = download.get(registry.named(entry.id))
    kept = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    wanted = ("config.json", "model.safetensors.index.json", "output.safetensors", "tokenizer.model")
    assert kept == {name: (folders / "8.0bpw" / name).read_bytes() for name in wanted}
    assert not any("3.0bpw" in path or "README" in path for _, path, _ in hub.log)
    assert locate.locate(entry) == folder == paths.models_dir() / f"{FOLDERS.replace('/', '--')}-8.0bpw"
    assert download.check_pin(entry, folder)
    (folder / "output.safetensors").write_bytes(b"x" * 30_000)
    assert "is not the file" in refusal(lambda: download.check_pin(entry, folder)).what
    other = download.get(registry.own(f"{FOLDERS}:3.0bpw", None, {}))
    assert other != folder and (other / "output.safetensors").read_bytes() != kept["output.safetensors"]
    (folder / "output.safetensors").write_bytes(kept["output.safetensors"])  # what was changed is not removed
    assert provision.remove(entry) > 0 and not folder.exists() and other.is_dir() and locate.locate(entry) is None


def test_a_folder_in_the_librarys_cache_is_used(hub: Hub, folders: Path) -> None:
    entry = registry.own(f"{FOLDERS}:8.0bpw", None, {})
    commit = "c" * 40
    snapshot = locate.cache_dir() / f"models--{FOLDERS.replace('/', '--')}" / "snapshots" / commit
    (snapshot / "8.0bpw").mkdir(parents=True)
    for name in ("config.json", "output.safetensors"):
        (snapshot / "8.0bpw" / name).write_bytes(b"{}")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(commit)
    assert locate.locate(entry) == snapshot / "8.0bpw"


def test_a_repository_without_weights_at_its_top_says_where_they_are(hub: Hub, folders: Path) -> None:
    top = Checkpoint("mine", FOLDERS, "stage1", "en", "icl", "exl2", 8.0)
    error = refusal(lambda: download.get(top), NotOffered)
    assert "no safetensors weights at its top, but in 3.0bpw, 8.0bpw" in error.what
    assert f"models add {FOLDERS}:8.0bpw" in error.hint
    error = refusal(lambda: download.get(registry.own(f"{FOLDERS}:6.0bpw", None, {})), NotOffered)
    assert "in its folder 6.0bpw" in error.what and ":8.0bpw" in error.hint
    (hub.root / "dr" / "YuE-exl2").mkdir(parents=True)
    (hub.root / "dr" / "YuE-exl2" / "measurement.json").write_bytes(b"{}")
    branches = Checkpoint("mine", "dr/YuE-exl2", "stage2", stored="exl2", bits=8.0)
    assert "@BRANCH" in refusal(lambda: download.get(branches), NotOffered).hint


def test_a_wait_that_the_hub_asks_for_is_not_taken_for_a_standstill() -> None:
    assert transfer.LONGEST < download.STALLED

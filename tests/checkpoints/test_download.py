"""Downloads against a stand-in for the hub: resumed, refused, damaged, cancelled, reused."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from downloads import ENTRY, SIZE, refusal, same
from hub_server import Hub
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from repository import ROOT

from yuegp.checkpoints import download, locate, transfer
from yuegp.checkpoints import hub as hub_room
from yuegp.checkpoints.download import RateEstimator
from yuegp.checkpoints.hub import HubUnreachable
from yuegp.checkpoints.registry import Checkpoint
from yuegp.errors import Cancelled


@pytest.fixture
def repo(hub: Hub) -> Path:
    """A repository on the hub: one large file, two small ones, and one that nobody wants."""
    folder = hub.root / ENTRY.repo
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(np.random.default_rng(0).bytes(SIZE))
    (folder / "config.json").write_bytes(b'{"model_type": "llama"}')
    (folder / "tokenizer.model").write_bytes(b"pieces" * 100)
    (folder / "pytorch_model.bin").write_bytes(b"code" * 10_000)
    return folder


# What arrives


def test_a_repository_arrives_without_what_nobody_loads(hub: Hub, repo: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    folder = download.get(ENTRY, lambda *report: seen.append(report))
    assert folder == locate.own_folder(ENTRY) and same(folder, repo)
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "config.json", "tokenizer.model"}
    total = sum((repo / p.name).stat().st_size for p in folder.iterdir())
    assert seen[-1] == ("mine", total, total)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_what_was_downloaded_is_pinned_to_its_commit_and_checksums(hub: Hub, repo: Path) -> None:
    download.get(ENTRY)
    pin = locate.read_pin(ENTRY)
    assert pin is not None and pin.complete and len(pin.commit) == 40 and pin.revision is None
    digest = hashlib.sha256((repo / "model.safetensors").read_bytes()).hexdigest()
    assert pin.files["model.safetensors"] == (SIZE, digest)


def test_a_second_time_nothing_is_fetched(hub: Hub, repo: Path) -> None:
    download.get(ENTRY)
    hub.log.clear()
    download.get(ENTRY)
    assert [path for _, path, _ in hub.log if "resolve" in path] == []


def test_a_branch_has_a_folder_of_its_own(hub: Hub, repo: Path) -> None:
    branch = hub.root / f"{ENTRY.repo}@8.0bpw-h8"
    branch.mkdir()
    (branch / "config.json").write_bytes(b"{}")
    entry = Checkpoint("pressed", ENTRY.repo, "stage1", revision="8.0bpw-h8")
    folder = download.get(entry)
    assert folder.name == "somebody--model-8.0bpw-h8" and (folder / "config.json").read_bytes() == b"{}"


def test_the_token_is_shown_to_the_hub_and_not_to_where_it_keeps_large_files(
    hub: Hub, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_secret"
    assert "HF_TOKEN" in refusal(lambda: download.get(ENTRY)).hint
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert same(download.get(ENTRY), repo)
    assert hub.tokens["store"] == {""} and "Bearer hf_secret" in hub.tokens["hub"]


def test_the_stand_in_serves_the_hub_library_itself(hub: Hub, repo: Path, tmp_path: Path) -> None:
    """What this file proves is worth something only if huggingface_hub takes the stand-in for a hub."""
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi(endpoint=hub.url).model_info(ENTRY.repo, files_metadata=True)
    large = next(s for s in info.siblings or [] if s.rfilename == "model.safetensors")
    assert large.lfs is not None and large.lfs.size == SIZE and info.sha == hub_room.listing(ENTRY.repo).commit
    got = hf_hub_download(ENTRY.repo, "model.safetensors", endpoint=hub.url, local_dir=tmp_path / "theirs")
    assert Path(got).read_bytes() == (repo / "model.safetensors").read_bytes()


# Interrupted


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=3))
def test_cut_off_at_any_byte_it_goes_on_there(hub: Hub, repo: Path, cuts: list[int]) -> None:
    entry = Checkpoint(f"cut-{os.urandom(4).hex()}", ENTRY.repo, "stage1", revision=None)
    hub.cuts["model.safetensors"] = list(cuts)
    hub.log.clear()
    folder = locate.models_dir() / entry.folder
    for leftover in folder.glob("*"):
        leftover.unlink()
    (locate.models_dir() / "pins" / f"{entry.folder}.json").unlink(missing_ok=True)
    assert same(download.get(entry), repo)
    at, ranges = 0, ["None"]
    for cut in cuts:
        at += cut
        if at >= SIZE:
            break
        ranges.append(f"bytes={at}-" if at else "None")
    asked = [str(span) for _, path, span in hub.log if path == "/somebody/model/model.safetensors"]
    assert asked == ranges


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, SIZE))
def test_a_part_left_by_an_ended_program_is_gone_on_with(hub: Hub, repo: Path, at: int) -> None:
    """Known from huggingface_hub: across processes it starts again from the first byte."""
    folder = locate.own_folder(ENTRY)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model.safetensors.part").write_bytes((repo / "model.safetensors").read_bytes()[:at])
    hub.log.clear()
    assert same(download.get(ENTRY), repo)
    spans = [span for method, path, span in hub.log if path.startswith("/somebody/model/model.")]
    assert spans == ([] if at == SIZE else [f"bytes={at}-" if at else None])


def test_a_killed_download_is_gone_on_with(hub: Hub, repo: Path, tmp_path: Path) -> None:
    hub.slow = threading.Event()
    code = "from yuegp.checkpoints import download; from downloads import ENTRY; download.get(ENTRY)"
    paths = f"{ROOT / 'tests' / 'support'}{os.pathsep}{ROOT}"
    env = os.environ | {"HF_HUB_OFFLINE": "0", "PYTHONPATH": paths}
    child = subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE)
    part = locate.own_folder(ENTRY) / "model.safetensors.part"
    until = time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size) and child.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    child.kill()
    assert child.wait() != 0 and locate.unfinished(ENTRY), child.communicate()
    hub.slow.set()
    hub.log.clear()
    begun = part.stat().st_size
    assert 0 < begun < SIZE
    assert same(download.get(ENTRY), repo) and not locate.unfinished(ENTRY)
    assert f"bytes={begun}-" in [span for _, _, span in hub.log]


def test_a_server_without_ranges_sends_all_again(hub: Hub, repo: Path) -> None:
    hub.no_ranges, hub.cuts["model.safetensors"] = True, [30_000]
    assert same(download.get(ENTRY), repo)


def test_a_hub_in_trouble_for_a_moment_is_asked_again(hub: Hub, repo: Path) -> None:
    hub.status = [503, 429, 500]
    assert same(download.get(ENTRY), repo)


def test_a_connection_that_never_brings_a_byte_is_given_up(hub: Hub, repo: Path) -> None:
    hub.cuts["model.safetensors"] = [0] * 50
    assert "cannot be reached" in refusal(lambda: download.get(ENTRY), HubUnreachable).what
    stored = [path for _, path, _ in hub.log if path == "/somebody/model/model.safetensors"]
    assert len(stored) == transfer.TRIES


def test_what_changed_on_the_hub_meanwhile_is_not_mixed_in(hub: Hub, repo: Path) -> None:
    """Shards of two revisions load without complaint and sing nonsense: a download goes on with its own commit."""
    hub.cuts["model.safetensors"] = [10_000] + [0] * 50
    refusal(lambda: download.get(ENTRY), HubUnreachable)
    hub.cuts.clear()
    old, new = (repo / "model.safetensors").read_bytes(), np.random.default_rng(1).bytes(SIZE)
    (repo / "model.safetensors").write_bytes(new)
    assert "no revision" in refusal(lambda: download.get(ENTRY)).what  # the stand-in forgets old commits
    (repo / "model.safetensors").write_bytes(old)
    assert same(download.get(ENTRY), repo)


# Cancelled


def test_raising_cancelled_stops_and_keeps_what_arrived(hub: Hub, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.slow = threading.Event()
    monkeypatch.setattr(download, "LINGER", 0.0)

    def stop(what: str, done: int, total: int) -> None:
        if done > 500 + 23 + 600:
            raise Cancelled

    with pytest.raises(Cancelled):
        download.get(ENTRY, stop)
    hub.slow.set()
    kept = (locate.own_folder(ENTRY) / "model.safetensors.part").stat().st_size
    assert kept > 0 and locate.unfinished(ENTRY) and locate.locate(ENTRY) is None
    hub.slow = None
    assert same(download.get(ENTRY), repo) and locate.locate(ENTRY) == locate.own_folder(ENTRY)


# Damage


def test_a_wrong_checksum_is_kept_aside_under_a_name_and_fetched_anew_when_asked(hub: Hub, repo: Path) -> None:
    hub.damage["model.safetensors"] = 40_000
    error = refusal(lambda: download.get(ENTRY))
    aside = next(locate.own_folder(ENTRY).glob("*.bad"))
    assert "model.safetensors of somebody/model arrived damaged: checksum" in error.what and str(aside) in error.what
    assert "again" in error.hint and aside.stat().st_size == SIZE
    assert not (locate.own_folder(ENTRY) / "model.safetensors").exists()
    hub.damage.clear()
    assert same(download.get(ENTRY), repo) and aside.exists()


def test_small_files_are_held_to_gits_checksum(hub: Hub, repo: Path) -> None:
    hub.damage["config.json"] = 3
    assert "config.json of somebody/model arrived damaged: checksum" in refusal(lambda: download.get(ENTRY)).what


def test_a_part_that_is_not_of_this_file_is_found_out(hub: Hub, repo: Path) -> None:
    folder = locate.own_folder(ENTRY)
    folder.mkdir(parents=True)
    (folder / "model.safetensors.part").write_bytes(b"x" * 5_000)
    assert "arrived damaged" in refusal(lambda: download.get(ENTRY)).what
    assert same(download.get(ENTRY), repo)


def test_a_longer_part_is_found_out(hub: Hub, repo: Path) -> None:
    folder = locate.own_folder(ENTRY)
    folder.mkdir(parents=True)
    (folder / "model.safetensors.part").write_bytes(b"x" * (SIZE + 5))
    assert f"{SIZE + 5:,} bytes instead of {SIZE:,}" in refusal(lambda: download.get(ENTRY)).what


def test_git_lfs_stubs_and_truncated_shards_are_mended(hub: Hub, repo: Path) -> None:
    """Known from YuE (pull request 153): 133-byte stubs in the place of the weights, and a strange error later."""
    folder = locate.own_folder(ENTRY)
    folder.mkdir(parents=True)
    stub = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (folder / "tokenizer.model").write_bytes(stub)
    (folder / "model.safetensors").write_bytes((repo / "model.safetensors").read_bytes()[:30_000])
    assert same(download.get(ENTRY), repo)
    assert (folder / "tokenizer.model.replaced.bad").read_bytes() == stub
    assert "bytes=30000-" in [span for _, _, span in hub.log]


def test_files_put_there_by_hand_are_verified_and_kept(hub: Hub, repo: Path) -> None:
    folder = locate.own_folder(ENTRY)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes((repo / "model.safetensors").read_bytes())
    assert same(download.get(ENTRY), repo) and hub.gets("model.safetensors") == []


def test_a_file_changed_later_is_named_with_both_checksums(hub: Hub, repo: Path) -> None:
    folder = download.get(ENTRY)
    assert download.check_pin(ENTRY, folder)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[7] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    assert "is not the file that was downloaded" in refusal(lambda: download.check_pin(ENTRY, folder)).what
    (folder / "model.safetensors").unlink()
    assert "is missing" in refusal(lambda: download.check_pin(ENTRY, folder)).what


def test_another_revision_than_the_wanted_one_is_refused(hub: Hub, repo: Path) -> None:
    download.get(ENTRY)
    pin = locate.read_pin(ENTRY)
    assert pin is not None
    pin.revision = "v0.9"  # as after an update of the program that wants another one
    locate.write_pin(ENTRY, pin)
    error = refusal(lambda: download.check_pin(ENTRY, locate.own_folder(ENTRY)))
    assert "holds revision v0.9 of somebody/model, not main of somebody/model" in error.what


# Refused


@pytest.mark.parametrize(
    ("status", "code", "words", "hint"),
    [
        (401, "", "to nobody without a valid token (401)", "HF_TOKEN"),
        (401, "RepoNotFound", "to nobody without a valid token (401)", "HF_TOKEN"),
        (403, "GatedRepo", "(403): its owner wants to be asked", "Accept the conditions at http"),
        (403, "", "(403)", "HF_TOKEN"),
        (404, "RepoNotFound", "has no repository somebody/model (404)", "owner/name"),
        (404, "RevisionNotFound", "no revision main of it", "tree/main"),
        (429, "", "slow down (429)", "Wait"),
        (500, "", "in trouble itself (HTTP 500)", "later"),
    ],
)
def test_what_the_hub_refuses_is_said_in_words(
    hub: Hub, repo: Path, status: int, code: str, words: str, hint: str
) -> None:
    hub.refuse[ENTRY.repo] = status, code
    error = refusal(lambda: download.get(ENTRY))
    assert words in error.what and hint in error.hint
    assert not locate.own_folder(ENTRY).exists()


def test_a_repository_without_the_files_it_should_have_is_refused(hub: Hub, repo: Path) -> None:
    entry = Checkpoint("mine", ENTRY.repo, "stage1", files=("config.json", "model-00001-of-00003.safetensors"))
    assert "does not hold model-00001-of-00003.safetensors" in refusal(lambda: download.get(entry)).what


def test_a_file_that_would_land_outside_the_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("../../.bashrc", "/etc/passwd", "a/../../b", "..\\x", "C:x"):
        with pytest.raises(ValueError, match="a file called"):
            hub_room._file({"rfilename": name, "size": 1})


def test_a_sign_in_page_in_the_hubs_place_is_recognised(hub: Hub, repo: Path) -> None:
    hub.not_json = True
    error = refusal(lambda: download.get(ENTRY))
    assert "does not understand" in error.what and "sign-in page" in error.hint


def test_no_network_is_one_sentence(hub: Hub, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    error = refusal(lambda: download.get(ENTRY), HubUnreachable)
    assert "http://127.0.0.1:9 cannot be reached" in error.what and "built-in model works" in error.hint


def test_a_name_lookup_that_hangs_is_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """No timeout of any HTTP library covers the system's name lookup."""
    held = threading.Event()

    def hang(*arguments: object, **options: object) -> list[object]:
        held.wait()
        raise OSError("released")

    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(hub_room, "PATIENCE", 0.3)
    try:
        assert "does not answer" in refusal(lambda: download.get(ENTRY), HubUnreachable).what
    finally:
        held.set()


def test_a_server_that_accepts_and_says_nothing_is_given_up(
    hub: Hub, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known from huggingface_hub 2.4: its downloads then wait for ever."""
    hub.silent = True
    monkeypatch.setattr(hub_room, "PATIENCE", 0.3)
    assert "does not answer" in refusal(lambda: download.get(ENTRY), HubUnreachable).what


def test_patience_is_at_most_ten_seconds() -> None:
    assert hub_room.PATIENCE <= 10


def test_a_download_that_falls_silent_is_given_up(hub: Hub, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.slow = threading.Event()
    monkeypatch.setattr(download, "STALLED", 0.3)
    monkeypatch.setattr(download, "LINGER", 0.0)
    try:
        assert "has arrived for 0 seconds" in refusal(lambda: download.get(ENTRY), HubUnreachable).what
    finally:
        hub.slow.set()


def test_offline_mode_is_obeyed_and_named(hub: Hub, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(lambda: download.get(ENTRY), HubUnreachable).what
    assert hub.log == []


# The disk


def test_too_little_space_is_said_before_a_byte_is_fetched(
    hub: Hub, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "free_bytes", lambda folder: 1_000)
    error = refusal(lambda: download.get(ENTRY))
    assert "0.00 MB free" in error.what and "YUEGP_MODELS" in error.hint
    assert [path for _, path, _ in hub.log if "resolve" in path] == []


def test_a_disk_that_fills_up_on_the_way_is_named_and_the_rest_kept(
    hub: Hub, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    folder = locate.own_folder(ENTRY)
    folder.mkdir(parents=True)
    (folder / "model.safetensors.part").symlink_to(full)
    monkeypatch.setattr(transfer.Transfer, "_catch_up", lambda *arguments: None)  # reading it never ends
    error = refusal(lambda: download.get(ENTRY))
    assert "the disk is full" in error.what and "is kept" in error.hint


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of another kind")
def test_a_folder_that_cannot_be_written_is_named(hub: Hub, repo: Path) -> None:
    locate.models_dir().parent.mkdir(parents=True, exist_ok=True)
    locate.models_dir().write_text("a file in the folder's place")
    error = refusal(lambda: download.get(ENTRY))
    assert "cannot be written" in error.what and "YUEGP_MODELS" in error.hint


def test_a_folder_in_use_by_another_process_is_left_alone(hub: Hub, repo: Path) -> None:
    folder = locate.own_folder(ENTRY)
    folder.mkdir(parents=True)
    code = (
        "import sys; from pathlib import Path; from yuegp.locks import song_lock\n"
        "with song_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code, folder], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "held\n"
        error = refusal(lambda: download.get(ENTRY))
        assert f"is being downloaded by process {other.pid}" in error.what
        other.stdin.close()
    assert same(download.get(ENTRY), repo)


# What other programs have


def test_a_file_another_program_has_is_linked_and_outlives_it(hub: Hub, repo: Path, tmp_path: Path) -> None:
    """ComfyUI_YuE keeps weights flat in models/yue."""
    theirs = tmp_path / "ComfyUI" / "models" / "yue" / "model.safetensors"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes((repo / "model.safetensors").read_bytes())
    folder = download.fetch(download.plan(ENTRY), others=[tmp_path / "ComfyUI"])
    assert same(folder, repo) and hub.gets("model.safetensors") == []
    theirs.unlink()
    assert same(folder, repo)


def test_a_file_of_the_same_name_and_other_content_is_not_taken(hub: Hub, repo: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "app" / "model.safetensors"
    theirs.parent.mkdir()
    theirs.write_bytes(b"y" * SIZE)
    assert same(download.fetch(download.plan(ENTRY), others=[theirs.parent]), repo)
    assert theirs.read_bytes() == b"y" * SIZE


def test_the_hub_librarys_cache_is_used_file_by_file(hub: Hub, repo: Path) -> None:
    snapshot = locate.cache_dir() / "models--some--other" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes((repo / "model.safetensors").read_bytes())
    assert same(download.get(ENTRY), repo) and hub.gets("model.safetensors") == []


# Pace


def test_pace_tells_rate_and_time_left_from_the_last_seconds() -> None:
    pace = RateEstimator(window=10)
    pace.update(0, 0)
    assert pace.rate() is None and pace.left(100) is None
    for second in range(1, 31):
        pace.update(second, 1000 * second if second <= 15 else 15_000 + 100 * (second - 15))
    assert pace.rate() == pytest.approx(100)
    assert pace.left(16_500 + 1000) == pytest.approx(10)
    pace.update(60, 16_500)
    assert pace.rate() is None

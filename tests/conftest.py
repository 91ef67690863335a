"""What every test gets: one thread, no network, a song folder of its own, and the way to the reference files.

The environment is set before anything imports torch or the hub library: both read it once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import browser, browser_page, new_person, page_server
from windows import windows_rules

# One thread: on a shared machine torch's threads wait for each other by spinning, which costs 5 to 20 times (measured).
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    OMP_WAIT_POLICY="PASSIVE",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    GRADIO_ANALYTICS_ENABLED="False",
)

ROOT = Path(__file__).resolve().parent.parent

__all__ = ["browser", "browser_page", "new_person", "page_server", "windows_rules"]  # fixtures with files of their own


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs an NVIDIA card and torch's CUDA build")


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUEGP_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT


def shared(name: str, variable: str | None = None) -> Path:
    """A file of the reference data, or the one `variable` names in its place; skips where there is neither."""
    path = Path(os.environ.get(variable or "") or ROOT.parent / "shared" / "data" / name)
    if not path.exists():
        pytest.skip(f"no {path}" + (f"; set {variable} to such a file" if variable else ""))
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of reference data beside the checkout. Files with a variable of their own have their own fixture."""
    return shared("")


@pytest.fixture(scope="session")
def golden_prompts() -> Path:
    return shared("golden_prompts.json", "YUEGP_GOLDEN_PROMPTS")


@pytest.fixture(scope="session")
def golden_codec() -> Path:
    return shared("golden_xcodec_tiny.safetensors", "YUEGP_GOLDEN_CODEC")


@pytest.fixture(scope="session")
def yue_tokenizer() -> Path:
    return shared("tokenizer.model", "YUEGP_TOKENIZER")


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model set of the smallest size, random: the folder."""
    from tools.make_set import make_set

    return make_set(tmp_path_factory.mktemp("sets") / "tiny set", "tiny")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A stand-in for the model hub, which the program takes for the real one."""
    from hub_server import Hub
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    root = tmp_path / "on the hub"
    root.mkdir()
    with Hub(root) as server:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "YUEGP_MODELS", "YUEGP_MODEL_DIRS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("YUEGP_NEWEST", "1")  # the stand-in's files are small: not those that are pinned
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
        monkeypatch.setattr(Path, "home", lambda: tmp_path / "nobody")
        monkeypatch.setattr("yuegp.checkpoints.transfer.PAUSE", 0.0)
        close_session()
        yield server
    close_session()

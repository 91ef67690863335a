"""What is installed: pinned by locks with hashes that belong to the requirement files, under compatible licences, and
shown when outdated; the files that carry it elsewhere (Docker, pip install -e)."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest

from installer import record
from installer.install import modules, wheel_urls

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import licences  # noqa: E402
import lock  # noqa: E402
import outdated  # noqa: E402

LOCKS = sorted(record.SOURCES)


def blocks(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / "lock" / f"{name}.txt").read_text("utf-8")
    found = re.findall(r"(?m)^([A-Za-z][\w.-]*)(==[^\n]*\n(?:[ ]+[^\n]*\n)*)", text)
    out: dict[str, str] = {}
    for package, block in found:
        out[package.lower()] = out.get(package.lower(), "") + block
    return out


# ---- Locks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_belongs_to_the_requirement_files(name: str) -> None:
    assert record.lock_fits(ROOT, ROOT / "requirements" / "lock" / f"{name}.txt"), (
        "run: python tools/lock.py, then tools/licences.py"
    )


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_one_version_per_machine_and_hashes(name: str) -> None:
    found = blocks(name)
    assert found
    for package, block in found.items():
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), package
        versions = re.findall(r"(?m)^==([^\s;]+)([^\n\\]*)", block)
        assert len(versions) == 1 or all(" ; " in marker for _, marker in versions), package


def test_what_the_requirement_files_name_is_locked() -> None:
    held = {name: set(blocks(name)) for name in LOCKS}
    for requirements, name in (
        ("requirements.txt", "packages"),
        ("requirements/cpu.txt", "torch-cpu"),
        ("requirements/cuda.txt", "torch-cuda"),
        ("requirements/test.txt", "test"),
        ("requirements/setup.txt", "setup"),
    ):
        assert set(record.named(ROOT / requirements)) <= held[name] | held["packages"], requirements
    assert not [package for package in held["packages"] | held["test"] if lock.TORCH.match(package)]


def test_the_lock_has_what_exllamav2_needs_but_does_not_say() -> None:
    """Its wheel is installed without its own list, which has a converter's packages and lacks tokenizers."""
    assert {"numpy", "safetensors", "tokenizers", "rich", "pillow"} <= set(blocks("packages"))


def test_requirement_files_leave_torch_to_the_stack_files() -> None:
    """A torch named later could replace the build chosen first; torchaudio and torchvision would bring another."""
    for name in ("requirements.txt", "requirements/test.txt"):
        assert not [package for package in record.named(ROOT / name) if package.startswith("torch")]
    for name in ("requirements/cpu.txt", "requirements/cuda.txt"):
        named = record.named(ROOT / name)
        assert list(named) == ["torch"] and named["torch"]


def test_optional_wheels_are_for_exactly_the_pinned_torch() -> None:
    version = record.named(ROOT / "requirements" / "cuda.txt")["torch"]
    urls = wheel_urls(ROOT)
    assert len(urls) == len(set(urls)) >= 8
    for url in urls:
        assert re.search(rf"cu128\.?torch{re.escape(version[:3])}", url), url
    lines = [line for line in (ROOT / "requirements" / "fast.txt").read_text("utf-8").splitlines() if " @ " in line]
    assert len(lines) == len(urls) == 12, "three Pythons, two systems, two packages"
    hashed = [url for url in urls if re.search(r"/flash_attn-[^#]*\.whl#sha256=[0-9a-f]{64}$", url)]
    assert len(hashed) == 6 and all(re.search(r"  # \d{9} bytes$", line) for line in lines if "flash" in line[:6])
    for line in lines:  # the marker says what the file's name says
        tag = re.search(r"-cp3(\d+)-cp3\1-(linux|win)", line)
        assert tag and f'python_version == "3.{tag[1]}"' in line and f'sys_platform == "{tag[2]}' in line


def test_no_file_names_a_package_index_but_one_that_names_torchs_own() -> None:
    """Which one is used is the user's setting. pip does not know where the CUDA builds for Windows are, uv does."""
    files = [
        *ROOT.glob("requirements*.txt"),
        *(ROOT / "requirements" / "lock").glob("*.txt"),
        *(ROOT / "installer").glob("*.py"),
    ]
    files += [ROOT / name for name in ("launch.py", "Dockerfile", "run.sh", "run.bat", "pyproject.toml", ".ci/run")]
    files += list(ROOT.glob("*.js"))
    named = r"--index-url|--find-links|pypi\.|pythonhosted|download\.pytorch"
    found = {path.name: hits for path in files if (hits := re.findall(named, path.read_text("utf-8")))}
    assert found == {"builds.py": ["download.pytorch"]}


# ---- Licences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "gpl"),
    [
        ("GPL-2.0-or-later", True),
        ("GNU General Public License v3 (GPLv3)", True),
        ("AGPL-3.0", True),
        ("LGPL-2.1-or-later", False),
        ("GNU Lesser General Public License v2 (LGPLv2)", False),
        ("Apache-2.0", False),
    ],
)
def test_the_gpl_is_told_from_the_lgpl(text: str, gpl: bool) -> None:
    assert bool(licences.GPL.search(text)) is gpl


def test_no_package_of_the_shipped_set_is_under_the_gpl() -> None:
    """Read from what is installed here; mmgp, which another YuE program rests on, and mutagen are."""
    shipped = set(licences.names())
    seen = {}
    for found in distributions():
        name = (found.metadata["Name"] or "").lower().replace("_", "-")
        if name in shipped:
            seen[name] = licences.licence(found)
    assert len(seen) > 30
    for name, terms in seen.items():
        assert terms and not licences.GPL.search(terms), name
        assert licences.FREE.search(terms), f"{name}: {terms}: is that compatible? Then let FREE know it."


def test_the_page_of_licences_lists_the_shipped_set() -> None:
    text = licences.PAGE.read_text("utf-8")
    listed = re.findall(r"(?m)^\| (\S[^|]*?) \| (.+) \|$", text)[2:]
    assert [name for name, _ in listed] == licences.names(), "run tools/licences.py in an environment of launch.py"
    assert all(licences.FREE.search(terms) or name == licences.NVIDIA for name, terms in listed)


# ---- Outdated --------------------------------------------------------------------------------------------------------


def test_what_is_outdated_is_told() -> None:
    have = outdated.locked(
        "numpy==2.4.6 ; python_full_version < '3.12' \\\n    --hash=x\nnumpy==2.5.5 \\\nrich==15.0 \\\n"
    )
    assert have == {"numpy": ["2.4.6", "2.5.5"], "rich": ["15.0"]}
    assert outdated.changes(have, have) == []
    (line,) = outdated.changes(have, {**have, "rich": ["16.0"]})
    assert line.split() == ["rich", "15.0", "16.0"]


# ---- For developers, and in a container ------------------------------------------------------------------------------


def test_the_package_brings_its_data() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    data = project["tool"]["setuptools"]["package-data"]
    for package, patterns in data.items():
        for pattern in patterns:
            assert any((ROOT / package).glob(pattern)), (package, pattern)
    assert set(data["ui"]) == {"assets/**", "texts/**", "pages/*/templates/**", "server/templates/**"}
    files = project["tool"]["setuptools"]["dynamic"]
    assert files["dependencies"] == {"file": ["requirements.txt"]}
    assert project["project"]["requires-python"] == ">=3.11,<3.14"


def test_imports_are_tried_under_names_that_exist() -> None:
    code = "import sys, importlib.util as i; print(*[name for name in sys.argv[1:] if not i.find_spec(name)])"
    command = [sys.executable, "-c", code, *modules(ROOT / "requirements.txt")]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_the_container_runs_as_nobody_special_and_keeps_songs_outside() -> None:
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    orders = [line for line in lines if line and not line.startswith(("#", " "))]
    names = [line.split()[0] for line in orders]
    user = names.index("USER")
    assert orders[user] == "USER yuegp" and all(name != "USER" for name in names[user + 1 :])
    assert all("apt" not in line for line in orders) and "VOLUME /data" in orders
    assert any("YUEGP_HOME=/data" in line for line in orders)
    for copied in re.findall(r"(?m)^COPY --chown=\S+ (.+) \S+$", "\n".join(orders)):
        for pattern in copied.split():
            assert pattern == "." or list(ROOT.glob(pattern)), pattern
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert {".git", ".venv*", "songs", "models"} <= set(ignored)

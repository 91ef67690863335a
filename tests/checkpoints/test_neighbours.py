"""Other programs' folders, in the layouts their own code makes, on this system and on an emulated Windows and macOS."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from released import SOUND, STAGE1, STAGE2, pretend_exl2, write_released

from yuegp.checkpoints import comfy_paths, locate, neighbours
from yuegp.checkpoints.neighbours import Surroundings
from yuegp.checkpoints.registry import CHECKPOINTS

COMMIT, OTHER = "c" * 40, "d" * 40


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_released(tmp_path_factory.mktemp("originals"))


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home of this test's own, and no variable that names another place."""
    for name in ("YUEGP_MODELS", "YUEGP_MODEL_DIRS", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "MODELSCOPE_CACHE",
                 "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "PINOKIO_HOME"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    user = tmp_path / "user"
    user.mkdir()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(Path, "home", lambda: user)
    monkeypatch.setattr(neighbours, "_drives", dict)
    return user


def found(where: Surroundings | None = None) -> dict[str, Path]:
    roots = neighbours.folders(where) if where else None
    return {item.checkpoint.id: item.folder for item in locate.search(roots) if item.checkpoint}


def windows(tmp_path: Path, **variables: str) -> Surroundings:
    """A Windows whose drives C: and D: lie below `tmp_path`."""
    drives = {letter: tmp_path / letter[0] for letter in ("C:", "D:")}
    for drive in drives.values():
        drive.mkdir(exist_ok=True)
    home = drives["C:"] / "Users" / "Jürgen"
    home.mkdir(parents=True, exist_ok=True)
    return Surroundings("Windows", home, {"APPDATA": r"C:\Users\Jürgen\AppData\Roaming",
                                          "USERPROFILE": r"C:\Users\Jürgen", **variables}, drives)  # fmt: skip


def put(folder: Path, data: object) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text(json.dumps(data), encoding="utf-8")


# ComfyUI


EXAMPLE = """#Rename this to extra_model_paths.yaml and ComfyUI will load it

#config for a1111 ui
a111:
    base_path: {base}

    checkpoints: models/Stable-diffusion
    configs: models/Stable-diffusion
    loras: |
         models/Lora
         models/LyCORIS
    upscale_models: |
                  models/ESRGAN

                  models/SwinIR
    embeddings: embeddings

#comfyui:
#     base_path: path/to/comfyui/
#     checkpoints: models/checkpoints/

empty_ui:
"""


def test_the_example_files_form_is_read(tmp_path: Path) -> None:
    path = tmp_path / "extra_model_paths.yaml"
    path.write_text(EXAMPLE.format(base="/data/webui/"), encoding="utf-8")
    names = [str(folder) for folder in comfy_paths.folders(path, neighbours.here())]
    assert names == ["/data/webui/models", "/data/webui", *(f"/data/webui/{name}" for name in (
        "models/Stable-diffusion", "models/Lora", "models/LyCORIS", "models/ESRGAN", "models/SwinIR", "embeddings"
    ))]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:\n  yue: more/yue", ["{here}/more/yue"]),
        ("a:\n  base_path: ../b\n  yue: yue/", ["{here}/../b/models", "{here}/../b", "{here}/../b/yue"]),
        ("a:\n  yue: ~/yue\n  vae: $STORE/vae\n  clip: '%STORE%/clip'", ["{home}/yue", "/store/vae", "/store/clip"]),
        ("a:\n  is_default: true\n  yue: [/one, /two, 3, {x: /no}]", ["/one", "/two"]),
        ("a: &base\n  yue: /one\nb:\n  <<: *base\n  vae: /two", ["/one", "/two"]),
        ("a:\n  yue: /one # here\n  vae:\n  n: 5\n  t: yes", ["/one"]),
        ("\ufeffa:\n  yue: /one", ["/one"]),
        ("a:\n  yue:\t/one", ["/one"]),
        ("a:\n\tyue: /one", ["/one"]),
        ("base_path: /one", []),
        ("- a\n- b", []),
        ("", []),
        ("a: " + "[" * 5000, []),
        ("a: !!python/object/apply:os.system ['true']", []),
        ("a:\n  base_path: /\n  yue: yue", ["/models", "/yue"]),
    ],
)
def test_whatever_people_write_there_is_read_or_passed_over(
    text: str, expected: list[str], tmp_path: Path, nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE", "/store")
    path = tmp_path / "extra_model_paths.yaml"
    path.write_text(text, encoding="utf-8")
    names = [str(folder) for folder in comfy_paths.folders(path, neighbours.here())]
    assert names == [name.format(here=tmp_path, home=nobody) for name in expected]


def test_references_upon_references_are_not_multiplied(tmp_path: Path) -> None:
    lines = ["a0: &a0 {x: /one}"] + [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 40)]
    path = tmp_path / "extra_model_paths.yaml"
    path.write_text("\n".join(lines))
    assert [str(folder) for folder in comfy_paths.folders(path, neighbours.here())] == ["/one"]


def test_other_encodings_and_other_kinds_of_file(tmp_path: Path) -> None:
    path = tmp_path / "extra_model_paths.yaml"
    path.write_bytes("a:\r\n  yue: /Jürgen\r\n".encode("utf-16"))
    assert comfy_paths.folders(path, neighbours.here()) == [Path("/Jürgen")]
    path.unlink()
    os.mkfifo(path)
    assert comfy_paths.folders(path, neighbours.here()) == []


def test_windows_paths_are_followed_on_windows(tmp_path: Path) -> None:
    where = windows(tmp_path)
    path = tmp_path / "extra_model_paths.yaml"
    path.write_text(
        "comfyui:\n  base_path: D:\\AI\\models\n  yue: yue\\here\n  vae: \\\\nas\\models\\vae\n"
        "  loras: |\n    E:\\loras\n    C:/more\nquoted:\n  base_path: '%USERPROFILE%\\ComfyUI'\n", encoding="utf-8"
    )  # fmt: skip
    base = tmp_path / "D" / "AI" / "models"
    assert comfy_paths.folders(path, where) == [
        base / "models", base, base / "yue" / "here", Path("\\\\nas\\models\\vae"), Path("E:\\loras"),
        tmp_path / "C" / "more", where.home / "ComfyUI" / "models", where.home / "ComfyUI",
    ]  # fmt: skip


def test_comfyui_looks_into_the_folders_it_was_told_of(originals: Path, nobody: Path, tmp_path: Path) -> None:
    shutil.copytree(originals / STAGE2, tmp_path / "disk 2" / "music" / STAGE2)
    shutil.copytree(originals / STAGE1, tmp_path / "disk 3" / "apps" / STAGE1)
    (nobody / "ComfyUI" / "models").mkdir(parents=True)
    text = f"mine:\n  base_path: {tmp_path}/disk 2\n  yue: music\n"
    (nobody / "ComfyUI" / "extra_model_paths.yaml").write_text(text)
    app = nobody / "pinokio" / "api" / "comfy.git" / "app"
    app.mkdir(parents=True)
    (app / "extra_model_paths.yaml").write_text(f"mine:\n  apps: {tmp_path}/disk 3/apps\n")
    assert found() == {"s2": tmp_path / "disk 2" / "music" / STAGE2, "s1-en-cot": tmp_path / "disk 3" / "apps" / STAGE1}


@pytest.mark.parametrize(
    "root", ["D/ComfyUI_windows_portable/ComfyUI", "C/ComfyUI",
             "D/AI/ComfyUI_windows_portable_nvidia/ComfyUI_windows_portable/ComfyUI",
             "C/Users/Jürgen/Downloads/ComfyUI_windows_portable/ComfyUI"],
)  # fmt: skip
def test_comfyui_portable_wherever_it_was_unpacked(originals: Path, tmp_path: Path, root: str) -> None:
    where = windows(tmp_path)
    folder = tmp_path / root / "models" / "yue" / STAGE2
    shutil.copytree(originals / STAGE2, folder)
    node = tmp_path / root / "custom_nodes" / "ComfyUI_YuE" / "inference" / SOUND
    shutil.copytree(originals / SOUND, node)
    assert found(where) == {"s2": folder, "codec": node}


@pytest.mark.parametrize("system", ["Windows", "Darwin", "Linux"])
def test_comfyui_desktop_says_where_its_models_are(originals: Path, tmp_path: Path, nobody: Path, system: str) -> None:
    where = windows(tmp_path) if system == "Windows" else Surroundings(system, nobody, {})
    settings = {"Windows": "AppData/Roaming", "Darwin": "Library/Application Support", "Linux": ".config"}[system]
    base, more = tmp_path / "D" / "Comfy", tmp_path / "D" / "shared"
    told, extra = (r"D:\Comfy", r"D:\shared") if system == "Windows" else (str(base), str(more))
    put(where.home / settings / "ComfyUI" / "config.json", {"basePath": told, "installState": "installed"})
    text = f"# ComfyUI extra_model_paths.yaml for {system}\ncomfyui:\n  base_path: {extra}\n  is_default: true\n" \
           "  checkpoints: models/checkpoints/\n  LLM: models/LLM/\n"  # fmt: skip
    (where.home / settings / "ComfyUI" / "extra_models_config.yaml").write_text(text)
    shutil.copytree(originals / STAGE2, base / "models" / "yue" / STAGE2)
    shutil.copytree(originals / STAGE1, more / "models" / "LLM" / STAGE1)
    assert found(where) == {"s2": base / "models" / "yue" / STAGE2, "s1-en-cot": more / "models" / "LLM" / STAGE1}


# The others


def test_pinokio_at_the_root_of_a_drive_and_where_it_was_moved(originals: Path, tmp_path: Path) -> None:
    where = windows(tmp_path)
    app = tmp_path / "C" / "pinokio" / "api" / "yuegp.git" / "app"
    shutil.copytree(originals / SOUND, app / "inference" / SOUND)
    assert found(where) == {"codec": app / "inference" / SOUND}
    put(where.home / ".pinokio" / "config.json", {"home": r"D:\AI tools\pinokio", "mode": "full"})
    moved = tmp_path / "D" / "AI tools" / "pinokio" / "api" / "yue" / STAGE2
    shutil.copytree(originals / STAGE2, moved)
    assert found(where)["s2"] == moved


def test_pinokios_own_hub_cache_is_one(originals: Path, nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PINOKIO_HOME", str(nobody / "p"))
    repo = nobody / "p" / "cache" / "HF_HOME" / "hub" / f"models--m-a-p--{STAGE2}"
    shutil.copytree(originals / STAGE2, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    assert locate.locate(CHECKPOINTS["s2"]) == repo / "snapshots" / COMMIT
    app = nobody / "pinokio" / "api" / "yue.git" / "cache" / "HF_HOME" / "hub" / f"models--m-a-p--{STAGE1}"
    shutil.copytree(originals / STAGE1, app / "snapshots" / COMMIT)
    assert found()["s1-en-cot"] == app / "snapshots" / COMMIT


def test_stability_matrix_says_where_its_library_is(originals: Path, tmp_path: Path, nobody: Path) -> None:
    library = tmp_path / "D" / "StabilityMatrix"
    where = windows(tmp_path)
    put(where.home / "AppData" / "Roaming" / "StabilityMatrix" / "library.json", {"LibraryPath": r"D:\StabilityMatrix"})
    put(library / "settings.json", {"Version": 1, "ModelDirectoryOverride": r"C:\shared models"})
    shutil.copytree(originals / STAGE2, library / "Models" / "LLM" / STAGE2)
    shutil.copytree(originals / STAGE1, tmp_path / "C" / "shared models" / "yue" / STAGE1)
    node = library / "Packages" / "ComfyUI" / "custom_nodes" / "ComfyUI_YuE" / SOUND
    shutil.copytree(originals / SOUND, node)
    assert set(found(where)) == {"s2", "s1-en-cot", "codec"}
    data = nobody / "StabilityMatrix" / "Data"
    (data / "Models").mkdir(parents=True)
    (data / ".sm-portable").touch()
    shutil.copytree(originals / STAGE2, data / "Models" / STAGE2)
    assert found() == {"s2": data / "Models" / STAGE2}


@pytest.mark.parametrize("how", ["home", "older", "pointer", "settings"])
def test_lm_studio_keeps_models_by_their_owner(originals: Path, nobody: Path, tmp_path: Path, how: str) -> None:
    place = {"home": nobody / ".lmstudio" / "models", "older": nobody / ".cache" / "lm-studio" / "models",
             "pointer": tmp_path / "lm home" / "models", "settings": tmp_path / "big disk"}[how]  # fmt: skip
    if how == "pointer":
        (nobody / ".lmstudio-home-pointer").write_text(f"{tmp_path / 'lm home'}\n")
    if how == "settings":
        put(nobody / ".lmstudio" / "settings.json", {"downloadsFolder": str(place), "language": "en"})
    shutil.copytree(originals / STAGE1, place / "m-a-p" / STAGE1)
    assert found() == {"s1-en-cot": place / "m-a-p" / STAGE1}


@pytest.mark.parametrize("below", ["hub/models", "hub", "models"])
def test_modelscope_writes_dots_as_underlines(
    originals: Path, nobody: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    cache = nobody / ".cache" / "modelscope"
    if below == "models":
        cache = tmp_path / "ms"
        monkeypatch.setenv("MODELSCOPE_CACHE", str(cache))
    folder = cache / below / "Doctor-Shotgun" / f"{STAGE1}-exl2-4___25bpw"
    pretend_exl2(originals / STAGE1, folder, 4.25)
    shutil.copytree(originals / STAGE2, cache / below / "._____temp" / "m-a-p" / STAGE2)  # a download that goes on
    assert found() == {"s1-en-cot-exl2-4.25bpw-h6": folder}


@pytest.mark.parametrize("name", neighbours.CLONES)
def test_clones_of_programs_for_yue(originals: Path, nobody: Path, name: str) -> None:
    folder = nobody / "Documents" / name / "inference" / SOUND
    shutil.copytree(originals / SOUND, folder)
    assert found() == {"codec": folder}


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"home": 5, "LibraryPath": "\\u0000"}']
)
def test_odd_settings_of_other_programs_are_passed_over(nobody: Path, data: bytes) -> None:
    for name in (".pinokio/config.json", ".config/StabilityMatrix/library.json", ".lmstudio/settings.json",
                 ".config/ComfyUI/config.json", ".lmstudio-home-pointer"):  # fmt: skip
        (nobody / name).parent.mkdir(parents=True, exist_ok=True)
        (nobody / name).write_bytes(data)
    assert found() == {}

"""Holds the code to the tree in docs/house.md: who may import whom, what loads without torch, what is forbidden."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from repository import ROOT

OURS = ("yuegp", "ui", "quant", "offload")


def read_table(page: str) -> dict[str, int]:
    """Room → floor, from the table of rooms: rows `| floor | room | … |`. A room is a folder, or a file of `yuegp/`."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    return {
        name.strip("/").removesuffix(".py").replace("/", "."): int(cells[0])
        for cells in rows
        if cells[0].isdigit()
        for name in re.findall(r"`([\w/.]+)`", cells[1])
    }


FLOORS = read_table((ROOT / "docs" / "house.md").read_text("utf-8"))

WITHOUT_TORCH = ("yuegp.errors", "yuegp.files", "yuegp.paths", "yuegp.locks", "yuegp.song", "yuegp.tokens",
                 "yuegp.checkpoints", "yuegp.library.store", "yuegp.library.catalog", "yuegp.library.migrations",
                 "yuegp.jobs.queue", "yuegp.cli", "yuegp.__main__", "ui.command", "quant.command",
                 "offload")  # fmt: skip
"""What loads where torch, sentencepiece, the hub library and the sound libraries are absent: a mistake in the lyrics is
answered before torch would have loaded."""
WITH_TORCH = ("offload.parking", "offload.pinned")
"""What moves tensors between card and RAM: only engines, which are made of torch, load it."""
ONLY_INSIDE_FUNCTIONS = {"torch", "sentencepiece", "huggingface_hub", "httpx2", "soundfile", "soxr", "transformers"}


class Import(NamedTuple):
    target: str
    line: int
    when: str
    """`import` when it runs with the module, `call` inside a function, `types` when only a type checker reads it."""


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for room in OURS for path in sorted((ROOT / room).rglob("*.py"))}


def room(module: str) -> str | None:
    """The room of the table that a module is in: the longest name that leads to it."""
    while module and module not in FLOORS:
        module = module.rpartition(".")[0]
    return module or None


def floor(module: str) -> int | None:
    found = room(module)
    return None if found is None else FLOORS[found]


def loads_without_torch(module: str) -> bool:
    return module not in WITH_TORCH and any(module == name or module.startswith(f"{name}.") for name in WITHOUT_TORCH)


def imports_of(tree: ast.Module, module: str, is_package: bool, known: set[str]) -> Iterator[Import]:
    """Every import statement, resolved to the modules it loads; `from . import x` is x where x is a module."""

    def visit(node: ast.AST, when: str) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, when)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = module.split(".")[: None if is_package and node.level == 1 else -(node.level - is_package)]
                base = ".".join([*up, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield Import(inner if inner in known else base, node.lineno, when)
        for child in ast.iter_child_nodes(node):
            inside = when
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                inside = "call"
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and child in node.body:
                inside = "types"
            yield from visit(child, inside)

    yield from visit(tree, "import")


def read(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), filename=str(path))


IMPORTS = {
    name: list(imports_of(read(path), name, path.name == "__init__.py", set(MODULES))) for name, path in MODULES.items()
}


def complaints(module: str, found: list[Import]) -> list[str]:
    """What the table has against a module's imports, wherever they stand: at the top, in functions, for types."""
    own, out = floor(module), []
    if module == "yuegp":
        return [
            f"yuegp:{line} imports {name}: `import yuegp` loads nothing"
            for name, line, _ in found
            if name != "__future__"
        ]
    if own is None:
        return [f"{module} has no room: give it one in docs/house.md"]
    light = loads_without_torch(module)
    for name, line, when in found:
        top = name.split(".")[0]
        if top in ("launch", "installer"):
            out.append(f"{module}:{line} imports {top}, which sets the program up and is no part of it")
        elif top in OURS:
            other = floor(name)
            if name != "yuegp" and room(name) != room(module) and (other is None or other >= own):
                out.append(f"{module}:{line} (floor {own}) imports {name} (floor {other})")
        elif top == "torch" and module.split(".")[0] == "ui":
            out.append(f"{module}:{line}: no tensor ever enters ui/")
        elif light and when == "import" and top in ONLY_INSIDE_FUNCTIONS:
            out.append(f"{module}:{line} imports {name} outside a function")
    return out


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Import circles, each as the modules along it."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(node: str, trail: list[str]) -> None:
        if node in trail:
            found.append([*trail[trail.index(node) :], node])
        elif node not in done:
            for other in sorted(graph.get(node, ())):
                walk(other, [*trail, node])
            done.add(node)

    for start in sorted(graph):
        walk(start, [])
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_lower_floors_and_its_own_room(module: str) -> None:
    assert complaints(module, IMPORTS[module]) == []


def test_files_of_one_room_form_no_circle() -> None:
    graph = {
        name: {i.target for i in found if i.when == "import" and i.target in MODULES} - {name}
        for name, found in IMPORTS.items()
    }
    assert circles(graph) == []


def test_the_table_itself_finds_what_it_is_for() -> None:
    def found(source: str, module: str, is_package: bool = False) -> list[str]:
        known = {"yuegp.errors", "yuegp.generation.stage1", "yuegp.lm.llama.network", "yuegp.lm", "ui.context"}
        return complaints(module, list(imports_of(ast.parse(source), module, is_package, known)))

    assert not found("from yuegp.errors import RequestError\nimport numpy, json", "yuegp.song.tags")
    assert not found("from . import network\nfrom yuegp.errors import X\nimport torch", "yuegp.lm.llama.engine")
    assert not found("from .llama.network import Llama", "yuegp.lm", is_package=True)
    assert not found("def f():\n    import sentencepiece", "yuegp.tokens.tokenizer")
    stage1 = f"yuegp.generation.stage1 (floor {floor('yuegp.generation')})"
    for source, module, message in (
        (
            "import sentencepiece",
            "yuegp.tokens.tokenizer",
            "yuegp.tokens.tokenizer:1 imports sentencepiece outside a function",
        ),
        ("import torch", "yuegp.tokens.prompts", "yuegp.tokens.prompts:1 imports torch outside a function"),
        (
            "def f():\n    from yuegp.generation import stage1",
            "yuegp.audio.mix",
            f"yuegp.audio.mix:2 (floor {floor('yuegp.audio')}) imports {stage1}",
        ),
        (
            "from ...generation.stage1 import x",
            "yuegp.lm.llama.network",
            f"yuegp.lm.llama.network:1 (floor {floor('yuegp.lm')}) imports {stage1}",
        ),
        (
            "import launch",
            "yuegp.cli.main",
            "yuegp.cli.main:1 imports launch, which sets the program up and is no part of it",
        ),
        ("import torch", "ui.context", "ui.context:1: no tensor ever enters ui/"),
        (
            "from yuegp.errors import X",
            "offload.device",
            f"offload.device:1 (floor {floor('offload')}) imports yuegp.errors (floor {floor('yuegp.errors')})",
        ),
    ):
        assert found(source, module) == [message]
    assert found("", "yuegp.helpers")
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c", "b"]]


def fresh(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python of its own, in the repository root."""
    return subprocess.run([sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, timeout=120)


BLOCK_TORCH = """
import sys, importlib
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in "torch transformers sentencepiece huggingface_hub httpx2 soundfile soxr".split():
            raise ModuleNotFoundError("blocked: " + name, name=name)
sys.meta_path.insert(0, Block())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_the_light_rooms_and_the_command_line_load_with_torch_absent() -> None:
    names = [name for name in MODULES if loads_without_torch(name)]
    answer = fresh(BLOCK_TORCH, *names)
    assert answer.returncode == 0, answer.stderr
    assert len(names) > 40


def test_import_yuegp_loads_nothing_else() -> None:
    """No numpy, no torch, no modules of ours: `import yuegp` costs nothing."""
    answer = fresh("import sys; before = set(sys.modules); import yuegp; print(*set(sys.modules) - before)")
    assert answer.stdout.split() == ["yuegp"], answer.stderr


PYTHON_FILES = [
    path for folder in (*OURS, "installer", "tools", "tests") for path in sorted((ROOT / folder).rglob("*.py"))
] + [ROOT / "launch.py"]


def forbidden(tree: ast.Module) -> list[str]:
    """Silent or unsafe code: an `except` that catches everything, unpickling, remote code, a shell."""
    out = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            out.append(f"line {node.lineno}: bare except")
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("os.system", "os.popen", "pickle.load", "pickle.loads", "eval", "exec"):
                out.append(f"line {node.lineno}: {called}")
            for word in node.keywords:
                if (word.arg, ast.unparse(word.value)) in (
                    ("weights_only", "False"),
                    ("trust_remote_code", "True"),
                    ("shell", "True"),
                ):
                    out.append(f"line {node.lineno}: {ast.unparse(word)}")
    return out


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_silent_or_unsafe_code(path: Path) -> None:
    assert forbidden(read(path)) == []


def test_forbidden_code_is_found() -> None:
    source = "try: f(shell=True)\nexcept: load(p, weights_only=False)\nload(trust_remote_code=True)\nos.system('')"
    assert len(forbidden(ast.parse(source))) == 5


def test_only_fronts_print() -> None:
    for name, path in MODULES.items():
        if (floor(name) or 0) < FLOORS["yuegp.cli"]:
            lines = [
                node.lineno
                for node in ast.walk(read(path))
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write")
            ]
            assert not lines, f"{path} prints on lines {lines}"


def test_arguments_are_parsed_at_the_border() -> None:
    """An `argparse.Namespace` says nothing about what it holds: below the commands there are `SongRequest`,
    `ModelOptions` and plain arguments."""
    commands = re.compile(r"yuegp\.cli\.|(ui|quant)\.command$")
    parsing = [name for name, found in IMPORTS.items() if any(i.target == "argparse" for i in found)]
    assert [name for name in parsing if not commands.match(name)] == [] != parsing


def test_there_is_no_utils_and_no_common() -> None:
    assert not [path for path in PYTHON_FILES if path.stem in ("utils", "util", "common", "helpers", "misc")]


def test_every_room_of_the_page_exists() -> None:
    assert [name for name in FLOORS if name not in MODULES] == []

"""Holds the code to docs/house.md: who may import whom, what loads without torch, and a few things nobody may write."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("yuegp", "ui", "quant", "offload")


def read_table(page: str) -> dict[str, int]:
    """Module or package → rank, from the table of rooms: rows `| rank | room | `names` | … |`.

    A package stands for everything in it, `yuegp` for its `__init__` alone; other names are files of yuegp."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    return {
        name if name in OURS else f"yuegp.{name}": int(cells[0])
        for cells in rows
        if cells[0].isdigit()
        for name in re.findall(r"`(\w+)/?`", cells[2])
    }


RANKS = read_table((ROOT / "docs" / "house.md").read_text("utf-8"))

FOREIGN = {0: {"numpy"}, 1: {"numpy", "sentencepiece", "huggingface_hub", "httpx2", "hf_xet", "yaml"}}
"""What ranks may use besides the standard library. Ranks not named here may use anything that is installed."""
ONLY_INSIDE_FUNCTIONS = {"sentencepiece", "huggingface_hub", "httpx2", "hf_xet", "yaml"}


class Import(NamedTuple):
    target: str
    line: int
    when: str
    """`import` when it runs with the module, `call` inside a function, `types` when only a type checker reads it."""


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for room in OURS for path in sorted((ROOT / room).rglob("*.py"))}


def rank(module: str) -> int | None:
    """Rank of a module or of the package it is in; None for a file of yuegp that the table does not name."""
    while module not in RANKS and module.count("."):
        module = module.rpartition(".")[0]
        if module == "yuegp":
            return None
    return RANKS.get(module)


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
    """What the table has against a module's imports."""
    own, out = rank(module), []
    if own is None:
        return [f"{module} has no room: give it one in docs/house.md and in RANKS"]
    for name, line, when in found:
        top = name.split(".")[0]
        if top in ("launch", "door"):
            out.append(f"{module}:{line} imports {top}, which is the door and no room")
        elif top in OURS:
            other = rank(name)
            if other is None or other > own:
                out.append(f"{module}:{line} (rank {own}) imports {name} (rank {other})")
        elif top not in sys.stdlib_module_names:
            if own in FOREIGN and top not in FOREIGN[own]:
                out.append(f"{module}:{line} (rank {own}) imports {name}")
            elif own in FOREIGN and top in ONLY_INSIDE_FUNCTIONS and when == "import":
                out.append(f"{module}:{line} imports {name} outside a function")
            elif top == "torch" and module.split(".")[0] == "ui":
                out.append(f"{module}:{line}: no tensor ever enters ui/")
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
def test_a_module_imports_only_from_its_rank_and_below(module: str) -> None:
    assert complaints(module, IMPORTS[module]) == []


def test_neighbours_form_no_circle() -> None:
    graph = {
        name: {i.target for i in found if i.when == "import" and i.target in MODULES} - {name}
        for name, found in IMPORTS.items()
    }
    assert circles(graph) == []


def test_the_table_itself_finds_what_it_is_for() -> None:
    def found(source: str, module: str, is_package: bool = False) -> list[str]:
        known = {"yuegp.errors", "yuegp.stage1", "yuegp.lm.llama", "yuegp.lm", "ui.form"}
        return complaints(module, list(imports_of(ast.parse(source), module, is_package, known)))

    assert not found("from .errors import RequestError\nimport numpy, json", "yuegp.tags")
    assert not found("from . import llama\nfrom ..errors import X\nimport torch", "yuegp.lm.torch_lm")
    assert not found("from .llama import Llama", "yuegp.lm", is_package=True)
    assert not found("def f():\n    import sentencepiece", "yuegp.tokenizer")
    for source, module, message in (
        ("import sentencepiece", "yuegp.tokenizer", "yuegp.tokenizer:1 imports sentencepiece outside a function"),
        ("import torch", "yuegp.prompts", "yuegp.prompts:1 (rank 1) imports torch"),
        ("def f():\n    from . import stage1", "yuegp.mix", "yuegp.mix:2 (rank 2) imports yuegp.stage1 (rank 3)"),
        ("from ..stage1 import x", "yuegp.lm.llama", "yuegp.lm.llama:1 (rank 2) imports yuegp.stage1 (rank 3)"),
        ("import yuegp.unheard_of", "yuegp.cli", "yuegp.cli:1 (rank 5) imports yuegp.unheard_of (rank None)"),
        ("import launch", "yuegp.cli", "yuegp.cli:1 imports launch, which is the door and no room"),
        ("from door import record", "yuegp.facts", "yuegp.facts:1 imports door, which is the door and no room"),
        ("import torch", "ui.form", "ui.form:1: no tensor ever enters ui/"),
    ):
        assert found(source, module) == [message]
    assert found("from ..stage1 import x", "yuegp.lm", is_package=True) and found("", "yuegp.helpers")
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c", "b"]]


def fresh(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python of its own, in the repository root."""
    return subprocess.run([sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, timeout=120)


WITHOUT_TORCH = """
import sys, importlib
ABSENT = "torch transformers sentencepiece huggingface_hub httpx2 hf_xet soundfile soxr".split()
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError("blocked: " + name, name=name)
sys.meta_path.insert(0, Block())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_ranks_0_and_1_and_the_command_line_load_with_torch_absent() -> None:
    """The command line too: a mistake in the lyrics is answered before torch would have loaded."""
    names = [name for name in MODULES if rank(name) in (0, 1) or name == "yuegp.cli"]
    answer = fresh(WITHOUT_TORCH, *names)
    assert answer.returncode == 0, answer.stderr
    assert len(names) > 5


def test_import_yuegp_loads_nothing_else() -> None:
    """No numpy, no torch, no modules of ours: `import yuegp` costs nothing."""
    answer = fresh("import sys; before = set(sys.modules); import yuegp; print(*set(sys.modules) - before)")
    assert answer.stdout.split() == ["yuegp"], answer.stderr


PYTHON_FILES = [
    path
    for folder in (*OURS, "door", "tools", "tests", "scripts")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.is_file() and (path.suffix == ".py" or path.name == "check")
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


def test_the_program_opens_pickles_with_its_own_reader_only() -> None:
    """`yuegp.unpickler` runs nothing that a file names. Torch's restricted reader refuses what it does not know."""
    for name, path in MODULES.items():
        tree = read(path)
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not calls & {"torch.load", "torch.jit.load", "joblib.load"}, name
        assert not {i.target.split(".")[0] for i in IMPORTS[name]} & {"pickle", "dill", "cloudpickle", "shelve"}, name


def test_only_fronts_print() -> None:
    for name, path in MODULES.items():
        if (rank(name) or 0) < 5:
            lines = [
                node.lineno
                for node in ast.walk(read(path))
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write")
            ]
            assert not lines, f"{path} prints on lines {lines}"


def test_there_is_no_utils_and_no_common() -> None:
    assert not [path for path in PYTHON_FILES if path.stem in ("utils", "util", "common", "helpers", "misc")]


def test_every_room_of_the_page_exists() -> None:
    assert [name for name in RANKS if name not in MODULES] == []

"""The house: who may import whom, what is exported, and what is forbidden."""

import ast
from pathlib import Path

import pytest

import fairjax as fj

PACKAGE = Path(fj.__file__).parent
# A module imports only from rooms above it.
ROOMS = [
    "types", "checks", "fingerprint", "files", "inputs", "trees", "devices", "tables",
    "data", "fourier", "layers", "networks", "models", "behaviours", "optimizers", "training",
    "memory", "contributions", "rewards", "metrics", "mechanisms", "states", "round", "federations",
    "progress", "simulation", "results", "records", "histories", "checkpoints", "tracking",
    "playing", "figures", "presets", "fields", "experiment", "sweeps", "studies", "terminal",
    "report", "flags", "endings", "cli", "bridges",
]  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fairjax":
            inner = node.module.split(".")[1:]
            found |= {inner[0]} if inner else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_rooms_above_it(path):
    if path == PACKAGE / "__init__.py":
        return
    assert room(path) in ROOMS
    allowed = ROOMS[: ROOMS.index(room(path)) + (1 if path.parent != PACKAGE else 0)]
    assert imports(path) <= set(allowed)


def test_the_public_surface_is_what_it_says():
    assert fj.__all__ == sorted(fj.__all__)
    assert set(fj.__all__) == {
        "Experiment", "Federation", "History", "ProgressBar", "Record", "Result", "State",
        "Sweep", "compare", "contributions", "data", "devices", "federation", "figures",
        "load_run", "mechanisms", "metrics", "models", "rewards", "run", "sweep",
    }  # fmt: skip
    assert all(getattr(fj, name).__doc__ for name in fj.__all__)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_public_definition_has_a_docstring(path):
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.ClassDef)
    for node in [tree, *(node for node in tree.body if isinstance(node, kinds))]:
        if not getattr(node, "name", "").startswith("_"):
            assert ast.get_docstring(node), getattr(node, "name", path)


def test_no_room_is_called_after_nothing():
    names = {path.stem for path in MODULES}
    assert not names & {"utils", "helpers", "misc", "common"}

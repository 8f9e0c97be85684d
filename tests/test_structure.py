"""Structure: which modules may import which, what is exported, and what is forbidden."""

import ast
import importlib
import subprocess
from pathlib import Path

import pytest

import fairjax as fj

PACKAGE = Path(fj.__file__).parent
TOP_LEVEL = {
    "LICENSE", "README.md", "benchmarks", "fairjax", "notebooks", "pyproject.toml", "tests",
}  # fmt: skip
# A module imports only from rooms before its own in `ROOMS`. A room is a module or a package.
# From a package (a wing) it imports only names that `__init__` (the door) exports.
LOOSE = [
    "types", "arithmetic", "lowrank", "blocks", "rowwise", "checks", "definitions", "fingerprint",
    "files", "inputs", "trees", "devices", "cells", "programs", "tables", "metrics",
]  # fmt: skip
WINGS = [
    "data", "tasks", "contributions", "rewards", "mechanisms", "models", "simulation",
    "experiments", "figures", "report", "studies", "cli", "bridges",
]  # fmt: skip
ROOMS = [
    "types", "arithmetic", "lowrank", "blocks", "rowwise", "checks", "definitions", "fingerprint",
    "files", "inputs", "trees", "devices", "cells", "programs", "tables", "data", "tasks",
    "contributions", "rewards", "metrics", "mechanisms", "models", "simulation", "experiments",
    "figures", "report", "studies", "cli", "bridges",
]  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))
each_module = pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE))
)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[tuple[str, ...]]:
    """Returns each name that is imported from fairjax, split at its dots."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fairjax":
            inner = tuple(node.module.split(".")[1:])
            found |= {(*inner, alias.name) for alias in node.names}
    return found


def test_the_top_level_holds_what_it_should():
    try:
        listed = ["git", "ls-files", "--full-name", "--error-unmatch", ":/"]
        files = subprocess.run(listed, cwd=PACKAGE, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no checkout")
    names = {name.split("/")[0] for name in files.stdout.splitlines()}
    assert {name for name in names if not name.startswith(".")} == TOP_LEVEL


def test_there_are_sixteen_loose_modules_and_the_wings():
    loose = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    wings = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert (loose, wings) == (set(LOOSE), set(WINGS))


@each_module
def test_a_module_imports_only_from_rooms_above_it(path):
    if path in (PACKAGE / "__init__.py", PACKAGE / "__main__.py"):
        return
    own = path.parent != PACKAGE  # a wing's modules import from each other
    allowed = ROOMS[: ROOMS.index(room(path)) + own]
    assert {names[0] for names in imports(path)} <= set(allowed)


@each_module
def test_nobody_reaches_past_a_door(path):
    for names in imports(path):
        if names[0] in WINGS and names[0] != room(path) and len(names) > 1:
            assert len(names) == 2, f"{'.'.join(names)} is not imported from the door"
            assert names[1] in importlib.import_module(f"fairjax.{names[0]}").__all__


def test_mechanisms_import_nothing_of_each_other():
    shared = {"alone", "base", "context", "factors", "lengths", "plans", "reputable", "tensors"}
    for path in (PACKAGE / "mechanisms").glob("[!_]*.py"):
        own = {names[1] for names in imports(path) if names[0] == "mechanisms"}
        assert own <= shared, path


@each_module
def test_a_file_is_short(path):
    assert len(path.read_text().splitlines()) <= 300


def test_type_checkers_of_users_read_the_annotations():
    assert (PACKAGE / "py.typed").exists()


def test_the_public_surface_is_what_it_says():
    assert fj.__all__ == sorted(fj.__all__)
    assert set(fj.__all__) == {
        "Experiment", "Federation", "History", "LowRank", "ProgressBar", "Record", "Result",
        "State", "Sweep", "audit", "compare", "contributions", "data", "devices", "federation",
        "figures",
        "load_params", "load_run", "mechanisms", "metrics", "models", "report", "rewards", "run",
        "save_params", "sweep", "tasks",
    }  # fmt: skip
    assert all(getattr(fj, name).__doc__ for name in fj.__all__)


@each_module
def test_every_public_definition_has_a_docstring(path):
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.ClassDef)
    for node in [tree, *(node for node in tree.body if isinstance(node, kinds))]:
        if not getattr(node, "name", "").startswith("_"):
            assert ast.get_docstring(node), getattr(node, "name", path)


def test_no_room_is_called_after_nothing():
    names = {path.stem for path in MODULES}
    assert not names & {"utils", "helpers", "misc", "common"}

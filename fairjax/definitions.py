"""Definitions: what functions and classes hold that determines what they compute.

    function    code, constants, defaults, closure, the globals that it uses and what it imports
    class       bases, methods and constants

Those of Python and of installed packages are known by their names.
"""

import contextlib
import dis
import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_METHODS = (
    types.FunctionType, property, staticmethod, classmethod, functools.partialmethod,
    functools.cached_property,
)  # fmt: skip
Part = tuple[str, Any]  # the place of a part in its owner, and the part


def _is_installed(module: str | None) -> bool:
    """Says whether a module is Python's own, fairjax's, or an installed package's."""
    top = str(module).partition(".")[0]
    if top == "fairjax" or top in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(top), "__file__", None)
    if top not in sys.modules:
        with contextlib.suppress(ImportError, ValueError):
            file = getattr(importlib.util.find_spec(top), "origin", None)
    file = file or ""
    return bool({"site-packages", "dist-packages"} & set(Path(file).parts))


def is_known_by_name(value: Any) -> bool:
    """Says whether a value can be imported by its name from an installed package."""
    module, name = (getattr(value, what, None) for what in ("__module__", "__qualname__"))
    if not (isinstance(module, str) and isinstance(name, str) and _is_installed(module)):
        return False
    found = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value


def get_own(value: Any) -> list[Part]:
    """Returns the attributes that were set on an object."""
    held = getattr(value, "__dict__", {})
    return [(f".{name}", held[name]) for name in sorted(held) if not name.startswith("__")]


def describe_code(code: types.CodeType) -> tuple[str, list[Part]]:
    """Returns the kind of compiled code, with the names in it, and its parts."""
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    return f"code {names} {counts}", [("", code.co_code), ("", code.co_consts)]


def parts_of_function(function: types.FunctionType) -> Iterator[Part]:
    """Yields what a function computes with; of an installed one, only what was given to it."""
    yield "<code>", function.__code__
    yield "<defaults>", function.__defaults__
    yield "<keyword defaults>", function.__kwdefaults__
    yield from get_own(function)
    held = function.__globals__  # `functools.wraps` copies `__module__`
    is_installed = _is_installed(held.get("__name__"))
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # the name has no value yet
            value = "<empty>"
        if is_installed and type(value) is int and abs(value) < 2**53:
            value = float(value)  # schedules of optax convert theirs when they are called
        yield f".<closure {name}>", value
    if not is_installed:
        names, imports, all_names = _list_globals(function.__code__)
        for name in names:
            if name in held:
                yield from _parts_of_global(f".<global {name}>", held[name], all_names)
        for name, among in imports:
            for module in _import(name, among, held.get("__package__")):
                yield from _parts_of_global(f".<import {name}>", module, all_names)


def _list_globals(
    code: types.CodeType,
) -> tuple[list[str], list[tuple[str, tuple[str, ...]]], frozenset[str]]:
    """Returns the globals that code uses, what it imports, and all names it has for attributes.

    What it imports is modules, such as "..helper", each with the names that it takes from it.
    """
    codes = [code]
    for one in codes:
        codes += [constant for constant in one.co_consts if isinstance(constant, types.CodeType)]
    all_names = frozenset(name for one in codes for name in one.co_names)
    steps = [step for one in codes for step in dis.get_instructions(one)]
    names = {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    imports = {
        ("." * level.argval + step.argval, among.argval or ())
        for level, among, step in zip(steps, steps[1:], steps[2:], strict=False)
        if step.opname == "IMPORT_NAME"
    }
    return sorted(names), sorted(imports), all_names


def _import(name: str, among: tuple[str, ...], package: str | None) -> list[types.ModuleType]:
    """Returns what a function would import: the named module, and its parts that are modules."""
    if not name.startswith(".") and _is_installed(name):
        return []  # it is known by its name, and may be slow to import
    found = []
    parts = [f"{name}{'' if name.endswith('.') else '.'}{part}" for part in among]
    for text in (name, *parts):
        with contextlib.suppress(Exception):  # it is the function's to handle, when it is called
            found.append(importlib.import_module(text, package))
    return found


def _parts_of_global(where: str, value: Any, names: frozenset[str]) -> Iterator[Part]:
    """Yields a global; if it is a user's module, also the attributes that the code uses."""
    yield where, value
    if isinstance(value, types.ModuleType) and not _is_installed(value.__name__):
        for name in sorted(names & set(vars(value))):
            yield from _parts_of_global(f"{where}.{name}", getattr(value, name), names)


def parts_of_class(value: type) -> Iterator[Part]:
    """Yields bases, methods and constants, without the attributes that Python and Flax add."""
    yield "<bases>", value.__bases__
    yield "<made by>", type(value)
    added = {"_abc_impl"}.union(*(vars(base) for base in value.__mro__ if is_known_by_name(base)))
    for name, entry in sorted(vars(value).items()):
        own = not (name.startswith("__") or (name.startswith("_") and name in added))
        is_constant = own and not hasattr(type(entry), "__get__")
        if is_constant or isinstance(entry, _METHODS) or hasattr(entry, "__wrapped__"):
            yield f".{name}", entry

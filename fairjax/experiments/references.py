"""References: parts in files of one's own, such as "mine.py:factory".

text -> the object of that name in the file; records keep the text beside the object's fingerprint,
so that the object can be found again
"""

import functools
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

FIELDS = ("dataset", "model", "mechanism", "task")
PATTERN = re.compile(r".+\.py(:.*)?")
_KNOWN: list[tuple[Any, str]] = []  # objects that were found, with their references


def is_reference(value: Any) -> bool:
    """Says whether a value is a text such as "mine.py:factory", or lacks only the name.

    Examples:
      >>> is_reference("mine.py:factory"), is_reference("mine.py"), is_reference("cgsv")
      (True, True, False)
    """
    return isinstance(value, str) and PATTERN.fullmatch(value) is not None


def resolve(name: str, text: str) -> Any:
    """Returns the object that a reference names; for a data set, the pair that the function makes.

    Args:
      name: the field, for messages.
      text: the reference.

    Raises:
      ValueError: there is no such file, it cannot be imported, or it does not define the name.
    """
    place, attribute = _parts(text)
    path = Path(place).expanduser().resolve()
    example = {"dataset": "loader", "model": "network", "task": "task"}.get(name, "factory")
    wrong = f"`{name}` must name an object in a Python file, as mine.py:{example}, got {text!r}"
    if not path.is_file():
        raise ValueError(f"{wrong}, but there is no file {path}.")
    try:
        module = _import(path, path.stat().st_mtime_ns)
    except Exception as error:  # a user's file can raise anything
        raise ValueError(
            f"{wrong}, but importing it fails: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, attribute):
        defined = [one for one in vars(module) if not one.startswith("_")]
        raise ValueError(f"{wrong}, but the file defines only {', '.join(defined) or 'nothing'}.")
    found = getattr(module, attribute)
    if name == "dataset" and callable(found):
        found = _call(found, wrong)
    if name == "dataset" and isinstance(found, list):
        found = tuple(found)
    if reference_of(found) is None:
        _KNOWN.append((_identity(found), f"{path}:{attribute}"))
    return found


def reference_of(value: Any) -> str | None:
    """Returns the reference by which an object was found, or None."""
    mine = _identity(value)
    return next((text for known, text in _KNOWN if known is mine), None)


def name_in_file(text: str) -> str:
    """Returns the name of the object in its file."""
    return _parts(text)[1]


def _parts(text: str) -> tuple[str, str]:
    place, _, attribute = text.rpartition(".py")
    return f"{place}.py", attribute[1:]


@functools.lru_cache(maxsize=32)
def _import(path: Path, changed: int) -> ModuleType:
    """Returns the module in a file; it is imported again if the file has changed."""
    # A name that no other module has; dataclasses look their module up by name.
    name = f"_fairjax_{path.stem}_{abs(hash((path, changed)))}"
    spec: Any = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    beside = str(path.parent)  # what it imports from there; its functions may do so later
    sys.path.insert(0, beside)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(beside)
        if beside not in sys.path:
            sys.path.append(beside)
    return module


@functools.lru_cache(maxsize=4)
def _call(loader: Any, wrong: str) -> Any:
    """Returns what a loader returns; it is called once."""
    try:
        return loader()
    except Exception as error:  # and so can a user's function
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{wrong}, but calling it without arguments fails: {reason}") from error


def _identity(value: Any) -> Any:
    """Returns what identifies an object; a pair of data sets is made anew by `Experiment`."""
    return value[0] if isinstance(value, tuple) and not hasattr(value, "_fields") else value

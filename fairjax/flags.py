"""Flags: what describes an experiment on the command line, in groups.

    fields of Experiment  ->  dataclasses, of which tyro makes flags  ->  an Experiment

The docstring of Experiment is the help: what a field is, its range, and what None means.
"""

import dataclasses
import inspect
import re
import sys
from typing import Annotated, Any, Literal

import tyro

from fairjax import data, mechanisms, models
from fairjax.experiment import OPTIMIZERS, Experiment
from fairjax.presets import PRESETS

GROUPS = {
    "data": ("dataset", "split", "num_agents", "samples_per_agent", "behaviours", "seed"),
    "training": (
        "model", "rounds", "local_epochs", "batch_size", "optimizer", "learning_rate",
        "learning_rate_decay", "decay_per", "local_steps",
    ),
    "mechanism": ("mechanism", "preset", "alpha", "beta", "gamma", "options"),
    "evaluation": ("eval_every", "eval_examples", "record_updates"),
    "computing": ("compute_dtype", "agents_at_once"),
}  # fmt: skip
NAMES = {
    "preset": PRESETS,
    "dataset": data.DATASETS,
    "split": data.SPLITS,
    "model": models.REGISTRY,
    "mechanism": mechanisms.REGISTRY,
    "optimizer": OPTIMIZERS,
    "decay_per": ("round", "epoch"),
    "local_steps": ("all", "last_batch"),
    "compute_dtype": ("float32", "bfloat16"),
}
PAIRS = {"options": "NAME=VALUE", "behaviours": "NAME=NUMBER[:STRENGTH]"}
LENGTH = "FLOAT|cosine[:START]"


def flags(*without: str) -> Any:
    """Returns a dataclass of groups with the fields of `Experiment`, for tyro to make flags of.

    Args:
      *without: fields that are left out.

    Examples:
      >>> group = next(field for field in dataclasses.fields(flags()) if field.name == "computing")
      >>> [field.name for field in dataclasses.fields(group.type)]
      ['compute_dtype', 'agents_at_once']
    """
    documented = _documented()
    fields = {field.name: field for field in dataclasses.fields(Experiment)}
    groups = []
    for title, names in GROUPS.items():
        made = [
            (name, _annotated(fields[name], documented[name]), fields[name].default)
            for name in names
            if name not in without
        ]
        groups.append((title, dataclasses.make_dataclass(title, made, namespace={"__doc__": " "})))
    return dataclasses.make_dataclass("flags", groups, namespace={"__doc__": " "})


def experiment(described: Any) -> Experiment:
    """Returns the experiment that flags describe.

    Raises:
      ValueError: a value breaks its rule.
    """
    fields = {
        name: value for group in vars(described).values() for name, value in vars(group).items()
    }
    for name, parsed in (("options", _option), ("behaviours", _behaviour)):
        fields[name] = dict(map(parsed, fields.get(name, ())))
    return Experiment(**fields)


def _annotated(field: dataclasses.Field, text: str) -> Any:
    """Returns a field's type, with what its flag says."""
    explained, _, instead = text.partition("; None: ")
    default = field.default
    if default is None:
        default = instead.rstrip(".") or "chosen for the data set"
    settings: dict[str, Any] = {
        "help": explained.rstrip(".") + ".",
        "help_behavior_hint": f"(default: {'none' if default == () else default})",
    }
    kind: Any = field.type
    if field.name in PAIRS:
        kind = tuple[str, ...]
        settings["metavar"] = PAIRS[field.name]
    elif field.name in NAMES:
        names = tuple(NAMES[field.name])
        settings["metavar"] = "NAME" if len(names) > 2 else f"{{{','.join(names)}}}"
        # Shells are to know the names, but a wrong name is better explained by `Experiment`.
        if "--tyro-write-completion" in sys.argv:
            known: Any = Literal[names]
            kind = known | None if field.default is None else known
    elif field.name == "gamma":
        kind = float | str | None
        settings["metavar"] = LENGTH
    elif kind is not bool:
        settings["metavar"] = "FLOAT" if "float" in str(kind) else "INT"
    return Annotated[kind, tyro.conf.arg(**settings)]


def _documented() -> dict[str, str]:
    """Returns what the docstring of `Experiment` says of each attribute."""
    attributes = str(inspect.getdoc(Experiment)).partition("Attributes:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", attributes, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _behaviour(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    number, colon, strength = value.partition(":")
    try:
        return name, (int(number), float(strength)) if colon else int(number)
    except ValueError:
        raise ValueError(
            f"`behaviours` must be of the form NAME=NUMBER or NAME=NUMBER:STRENGTH, got {text!r}."
        ) from None


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"`options` must be of the form NAME=VALUE, got {text!r}.")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value

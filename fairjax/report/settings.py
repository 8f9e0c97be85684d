"""Settings: describes what was run, and gives the commands that run it again."""

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairjax import data, mechanisms
from fairjax.experiments import COEFFICIENTS, EACH, Experiment, factories, objects, references
from fairjax.report import page
from fairjax.tables import first_line, listed

WIDTH = 88  # characters of a line of Python source


def words(experiment: Experiment, shard_sizes: Any, *, with_seed: bool = True) -> str:
    """Returns two sentences that describe the data and the training."""
    seed = f", seed {experiment.seed}" if with_seed else ""
    split_words = ""
    if experiment.shards is None:
        split_words = f": {first_line(data.SPLITS[experiment.split])}"
    return (
        f"{_count_nouns(experiment.num_agents, 'agent')} with {shard_sizes.sum():,} examples of "
        f"{experiment.where}{split_words}. "
        f"The model {experiment.label('model')} is trained for "
        f"{_count_nouns(experiment.rounds, 'round')} of "
        f"{_count_epochs(experiment.resolved().local_epochs)}{seed}."
    )


def _count_epochs(local_epochs: Any) -> str:
    """Returns the number of local epochs in words, from the least to the most of an agent."""
    least, most = int(np.min(local_epochs)), int(np.max(local_epochs))
    return f"{'' if least == most else f'{least} to '}{_count_nouns(most, 'local epoch')}"


def mechanism(experiment: Experiment) -> str:
    """Returns a mechanism's name, and the first sentence of its factory's docstring."""
    name, sentence = experiment.label("mechanism"), "an object"
    factory = mechanisms.REGISTRY.get(name)
    if factory is not None:
        sentence = first_line(factory)
    return f"{name}: {sentence}."


def table(experiment: Experiment, without: Sequence[str] = ()) -> str:
    """Returns a table of all fields of an experiment that are not empty, except `without`."""
    fields = {
        name: value for name, value in experiment.description().items() if name not in without
    }
    taken = factories.takes(experiment.mechanism)
    for name in COEFFICIENTS:
        if name in taken and fields[name] is None:
            fields[name] = f"{taken[name].default}, the mechanism's own"
    rows = [(name, _show_value(value)) for name, value in fields.items() if value not in (None, {})]
    return page.table(("field", "value"), rows, words=True)


def environment(record: Mapping[str, Any]) -> str:
    """Returns a table of the versions, device and `agents_at_once` in `experiment.json`."""
    rows = list(record.get("environment", {}).items())
    rows.append(("agents_at_once", str(record.get("agents_at_once", "–"))))
    return page.table(("on", ""), rows, words=True)


def again(
    experiment: Experiment, runs: Mapping[str, Experiment] | None = None, seeds: Sequence[int] = ()
) -> list[str]:
    """Returns the command and the Python lines that run the experiment again.

    Objects can only be given in Python; the lines call each object by the name of its field, and
    mechanisms of a comparison by theirs.

    Args:
      experiment: the experiment that was run.
      runs: the experiments of a comparison, by the names of their mechanisms; None: a single run.
      seeds: the seeds of a comparison over seeds.
    """
    given = {
        name: references.reference_of(value) or value
        for name, value in fields_to_give(experiment).items()
    }
    own = [name for name in objects.FIELDS if objects.is_object(given.get(name))]
    own += [name for name in ("participation",) if isinstance(given.get(name), tuple)]
    if runs:
        compared = {
            name: references.reference_of(run.mechanism) or run.mechanism
            for name, run in runs.items()
        }
        renamed = any(name != run.label("mechanism") for name, run in runs.items())
        own += [name for name, one in compared.items() if renamed or not isinstance(one, str)]
        given.pop("mechanism", None)
        more = ""
        if seeds:
            given.pop("seed", None)
            more = f", seeds={list(seeds)}"
        command = ["fairjax", "compare", "--mechanisms", ",".join(map(str, compared.values()))]
        lines = (
            f"results = fj.compare({_write_python(given)}, {_write_names(compared, renamed)}{more})"
        )
    else:
        command, lines = ["fairjax", "run"], f"result = {_write_python(given)}.run()"
    said = f"# Your own objects: {', '.join(own)}.\n" if own else ""
    pieces = [page.code(f"import fairjax as fj\n\n{said}{lines}")]
    if own:
        return pieces
    # The command line takes only numbers and texts.
    typed = [value for _, value in experiment.options] + [experiment.gamma or 0]
    if all(type(value) in (str, int, float) for value in typed):
        parts = [command, *(_flag(name, value) for name, value in given.items())]
        parts += [["--seeds", listed(seeds)]] if seeds else []
        pieces.insert(0, page.code(" \\\n  ".join(map(shlex.join, parts))))
    return pieces


def fields_to_give(experiment: Experiment) -> dict[str, Any]:
    """Returns a small set of fields that gives the same resolved experiment.

    Examples:
      >>> fields_to_give(Experiment(seed=3, model="mlp").resolved())
      {'seed': 3}
    """
    names = [field.name for field in dataclasses.fields(experiment)]
    given = {name: getattr(experiment, name) for name in names}
    for name in names:
        fewer = {other: value for other, value in given.items() if other != name}
        try:
            if Experiment(**fewer).resolved() == experiment:
                given = fewer
        except ValueError:  # the other fields are not valid without it
            continue
    return given


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag]  # a flag that is off is its default, and not given
    if name in (*EACH, "ranks"):
        return [flag, str(value) if np.ndim(value) == 0 else ",".join(map(str, value))]
    if isinstance(value, tuple):
        return [flag, *(f"{key}={_join_by_colon(entry)}" for key, entry in value)]
    return [flag, str(value)]


def _join_by_colon(entry: Any) -> str:
    return ":".join(map(str, entry)) if isinstance(entry, tuple) else str(entry)


def _write_python(given: Mapping[str, Any]) -> str:
    """Returns Python source of an `Experiment`: one line if it fits, else one line per field."""
    fields = [f"{name}={_as_python(name, value)}" for name, value in given.items()]
    line = f"fj.Experiment({', '.join(fields)})"
    if len(line) <= WIDTH - len("result = .run()"):
        return line
    return "\n".join(["fj.Experiment(", *(f"    {field}," for field in fields), ")"])


def _write_names(compared: Mapping[str, Any], renamed: bool) -> str:
    """Returns Python source of a comparison's mechanisms: a list, or a dict of names and them."""
    words = {
        name: repr(one) if isinstance(one, str) else re.sub(r"\W", "_", name)
        for name, one in compared.items()
    }
    if renamed:
        return f"{{{', '.join(f'{name!r}: {word}' for name, word in words.items())}}}"
    return f"[{', '.join(words.values())}]"


def _as_python(name: str, value: Any) -> str:
    is_table = name == "participation" and isinstance(value, tuple)
    if is_table or (name in objects.FIELDS and objects.is_object(value)):
        return name
    return repr(dict(value) if name in ("options", "behaviours") else value)


def _show_value(value: Any) -> str:
    if objects.is_recorded(value):
        return objects.shown(value)
    if isinstance(value, list) and value and isinstance(value[0], list):
        return objects.shown(value)
    if isinstance(value, list) and len(value) > 2:
        return f"{len(value)} values, from {value[0]:.4g} to {value[-1]:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_show_value(entry)}" for name, entry in value.items())
    return ":".join(map(str, value)) if isinstance(value, list) else str(value)


def _count_nouns(num: int, name: str) -> str:
    return f"{num:,} {name}{'s' * (num > 1)}"

"""Flags: the fields of an experiment as flags of the command line, in groups.

    fields of Experiment     ->  dataclasses  ->  flags, made by tyro  ->  an Experiment
    words of a command line  ->  a command with its arguments, or an error of one sentence

Each field of `Experiment` has its group, its help text and the names that it may hold.
"""

import contextlib
import dataclasses
import functools
import inspect
import io
import itertools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import tyro
from rich.text import Text

import fairjax
from fairjax import checks, data
from fairjax.cli.terminal import output
from fairjax.experiments import MOST_VALUES, ONLY_PYTHON, Experiment, objects

DATASETS = {"dataset": tuple(data.DATASETS)}  # names in `fairjax list`; TFDS has more
PAIRS = {"options": "NAME=VALUE", "behaviours": "NAME=NUMBER[:STRENGTH]"}
METAVARS = {
    "gamma": "FLOAT|median|cosine[:START[:END]]", "participation": "INT|FLOAT", "metric": "NAME",
    "ranks": "INT,INT,...",
}  # fmt: skip


def parse(commands: Mapping[str, Callable], words: Sequence[str]) -> Callable[[], Any]:
    """Returns the call that a command line asks for.

    Args:
      commands: functions by name, whose parameters are flags.
      words: words of the command line.

    Raises:
      ValueError: the command or a flag is unknown, or a flag has no value or too many.
      SystemExit: the command line asks for help or the version, which was printed.

    Examples:
      >>> def greet(times: int = 1) -> None:
      ...     print("hello " * times)
      >>> parse({"greet": greet}, ["greet", "--times", "2"])()
      hello hello
    """
    names = ", ".join(commands)
    if not words:
        raise ValueError(
            f"A command must be given, one of {names}. `fairjax --help` explains them."
        )
    if list(words) == ["--version"]:
        output().print(f"fairjax {fairjax.__version__}", highlight=False)
        raise SystemExit
    name, options = words[0], (tyro.conf.OmitArgPrefixes,)
    later = {command: _defer_call(function) for command, function in commands.items()}
    if name not in commands:
        if name in ("-h", "--help") or name.startswith("--tyro-"):  # for completion
            description = "Fair collaborative learning: agents train together and are paid fairly."
            tyro.extras.subcommand_cli_from_dict(
                later, prog="fairjax", description=description, args=words, config=options
            )
        checks.choice("command", name, commands)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            call, unknown = tyro.cli(
                later[name], prog=f"fairjax {name}", args=words[1:], return_unknown_args=True,
                config=options,
            )  # fmt: skip
    except SystemExit as end:
        if not end.code:
            raise
        raise ValueError(_read_box(box.getvalue())) from None
    if unknown:
        raise ValueError(_explain_unknown(unknown[0], name, commands))
    return call


OF_AGENT = r"(\d+=)?[-+.\de]+"  # a number, perhaps with an agent's


def _read(text: str) -> Any:
    """Returns a number, None, or the text itself; `Experiment` refuses a wrong text.

    Numbers of agents are as 5,3,3 for all agents, or as 0=5,2=1 for some.
    """
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    if re.search("[,=]", text) and re.fullmatch(rf"{OF_AGENT}(,{OF_AGENT})*", text):
        parts = [part.rpartition("=") for part in text.split(",")]
        numbers = [_read(number) for *_, number in parts]
        agents = [int(agent) for agent, equals, _ in parts if equals]
        if len(set(agents)) == len(numbers):
            return dict(zip(agents, numbers, strict=True))
        return text if agents else tuple(numbers)
    return None if text == "None" else text


AS_READ = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="VALUE",
    instance_from_str=lambda words: _read(words[0]),
    is_instance=lambda value: True,
    str_from_instance=lambda value: [str(value)],
)


def flags(*without: str) -> Any:
    """Returns a dataclass of groups of the fields of `Experiment`, which tyro turns into flags.

    Args:
      *without: names of fields that are left out.

    Examples:
      >>> group = next(field for field in dataclasses.fields(flags()) if field.name == "computing")
      >>> [field.name for field in dataclasses.fields(group.type)]
      ['compute_dtype', 'agents_at_once']
    """
    groups: dict[str, list[Any]] = {}
    for field in _list_flag_fields():
        if field.name not in without:
            made = (field.name, _annotate_type(field), field.default)
            groups.setdefault(field.metadata["group"], []).append(made)
    made = [
        (title, dataclasses.make_dataclass(title, fields, namespace={"__doc__": " "}))
        for title, fields in groups.items()
    ]
    return dataclasses.make_dataclass("flags", made, namespace={"__doc__": " "})


def experiment(described: Any, mechanisms: Sequence[str] = ()) -> Experiment:
    """Returns the experiment that flags describe.

    Args:
      described: the flags, in groups.
      mechanisms: those to compare, where no flag names one.

    Raises:
      ValueError: `Experiment` does not allow a value, or an option or a behaviour has not the
        form NAME=VALUE or NAME=NUMBER[:STRENGTH].
    """
    fields = {
        name: value for group in vars(described).values() for name, value in vars(group).items()
    }
    for name, parsed in (("options", _parse_option), ("behaviours", _parse_behaviour)):
        fields[name] = tuple(map(parsed, itertools.chain(*fields.get(name, ()))))
    sharing = [name for name in mechanisms if name != "standalone"]
    if sharing and fields.get("server_optimizer"):  # which the default mechanism refuses
        fields["mechanism"] = sharing[0]
    return Experiment(**fields)


def parse_seeds(text: str, name: str = "seeds") -> Sequence[int] | None:
    """Returns the seeds, or other numbers, that a text lists; None for an empty text.

    Examples:
      >>> parse_seeds("0:3"), parse_seeds("4,7")
      (range(0, 3), (4, 7))
    """
    if not text:
        return None
    first, colon, last = text.partition(":")
    try:
        given = (int(first), int(last)) if colon else tuple(map(int, text.split(",")))
    except ValueError:
        wanted = f"`{name}` must be as 0:5 (0 to 4) or 0,3,7, got {text!r}."
        raise ValueError(wanted) from None
    if colon and given[1] - given[0] > MOST_VALUES:
        raise ValueError(f"`{name}` must be at most {MOST_VALUES:,} values, got {text!r}.")
    return range(*given) if colon else given


def _list_flag_fields() -> list[dataclasses.Field]:
    """Returns the fields that are flags."""
    found = dataclasses.fields(Experiment)
    return [field for field in found if field.metadata["group"] != ONLY_PYTHON]


def _annotate_type(field: dataclasses.Field) -> Any:
    """Returns a field's type, annotated with the help and the default of its flag."""
    explained, _, instead = field.metadata["words"].partition("; None: ")
    explained = explained.partition("; or, in Python, ")[0]
    default = field.default
    if default is None:
        default = instead.rstrip(".") or "chosen for the data set"
    settings: dict[str, Any] = {
        "help": explained.rstrip(".") + ".",
        "help_behavior_hint": f"(default: {'none' if default == () else default})",
    }
    kind: Any = field.type
    if field.name in objects.FIELDS:  # a command line has no objects
        kind = str | None if field.default is None else str
    if field.name in PAIRS:
        settings["metavar"] = PAIRS[field.name]
        # A flag that occurs twice adds to what it gave before.
        pairs = tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]]
        return Annotated[pairs, tyro.conf.arg(**settings)]
    if names := DATASETS.get(field.name, getattr(field.metadata.get("check"), "names", ())):
        settings["metavar"] = "NAME" if len(names) > 2 else f"{{{','.join(names)}}}"
        # Shells complete these names. Otherwise take any name: `Experiment` explains a wrong one.
        if "--tyro-write-completion" in sys.argv:
            known: Any = Literal[names]
            kind = known | None if field.default is None else known
    elif kind is not bool:
        metavar = "FLOAT" if "float" in str(kind) else "INT"
        settings["metavar"] = METAVARS.get(field.name, metavar)
        return Annotated[Any, tyro.conf.arg(**settings), AS_READ]
    return Annotated[kind, tyro.conf.arg(**settings)]


def _parse_behaviour(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    number, colon, strength = value.partition(":")
    try:
        return name, (int(number), float(strength)) if colon else int(number)
    except ValueError:
        raise ValueError(
            f"`behaviours` must be of the form NAME=NUMBER or NAME=NUMBER:STRENGTH, got {text!r}."
        ) from None


def _parse_option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"`options` must be of the form NAME=VALUE, got {text!r}.")
    return name, _read(value)


def _defer_call(command: Callable) -> Callable:
    """Returns a function with the same flags that returns the call instead of making it."""

    @functools.wraps(command)
    def later(*values: Any, **given: Any) -> Callable[[], Any]:
        return functools.partial(command, *values, **given)

    return later


def _read_box(box: str) -> str:
    """Returns the text of one of tyro's boxes, from its title to its next rule, as one line."""

    def is_rule(line: str) -> bool:
        return not line.strip("╰─-╯")

    lines = [line.strip("│ ") for line in Text.from_ansi(box).plain.splitlines()[1:]]
    content = itertools.dropwhile(is_rule, lines)
    return " ".join(itertools.takewhile(lambda line: not is_rule(line), content))


def _flags_of(command: Callable) -> list[str]:
    """Returns the flags of a command."""
    names = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name == "described":
            groups: Any = [
                group.type for group in dataclasses.fields(parameter.annotation.__origin__)
            ]
            names += [field.name for group in groups for field in dataclasses.fields(group)]
        elif tyro.conf.Positional not in getattr(parameter.annotation, "__metadata__", ()):
            names.append(name)
    return [f"--{name.replace('_', '-')}" for name in names]


def _explain_unknown(word: str, name: str, commands: Mapping[str, Callable]) -> str:
    """Returns a sentence about a word that a command does not know."""
    if not word.startswith("-"):
        return (
            f"Unexpected {word!r} after `fairjax {name}`. Several names are separated by commas, "
            "without spaces, as in cgsv,fedavg; switches such as --quick take no value."
        )
    flag = word.partition("=")[0].replace("_", "-")
    known = [one for one in _flags_of(commands[name]) if one != flag]
    elsewhere = [other for other, one in commands.items() if flag in _flags_of(one)]
    if elsewhere:  # suggest --mechanisms for --mechanism, and nothing else
        known = [one for one in known if one.startswith(flag)]
    has_it = f" `fairjax {elsewhere[0]}` has it." if elsewhere else ""
    nearest = checks.suggestion(flag, known)
    return f"Unknown flag {flag!r}.{has_it}{nearest} `fairjax {name} --help` explains all."

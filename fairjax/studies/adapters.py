"""Adapters: exact sums against averaged factors, over rounds, and what agents are paid in ranks.

frozen network -> agents train adapters of equal or unequal rank -> one of many mechanisms
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.figure import Figure

from fairjax import data, experiments, mechanisms, models, simulation, trees
from fairjax.experiments import WORDS, Experiment, Result, sweep
from fairjax.figures import correlation_axis, draw_correlation, name_lines, name_series, styled
from fairjax.studies.base import SEEDS, Cell, Rows, Study
from fairjax.tables import Spread, Table, spreads

# FLoRA's ranks 64 32 16 16 8 8 4 4 4 4 by a quarter, and some for five agents; the largest is for
# the agent with most data or classes. Their mean is the equal rank, so both send as much.
UNEQUAL, EQUAL = {10: (1, 1, 1, 1, 2, 2, 4, 4, 8, 16), 5: (2, 2, 4, 4, 8)}, 4
BY_RANK = {"mask": "rank"}


class Variant(NamedTuple):
    """A mechanism, and what agents train."""

    mechanism: str
    ranks: str | None = "equal"  # or "unequal"; None: agents train all parameters
    options: Mapping[str, Any] = {}

    @property
    def name(self) -> str:
        """A name for tables."""
        how = "no adapters" if self.ranks is None else f"{self.ranks} ranks"
        paid = ", paid in ranks" if self.options else ""
        return f"{self.mechanism}{paid}, {how}"


COMMON = (  # all agents end with one model
    Variant("fedavg", None),
    Variant("flora"),
    Variant("fedit"),
    Variant("ffa_lora"),
    Variant("flora", "unequal"),
    Variant("zero_padding", "unequal"),
    Variant("ffa_lora", "unequal"),
)
PAID = (
    Variant("cgsv", None),
    Variant("cgsv"),
    Variant("cgsv", "equal", BY_RANK),
    Variant("cgsv", "unequal", BY_RANK),
    Variant("accounts"),
    Variant("accounts", "unequal"),
)
COLOURS = {
    "fedavg": "#999999", "flora": "#0072b2", "fedit": "#d55e00", "zero_padding": "#cc79a7",
    "ffa_lora": "#009e73",
}  # fmt: skip


class Setting(NamedTuple):
    """Data, how they are split, and which variants are run."""

    dataset: str
    split: str
    rounds: Sequence[int]  # whose accuracies are shown; the last is the run's length
    variants: Sequence[Variant]
    seeds: Sequence[int]
    fields: Mapping[str, Any]
    seconds: float  # a variant takes about so long on two cores

    @property
    def title(self) -> str:
        """The panel's name."""
        return f"{self.dataset}, {self.split.replace('_', ' ')}"


DIGITS = {"num_agents": 10, "learning_rate": 0.003, "learning_rate_decay": 1.0}
SENTENCES = {
    "num_agents": 5, "model": "minilm", "samples_per_agent": 150, "local_epochs": 1,
    "eval_every": 2, "eval_examples": 400,
}  # fmt: skip
SPLITS = ("power_law", "class_imbalance")
# Sentences take minutes a run, so some variants are left out.
ON_MR, ON_SST = (*COMMON[1:4], PAID[2]), (COMMON[1], PAID[2])
QUICK = [
    Setting("digits", split, (1, 3, 10, 30), (*COMMON[:6], *PAID[1:3], PAID[4]), SEEDS[:3], DIGITS,
            20.0)
    for split in SPLITS
]  # fmt: skip
FULL = [
    *(
        Setting("digits", split, (1, 3, 10, 30, 100, 300), (*COMMON, *PAID), SEEDS, DIGITS, 60.0)
        for split in SPLITS
    ),
    Setting("rt_polarity", "power_law", (2, 4), ON_MR, SEEDS[:3], SENTENCES, 500.0),
    Setting("sst_fine", "class_imbalance", (2, 4, 8), ON_SST, SEEDS[:3], SENTENCES, 500.0),
]


@functools.lru_cache(maxsize=1)
def pretrained_digits() -> dict[str, Any]:
    """Returns the fields of an experiment on digits with a network that knows only five of them.

    The perceptron was trained on the digits 0 to 4 of a tenth of the training data. Agents have
    the other nine tenths.
    """
    train, test = data.load("digits")
    private, public = data.hold_out(train, 0.1, seed=0)
    public = public.take(np.flatnonzero(np.asarray(public.y) < 5))
    model = models.mlp(train, hidden=(64, 64))
    alone = simulation.federation(
        model=model, mechanism=mechanisms.standalone(), optimizer=optax.adam(3e-3), local_epochs=5
    )
    shards = data.uniform(public, num_agents=1)
    state, _ = experiments.run(jax.random.key(0), alone, shards, test, num_rounds=20, eval_every=20)
    params = trees.row(state.agents)
    return {"dataset": (private, test), "model": model, "params": params}


def cells(quick: bool) -> list[Cell]:
    """Returns a cell for every setting and variant."""
    made = []
    for setting in QUICK if quick else FULL:
        for variant in setting.variants:
            experiment = _describe(setting, variant)
            name = variant.name.replace(", ", "-").replace(" ", "_")
            made.append(
                Cell(
                    name=f"adapters-{setting.dataset}-{setting.split}-{name}",
                    settings={**experiment.description(), "seed": list(setting.seeds)},
                    run=functools.partial(_run, setting, variant, experiment),
                    seconds=setting.seconds,
                )
            )
    return made


def _describe(setting: Setting, variant: Variant) -> Experiment:
    fields = dict(setting.fields)
    if setting.dataset == "digits":
        fields |= pretrained_digits()
    else:
        fields["dataset"] = setting.dataset
    if variant.ranks is not None:
        unequal = {"ranks": UNEQUAL[fields["num_agents"]]}
        fields |= unequal if variant.ranks == "unequal" else {"lora_rank": EQUAL}
    experiment = Experiment(split=setting.split, rounds=setting.rounds[-1], **fields)
    return dataclasses.replace(
        experiment.with_mechanism(variant.mechanism), options=dict(variant.options)
    )


def _run(setting: Setting, variant: Variant, experiment: Experiment) -> Rows:
    where = {"setting": setting.title, "variant": variant.name}
    paid = variant in PAID
    return [
        {**where, "seed": one.experiment.seed, **_figures(one, setting.rounds, paid)}
        for one in _play(experiment, tuple(setting.seeds))
    ]


def _play(experiment: Experiment, seeds: tuple[int, ...]) -> Sequence[Result]:
    """Returns one result per seed."""
    alone = _play_alone(experiment.alone(), seeds)
    if not isinstance(experiment.model, str):
        swept = sweep(experiment, seeds=seeds, standalone=alone)
        return [swept[point] for point in range(len(swept))]
    # Sentences take turns in a sweep, too, and here their lengths are known when it is compiled.
    runs = [dataclasses.replace(experiment, seed=seed) for seed in seeds]
    return [run.run(standalone=one) for run, one in zip(runs, alone, strict=True)]


@functools.lru_cache(maxsize=2)
def _play_alone(experiment: Experiment, seeds: tuple[int, ...]) -> Any:
    if not isinstance(experiment.model, str):
        return sweep(experiment, seeds=seeds)
    return [dataclasses.replace(experiment, seed=seed).run() for seed in seeds]


def _figures(result: Result, rounds: Sequence[int], paid: bool) -> dict[str, float]:
    """Returns what is communicated, the common model over rounds, and how agents end."""
    sent = result.communication.get("uploaded_share", np.ones(1))
    received = result.communication.get("received_share", np.full(1, np.nan if paid else 1.0))
    common = result.history.server_accuracies
    figures = {"sent_%": 100 * float(sent.mean()), "received_%": 100 * float(received.mean())}
    figures |= {f"round {number}": 100 * float(common[number - 1]) for number in rounds}
    return figures | result.figures()


def tables(rows: Rows) -> dict[str, Table]:
    """Returns the whole table, and for every setting the common models and what agents are paid."""
    by = ("setting", "variant")
    values = [name for name in dict.fromkeys(name for row in rows for name in row)
              if name not in (*by, "seed")]  # fmt: skip
    whole = spreads(rows, by, values, apart=by, words=WORDS)
    found = {"all": whole}
    ends = ("fairness", "rank_fairness", "best_%", "worst_%", "gain_%", "shortfall_%")
    names = {variant.name for variant in PAID}
    for setting in dict.fromkeys(row["setting"] for row in whole.rows):
        mine = [row for row in whole.rows if row["setting"] == setting]
        over = [name for name in values if name.startswith("round ")]
        shares = ("sent_%", "received_%")
        for title, shown, of in (
            ("the common model after rounds (%)", (*shares, *over), None),
            ("how agents end", (*shares, *ends), names),
        ):
            found[f"{setting}: {title}"] = Table(
                [
                    {name: row[name] for name in ("variant", *shown) if name in row}
                    for row in mine
                    if of is None or row["variant"] in of
                ]
            )
    return found


def draw(found: Mapping[str, Table]) -> Figure:
    """Draws common models over rounds, and fairness where agents are paid unequally."""
    whole = found["all"]
    settings = list(dict.fromkeys(row["setting"] for row in whole.rows))
    with styled():
        figure, axes = plt.subplots(
            len(settings), 2, squeeze=False, layout="constrained",
            figsize=(7.5, 2.6 * len(settings) + 0.4),
        )  # fmt: skip
        for (left, right), setting in zip(axes, settings, strict=True):
            mine = {row["variant"]: row for row in whole.rows if row["setting"] == setting}
            for variant in (variant for variant in COMMON if variant.name in mine):
                _draw_rounds(left, variant, mine[variant.name])
            left.set(title=setting, xscale="log", xlabel="round", ylabel="common model (%)")
            rounds = sorted({number for row in mine.values() for number in _over(row)})
            left.set_xticks(rounds, map(str, rounds))
            left.minorticks_off()
            judged = [variant.name for variant in PAID if variant.name in mine]
            for place, name in enumerate(judged):
                how = {"color": "#0072b2", "marker": "o", "markersize": 4}
                draw_correlation(right, mine[name]["fairness"], place, **how)
            right.set(xlabel="fairness")
            correlation_axis(right, WORDS["fairness"])
            name_lines(right, judged)
        shown = {row["variant"] for row in whole.rows}
        for variant in (variant for variant in COMMON if variant.name in shown):
            axes[0, 0].plot([], [], _dashes(variant), color=COLOURS[variant.mechanism],
                            label=variant.name)  # fmt: skip
        name_series(figure, ncols=4)
    return figure


def _draw_rounds(axis: Any, variant: Variant, row: Mapping[str, Any]) -> None:
    over = _over(row)
    how = {"color": COLOURS[variant.mechanism], "linestyle": _dashes(variant)}
    means = [spread.mean for spread in over.values()]
    axis.errorbar(list(over), means, [spread.std for spread in over.values()], **how)


def _over(row: Mapping[str, Any]) -> dict[int, Spread]:
    """Returns the accuracies of a variant's common model by round."""
    return {int(name.split()[1]): value for name, value in row.items()
            if name.startswith("round ") and isinstance(value, Spread) and value.num}  # fmt: skip


def _dashes(variant: Variant) -> str:
    return "--" if variant.ranks == "unequal" else "-"


ADAPTERS = Study(
    question="Which adapters learn best, and are rewards in ranks fair? Products that are summed "
    "exactly (flora) against averaged factors (fedit, zero_padding, ffa_lora), over rounds, with "
    "equal and unequal ranks.",
    cells=cells,
    tables=tables,
    draw=draw,
    remarks=f"Ranks are {EQUAL} for all (equal), or {', '.join(map(str, UNEQUAL[10]))} for ten "
    f"agents and {', '.join(map(str, UNEQUAL[5]))} for five (unequal), the largest for the agent "
    "with most examples or classes; their mean is the same. `sent_%` and `received_%` are numbers "
    "per agent and round, as a share of the whole network; masked rewards without adapters are not "
    "counted. The common model is the server's: the frozen network with all that was aggregated. "
    "On digits the frozen perceptron knows only the digits 0 to 4, from a tenth of the data; on "
    "sentences it is MiniLM. Fairness is the correlation of standalone and final accuracies, where "
    "agents alone train adapters of the same ranks.",
)

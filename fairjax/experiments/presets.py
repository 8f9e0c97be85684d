"""Presets: values for fields that an experiment leaves open, by data set.

"fairjax"   the paper's constants on its data sets; on others, values for any number of rounds
"paper"     the paper's constants on its data sets; on others, those of the paper's program

Values for any number of rounds depend on that number T: the learning rate and the length of
uploads decay over the run, so that the models settle in the last rounds.

    rate    lambda_t = lambda_0 .155^(t/T)
    length  Gamma_t  = Gamma_T + (Gamma_0 - Gamma_T) (1 + cos(pi t/T)) / 2
            Gamma_0  = 2.5,  Gamma_T = min(2.5, .3 max(1, T/20)^(1/2)), with three digits

With steps of a fixed length models keep moving, and an agent whose mask shortens its steps ends
better. Uploads of settled models no longer share a direction, so long runs end at a greater length.

The values were chosen on digits with a power law: 3 to 10 agents, 20 to 160 rounds, seeds 0 to 4.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fairjax.data import DATASETS

PRESETS = ("fairjax", "paper")
LAST_RATE = 0.155  # share of the learning rate left after the last round
FIRST_LENGTH, LAST_LENGTH, SHORT_RUN = 2.5, 0.3, 20  # Gamma_0; Gamma_T for T up to SHORT_RUN

RUN_LENGTHS = {"rounds": 80, "local_epochs": 3}
# Fine-tuning needs few rounds. The rates, of all parameters and of adapters, were chosen on MR, one
# agent, seed 0. How long uploads are depends on how many sentences an agent has, and on the rank of
# its adapters; so their length is the round's median.
PRETRAINED = {"minilm": {"rounds": 3, "local_epochs": 1}}
TUNED = {"minilm": {"learning_rate": 3e-5, "batch_size": 16, "gamma": "median"}}
ADAPTED = {"minilm": {**TUNED["minilm"], "learning_rate": 2e-3}}


def run_lengths(model: Any) -> Mapping[str, int]:
    """Returns how many rounds and local epochs a run has if it does not say.

    Examples:
      >>> run_lengths("mlp"), run_lengths("minilm")
      ({'rounds': 80, 'local_epochs': 3}, {'rounds': 3, 'local_epochs': 1})
    """
    return PRETRAINED.get(model, RUN_LENGTHS) if isinstance(model, str) else RUN_LENGTHS


def tuning(model: Any, adapters: bool) -> Mapping[str, Any] | None:
    """Returns values for a network that is fine-tuned; None: it is trained from its start.

    Examples:
      >>> tuning("minilm", adapters=True)["learning_rate"], tuning("mlp", adapters=False)
      (0.002, None)
    """
    name = model if isinstance(model, str) else ""
    return ADAPTED.get(name, {}) if adapters else TUNED.get(name)


class Settings(NamedTuple):
    """Values for the open fields of an experiment on one data set."""

    model: str = "mlp"
    samples_per_agent: int | None = None
    optimizer: str = "sgd"
    learning_rate: float = 0.15
    learning_rate_decay: float | None = 0.977  # None: over the run, to `LAST_RATE`
    batch_size: int = 32
    alpha: float = 0.95
    gamma: float | str | None = 0.5  # None: a cosine over the run
    eval_every: int = 1


# Adam's steps have similar sizes in all entries, so the entries that a mask removes matter.
FAIRJAX = Settings(
    optimizer="adam", learning_rate=1e-3, learning_rate_decay=None, alpha=0.5, gamma=None
)
PROGRAM = Settings()
OF_DATA = ("model", "samples_per_agent", "eval_every")


def settings(
    dataset: str, preset: str, num_rounds: int, num_decays: int, fine_tuned: bool = False
) -> Settings:
    """Returns values for the open fields of an experiment.

    Args:
      dataset: name of the data set.
      preset: a name in `PRESETS`.
      num_rounds: T, the number of rounds in the whole run.
      num_decays: how often the learning rate decays in the whole run.
      fine_tuned: whether `tuning` has further values. The paper fine-tunes no network, so only what
        it chose for the data counts.

    Examples:
      >>> chosen = settings("digits", "fairjax", num_rounds=80, num_decays=80)
      >>> round(chosen.learning_rate_decay, 4), chosen.gamma
      (0.977, 'cosine:2.5:0.6')
      >>> settings("digits", "paper", num_rounds=80, num_decays=80).gamma
      0.5
    """
    chosen, source = PROGRAM if preset == "paper" else FAIRJAX, DATASETS.get(dataset)
    if source is not None and source.paper is not None:
        paper = PROGRAM._replace(**source.paper)
        of_data = {name: getattr(paper, name) for name in OF_DATA}
        chosen = chosen._replace(**of_data) if fine_tuned else paper
    if chosen.learning_rate_decay is None:
        chosen = chosen._replace(learning_rate_decay=LAST_RATE ** (1 / num_decays))
    if chosen.gamma is None:
        last = min(FIRST_LENGTH, LAST_LENGTH * max(1, num_rounds / SHORT_RUN) ** 0.5)
        chosen = chosen._replace(gamma=f"cosine:{FIRST_LENGTH}:{last:.3g}")
    return chosen

"""Presets: what an experiment leaves open, chosen for its data set.

"fairjax"   the paper's constants on its data sets, and elsewhere what holds for any run
"paper"     the paper's constants on its data sets, and elsewhere those of its program

What holds for any run follows its length T: the rate and the length of uploads decay over the
run, so that the last rounds settle however many there are.

    rate    lambda_t = lambda_0 .155^(t/T)
    length  Gamma_t  = Gamma_T + (Gamma_0 - Gamma_T) (1 + cos(pi t/T)) / 2
            Gamma_0  = 2.5,  Gamma_T = .3 max(1, T/20)^(1/2)

A step of fixed length never settles, and a mask that damps it is then an advantage. Uploads of
models that have settled share no direction any more, so long runs end at a greater length.

They were chosen on digits with a power law, 3 to 10 agents, 20 to 160 rounds and seeds 0 to 4.
"""

from typing import NamedTuple

from fairjax.data import DATASETS

PRESETS = ("fairjax", "paper")
LAST_RATE = 0.155  # share of the learning rate that is left after the last round
FIRST_LENGTH, LAST_LENGTH, SHORT_RUN = 2.5, 0.3, 20  # Gamma_0, and Gamma_T of so many rounds


class Settings(NamedTuple):
    """What an experiment leaves open, for one data set."""

    model: str = "mlp"
    samples_per_agent: int | None = None
    optimizer: str = "sgd"
    learning_rate: float = 0.15
    learning_rate_decay: float | None = 0.977  # None: over the run, to `LAST_RATE`
    batch_size: int = 32
    alpha: float = 0.95
    gamma: float | str | None = 0.5  # None: a cosine over the run
    eval_every: int = 1


# Adam's steps are alike in all entries: what a small share of them leaves out is worth something.
FAIRJAX = Settings(
    optimizer="adam", learning_rate=1e-3, learning_rate_decay=None, alpha=0.5, gamma=None
)
PROGRAM = Settings()


def settings(dataset: str, preset: str, num_rounds: int, num_decays: int) -> Settings:
    """Returns what an experiment leaves open.

    Args:
      dataset: its name.
      preset: a name of `PRESETS`.
      num_rounds: T, of the whole run.
      num_decays: how often the learning rate decays in the whole run.

    Examples:
      >>> chosen = settings("digits", "fairjax", num_rounds=80, num_decays=80)
      >>> round(chosen.learning_rate_decay, 4), chosen.gamma
      (0.977, 'cosine:2.5:0.6')
      >>> settings("digits", "paper", num_rounds=80, num_decays=80).gamma
      0.5
    """
    chosen, source = PROGRAM if preset == "paper" else FAIRJAX, DATASETS.get(dataset)
    if source is not None and source.paper is not None:
        chosen = PROGRAM._replace(**source.paper)
    if chosen.learning_rate_decay is None:
        chosen = chosen._replace(learning_rate_decay=LAST_RATE ** (1 / num_decays))
    if chosen.gamma is None:
        last = min(FIRST_LENGTH, LAST_LENGTH * max(1, num_rounds / SHORT_RUN) ** 0.5)
        chosen = chosen._replace(gamma=f"cosine:{FIRST_LENGTH}:{last:.3g}")
    return chosen

"""Running: the rounds of a federation from Python objects, with or without records."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from fairjax import checks, simulation
from fairjax.data import Dataset, Shards
from fairjax.experiments import records, tracking
from fairjax.experiments.playing import WATCHES, Run, Watcher
from fairjax.experiments.run_folder import RunFolder
from fairjax.fingerprint import fingerprint
from fairjax.simulation import Federation, History, Rounds, State
from fairjax.types import Key, Params


def run(
    key: Key | None,
    federation: Federation,
    shards: Shards,
    test: Dataset,
    *,
    num_rounds: int,
    params: Params | None = None,
    state: State | None = None,
    eval_every: int = 1,
    record_updates: bool = False,
    out: str | Path | None = None,
    resume: bool = True,
    watch: Watcher | None = None,
    track: str | Sequence[str] = (),
) -> tuple[State, History]:
    """Returns the state after some more rounds, and their history.

    Args:
      key: PRNG key; everything random follows from it. With a `state`, its key counts, and this
        one may be None.
      federation: made by `federation`.
      shards: who holds which data.
      test: the data on which models are evaluated.
      num_rounds: number of rounds to play, at least one; with a `state`, so many more.
      params: common first parameters; or leaves `[N, ...]`, the agents' own; or a mapping from
        some agents to theirs; None: drawn by the model from the key. With their own, the
        server begins with their mean by examples; mechanisms that pay everybody the server's
        model, such as fedavg, refuse them.
      state: the state that an earlier call returned, to go on from; None: a new run. Together
        the calls give the numbers of one long run, unless the mechanism depends on the number
        of rounds of the whole run, as a cosine of gamma does. A participation table needs rows
        for the earlier rounds, too.
      eval_every: number of rounds between evaluations; the last round is always evaluated.
      record_updates: keep all uploads, T N D numbers, for contributions of a whole run.
      out: a directory for checkpoints and the history of this call; None: nothing is written.
        The same call goes on after a kill, with the same numbers; another call, such as one
        with a `state`, needs another directory. It holds no page: `Experiment` has that.
      resume: False: start over.
      watch: as in `Experiment.run`.
      track: as in `Experiment.run`.

    Returns:
      The final `State` and a `History`.

    Raises:
      ValueError: an argument has the wrong kind or is out of range, model, shards and
        test data do not fit each other, `out` belongs to another run, the mechanism breaks
        its protocol, or `key` or `params` is traced, as under `jax.jit`.

    Examples:
      >>> import optax
      >>> import fairjax as fj
      >>> train, test = fj.data.load("digits")
      >>> shards = fj.data.power_law(train, num_agents=3, seed=0)
      >>> fed = fj.federation(model=fj.models.logistic(train), mechanism=fj.mechanisms.cgsv(),
      ...                     optimizer=optax.sgd(0.1))
      >>> state, history = run(jax.random.key(0), fed, shards, test, num_rounds=2)
      >>> history.accuracies.shape, float(history.importance[-1].sum().round(3))
      ((2, 3), 1.0)
      >>> state, more = run(None, fed, shards, test, num_rounds=1, state=state)
      >>> int(state.round), more.accuracies.shape
      (3, (1, 3))
    """
    checks.flag("resume", resume)
    checks.function("watch", watch, WATCHES, optional=True)
    folder = RunFolder(None if out is None else checks.path("out", out), resume)
    tools = tracking.checked(track, folder.path)
    rounds = Rounds(
        key, federation, shards, test, num_rounds, params, eval_every, record_updates, state
    )
    rounds.check()
    if not checks.is_known((key, params)):
        raise ValueError(
            "`key` and `params` must be known: `run` compiles its rounds itself. Under "
            "`jax.jit`, `vmap` or `grad`, call `federation.init` and scan `federation.step`."
        )
    record = folder.claim(lambda: _describe(rounds))
    name, settings = federation.mechanism.name, record.get("experiment", {})
    main, before = federation.training.task.main, rounds.last_round - num_rounds
    with folder.locked():
        clock = records.Clock(folder.times())
        folder.begin(record, rounds.check_beginning)
        opened = tracking.opened(tools, folder.path, name, settings, resume, main, before)
        with opened as tracker:
            last = Run(name, rounds).play(folder, clock, tracker, watch)
            history = simulation.history(last, num_rounds)
            tracker.rounds(history)
        folder.end(history, clock)
    return last.state, history


def _describe(rounds: Rounds) -> dict[str, Any]:
    """Returns what determines a run, as JSON: numbers, and fingerprints of objects."""
    numbers = ("num_rounds", "eval_every", "record_updates")
    objects = ("federation", "shards", "test", "params", "state")
    given = {name: getattr(rounds, name) for name in objects}
    given = jax.tree.map(_without_key, given, is_leaf=_is_key)
    key = rounds.key if rounds.state is None else rounds.state.key
    return {
        "key": jax.random.key_data(key).tolist(),
        **{name: getattr(rounds, name) for name in numbers},
        **{
            name: None if value is None else fingerprint(value, name)
            for name, value in given.items()
        },
    }


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_key(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf

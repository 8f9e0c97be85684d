"""Loop: the rounds of a run, compiled as one program, and their history.

    state_t+1, record_t = step(state_t)          accuracies of the paid models, when due

`play` scans over rounds. The host receives the rows of a chunk of rounds at a time.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fairjax import checks, devices, lowrank, trees
from fairjax.data import Dataset, Shards
from fairjax.programs import WithCaptured, shapes
from fairjax.simulation import either
from fairjax.simulation.behaviours import changing_uploads
from fairjax.simulation.evaluation import mean_statistics
from fairjax.simulation.federations import Federation
from fairjax.simulation.looking import check_held_out, first_decisions
from fairjax.simulation.memory import spare_maps
from fairjax.simulation.participation import check_fits
from fairjax.simulation.progress import (
    Events,
    History,
    Progress,
    check_paid,
    no_rows,
    one_row,
    warn_of_honest,
)
from fairjax.simulation.states import MOST_ROUNDS, State
from fairjax.types import Params, PerAgent, Scalar

CHUNKS = 20  # the largest number of chunks in a run
# How many compiled programs are kept. Each needs several hundred of the 65,530 memory maps that
# Linux allows a process.
PROGRAMS = 8


Carry = tuple[State, Events]


class Rounds(NamedTuple):
    """The rounds of a run; the fields are arguments of `fairjax.run` and determine its numbers.

    `within` is the federation whose program also plays these rounds, if they are its own or those
    of its agents alone; None: they have a program of their own.
    """

    key: Any  # None with a `state`, whose key counts
    federation: Federation
    shards: Shards
    test: Dataset
    num_rounds: int
    params: Params | None = None
    eval_every: int = 1
    record_updates: bool = False
    state: State | None = None
    within: Federation | None = None

    @property
    def last_round(self) -> int:
        """The number of rounds that will have been played, those of earlier calls included."""
        return self.num_rounds + (0 if self.state is None else int(self.state.round))

    def beginning(self, measured: bool = True) -> Progress:
        """Returns the progress before the first round.

        Without `measured`, what agents reach alone counts as zeros; the shapes are right.
        """
        state = self._first_state(measured)
        training = self.federation.training
        recorded = state if self.record_updates else None
        rows = no_rows(self.shards.num_agents, training.task.names, bool(training.ranked), recorded)
        return Progress(state, rows)

    def check_beginning(self) -> None:
        """Raises what the first round would raise, and plays nothing."""
        self.check()
        # A mechanism that looks at numbers of its first state is checked when it is played.
        looks = (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError)
        state = None
        with contextlib.suppress(*looks):
            state = jax.eval_shape(lambda: self.beginning(measured=False).state)
        if state is not None:
            decide = functools.partial(first_decisions, self.federation)
            jax.eval_shape(decide, state, self.shards)

    def stages(self, start: Progress | None = None, spare: bool = False) -> Iterator[Progress]:
        """Yields the progress after every chunk of rounds.

        A run that continues from a `start` yielded before ends with exactly the same numbers.

        Args:
          start: the progress of the same run to continue from.
          spare: whether a chunk writes its state over that of the chunk before, and of `start`,
            which saves N D numbers. A state is then lost when the next progress is asked for.

        Raises:
          ValueError: as in `run`.
        """
        federation, num_rounds = self.federation, self.num_rounds
        self.check()
        shards, test = devices.everywhere(federation.mesh, jax.device_put((self.shards, self.test)))
        progress = self._replace(shards=shards).beginning() if start is None else start
        if spare and start is None:  # the first state may hold arrays of the caller
            progress = progress._replace(state=_copy(progress.state))
        program, length = self._program(progress.state, spare)
        warned: set[str] = set()
        while progress.num_rounds <= num_rounds:
            with jax.debug_nans(False):  # nan stands for what is not measured
                (state, events), rows = program(
                    progress.state, shards, test, num_rounds, self.eval_every, progress.num_rounds
                )
            check_paid(federation.mechanism.name, events.broken)
            warn_of_honest(events, warned)
            played = min(length, num_rounds + 1 - progress.num_rounds)
            rows = jax.tree.map(lambda row, played=played: np.asarray(row)[:played], rows)
            progress = Progress(state, jax.tree.map(_append, progress.rows, rows))
            yield progress

    def _first_state(self, measured: bool) -> State:
        if self.state is not None:
            return self.federation.go_on(self.state, self.shards, self.num_rounds)
        return self.federation.init(
            self.key, self.shards, self.params, self.num_rounds, self.test, measured
        )

    def _program(self, state: State, spare: bool) -> tuple[Callable[..., Any], int]:
        """Returns the program of a chunk of rounds, and how many it plays."""
        # Play one extra round: its local epochs give the `trained_accuracies` of the last round,
        # and the rest of the round is dropped.
        length = math.ceil((self.num_rounds + 1) / CHUNKS)
        types = shapes((self.shards, self.test))
        within = None if self.record_updates else self.within
        if within is None or not either.fits(self.federation, within, state):
            return _compile_play(self.federation, length, self.record_updates, spare, types), length
        both = _compile_either(within, length, spare, types)
        if self.federation is within:
            return functools.partial(both, False), length
        kept = _copy(either.first_of_mechanism(within, state))  # it may hold the caller's arrays

        def alone(state: State, *data: Any) -> tuple[Carry, History]:
            nonlocal kept
            (after, events), rows = both(True, state._replace(mechanism=kept), *data)
            kept = after.mechanism
            return (after._replace(mechanism=state.mechanism), events), rows

        return alone, length

    def check(self) -> None:
        """Raises unless every field has the right kind, and shards and test data fit each other."""
        checks.kind("federation", self.federation, Federation, "`fairjax.federation`")
        checks.count("num_rounds", self.num_rounds, most=MOST_ROUNDS)
        checks.count("eval_every", self.eval_every, most=MOST_ROUNDS)
        checks.flag("record_updates", self.record_updates)
        checks.kind("shards", self.shards, Shards, "`fairjax.data.power_law(train, num_agents=5)`")
        checks.kind("test", self.test, Dataset, "`fairjax.data.load`")
        self.shards.data.check_alike("test", self.test)
        self.federation.training.task.check_test("test", self.test)
        check_held_out(self.federation, self.shards, self.test)
        if self.state is None:
            checks.key("key", self.key)
        else:
            checks.kind("state", self.state, State, "`fairjax.run`")
            if self.params is not None:
                raise ValueError("`params` must be left out where `state` is given.")
        check_fits(self.federation.participation, self.shards.num_agents, self.last_round)


def history(progress: Progress, num_rounds: int) -> History:
    """Returns the history of a finished run from its rows."""
    rows = jax.tree.map(lambda row: row[:num_rounds], progress.rows)
    return rows._replace(trained_accuracies=progress.rows.trained_accuracies[1:])


def play(
    federation: Federation,
    length: int,
    state: State,
    shards: Shards,
    test: Dataset,
    num_rounds: Scalar,
    eval_every: Scalar,
    first: Scalar = 0,
    record_updates: bool = False,
) -> tuple[Carry, History]:
    """Plays up to `length` rounds from number `first`, and an extra round after the last.

    Returns:
      The state with the events to report, and the rows of the rounds.
    """
    task, adapters = federation.training.task, federation.training.model.adapters
    # Evaluate as many models at once as train together.
    federation = dataclasses.replace(federation, group_size=federation.agents_at_once(shards))
    unknown = jnp.full(shards.num_agents, jnp.nan)
    not_measured = dict.fromkeys(task.names, jnp.append(unknown, jnp.nan))
    honest = ~changing_uploads(federation.behaviours, shards.num_agents)

    def due(number: Scalar) -> Scalar:
        last = number == num_rounds - 1
        return (number >= 0) & (number < num_rounds) & (((number + 1) % eval_every == 0) | last)

    def one_round(carry: Carry, number: Scalar) -> tuple[Carry, History]:
        state, events = carry
        after, record = federation.step(state, shards)

        def evaluate_trained() -> PerAgent:
            found = federation.evaluate(record.trained, test, after.statistics)
            return found.astype(unknown.dtype)

        def evaluate_paid() -> dict[str, PerAgent]:
            params, statistics = jax.tree.map(
                lambda agents, server: jnp.concatenate([agents, server[None]]),
                (after.agents, after.statistics),
                (after.server, mean_statistics(after.statistics, after.joined, shards)),
            )
            found = federation.measure(params, test, statistics)
            return jax.tree.map(lambda values: values.astype(unknown.dtype), found)

        trained = lax.cond(due(number - 1), evaluate_trained, lambda: unknown)
        paid = lax.cond(due(number), evaluate_paid, lambda: not_measured)
        kept: dict[str, Any] = {}
        if record_updates:
            kept = {"servers": state.server, "updates": lowrank.dense(record.uploads)}
        if adapters is not None:
            kept["network"] = jnp.asarray(adapters.network, jnp.int32)
        row = one_row(record, trained, paid, task.main)._replace(**kept)
        row = jax.tree.map(lambda values, like: values.astype(like.dtype), row, empty)
        counts = number < num_rounds
        events = trees.where(counts, events.after(record, state.round, honest), events)
        return (trees.where(counts, after, state), events), devices.everywhere(federation.mesh, row)

    def skip(carry: Carry, number: Scalar) -> tuple[Carry, History]:
        return carry, jax.tree.map(lambda row: jnp.zeros(row.shape[1:], row.dtype), empty)

    def play_or_skip(carry: Carry, number: Scalar) -> tuple[Carry, History]:
        return lax.cond(number <= num_rounds, one_round, skip, carry, number)

    recorded = state if record_updates else None
    empty = no_rows(shards.num_agents, task.names, adapters is not None, recorded)
    return lax.scan(play_or_skip, (state, Events.none()), first + jnp.arange(length))


@functools.lru_cache(maxsize=PROGRAMS)
def _compile_play(
    federation: Federation, length: int, record_updates: bool, spare: bool, arguments: Any
) -> Any:
    """Returns `play` compiled for a federation and for all equal ones.

    The most recently used programs are cached. JAX frees a program that leaves the cache, and its
    memory maps.
    """
    del arguments  # the shapes of the arguments: other shapes need another program
    spare_maps()
    program = functools.partial(play, federation, length, record_updates=record_updates)
    compiled = WithCaptured if federation.training.ranked else jax.jit
    return compiled(program, donate_argnums=(0,) if spare else ())


@functools.lru_cache(maxsize=PROGRAMS)
def _compile_either(federation: Federation, length: int, spare: bool, arguments: Any) -> Any:
    """Returns the compiled program of `fairjax.simulation.either`."""
    del arguments
    spare_maps()

    def program(alone: Scalar, state: State, *data: Any) -> tuple[Carry, History]:
        both = either.federation_of(federation, alone)
        state = state._replace(mechanism=(state.mechanism, ()))
        (after, events), rows = play(both, length, state, *data)
        return (after._replace(mechanism=after.mechanism[0]), events), rows

    return jax.jit(program, donate_argnums=(1,) if spare else ())


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _append(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.concatenate([before, after])

"""Flower: remote nodes send trained models; each is judged and receives its own model.

    update   dw_i  =  the model that agent i sent - the model that it received
    judge    v_i, aggregate            by a mechanism, in one compiled step for all agents
    next     w_i  <-  w_i + v_i        server:  w  <-  w + aggregate

An agent is a Flower node. In shapes, N is the number of agents and T the number of rounds with
a reply. Needs Flower: `pip install '.[flower]'` in a checkout.

Clients are the same as for Flower's FedAvg, and the server takes four lines:

    @server.main()
    def main(grid, context):
        strategy = CGSV(fj.mechanisms.cgsv(beta=1.0), num_agents=4, fraction_evaluate=0)
        strategy.start(grid, ArrayRecord([np.zeros(1000, np.float32)]), num_rounds=3)
        print(strategy.history.fractions[-1])
"""

import math
from collections.abc import Callable, Iterable
from logging import INFO, WARNING
from typing import Any

import jax
import numpy as np

from fairjax import checks
from fairjax.bridges.judging import append, first_state, no_judgements, play
from fairjax.mechanisms import Mechanism, cgsv
from fairjax.types import Params, Stacked

try:
    from flwr.app import (  # pyright: ignore[reportMissingImports]
        Array,
        ArrayRecord,
        ConfigRecord,
        Message,
        MessageType,
        MetricRecord,
        RecordDict,
    )
    from flwr.common.logger import log  # pyright: ignore[reportMissingImports]
    from flwr.serverapp import Grid  # pyright: ignore[reportMissingImports]
    from flwr.serverapp.strategy import FedAvg  # pyright: ignore[reportMissingImports]
    from flwr.serverapp.strategy.strategy_utils import (  # pyright: ignore[reportMissingImports]
        sample_nodes,
    )
except ImportError as error:
    raise ImportError(
        "`fairjax.bridges.flower` needs Flower: `pip install '.[flower]'` in a checkout of fairjax"
    ) from error


AGGREGATES = "function(contents, weighted_by_key) -> MetricRecord"


class CGSV(FedAvg):
    """A Flower strategy that judges all agents' updates and sends each its own model.

    The agents are `num_agents` nodes, drawn from the connected nodes in the first round and
    fixed from then on. In every round all connected agents train, each from its own model. An
    update with NaN or infinity counts as zero, as in fairjax's simulator. An agent is absent from
    a round if it is not connected, does not reply in time, replies with an error, or replies with
    anything but the arrays that it received and its number of examples. It keeps its model, and
    the mechanism treats it as it treats absent agents in a simulation: `cgsv` keeps its importance
    and shares out what those present held. A round without any readable reply changes nothing.

    Clients answer as for Flower's FedAvg: one ArrayRecord with the names and shapes that they
    received, and one MetricRecord with the number of examples. This number weights updates in
    the first round and is not verified. Evaluation messages also hold an agent's own model. The
    arrays that Flower calls global are the server's model.

    Args:
      mechanism: judges and pays agents; None: `fairjax.mechanisms.cgsv()`. It may need only
        updates, numbers of examples, the round, and the current models.
      num_agents: how many nodes take part; the first round waits for them.
      min_available_nodes: how many nodes must be connected for a later round to begin.
      fraction_evaluate: as in `FedAvg`, of all connected nodes, of which only agents evaluate; 0
        for none.
      weighted_by_key: the metric that holds the number of examples.
      arrayrecord_key: the record in which models are sent.
      configrecord_key: the record in which the configuration is sent.
      train_metrics_aggr_fn: as in `FedAvg`, for the readable replies, with those metrics that all
        of them have, in one form.
      evaluate_metrics_aggr_fn: as in `FedAvg`.

    Attributes:
      node_ids: the agents' node ids, ascending; all `[N]` have this order.
      history: the `Judgements` so far. Flower's result also holds those of each round, as the
        training metrics `node-ids`, `contributions`, `importance` and `fractions`.

    Raises:
      ValueError: an argument has the wrong kind or is out of range, or the mechanism has a plan.
        The first round raises it if the mechanism needs more than it may.
    """

    def __init__(
        self,
        mechanism: Mechanism | None = None,
        *,
        num_agents: int,
        min_available_nodes: int = 2,
        fraction_evaluate: float = 1.0,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: Callable[[list[RecordDict], str], MetricRecord] | None = None,
        evaluate_metrics_aggr_fn: Callable[[list[RecordDict], str], MetricRecord] | None = None,
    ) -> None:
        checks.count("num_agents", num_agents)
        checks.count("min_available_nodes", min_available_nodes, most=num_agents)
        checks.between("fraction_evaluate", fraction_evaluate, 0, 1)
        mechanism = cgsv() if mechanism is None else mechanism
        checks.kind("mechanism", mechanism, Mechanism, "`fairjax.mechanisms.cgsv()`")
        checks.text("weighted_by_key", weighted_by_key)
        checks.text("arrayrecord_key", arrayrecord_key)
        checks.text("configrecord_key", configrecord_key)
        checks.function("train_metrics_aggr_fn", train_metrics_aggr_fn, AGGREGATES, optional=True)
        checks.function(
            "evaluate_metrics_aggr_fn", evaluate_metrics_aggr_fn, AGGREGATES, optional=True
        )
        if mechanism.plan is not None:
            raise ValueError(
                f"`mechanism` must let all agents train their own model, got {mechanism.name!r}, "
                "which plans who trains what."
            )
        super().__init__(
            fraction_evaluate=fraction_evaluate,
            min_evaluate_nodes=1,
            min_available_nodes=min_available_nodes,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn,
        )
        self.mechanism = mechanism
        self.num_agents = num_agents
        self.node_ids: list[int] = []
        self.history = no_judgements(num_agents)
        self._state: Any = None
        self._names: list[str] = []  # of arrays, in the order of the first ones; JAX sorts dicts
        self._num_rounds = 0

    @property
    def agents(self) -> Stacked:
        """The agents' models, by array name, `[N, ...]`; empty before the first round."""
        return {} if self._state is None else jax.tree.map(np.asarray, self._state.agents)

    def model_of(self, node_id: int) -> ArrayRecord:
        """Returns an agent's model; a disconnected agent gets it when it is connected again."""
        if node_id not in self.node_ids:
            raise ValueError(f"`node_id` must be one of `node_ids`, got {checks.shown(node_id)}.")
        return self._make_record(self._state.agents, self.node_ids.index(node_id))

    def start(
        self, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int = 3, **given: Any
    ) -> Any:
        """Runs the rounds, as `FedAvg` does; the mechanism is told how many there are."""
        checks.count("num_rounds", num_rounds)
        self._num_rounds = num_rounds
        return super().start(grid, initial_arrays, num_rounds, **given)

    def summary(self) -> None:
        """Logs the mechanism and the settings."""
        log(INFO, "\t├──> Mechanism: %s, of %d agents", self.mechanism.name, self.num_agents)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns a message for every connected agent, with its own model."""
        if server_round == 1:
            sampled, connected = sample_nodes(grid, self.min_available_nodes, self.num_agents)
            self.node_ids, self.history = sorted(sampled), no_judgements(self.num_agents)
            given = {name: array.numpy() for name, array in arrays.items()}
            self._names = list(given)
            self._state = first_state(given, self.mechanism, self.num_agents)
        else:
            _, connected = sample_nodes(grid, self.min_available_nodes, 0)
        config["server-round"] = server_round
        present = [node for node in self.node_ids if node in connected]
        log(INFO, "configure_train: %d of %d agents connected", len(present), self.num_agents)
        return self._address_own_models(present, config, MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Judges and pays agents; returns the server's model and the judgements as metrics."""
        answered, _ = self._check_and_log_replies(list(replies), is_train=True, validate=False)
        # Without a reply, an agent's model counts as unchanged.
        trained = jax.tree.map(np.array, self._state.agents)
        num_examples = np.array(self._state.num_examples)
        replied = np.zeros(self.num_agents, bool)
        contents = []
        for reply in answered:
            node = reply.metadata.src_node_id
            try:
                own, examples = self._read_reply(reply)
            except ValueError as error:
                log(WARNING, "aggregate_train: the reply of node %d is dropped: %s", node, error)
                continue
            agent = self.node_ids.index(node)
            with np.errstate(over="ignore"):  # an update that is not finite counts as zero
                for name, leaf in trained.items():
                    leaf[agent] = own[name]
            num_examples[agent], replied[agent] = examples, True
            contents.append(reply.content)
        if not contents:
            return None, None
        # It may be a function of the user's, so call it before the round counts.
        metrics = self.train_metrics_aggr_fn(_keep_common(contents), self.weighted_by_key)
        self._state, judged = play(
            self.mechanism, self._state._replace(num_examples=num_examples), trained,
            None if replied.all() else replied, server_round, self._num_rounds,
        )  # fmt: skip
        self.history = jax.tree.map(append, self.history, judged)
        metrics["node-ids"] = list(self.node_ids)
        for name in ("contributions", "importance", "fractions"):
            metrics[name] = getattr(self.history, name)[-1].tolist()
        return self._make_record(self._state.server), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns messages with agents' own models."""
        messages = super().configure_evaluate(server_round, arrays, config, grid)
        sampled = {message.metadata.dst_node_id for message in messages}
        present = [node for node in self.node_ids if node in sampled]
        return self._address_own_models(present, config, MessageType.EVALUATE)

    def _address_own_models(
        self, nodes: list[int], config: ConfigRecord, message_type: str
    ) -> list[Message]:
        def content(node: int) -> RecordDict:
            own = {self.arrayrecord_key: self.model_of(node), self.configrecord_key: config}
            return RecordDict(own)

        return [Message(content(node), node, message_type) for node in nodes]

    def _read_reply(self, reply: Message) -> tuple[dict[str, np.ndarray], float]:
        """Returns the arrays and the number of examples of a reply, or raises."""
        arrays, metrics = reply.content.array_records, reply.content.metric_records
        if len(arrays) != 1 or len(metrics) != 1:
            raise ValueError(
                "it must hold one ArrayRecord and one MetricRecord, "
                f"got {len(arrays)} and {len(metrics)}."
            )
        (record,), (metric,) = arrays.values(), metrics.values()
        examples: Any = metric.get(self.weighted_by_key)
        if not isinstance(examples, int | float) or not 0 < examples < math.inf:
            raise ValueError(
                f"`{self.weighted_by_key}` must be a number of examples above 0, got {examples!r}."
            )
        found = {name: array.numpy() for name, array in record.items()}
        for name, array in found.items():
            if not jax.numpy.issubdtype(array.dtype, np.floating):
                raise ValueError(f"arrays must be floating numbers, got {array.dtype} in {name!r}.")
        shapes = {name: array.shape for name, array in found.items()}
        wanted = {name: leaf.shape[1:] for name, leaf in self._state.agents.items()}
        if shapes != wanted:
            raise ValueError(f"arrays must have the names and shapes sent, {wanted}, got {shapes}.")
        return found, examples

    def _make_record(self, params: Params, *index: int) -> ArrayRecord:
        """Returns arrays, or only the rows of the agent at `index`, as Flower sends them."""
        # The ellipsis keeps arrays without axes, which would become numbers.
        arrays = {name: np.asarray(params[name])[(*index, ...)] for name in self._names}
        return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def _keep_common(contents: list[RecordDict]) -> list[RecordDict]:
    """Returns replies with those metrics that all have, as numbers or lists of one length."""

    def forms(content: RecordDict) -> set[tuple[str, int | None]]:
        (metrics,) = content.metric_records.values()
        return {
            (name, len(value) if isinstance(value, list) else None)
            for name, value in metrics.items()
        }

    common = {name for name, _ in set.intersection(*map(forms, contents))}
    kept = []
    for content in contents:
        ((key, metrics),) = content.metric_records.items()
        left_out = sorted(set(metrics) - common)
        if left_out:
            log(WARNING, "aggregate_train: metrics that not all have are left out: %s", left_out)
        some = MetricRecord({name: metrics[name] for name in metrics if name in common})
        kept.append(RecordDict({**content, key: some}))
    return kept

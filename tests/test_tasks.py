"""Tasks: losses, metrics against scikit-learn, and runs of every named task."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from sklearn import metrics as sk
from sklearn.datasets import load_breast_cancer, load_diabetes

import fairjax as fj
from fairjax.experiments import tracking
from fairjax.tasks import METRICS, Task, base

BINARY, MULTI = 2, 5


def softmax(outputs):
    powers = np.exp(outputs.astype(np.float64) - outputs.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def drawn(kind, num, seed, ties=False):
    """Outputs and targets of some examples; with ties, outputs are whole numbers."""
    rng = np.random.default_rng(seed)
    if kind == "numbers":
        y = rng.normal(size=(num, 3)) * [1, 100, 0.01] + 50
        outputs = y + rng.normal(size=y.shape)
    elif kind == "labels":
        y = rng.random((num, 4)) < [0.5, 0.1, 0.9, 0.3]
        outputs = 3 * rng.normal(size=y.shape) + y
    else:
        weights = 0.8 ** np.arange(kind)
        y = rng.choice(kind, num, p=weights / weights.sum())
        outputs = 2 * rng.normal(size=(num, kind)) + 2 * np.eye(kind)[y]
    outputs = np.round(outputs) if ties else outputs
    return outputs.astype(np.float32), y.astype(np.int32 if y.ndim == 1 else np.float32)


def expected(name, outputs, y):
    """The metric by scikit-learn."""
    if name in ("mse", "mae", "r2"):
        function = {
            "mse": sk.mean_squared_error, "mae": sk.mean_absolute_error, "r2": sk.r2_score,
        }[name]  # fmt: skip
        return function(y.astype(np.float64), outputs.astype(np.float64))
    several = y.ndim == 2
    answers = outputs > 0 if several else outputs.argmax(1)
    if name == "accuracy":
        return sk.accuracy_score(y, answers)
    if name == "balanced_accuracy":
        return sk.balanced_accuracy_score(y, answers)
    if name == "macro_f1":
        return sk.f1_score(y, answers, average="macro", zero_division=0)
    if name == "log_loss":
        return sk.log_loss(y, softmax(outputs))
    if several:
        scores = outputs.astype(np.float64)
    elif outputs.shape[1] == 2:
        scores = outputs[:, 1].astype(np.float64) - outputs[:, 0]
    else:
        y = np.eye(outputs.shape[1])[y]
        scores = softmax(outputs)
    function = {"auc": sk.roc_auc_score, "average_precision": sk.average_precision_score}[name]
    return function(y, scores, average="macro")


KINDS = {
    **dict.fromkeys(
        ("accuracy", "balanced_accuracy", "macro_f1", "auc", "average_precision", "log_loss"),
        [BINARY, MULTI],
    ),
    **dict.fromkeys(("mse", "mae", "r2"), ["numbers"]),
}
LABELS = ("accuracy", "macro_f1", "auc", "average_precision")
CASES = [(name, kind) for name, kinds in KINDS.items() for kind in kinds]
CASES += [(name, "labels") for name in LABELS]


@pytest.mark.parametrize(("name", "kind"), CASES)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("num", [40, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_metrics_are_those_of_scikit_learn(name, kind, ties, num):
    outputs, y = drawn(kind, num, seed=num, ties=ties)
    if ties and kind == MULTI and name in ("auc", "average_precision"):
        pytest.skip("rounding of softmax unties what is equal")
    found = float(jax.jit(METRICS[name])(outputs, y))
    assert found == pytest.approx(expected(name, outputs, y), rel=1e-6, abs=1e-6)


@pytest.mark.slow
def test_a_large_test_set_loses_no_digits():
    outputs, y = drawn(BINARY, 300_000, seed=1)
    for name in ("accuracy", "auc", "average_precision", "log_loss"):
        assert float(METRICS[name](outputs, y)) == pytest.approx(
            expected(name, outputs, y), abs=1e-6
        )


@pytest.mark.slow
def test_scores_near_one_keep_their_order():
    """The softmax of 32 bits is 1 for all of these."""
    outputs = np.array([[0, 30, 0], [0, 40, 0], [0, 50, 0], [60, 0, 0], [0, 0, 60]], np.float32)
    y = np.array([0, 1, 1, 0, 2])
    assert float(METRICS["auc"](outputs, y)) == pytest.approx((1 / 2 + 1 + 1) / 3, abs=0.2)
    ordered = METRICS["auc"](outputs[:, :2], np.array([0, 1, 1, 0, 0]))
    assert float(ordered) == 1


@pytest.mark.parametrize("name", ["auc", "average_precision"])
def test_classes_without_examples(name):
    outputs, y = drawn(MULTI, 50, seed=3)
    y = np.minimum(y, 1)
    one = METRICS[name](outputs, y)
    present = [
        expected(name, np.stack([np.zeros(50), np.log(p / (1 - p))], 1), (y == c).astype(int))
        for c, p in enumerate(softmax(outputs).T[:2])
    ]
    # As in scikit-learn a class without examples has the average precision 0, and no AUC.
    mean = np.mean(present) if name == "auc" else np.sum(present) / MULTI
    assert float(one) == pytest.approx(mean, abs=1e-6)
    assert np.isnan(METRICS["auc"](outputs, np.zeros(50, int)))


def test_the_log_loss_of_several_labels_is_their_mean():
    outputs, y = drawn("labels", 60, seed=0)
    each = [sk.log_loss(y[:, k], 1 / (1 + np.exp(-outputs[:, k].astype(float)))) for k in range(4)]
    assert float(METRICS["log_loss"](outputs, y)) == pytest.approx(np.mean(each), abs=1e-6)


def parts(x, y, test=0.25, **fields):
    """Training and test data of arrays, scaled."""
    order = np.random.default_rng(0).permutation(len(x))
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)[order]
    held, y = round(test * len(x)), y[order]
    made = [
        fj.data.Dataset(x[rows], y[rows], **fields) for rows in (slice(held, None), slice(held))
    ]
    return tuple(made)


@pytest.fixture(scope="module")
def diabetes():
    x, y = load_diabetes(return_X_y=True)
    return parts(x, (y - y.mean()) / y.std())


@pytest.fixture(scope="module")
def several():
    """Three labels for each example: from the features of breast cancer."""
    x, y = load_breast_cancer(return_X_y=True)
    labels = np.stack([y, x[:, 0] > np.median(x[:, 0]), x[:, 1] > np.quantile(x[:, 1], 0.9)], 1)
    return parts(x, labels)


@pytest.fixture(scope="module")
def imbalanced():
    """Two classes, of which one in about ten examples is the second."""
    x, y = load_breast_cancer(return_X_y=True)
    names = np.array(["healthy", "ill"])[1 - y]
    kept = np.flatnonzero((y == 1) | (np.arange(len(y)) % 5 == 0))
    return parts(x[kept], names[kept])


FIELDS = {"num_agents": 3, "rounds": 8, "model": "logistic"}


@pytest.mark.slow
def test_regression_from_data_to_report(diabetes, tmp_path):
    one = fj.Experiment(dataset=diabetes, task="regression", **FIELDS, learning_rate=0.01)
    result = one.run(tmp_path, track="csv")
    _, test = one.make_shards()
    model = one.make_model(test)
    for agent in range(3):
        outputs = np.asarray(model.apply(result.agent(agent), test.x)).ravel()
        for name, column in result.history.metrics.items():
            assert column[-1, agent] == pytest.approx(expected(name, outputs, test.y), rel=1e-5)
    np.testing.assert_array_equal(result.accuracies, result.history.metrics["r2"][-1])
    assert result.accuracies.max() > 0.2
    header = (tmp_path / "rounds.csv").read_text().splitlines()[0]
    assert header.startswith("round,agent,r2,trained_r2,")
    assert header.endswith("excluded,mae,mse,server_r2")
    again = fj.load_run(tmp_path, one)
    np.testing.assert_array_equal(again.history.metrics["mae"], result.history.metrics["mae"])
    from fairjax.report import write_run

    page = write_run(result, tmp_path).read_text()
    assert "mean final R2" in page
    assert "final MSE" in page
    assert fj.figures.accuracy(result).get_ylabel() == "test R2"
    assert fj.figures.accuracy(result.history).get_ylabel() == "test R2"
    assert fj.figures.partition(one.make_shards()[0]).get_xlabel() == "all"


@pytest.mark.parametrize(
    ("mechanism", "options"),
    [("cffl", {}), ("fedave", {}), ("fedrac", {}), ("iafl", {"performance": "held_out"})],
)
def test_shares_of_an_error_are_refused(diabetes, mechanism, options):
    experiment = fj.Experiment(
        dataset=diabetes, task="regression", metric="mse", mechanism=mechanism, options=options,
        **{**FIELDS, "model": "mlp"},
    )  # fmt: skip
    with pytest.raises(
        ValueError, match=f"`metric` must be better when .* {mechanism!r}.* got 'mse'"
    ):
        experiment.run()


@pytest.mark.slow
def test_a_lower_error_is_the_better_end(diabetes):
    one = fj.Experiment(
        dataset=diabetes, task="regression", metric="mse", **FIELDS, learning_rate=0.01
    )
    result = one.run()
    np.testing.assert_array_equal(result.accuracies, result.history.metrics["mse"][-1])
    swept = fj.sweep(one, seeds=[0, 1])
    row = swept.table().rows[0]
    assert row["best_mse"].mean < row["mean_mse"].mean < row["worst_mse"].mean
    np.testing.assert_allclose(
        swept[0].history.metrics["r2"], result.history.metrics["r2"], atol=1e-4
    )
    shards, _ = one.make_shards()
    found = float(one.utility()(result.agent(0)))
    apply = one.make_model(shards.data).apply
    errors = np.ravel(apply(result.agent(0), shards.validation.x))
    assert found == pytest.approx(-np.mean((errors - shards.validation.y) ** 2), rel=1e-5)


@pytest.mark.slow
def test_several_labels(several):
    one = fj.Experiment(dataset=several, task="multi_label", metric="auc", **FIELDS)
    result = one.run()
    assert result.accuracies.min() > 0.5
    assert sorted(result.history.metrics) == ["accuracy", "auc", "average_precision", "macro_f1"]
    compared = fj.compare(one, ["cgsv", "fedavg"], seeds=[0, 1])
    assert "mean_auc_vs_cgsv" in compared.table().columns
    assert "mean_macro_f1_%" in compared.table().columns


@pytest.mark.slow
def test_an_imbalanced_set_by_auc(imbalanced, tmp_path):
    assert imbalanced[0].class_names == ("healthy", "ill")
    one = fj.Experiment(dataset=imbalanced, task="class_weighted", metric="auc", **FIELDS)
    result = one.run(tmp_path / "first")
    assert result.accuracies.min() > 0.8
    by_class = result.class_accuracies()
    counts = result.confusion(1)
    assert by_class.shape == (3, 2)
    assert counts.sum() == len(imbalanced[1])
    np.testing.assert_allclose(by_class[1], np.diagonal(counts) / counts.sum(1))
    np.testing.assert_allclose(
        by_class.mean(1), result.history.metrics["balanced_accuracy"][-1], rtol=1e-6
    )
    drawn = fj.figures.partition(one.make_shards()[0])
    assert [text.get_text() for text in drawn.get_xticklabels()] == ["healthy", "ill"]
    compared = fj.compare(one, ["cgsv", "fedavg"], seeds=[0, 1], out=tmp_path / "seeds")
    again = fj.compare(one, ["cgsv", "fedavg"], seeds=[0, 1], out=tmp_path / "seeds")
    assert str(again.table()) == str(compared.table())


def test_weights_of_classes():
    train = fj.data.Dataset(np.zeros((4, 1)), [0, 0, 0, 1], num_classes=2)
    outputs, y = jnp.zeros((2, 2)), jnp.array([0, 1])
    losses = fj.tasks.class_weighted(train).loss(outputs, y)
    np.testing.assert_allclose(losses, np.log(2) * np.array([4 / 6, 4 / 2]), rtol=1e-6)
    losses = fj.tasks.class_weighted(train, weights=[0, 3]).loss(outputs, y)
    np.testing.assert_allclose(losses, np.log(2) * np.array([0, 3]), rtol=1e-6)


def test_losses_of_several_columns_are_means_over_them():
    numbers = fj.data.Dataset(np.zeros((2, 1)), [[0.0, 1.0], [2.0, 3.0]])
    found = fj.tasks.regression(numbers).loss(jnp.array([[1.0, 4.0], [2.0, 1.0]]), numbers.y)
    np.testing.assert_allclose(found, [(1 + 9) / 2, 4 / 2])
    labels = fj.data.Dataset(np.zeros((2, 1)), [[0.0, 1.0], [1.0, 1.0]])
    found = fj.tasks.multi_label(labels).loss(jnp.array([[0.0, 0.0], [2.0, 0.0]]), labels.y)
    np.testing.assert_allclose(
        found, [np.log(2), (np.log1p(np.exp(-2)) + np.log(2)) / 2], rtol=1e-6
    )


def pinball(outputs, y):
    errors = y - outputs.squeeze(-1)
    return jnp.maximum(0.9 * errors, -0.1 * errors)


def mean_pinball(outputs, y):
    return pinball(outputs, y).mean()


@pytest.mark.slow
def test_a_task_of_ones_own(diabetes, tmp_path):
    task = Task(
        pinball, {"pinball": mean_pinball, "mae": METRICS["mae"]}, lower_is_better="pinball"
    )
    assert task.sign == -1
    assert task.lower_is_better == ("pinball", "mae")
    one = fj.Experiment(dataset=diabetes, task=task, **FIELDS)
    result = one.run(tmp_path)
    assert one.shown.name == "pinball"
    assert one.shown.lower_is_better
    assert np.isfinite(result.accuracies).all()
    assert fj.load_run(tmp_path, one).history.metrics.keys() == {"pinball", "mae"}
    same = fj.Experiment(dataset=diabetes, task=lambda train: task, **FIELDS).run()
    np.testing.assert_array_equal(same.accuracies, result.accuracies)


@pytest.mark.slow
def test_a_federation_takes_a_task(diabetes):
    train, test = diabetes
    shards = fj.data.uniform(train, num_agents=2)
    fed = fj.federation(
        model=fj.models.mlp(train), mechanism=fj.mechanisms.fedavg(), optimizer=optax.sgd(0.01),
        task=fj.tasks.regression(train),
    )  # fmt: skip
    state, history = fj.run(jax.random.key(0), fed, shards, test, num_rounds=2)
    assert fed.evaluate(state.agents, test) == pytest.approx(history.accuracies[-1], rel=1e-6)
    assert set(fed.measure(state.agents, test)) == {"r2", "mse", "mae"}


def numbers(**fields):
    return fj.data.Dataset(np.ones((8, 2)), np.arange(8.0), **fields)


@pytest.mark.parametrize(
    "loss",
    [
        lambda outputs, y: ((outputs - y) ** 2)[:, 0],
        lambda outputs, y: ((outputs - y) ** 2).max(-1),
        lambda outputs, y: (jnp.sort(outputs[:, 0]) - jnp.sort(y)) ** 2,
        lambda outputs, y: (jnp.log(outputs) - y**2).mean(1),  # nan for some outputs
    ],
)
def test_a_loss_that_mixes_examples_is_warned_of(loss):
    task = Task(loss, {"mse": METRICS["mse"]})
    outputs = jax.ShapeDtypeStruct((8, 1), jnp.float32)
    with pytest.warns(UserWarning, match="depends on the other examples of its batch"):
        task._warn_of_mixed(outputs, np.arange(8.0, dtype=np.float32))
    right = Task(lambda outputs, y: (outputs[:, 0] - y) ** 2, {"mse": METRICS["mse"]})
    right._warn_of_mixed(outputs, np.arange(8.0, dtype=np.float32))


@pytest.mark.parametrize("name", ["trained_error", "server_error", "error_std", "error_vs_x"])
def test_a_metric_must_not_have_the_name_of_another_ones_column(name):
    with pytest.raises(ValueError, match=f"must not have the name '{name}' beside 'error'"):
        Task(pinball, {"error": mean_pinball, name: mean_pinball})
    assert Task(pinball, {name: mean_pinball}).main == name


@pytest.mark.slow
def test_records_have_the_columns_that_no_metric_may_have():
    one = fj.Experiment(dataset="blobs", num_agents=2, rounds=1, model="logistic")
    row = tracking._row(one.run().history, 0, "accuracy", 0)
    ours = {name for name in row.agents if "accuracy" not in name}
    assert {"round", "agent"} | ours == set(base.COLUMNS)


YS = np.arange(8) % 2, np.zeros(8, int)


def test_targets_far_from_zero_cause_a_warning():
    with pytest.warns(UserWarning, match="`y` has mean 150 and standard deviation 1"):
        fj.tasks.regression(fj.data.Dataset(x=[[0.5], [1.5]], y=[149.0, 151.0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fj.Experiment(task="regresion"), "Did you mean 'regression'"),
        (lambda: fj.Experiment(metric="acc"), "Unknown metric 'acc'"),
        (lambda: fj.Experiment(task="regression").run(), "The task regression needs numbers"),
        (
            lambda: fj.Experiment(dataset=(numbers(), numbers()), num_agents=2).run(),
            "The task classification needs classes",
        ),
        (lambda: fj.tasks.multi_label(numbers()), r"as a table \[n, K\] of 0 and 1"),
        (lambda: fj.data.dirichlet(numbers(), num_agents=2), "dirichlet needs classes"),
        (lambda: fj.data.class_imbalance(numbers(), num_agents=2), "class_imbalance needs classes"),
        (
            lambda: fj.Experiment(
                dataset=(numbers(), numbers()), num_agents=2, task="regression",
                behaviours={"label_flip": 1},
            ).run(),
            "`label_flip` needs classes",
        ),
        (lambda: Task(pinball, {}), "at least one metric"),
        (lambda: Task(pinball, ["mse", "x"]), "Unknown metric 'x'"),
        (lambda: Task(pinball, {"one two": mean_pinball}), "letters, digits and _"),
        (lambda: Task("mse", ["mse"]), "`loss` must be a function"),
        (lambda: Task(pinball, ["mse"], main="r2"), "Unknown metric 'r2'"),
        (
            lambda: fj.Experiment(
                dataset=(numbers(), numbers()), num_agents=2, task=Task(mean_pinball, ["mse"])
            ).run(),
            r"The task's loss must return a floating number for each example, of shape \(2,\)",
        ),
        (
            lambda: fj.Experiment(
                dataset=(numbers(), numbers()), num_agents=2,
                task=Task(lambda outputs, y: outputs @ y, ["mse"]),
            ).run(),
            "The task's loss does not take outputs of shape",
        ),
        (
            lambda: fj.Experiment(
                dataset=(numbers(), numbers()), num_agents=2,
                task=Task(pinball, {"all": pinball}),
            ).run(),
            "The task's metric 'all' must return one floating number",
        ),
        (lambda: fj.tasks.class_weighted(numbers()), "needs classes"),
        (lambda: fj.Experiment(metric="mse").run(), "The metric 'mse' needs numbers"),
        (
            lambda: fj.Experiment(
                dataset=(numbers(), numbers()), num_agents=2, task="regression", metric="auc"
            ).run(),
            "for the metric 'auc'",
        ),
        (
            lambda: fj.Experiment(
                dataset=(numbers(), numbers()), num_agents=2, task="regression",
                model=lambda train: nn.Dense(2),
            ).run(),
            r"outputs of shape \(2, 2\) do not match y of shape \(2,\)",
        ),
        (
            lambda: fj.Experiment(
                dataset=[fj.data.Dataset(np.ones((8, 2)), y, num_classes=2) for y in YS],
                num_agents=2, metric="auc",
            ).run(),
            "`test` must hold examples with and without a class for the metric 'auc'",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_held_out_data_that_give_a_metric_nothing_to_rank_are_refused_where_they_are_measured():
    rng = np.random.default_rng(0)
    test = fj.data.Dataset(rng.normal(size=(60, 4)), np.arange(60) % 2, num_classes=2)
    shards = fj.data.uniform(test, num_agents=2)
    ones = test.take(np.flatnonzero(test.y == 1))
    shards = dataclasses.replace(shards, validation=ones)
    one = fj.Experiment(
        dataset=(test, test), shards=shards, model="logistic", rounds=1, metric="auc",
        local_epochs=1,
    )  # fmt: skip
    message = "`validation` must hold examples with and without a class for the metric 'auc'"
    for name, options in (("cffl", {}), ("eci", {}), ("iafl", {"performance": "held_out"})):
        judging = dataclasses.replace(one.with_mechanism(name), options=options)
        for play in (judging.run, lambda judging=judging: fj.sweep(judging, seeds=[0])):
            with pytest.raises(ValueError, match=message):
                play()
    with pytest.raises(ValueError, match=message):
        one.utility()
    found = one.with_mechanism("cgsv").run()  # which measures nothing
    assert np.isfinite(found.history.contributions).all()
    with pytest.raises(ValueError, match=message):  # whichever is first
        fj.compare(one, ["cgsv", "cffl"], seeds=[0, 1])


@pytest.mark.slow
def test_held_out_data_of_every_seed_are_checked():
    """Those of seed 0 have no positive example, those of seed 3 have one."""
    rng = np.random.default_rng(0)
    y = np.zeros((60, 2))
    y[:4] = 1
    data = fj.data.Dataset(rng.normal(size=(60, 4)), y)
    one = fj.Experiment(
        dataset=(data, data), task="multi_label", metric="auc", mechanism="cffl", rounds=1,
        model="logistic", num_agents=2, local_epochs=1, split="uniform",
    )  # fmt: skip
    with pytest.raises(ValueError, match="`validation` must hold examples with and without"):
        fj.sweep(one, seeds=[3, 0])


@pytest.mark.slow
def test_a_loss_that_broadcasts_over_examples_is_warned_of():
    data = fj.data.Dataset(np.arange(24.0).reshape(12, 2) / 24, np.arange(12.0) / 6)
    own = fj.Experiment(dataset=(data, data), model="mlp", num_agents=2, rounds=1, local_epochs=1)

    def metric(outputs, y):
        return 0.5  # a number of Python

    for loss, words in (
        (lambda o, y: ((o - y) ** 2).mean(-1), "depends on the other examples"),
        (lambda o, y: ((o - y[:, None]) ** 2).mean(-1), None),
    ):
        task = Task(loss, {"half": metric, "mse": METRICS["mse"]})
        with warnings.catch_warnings() if words is None else pytest.warns(UserWarning, match=words):
            result = dataclasses.replace(own, task=task, mechanism="standalone").run()
        assert (result.accuracies == 0.5).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(fj.mechanisms.OURS))
def test_every_mechanism_takes_numbers(name, diabetes):
    one = fj.Experiment(
        dataset=diabetes, task="regression", **{**FIELDS, "rounds": 1, "model": "mlp"}
    )
    assert np.isfinite(one.with_mechanism(name).run().accuracies).all()


def test_numbers_of_a_constant_column_and_labels_of_another_shape():
    constant = np.full((7, 1), 0.1, np.float32)
    assert float(METRICS["r2"](constant, constant)) == 1
    assert float(METRICS["r2"](constant + 1, constant)) == 0
    with pytest.raises(ValueError, match="do not match"):
        METRICS["accuracy"](np.ones((4, 1)), np.ones((4, 3)))


@pytest.mark.parametrize("name", ["auc", "average_precision"])
def test_scores_that_hold_nan_have_no_ranking(name):
    outputs = np.array([[0, 0.9], [0, 0.8], [0, 0.1], [0, np.nan]], np.float32)
    assert np.isnan(fj.tasks.METRICS[name](outputs, np.array([0, 0, 1, 1])))
    diverged = jnp.array([[np.inf, np.inf]] * 4)
    assert np.isnan(fj.tasks.METRICS[name](diverged, np.array([0, 0, 1, 1])))


def test_examples_whose_outputs_are_all_equal_tie():
    rng = np.random.default_rng(0)
    outputs = np.repeat(rng.normal(size=(500, 1)).astype(np.float32), 3, axis=1)
    assert fj.tasks.METRICS["auc"](outputs, rng.integers(0, 3, 500)) == 0.5


@pytest.mark.slow
def test_a_loss_that_mixes_examples_is_warned_of_where_records_are_kept(tmp_path):
    def mixing(outputs, y):
        own = optax.softmax_cross_entropy_with_integer_labels(outputs, y)
        return own + 0.1 * jnp.var(outputs, axis=0).sum()

    one = fj.Experiment(
        dataset="blobs", num_agents=2, rounds=1, model="logistic", task=Task(mixing, ["accuracy"])
    )
    with pytest.warns(UserWarning, match="depends on the other examples of its batch: it is"):
        one.run(tmp_path)


def test_a_model_that_answers_once_for_all_examples_is_refused():
    digits, _ = fj.data.load("digits")

    def init(key):
        return {"kernel": jnp.zeros((64, 10))}

    def apply(params, x, key=None):
        return (x.reshape(len(x), -1) @ params["kernel"]).mean(0, keepdims=True)

    shards = fj.data.uniform(digits, num_agents=2, samples_per_agent=4)
    fed = fj.federation(
        model=fj.models.Model(init, apply), mechanism=fj.mechanisms.fedavg(),
        optimizer=optax.sgd(0.1), local_epochs=1, batch_size=4,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"one for each of B=2 examples, got float32\[1, 10\]"):
        fed.init(jax.random.key(0), shards)

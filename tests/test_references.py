"""References: parts of one's own by name, in files and in registries."""

import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from flax import linen as nn

import fairjax as fj
from fairjax import figures
from fairjax.cli import main
from fairjax.mechanisms import REGISTRY

FILE = """
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import fairjax as fj


def loader():
    x = np.random.default_rng(0).normal(size=(90, 3))
    data = fj.data.Dataset(x=x, y=x[:, 0] > 0, num_classes=2)
    return data.take(range(60)), data.take(range(60, 90))


def network(train):
    return nn.Dense(train.num_classes)


def factory(beta=1.0):
    return fj.mechanisms.cgsv(beta=beta)


broken = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def experiment(**fields):
    parts = {
        "dataset": "mine.py:loader",
        "model": "mine.py:network",
        "mechanism": "mine.py:factory",
    }
    return fj.Experiment(**{**parts, "num_agents": 3, "rounds": 2, **fields})


@pytest.mark.slow
def test_parts_in_a_file_are_found_again(here, capsys):
    first = experiment(beta=2.0).run("out")
    assert experiment(beta=2.0).run("out").accuracies.tolist() == first.accuracies.tolist()
    again = fj.load_run("out")
    assert again.experiment.description() == first.experiment.description()
    main(["show", "out"])
    printed = capsys.readouterr().out
    assert "on loader" in printed
    page = (here / "out" / "report.html").read_text()
    assert f"--mechanism {here / 'mine.py'}:factory" in page
    assert f"dataset='{here / 'mine.py'}:loader'" in page.replace("&#x27;", "'")


@pytest.mark.slow
def test_a_changed_part_is_named(here):
    experiment().run("out")
    (here / "mine.py").write_text(FILE.replace("x[:, 0] > 0", "x[:, 1] > 0"))
    with pytest.raises(ValueError, match="not found again: dataset=loader .from .*mine.py:loader"):
        fj.load_run("out")
    with pytest.raises(ValueError, match="differs: dataset="):
        experiment().run("out")


def test_a_file_that_moved_holds_the_same_parts(here):
    result = experiment().run("out")
    (here / "mine.py").rename(here / "moved.py")
    moved = experiment(
        dataset="moved.py:loader", model="moved.py:network", mechanism="moved.py:factory"
    )
    assert moved.run("out").accuracies.tolist() == result.accuracies.tolist()
    assert moved.name == result.experiment.name


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"mechanism": "none.py:factory"}, "there is no file"),
        ({"mechanism": "mine.py:factor"}, "defines only .*factory"),
        ({"mechanism": "mine.py"}, "as mine.py:factory, got 'mine.py', but .* only .*factory"),
        ({"mechanism": "mine.py:"}, "defines only .*factory"),
        ({"mechanism": "mine.py:broken"}, "`mechanism` must be one of"),
        ({"dataset": "mine.py:network"}, "calling it without arguments fails"),
        ({"dataset": "mine.py:broken"}, "`dataset` must be a name"),
        ({"model": "mine.py:broken"}, "`model` must be one of"),
        ({"mechanism": "wrong.py:factory"}, "importing it fails: ZeroDivisionError"),
    ],
)
def test_what_a_file_does_not_hold_is_said(here, fields, why):
    (here / "wrong.py").write_text("1 / 0")
    with pytest.raises(ValueError, match=why):
        experiment(**fields)


def test_a_function_that_makes_no_model_is_refused(here):
    with pytest.raises(ValueError, match="`model` must be a function of the training data"):
        experiment(model="mine.py:loader").run()
    with pytest.raises(ValueError, match="which makes 3"):
        experiment(model=lambda train: 3).run()


def test_a_flax_module_is_a_model(here):
    result = experiment(model=nn.Dense(2)).run()
    assert result.agent(0)["kernel"].shape == (3, 2)


@pytest.mark.slow
def test_registered_parts_are_known_by_name(here, tmp_path, capsys):
    data = fj.data.load("blobs")

    def mine():
        """A mechanism of a test."""
        return fj.mechanisms.fedavg()

    def blank():
        """ """
        return data

    fj.data.register("my_blobs", blank)
    fj.mechanisms.register("my_fedavg", mine)
    fields = {"num_agents": 2, "rounds": 1, "model": "logistic"}
    result = fj.Experiment(dataset="my_blobs", mechanism="my_fedavg", **fields).run(tmp_path / "a")
    wanted = fj.Experiment(dataset="blobs", mechanism="fedavg", **fields).run()
    np.testing.assert_array_equal(result.accuracies, wanted.accuracies)
    main(["list"])
    assert "A mechanism of a test" in capsys.readouterr().out
    del REGISTRY["my_fedavg"]
    with pytest.raises(ValueError, match="Unknown mechanism 'my_fedavg'"):
        fj.load_run(tmp_path / "a")


@pytest.mark.parametrize("name", ["cgsv", "digits", "no word", "", 3, None])
def test_a_name_is_new_and_a_word(name):
    register = fj.data.register if name == "digits" else fj.mechanisms.register
    with pytest.raises(ValueError, match="`name` must be"):
        register(name, lambda: None)


@pytest.mark.slow
def test_a_name_that_is_registered_anew_means_the_new_part():
    experiment = fj.Experiment(dataset="blobs", num_agents=2, rounds=2, model="logistic")
    worst = []
    for factory in (fj.mechanisms.fedavg, fj.mechanisms.standalone):
        fj.mechanisms.register("changing", factory)
        changing = experiment.with_mechanism("changing")
        worst.append(fj.sweep(changing, seeds=[0]).history.accuracies[0, -1].tolist())
    assert worst[0][0] == worst[0][1]
    assert worst[1][0] != worst[1][1]


def test_a_loader_returns_two_data_sets():
    fj.data.register("nothing", lambda: 3)
    with pytest.raises(ValueError, match="`loader` must return training and test data"):
        fj.data.load("nothing")


@pytest.mark.slow
def test_figures_of_rounds_take_a_history():
    import jax

    train, test = fj.data.load("blobs")
    shards = fj.data.power_law(train, num_agents=3, seed=0)
    federation = fj.federation(
        model=fj.models.logistic(train), mechanism=fj.mechanisms.cgsv(), optimizer=optax.sgd(0.1)
    )
    _, history = fj.run(jax.random.key(0), federation, shards, test, num_rounds=2)
    for draw in (
        figures.accuracy,
        figures.contributions,
        figures.importance,
        figures.reward_fractions,
    ):
        axes = draw(history)
        assert len(axes.lines) >= 3
        assert axes.figure.legends
    with pytest.raises(ValueError, match="`result` must be a Result"):
        figures.fairness(history)
    plt.close("all")

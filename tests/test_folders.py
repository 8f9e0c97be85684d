"""Folders: what is there is not lost, and a run goes on only where it gives the same numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fairjax as fj
from fairjax.cli import main
from fairjax.experiments import folders, load_comparison, records
from fairjax.experiments.run_folder import RunFolder
from fairjax.files import DamagedError
from fairjax.mechanisms import Context, Mechanism, Outcome

SMALL = fj.Experiment(
    num_agents=2, rounds=40, model="logistic", samples_per_agent=20, local_epochs=1, eval_every=10,
    mechanism="fedavg", learning_rate_decay=0.95,
)  # fmt: skip


class StoppedError(Exception):
    """Stops a run in the middle."""


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr("fairjax.experiments.playing.CHECKPOINT_SECONDS", (0.0, 0.0))


def stop_in(experiment, out, **options):
    """Runs an experiment until about half of its rounds are played."""

    def watch(name, done, total):
        if name != "standalone" and done >= total / 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        experiment.run(out, watch=watch, **options)


def remembering():
    """Returns a mechanism whose state has entries with names that are hard for files."""

    def init(num_agents):
        return {
            "a.b": jnp.zeros(()), "a": {"b": jnp.ones(())}, "x/y": jnp.zeros(()),
            "c": [jnp.zeros(())], "c.0": jnp.ones(()), "/../up": jnp.zeros(()),
            "long" * 80: jnp.zeros(()), "nothing": jnp.zeros((num_agents, 0)),
        }  # fmt: skip

    def update(updates, state, context: Context):
        numbers = [jnp.sum(leaf) for leaf in jax.tree.leaves(state)]
        factor = 1 / (1 + sum(number * (place + 1) for place, number in enumerate(numbers)))
        mean = fj.trees.weighted_sum(context.shares * factor, updates)
        unknown = jnp.full(len(context.shares), jnp.nan)
        paid = fj.trees.broadcast(len(context.shares), mean)
        state = {
            **state,
            "a.b": state["a.b"] + 0.25,
            "a": {"b": state["a"]["b"] + 0.5},
            "c.0": state["c.0"] + 0.125,
        }
        return Outcome(mean, paid, unknown, unknown, jnp.ones(len(context.shares))), state

    return Mechanism(init, update)


@pytest.mark.slow
def test_entries_of_a_state_are_told_apart_whatever_their_names(tmp_path):
    experiment = dataclasses.replace(SMALL, mechanism=remembering())
    stop_in(experiment, tmp_path / "stopped")
    again, whole = (experiment.run(tmp_path / name) for name in ("stopped", "whole"))
    same = [one.state._replace(key=0) for one in (again, whole)]
    jax.tree.map(np.testing.assert_array_equal, *same)
    loaded = fj.load_run(tmp_path / "stopped", experiment)
    jax.tree.map(np.testing.assert_array_equal, loaded.state._replace(key=0), same[0])


@pytest.mark.slow
def test_a_longer_run_that_cannot_go_on_leaves_the_finished_one(tmp_path):
    first = SMALL.run(tmp_path)
    for sums in tmp_path.glob("checkpoint/*/files.json"):
        sums.write_text("{")
    with pytest.raises(DamagedError, match="No checkpoint in .* can be read"):
        dataclasses.replace(SMALL, rounds=50).run(tmp_path)
    with pytest.warns(UserWarning, match="final state .* cannot be read"):
        again = fj.load_run(tmp_path)
    np.testing.assert_array_equal(first.accuracies, again.accuracies)


@pytest.mark.slow
def test_a_run_that_starts_over_and_is_stopped_does_not_give_the_old_result(tmp_path):
    whole = SMALL.run(tmp_path)
    stop_in(SMALL, tmp_path, resume=False)
    with pytest.raises(ValueError, match="not finished"):
        fj.load_run(tmp_path)
    again = SMALL.run(tmp_path)
    jax.tree.map(
        np.testing.assert_array_equal, again.state._replace(key=0), whole.state._replace(key=0)
    )


@pytest.mark.slow
def test_a_run_goes_on_only_under_the_same_settings(tmp_path):
    stop_in(SMALL, tmp_path)
    path = tmp_path / records.EXPERIMENT
    record = records.read_json(path)
    for name in records.SETTINGS:
        there = {**record["settings"], name: "another"}
        records.write_json(path, {**record, "settings": there})
        with pytest.raises(ValueError, match=f"`{name}` must be another to go on"):
            SMALL.run(tmp_path)
    records.write_json(path, {**record, "environment": {**record["environment"], "jax": "0.0.1"}})
    with pytest.warns(UserWarning, match="goes on elsewhere than it began.*jax 0.0.1, here"):
        SMALL.run(tmp_path)


@pytest.mark.parametrize("command", ["audit --seeds 0:2", "compare --mechanisms fedavg"])
def test_a_directory_of_somebody_else_is_refused(command, tmp_path, capsys):
    (tmp_path / "report.html").write_text("precious")
    small = "--dataset blobs --model logistic --num-agents 2 --rounds 1"
    with pytest.raises(SystemExit):
        main([*f"{command} {small}".split(), "--out", str(tmp_path)])
    assert "must be empty or hold the same of fairjax" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "report.html").read_text() == "precious"


def test_an_audit_does_not_replace_another(tmp_path):
    audited = {"mechanism": "cgsv", "seed": [0, 1]}
    folders.check_audit(tmp_path, audited)
    records.write_json(tmp_path / folders.AUDIT, audited)
    folders.check_audit(tmp_path, audited)
    with pytest.raises(ValueError, match="differs: mechanism='cgsv' there, 'rr' here"):
        folders.check_audit(tmp_path, {"mechanism": "rr", "seed": [0, 1]})
    with pytest.raises(ValueError, match="must not be the directory of another audit"):
        folders.check_free(tmp_path, records.COMPARISON)


def test_a_damaged_list_of_mechanisms_is_made_again(tmp_path):
    for name in ("cgsv", "fedavg", "standalone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / records.RESULT).write_text("{}")
    (tmp_path / records.COMPARISON).write_text("{")
    with pytest.warns(UserWarning, match="comparison.json .* is written again"):
        folders.add_to_comparison(tmp_path, ["cgsv"])
    found = records.read_json(tmp_path / records.COMPARISON)["mechanisms"]
    assert found == ["cgsv", "fedavg"]


def change_settings(folder):
    """Writes that a run was played under another random generator."""
    path = folder / records.EXPERIMENT
    record = records.read_json(path)
    settings = {**record["settings"], "jax_default_prng_impl": "rbg"}
    records.write_json(path, {**record, "settings": settings})


@pytest.mark.slow
def test_finished_parts_under_other_settings_are_not_mixed_with_the_rest(tmp_path):
    def stop(name, done, total):
        if name != "standalone":
            raise StoppedError

    with pytest.raises(StoppedError):
        SMALL.run(tmp_path / "run", watch=stop)
    change_settings(tmp_path / "run" / "standalone")
    fj.compare(SMALL, ["fedavg"], tmp_path / "compared", seeds=[0, 1])
    change_settings(tmp_path / "compared" / "standalone")
    message = "`jax_default_prng_impl` must be rbg"
    with pytest.raises(ValueError, match=message):
        SMALL.run(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        fj.compare(SMALL, ["fedavg", "qffl"], tmp_path / "compared", seeds=[0, 1])
    fj.compare(SMALL, ["fedavg"], tmp_path / "compared", seeds=[0, 1])  # all is finished


@pytest.mark.slow
def test_a_longer_run_under_other_settings_leaves_the_finished_one(tmp_path):
    first = SMALL.run(tmp_path)
    change_settings(tmp_path)
    longer = dataclasses.replace(SMALL, rounds=50)
    with pytest.raises(ValueError, match="`jax_default_prng_impl` must be rbg"):
        longer.run(tmp_path)
    np.testing.assert_array_equal(first.accuracies, fj.load_run(tmp_path).accuracies)
    for sums in tmp_path.glob("checkpoint/*/files.json"):
        sums.write_text("{")
    assert longer.run(tmp_path, resume=False).history.accuracies.shape[0] == 50


@pytest.mark.slow
def test_starting_over_and_a_kill_leave_nothing_to_go_on_from(tmp_path):
    """A gamma that ends with the run: the checkpoints of a shorter run are those of another."""
    fields = {
        "dataset": "digits",
        "model": "logistic",
        "num_agents": 3,
        "learning_rate_decay": 0.99,
    }
    short = fj.Experiment(**fields, gamma="cosine:2.5:0.1", rounds=4)
    short.run(tmp_path)
    longer = dataclasses.replace(short, rounds=8)
    with pytest.raises(ValueError, match="`rounds` must stay at 4"):
        longer.run(tmp_path)

    def stop(name, done, total):
        if name == "standalone" and done:
            raise StoppedError

    with pytest.raises(StoppedError):
        longer.run(tmp_path, resume=False, watch=stop)
    resumed, whole = longer.run(tmp_path), longer.run()
    np.testing.assert_array_equal(resumed.history.importance, whole.history.importance)


SHORT = fj.Experiment(
    dataset="blobs", num_agents=2, rounds=2, model="logistic", gamma=1.0, learning_rate_decay=0.99
)


@pytest.mark.slow
def test_a_comparison_never_mixes_runs_of_different_lengths(tmp_path):
    fj.compare(SHORT, ["cgsv", "fedavg"], tmp_path)
    longer = dataclasses.replace(SHORT, rounds=4)
    with pytest.warns(UserWarning, match="has 4 rounds now, so it leaves out fedavg"):
        fj.compare(longer, ["cgsv"], tmp_path)
    found = load_comparison(tmp_path)
    assert {name: one.experiment.rounds for name, one in found.items()} == {"cgsv": 4}
    fj.compare(longer, ["fedavg"], tmp_path)
    assert list(load_comparison(tmp_path)) == ["cgsv", "fedavg"]
    dataclasses.replace(SHORT, rounds=5, mechanism="cgsv").run(tmp_path / "cgsv")
    with pytest.raises(ValueError, match="runs of equally many rounds.*'cgsv': 5, 'fedavg': 4"):
        load_comparison(tmp_path)


@pytest.mark.slow
def test_a_run_stays_in_its_directory_where_the_working_directory_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    SHORT.run("out", watch=lambda *_: monkeypatch.chdir(tmp_path / "other"))
    assert not list((tmp_path / "other").iterdir())
    assert fj.load_run(tmp_path / "out").state is not None


@pytest.mark.slow
def test_a_run_that_another_process_began_meanwhile_is_left_alone(tmp_path):
    mine = RunFolder(tmp_path, True)
    record = mine.claim(SHORT.description)
    theirs = dataclasses.replace(SHORT, seed=1).run(tmp_path)
    with pytest.raises(ValueError, match="seed=1 there, 0 here"):
        mine.begin(record)
    with pytest.raises(ValueError, match="seed=1 there, 0 here"):
        mine.lengthen(record, record)
    over = RunFolder(tmp_path, False)
    with pytest.raises(ValueError, match="seed=1 there, 0 here"):
        over.begin(record)
    np.testing.assert_array_equal(fj.load_run(tmp_path).accuracies, theirs.accuracies)


def test_a_final_state_of_other_settings_says_which(tmp_path):
    SHORT.run(tmp_path)
    jax.config.update("jax_default_prng_impl", "rbg")
    try:
        with pytest.warns(UserWarning, match="set jax_default_prng_impl=threefry2x32, here rbg"):
            assert fj.load_run(tmp_path).state is None
    finally:
        jax.config.update("jax_default_prng_impl", "threefry2x32")


@pytest.mark.slow
def test_a_kill_while_checkpoints_are_deleted_leaves_none_of_them_half(tmp_path, monkeypatch):
    SHORT.run(tmp_path)

    def killed(*_):
        raise StoppedError

    monkeypatch.setattr("shutil.rmtree", killed)
    longer = dataclasses.replace(SHORT, rounds=3)
    with pytest.raises(StoppedError):
        longer.run(tmp_path, resume=False)
    monkeypatch.undo()
    found = longer.run(tmp_path)
    np.testing.assert_array_equal(found.accuracies, longer.run().accuracies)


def test_a_path_must_be_unicode(tmp_path):
    with pytest.raises(ValueError, match="`out` must be a path of Unicode characters"):
        SHORT.run(f"{tmp_path}/su\udcffr")
    assert not list(tmp_path.iterdir())

"""Audit: trials are the runs that their names say, and rows are their differences."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import fairjax as fj
from fairjax.cli import main
from fairjax.experiments import MANIPULATIONS, Audit, Trial, trials
from fairjax.simulation import DATA, UPLOADS

BASE = fj.Experiment(num_agents=3, rounds=8, model="logistic", dataset="blobs", alpha=0.5)


def made_up(agent=1, **changes):
    """Two seeds, three agents: honest and one trial, in which agent 1 cheats."""
    honest = np.array([[0.5, 0.75, 0.875], [0.5, 0.75, 1.0]])
    cheated = np.array([[0.375, 1.0, 0.875], [0.5, 0.75, 0.5]])
    ranks = np.array([[0.125, 0.25, 0.625], [0.25, 0.5, 0.25]])
    trial = Trial("sign_flip", 1.0, agent, cheated, ranks)
    first = Trial("honest", 0.0, 0, honest, np.tile([0.125, 0.25, 0.625], (2, 1)))
    return Audit(dataclasses.replace(BASE, **changes).resolved(), (0, 1), first, (trial,))


def test_rows_are_differences_to_the_honest_run_in_points():
    (row,) = made_up().rows()
    assert row["own_gain"] == 12.5
    assert row["own_gain_se"] == pytest.approx(12.5)  # 25 and 0 over two seeds
    assert row["others_gain"] == -15.625
    assert row["worst_other"] == -25  # agent 2: 0 and -50
    assert (row["importance_rank"], row["honest_rank"]) == (1.5, 1)
    assert (made_up().worst_gain, made_up().worst_harm) == (12.5, 25)
    (summary,) = made_up().table().rows
    assert (summary["most"], summary["by_agent"], summary["worst_other"]) == (12.5, 1, -25)


def test_an_error_is_lost_by_who_gains():
    errors = made_up(task="regression", metric="mse")
    (row,) = errors.rows()
    assert row["own_gain"] == -0.125  # in the metric's own unit
    assert row["worst_other"] == 0.0625  # agent 0: .125 and 0; agent 2: 0 and .5


def test_gains_of_a_metric_in_its_own_unit_keep_their_digits():
    errors = made_up(task="regression", metric="mse")
    trials = [
        one._replace(accuracies=1e-6 * one.accuracies) for one in (errors.honest, *errors.trials)
    ]
    errors = dataclasses.replace(errors, honest=trials[0], trials=tuple(trials[1:]))
    (summary,) = errors.table().rows
    assert (summary["most"], summary["worst_other"]) == (-1.25e-7, 6.25e-8)
    assert "worst_gain=-1.25e-07" in repr(errors)


@pytest.mark.filterwarnings("error")
def test_an_agent_whose_model_diverges_has_lost_everything(tmp_path):
    errors = made_up(task="regression", metric="mse")
    cheated = errors.trials[0].accuracies.copy()
    cheated[0, 2] = np.inf
    errors = dataclasses.replace(errors, trials=(errors.trials[0]._replace(accuracies=cheated),))
    (row,) = errors.rows()
    assert (row["own_gain"], row["worst_other"], errors.worst_harm) == (-0.125, -np.inf, np.inf)
    cheated[:] = np.inf
    assert (errors.worst_gain, errors.worst_harm) == (-np.inf, np.inf)
    assert (
        "the largest loss of one other agent inf"
        in fj.report.write_audit(errors, tmp_path / "a" / "b").read_text()
    )


def test_only_the_stretch_that_gains_most_is_a_row():
    audit = made_up()
    trials = [audit.trials[0]._replace(manipulation="stretch", strength=x) for x in (1.5, 2.0)]
    trials.append(trials[0]._replace(strength=3.0, accuracies=audit.honest.accuracies))
    (row,) = dataclasses.replace(audit, trials=tuple(trials)).rows()
    assert row["strength"] == 1.5
    # An unknown gain counts least: both runs diverged.
    broken = [one._replace(accuracies=np.full((2, 3), np.nan)) for one in trials[1:2]]
    for some in ([*broken, trials[0]], [trials[0], *broken]):
        (row,) = dataclasses.replace(audit, trials=tuple(some)).rows()
        assert (row["strength"], row["own_gain"]) == (1.5, 12.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sign_flip", "free_rider_copy", "idle", "label_flip"])
def test_a_trial_is_the_run_in_which_that_agent_behaves_so(name):
    one = dataclasses.replace(BASE, behaviours={name: 1}, seed=3, mechanism="cgsv")
    (drawn,) = one.assigned_behaviours()
    honest = dataclasses.replace(one, behaviours={})
    audit = fj.audit(honest, [name], agents=[drawn.agent], seeds=[3])
    (trial,) = audit.trials
    for found, experiment in ((audit.honest, honest), (trial, one)):
        result = experiment.run()
        np.testing.assert_allclose(found.accuracies[0], result.accuracies, atol=0.03)
        np.testing.assert_allclose(found.importance[0], result.history.importance[-1], atol=0.01)


@pytest.mark.slow
def test_a_sybil_has_half_of_the_data_twice():
    audit = fj.audit(BASE, ["sybil"], agents=[2], seeds=[0])
    (trial,) = audit.trials
    shards, test = BASE.make_shards()
    rows = [shards.rows(agent) for agent in range(3)]
    halves = [*rows[:2], rows[2][::2], rows[2][1::2]]
    split = fj.data.Shards.from_indices(shards.data, halves)
    split = dataclasses.replace(split, validation=shards.validation)
    whole = (shards.data, test)
    one = dataclasses.replace(BASE, dataset=whole, shards=split, num_agents=4)
    # Objects have no preset; take what the preset chose for the name.
    known = BASE.resolved()
    fields = ("gamma", "optimizer", "learning_rate", "learning_rate_decay", "batch_size", "beta")
    one = dataclasses.replace(one, **{name: getattr(known, name) for name in fields})
    result = one.run()
    expected = [*result.accuracies[:2], result.accuracies[2:].max()]
    np.testing.assert_allclose(trial.accuracies[0], expected, atol=0.03)
    importance = result.history.importance[-1]
    np.testing.assert_allclose(
        trial.importance[0], [*importance[:2], importance[2:].sum()], atol=0.01
    )


def test_every_behaviour_but_collusion_is_a_manipulation():
    assert set(MANIPULATIONS) == {*DATA, *UPLOADS, "stretch", "sybil"} - {"collude"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"manipulations": ["sign_flp"]}, "Unknown manipulation .*Did you mean 'sign_flip'"),
        ({"manipulations": []}, "`manipulations`"),
        (
            {
                "experiment": dataclasses.replace(BASE, local_epochs={0: 2}),
                "manipulations": ["sybil"],
            },
            "got 'sybil', which needs one value of `local_epochs` for all agents",
        ),
        (
            {
                "experiment": dataclasses.replace(BASE, ranks=(2, 1, 1)),
                "manipulations": ["sybil"],
            },
            "got 'sybil', which needs one value of `ranks` for all agents",
        ),
        ({"agents": [3]}, "`agents` must be at most 2, got agents=3"),
        ({"agents": [1, 1]}, "`agents`"),
        ({"seeds": []}, "`seeds`"),
        ({"seeds": [-1]}, "`seed"),
        ({"experiment": None}, "`experiment`"),
        (
            {"experiment": dataclasses.replace(BASE, behaviours={"idle": 1})},
            "`experiment` must have honest agents only, got behaviours={'idle': 1}",
        ),
    ],
)
def test_what_cannot_be_audited_is_refused_with_the_rule(arguments, message):
    with pytest.raises(ValueError, match=message):
        fj.audit(**{"experiment": BASE, **arguments})


@pytest.mark.slow
def test_the_command_writes_tables_figure_and_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = (
        "audit --dataset blobs --model logistic --num-agents 3 --rounds 2 --mechanism accounts "
        "--manipulations sign_flip,stretch --agents 0,2 --seeds 0:2 --out out"
    )
    main(command.split())
    printed = capsys.readouterr().out
    assert "Cheating under accounts" in printed
    lines = (tmp_path / "out" / "audit.csv").read_text().splitlines()
    assert lines[0].startswith("manipulation,strength,agent,own_gain,own_gain_se,others_gain,")
    assert len(lines) == 1 + 2 * 2
    assert (tmp_path / "out" / "figures" / "audit.png").stat().st_size > 5000
    page = (tmp_path / "out" / "report.html").read_text()
    assert "What cheating pays under accounts" in page
    assert "uploads its update reversed, times a factor" in page


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True], ids=["an option", "an own mechanism"])
def test_two_for_one_is_left_out_where_a_mechanism_holds_numbers_of_agents(own):
    def quotas(updates, state, context):
        answer, state = fj.mechanisms.fedavg().update(updates, state, context)
        return answer._replace(fractions=answer.fractions * jnp.array([0.2, 0.5, 1.0])), state

    fields = {"mechanism": "iafl", "options": {"performance": (0.3, 0.5, 0.6)}}
    if own:
        fields = {"mechanism": fj.mechanisms.Mechanism(lambda num_agents: (), quotas)}
    experiment = fj.Experiment(num_agents=3, rounds=1, model="logistic", **fields)
    with pytest.raises(
        ValueError, match="got 'sybil', which needs a mechanism that takes one more"
    ):
        fj.audit(experiment, ["sign_flip", "sybil"], agents=[0], seeds=[0])
    shards, _ = experiment.make_shards()
    assert trials.why_not("sybil", experiment, [shards])
    assert not trials.why_not("sybil", experiment.with_mechanism("cgsv"), [shards])


def test_where_nobody_loses_there_is_no_harm():
    audit = made_up()
    better = audit.trials[0]._replace(accuracies=audit.honest.accuracies + 0.125)
    assert dataclasses.replace(audit, trials=(better,)).worst_harm == 0


@pytest.mark.parametrize(
    ("metric", "ends"), [("accuracy", [0.5, 0.4, 0.3]), ("log_loss", [0.5, 0.4, 0.2])]
)
def test_a_sybil_ends_with_the_better_model_and_the_importance_of_both(monkeypatch, metric, ends):
    one = dataclasses.replace(BASE, metric=metric)
    shards, test = one.make_shards()
    found = np.array([[[0.5, 0.4, 0.3, 0.2]]]), np.array([[[0.125, 0.25, 0.5, 0.125]]])
    monkeypatch.setattr(trials.Plays, "_play", lambda *_: found)
    (trial,) = trials.Plays([one], [2], [shards], test, None).split_in_two()
    np.testing.assert_array_equal(trial.accuracies, [ends])
    np.testing.assert_array_equal(trial.importance, [[0.125, 0.25, 0.625]])


def test_halves_are_every_second_example_and_held_out_data_stay():
    shards, _ = BASE.make_shards()
    halved, own = trials._halve(shards, 1), shards.rows(1)
    assert halved.validation is shards.validation
    np.testing.assert_array_equal(halved.rows(1), own[::2])
    np.testing.assert_array_equal(halved.rows(3), own[1::2])
    np.testing.assert_array_equal(halved.rows(2), shards.rows(2))


def test_data_of_every_seed_are_changed_by_that_seed(monkeypatch):
    on = [dataclasses.replace(BASE, seed=seed) for seed in (0, 3)]
    shards, seeds = [one.make_shards()[0] for one in on], []
    monkeypatch.setattr(trials, "change_data", lambda own, _, seed: seeds.append(seed) or own)
    monkeypatch.setattr(trials.Plays, "_play", lambda *_: (np.zeros((2, 1, 3)),) * 2)
    assert len(list(trials.Plays(on, [0, 2], shards, None, None).change_data("label_noise"))) == 2
    assert seeds == [0, 3, 0, 3]

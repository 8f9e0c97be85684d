"""A sweep is its single runs, in one program; its table is their means and spreads."""

import dataclasses

import numpy as np
import pytest

import fairjax as fj
from fairjax.tables import Spread, Table

SMALL = fj.Experiment(num_agents=3, rounds=3, model="logistic", samples_per_agent=20)


@pytest.mark.parametrize(
    "experiment",
    [
        SMALL,
        dataclasses.replace(SMALL, mechanism="iafl"),
        dataclasses.replace(SMALL, behaviours={"label_flip": 1, "sign_flip": 1}),
    ],
    ids=["cgsv", "a mechanism that draws", "dishonest agents"],
)
def test_a_point_of_a_sweep_is_the_run_of_its_fields(experiment):
    # In chunks of three, so that the last is padded.
    result = fj.sweep(experiment, seeds=[3, 4], learning_rate=[0.001, 0.01], points_at_once=3)
    assert len(result) == 4
    assert len({one.behaviours for one in result}) == len(
        {one.experiment.assigned_behaviours() for one in result}
    )
    for one in (result[1], result[2]):
        alone = one.experiment.run()
        assert one.experiment == alone.experiment
        np.testing.assert_allclose(
            one.standalone_accuracies, alone.standalone_accuracies, atol=1e-6
        )
        for found, wanted in zip(one.history, alone.history, strict=True):
            if wanted is not None:
                np.testing.assert_allclose(found, wanted, atol=2e-3)
        assert one.behaviours == alone.behaviours


def test_a_sweep_has_every_combination_and_a_row_for_each_but_the_seeds():
    result = fj.sweep(
        SMALL, seeds=[0, 1], split=["uniform", "power_law"], beta=[0.5, 2.0], alpha=[0.9]
    )
    points = [(one.split, one.alpha, one.beta, one.seed) for one in result.experiments]
    assert len(set(points)) == len(points) == 8
    table = result.table()
    assert len(table.rows) == 4
    for row in table.rows:
        same = [
            one
            for one in result
            if (one.experiment.split, one.experiment.beta) == (row["split"], row["beta"])
        ]
        best = [100 * one.accuracies.max() for one in same]
        assert row["best_%"].mean == pytest.approx(np.mean(best), abs=1e-4)
        assert row["best_%"].std == pytest.approx(np.std(best, ddof=1), abs=1e-4)
        assert row["seeds"] == 2


def test_a_spread_leaves_out_what_is_undefined_and_says_so():
    spread = Spread.over([0.5, float("nan"), 1.0])
    assert (spread.mean, spread.num, spread.of) == (0.75, 2, 3)
    assert str(spread) == "0.750 ± 0.354 (2 of 3)"
    assert str(Spread.over([float("nan")])) == "–"


def test_a_table_is_markdown_for_people_and_csv_for_programs():
    table = Table([{"name": "a", "value": Spread.over([1.0, 2.0])}, {"name": "b, c"}])
    assert table.markdown().splitlines()[2:] == ["| a | 1.500 ± 0.707 |", "| b, c |  |"]
    header, first, second = table.csv().splitlines()
    assert header == "name,value,value_std,value_num"
    assert first.startswith("a,1.5,0.7071")
    assert second == '"b, c",,,'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": []}, "`seeds` must be different values"),
        ({"beta": [1.0, 1.0]}, "`beta` must be different values"),
        ({"beta": [1.0, -1.0]}, "`beta` must be a finite number above 0"),
        ({"split": ["power"]}, "Did you mean 'power_law'"),
        ({"points_at_once": 0}, "`points_at_once`"),
    ],
)
def test_a_bad_axis_is_named_before_anything_runs(arguments, message):
    with pytest.raises(ValueError, match=message):
        fj.sweep(SMALL, **arguments)


def test_a_mechanism_that_lacks_a_coefficient_is_named():
    with pytest.raises(ValueError, match="'fedavg' does not take `beta`"):
        fj.sweep(dataclasses.replace(SMALL, mechanism="fedavg"), beta=[1.0])

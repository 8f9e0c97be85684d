"""Every study gives a table, a text and a figure, and goes on where it stopped."""

import json

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

import fairjax as fj
from fairjax import contributions
from fairjax.cli import main
from fairjax.studies import STUDIES, Cell, Study, approximation, conduct, when_fair
from fairjax.tables import Table, spreads

matplotlib.use("Agg")


def never():
    raise AssertionError("computed again")


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_a_study_leaves_a_table_a_text_and_a_figure(name, tmp_path):
    study = STUDIES[name]
    first = study.cells(True)[:1]
    said = []
    few = study._replace(cells=lambda quick: first)
    report = conduct(name, few, tmp_path, quick=True, say=said.append)
    assert [path.name for path in report.files] == [f"{name}.{end}" for end in ("csv", "md", "png")]
    text = (tmp_path / f"{name}.md").read_text()
    assert study.question in text
    assert f"fairjax study {name} --quick" in text
    assert "seed" in text or name == "time"
    assert report.files[0].read_text().count("\n") > 1
    assert report.files[2].stat().st_size > 10_000
    again = study._replace(cells=lambda quick: [cell._replace(run=never) for cell in first])
    found = conduct(name, again, tmp_path, quick=True, say=said.append)
    assert found.text == report.text
    assert said[-1] == f"{name}: 1 of 1 cells are done."


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("name", sorted(STUDIES))
def test_cells_are_told_apart_by_settings_that_are_json(name, quick):
    cells = STUDIES[name].cells(quick)
    assert len({cell.file for cell in cells}) == len(cells)
    for cell in cells:
        json.dumps(cell.settings)


def test_a_study_that_stopped_goes_on_with_what_is_missing(tmp_path):
    ran = []

    def cell(number, fails=False):
        def run():
            if fails:
                raise KeyboardInterrupt
            ran.append(number)
            return [{"number": number, "seed": seed, "x": float("nan")} for seed in (0, 1)]

        return Cell(f"c{number}", {"number": number}, run)

    def study(fails):
        return Study(
            "Why?",
            lambda quick: [cell(0), cell(1, fails), cell(2)],
            lambda rows: {"all": spreads(rows, ["number"], ["x"])},
            lambda found: Figure(),
        )

    with pytest.raises(KeyboardInterrupt):
        conduct("toy", study(True), tmp_path, quick=True)
    assert not (tmp_path / "toy.md").exists()
    report = conduct("toy", study(False), tmp_path, quick=True)
    assert ran == [0, 1, 2]
    assert [row["x"].num for row in report.tables["all"].rows] == [0, 0, 0]
    conduct("toy", study(False), tmp_path, quick=True, resume=False)
    assert ran == [0, 1, 2, 0, 1, 2]


def test_a_full_study_says_beforehand_how_long_it_takes(tmp_path):
    experiment = fj.Experiment(num_agents=2, rounds=5, model="logistic", samples_per_agent=20)
    cell = Cell("c", {}, lambda: [{"x": 1.0}], experiment, num_runs=10, seconds=3600.0)
    study = Study(
        "Why?", lambda quick: [cell], lambda rows: {"all": Table(rows)}, lambda found: Figure()
    )
    said = []
    conduct("toy", study, tmp_path, quick=False, say=said.append)
    # An hour besides the runs, which take some of a minute at most.
    assert said[1].startswith("toy: the rest takes about 60.")
    assert said[1].endswith(" minutes on this machine.")


def test_errors_of_the_cosine_are_those_of_the_authors_files():
    drawn = approximation.Drawn("agents", "gaussian", 10, 1000)
    rows = [
        approximation._errors(seed, np.float32(drawn.uploads(seed)), None) for seed in range(20)
    ]
    mean = np.mean([row["cosine"] for row in rows])
    spread = np.std([row["cosine"] for row in rows])
    # A file holds the mean of few draws.
    assert abs(mean - approximation.AUTHORS["agents", 10]) < spread
    assert np.mean([row["mean_field"] for row in rows]) < 0.0003
    values = contributions.cosine(drawn.uploads(0))
    assert values.shape == (10,)


def test_agents_measured_at_the_server_hold_what_they_were_paid():
    """Where everybody is paid everything, all hold the server's model, wherever they train."""
    base = when_fair.Variant(num_agents=3, rounds=3, model="logistic", beta=1e7)
    results = when_fair.variants(base)
    chosen = [results["as published"], results["measured at the server's model"]]
    first, other = (variant.run() for variant in chosen)
    np.testing.assert_allclose(first.accuracies, other.accuracies, atol=0.01)
    kept = results["own update kept"].run()
    assert np.ptp(kept.accuracies) > np.ptp(first.accuracies)
    assert results["own update kept"].alone() == base.alone()


def test_an_unknown_study_is_named(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["study", "fairnes"])
    assert stop.value.code == 2
    assert "Did you mean 'fairness'?" in capsys.readouterr().err


def test_a_pivot_has_a_row_and_a_column_for_every_value():
    rows = [{"a": a, "b": b, "c": a + b} for a in "xy" for b in "uv"]
    assert Table(rows).pivot("a", ["b"], "c").cells() == [["x", "xu", "xv"], ["y", "yu", "yv"]]

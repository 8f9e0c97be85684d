"""Every study gives a table, a text and a figure, and resumes where it stopped."""

import json
import re

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

import fairjax as fj
from fairjax import contributions, figures
from fairjax.cli import main
from fairjax.experiments import records
from fairjax.studies import (
    STUDIES,
    Cell,
    Study,
    adapters,
    altruism,
    approximation,
    conduct,
    free_riders,
    protocol,
    referee,
    reward_quality,
    when_fair,
)
from fairjax.tables import Spread, Table, spreads

matplotlib.use("Agg")


def never():
    raise AssertionError("computed again")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["adapters", "approximation", "altruism", "fairness", "free_riders", "rewards"]
)
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
    one = conduct("toy", study(True), tmp_path, quick=True, only="c1")
    assert [row["number"] for row in one.tables["all"].rows] == [1]
    assert one.files[0].name == "toy-c1.csv"
    assert "`fairjax study toy --quick --only c1`" in one.text
    elsewhere = tmp_path / "cells" / cell(2).file
    content = records.read_json(elsewhere)
    content["environment"]["device"] = "gpu: another"
    records.write_json(elsewhere, content)
    text = conduct("toy", study(False), tmp_path, quick=True).text
    assert re.findall(r"Cells computed with .*device (.*)\.", text) == [
        f"{records.environment()['device']}: 2", "gpu: another: 1",
    ]  # fmt: skip
    elsewhere.write_bytes(elsewhere.read_bytes()[:50])
    with pytest.warns(UserWarning, match="It is computed again"):
        conduct("toy", study(False), tmp_path, quick=True)
    assert ran[-1] == 2
    for change in ({"settings": {"number": 1}}, {"rows": [3]}, {"environment": None}):
        records.write_json(elsewhere, {**content, **change})
        ran.clear()
        with pytest.warns(UserWarning, match="It is computed again"):
            conduct("toy", study(False), tmp_path, quick=True)
        assert ran == [2]
    with pytest.raises(ValueError, match="`only` must be part of a cell's name, got 'd'"):
        conduct("toy", study(False), tmp_path, quick=True, only="d")


@pytest.mark.slow
def test_the_referee_shows_choices_of_a_round_cheats_and_held_out_data(tmp_path, monkeypatch):
    fields = {"num_agents": 3, "rounds": 4, "model": "logistic"}
    setting = protocol.Setting(
        "tiny, 3 agents", ("power_law", "class_imbalance"), (0, 1), fields, ("sign_flip",),
        ("power_law",), (0,),
    )  # fmt: skip
    monkeypatch.setattr(referee, "QUICK", (setting,))
    few = {name: (name, {}) for name in ("standalone", "cffl")}
    monkeypatch.setattr(referee, "VARIANTS", few)
    found = conduct("referee", STUDIES["referee"], tmp_path, quick=True).tables
    rows = {(row["split"], row["mechanism"]): row for row in found["all"].rows}
    assert len(rows) == 4
    standalone = rows["power_law", "standalone"]
    assert standalone["fairness"].mean == pytest.approx(1)
    assert standalone["gain_%"].mean == 0
    assert standalone["cheat_%"] <= 0
    assert rows["power_law", "cffl"]["held_out"] == "yes"
    assert standalone["held_out"] == "no"
    for row in rows.values():
        assert row["best_%_at_best"].mean >= row["best_%"].mean - 1e-5
    shown = found["tiny, 3 agents, power_law"].rows[0]
    assert "sign_flip" in shown["cheat gains"]
    assert "cheat gains" not in found["tiny, 3 agents, class_imbalance"].rows[0]


def test_cffl_takes_its_published_settings_for_class_imbalance():
    cells = [cell for cell in STUDIES["referee"].cells(False) if cell.name.endswith("-cffl")]
    options = [dict(cell.experiment.options) for cell in cells]
    assert all(not one for one in options)  # they are added where a split is run
    made = list(referee._split_by_protocol(cells[0].experiment, ("power_law", "class_imbalance")))
    assert [dict(one.options) for one, _ in made] == [{}, protocol.BY_CLASSES]


@pytest.mark.slow
def test_a_full_study_says_beforehand_how_long_it_takes(tmp_path):
    experiment = fj.Experiment(num_agents=2, rounds=5, model="logistic", samples_per_agent=20)
    cell = Cell("c", {}, lambda: [{"x": 1.0}], experiment, num_runs=10, seconds=3600.0)
    study = Study(
        "Why?", lambda quick: [cell], lambda rows: {"all": Table(rows)}, lambda found: Figure()
    )
    said = []
    conduct("toy", study, tmp_path, quick=False, say=said.append)
    # An hour is expected, and the runs add less than a minute.
    assert said[1].startswith("toy: the rest takes about 60.")
    assert said[1].endswith(" minutes on this machine.")


@pytest.mark.slow
def test_errors_of_the_cosine_are_those_of_the_authors_files():
    drawn = approximation.Drawn("agents", "gaussian", 10, 1000)
    rows = [
        approximation._errors(seed, np.float32(drawn.uploads(seed)), None) for seed in range(20)
    ]
    mean = np.mean([row["cosine"] for row in rows])
    spread = np.std([row["cosine"] for row in rows])
    # A file of the authors holds the mean of only a few draws.
    assert abs(mean - approximation.AUTHORS["agents", 10]) < spread
    assert np.mean([row["mean_field"] for row in rows]) < 0.0003
    values = contributions.cosine(drawn.uploads(0))
    assert values.shape == (10,)


def test_every_variant_of_cgsv_begins():
    base = when_fair.Variant(num_agents=3, rounds=3, model="logistic")
    shards, test = base.make_shards()
    for name, variant in when_fair.variants(base).items():
        federation = variant.federation(shards)
        state = federation.init(jax.random.key(0), shards, None, 3, test)
        if name == "importance starts equal":
            np.testing.assert_allclose(state.mechanism, 1 / 3)


@pytest.mark.slow
def test_variants_that_train_alike_share_their_standalone_runs():
    base = when_fair.Variant(num_agents=3, rounds=3, model="logistic")
    found = {name: variant.alone() for name, variant in when_fair.variants(base).items()}
    different = {
        "learning rate / 4", "learning rate x 4", "1 local epoch", "10 local epochs",
        "one step an epoch", "a third of the rounds", "three times the rounds",
        "... and its decay per epoch", "... and one step an epoch",
    }  # fmt: skip
    assert {name for name, alone in found.items() if alone != base.alone()} == different
    assert len(set(found.values())) == len(different) + 1


def test_rows_without_the_first_variant_have_no_change():
    links = dict.fromkeys(when_fair.LINKS, 1.0)
    row = {"setting": "a", "split": "power_law", "seed": 0, "variant": "alpha .5", **links}
    found = when_fair.tables([row])
    assert found["all"].rows[0]["fairness_change"].num == 0


@pytest.mark.slow
def test_agents_measured_at_the_server_hold_what_they_were_paid():
    """If every agent is paid everything, all hold the server's model, wherever they train."""
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


def made_up(fairness):
    """Rows of a sweep over beta: fairness by beta and seed, and constants for all the rest."""
    return [
        {
            "dataset": "digits", "num_agents": 5, "split": "power_law", "beta": beta, "seed": seed,
            "fairness": value, "fairness_trained": 0.5, "best_%": 90.0, "mean_%": 85.0 + seed,
            "worst_%": 80.0,
        }
        for beta, values in zip(altruism.BETAS, fairness, strict=True)
        for seed, value in enumerate(values)
    ]  # fmt: skip


def test_altruism_has_no_trend_from_other_seeds():
    """Betas have different seeds where all agents end equal; that must not change the means."""
    levels, nan = [0.9, 0.7, -0.9], float("nan")
    rows = made_up([[0.9, 0.7, nan]] * 2 + [levels] * 3 + [[nan] * 3])
    (table,) = altruism.tables(rows).values()
    assert [row["fairness"].mean for row in table.rows[:5]] == pytest.approx([0.8] * 5)
    assert [str(row["fairness"]) for row in table.rows[1::2]] == [
        "0.800 ± 0.141 (2 of 3; 1 all equal)", "0.800 ± 0.141 (2 of 3)", "all equal (3 of 3)",
    ]  # fmt: skip
    figure = altruism.draw({"Altruism": table})
    top = figure.axes[0]
    assert [text.get_text() for text in top.texts] == ["1 of 3", "1 of 3", "3 of 3"]
    assert [label.get_text() for label in top.get_yticklabels()][0] == "all\nequal"


def test_variants_are_compared_with_the_first_over_the_seeds_in_which_both_are_defined():
    fairness = {when_fair.FIRST: [0.9, float("nan"), 0.8], "alpha .95": [0.9, -0.9, 0.8]}
    known = dict.fromkeys(when_fair.LINKS, 0.5)
    rows = [
        {**known, "setting": "s", "split": "uniform", "variant": name, "seed": seed, "fairness": x}
        for name, values in fairness.items()
        for seed, x in enumerate(values)
    ]
    published, other = when_fair.tables(rows)["all"].rows
    assert str(published["fairness"]) == "0.850 ± 0.071 (2 of 3; 1 all equal)"
    assert other["fairness"].num == 3
    assert str(other["fairness_change"]) == "0.000 ± 0.000 (2 of 3; 1 all equal)"


def test_a_place_without_a_mean_says_why_in_the_figure():
    nan = float("nan")
    rows = made_up([[0.9, nan], [nan, 0.9], *[[0.1, 0.2]] * 3, [nan, nan]])
    (table,) = altruism.tables(rows).values()
    texts = [text.get_text() for text in altruism.draw({"Altruism": table}).axes[0].texts]
    assert texts == ["1 of 2", "1 of 2", *["no common seed"] * 3, "2 of 2"]


@pytest.mark.parametrize("upright", [True, False])
def test_a_bar_that_leaves_the_axis_ends_in_an_arrow_that_the_legend_explains(upright):
    figure, axis = plt.subplots()
    figures.correlation_axis(axis, "all equal", upright=upright)
    wide, narrow = Spread.over([1.0, 1.0, -0.5]), Spread.over([0.1, 0.2])
    for place, spread in enumerate((wide, narrow)):
        figures.draw_correlation(axis, spread, place, color="k", marker="o", upright=upright)
    figures.name_series(figure, ncols=2)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["bar goes beyond the axis"]
    arrows = [line for line in axis.lines if line.get_marker() == ("^" if upright else ">")]
    assert [line.get_xydata()[0].tolist() for line in arrows] == [
        [0, 1.05] if upright else [1.05, 0]
    ]
    low, high = axis.get_ylim() if upright else axis.get_xlim()
    ends = [line.get_ydata() if upright else line.get_xdata() for line in axis.lines]
    assert all(low < value < high for end in ends for value in end)
    plt.close(figure)


def test_a_bar_of_accuracies_is_drawn_whole():
    figure, axis = plt.subplots()
    figures.draw_spread(axis, Spread.over([10.0, 90.0]), 0, color="k", marker="o")
    bar, mean = axis.lines
    np.testing.assert_allclose(bar.get_xdata(), [50 - 40 * 2**0.5, 50 + 40 * 2**0.5])
    assert mean.get_xdata() == [50]
    plt.close(figure)


def ended():
    """A result of four agents, two of them idle, and eight rounds, of which three are evaluated."""
    alone, rounds = np.array([0.25, 0.5, 0.75, 1.0]), np.arange(1.0, 9)[:, None]
    accuracies = np.full((8, 4), np.nan)
    accuracies[[2, 4, 7]] = [[0.3, 0.5, 0.7, 0.9], [0.95] * 4, [0.5, 0.75, 0.5, 0.875]]
    contributions = -10 * np.tile(alone, (8, 1))
    contributions[-2:] = alone + np.outer([1, -1], [1, -1, -1, 1])
    received = np.where(rounds == 1, [80, 80, 0, 0], 0)
    history = fj.History(
        accuracies, accuracies, server_accuracies=rounds[:, 0] / 10, contributions=contributions,
        importance=np.where(rounds < 8, alone, [0.4, 0.3, 0.2, 0.1]),
        fractions=np.where(rounds < 8, alone, alone[::-1]), excluded=np.zeros((8, 4), bool),
        uploaded=rounds * [10, 20, 30, 40], received=received, network=np.full(8, 1000),
    )  # fmt: skip
    experiment = fj.Experiment(num_agents=4, rounds=8)
    return fj.Result(experiment, history, None, np.ones(4), alone, ("honest", "idle") * 2)


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (
            when_fair._measure_links,  # contributions of the last two rounds, of eight
            {
                "contribution": 1, "fraction": -1,
                "fairness": np.corrcoef([1, 2, 3, 4], [4, 6, 4, 7])[0, 1],
                "best_%": 87.5, "mean_%": 65.625, "spread_%": 37.5, "gain_%": 3.125,
                "shortfall_%": 25,
            },
        ),
        (
            free_riders._measure_detection,
            {
                "detection_auc": 3 / 4, "honest_%": 50, "dishonest_%": 81.25,
                "dishonest_fraction": 0.5 / 0.625,
            },
        ),
        (referee._choose_round, {"fairness_at_best": 1, "best_%_at_best": 95}),
    ],
)  # fmt: skip
def test_what_studies_measure_of_a_result(measure, expected):
    assert measure(ended()) == pytest.approx(expected)


def test_what_adapters_send_is_a_mean_over_rounds_and_agents():
    result = ended()
    found = adapters._figures(result, (1, 3, 8), paid=True)
    shown = {"sent_%": 11.25, "received_%": 0.5, "round 1": 10, "round 3": 30, "round 8": 80}
    assert {name: found[name] for name in shown} == pytest.approx(shown)
    whole = fj.Result(**{**vars(result), "history": result.history._replace(network=None)})
    for paid, received in ((True, np.nan), (False, 100)):
        found = adapters._figures(whole, (8,), paid=paid)
        assert [found["sent_%"], found["received_%"]] == pytest.approx([100, received], nan_ok=True)


@pytest.mark.slow
def test_a_part_of_the_aggregate_is_as_far_from_it_as_its_length_says():
    experiment = fj.Experiment(num_agents=3, rounds=2, model="logistic", samples_per_agent=20)
    shards, _ = experiment.make_shards()
    measure = jax.jit(reward_quality._measure_quality, static_argnums=0)
    distances, cosines = measure(experiment, shards, jax.random.key(0))
    np.testing.assert_allclose(distances**2 + cosines**2, 1, atol=1e-4)
    np.testing.assert_allclose(distances.min(1), 0, atol=1e-3)  # the most important agent's
    assert (distances.max(1) > 0.01).all()

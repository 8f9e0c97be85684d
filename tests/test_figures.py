"""Figures: they show what their axes say, for few agents and for many."""

import dataclasses
import re
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest

import fairjax as fj
from fairjax import figures

OVER_ROUNDS = (
    figures.accuracy, figures.contributions, figures.importance, figures.reward_fractions,
)  # fmt: skip


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def drawn(num_agents, excluded=(), mechanism="cgsv", num_rounds=6):
    """A result of made-up numbers."""
    rng = np.random.default_rng(0)
    rows = rng.random((num_rounds, num_agents))
    judged = rows if mechanism == "cgsv" else np.full_like(rows, np.nan)
    marks = np.zeros(rows.shape, bool)
    for place in excluded:
        marks[place] = True
    history = fj.History(rows, rows, rows[:, 0], judged, judged, judged, marks)
    return fj.Result(
        fj.Experiment(num_agents=num_agents, mechanism=mechanism), history, None,
        np.arange(num_agents) + 1, rng.random(num_agents), ("honest",) * num_agents,
    )  # fmt: skip


def crosses(ax):
    return sum(
        len(one.get_offsets()) for one in ax.collections if one.get_label().startswith("_child")
    )


@pytest.mark.parametrize("draw", OVER_ROUNDS, ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("num_agents", [2, 5, 20, 1000])
def test_lines_are_few_whatever_the_number_of_agents(draw, num_agents):
    ax = draw(drawn(num_agents))
    assert ax.get_xlabel() == "round"
    assert ax.get_ylabel()
    assert len(ax.lines) <= 2 * 20 + 10
    names = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert names[-1] == f"agent {num_agents - 1}: {num_agents:,} examples"
    assert ("all agents" in names) == (num_agents == 1000)
    assert ax.figure.get_size_inches()[0] == figures.COLUMN


@pytest.mark.parametrize("draw", OVER_ROUNDS, ids=lambda draw: draw.__name__)
@pytest.mark.parametrize(("num_agents", "agent"), [(5, 2), (1000, 7)])
def test_rounds_without_an_upload_are_marked(draw, num_agents, agent):
    ax = draw(drawn(num_agents, excluded=[(1, agent), (4, agent)]))
    assert crosses(ax) == 2
    assert "upload excluded" in [text.get_text() for text in ax.figure.legends[0].get_texts()]


@pytest.mark.parametrize("draw", OVER_ROUNDS[1:], ids=lambda draw: draw.__name__)
def test_a_mechanism_that_does_not_judge_is_said_not_to(draw):
    ax = draw(drawn(3, excluded=[(0, 1)], mechanism="standalone"))
    assert "does not judge" in ax.texts[0].get_text()
    assert crosses(ax) == 1


def test_fairness_is_drawn_with_its_interval_or_with_why_it_is_undefined():
    result = drawn(5)
    low, high = result.fairness_interval
    title = figures.fairness(result).get_title("left")
    assert f"fairness {result.fairness:.3f}, 95% interval {low:.3f} to {high:.3f}" in title
    assert "interval" not in figures.fairness(drawn(3)).get_title("left")
    equal = dataclasses.replace(result, standalone_accuracies=np.ones(5))
    title = figures.fairness(equal).get_title("left")
    assert title.endswith("undefined: all standalone accuracies are equal")


@pytest.mark.parametrize("num_agents", [1, 5, 50])
@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_a_partition_has_a_cell_per_agent_and_class(num_agents, num_classes):
    rng = np.random.default_rng(0)
    train = fj.data.Dataset(
        x=rng.random((500, 2)), y=rng.integers(0, num_classes, 500), num_classes=num_classes
    )
    shards = fj.data.uniform(train, num_agents=num_agents)
    ax = figures.partition(shards)
    counts = shards.class_counts()
    np.testing.assert_array_equal(ax.images[0].get_array().filled(0), counts)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("class", "agent")
    written = [text.get_text() for text in ax.texts if text.get_text()]
    few = max(counts.shape) <= 12
    assert written == [str(count) for count in counts.ravel() if count] * few


def test_a_comparison_has_a_line_per_mechanism_and_one_for_agents_alone():
    results = {"cgsv": drawn(5), "fedavg": drawn(5)}
    ax = figures.comparison(results)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["standalone", "cgsv", "fedavg"]
    (beside,) = ax.child_axes
    values = [label.get_text() for label in beside.get_yticklabels()]
    assert values[0] == ""
    for text, result in zip(values[1:], results.values(), strict=True):
        fairness, gain, loss = map(float, re.findall(r"-?[\d.]+", text))
        assert fairness == round(result.fairness, 3)
        assert gain == round(100 * result.collaboration_gain[0], 2)
        assert loss == round(100 * result.shortfall.max(), 2)
    points = ax.collections[1].get_offsets()
    np.testing.assert_allclose(points[:, 0], 100 * results["cgsv"].accuracies)


def test_axes_of_one_figure_share_one_legend():
    figure, two = plt.subplots(1, 2, layout="constrained")
    for draw, ax in zip((figures.accuracy, figures.importance), two, strict=True):
        assert draw(drawn(3), ax) is ax
    assert len(figure.legends) == 1
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"alone", "equal"} < set(names)
    assert len(set(names)) == len(names) == 5


def test_a_figure_in_html_is_its_text_and_knows_its_own_ids_only():
    ax = figures.accuracy(drawn(3))
    first, second = (figures.svg(ax.figure, prefix) for prefix in ("one", "two"))
    assert "test accuracy (%)" in first
    assert "http" not in first
    assert first.replace("one-", "two-") == second


def test_a_notebook_goes_on_showing_figures_after_one_of_ours():
    # A notebook's backend turns interactive mode on when the first figure is made.
    plt.ioff()
    try:
        with fj.figures.styled():
            plt.ion()
        assert plt.isinteractive()
    finally:
        plt.ioff()


NO_RESULTS = (None, True, 3, "cgsv", [1, 2], {}, object(), len, np.ones(3),
              drawn(2).experiment, fj.Experiment)  # fmt: skip


@pytest.mark.parametrize("draw", [*OVER_ROUNDS, figures.fairness], ids=lambda draw: draw.__name__)
def test_what_is_no_result_is_refused_before_a_figure_is_made(draw):
    for value in NO_RESULTS:
        with pytest.raises(ValueError, match="`result` must be a Result, as `fairjax.Experiment"):
            draw(value)
    for ax in (3, "ax", plt.figure(), np.array([1])):
        with pytest.raises(
            ValueError, match="`ax` must be an Axes, as `matplotlib.pyplot.subplots"
        ):
            draw(drawn(2), ax)
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("value", [*NO_RESULTS, {"cgsv": 3}, {"cgsv": drawn(2).history}])
def test_a_comparison_of_no_results_is_refused(value):
    with pytest.raises(ValueError, match=r"`results(\['cgsv'\])?` must be a"):
        figures.comparison(value)
    with pytest.raises(ValueError, match="`shards` must be a Shards"):
        figures.partition(value)
    assert not plt.get_fignums()


def test_results_of_other_agents_are_not_compared():
    with pytest.raises(ValueError, match="`results` must be of the same agents, got {'a': 2, 'b'"):
        figures.comparison({"a": drawn(2), "b": drawn(3)})


def test_a_path_that_is_no_file_of_a_known_format_is_refused(tmp_path):
    figure = plt.figure()
    for path, message in (
        (3, "`path` must be a path"),
        (None, "`path` must be a path"),
        (tmp_path, "`path` must be a file in a directory that exists"),
        (tmp_path / "no" / "a.png", "`path` must be a file in a directory that exists"),
        (tmp_path / "a.nope", "Unknown ending of `path` 'nope'"),
    ):
        with pytest.raises(ValueError, match=message):
            figures.write(figure, path)
    with pytest.raises(ValueError, match="`figure` must be a Figure"):
        figures.write(None, tmp_path / "a.png")
    with pytest.raises(ValueError, match="`figure` must be a Figure"):
        figures.svg("figure", "one")
    assert figures.write(figure, str(tmp_path / "a.png")).exists()


@pytest.mark.slow
@pytest.mark.parametrize("num_agents", [1, 3])
@pytest.mark.parametrize("known", [False, True])
def test_a_result_whose_fairness_is_undefined_is_drawn(num_agents, known):
    result = drawn(num_agents)
    if not known:
        nothing = np.full_like(result.history.accuracies, np.nan)
        history = result.history._replace(accuracies=nothing, trained_accuracies=nothing)
        result = dataclasses.replace(result, history=history, standalone_accuracies=nothing[0])
    for draw in (*OVER_ROUNDS, figures.fairness):
        assert "<svg" in figures.svg(draw(result).figure, "one")
    assert "<svg" in figures.svg(figures.comparison({"a": result, "b": result}).figure, "one")


@pytest.mark.parametrize("names", [["$10", "$20_$", "more"], ["$10_k-$20_k", "a" * 81, "b" * 50]])
def test_names_of_classes_are_drawn_as_they_are_and_cut(names, tmp_path):
    x = np.arange(24.0).reshape(12, 2)
    data = fj.data.Dataset(x, [names[row % 3] for row in range(12)])
    ax = figures.partition(fj.data.uniform(data, num_agents=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.write(ax.figure, tmp_path / "partition.png")
    texts = [label.get_text() for label in ax.get_xticklabels()]
    assert texts == [name.replace("$", r"\$") if len(name) < 15 else f"{name[:13]}…"
                     for name in sorted(names)]  # fmt: skip


def test_a_run_of_one_round_has_one_tick():
    result = fj.Experiment(num_agents=2, rounds=1, model="logistic", samples_per_agent=9).run()
    assert [tick for tick in figures.accuracy(result).get_xticks() if 0.5 <= tick <= 1.5] == [1]

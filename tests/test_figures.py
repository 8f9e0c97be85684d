"""Figures: what they are of is what their axes say, for few agents and for many."""

import dataclasses

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
    assert values == ["", *(f"{result.fairness:.3f}" for result in results.values())]
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
    # Its backend turns this on when the first figure is made.
    plt.ioff()
    try:
        with fj.figures.styled():
            plt.ion()
        assert plt.isinteractive()
    finally:
        plt.ioff()

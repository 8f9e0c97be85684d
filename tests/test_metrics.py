"""Metrics: values computed by hand, reasons for undefined values, errors for wrong kinds."""

import jax.numpy as jnp
import numpy as np
import pytest

from fairjax import metrics
from fairjax.experiments import Experiment

ACCURACIES = np.array([0.3, 0.4, 0.9])
HONEST = [True, False, True]
NOT_NUMBERS = (None, "abc", b"x", 3, 0.5, 1j, {}, {"a": 1}, {0.1, 0.2}, object(), len, [None, 1, 2],
               [[1, 2], [3]], ["a", "b", "c"], np.ones((2, 2)), [1j, 2, 3], [2**70, 1, 2],
               np.array([1, 2, 3], object))  # fmt: skip


@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_what_is_no_number_per_agent_is_refused_by_name(value):
    measures = (metrics.fairness, metrics.fairness_interval, metrics.why_undefined)
    changes = (metrics.rank_fairness, metrics.shortfall, metrics.collaboration_gain)
    for function in measures + changes:
        with pytest.raises(ValueError, match="`standalone_accuracies` must hold a number"):
            function(value, ACCURACIES)
        with pytest.raises(ValueError, match="`final_accuracies` must hold a number per agent"):
            function(ACCURACIES, value)
    with pytest.raises(ValueError, match="`importance` must hold a number per agent"):
        metrics.detection_auc(value, HONEST)
    with pytest.raises(ValueError, match="`honest` must hold a boolean per agent"):
        metrics.detection_auc(ACCURACIES, value)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"got shapes \[\(2,\), \(3,\)\]"):
        metrics.fairness([0.5, 0.7], ACCURACIES)
    with pytest.raises(ValueError, match=r"`importance` must have shape \(3,\)"):
        metrics.detection_auc([0.5, 0.7], HONEST)
    with pytest.raises(ValueError, match="`honest` must hold a boolean per agent"):
        metrics.detection_auc(ACCURACIES, [0.3, 1, 0])


@pytest.mark.parametrize(
    "values", [list(ACCURACIES), tuple(ACCURACIES), jnp.array(ACCURACIES), [2**31, 2**40, 2**62],
               np.float16(ACCURACIES), jnp.array(ACCURACIES, jnp.bfloat16)],
)  # fmt: skip
def test_numbers_of_any_library_and_size_are_taken(values):
    assert metrics.fairness(values, values) == pytest.approx(1)
    assert metrics.detection_auc(values, HONEST) == 0.5


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0.5], "fewer than two"),
        ([0.5, np.nan, 0.7], "not known"),
        ([0.5, np.inf, 0.7], "not known"),
        ([0.5, 0.5, 0.5], "equal"),
        ([0.1, 0.1 + 1e-17, np.nextafter(0.1, 1)], "equal"),  # up to rounding
    ],
)
def test_an_undefined_fairness_is_nan_and_says_why(values, reason):
    assert reason in metrics.why_undefined(values, values)
    assert np.isnan(metrics.fairness(values, values))
    assert np.isnan(metrics.rank_fairness(values, values))
    assert np.isnan(metrics.fairness_interval(values, values)).all()


def test_one_answer_in_a_hundred_thousand_is_a_difference():
    values = np.array([0.9, 0.90001, 0.90003])
    assert metrics.why_undefined(values, values) == ""
    assert metrics.fairness(values, values) == pytest.approx(1)
    assert metrics.rank_fairness(values, values) == 1


@pytest.mark.parametrize("honest", [[True] * 3, [False] * 3])
def test_detection_is_nan_where_there_is_nobody_to_detect(honest):
    assert np.isnan(metrics.detection_auc(ACCURACIES, honest))
    assert np.isnan(metrics.detection_auc([np.nan] * 3, HONEST))


def tau_by_pairs(first, second):
    """Kendall's tau-b from its definition, pair by pair."""
    pairs = [(i, j) for j in range(len(first)) for i in range(j)]
    signs = [[np.sign(x[i] - x[j]) for i, j in pairs] for x in (first, second)]
    agree = np.dot(*signs)
    return agree / np.sqrt(np.prod([np.abs(one).sum() for one in signs]))


def test_rank_fairness_is_kendalls_tau_of_all_pairs():
    random = np.random.default_rng(0)
    for num_agents in (2, 3, 5, 10, 50):
        alone, final = random.integers(0, 12, (2, num_agents)) / 12 + np.array([[0.0], [0.1]])
        if np.ptp(alone) and np.ptp(final):
            expected = tau_by_pairs(alone, final)
            assert metrics.rank_fairness(alone, final) == pytest.approx(expected, abs=1e-12)
    assert metrics.rank_fairness([0.3, 0.2, 0.1], ACCURACIES) == -1


def test_gain_and_shortfall_say_who_gained_and_who_lost():
    alone, final = [0.5, 0.9, 0.8], [0.75, 0.65, 0.8]
    np.testing.assert_allclose(metrics.shortfall(alone, final), [0, 0.25, 0])
    mean, spread = metrics.collaboration_gain(alone, final)
    assert mean == pytest.approx(0, abs=1e-12)
    assert spread == pytest.approx(np.sqrt(2 * 0.25**2 / 3))
    np.testing.assert_array_equal(metrics.shortfall([0.5, np.nan], [0.4, 0.4]) > 0, [True, False])
    assert metrics.collaboration_gain([0.0, 1.0], [np.inf, 1.0])[0] == np.inf
    with pytest.raises(ValueError, match="at least one agent"):
        metrics.collaboration_gain([], [])


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_are_those_of_scipy(ties):
    from scipy import stats

    rng = np.random.default_rng(0)
    for num_agents in (4, 5, 30):
        alone, final = rng.normal(size=(2, num_agents))
        if ties:
            alone, final = np.round(alone), np.append(np.round(final[1:]), 7.0)
        pearson = stats.pearsonr(alone, final)
        assert metrics.fairness(alone, final) == pytest.approx(pearson.statistic, abs=1e-12)
        interval = metrics.fairness_interval(alone, final)
        assert interval == pytest.approx(tuple(pearson.confidence_interval()), abs=1e-9)
        tau = stats.kendalltau(alone, final).statistic
        assert metrics.rank_fairness(alone, final) == pytest.approx(tau, abs=1e-12)


def test_numbers_with_a_mask_are_refused():
    masked = np.ma.masked_array([0.5, 0.7, -999.0], [0, 0, 1])
    with pytest.raises(ValueError, match="`standalone_accuracies` must hold"):
        metrics.fairness(masked, [0.5, 0.6, 0.7])
    with pytest.raises(ValueError, match="`participation`"):
        Experiment(num_agents=3, participation=np.ma.masked_array([[1, 1, 1]], [[0, 0, 1]]))


def test_fewer_than_four_agents_have_no_interval():
    assert np.isnan(metrics.fairness_interval([0.1, 0.2, 0.4], ACCURACIES)).all()

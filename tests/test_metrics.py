"""Metrics: values computed by hand, reasons for undefined values, errors for wrong kinds."""

import jax.numpy as jnp
import numpy as np
import pytest

from fairjax import metrics

ACCURACIES = np.array([0.3, 0.4, 0.9])
HONEST = [True, False, True]
NOT_NUMBERS = (None, "abc", b"x", 3, 0.5, 1j, {}, {"a": 1}, {0.1, 0.2}, object(), len, [None, 1, 2],
               [[1, 2], [3]], ["a", "b", "c"], np.ones((2, 2)), [1j, 2, 3], [2**70, 1, 2],
               np.array([1, 2, 3], object))  # fmt: skip


@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_what_is_no_number_per_agent_is_refused_by_name(value):
    for function in (metrics.fairness, metrics.fairness_interval, metrics.why_undefined):
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
    assert np.isnan(metrics.fairness_interval(values, values)).all()


@pytest.mark.parametrize("honest", [[True] * 3, [False] * 3])
def test_detection_is_nan_where_there_is_nobody_to_detect(honest):
    assert np.isnan(metrics.detection_auc(ACCURACIES, honest))
    assert np.isnan(metrics.detection_auc([np.nan] * 3, HONEST))

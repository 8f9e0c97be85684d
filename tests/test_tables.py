"""Tables: compared rows are averaged over the same seeds, and a table says what it leaves out."""

import csv
import io

import numpy as np
import pytest

from fairjax.cells import Difference
from fairjax.tables import Spread, Table, spreads

NAN = float("nan")


def compared(gains, **how):
    """The spreads of one value per seed, by row."""
    rows = [
        {"row": row, "panel": row[0], "seed": seed, "gain": gain}
        for row, values in gains.items()
        for seed, gain in enumerate(values)
    ]
    by = ("panel", "row")
    return {row["row"]: row["gain"] for row in spreads(rows, by, ["gain"], **how).rows}


@pytest.mark.parametrize(
    ("values", "used", "text"),
    [
        ([1.0, 2.0, 3.0], None, "2.000 ± 1.000"),
        ([50.0, 60.0], None, "55.00 ± 7.07"),
        ([0.5, NAN, 1.0], None, "0.750 ± 0.354 (2 of 3; 1 all equal)"),
        ([0.5, np.inf, 1.0], None, "0.750 ± 0.354 (2 of 3; 1 all equal)"),
        ([0.5, NAN, 1.0], [True, True, False], "0.500 (1 of 3; 1 all equal)"),
        ([0.5, 0.7, 1.0], [True, True, False], "0.600 ± 0.141 (2 of 3)"),
        ([0.5, 0.7, 1.0], [False] * 3, "no common seed"),
        ([0.5, NAN, 1.0], [False] * 3, "no common seed (1 of 3 all equal)"),
        ([0.5, NAN, NAN], [False] * 3, "all equal (2 of 3)"),
        ([NAN] * 3, None, "all equal (3 of 3)"),
        ([1.0], None, "1.000"),
        ([0.00012, 0.00012], None, "1.2e-04 ± 0.0e+00"),
    ],
)
def test_a_spread_says_over_how_many_seeds_it_is_and_what_the_others_are(values, used, text):
    assert str(Spread.over(values, used, "all equal")) == text


def test_rows_that_are_compared_are_averaged_over_the_same_seeds():
    """The better row is better in every seed; means over different seeds would hide that."""
    found = compared({"a": [0.1, 0.9, NAN, 0.9], "b": [NAN, 0.8, 0.8, 0.8]})
    assert found["a"].mean == pytest.approx(0.9)
    assert found["b"].mean == pytest.approx(0.8)
    assert [(one.num, one.of, one.undefined) for one in found.values()] == [(2, 4, 1)] * 2


@pytest.mark.parametrize("seed", range(20))
def test_every_mean_is_over_the_seeds_in_which_no_row_with_a_mean_is_undefined(seed):
    rng = np.random.default_rng(seed)
    gains = np.where(rng.random((4, 6)) < 0.25, np.nan, rng.random((4, 6)))
    found = list(compared(dict(zip("abcd", gains, strict=True)), apart=()).values())
    undefined = np.isnan(gains).sum(1)
    common = ~np.isnan(gains[undefined <= 3]).any(0)
    for one, row, missing in zip(found, gains, undefined, strict=True):
        assert one.undefined == missing
        assert one.num == (common.sum() if missing <= 3 else 0)
        np.testing.assert_allclose(one.mean, row[common].mean() if one.num else np.nan)


def test_panels_that_are_not_compared_keep_their_own_seeds():
    gains = {"xa": [NAN, 1.0, 2.0], "xb": [0.0, 1.0, 2.0], "ya": [0.0, 1.0, 2.0]}
    assert [one.num for one in compared(gains, apart=["panel"]).values()] == [2, 2, 3]
    assert [one.num for one in compared(gains).values()] == [2, 2, 2]


def test_a_row_that_is_undefined_in_most_seeds_leaves_the_others_theirs():
    found = compared({"a": [0.1, 0.2, 0.3], "b": [NAN, NAN, 0.3], "c": [NAN] * 3})
    assert [str(one) for one in found.values()] == [
        "0.200 ± 0.100", "undefined (2 of 3)", "undefined (3 of 3)",
    ]  # fmt: skip


def test_rows_without_a_common_seed_say_so():
    found = compared({"a": [NAN, 1.0], "b": [1.0, NAN]}, words={"gain": "all equal"})
    assert [str(one) for one in found.values()] == ["no common seed (1 of 2 all equal)"] * 2


def test_rows_over_other_seeds_lose_none_of_theirs():
    rows = [{"row": "a", "seed": seed, "gain": 1.0} for seed in range(200)]
    rows += [{"row": "b", "seed": seed, "gain": 1.0} for seed in range(5)]
    assert [row["gain"].num for row in spreads(rows, ["row"], ["gain"]).rows] == [200, 5]


def test_a_table_is_markdown_for_people_and_csv_for_programs():
    rows = [{"name": "a", "value": Spread.over([1.0, 2.0, NAN])}, {"name": "b, c"}]
    assert Table(rows).markdown().splitlines()[2:] == [
        "| a | 1.500 ± 0.707 (2 of 3; 1 undefined) |", "| b, c |  |",
    ]  # fmt: skip
    first, second = csv.DictReader(io.StringIO(Table(rows).csv()))
    assert float(first["value"]) == 1.5
    assert float(first["value_std"]) == pytest.approx(np.sqrt(0.5))
    assert (first["value_num"], first["value_undefined"]) == ("2", "1")
    assert second == {"name": "b, c", **dict.fromkeys(list(first)[1:], "")}


def test_a_pivot_has_a_row_and_a_column_for_every_value():
    rows = [{"a": a, "b": b, "c": a + b} for a in "xy" for b in "uv"]
    assert Table(rows).pivot("a", ["b"], "c").cells() == [["x", "xu", "xv"], ["y", "yu", "yv"]]


def test_small_numbers_are_not_shown_as_zero():
    values, first = [2.1e-4, 2.2e-4, 2.4e-4], [1e-4, 1.1e-4, 1.2e-4]
    assert str(Difference.over(values, first)) == "+1.1e-04 [+9.9e-05, +1.3e-04]"
    assert str(Difference.over([1e-4], [3e-4])) == "-2.0e-04"
    assert str(Difference.over([0.5, 0.5], [0.5, 0.5])) == "+0.000 [+0.000, +0.000]"
    assert str(Spread.over([2.1e-3, 2.2e-3, 2.1e-3])) == "2.1e-03 ± 5.8e-05"

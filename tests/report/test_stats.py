import math

import numpy as np
import pytest

from labelemb.report import stats


def test_standard_deviation_divides_by_one_less_than_the_number_of_values() -> None:
    values = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]  # mean 5, squares 9 + 1 + 1 + 1 + 0 + 0 + 4 + 16 = 32
    assert stats.mean(values) == 5.0
    assert stats.standard_deviation(values) == pytest.approx(math.sqrt(32 / 7), rel=1e-15)


def test_one_value_has_a_mean_and_no_standard_deviation() -> None:
    assert stats.mean([0.3]) == 0.3
    assert stats.standard_deviation([0.3]) is None
    assert stats.mean([]) is None


def test_interval_of_a_paired_difference_is_the_textbook_one() -> None:
    # Differences -1, -2, -3, -4, -5: mean -3, deviation sqrt(2.5), t quantile of 4 degrees of freedom 2.7764451052.
    difference = stats.paired_difference({seed: 10.0 - seed for seed in range(1, 6)}, dict.fromkeys(range(1, 6), 10.0))
    margin = 2.7764451052 * math.sqrt(2.5) / math.sqrt(5)
    assert difference.mean == pytest.approx(-3.0, rel=1e-15)
    assert difference.low == pytest.approx(-3.0 - margin, rel=1e-9)
    assert difference.high == pytest.approx(-3.0 + margin, rel=1e-9)
    assert difference.num_pairs == 5


def test_pairs_are_made_by_seed_whatever_the_order_and_lone_seeds_are_left_out() -> None:
    difference = stats.paired_difference({3: 1.0, 1: 2.0, 9: 100.0}, {1: 4.0, 7: -50.0, 3: 3.0})
    assert difference == (-2.0, -2.0, -2.0, 2)  # both pairs differ by 2: no spread at all


def test_swapping_a_mode_and_the_baseline_mirrors_the_interval() -> None:
    one, other = {0: 0.3, 1: 0.4, 2: 0.1}, {0: 0.2, 1: 0.7, 2: 0.15}
    there, back = stats.paired_difference(one, other), stats.paired_difference(other, one)
    assert None not in there
    assert back[:3] == pytest.approx((-there[0], -there[2], -there[1]), rel=1e-15)  # type: ignore[operator]


@pytest.mark.parametrize(("shared", "mean"), [({4}, -0.5), (set(), None)])
def test_fewer_than_two_pairs_have_no_interval(shared: set[int], mean: float | None) -> None:
    difference = stats.paired_difference(dict.fromkeys(shared, 0.5), {4: 1.0, 5: 1.0})
    assert difference == (mean, None, None, len(shared))


def test_interval_holds_the_true_difference_in_95_of_100_experiments() -> None:
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        luck = draw.normal(size=4)  # shared by both, as an initial network is: pairing removes it
        mode, baseline = luck + draw.normal(1.0, 0.5, 4), luck
        difference = stats.paired_difference(dict(enumerate(mode)), dict(enumerate(baseline)))
        assert difference.low is not None
        assert difference.high is not None
        hits += difference.low <= 1.0 <= difference.high
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def test_arrival_is_that_of_the_mean_and_not_of_a_single_run() -> None:
    runs = [{1: 0.5, 2: 0.1, 3: 0.1}, {1: 0.5, 2: 0.5, 3: 0.3}]  # means 0.5, 0.3, 0.2
    assert stats.first_arrival(runs, 0.25) == 3
    assert stats.first_arrival(runs, 0.3) == 2
    assert stats.first_arrival(runs, 0.01) is None


def test_arrival_of_a_score_is_from_below() -> None:
    runs = [{1: 10.0, 2: 20.0, 3: 30.0}]
    assert stats.first_arrival(runs, 20.0, higher_is_better=True) == 2
    assert stats.first_arrival(runs, 31.0, higher_is_better=True) is None


def test_mean_curve_keeps_the_epochs_that_every_run_has() -> None:
    assert stats.mean_curve([{1: 1.0, 2: 2.0, 4: 4.0}, {4: 6.0, 2: 4.0}]) == {2: 3.0, 4: 5.0}
    assert stats.mean_curve([]) == {}

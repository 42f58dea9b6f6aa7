"""The tests that call a change: how often noise fools them, and what they find."""

from __future__ import annotations

import numpy as np
import pytest

from mcframe.review.change import effective_size, find_stretch, mean_bounds, outliers, rise_bounds, without_outliers
from tests.support.synthetic_runs import noise


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("n", [30, 100, 240])
def test_noise_is_no_change(rho, n):
    rng = np.random.default_rng(n)
    drawn = [noise(rng, n, rho) for _ in range(60)]
    # Few values much alike say little of their own likeness: there the tests are somewhat too bold (docs/review.md).
    bold = n == 30 and rho == 0.8
    assert sum(find_stretch(values, 0.001) is not None for values in drawn) <= (6 if bold else 1)
    rises = [rise_bounds(values, 0.999) for values in drawn]
    assert sum(rise is not None and rise.low * rise.high > 0 for rise in rises) <= (5 if bold else 2)


def test_an_interval_that_counted_neighbours_as_independent_would_be_fooled():
    """What the tests here are for: most of these autocorrelated series have a naive mean far from 0."""
    rng = np.random.default_rng(0)
    drawn = [noise(rng, 240, 0.9) for _ in range(100)]
    naive = sum(abs(values.mean()) > 1.96 * values.std() / np.sqrt(240) for values in drawn)
    bounds = [mean_bounds(values, 0.95) for values in drawn]
    missed = sum(bound is not None and bound.low * bound.high > 0 for bound in bounds)
    assert naive > 50
    assert missed < 20


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_effective_size_of_an_autoregression(rho):
    sizes = [effective_size(noise(np.random.default_rng(seed), 4000, rho)) for seed in range(10)]
    assert np.mean(sizes) == pytest.approx(4000 * (1 - rho) / (1 + rho), rel=0.25)


def test_effective_size_of_a_constant_is_its_length():
    assert effective_size(np.full(50, 3.7)) == 50


@pytest.mark.parametrize(("begin", "end"), [(0, 40), (30, 60), (100, 170), (60, 65)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_step_a_dip_and_a_bump_are_found(begin, end, sign):
    values = 100 + noise(np.random.default_rng(3), 170, 0.3)
    values[begin:end] += sign * 12
    found = find_stretch(values, 0.001)
    assert found is not None
    # A step at the start may be told as the rest being different.
    edges = {found.begin, found.end} - {0, 170}
    assert all(min(abs(edge - begin), abs(edge - end)) <= 2 for edge in edges)
    assert abs(found.inside - found.outside) == pytest.approx(12, abs=1)


def test_a_change_smaller_than_the_noise_of_its_mean_is_not_called():
    values = 100 + noise(np.random.default_rng(4), 170, 0.3)
    values[60:100] += 0.3
    assert find_stretch(values, 0.001) is None


def test_a_constant_has_no_change_and_an_exact_step_has():
    assert find_stretch(np.full(40, 2.0), 0.001) is None
    found = find_stretch(np.repeat([4.0, 8.0], 20), 0.001)
    assert found is not None
    assert {found.begin, found.end} & {20}


def test_a_single_outlier_is_no_stretch():
    values = 100 + noise(np.random.default_rng(5), 100, 0.0)
    values[50] = 10_000
    assert find_stretch(values, 0.001) is None
    assert without_outliers(values)[50] == pytest.approx(100, abs=3)


def test_a_dip_is_found_beside_outliers():
    values = 100 + noise(np.random.default_rng(5), 170, 0.3)
    values[60:90] -= 10
    values[[20, 130]] = 10_000, -3_000
    found = find_stretch(values, 0.001)
    assert found is not None
    assert (found.begin, found.end) == (60, 90)


def test_of_two_dips_one_is_told():
    values = 100 + noise(np.random.default_rng(6), 170, 0.3)
    values[30:50] -= 10
    values[110:130] -= 10
    found = find_stretch(values, 0.001)
    assert found is not None
    assert {found.begin, found.end} <= {30, 50, 110, 130}


def test_a_long_series_is_found_to_change_where_it_does():
    values = 100 + noise(np.random.default_rng(6), 1001, 0.3)
    values[400:600] -= 5
    found = find_stretch(values, 0.001)
    assert found is not None
    assert abs(found.begin - 400) <= 8
    assert abs(found.end - 600) <= 8


def test_a_rise_is_measured():
    values = np.linspace(1, 3, 200) + 0.1 * noise(np.random.default_rng(7), 200, 0.5)
    rise = rise_bounds(values, 0.95)
    assert rise is not None
    assert rise.low < 2 < rise.high
    assert rise.high - rise.low < 0.3


def test_outliers_are_those_above_their_neighbours():
    values = np.linspace(5, 3, 120) + 0.02 * noise(np.random.default_rng(8), 120, 0.0)
    assert not outliers(values, 0.001).any()
    values[70] += 1
    assert np.flatnonzero(outliers(values, 0.001)).tolist() == [70]


@pytest.mark.parametrize("n", range(12))
def test_too_few_values_say_nothing(n):
    values = np.arange(n, dtype=float) ** 2
    assert find_stretch(values, 0.001) is None
    assert rise_bounds(values, 0.95) is None
    assert not outliers(values, 0.001).any()

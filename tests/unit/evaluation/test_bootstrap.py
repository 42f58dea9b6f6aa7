"""The bootstrap against a slow one, and the coverage of its intervals."""

import math

import numpy as np
import pytest
import torch

from mcframe.evaluation import bootstrap
from mcframe.evaluation.bootstrap import Bootstrap


def clustered(documents, seed, spread=1.0):
    """Return targets of documents of different sizes, correlated within a document; the true mean of x is 0, of y 2."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 12, documents)
    owner = np.repeat(np.arange(documents), sizes)
    x = np.repeat(rng.normal(0, spread, documents), sizes) + rng.normal(0, 0.3, owner.size)
    y = 2 + np.repeat(rng.normal(0, spread, documents), sizes) + rng.normal(0, 0.3, owner.size)
    return {"x": torch.tensor(x), "y": torch.tensor(y)}, torch.tensor(owner) * 7 + 3


def slow(values, documents, figure, seed, resamples):
    """Draw documents one by one, pool their targets one by one."""
    members = {}
    for index, owner in enumerate(documents.tolist()):
        members.setdefault(owner, []).append(index)
    names, count = sorted(members), len(members)
    generator = np.random.Generator(np.random.Philox(key=seed))
    found = []
    for row in generator.integers(0, count, (resamples, count)):
        pool = [index for draw in row for index in members[names[draw]]]
        found.append(figure({name: sum(v[i].item() for i in pool) / len(pool) for name, v in values.items()}))
    found.sort()

    def quantile(fraction):
        index = fraction * (resamples - 1)
        low = math.floor(index)
        high = min(low + 1, resamples - 1)
        return found[low] + (found[high] - found[low]) * (index - low)

    return quantile(0.025), quantile(0.975)


def difference(means):
    return means["y"] - means["x"]


def recovery(means):
    return 1 - means["x"] / means["y"]


@pytest.mark.parametrize("figure", [difference, recovery])
def test_intervals_equal_those_of_a_slow_loop(figure):
    values, documents = clustered(9, seed=1)
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(0))
    shuffled = {name: v[order] for name, v in values.items()}
    found = Bootstrap(shuffled, documents[order], seed=5, resamples=120).interval(figure)
    assert found.value == pytest.approx(figure({name: v.mean().item() for name, v in values.items()}))
    assert (found.low, found.high) == pytest.approx(slow(values, documents, figure, 5, 120))
    assert found.low < found.value < found.high


def test_draws_do_not_depend_on_their_batches(monkeypatch):
    values, documents = clustered(9, seed=1)
    complete = Bootstrap(values, documents, seed=5, resamples=120).mean("x")
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 100)
    assert Bootstrap(values, documents, seed=5, resamples=120).mean("x") == complete
    assert Bootstrap(values, documents, seed=6, resamples=120).mean("x") != complete


def coverage(repeats, documents_of):
    covered = 0
    for seed in range(repeats):
        values, documents = clustered(60, seed=seed)
        found = Bootstrap(values, documents_of(documents), seed=seed, resamples=400).difference("y", "x")
        covered += found.low <= 2 <= found.high
    return covered / repeats


def test_coverage_of_intervals():
    """With targets taken as independent, which they are not, intervals would be too narrow."""
    assert 0.9 <= coverage(200, lambda documents: documents) <= 0.99
    assert coverage(100, lambda documents: torch.arange(len(documents))) < 0.8


def test_pairing_removes_variance_common_to_two_conditions():
    values, documents = clustered(40, seed=3, spread=5.0)
    values["z"] = values["x"] + 0.1
    paired = Bootstrap(values, documents).difference("z", "x")
    assert (paired.low, paired.high) == pytest.approx((0.1, 0.1))
    assert Bootstrap(values, documents).mean("z").high > 0.5


def test_undefined_values_are_nan():
    one = Bootstrap({"x": torch.ones(5)}, torch.zeros(5)).mean("x")
    assert (one.value, one.low, one.high) == pytest.approx((1, math.nan, math.nan), nan_ok=True)
    nothing = Bootstrap({"x": torch.ones(0)}, torch.zeros(0))
    assert (nothing.targets, nothing.documents) == (0, 0)
    assert math.isnan(nothing.mean("x").value)
    assert str(nothing.mean("x")) == "undefined"


def test_a_missing_value_is_an_error():
    with pytest.raises(ValueError, match="same targets"):
        Bootstrap({"x": torch.tensor([1.0, math.nan])}, torch.tensor([0, 1]))

"""Means over documents and their intervals against plain loops, and the coverage of the intervals."""

import math

import numpy as np
import pytest
import torch

from mcframe.evaluation.document_means import DocumentMeans


def clustered(documents, seed, spread=1.0, tail=None):
    """Return targets of documents of different sizes, correlated within a document; the true mean of x is 0, of y 2."""
    rng = np.random.default_rng(seed)
    sizes = np.ceil(10 * np.exp(rng.normal(0, 0.7, documents))).astype(int)
    owner = np.repeat(np.arange(documents), sizes)

    def values(mean):
        effect = rng.normal(0, spread, documents) if tail is None else rng.standard_t(tail, documents) * spread
        return torch.tensor(mean + np.repeat(effect, sizes) + rng.normal(0, 0.3, owner.size))

    return {"x": values(0), "y": values(2)}, torch.tensor(owner) * 7 + 3


def slow_interval(values, documents):
    """Return the bounds document by document, target by target."""
    owners = sorted(set(documents))
    members = [[v for v, of in zip(values, documents, strict=True) if of == owner] for owner in owners]
    mean = sum(values) / len(values)
    part = [len(each) / len(values) for each in members]
    off = [(sum(each) - mean * len(each)) / len(values) for each in members]
    error = math.sqrt(sum(r * r / (1 - p) for r, p in zip(off, part, strict=True)))
    from scipy import stats  # takes a second

    t = stats.t.ppf(0.975, 1 / sum(p * p for p in part) - 1)
    skew = 2.25 * sum(r**3 for r in off) / sum(r * r for r in off) ** 1.5
    skew = min(0.4, max(-0.4, skew))

    def hall(x):
        root = 1 + skew * (x - skew / 6)
        return 3 / skew * (math.copysign(abs(root) ** (1 / 3), root) - 1)

    return min(mean - t * error, mean - error * hall(t)), max(mean + t * error, mean - error * hall(-t))


@pytest.mark.parametrize("seed", range(4))
def test_intervals_equal_those_of_a_slow_loop(seed):
    values, documents = clustered(9, seed, tail=3)
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(0))
    found = DocumentMeans({name: v[order] for name, v in values.items()}, documents[order])
    for interval, each in (
        (found.mean("x"), values["x"]),
        (found.difference("y", "x"), values["y"] - values["x"]),
    ):
        assert interval.value == pytest.approx(each.mean().item())
        assert (interval.low, interval.high) == pytest.approx(slow_interval(each.tolist(), documents.tolist()))
    sizes = torch.bincount(documents).double()
    assert found.effective == pytest.approx((sizes.sum() ** 2 / (sizes**2).sum()).item())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sign", [1, -1])
def test_a_ratio_is_between_its_bounds_if_the_difference_may_be_0(seed, sign):
    """The interval of `x - ratio * y` ends at 0 at each bound, and contains it between them."""
    values, documents = clustered(12, seed, spread=0.5, tail=5)
    values["y"] *= sign
    found = DocumentMeans(values, documents).ratio({"x": 1, "y": -1}, {"y": 1})
    assert found.value == pytest.approx((values["x"].mean() / values["y"].mean()).item() - 1)

    def difference(ratio):
        data = values["x"] - values["y"] - ratio * values["y"]
        interval = DocumentMeans({"d": data * sign}, documents).mean("d")
        return interval.low, interval.high

    assert difference(found.low)[0] == pytest.approx(0, abs=1e-3)
    assert difference(found.high)[1] == pytest.approx(0, abs=1e-3)
    assert difference(found.low + 0.01)[0] < 0 < difference(found.low - 0.01)[0]
    assert difference(found.high + 0.01)[1] < 0 < difference(found.high - 0.01)[1]


def test_a_ratio_that_all_documents_share_has_no_width():
    values, documents = clustered(12, seed=0)
    found = DocumentMeans({"x": 0.3 * values["y"], "y": values["y"]}, documents).ratio({"x": 1}, {"y": 1})
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.3, 0.3))


def test_a_ratio_of_constants_has_no_width():
    """Rounding leaves a difference where no document differs from the others."""
    documents = torch.arange(16).repeat_interleave(16)
    values = {"x": torch.full((256,), 0.11162877), "y": torch.full((256,), 0.84429473)}
    found = DocumentMeans(values, documents).ratio({"x": 1}, {"y": 1})
    assert (found.low, found.high) == pytest.approx((found.value, found.value))


def test_a_ratio_has_no_bounds_if_its_denominator_may_be_0():
    values, documents = clustered(9, seed=0)
    means = DocumentMeans({"x": values["x"] - values["x"].mean() + 0.1, "y": values["y"]}, documents)
    found = means.ratio({"y": 1}, {"x": 1})
    assert means.mean("x").low < 0
    assert math.isfinite(found.value)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def coverage(repeats, count, documents_of, **options):
    """Return the fractions of intervals of x and of x / y that hold the true values, both 0."""
    covered = np.zeros(2)
    for seed in range(repeats):
        values, documents = clustered(count, seed, **options)
        means = DocumentMeans(values, documents_of(documents))
        for at, found in enumerate((means.mean("x"), means.ratio({"x": 1}, {"y": 1}))):
            covered[at] += not (found.low > 0 or found.high < 0)
    return covered / repeats


@pytest.mark.parametrize(
    ("count", "tail"),
    [(9, 3), (41, None), *(pytest.param(*each, marks=pytest.mark.matrix) for each in (
        (9, None), (31, None), (31, 3), (41, 3)
    ))],
)  # fmt: skip
def test_intervals_hold_their_level_with_few_documents(count, tail):
    """400 repeats: two standard errors are 0.022. benchmarks/interval_coverage.py has more, of other distributions."""
    found = coverage(400, count, lambda documents: documents, tail=tail)
    assert (found >= 0.93 - 0.02).all()
    assert (found <= 0.97 + 0.02).all()


def test_targets_are_not_independent():
    assert (coverage(100, 20, lambda documents: torch.arange(len(documents))) < 0.8).all()


def test_pairing_removes_variance_common_to_two_conditions():
    values, documents = clustered(40, seed=3, spread=5.0)
    values["z"] = values["x"] + 0.1
    paired = DocumentMeans(values, documents).difference("z", "x")
    assert (paired.low, paired.high) == pytest.approx((0.1, 0.1))
    assert DocumentMeans(values, documents).mean("z").high > 0.5


@pytest.mark.parametrize("documents", [torch.zeros(50), torch.tensor([0.0] * 48 + [1.0, 2.0])])
def test_one_document_has_no_interval(documents):
    """Nor does one that holds nearly all targets."""
    found = DocumentMeans({"x": torch.linspace(0, 2, 50)}, documents).mean("x")
    assert (found.value, found.low, found.high) == pytest.approx((1, math.nan, math.nan), nan_ok=True)
    assert str(found) == "+1.0000 [no interval]"


def test_without_targets_nothing_is_defined():
    nothing = DocumentMeans({"x": torch.ones(0)}, torch.zeros(0))
    assert (nothing.targets, nothing.documents) == (0, 0)
    assert math.isnan(nothing.mean("x").value)
    assert str(nothing.mean("x")) == "undefined"


def test_a_missing_value_is_an_error():
    with pytest.raises(ValueError, match="same targets"):
        DocumentMeans({"x": torch.tensor([1.0, math.nan])}, torch.tensor([0, 1]))

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.context.delta_nll import delta_metrics, pair_nll, span_delta, tail_delta
from mcframe.context.step_metrics import masked_mean, masked_sum, moments, pearson
from mcframe.context.working_context import build_context
from mcframe.errors import UserError
from tests.support import oracle
from tests.support.generators import MANY, SOME, focused_trees, geometry_of, random_pairs, several
from tests.support.step_checks import check_means


@MANY
@given(focused_trees(), st.integers(1, 3), st.integers(0, 2**32))
def test_every_predicting_entry_is_paired_at_its_own_target(case, variants, seed):
    tree, focuses = several(case, variants)
    pairing, rows = random_pairs(tree, focuses, variants, seed)
    for row, (entries, entry_deltas) in enumerate(rows):
        columns = [c for c, e in enumerate(entries) if e.predicts]
        assert pairing.loss_mask[row].nonzero().flatten().tolist() == columns
        assert pairing.delta[row, columns].tolist() == pytest.approx([j.delta for j in entry_deltas], abs=1e-6)
        assert pairing.tail_mask[row, columns].tolist() == [j.entry.end >= tree.cursor for j in entry_deltas]
        assert pairing.after_gist[row, columns].tolist() == [j.nearest is not None for j in entry_deltas]
        for column, j in zip(columns, entry_deltas, strict=True):
            if j.nearest is not None:
                assert pairing.distance[row, column] == j.entry.start - j.nearest.end


@MANY
@given(focused_trees(max_window=140), st.integers(1, 2), st.integers(0, 2**32))
def test_every_metric(case, variants, seed):
    tree, focuses = several(case, variants)
    pairing, rows = random_pairs(tree, focuses, variants, seed)
    found, expected = delta_metrics(pairing), oracle.metrics(tree, rows)
    assert found.means.keys() | found.samples.keys() == expected.keys()
    for name in found.samples:
        assert found.samples[name].tolist() == pytest.approx(expected.pop(name), abs=1e-5, nan_ok=True)
    check_means(found, expected, abs=1e-3)


def test_every_bucket_of_distance_is_filled_in_a_long_window():
    tree = oracle.Tree(window=700, block_size=32, levels=1, slots=1, tail=64, sink=0)
    focus = [0] * tree.blocks
    focus[1] = 1  # 636 tokens follow this span; those beyond 512 belong to no bucket
    pairing, rows = random_pairs(tree, [focus], 1, 5)
    found, expected = delta_metrics(pairing), oracle.metrics(tree, rows)
    for high, count in ((16, 16), (32, 16), (128, 96), (512, 384)):
        assert len(expected[f"mc/delta_after/{high}"]) == count
        total, pooled = found.means[f"mc/delta_after/{high}"].tolist()
        assert pooled == count
        assert total == pytest.approx(sum(expected[f"mc/delta_after/{high}"]), abs=1e-3)
    assert found.means["mc/lod_delta/1"][1] == 32
    assert found.means["mc/gist_entry_delta/1"][1] == 1


def test_adv_delta_starts_with_the_first_gist_entry_itself():
    tree = oracle.Tree(window=8, block_size=2, levels=1, slots=1, tail=0, sink=0)
    context = build_context(torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0]]), geometry_of(tree))
    baseline = torch.zeros(2, 8)
    nll = torch.full((2, 8), 100.0)
    nll[0, 2:7] = torch.tensor([5.0, 1.0, 1.0, 1.0, 2.0])  # gist, then four tokens; [0, 1] cannot differ
    advantage = delta_metrics(pair_nll(context, nll, baseline)).samples["mc/adv_delta"]
    assert advantage[0] == 2.0
    assert math.isnan(advantage[1])


@MANY
@given(focused_trees(), st.integers(0, 2**32))
def test_span_delta_and_tail_delta(case, seed):
    tree, focuses = case
    pairing, rows = random_pairs(tree, focuses, 1, seed)
    means, counts = span_delta(pairing)
    tails = tail_delta(pairing)
    for row, (entries, entry_deltas) in enumerate(rows):
        spans = oracle.span_deltas(entry_deltas, tree.delta_horizon)
        for column in range(means.shape[1]):
            entry = entries[column] if column < len(entries) else None
            own = spans.get(entry.start, []) if entry is not None and entry.lod and entry.predicts else []
            assert counts[row, column] == len(own)
            assert means[row, column].item() == pytest.approx(oracle.mean(own), abs=1e-5)
        assert tails[row].item() == pytest.approx(oracle.tail_delta(tree, entry_deltas), abs=1e-5)


def test_the_baseline_is_detached_and_the_variant_is_not():
    tree = geometry_of(oracle.Tree(8, 2, 1, 1, 2, 0))
    nll, baseline = torch.rand(1, 8, requires_grad=True), torch.rand(1, 8, requires_grad=True)
    tail_delta(pair_nll(build_context(torch.tensor([[1, 0, 0, 0]]), tree), nll, baseline)).sum().backward()
    assert baseline.grad is None
    assert nll.grad is not None
    assert nll.grad.count_nonzero() > 0


@SOME
@given(st.integers(2, 20), st.integers(0, 2**32), st.sampled_from([0.3, 0.8, 1.0]))
def test_pearson_and_moments_agree_with_numpy(size, seed, density):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, size, generator=generator, dtype=torch.float64) + 100
    y = torch.randn(5, size, generator=generator, dtype=torch.float64) + 0.3 * x
    mask = torch.rand(5, size, generator=generator) < density
    found = pearson(x, y, mask)
    for row in range(5):
        kept = mask[row].numpy()
        left, right = x[row].numpy()[kept], y[row].numpy()[kept]
        if kept.sum() < 2:
            assert math.isnan(found[row])
        else:
            assert found[row].item() == pytest.approx(np.corrcoef(left, right)[0, 1], abs=1e-6)
    everything = mask.numpy()
    left, right = x.numpy()[everything], y.numpy()[everything]
    expected = [len(left), left.sum(), right.sum(), (left**2).sum(), (right**2).sum(), (left * right).sum()]
    assert moments(x, y, mask).tolist() == pytest.approx(expected)


def test_a_constant_side_has_no_correlation():
    mask = torch.ones(4, dtype=torch.bool)
    assert math.isnan(pearson(torch.ones(4), torch.arange(4.0), mask))
    assert math.isnan(pearson(torch.arange(4.0), torch.zeros(4), mask))
    assert pearson(torch.arange(4.0), -torch.arange(4.0), mask) == pytest.approx(-1)


def test_masked_values_may_be_anything():
    values = torch.tensor([[1.0, math.nan, 3.0], [math.inf, math.nan, math.nan]])
    mask = torch.tensor([[True, False, True], [False, False, False]])
    assert masked_sum(values, mask).tolist() == [4.0, 2.0]
    assert masked_mean(values, mask, dim=1).tolist() == [2.0, 0.0]


def test_the_horizon_is_not_part_of_the_tree():
    """A run and its baseline have the same tree, with any horizon of their figures."""
    near, far = ContextTree(40, 8, tail=7), ContextTree(40, 8, tail=7, horizon=40)
    assert (far.delta_horizon, near.delta_horizon) == (40, 8)
    assert near == far
    assert str(near) == str(far)


def test_a_negative_horizon_is_refused():
    with pytest.raises(UserError, match="cannot be negative") as caught:
        ContextTree(40, 8, tail=7, horizon=-1)
    assert caught.value.binding == "context.horizon"

"""Histograms and spans of a step, against loops over entries."""

import bisect
import math
from collections import Counter, defaultdict
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.context import step_histograms
from mcframe.context.step_histograms import (
    NATS_BINS,
    NO_POINT,
    SCORE_BINS,
    HistogramBins,
    blocks_by_lod,
    context_histograms,
    lens_histograms,
    top_points,
)
from tests.support import oracle
from tests.support.generators import SOME, focused_trees, random_pairs, several


def exact_edges(bins: HistogramBins) -> list[float]:
    """Return edges that are equally spaced in the value or in its inverse hyperbolic sine, not rounded."""
    width = bins.linear_width
    low, high = (end if width is None else math.asinh(end / width) for end in (bins.low, bins.high))
    even = [low + (high - low) * number / bins.bins for number in range(bins.bins + 1)]
    return even if width is None else [width * math.sinh(edge) for edge in even]


def bin_of(bins: HistogramBins, value: float) -> int:
    return min(max(bisect.bisect_right(exact_edges(bins), value) - 1, 0), bins.bins - 1)


def nonzero(table: torch.Tensor) -> dict[tuple[int, int], int]:
    return {(i, j): n for i, row in enumerate(table.tolist()) for j, n in enumerate(row) if n}


@pytest.mark.parametrize("bins", [SCORE_BINS, NATS_BINS, HistogramBins(0.0, 10.0, 5)])
def test_edges_ascend_from_low_to_high(bins):
    assert len(bins.edges) == bins.bins + 1
    assert bins.edges == sorted(set(bins.edges))
    assert (bins.edges[0], bins.edges[-1]) == (bins.low, bins.high)
    assert bins.edges == pytest.approx(exact_edges(bins), rel=1e-3, abs=1e-12)


def test_zero_is_an_edge_of_scores_and_the_middle_of_a_bin_of_nats():
    assert 0.0 in SCORE_BINS.edges
    assert NATS_BINS.edges[30] == -NATS_BINS.edges[31] < 0


@SOME
@given(st.lists(st.tuples(st.floats(-30, 30, width=32), st.booleans(), st.integers(0, 2)), min_size=1, max_size=40))
def test_values_are_counted_in_their_bins(entries):
    values, mask, group = (torch.tensor(column) for column in zip(*entries, strict=True))
    for bins in (SCORE_BINS, NATS_BINS):
        if any(min(abs(v - edge) for edge in exact_edges(bins)) < 1e-5 * max(abs(v), 0.01) for v, _, _ in entries):
            continue  # float32 may put the value on either side
        expected = Counter((g, bin_of(bins, v)) for v, counts, g in entries if counts)
        assert nonzero(bins.count(values, mask, group, 3)) == expected


def test_nan_and_infinities_count_in_the_outer_bins():
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.3])
    counts = SCORE_BINS.count(values, torch.ones(4).bool())[0]
    assert (counts.sum(), counts[0], counts[-1]) == (4, 1, 2)


@SOME
@given(focused_trees())
def test_blocks_are_counted_by_lod(case):
    tree, focuses = case
    expected = Counter((lod, block) for focus in focuses for block, lod in enumerate(focus))
    assert nonzero(blocks_by_lod(torch.tensor(focuses), tree.levels)) == expected


@SOME
@given(focused_trees(max_window=140), st.integers(1, 2), st.integers(0, 2**32))
def test_delta_of_entries_and_of_variants(case, variants, seed):
    tree, focuses = several(case, variants)
    pairing, rows = random_pairs(tree, focuses, variants, seed)
    entries, means = Counter(), Counter()
    for _, entry_deltas in rows:
        after = [j for j in entry_deltas if j.nearest is not None or j.entry.lod]
        entries.update((j.entry.lod, bin_of(NATS_BINS, j.delta)) for j in after)
        if after:
            means[0, bin_of(NATS_BINS, sum(j.delta for j in after) / len(after))] += 1
    found = context_histograms(pairing).counts
    assert nonzero(found["mc/entry_delta"]) == entries
    assert nonzero(found["mc/variant_delta"]) == means
    assert nonzero(found["mc/blocks/variants"]) == Counter((lod, b) for f in focuses for b, lod in enumerate(f))


def spans(tree, rows, scores, cut):
    """Return (row, token of the last slot) -> score, mean ΔNLL less than H tokens after the span, LOD."""
    after = defaultdict(list)
    for row, (_, entry_deltas) in enumerate(rows):
        for j in entry_deltas:
            near = j.nearest is not None and j.entry.lod == 0 and j.entry.start - j.nearest.end < tree.delta_horizon
            if near:
                after[row, j.nearest].append(j.delta)
    found = {}
    for row, (entries, _) in enumerate(rows):
        for column, entry in enumerate(entries[:cut]):
            deltas = after.get((row, entry))
            if entry.lod and deltas:
                found[row, entry.start + entry.slot] = (scores[row][column], sum(deltas) / len(deltas), entry.lod)
    return found


def measured(tree, focuses, variants, seed):
    pairing, rows = random_pairs(tree, focuses, variants, seed)
    seen = pairing.context.before_cursor()
    scores = torch.rand(seen.token.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    seeds = torch.arange(len(focuses)).view(-1, variants) * 7919 + seed % 1000
    return pairing, rows, seen, scores, lens_histograms(scores, seen, pairing, seeds)


@SOME
@given(focused_trees(max_window=60), st.integers(1, 2), st.integers(0, 2**32))
def test_scores_and_spans(case, variants, seed):
    tree, focuses = several(case, variants)
    _, rows, seen, scores, found = measured(tree, focuses, variants, seed)
    expected = Counter()
    for row, (entries, _) in enumerate(rows):
        for column, entry in enumerate(entries):
            if entry.start + entry.slot < tree.cursor:
                expected[entry.lod, bin_of(SCORE_BINS, scores[row, column].item())] += 1
    assert nonzero(found.counts["mc/lens_score"]) == expected
    points = found.points["mc/spans"]
    kept = points[points[:, 0] > NO_POINT, 1:].tolist()
    every = sorted(spans(tree, rows, scores.tolist(), seen.length).values())
    assert len(kept) == min(len(every), step_histograms.MAX_POINTS)
    if len(every) <= step_histograms.MAX_POINTS:
        for ours, theirs in zip(sorted(kept), every, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-6)


def test_the_sample_does_not_depend_on_how_rows_are_split(monkeypatch):
    """The top points of two halves are the top points of all rows."""
    monkeypatch.setattr(step_histograms, "MAX_POINTS", 8)
    tree = oracle.Tree(window=64, block_size=4, levels=1, slots=1, tail=8, sink=0)
    focuses = [[1] * 14 + [0] * 2] * 64
    *_, found = measured(tree, focuses, 2, seed=3)
    points = found.points["mc/spans"]
    assert points.shape == (8, 4)
    assert (points[:, 0] > NO_POINT).all()

    pairing, _, seen, scores, _ = measured(tree, focuses, 2, seed=3)
    seeds = torch.arange(64).view(-1, 2) * 7919 + 3
    every = spans_of_rows(pairing, seen, scores, seeds, slice(0, 64))
    halves = [spans_of_rows(pairing, seen, scores, seeds, part) for part in (slice(0, 32), slice(32, 64))]
    assert torch.equal(top_points(torch.cat(halves)), every)
    assert torch.equal(every, points)


def spans_of_rows(pairing, seen, scores, seeds, part):
    """Return the spans of some rows, as on another rank or in another micro-batch."""
    names = ("focus", "token", "lod", "valid")

    def cut(context):
        return replace(context, **{name: getattr(context, name)[part] for name in names})

    columns = {name: getattr(pairing, name)[part] for name in ("nll", "baseline_nll", "loss_mask", "nearest")}
    ours = replace(pairing, context=cut(pairing.context), **columns)
    sequences = seeds[part.start // 2 : part.stop // 2]
    return lens_histograms(scores[part], cut(seen), ours, sequences).points["mc/spans"]

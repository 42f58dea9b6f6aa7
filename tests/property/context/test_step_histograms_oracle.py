"""What a step counts for pictures, against loops over entries."""

import bisect
import math
from collections import Counter, defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.context import step_histograms as tallies
from mcframe.context.step_histograms import (
    ABSENT,
    NATS,
    SCALES,
    SCORES,
    Scale,
    blocks_by_lod,
    context_tallies,
    lens_tallies,
)
from tests.property.context.test_delta_nll_oracle import paired, several
from tests.support.generators import SOME, focused_trees


def exact_edges(scale: Scale) -> list[float]:
    """Equally wide in the value or, where it is fine near 0, in its area sine; not yet rounded for the record."""
    fine = scale.fine
    low, high = (end if fine is None else math.asinh(end / fine) for end in (scale.low, scale.high))
    even = [low + (high - low) * number / scale.bins for number in range(scale.bins + 1)]
    return even if fine is None else [fine * math.sinh(edge) for edge in even]


def bin_of(scale: Scale, value: float) -> int:
    return min(max(bisect.bisect_right(exact_edges(scale), value) - 1, 0), scale.bins - 1)


def nonzero(table: torch.Tensor) -> dict[tuple[int, int], int]:
    return {(i, j): n for i, row in enumerate(table.tolist()) for j, n in enumerate(row) if n}


@pytest.mark.parametrize("scale", [SCORES, NATS, Scale(0.0, 10.0, 5)])
def test_edges_ascend_from_end_to_end(scale):
    assert len(scale.edges) == scale.bins + 1
    assert scale.edges == sorted(set(scale.edges))
    assert (scale.edges[0], scale.edges[-1]) == (scale.low, scale.high)
    assert scale.edges == pytest.approx(exact_edges(scale), rel=1e-3, abs=1e-12)


def test_scores_are_parted_at_zero_and_no_difference_has_a_bin_of_its_own():
    assert 0.0 in SCORES.edges
    assert NATS.edges[30] == -NATS.edges[31] < 0


@SOME
@given(st.lists(st.tuples(st.floats(-30, 30, width=32), st.booleans(), st.integers(0, 2)), min_size=1, max_size=40))
def test_values_are_counted_in_their_bins(entries):
    values, mask, group = (torch.tensor(column) for column in zip(*entries, strict=True))
    for scale in (SCORES, NATS):
        if any(min(abs(v - edge) for edge in exact_edges(scale)) < 1e-5 * max(abs(v), 0.01) for v, _, _ in entries):
            continue  # float32 may put it on either side
        wanted = Counter((g, bin_of(scale, v)) for v, counts, g in entries if counts)
        assert nonzero(scale.counted(values, mask, group, 3)) == wanted


def test_what_is_not_a_number_harms_nobody():
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.3])
    counts = SCORES.counted(values, torch.ones(4).bool())[0]
    assert (counts.sum(), counts[0], counts[-1]) == (4, 1, 2)


@SOME
@given(focused_trees())
def test_blocks_are_counted_by_lod(case):
    tree, focuses = case
    wanted = Counter((lod, block) for focus in focuses for block, lod in enumerate(focus))
    assert nonzero(blocks_by_lod(torch.tensor(focuses), tree.levels)) == wanted


@SOME
@given(focused_trees(max_window=140), st.integers(1, 2), st.integers(0, 2**32))
def test_costs_of_entries_and_of_variants(case, variants, seed):
    tree, focuses = several(case, variants)
    pairing, rows = paired(tree, focuses, variants, seed)
    entries, whole = Counter(), Counter()
    for _, tail_mask in rows:
        behind = [j for j in tail_mask if j.nearest is not None or j.entry.lod]
        entries.update((j.entry.lod, bin_of(NATS, j.delta)) for j in behind)
        if behind:
            whole[0, bin_of(NATS, sum(j.delta for j in behind) / len(behind))] += 1
    found = context_tallies(pairing).counts
    assert nonzero(found["mc/entry_delta"]) == entries
    assert nonzero(found["mc/variant_delta"]) == whole
    assert nonzero(found["mc/blocks/variants"]) == Counter((lod, b) for f in focuses for b, lod in enumerate(f))


def spans(tree, rows, scores, cut):
    """(row, token of the last slot) -> score, mean ΔNLL of the tokens less than H behind, LOD: before the cursor."""
    behind = defaultdict(list)
    for row, (_, tail_mask) in enumerate(rows):
        for j in tail_mask:
            near = j.nearest is not None and j.entry.lod == 0 and j.entry.start - j.nearest.end < tree.delta_horizon
            if near:
                behind[row, j.nearest].append(j.delta)
    found = {}
    for row, (entries, _) in enumerate(rows):
        for column, entry in enumerate(entries[:cut]):
            deltas = behind.get((row, entry))
            if entry.lod and deltas:
                found[row, entry.start + entry.slot] = (scores[row][column], sum(deltas) / len(deltas), entry.lod)
    return found


def measured(tree, focuses, variants, seed):
    pairing, rows = paired(tree, focuses, variants, seed)
    seen = pairing.context.before_cursor()
    scores = torch.rand(seen.token.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    seeds = torch.arange(len(focuses)).view(-1, variants) * 7919 + seed % 1000
    return pairing, rows, seen, scores, lens_tallies(scores, seen, pairing, seeds)


@SOME
@given(focused_trees(max_window=60), st.integers(1, 2), st.integers(0, 2**32))
def test_scores_and_spans(case, variants, seed):
    tree, focuses = several(case, variants)
    _, rows, seen, scores, found = measured(tree, focuses, variants, seed)
    wanted = Counter()
    for row, (entries, _) in enumerate(rows):
        for column, entry in enumerate(entries):
            if entry.start + entry.slot < tree.cursor:
                wanted[entry.lod, bin_of(SCORES, scores[row, column].item())] += 1
    assert nonzero(found.counts["mc/lens_score"]) == wanted
    points = found.points["mc/spans"]
    kept = points[points[:, 0] > ABSENT, 1:].tolist()
    every = sorted(spans(tree, rows, scores.tolist(), seen.length).values())
    assert len(kept) == min(len(every), tallies.SPANS)
    if len(every) <= tallies.SPANS:
        for ours, theirs in zip(sorted(kept), every, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-6)


def test_the_sample_is_spread_evenly_and_does_not_depend_on_how_rows_are_cut(monkeypatch):
    """Of many spans each is kept about as often; the foremost of two halves are the foremost of the whole."""
    monkeypatch.setattr(tallies, "SPANS", 8)
    tree = several_tree()
    focuses = [[1] * 14 + [0] * 2] * 64
    *_, whole = measured(tree, focuses, 2, seed=3)
    points = whole.points["mc/spans"]
    assert points.shape == (8, 4)
    assert (points[:, 0] > ABSENT).all()

    pairing, _, seen, scores, _ = measured(tree, focuses, 2, seed=3)
    seeds = torch.arange(64).view(-1, 2) * 7919 + 3
    every = lens_tallies_of_rows(pairing, seen, scores, seeds, slice(0, 64))
    halves = [lens_tallies_of_rows(pairing, seen, scores, seeds, part) for part in (slice(0, 32), slice(32, 64))]
    assert torch.equal(tallies.foremost(torch.cat(halves)), every)
    assert torch.equal(every, points)


def several_tree():
    from tests.support import oracle

    return oracle.Tree(window=64, block_size=4, levels=1, slots=1, tail=8, sink=0)


def lens_tallies_of_rows(pairing, seen, scores, seeds, part):
    """The spans of some of the rows, as another rank or micro-batch would count them."""
    from dataclasses import replace

    names = ("focus", "token", "lod", "valid")

    def cut(context):
        return replace(context, **{name: getattr(context, name)[part] for name in names})

    columns = {name: getattr(pairing, name)[part] for name in ("nll", "partner", "scored", "nearest")}
    ours = replace(pairing, context=cut(pairing.context), **columns)
    sequences = seeds[part.start // 2 : part.stop // 2]
    return lens_tallies(scores[part], cut(seen), ours, sequences).points["mc/spans"]


def test_every_distribution_has_a_scale():
    assert set(SCALES) == {"mc/lens_score", "mc/entry_delta", "mc/variant_delta"}

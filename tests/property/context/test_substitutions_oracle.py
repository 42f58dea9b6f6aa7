"""Substitutes for collapsed blocks in evaluation, against walks through the window."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.context.delta_nll import pair_nll
from mcframe.context.substitutions import (
    distance_after,
    drop_gists,
    mean_table,
    scatter_to_targets,
    slot_means,
    swap_gists,
)
from mcframe.context.working_context import block_lods_to_tokens, build_context, gather_embeddings
from tests.support import oracle
from tests.support.generators import MANY, focus_tensor, focused_trees, geometry_of


@MANY
@given(focused_trees(), st.booleans())
def test_without_gists_only_the_raw_tokens_are_left(case, padded):
    tree, focuses = case
    if not padded:
        focuses = focuses[:1]
    length = None if padded else len(oracle.build_context(tree, focuses[0]))
    context = build_context(focus_tensor(focuses), geometry_of(tree), length)
    bare = drop_gists(context)
    assert bare.length == context.length
    assert bare.padded
    assert torch.equal(bare.focus, context.focus)
    for row, focus in enumerate(focuses):
        raw = [e for e in oracle.build_context(tree, focus) if e.lod == 0]
        padding = bare.length - len(raw)
        assert bare.valid[row].tolist() == [True] * len(raw) + [False] * padding
        assert bare.token[row].tolist() == [e.start for e in raw] + [0] * padding
        assert bare.predicts[row].tolist() == bare.valid[row].tolist()
        assert bare.end[row, : len(raw)].tolist() == [e.end for e in raw]
        assert bare.row[row, : len(raw)].tolist() == [e.start for e in raw]
        assert bare.positions()[0][row, : len(raw)].tolist() == [e.start for e in raw]  # each at its own position
    assert not bare.lod.any()


@MANY
@given(focused_trees())
def test_dropping_and_cutting_at_the_cursor_commute(case):
    tree, focuses = case
    context = build_context(focus_tensor(focuses), geometry_of(tree))
    one, other = drop_gists(context).before_cursor(), drop_gists(context.before_cursor())
    assert torch.equal(one.valid, other.valid)
    assert torch.equal(one.token[one.valid], other.token[other.valid])


@MANY
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32))
def test_slot_means_are_means_of_stretches(count, slots, seed):
    slots = min(slots, count)
    children = torch.randn(2, 3, count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = slot_means(children, slots)
    assert found.shape == (2, 3, slots, 4)
    sizes = []
    for slot in range(slots):
        mine = [child for child in range(count) if child * slots // count == slot]
        sizes.append(len(mine))
        expected = sum(children[:, :, child] for child in mine) / len(mine)
        torch.testing.assert_close(found[:, :, slot], expected)
    assert max(sizes) - min(sizes) <= 1


@MANY
@given(focused_trees(max_window=60), st.integers(0, 2**32))
def test_the_mean_table_holds_means_of_token_embeddings(case, seed):
    tree, focuses = case
    tree = geometry_of(tree)
    tokens = torch.randn(len(focuses), tree.window, 3, generator=torch.Generator().manual_seed(seed))
    context = build_context(focus_tensor(focuses), tree)
    table = mean_table(tokens, tree)
    assert table.shape == (len(focuses), len(oracle.table_rows(tree)), 3)
    read = gather_embeddings(table, context)
    for row, focus in enumerate(focuses):
        for column, e in enumerate(oracle.build_context(tree, focus)):
            mine = [t for t in range(e.start, e.end) if (t - e.start) * e.slots // e.span == e.slot]
            expected = sum(tokens[row, t] for t in mine) / len(mine)
            torch.testing.assert_close(read[row, column], expected, atol=1e-5, rtol=1e-5)


@MANY
@given(st.integers(2, 5), st.integers(2, 6), st.integers(0, 2**32))
def test_means_omit_tokens_of_documents_before_the_last_of_a_block(size, blocks, seed):
    tree, generator = ContextTree(size * blocks, size, tail=1), torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, tree.window, 3, generator=generator)
    documents = torch.randint(2, (2, tree.window), generator=generator).cumsum(dim=1)
    table = mean_table(tokens, tree, documents)
    for row in range(2):
        for block in range(tree.nodes(1)):
            inside = range(block * size, (block + 1) * size)
            own = [tokens[row, t] for t in inside if documents[row, t] == documents[row, inside[-1]]]
            torch.testing.assert_close(table[row, tree.window + block], sum(own) / size, atol=1e-6, rtol=1e-5)


@MANY
@given(focused_trees(max_window=60), st.integers(0, 2**32))
def test_a_swapped_table_has_own_tokens_and_the_gists_of_another_sequence(case, seed):
    tree, _ = case
    generator = torch.Generator().manual_seed(seed)
    rows = oracle.table_rows(tree)
    table = torch.randn(3, len(rows), 2, generator=generator)
    swap = torch.randint(3, (3,), generator=generator)
    found = swap_gists(table, geometry_of(tree), swap)
    for (lod, _, _), row in rows.items():
        for sequence in range(3):
            source = int(swap[sequence]) if lod else sequence
            assert torch.equal(found[sequence, row], table[source, row])


@MANY
@given(focused_trees(), st.integers(0, 2**32), st.booleans(), st.sampled_from([math.nan, 0.0]))
def test_values_are_scattered_to_their_targets(case, seed, bare, missing):
    tree, focuses = case
    context = build_context(focus_tensor(focuses), geometry_of(tree))
    context = drop_gists(context) if bare else context
    values = torch.rand(context.token.shape, generator=torch.Generator().manual_seed(seed))
    found = scatter_to_targets(values, context, missing)
    assert found.shape == (len(focuses), tree.window)
    for row, focus in enumerate(focuses):
        expected = [missing] * tree.window
        entries = [e for e in oracle.build_context(tree, focus) if not bare or e.lod == 0]
        for column, e in enumerate(entries):
            if e.predicts:
                expected[e.end - 1] = values[row, column].item()
        torch.testing.assert_close(found[row], torch.tensor(expected), rtol=0, atol=0, equal_nan=True)


def test_values_by_target_carry_a_gradient():
    tree = geometry_of(oracle.Tree(8, 2, 1, 1, 2, 0))
    context = build_context(torch.tensor([[1, 0, 0, 0]]), tree)
    values = torch.rand(1, 8, requires_grad=True)
    scatter_to_targets(values, context, 0.0).sum().backward()
    assert torch.equal(values.grad, context.predicts.float())


@MANY
@given(focused_trees())
def test_distance_after_the_nearest_span(case):
    tree, focuses = case
    tree = geometry_of(tree)
    distance, lod = distance_after(block_lods_to_tokens(focus_tensor(focuses), tree), tree)
    for row, focus in enumerate(focuses):
        last = None
        for e in oracle.build_context(tree, focus):
            if e.lod:
                last = e
                assert distance[row, e.start : e.end].tolist() == [-1] * e.span
                assert not lod[row, e.start : e.end].any()
            else:
                expected = (-1, 0) if last is None else (e.start - last.end, last.lod)
                assert (distance[row, e.start], lod[row, e.start]) == expected


@MANY
@given(focused_trees(), st.integers(0, 2**32))
def test_distances_are_those_of_the_pairing(case, seed):
    tree, focuses = case
    tree = geometry_of(tree)
    context = build_context(focus_tensor(focuses), tree)
    pairing = pair_nll(context, torch.rand(context.token.shape), torch.rand(len(focuses), tree.window))
    distance, lod = distance_after(block_lods_to_tokens(context.focus, tree), tree)
    here = context.valid & (context.lod == 0)
    after = pairing.after_gist
    of_entry = distance.gather(1, context.token)
    assert torch.equal(here & (of_entry >= 0), after)
    assert torch.equal(of_entry[after], pairing.distance[after])
    assert torch.equal(lod.gather(1, context.token)[after], pairing.of_nearest(context.lod)[after])
    # and where some targets do not count, the spans before them are spans all the same
    counts = torch.rand(len(focuses), tree.window, generator=torch.Generator().manual_seed(seed)) < 0.5
    masked = pair_nll(context, pairing.nll, pairing.baseline_nll.new_zeros(len(focuses), tree.window), counts)
    assert torch.equal(masked.nearest, pairing.nearest)
    assert torch.equal(masked.loss_mask, pairing.loss_mask & counts.gather(1, context.end - 1))
    assert not (masked.tail_mask & ~masked.loss_mask).any()

"""Working contexts, focuses and gathers against a walk through the window, one entry at a time."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.context.focus_ops import block_means, bottomk_mask, collapsible, expandable, first_block, is_valid, lengths
from mcframe.context.working_context import build_context, gather_embeddings, raw_context
from tests.support import oracle
from tests.support.generators import MANY, SOME, focus_tensor, focused_trees, geometry_of


@MANY
@given(focused_trees())
def test_entries_are_those_of_a_walk_through_the_window(case):
    tree, focuses = case
    context, table = build_context(focus_tensor(focuses), geometry_of(tree)), oracle.table_rows(tree)
    assert context.length == tree.window
    assert context.tree.table_rows == len(table)
    tokens = torch.arange(tree.window + 1) * 3 + 7
    targets = context.targets(tokens[1:].expand(len(focuses), -1))
    for row, focus in enumerate(focuses):
        entries = oracle.build_context(tree, focus)
        padding = [False] * (tree.window - len(entries))
        assert context.valid[row].tolist() == [True] * len(entries) + padding
        for name in ("lod", "slot", "start", "end", "span", "slots", "predicts"):
            assert getattr(context, name)[row, : len(entries)].tolist() == [getattr(e, name) for e in entries], name
        assert context.token[row, : len(entries)].tolist() == [e.start + e.slot for e in entries]
        assert context.row[row, : len(entries)].tolist() == [table[e.lod, e.start, e.slot] for e in entries]
        found = targets[row, context.predicts[row]].tolist()
        assert found == [int(tokens[e.end]) for e in entries if e.predicts]
        assert expandable(context)[row].tolist() == [e.lod > 0 for e in entries] + padding
        assert collapsible(context)[row].tolist() == [oracle.can_collapse(tree, e) for e in entries] + padding
        # Padding has no LOD and no target.
        assert not context.lod[row, len(entries) :].any()
        assert not context.predicts[row, len(entries) :].any()
        # Last slots tile the window without gap or overlap.
        last = [e for e in entries if e.predicts]
        assert [e.start for e in last] == [0, *(e.end for e in last[:-1])]


@MANY
@given(focused_trees())
def test_a_known_length_makes_the_same_entries_without_padding(case):
    tree, focuses = case
    for focus in focuses:
        entries = oracle.build_context(tree, focus)
        context = build_context(focus_tensor([focus, focus]), geometry_of(tree), len(entries))
        assert not context.padded
        assert context.valid.all()
        assert context.token.tolist() == [[e.start + e.slot for e in entries]] * 2
        assert context.lod.tolist() == [[e.lod for e in entries]] * 2


def test_another_length_than_expected_stops_the_program():
    tree = geometry_of(oracle.Tree(16, 4, 1, 1, 0, 0))
    with pytest.raises(RuntimeError, match="another length than expected"):
        build_context(torch.tensor([[0, 1, 0, 0]]), tree, 14)


@MANY
@given(focused_trees(), st.sampled_from(["centre", "start", "end"]))
def test_positions(case, placement):
    tree, focuses = case
    mu, sigma = build_context(focus_tensor(focuses), geometry_of(tree)).positions(placement)
    assert mu.dtype == sigma.dtype == torch.float32
    for row, focus in enumerate(focuses):
        expected = [oracle.position(entry, placement) for entry in oracle.build_context(tree, focus)]
        for found, values in zip((mu, sigma), zip(*expected, strict=True), strict=True):
            assert found[row, : len(expected)].tolist() == pytest.approx(list(values), abs=1e-4)


@MANY
@given(focused_trees())
def test_lengths_and_first_blocks(case):
    tree, focuses = case
    focus_rows = focus_tensor(focuses)
    assert lengths(focus_rows, geometry_of(tree)).tolist() == [len(oracle.build_context(tree, f)) for f in focuses]
    found = first_block(focus_rows, geometry_of(tree))
    for row, focus in enumerate(focuses):
        for block, lod in enumerate(focus):
            node = block // tree.block_size ** max(lod - 1, 0)
            assert found[row, block] == (oracle.node_blocks(tree, lod, node).start if lod else block)


@MANY
@given(focused_trees(), st.integers(0, 2**32))
def test_validity(case, seed):
    tree, focuses = case
    rng = random.Random(seed)
    tried = [list(focus) for focus in focuses]
    for focus in focuses:  # most of these changes break something, some do not
        for _ in range(4):
            broken = list(focus)
            broken[rng.randrange(len(broken))] = rng.randrange(-1, tree.levels + 2)
            tried.append(broken)
        tried.append([rng.randrange(tree.levels + 1) for _ in focus])
    assert all(oracle.is_valid(tree, focus) for focus in focuses)
    found = is_valid(focus_tensor(tried), geometry_of(tree)).tolist()
    assert found == [oracle.is_valid(tree, focus) for focus in tried]


def test_misaligned_and_protected_nodes_are_invalid():
    tree = oracle.Tree(window=34, block_size=4, levels=2, slots=1, tail=9, sink=1)  # 8 blocks, cursor 25
    cases = {
        (0, 1, 0, 0, 0, 0, 0, 0): True,
        (1, 0, 0, 0, 0, 0, 0, 0): False,  # the sink
        (0, 0, 0, 0, 0, 1, 0, 0): True,  # tokens 20 to 23, before 25
        (0, 0, 0, 0, 0, 0, 1, 0): False,  # reaches into the tail
        (0, 2, 2, 2, 2, 0, 0, 0): False,  # not aligned
        (2, 2, 2, 2, 0, 0, 0, 0): False,  # holds the sink
        (0, 0, 0, 0, 2, 2, 2, 2): False,  # holds the tail
        (0, 3, 0, 0, 0, 0, 0, 0): False,
    }
    assert is_valid(focus_tensor(list(cases)), geometry_of(tree)).tolist() == list(cases.values())
    open_tree, focuses = tree._replace(tail=2, sink=0), [[2, 2, 2, 2, 0, 1, 0, 0], [2, 2, 2, 0, 0, 0, 0, 0]]
    assert is_valid(focus_tensor(focuses), geometry_of(open_tree)).tolist() == [True, False]


@MANY
@given(focused_trees(), st.integers(0, 2**32), st.booleans())
def test_block_means(case, seed, prefix):
    tree, focuses = case
    context = build_context(focus_tensor(focuses), geometry_of(tree))
    context = context.before_cursor() if prefix else context
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(focuses), context.length, dtype=torch.float64, generator=generator)
    found = block_means(values, context)
    for row, focus in enumerate(focuses):
        entries = [e for e in oracle.build_context(tree, focus) if not prefix or e.end <= tree.cursor]
        assert entries or prefix
        expected = oracle.block_means(tree, entries, values[row, : len(entries)].tolist())
        assert found[row].tolist() == pytest.approx(expected, abs=1e-9)


@MANY
@given(focused_trees())
def test_before_the_cursor(case):
    tree, focuses = case
    for padded in (True, False):
        for focus in focuses:
            entries = oracle.build_context(tree, focus)
            context = build_context(focus_tensor([focus]), geometry_of(tree), None if padded else len(entries))
            prefix = context.before_cursor()
            before = [e for e in entries if e.end <= tree.cursor]
            assert [e for e in entries if e.start < tree.cursor] == before  # no node crosses the cursor
            assert prefix.valid[0].tolist() == [True] * len(before) + [False] * (prefix.length - len(before))
            assert prefix.start[0, : len(before)].tolist() == [e.start for e in before]
            assert prefix.lod[0, : len(before)].tolist() == [e.lod for e in before]
            assert padded or prefix.valid.all()


@SOME
@given(focused_trees(max_window=40), st.integers(1, 3), st.integers(0, 2**32))
def test_gather_is_a_lookup_of_each_entry_and_so_is_its_gradient(case, variants, seed):
    tree, focuses = case
    focuses = [focus for focus in focuses for _ in range(variants)]
    torch.manual_seed(seed)
    rows = oracle.table_rows(tree)
    table = torch.randn(len(focuses) // variants, len(rows), 3, dtype=torch.float64, requires_grad=True)
    context = build_context(focus_tensor(focuses), geometry_of(tree))
    found = gather_embeddings(table, context)
    weight = torch.randn_like(found) * context.valid[..., None]
    (found * weight).sum().backward()
    gradient = torch.zeros_like(table)
    for row, focus in enumerate(focuses):
        for column, entry in enumerate(oracle.build_context(tree, focus)):
            index = row // variants, rows[entry.lod, entry.start, entry.slot]
            assert torch.equal(found[row, column], table[index])
            gradient[index] += weight[row, column]
    torch.testing.assert_close(table.grad, gradient)


def test_the_raw_context_is_that_of_a_focus_of_zeros():
    tree = geometry_of(oracle.Tree(22, 4, 2, 2, 3, 0))
    raw, built = raw_context(tree, 3, torch.device("cpu")), build_context(torch.zeros(3, 5, dtype=torch.long), tree)
    for name in ("token", "lod", "valid", "row", "end"):
        assert torch.equal(getattr(raw, name), getattr(built, name)), name
    assert raw_context(tree, 1, torch.device("cpu"), 9).token.tolist() == [list(range(9))]


@MANY
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=12), st.integers(0, 12))
def test_bottomk_takes_the_lowest_from_the_left(items, count):
    values, allowed = torch.tensor([float(v) for v, _ in items]), torch.tensor([a for _, a in items])
    lowest = sorted((v, index) for index, (v, a) in enumerate(items) if a)[:count]
    expected = [index in {i for _, i in lowest} for index in range(len(items))]
    assert bottomk_mask(values, allowed, torch.tensor(count)).tolist() == expected

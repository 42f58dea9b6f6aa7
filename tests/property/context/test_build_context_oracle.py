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
    context = build_context(focus_tensor(focuses), geometry_of(tree))
    assert context.length == tree.window
    for row, focus in enumerate(focuses):
        entries = oracle.build_context(tree, focus)
        here = slice(0, len(entries))
        assert context.valid[row].tolist() == [True] * len(entries) + [False] * (tree.window - len(entries))
        for name in ("lod", "slot", "start", "end", "span", "slots", "predicts"):
            expected = [getattr(e, name) for e in entries]
            assert getattr(context, name)[row, here].tolist() == expected, name
        assert context.token[row, here].tolist() == [e.start + e.slot for e in entries]
        # filling is inert: no LOD, no target
        assert not context.lod[row, len(entries) :].any()
        assert not context.predicts[row, len(entries) :].any()
        # last slots tile the window: no gap, no overlap
        last = [e for e in entries if e.predicts]
        assert [e.start for e in last] == [0, *(e.end for e in last[:-1])]


@MANY
@given(focused_trees())
def test_the_promised_length_gives_the_same_entries_without_filling(case):
    tree, focuses = case
    tree = geometry_of(tree)
    for focus in focuses:
        entries = oracle.build_context(tree, focus)
        context = build_context(focus_tensor([focus, focus]), tree, len(entries))
        assert not context.padded
        assert context.valid.all()
        assert context.token.tolist() == [[e.start + e.slot for e in entries]] * 2
        assert context.lod.tolist() == [[e.lod for e in entries]] * 2


def test_a_broken_promise_of_length_stops_the_program():
    tree = geometry_of(oracle.Tree(16, 4, 1, 1, 0, 0))
    with pytest.raises(RuntimeError, match="another length than expected"):
        build_context(torch.tensor([[0, 1, 0, 0]]), tree, 14)


@MANY
@given(focused_trees())
def test_targets_are_the_first_token_after_the_span(case):
    tree, focuses = case
    tokens = torch.arange(tree.window + 1) * 3 + 7  # token t has an id that gives t away
    next_tokens = tokens[1:].expand(len(focuses), -1)
    context = build_context(focus_tensor(focuses), geometry_of(tree))
    found = context.targets(next_tokens)
    for row, focus in enumerate(focuses):
        for column, entry in enumerate(oracle.build_context(tree, focus)):
            if entry.predicts:
                assert found[row, column] == tokens[entry.end]


@MANY
@given(focused_trees())
def test_rows_of_the_node_table(case):
    tree, focuses = case
    tree, rows = geometry_of(tree), oracle.table_rows(tree)
    assert tree.table_rows == len(rows)
    context = build_context(focus_tensor(focuses), tree)
    for row, focus in enumerate(focuses):
        entries = oracle.build_context(tree, focus)
        expected = [rows[e.lod, e.start, e.slot] for e in entries]
        assert context.row[row, : len(entries)].tolist() == expected


@MANY
@given(focused_trees(), st.sampled_from(["centre", "start", "end"]))
def test_positions(case, placement):
    tree, focuses = case
    context = build_context(focus_tensor(focuses), geometry_of(tree))
    mu, sigma = context.positions(placement)
    assert mu.dtype == sigma.dtype == torch.float32
    for row, focus in enumerate(focuses):
        for column, entry in enumerate(oracle.build_context(tree, focus)):
            mean, spread = oracle.position(entry, placement)
            assert mu[row, column].item() == pytest.approx(mean, abs=1e-4)
            assert sigma[row, column].item() == pytest.approx(spread, abs=1e-4)
            if entry.lod == 0:
                assert (mu[row, column], sigma[row, column]) == (entry.start, 0)


@MANY
@given(focused_trees())
def test_lengths(case):
    tree, focuses = case
    found = lengths(focus_tensor(focuses), geometry_of(tree))
    assert found.tolist() == [len(oracle.build_context(tree, focus)) for focus in focuses]


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
    open_tree = tree._replace(tail=2, sink=0)
    assert is_valid(
        focus_tensor([[2, 2, 2, 2, 0, 1, 0, 0], [2, 2, 2, 0, 0, 0, 0, 0]]), geometry_of(open_tree)
    ).tolist() == [
        True,
        False,
    ]


@MANY
@given(focused_trees(), st.integers(0, 2**32), st.booleans())
def test_block_means(case, seed, whole):
    tree, focuses = case
    torch.manual_seed(seed)
    context = build_context(focus_tensor(focuses), geometry_of(tree))
    if not whole:
        context = context.before_cursor()
    values = torch.randn(len(focuses), context.length, dtype=torch.float64)
    found = block_means(values, context)
    for row, focus in enumerate(focuses):
        entries = [e for e in oracle.build_context(tree, focus) if whole or e.end <= tree.cursor]
        assert entries or not whole
        expected = oracle.block_means(tree, entries, values[row, : len(entries)].tolist())
        assert found[row].tolist() == pytest.approx(expected, abs=1e-9)


@MANY
@given(focused_trees())
def test_what_can_be_expanded_and_collapsed(case):
    tree, focuses = case
    context = build_context(focus_tensor(focuses), geometry_of(tree))
    up, down = expandable(context), collapsible(context)
    for row, focus in enumerate(focuses):
        entries = oracle.build_context(tree, focus)
        filling = [False] * (tree.window - len(entries))
        assert up[row].tolist() == [e.lod > 0 for e in entries] + filling
        assert down[row].tolist() == [oracle.can_collapse(tree, e) for e in entries] + filling


@MANY
@given(focused_trees())
def test_before_the_cursor(case):
    tree, focuses = case
    for padded in (True, False):
        for focus in focuses:
            entries = oracle.build_context(tree, focus)
            context = build_context(focus_tensor([focus]), geometry_of(tree), None if padded else len(entries))
            seen = context.before_cursor()
            before = [e for e in entries if e.end <= tree.cursor]
            assert [e for e in entries if e.start < tree.cursor] == before  # no node stands astride the cursor
            assert seen.valid[0].tolist() == [True] * len(before) + [False] * (seen.length - len(before))
            assert seen.start[0, : len(before)].tolist() == [e.start for e in before]
            assert seen.lod[0, : len(before)].tolist() == [e.lod for e in before]
            assert padded or seen.valid.all()


@MANY
@given(focused_trees())
def test_first_block_of_the_covering_node(case):
    tree, focuses = case
    found = first_block(focus_tensor(focuses), geometry_of(tree))
    for row, focus in enumerate(focuses):
        for block, lod in enumerate(focus):
            expected = block if lod == 0 else oracle.node_blocks(tree, lod, block // tree.block_size ** (lod - 1)).start
            assert found[row, block] == expected


@SOME
@given(focused_trees(max_window=40), st.integers(1, 3), st.integers(0, 2**32))
def test_gather_is_a_lookup_of_each_entry_and_so_is_its_gradient(case, variants, seed):
    tree, focuses = case
    focuses = [focus for focus in focuses for _ in range(variants)]
    sequences = len(focuses) // variants
    torch.manual_seed(seed)
    rows = oracle.table_rows(tree)
    table = torch.randn(sequences, len(rows), 3, dtype=torch.float64, requires_grad=True)
    context = build_context(focus_tensor(focuses), geometry_of(tree))
    found = gather_embeddings(table, context)
    weight = torch.randn_like(found) * context.valid[..., None]
    (found * weight).sum().backward()
    gradient = torch.zeros_like(table)
    for row, focus in enumerate(focuses):
        sequence = row // variants
        for column, entry in enumerate(oracle.build_context(tree, focus)):
            place = rows[entry.lod, entry.start, entry.slot]
            assert torch.equal(found[row, column], table[sequence, place])
            gradient[sequence, place] += weight[row, column]
    assert table.grad is not None
    torch.testing.assert_close(table.grad, gradient)


def test_the_raw_context_is_what_a_focus_of_zeros_unrolls_to():
    tree = geometry_of(oracle.Tree(22, 4, 2, 2, 3, 0))
    raw, unrolled = raw_context(tree, 3, torch.device("cpu")), build_context(torch.zeros(3, 5, dtype=torch.long), tree)
    for name in ("token", "lod", "valid", "row", "end"):
        assert torch.equal(getattr(raw, name), getattr(unrolled, name)), name
    short = raw_context(tree, 1, torch.device("cpu"), 9)
    assert short.token.tolist() == [list(range(9))]


@MANY
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=12),
    st.integers(0, 12),
)
def test_lowest_takes_the_lowest_from_the_left(items, count):
    values = torch.tensor([float(v) for v, _ in items])
    allowed = torch.tensor([a for _, a in items])
    order = sorted((v, place) for place, (v, a) in enumerate(items) if a)[:count]
    expected = [place in {p for _, p in order} for place in range(len(items))]
    assert bottomk_mask(values, allowed, torch.tensor(count)).tolist() == expected

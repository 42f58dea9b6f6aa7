"""Mean NLL of the tokens of an entry or a block, against a walk through those tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.context.entry_nll import counts, mean_block_nll, mean_entry_nll
from mcframe.context.working_context import build_context, with_documents
from tests.support import oracle
from tests.support.generators import MANY, focus_tensor, focused_trees, geometry_of


def nll_of(tree, nll, start, end):
    """Return the NLL of the targets before the cursor among the tokens from `start` to `end`."""
    return [nll[token - 1] for token in range(start, end) if 0 < token < tree.cursor]


@MANY
@given(focused_trees(), st.integers(1, 3), st.integers(0, 2**32), st.booleans())
def test_an_entry_has_the_mean_of_its_nodes_tokens(case, variants, seed, padded):
    tree, focuses = case
    focuses = [focus for focus in focuses for _ in range(variants)]
    torch.manual_seed(seed)
    nll = torch.rand(len(focuses) // variants, tree.window, requires_grad=True) * 9
    lengths = {len(oracle.build_context(tree, focus)) for focus in focuses}
    length = None if padded or len(lengths) > 1 else lengths.pop()
    context = build_context(focus_tensor(focuses), geometry_of(tree), length).before_cursor()
    found, counted_at = mean_entry_nll(nll, context), counts(context)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    for row, focus in enumerate(focuses):
        own = nll[row // variants].tolist()
        entries = [e for e in oracle.build_context(tree, focus) if e.end <= tree.cursor]
        counted = [nll_of(tree, own, e.start, e.end) for e in entries]
        assert found[row, : len(entries)].tolist() == pytest.approx([oracle.mean(each) for each in counted], abs=1e-5)
        assert counted_at[row, : len(entries)].tolist() == [bool(each) for each in counted]
        assert not found[row, len(entries) :].any()
        assert not counted_at[row, len(entries) :].any()


@MANY
@given(focused_trees(), st.integers(0, 2**32), st.data())
def test_tokens_of_other_documents_are_excluded(case, seed, data):
    """So is the first token of a document, which the document before it predicts."""
    tree, focuses = case
    torch.manual_seed(seed)
    nll = torch.rand(len(focuses), tree.window) * 9
    starts = data.draw(st.sets(st.integers(1, tree.window - 1), max_size=4)) if tree.window > 1 else set()
    documents = torch.tensor([sum(start <= t for start in starts) for t in range(tree.window)])
    context = build_context(focus_tensor(focuses), geometry_of(tree))
    context = with_documents(context, documents.expand(len(focuses), -1)).before_cursor()
    found = mean_entry_nll(nll, context)
    for row, focus in enumerate(focuses):
        entries = [e for e in oracle.build_context(tree, focus) if e.end <= tree.cursor]
        for index, entry in enumerate(entries):
            first = max([entry.start, *(start + 1 for start in starts if start < entry.end)])
            own = nll_of(tree, nll[row].tolist(), first, entry.end)
            assert found[row, index].item() == pytest.approx(oracle.mean(own), abs=1e-5)


@MANY
@given(focused_trees(max_rows=1), st.integers(0, 2**32))
def test_a_block_has_the_mean_of_its_tokens(case, seed):
    tree, _ = case
    torch.manual_seed(seed)
    nll = torch.rand(2, tree.window) * 9
    found = mean_block_nll(nll, geometry_of(tree))
    for row in range(2):
        size, own = tree.block_size, nll[row].tolist()
        expected = [oracle.mean(nll_of(tree, own, b * size, (b + 1) * size)) for b in range(tree.blocks)]
        assert found[row].tolist() == pytest.approx(expected, abs=1e-5)


def test_tokens_from_the_cursor_on_are_excluded():
    tree = oracle.Tree(window=10, block_size=3, levels=1, slots=1, tail=3, sink=0)
    nll = torch.arange(1.0, 11.0)[None]  # position t has t + 1, the NLL of token t + 1
    # Tokens 1, 2 | 3, 4, 5 | 6, which alone is before the cursor at 7; the NLL of token p is p.
    assert mean_block_nll(nll, geometry_of(tree)).tolist() == [[1.5, 4.0, 6.0]]
    nll[0, 6:] = torch.nan
    assert mean_block_nll(nll, geometry_of(tree)).tolist() == [[1.5, 4.0, 6.0]]


def test_running_sums_keep_the_precision_of_late_tokens():
    tree = oracle.Tree(window=65536, block_size=32, levels=1, slots=1, tail=0, sink=0)
    nll = torch.rand(1, 65536, generator=torch.Generator().manual_seed(0)) * 10
    context = build_context(torch.zeros(1, 2048, dtype=torch.long), geometry_of(tree), 65536)
    torch.testing.assert_close(mean_entry_nll(nll, context)[:, 1:], nll[:, :-1], atol=1e-6, rtol=1e-6)

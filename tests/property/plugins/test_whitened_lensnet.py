"""The LensNet `whitened` against a loop over entries and blocks."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import build_context, trim_padding
from mcframe.hookspecs import ModelShape
from mcframe_plugins.lensnet.whitened import WhitenedLensNet
from tests.support.generators import SOME, focus_tensor, focused_trees, geometry_of

WIDTH = 5


def dot(a, matrix, b):
    return float(a @ matrix @ b)


@torch.no_grad()
def reference(lens: WhitenedLensNet, tree: ContextTree, nodes: list[tuple[int, int]], entries: torch.Tensor):
    """Return the scores of one row of valid entries [n, D], each a first token of its node and an LOD."""
    size, rows = tree.block_size, entries.double()
    spans = [size**lod for _, lod in nodes]
    tokens = [span / (tree.slots if span > 1 else 1) for span in spans]
    mean = sum(n * row for n, row in zip(tokens, rows, strict=True)) / sum(tokens)
    rows = [row - mean for row in rows]
    covariance = sum(n * n * torch.outer(row, row) for n, row in zip(tokens, rows, strict=True)) / sum(tokens)
    ridge = (lens.ridge * float(covariance.diagonal().mean()) + 1e-12) * torch.eye(WIDTH, dtype=torch.float64)
    last = range(max(0, len(rows) - lens.recent), len(rows))
    query = sum(rows[i] for i in last) / len(last)
    similar = []
    for n, row in zip(tokens, rows, strict=True):
        others = covariance - (n * n / sum(tokens) * torch.outer(row, row) if n > 1 else 0)
        similar.append(dot(row, torch.linalg.inv(others + ridge), query))
    covering = [
        [i for i, ((start, _), span) in enumerate(zip(nodes, spans, strict=True)) if covers(block, size, start, span)]
        for block in range(tree.blocks)
    ]
    recent = [any(i in last for i in own) for own in covering]
    means = [
        0.0 if holds or not own else max(0.0, sum(similar[i] for i in own) / len(own))
        for own, holds in zip(covering, recent, strict=True)
    ]
    spread = [max(own, lens.spread * before) for own, before in zip(means, [0.0, *means], strict=False)]
    highest = max([1e-4, *means[tree.sink :]])
    scores = []
    for start, lod in nodes:
        block, relative = start // size, 1.0
        if block < tree.blocks:
            relative = 1.0 if recent[block] else min(1.0, spread[block] / highest)
            relative += lens.recency * block / max(1, tree.cursor // size)
        scores.append(math.tanh(float(lens.gain_embed[lod]) * relative + float(lens.bias_embed[lod])))
    return scores


def covers(block: int, size: int, start: int, span: int) -> bool:
    """Return whether a node covers a block, or is a token of it."""
    return start <= block * size < start + span if span > 1 else start // size == block


@pytest.mark.parametrize("recent", [1, 3])
@SOME
@given(
    focused_trees(max_rows=2, max_window=18).filter(lambda case: case[0].window > case[0].tail), st.integers(0, 2**32)
)
def test_scores_equal_a_loop_over_entries(recent, case, seed):
    tree = geometry_of(case[0])
    prefix = build_context(focus_tensor(case[1]), tree).before_cursor()
    torch.manual_seed(seed)
    lens = WhitenedLensNet(ModelShape(WIDTH, tree), recent=recent, ridge=0.3, recency=0.2)
    torch.nn.init.normal_(lens.bias_embed)
    embeddings = torch.randn(*prefix.token.shape, WIDTH)
    scores = lens(prefix, embeddings)
    for row, valid in enumerate(prefix.valid):
        if valid.sum() > 1:
            nodes = list(zip(prefix.start[row][valid].tolist(), prefix.lod[row][valid].tolist(), strict=True))
            own = reference(lens, tree, nodes, embeddings[row][valid])
            torch.testing.assert_close(scores[row][valid], torch.tensor(own), atol=5e-3, rtol=5e-3)
    assert scores.isfinite().all()


def test_the_sink_hides_no_other_block():
    """It stays raw in any case; here it is the most similar block."""
    torch.manual_seed(0)
    tree = ContextTree(window=20, block_size=2, tail=2, sink=2)
    prefix = build_context(torch.tensor([[0, 0, *[1, 0, 1, 1, 0, 1, 0], 0]]), tree).before_cursor()
    embeddings = torch.randn(*prefix.token.shape, WIDTH)
    count = int(prefix.valid.sum())
    embeddings[0, :4] += 2 * embeddings[0, count - 3 : count].mean(dim=0)
    lens = WhitenedLensNet(ModelShape(WIDTH, tree), recent=3)
    nodes = list(zip(prefix.start[0, :count].tolist(), prefix.lod[0, :count].tolist(), strict=True))
    own = reference(lens, tree, nodes, embeddings[0, :count])
    torch.testing.assert_close(lens(prefix, embeddings)[0, :count], torch.tensor(own), atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("lod", [0, 1])
def test_a_rare_word_of_the_question_finds_its_block_and_the_next(lod):
    """Without training, raw or as means of blocks, although each block has frequent words of the question."""
    torch.manual_seed(0)
    tree = ContextTree(window=404, block_size=4, tail=4)
    words = torch.randn(108, 64) + 2.0  # as in pretrained models, all embeddings have a direction in common
    ids = torch.cat((torch.randint(0, 8, (396,)), torch.tensor([1, 2, 3, 107])))
    ids[torch.arange(0, 396, 4)] = torch.randint(8, 32, (99,))
    ids[4 * 30 + 3] = 107
    table, focus = words[ids], torch.zeros(1, 101, dtype=torch.long)
    focus[0, :99] = lod
    context = trim_padding(build_context(focus, tree)).before_cursor()
    blocks = table[:396] if lod == 0 else table[:396].unflatten(0, (99, 4)).mean(dim=1)
    entries = torch.cat((blocks, table[396:]))[None]

    def found(ridge):
        lens = WhitenedLensNet(ModelShape(64, tree), recent=4, ridge=ridge)
        scores = lens(context, entries)[0]
        return {block for block, score in zip((context.start[0] // 4).tolist(), scores, strict=True) if score > 0}

    assert found(ridge=0.1) == {30, 31, 99}
    assert found(ridge=100.0) - {30, 31, 99}, "whitening makes no difference"

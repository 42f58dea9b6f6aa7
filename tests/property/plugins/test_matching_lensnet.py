"""The LensNet `matching` against a loop over entries."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import build_context
from mcframe.hookspecs import ModelShape
from mcframe_plugins.lensnet.matching import MatchingLensNet
from tests.support.generators import SOME, focus_tensor, focused_trees, geometry_of

WIDTH = 6


def rms(rows: list[list[float]]) -> float:
    return math.sqrt(sum(value**2 for row in rows for value in row) / (len(rows) * WIDTH))


@torch.no_grad()
def reference(lens: MatchingLensNet, lods: list[int], entries: torch.Tensor) -> list[float]:
    """Return the scores of one row of valid entries [n, D]."""
    rows = entries.tolist()
    last = [torch.tensor(row) / rms([row]) for row in rows[::-1][: lens.recent]]
    weights = [1.0] if lens.weight_embed is None else [math.exp(float(lens.weight_embed(each))) for each in last]
    pooled = sum((w / sum(weights)) * each for w, each in zip(weights, last, strict=True))
    query = lens.query(pooled).tolist()
    query = torch.tensor(query) / rms([query])
    scores = []
    for row, lod in zip(rows, lods, strict=True):
        level = [other for other, at in zip(rows, lods, strict=True) if at == lod]
        mean = [sum(values) / len(level) for values in zip(*level, strict=True)]
        scale = rms([[a - b for a, b in zip(other, mean, strict=True)] for other in level])
        standard = [(a - b) / math.sqrt(scale**2 + 1e-12) for a, b in zip(row, mean, strict=True)]
        product = float(lens.key(torch.tensor(standard)) @ query) / WIDTH
        scores.append(math.tanh(float(lens.gain_embed[lod]) * product + float(lens.bias_embed[lod])))
    return scores


@pytest.mark.parametrize("recent", [1, 3])
@SOME
@given(
    focused_trees(max_rows=2, max_window=18).filter(lambda case: case[0].window > case[0].tail), st.integers(0, 2**32)
)
def test_scores_equal_a_loop_over_entries(recent, case, seed):
    tree = geometry_of(case[0])
    prefix = build_context(focus_tensor(case[1]), tree).before_cursor()
    torch.manual_seed(seed)
    lens = MatchingLensNet(ModelShape(WIDTH, tree), recent=recent)
    torch.nn.init.normal_(lens.bias_embed)
    embeddings = torch.randn(*prefix.token.shape, WIDTH)
    scores = lens(prefix, embeddings)
    for row, valid in enumerate(prefix.valid):
        if valid.sum() > 1:
            own = reference(lens, prefix.lod[row][valid].tolist(), embeddings[row][valid])
            torch.testing.assert_close(scores[row][valid], torch.tensor(own), atol=2e-4, rtol=1e-3)
    assert scores.isfinite().all()


def test_the_entry_that_holds_the_last_token_has_the_highest_score():
    """At first, without training: raw, and as the mean of a block."""
    torch.manual_seed(0)
    tree = ContextTree(window=40, block_size=4, tail=0)
    tokens = torch.randn(40, 64)
    row = torch.tensor([*range(40)])
    row[-1] = 13  # in block 3
    table = tokens[row]
    for lod in (0, 1):
        focus = torch.zeros(1, 10, dtype=torch.long)
        focus[0, :9] = lod
        context = build_context(focus, tree, 40 if lod == 0 else 13).before_cursor()
        blocks = table[:36].unflatten(0, (9, 4)).mean(dim=1)
        embeddings = torch.cat((table[:36] if lod == 0 else blocks, table[36:]))[None]
        scores = MatchingLensNet(ModelShape(64, tree))(context, embeddings)[0]
        assert int(scores[:-4].argmax()) == (13 if lod == 0 else 3)

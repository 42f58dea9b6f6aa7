"""Checks of tasks with the question right before the cursor and the answer once in the text before it."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.hookspecs import SyntheticBatch


@st.composite
def geometries(draw, question: int, answer: int, min_blocks: int = 1) -> ContextTree:
    """Draw a tree with room for a question and its answer; T need not be a multiple of K."""
    size = draw(st.integers(question + max(1, answer), question + answer + 4))
    sink = draw(st.integers(0, 2))
    cursor = (sink + draw(st.integers(min_blocks, min_blocks + 4))) * size + draw(st.integers(question, size - 1))
    tail = draw(st.integers(answer - 1, answer + size))
    return ContextTree(cursor + tail, size, draw(st.integers(1, 2)), 1, tail, sink)


def continuations(before: list[int], question: int, answer: int) -> list[list[int]]:
    """Return the tokens that followed each earlier occurrence of the last `question` tokens."""
    query, known = before[-question:], before[:-question]
    starts = [i for i in range(len(before) - question) if before[i : i + question] == query]
    return [known[i + question : i + question + answer] for i in starts]


def without_block(tokens: list[int], block: int, size: int) -> list[int]:
    """Return the tokens, -1 in one block."""
    return [-1 if i // size == block else token for i, token in enumerate(tokens)]


def check_places(batch: SyntheticBatch, tree: ContextTree, question: int, answer: int) -> None:
    """Check that scored, protected and collapsible tokens are at the positions that the task promises."""
    cursor, size, free = tree.cursor, tree.block_size, tree.compressible[0]
    tokens, loss_mask, evidence = batch.tokens, batch.loss_mask, batch.evidence
    assert tokens.shape == (len(tokens), tree.window + 1)
    assert (tokens.dtype, loss_mask.dtype, evidence.dtype) == (torch.int64, torch.bool, torch.int64)
    scored = torch.zeros(tree.window, dtype=torch.bool)
    scored[cursor - 1 : cursor - 1 + answer] = True
    assert scored.sum() == answer
    assert torch.equal(loss_mask, scored.expand_as(loss_mask))
    assert torch.equal(evidence >= 0, loss_mask)
    assert torch.equal(tokens.gather(1, evidence[:, scored]), tokens[:, 1:][:, scored])
    blocks = evidence[:, scored] // size
    assert (blocks == blocks[:, :1]).all(), "the evidence is in one block"
    assert all(free[block] for block in blocks[:, 0].tolist())
    kept = range(cursor - question, cursor + answer - 1)
    assert not any(free[t // size] for t in kept if t // size < len(free)), "question and answers are never collapsed"


def check_solvable_only_with_evidence(batch: SyntheticBatch, tree: ContextTree, question: int, answer: int) -> None:
    """Check that tokens before the cursor determine every answer, and do not without the block of the evidence."""
    cursor, size = tree.cursor, tree.block_size
    for tokens, evidence in zip(batch.tokens.tolist(), batch.evidence.tolist(), strict=True):
        assert continuations(tokens[:cursor], question, answer) == [tokens[cursor : cursor + answer]]
        rest = without_block(tokens[:cursor], evidence[cursor - 1] // size, size)
        assert continuations(rest, question, answer) == []


def copied_right(batch: SyntheticBatch, tree: ContextTree) -> torch.Tensor:
    """Return [positions before the cursor], how often the token there is the first answer.

    Only sequences with their evidence in another block count; NaN for the block of the question.
    """
    cursor, size = tree.cursor, tree.block_size
    home = batch.evidence[:, cursor - 1, None] // size
    elsewhere = torch.arange(cursor) // size != home
    right = (batch.tokens[:, :cursor] == batch.tokens[:, cursor, None]) & elsewhere
    return right.sum(dim=0) / elsewhere.sum(dim=0)

"""Layout of a task with one question: the question before the cursor, its answer after it, the evidence in a block."""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.errors import UserError
from mcframe.hookspecs import SyntheticBatch


def collapsible(tree: ContextTree) -> range:
    """Return the blocks that may be collapsed."""
    return range(tree.sink, tree.cursor // tree.block_size)


def single_answer(tree: ContextTree, tokens: Tensor, positions: Tensor) -> SyntheticBatch:
    """Return the batch of sequences whose answer follows the cursor.

    Args:
        tree: the tree of the window.
        tokens: [B, T + 1], the sequences.
        positions: [B, n], the position of the evidence of each of the n tokens of the answer.
    """
    evidence = torch.full((len(tokens), tree.window), -1)
    evidence[:, tree.cursor - 1 : tree.cursor - 1 + positions.shape[1]] = positions
    return SyntheticBatch(tokens, evidence >= 0, evidence)


def check_room(tree: ContextTree, task: str, question: int, answer: int) -> None:
    """Check that a question and its answer fit, and that a block before both may be collapsed.

    Tokens before the cursor are certainly kept only in the block that contains the cursor: these are cursor mod K. The
    window has tail + 1 tokens after the cursor, of which the last is only a target.

    Args:
        tree: the tree of the window.
        task: name of the task, for the message.
        question: tokens of the question, which end at the cursor.
        answer: tokens of the answer, which follow the cursor.

    Raises:
        UserError: They do not fit.
    """
    if _fits(tree, tree.cursor, question, answer):
        return
    raise UserError(
        f"the {task} task: expected {_tokens(question)} between the start of a block and the cursor, {_tokens(answer)} "
        f"after the cursor, and a block before both that may be collapsed; got {tree.cursor % tree.block_size} "
        f"and {tree.tail + 1} tokens, and {len(collapsible(tree))} such blocks",
        remedy=_remedy(tree, question, answer),
    )


def _fits(tree: ContextTree, cursor: int, question: int, answer: int) -> bool:
    inside, after = cursor % tree.block_size, tree.window - cursor + 1
    return inside >= question and after >= answer and cursor // tree.block_size > tree.sink


def _remedy(tree: ContextTree, question: int, answer: int) -> str:
    size = tree.block_size
    if question >= size:
        return f"Set context.block_size to {question + 1} or more, or shorten the question."
    fitting = [cursor for cursor in range(tree.window + 1) if _fits(tree, cursor, question, answer)]
    if fitting:
        nearest = min(fitting, key=lambda cursor: abs(cursor - tree.cursor))
        return f"Set context.tail = {tree.window - nearest}"
    least = (tree.sink + 1) * size + question + answer - 1
    return f"Set context.window to {-(-least // size) * size} or more."


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"

"""Room for a question before the cursor, its answer behind it, and the block that holds the evidence."""

from __future__ import annotations

from mcframe.context.context_tree import ContextTree
from mcframe.errors import UserError


def collapsible(tree: ContextTree) -> range:
    """The blocks that may be collapsed."""
    return range(tree.sink, tree.cursor // tree.block_size)


def check_room(tree: ContextTree, task: str, question: int, answer: int) -> None:
    """Raise UserError where `question` tokens that end at the cursor are not all kept, the `answer` does not fit behind
    it, or no block may be collapsed.

    Tokens before the cursor are kept for certain only in the block in which the cursor stands: there are cursor mod K
    of them. Behind it a window has tail + 1 tokens, the last of them a target only.
    """
    if _serves(tree, tree.cursor, question, answer):
        return
    size = tree.block_size
    message = (
        f"the {task} task needs {_tokens(question)} between the start of a block and the cursor for its question, "
        f"{_tokens(answer)} behind the cursor for its answer, and a block before both that may be collapsed; "
        f"the cursor stands {tree.cursor % size} tokens into its block with {tree.tail + 1} behind it, "
        f"and {len(collapsible(tree))} blocks may be collapsed"
    )
    raise UserError(message, remedy=_remedy(tree, task, question, answer))


def _serves(tree: ContextTree, cursor: int, question: int, answer: int) -> bool:
    inside, behind = cursor % tree.block_size, tree.window - cursor + 1
    return inside >= question and behind >= answer and cursor // tree.block_size > tree.sink


def _remedy(tree: ContextTree, task: str, question: int, answer: int) -> str:
    size = tree.block_size
    if question >= size:
        return f"set context.block_size to {question + 1} or more, or ask with fewer tokens"
    serving = [cursor for cursor in range(tree.window + 1) if _serves(tree, cursor, question, answer)]
    if serving:
        nearest = min(serving, key=lambda cursor: abs(cursor - tree.cursor))
        return f"set context.tail = {tree.window - nearest}"
    least = (tree.sink + 1) * size + question + answer - 1
    return f"set context.window to {-(-least // size) * size} or more"


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"

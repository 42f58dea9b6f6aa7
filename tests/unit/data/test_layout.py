"""Room for a question and its answer, compared with the tree's own table of blocks that may be collapsed."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from mcframe.context.context_tree import ContextTree
from mcframe.data.synthetic.layout import check_room, collapsible
from mcframe.errors import UserError

TREES = [
    ContextTree(window, size, tail=tail, sink=sink)
    for window, size in ((12, 4), (14, 4), (9, 3), (8, 8), (11, 2))
    for tail in range(window + 1)
    for sink in (0, 1, 2)
]
SIZES = [(question, answer) for question in (1, 2, 3) for answer in (1, 2, 5)]


def has_room(tree: ContextTree, question: int, answer: int) -> bool:
    """Return the expected result, one token at a time."""
    free = tree.compressible[0]
    positions = range(tree.cursor - question, tree.cursor)
    kept = all(t >= 0 and not (t // tree.block_size < len(free) and free[t // tree.block_size]) for t in positions)
    return any(free) and kept and tree.cursor + answer <= tree.window + 1


def error_of(tree: ContextTree, question: int, answer: int) -> UserError | None:
    try:
        check_room(tree, "needle", question, answer)
    except UserError as error:
        return error
    return None


def followed(tree: ContextTree, remedy: str) -> ContextTree:
    """Return the tree with the setting of the remedy, and a window that holds at least one block."""
    match = re.search(r"Set context\.(\w+) (?:=|to) (\d+)", remedy)
    assert match, remedy
    name, value = match[1], int(match[2])
    window = max(tree.window, value) if name in ("block_size", "window") else tree.window
    return replace(tree, **{"window": window, name: value})


@pytest.mark.parametrize(("question", "answer"), SIZES)
def test_room_is_where_the_tree_keeps_the_question(question: int, answer: int) -> None:
    outcomes = set()
    for tree in TREES:
        assert list(collapsible(tree)) == [block for block, free in enumerate(tree.compressible[0]) if free]
        outcome = error_of(tree, question, answer) is None
        assert outcome == has_room(tree, question, answer), tree
        outcomes.add(outcome)
    assert outcomes == {True, False}


@pytest.mark.parametrize(("question", "answer"), SIZES)
def test_every_remedy_helps(question: int, answer: int) -> None:
    for first in TREES:
        tree = first
        for _ in range(4):
            if (error := error_of(tree, question, answer)) is None:
                break
            tree = followed(tree, error.remedy)
        else:
            raise AssertionError(first)

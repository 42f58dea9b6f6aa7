"""Where a question and its answer find room, against the tree's own word on what may be collapsed."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from mcframe.context.context_tree import ContextTree
from mcframe.data.synthetic.layout import check_room, collapsible
from mcframe.errors import UserError

GEOMETRIES = [
    ContextTree(window, size, tail=tail, sink=sink)
    for window, size in ((12, 4), (14, 4), (9, 3), (8, 8), (11, 2))
    for tail in range(window + 1)
    for sink in (0, 1, 2)
]
SIZES = [(question, answer) for question in (1, 2, 3) for answer in (1, 2, 5)]


def has_room(tree: ContextTree, question: int, answer: int) -> bool:
    """A token at a time."""
    free = tree.compressible[0]
    asked = range(tree.cursor - question, tree.cursor)
    kept = all(t >= 0 and not (t // tree.block_size < len(free) and free[t // tree.block_size]) for t in asked)
    return any(free) and kept and tree.cursor + answer <= tree.window + 1


@pytest.mark.parametrize(("question", "answer"), SIZES)
def test_room_is_where_the_tree_keeps_the_question(question: int, answer: int) -> None:
    outcomes = set()
    for tree in GEOMETRIES:
        free = [block for block, may in enumerate(tree.compressible[0]) if may]
        assert list(collapsible(tree)) == free
        try:
            check_room(tree, "needle", question, answer)
            outcome = True
        except UserError:
            outcome = False
        assert outcome == has_room(tree, question, answer), tree
        outcomes.add(outcome)
    assert outcomes == {True, False}


@pytest.mark.parametrize(("question", "answer"), SIZES)
def test_every_remedy_helps(question: int, answer: int) -> None:
    for tree in GEOMETRIES:
        for _ in range(4):
            try:
                check_room(tree, "needle", question, answer)
                break
            except UserError as error:
                remedy = error.remedy
            tree = followed(tree, remedy)
        else:
            raise AssertionError(tree)


def followed(tree: ContextTree, remedy: str) -> ContextTree:
    """The tree with what the remedy names; a larger block gets a window that holds one."""
    match = re.search(r"set context\.(\w+) (?:=|to) (\d+)", remedy)
    assert match, remedy
    name, value = match[1], int(match[2])
    window = max(tree.window, value) if name in ("block_size", "window") else tree.window
    return replace(tree, **{"window": window, name: value})


def test_the_error_says_what_is_wrong_and_what_helps() -> None:
    with pytest.raises(UserError) as error:
        check_room(ContextTree(64, 8, tail=16), "needle", 2, 1)
    assert "the cursor stands 0 tokens into its block with 17 behind it" in str(error.value)
    assert error.value.remedy == "set context.tail = 17"

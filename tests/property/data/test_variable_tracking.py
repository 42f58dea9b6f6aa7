"""The variable tracking task, compared with a reference that writes one sequence at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.data.synthetic.needle import MARKER
from mcframe.data.synthetic.recall import FIRST_KEY
from mcframe.data.synthetic.variable_tracking import VariableTracking
from mcframe.errors import UserError
from tests.support.plain_random import many_below, mix, shuffled
from tests.support.synthetic_checks import check_layout, geometries

SEEDS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4)
WIDE = ContextTree(window=67, block_size=8, tail=16)
"""Six blocks that may be collapsed; the cursor is 3 tokens into the seventh."""


@st.composite
def tasks(draw) -> VariableTracking:
    tree = draw(geometries(2, 1))
    blocks = tree.cursor // tree.block_size - tree.sink
    chains = draw(st.integers(1, blocks))
    hops = draw(st.integers(0, blocks // chains - 1))
    names = draw(st.integers(chains * (hops + 1), 12))
    return VariableTracking(
        tree, hops=hops, chains=chains, names=names, values=draw(st.integers(max(2, chains), 9)),
        filler=draw(st.integers(1, 6)),
    )  # fmt: skip


def reference(task: VariableTracking, seed: int) -> tuple[list[int], int]:
    """Return one sequence and the position of the value."""
    tree, size, length = task.tree, task.tree.block_size, task.hops + 1
    names = [FIRST_KEY + name for name in shuffled(mix(seed, 1), task.names)]
    values = [task.first_value + value for value in shuffled(mix(seed, 2), task.values)]
    tokens = [task.first_filler + x for x in many_below(mix(seed, 3), tree.window + 1, task.filler)]
    free = range(tree.sink, tree.cursor // size)
    blocks = [free[i] for i in shuffled(mix(seed, 4), len(free))]
    offsets = many_below(mix(seed, 5), task.chains * length, size - 2)
    for chain in range(task.chains):
        own = range(chain * length, (chain + 1) * length)
        given_value = values[chain]
        for index, block in zip(own, sorted(blocks[i] for i in own), strict=True):
            start = block * size + offsets[index]
            tokens[start : start + 3] = [MARKER, names[index], given_value]
            if index == 0:
                position = start + 2
            given_value = names[index]
        if chain == 0:
            question = [MARKER, names[own[-1]], values[0]]
    tokens[tree.cursor - 2 : tree.cursor + 1] = question
    return tokens, position


@settings(max_examples=40, deadline=None, derandomize=True)
@given(tasks(), SEEDS)
def test_it_equals_the_reference(task, seeds):
    batch = task.generate(torch.tensor(seeds))
    check_layout(batch, task.tree, 2, 1)
    for seed, tokens, evidence in zip(seeds, batch.tokens.tolist(), batch.evidence.tolist(), strict=True):
        expected, position = reference(task, seed)
        assert tokens == expected
        assert evidence[task.tree.cursor - 1] == position


@settings(max_examples=40, deadline=None, derandomize=True)
@given(tasks(), SEEDS)
def test_following_the_assignments_leads_to_the_answer(task, seeds):
    cursor = task.tree.cursor
    for tokens in task.generate(torch.tensor(seeds)).tokens.tolist():
        assigned = {tokens[i + 1]: tokens[i + 2] for i in range(cursor - 2) if tokens[i] == MARKER}
        assert len(assigned) == task.assignments
        name = tokens[cursor - 1]
        for _ in range(task.hops + 1):
            name = assigned[name]
        assert name == tokens[cursor]
        assert task.first_value <= name < task.first_filler


def test_what_does_not_fit_is_an_error():
    for options, message in (
        ({"hops": 3}, r"task\.variable_tracking\.hops.*from 0 to 2"),
        ({"names": 2}, r"task\.variable_tracking\.names.*4 or more"),
        ({"values": 2, "chains": 3}, r"task\.variable_tracking\.values.*3 or more"),
    ):
        with pytest.raises(UserError, match=message):
            VariableTracking(WIDE, **options)
    assert VariableTracking(WIDE).chance == 1 / 16
    assert VariableTracking(WIDE, hops=2).identity != VariableTracking(WIDE).identity

"""The needle task, compared with a reference that writes one sequence at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import hash_combine
from mcframe.data.synthetic.needle import MARKER, Needle
from mcframe.data.synthetic.recall import FIRST_KEY
from mcframe.errors import UserError
from tests.support.plain_random import many_below, mix, shuffled
from tests.support.synthetic_checks import check_layout, check_solvable_only_with_evidence, copied_right, geometries

SEEDS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4)
WIDE = ContextTree(window=67, block_size=8, tail=16)
"""Six blocks that may be collapsed; the cursor is 3 tokens into the seventh."""


@st.composite
def needles(draw) -> Needle:
    length = draw(st.integers(1, 3))
    tree = draw(geometries(2, length))
    free = range(tree.sink, tree.cursor // tree.block_size)
    distractors = draw(st.integers(0, len(free) - 1))
    return Needle(
        tree,
        depth=draw(st.none() | st.sampled_from(free)),
        distractors=distractors,
        keys=draw(st.integers(distractors + 1, 9)),
        values=draw(st.integers(2, 5)),
        filler=draw(st.integers(1, 6)),
        value_length=length,
    )


def reference(task: Needle, seed: int) -> tuple[list[int], list[int]]:
    """Return one sequence and the positions of its evidence."""
    tree, size = task.tree, task.tree.block_size
    free = list(range(tree.sink, tree.cursor // size))
    first_value = FIRST_KEY + task.keys
    first_filler = first_value + task.values
    tokens = [first_filler + x for x in many_below(mix(seed, 1), tree.window + 1, task.filler)]
    blocks = [free[i] for i in shuffled(mix(seed, 2), len(free))]
    if task.depth is not None:
        blocks.remove(task.depth)
        blocks.insert(0, task.depth)
    pairs, length = task.distractors + 1, task.value_length
    offsets = many_below(mix(seed, 3), pairs, size - 2 - length + 1)
    keys = shuffled(mix(seed, 4), task.keys)
    values = many_below(mix(seed, 5), pairs * length, task.values)
    for i in reversed(range(pairs)):
        pair = [MARKER, FIRST_KEY + keys[i], *(first_value + v for v in values[i * length : (i + 1) * length])]
        start = blocks[i] * size + offsets[i]
        tokens[start : start + len(pair)] = pair
    tokens[tree.cursor - 2 : tree.cursor + length] = pair
    return tokens, list(range(start + 2, start + 2 + length))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(needles(), SEEDS)
def test_sequences_equal_the_reference_and_need_the_needle(task: Needle, seeds: list[int]) -> None:
    batch = task.generate(torch.tensor(seeds))
    expected = [reference(task, seed) for seed in seeds]
    assert batch.tokens.tolist() == [tokens for tokens, _ in expected]
    assert batch.evidence[batch.loss_mask].view(len(seeds), -1).tolist() == [positions for _, positions in expected]
    check_layout(batch, task.tree, 2, task.value_length)
    check_solvable_only_with_evidence(batch, task.tree, 2, task.value_length)
    assert int(batch.tokens.max()) < task.vocab_size
    if task.depth is not None:
        assert {int(position) // task.tree.block_size for position in batch.evidence[batch.loss_mask]} == {task.depth}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(needles(), SEEDS)
def test_distractors_look_like_the_needle(task: Needle, seeds: list[int]) -> None:
    tree, size = task.tree, task.tree.block_size
    for tokens in task.generate(torch.tensor(seeds)).tokens.tolist():
        marks = [i for i, token in enumerate(tokens[: tree.cursor]) if token == MARKER]
        assert marks.pop() == tree.cursor - 2
        assert len(marks) == task.distractors + 1
        assert len({mark // size for mark in marks}) == len(marks), "one pair a block"
        assert len({tokens[mark + 1] for mark in marks}) == len(marks), "keys are distinct"
        ends = [mark + 2 + task.value_length for mark in marks]
        inside = {i for mark, end in zip(marks, ends, strict=True) for i in range(mark, end)}
        noise = {tokens[i] for i in range(tree.cursor - 2) if i not in inside}
        assert all(token >= FIRST_KEY + task.keys + task.values for token in noise)
        assert all(mark // size == (end - 1) // size for mark, end in zip(marks, ends, strict=True))


def test_guessing_is_at_chance() -> None:
    task = Needle(WIDE, distractors=3, values=5)
    batch = task.generate(hash_combine(torch.arange(20_000), 0))
    assert task.chance == 0.2
    first = batch.tokens[:, WIDE.cursor]
    fractions = torch.bincount(first - first.min()) / len(first)
    assert fractions.tolist() == pytest.approx([0.2] * 5, abs=0.015)
    # A value from another position is as good a guess as any.
    assert copied_right(batch, WIDE).max() < 0.2
    marks = batch.tokens[:, : WIDE.cursor - 2] == MARKER
    values = batch.tokens[:, 2 : WIDE.cursor][marks].view(-1, 4)
    home = batch.evidence[:, WIDE.cursor - 1, None] == marks.nonzero()[:, 1].view(-1, 4) + 2
    assert home.sum(dim=1).eq(1).all()
    others = values[~home].view(-1, 3)
    assert (others == first[:, None]).float().mean().item() == pytest.approx(0.2, abs=0.01)


def test_needles_are_evenly_distributed() -> None:
    task = Needle(WIDE, distractors=2)
    evidence = task.generate(hash_combine(torch.arange(20_000), 0)).evidence[:, WIDE.cursor - 1]
    fractions = torch.bincount(evidence, minlength=48) / len(evidence)
    expected = [0.0 if position % 8 < 2 else 1 / 36 for position in range(48)]
    assert fractions.tolist() == pytest.approx(expected, abs=0.005)


def test_sequences_are_the_same_on_every_machine() -> None:
    task = Needle(ContextTree(40, 8, tail=3), distractors=1, value_length=2)
    batch = task.generate(torch.tensor([0, 1]))
    assert [bytes(row).decode() for row in batch.tokens.tolist()] == [
        "bmvayrxsjac!K_Vl!NY[kkdsojvffwvnvuz!NY[nb",
        "gtc!FX_hgpdshzdkbra!CSRsdlghynrleos!FX_vd",
    ]
    assert Needle(ContextTree(40, 8, tail=3), distractors=2, value_length=2).identity != task.identity


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"distractors": -1}, "distractors: expected from 0 to 5"),
        ({"distractors": 6}, "distractors: expected from 0 to 5"),
        ({"distractors": 5, "keys": 5}, "keys: expected 6 or more"),
        ({"values": 1}, "values: expected 2 or more"),
        ({"filler": 0}, "filler: expected 1 or more"),
        ({"value_length": 0}, "value_length: expected from 1 to 6"),
        ({"value_length": 7}, "value_length: expected from 1 to 6"),
        ({"depth": 6}, "depth: expected from 0 to 5"),
        ({"depth": -1}, "depth: expected from 0 to 5"),
    ],
)
def test_sizes_that_do_not_fit_are_errors(options: dict[str, int], rule: str) -> None:
    with pytest.raises(UserError, match=f"task.needle.{rule}"):
        Needle(WIDE, **options)


@pytest.mark.parametrize(
    "options", [{"distractors": 5}, {"distractors": 5, "keys": 6}, {"values": 2}, {"value_length": 6}, {"depth": 5}]
)
def test_sizes_at_the_bounds_are_possible(options: dict[str, int]) -> None:
    Needle(WIDE, **options)


def test_a_block_that_holds_no_pair_is_an_error() -> None:
    with pytest.raises(UserError, match=r"context\.block_size: expected 3"):
        Needle(ContextTree(64, 2, tail=5))

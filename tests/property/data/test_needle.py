"""The needle task: against a reference that writes one sequence at a time, and by what can be known from its tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.context import counter_rng as seeding
from mcframe.context.context_tree import ContextTree
from mcframe.data.synthetic.needle import MARKER, Needle
from mcframe.data.synthetic.recall import FIRST_KEY
from mcframe.errors import UserError
from tests.support.plain_random import many_below, mix, shuffled
from tests.support.synthetic_checks import check_places, check_solvable_only_with_evidence, copied_right, geometries

SEEDS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4)
WIDE = ContextTree(window=67, block_size=8, tail=16)
"""Six blocks that may be collapsed; the cursor stands 3 tokens into the seventh."""


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
    """One sequence and the places of its answer."""
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
    places = []
    for i in reversed(range(pairs)):
        pair = [MARKER, FIRST_KEY + keys[i], *(first_value + v for v in values[i * length : (i + 1) * length])]
        start = blocks[i] * size + offsets[i]
        tokens[start : start + len(pair)] = pair
        places = list(range(start + 2, start + 2 + length))
    tokens[tree.cursor - 2 : tree.cursor + length] = pair
    return tokens, places


@settings(max_examples=80, deadline=None, derandomize=True)
@given(needles(), SEEDS)
def test_sequences_are_those_of_the_reference_and_everything_is_in_its_place(task: Needle, seeds: list[int]) -> None:
    batch = task.generate(torch.tensor(seeds))
    wanted = [reference(task, seed) for seed in seeds]
    assert batch.tokens.tolist() == [tokens for tokens, _ in wanted]
    assert [row[loss_mask].tolist() for row, loss_mask in zip(batch.evidence, batch.loss_mask, strict=True)] == [
        places for _, places in wanted
    ]
    check_places(batch, task.tree, 2, task.value_length)
    assert int(batch.tokens.max()) < task.vocab_size
    if task.depth is not None:
        assert {place // task.tree.block_size for _, places in wanted for place in places} == {task.depth}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(needles(), SEEDS)
def test_the_evidence_and_nothing_else_gives_the_answer(task: Needle, seeds: list[int]) -> None:
    check_solvable_only_with_evidence(task.generate(torch.tensor(seeds)), task.tree, 2, task.value_length)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(needles(), SEEDS)
def test_distractors_look_like_the_needle(task: Needle, seeds: list[int]) -> None:
    tree, size = task.tree, task.tree.block_size
    for tokens in task.generate(torch.tensor(seeds)).tokens.tolist():
        marks = [i for i, token in enumerate(tokens[: tree.cursor]) if token == MARKER]
        assert marks.pop() == tree.cursor - 2
        assert len(marks) == task.distractors + 1
        assert len({mark // size for mark in marks}) == len(marks), "one a block"
        assert len({tokens[mark + 1] for mark in marks}) == len(marks), "keys are distinct"
        ends = [mark + 2 + task.value_length for mark in marks]
        inside = {i for mark, end in zip(marks, ends, strict=True) for i in range(mark, end)}
        noise = {tokens[i] for i in range(tree.cursor - 2) if i not in inside}
        assert all(token >= FIRST_KEY + task.keys + task.values for token in noise)
        assert all(mark // size == (end - 1) // size for mark, end in zip(marks, ends, strict=True))


def test_guessing_is_at_chance() -> None:
    task = Needle(WIDE, distractors=3, values=5)
    batch = task.generate(seeding.hash_combine(torch.arange(20_000), 0))
    assert task.chance == 0.2
    first = batch.tokens[:, WIDE.cursor]
    shares = torch.bincount(first - first.min()) / len(first)
    assert shares.tolist() == pytest.approx([0.2] * 5, abs=0.015)
    # A value that stands elsewhere is as good a guess as any.
    assert copied_right(batch, WIDE).max() < 0.2
    marks = batch.tokens[:, : WIDE.cursor - 2] == MARKER
    values = batch.tokens[:, 2 : WIDE.cursor][marks].view(-1, 4)
    home = batch.evidence[:, WIDE.cursor - 1, None] == marks.nonzero()[:, 1].view(-1, 4) + 2
    assert home.sum(dim=1).eq(1).all()
    others = values[~home].view(-1, 3)
    assert (others == first[:, None]).float().mean().item() == pytest.approx(0.2, abs=0.01)


def test_needles_lie_everywhere_alike() -> None:
    task = Needle(WIDE, distractors=2)
    evidence = task.generate(seeding.hash_combine(torch.arange(20_000), 0)).evidence[:, WIDE.cursor - 1]
    shares = torch.bincount(evidence, minlength=48) / len(evidence)
    wanted = [0.0 if place % 8 < 2 else 1 / 36 for place in range(48)]
    assert shares.tolist() == pytest.approx(wanted, abs=0.005)


def test_these_sequences_are_the_same_everywhere() -> None:
    task = Needle(ContextTree(40, 8, tail=3), distractors=1, value_length=2)
    batch = task.generate(torch.tensor([0, 1]))
    assert [bytes(row).decode() for row in batch.tokens.tolist()] == [
        "bmvayrxsjac!K_Vl!NY[kkdsojvffwvnvuz!NY[nb",
        "gtc!FX_hgpdshzdkbra!CSRsdlghynrleos!FX_vd",
    ]
    assert Needle(ContextTree(40, 8, tail=3), distractors=2, value_length=2).identity != task.identity


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"distractors": -1}, "task.needle.distractors = 0 or more"),
        ({"distractors": 6}, "task.needle.distractors = 5 or less"),
        ({"distractors": 5, "keys": 5}, "task.needle.keys = 6 or more"),
        ({"values": 1}, "task.needle.values = 2 or more"),
        ({"filler": 0}, "task.needle.filler = 1 or more"),
        ({"value_length": 0}, "task.needle.value_length = 1 or more"),
        ({"value_length": 7}, "task.needle.value_length to 6 or less"),
        ({"depth": 6}, "a number from 0 to 5, or None"),
        ({"depth": -1}, "a number from 0 to 5, or None"),
    ],
)
def test_impossible_sizes_name_ones_that_do(options: dict[str, int], said: str) -> None:
    with pytest.raises(UserError) as error:
        Needle(WIDE, **options)
    assert said in error.value.remedy


@pytest.mark.parametrize(
    "options", [{"distractors": 5}, {"distractors": 5, "keys": 6}, {"values": 2}, {"value_length": 6}, {"depth": 5}]
)
def test_what_the_remedies_name_is_possible(options: dict[str, int]) -> None:
    Needle(WIDE, **options)


def test_a_block_that_holds_no_pair() -> None:
    with pytest.raises(UserError) as error:
        Needle(ContextTree(64, 2, tail=5))
    assert "set context.block_size to 3 or more" in error.value.remedy

"""The induction task, compared with a reference that writes one sequence at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.context import counter_rng as seeding
from mcframe.context.context_tree import ContextTree
from mcframe.data.synthetic.induction import Induction
from mcframe.data.synthetic.recall import FIRST_KEY
from mcframe.errors import UserError
from tests.support.plain_random import below, many_below, mix
from tests.support.synthetic_checks import check_places, check_solvable_only_with_evidence, copied_right, geometries

SEEDS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4)
WIDE = ContextTree(window=67, block_size=8, tail=16)
"""Six blocks that may be collapsed; the cursor stands 3 tokens into the seventh."""


@st.composite
def inductions(draw) -> Induction:
    """Few symbols: then a prefix repeats by chance, and overlaps itself, most of the time."""
    prefix, length = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    symbols = draw(st.integers(prefix + 2, prefix + 4))
    return Induction(draw(geometries(prefix, length)), length=length, prefix=prefix, symbols=symbols)


def reference(task: Induction, seed: int) -> tuple[list[int], list[int]]:
    """One sequence and the places of its answers."""
    tree, size, n = task.tree, task.tree.block_size, task.prefix
    cursor = tree.cursor
    tokens = many_below(mix(seed, 1), tree.window + 1, task.symbols)
    block = tree.sink + below(mix(seed, 2), cursor // size - tree.sink)
    start = block * size + below(mix(seed, 3), size - n - task.length + 1)
    prefix = tokens[start : start + n]
    tokens[cursor - n : cursor] = prefix
    others = [symbol for symbol in range(task.symbols) if symbol not in prefix]
    # Windows are looked at as they were drawn; changing one token breaks every repeat that it is in.
    repeats = [i for i in range(cursor - n) if i != start and tokens[i : i + n] == prefix]
    for i in repeats:
        place = i if i < start else max(i, start + n)
        tokens[place] = others[mix(mix(seed, 4), place) % len(others)]
    tokens[cursor : cursor + task.length] = tokens[start + n : start + n + task.length]
    return [FIRST_KEY + token for token in tokens], list(range(start + n, start + n + task.length))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(inductions(), SEEDS)
def test_sequences_are_those_of_the_reference_and_everything_is_in_its_place(task: Induction, seeds: list[int]) -> None:
    batch = task.generate(torch.tensor(seeds))
    wanted = [reference(task, seed) for seed in seeds]
    assert batch.tokens.tolist() == [tokens for tokens, _ in wanted]
    assert [row[loss_mask].tolist() for row, loss_mask in zip(batch.evidence, batch.loss_mask, strict=True)] == [
        places for _, places in wanted
    ]
    check_places(batch, task.tree, task.prefix, task.length)
    assert int(batch.tokens.min()) >= FIRST_KEY
    assert int(batch.tokens.max()) < task.vocab_size


@settings(max_examples=150, deadline=None, derandomize=True)
@given(inductions(), SEEDS)
def test_the_source_and_nothing_else_gives_the_answer(task: Induction, seeds: list[int]) -> None:
    check_solvable_only_with_evidence(task.generate(torch.tensor(seeds)), task.tree, task.prefix, task.length)


@pytest.mark.parametrize(("prefix", "symbols"), [(1, 3), (1, 6), (2, 5), (2, 8), (3, 6)])
def test_guessing_is_at_chance(prefix: int, symbols: int) -> None:
    """The best that can be made without the source: what most often follows the prefix in half of the sequences, tried
    on the other half."""
    task = Induction(WIDE, length=2, prefix=prefix, symbols=symbols)
    batch = task.generate(seeding.hash_combine(torch.arange(40_000), 0))
    cursor = WIDE.cursor
    for answer in range(2):
        seen = batch.tokens[:, cursor - prefix : cursor + answer + 1] - FIRST_KEY
        code = (seen * symbols ** torch.arange(prefix + answer + 1)).sum(dim=1)
        half, cells = len(code) // 2, symbols ** (prefix + answer + 1)
        counted, tried = (torch.bincount(c, minlength=cells).view(symbols, -1) for c in code.split(half))
        right = tried.gather(0, counted.argmax(dim=0, keepdim=True)).sum().item() / half
        assert 1 / symbols - 0.01 < right < task.chance + 0.01
        if (prefix, answer) == (1, 0):
            assert right == pytest.approx(task.chance, abs=0.01)
    assert copied_right(batch, WIDE).max() < task.chance + 0.01


def test_sources_lie_everywhere_alike() -> None:
    task = Induction(WIDE, length=3)
    evidence = task.generate(seeding.hash_combine(torch.arange(20_000), 0)).evidence[:, WIDE.cursor - 1]
    shares = torch.bincount(evidence, minlength=48) / len(evidence)
    wanted = [1 / 24 if 2 <= place % 8 <= 5 else 0.0 for place in range(48)]
    assert shares.tolist() == pytest.approx(wanted, abs=0.006)


def test_symbols_stay_about_even() -> None:
    """What gives way to uniqueness must not mark the source: the asked symbols are common elsewhere, too."""
    task = Induction(WIDE, length=3, symbols=8)
    batch = task.generate(seeding.hash_combine(torch.arange(4000), 0))
    shares = torch.bincount((batch.tokens - FIRST_KEY).flatten(), minlength=8) / batch.tokens.numel()
    assert shares.tolist() == pytest.approx([1 / 8] * 8, abs=0.003)
    asked = batch.tokens[:, WIDE.cursor - 2, None]
    often = (batch.tokens[:, : WIDE.cursor - 2] == asked).sum(dim=1).float().mean().item()
    assert often == pytest.approx(1 + (WIDE.cursor - 3) / 8, rel=0.15)


def test_these_sequences_are_the_same_everywhere() -> None:
    task = Induction(ContextTree(40, 8, tail=6), length=4, symbols=8)
    batch = task.generate(torch.tensor([0, 1]))
    assert [bytes(row).decode() for row in batch.tokens.tolist()] == [
        "GGBBADBGGECBFDDBBEAGGBC@BGG@BFFGAGGBC@AFD",
        "BCCFCEBFBEG@DEDEAGFDADAGCGDGAEDBDGAEDBEAD",
    ]
    assert Induction(ContextTree(40, 8, tail=6), length=4, symbols=9).identity != task.identity


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"length": 0}, "task.induction.length = 1 or more"),
        ({"length": 7}, "task.induction.prefix or task.induction.length: 8 together at most"),
        ({"prefix": 0}, "task.induction.prefix = 1 or more"),
        ({"prefix": 3, "length": 1, "symbols": 4}, "task.induction.symbols = 5 or more"),
    ],
)
def test_impossible_sizes_name_ones_that_do(options: dict[str, int], said: str) -> None:
    with pytest.raises(UserError) as error:
        Induction(WIDE, **options)
    assert said in error.value.remedy

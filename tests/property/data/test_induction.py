"""The induction task, compared with a reference that writes one sequence at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import hash_combine
from mcframe.data.synthetic.induction import Induction
from mcframe.data.synthetic.recall import FIRST_KEY
from mcframe.errors import UserError
from tests.support.plain_random import below, many_below, mix
from tests.support.synthetic_checks import check_layout, check_solvable_only_with_evidence, copied_right, geometries

SEEDS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4)
WIDE = ContextTree(window=67, block_size=8, tail=16)
"""Six blocks that may be collapsed; the cursor is 3 tokens into the seventh."""


@st.composite
def inductions(draw) -> Induction:
    """Draw a task with few symbols, in which a prefix is often repeated by chance and overlaps itself."""
    prefix, length = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    symbols = draw(st.integers(prefix + 2, prefix + 4))
    return Induction(draw(geometries(prefix, length)), length=length, prefix=prefix, symbols=symbols)


def reference(task: Induction, seed: int) -> tuple[list[int], list[int]]:
    """Return one sequence and the positions of its evidence."""
    tree, size, n = task.tree, task.tree.block_size, task.prefix
    cursor = tree.cursor
    tokens = many_below(mix(seed, 1), tree.window + 1, task.symbols)
    block = tree.sink + below(mix(seed, 2), cursor // size - tree.sink)
    start = block * size + below(mix(seed, 3), size - n - task.length + 1)
    prefix = tokens[start : start + n]
    tokens[cursor - n : cursor] = prefix
    others = [symbol for symbol in range(task.symbols) if symbol not in prefix]
    # Repeats of the sequence as it was drawn: changing one token breaks every repeat that contains it.
    repeats = [i for i in range(cursor - n) if i != start and tokens[i : i + n] == prefix]
    for i in repeats:
        changed = i if i < start else max(i, start + n)
        tokens[changed] = others[mix(mix(seed, 4), changed) % len(others)]
    tokens[cursor : cursor + task.length] = tokens[start + n : start + n + task.length]
    return [FIRST_KEY + token for token in tokens], list(range(start + n, start + n + task.length))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(inductions(), SEEDS)
def test_sequences_equal_the_reference_and_need_the_source(task: Induction, seeds: list[int]) -> None:
    batch = task.generate(torch.tensor(seeds))
    expected = [reference(task, seed) for seed in seeds]
    assert batch.tokens.tolist() == [tokens for tokens, _ in expected]
    assert batch.evidence[batch.loss_mask].view(len(seeds), -1).tolist() == [positions for _, positions in expected]
    check_layout(batch, task.tree, task.prefix, task.length)
    check_solvable_only_with_evidence(batch, task.tree, task.prefix, task.length)
    assert int(batch.tokens.min()) >= FIRST_KEY
    assert int(batch.tokens.max()) < task.vocab_size


@pytest.mark.parametrize(("prefix", "symbols"), [(1, 3), (1, 6), (2, 5), (2, 8), (3, 6)])
def test_guessing_is_at_chance(prefix: int, symbols: int) -> None:
    """The best guess without the source is the most frequent continuation of the prefix, counted on other sequences."""
    task = Induction(WIDE, length=2, prefix=prefix, symbols=symbols)
    batch = task.generate(hash_combine(torch.arange(20_000), 0))
    cursor = WIDE.cursor
    for answer in range(2):
        prefixes = batch.tokens[:, cursor - prefix : cursor + answer + 1] - FIRST_KEY
        code = (prefixes * symbols ** torch.arange(prefix + answer + 1)).sum(dim=1)
        half, cells = len(code) // 2, symbols ** (prefix + answer + 1)
        counted, tried = (torch.bincount(c, minlength=cells).view(symbols, -1) for c in code.split(half))
        right = tried.gather(0, counted.argmax(dim=0, keepdim=True)).sum().item() / half
        assert 1 / symbols - 0.015 < right < task.chance + 0.015
        if (prefix, answer) == (1, 0):
            assert right == pytest.approx(task.chance, abs=0.015)
    assert copied_right(batch, WIDE).max() < task.chance + 0.015


def test_sources_are_evenly_distributed() -> None:
    task = Induction(WIDE, length=3)
    evidence = task.generate(hash_combine(torch.arange(20_000), 0)).evidence[:, WIDE.cursor - 1]
    fractions = torch.bincount(evidence, minlength=48) / len(evidence)
    expected = [1 / 24 if 2 <= position % 8 <= 5 else 0.0 for position in range(48)]
    assert fractions.tolist() == pytest.approx(expected, abs=0.006)


def test_symbols_stay_about_even() -> None:
    """The tokens replaced for uniqueness must not mark the source: the symbols of the question are common elsewhere."""
    task = Induction(WIDE, length=3, symbols=8)
    batch = task.generate(hash_combine(torch.arange(4000), 0))
    fractions = torch.bincount((batch.tokens - FIRST_KEY).flatten(), minlength=8) / batch.tokens.numel()
    assert fractions.tolist() == pytest.approx([1 / 8] * 8, abs=0.003)
    question = batch.tokens[:, WIDE.cursor - 2, None]
    often = (batch.tokens[:, : WIDE.cursor - 2] == question).sum(dim=1).float().mean().item()
    assert often == pytest.approx(1 + (WIDE.cursor - 3) / 8, rel=0.15)


def test_sequences_are_the_same_on_every_machine() -> None:
    task = Induction(ContextTree(40, 8, tail=6), length=4, symbols=8)
    batch = task.generate(torch.tensor([0, 1]))
    assert [bytes(row).decode() for row in batch.tokens.tolist()] == [
        "GGBBADBGGECBFDDBBEAGGBC@BGG@BFFGAGGBC@AFD",
        "BCCFCEBFBEG@DEDEAGFDADAGCGDGAEDBDGAEDBEAD",
    ]
    assert Induction(ContextTree(40, 8, tail=6), length=4, symbols=9).identity != task.identity


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"length": 0}, "length: expected from 1 to 6"),
        ({"length": 7}, "length: expected from 1 to 6"),
        ({"prefix": 0}, "prefix: expected from 1 to 7"),
        ({"prefix": 3, "length": 1, "symbols": 4}, "symbols: expected 5 or more"),
    ],
)
def test_sizes_that_do_not_fit_are_errors(options: dict[str, int], rule: str) -> None:
    with pytest.raises(UserError, match=f"task.induction.{rule}"):
        Induction(WIDE, **options)

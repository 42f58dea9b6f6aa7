"""Clauses of tasks: sequences that are functions of their seeds, with answers where they should stand."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import variant_seeds
from mcframe.errors import UserError
from mcframe.hookspecs import SyntheticBatch
from mcframe.testing.examples import SEEDS, for_all
from mcframe.testing.host_sync import random_state, random_states
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.requirements import expect, requirement
from mcframe.testing.text import expect_identity

Generated = tuple[Any, ContextTree, SyntheticBatch]
"""A task, its tree, and eight of its sequences."""


def generated(plugin: PluginUnderTest) -> st.SearchStrategy[Callable[[], Generated]]:
    """Batches on trees with and without room; a task declines those that it does not fit."""

    def making(block_size: int, blocks: int, asked: int, behind: int, sink: int, seed: int) -> Callable[[], Generated]:
        cursor = blocks * block_size + asked % block_size
        tree = ContextTree(cursor + 1 + behind, block_size, 1, 1, tail=1 + behind, sink=sink)

        def make() -> Generated:
            task = plugin.build(tree)
            return task, tree, task.generate(seeds(seed, 8))

        return make

    return st.builds(
        making, st.integers(10, 20), st.integers(2, 5), st.sampled_from((0, 1, 1, 5, 9)), st.integers(8, 24),
        st.integers(0, 1), SEEDS,
    )  # fmt: skip


def seeds(seed: int, count: int) -> torch.Tensor:
    """Seeds as the framework makes them, int64 [count]."""
    return variant_seeds(seed, torch.arange(count), 1)[:, 0]


@requirement(
    "T1", "A batch has tokens [B, T + 1] below `vocab_size`, and masks and places [B, T]", "task", after=("P9",)
)
def t1_shape(plugin: PluginUnderTest) -> None:
    """int64, bool and int64."""

    def check(case: Generated) -> None:
        task, tree, batch = case
        rows, window = 8, tree.window
        for name, dtype, columns in (
            ("tokens", torch.int64, window + 1), ("loss_mask", torch.bool, window), ("evidence", torch.int64, window),
        ):  # fmt: skip
            found = getattr(batch, name)
            said = f"{name} is {found.dtype} {list(found.shape)}, not {dtype} {[rows, columns]}"
            expect(found.dtype == dtype and list(found.shape) == [rows, columns], said)
        low, high = int(batch.tokens.min()), int(batch.tokens.max())
        expect(low >= 0 and high < task.vocab_size, f"token ids reach from {low} to {high}, of {task.vocab_size}")

    for_all(generated(plugin), check)


@requirement("T2", "A sequence is a function of its own seed", "task", after=("T1",))
def t2_seeds(plugin: PluginUnderTest) -> None:
    """Neither other rows nor a global random state matter, and other seeds give other sequences."""

    def check(case: Generated) -> None:
        task = case[0]
        own = seeds(3, 6)
        with random_states(1):
            before = random_state()
            tokens = task.generate(own).tokens
            expect(random_state() == before, "a global random state has moved")
        with random_states(2):
            backwards = task.generate(own.flip(0)).tokens.flip(0)
            expect(torch.equal(backwards, tokens), "in another order, or at another time, sequences differ")
        expect(torch.equal(task.generate(own[2:3]).tokens, tokens[2:3]), "alone, a sequence differs")
        expect(not torch.equal(task.generate(seeds(4, 6)).tokens, tokens), "other seeds give the same sequences")

    for_all(generated(plugin), check, examples=5)


@requirement("T3", "Answers stand behind the cursor, and every sequence has one", "task", after=("T1",))
def t3_answers(plugin: PluginUnderTest) -> None:
    """Targets from the cursor on: what stands before it may be looked at when a focus is chosen."""

    def check(case: Generated) -> None:
        _, tree, batch = case
        early = batch.loss_mask[:, : max(0, tree.cursor - 1)].any().item()
        expect(not early, f"a target before the cursor ({tree.cursor}) is scored")
        expect(bool(batch.loss_mask.any(dim=1).all()), "a sequence has nothing that is scored")

    for_all(generated(plugin), check)


@requirement("T4", "Evidence stands in a block that may be collapsed, and holds the answer", "task", after=("T3",))
def t4_evidence(plugin: PluginUnderTest) -> None:
    """-1 exactly where nothing is scored."""

    def check(case: Generated) -> None:
        _, tree, batch = case
        expect(
            torch.equal(batch.evidence >= 0, batch.loss_mask), "evidence is given where nothing is scored, or missing"
        )
        row, target = batch.loss_mask.nonzero(as_tuple=True)
        place = batch.evidence[row, target]
        block = place // tree.block_size
        inside = (block >= tree.sink) & (block < tree.cursor // tree.block_size)
        expect(
            bool(inside.all()), f"evidence at {place[~inside].tolist()[:3]} stands in no block that may be collapsed"
        )
        holds = batch.tokens[row, place] == batch.tokens[row, target + 1]
        expect(bool(holds.all()), "the token at the place of the evidence is not the answer")

    for_all(generated(plugin), check)


@requirement(
    "T5",
    "`identity` changes with the tree and with nothing else; `chance` is a share or None",
    "task",
    after=("P9",),
)
def t5_declared(plugin: PluginUnderTest) -> None:
    """It tells held-out sequences of one run from those of another."""

    def check(case: Generated) -> None:
        task, tree, _ = case
        expect_identity(task, plugin.build(tree))
        longer = replace(tree, window=tree.window + tree.block_size)
        with suppress(UserError):  # it may decline that one
            other = plugin.build(longer).identity
            expect(other != task.identity, f"for {tree} and for {longer} it is called {other!r}")
        chance = task.chance
        expect(chance is None or 0 <= chance < 1, f"chance is {chance!r}; it is a share, or None")

    for_all(generated(plugin), check, examples=5)

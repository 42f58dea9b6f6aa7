"""Clauses of positions: the rotation of an entry's queries and keys."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import WorkingContext, build_context
from mcframe.testing.examples import SEEDS, for_all, geometries
from mcframe.testing.host_sync import NoHostSync, NoReadingMethods, random_state, random_states, same
from mcframe.testing.inputs import CONTEXTS, stirred, working_context
from mcframe.testing.parts import SMALL
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.requirements import expect, requirement

Placed = tuple[Callable[[WorkingContext], tuple[Tensor, Tensor]], WorkingContext]
"""Positions and a context to place."""


def placed(plugin: PluginUnderTest) -> st.SearchStrategy[Callable[[], Placed]]:
    """Positions on contexts of every kind."""

    def making(tree: ContextTree, seed: int, context: str) -> Callable[[], Placed]:
        return lambda: (stirred(plugin.build(tree), seed), working_context(tree, 3, seed, context))

    return st.builds(making, geometries(), SEEDS, st.sampled_from(CONTEXTS))


@requirement(
    "Q1", "Cosine and sine are float32 [R, 1 or heads, L, width / 2] of a length up to 1", "positions", after=("P9",)
)
def q1_shape(plugin: PluginUnderTest) -> None:
    """On contexts of every kind, also for a model in bfloat16."""

    def check(case: Placed) -> None:
        positions, context = case
        factors = positions(context)
        wanted = [context.token.shape[0], context.length, plugin.width // 4]
        for factor in factors:
            heads = factor.shape[1] if factor.dim() == 4 else 0
            fits = [*factor.shape[:1], *factor.shape[2:]] == wanted and heads in (1, 2)
            expect(fits, f"a factor has the shape {list(factor.shape)} for {wanted[1]} entries of 2 heads")
            expect(factor.dtype == torch.float32, f"a factor is {factor.dtype}, not torch.float32")
        cosine, sine = factors
        longest = float((cosine**2 + sine**2).max())
        expect(longest < 1 + 1e-4, f"a rotation makes vectors {longest**0.5:.3f} times as long")

    for_all(placed(plugin), check, examples=20)


@requirement("Q2", "Equal contexts are placed alike, whatever the random state", "positions", after=("Q1",))
def q2_deterministic(plugin: PluginUnderTest) -> None:
    """And no row matters to another."""

    def check(case: Placed) -> None:
        positions, context = case
        found = []
        for seed in (1, 2):
            with random_states(seed):
                before = random_state()
                found.append(torch.stack(positions(context)))
                expect(random_state() == before, "a global random state has moved")
        expect(same(*found), "the same context was placed in two ways")

    for_all(placed(plugin), check)


@requirement("Q3", "What stands behind an entry does not move it", "positions", after=("Q2",))
def q3_causal(plugin: PluginUnderTest) -> None:
    """A later block is compressed, and the entries before it stay where they are."""
    positions = stirred(plugin.build(SMALL), 0)
    focus = torch.zeros(1, SMALL.blocks, dtype=torch.long)
    focus[0, 1] = 1
    later = focus.clone()
    later[0, 8] = 1
    before = 8 * SMALL.block_size - SMALL.saving(1)  # entries of the first eight blocks
    one, other = (torch.stack(positions(build_context(each, SMALL)))[..., :before, :] for each in (focus, later))
    expect(same(one, other), "entries move when a block behind them is compressed")


@requirement("Q4", "Nothing is read back to the host", "positions", after=("Q1",))
def q4_host(plugin: PluginUnderTest) -> None:
    """Positions are computed in every pass of the base model."""
    positions, context = stirred(plugin.build(SMALL), 0), working_context(SMALL, 3, 0, "equal")
    positions(context)
    with NoHostSync(), NoReadingMethods():
        positions(context)

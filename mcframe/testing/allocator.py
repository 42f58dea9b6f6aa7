"""Clauses of allocators: a valid focus within the budget that follows the scores."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.context.focus_ops import is_valid, lengths
from mcframe.errors import UserError
from mcframe.testing.examples import for_all
from mcframe.testing.inputs import allocator_trial, geometry_within_reach, trials
from mcframe.testing.plugin_calls import AllocatorCall
from mcframe.testing.plugin_under_test import PLAIN, PluginUnderTest
from mcframe.testing.requirements import Skipped, expect, requirement


@requirement("A1", "A focus is int64 [R, blocks]", "allocator", after=("P9",))
def a1_shape(plugin: PluginUnderTest) -> None:
    """For scores of float32 and bfloat16."""

    def check(trial: AllocatorCall) -> None:
        wanted = [trial.rows, trial.tree.blocks]
        for dtype in (torch.float32, torch.bfloat16):
            focus = trial.given(scores=trial.scores.to(dtype)).run()
            expect(list(focus.shape) == wanted, f"the focus has the shape {list(focus.shape)}, not {wanted}")
            expect(focus.dtype == torch.int64, f"the focus is {focus.dtype}, not torch.int64")

    for_all(trials(plugin), check, examples=25)


@requirement("A2", "A focus is valid: known levels, nodes whole and aligned", "allocator", after=("A1",))
def a2_valid(plugin: PluginUnderTest) -> None:
    """From any valid focus, at any budget."""

    def check(trial: AllocatorCall) -> None:
        focus = trial.run()
        for row in (~is_valid(focus, replace(trial.tree, tail=0, sink=0))).nonzero().flatten().tolist():
            expect(False, f"{trial.context.focus[row].tolist()} became {focus[row].tolist()} ({trial.tree})")

    for_all(trials(plugin), check, examples=25)


@requirement("A3", "Protected blocks stay raw: the tail and the sink", "allocator", after=("A1",))
def a3_protected(plugin: PluginUnderTest) -> None:
    """Though their scores are the lowest."""

    def check(trial: AllocatorCall) -> None:
        free = torch.tensor(trial.tree.compressible[0], dtype=torch.bool)
        compressed = (trial.run()[:, ~free] != 0).any(dim=0)
        blocks = (~free).nonzero().flatten()[compressed].tolist()
        expect(not blocks, f"blocks {blocks} are protected and were compressed ({trial.tree})")

    for_all(trials(plugin), check, examples=25)


@requirement("A4", "The context fits the budget", "allocator", after=("A2",))
def a4_budget(plugin: PluginUnderTest) -> None:
    """Of every budget that can be met, the least among them."""

    def check(trial: AllocatorCall) -> None:
        longest = int(lengths(trial.run(), trial.tree).max())
        expect(longest <= trial.budget, f"a budget of {trial.budget} gave {longest} entries ({trial.tree})")

    for_all(trials(plugin), check, examples=25)


@requirement(
    "A5", "From the raw context it keeps the largest reachable length within the budget", "allocator",
    needs="fills the budget", after=("A3", "A4"),
)  # fmt: skip
def a5_fills(plugin: PluginUnderTest) -> None:
    """Unless it declares that it does not: `fills_budget = False`."""

    def check(trial: AllocatorCall) -> None:
        if not trial.part.fills_budget:
            return
        wanted, _ = geometry_within_reach(trial.part, trial.tree).reachable(trial.budget)
        shortest = int(lengths(trial.run(), trial.tree).min())
        expect(shortest == wanted, f"of a budget of {trial.budget} it used {shortest}; {wanted} can be reached")

    for_all(trials(plugin, context="raw"), check, examples=25)


@requirement("A6", "Zero scores change nothing that fits", "allocator", after=("A1",))
def a6_zero(plugin: PluginUnderTest) -> None:
    """Nobody asked for a change."""

    def check(trial: AllocatorCall) -> None:
        before = trial.context.focus
        budget = int(lengths(before, trial.tree).max()) + trial.budget % 3
        after = replace(trial, budget=budget, scores=torch.zeros_like(trial.scores)).run()
        expect(torch.equal(after, before), f"{before.tolist()} became {after.tolist()} at a budget of {budget}")

    for_all(trials(plugin), check, examples=25)


@requirement("A7", "A budget that no context meets is a UserError that names the least", "allocator", after=("A1",))
def a7_impossible(plugin: PluginUnderTest) -> None:
    """And the least itself is met."""

    def check(trial: AllocatorCall) -> None:
        least = geometry_within_reach(trial.part, trial.tree).minimum_length
        replace(trial, budget=least).run()
        try:
            replace(trial, budget=least - 1).run()
        except UserError as error:
            said = re.search(rf"\b{least}\b", error.message)
            expect(bool(said), f"the error does not name the least budget, {least}: {error.message}")
            return
        expect(False, f"a budget of {least - 1} entries raised no UserError; the shortest context has {least}")

    for_all(trials(plugin), check)


@requirement(
    "A8", "From the raw context no block is compressed that scores above one that stays raw", "allocator",
    needs="follows scores", after=("A2", "A3"),
)  # fmt: skip
def a8_order(plugin: PluginUnderTest) -> None:
    """At one level. Unless it declares that something else decides: `follows_scores = False`."""

    def check(trial: AllocatorCall) -> None:
        tree, focus = trial.tree, trial.run()
        whole = tree.cursor // tree.block_size
        means = trial.scores[:, : whole * tree.block_size].view(trial.rows, whole, -1).mean(dim=2)
        free = torch.tensor(tree.compressible[0], dtype=torch.bool)[:whole]
        for row in range(trial.rows):
            gists, raw = (means[row, free & (focus[row, :whole] == lod)].tolist() for lod in (1, 0))
            best, worst = max(gists, default=-1.0), min(raw, default=1.0)
            expect(best <= worst + 1e-6, f"a block that scores {best:.3f} was compressed, one of {worst:.3f} was not")

    one_level = ContextTree(window=50, block_size=4, levels=1, slots=1, tail=5, sink=1)
    try:
        plugin.build(one_level)
    except UserError as refusal:
        raise Skipped(f"it declines trees of one level: {refusal.message}") from None
    cases = st.builds(
        lambda seed, share: lambda: allocator_trial(plugin, one_level, seed, context="raw", share=share),
        st.integers(0, 999), st.floats(0.1, 0.9),
    )  # fmt: skip
    for_all(cases, check)


@requirement("A9", "What is declared of it makes sense", "allocator", after=("A2",))
def a9_declared(plugin: PluginUnderTest) -> None:
    """`iterations`, `highest_lod`, `fills_budget`, `follows_scores`."""
    part = plugin.specimen
    rounds, highest = part.iterations, part.highest_lod
    expect(isinstance(rounds, int) and rounds >= 1, f"iterations is {rounds!r}; it is a number from 1 up")
    known = highest is None or (isinstance(highest, int) and highest >= 1)
    expect(known, f"highest_lod is {highest!r}; it is a level from 1 up, or None")
    for name in ("fills_budget", "follows_scores"):
        expect(isinstance(getattr(part, name), bool), f"{name} is {getattr(part, name)!r}; it is True or False")
    if highest is not None:
        used = int(allocator_trial(plugin, PLAIN, 0, share=0.0).run().max())
        expect(used <= highest, f"it declares highest_lod = {highest} and used LOD {used}")

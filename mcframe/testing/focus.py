"""Requirements of allocators and variant strategies: valid focuses of the right length, from their inputs alone."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import variant_seeds
from mcframe.context.focus_ops import is_valid, lengths
from mcframe.errors import UserError
from mcframe.testing.assertions import Skipped, expect
from mcframe.testing.calls import Example, PluginCall, calls, make_call, reachable_tree
from mcframe.testing.plugin_under_test import PLAIN, PluginUnderTest
from mcframe.testing.requirements import PURE, Capability, requirement

ROOMY = ContextTree(window=66, block_size=4, levels=1, slots=1, tail=5, sink=1)
"""Fourteen compressible blocks: at half of the possible savings, thousands of focuses."""

ONE_LEVEL = ContextTree(window=50, block_size=4, levels=1, slots=1, tail=5, sink=1)

FILLS = Capability("`fills_budget`", "it declares that entries may stay unused", lambda part: part.fills_budget)
FOLLOWS = Capability(
    "`follows_scores`", "it declares that scores alone do not decide", lambda part: part.follows_scores
)
VARIANTS = Capability("`count` is not 0", "it proposes no variants", lambda part: part.count != 0)


def expect_focus(focus: Tensor, call: PluginCall, shape: list[int]) -> Tensor:
    """Return the lengths of the focuses [rows]. Raises NotConforming unless they are valid and of this shape."""
    expect(list(focus.shape) == shape, f"the focus has the shape {list(focus.shape)}, expected {shape}")
    expect(focus.dtype == torch.int64, f"the focus is {focus.dtype}, expected torch.int64")
    flat = focus.flatten(0, -2)
    for row in (~is_valid(flat, call.tree)).nonzero().flatten().tolist():
        expect(
            False,
            f"{flat[row].tolist()} is no valid focus: levels must exist, nodes be complete and aligned, and sink and "
            f"tail stay at LOD0 ({call.tree})",
        )
    return lengths(flat, call.tree)


# ---- allocators ------------------------------------------------------------------------------------
@requirement(
    "A1", "A focus is int64 [R, blocks], valid, and within the budget", "allocator",
    over=calls, examples=20, after=("P6",),
)  # fmt: skip
def a1_focus(call: PluginCall) -> None:
    """From any valid focus, for float32 and bfloat16 scores and any reachable budget. Sink and tail stay raw."""
    for dtype in (torch.float32, torch.bfloat16):
        focus = call.replacing(scores=call.inputs["scores"].to(dtype)).run()
        longest = int(expect_focus(focus, call, [call.rows, call.tree.blocks]).max())
        expect(longest <= call.number, f"a budget of {call.number}: got {longest} entries ({call.tree})")


def raw_calls(plugin: PluginUnderTest) -> st.SearchStrategy[Any]:
    """Return calls on uncompressed contexts."""
    return calls(plugin, context=st.just("raw"))


@requirement(
    "A2", "From the raw context it keeps the largest reachable length within the budget", "allocator",
    over=raw_calls, examples=12, needs=FILLS, after=("A1",),
)  # fmt: skip
def a2_fills(call: PluginCall) -> None:
    """Unless it declares `fills_budget = False`."""
    expected, _ = reachable_tree(call.part, call.tree).reachable(call.number)
    shortest = int(lengths(call.run(), call.tree).min())
    expect(shortest == expected, f"of a budget of {call.number} it used {shortest}; {expected} can be reached")


@requirement("A3", "Zero scores keep a context that fits", "allocator", over=calls, examples=12, after=("A1",))
def a3_zero(call: PluginCall) -> None:
    """Scores of 0 request no change."""
    before = call.context.focus
    budget = int(lengths(before, call.tree).max()) + call.number % 3
    after = replace(call, number=budget).replacing(scores=torch.zeros_like(call.inputs["scores"])).run()
    expect(torch.equal(after, before), f"{before.tolist()} became {after.tolist()} at a budget of {budget}")


@requirement(
    "A4", "An unreachable budget raises a UserError that names the least budget", "allocator", over=calls,
    after=("A1",),
)  # fmt: skip
def a4_unreachable(call: PluginCall) -> None:
    """The least budget itself is accepted."""
    least = reachable_tree(call.part, call.tree).minimum_length
    replace(call, number=least).run()
    try:
        replace(call, number=least - 1).run()
    except UserError as error:
        named = re.search(rf"\b{least}\b", error.message)
        expect(bool(named), f"the error does not name the least budget, {least}: {error.message}")
        return
    expect(False, f"a budget of {least - 1} entries raised no UserError; the shortest context has {least}")


def one_level_calls(plugin: PluginUnderTest) -> st.SearchStrategy[Any]:
    """Return calls on raw contexts of one level. Raises Skipped if the plug-in declines the tree."""
    try:
        plugin.build(ONE_LEVEL)
    except UserError as refusal:
        raise Skipped(f"it declines trees of one level: {refusal.message}") from None
    return calls(plugin, tree=st.just(ONE_LEVEL), context=st.just("raw"), fraction=st.floats(0.1, 0.9))


@requirement(
    "A5", "From the raw context it compresses no block with a score above that of a raw one", "allocator",
    over=one_level_calls, needs=FOLLOWS, after=("A1",),
)  # fmt: skip
def a5_order(call: PluginCall) -> None:
    """At one level. Unless it declares `follows_scores = False`."""
    tree, focus = call.tree, call.run()
    blocks = tree.cursor // tree.block_size
    means = call.inputs["scores"][:, : blocks * tree.block_size].view(call.rows, blocks, -1).mean(dim=2)
    free = torch.tensor(tree.compressible[0], dtype=torch.bool)[:blocks]
    for row in range(call.rows):
        gists, raw = (means[row, free & (focus[row, :blocks] == lod)].tolist() for lod in (1, 0))
        best, worst = max(gists, default=-1.0), min(raw, default=1.0)
        expect(best <= worst + 1e-6, f"a block with score {best:.3f} was compressed, one with {worst:.3f} was not")


@requirement("A6", "The declarations are consistent", "allocator", after=("A1",))
def a6_declared(plugin: PluginUnderTest) -> None:
    """`iterations`, `highest_lod`, `fills_budget`, `follows_scores`."""
    part = plugin.specimen
    rounds, highest = part.iterations, part.highest_lod
    expect(isinstance(rounds, int) and rounds >= 1, f"iterations is {rounds!r}, expected a number from 1 up")
    known = highest is None or (isinstance(highest, int) and highest >= 1)
    expect(known, f"highest_lod is {highest!r}, expected a level from 1 up or None")
    for name in ("fills_budget", "follows_scores"):
        expect(isinstance(getattr(part, name), bool), f"{name} is {getattr(part, name)!r}, expected True or False")
    if highest is not None:
        used = int(make_call(plugin, Example(PLAIN, context="padded", fraction=0.0)).run().max())
        expect(used <= highest, f"it declares highest_lod = {highest} and used LOD {used}")


# ---- variant strategies ----------------------------------------------------------------------------
@requirement(
    "V1", "Focuses are int64 [B, V, blocks], valid, and of exactly the requested length", "variants",
    over=calls, examples=20, after=("P6",),
)  # fmt: skip
def v1_focuses(call: PluginCall) -> None:
    """V is `count`. At every reachable length; sink and tail stay raw."""
    count = call.part.count
    expect(isinstance(count, int) and count >= 0, f"count is {count!r}, expected a number from 0 up")
    found = {*expect_focus(call.run(), call, [call.rows, count, call.tree.blocks]).tolist()}
    expect(found <= {call.number}, f"expected {call.number} entries, got {sorted(found)} ({call.tree})")


@requirement(
    "V2", "Variants of a sequence differ, and other seeds lead to other focuses", "variants",
    needs=VARIANTS, after=("V1", *PURE),
)  # fmt: skip
def v2_differ(plugin: PluginUnderTest) -> None:
    """In 95 of 100 sequences and in half of all focuses, where thousands of focuses have the length."""
    call = make_call(plugin, Example(ROOMY, rows=100))
    focus, count = call.run(), call.part.count
    repeats = (focus[:, :, None] == focus[:, None]).all(dim=-1).tril(diagonal=-1).any(dim=(1, 2))
    expect(int(repeats.sum()) <= 5, f"in {int(repeats.sum())} of 100 sequences variants repeat each other")
    other = call.replacing(seeds=variant_seeds(1, torch.arange(100), count)).run()
    equal = (focus == other).all(dim=-1).double().mean().item()
    expect(equal < 0.5, f"{equal:.0%} of the focuses are the same under other seeds")


@requirement(
    "V3", "Tokens at or after the cursor change no focus", "variants",
    over=calls, needs=VARIANTS, after=("V1", *PURE),
)  # fmt: skip
def v3_hindsight(call: PluginCall) -> None:
    """These tokens evaluate a focus, so they must not choose it."""
    tokens = call.inputs["tokens"].clone()
    tokens[:, call.tree.cursor :] += 1
    expect(torch.equal(call.replacing(tokens=tokens).run(), call.run()), "tokens after the cursor change focuses")


@requirement("V4", "Scores matter exactly if `needs_scores` is True", "variants", needs=VARIANTS, after=("V1", *PURE))
def v4_scores(plugin: PluginUnderTest) -> None:
    """Scores of the uncompressed context cost a pass of LensNet."""
    call = make_call(plugin, Example(ROOMY, rows=50))
    needs = call.part.needs_scores
    expect(isinstance(needs, bool), f"needs_scores is {needs!r}, expected True or False")
    ramp = torch.linspace(-1, 1, ROOMY.cursor).expand(50, -1)
    moved = not torch.equal(call.replacing(scores=ramp).run(), call.run())
    expect(moved == needs, f"needs_scores is {needs}, and focuses {'change' if moved else 'do not change'} with scores")

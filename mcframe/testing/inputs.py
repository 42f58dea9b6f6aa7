"""Random trials of each kind: trees, focuses and tensors for them, and networks whose every part does something."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import variant_seeds
from mcframe.context.working_context import WorkingContext, build_context, raw_context
from mcframe.testing.examples import SEEDS, geometries
from mcframe.testing.plugin_calls import AllocatorCall, GistNetCall, LensNetCall, PluginCall, VariantsCall
from mcframe.testing.plugin_under_test import PluginUnderTest

Making = Callable[[], PluginCall]
"""Builds the plug-in and its inputs; raises UserError where the plug-in declines the tree."""

CONTEXTS = ("raw", "equal", "padded")
"""Uncompressed; of one length, as in a training step; of several lengths, filled at the right."""

VOCABULARY = 13


def gist_trial(plugin: PluginUnderTest, tree: ContextTree, seed: int, *, rows: int = 3, lod: int = 1) -> GistNetCall:
    """A GistNet on every node at `lod`, or at the highest level below it that has a node."""
    part = stirred(plugin.build(tree, seed=seed), seed)
    lod = max(level for level in range(1, lod + 1) if tree.nodes(level) and level <= tree.levels)
    shape = (rows, tree.nodes(lod), children_of(part, tree, lod), plugin.width)
    return GistNetCall(part, tree, randn(shape, seed), lod)


def lens_trial(
    plugin: PluginUnderTest, tree: ContextTree, seed: int, *, rows: int = 3, context: str = "padded"
) -> LensNetCall:
    """A LensNet on the entries before the cursor of contexts of one of the `CONTEXTS`."""
    part = stirred(plugin.build(tree, seed=seed), seed)
    seen = working_context(tree, rows, seed, context).before_cursor()
    if part.reads_nll:
        seen = replace(seen, nll=3 * randn((rows, seen.length), seed).abs() * seen.valid)
    return LensNetCall(part, tree, seen, randn((rows, seen.length, plugin.width), seed))


def allocator_trial(
    plugin: PluginUnderTest, tree: ContextTree, seed: int, *, rows: int = 3, context: str = "padded", share: float = 0.5
) -> AllocatorCall:
    """An allocator on scored contexts; the budget lies at `share` between the shortest that it can reach and T."""
    part = plugin.build(tree)
    delta_horizon = geometry_within_reach(part, tree)
    seen = working_context(delta_horizon, rows, seed, context).before_cursor()
    # In the first round of a refocus no block has changed yet; outside of one, nobody counts rounds.
    age = torch.full_like(seen.focus, torch.iinfo(torch.int32).max) if seed % 2 else None
    seen = replace(seen, tree=tree, age=age)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, seen.length, generator=generator) * 2 - 1
    budget = delta_horizon.minimum_length + round(share * (tree.window - delta_horizon.minimum_length))
    seeds = torch.randint(2**62, (rows,), generator=generator)
    return AllocatorCall(part, tree, seen, scores, seeds, budget)


def variants_trial(
    plugin: PluginUnderTest, tree: ContextTree, seed: int, *, rows: int = 3, share: float = 0.5
) -> VariantsCall:
    """A variant strategy that is asked for a reachable length, at `share` between the shortest and T."""
    part = plugin.build(tree)
    target = tree.minimum_length + round(share * (tree.window - tree.minimum_length))
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (rows, tree.window), generator=generator)
    scores = torch.rand(rows, tree.cursor, generator=generator) * 2 - 1
    seeds = variant_seeds(seed, torch.arange(rows), part.count)
    length, _ = tree.reachable(target)
    return VariantsCall(part, tree, tokens, seeds, scores if part.needs_scores else None, length)


def trials(plugin: PluginUnderTest, *, rows: int = 3, context: str = "") -> st.SearchStrategy[Making]:
    """Calls of the plug-in, whatever its kind, on trees of all proportions and on one of `CONTEXTS`, or on all."""
    trees, share = geometries(), st.floats(0, 1)
    contexts = st.just(context) if context else st.sampled_from(CONTEXTS)

    def making(make: Callable[..., PluginCall], tree: ContextTree, seed: int, **options: Any) -> Making:
        return lambda: make(plugin, tree, seed, rows=rows, **options)

    drawn: dict[str, Any] = {"tree": trees, "seed": SEEDS}
    if plugin.kind == "gistnet":
        return st.builds(making, st.just(gist_trial), lod=st.integers(1, 2), **drawn)
    if plugin.kind == "lensnet":
        drawn["tree"] = trees.filter(lambda tree: tree.cursor > 0)
        return st.builds(making, st.just(lens_trial), context=contexts, **drawn)
    if plugin.kind == "allocator":
        return st.builds(making, st.just(allocator_trial), share=share, context=contexts, **drawn)
    return st.builds(making, st.just(variants_trial), share=share, **drawn)


def plain_trial(plugin: PluginUnderTest, tree: ContextTree, *, rows: int = 3) -> PluginCall:
    """One call on a given tree, at LOD1, on compressed contexts of one length, or for half of what can be saved."""
    if plugin.kind == "gistnet":
        return gist_trial(plugin, tree, 0, rows=rows)
    if plugin.kind == "lensnet":
        return lens_trial(plugin, tree, 0, rows=rows, context="equal")
    if plugin.kind == "allocator":
        return allocator_trial(plugin, tree, 0, rows=rows, context="equal")
    return variants_trial(plugin, tree, 0, rows=rows)


def working_context(tree: ContextTree, rows: int, seed: int, context: str) -> WorkingContext:
    """Contexts of random focuses, of one of the `CONTEXTS`."""
    if context == "raw":
        return raw_context(tree, rows, torch.device("cpu"))
    dice = random.Random(seed)
    if context == "equal":
        focus = torch.tensor([random_focus(tree, dice)] * rows).view(rows, -1)
        return build_context(focus, tree, int(build_context(focus[:1], tree).valid.sum()))
    return build_context(torch.tensor([random_focus(tree, dice) for _ in range(rows)]).view(rows, -1), tree)


def random_focus(tree: ContextTree, dice: random.Random) -> list[int]:
    """A valid focus: each node that may be compressed is, with a probability that is drawn first."""
    share, focus = dice.choice((0.2, 0.5, 0.8)), [0] * tree.blocks
    for lod in range(tree.levels, 0, -1):
        width = tree.span(lod - 1)
        for node, allowed in enumerate(tree.compressible[lod - 1]):
            blocks = range(node * width, (node + 1) * width)
            if allowed and not any(focus[block] for block in blocks) and dice.random() < share:
                for block in blocks:
                    focus[block] = lod
    return focus


def geometry_within_reach(allocator: Any, tree: ContextTree) -> ContextTree:
    """The tree without the levels that an allocator says it never uses."""
    if allocator.highest_lod is None:
        return tree
    return replace(tree, levels=min(tree.levels, allocator.highest_lod))


def children_of(gistnet: Any, tree: ContextTree, lod: int) -> int:
    """Children of a node at `lod`, as the framework counts them."""
    return tree.span(lod) if gistnet.reads_tokens else tree.block_size * tree.slots_at(lod - 1)


def randn(shape: tuple[int, ...], seed: int) -> Tensor:
    """Normal numbers of a seed, float32, whatever torch's own random state is."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stirred(part: Any, seed: int) -> Any:
    """A network in eval mode with noise on every parameter: what starts at zero must not hide what it will do."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    assert isinstance(part, nn.Module)
    return part.eval()

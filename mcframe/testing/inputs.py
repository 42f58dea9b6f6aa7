"""Random trials of each kind: trees, focuses and tensors for them, and networks whose every part does something."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from mcframe.context.geometry import Geometry
from mcframe.context.seeding import variant_seeds
from mcframe.context.working_context import WorkingContext, raw_context, unroll
from mcframe.testing.candidate import Candidate
from mcframe.testing.examples import SEEDS, geometries
from mcframe.testing.trials import AllocatorTrial, GistTrial, LensTrial, Trial, VariantsTrial

Making = Callable[[], Trial]
"""Builds the plug-in and its inputs; raises UserError where the plug-in declines the geometry."""

CONTEXTS = ("raw", "equal", "padded")
"""Uncompressed; of one length, as in a training step; of several lengths, filled at the right."""

VOCABULARY = 13


def gist_trial(plugin: Candidate, geometry: Geometry, seed: int, *, rows: int = 3, lod: int = 1) -> GistTrial:
    """A GistNet on every node at `lod`, or at the highest level below it that has a node."""
    part = stirred(plugin.build(geometry, seed=seed), seed)
    lod = max(level for level in range(1, lod + 1) if geometry.nodes(level) and level <= geometry.levels)
    shape = (rows, geometry.nodes(lod), children_of(part, geometry, lod), plugin.width)
    return GistTrial(part, geometry, randn(shape, seed), lod)


def lens_trial(
    plugin: Candidate, geometry: Geometry, seed: int, *, rows: int = 3, context: str = "padded"
) -> LensTrial:
    """A LensNet on the entries before the cursor of contexts of one of the `CONTEXTS`."""
    part = stirred(plugin.build(geometry, seed=seed), seed)
    seen = working_context(geometry, rows, seed, context).before_cursor()
    if part.reads_nll:
        seen = replace(seen, nll=3 * randn((rows, seen.length), seed).abs() * seen.valid)
    return LensTrial(part, geometry, seen, randn((rows, seen.length, plugin.width), seed))


def allocator_trial(
    plugin: Candidate, geometry: Geometry, seed: int, *, rows: int = 3, context: str = "padded", share: float = 0.5
) -> AllocatorTrial:
    """An allocator on scored contexts; the budget lies at `share` between the shortest that it can reach and T."""
    part = plugin.build(geometry)
    reach = geometry_within_reach(part, geometry)
    seen = working_context(reach, rows, seed, context).before_cursor()
    # In the first round of a refocus no block has changed yet; outside of one, nobody counts rounds.
    age = torch.full_like(seen.focus, torch.iinfo(torch.int32).max) if seed % 2 else None
    seen = replace(seen, geometry=geometry, age=age)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, seen.length, generator=generator) * 2 - 1
    budget = reach.minimum_length + round(share * (geometry.window - reach.minimum_length))
    seeds = torch.randint(2**62, (rows,), generator=generator)
    return AllocatorTrial(part, geometry, seen, scores, seeds, budget)


def variants_trial(
    plugin: Candidate, geometry: Geometry, seed: int, *, rows: int = 3, share: float = 0.5
) -> VariantsTrial:
    """A variant strategy that is asked for a reachable length, at `share` between the shortest and T."""
    part = plugin.build(geometry)
    target = geometry.minimum_length + round(share * (geometry.window - geometry.minimum_length))
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (rows, geometry.window), generator=generator)
    scores = torch.rand(rows, geometry.cursor, generator=generator) * 2 - 1
    seeds = variant_seeds(seed, torch.arange(rows), part.count)
    length, _ = geometry.reachable(target)
    return VariantsTrial(part, geometry, tokens, seeds, scores if part.needs_scores else None, length)


def trials(plugin: Candidate, *, rows: int = 3, context: str = "") -> st.SearchStrategy[Making]:
    """Calls of the plug-in, whatever its kind, on trees of all proportions and on one of `CONTEXTS`, or on all."""
    trees, share = geometries(), st.floats(0, 1)
    contexts = st.just(context) if context else st.sampled_from(CONTEXTS)

    def making(make: Callable[..., Trial], geometry: Geometry, seed: int, **options: Any) -> Making:
        return lambda: make(plugin, geometry, seed, rows=rows, **options)

    drawn: dict[str, Any] = {"geometry": trees, "seed": SEEDS}
    if plugin.kind == "gistnet":
        return st.builds(making, st.just(gist_trial), lod=st.integers(1, 2), **drawn)
    if plugin.kind == "lensnet":
        drawn["geometry"] = trees.filter(lambda tree: tree.cursor > 0)
        return st.builds(making, st.just(lens_trial), context=contexts, **drawn)
    if plugin.kind == "allocator":
        return st.builds(making, st.just(allocator_trial), share=share, context=contexts, **drawn)
    return st.builds(making, st.just(variants_trial), share=share, **drawn)


def plain_trial(plugin: Candidate, geometry: Geometry, *, rows: int = 3) -> Trial:
    """One call on a given tree, at LOD1, on compressed contexts of one length, or for half of what can be saved."""
    if plugin.kind == "gistnet":
        return gist_trial(plugin, geometry, 0, rows=rows)
    if plugin.kind == "lensnet":
        return lens_trial(plugin, geometry, 0, rows=rows, context="equal")
    if plugin.kind == "allocator":
        return allocator_trial(plugin, geometry, 0, rows=rows, context="equal")
    return variants_trial(plugin, geometry, 0, rows=rows)


def working_context(geometry: Geometry, rows: int, seed: int, context: str) -> WorkingContext:
    """Contexts of random focuses, of one of the `CONTEXTS`."""
    if context == "raw":
        return raw_context(geometry, rows, torch.device("cpu"))
    dice = random.Random(seed)
    if context == "equal":
        focus = torch.tensor([random_focus(geometry, dice)] * rows).view(rows, -1)
        return unroll(focus, geometry, int(unroll(focus[:1], geometry).valid.sum()))
    return unroll(torch.tensor([random_focus(geometry, dice) for _ in range(rows)]).view(rows, -1), geometry)


def random_focus(geometry: Geometry, dice: random.Random) -> list[int]:
    """A valid focus: each node that may be compressed is, with a probability that is drawn first."""
    share, focus = dice.choice((0.2, 0.5, 0.8)), [0] * geometry.blocks
    for lod in range(geometry.levels, 0, -1):
        width = geometry.span(lod - 1)
        for node, allowed in enumerate(geometry.compressible[lod - 1]):
            blocks = range(node * width, (node + 1) * width)
            if allowed and not any(focus[block] for block in blocks) and dice.random() < share:
                for block in blocks:
                    focus[block] = lod
    return focus


def geometry_within_reach(allocator: Any, geometry: Geometry) -> Geometry:
    """The tree without the levels that an allocator says it never uses."""
    if allocator.highest_lod is None:
        return geometry
    return replace(geometry, levels=min(geometry.levels, allocator.highest_lod))


def children_of(gistnet: Any, geometry: Geometry, lod: int) -> int:
    """Children of a node at `lod`, as the framework counts them."""
    return geometry.span(lod) if gistnet.reads_tokens else geometry.block_size * geometry.slots_at(lod - 1)


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

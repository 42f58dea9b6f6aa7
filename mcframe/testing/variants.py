"""Clauses of variant strategies: valid focuses of one length, from seeds alone, without hindsight."""

from __future__ import annotations

from dataclasses import replace

import torch

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import variant_seeds
from mcframe.context.focus_ops import is_valid, lengths
from mcframe.testing.examples import for_all
from mcframe.testing.inputs import trials, variants_trial
from mcframe.testing.plugin_calls import VariantsCall
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.requirements import STEADY, expect, requirement

ROOMY = ContextTree(window=66, block_size=4, levels=1, slots=1, tail=5, sink=1)
"""Fourteen blocks that may be compressed: at half of what can be saved, thousands of focuses."""


@requirement("V1", "Focuses are int64 [B, V, blocks], V being `count`", "variants", after=("P9",))
def v1_shape(plugin: PluginUnderTest) -> None:
    """On trees of all proportions, at every reachable length."""

    def check(trial: VariantsCall) -> None:
        count = trial.part.count
        expect(isinstance(count, int) and count >= 0, f"count is {count!r}; it is a number from 0 up")
        focus, wanted = trial.run(), [trial.rows, count, trial.tree.blocks]
        expect(list(focus.shape) == wanted, f"focuses have the shape {list(focus.shape)}, not {wanted}")
        expect(focus.dtype == torch.int64, f"focuses are {focus.dtype}, not torch.int64")

    for_all(trials(plugin), check, examples=25)


@requirement(
    "V2", "Focuses are valid: known levels, nodes whole and aligned", "variants", after=("V1",), needs="variants"
)
def v2_valid(plugin: PluginUnderTest) -> None:
    """On trees of all proportions, at every reachable length."""

    def check(trial: VariantsCall) -> None:
        focus = trial.run().flatten(0, 1)
        for row in (~is_valid(focus, replace(trial.tree, tail=0, sink=0))).nonzero().flatten().tolist():
            expect(False, f"{focus[row].tolist()} is not valid ({trial.tree})")

    for_all(trials(plugin), check, examples=25)


@requirement("V3", "Protected blocks stay raw: the tail and the sink", "variants", after=("V1",), needs="variants")
def v3_protected(plugin: PluginUnderTest) -> None:
    """On trees of all proportions, at every reachable length."""

    def check(trial: VariantsCall) -> None:
        free = torch.tensor(trial.tree.compressible[0], dtype=torch.bool)
        compressed = (trial.run().flatten(0, 1)[:, ~free] != 0).any(dim=0)
        blocks = (~free).nonzero().flatten()[compressed].tolist()
        expect(not blocks, f"blocks {blocks} are protected and were compressed ({trial.tree})")

    for_all(trials(plugin), check, examples=25)


@requirement(
    "V4", "Each focus unrolls to exactly the length that was asked", "variants", after=("V2", "V3"), needs="variants"
)
def v4_length(plugin: PluginUnderTest) -> None:
    """Pairs are compared at equal length."""

    def check(trial: VariantsCall) -> None:
        found = sorted(set(lengths(trial.run().flatten(0, 1), trial.tree).tolist()))
        expect(found == [trial.length], f"asked for {trial.length} entries, it gave {found} ({trial.tree})")

    for_all(trials(plugin), check, examples=25)


@requirement(
    "V5", "The variants of a sequence differ where they can", "variants", after=("V1",), needs="pairs of variants"
)
def v5_distinct(plugin: PluginUnderTest) -> None:
    """In 95 of 100 sequences, where thousands of focuses have the length."""
    focus = variants_trial(plugin, ROOMY, 0, rows=100).run()
    same = (focus[:, :, None] == focus[:, None]).all(dim=-1).tril(diagonal=-1).any(dim=(1, 2))
    expect(int(same.sum()) <= 5, f"in {int(same.sum())} of 100 sequences variants repeat each other")


@requirement("V6", "Other seeds give other focuses", "variants", after=("V1", *STEADY), needs="variants")
def v6_seeds(plugin: PluginUnderTest) -> None:
    """In most sequences; the same in every step would teach little."""
    trial = variants_trial(plugin, ROOMY, 0, rows=50)
    other = trial.given(seeds=variant_seeds(1, torch.arange(50), trial.part.count))
    same = (trial.run() == other.run()).all(dim=-1).double().mean().item()
    expect(same < 0.5, f"{same:.0%} of the focuses are the same under other seeds")


@requirement(
    "V7", "Nothing at or behind the cursor changes a focus", "variants", after=("V1", *STEADY), needs="variants"
)
def v7_hindsight(plugin: PluginUnderTest) -> None:
    """Tokens that judge a focus must not choose it."""

    def check(trial: VariantsCall) -> None:
        tokens = trial.tokens.clone()
        tokens[:, trial.tree.cursor :] += 1
        expect(torch.equal(trial.given(tokens=tokens).run(), trial.run()), "tokens behind the cursor change focuses")

    for_all(trials(plugin), check)


@requirement(
    "V8", "Scores matter exactly where `needs_scores` is True", "variants", after=("V1", *STEADY), needs="variants"
)
def v8_scores(plugin: PluginUnderTest) -> None:
    """The scores of the uncompressed context cost a pass of LensNet."""
    trial = variants_trial(plugin, ROOMY, 0, rows=50)
    wanted = trial.run()
    needs = trial.part.needs_scores
    expect(isinstance(needs, bool), f"needs_scores is {needs!r}; it is True or False")
    ramp = torch.linspace(-1, 1, ROOMY.cursor).expand(50, -1)
    moved = not torch.equal(replace(trial, scores=ramp).run(), wanted)
    expect(
        moved == needs, f"needs_scores is {needs}, and other scores {'change' if moved else 'do not change'} focuses"
    )

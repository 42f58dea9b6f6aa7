"""Clauses of GistNets: what comes out, and what it may depend on."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.testing.examples import SEEDS, for_all
from mcframe.testing.inputs import Making, gist_trial, randn, trials
from mcframe.testing.plugin_calls import GistNetCall
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.requirements import STEADY, expect, requirement

NODES = 5
"""Enough to have some to the left and some to the right."""


def rows_of_nodes(plugin: PluginUnderTest, most_lod: int = 2, nodes: int = NODES) -> st.SearchStrategy[Making]:
    """A GistNet on some neighbouring nodes, at LOD1 and LOD2, with one slot or two."""

    def making(block_size: int, slots: int, lod: int, seed: int) -> Making:
        tree = ContextTree(nodes * block_size**2, block_size, 2, slots, tail=0)

        def make() -> GistNetCall:
            trial = gist_trial(plugin, tree, seed, rows=1, lod=lod)
            return trial.given(children=trial.children[:, :nodes])

        return make

    return st.builds(making, st.integers(3, 5), st.integers(1, 2), st.integers(1, most_lod), SEEDS)


def beyond_the_window(plugin: PluginUnderTest) -> int:
    """Nodes of which some lie outside of the window that it declares, however wide that is."""
    return max(NODES, (plugin.specimen.context_blocks or 0) + 3)


@requirement("G1", "Gists have the shape [B, nodes, G, D] at every level, whatever the sizes", "gistnet", after=("P9",))
def g1_shape(plugin: PluginUnderTest) -> None:
    """Odd sizes among them: several slots, two levels, windows that are no whole number of blocks."""

    def check(trial: GistNetCall) -> None:
        gists, children = trial.run(), trial.children
        wanted = [*children.shape[:2], trial.tree.slots, plugin.width]
        expect(
            list(gists.shape) == wanted,
            f"children {list(children.shape)} at LOD {trial.lod} gave {list(gists.shape)}, not {wanted}",
        )

    for_all(trials(plugin), check, examples=25)


@requirement("G2", "Gists have the type of the children", "gistnet", after=("G1",))
def g2_dtype(plugin: PluginUnderTest) -> None:
    """float32 and bfloat16."""

    def check(trial: GistNetCall) -> None:
        for dtype in (torch.float32, torch.bfloat16):
            gists = trial.of(trial.part.to(dtype)).given(children=trial.children.to(dtype)).run()
            expect(gists.dtype == dtype, f"children of {dtype} gave gists of {gists.dtype}")

    for_all(trials(plugin), check, examples=3)


@requirement("G3", "Gists are finite, whatever the scale of the children", "gistnet", after=("G1",))
def g3_finite(plugin: PluginUnderTest) -> None:
    """All zeros among them, and a single large value."""

    def check(trial: GistNetCall) -> None:
        for scale in (0.0, 1e-4, 1.0, 1e3):
            gists = trial.given(children=trial.children * scale).run()
            expect(bool(gists.isfinite().all()), f"children of scale {scale} gave gists that are not finite")

    for_all(trials(plugin), check, examples=6)


@requirement("G4", "What is declared of it fits together", "gistnet", after=("P9",))
def g4_declared(plugin: PluginUnderTest) -> None:
    """`context_blocks`, `reads_layer`, `reads_tokens`; states of the base model have read all to their left."""
    net = plugin.specimen
    window, layer = net.context_blocks, net.reads_layer
    number = isinstance(window, int) and not isinstance(window, bool) and window >= 0
    expect(window is None or number, f"context_blocks is {window!r}; it is a number of blocks or None")
    expect(isinstance(layer, int) and layer >= 0, f"reads_layer is {layer!r}; it is 0 or a number of layers")
    expect(isinstance(net.reads_tokens, bool), f"reads_tokens is {net.reads_tokens!r}; it is True or False")
    expect(
        not layer or window is None,
        f"it reads states after {layer} layers, which have read all to their left, and declares {window} blocks",
    )


@requirement("G5", "A gist depends on no node to its right", "gistnet", after=("G1", *STEADY))
def g5_causal(plugin: PluginUnderTest) -> None:
    """By perturbation and by gradient, node by node."""

    def check(trial: GistNetCall) -> None:
        for node in range(NODES - 1):
            if said := _influence(trial, node, range(node + 1, NODES)):
                expect(False, f"{said} to its right")

    for_all(rows_of_nodes(plugin), check, examples=6)


@requirement(
    "G6", "A gist depends on no node beyond the `context_blocks` to its left", "gistnet",
    needs="isolated or windowed", after=("G1", "G4", *STEADY),
)  # fmt: skip
def g6_window(plugin: PluginUnderTest) -> None:
    """By perturbation and by gradient, node by node."""
    nodes = beyond_the_window(plugin)

    def check(trial: GistNetCall) -> None:
        window = trial.part.context_blocks
        for node in range(window + 1, nodes):
            if said := _influence(trial, node, range(node - window)):
                expect(False, f"{said}, outside of the {window} to its left that it declares")

    for_all(rows_of_nodes(plugin, nodes=nodes), check, examples=6)


@requirement("G7", "A gist depends on the children of its own node", "gistnet", after=("G1", *STEADY))
def g7_own(plugin: PluginUnderTest) -> None:
    """Both as a value and as a gradient, or nothing could be learned of them."""

    def check(trial: GistNetCall) -> None:
        for node in range(NODES):
            moved, reached = _moved_and_reached(trial, node, range(node, node + 1))
            expect(moved, f"at LOD {trial.lod} the gist of node {node} stays when its children change")
            expect(reached, f"at LOD {trial.lod} no gradient of the gist of node {node} reaches its children")

    for_all(rows_of_nodes(plugin), check, examples=6)


@requirement(
    "G8", "A gist depends on the nodes to its left that it declares to read", "gistnet",
    needs="reads to its left", after=("G1", "G4", *STEADY),
)  # fmt: skip
def g8_left(plugin: PluginUnderTest) -> None:
    """On the farthest, at LOD1: whoever declares more than is read misleads those who trust it."""
    nodes = beyond_the_window(plugin)
    last = nodes - 1

    def check(trial: GistNetCall) -> None:
        window = trial.part.context_blocks
        first = 0 if window is None else last - window
        moved, reached = _moved_and_reached(trial, last, range(first, first + 1), least=0.0)
        expect(moved or reached, f"the gist of node {last} stays when node {first} changes, which it declares to read")

    for_all(rows_of_nodes(plugin, most_lod=1, nodes=nodes), check, examples=6)


def _influence(trial: GistNetCall, node: int, others: range) -> str:
    """How the gist of `node` depends on the nodes `others`, in words; empty where it does not."""
    moved, reached = _moved_and_reached(trial, node, others)
    how = "changes with" if moved else "has a gradient from" if reached else ""
    return f"at LOD {trial.lod} the gist of node {node} {how} nodes {[*others]}" if how else ""


def _moved_and_reached(trial: GistNetCall, node: int, others: range, least: float = 1e-5) -> tuple[bool, bool]:
    """Does the gist of `node` move when the nodes `others` do, and does its gradient reach them?

    least  a share of the whole that is not taken for rounding
    """
    chosen = list(others)
    children = trial.children.clone().requires_grad_()
    gist = trial.given(children=children).run()[:, node]
    other = trial.children.clone()
    other[:, chosen] += 1 + randn(tuple(other[:, chosen].shape), node)
    after = trial.given(children=other).run()[:, node]
    moved = not torch.allclose(gist, after, atol=least, rtol=10 * least)
    return moved, gist.requires_grad and _reached(gist, children, chosen, least)


def _reached(gist: Tensor, children: Tensor, chosen: list[int], least: float) -> bool:
    weights = randn(tuple(gist.shape), 1)
    (gradient,) = torch.autograd.grad((gist * weights).sum(), children, allow_unused=True)
    return gradient is not None and bool(gradient[:, chosen].abs().max() > least * gradient.abs().max())

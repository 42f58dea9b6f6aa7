"""Clauses of GistNets: what comes out, and what it may depend on."""

from __future__ import annotations

import torch

from mcframe.testing.candidate import Candidate
from mcframe.testing.clauses import clause, expect
from mcframe.testing.examples import for_all
from mcframe.testing.trials import GistTrial, gist_trials, randn


@clause("G1", "Gists have the shape [B, nodes, G, D] at every level, whatever the sizes", "gistnet")
def g1_shape(plugin: Candidate) -> None:
    """Odd sizes among them: several slots, two levels, windows that are no whole number of blocks."""

    def check(trial: GistTrial) -> None:
        gists = trial.run()
        wanted = (*trial.children.shape[:2], trial.geometry.slots, plugin.width)
        expect(
            tuple(gists.shape) == wanted,
            f"children {list(trial.children.shape)} at LOD {trial.lod} gave gists {list(gists.shape)}, not "
            f"{list(wanted)} ({trial.geometry})",
        )

    for_all(gist_trials(plugin), check)


@clause("G2", "Gists are finite, whatever the scale of the children", "gistnet", after=("G1",))
def g2_finite(plugin: Candidate) -> None:
    """All zeros among them: an embedding table may start there."""

    def check(trial: GistTrial) -> None:
        for scale in (0.0, 1e-4, 1.0, 1e3):
            gists = trial.with_inputs({"children": trial.children * scale}).run()
            expect(bool(gists.isfinite().all()), f"children of scale {scale} gave gists that are not finite")

    for_all(gist_trials(plugin), check)


@clause("G3", "A gist depends on no node to its right", "gistnet", after=("G1",))
def g3_causal(plugin: Candidate) -> None:
    """By perturbation and by gradient, node by node."""

    def check(trial: GistTrial) -> None:
        for node in range(trial.children.shape[1] - 1):
            _expect_unmoved(trial, node, range(node + 1, trial.children.shape[1]), "to its right")

    for_all(gist_trials(plugin, min_blocks=4, rows=1), check)


def _expect_unmoved(trial: GistTrial, node: int, others: range, where: str) -> None:
    """Neither a change of the nodes `others` nor a gradient reaches the gist of `node`."""
    if not len(others):
        return
    children = trial.children.clone().requires_grad_()
    gist = trial.with_inputs({"children": children}).run()[:, node]
    moved = trial.children.clone()
    moved[:, list(others)] += 1 + randn(tuple(moved[:, list(others)].shape), node)
    after = trial.with_inputs({"children": moved}).run()[:, node]
    said = (
        f"at LOD {trial.lod} the gist of node {node} changes with node(s) {others.start} to {others.stop - 1} {where}"
    )
    expect(torch.allclose(gist, after, atol=1e-5, rtol=1e-4), said)
    if gist.requires_grad:
        (gradient,) = torch.autograd.grad((gist * randn(tuple(gist.shape), 1)).sum(), children)
        reached = gradient[:, list(others)].abs().max() > 1e-6 * gradient.abs().max()
        expect(not reached, said.replace("changes with", "has a gradient from"))

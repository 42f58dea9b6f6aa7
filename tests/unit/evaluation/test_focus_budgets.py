"""Equal budgets of `focus_quality`: as many entries of each level, so that a LensNet of noise gains nothing."""

from dataclasses import dataclass

import pytest
import torch

from mcframe.context.context_tree import ContextTree
from mcframe.context.focus_ops import compressible_nodes, is_valid
from mcframe.context.working_context import build_context, raw_context
from mcframe.errors import UserError
from mcframe.evaluation.focus_baselines import Strategies
from mcframe.evaluation.focus_quality import FocusQuality
from mcframe.hookspecs import EvalData
from mcframe_plugins.allocator import GreedyAllocator, HierarchicalAllocator

ROWS = 300
TREES = {
    1: ContextTree(window=48, block_size=4, levels=1, tail=8),
    2: ContextTree(window=96, block_size=4, levels=2, tail=12, sink=1),
    3: ContextTree(window=101, block_size=3, levels=3, tail=14, sink=1),
}
"""With blocks next to the cursor that belong to no node of the highest level: the blocks that matter most."""
KEPT = {"drop": 0.0, "gist": 0.3, "mean": 0.2}


@dataclass
class Planted:
    """A model whose NLL after the cursor rises by what each collapsed block was worth, the more the nearer it is.

    LensNet scores are noise, or the worth of each block plus noise.
    """

    tree: ContextTree
    allocator: object
    signal: float = 0.0
    has_lens: bool = True
    has_gists: bool = True
    seed: int = 0

    def __post_init__(self):
        self.generator = torch.Generator().manual_seed(6 + self.tree.levels)
        near = torch.linspace(0.1, 1, self.tree.blocks) ** 2
        document = 0.5 + torch.rand(ROWS, 1, generator=self.generator)
        self.worth = near * document * torch.rand(ROWS, self.tree.blocks, generator=self.generator) * 6

    def held_out(self, windows, task=None):
        tokens = torch.zeros(ROWS, self.tree.window + 1, dtype=torch.long)
        documents = torch.arange(ROWS)[:, None].expand_as(tokens)
        return EvalData(tokens, documents, torch.ones(ROWS, self.tree.window, dtype=torch.bool))

    def announce(self, contexts):
        pass

    def refocus(self, tokens, budget):
        context = raw_context(self.tree, ROWS, tokens.device)
        for _ in range(self.allocator.iterations):
            before = context.before_cursor()
            scores = torch.rand(before.token.shape, generator=self.generator) * 2 - 1
            block = (before.start // self.tree.block_size).clamp(max=self.tree.blocks - 1)
            scores += self.signal * self.worth.gather(1, block)
            context = build_context(self.allocator.allocate(scores, before, budget, torch.arange(ROWS)), self.tree)
        return context.focus

    def score(self, tokens, focus, condition="gist"):
        each = focus if focus.dim() == 3 else focus[:, None]
        kept = torch.where(each == 0, 1.0, 0.0 if condition == "drop" else KEPT.get(condition, 0.0) / each.clamp(min=1))
        lost = (self.worth[:, None] * (1.0 - kept) * (condition != "full")).mean(dim=-1)
        nll = (2 + lost)[..., None].expand(*each.shape[:2], self.tree.window)
        return (nll, nll) if focus.dim() == 3 else (nll[:, 0], nll[:, 0])


def composition(focus, tree):
    """Return the number of nodes of each level in each sequence, [n, V, levels]."""
    return torch.stack(
        [(focus == lod).sum(-1) // tree.block_size ** (lod - 1) for lod in range(1, tree.levels + 1)], -1
    )


@pytest.mark.parametrize("allocator", [GreedyAllocator, HierarchicalAllocator])
@pytest.mark.parametrize("levels", TREES)
def test_every_strategy_has_as_many_entries_of_each_level_in_each_sequence(levels, allocator):
    tree = TREES[levels]
    model = Planted(tree, allocator(tree), signal=1.0)
    strategies = Strategies(model, model.held_out(ROWS), draws=3)
    for fraction in (0.3, 0.5, 0.75):
        found = strategies.focuses(max(tree.minimum_length, int(fraction * tree.window)), [])
        assert list(found) == ["random", "recency", "surprise", "lens", "oracle"]
        for name, focus in found.items():
            assert bool(is_valid(focus.flatten(0, 1), tree).all()), name
            assert bool((composition(focus, tree) == composition(found["lens"], tree)).all()), name
        if allocator is HierarchicalAllocator and levels > 1:
            assert bool((found["lens"] > 1).any())


@pytest.mark.parametrize("allocator", [GreedyAllocator, HierarchicalAllocator])
@pytest.mark.parametrize("levels", TREES)
def test_a_lensnet_of_noise_gains_nothing(levels, allocator):
    tree = TREES[levels]
    metrics = FocusQuality(budgets=(0.5, 0.75)).run(Planted(tree, allocator(tree))).metrics
    for at in (50, 75):
        for condition in ("drop", "gist"):
            gain = f"eval/focus_quality/at_{at}/gain/{condition}"
            assert metrics[f"{gain}_low"] < 0 < metrics[f"{gain}_high"]
            assert metrics[f"{gain}_high"] - metrics[f"{gain}_low"] < 0.3
            minus = f"eval/focus_quality/at_{at}/lens_minus/{condition}/random"
            assert metrics[f"{minus}_low"] < 0 < metrics[f"{minus}_high"]


@pytest.mark.parametrize("levels", TREES)
def test_a_lensnet_of_what_blocks_are_worth_gains(levels):
    tree = TREES[levels]
    metrics = FocusQuality(budgets=(0.5,)).run(Planted(tree, HierarchicalAllocator(tree), signal=5.0)).metrics
    assert 0.5 < metrics["eval/focus_quality/at_50/gain/drop"] < 1.2


def test_nothing_to_gain_and_few_documents_have_no_gain():
    tree = TREES[1]
    model = Planted(tree, GreedyAllocator(tree))
    model.worth *= 0
    found = FocusQuality(budgets=(0.5,)).run(model)
    assert not any("/gain/" in name for name in found.metrics)
    assert all("too little to gain" in text for text in found.conclusions)

    model = Planted(tree, GreedyAllocator(tree), signal=5.0)
    several = model.held_out(ROWS)
    for documents, text in ((7, "no conclusions"), (1, "no intervals and no conclusions")):
        few = EvalData(several.tokens, several.documents % documents, several.loss_mask)
        model.held_out = lambda windows, task=None, few=few: few
        found = FocusQuality(budgets=(0.5,)).run(model)
        assert not any("/gain/" in name for name in found.metrics)
        assert all("no conclusion: expected 8 documents or more" in each for each in found.conclusions)
        assert any(text in note for note in found.notes)


def test_levels_that_the_allocator_does_not_reach_are_skipped_with_a_note():
    class Flat(GreedyAllocator):
        def allocate(self, scores, context, budget, seeds):
            if budget < 60:
                raise UserError("expected a budget of 60 or more")
            return super().allocate(scores, context, budget, seeds)

    tree = TREES[2]
    lowest = tree.window - int(compressible_nodes(tree, 1, "cpu").sum()) * tree.saving(1)
    assert tree.minimum_length < lowest
    found = FocusQuality(budgets=(0.01, (lowest - 1) / tree.window, 0.5)).run(Planted(tree, Flat(tree)))
    assert any("1 %" in note and "is skipped" in note for note in found.notes)
    assert any("LOD0 and LOD1 do not reach" in note for note in found.notes)
    assert any("no focus of LensNet at 48" in note for note in found.notes)
    assert "eval/focus_quality/at_50/nll/drop/oracle" in found.metrics
    assert "eval/focus_quality/at_50/nll/drop/lens" not in found.metrics

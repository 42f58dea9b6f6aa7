"""Scores of LensNet and focuses of allocators depend on tokens before the cursor alone."""

import random

import pytest
import torch

from mcframe.context.working_context import build_context, gather_embeddings, raw_context
from mcframe.modeling.node_table import build_node_table
from mcframe_plugins.allocator import (
    GreedyAllocator,
    HierarchicalAllocator,
    RandomAllocator,
    RecencyAllocator,
    StochasticGreedyAllocator,
    TopKAllocator,
)
from mcframe_plugins.variants import RandomCollapse
from tests.support import oracle
from tests.support.generators import focus_tensor
from tests.support.modeling_builders import TREE, VOCABULARY, build_step, geometry_of, random_tokens, seeds_for

TREES = {
    "levels": TREE,
    "slots": oracle.Tree(window=41, block_size=4, levels=2, slots=2, tail=6, sink=1),
    "no tail": oracle.Tree(window=32, block_size=4, levels=1, slots=1, tail=0, sink=0),
}
LENSNETS = ["recency", "transformer", "mlp", "surprise"]
ALLOCATORS = {
    "greedy": lambda g: GreedyAllocator(g, iterations=3),
    "greedy, thresholds": lambda g: GreedyAllocator(
        g, iterations=4, collapse_threshold=0.1, cooldown=1, replacements=2
    ),
    "hierarchical": HierarchicalAllocator,
    "random": RandomAllocator,
    "recency": RecencyAllocator,
    "stochastic": StochasticGreedyAllocator,
    "topk": TopKAllocator,
}
BUDGET = {"levels": 21, "slots": 34, "no tail": 22}


def perturbed(tokens: torch.Tensor, positions: list[int]) -> torch.Tensor:
    other = tokens.clone()
    other[:, positions] = (other[:, positions] + 1 + torch.arange(len(positions)) % (VOCABULARY - 1)) % VOCABULARY
    assert (other[:, positions] != tokens[:, positions]).all()
    return other


def scores_of(model, inputs, focuses):
    table, nll = model.model.encode(inputs, with_nll=True)
    context = build_context(focuses, model.tree)
    seen = context.before_cursor()
    return model.model.scores(context, table, nll)[seen.valid]


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("gistnet", ["mean", "transformer"])
@pytest.mark.parametrize("lensnet", LENSNETS)
def test_scores(tree, gistnet, lensnet):
    tree = TREES[tree]
    model = build_step(tree, RandomCollapse(geometry_of(tree)), gistnet=gistnet, lensnet=lensnet)
    tokens = random_tokens(tree, 4, 0)
    rng = random.Random(1)
    focuses = focus_tensor([oracle.random_focus(tree, rng, 0.5) for _ in range(4)])
    before = scores_of(model, tokens[:, :-1], focuses)
    assert before.abs().max() <= 1
    hidden = list(range(tree.cursor, tree.window))
    if hidden:
        assert torch.equal(scores_of(model, perturbed(tokens, hidden)[:, :-1], focuses), before)
    for position in (tree.cursor - 1, 0):
        changed = not torch.equal(scores_of(model, perturbed(tokens, [position])[:, :-1], focuses), before)
        assert changed == (lensnet != "recency")


@pytest.mark.parametrize("tree", ["levels", "slots"])
@pytest.mark.parametrize("lensnet", LENSNETS)
@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_focus(tree, lensnet, allocator):
    name, tree = tree, TREES[tree]
    tree = geometry_of(tree)
    model = build_step(tree, RandomCollapse(tree), lensnet=lensnet)
    tokens, seeds = random_tokens(tree, 6, 0), torch.arange(6)
    chooser = ALLOCATORS[allocator](tree)

    def focus(of):
        found, rounds = model.model.refocus(of[:, :-1], chooser, BUDGET[name], seeds)
        assert (rounds >= 1).all()
        for row in found.tolist():
            assert oracle.is_valid(tree, row)
            assert len(oracle.build_context(tree, row)) <= BUDGET[name]
        return found

    before = focus(tokens)
    for seed in range(2):
        hidden = list(range(tree.cursor, tree.window))
        other = perturbed(tokens, hidden)
        other[:, tree.cursor :] = (other[:, tree.cursor :] + seed) % VOCABULARY
        assert torch.equal(focus(other), before)
    changed = not torch.equal(focus(perturbed(tokens, list(range(tree.cursor)))), before)
    assert changed == (lensnet != "recency" and allocator not in ("recency", "random"))


@pytest.mark.parametrize("lensnet", LENSNETS)
def test_inputs_of_lensnet_in_training(lensnet):
    calls = []
    model = build_step(TREE, RandomCollapse(geometry_of(TREE)), lensnet=lensnet)
    model.lensnet.register_forward_hook(lambda _, arguments, scores: calls.append((*arguments, scores)))
    tokens = random_tokens(TREE, 3, 0)
    for batch in (tokens, perturbed(tokens, list(range(TREE.cursor, TREE.window + 1)))):
        model(batch, seeds_for(3, 2), 21)
    (context, embeddings, scores), (other, other_embeddings, other_scores) = calls
    assert int(context.end[context.valid].max()) == TREE.cursor
    assert not embeddings.requires_grad
    assert torch.equal(embeddings, other_embeddings)
    assert torch.equal(scores, other_scores)
    assert (context.nll is None) == (lensnet not in ("mlp", "surprise"))
    assert context.nll is None or torch.equal(context.nll, other.nll)


def test_a_gist_sees_only_tokens_before_its_end():
    """The step is causal: token t changes no prediction of a token at or before t."""
    model = build_step(TREE, RandomCollapse(geometry_of(TREE)))
    rng = random.Random(4)
    focuses = focus_tensor([oracle.random_focus(TREE, rng, 0.6) for _ in range(3)])
    context = build_context(focuses, model.tree)
    tokens = random_tokens(TREE, 3, 1)[:, :-1]

    def hidden(of):
        table = build_node_table(model.gpt.embed(of), model.gistnet, model.tree)
        return model.gpt.hidden(gather_embeddings(table, context), context)

    before = hidden(tokens)
    for position in range(TREE.window):
        moved = (hidden(perturbed(tokens, [position])) - before).abs().amax(dim=-1) > 0
        assert not (moved & context.predicts & (context.end <= position)).any()
        after = context.predicts & (context.end > position)
        assert (moved | ~after).float().mean() > 0.95


def test_refocusing_starts_from_the_uncompressed_context():
    model = build_step(TREE, RandomCollapse(geometry_of(TREE)), lensnet="transformer")
    contexts = []
    model.lensnet.register_forward_hook(lambda _, arguments, scores: contexts.append(arguments[0]))
    chooser = GreedyAllocator(model.tree, iterations=2)
    model.model.refocus(random_tokens(TREE, 2, 0)[:, :-1], chooser, 21, torch.arange(2))
    raw = raw_context(model.tree, 2, torch.device("cpu")).before_cursor()
    assert torch.equal(contexts[0].token, raw.token)
    assert len(contexts) == 2
    assert (contexts[1].lod > 0).any()

"""`evaluate_focus`: every condition against a walk through one sequence, one target at a time."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcframe.context.substitutions import CONDITIONS
from mcframe_plugins.variants import RandomCollapse
from tests.support import oracle
from tests.support.modeling_builders import (
    TREE,
    FixedVariants,
    build_step,
    equal_lengths,
    focus_tensor,
    geometry_of,
    random_tokens,
    seeds_for,
)
from tests.support.step_oracle import SlowStep, number

TREES = {
    "levels": TREE,
    "slots": oracle.Tree(window=24, block_size=4, levels=2, slots=3, tail=6, sink=1),
    "no tail": oracle.Tree(window=18, block_size=3, levels=2, slots=2, tail=0, sink=0),
}


def slow_evaluation(
    slow: SlowStep, tree: oracle.Tree, batch: list[list[int]], focus: oracle.Focus, row: int, condition: str, swap
) -> tuple[list[float], list[float]]:
    """Return NLL and correctness of every target, NaN where no entry predicts it."""
    tokens = batch[row]
    table = slow.table_of(tokens)
    if condition == "full":
        focus = [0] * tree.blocks
    entries = oracle.build_context(tree, focus)
    if condition == "drop" or (slow.gistnet is None and condition in ("gist", "swap")):
        entries = [e for e in entries if e.lod == 0]
    other = slow.table_of(batch[swap[row]]) if condition == "swap" else table
    read = []
    for e in entries:
        if e.lod == 0 or condition == "gist":
            read.append(table[e.lod, e.start, e.slot])
        elif condition == "swap":
            read.append(other[e.lod, e.start, e.slot])
        else:
            stretch = [t for t in range(e.start, e.end) if (t - e.start) * e.slots // e.span == e.slot]
            read.append(sum(table[0, t, 0] for t in stretch) / len(stretch))
    predicted = slow.predictions(read, entries)
    nll, right = [math.nan] * tree.window, [math.nan] * tree.window
    for e, of in zip(entries, predicted, strict=True):
        if e.predicts:
            nll[e.end - 1] = -number(of[tokens[e.end]])
            right[e.end - 1] = float(int(of.argmax()) == tokens[e.end])
    return nll, right


def check(tree: oracle.Tree, condition: str, seed: int, rows: int, gistnet: str | None, **options: object) -> None:
    """Two sequences, `rows` focuses of each."""
    model = build_step(tree, RandomCollapse(geometry_of(tree)), gistnet=gistnet, seed=seed, **options)
    tokens, slow = random_tokens(tree, 2, seed), SlowStep(model, tree)
    rng = random.Random(seed)
    focuses = [oracle.random_focus(tree, rng, rng.choice((0.3, 0.7, 1.0))) for _ in range(2 * rows)]
    swap = torch.tensor([1, 0])
    with torch.no_grad():
        nll, right = model.model.evaluate_focus(tokens, focus_tensor(focuses), condition, swap)
    assert nll.shape == right.shape == (2 * rows, tree.window)
    for row, focus in enumerate(focuses):
        expected = slow_evaluation(slow, tree, tokens.tolist(), focus, row // rows, condition, swap.tolist())
        assert nll[row].tolist() == pytest.approx(expected[0], abs=1e-4, rel=1e-4, nan_ok=True)
        assert right[row].tolist() == pytest.approx(expected[1], nan_ok=True)
    if condition == "full":
        assert not nll.isnan().any()


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("tree", TREES)
def test_each_condition(tree, condition):
    check(TREES[tree], condition, seed=1, rows=2, gistnet="transformer")


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_model_without_gists(condition):
    check(TREE, condition, seed=2, rows=1, gistnet=None)


@pytest.mark.parametrize("condition", ["gist", "swap"])
@pytest.mark.parametrize("gistnet", ["states", "last states"])
def test_gists_of_states(gistnet, condition):
    check(TREE, condition, seed=3, rows=1, gistnet=gistnet, gist_bias=-1.0)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(TREES)), st.sampled_from(CONDITIONS), st.integers(0, 2**20), st.integers(1, 2))
def test_random_focuses(tree, condition, seed, rows):
    check(TREES[tree], condition, seed, rows, gistnet="mean" if seed % 2 else "tokens", depth=1, width=8)


def by_condition(model, tokens: Tensor, focus: Tensor, condition: str) -> Tensor:
    return model.model.evaluate_focus(tokens, focus, condition, torch.tensor([1, 0]))[0]


def test_full_is_plain_validation():
    focuses, _ = equal_lengths(TREE, 2, 1, 0)
    model, tokens = build_step(TREE, FixedVariants(focuses)), random_tokens(TREE, 2, 0)
    nll = by_condition(model, tokens, model.strategy.focuses.flatten(0, 1), "full")
    torch.testing.assert_close(nll, model.model.nll(tokens))


@pytest.mark.parametrize(("gistnet", "same"), [("transformer", {"gist"}), (None, {"gist", "drop", "swap"})])
def test_gist_has_the_losses_of_training(gistnet, same):
    """`gist` alone has the losses of the training step; without a GistNet it is `drop`."""
    focuses, length = equal_lengths(TREE, 2, 2, 0)
    model, tokens = build_step(TREE, FixedVariants(focuses), gistnet=gistnet), random_tokens(TREE, 2, 0)
    _, statistics = model(tokens, seeds_for(2, 2), length)
    total, count = statistics.means["mc/tail_delta"].tolist()
    focus, plain = model.strategy.focuses.flatten(0, 1), model.model.nll(tokens).repeat_interleave(2, dim=0)
    for condition in CONDITIONS:
        delta = (by_condition(model, tokens, focus, condition) - plain)[:, TREE.cursor - 1 :]
        delta = delta[~delta.isnan()]
        assert (delta.sum().item() == pytest.approx(total, abs=1e-4)) == (condition in same)
        if condition in same:
            assert delta.numel() == count


def test_swapping_with_the_same_sequence_changes_nothing():
    focuses, _ = equal_lengths(TREE, 2, 1, 0)
    model, tokens = build_step(TREE, FixedVariants(focuses)), random_tokens(TREE, 2, 0)
    focus = model.strategy.focuses.flatten(0, 1)
    own = model.model.evaluate_focus(tokens, focus, "swap", torch.tensor([0, 1]))[0]
    torch.testing.assert_close(own, by_condition(model, tokens, focus, "gist"), equal_nan=True)
    assert not torch.allclose(own, by_condition(model, tokens, focus, "swap"), equal_nan=True)
    with pytest.raises(AssertionError, match="whose gists"):
        model.model.evaluate_focus(tokens, focus, "swap")

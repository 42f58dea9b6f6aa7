"""Distillation, reconstruction, masks, dropped contexts and other ways to read, against the slow step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.hookspecs import ModelShape, StepView
from mcframe_plugins.loss import Reconstruction
from tests.support import oracle
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import (
    TREE,
    Given,
    build_step,
    equal_lengths,
    geometry_of,
    random_tokens,
    seeds_for,
)
from tests.support.step_checks import check_against_the_slow_step, random_mask

ALL = LossConfig(
    next_token=0.7,
    variants=1.3,
    delta_penalty=0.9,
    distillation=0.8,
    contrast=3.0,
    reconstruction=0.6,
    lens=1.1,
)
TREES = {
    "levels": TREE,
    "no multiple of K": oracle.Tree(window=26, block_size=4, levels=1, slots=1, tail=5, sink=0),
    "slots": oracle.Tree(window=32, block_size=4, levels=1, slots=3, tail=6, sink=1),
    "slots and levels": oracle.Tree(window=36, block_size=3, levels=2, slots=2, tail=4, sink=0),
    "no tail": oracle.Tree(window=20, block_size=2, levels=2, slots=1, tail=0, sink=0),
}


@pytest.mark.parametrize("tree", TREES)
def test_all_terms_on_other_trees(tree):
    check_against_the_slow_step(TREES[tree], variants=2, sequences=1, seed=3, settings=ALL, rebuild=2)


def test_every_gradient_of_all_terms():
    check_against_the_slow_step(TREE, variants=2, seed=4, settings=ALL, gradients=True, masked=True, gist_bias=-0.5)


@pytest.mark.parametrize("weight", ["distillation", "reconstruction", "delta_penalty"])
def test_each_term_alone_with_gradients(weight):
    only = dict.fromkeys(("next_token", "variants", "delta_penalty", "lens"), 0.0)
    weights = LossConfig(**only | {weight: 1.0})
    check_against_the_slow_step(TREE, variants=2, sequences=1, seed=5, settings=weights, gradients=True)


@pytest.mark.parametrize("contrast", [0.0, 0.5, 20.0])
def test_contrast(contrast):
    weights = LossConfig(distillation=1.0, contrast=contrast)
    check_against_the_slow_step(TREE, variants=2, sequences=1, seed=6, settings=weights)


@pytest.mark.parametrize("judge", ["gist", "drop"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_judge_of_contexts(judge, masked):
    weights = LossConfig(lens=1.0, condition=judge)
    check_against_the_slow_step(TREE, variants=3, seed=7, settings=weights, masked=masked)


@pytest.mark.parametrize("gistnet", ["states", "last states", "tokens", "mean"])
def test_what_a_gistnet_reads(gistnet):
    check_against_the_slow_step(TREE, variants=2, sequences=1, seed=8, settings=ALL, gistnet=gistnet, gradients=True)


@pytest.mark.parametrize("masked", [False, True])
def test_without_a_gistnet_what_is_collapsed_is_dropped(masked):
    check_against_the_slow_step(
        TREE, variants=2, seed=9, settings=ALL, gistnet=None, masked=masked, gradients=True, gist_bias=0.3
    )


def test_without_a_lensnet():
    check_against_the_slow_step(TREE, variants=2, sequences=1, seed=10, settings=ALL, lensnet=None, gradients=True)


@pytest.mark.parametrize("head_width", [6, 10])
def test_heads_of_another_width(head_width):
    options = {"head_width": head_width, "gist_bias": 0.5}
    check_against_the_slow_step(TREE, variants=2, sequences=1, seed=12, settings=ALL, gradients=True, **options)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(TREES)), st.integers(0, 2**20), st.integers(1, 3), st.booleans(), st.sampled_from([0.2, 1.0])
)
def test_random_draws(tree, seed, rebuild, masked, share):
    weights = LossConfig(distillation=0.5, contrast=1.0, reconstruction=1.0, fraction=share)
    check_against_the_slow_step(
        TREES[tree],
        variants=1 + seed % 2,
        sequences=2,
        seed=seed,
        settings=weights,
        rebuild=rebuild,
        masked=masked,
        lensnet="entry" if seed % 3 else None,
        gist_bias=(None, -1.0)[seed % 2],
        depth=1,
        width=8,
    )


# ---- masks ----------------------------------------------------------------------------------------
def model_and_batch(weights: LossConfig = ALL, variants: int = 2, seed: int = 0, **options: object):
    focuses, length = equal_lengths(TREE, 3, variants, seed)
    model = build_step(TREE, Given(focuses), settings=weights, seed=seed, **options)
    return model, random_tokens(TREE, 3, seed), seeds_for(3, variants), length, focuses


def test_a_mask_of_all_targets_is_no_mask():
    model, tokens, seeds, length, _ = model_and_batch()
    plain, known = model(tokens, seeds, length)
    masked, found = model(tokens, seeds, length, torch.ones(3, TREE.window, dtype=torch.bool))
    assert torch.equal(plain, masked)
    for kind in ("means", "sums", "moments"):
        one, other = getattr(known, kind), getattr(found, kind)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("weights", [ALL, LossConfig(distillation=1.0, contrast=1.0, condition="drop")])
def test_targets_that_do_not_count_change_nothing(weights):
    """Only the last token is a target and no input: another one in its place may change what is asked of it alone."""
    model, tokens, seeds, length, _ = model_and_batch(weights)
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % 13
    mask = torch.ones(3, TREE.window, dtype=torch.bool)
    assert not torch.equal(model(tokens, seeds, length, mask)[0], model(other, seeds, length, mask)[0])
    mask[:, -1] = False
    before, after = model(tokens, seeds, length, mask), model(other, seeds, length, mask)
    assert torch.equal(before[0], after[0])
    for kind in ("means", "sums", "moments"):
        one, two = getattr(before[1], kind), getattr(after[1], kind)
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_sequence_without_targets_adds_nothing():
    weights = LossConfig(distillation=1.0, contrast=2.0, lens=0.0)
    model, tokens, seeds, length, _ = model_and_batch(weights, lensnet=None)
    loss, _ = model(tokens, seeds, length, torch.zeros(3, TREE.window, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_one_masked_batch_is_cut_as_one_likes():
    model, tokens, seeds, length, focuses = model_and_batch()
    mask = random_mask(TREE, 3, 1)
    whole = model(tokens, seeds, length, mask, 2)[0]
    parts = []
    for row in range(3):
        model.model.strategy = Given(focuses[row : row + 1])
        parts.append(model(tokens[row : row + 1], seeds[row : row + 1], length, mask[row : row + 1], 2)[0])
    torch.testing.assert_close(torch.stack(parts).mean(), whole, atol=1e-6, rtol=1e-6)


# ---- the reference that drops ---------------------------------------------------------------------------
def test_nothing_of_a_collapsed_block_is_read():
    """Inputs inside collapsed blocks change no variant's loss, but for the one target that is such a token."""
    weights = LossConfig(next_token=0.0, delta_penalty=0.0, variants=1.0)
    model, tokens, seeds, length, focuses = model_and_batch(weights, variants=1, gistnet=None)
    lod = torch.tensor([[row[0][t // 3] if t // 3 < len(row[0]) else 0 for t in range(TREE.window)] for row in focuses])
    # A raw token in front of a block predicts the block's first token: that target is read, as a target.
    first = torch.nn.functional.pad((lod[:, 1:] > 0) & (lod[:, :-1] == 0), (1, 0))
    inside = (lod > 0) & ~first
    assert inside.sum(dim=1).min() > 2
    other = tokens.clone()
    other[:, :-1] = torch.where(inside, (tokens[:, :-1] + 5) % 13, tokens[:, :-1])
    before = model(tokens, seeds, length)[0]
    assert torch.equal(before, model(other, seeds, length)[0])
    with_gists, *_ = model_and_batch(weights, variants=1)
    assert not torch.equal(with_gists(tokens, seeds, length)[0], with_gists(other, seeds, length)[0])


# ---- reconstruction --------------------------------------------------------------------------------
def reconstructed(step, tokens, blocks):
    model, loss = step.model, step.reconstruction
    loss.stages = (blocks,)
    passed = model.uncompressed_pass(tokens)
    table = model.node_table(passed.embeddings, passed.gist_inputs)
    gpt, seeds = model.gpt, torch.tensor([[1], [2], [3]])
    return loss.reconstruct(StepView(model.tree, passed, table, None, seeds, gpt.nll, gpt.logits, gpt.hidden))


def test_a_token_is_told_from_the_gists_and_the_tokens_before_it():
    weights = LossConfig(reconstruction=1.0, fraction=1.0)
    model, tokens, *_ = model_and_batch(weights, gistnet="mean")
    before = reconstructed(model, tokens, 2)
    assert before.shape == (3, 4, 6)
    model.gistnet.register_forward_hook(lambda _, __, gists: gists * 0 + 1)
    blind = reconstructed(model, tokens, 2)
    assert ((blind - before).abs() > 1e-6).float().mean() > 0.9  # all of it hangs on the gists
    # Told from gists that say nothing, the last token of a group is read as a target alone.
    other = tokens.clone()
    other[:, 5:24:6] = (other[:, 5:24:6] + 1) % 13
    moved = (reconstructed(model, other, 2) - blind).abs() > 1e-6
    assert moved[..., -1].all()
    assert not moved[..., :-1].any()


@pytest.mark.parametrize(
    ("share", "blocks", "groups"), [(1.0, 1, 9), (0.5, 1, 4), (0.5, 2, 2), (0.01, 4, 1), (1.0, 4, 2)]
)
def test_a_share_of_the_groups_is_told(share, blocks, groups):
    weights = LossConfig(reconstruction=1.0, fraction=share)
    model, tokens, *_ = model_and_batch(weights)
    assert reconstructed(model, tokens, blocks).shape == (3, groups, 3 * blocks)


def test_stages_divide_training_equally():
    def blocks_of(stages, progress):
        loss = Reconstruction(ModelShape(16, geometry_of(TREE)), blocks=stages)
        loss.begin_step(progress)
        return loss.stages[loss.stage]

    assert [blocks_of((1, 2, 4), step / 8) for step in range(9)] == [1, 1, 1, 2, 2, 2, 4, 4, 4]
    assert blocks_of((3,), 1.0) == 3

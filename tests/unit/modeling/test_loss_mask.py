"""Targets outside the loss mask, and tokens of dropped blocks, change nothing."""

import pytest
import torch

from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import TREE, VOCABULARY, random_tokens, seeds_for, step_of_fixed_variants

EVERYTHING = LossConfig(distillation=0.8, contrast=3.0, reconstruction=0.6, lens=1.1)


def same(one, other) -> bool:
    """Return whether two steps have the same loss and the same metrics."""
    kinds = ("means", "sums", "moments")
    found, expected = ({k: getattr(metrics, k) for k in kinds} for _, metrics in (one, other))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    return torch.equal(one[0], other[0])


@pytest.mark.parametrize("settings", [EVERYTHING, LossConfig(distillation=1.0, contrast=1.0, condition="drop")])
def test_targets_outside_the_mask_change_nothing(settings):
    """The last token is a target and never an input, so another token there may change its own target alone."""
    model, length, _ = step_of_fixed_variants(3, settings=settings)
    tokens, seeds = random_tokens(TREE, 3, 0), seeds_for(3, 2)
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % VOCABULARY
    mask = torch.ones(3, TREE.window, dtype=torch.bool)
    assert same(model(tokens, seeds, length), model(tokens, seeds, length, mask))
    assert not torch.equal(model(tokens, seeds, length, mask)[0], model(other, seeds, length, mask)[0])
    mask[:, -1] = False
    assert same(model(tokens, seeds, length, mask), model(other, seeds, length, mask))


def test_a_sequence_without_targets_adds_nothing():
    settings = LossConfig(distillation=1.0, contrast=2.0, lens=0.0)
    model, length, _ = step_of_fixed_variants(3, settings=settings, lensnet=None)
    mask = torch.zeros(3, TREE.window, dtype=torch.bool)
    loss, _ = model(random_tokens(TREE, 3, 0), seeds_for(3, 2), length, mask)
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_inputs_in_dropped_blocks_change_no_other_target():
    settings = LossConfig(next_token=0.0, delta_penalty=0.0, variants=1.0)
    model, length, focuses = step_of_fixed_variants(3, 1, settings=settings, gistnet=None)
    tokens, seeds, size = random_tokens(TREE, 3, 0), seeds_for(3, 1), TREE.block_size
    lods = [[row[0][t // size] if t // size < TREE.blocks else 0 for t in range(TREE.window)] for row in focuses]
    lod = torch.tensor(lods)
    # The first token of a block is the target of a raw token before it.
    first = torch.nn.functional.pad((lod[:, 1:] > 0) & (lod[:, :-1] == 0), (1, 0))
    inside = (lod > 0) & ~first
    assert inside.sum(dim=1).min() > 2
    other = tokens.clone()
    other[:, :-1] = torch.where(inside, (tokens[:, :-1] + 5) % VOCABULARY, tokens[:, :-1])
    assert torch.equal(model(tokens, seeds, length)[0], model(other, seeds, length)[0])
    with_gists, *_ = step_of_fixed_variants(3, 1, settings=settings)
    assert not torch.equal(with_gists(tokens, seeds, length)[0], with_gists(other, seeds, length)[0])

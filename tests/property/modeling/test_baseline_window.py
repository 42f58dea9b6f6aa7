"""The uncompressed pass over the last tokens only: what it reads, and that nothing counts where it did not read."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.config.schema import ContextConfig
from mcframe.errors import UserError
from mcframe.hookspecs import ModelShape
from mcframe.modeling.model import MegaContextModel
from mcframe.training.build import _checked_baseline
from mcframe_plugins.loss.z_loss import ZLoss
from tests.support.generators import SOME, geometry_of
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import random_tokens, seeds_for, step_of_fixed_variants
from tests.support.oracle import Tree
from tests.support.step_checks import check_equal

TREE = Tree(window=48, block_size=4, levels=2, slots=1, tail=5, sink=1)
EVERY_LOSS = LossConfig(
    distillation=1.0, contrast=1.0, attribution=0.1, condition="drop", normalise=True, ema_kl=0.1, reconstruction=0.1,
    blocks=(1,),
)  # fmt: skip


def step_and_batch(gistnet: str = "tokens", lensnet: str = "entry", **options):
    step, length, _ = step_of_fixed_variants(2, tree=TREE, gistnet=gistnet, lensnet=lensnet, **options)
    mask = torch.rand(2, TREE.window, generator=torch.Generator().manual_seed(3)) < 0.7
    return step, (random_tokens(TREE, 2, 1), seeds_for(2, 2), length, mask)


def run(step, batch, window):
    """Return the loss, its gradients and the metrics of a step."""
    step.baseline_window = window
    step.zero_grad(set_to_none=True)
    loss, metrics = step(*batch)
    loss.backward()
    gradients = {name: each.grad for name, each in step.named_parameters() if each.grad is not None}
    return {"loss": loss.detach(), **metrics.means, **metrics.samples}, gradients


def test_the_complete_window_is_the_default():
    step, batch = step_and_batch(settings=EVERY_LOSS)
    for one, other in zip(run(step, batch, None), run(step, batch, TREE.window), strict=True):
        check_equal(one, other)


@SOME
@given(st.integers(TREE.tail + 1, TREE.window))
def test_the_pass_is_that_of_a_shorter_text(window):
    """Only distances matter to the model, so its positions may begin at 0."""
    step, (tokens, _, _, mask) = step_and_batch()
    passed, first = step.model.uncompressed_pass(tokens, mask, window), TREE.window - window
    shorter = replace(geometry_of(TREE), window=window)
    alone = MegaContextModel(step.gpt, None, None, step.strategy, shorter).nll(tokens[:, first:])
    torch.testing.assert_close(passed.nll[:, first:], alone, atol=1e-4, rtol=1e-4)
    for t in range(TREE.window):
        assert torch.equal(passed.loss_mask[:, t], mask[:, t] if t >= first else torch.zeros(2, dtype=torch.bool))
    assert torch.equal(passed.target_mask, mask)
    assert passed.embeddings.shape[1] == passed.gist_inputs.shape[1] == TREE.window


@pytest.mark.parametrize("window", [6, 17, 32])
def test_nothing_counts_where_the_pass_did_not_read(monkeypatch, window):
    """Other numbers before those tokens change no loss, gradient or metric."""
    shape = ModelShape(16, geometry_of(TREE))
    step, batch = step_and_batch(settings=EVERY_LOSS, losses=[ZLoss(shape, weight=0.1)])
    clean, own = run(step, batch, window), MegaContextModel.uncompressed_pass

    def disturbed(self, tokens, loss_mask=None, window=None):
        found = own(self, tokens, loss_mask, window)
        early = torch.arange(TREE.window) < TREE.window - window
        return replace(
            found,
            nll=torch.where(early, 50.0, found.nll),
            hidden=torch.where(early[:, None], 3.0, found.hidden),
        )

    monkeypatch.setattr(MegaContextModel, "uncompressed_pass", disturbed)
    for one, other in zip(clean, run(step, batch, window), strict=True):
        check_equal(one, other)


def test_variants_learn_from_targets_without_an_uncompressed_prediction():
    only = LossConfig(next_token=0.0, delta_penalty=0.0, lens=0.0)
    step, batch = step_and_batch(settings=only)
    complete, short = run(step, batch, None)[0], run(step, batch, 6)[0]
    torch.testing.assert_close(complete["loss"], short["loss"])
    assert complete["mc/lod_loss/0"][1] > short["mc/lod_loss/0"][1] > 0


@pytest.mark.parametrize(("gistnet", "lensnet"), [("states", "entry"), ("mean", "mlp"), ("last states", "surprise")])
def test_networks_that_read_the_pass_are_refused(gistnet, lensnet):
    model = step_and_batch(gistnet, lensnet)[0].model
    context = ContextConfig(window=48, block_size=4, tail=5, baseline_window=47)
    with pytest.raises(UserError, match="expected one that reads embeddings") as caught:
        _checked_baseline(context, model)
    assert caught.value.binding == "context.baseline_window"
    assert _checked_baseline(replace(context, baseline_window=48), model) == (None, 1)
    complete = replace(context, baseline_window=None)
    assert _checked_baseline(complete, model) == (None, 1)
    with pytest.raises(UserError, match="expected one that reads embeddings") as caught:
        _checked_baseline(replace(complete, baseline_every=2), model)
    assert caught.value.binding == "context.baseline_every"


@pytest.mark.parametrize("window", [5, 49])
def test_a_pass_without_the_tail_or_beyond_the_window_is_refused(window):
    with pytest.raises(UserError, match="a number from 6, the tail and the token before it"):
        ContextConfig(window=48, block_size=4, tail=5, baseline_window=window)

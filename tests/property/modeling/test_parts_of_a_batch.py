"""The uncompressed pass, or variants, in one of several sequences: which losses and metrics count the others."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.config.batch_size import checked_micro_batch
from mcframe.config.schema import ContextConfig
from mcframe.errors import UserError
from mcframe.hookspecs import Loss, LossTerm, ModelShape
from mcframe.training.flops import StepFlops
from mcframe.training.train_step import StepBatch, TrainStep
from mcframe_plugins.loss.bag_of_tokens import BagOfTokens
from mcframe_plugins.loss.z_loss import ZLoss
from tests.support.generators import SOME, geometry_of
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import random_tokens, seeds_for, step_of_fixed_variants
from tests.support.oracle import Tree
from tests.support.step_checks import check_equal

TREE = Tree(window=48, block_size=4, levels=2, slots=1, tail=5, sink=1)
COMPARING = LossConfig(
    variants=0.0, distillation=1.0, contrast=1.0, attribution=0.1, condition="drop", normalise=True, ema_kl=0.1,
)  # fmt: skip
BARE = LossConfig(next_token=0.0, delta_penalty=0.0, lens=0.0, variants=1.0, reconstruction=0.5, blocks=(1,))
SIX = 6


def step_of(settings, every=1, **options):
    """Return a step of six sequences whose variants are the same in each, and its batch."""
    step, length, focuses = step_of_fixed_variants(1, tree=TREE, settings=settings, **options)
    proposed = torch.tensor(focuses[0])
    step.model.strategy.propose = lambda sequences, *_: proposed.to(sequences.tokens.device).expand(
        len(sequences.tokens), -1, -1
    )
    step.baseline_every = every
    mask = torch.rand(SIX, TREE.window, generator=torch.Generator().manual_seed(3)) < 0.7
    return step, StepBatch(random_tokens(TREE, SIX, 1), seeds_for(SIX, 2), length, mask)


def run(step, batch):
    """Return the loss, its gradients and the metrics of a step."""
    step.zero_grad(set_to_none=True)
    loss, metrics = step(batch.tokens, batch.seeds, batch.length, batch.loss_mask)
    loss.backward()
    gradients = {name: each.grad for name, each in step.named_parameters() if each.grad is not None}
    return {"loss": loss.detach(), **metrics.means, **metrics.samples}, gradients


@SOME
@given(st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_every_sequence_is_in_one_part(count, every, masked):
    tokens, seeds = torch.arange(count * 3).view(count, 3), torch.arange(count)[:, None]
    mask = torch.arange(count * 2).view(count, 2) % 3 == 0 if masked else None
    first, others = StepBatch(tokens, seeds, 7, mask).divided(every)
    rows = [row for row in range(count) if row % every == 0], [row for row in range(count) if row % every]
    for part, expected in zip((first, others), rows, strict=True):
        assert (part is None) == (not expected)
        if part is not None:
            assert torch.equal(part.tokens, tokens[expected])
            assert torch.equal(part.seeds, seeds[expected])
            assert part.length == 7
            assert (part.loss_mask is None) if mask is None else torch.equal(part.loss_mask, mask[expected])


@pytest.mark.parametrize("every", [2, 3])
def test_what_compares_is_that_of_the_sequences_with_the_pass(every):
    """Losses, gradients and metrics equal those of a batch of these sequences alone."""
    losses = [ZLoss(ModelShape(16, geometry_of(TREE)), weight=0.1)]
    step, batch = step_of(COMPARING, every, losses=losses)
    mixed = run(step, batch)
    step.baseline_every = 1
    alone = run(step, batch.divided(every)[0])
    own = ("loss/variants", "loss")
    assert not torch.allclose(mixed[0]["loss/variants"], alone[0]["loss/variants"])  # of all sequences
    torch.testing.assert_close(mixed[0]["loss"], alone[0]["loss"])  # its weight is 0
    check_equal(*({name: each for name, each in part[0].items() if name not in own} for part in (mixed, alone)))
    check_equal(mixed[1], alone[1])


@pytest.mark.parametrize("every", [2, 3, 6])
def test_what_compares_with_nothing_is_that_of_all_sequences(every):
    losses = [BagOfTokens(ModelShape(16, geometry_of(TREE)), weight=0.1)]
    step, batch = step_of(BARE, losses=losses)
    complete = run(step, batch)
    step.baseline_every = every
    limited = run(step, batch)
    for name in ("loss", "loss/variants", "loss/bag_of_tokens", "loss/reconstruction"):
        torch.testing.assert_close(limited[0][name], complete[0][name])
    assert limited[0]["train/loss_lod0"][1] == batch.loss_mask[::every].sum() < complete[0]["train/loss_lod0"][1]
    check_equal(limited[1], complete[1])


def test_a_loss_compares_unless_it_says_otherwise():
    class Own(Loss):
        name, calls = "own", []

        def forward(self, view):
            self.calls.append(len(view.uncompressed.inputs))
            return LossTerm(view.uncompressed.nll.mean(dim=1))

    step, batch = step_of(BARE, 3, losses=[Own()])
    run(step, batch)
    assert Own.calls == [2]


def test_a_loss_that_compares_against_its_word_is_found():
    class Lying(Loss):
        name, compares = "lying", False

        def forward(self, view):
            return LossTerm(view.uncompressed.nll.mean(dim=1))

    step, batch = step_of(BARE, 3, losses=[Lying()])
    assert run(step, batch)[0]["loss"].isnan()


def test_a_pass_of_fewer_sequences_costs_less():
    step, batch = step_of(LossConfig())
    losses = list(step.losses.each())
    complete = StepFlops(TrainStep(step.model, losses)).at(batch.length).total
    one = StepFlops(TrainStep(step.model, losses, baseline_every=3))
    limited = one.at(batch.length).total
    assert not one.notes
    assert limited == one.at(batch.length, micro_batch=6).total < 0.85 * complete


@pytest.mark.parametrize("every", [2, 3])
def test_what_requires_variants_is_that_of_the_sequences_with_them(every):
    losses = [ZLoss(ModelShape(16, geometry_of(TREE)), weight=0.1)]
    step, batch = step_of(LossConfig(reconstruction=0.5, blocks=(1,), distillation=0.5), losses=losses)
    complete, part = run(step, batch)[0], run(step, batch.divided(every)[0])[0]
    step.variants_every = every
    mixed = run(step, batch)[0]
    of_all = {"loss/next_token", "loss/z_loss", "loss/z_loss/log_z", "train/loss_lod0"}
    totals = {"loss", "train/loss"}
    check_equal(*({name: found[name] for name in of_all} for found in (mixed, complete)))
    check_equal(
        *({name: each for name, each in found.items() if name not in of_all | totals} for found in (mixed, part))
    )
    changed = sum((complete[name] / complete[name][1] - part[name] / part[name][1])[0] * weight
                  for name, weight in (("loss/next_token", 1.0), ("loss/z_loss", 0.1)))  # fmt: skip
    torch.testing.assert_close(mixed["loss"], part["loss"] + changed)


def test_variants_of_a_quarter_of_the_sequences_cost_little():
    step, batch = step_of(LossConfig(lens=0.0), lensnet=None)
    losses = list(step.losses.each())
    count = StepFlops(TrainStep(step.model, losses, variants_every=4))
    complete, quarter = StepFlops(TrainStep(step.model, losses)).at(batch.length), count.at(batch.length)
    assert not count.notes
    plain = StepFlops(TrainStep(step.model, [each for each in losses if not each.needs])).at(0)
    more = complete.total - plain.total
    assert quarter.total == pytest.approx(complete.total - 0.75 * more, rel=0.1)


def test_a_step_with_variants_in_some_sequences_is_one_graph():
    step, batch = step_of(LossConfig(), depth=1)
    step.variants_every = 2
    eager = run(step, batch)[0]["loss"]
    torch._dynamo.reset()  # after other shapes in this process it would make lengths symbols
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    loss, _ = compiled(batch.tokens, batch.seeds, batch.length, batch.loss_mask)
    torch.testing.assert_close(loss.detach(), eager)


def test_a_micro_batch_that_cannot_be_divided_is_refused():
    config = SimpleNamespace(sequences=12, micro_batch=6)
    assert checked_micro_batch(config, 1, baseline_every=3, variants_every=1) == 6
    for name in ("baseline_every", "variants_every"):
        every = {"baseline_every": 1, "variants_every": 1, name: 4}
        with pytest.raises(UserError, match="expected a divisor of the micro-batch of 6 sequences, got 4") as caught:
            checked_micro_batch(config, 1, **every)
        assert caught.value.binding == f"context.{name}"


def test_a_sequence_with_neither_is_refused():
    with pytest.raises(UserError, match=r"expected 1 together with context\.baseline_every = 2, got 2"):
        ContextConfig(window=48, block_size=4, tail=5, baseline_every=2, variants_every=2)

"""Losses that plug-ins add: what they see, that they train, that cutting a batch changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mcframe.errors import UserError
from mcframe.hookspecs import Loss, LossTerm, ModelShape
from mcframe.losses.terms import LossTerms
from mcframe_plugins.loss.bag_of_tokens import BagOfTokens
from mcframe_plugins.loss.z_loss import ZLoss
from tests.support import oracle
from tests.support.generators import geometry_of
from tests.support.modeling_builders import TREE, FixedVariants, build_step, equal_lengths, random_tokens, seeds_for

SLOTTED = oracle.Tree(window=29, block_size=4, levels=1, slots=2, tail=6, sink=0)


class Everything(Loss):
    """Uses every part of the view of a loss."""

    name, needs = "everything", ("variants", "scores")

    def __init__(self, weight=0.5):
        super().__init__()
        self.weight = weight
        self.map = nn.Linear(16, 1)

    def forward(self, view):
        variants = view.variants
        paired = variants.paired
        by_row = torch.where(paired.loss_mask, paired.delta, 0.0).mean(dim=1) + variants.lens.scores.square().mean(
            dim=1
        )
        by_row = by_row + self.map(variants.hidden).mean(dim=(1, 2)) + variants.entries.square().mean(dim=(1, 2))
        own = self.map(view.uncompressed.hidden).square().mean(dim=(1, 2)) + view.table.square().mean(dim=(1, 2))
        drawn = (view.seeds % 7).double().mean(dim=1)
        metrics = {"delta": paired.delta, "half": torch.where(paired.loss_mask, 1.0, torch.nan)}
        return LossTerm(view.by_sequence(by_row) + own * drawn, metrics)


def step_with(*losses, tree=TREE, sequences=4, gistnet="transformer", **options):
    focuses, length = equal_lengths(tree, sequences, 2, seed=3)
    step = build_step(tree, FixedVariants(focuses), gistnet=gistnet, losses=losses, **options).double()
    return step, (random_tokens(tree, sequences, 5), seeds_for(sequences, 2), length)


def test_the_loss_is_the_weighted_sum_and_is_logged_unweighted():
    plain, arguments = step_with()
    torch.manual_seed(0)
    added = Everything(weight=0.25)
    step, _ = step_with(added)
    before, (loss, statistics) = plain(*arguments)[0].detach(), step(*arguments)
    total, count = statistics.means["loss/everything"].tolist()
    assert count == 4
    assert float(loss.detach() - before) == pytest.approx(0.25 * total / count)
    assert statistics.means["loss/everything/half"][1] == statistics.means["loss/everything/half"][0]
    assert statistics.means["loss/everything/delta"][1] > 0
    total, count = statistics.means["train/loss"].tolist()
    assert count == 4
    assert total / count == float(loss.detach())


def test_cutting_a_batch_changes_nothing():
    torch.manual_seed(0)
    step, (tokens, seeds, length) = step_with(Everything())
    step(tokens, seeds, length)[0].backward()
    expected = {name: parameter.grad.clone() for name, parameter in step.named_parameters()}
    step.zero_grad()
    focuses = step.strategy.focuses
    for part in range(2):
        rows = slice(2 * part, 2 * part + 2)
        step.strategy.focuses = focuses[rows]
        (step(tokens[rows], seeds[rows], length)[0] / 2).backward()
    for name, parameter in step.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)
    assert expected["losses.everything.map.weight"].abs().sum() > 0


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_weight_of_zero_leaves_a_gradient_of_zero(weight):
    step, arguments = step_with(Everything(weight))
    step(*arguments)[0].backward()
    gradient = step.losses["everything"].map.weight.grad
    assert gradient is not None
    assert bool(gradient.abs().sum() > 0) is bool(weight)


@pytest.mark.parametrize(
    ("missing", "needs", "kept"),
    [
        ((), ("variants", "scores"), True),
        (("scores",), ("variants", "scores"), False),
        (("scores",), ("gists",), True),
        (("variants",), (), True),
    ],
)
def test_losses_of_missing_parts_are_skipped(missing, needs, kept):
    loss = Everything()
    loss.needs = needs
    terms = LossTerms([loss], missing)
    assert bool(len(terms)) is kept
    assert terms.skipped == ({} if kept else {"everything": "scores"})


@pytest.mark.parametrize("name", ["a.b", "", "1st", "forward"])
def test_invalid_names_are_refused(name):
    loss = Everything()
    loss.name = name
    with pytest.raises(UserError, match="letters, digits and underscores"):
        LossTerms([loss])


def test_equal_names_are_refused():
    with pytest.raises(UserError, match="got 'everything' twice"):
        LossTerms([Everything(), Everything()])


# ---- first-party losses ---------------------------------------------------------------------------
def logits_of(step, hidden):
    """One state at a time, without the model's own code."""
    return [float(row @ hidden) for row in step.gpt.lm_head.weight.detach()]


def test_z_loss_is_the_scalar_formula():
    shape = ModelShape(16, geometry_of(TREE))
    step, (tokens, seeds, length) = step_with(ZLoss(shape, weight=0.1, stride=3), sequences=2)
    loss_mask = torch.rand(2, TREE.window, generator=torch.Generator().manual_seed(0)) < 0.5
    baseline = step.model.uncompressed_pass(tokens, loss_mask)
    expected = []
    for hidden, counts in zip(baseline.hidden.detach(), loss_mask, strict=True):
        taken = [t for t in range(0, TREE.window, 3) if counts[t]]
        log_z = [math.log(sum(map(math.exp, logits_of(step, hidden[t])))) for t in taken]
        expected.append(sum(z * z for z in log_z) / len(taken))
    statistics = step(tokens, seeds, length, loss_mask)[1]
    total, count = statistics.means["loss/z_loss"].tolist()
    assert total / count == pytest.approx(sum(expected) / 2, rel=1e-5)


@pytest.mark.parametrize("tree", [TREE, SLOTTED])
def test_bag_of_tokens_is_the_scalar_formula(tree):
    torch.manual_seed(1)
    loss_term = BagOfTokens(ModelShape(16, geometry_of(tree)))
    step, (tokens, seeds, length) = step_with(loss_term, tree=tree, sequences=2, gistnet="mean")
    table = step.model.encode(tokens[:, :-1])[0].detach()
    expected = []
    for sequence in range(2):
        for block in range(tree.window // tree.block_size):
            first = tree.window + block * tree.slots
            gist = table[sequence, first : first + tree.slots].mean(dim=0)
            known = loss_term.map.weight.detach() @ (gist / gist.square().mean().sqrt())
            logits = logits_of(step, known)
            log_z = math.log(sum(map(math.exp, logits)))
            block_tokens = tokens[sequence, block * tree.block_size : (block + 1) * tree.block_size]
            expected += [log_z - logits[token] for token in block_tokens.tolist()]
    loss, statistics = step(tokens, seeds, length)
    total, count = statistics.means["loss/bag_of_tokens"].tolist()
    assert total / count == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    loss.backward()
    assert loss_term.map.weight.grad.abs().sum() > 0

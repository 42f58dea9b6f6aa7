"""LensNet's losses against their oracle, and properties that hold for any numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.context.focus_ops import block_means, expandable
from mcframe.context.preference_pairs import actionable
from mcframe.context.working_context import build_context
from mcframe_plugins.loss.attribution import attribution_margin, pair_loss
from mcframe_plugins.loss.preference import focal_weight
from tests.support import oracle
from tests.support.generators import MANY
from tests.support.lens_oracle import FLAT, TALL, case_of, cases
from tests.support.loss_config import LossConfig
from tests.support.step_checks import check_lens_metrics, check_means, pearson_of_sums

options = st.builds(
    LossConfig,
    kind=st.sampled_from(["preference", "span_utility", "span_difference"]),
    sides=st.sampled_from(["both", "worse"]),
    focal_gamma=st.sampled_from([0.0, 0.5, 2.0]),
    ema_kl=st.sampled_from([0.3, 1.5]),
    rank_weight=st.sampled_from([0.0, 0.7]),
    balance=st.sampled_from([0.0, 0.4]),
    attribution=st.sampled_from([0.0, 0.8]),
    rank_margin=st.sampled_from([0.1, 0.8]),
    temperature=st.sampled_from([0.5, 1.0]),
    utility_scale=st.sampled_from([0.1, 2.0]),
)


# ---- the reference -------------------------------------------------------------------------------
@MANY
@given(case=cases(), settings=options, scale=st.sampled_from([0.05, 1.0, 3.0]), former=st.booleans())
def test_loss_gradient_and_metrics(case, settings, scale, former):
    loss, found = case.lens_loss(settings, scale, case.previous if former else None)
    reference, figures = case.slow_loss(settings, scale, former)
    assert loss.item() == pytest.approx(reference.item(), abs=1e-9)
    for leaf in (case.scores, case.uncompressed):
        gradient, expected = (
            torch.autograd.grad(each, leaf, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            if each.requires_grad
            else torch.zeros_like(leaf)
            for each in (loss, reference)
        )
        torch.testing.assert_close(gradient, expected, atol=1e-9, rtol=1e-9)
    names = check_lens_metrics(found, figures, pairs=case.variants > 1)
    more = {"mc/ema_kl": figures.kls} if former else {}
    if case.variants > 1 and settings.attribution:
        more["mc/attribution_agreement"] = figures.attributed
    check_means(found, more)
    assert found.means.keys() == names | more.keys()
    if former:
        assert torch.autograd.grad(loss, case.previous, allow_unused=True)[0] is None


# ---- signs and levels of detail ------------------------------------------------------------------
@pytest.mark.parametrize(("sides", "agreement"), [("both", 0.5), ("worse", 1.0)])
@pytest.mark.parametrize("seed", range(3))
def test_the_level_of_detail_predicts_signs_on_the_worse_context_alone(sides, agreement, seed):
    """With levels 0 and 1, a score of +1 on gists and -1 on raw blocks has every sign of that context right."""
    case = case_of(FLAT, seed=seed)
    case.scores = torch.where(expandable(case.context), 1.0, -1.0)
    _, found = case.lens_loss(LossConfig(sides=sides))
    total, pairs = found.means["mc/preference_agreement"].tolist()
    assert pairs >= 4
    assert total / pairs == agreement
    correlations = found.samples["mc/preference_corr"]
    correlations = correlations[~correlations.isnan()]
    assert len(correlations) >= 1
    torch.testing.assert_close(correlations, torch.full_like(correlations, 1.0 if sides == "worse" else 0.0))
    pooled = pearson_of_sums(found.moments["mc/pref_span_corr"])
    assert pooled > 0.5 if sides == "worse" else abs(pooled) < 1e-9


@MANY
@given(case=cases(min_variants=2))
def test_exchanging_better_and_worse_reverses_every_pair(case):
    """Over both contexts no fixed score agrees with more than half of the pairs."""
    _, found = case.lens_loss(LossConfig())
    case.tail_deltas = [-delta for delta in case.tail_deltas]
    _, other = case.lens_loss(LossConfig())
    name = "mc/preference_corr"
    torch.testing.assert_close(other.samples[name], -found.samples[name], equal_nan=True)
    (agreed, pairs), (reversed_, same) = (f.means["mc/preference_agreement"].tolist() for f in (found, other))
    assert pairs == same
    assert agreed + reversed_ == pairs


def test_scores_of_the_useful_blocks_agree_on_both_sides():
    case = case_of(FLAT, sequences=4)
    case.tail_deltas = [0.0, 1.0] * 4
    lod = torch.tensor(case.focuses).view(4, 2, -1)
    target = torch.where(lod[:, 0] < lod[:, 1], 1.0, -1.0).repeat_interleave(2, dim=0)
    case.scores = target.gather(1, (case.context.start // FLAT.block_size).clamp(max=FLAT.blocks - 1))
    for sides in ("both", "worse"):
        agreed, pairs = case.lens_loss(LossConfig(sides=sides))[1].means["mc/preference_agreement"].tolist()
        assert agreed == pairs >= 3


# ---- blocks that can change ----------------------------------------------------------------------
@MANY
@given(case=cases(min_variants=2))
def test_actionable_blocks_are_those_that_are_not_protected(case):
    acts = actionable(case.context)
    for row, focus in enumerate(case.focuses):
        assert acts[row].tolist() == [case.row(row).can_change(block) for block in range(case.tree.blocks)]
        for block in range(case.tree.blocks):
            protected = not oracle.node_is_free(case.tree, 1, block)
            assert bool(acts[row, block]) != protected
            assert not (focus[block] and protected)


@pytest.mark.parametrize("kind", ["preference", "span_utility", "span_difference"])
@pytest.mark.parametrize("tree", [FLAT, TALL])
def test_scores_of_entries_that_cannot_change_enter_no_loss(kind, tree):
    case = case_of(tree)
    settings = LossConfig(kind=kind, ema_kl=1.0, focal_gamma=1.0)
    loss, _ = case.lens_loss(settings, average=case.previous)
    idle = torch.zeros_like(case.scores, dtype=torch.bool)
    for row in range(len(case.focuses)):
        for column, e in enumerate(case.row(row).prefix):
            idle[row, column] = e.lod == 0 and not oracle.can_collapse(tree, e)
    assert idle.any()
    assert not torch.autograd.grad(loss, case.scores)[0][idle].any()
    case.scores = torch.where(idle, -case.scores, case.scores)
    assert case.lens_loss(settings, average=case.previous)[0].item() == pytest.approx(loss.item())


# ---- attribution ---------------------------------------------------------------------------------
@pytest.mark.parametrize("slots", [1, 2])
def test_a_constant_score_does_not_rank_contexts_of_equal_length(slots):
    """Otherwise contexts would be ranked by their mix of levels."""
    tree = ContextTree(window=60, block_size=4, levels=2, slots=slots, tail=4)
    tall, flat = tree.saving(2), tree.saving(1)
    # LOD2 nodes of four blocks, and as many blocks at LOD1 as save the same.
    nodes = next(n for n in range(1, 4) if n * tall % flat == 0)
    focus = torch.zeros(2, tree.blocks, dtype=torch.long)
    focus[0, : 4 * nodes] = 2
    focus[1, : nodes * tall // flat] = 1
    context = build_context(focus, tree)
    assert context.valid.sum(dim=1).unique().numel() == 1
    scores = torch.full((1, tree.blocks), 0.7, dtype=torch.float64)
    margin, nats = attribution_margin(scores, context, torch.tensor([0.0, 1.0]), 2)
    assert nats.item() == 1.0
    assert abs(margin.item()) < 1e-9


def test_attribution_finds_the_one_block_that_decides():
    """Signs of pairs are equal for all blocks that differ; sums over blocks separate them."""
    generator = torch.Generator().manual_seed(0)
    focus = (torch.rand(400, 2, 6, generator=generator).argsort(dim=-1) < 3).long()
    focus = focus[focus[:, 0, 2] != focus[:, 1, 2]]
    tail_delta = focus[:, :, 2].double().flatten()
    context = build_context(focus.flatten(0, 1), ContextTree(window=28, block_size=4, levels=1, slots=1, tail=4))
    scores = torch.zeros(1, 6, dtype=torch.float64, requires_grad=True)
    for _ in range(200):
        margin, nats = attribution_margin(scores.expand(len(focus), -1), context, tail_delta, 2)
        gradient = torch.autograd.grad(pair_loss(margin, nats, 1.0).mean(), scores)[0]
        scores = (scores - 2 * gradient).detach().requires_grad_()
    others = scores[0, torch.arange(6) != 2]
    assert scores[0, 2] - others.max() > 10 * (others.max() - others.min())


# ---- EMA-KL and focal weights --------------------------------------------------------------------
def test_ema_kl_pulls_scores_towards_the_average():
    case, settings = case_of(TALL), LossConfig(balance=0.0, rank_weight=0.0, ema_kl=1.0)
    without, _ = case.lens_loss(settings)
    loss, found = case.lens_loss(settings, average=case.scores.detach())
    torch.testing.assert_close(loss, without)
    assert found.means["mc/ema_kl"][0] == pytest.approx(0, abs=1e-9)
    case.tail_deltas = [0.0] * len(case.tail_deltas)  # no preference, so the penalty alone has a gradient
    case.lens_loss(settings, average=case.previous)[0].backward()
    acts = actionable(case.context)
    now, former = (block_means(s.detach(), case.context) for s in (case.scores, case.previous))
    pull = block_means(-case.scores.grad, case.context)
    assert (pull * (former - now))[acts].min() > 0
    assert not pull[~acts].any()


def test_wrong_pairs_have_more_weight():
    margin = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    for gamma in (0.5, 2.0):
        weight = focal_weight(margin, gamma)
        assert not weight.requires_grad
        assert weight[4] == 1
        assert (weight.diff() < 0).all()
    assert (focal_weight(margin, 2.0) / focal_weight(margin, 1.0)).diff().max() < 0

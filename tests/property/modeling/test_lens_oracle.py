"""LensNet's objective against its oracle, and what must hold of it whatever the numbers."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.context.focus_ops import block_means, expandable
from mcframe.context.preference_pairs import actionable, preference_pairs
from mcframe.context.working_context import build_context
from mcframe.losses.lens_targets import shuffle_targets
from mcframe_plugins.loss.attribution import attribution_margin, pair_loss
from mcframe_plugins.loss.preference import focal_weight
from tests.support import oracle
from tests.support.generators import MANY
from tests.support.lens_oracle import Case, cases, random_case, slow_lens_loss
from tests.support.loss_config import LossConfig
from tests.support.step_checks import pearson_of_sums
from tests.support.step_oracle import correlation, number

FLAT = oracle.Tree(window=40, block_size=4, levels=1, slots=1, tail=5, sink=1, horizon=13)
TALL = oracle.Tree(window=44, block_size=3, levels=2, slots=2, tail=4, sink=0)

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


def case_of(tree: oracle.Tree, *, variants: int = 2, sequences: int = 8, seed: int = 0) -> Case:
    return random_case(tree, variants, sequences, random.Random(seed), torch.Generator().manual_seed(seed))


# ---- the reference -------------------------------------------------------------------------------------
@MANY
@given(case=cases(), settings=options, scale=st.sampled_from([0.05, 1.0, 3.0]), former=st.booleans())
def test_loss_gradient_and_metrics(case, settings, scale, former):
    loss, found = case.lens_loss(settings, scale, case.previous if former else None)
    reference = slow_lens_loss(case, settings, scale, former)
    assert loss.item() == pytest.approx(reference.loss.item(), abs=1e-9)
    for leaf in (case.scores, case.uncompressed):
        gradient, expected = (
            torch.autograd.grad(each, leaf, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            if each.requires_grad
            else torch.zeros_like(leaf)
            for each in (loss, reference.loss)
        )
        torch.testing.assert_close(gradient, expected, atol=1e-9, rtol=1e-9)
    if former:
        assert torch.autograd.grad(loss, case.previous, allow_unused=True)[0] is None
    check_metrics(case, found, reference, former, attributed=bool(settings.attribution))


def check_metrics(case, found, reference, former, attributed):
    pooled = {}
    if case.variants > 1:
        pooled |= {"mc/preference_agreement": reference.agreements, "mc/preference_strength": reference.strengths}
        assert found.sums["mc/preference_pair_count"] == len(reference.agreements)
        correlations = found.samples["mc/preference_corr"].tolist()
        assert correlations == pytest.approx(reference.correlations, abs=1e-5, nan_ok=True)
        spans = found.moments["mc/pref_span_corr"]
        assert spans[0] == len(reference.span_pairs)
        assert pearson_of_sums(spans) == pytest.approx(correlation(reference.span_pairs), abs=1e-5, nan_ok=True)
        if attributed:
            pooled["mc/attribution_agreement"] = reference.attributed
    if former:
        pooled["mc/ema_kl"] = reference.kls
    rows = [[number(s) for s in case.own(row, case.scores)] for row in range(len(case.focuses))]
    means = [sum(row) / len(row) if row else 0.0 for row in rows]
    pooled["mc/policy_score_abs_mean"] = [abs(score) for row in rows for score in row]
    pooled["mc/policy_score_std_mean"] = [
        math.sqrt(sum((score - mean) ** 2 for score in row) / max(1, len(row)))
        for row, mean in zip(rows, means, strict=True)
    ]
    assert found.means.keys() == pooled.keys()
    for name, values in pooled.items():
        total, count = found.means[name].tolist()
        assert count == len(values), name
        assert total == pytest.approx(sum(values), abs=1e-4, rel=1e-5), name
    spans = list(spans_that_hurt(case))
    assert found.moments["mc/pref_score_corr"][0] == len(spans)
    assert pearson_of_sums(found.moments["mc/pref_score_corr"]) == pytest.approx(
        correlation(spans), abs=1e-5, nan_ok=True
    )


def spans_that_hurt(case):
    """Score of each collapsed span's last slot, with the mean ΔNLL of the tokens right behind the span."""
    for row, focus in enumerate(case.focuses):
        entries = oracle.build_context(case.tree, focus)
        baseline = case.baseline[row // case.variants].tolist()
        entry_deltas = oracle.pair_nll(entries, case.nll[row, : len(entries)].tolist(), baseline)
        deltas = oracle.span_deltas(entry_deltas, case.tree.delta_horizon)
        for entry, score in zip(case.seen(row), case.own(row, case.scores), strict=True):
            if entry.lod and entry.predicts and entry.start in deltas:
                yield number(score), oracle.mean(deltas[entry.start])


# ---- what signs can be read off -------------------------------------------------------------------
@pytest.mark.parametrize(("sides", "agreement"), [("both", 0.5), ("worse", 1.0)])
@pytest.mark.parametrize("seed", range(3))
def test_the_level_of_detail_gives_signs_away_on_the_worse_context_alone(sides, agreement, seed):
    """Where levels are 0 and 1, +1 on gists and -1 on raw blocks is right of every sign there, reading nothing."""
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
def test_when_better_and_worse_change_places_every_vote_turns_round(case):
    """So that over both contexts nothing agrees with more than half of the pairs unless it tells which is better."""
    _, found = case.lens_loss(LossConfig())
    case.tail_deltas = [-tail_delta for tail_delta in case.tail_deltas]
    _, other = case.lens_loss(LossConfig())
    torch.testing.assert_close(
        other.samples["mc/preference_corr"], -found.samples["mc/preference_corr"], equal_nan=True
    )
    (agreed, pairs), (turned, same) = (f.means["mc/preference_agreement"].tolist() for f in (found, other))
    assert pairs == same
    assert agreed + turned == pairs


def test_knowing_which_blocks_are_wanted_agrees_on_both_sides():
    case = case_of(FLAT, sequences=4)
    case.tail_deltas = [0.0, 1.0] * 4
    more = torch.tensor(case.focuses).view(4, 2, -1)
    wish = torch.where(more[:, 0] < more[:, 1], 1.0, -1.0).repeat_interleave(2, dim=0)
    block = (case.context.start // FLAT.block_size).clamp(max=FLAT.blocks - 1)
    case.scores = wish.gather(1, block)
    for sides in ("both", "worse"):
        _, found = case.lens_loss(LossConfig(sides=sides))
        agreed, pairs = found.means["mc/preference_agreement"].tolist()
        assert agreed == pairs >= 3


# ---- legality -------------------------------------------------------------------------------------
@MANY
@given(case=cases(min_variants=2))
def test_blocks_that_differ_can_act_in_both_contexts(case):
    acts = actionable(case.context)
    for row, focus in enumerate(case.focuses):
        assert acts[row].tolist() == [case.acts(row, block) for block in range(case.tree.blocks)]
        for block in range(case.tree.blocks):
            protected = not oracle.node_is_free(case.tree, 1, block)
            assert bool(acts[row, block]) != protected
            assert not (focus[block] and protected)


@pytest.mark.parametrize("kind", ["preference", "span_utility", "span_difference"])
@pytest.mark.parametrize("tree", [FLAT, TALL])
def test_scores_without_an_action_matter_to_no_loss(kind, tree):
    case = case_of(tree)
    settings = LossConfig(kind=kind, ema_kl=1.0, focal_gamma=1.0)
    loss, _ = case.lens_loss(settings, average=case.previous)
    loss.backward()
    idle = [
        (row, i)
        for row in range(len(case.focuses))
        for i, e in enumerate(case.seen(row))
        if e.lod == 0 and not oracle.can_collapse(tree, e)
    ]
    assert idle
    assert not any(case.scores.grad[place] for place in idle)
    moved = case.scores.detach().clone()
    for place in idle:
        moved[place] *= -1
    case.scores = moved
    assert case.lens_loss(settings, average=case.previous)[0].item() == pytest.approx(loss.item())


# ---- who gets a gradient --------------------------------------------------------------------------
@pytest.mark.parametrize("sides", ["both", "worse"])
def test_preference_reaches_exactly_what_differs(sides):
    case = case_of(TALL, variants=3, sequences=4)
    settings = LossConfig(sides=sides, balance=0.0)
    case.lens_loss(settings)[0].backward()
    reached = block_means(case.scores.grad.abs(), case.context) > 0
    reference = torch.zeros_like(reached)
    for a, b in case.pairs:
        worse, better = (a, b) if case.tail_deltas[a] > case.tail_deltas[b] else (b, a)
        for side in (worse,) if sides == "worse" else (worse, better):
            for block in range(TALL.blocks):
                differs = case.focuses[a][block] != case.focuses[b][block]
                reference[side, block] |= differs and case.tail_deltas[a] != case.tail_deltas[b]
    assert reference.any()
    assert not reference.all(dim=1).all()
    assert torch.equal(reached, reference)


def test_signs_pull_scores_their_way():
    case = case_of(FLAT)
    case.scores = torch.zeros_like(case.scores).requires_grad_()
    settings = LossConfig(balance=0.0, rank_weight=0.0)
    case.lens_loss(settings)[0].backward()
    pairs = preference_pairs(case.context, case.tail_delta, block_means(-case.scores.grad, case.context), 2)
    assert (pairs.sign * pairs.score)[pairs.mask].min() > 0


def test_attribution_reaches_what_one_of_a_pair_collapses_further():
    case = case_of(TALL, variants=2, sequences=4)
    case.lens_loss(LossConfig(attribution=1.0))[0].backward()
    reached = case.uncompressed.grad != 0
    reference = torch.zeros_like(reached)
    for a, b in case.pairs:
        for block in range(TALL.blocks):
            differs = case.focuses[a][block] != case.focuses[b][block]
            reference[a // 2, block] = differs and case.tail_deltas[a] != case.tail_deltas[b]
    assert reference.any()
    assert not reference.all(dim=1).any()
    assert torch.equal(reached, reference)


@pytest.mark.parametrize("slots", [1, 2])
def test_a_constant_in_all_scores_tells_no_contexts_of_equal_length_apart(slots):
    """Or levels would be ranked by their mix, and nothing read."""
    tree = ContextTree(window=60, block_size=4, levels=2, slots=slots, tail=4)
    tall, flat = tree.saving(2), tree.saving(1)
    # LOD2 nodes of four blocks, and as many blocks at LOD1 as save the same.
    nodes = next(n for n in range(1, 4) if n * tall % flat == 0)
    focus = torch.zeros(2, tree.blocks, dtype=torch.long)
    focus[0, : 4 * nodes] = 2
    focus[1, : nodes * tall // flat] = 1
    context = build_context(focus, tree)
    assert context.valid.sum(dim=1).unique().numel() == 1
    said = torch.full((1, tree.blocks), 0.7, dtype=torch.float64)
    margin, nats = attribution_margin(said, context, torch.tensor([0.0, 1.0]), 2)
    assert nats.item() == 1.0
    assert abs(margin.item()) < 1e-9


def test_contexts_that_do_not_differ_make_no_pair():
    case = case_of(FLAT)
    case.focuses = [case.focuses[0]] * len(case.focuses)
    case.tail_deltas = [0.0, 1e-7] * (len(case.tail_deltas) // 2)
    case.__post_init__()
    margin, nats = attribution_margin(case.uncompressed, case.context, case.tail_delta, 2)
    assert not margin.any()
    assert not nats.any()


def test_attribution_gives_credit_to_the_block_and_not_to_the_context():
    """One block decides every pair. Signs of pairs ask the same of all blocks that differ; sums single it out."""
    generator = torch.Generator().manual_seed(0)
    focus = (torch.rand(400, 2, 6, generator=generator).argsort(dim=-1) < 3).long()
    focus = focus[focus[:, 0, 2] != focus[:, 1, 2]]
    tail_delta = focus[:, :, 2].double().flatten()
    context = build_context(focus.flatten(0, 1), ContextTree(window=28, block_size=4, levels=1, slots=1, tail=4))
    scores = torch.zeros(1, 6, dtype=torch.float64, requires_grad=True)
    for _ in range(200):
        margin, nats = attribution_margin(scores.expand(len(focus), -1), context, tail_delta, 2)
        pull = torch.autograd.grad(pair_loss(margin, nats, 1.0).mean(), scores)[0]
        scores = (scores - 2 * pull).detach().requires_grad_()
    others = scores[0, torch.arange(6) != 2]
    assert scores[0, 2] - others.max() > 10 * (others.max() - others.min())


def test_policy_kl_holds_scores_where_they_were():
    case = case_of(TALL)
    settings = LossConfig(balance=0.0, rank_weight=0.0, ema_kl=1.0)
    without, _ = case.lens_loss(settings)
    still = torch.autograd.grad(without, case.scores)[0]
    loss, found = case.lens_loss(settings, average=case.scores.detach())
    torch.testing.assert_close(loss, without)
    torch.testing.assert_close(torch.autograd.grad(loss, case.scores)[0], still)
    assert found.means["mc/ema_kl"][0] == pytest.approx(0, abs=1e-9)
    case.verdicts = [0.0] * len(case.verdicts)  # nothing to prefer: the penalty alone pulls
    case.lens_loss(settings, average=case.previous)[0].backward()
    acts = actionable(case.context)
    now, former = (block_means(s.detach(), case.context) for s in (case.scores, case.previous))
    pull = block_means(-case.scores.grad, case.context)
    assert (pull * (former - now))[acts].min() > 0
    assert not pull[~acts].any()


# ---- hard negatives -------------------------------------------------------------------------------
def test_wrong_pairs_weigh_more():
    margin = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    for gamma in (0.5, 2.0):
        weight = focal_weight(margin, gamma)
        assert not weight.requires_grad
        assert weight[4] == 1
        assert (weight.diff() < 0).all()
    assert (focal_weight(margin, 2.0) / focal_weight(margin, 1.0)).diff().max() < 0


# ---- the control run ------------------------------------------------------------------------------
def test_shuffled_verdicts_stay_with_their_sequence():
    seeds = torch.arange(600).view(200, 3) * 7919
    tail_delta = torch.arange(600.0)
    dealt = shuffle_targets(tail_delta, seeds)
    assert torch.equal(dealt.view(200, 3).sort(dim=1).values, tail_delta.view(200, 3))
    places = torch.stack(
        [(dealt.view(200, 3) - tail_delta.view(200, 3)[:, :1] == i).float().mean(dim=0) for i in range(3)]
    )
    assert (places - 1 / 3).abs().max() < 0.1  # every verdict anywhere, equally often
    parts = [shuffle_targets(v, s) for v, s in zip(tail_delta.split(150), seeds.split(50), strict=True)]
    assert torch.equal(torch.cat(parts), dealt)

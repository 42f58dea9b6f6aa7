"""Properties of a training step that hold for any numbers: which parts learn, no host reads, any cut of a batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mcframe.config.run_config import load_run_config
from mcframe.modeling.model import MegaContextModel
from mcframe.training.build import build_model, seeded
from mcframe_plugins.variants import NoVariants, RandomCollapse
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import TREE, Step, assemble, build_step, geometry_of, random_tokens, seeds_for
from tests.support.real_step import LENGTH, Operations, no_reads, real_step
from tests.support.step_checks import check_everything_learns, random_mask, with_gradient

NOTHING = dict.fromkeys(("next_token", "variants", "delta_penalty", "lens"), 0.0)
EVERY_PASS = LossConfig(distillation=1.0, contrast=2.0, reconstruction=0.5, condition="drop")
STEPS = {
    "preference": LossConfig(),
    "span utility": LossConfig(kind="span_utility"),
    "span difference": LossConfig(kind="span_difference", sides="worse"),
    "attribution": LossConfig(attribution=0.6),
    "every pass": EVERY_PASS,
    "running targets": LossConfig(normalise=True, ema_kl=0.5, focal_gamma=1.5, shuffle=True, lens=1.0),
}


def batch(sequences: int, tree=TREE, length: int = LENGTH, blocks: int = 2, seed: int = 3) -> tuple:
    """Return the arguments of a step, with a mask of the targets."""
    tokens = random_tokens(tree, sequences, seed)
    return tokens, seeds_for(sequences, 2), length, random_mask(tree, sequences, seed), blocks


def random_step(settings: LossConfig, **options: object) -> Step:
    options = {"lensnet": "transformer"} | options
    return build_step(TREE, RandomCollapse(geometry_of(TREE)), settings=settings, **options)


# ---- which parts learn ---------------------------------------------------------------------------
@pytest.mark.parametrize(("pooling", "head"), [("mean", "linear"), ("query", "mlp"), ("cls", "linear")])
def test_every_parameter_learns(pooling, head):
    model = real_step(TREE, EVERY_PASS, gist_bias=-1.0, pooling=pooling, head=head)
    tokens = random_tokens(TREE, 4, 0)
    check_everything_learns(
        model, lambda i: model(tokens, seeds_for(4, 2) + 100 * i, LENGTH, None, 1 + i % 2)[0], model.parameters(), 6
    )


@pytest.mark.parametrize(
    ("weights", "lensnet"),
    [
        *(({"lens": 1.0} | own, True) for own in ({}, {"kind": "span_utility"}, {"attribution": 0.6})),
        ({"next_token": 1.0, "variants": 1.0, "delta_penalty": 1.0}, False),
        ({"distillation": 1.0}, False),
        ({"reconstruction": 1.0}, False),
    ],
)
def test_lens_losses_train_lensnet_alone_and_other_losses_the_rest(weights, lensnet):
    model = random_step(LossConfig(**NOTHING | weights), gist_bias=0.1)
    model(random_tokens(TREE, 4, 0), seeds_for(4, 2), LENGTH)[0].backward()
    assert with_gradient(model) == {n for n, _ in model.named_parameters() if n.startswith("model.lensnet.") == lensnet}
    if "reconstruction" in weights:  # reads LOD1 alone
        assert not model.gistnet.lod_embed.grad[1].any()


def test_a_frozen_base_model_stays_the_same():
    model = real_step(TREE, EVERY_PASS)
    model.gpt.requires_grad_(False)
    before = {n: p.clone() for n, p in model.gpt.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(*batch(4))[0].backward()
    optimizer.step()
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in model.gpt.named_parameters())
    assert any(name.startswith("model.gistnet.") for name in with_gradient(model))


# ---- no reads, no loops --------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "gistnet"), [*((name, True) for name in STEPS), ("every pass", False)])
def test_a_step_never_waits_for_the_device(name, gistnet):
    model = real_step(TREE, STEPS[name], gist_bias=-1.0)
    if not gistnet:
        model = assemble(MegaContextModel(model.gpt, None, None, model.strategy, model.tree), STEPS[name])
    model(*batch(3))  # fills caches
    with no_reads() as operations:
        loss, metrics = model(*batch(3))
        loss.backward()
        model.after_step()
    assert operations.counts.total() > 100
    for group in (metrics.means, metrics.samples, metrics.moments, metrics.sums):
        assert not any(value.requires_grad for value in group.values())


def test_the_guard_notices_a_read():
    x = torch.arange(3.0)
    for read in (lambda: x.sum().item(), lambda: x[x > 1], lambda: bool(x[0] > 1), lambda: (x > 1).nonzero()):
        with Operations(refuse=True), pytest.raises(AssertionError):
            read()


@pytest.mark.parametrize("name", ["preference", "attribution", "every pass"])
def test_the_number_of_operations_depends_on_no_size(name):
    def operations(sequences: int, window: int, length: int, blocks: int):
        tree = TREE._replace(window=window)
        model, arguments = real_step(tree, STEPS[name]), batch(sequences, tree, length, blocks)
        model(*arguments)  # the mixes of this length are looked up once
        with Operations() as counted:
            model(*arguments)[0].backward()
        return counted.counts

    small = operations(2, 29, LENGTH, 2)
    assert operations(6, 29, LENGTH, 2) == small
    # 18 blocks and two tokens instead of 9 and two: with other remainders a few views need no operation.
    assert operations(2, 56, 42, 4) == small


# ---- cutting a batch -----------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "gistnet"), [*((name, "transformer") for name in STEPS), ("every pass", None)])
def test_micro_batches_of_any_size_have_the_same_loss_and_gradient(name, gistnet):
    """Three optimizer steps where LensNet's targets have a state, which every step moves."""
    arguments, results = batch(6), []
    for size in (6, 2, 1):
        model, losses = random_step(STEPS[name], gistnet=gistnet, depth=1), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(3 if name == "running targets" else 1):
            optimizer.zero_grad()
            tokens, seeds, mask = (arguments[i].split(size) for i in (0, 1, 3))
            parts = [model(t, s, LENGTH, m, 2)[0] for t, s, m in zip(tokens, seeds, mask, strict=True)]
            loss = torch.stack(parts).mean()
            loss.backward()
            optimizer.step()
            model.after_step()
            losses.append(loss.detach())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        results.append((losses, gradients, model.state_dict()))
    for losses, gradients, state in results[1:]:
        torch.testing.assert_close(losses, results[0][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradients, results[0][1], atol=2e-5, rtol=1e-3)
        torch.testing.assert_close(state, results[0][2], atol=1e-4, rtol=1e-3)
    assert name != "running targets" or state["lens_targets.running"].all()


# ---- baselines -----------------------------------------------------------------------------------
def test_without_variants_the_loss_is_that_of_a_plain_language_model():
    model, tokens = real_step(TREE), random_tokens(TREE, 3, 0)
    plain_model = MegaContextModel(model.gpt, None, None, NoVariants(model.tree), model.tree)
    loss, statistics = assemble(plain_model, LossConfig())(tokens, torch.zeros(3, 0, dtype=torch.long), 0)
    logits = torch.stack([plain_model.next_logits(tokens[:, : t + 1]) for t in range(TREE.window)], dim=1)
    plain = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(loss, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain_model.nll(tokens).mean(), loss)
    assert statistics.means.keys() == {"train/loss_lod0", "train/loss", "loss/next_token"}
    same = model(tokens, seeds_for(3, 2), LENGTH)[1].means["train/loss_lod0"]
    torch.testing.assert_close(same, statistics.means["train/loss_lod0"])


def test_the_baseline_starts_from_the_same_base_model(smoke):
    run, baseline, other = (
        build_model(load_run_config([smoke], overrides).run_config, 256)
        for overrides in ([], ["run.variants = @variants.none"], ["gistnet.transformer.layers = 2"])
    )
    assert baseline.gistnet is None
    assert baseline.lensnet is None
    assert {n.split(".")[0] for n, _ in run.named_parameters()} == {"gpt", "gistnet", "lensnet"}
    for one, same in ((run.gpt, baseline.gpt), (run.gpt, other.gpt), (run.lensnet, other.lensnet)):
        torch.testing.assert_close(one.state_dict(), same.state_dict(), rtol=0, atol=0)


def test_seeded_building_leaves_the_random_state_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = seeded(1, "gpt", lambda: torch.rand(5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert torch.equal(seeded(1, "gpt", lambda: torch.rand(5)), first)
    assert not torch.equal(seeded(2, "gpt", lambda: torch.rand(5)), first)
    assert not torch.equal(seeded(1, "gistnet", lambda: torch.rand(5)), first)

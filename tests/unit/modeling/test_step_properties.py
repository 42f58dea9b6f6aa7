"""What holds of a training step whatever its numbers: who learns, what is read back, how a batch may be cut."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mcframe.context.working_context import raw_context
from mcframe.modeling.model import MegaContextModel
from mcframe_plugins.variants import NoVariants, RandomCollapse
from tests.support import oracle
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import (
    TREE,
    VOCABULARY,
    Step,
    assemble,
    build_step,
    geometry_of,
    random_tokens,
    seeds_for,
)
from tests.support.real_step import LENGTH, Operations, no_reads, real_step
from tests.support.step_checks import check_everything_learns

LENS = {
    "preference": {"kind": "preference"},
    "span_utility": {"kind": "span_utility"},
    "attribution": {"attribution": 0.6},
}


def step_of(model: Step, tokens: torch.Tensor, step: int = 0):
    count = model.strategy.count
    return model(tokens, seeds_for(len(tokens), count) + 1000 * step, LENGTH)


# ---- who learns -----------------------------------------------------------------------------------
@pytest.mark.parametrize("pooling", ["mean", "query", "cls"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_every_parameter_learns(pooling, head):
    model = real_step(TREE, pooling=pooling, head=head)
    tokens = random_tokens(TREE, 4, 0)
    check_everything_learns(model, lambda step: step_of(model, tokens, step)[0], model.parameters())


@pytest.mark.parametrize("objective", LENS)
def test_the_lens_loss_trains_lensnet_alone(objective):
    settings = LossConfig(next_token=0.0, variants=0.0, delta_penalty=0.0, lens=1.0, **LENS[objective])
    model = build_step(TREE, RandomCollapse(geometry_of(TREE)), lensnet="transformer", settings=settings)
    step_of(model, random_tokens(TREE, 3, 0))[0].backward()
    for name, parameter in model.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.count_nonzero())
        assert reached == name.startswith("model.lensnet."), name


@pytest.mark.parametrize("lensnet", ["transformer", "mlp"])
@pytest.mark.parametrize("judge", ["gist", "drop"])
def test_attribution_is_of_the_uncompressed_context_and_of_the_same_verdicts(judge, lensnet):
    """Against the model's other tasks: proposals tell what is collapsed, judge what it costs, scores what is said."""
    with_it, without = (
        build_step(
            TREE, RandomCollapse(geometry_of(TREE)), lensnet=lensnet,
            settings=LossConfig(condition=judge, attribution=weight, lens=1.0),
        )
        for weight in (0.5, 0.0)
    )  # fmt: skip
    tokens, seeds = random_tokens(TREE, 5, 0), seeds_for(5, 2)
    (_, more), (_, less) = (model(tokens, seeds, LENGTH) for model in (with_it, without))
    found = (more.means["mc/lens_loss"] - less.means["mc/lens_loss"])[0].item() / 0.5
    focus = without.model.propose(tokens[:, :-1], seeds, LENGTH)
    nll, _ = without.model.evaluate_focus(tokens, focus, judge)
    full, _ = without.model.evaluate_focus(tokens, torch.zeros_like(focus), "full")
    cursor, size = without.tree.cursor, TREE.block_size
    first = cursor - 1 if judge == "gist" else max(cursor - 1, cursor // size * size)
    verdict = (nll - full)[:, first:].nanmean(dim=1)
    raw = raw_context(without.tree, 5, tokens.device)
    embeddings = without.gpt.embed(tokens[:, :-1])
    scores = without.model.scores(raw, without.model.node_table(embeddings, embeddings), without.model.nll(tokens))
    wanted, right = 0.0, 0.0
    for sequence in range(5):
        told = []
        for row in (2 * sequence, 2 * sequence + 1):
            gone = [(block, lod) for block, lod in enumerate(focus[row].tolist()) if lod]
            said = [scores[sequence, block * size : (block + 1) * size].mean() for block, _ in gone]
            # Of blocks of 3, LOD1 saves 2 entries each; LOD2 saves 8 of three blocks.
            told.append(sum((1, 8 / 6)[lod - 1] * score for (_, lod), score in zip(gone, said, strict=True)))
        lost = (verdict[2 * sequence] - verdict[2 * sequence + 1]).item()
        margin = (told[0] - told[1]).item() * (1 if lost > 0 else -1)
        wanted += math.tanh(abs(lost)) * math.log1p(math.exp(-margin * max(1, abs(lost)))) / 5
        right += 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0
    assert wanted > 1e-4
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    assert more.means["mc/attribution_agreement"].tolist() == [right, 5]


def test_the_other_losses_train_no_lensnet():
    model = build_step(TREE, RandomCollapse(geometry_of(TREE)), lensnet="transformer", settings=LossConfig(lens=0.0))
    step_of(model, random_tokens(TREE, 3, 0))[0].backward()
    for name, parameter in model.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.count_nonzero())
        assert reached != name.startswith("model.lensnet."), name


def test_the_penalty_pulls_the_variant_and_leaves_the_baseline():
    """With nothing but the penalty, what only the baseline reads gets no gradient: its NLL is detached."""
    settings = LossConfig(next_token=0.0, variants=0.0, delta_penalty=1.0, lens=0.0)
    tree = oracle.Tree(window=12, block_size=4, levels=1, slots=1, tail=4, sink=0)
    tokens = torch.arange(13)[None] % VOCABULARY  # every token once
    for seed in range(20):
        strategy = RandomCollapse(geometry_of(tree), count=1)
        model = build_step(tree, strategy, gistnet="mean", seed=seed, settings=settings)
        # so that gists of token 0 to 7 carry nothing back
        model.gistnet.register_forward_hook(lambda _, __, gists: gists.detach())
        loss, statistics = model(tokens, torch.tensor([[5]]), 12 - 2 * 3)
        if statistics.means["mc/gist_delta_penalty"][0] > 0:
            loss.backward()
            gradient = model.gpt.token_embed.weight.grad
            assert not gradient[:8].any()
            assert gradient[8:12].any(dim=1).all()
            return
    raise AssertionError("no model had a penalty")


def test_statistics_hold_no_graph():
    _, statistics = step_of(real_step(TREE), random_tokens(TREE, 2, 0))
    for group in (statistics.means, statistics.samples, statistics.moments, statistics.sums):
        for name, value in group.items():
            assert not value.requires_grad, name


# ---- nothing is read back, nothing loops ----------------------------------------------------------
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("objective", LENS)
def test_nothing_waits_for_the_device(objective, plain):
    model = real_step(TREE, LossConfig(**LENS[objective]))
    if plain:
        model = assemble(MegaContextModel(model.gpt, None, None, NoVariants(model.tree), model.tree), model.settings)
    tokens, seeds = random_tokens(TREE, 3, 0), seeds_for(3, 2)
    model(tokens, seeds, LENGTH)  # fills caches
    with no_reads() as operations:
        model(tokens, seeds, LENGTH)[0].backward()
    assert operations.counts.total() > 100


def test_the_guard_notices_a_read():
    x = torch.arange(3.0)
    for read in (lambda: x.sum().item(), lambda: x[x > 1], lambda: bool(x[0] > 1), lambda: (x > 1).nonzero()):
        with Operations(refuse=True), pytest.raises(AssertionError):
            read()


@pytest.mark.parametrize("objective", LENS)
def test_the_number_of_operations_depends_on_no_size(objective):
    def operations(sequences: int, window: int, length: int) -> Counter:
        model = real_step(TREE._replace(window=window), LossConfig(**LENS[objective]))
        tokens = random_tokens(TREE._replace(window=window), sequences, 0)
        arguments = (tokens, seeds_for(sequences, 2), length)
        model(*arguments)  # the mixes of this length are looked up once
        with Operations() as counted:
            model(*arguments)[0].backward()
        return counted.counts

    small = operations(2, 29, 21)
    assert operations(6, 29, 21) == small
    # 18 blocks and two tokens instead of 9 and two: at other remainders a few views are the whole and so no-ops
    assert operations(2, 56, 42) == small


def test_a_step_runs_without_any_data():
    """On the meta device there is nothing to read: shapes alone decide what is run."""
    with torch.device("meta"):
        model = real_step(TREE)
        tokens = torch.zeros(2, TREE.window + 1, dtype=torch.long)
        loss, _ = model(tokens, torch.zeros(2, 2, dtype=torch.long), LENGTH)
        loss.backward()
    assert loss.shape == ()


# ---- cutting a batch ------------------------------------------------------------------------------
@pytest.mark.parametrize("objective", LENS)
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_micro_batches_of_any_size_give_the_same_loss_and_gradient(objective, cut):
    weights = LossConfig(delta_penalty=0.7, lens=0.9, **LENS[objective])
    tokens, seeds = random_tokens(TREE, 6, 3), seeds_for(6, 2)
    results = []
    for size in (6, cut):
        model = build_step(TREE, RandomCollapse(geometry_of(TREE)), lensnet="transformer", settings=weights)
        losses = [model(t, s, LENGTH)[0] for t, s in zip(tokens.split(size), seeds.split(size), strict=True)]
        loss = torch.stack(losses).mean()
        loss.backward()
        results.append((loss, [p.grad for p in model.parameters()]))
    (whole, gradients), (parts, others) = results
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(others, gradients, atol=1e-5, rtol=1e-4)


# ---- references ----------------------------------------------------------------------------------------
def test_without_variants_the_loss_is_that_of_a_plain_language_model():
    model = real_step(TREE)
    plain_model = MegaContextModel(model.gpt, None, None, NoVariants(model.tree), model.tree)
    reference = assemble(plain_model, LossConfig())
    tokens = random_tokens(TREE, 3, 0)
    loss, statistics = reference(tokens, torch.zeros(3, 0, dtype=torch.long), 0)
    logits = torch.stack([plain_model.next_logits(tokens[:, : t + 1]) for t in range(TREE.window)], dim=1)
    plain = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(loss, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain_model.nll(tokens).mean(), loss)
    assert statistics.means.keys() == {"train/loss_lod0", "train/loss", "loss/next_token"}
    mine = step_of(model, tokens)[1].means["train/loss_lod0"]
    torch.testing.assert_close(mine, statistics.means["train/loss_lod0"])


def test_the_reference_starts_from_the_same_base_model():
    from mcframe.config.run_config import load_run_config
    from mcframe.training.build import build_model

    smoke = Path(__file__).parents[3] / "gin" / "smoke.gin"
    run, reference, other = (
        build_model(load_run_config([smoke], overrides).run_config, 256)
        for overrides in ([], ["run.variants = @variants.none"], ["gistnet.transformer.layers = 2"])
    )
    assert reference.gistnet is None
    assert reference.lensnet is None
    assert {n.split(".")[0] for n, _ in run.named_parameters()} == {"gpt", "gistnet", "lensnet"}
    for model in (reference, other):
        assert run.gpt.state_dict().keys() == model.gpt.state_dict().keys()
        for name, value in run.gpt.state_dict().items():
            assert torch.equal(value, model.gpt.state_dict()[name]), name
    for name, value in run.lensnet.state_dict().items():
        assert torch.equal(value, other.lensnet.state_dict()[name]), name


def test_seeded_building_leaves_the_random_state_alone():
    from mcframe.training.build import seeded

    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = seeded(1, "gpt", lambda: torch.rand(5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert torch.equal(seeded(1, "gpt", lambda: torch.rand(5)), first)
    assert not torch.equal(seeded(2, "gpt", lambda: torch.rand(5)), first)
    assert not torch.equal(seeded(1, "gistnet", lambda: torch.rand(5)), first)

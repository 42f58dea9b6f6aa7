"""What LensNet's objective remembers: it is fixed within a step, moves once a step, and travels with checkpoints."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mcframe.config.run_config import load_run_config
from mcframe.context.focus_ops import block_means
from mcframe.errors import UserError
from mcframe.hookspecs import ModelShape
from mcframe.losses.lens_targets import LensTargets, shuffle_targets
from mcframe.training.build import build_step as build_step_of_run
from mcframe_plugins.lensnet import TransformerLensNet
from mcframe_plugins.loss import EMAKL
from mcframe_plugins.variants import RandomCollapse
from tests.property.modeling.test_lens_oracle import FLAT, TALL, case_of
from tests.support.lens_oracle import average, slow_kl, slow_lens_loss
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import TREE, EntryLens, Step, build_step, geometry_of, random_tokens, seeds_for
from tests.support.real_step import no_reads, real_step
from tests.support.step_checks import check_everything_learns

LENGTH = 21
RUNNING = LossConfig(normalise=True, decay=0.7, scale_nats=0.4)
COPYING = LossConfig(ema_kl=1.0, ema_decay=0.8)
EVERYTHING = LossConfig(normalise=True, ema_kl=0.5, focal_gamma=1.5, shuffle=True, lens=1.0)


def lensnet(seed: int = 0) -> TransformerLensNet:
    torch.manual_seed(seed)
    return TransformerLensNet(ModelShape(16, geometry_of(TREE)), layers=1, heads=2)


def lens_step(settings: LossConfig, seed: int = 0) -> Step:
    return build_step(TREE, RandomCollapse(geometry_of(TREE)), lensnet="transformer", settings=settings, seed=seed)


def running(variants: int = 2) -> LensTargets:
    return LensTargets(RUNNING.lens_targets, variants)


def add(targets: LensTargets, case) -> float:
    """Add a micro-batch; return the scale of its step."""
    targets.pairs(case.context, case.tail_delta, block_means(case.scores, case.context))
    return targets.scale(torch.float64).item()


def average_of(net: TransformerLensNet) -> EMAKL:
    loss = EMAKL(ModelShape(16, geometry_of(TREE)), decay=0.8)
    loss.setup({"lensnet": net})
    return loss


# ---- running deviation ----------------------------------------------------------------------------
@pytest.mark.parametrize("variants", [2, 3])
def test_the_scale_is_a_running_root_mean_square(variants):
    targets = running(variants)
    steps: list[list[float]] = []
    for step in range(4):
        squares: list[float] = []
        for micro in range(2):
            case = case_of(FLAT, variants=variants, sequences=5, seed=10 * step + micro)
            if step == 2:
                case.focuses = [case.focuses[0]] * len(case.focuses)
                case.__post_init__()  # nothing differs: there are no pairs, and the scale stays
            scale = add(targets, case)
            weights = [0.7 ** (len(steps) - 1 - i) for i in range(len(steps))]
            above = sum(w * sum(s) for w, s in zip(weights, steps, strict=True))
            below = sum(w * len(s) for w, s in zip(weights, steps, strict=True))
            assert scale == pytest.approx(math.sqrt(above / below) if steps else 0.4)
            for a, b in case.pairs:
                if case.focuses[a] != case.focuses[b]:
                    squares.append((case.tail_deltas[a] - case.tail_deltas[b]) ** 2)
        assert bool(squares) == (step != 2)
        steps.append(squares)
        targets.after_step()


def test_the_scale_divides_margins():
    case = case_of(FLAT)
    loss, found = case.lens_loss(RUNNING, 0.05)
    assert loss.item() == pytest.approx(slow_lens_loss(case, RUNNING, 0.05, False).loss.item())
    assert loss.item() != pytest.approx(slow_lens_loss(case, RUNNING, 0.4, False).loss.item())
    _, same = case.lens_loss(RUNNING, 0.4)
    # logged in nats, before the division
    assert found.means["mc/preference_strength"].tolist() == pytest.approx(
        same.means["mc/preference_strength"].tolist()
    )


def test_equal_targets_keep_the_loss_finite():
    targets, case = running(), case_of(FLAT)
    case.tail_deltas = [0.3] * len(case.tail_deltas)
    add(targets, case)
    targets.after_step()
    loss, _ = case.lens_loss(RUNNING, add(targets, case))
    assert loss.isfinite()


def test_evaluation_leaves_the_scale_alone():
    targets = running().eval()
    add(targets, case_of(FLAT))
    assert not targets.pending.any()
    targets.train()
    add(targets, case_of(FLAT))
    assert targets.pending.all()


# ---- the slow copy --------------------------------------------------------------------------------
def test_the_average_follows_slowly():
    nets = [lensnet(seed) for seed in range(4)]
    loss, expected = average_of(nets[0]), None
    for net in nets:
        loss.after_step({"lensnet": net})
        now = [p.detach().double() for p in net.parameters()]
        expected = now if expected is None else [0.8 * e + 0.2 * n for e, n in zip(expected, now, strict=True)]
        slow = dict(loss.average.named_buffers())
        torch.testing.assert_close([slow[name].double() for name, _ in net.named_parameters()], expected)
    assert not list(loss.parameters())


def test_the_penalty_is_the_distance_from_the_copy():
    model = lens_step(replace(COPYING, lens=1.0))
    tokens, seeds = random_tokens(TREE, 3, 0), seeds_for(3, 2)

    def run():
        loss, statistics = model(tokens, seeds, LENGTH)
        total, count = statistics.means["mc/ema_kl"].tolist()
        assert count == 6
        return loss.item(), total / count

    loss, divergence = run()
    assert divergence == pytest.approx(0, abs=1e-7)
    with torch.no_grad():
        for weight in model.ema.buffers():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    farther, divergence = run()
    assert divergence > 1e-4
    assert farther == pytest.approx(loss + divergence, abs=1e-5)
    model.after_step()
    assert run()[1] == pytest.approx(0, abs=1e-7)


def test_the_copy_is_never_trained():
    model = lens_step(EVERYTHING)
    tokens = random_tokens(TREE, 4, 0)
    assert not model.train().ema.training
    assert not any("ema_kl" in name for name, _ in model.named_parameters())
    check_everything_learns(model, lambda i: model(tokens, seeds_for(4, 2) + i, LENGTH)[0], model.parameters())


def test_kl_is_that_of_two_coins():
    """The reference's own check, on numbers worked out by hand: 3/4 against 1/2."""
    case = case_of(TALL, sequences=1)
    settings = LossConfig(temperature=0.5)
    with torch.no_grad():
        case.scores.zero_()
        case.previous.fill_(0.5 * math.log(3))
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert average([slow_kl(case, 0, settings)]).item() == pytest.approx(expected)


# ---- within a step, between steps -----------------------------------------------------------------
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_micro_batches_of_any_size_give_the_same_losses_step_after_step(cut):
    """Three optimizer steps; before the third, the scale and the copy have both been moved by two."""
    results = []
    for size in (6, cut):
        model, losses = lens_step(EVERYTHING), []
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
        for step in range(3):
            tokens, seeds = random_tokens(TREE, 6, step), seeds_for(6, 2) + 100 * step
            parts = [model(t, s, LENGTH)[0] for t, s in zip(tokens.split(size), seeds.split(size), strict=True)]
            loss = torch.stack(parts).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.after_step()
            losses.append(loss.item())
        results.append((losses, model.state_dict()))
    (whole, state), (parts, other) = results
    assert parts == pytest.approx(whole, abs=1e-5)
    torch.testing.assert_close(other, state, atol=1e-4, rtol=1e-3)
    assert state["lens_targets.running"].all()


def _two_steps(rank: int, ranks: int, place: str) -> None:
    """What one of several ranks does with its share of two steps of four sequences; leaves its state in a file."""
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=ranks)
    model = lens_step(RUNNING)
    for step in range(2):
        tokens, seeds = random_tokens(TREE, 4, step), seeds_for(4, 2) + 100 * step
        model(tokens[rank::ranks], seeds[rank::ranks], LENGTH)
        model.after_step()
    torch.save(model.lens_targets.state_dict(), f"{place}/{rank}-of-{ranks}.pt")
    if ranks > 1:
        dist.destroy_process_group()


def test_ranks_share_one_scale(tmp_path):
    mp.spawn(_two_steps, args=(2, str(tmp_path)), nprocs=2)
    _two_steps(0, 1, str(tmp_path))
    alone, first, second = (torch.load(tmp_path / name) for name in ("0-of-1.pt", "0-of-2.pt", "1-of-2.pt"))
    assert torch.equal(first["running"], second["running"])
    torch.testing.assert_close(first, alone)
    assert alone["running"].all()


def test_a_state_dict_carries_all_of_it_on():
    first, second = lens_step(EVERYTHING), lens_step(EVERYTHING, seed=5)
    tokens, seeds = random_tokens(TREE, 4, 0), seeds_for(4, 2)
    first(tokens, seeds, LENGTH)
    first.after_step()
    with torch.no_grad():
        first.lensnet.score_embed.bias.add_(0.2)
    second.load_state_dict(first.state_dict())
    for model in (first, second):
        model(random_tokens(TREE, 4, 1), seeds + 9, LENGTH)
        model.after_step()
    assert first.lens_targets.scale(torch.float64) == second.lens_targets.scale(torch.float64)
    assert first(tokens, seeds, LENGTH)[0] == second(tokens, seeds, LENGTH)[0]


def test_bfloat16_takes_no_precision_from_what_moves_slowly():
    model = real_step(TREE, EVERYTHING)
    for parameter in model.parameters():  # as DeepSpeed does
        parameter.data = parameter.data.bfloat16()
    average = model.ema
    model(random_tokens(TREE, 3, 0), seeds_for(3, 2), LENGTH)[0].backward()
    model.after_step()
    before = average.read.weight.clone()
    assert before.dtype == torch.float32
    with torch.no_grad():
        model.lensnet.read.weight.mul_(1.01)
    model.after_step()
    assert (average.read.weight != before).float().mean() > 0.9


class Tied(EntryLens):
    """A LensNet with a weight under two names, and a buffer."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__(shape)
        self.again = self.direction
        self.register_buffer("seen", torch.zeros(1))


def test_tied_weights_and_buffers_are_followed_too():
    shape = ModelShape(16, geometry_of(TREE))
    net = Tied(shape)
    loss = average_of(net)
    average = loss.average
    assert average.again is average.direction
    loss.after_step({"lensnet": net})
    start = net.direction.detach().clone()
    with torch.no_grad():
        net.direction.add_(1.0)
        net.seen.add_(5.0)
    loss.after_step({"lensnet": net})
    torch.testing.assert_close(average.direction, start + 0.2)
    assert average.seen == 5


# ---- the control run ------------------------------------------------------------------------------
def test_a_shuffled_step_turns_round_the_pairs_whose_verdicts_changed_places():
    tokens, seeds = random_tokens(TREE, 12, 0), seeds_for(12, 2)
    true, dealt = (
        lens_step(LossConfig(shuffle=shuffle))(tokens, seeds, LENGTH)[1].samples["mc/preference_corr"]
        for shuffle in (False, True)
    )
    swapped = shuffle_targets(torch.arange(24.0), seeds).view(12, 2)[:, 0] % 2 == 1
    assert 2 <= swapped.sum() <= 10
    torch.testing.assert_close(dealt, torch.where(swapped, -true, true), equal_nan=True)


# ---- nothing is read back -------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["preference", "span_difference"])
@pytest.mark.parametrize("sides", ["both", "worse"])
def test_nothing_waits_for_the_device(kind, sides):
    model = real_step(TREE, replace(EVERYTHING, kind=kind, sides=sides))
    tokens, seeds = random_tokens(TREE, 3, 0), seeds_for(3, 2)
    model(tokens, seeds, LENGTH)  # fills caches
    with no_reads():
        model(tokens, seeds, LENGTH)[0].backward()
        model.after_step()


# ---- what is refused ------------------------------------------------------------------------------
SMOKE = Path(__file__).parents[3] / "gin" / "smoke.gin"


def built(*bindings: str) -> None:
    build_step_of_run(load_run_config([SMOKE], bindings).run_config, 256)


def test_an_average_at_zero_3_is_refused():
    averaged = "run.extra_losses = [@loss.ema_kl]"
    built(averaged, "deepspeed.zero_stage = 2")
    built("lens_targets.normalise = True", "deepspeed.zero_stage = 3")
    with pytest.raises(UserError, match="ZeRO stage 2 or lower, got 3"):
        built(averaged, "deepspeed.zero_stage = 3")


@pytest.mark.parametrize(
    "binding",
    ["lens_targets.shuffle = True", "run.losses = [@loss.span_difference]", "run.losses = [@loss.attribution]"],
)
def test_one_variant_has_no_pairs(binding):
    built(binding)
    with pytest.raises(UserError, match="expected two or more variants a sequence, got one"):
        built("run.losses = [@loss.span_utility]", binding, "variants.random_collapse.count = 1")


@pytest.mark.parametrize(
    "setting", [{"scale_nats": 0.0}, {"focal_gamma": -1.0}, {"decay": 1.0}, {"ema_decay": -0.1, "ema_kl": 1.0}]
)
def test_settings_out_of_range(setting):
    with pytest.raises(UserError, match=next(iter(setting)).removeprefix("ema_")):
        lens_step(LossConfig(**setting))

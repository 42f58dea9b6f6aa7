"""State of LensNet's targets and losses: fixed within a step, updated once a step, stored in checkpoints."""

import math

import pytest
import torch
import torch.distributed as dist

from mcframe.config.run_config import load_run_config
from mcframe.context.focus_ops import block_means
from mcframe.errors import UserError
from mcframe.hookspecs import ModelShape
from mcframe.losses.lens_targets import LensTargets, shuffle_targets
from mcframe.training.build import build_step as build_step_of_run
from mcframe_plugins.lensnet import TransformerLensNet
from mcframe_plugins.loss.ema_kl import EMAKL
from mcframe_plugins.variants import RandomCollapse
from tests.support.lens_oracle import FLAT, TALL, case_of, policy_divergence
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import TREE, EntryLens, Step, build_step, geometry_of, random_tokens, seeds_for
from tests.support.real_step import LENGTH, real_step
from tests.support.step_checks import check_everything_learns

SHAPE = ModelShape(16, geometry_of(TREE))
RUNNING = LossConfig(normalise=True, decay=0.7, scale_nats=0.4)
EVERYTHING = LossConfig(normalise=True, ema_kl=0.5, focal_gamma=1.5, shuffle=True, lens=1.0)


def lensnet(seed: int = 0) -> TransformerLensNet:
    torch.manual_seed(seed)
    return TransformerLensNet(SHAPE, layers=1, heads=2)


def lens_step(settings: LossConfig, seed: int = 0) -> Step:
    return build_step(TREE, RandomCollapse(geometry_of(TREE)), lensnet="transformer", settings=settings, seed=seed)


def add(targets: LensTargets, case) -> float:
    """Add a micro-batch; return the scale of its step."""
    targets.pairs(case.context, case.tail_delta, block_means(case.scores, case.context))
    return targets.scale(torch.float64).item()


def average_of(net: TransformerLensNet) -> EMAKL:
    loss = EMAKL(SHAPE, decay=0.8)
    loss.setup({"lensnet": net})
    return loss


# ---- the running scale ---------------------------------------------------------------------------
@pytest.mark.parametrize("variants", [2, 3])
def test_the_scale_is_a_running_root_mean_square(variants):
    targets = LensTargets(RUNNING.lens_targets, variants)
    steps: list[list[float]] = []
    for step in range(4):
        squares: list[float] = []
        for micro in range(2):
            case = case_of(FLAT, variants=variants, sequences=5, seed=10 * step + micro)
            if step == 2:
                case.focuses = [case.focuses[0]] * len(case.focuses)
                case.__post_init__()  # equal contexts make no pairs, and the scale stays
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


def test_equal_targets_keep_the_loss_finite():
    targets, case = LensTargets(RUNNING.lens_targets, 2), case_of(FLAT)
    case.tail_deltas = [0.3] * len(case.tail_deltas)
    add(targets, case)
    targets.after_step()
    assert case.lens_loss(RUNNING, add(targets, case))[0].isfinite()


def test_evaluation_leaves_the_scale_alone():
    targets = LensTargets(RUNNING.lens_targets, 2).eval()
    add(targets, case_of(FLAT))
    assert not targets.pending.any()
    add(targets.train(), case_of(FLAT))
    assert targets.pending.all()


def test_ranks_have_one_scale(monkeypatch):
    """Two ranks with half of the batch each, reduced in one process."""
    alone, *ranks = (LensTargets(RUNNING.lens_targets, 2) for _ in range(3))
    for seed, rank in enumerate(ranks):
        add(rank, case_of(FLAT, seed=seed))
        add(alone, case_of(FLAT, seed=seed))
    alone.after_step()
    total = ranks[0].pending + ranks[1].pending
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda pending: pending.copy_(total))
    for rank in ranks:
        rank.after_step()
        torch.testing.assert_close(rank.state_dict(), alone.state_dict())
    assert alone.running.all()


# ---- the exponential moving average --------------------------------------------------------------
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


def test_the_penalty_is_the_divergence_from_the_average():
    model = lens_step(LossConfig(ema_kl=1.0, ema_decay=0.8, lens=1.0))
    tokens, seeds = random_tokens(TREE, 3, 0), seeds_for(3, 2)

    def run():
        loss, statistics = model(tokens, seeds, LENGTH)
        total, count = statistics.means["mc/ema_kl"].tolist()
        assert count == 6
        return loss.item(), total / count

    def move(weights, seed):
        with torch.no_grad():
            for weight in weights:
                weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))

    assert run()[1] == pytest.approx(0, abs=1e-7)
    move(model.lensnet.parameters(), 1)  # as run.start_from loads other weights: the first step has no average yet
    assert run()[1] == pytest.approx(0, abs=1e-7)
    model.after_step()
    loss, divergence = run()
    assert divergence == pytest.approx(0, abs=1e-7)
    move(model.ema.buffers(), 2)
    farther, divergence = run()
    assert divergence > 1e-4
    assert farther == pytest.approx(loss + divergence, abs=1e-5)


def test_the_average_is_never_trained():
    model, tokens = lens_step(EVERYTHING), random_tokens(TREE, 4, 0)
    assert not model.train().ema.training
    assert not any("ema_kl" in name for name, _ in model.named_parameters())
    check_everything_learns(model, lambda i: model(tokens, seeds_for(4, 2) + i, LENGTH)[0], model.parameters())


def test_the_reference_of_the_divergence_is_that_of_two_coins():
    """Numbers worked out by hand: 3/4 against 1/2."""
    case = case_of(TALL, sequences=1)
    row = case.row(0)
    row.scores = [torch.zeros((), dtype=torch.float64) for _ in row.prefix]
    previous = [score + 0.5 * math.log(3) for score in row.scores]
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert policy_divergence(row, previous, 0.5).item() == pytest.approx(expected)


def test_bfloat16_weights_have_a_float32_average():
    model = real_step(TREE, EVERYTHING)
    for parameter in model.parameters():  # as DeepSpeed does
        parameter.data = parameter.data.bfloat16()
    model(random_tokens(TREE, 3, 0), seeds_for(3, 2), LENGTH)[0].backward()
    model.after_step()
    before = model.ema.read.weight.clone()
    assert before.dtype == torch.float32
    with torch.no_grad():
        model.lensnet.read.weight.mul_(1.01)
    model.after_step()
    assert (model.ema.read.weight != before).float().mean() > 0.9


class Tied(EntryLens):
    """A LensNet with a weight under two names, and a buffer."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__(shape)
        self.again = self.direction
        self.register_buffer("number", torch.zeros(1))


def test_tied_weights_and_buffers_are_averaged_too():
    net = Tied(SHAPE)
    loss = average_of(net)
    assert loss.average.again is loss.average.direction
    loss.after_step({"lensnet": net})
    start = net.direction.detach().clone()
    with torch.no_grad():
        net.direction.add_(1.0)
        net.number.add_(5.0)
    loss.after_step({"lensnet": net})
    torch.testing.assert_close(loss.average.direction, start + 0.2)
    assert loss.average.number == 5


def test_a_state_dict_holds_all_state():
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


# ---- the control run -----------------------------------------------------------------------------
def test_shuffled_targets_stay_with_their_sequence():
    seeds, targets = torch.arange(600).view(200, 3) * 7919, torch.arange(600.0)
    shuffled = shuffle_targets(targets, seeds)
    assert torch.equal(shuffled.view(200, 3).sort(dim=1).values, targets.view(200, 3))
    offset = shuffled.view(200, 3) - targets.view(200, 3)[:, :1]
    frequency = torch.stack([(offset == i).float().mean(dim=0) for i in range(3)])
    assert (frequency - 1 / 3).abs().max() < 0.1
    parts = [shuffle_targets(v, s) for v, s in zip(targets.split(150), seeds.split(50), strict=True)]
    assert torch.equal(torch.cat(parts), shuffled)


def test_a_shuffled_step_reverses_the_pairs_whose_targets_were_exchanged():
    tokens, seeds = random_tokens(TREE, 12, 0), seeds_for(12, 2)
    plain, shuffled = (
        lens_step(LossConfig(shuffle=shuffle))(tokens, seeds, LENGTH)[1].samples["mc/preference_corr"]
        for shuffle in (False, True)
    )
    swapped = shuffle_targets(torch.arange(24.0), seeds).view(12, 2)[:, 0] % 2 == 1
    assert 2 <= swapped.sum() <= 10
    torch.testing.assert_close(shuffled, torch.where(swapped, -plain, plain), equal_nan=True)


# ---- settings out of range -----------------------------------------------------------------------
@pytest.fixture
def build(smoke):
    return lambda *bindings: build_step_of_run(load_run_config([smoke], bindings).run_config, 256)


def test_an_average_requires_zero_2_or_lower(build):
    average = "run.extra_losses = [@loss.ema_kl]"
    build(average, "deepspeed.zero_stage = 2")
    with pytest.raises(UserError, match="ZeRO stage 2 or lower, got 3"):
        build(average, "deepspeed.zero_stage = 3")


@pytest.mark.parametrize(
    "binding",
    ["lens_targets.shuffle = True", "run.losses = [@loss.span_difference]", "run.losses = [@loss.attribution]"],
)
def test_pairs_require_two_variants(build, binding):
    with pytest.raises(UserError, match=r"expected two or more variants a sequence, got (1|one)"):
        build("run.losses = [@loss.span_utility]", binding, "variants.random_collapse.count = 1")

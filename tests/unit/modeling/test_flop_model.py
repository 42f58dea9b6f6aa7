"""FLOPs for MFU: against a closed formula, and against torch's counter on a step that runs with data."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mcframe.hookspecs import LensNet, Loss, LossTerm
from mcframe.interfaces import base_model
from mcframe.interfaces.base_model import parameter_count
from mcframe.training.flops import FlopCount, StepFlops
from mcframe.training.throughput import ThroughputMeter
from mcframe.training.train_step import TrainStep
from mcframe_plugins.variants import LensGuided, NoVariants, RandomCollapse
from tests.support import oracle
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import Step, build_step, geometry_of, random_tokens, seeds_for

TREE = oracle.Tree(window=128, block_size=8, levels=1, slots=1, tail=16, sink=0)
DEEP = oracle.Tree(window=128, block_size=4, levels=2, slots=2, tail=16, sink=1)
LENGTH = 128 - 5 * 7
SMALL = {"depth": 1, "width": 32, "heads": 2, "head_width": 8}
WIDE = {"depth": 2, "width": 64, "heads": 4}


def build(tree: oracle.Tree = TREE, settings: LossConfig | None = None, **options: object) -> Step:
    options = {**SMALL, "gistnet": "transformer", "lensnet": "transformer", **options}
    strategy = options.pop("strategy", RandomCollapse(geometry_of(tree)))
    return build_step(tree, strategy, settings=settings, **options)


def flops_of(step: Step) -> StepFlops:
    losses = list(step.losses.each())
    return StepFlops(TrainStep(step.model, losses, step.settings.lens_targets, step.baseline_window))


def compare(step: Step, tree: oracle.Tree, length: int, blocks: int = 1) -> FlopCount:
    """Assert that the count without data equals torch's count of a step on two sequences; return it."""
    if step.reconstruction is not None:
        step.reconstruction.stages = (blocks,)
    count = flops_of(step).at(length, micro_batch=2)
    tokens, seeds = random_tokens(tree, 2, 0), seeds_for(2, step.strategy.count)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step(tokens, seeds, length, None, blocks)[0].backward()
    counted = counter.get_total_flops() / (2 * tree.window)
    assert count.total + count.recomputed == pytest.approx(counted, rel=1e-6)
    return count


def trained_pass(step: Step, entries: int) -> float:
    """FLOPs of one context through the base model, forward and backward (PaLM, appendix B)."""
    gpt = step.gpt
    matrices = 2.0 * (gpt.block_parameters + parameter_count(gpt.lm_head)) * entries
    attention = 4.0 * gpt.depth * gpt.attention_width * entries**2
    return 3 * (matrices + attention)


SETTINGS = {
    "plain": LossConfig(),
    "contrast": LossConfig(distillation=1.0, contrast=1.0),
    "every loss": LossConfig(
        distillation=1.0, contrast=1.0, reconstruction=1.0, fraction=0.5, attribution=0.5, ema_kl=0.1, condition="drop"
    ),
}


@pytest.mark.parametrize("name", [pytest.param("plain", marks=pytest.mark.matrix), "every loss"])
def test_every_pass_of_a_loss_is_counted(name):
    compare(build(settings=SETTINGS[name]), TREE, LENGTH, blocks=4)


@pytest.mark.parametrize("options", [SMALL, {**WIDE, "gist_bias": -2.0}], ids=["small", "wide"])
def test_contexts_cost_the_flops_of_the_formula(options):
    """With parts that multiply no matrices, a step is one uncompressed pass and two passes of the variants."""
    step = build(gistnet="mean", lensnet="recency", **options)
    expected = trained_pass(step, TREE.window) + 2 * trained_pass(step, LENGTH)
    # The mean of each block is a small matrix product of its own.
    assert compare(step, TREE, LENGTH).total == pytest.approx(expected / TREE.window, rel=1e-3)


def test_levels_and_scored_variants_are_counted():
    compare(build(DEEP, SETTINGS["contrast"]), DEEP, geometry_of(DEEP).reachable(100)[0])
    compare(build(strategy=LensGuided(geometry_of(TREE))), TREE, LENGTH)


def test_the_plain_baseline_costs_the_flops_of_the_formula():
    count = compare(build(strategy=NoVariants(geometry_of(TREE)), gistnet=None, lensnet=None), TREE, 0)
    assert count.total == pytest.approx(count.plain)
    assert count.recomputed == 0


@pytest.mark.parametrize("trainable", ["gistnet", "lensnet"])
def test_frozen_parts_have_no_backward_pass(trainable):
    step = build(settings=SETTINGS["contrast"])
    everything = flops_of(step).at(LENGTH).total
    for name, parameter in step.named_parameters():
        parameter.requires_grad_(name.startswith(f"model.{trainable}"))
    assert compare(step, TREE, LENGTH).total < everything


@pytest.mark.parametrize(
    "name", ["plain", *(pytest.param(each, marks=pytest.mark.matrix) for each in ("contrast", "every loss"))]
)
def test_recomputation_is_counted_apart(name, monkeypatch):
    settings = SETTINGS[name]
    plain = compare(build(settings=settings), TREE, LENGTH, blocks=2)
    blocks = compare(build(settings=settings, activation_checkpointing=True), TREE, LENGTH, blocks=2)
    monkeypatch.setattr(base_model, "LOGITS_AT_ONCE", 1024)
    both = compare(build(settings=settings, activation_checkpointing=True), TREE, LENGTH, blocks=2)
    assert plain.total == blocks.total == both.total
    assert plain.recomputed == 0 < blocks.recomputed < both.recomputed


class Guess(Loss):
    """A network of its own on the variants' states, and the head once more."""

    name = "guess"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = 0.5
        self.first, self.second = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

    def forward(self, view):
        hidden = self.second(self.first(view.variants.hidden).relu())
        nll = view.nll(hidden, view.variants.paired.context.token % 13)
        return LossTerm(view.by_sequence(nll.mean(dim=1)))


def test_losses_of_plugins_are_counted():
    assert compare(build(losses=[Guess(32)]), TREE, LENGTH).total > flops_of(build()).at(LENGTH).total


def test_an_engine_that_partitions_the_weights_changes_no_count():
    """With ZeRO 3, parameters have no elements, and hooks that a copy must not run."""
    step = build(losses=[Guess(32)])
    flops, expected = flops_of(step), flops_of(step).at(LENGTH)
    for parameter in step.parameters():
        parameter.data = torch.empty(0)
    assert flops.at(LENGTH) == expected
    assert not flops.notes


class Peeks(Guess):
    """Reads data back for variants of another length than the first."""

    def forward(self, view):
        if view.variants.hidden.shape[1] != LENGTH:
            float(view.variants.hidden.sum())
        return super().forward(view)


def test_a_count_that_fails_later_is_reported_once(monkeypatch):
    step = build(losses=[Peeks(32)])
    clock = SimpleNamespace(tokens=0, step=0)
    run_config = SimpleNamespace(variant_length=lambda step: LENGTH - 7 * (step >= 2), progress=lambda step: 0.0)
    components = SimpleNamespace(run_config=run_config, model=step.model, flops=flops_of(step))
    monkeypatch.setattr(ThroughputMeter, "_peak", lambda _: 1e15)
    meter, notes = ThroughputMeter(components, clock, micro_batch=2, world_size=1, device=torch.device("cpu")), []
    for clock.step in (2, 4, 6):
        meter.metrics(notes.append)
        meter.restart()
    (note,) = [each for each in notes if "FLOPs of" in each]
    assert "does not run on the meta device" in note


class NeedsData(LensNet):
    """A network that looks at its input first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = torch.nn.Linear(width, 1)

    def forward(self, context, embeddings):
        if bool(embeddings.isnan().any()):
            raise ValueError
        return torch.tanh(self.out(embeddings))[..., 0]


def test_a_network_that_needs_data_is_estimated():
    step = build()
    step.model.lensnet = NeedsData(32)
    flops = flops_of(step)
    count = flops.at(LENGTH)
    assert count.total == pytest.approx(count.plain * (1 + 2 * LENGTH / TREE.window))
    assert "estimated" in flops.notes["step"]


def test_counting_changes_nothing():
    step = build()
    before = {name: value.clone() for name, value in step.state_dict().items()}
    flops_of(step).at(LENGTH)
    assert all(torch.equal(value, before[name]) for name, value in step.state_dict().items())
    assert all(parameter.grad is None for parameter in step.parameters())


def test_a_shorter_uncompressed_pass_costs_less():
    step = build(settings=LossConfig(lens=0.0), lensnet=None)
    complete = compare(step, TREE, LENGTH).total
    step.baseline_window = 32
    saved = trained_pass(step, TREE.window) - trained_pass(step, 32)
    assert complete - compare(step, TREE, LENGTH).total == pytest.approx(saved / TREE.window, rel=0.02)

"""The FLOPs that MFU rests on, against those that torch counts while a whole step runs forward and backward."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mcframe.hookspecs import LensNet, Loss, LossTerm
from mcframe.modeling import gpt as base_model
from mcframe.modeling.added_objectives import AddedObjectives
from mcframe.training.flops import Cost, Costs
from mcframe.training.throughput import ThroughputMeter
from mcframe_plugins.variants import LensGuided, NoVariants, RandomCollapse
from tests.support import oracle
from tests.support.loss_settings import LossSettings
from tests.support.modeling_builders import Reader, Step, build_step, geometry_of, random_tokens, seeds_for

TREE = oracle.Tree(window=128, block_size=8, levels=1, slots=1, tail=16, sink=0)
DEEP = oracle.Tree(window=128, block_size=4, levels=2, slots=2, tail=16, sink=1)
LENGTH = 128 - 5 * 7
SMALL = {"depth": 2, "width": 32, "heads": 2, "head_width": 8}
WIDE = {"depth": 3, "width": 64, "heads": 4}
EXACT = 1e-6
"""Plug-in networks are counted and everything else is a formula without neglect: nothing is left to differ."""


def step_flops(model: Step, tree: oracle.Tree, length: int, rebuild: int = 1) -> float:
    """FLOPs of a step on two sequences, counted."""
    tokens, seeds = random_tokens(tree, 2, 0), seeds_for(2, model.strategy.count)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens, seeds, length, None, rebuild)[0].backward()
    return float(counter.get_total_flops())


def compare(model: Step, tree: oracle.Tree, length: int, rebuild: int = 1) -> Cost:
    """Assert that model and counter agree on what the device does; returns what the model says."""
    cost = Costs(model).at(length, rebuild, micro_batch=2)
    counted = step_flops(model, tree, length, rebuild) / (2 * tree.window)
    assert cost.total + cost.recomputed == pytest.approx(counted, rel=EXACT)
    return cost


def build(tree: oracle.Tree = TREE, settings: LossSettings | None = None, **options: object) -> Step:
    settings = {**SMALL, "gistnet": "transformer", "lensnet": "transformer", **options}
    strategy = settings.pop("strategy", RandomCollapse(geometry_of(tree)))
    return build_step(tree, strategy, settings=settings, **settings)


OBJECTIVES = {
    "plain": LossSettings(),
    "kl": LossSettings(distillation=1.0),
    "contrast": LossSettings(distillation=1.0, contrast=1.0),
    "judged by drop": LossSettings(condition="drop"),
    "attribution": LossSettings(attribution=0.5),
    "policy copy": LossSettings(ema_kl=0.1),
    "all told": LossSettings(reconstruction=1.0, fraction=1.0),
    "half told": LossSettings(reconstruction=1.0, fraction=0.5),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_context_that_an_objective_runs_is_counted(name):
    compare(build(settings=OBJECTIVES[name]), TREE, LENGTH, rebuild=4)


@pytest.mark.parametrize("gistnet", ["mean", "states", "last states", "tokens", "transformer", None])
def test_whatever_the_gistnet(gistnet):
    compare(build(gistnet=gistnet), TREE, LENGTH)


@pytest.mark.parametrize("lensnet", ["entry", "recency", "transformer", None])
def test_whatever_the_lensnet(lensnet):
    compare(build(lensnet=lensnet), TREE, LENGTH)


@pytest.mark.parametrize("options", [SMALL, WIDE, {**WIDE, "gist_bias": -2.0}], ids=["small", "wide", "biased"])
def test_whatever_the_shape(options):
    length = geometry_of(DEEP).reachable(100)[0]
    compare(build(DEEP, OBJECTIVES["contrast"], **options), DEEP, length)


def test_where_lensnet_chooses_the_variants():
    tree = geometry_of(TREE)
    compare(build(strategy=LensGuided(tree)), TREE, LENGTH)


def test_a_plain_twin_costs_what_the_formula_says():
    cost = compare(build(strategy=NoVariants(geometry_of(TREE)), gistnet=None, lensnet=None), TREE, 0)
    assert cost.total == pytest.approx(cost.plain)
    assert cost.recomputed == 0


@pytest.mark.parametrize("trainable", ["gistnet", "lensnet"])
def test_what_is_frozen_is_not_run_backward(trainable):
    model = build(settings=OBJECTIVES["kl"])
    whole = Costs(model).at(LENGTH).total
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trainable))
    assert compare(model, TREE, LENGTH).total < whole


@pytest.mark.parametrize("name", ["contrast", "half told"])
def test_what_is_computed_twice_counts_apart(name, monkeypatch):
    plain = compare(build(settings=OBJECTIVES[name]), TREE, LENGTH, rebuild=2)
    blocks = compare(build(settings=OBJECTIVES[name], activation_checkpointing=True), TREE, LENGTH, rebuild=2)
    monkeypatch.setattr(base_model, "LOGITS_AT_ONCE", 64)
    both = compare(build(settings=OBJECTIVES[name], activation_checkpointing=True), TREE, LENGTH, rebuild=2)
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
        nll = view.nll(hidden, view.variants.pairing.context.token % 13)
        return LossTerm(view.by_sequence(nll.mean(dim=1)))


def test_what_plugins_add_to_the_loss_is_counted():
    model = build()
    without = Costs(model).at(LENGTH).total
    model.added = AddedObjectives([Guess(32)])
    assert compare(model, TREE, LENGTH).total > without


def test_an_engine_that_has_taken_the_model_changes_no_count():
    """ZeRO 3 leaves parameters of no elements, and hooks that a copy must not run."""
    model = build()
    model.added = AddedObjectives([Guess(32)])
    costs, expected = Costs(model), Costs(model).at(LENGTH)

    def hook(*_):
        raise AssertionError("the trained model was run")

    model.register_forward_pre_hook(hook)
    for module in (model.added, model.gistnet, model.lensnet):
        for parameter in module.parameters():
            parameter.data = torch.empty(0)
    assert costs.at(LENGTH) == expected
    assert not costs.notes


class Peeks(Guess):
    """Can be counted unless there are variants of another length than the first."""

    def forward(self, view):
        if view.variants.hidden.shape[1] != LENGTH:
            float(view.variants.hidden.sum())
        return super().forward(view)


def test_what_can_no_longer_be_counted_is_said_once(monkeypatch):
    model = build()
    model.added = AddedObjectives([Peeks(32)])
    clock = SimpleNamespace(tokens=0, step=0)
    run_config = SimpleNamespace(variant_length=lambda step: LENGTH - 7 * (step >= 2), rebuild=lambda step: 1)
    components = SimpleNamespace(run_config=run_config, model=model, costs=Costs(model))
    monkeypatch.setattr(ThroughputMeter, "_peak", lambda _: 1e15)
    speed, said = ThroughputMeter(components, clock, micro_batch=2, world_size=1, device=torch.device("cpu")), []
    for clock.step in (2, 4, 6):
        speed.metrics(said.append)
        speed.restart()
    (note,) = [each for each in said if "FLOPs of" in each]
    assert note.startswith("note: FLOPs of added settings: left out: it does not run on the meta device (")


def test_a_lensnet_that_reads_the_baselines_nll_is_counted():
    class Surprise(NeedsData):
        reads_nll = True

        def forward(self, context, embeddings):
            return torch.tanh(self.out(embeddings)[..., 0] * context.nll)

    model = build(lensnet=None)
    model.lensnet = Surprise(32)
    compare(model, TREE, LENGTH)
    assert not Costs(model).notes


class NeedsData(LensNet):
    """A network that looks at its input before it decides what to do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = torch.nn.Linear(width, 1)

    def forward(self, context, embeddings):
        if bool(embeddings.isnan().any()):
            raise ValueError
        return torch.tanh(self.out(embeddings))[..., 0]


def test_a_network_that_needs_data_is_estimated_and_said_so():
    model = build(lensnet=None)
    without = Costs(model).at(LENGTH).total
    model.lensnet = NeedsData(32)
    costs = Costs(model)
    read = LENGTH - TREE.tail
    assert costs.at(LENGTH).total - without == pytest.approx(2 * 6 * 33 * read / TREE.window, rel=1e-3)
    assert "estimated from its parameters" in costs.notes["LensNet"]


def test_counting_changes_nothing(recwarn):
    model = build()
    before = {name: (value.clone(), value.device) for name, value in model.state_dict().items()}
    Costs(model).at(LENGTH)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name][0])
        assert value.device == before[name][1]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_reader_of_states_is_still_a_module_of_its_own():
    """The copy on the meta device shares no tensor with what is trained."""
    model = build(gistnet="states")
    assert isinstance(model.gistnet, Reader)
    copied = Costs(model)._gistnet
    assert copied is not None
    assert {each.device.type for each in copied.parameters()} == {"meta"}
    assert {each.device.type for each in model.gistnet.parameters()} == {"cpu"}

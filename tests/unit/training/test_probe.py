"""Plug-ins that break their interface are refused on the probe batch; the step then compiles to one graph."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from mcframe.context.focus_ops import compressible_nodes
from mcframe.hookspecs import LossTerm, Positions
from mcframe.registry.attribution import attribute_calls
from mcframe.registry.checks import ContractError
from mcframe.registry.plugins import Registered
from mcframe.training.probe import probe_allocator, probe_focuses, probe_plugins
from mcframe.training.random_states import random_states
from mcframe.training.train_step import StepBatch, TrainStep
from mcframe_plugins.allocator.greedy import GreedyAllocator
from mcframe_plugins.loss.z_loss import ZLoss
from mcframe_plugins.variants import LensGuided, RandomCollapse
from tests.support.generators import geometry_of
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import TREE, build_step, random_tokens, seeds_for

LENGTH = 21
EVERYTHING = LossConfig(
    distillation=1.0, contrast=2.0, reconstruction=0.5, attribution=1.0, ema_kl=0.1, normalise=True, condition="drop",
    focal_gamma=1.0,
)  # fmt: skip


def plain_step(strategy=RandomCollapse, settings=None, **options) -> TrainStep:
    step = build_step(TREE, strategy(geometry_of(TREE)), lensnet="transformer", settings=settings, **options)
    return TrainStep(step.model, list(step.losses.each()), step.settings.lens_targets)


def probe(step: TrainStep) -> None:
    probe_plugins(step.eval(), step, random_tokens(TREE, 2, 0), [LENGTH])


@pytest.mark.parametrize("strategy", [RandomCollapse, LensGuided])
def test_conforming_plugins_pass(strategy):
    step = plain_step(strategy, EVERYTHING)
    before = {name: value.clone() for name, value in step.state_dict().items()}
    probe(step)
    assert all(torch.equal(value, before[name]) for name, value in step.state_dict().items())
    assert not any(module._forward_hooks for module in step.modules())


def test_random_states_stay():
    class Draws(RandomCollapse):
        def propose(self, *arguments):
            torch.rand(1), np.random.rand(), random.random()
            return super().propose(*arguments)

    step = plain_step(Draws)
    before = random_states()
    probe(step)
    after = random_states()
    assert torch.equal(after["torch"], before["torch"])
    assert after["python"] == before["python"]
    assert np.array_equal(after["numpy"][1], before["numpy"][1])
    assert after["numpy"][2] == before["numpy"][2]


class Broken(nn.Module):
    """Wraps a module and changes its output."""

    def __init__(self, module: nn.Module, change) -> None:
        super().__init__()
        self.module, self.change = module, change
        self.reads_tokens, self.reads_layer = False, 0
        self.reads_nll = False

    def forward(self, *inputs):
        return self.change(self.module(*inputs))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("gistnet", lambda gists: gists[..., :1, :1], "gists"),
        ("gistnet", lambda gists: gists.double(), "gists"),
        ("lensnet", lambda scores: scores[:, 1:], "score"),
        ("lensnet", lambda scores: scores * 0 + 2, "scores"),
        ("lensnet", lambda scores: scores * torch.nan, "scores"),
    ],
)
def test_networks_that_return_something_else_are_refused(part, change, message):
    step = plain_step()
    setattr(step.model, part, Broken(getattr(step.model, part), change))
    with pytest.raises(ContractError, match=message):
        probe(step)


class Flat(Positions):
    """Returns no pair."""

    def forward(self, context):
        return torch.ones(1)


def test_positions_that_return_no_pair_are_refused():
    step = plain_step()
    step.model.gpt.positions = Flat()
    with pytest.raises(ContractError, match="cosine and sine"):
        probe(step)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda term: term.loss, "LossTerm"),
        (lambda term: LossTerm(term.loss.mean()), "loss"),
        (lambda term: LossTerm(term.loss, {"fraction": 0.5}), "fraction"),
    ],
)
def test_losses_that_return_something_else_are_refused(returned, message):
    class Careless(ZLoss):
        def forward(self, view):
            return returned(super().forward(view))

    step = plain_step(losses=[Careless(None)])
    with pytest.raises(ContractError, match=message):
        probe(step)


@pytest.mark.parametrize(
    "change",
    [lambda focus: focus[:, :1], lambda focus: focus * 0, lambda focus: focus + 1, lambda focus: focus.float()],
)
def test_focuses_that_break_the_contract_are_refused(change):
    class Wrong(RandomCollapse):
        def propose(self, *arguments):
            return change(super().propose(*arguments))

    with pytest.raises(ContractError, match="propose"):
        probe(plain_step(Wrong))


def test_parameters_created_in_the_forward_are_refused():
    step = plain_step()
    forward = step.model.gistnet.forward

    def late(children, lod):
        if not hasattr(step.model.gistnet, "late"):
            step.model.gistnet.late = nn.Parameter(torch.ones(1))
        return forward(children, lod) * step.model.gistnet.late

    step.model.gistnet.forward = late
    with pytest.raises(ContractError, match="creates the parameter late"):
        probe(step)


@pytest.mark.parametrize("strategy", [RandomCollapse, LensGuided])
def test_variants_that_repeat_are_named(strategy):
    class Repeats(strategy):
        def propose(self, *arguments):
            return super().propose(*arguments)[:, :1].expand(-1, self.count, -1)

    tokens = random_tokens(TREE, 2, 0)
    step, single = plain_step(Repeats), plain_step(strategy)
    (warning,) = probe_plugins(step.eval(), step, tokens, [LENGTH])
    assert warning.startswith("Repeats: propose returns the same focus for every variant")
    assert probe_plugins(single.eval(), single, tokens, [LENGTH]) == []
    # Only one context has the largest or the smallest length.
    tree = geometry_of(TREE)
    assert probe_plugins(step.eval(), step, tokens, [tree.window, tree.minimum_length]) == []


class Changed(GreedyAllocator):
    """Greedy, with its focuses changed."""

    def __init__(self, tree, change, fills_budget=True):
        super().__init__(tree)
        self.change, self.fills_budget = change, fills_budget

    def allocate(self, *arguments):
        return self.change(super().allocate(*arguments))


def every_other_raw(focus):
    return torch.where(torch.arange(len(focus))[:, None] % 2 == 1, 0, focus)


def all_collapsed(focus):
    return compressible_nodes(geometry_of(TREE), 1, focus.device).long().expand_as(focus)


@pytest.mark.parametrize(
    ("change", "message"),
    [(every_other_raw, "at most"), (all_collapsed, "in each row for a budget"), (lambda focus: focus + 1, "valid")],
)
def test_allocators_that_break_a_budget_are_refused(change, message):
    tree, cpu = geometry_of(TREE), torch.device("cpu")
    probe_allocator(Changed(tree, lambda focus: focus), tree, LENGTH, cpu)
    with pytest.raises(ContractError, match=message):
        probe_allocator(Changed(tree, change), tree, LENGTH, cpu)


def test_budgets_hold_in_every_round():
    class Second(GreedyAllocator):
        iterations = 2

        def allocate(self, scores, context, *arguments):
            return super().allocate(scores, context, *arguments) * (context.focus == 0).all()

    with pytest.raises(ContractError, match="at most"):
        probe_allocator(Second(geometry_of(TREE)), geometry_of(TREE), LENGTH, torch.device("cpu"))


def test_allocators_may_declare_that_entries_stay_unused():
    tree = geometry_of(TREE)
    probe_allocator(Changed(tree, all_collapsed, fills_budget=False), tree, LENGTH, torch.device("cpu"))


def test_focuses_are_probed_without_a_model():
    tree = geometry_of(TREE)
    for strategy in (RandomCollapse(tree), LensGuided(tree)):
        assert probe_focuses(strategy, GreedyAllocator(tree), tree, [LENGTH], pairs=True) == []


def test_the_step_is_one_graph():
    """With every loss and pass, and attributed calls: `fullgraph=True` fails at the first graph break."""
    step = plain_step(settings=EVERYTHING, depth=1)
    model = step.model
    for kind, plugin in (
        ("gistnet", model.gistnet), ("lensnet", model.lensnet), ("variants", model.strategy),
        ("positions", model.gpt.positions), *(("loss", loss) for loss in step.losses.each()),
    ):  # fmt: skip
        if kind in ("gistnet", "loss"):  # a class that inherits all of its methods
            plugin.__class__ = type("Mine", (type(plugin),), {})
        attribute_calls(plugin, Registered(kind, "mine", type(plugin), "it"))
    batch = StepBatch(random_tokens(TREE, 3, 0), seeds_for(3, 2), LENGTH)
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    loss, metrics = compiled(batch)
    expected, same = plain_step(settings=EVERYTHING, depth=1)(batch)
    torch.testing.assert_close(loss, expected)
    assert metrics.means.keys() == same.means.keys()
    loss.backward()
    assert all(parameter.grad is not None for parameter in step.parameters())

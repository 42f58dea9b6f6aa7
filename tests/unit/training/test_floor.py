"""The floor of a step: which calls of networks it records, and that it repeats them as they were."""

import pytest
import torch

from mcframe.context.counter_rng import variant_seeds
from mcframe.hookspecs import ModelShape
from mcframe.metrics.timers import HostMark
from mcframe.training.floor import Floor, recorded_calls
from mcframe.training.train_step import StepBatch, TrainStep
from mcframe_plugins.loss.variants import VariantNLL
from tests.support.modeling_builders import TREE, VOCABULARY
from tests.support.real_step import LENGTH, real_step


@pytest.fixture
def step():
    return real_step(TREE)


@pytest.fixture
def batch():
    tokens = torch.randint(VOCABULARY, (2, TREE.window + 1), generator=torch.Generator().manual_seed(0))
    return StepBatch(tokens, variant_seeds(0, torch.arange(2), 2), LENGTH)


def names(step, calls):
    parts = {id(part): name for name, part in step.model.parts.items()}
    return [(parts[id(call.function.__self__)], call.function.__name__, bool(call.reached)) for call in calls]


def test_each_outermost_call_of_a_network_is_recorded(step, batch):
    with recorded_calls(step) as calls:
        step.compute(batch)[0].backward()
    assert names(step, calls) == [
        ("base", "embed", True),
        ("base", "states", True),
        ("base", "nll", True),
        ("gistnet", "forward", True),
        ("gistnet", "forward", True),  # the second level
        ("base", "states", True),  # variants
        ("base", "nll", True),
        ("lensnet", "forward", True),
    ]
    assert not [part for part in step.model.parts.values() if "forward" in vars(part)]
    step.compute(batch)
    assert len(calls) == 8


def test_calls_have_the_inputs_of_the_step_and_return_the_same(step, batch):
    outputs = []
    original = step.model.gpt.states

    def kept(*args, **kwargs):
        outputs.append(original(*args, **kwargs))
        return outputs[-1]

    step.model.gpt.states = kept
    with recorded_calls(step) as calls:
        step.compute(batch)
    of_step = list(outputs)
    repeated = [call.function(*call.args, **call.kwargs) for call in calls if call.function is kept]
    assert len(repeated) == 2
    for (hidden, _), (expected, _) in zip(repeated, of_step, strict=True):
        assert torch.equal(hidden, expected)


def test_gradients_reach_every_weight_that_the_step_trains(step, batch):
    step.compute(batch)[0].backward()
    trained = {name for name, weight in step.named_parameters() if weight.grad is not None}
    floor = Floor(step, batch, HostMark)
    for call in floor.calls:
        call.run()
    assert {name for name, weight in step.named_parameters() if weight.grad is not None} == trained
    assert floor.milliseconds() > 0
    assert not [weight for weight in step.parameters() if weight.grad is not None], "memory of the next step"


def test_no_gradient_is_computed_where_the_step_has_none(batch):
    model = real_step(TREE).model
    step = TrainStep(model, [VariantNLL(ModelShape(model.gpt.width, model.tree), weight=1.0)])
    floor = Floor(step, batch, HostMark)
    assert names(step, floor.calls) == [
        ("base", "embed", True),
        ("base", "states", False),
        ("base", "nll", False),
        ("gistnet", "forward", True),
        ("gistnet", "forward", True),
        ("base", "states", True),
        ("base", "nll", True),
        ("lensnet", "forward", False),
    ]
    for call in floor.calls:
        if not call.reached:
            call.run()
    assert not [weight for weight in step.parameters() if weight.grad is not None]


def test_what_runs_without_gradients_is_repeated_without(step, batch):
    with recorded_calls(step) as calls, torch.no_grad():
        step.compute(batch)
    step.zero_grad()
    for call in calls:
        call.run()
    assert not any(call.with_graph or call.reached for call in calls)
    assert not [weight for weight in step.parameters() if weight.grad is not None]

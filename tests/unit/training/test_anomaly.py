"""The origin of values that are not finite, and of errors of the backward pass."""

import inspect

import pytest
import torch
from torch import nn

from mcframe.hookspecs import Loss, LossTerm
from mcframe.training.anomaly import find_origin, restore, usable
from mcframe.training.train_step import StepBatch
from tests.support.modeling_builders import TREE, random_tokens, seeds_for
from tests.unit.training.test_probe import LENGTH, plain_step

BATCH = StepBatch(random_tokens(TREE, 2, 0), seeds_for(2, 2), LENGTH)


class OfGists(Loss):
    """A function of the gists as a loss."""

    name, needs = "mine", ("gists",)

    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self, view):
        return LossTerm(self.of(view.table[:, view.tree.offset(1) :]).flatten(1).mean(dim=1))


class Stepped(torch.autograd.Function):
    """Its backward pass divides by 0."""

    @staticmethod
    def forward(context, gists):
        return gists.sign()

    @staticmethod
    def backward(context, gradient):
        return gradient / 0.0


def overwritten(gists):
    changed = gists.exp()
    result = changed * changed
    changed.zero_()
    return result


def origin_with(of):
    step = plain_step(losses=[OfGists(of)])
    before = {name: value.clone() for name, value in step.state_dict().items()}
    origin = find_origin(step, BATCH)
    assert all(torch.equal(value, before[name]) for name, value in step.state_dict().items())
    assert all(each.grad is None for each in step.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in step.modules())
    return origin


@pytest.mark.parametrize("of", [torch.sigmoid, lambda gists: torch.where(gists > 0, gists, -torch.inf).amax(dim=-1)])
def test_a_step_of_finite_values_has_no_origin(of):
    assert origin_with(of) is None


@pytest.mark.parametrize(
    ("of", "kind"),
    [
        (lambda gists: (gists - gists) / (gists - gists), "NaN"),
        (lambda gists: 1 / (gists - gists), "inf"),
        pytest.param(lambda gists: (gists - gists).log(), "-inf", marks=pytest.mark.matrix),
    ],
)
def test_the_module_whose_output_is_not_finite(of, kind):
    origin = origin_with(of)
    assert (origin.module, origin.gradient, origin.what) == ("losses.mine", False, kind)


@pytest.mark.parametrize(
    ("of", "operation"),
    [
        (lambda gists: (gists - gists).square().sum(dim=-1).sqrt(), "SqrtBackward0"),
        pytest.param(lambda gists: (gists - gists).abs().pow(0.5), "PowBackward0", marks=pytest.mark.matrix),
        (lambda gists: torch.where(gists == gists, 0.0, (gists - gists).log()), "LogBackward0"),
        (Stepped.apply, "SteppedBackward"),
        (overwritten, "MulBackward0"),
    ],
)
def test_the_operation_whose_gradient_is_not_finite_or_fails(of, operation):
    origin = origin_with(of)
    assert (origin.module, origin.gradient) == ("losses.mine", True)
    assert operation in origin.what
    source, first = inspect.getsourcelines(of) if inspect.isfunction(of) else inspect.getsourcelines(OfGists)
    assert origin.file == __file__
    assert first <= origin.line < first + len(source)


@pytest.mark.parametrize(
    ("path", "gradient"),
    [
        ("model.gistnet", True), ("model.gpt.blocks.1", False), ("model.lensnet", True),
        *(pytest.param(*each, marks=pytest.mark.matrix) for each in (
            ("model.gistnet", False), ("model.gpt.blocks.1", True), ("model.lensnet", False)
        )),
    ],
)  # fmt: skip
def test_the_innermost_module_is_named(path, gradient):
    class Spoils(nn.Module):
        def forward(self, value):
            zero = value - value
            return value + (zero.square().sum().sqrt() if gradient else zero / zero)

    class Around(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.spoils = inner, Spoils()

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.inner, name)

        def forward(self, *arguments):
            return self.spoils(self.inner(*arguments))

    step = plain_step()
    parent, _, name = path.rpartition(".")
    setattr(step.get_submodule(parent), name, Around(step.get_submodule(path)))
    origin = find_origin(step, BATCH)
    assert (origin.module, origin.gradient) == (f"{path}.spoils", gradient)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e9])
def test_weights_that_say_nothing_are_replaced(value):
    net, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    with torch.no_grad():
        net.bias[1], net.running_mean[0] = value, value
    assert not usable(net)
    restore(net, other.state_dict())
    assert usable(net)
    assert net.running_mean.tolist() == [0.0, 0.0, 0.0]

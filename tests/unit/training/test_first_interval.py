"""Parts of third-party plug-ins that are never trained are named; parts that are frozen or weighted by 0 are not."""

import pytest
import torch
from torch import nn

from mcframe.hookspecs import LossTerm
from mcframe.registry.checks import ContractError
from mcframe.training.first_interval import PAIRS, FirstInterval, GradientWatch
from mcframe.training.train_step import TrainStep
from mcframe_plugins.loss.z_loss import ZLoss
from mcframe_plugins.variants import RandomCollapse
from tests.support.generators import geometry_of
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import TREE, build_step, random_tokens, seeds_for

LENGTH = 21


def third_party(module, kind="gistnet"):
    vars(module)["_mcframe_call"] = ("it", kind, "mine", "plug-in 'it' of mylab 1.0")
    return module


def trained(step, others=(), compressed=True, steps=3):
    """Run a micro-batch and its backward pass; return the warnings about it."""
    step.train()
    watch = GradientWatch(step)
    first = FirstInterval(step, watch, others, keep_watching=False)
    loss, metrics = step(random_tokens(TREE, 2, 0), seeds_for(2, 2), LENGTH)
    first.check_graph()
    loss.backward()
    pairs = {name: float(value) for name, value in metrics.sums.items() if name == PAIRS}
    return list(first.look(pairs, steps, compressed))


def step_with(change, part="gistnet", **options):
    """A step whose GistNet or LensNet is third-party, with its forward changed."""
    step = build_step(TREE, RandomCollapse(geometry_of(TREE)), **options)
    module = third_party(getattr(step.model, part), part)
    forward = type(module).forward
    module.forward = lambda *inputs: change(module, forward(module, *inputs))
    return step


def test_parts_that_are_trained_pass():
    assert trained(step_with(lambda _, gists: gists)) == []


def test_a_detached_part_is_an_error():
    with pytest.raises(ContractError, match="no gradient reaches its parameters") as raised:
        trained(step_with(lambda _, gists: gists.detach()))
    assert "run.trainable" in raised.value.remedy


@pytest.mark.parametrize("part", ["gistnet", "lensnet"])
def test_parameters_that_are_never_used_are_named(part):
    step = step_with(lambda _, output: output, part)
    getattr(step.model, part).extra = nn.Linear(3, 3)
    (warning,) = trained(step)
    assert warning.startswith(f"{part}.mine of plug-in 'it' of mylab 1.0: no gradient reaches extra.weight, extra.bias")


def test_parameters_that_are_meant_to_stay_are_not_named():
    step = step_with(lambda _, gists: gists.detach())
    step.model.gistnet.requires_grad_(False)  # what run.trainable does
    assert trained(step) == []
    unweighted = step_with(lambda net, gists: gists + 0.0 * net.extra(gists))
    unweighted.model.gistnet.extra = nn.Linear(16, 16)
    assert trained(unweighted) == []
    without = step_with(lambda _, scores: scores, "lensnet", settings=LossConfig(lens=0.0))
    assert trained(without) == []


def created(net):
    return nn.Parameter(torch.ones(1))


def in_a_list(net):
    return vars(net).setdefault("maps", [nn.Linear(1, 1)])[0].weight.squeeze()


def plain_tensor(net):
    return vars(net).setdefault("scale", torch.ones(1, requires_grad=True))


@pytest.mark.parametrize(
    ("held", "name"),
    [(created, "a parameter"), (in_a_list, "maps"), (plain_tensor, "scale")],
    ids=["created", "list", "tensor"],
)
@pytest.mark.parametrize("part", ["gistnet", "lensnet"])
def test_parameters_that_no_optimizer_holds_are_an_error(part, held, name):
    step = step_with(lambda net, output: output * held(net), part)
    with pytest.raises(ContractError, match=f"depends on {name} of shape") as raised:
        trained(step)
    assert raised.value.culprit is getattr(step.model, part)


def test_leaves_of_one_step_are_allowed():
    """As in a gradient with respect to an input."""
    assert trained(step_with(lambda _, gists: gists + torch.zeros(1, requires_grad=True))) == []


def test_evaluation_mode_is_undone_and_named():
    step = step_with(lambda net, gists: (net.eval(), gists)[1])
    (warning,) = trained(step)
    assert warning.startswith("gistnet.mine of plug-in 'it' of mylab 1.0: the model was left in evaluation mode")
    assert all(module.training for module in step.modules())


def test_evaluation_mode_set_by_a_callback():
    step = build_step(TREE, RandomCollapse(geometry_of(TREE)))
    step.model.gpt.blocks[0].register_forward_hook(lambda *_: step.eval() and None)
    callback = third_party(nn.Identity(), "callback")
    (warning,) = trained(step, [callback, object()])
    assert warning.startswith("callback.mine of plug-in 'it'")


class Repeats(RandomCollapse):
    def propose(self, *arguments):
        return super().propose(*arguments)[:, :1].expand(-1, self.count, -1)


def test_no_preference_pair_is_a_warning_that_names_the_strategy():
    step = build_step(TREE, Repeats(geometry_of(TREE)))
    (warning,) = trained(step)
    assert warning.startswith("Repeats: no sequence had two variants")
    assert trained(step, steps=2) == []  # a model at its initialisation may prefer nothing
    assert trained(step, compressed=False) == []


def test_a_lensnet_that_no_loss_trains():
    step = build_step(TREE, RandomCollapse(geometry_of(TREE)))
    losses = [loss for loss in step.losses.each() if "scores" not in loss.needs and "pairs" not in loss.needs]
    plain = TrainStep(step.model, losses)
    step.forward = lambda *inputs: plain(inputs)
    watch = GradientWatch(plain.train())
    first = FirstInterval(plain, watch, (), keep_watching=False)
    (warning,) = first.look({}, 1, False)
    assert "no loss of this run trains it" in warning


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_loss_without_gradient_is_named(weight):
    class Constant(ZLoss):
        def forward(self, view):
            return LossTerm(super().forward(view).loss.detach())

    loss = third_party(Constant(None, weight=weight), "loss")
    step = build_step(TREE, RandomCollapse(geometry_of(TREE)), losses=[loss])
    warnings = trained(step)
    assert [each.partition(":")[0] for each in warnings] == ["loss.mine of plug-in 'it' of mylab 1.0"] * bool(weight)


def test_hooks_are_removed():
    step = build_step(TREE, RandomCollapse(geometry_of(TREE)))
    trained(step)
    assert not any(module._forward_hooks for module in step.modules())
    assert not any(parameter._backward_hooks for parameter in step.parameters())

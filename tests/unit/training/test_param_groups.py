"""Modules declare their parameter groups; every trained parameter is in one of them, and the optimizer gets it once."""

import pytest
import torch
from torch import nn

from mcframe.config.run_config import load_run_config
from mcframe.errors import UserError
from mcframe.hookspecs import Loss, LossTerm, ParamGroup, TrainableModule, group_parameters
from mcframe.training.build import build_optimizer, build_step
from mcframe.training.param_groups import lr_factors, optimizer_groups, param_groups, with_starts
from mcframe.training.train_step import TrainStep

MUON = ("run.optimizer = @optimizer.muon", "optimizer.muon.lr = 0.02", "optimizer.lr = 0.004")


def of_run(smoke, *settings):
    config = load_run_config([smoke], settings).run_config
    step = build_step(config, 257)
    groups = param_groups(step, build_optimizer(config), config.optimizer_config)
    return step, groups, optimizer_groups(step, groups)


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("run.gistnet = @gistnet.contextual", "gistnet.contextual.pooling = 'query'", "run.lensnet = @lensnet.mlp"),
        ("run.gistnet = @gistnet.contextual", "gistnet.contextual.pooling = 'heads'", "gpt.gist_bias = -2.0"),
        ("run.gistnet = @gistnet.multihead", "run.lensnet = @lensnet.mlp", "lensnet.mlp.embeddings = True"),
        ("run.gistnet = @gistnet.transformer", "gistnet.transformer.pooling = 'cls'"),
        ("run.extra_losses = [@loss.reconstruction]",),
        ("run.extra_losses = [@loss.ema_kl]",),  # its moving average of LensNet has buffers in place of parameters
    ],
)
def test_declared_matrices_are_those_that_first_party_names_mark(smoke, settings):
    step, _, merged = of_run(smoke, *MUON, *settings)
    muon, adam = ([group for group in merged if (group["rule"] == "Muon") is matrix] for matrix in (True, False))
    named = [(name, p) for name, p in step.named_parameters() if p.requires_grad]
    marked = [p.dim() >= 2 and not ("embed" in name or "lm_head" in name) for name, p in named]
    for group, is_matrix in ((muon, True), (adam, False)):
        expected = {id(p) for (_, p), mark in zip(named, marked, strict=True) if mark is is_matrix}
        assert {id(p) for each in group for p in each["params"]} == expected
    assert ({each["lr"] for each in muon}, {each["lr"] for each in adam}) == ({0.02}, {0.004})


def test_parts_are_groups_of_their_own(smoke):
    step, _, merged = of_run(smoke)
    names = {id(parameter): name.split(".")[1] for name, parameter in step.named_parameters()}
    assert [{names[id(each)] for each in group["params"]} for group in merged] == [{"gpt"}, {"gistnet"}, {"lensnet"}]


def test_groups_keep_the_order_of_the_module(smoke):
    step, _, merged = of_run(smoke)
    order = [id(p) for group in merged for p in group["params"]]
    assert sorted(order) == sorted(id(p) for p in step.parameters() if p.requires_grad)
    position = {id(p): index for index, p in enumerate(step.parameters())}
    for group in merged:
        assert [position[id(p)] for p in group["params"]] == sorted(position[id(p)] for p in group["params"])


@pytest.mark.parametrize("more", ["optimizer.lr_scale = {'base': 0.5}", "optimizer.weight_decay = 0.1"])
@pytest.mark.parametrize("optimizer", [(), MUON])
def test_settings_of_a_resumed_run_change_no_group(smoke, optimizer, more):
    """The optimizer's state of a checkpoint belongs to groups."""
    (one, _, before), (other, _, after) = of_run(smoke, *optimizer), of_run(smoke, *optimizer, more)
    names = [{id(p): name for name, p in step.named_parameters()} for step in (one, other)]
    found = [
        [[known[id(p)] for p in group["params"]] for group in merged]
        for known, merged in zip(names, (before, after), strict=True)
    ]
    assert found[0] == found[1]


def test_parts_have_learning_rates_of_their_own(smoke):
    scale = "optimizer.lr_scale = {'gistnet': 0.5, 'base': 0.0}"
    step, groups, merged = of_run(smoke, "optimizer.lr = 0.002", scale)
    assert {group.part: group.lr for group in groups} == {"base": 0.0, "gistnet": 0.001, "lensnet": 0.002}
    gistnet = {id(p) for p in step.model.gistnet.parameters()}
    (own,) = [group for group in merged if group["lr"] == 0.001]
    assert {id(p) for p in own["params"]} == gistnet
    with pytest.raises(UserError, match="lr_scale"):
        load_run_config([smoke], ("optimizer.lr_scale = {'gpt': 1.0}",))


def test_a_part_that_starts_later_has_a_rate_of_zero_until_then(smoke):
    config = load_run_config([smoke], ("optimizer.lr_start = {'base': 0.5}",)).run_config
    step, optimizer = build_step(config, 257), build_optimizer(config)
    groups = param_groups(step, optimizer, config.optimizer_config)
    built = with_starts(optimizer.build(optimizer_groups(step, groups), False), groups)
    base = {id(p) for p in step.model.gpt.parameters()}
    factors = lr_factors(built.param_groups, lambda step: 0.25, 10)
    for group, factor in zip(built.param_groups, factors, strict=True):
        rates = [factor(number) for number in (0, 4, 5, 9)]
        assert rates == ([0.0, 0.0, 0.25, 0.25] if id(group["params"][0]) in base else [0.25] * 4)
    assert {str(group).endswith("after 50% of training") for group in groups if group.part == "base"} == {True}


class Table(TrainableModule):
    def __init__(self):
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(3, 4))
        self.map = nn.Linear(4, 4)

    def param_groups(self):
        return group_parameters(self, embedding=[self.rows])


def test_a_module_in_a_module_keeps_what_it_declares():
    outer = nn.Sequential(Table(), nn.Linear(4, 2), nn.Embedding(5, 4))
    found = {group.role: group.parameters for group in group_parameters(outer)}
    table, linear, embedding = outer
    assert [id(p) for p in found["embedding"]] == [id(table.rows), id(embedding.weight)]
    assert [id(p) for p in found["matrix"]] == [id(table.map.weight), id(linear.weight)]
    assert [id(p) for p in found["vector"]] == [id(table.map.bias), id(linear.bias)]


class Declared(Loss):
    name, needs = "declared", ()

    def __init__(self, *groups):
        super().__init__()
        self.one, self.two = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        self.groups = groups

    def forward(self, view):
        return LossTerm(view.uncompressed.nll.mean(dim=1))

    def param_groups(self):
        return [ParamGroup("vector", tuple(getattr(self, name) for name in names)) for names in self.groups]


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        ([("one",)], "losses.declared.two in one group, got none"),
        ([("one", "two"), ("two",)], "losses.declared.two in one group, got loss declared vector and loss"),
    ],
)
def test_a_parameter_in_no_group_or_in_two_is_an_error_that_names_it(smoke, groups, problem):
    config = load_run_config([smoke], ()).run_config
    model = build_step(config, 257).model
    with pytest.raises(UserError, match=problem):
        param_groups(TrainStep(model, [Declared(*groups)]), build_optimizer(config), config.optimizer_config)


def test_a_group_can_switch_weight_decay_off(smoke):
    config = load_run_config([smoke], ("optimizer.weight_decay = 0.1",)).run_config
    loss = Declared(("one", "two"))
    loss.param_groups = lambda: [ParamGroup("vector", (loss.one, loss.two), weight_decay=False, lr_scale=2.0)]
    step = TrainStep(build_step(config, 257).model, [loss])
    *_, own = optimizer_groups(step, param_groups(step, build_optimizer(config), config.optimizer_config))
    assert [id(p) for p in own["params"]] == [id(loss.one), id(loss.two)]
    assert (own["weight_decay"], own["lr"]) == (0.0, 2 * config.optimizer_config.lr)

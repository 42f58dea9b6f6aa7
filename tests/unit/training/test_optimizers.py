"""Optimizers and schedules of a run: defaults, limits, and checks of what plug-ins return."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mcframe.config.run_config import load_run_config
from mcframe.errors import UserError
from mcframe.hookspecs import Optimizer, Schedule
from mcframe.registry.checks import ContractError
from mcframe.training.build import build_optimizer, build_schedule, plugin_name
from mcframe.training.engine import Engine, complete_optimizer
from mcframe_plugins.optimizer.adamw import AdamW, adam_implementation, on_gpu
from mcframe_plugins.schedule.trapezoid import Trapezoid


class Shampoo(Optimizer):
    """Reads complete matrices."""

    name, max_zero_stage = "shampoo", 0

    def build(self, groups, offload):
        raise NotImplementedError


def test_an_optimizer_limits_the_zero_stage(smoke):
    for stage in (0, 1):
        config = load_run_config([smoke], (f"deepspeed.zero_stage = {stage}",)).run_config
        config = replace(config, optimizer=Shampoo)
        if stage == 0:
            assert isinstance(build_optimizer(config), Shampoo)
        else:
            with pytest.raises(UserError, match=r"optimizer\.shampoo: expected ZeRO stage 0 or lower, got 1"):
                build_optimizer(config)


def test_a_gpu_updates_parameters_with_one_kernel():
    on_a_gpu = [{"params": [SimpleNamespace(device=torch.device("cuda", 0))]}]
    mixed = [*on_a_gpu, {"params": [nn.Parameter(torch.zeros(2))]}]
    assert [on_gpu(on_a_gpu), on_gpu(mixed)] == [True, False]
    assert adam_implementation(False, False, True) == (torch.optim.AdamW, {"fused": True})
    for offload, here in ((True, True), (False, False)):
        assert adam_implementation(False, offload, here) == (torch.optim.AdamW, {})


def test_adamw_and_the_trapezoid_are_the_defaults(smoke):
    config = load_run_config([smoke], ("schedule.trapezoid.warmup_ratio = 0.5",)).run_config
    assert (plugin_name(config.optimizer), plugin_name(config.schedule)) == ("adamw", "trapezoid")
    assert build_schedule(config).factor(0, 10) == 0.2


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ((0.0, 0.0, 0.0), [1.0, 1.0, 1.0, 1.0, 1.0]),
        ((0.4, 0.0, 0.0), [0.5, 1.0, 1.0, 1.0, 1.0]),
        ((0.0, 0.6, 0.0), [1.0, 1.0, 1.0, 2 / 3, 1 / 3]),
        ((0.0, 0.4, 0.5), [1.0, 1.0, 1.0, 1.0, 0.75]),
        ((1.0, 1.0, 0.0), [0.2, 0.4, 0.6, 0.4, 0.2]),
    ],
)
def test_the_trapezoid(ratios, expected):
    warmup, warmdown, final = ratios
    schedule = Trapezoid(warmup_ratio=warmup, warmdown_ratio=warmdown, final_lr_ratio=final)
    assert [schedule.factor(step, 5) for step in range(5)] == pytest.approx(expected)


@pytest.mark.parametrize("factor", [-0.1, math.nan, math.inf])
def test_a_factor_that_is_no_rate_is_refused(factor):
    class Wrong(Schedule):
        def factor(self, step, total_steps):
            return factor

    with pytest.raises(ContractError, match="expected a factor of 0 or above"):
        Engine._lr_factor(SimpleNamespace(_schedule=Wrong(), _steps=4), 0)


def test_an_optimizer_that_omits_parameters_is_refused():
    class First(AdamW):
        def build(self, groups, offload):
            return super().build(groups[:1], offload)

    def groups():
        return [{"params": [nn.Parameter(torch.ones(2))], "lr": 0.1, "rule": "AdamW"} for _ in range(2)]

    assert len(complete_optimizer(AdamW(), groups(), False).param_groups) == 2
    with pytest.raises(ContractError, match="of all 2 parameters, got one without 1 of them"):
        complete_optimizer(First(), groups(), False)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.skipif(torch.cuda.is_available(), reason="DeepSpeed's wheel may hold the op of a GPU")
def test_a_missing_compiler_is_reported_in_one_message(tmp_path, monkeypatch, offload):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    groups = [{"params": [nn.Parameter(torch.zeros(2))], "rule": None, "lr": 0.1}]
    with pytest.raises(UserError, match=r"optimizer AdamW: .*a C\+\+ compiler \(g\+\+ was not found\)") as caught:
        complete_optimizer(AdamW(fused=True), groups, offload)
    assert "set `fused` of the optimizer to False" in caught.value.remedy


def test_another_error_of_an_optimizer_is_not_taken_for_a_missing_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotImplementedError):
        complete_optimizer(Shampoo(), [{"params": [nn.Parameter(torch.zeros(2))]}], False)

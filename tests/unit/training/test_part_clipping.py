"""Clipping by part without ZeRO: each part is scaled by its own norm."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mcframe.errors import UserError
from mcframe.hookspecs import ParamGroup, UpdateRule
from mcframe.training.clipping import PartClipping

LIMIT = 1.0


def group(part, *parameters):
    return SimpleNamespace(part=part, group=ParamGroup("vector", parameters), rule=UpdateRule("AdamW", 0.1))


def test_each_part_is_clipped_by_its_own_norm():
    gradients = {"base": ([3.0, 4.0], [12.0]), "gistnet": ([0.6, 0.8],), "lensnet": ([300.0, 400.0],), "loss x": ()}
    groups, held = [], {}
    for part, values in gradients.items():
        held[part] = [nn.Parameter(torch.zeros(len(each))) for each in values] or [nn.Parameter(torch.zeros(2))]
        for parameter, value in zip(held[part], values, strict=False):
            parameter.grad = torch.tensor(value)
        groups += [group(part, parameter) for parameter in held[part]]
    engine = SimpleNamespace(optimizer=None, zero_optimization=lambda: False)
    clipping = PartClipping(engine, groups, LIMIT)
    engine.clip_fp32_gradients()
    found = {part: float(norm) for part, norm in clipping.norms.items()}
    assert found == pytest.approx({"base": 13.0, "gistnet": 1.0, "lensnet": 500.0, "loss x": 0.0})
    assert float(clipping.total) == pytest.approx((13**2 + 1 + 500**2) ** 0.5)
    assert torch.cat([each.grad for each in held["base"]]).tolist() == pytest.approx([3 / 13, 4 / 13, 12 / 13])
    assert held["gistnet"][0].grad.tolist() == pytest.approx([0.6, 0.8])
    assert held["lensnet"][0].grad.tolist() == pytest.approx([0.6, 0.8])


def test_an_optimizer_of_deepspeed_that_clips_jointly_is_refused():
    engine = SimpleNamespace(optimizer=SimpleNamespace(bf16_groups=[[]]), zero_optimization=lambda: True)
    with pytest.raises(UserError, match="clips all parts jointly"):
        PartClipping(engine, [], LIMIT)

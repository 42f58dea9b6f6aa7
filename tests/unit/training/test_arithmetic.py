"""The floor of a step: the products that it records, and their time alone."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from mcframe.metrics.timers import HostMark
from mcframe.training.arithmetic import Floor, _Operand, recorded_products

CPU = torch.device("cpu")


def names(products):
    return {product.operation._schema.name.removeprefix("aten::"): count for product, count in products.counts.items()}


def test_products_of_forward_and_backward_are_recorded_and_nothing_else():
    layer, inputs = nn.Linear(8, 16), torch.randn(4, 8, requires_grad=True)
    with recorded_products() as products:
        for _ in range(3):
            layer(inputs).relu().sum().backward()
    assert sum(products.counts.values()) == 9  # forward, and a product each for the gradients of input and weight
    assert {name: count for name, count in names(products).items() if name == "addmm"} == {"addmm": 3}
    assert set(names(products)) == {"addmm", "mm"}


def operands(products):
    """Return operations with size, strides and type of their tensors; torch omits arguments that are defaults."""
    return sorted(
        (product.operation._schema.name, str([leaf for leaf in product.leaves if isinstance(leaf, _Operand)]))
        for product in products.counts
    )


@pytest.mark.parametrize("causal", [True, False])
def test_the_floor_repeats_attention_on_operands_of_the_same_strides(causal):
    query, key, value = (torch.randn(2, 16, 4, 8, requires_grad=True).transpose(1, 2) for _ in range(3))
    mask = None if causal else torch.ones(16, 16, dtype=torch.bool).tril()
    with recorded_products() as products:
        scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal).sum().backward()
    assert any("attention" in name or name == "bmm" for name in names(products))
    floor = Floor(products, CPU, HostMark)
    with recorded_products() as again:
        assert floor.milliseconds() > 0
    assert operands(again) == operands(products)


def test_the_floor_counts_each_product_as_often_as_it_ran():
    layer, inputs = nn.Linear(256, 256, bias=False), torch.randn(256, 256)
    with recorded_products() as once:
        layer(inputs)
    with recorded_products() as often:
        for _ in range(50):
            layer(inputs)
    one, many = Floor(once, CPU, HostMark), Floor(often, CPU, HostMark)
    assert len(often.counts) == 1
    ratios = sorted(many.milliseconds() / one.milliseconds() for _ in range(21))
    assert 10 < ratios[10] < 250

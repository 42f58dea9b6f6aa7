"""Each GistNet and each variant strategy in a whole training step: losses are finite and everything learns."""

import pytest
import torch

from mcframe.context.geometry import Geometry
from mcframe.context.seeding import variant_seeds
from mcframe.hookspecs import ModelShape
from mcframe.modeling.gpt import GPT
from mcframe.modeling.objectives import Objectives
from mcframe.modeling.step import MegaContextStep
from mcframe_plugins.gistnet import ContextualGistNet, MultiheadGistNet, TransformerGistNet
from mcframe_plugins.lensnet import TransformerLensNet
from mcframe_plugins.variants import Aggressive, Contiguous, LensGuided, RandomCollapse, SingleSpan

GEOMETRY = Geometry(70, 4, levels=2, slots=2, tail=9)
SHAPE = ModelShape(8, GEOMETRY)
LENGTH = GEOMETRY.length((2, 1))  # two nodes of LOD1 and one of LOD2

GISTNETS = {
    "multihead": lambda: MultiheadGistNet(SHAPE, heads=2),
    "contextual": lambda: ContextualGistNet(SHAPE, heads=2),
    "contextual from gists": lambda: ContextualGistNet(SHAPE, heads=2, from_tokens=False),
    "contextual, heads": lambda: ContextualGistNet(SHAPE, heads=2, layers=1, pooling="heads"),
    "states, pooled": lambda: ContextualGistNet(SHAPE, heads=2, layers=0, base_layer=1),
    "states, read": lambda: TransformerGistNet(SHAPE, heads=2, layers=1, base_layer=2),
}
STRATEGIES = (RandomCollapse, SingleSpan, Contiguous, LensGuided, Aggressive)


def trained(gistnet, strategy):
    """The step after one backward pass over three sequences."""
    torch.manual_seed(0)
    gpt = GPT(GEOMETRY, 13, depth=2, width=8, heads=2)
    for block in gpt.blocks:  # they start at zero
        torch.nn.init.normal_(block.attention.out.weight, std=0.3)
        torch.nn.init.normal_(block.down.weight, std=0.3)
    lensnet = TransformerLensNet(SHAPE, heads=2, layers=1)
    step = MegaContextStep(gpt, gistnet(), lensnet, strategy, GEOMETRY, Objectives())
    tokens = torch.randint(0, 13, (3, GEOMETRY.window + 1))
    loss, statistics = step(tokens, variant_seeds(0, torch.arange(3), strategy.count), LENGTH)
    assert torch.isfinite(loss)
    loss.backward()
    return step, statistics


@pytest.mark.parametrize("kind", GISTNETS)
def test_every_parameter_of_a_gistnet_learns(kind):
    step, _ = trained(GISTNETS[kind], Aggressive(GEOMETRY, count=2))
    for name, parameter in step.gistnet.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.count_nonzero() > 0, name
    for name, parameter in step.gpt.named_parameters():
        assert parameter.grad.count_nonzero() > 0, name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_trains_all_parts(strategy):
    step, statistics = trained(GISTNETS["contextual"], strategy(GEOMETRY, count=3))
    assert "mc/lens_loss" in statistics.means
    for part in (step.gpt, step.gistnet, step.lensnet):
        assert all(parameter.grad is not None for parameter in part.parameters())

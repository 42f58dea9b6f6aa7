"""What the report says of the FLOPs of objectives, against those that are counted while a step runs."""

import oracle
import pytest
from modeling_builders import build_step, geometry_of, random_tokens, seeds_for
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mcframe.modeling.objectives import Objectives
from mcframe.training.report import cost
from mcframe_plugins.variants import RandomCollapse

TREE = oracle.Tree(window=128, block_size=8, levels=1, slots=1, tail=16, sink=0)
LENGTH = 128 - 5 * 7


def flops(objectives: Objectives, gistnet: str | None = "mean", rebuild: int = 4) -> tuple[float, float]:
    """A step on two sequences: counted, and as reported."""
    options = {"depth": 2, "width": 32, "heads": 2, "head_width": 8}
    model = build_step(
        TREE, RandomCollapse(geometry_of(TREE)), gistnet=gistnet, lensnet=None, objectives=objectives, **options
    )
    # Attention as plain matrix products, which are counted in full.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        loss, _ = model(random_tokens(TREE, 2, 0), seeds_for(2, 2), LENGTH, None, rebuild)
        loss.backward()
    return counted.get_total_flops(), cost(model, None, LENGTH).total * TREE.window * 2


@pytest.mark.parametrize("gistnet", ["mean", None])
@pytest.mark.parametrize(
    "objectives",
    [
        Objectives(),
        Objectives(gist_kl_weight=1.0),
        Objectives(gist_kl_weight=1.0, kl_contrast=1.0),
        Objectives(reconstruction_weight=1.0, reconstruction_share=1.0),
        Objectives(reconstruction_weight=1.0, reconstruction_share=0.5),
    ],
    ids=["plain", "kl", "contrast", "all told", "half told"],
)
def test_what_is_run_is_what_is_reported(objectives, gistnet):
    counted, reported = flops(objectives, gistnet)
    assert reported == pytest.approx(counted, rel=0.03)


def test_each_objective_costs_something():
    plain = flops(Objectives())[1]
    assert flops(Objectives(gist_kl_weight=1.0))[1] > plain
    assert flops(Objectives(reconstruction_weight=1.0))[1] > plain
    assert flops(Objectives(kl_contrast=1.0))[1] == plain  # a contrast of nothing

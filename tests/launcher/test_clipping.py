"""Gradients are clipped by part: LensNet's losses change no weight of the base model and of GistNet, at any stage."""

import pytest
import torch

from mcframe.training.checkpoint_folder import find
from mcframe.training.weights import load_weights

pytestmark = pytest.mark.launcher

SETTINGS = (
    "run.optimizer = @optimizer.adamw", "run.total_tokens = 3072", "logging.every = 1024", "validation.windows = 2",
    "validation.every = 0", "checkpoint.every = 0", "run.evaluations = []",
)  # fmt: skip
PARTS = ("base", "gistnet", "lensnet")


def trained(launches, weight, stage, ranks=1, *more):
    settings = (*SETTINGS, f"loss.preference.weight = {weight}", f"deepspeed.zero_stage = {stage}", *more)
    result = launches.run(*settings, ranks=ranks).succeeded()
    return result, load_weights(find(result.run_dir))


@pytest.mark.parametrize(
    ("stage", "ranks", "more"),
    [
        (3, 1, ()),  # without ZeRO: tests/unit/training/test_part_clipping.py
        *(
            pytest.param(*case, marks=pytest.mark.matrix)
            for case in [
                (0, 1, ()), (0, 2, ()), (1, 1, ()), (1, 2, ()), (2, 1, ()), (2, 2, ()), (3, 2, ()),
                (2, 2, ("deepspeed.precision = 'bf16'",)), (3, 2, ("deepspeed.precision = 'bf16'",)),
                (1, 1, ("deepspeed.precision = 'bf16'",)), (2, 1, ("deepspeed.offload_optimizer = True",)),
            ]
        ),
    ],
)  # fmt: skip
def test_lensnets_losses_change_no_weight_of_other_parts(launches, stage, ranks, more):
    (loud, weights), (_, others) = (trained(launches, weight, stage, ranks, *more) for weight in (100.0, 0.0))
    different = {name.split(".")[1] for name, tensor in weights.items() if not torch.equal(tensor, others[name])}
    assert different == {"lensnet"}
    norms = [loud.curve(f"train/grad_norm/{part}") for part in PARTS]
    assert norms[2][0] > 5  # the joint norm would be that of LensNet
    for part_norms, total in zip(zip(*norms, strict=True), loud.curve("train/grad_norm"), strict=True):
        assert sum(norm**2 for norm in part_norms) ** 0.5 == pytest.approx(total, rel=1e-4)

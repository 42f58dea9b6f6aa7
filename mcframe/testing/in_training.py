"""Clauses about real runs: under the launcher, interrupted, at every ZeRO stage, on two ranks. All of them are slow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mcframe.config.run_config import load_run_config
from mcframe.registry.discovery import PluginOptions
from mcframe.testing.inputs import plain_trial
from mcframe.testing.plugin_under_test import NETWORKS, PLAIN, PluginUnderTest
from mcframe.testing.requirements import Skipped, expect, requirement
from mcframe.testing.runs import CALLED_IN_STEPS, alone, given, on_two_ranks
from mcframe.testing.trainings import Trained, trained
from mcframe.training.build import build_model
from mcframe.training.engine import check_compiler

CURVES = ("train/loss", "train/loss_lod0", "mc/tail_delta")
TOLERANCE = 1e-3
"""In float32. Another summation order over ranks moved first-party plug-ins by 2e-6 at most."""

STALE = "DeepSpeed would apply the old one again"
"""What the watch on gradients says at ZeRO 3."""


def _finished(runs: Sequence[Trained]) -> Sequence[Trained]:
    for run in runs:
        expect(run.succeeded, run.why)
    return runs


@requirement(
    "R1",
    "It trains under the launcher: every loss is finite, and the operative configuration names it",
    "*",
    after=("P8",),
    slow=True,
)
def r1_trains(plugin: PluginUnderTest) -> None:
    """Four steps of `smoke.gin` with it chosen."""
    (run, *_) = trained(*alone(plugin))
    _finished([run])
    losses = run.curve("train/loss")
    expect(len(losses) == 4, f"{len(losses)} losses were logged in 4 steps")
    expect(all(map(math.isfinite, losses)), f"the losses are {losses}")
    expect(run.chose(plugin.name), f"the operative configuration does not name @{plugin.name}")


@requirement(
    "R2",
    "Every parameter of it moves in such a run, and stays finite",
    *NETWORKS,
    needs="parameters",
    after=("R1",),
    slow=True,
)
def r2_learns(plugin: PluginUnderTest) -> None:
    """From what the seed makes of it to what the checkpoint at the end holds."""
    (run, *_) = trained(*alone(plugin))
    run_config = load_run_config([run.folder / "run" / "config.gin"], [], PluginOptions(given(plugin))).run_config
    built = getattr(build_model(run_config, run_config.tokenizer().vocab_size), plugin.kind)
    began, ended = dict(built.named_parameters()), _own(run.weights(), plugin)
    still = [name for name, parameter in began.items() if torch.equal(ended[name], parameter)]
    expect(not still, f"not moved in four steps: {', '.join(still)}")
    wild = [name for name, tensor in ended.items() if not tensor.isfinite().all()]
    expect(not wild, f"not finite after four steps: {', '.join(wild)}")


def _own(weights: dict[str, Tensor], plugin: PluginUnderTest) -> dict[str, Tensor]:
    prefix = f"model.{plugin.kind}."
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


@requirement(
    "R3",
    "A run that goes on from a checkpoint equals one that was never interrupted, bit for bit",
    "*",
    after=("R1",),
    slow=True,
)
def r3_resumes(plugin: PluginUnderTest) -> None:
    """Every metric and all weights; built anew in processes whose global state went on."""
    whole, resumed = _finished(trained(*alone(plugin)))
    for tokens, found in resumed.metrics.items():
        wanted = whole.metrics[tokens]
        differing = [name for name in wanted if found.get(name, math.nan) != wanted[name]]
        expect(not differing, f"after {tokens:,} tokens these differ: {', '.join(differing[:5])}")
    weights = whole.weights()
    moved = [name for name, tensor in resumed.weights().items() if not torch.equal(tensor, weights[name])]
    expect(not moved, f"at the end these weights differ: {', '.join(moved[:5])}")


@requirement("R4", "At ZeRO 3 no parameter is updated with an old gradient", *CALLED_IN_STEPS, after=("R1",), slow=True)
def r4_fresh_gradients(plugin: PluginUnderTest) -> None:
    """Every parameter that ever had a gradient has one in every step; two ranks."""
    sharded = trained(*on_two_ranks(plugin))[3]
    expect(STALE not in sharded.log, sharded.why)


@requirement(
    "R5", "ZeRO 0, 1, 2 and 3 on two ranks train alike, and like one rank", *CALLED_IN_STEPS, after=("R4",), slow=True
)
def r5_zero(plugin: PluginUnderTest) -> None:
    """Curve by curve."""
    (reference, *_) = _finished(trained(*alone(plugin)))
    for stage, run in enumerate(_finished(trained(*on_two_ranks(plugin)))):
        for name in CURVES:
            pairs = list(zip(run.curve(name), reference.curve(name), strict=True))
            worst = max((abs(one - other) for one, other in pairs), default=0.0)
            expect(worst <= TOLERANCE, f"at ZeRO {stage} on two ranks {name} differs by {worst:.2g} from one rank's")


@requirement("R6", "Every rank decides alike, whatever its own random state", "*", after=("R1",), slow=True)
def r6_ranks_agree(plugin: PluginUnderTest) -> None:
    """Held-out windows, proposals, focus and rounds of refocusing after a run on two ranks."""
    (run, *_) = _finished(trained(*on_two_ranks(plugin))[:1])
    first, second = run.decisions
    differing = [what for what in first if first[what] != second.get(what)]
    expect(not differing, f"two ranks with equal weights and inputs differ in: {', '.join(differing)}")


@requirement("R7", "Compiled by inductor it gives what it gives uncompiled", *NETWORKS, after=("N3",), slow=True)
def r7_inductor(plugin: PluginUnderTest) -> None:
    """`torch.compile(fullgraph=True)` on a CPU, forward; rounding aside."""
    if missing := check_compiler():
        raise Skipped(f"inductor needs {missing}")
    trial = plain_trial(plugin, PLAIN)
    wanted = trial.run()
    torch._dynamo.reset()
    compiled = trial.of(torch.compile(trial.part, fullgraph=True)).run()
    worst = (compiled.float() - wanted.float()).abs().max()
    expect(torch.allclose(compiled, wanted, atol=1e-4, rtol=1e-3), f"compiled, it differs by up to {worst:.2g}")

"""Requirements of real runs: resumed, at every ZeRO stage, on two ranks. All of them are slow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from mcframe.config.run_config import load_run_config
from mcframe.registry.discovery import PluginOptions
from mcframe.testing.assertions import Skipped, expect
from mcframe.testing.calls import Example, make_call
from mcframe.testing.kinds import LIMITED_BY_ZERO, NETWORKS
from mcframe.testing.plugin_under_test import PLAIN, PluginUnderTest
from mcframe.testing.requirements import requirement
from mcframe.testing.trainings import Trained, on_one_rank, on_two_ranks, plugin_options, trained
from mcframe.training.build import build_model
from mcframe.training.compiler import check_compiler

CURVES = ("train/loss", "train/loss_lod0", "mc/tail_delta")
TOLERANCE = 1e-3
"""In float32. Another summation order over ranks changed first-party plug-ins by at most 2e-6."""

STALE = "DeepSpeed would apply the old one again"
"""Part of the message of the gradient watch at ZeRO 3."""


def _finished(runs: Sequence[Trained]) -> Sequence[Trained]:
    for run in runs:
        expect(run.succeeded, run.failure)
    return runs


@requirement("R1", "It trains: losses are finite, and its parameters change", "*",
             after=("P6",), slow=True)  # fmt: skip
def r1_trains(plugin: PluginUnderTest) -> None:
    """Four steps of `smoke.gin` with the plug-in. The operative configuration names it."""
    (run,) = _finished(trained(on_one_rank(plugin)[0]))
    losses = run.curve("train/loss")
    expect(len(losses) == 4, f"{len(losses)} losses were logged in 4 steps")
    expect(all(map(math.isfinite, losses)), f"the losses are {losses}")
    expect(run.chose(plugin.name), f"the operative configuration does not name @{plugin.name}")
    if plugin.kind in NETWORKS:
        _expect_changed(plugin, run)


def _expect_changed(plugin: PluginUnderTest, run: Trained) -> None:
    """Compare the parameters that the seed initialises with those of the last checkpoint."""
    plugins = PluginOptions(plugin_options(plugin))
    run_config = load_run_config([run.folder / "run" / "config.gin"], [], plugins).run_config
    built = getattr(build_model(run_config, run_config.tokenizer().vocab_size), plugin.kind)
    weights = run.weights()
    for name, parameter in built.named_parameters():
        ended = weights[f"model.{plugin.kind}.{name}"]
        expect(not torch.equal(ended, parameter), f"not changed in four steps: {name}")
        expect(bool(ended.isfinite().all()), f"not finite after four steps: {name}")


@requirement("R2", "A resumed run equals one that was never interrupted, bit for bit", "*", after=("R1",), slow=True)
def r2_resumes(plugin: PluginUnderTest) -> None:
    """Every metric and all weights, after a checkpoint in the middle."""
    complete, resumed = _finished(trained(*on_one_rank(plugin)))
    for tokens, found in resumed.metrics.items():
        expected = complete.metrics[tokens]
        differing = [name for name in expected if found.get(name, math.nan) != expected[name]]
        expect(not differing, f"after {tokens:,} tokens these differ: {', '.join(differing[:5])}")
    weights = complete.weights()
    moved = [name for name, tensor in resumed.weights().items() if not torch.equal(tensor, weights[name])]
    expect(not moved, f"at the end these weights differ: {', '.join(moved[:5])}")


@requirement("R3", "Every ZeRO stage on two ranks trains like one rank", *LIMITED_BY_ZERO, after=("R1",), slow=True)
def r3_zero(plugin: PluginUnderTest) -> None:
    """Curve by curve, up to `max_zero_stage` of a loss; at ZeRO 3 parameters with a gradient have one in every step."""
    runs = trained(*on_two_ranks(plugin))
    expect(STALE not in runs[-1].log, runs[-1].failure)
    (reference,) = _finished(trained(on_one_rank(plugin)[0]))
    for stage, run in enumerate(_finished(runs)):
        for name in CURVES:
            pairs = list(zip(run.curve(name), reference.curve(name), strict=True))
            worst = max((abs(one - other) for one, other in pairs), default=0.0)
            expect(worst <= TOLERANCE, f"at ZeRO {stage} on two ranks {name} differs by {worst:.2g} from one rank's")


@requirement("R4", "All ranks decide alike for any random state of their own", "*", after=("R1",), slow=True)
def r4_ranks_agree(plugin: PluginUnderTest) -> None:
    """Held-out windows, proposals, focus and rounds of refocusing after a run on two ranks."""
    (run,) = _finished(trained(on_two_ranks(plugin)[0]))
    first, second = run.decisions
    differing = [name for name in first if first[name] != second.get(name)]
    expect(not differing, f"two ranks with equal weights and inputs differ in: {', '.join(differing)}")


@requirement("R5", "Compiled by inductor it computes the same", *NETWORKS, after=("N2",), slow=True)
def r5_inductor(plugin: PluginUnderTest) -> None:
    """`torch.compile(fullgraph=True)` on a CPU, forward, up to rounding."""
    if missing := check_compiler():
        raise Skipped(f"inductor needs {missing}")
    call = make_call(plugin, Example(PLAIN))
    expected = call.run()
    torch._dynamo.reset()
    compiled = call.of(torch.compile(call.part, fullgraph=True)).run()
    worst = (compiled.float() - expected.float()).abs().max()
    expect(torch.allclose(compiled, expected, atol=1e-4, rtol=1e-3), f"compiled, it differs by up to {worst:.2g}")

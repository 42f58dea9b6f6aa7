"""Update ratios against a plain computation, and in a real run with a module that is not connected."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mcframe.metrics.accumulator import Accumulator
from mcframe.review.apply_rules import apply_rules
from mcframe.review.finding import Case
from mcframe.review.record import read_run
from mcframe.review.rules import read_rules
from mcframe.training.update_ratio import METRIC, SAMPLE, UpdateRatio, module_of

PLUGIN = """
from torch import nn
from mcframe.hookspecs import hookimpl
from mcframe_plugins.lensnet.transformer import TransformerLensNet

class Loose(TransformerLensNet):
    def __init__(self, shape):
        super().__init__(shape, layers=1, heads=2, width=16)
        self.unused = nn.Linear(16, 16)
        self.cut = nn.Linear(16, 16)

    def forward(self, context, embeddings):
        return super().forward(context, embeddings) + 0.0 * self.cut.weight.detach().sum()

@hookimpl
def register_plugins(register):
    register("loose", Loose)
"""


class Parts(nn.Module):
    """A trained part with a list of layers, and a frozen one."""

    def __init__(self, sizes):
        super().__init__()
        self.part = nn.Module()
        self.part.layers = nn.ModuleList(nn.Linear(size, 1) for size in sizes)
        self.part.scale = nn.Parameter(torch.zeros(3))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def loop_reference(before, after):
    """Return module -> relative change, from a loop over every element."""
    sums = {}
    for name in before:
        if not name.startswith("frozen"):
            row = sums.setdefault(module_of(name), [0.0, 0.0, 0.0])
            for old, new in zip(before[name].flatten().tolist(), after[name].flatten().tolist(), strict=True):
                row[0] += (new - old) ** 2
                row[1] += old**2
                row[2] += new**2
    return {m: (moved / max(then, now)) ** 0.5 if moved else 0.0 for m, (moved, then, now) in sums.items()}


def read(change):
    """Return the metrics that a run logs."""
    accumulator = Accumulator()
    accumulator.add(change.collect())
    return accumulator.read().metrics


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, SAMPLE), min_size=1, max_size=3), st.integers(0, 2**31), st.floats(1e-4, 10))
def test_small_tensors_are_measured_in_full(sizes, seed, by):
    torch.manual_seed(seed)
    model = Parts(sizes)
    change = UpdateRatio(model)
    for _ in range(2):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += by * torch.randn_like(parameter)
        expected = loop_reference(before, model.state_dict())
        assert read(change) == pytest.approx({f"train/update_ratio/{m}": v for m, v in expected.items()}, rel=1e-6)
    assert set(read(change).values()) == {0.0}


def test_large_tensors_are_estimated_from_a_bounded_sample():
    torch.manual_seed(0)
    model = nn.ModuleDict({"wide": nn.Linear(1024, 512), "narrow": nn.Linear(4, 3)})
    change = UpdateRatio(model)
    assert change.state().numel() <= 2 * SAMPLE + 15
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model["wide"].weight[:, ::2] += 0.01 * torch.randn(512, 512)
    changed, expected = read(change), loop_reference(before, model.state_dict())
    assert changed["train/update_ratio/wide"] == pytest.approx(expected["wide"], rel=0.15)
    assert changed["train/update_ratio/narrow"] == 0.0


@pytest.mark.parametrize("size", [1, 2, 5, 8, SAMPLE + 2])
def test_padding_of_a_partition_does_not_count(size):
    """At ZeRO 3 partitions are padded with uninitialised memory; here it holds NaN."""
    weights, ranks = torch.randn(size), 4
    held = -(-size // ranks)
    padded = torch.cat([weights, torch.full((held * ranks - size,), float("nan"))]).view(ranks, held)
    sums, expected = torch.zeros(2, dtype=torch.float64), 0.0
    for rank in range(ranks):
        model = nn.ModuleDict({"part": nn.Module()})
        model["part"].weight = nn.Parameter(torch.zeros(0))
        for name, value in {
            "ds_tensor": padded[rank].clone(), "ds_numel": size, "ds_zero_partition_rank": rank,
        }.items():  # fmt: skip
            setattr(model["part"].weight, name, value)
        change = UpdateRatio(model)
        model["part"].weight.ds_tensor += 0.5
        moved = change.collect().roots[METRIC + "part"]
        sums += moved
        own = padded[rank][padded[rank].isfinite()].double()
        expected += max(own.square().sum(), (own + 0.5).square().sum()).item()
        assert moved[0] == pytest.approx(0.25 * len(own))
    assert sums.tolist() == pytest.approx([0.25 * size, expected])


def test_an_interrupted_interval_is_resumed():
    model = Parts([5])
    complete, first = UpdateRatio(model), UpdateRatio(model)
    with torch.no_grad():
        model.part.scale += 1
    second = UpdateRatio(model)
    second.restore(first.state())
    assert read(second) == read(complete)
    second.restore(None)
    assert set(read(second).values()) == {0.0}


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("gpt.blocks.3.attention.query.weight", "gpt.blocks.3"),
        ("gpt.lm_head.weight", "gpt.lm_head"),
        ("gistnet.child_embed", "gistnet"),
        ("lensnet.0.weight", "lensnet.0"),
        ("weight", ""),
    ],
)
def test_the_module_of_a_parameter(name, module):
    assert module_of(name) == module


@pytest.mark.launcher
def test_unconnected_modules_are_found_in_a_real_run(launches, tmp_path):
    (tmp_path / "loose.py").write_text(PLUGIN, "utf-8")
    run = launches.run(
        "run.lensnet = @lensnet.loose", "run.trainable = ('base', 'lensnet')", "run.batch_tokens = 512",
        "run.total_tokens = 4096", "logging.every = 512", "deepspeed.zero_stage = 3",
        options=("--plugin", str(tmp_path / "loose.py")),
    ).succeeded()  # fmt: skip
    outcomes = apply_rules(Case(read_run(run.run_dir), read_rules()))
    (finding,) = [finding for finding in outcomes.findings if finding.rule == "unmoved_weights"]
    assert "lensnet.cut, lensnet.unused" in finding.title
    assert all("has never moved" in line for line in finding.evidence)
    assert "unmoved_weights" not in outcomes.skipped
    # GistNet is frozen and has no update ratio; every other trained module moves.
    changes = {name: values for name, values in read_run(run.run_dir).series.items() if "update_ratio" in name}
    assert not any("gistnet" in name for name in changes)
    assert all((v.means > 0).all() for n, v in changes.items() if not n.endswith((".cut", ".unused")))
    assert len(changes) == 12
    assert np.isfinite([v.last for v in changes.values()]).all()

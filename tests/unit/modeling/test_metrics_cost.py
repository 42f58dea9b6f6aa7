"""The benchmark of the cost of metrics compares with a step without metrics."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from mcframe.context.step_metrics import StepMetrics
from mcframe.metrics.accumulator import Accumulator, Reading
from mcframe.metrics.timers import Timers
from mcframe.modeling.model import no_timer
from tests.support.modeling_builders import TREE, FixedVariants, build_step, equal_lengths, random_tokens, seeds_for


@pytest.fixture(scope="module")
def benchmark(root):
    spec = importlib.util.spec_from_file_location("metrics_cost", root / "benchmarks" / "metrics_cost.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_step_without_metrics_computes_accumulates_and_times_nothing(benchmark):
    focuses, length = equal_lengths(TREE, 2, 2, seed=3)
    model = build_step(TREE, FixedVariants(focuses), lensnet="transformer")
    device = torch.device("cpu")
    trainer = SimpleNamespace(
        device=device, accumulator=Accumulator(device), timers=Timers(device),
        engine=SimpleNamespace(time_with=lambda timed: setattr(model, "timed", timed)),
    )  # fmt: skip
    phase = trainer.timers.phase

    def step():
        with trainer.timers.step():
            statistics = model(random_tokens(TREE, 2, 5), seeds_for(2, 2), length)[1]
            trainer.accumulator.add(statistics)
        return statistics

    with benchmark.without_metrics(trainer):
        assert model.timed is no_timer
        silent = step()
        trainer.accumulator.add(StepMetrics(counts={"mc/any": torch.ones(1, 1, dtype=torch.long)}))
    assert trainer.accumulator.read() == Reading()
    assert [silent.sums, silent.samples, silent.moments, silent.counts, silent.points] == [{}] * 5
    assert {float(each) for each in silent.means.values()} == {0.0}
    assert model.timed == phase
    assert not trainer.timers.collect().means
    full = step()
    assert full.means.keys() > silent.means.keys()
    assert full.counts
    assert full.points
    assert trainer.accumulator.read().counts
    assert trainer.timers.collect().means


def test_the_last_row_names_run_and_machine(benchmark, capsys):
    run_config = SimpleNamespace(logging=SimpleNamespace(every=8192), batch_tokens=2048)
    trainer = SimpleNamespace(run_config=run_config, device=torch.device("cpu"))
    pairs = [(100.0 + part, 100.0) for part in (3, 1, 2, 5, 4) for _ in range(2)]
    benchmark.report(trainer, "quickstart", pairs, [8.0])
    printed = capsys.readouterr().out.splitlines()
    (fifths,) = [line for line in printed if "by fifths" in line]
    assert fifths.endswith(" +3.00 %, +1.00 %, +2.00 %, +5.00 %, +4.00 %")
    row = printed[-1]
    assert row.startswith("| quickstart | 100 | +3.0 % (+1.0 to +5.0 %) | +2.0 % | +5.0 % | ")
    assert f"torch {torch.__version__}" in row

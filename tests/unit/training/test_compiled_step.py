"""The training step, compiled: equal to the eager one, a graph for each length, and errors with a remedy."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch

from mcframe.config.run_config import load_run_config
from mcframe.errors import UserError
from mcframe.modeling.rope import gaussian_rotation
from mcframe.training import compiled_step
from mcframe.training.build import build_optimizer
from mcframe.training.compiled_step import CompiledStep, describe_compile
from mcframe.training.train_step import StepBatch, TrainStep
from mcframe_plugins.variants import NoVariants, RandomCollapse
from mcframe_plugins.variants.drawing import mixes
from tests.support import oracle
from tests.support.generators import geometry_of
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import TREE, build_step, random_tokens, seeds_for

RUN10 = oracle.Tree(window=2048, block_size=32, levels=1, slots=1, tail=128, sink=0)


def small_step(tree: oracle.Tree = TREE, strategy=RandomCollapse, **options) -> TrainStep:
    settings = LossConfig(distillation=1.0, normalise=True)
    step = build_step(tree, strategy(geometry_of(tree), attempts=1), depth=1, settings=settings, **options)
    return TrainStep(step.model, list(step.losses.each()), step.settings.lens_targets)


def batch_of(tree: oracle.Tree, length: int, number: int = 0, sequences: int = 2) -> StepBatch:
    return StepBatch(random_tokens(tree, sequences, number), seeds_for(sequences, 2) + number, length)


def smallest_step() -> TrainStep:
    """Return a step whose graph takes inductor seconds: a base model without blocks, and the loss of its next token."""
    strategy, settings = NoVariants(geometry_of(TREE)), LossConfig()
    step = build_step(TREE, strategy, depth=0, gistnet=None, settings=settings)
    next_token = [loss for loss in step.losses.each() if loss.name == "next_token"]
    return TrainStep(step.model, next_token, settings.lens_targets)


def curve(step: TrainStep, steps: int = 4) -> torch.Tensor:
    """Return losses and metrics of steps of gradient descent, [steps, values]."""
    losses = []
    for number in range(steps):
        loss, metrics = step(batch_of(TREE, 21, number))
        step.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in step.parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad
        step.after_step()
        losses.append(torch.stack([loss.detach(), *(value.detach() for value, _ in metrics.means.values())]))
    return torch.stack(losses)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++")
@pytest.mark.parametrize(
    "build", [smallest_step, pytest.param(lambda: small_step(gistnet="mean"), marks=pytest.mark.matrix, id="complete")]
)
def test_inductors_losses_equal_eager_ones(build):
    """The complete step takes g++ a minute; `run.compile = 'eager'` traces it in tests that are run by default."""
    eager, compiled = build(), build()
    compiled.compiled = CompiledStep(True)
    with torch.compiler.set_stance("force_eager"):  # as on a CPU in training
        losses = curve(compiled)
    expected = curve(eager)
    assert compiled.compiled.graphs == 1
    torch.testing.assert_close(losses[:, 0], expected[:, 0], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-5)  # metrics of small differences, too
    assert expected[-1, 0] < expected[0, 0] - 0.01, "the steps train"


@pytest.mark.matrix
def test_the_lengths_of_run10_need_eight_graphs(caplog):
    config = load_run_config(["run10.gin"], ["run.compile = 'eager'"]).run_config
    assert config.context.tree == geometry_of(RUN10)
    lengths = list(dict.fromkeys(map(config.variant_length, range(0, config.steps, 500))))
    step = small_step(RUN10, gistnet=None)
    step.compiled = CompiledStep("eager")
    for number, length in enumerate([*lengths, *lengths]):
        step.begin_step(number / 16)
        step(batch_of(RUN10, length, number, sequences=1))[0].backward()
        step.after_step()
    assert step.compiled.metrics()["train/compiled_graphs"] == len(lengths) == 8
    assert next(note for _, note in step.compiled.notes()).startswith("compiled for variants of 1,831 entries in ")
    assert "has been compiled" not in caplog.text
    ninth = next(each for each in range(1831, 1521, -31) if each not in lengths)
    step(batch_of(RUN10, ninth, sequences=1))
    assert "has been compiled 9 times" in caplog.text


def test_beyond_a_limit_nothing_is_compiled(caplog, monkeypatch):
    monkeypatch.setattr(compiled_step, "_LIMIT", 2)
    with torch._dynamo.config.patch(recompile_limit=1), caplog.at_level(logging.WARNING):
        step = smallest_step()
        step.compiled = CompiledStep("eager")
        batches = [batch_of(TREE, 21, 0, sequences) for sequences in (1, 2, 3, 4)]
        losses = [step(batch)[0] for batch in batches]
    assert step.compiled.graphs == 2
    assert "not compiled, after 2 graphs" in caplog.text
    torch.testing.assert_close(losses, [step.compute(batch)[0] for batch in batches])


def test_no_step_builds_the_tables_of_positions_and_mixes():
    """They are attributes of the graph, not operations in it."""
    graphs = []
    tree = geometry_of(TREE)

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    @torch.compile(fullgraph=True, backend=keep)
    def tables(x):
        return x * gaussian_rotation(x, x, 4, frequencies=(1.0, 0.5))[0].sum() + mixes(tree, 21, x.device).sum()

    torch.testing.assert_close(tables(torch.ones(1, 2)), tables.__wrapped__(torch.ones(1, 2)))
    assert sum(node.op == "get_attr" for node in graphs[0].graph.nodes) == 2
    assert not any(node.target is torch.tensor for node in graphs[0].graph.nodes)


def test_evaluation_and_anomaly_mode_are_eager():
    step = small_step(gistnet=None)
    step.compiled = CompiledStep("eager")
    step.eval()(batch_of(TREE, 21))
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        step.train()(batch_of(TREE, 21))
    assert step.compiled.graphs == 0


def test_the_line_that_cannot_be_compiled_is_named():
    class Reads(RandomCollapse):
        def propose(self, sequences, scores, length, seeds):
            print(seeds.sum().item())
            return super().propose(sequences, scores, length, seeds)

    step = small_step(strategy=Reads, gistnet=None)
    step.compiled = CompiledStep("eager")
    with pytest.raises(UserError, match=r"run\.compile: torch\.compile failed: ") as caught:
        step(batch_of(TREE, 21))
    assert caught.value.location is not None
    assert caught.value.location.file == __file__
    assert "run.compile = False" in caught.value.remedy


def test_a_missing_compiler_is_one_message(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler \(no-such-compiler was not found\)") as caught:
        CompiledStep(True)
    assert "Install g++" in caught.value.remedy
    CompiledStep("eager")


def test_zero_3_is_refused():
    config = load_run_config(["smoke.gin"], ["run.compile = True", "deepspeed.zero_stage = 3"]).run_config
    with pytest.raises(UserError, match=r"run\.compile: expected False at ZeRO 3, got True") as caught:
        build_optimizer(config)
    assert "deepspeed.zero_stage to 0, 1 or 2" in caught.value.remedy
    build_optimizer(load_run_config(["smoke.gin"], ["run.compile = True", "deepspeed.zero_stage = 2"]).run_config)


def test_the_summary_names_the_lengths():
    config = load_run_config(["run10.gin"], ["run.compile = True", "context.length_steps = 2"]).run_config
    assert describe_compile(config, 2).startswith("the step for variants of 1,831, 1,521 entries; ")
    assert describe_compile(config, 0).startswith("the step; ")

"""Requirements of evaluations: metrics under their own name, the same every time."""

from __future__ import annotations

import math

import torch

from mcframe.data.sources import StandardLibrary
from mcframe.data.tokenizers import Bytes
from mcframe.evaluation.eval_model import EngineEvalModel
from mcframe.hookspecs import EvalData, EvalModel, EvalResult
from mcframe.testing.assertions import expect
from mcframe.testing.host_sync import random_states
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.reference import LowestFirst
from mcframe.testing.requirements import requirement
from mcframe.testing.training_step import TREE, step_with

WINDOWS = 6


class _SmallModel(EngineEvalModel):
    """A small untrained model that is evaluated on a few random sequences."""

    def held_out(self, windows: int, task: object = None, length: int | None = None) -> EvalData:
        """Return the same sequences every time."""
        generator = torch.Generator().manual_seed(0)
        size = (WINDOWS, length or self.tree.window)
        tokens = torch.randint(self.vocab_size, (WINDOWS, size[1] + 1), generator=generator)
        documents = torch.arange(WINDOWS)[:, None].expand(-1, size[1] + 1)
        return EvalData(tokens, documents, torch.ones(size, dtype=torch.bool))


def small_model(plugin: PluginUnderTest) -> EvalModel:
    """Return the argument of the evaluation."""
    model = step_with(plugin).eval().model
    return _SmallModel(
        model=model, tree=TREE, tokenizer=Bytes(), text=StandardLibrary, validation_fraction=0.1, own_task=None,
        allocator=LowestFirst, vocab_size=model.gpt.vocab_size, length=0.75, has_gists=True, has_lens=True,
        device=torch.device("cpu"), batch=WINDOWS,
    )  # fmt: skip


@requirement(
    "E1", "It returns an EvalResult with metrics `eval/NAME/...`, the same every time", "evaluation", after=("P6",)
)
def e1_result(plugin: PluginUnderTest) -> None:
    """For a small untrained model, under two random states. Undefined metrics are NaN, both times."""
    name, results = plugin.specimen.name, []
    expect(isinstance(name, str) and bool(name), f"name is {name!r}")
    for seed in (1, 2):
        with random_states(seed):
            results.append(plugin.build().run(small_model(plugin)))
    expect(isinstance(results[0], EvalResult), f"expected an EvalResult, got a {type(results[0]).__name__}")
    one, other = (each.metrics for each in results)
    misnamed = [metric for metric in one if not metric.startswith(f"eval/{name}/")]
    expect(not misnamed, f"{', '.join(misnamed[:3])}: expected names eval/{name}/...")
    types = {type(value).__name__ for value in one.values() if not isinstance(value, float)}
    expect(not types, f"a metric is a {', '.join(sorted(types))}, expected a float")
    expect(one.keys() == other.keys(), "the second time the metrics have other names")
    different = [metric for metric, value in one.items() if not _alike(value, other[metric])]
    expect(not different, f"the second time {', '.join(different[:3])} differ")


def _alike(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))

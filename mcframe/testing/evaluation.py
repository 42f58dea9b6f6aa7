"""Clauses of evaluations: findings of a model, the same every time."""

from __future__ import annotations

import math
from functools import cached_property

import torch

from mcframe.data.sources import StandardLibrary
from mcframe.data.tokenizers import Bytes
from mcframe.evaluation.eval_model import EngineEvalModel
from mcframe.hookspecs import EvalData, EvalModel, EvalResult
from mcframe.testing.host_sync import random_states
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.reference import LowestFirst
from mcframe.testing.requirements import expect, requirement
from mcframe.testing.training_step import GEOMETRY, build_step

WINDOWS = 6


class _SmallSubject(EngineEvalModel):
    """A small untrained model, judged on random sequences of a few documents, whatever is asked for."""

    @cached_property
    def _held(self) -> EvalData:
        generator = torch.Generator().manual_seed(0)
        size = (WINDOWS, self.tree.window)
        tokens = torch.randint(self.vocab_size, (WINDOWS, size[1] + 1), generator=generator)
        documents = torch.arange(WINDOWS)[:, None].expand(-1, size[1] + 1)
        return EvalData(tokens, documents, torch.ones(size, dtype=torch.bool))

    def held_out(self, windows: int, task: object = None) -> EvalData:
        """The same sequences every time."""
        return self._held


def subject(plugin: PluginUnderTest) -> EvalModel:
    """What the evaluation is given."""
    model = build_step(plugin).eval().model
    return _SmallSubject(
        model=model, tree=GEOMETRY, tokenizer=Bytes(), text=StandardLibrary, share=0.1, own_task=None,
        allocator=LowestFirst(GEOMETRY), vocab_size=model.gpt.vocab_size, length=0.75, has_gists=True, has_lens=True,
        device=torch.device("cpu"), batch=WINDOWS,
    )  # fmt: skip


@requirement(
    "E1", "It returns EvalResult whose metrics are called `eval/NAME/...` after it", "evaluation", after=("P9",)
)
def e1_findings(plugin: PluginUnderTest) -> None:
    """Of a small untrained model. Figures may be NaN where they are undefined."""
    name = plugin.specimen.name
    expect(isinstance(name, str) and bool(name), f"name is {name!r}")
    found = plugin.specimen.run(subject(plugin))
    expect(isinstance(found, EvalResult), f"it returned a {type(found).__name__}, which is no EvalResult")
    wrong = [metric for metric in found.metrics if not metric.startswith(f"eval/{name}/")]
    expect(not wrong, f"{', '.join(wrong[:3])}: not below eval/{name}/")
    values = [type(value).__name__ for value in found.metrics.values() if not isinstance(value, float)]
    expect(not values, f"a metric is a {', '.join(sorted(set(values)))}, not a float")


@requirement("E2", "The same model is judged alike every time", "evaluation", after=("E1",))
def e2_deterministic(plugin: PluginUnderTest) -> None:
    """Whatever the random state: every rank must ask the same things."""
    found = []
    for seed in (1, 2):
        with random_states(seed):
            found.append(plugin.build().run(subject(plugin)).metrics)
    one, other = found
    expect(one.keys() == other.keys(), "the second time there are other metrics")
    different = [name for name, value in one.items() if not _alike(value, other[name])]
    expect(not different, f"the second time {', '.join(different[:3])} differ")


def _alike(one: float, other: float) -> bool:
    """NaN is what is undefined, and must be so both times."""
    return one == other or (math.isnan(one) and math.isnan(other))

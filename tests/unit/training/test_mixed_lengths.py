"""Lengths of variants from step to step: annealed, or drawn between the annealed one and the first."""

from __future__ import annotations

from collections import Counter

import pytest

from mcframe.config.run_config import load_run_config
from mcframe.config.schema import RunConfig

MIXED = ["context.length_mixed = True", "context.length_start = 0.9", "context.length_end = 0.5"]


def run_config(*overrides: str) -> RunConfig:
    return load_run_config(["smoke.gin"], ["run.total_tokens = 1024000", *overrides]).run_config


def test_every_step_draws_between_the_annealed_target_and_the_first() -> None:
    mixed, plain = run_config(*MIXED), run_config(*MIXED[1:])
    first = plain.variant_length(0)
    assert mixed.variant_length(0) == first
    for step in range(0, mixed.steps, 7):
        assert plain.variant_length(step) <= mixed.variant_length(step) <= first
    late = Counter(mixed.variant_length(step) for step in range(mixed.steps - 200, mixed.steps))
    assert min(late) <= plain.variant_length(mixed.steps - 1) + 8, "the shortest lengths are among them"
    assert max(late) >= first - 8, "and so are the longest, to the end"


def test_a_step_s_length_depends_on_the_seed_and_the_step_alone() -> None:
    lengths = [[r.variant_length(step) for step in range(500, 560)] for r in (run_config(*MIXED), run_config(*MIXED))]
    assert lengths[0] == lengths[1]
    other = run_config(*MIXED, "run.seed = 1")
    assert [other.variant_length(step) for step in range(500, 560)] != lengths[0]


@pytest.mark.parametrize("name", ["recall.gin", "recall_focus.gin", "recall_base.gin"])
def test_the_recall_presets_build(name: str) -> None:
    from mcframe.training.build import build_components

    built = build_components(load_run_config([name], []).run_config)
    assert built.task is not None
    first, last = built.run_config.extreme_lengths
    assert built.tree.minimum_length == last or name == "recall_base.gin"
    assert first > last


def lengths(config: RunConfig) -> list[int]:
    """Return the lengths of up to 2,000 steps, evenly spaced, with the last one."""
    steps = [*range(0, config.steps, max(1, config.steps // 2000)), config.steps - 1]
    return [config.variant_length(step) for step in steps]


@pytest.mark.parametrize("mixed", [False, True])
def test_run10_compiles_at_most_eight_lengths(mixed: bool) -> None:
    settings = [f"context.length_mixed = {mixed}"]
    eager = load_run_config(["run10.gin"], settings).run_config
    compiled = load_run_config(["run10.gin"], [*settings, "run.compile = True"]).run_config
    assert len(set(lengths(eager))) > 8
    found = Counter(lengths(compiled))
    assert len(found) == 8
    assert compiled.extreme_lengths == eager.extreme_lengths == (max(found), min(found))
    spacing = (max(found) - min(found)) / 7
    assert all(
        abs(one - other) <= spacing / 2 + 31 for one, other in zip(lengths(compiled), lengths(eager), strict=True)
    )
    if not mixed:
        assert min(found.values()) > 100, "no graph is compiled for a few steps"


def test_few_lengths_stay_as_they_are() -> None:
    plain, few = (run_config("context.length_start = 0.5", "context.length_end = 0.42", more)
                  for more in ("run.compile = False", "run.compile = True"))  # fmt: skip
    assert 2 < len(set(lengths(plain))) <= 8
    assert lengths(few) == lengths(plain)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_has_as_many_lengths_as_it_sets(steps: int) -> None:
    config = run_config(f"context.length_steps = {steps}")
    found = sorted(set(lengths(config)))
    assert len(found) == steps
    first = run_config().variant_length(0)
    assert found[-1] == first
    assert steps == 1 or found[0] == run_config().extreme_lengths[1]

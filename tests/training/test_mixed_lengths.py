"""Lengths of variants from step to step: annealed, or drawn between the annealed one and the first."""

from __future__ import annotations

from collections import Counter

import pytest

from mcframe.recipe import load_recipe
from mcframe.training.settings import Recipe

MIXED = ["context.mixed_lengths = True", "context.start_length = 0.9", "context.train_wc_length = 0.5"]


def recipe(*overrides: str) -> Recipe:
    return load_recipe(["smoke.gin"], ["run.total_tokens = 1024000", *overrides]).recipe


def test_every_step_draws_between_the_annealed_target_and_the_first() -> None:
    mixed, plain = recipe(*MIXED), recipe(*MIXED[1:])
    first = plain.variant_length(0)
    assert mixed.variant_length(0) == first
    for step in range(0, mixed.steps, 7):
        assert plain.variant_length(step) <= mixed.variant_length(step) <= first
    late = Counter(mixed.variant_length(step) for step in range(mixed.steps - 200, mixed.steps))
    assert min(late) <= plain.variant_length(mixed.steps - 1) + 8, "the shortest lengths are among them"
    assert max(late) >= first - 8, "and so are the longest, to the end"


def test_a_step_s_length_depends_on_the_seed_and_the_step_alone() -> None:
    lengths = [[r.variant_length(step) for step in range(500, 560)] for r in (recipe(*MIXED), recipe(*MIXED))]
    assert lengths[0] == lengths[1]
    other = recipe(*MIXED, "run.seed = 1")
    assert [other.variant_length(step) for step in range(500, 560)] != lengths[0]


@pytest.mark.parametrize("name", ["recall.gin", "recall_focus.gin", "recall_base.gin"])
def test_the_recall_presets_build(name: str) -> None:
    from mcframe.training.assembly import assemble

    built = assemble(load_recipe([name], []).recipe)
    assert built.task is not None
    first, last = built.recipe.extreme_lengths
    assert built.geometry.minimum_length == last or name == "recall_base.gin"
    assert first > last

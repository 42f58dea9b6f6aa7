"""Budgets that the allocator cannot meet are found before training, in `mcframe check` and in a run alike."""

import pytest
import torch
from typer.testing import CliRunner

from mcframe.cli.app import app
from mcframe.config.run_config import load_run_config
from mcframe.context.context_tree import ContextTree
from mcframe.errors import UserError
from mcframe.training.budgets import check_budgets, out_of_reach
from mcframe.training.build import build_evaluations
from mcframe.training.flops import StepFlops
from mcframe_plugins.allocator import GreedyAllocator, TopKAllocator
from tests.support.forked_ranks import uncounted

# With LOD1 alone, the shortest context of the smoke preset has 44 of 128 entries.
FLAT = ("run.allocator = @allocator.topk",)
SHORT = ("context.length_end = 0.3",)
EVALUATED = ("run.evaluations = [@evaluation.focus_quality]", "evaluation.every = 1024")


def checked(smoke, *settings):
    run_config = load_run_config([smoke], list(settings)).run_config
    allocator = run_config.allocator(run_config.context.tree)
    return check_budgets(run_config, allocator, build_evaluations(run_config))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ((*FLAT, *SHORT), "context.length_end: the shortest context with LOD1 as the highest level has 44 entries"),
        ((*FLAT, *SHORT, "context.length_anneal = 0.01"), "context.length_end"),
        ((*FLAT, "context.length_start = 0.3", "context.length_end = 0.9"), "context.length_start"),
        (("run.allocator = @allocator.greedy", "allocator.greedy.protected_tail = 100", *SHORT), "context.length_end"),
    ],
)
def test_a_length_of_the_curriculum_that_the_allocator_does_not_reach_is_an_error(smoke, settings, named):
    with pytest.raises(UserError) as caught:
        checked(smoke, *settings)
    assert named in caught.value.message
    assert caught.value.binding.startswith("context.length_")


def test_fractions_of_evaluations_out_of_reach_are_warnings(smoke):
    budgets = "evaluation.focus_quality.budgets = (0.3, 0.5)"
    (warning,) = checked(smoke, *FLAT, *EVALUATED, budgets)
    assert "evaluation focus_quality: a budget of 30 % (38 entries) is out of reach" in warning
    assert checked(smoke, *EVALUATED, budgets) == []
    assert checked(smoke, *FLAT, budgets) == []  # nothing evaluates


def test_what_calls_no_allocator_has_no_budgets(smoke):
    assert checked(smoke, *FLAT, *SHORT, "run.lensnet = None") == []


def test_an_allocator_is_tried_unless_its_levels_say_enough():
    class Strict(GreedyAllocator):
        def allocate(self, scores, context, budget, seeds):
            if budget == 20:
                raise UserError("20 is unlucky")
            return super().allocate(scores, context, budget, seeds)

    tree = ContextTree(32, 4, 1, 1, 8)
    assert out_of_reach(Strict(tree), tree, 20) == "20 is unlucky"
    assert out_of_reach(Strict(tree), tree, 21) == ""
    assert "has 14 entries" in out_of_reach(TopKAllocator(tree), tree, 13)
    before = torch.get_rng_state()
    out_of_reach(Strict(tree), tree, 21)
    assert torch.equal(before, torch.get_rng_state())


def test_check_reports_them(smoke, monkeypatch):
    monkeypatch.setattr(StepFlops, "_run", uncounted)
    result = CliRunner().invoke(app, ["check", str(smoke), *(f"--set={each}" for each in (*FLAT, *SHORT))])
    assert result.exit_code == 2
    assert "does not reach the 38 entries of context.length_end" in " ".join(result.output.replace("│", "").split())

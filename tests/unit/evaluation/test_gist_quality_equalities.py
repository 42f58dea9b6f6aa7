"""Conditions that must be equal exactly, and conditions that must differ, for gists of known content."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mcframe.context.counter_rng import variant_seeds
from mcframe.errors import UserError
from mcframe.evaluation.collapse import random_focus
from mcframe.evaluation.gist_quality import GistQuality, score_conditions
from mcframe.evaluation.runner import check_names, run_evaluations
from mcframe.hookspecs import GistNet
from tests.support import oracle
from tests.support.evaluation_builders import FLAT, TREE, build_eval_model, build_model, some_sequences

CONDITIONS = ("full", "drop", "mean", "swap", "gist")
DATA = some_sequences(FLAT, 4, seed=1)
UNEVEN = oracle.Tree(window=32, block_size=3, levels=2, slots=2, tail=4, sink=0)


class Constant(GistNet):
    """The same gist for every block."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, children, lod):
        return self.value.expand(*children.shape[:2], 1, -1).to(children.dtype)


def deltas(model, data=DATA, rows=(0, 1, 2, 3), lod=1):
    """Return the deltas by condition, with all but one node collapsed; `rows` chooses each sequence's focus."""
    eval_model = build_eval_model(model, data)
    seeds = variant_seeds(0, torch.arange(4), 1)[:, 0]
    focus = random_focus(seeds, eval_model.tree, lod, eval_model.tree.compressible_nodes(lod) - 1)[list(rows)]
    return score_conditions(eval_model, data, focus, CONDITIONS).delta


def evaluate(model, data=DATA, **options):
    return GistQuality(lengths=(0.7,)).run(build_eval_model(model, data, **options))


def same(one, other):
    return torch.equal(one.nan_to_num(-9.0), other.nan_to_num(-9.0))


@pytest.mark.parametrize("tree", [FLAT, TREE], ids=["flat", "levels"])
def test_conditions_differ(tree):
    delta = deltas(build_model(tree, seed=1), some_sequences(tree, 4, seed=1))
    names = list(delta)
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            assert not torch.allclose(delta[one].nan_to_num(0), delta[other].nan_to_num(0), atol=1e-3), (one, other)


@pytest.mark.parametrize("zero", [True, False])
def test_swapping_a_constant_gist_changes_nothing(zero):
    """Dropping does: an empty entry still takes part in attention and predicts."""
    model = build_model(FLAT, seed=1)
    gist = torch.randn(16, generator=torch.Generator().manual_seed(0))
    model.model.gistnet = Constant(torch.zeros(16) if zero else gist)
    delta = deltas(model)
    assert same(delta["swap"], delta["gist"])
    assert not same(delta["drop"], delta["gist"])
    assert not same(delta["mean"], delta["gist"])


def test_a_gist_without_attention_is_a_dropped_one():
    """With a bias far below every logit, a gist has no effect on raw targets."""
    model = build_model(FLAT, seed=1, gist_bias=-1e4)
    for block in model.gpt.blocks:
        block.attention.gist_bias_embed.data.fill_(-1e4)
    delta = deltas(model)
    raw = ~delta["drop"].isnan()
    for name in ("gist", "swap", "mean"):
        torch.testing.assert_close(delta[name][raw], delta["drop"][raw], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tree", [FLAT, UNEVEN], ids=["flat", "uneven"])
def test_mean_gists_equal_the_mean_condition(tree):
    """Also where a slot of LOD2 stands for several slots of LOD1 that cover unequal numbers of tokens."""
    data, model = some_sequences(tree, 4, seed=1), build_model(tree, seed=1, gistnet="mean")
    for lod in range(1, tree.levels + 1):
        delta = deltas(model, data, lod=lod)
        assert same(delta["mean"], delta["gist"])
        assert not same(delta["swap"], delta["gist"])


def test_swapping_with_a_copy_changes_nothing():
    twice = replace(DATA, tokens=DATA.tokens[[0, 0, 1, 1]])
    delta = deltas(build_model(FLAT, seed=1), twice, rows=(0, 0, 1, 1))
    torch.testing.assert_close(delta["swap"], delta["gist"], equal_nan=True)
    assert not same(delta["drop"], delta["gist"])


def test_metrics_do_not_depend_on_the_batch_size():
    model, data = build_model(FLAT, seed=1), some_sequences(FLAT, 6, seed=1)
    expected = evaluate(model, data, batch=6).metrics
    for batch in (1, 2, 3, 5, 64):
        assert evaluate(model, data, batch=batch).metrics == pytest.approx(expected, abs=1e-5)


def test_a_baseline_that_is_the_model_itself_costs_the_same():
    model = build_model(FLAT, seed=1)
    metrics = evaluate(model, baselines=dict.fromkeys(("drop", "mean"), build_eval_model(model, DATA))).metrics
    for name, value in metrics.items():
        if "/drop/" in name or "/mean/" in name:
            own = name.replace("/drop/", "/drop_baseline/").replace("/mean/", "/mean_baseline/")
            assert metrics.get(own, value) == value
    assert any("drop_baseline" in name for name in metrics)


def test_the_table_marks_a_cheaper_baseline():
    """A baseline without attention to its context loses little by a gap."""
    model, cheap = build_model(FLAT, seed=1), build_model(FLAT, seed=2, gistnet=None)
    for block in cheap.gpt.blocks:
        block.attention.out.weight.data.mul_(0.01)
    result = evaluate(model, baselines={"drop": build_eval_model(cheap, DATA)})
    prefix = next(name for name in result.metrics if name.endswith("/entries")).removesuffix("entries")
    own, baseline = (result.metrics[f"{prefix}delta/{name}/tail"] for name in ("drop", "drop_baseline"))
    cell = dict(zip(result.tables[0].columns, result.tables[0].rows[0], strict=True))["drop"]
    assert abs(baseline) < abs(own)
    assert str(cell).endswith(" baseline") == (baseline < own)
    assert not any(str(value).endswith("baseline") for value in evaluate(model).tables[0].rows[0])


def test_names_of_evaluations_are_unique():
    with pytest.raises(UserError, match="'gist_quality'"):
        list(run_evaluations([GistQuality(), GistQuality()], None))
    check_names([GistQuality(), GistQuality(name="recall")])

"""What must be equal exactly, and what must differ, when gists carry nothing, too much, or the same."""

import pytest
import torch
from torch import nn

from mcframe.context.counter_rng import variant_seeds
from mcframe.errors import UserError
from mcframe.evaluation.collapse import random_focus
from mcframe.evaluation.gist_quality import GistQuality, measure
from mcframe.evaluation.runner import check_names, run_evaluations
from mcframe.hookspecs import GistNet
from tests.support.evaluation_builders import FLAT, TREE, build_model, build_subject, changed, some_sequences

EVERY = ("full", "drop", "mean", "swap", "gist")


class Constant(GistNet):
    """The same gist for every block."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, children, lod):
        return self.value.expand(*children.shape[:2], 1, -1).to(children.dtype)


def measured(model, held, tree, lod=1):
    subject = build_subject(model, held)
    seeds = variant_seeds(0, torch.arange(held.tokens.shape[0]), 1)[:, 0]
    count = subject.tree.compressible_nodes(lod) - 1
    focus = random_focus(seeds, subject.tree, lod, count)
    return measure(subject, held, focus, EVERY)


def same(one, other):
    return torch.equal(one.nan_to_num(-9.0), other.nan_to_num(-9.0))


@pytest.mark.parametrize("tree", [FLAT, TREE], ids=["flat", "levels"])
def test_conditions_differ_when_gists_are_gists(tree):
    delta = measured(build_model(tree, seed=1), some_sequences(tree, 4, seed=1), tree).delta
    names = list(delta)
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            assert not torch.allclose(delta[one].nan_to_num(0), delta[other].nan_to_num(0), atol=1e-3), (one, other)


@pytest.mark.parametrize("zero", [True, False])
def test_a_gist_that_is_always_the_same_is_as_good_when_swapped(zero):
    """Dropping is another thing: an empty entry still takes part in attention and predicts."""
    model = build_model(FLAT, seed=1)
    gist = torch.randn(16, generator=torch.Generator().manual_seed(0))
    model.model.gistnet = Constant(torch.zeros(16) if zero else gist)
    delta = measured(model, some_sequences(FLAT, 4, seed=1), FLAT).delta
    assert same(delta["swap"], delta["gist"])
    assert not same(delta["drop"], delta["gist"])
    assert not same(delta["mean"], delta["gist"])


def test_a_gist_that_nothing_attends_to_is_a_dropped_one():
    """With a bias far below every logit a gist is invisible: raw targets cannot tell it from a gap."""
    model, held = build_model(FLAT, seed=1, gist_bias=-1e4), some_sequences(FLAT, 4, seed=1)
    for block in model.gpt.blocks:
        block.attention.gist_bias_embed.data.fill_(-1e4)
    result = measured(model, held, FLAT)
    raw = ~result.delta["drop"].isnan()
    for name in ("gist", "swap", "mean"):
        torch.testing.assert_close(result.delta[name][raw], result.delta["drop"][raw], atol=1e-5, rtol=1e-5)


def test_mean_gists_are_the_mean_control():
    delta = measured(build_model(FLAT, seed=1, gistnet="mean"), some_sequences(FLAT, 4, seed=1), FLAT).delta
    assert same(delta["mean"], delta["gist"])
    assert not same(delta["swap"], delta["gist"])


def test_swapping_with_a_copy_of_oneself_changes_nothing():
    held = some_sequences(FLAT, 4, seed=1)
    twice = changed(held, held.tokens[[0, 0, 1, 1]])
    subject = build_subject(build_model(FLAT, seed=1), twice)
    seeds = variant_seeds(0, torch.arange(4), 1)[:, 0]
    focus = random_focus(seeds, subject.tree, 1, 3)[[0, 0, 1, 1]]
    delta = measure(subject, twice, focus, EVERY).delta
    torch.testing.assert_close(delta["swap"], delta["gist"], equal_nan=True)
    assert not same(delta["drop"], delta["gist"])


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 64])
def test_how_sequences_are_batched_changes_nothing(batch):
    model, held = build_model(FLAT, seed=1), some_sequences(FLAT, 6, seed=1)
    want = GistQuality(lengths=(0.7,), resamples=20).run(build_subject(model, held, batch=6)).metrics
    found = GistQuality(lengths=(0.7,), resamples=20).run(build_subject(model, held, batch=batch)).metrics
    assert found.keys() == want.keys()
    assert list(found.values()) == pytest.approx(list(want.values()), abs=1e-5)


def test_a_reference_that_is_the_model_itself_costs_the_same():
    model, held = build_model(FLAT, seed=1), some_sequences(FLAT, 4, seed=1)
    references = {"drop": build_subject(model, held), "mean": build_subject(model, held)}
    metrics = GistQuality(lengths=(0.7,), resamples=20).run(build_subject(model, held, baselines=references)).metrics
    for name, value in metrics.items():
        if "/drop/" in name or "/mean/" in name:
            own = name.replace("/drop/", "/drop_baseline/").replace("/mean/", "/mean_baseline/")
            assert metrics.get(own, value) == value
    assert any("drop_baseline" in name for name in metrics)


def test_the_cheaper_drop_counts_and_the_table_says_whose():
    """A reference that ignores its context loses nothing by a gap."""
    model, held = build_model(FLAT, seed=1), some_sequences(FLAT, 4, seed=1)
    deaf = build_model(FLAT, seed=2, gistnet=None)
    for block in deaf.gpt.blocks:
        block.attention.out.weight.data.mul_(0.01)
    subject = build_subject(model, held, baselines={"drop": build_subject(deaf, held)})
    findings = GistQuality(lengths=(0.7,), resamples=200).run(subject)
    prefix = next(name for name in findings.metrics if name.endswith("/entries")).removesuffix("entries")
    cell = dict(zip(findings.tables[0].columns, findings.tables[0].rows[0], strict=True))
    own, reference = findings.metrics[f"{prefix}delta/drop/tail"], findings.metrics[f"{prefix}delta/drop_baseline/tail"]
    assert abs(reference) < abs(own)
    assert str(cell["drop"]).endswith(" reference") == (reference < own)
    alone = GistQuality(lengths=(0.7,), resamples=200).run(build_subject(model, held)).tables[0].rows[0]
    assert not any(str(value).endswith("reference") for value in alone)


def test_two_evaluations_of_one_name_are_refused():
    with pytest.raises(UserError, match="two evaluations are called 'gist_quality'"):
        check_names([GistQuality(), GistQuality()])
    with pytest.raises(UserError, match="two evaluations"):
        list(run_evaluations([GistQuality(), GistQuality()], None))
    check_names([GistQuality(), GistQuality(name="recall_controls")])


@pytest.mark.parametrize("setting", [{"windows": 1}, {"lengths": (0.5, 1.0)}, {"resamples": 0}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(UserError, match=f"evaluation.gist_quality.{next(iter(setting))}: expected"):
        GistQuality(**setting)

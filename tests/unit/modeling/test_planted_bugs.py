"""Planted bugs of the most expensive kind: the checks that run over the real code must notice each of them."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import mcframe.training.train_step
from mcframe.context.delta_nll import pair_nll
from mcframe.context.working_context import WorkingContext, gather_embeddings
from mcframe_plugins.variants import RandomCollapse
from tests.support.modeling_builders import TREE, build_step, geometry_of, random_tokens, seeds_for
from tests.support.step_checks import check_against_the_slow_step, check_everything_learns


def check(sequences: int = 1) -> None:
    check_against_the_slow_step(TREE, variants=2, sequences=sequences, seed=3, depth=1)


def test_the_code_as_it_is_passes():
    check(sequences=2)


@pytest.mark.parametrize(
    "targets",
    [
        lambda self, next_tokens: next_tokens.gather(1, (self.end - 2).clamp(min=0)),
        lambda self, next_tokens: next_tokens.gather(1, self.end.clamp(max=next_tokens.shape[1] - 1)),
        lambda self, next_tokens: next_tokens.gather(1, self.start),
    ],
    ids=["one early", "one late", "inputs"],
)
def test_wrong_targets(monkeypatch, targets):
    monkeypatch.setattr(WorkingContext, "targets", targets)
    with pytest.raises(AssertionError):
        check()


@dataclass(frozen=True)
class Neighbour:
    """A context whose gists are read `step` nodes too far."""

    context: WorkingContext
    step: int

    @property
    def focus(self) -> Tensor:
        return self.context.focus

    @property
    def row(self) -> Tensor:
        moved = self.context.row + torch.where(self.context.lod > 0, self.step * self.context.slots, 0)
        return moved.clamp(max=self.context.tree.table_rows - 1)


BUGS = {
    "baseline shifted by one": (
        "pair_nll",
        lambda context, nll, baseline, *masks: pair_nll(context, nll, baseline.roll(1, dims=1), *masks),
    ),
    "gist of the next block": (
        "gather_embeddings",
        lambda table, context: gather_embeddings(table, Neighbour(context, 1)),
    ),
    "gist of the previous block": (
        "gather_embeddings",
        lambda table, context: gather_embeddings(table, Neighbour(context, -1)),
    ),
    "gist of another sequence": (
        "gather_embeddings",
        lambda table, context: gather_embeddings(table.flip(0), context),
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_wrong_pairs_and_gists(monkeypatch, bug):
    name, wrong = BUGS[bug]
    monkeypatch.setattr(mcframe.training.train_step, name, wrong)
    with pytest.raises(AssertionError):
        check(sequences=2)


def learn(trained=lambda model: model.parameters()) -> None:
    model = build_step(TREE, RandomCollapse(geometry_of(TREE)), lensnet="transformer")
    tokens, seeds = random_tokens(TREE, 2, 0), seeds_for(2, 2)
    check_everything_learns(model, lambda step: model(tokens, seeds + step, 21)[0], trained(model))


@pytest.mark.parametrize("omitted", ["gpt", "gistnet", "lensnet", "gpt.lod_embed", "gistnet.head"])
def test_a_module_omitted_from_the_optimizer(omitted):
    def trained(model):
        missing = {id(p) for p in model.get_submodule(omitted).parameters()}
        return [p for p in model.parameters() if id(p) not in missing]

    with pytest.raises(AssertionError, match="did not move"):
        learn(trained)


def test_a_module_that_the_loss_does_not_reach(monkeypatch):
    learn()
    monkeypatch.setattr(
        mcframe.training.train_step,
        "gather_embeddings",
        lambda table, context: gather_embeddings(table.detach(), context),
    )
    with pytest.raises(AssertionError, match="without a gradient"):
        learn()

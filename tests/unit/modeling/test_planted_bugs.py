"""Bugs of the dearest kind, put in on purpose: the checks that run over the real code must notice each of them."""

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


def check() -> None:
    check_against_the_slow_step(TREE, variants=2, sequences=1, seed=3)


def test_the_code_as_it_is_passes():
    check()


@pytest.mark.parametrize("shift", [-1, 1])
def test_targets_shifted_by_one(monkeypatch, shift):
    def shifted(self: WorkingContext, next_tokens: Tensor) -> Tensor:
        return next_tokens.gather(1, (self.end - 1 + shift).clamp(0, next_tokens.shape[1] - 1))

    monkeypatch.setattr(WorkingContext, "targets", shifted)
    with pytest.raises(AssertionError):
        check()


def test_partners_shifted_by_one(monkeypatch):
    monkeypatch.setattr(
        mcframe.training.train_step,
        "pair_nll",
        lambda context, nll, baseline, counts: pair_nll(context, nll, baseline.roll(1, dims=1), counts),
    )
    with pytest.raises(AssertionError):
        check()


def test_inputs_as_targets(monkeypatch):
    monkeypatch.setattr(WorkingContext, "targets", lambda self, next_tokens: next_tokens.gather(1, self.start))
    with pytest.raises(AssertionError):
        check()


@pytest.mark.parametrize("step", [-1, 1])
def test_the_gist_of_the_neighbouring_block(monkeypatch, step):
    @dataclass(frozen=True)
    class Neighbour:
        """A context whose gists are read one node too far."""

        context: WorkingContext

        @property
        def focus(self) -> Tensor:
            return self.context.focus

        @property
        def row(self) -> Tensor:
            gist = self.context.lod > 0
            moved = self.context.row + torch.where(gist, step * self.context.slots, 0)
            return moved.clamp(max=self.context.tree.table_rows - 1)

    monkeypatch.setattr(
        mcframe.training.train_step,
        "gather_embeddings",
        lambda table, context: gather_embeddings(table, Neighbour(context)),
    )
    with pytest.raises(AssertionError):
        check()


def test_a_gist_of_another_sequence(monkeypatch):
    monkeypatch.setattr(
        mcframe.training.train_step,
        "gather_embeddings",
        lambda table, context: gather_embeddings(table.flip(0), context),
    )
    with pytest.raises(AssertionError):
        check_against_the_slow_step(TREE, variants=2, sequences=2, seed=3)


@pytest.mark.parametrize("left_out", ["gpt", "gistnet", "lensnet", "gpt.lod_embed", "gistnet.head"])
def test_a_module_left_out_of_the_optimizer(left_out):
    model = build_step(TREE, RandomCollapse(geometry_of(TREE)), lensnet="transformer")
    tokens = random_tokens(TREE, 2, 0)

    def loss(step: int) -> Tensor:
        return model(tokens, seeds_for(2, 2) + step, 21)[0]

    missing = {id(p) for p in model.get_submodule(left_out).parameters()}
    with pytest.raises(AssertionError, match="did not move"):
        check_everything_learns(model, loss, [p for p in model.parameters() if id(p) not in missing])
    check_everything_learns(model, loss, model.parameters())


def test_a_module_that_the_loss_does_not_reach(monkeypatch):
    model = build_step(TREE, RandomCollapse(geometry_of(TREE)), lensnet="transformer")
    tokens = random_tokens(TREE, 2, 0)
    monkeypatch.setattr(
        mcframe.training.train_step,
        "gather_embeddings",
        lambda table, context: gather_embeddings(table.detach(), context),
    )
    with pytest.raises(AssertionError, match="without a gradient"):
        check_everything_learns(model, lambda i: model(tokens, seeds_for(2, 2) + i, 21)[0], model.parameters())

"""`train/loss` weights sequences equally, however many targets they have and however they are dealt to ranks."""

import io

import pytest
import torch
import torch.distributed as dist

from tests.support.layouts import SEQUENCES, build_engine, in_ranks

COUNTS = (1, 17, 90, 128)
"""Targets of each sequence."""
NAMES = ("train/loss", "mc/lens_loss", "train/loss_lod0", "loss/next_token")


def losses(micro_batch, step=0, earlier=None):
    """Return the reading of an interval of four sequences, and its state, as a checkpoint would hold it.

    Args:
        micro_batch: Sequences of a micro-batch of one rank.
        step: Determines the tokens.
        earlier: States of ranks before a change of their number; the four sequences are added to them.
    """
    from mcframe.context.counter_rng import variant_seeds
    from mcframe.metrics.accumulator import Accumulator
    from mcframe.training.train_step import StepBatch

    engine, config = build_engine(0)
    rank, world = dist.get_rank(), dist.get_world_size()
    tokens = torch.randint(0, 96, (SEQUENCES, 129), generator=torch.Generator().manual_seed(step))
    loss_mask = torch.arange(128) >= 128 - torch.tensor(COUNTS)[:, None]
    seeds = variant_seeds(0, torch.arange(SEQUENCES), engine.model.strategy.count)
    accumulator = Accumulator()
    if earlier is not None:
        accumulator.restore(Accumulator.merge([torch.load(io.BytesIO(state)) for state in earlier]))
    for some in torch.arange(SEQUENCES)[rank::world].split(micro_batch):
        batch = StepBatch(tokens[some], seeds[some], config.variant_length(0), loss_mask[some])
        accumulator.add(engine.step(batch)[1])
    state = io.BytesIO()
    torch.save({"held": accumulator.state()["held"], "earlier": []}, state)
    return state.getvalue(), accumulator.read().metrics


def several(cases):
    """Return what `losses` returns for each of some arguments."""
    return [losses(*each) for each in cases]


def test_the_loss_is_the_same_for_all_ranks_and_micro_batches():
    (((before, expected), single, (_, later)),) = in_ranks(several, 1, [(4,), (1,), (4, 1)])
    # The last one is a change of ranks within the interval: a micro-batch of four sequences, then four of one.
    on_two_ranks = in_ranks(several, 2, [(1,), (2,), (1, 1, [before])])
    for _, found in (single, *(each for of_rank in on_two_ranks for each in of_rank[:2])):
        for name in NAMES:
            assert found[name] == pytest.approx(expected[name], abs=1e-6), name
    for *_, (_, found) in on_two_ranks:
        for name in NAMES:
            assert later[name] != pytest.approx(expected[name], abs=1e-3), name
            assert found[name] == pytest.approx((expected[name] + later[name]) / 2, abs=1e-6), name

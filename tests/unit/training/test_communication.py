"""The formula of what ranks send each other in a step, and the sizes that are added up."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist

from mcframe.training.communication import Collectives, Exchange, exchange

SIZES = {"trained": 1000, "large": 600, "width": 4}


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (0, Exchange(reduced=4000)),
        (1, Exchange(reduced=4000, gathered=4000)),
        (2, Exchange(reduced=12_000, gathered=4000)),
        (3, Exchange(scattered=12_000, gathered=3 * 2 * 2400 + 1600)),
    ],
)
def test_messages_of_a_step_of_three_micro_batches(stage, expected):
    assert exchange(**SIZES, stage=stage, accumulation=3, calls=2.0) == expected


def test_a_ring_sends_a_reduction_in_two_rounds():
    message = Exchange(reduced=100, scattered=10, gathered=1)
    assert message.sent(1) == 0
    assert message.sent(2) == pytest.approx(105.5)
    assert message.sent(4) == pytest.approx(158.25)


def communicate(rank, folder, sender):
    """Run collectives of two ranks, one of them in a backward pass, and send what was added up."""
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    weight = torch.ones(6, requires_grad=True)
    weight.register_hook(lambda gradient: dist.all_reduce(gradient.clone()))
    with Collectives() as collectives:
        dist.all_reduce(torch.ones(10))
        dist.all_gather_into_tensor(torch.empty(8), torch.ones(4))
        dist.reduce_scatter_tensor(torch.empty(3), torch.ones(6))
        dist.broadcast(torch.ones(5, dtype=torch.bfloat16), 0)
        (weight * 2).sum().backward()
    sender.send(dict(collectives.bytes))
    dist.destroy_process_group()


def test_messages_of_real_collectives_are_added_up(tmp_path):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    ranks = [context.Process(target=communicate, args=(rank, tmp_path, sender)) for rank in range(2)]
    for each in ranks:
        each.start()
    for _ in ranks:
        assert receiver.poll(100)
        assert receiver.recv() == {"allreduce": 40 + 24, "allgather": 32, "reduce_scatter": 24, "broadcast": 10}
    for each in ranks:
        each.join()

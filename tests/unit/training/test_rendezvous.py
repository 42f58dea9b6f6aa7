"""Ranks that do not start are named; buffers in shared memory do not outlive their process."""

import os
import signal
import threading
import time

import pytest

from mcframe.environment import free_port
from mcframe.errors import UserError
from mcframe.training import engine, rendezvous, stall
from mcframe.training.rendezvous import SharedBuffer, await_ranks
from mcframe.training.stall import StallWatch
from tests.support.forked_ranks import CONTEXT


@pytest.fixture
def port(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))


def meet(*ranks, of, limit):
    """Return what each of some ranks gets: the store, or the message of an error."""
    found = {}

    def one(rank):
        try:
            found[rank] = await_ranks(rank, of, limit)
        except UserError as error:
            found[rank] = error.message

    threads = [threading.Thread(target=one, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_ranks_that_meet_have_a_store_in_common(port):
    stores = meet(1, 0, of=2, limit=20)
    stores[1].set("key", "value")
    assert stores[0].get("key") == b"value"


def test_a_rank_that_does_not_start_is_named(port):
    found = meet(0, 2, of=4, limit=1)
    messages = [f"ranks 1, 3 of 4 did not start within 1 s after rank {rank}" for rank in (0, 2)]
    assert found[0] == messages[0]
    assert found[2] in (messages[1], "rank 0 of 4 ended in start-up, which rank 2 waited for")


def test_rank_0_which_holds_the_store_is_named(port):
    assert meet(1, of=2, limit=0.5) == {1: "rank 0 of 2 did not start within 0.5 s after rank 1"}


def hold_a_buffer(folder, environment, sender):
    """Create a buffer, and wait to be killed."""
    os.environ.update(environment)
    rendezvous._FOLDER = folder
    buffer = SharedBuffer(0)
    sender.send("created")
    time.sleep(30)
    del buffer


def test_a_buffer_of_a_killed_process_is_removed_at_the_next_start(port, monkeypatch, tmp_path):
    monkeypatch.setattr(rendezvous, "_FOLDER", tmp_path)
    foreign = tmp_path / f"deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_1_0"  # of plain DeepSpeed
    foreign.touch()
    os.truncate(foreign, 66 * 2**20 + 8)
    receiver, sender = CONTEXT.Pipe(duplex=False)
    other = CONTEXT.Process(target=hold_a_buffer, args=(tmp_path, {**os.environ, "MASTER_PORT": "2"}, sender))
    other.start()
    sender.close()
    try:
        assert receiver.recv() == "created"
        (file,) = set(tmp_path.iterdir()) - {foreign}
        buffer = SharedBuffer(0)
        assert file.exists()  # its process runs
        own = set(tmp_path.iterdir()) - {foreign, file}
        assert len(own) == 1
        buffer.remove()
    finally:
        other.kill()
        other.join()
    SharedBuffer(1).remove()
    assert list(tmp_path.iterdir()) == [foreign]


def starts(rank, environment, ended, number, sender):
    """Form a group of two ranks. One of them sends itself a signal meanwhile, the other one the error."""

    def stalled(error):
        sender.send(error.message)
        os._exit(3)

    def met(store):
        StallWatch(store, rank, 2, stalled, 1.0, starts=True).start()
        if rank == ended:
            os.kill(os.getpid(), number)

    os.environ.update(environment)
    stall.START_S = 2.0 * stall.HANG_FACTOR  # a start waits for two seconds
    engine.prepare_environment()
    engine.start_distributed(60.0, met)


@pytest.mark.launcher
@pytest.mark.parametrize(
    ("rank", "number", "message"),
    [(1, signal.SIGKILL, "rank 1 of 2 stopped: no sign of life while rank 0 waited for 2 s"),
     pytest.param(1, signal.SIGSTOP, "rank 1 of 2 stopped: no sign of life while rank 0 waited for 2 s",
                  marks=pytest.mark.matrix),
     pytest.param(0, signal.SIGKILL, "rank 0 of 2 ended in start-up, which rank 1 waited for",
                  marks=pytest.mark.matrix)],
)  # fmt: skip
def test_a_rank_that_ends_or_stops_while_the_group_forms_is_named(port, rank, number, message):
    """torch would wait for half an hour."""
    group = {**os.environ, "WORLD_SIZE": "2", "LOCAL_SIZE": "2", "LOCAL_RANK": "0"}
    receiver, sender = CONTEXT.Pipe(duplex=False)
    ranks = [
        CONTEXT.Process(target=starts, args=(each, {**group, "RANK": str(each)}, rank, int(number), sender))
        for each in (0, 1)
    ]
    for each in ranks:
        each.start()
    sender.close()
    try:
        ranks[1 - rank].join(90)
        assert ranks[1 - rank].exitcode == 3
        assert receiver.poll()
        assert message in receiver.recv()
    finally:
        for each in ranks:
            each.kill()

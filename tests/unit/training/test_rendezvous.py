"""Ranks that do not start are named; buffers in shared memory do not outlive their process."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mcframe.environment import free_port
from mcframe.errors import UserError
from mcframe.training import rendezvous
from mcframe.training.rendezvous import SharedBuffer, await_ranks

BUFFER = """
import sys, time
from pathlib import Path
from mcframe.training import rendezvous
rendezvous._FOLDER = Path(sys.argv[1])
buffer = rendezvous.SharedBuffer(0)
print("created", flush=True)
time.sleep(30)
"""


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


def test_a_buffer_of_a_killed_process_is_removed_at_the_next_start(port, monkeypatch, tmp_path):
    monkeypatch.setattr(rendezvous, "_FOLDER", tmp_path)
    foreign = tmp_path / f"deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_1_0"  # of plain DeepSpeed
    foreign.touch()
    os.truncate(foreign, 66 * 2**20 + 8)
    with subprocess.Popen(
        [sys.executable, "-c", BUFFER, str(tmp_path)],
        env={**os.environ, "MASTER_PORT": "2"},
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"created\n"
        (file,) = set(tmp_path.iterdir()) - {foreign}
        buffer = SharedBuffer(0)
        assert file.exists()  # its process runs
        own = set(tmp_path.iterdir()) - {foreign, file}
        assert len(own) == 1
        buffer.remove()
        other.send_signal(signal.SIGKILL)
    SharedBuffer(1).remove()
    assert list(tmp_path.iterdir()) == [foreign]


STARTS = """
import os, sys, threading, time
import mcframe.training.engine as engine
from mcframe.training.stall import StallWatch

def stalled(error):
    print(error.message, flush=True)
    os._exit(3)

def met(store):
    rank = int(os.environ["RANK"])
    watch = StallWatch(store, rank, 2, stalled, 1.0, starts=True)
    watch.start()
    if rank == int(sys.argv[1]):
        os.kill(os.getpid(), int(sys.argv[2]))

engine.prepare_environment()
engine.start_distributed(60.0, met)
"""


@pytest.mark.launcher
@pytest.mark.parametrize(
    ("rank", "number", "message"),
    [(1, signal.SIGKILL, "rank 1 of 2 stopped: no sign of life while rank 0 waited for 12 s"),
     pytest.param(1, signal.SIGSTOP, "rank 1 of 2 stopped: no sign of life while rank 0 waited for 12 s",
                  marks=pytest.mark.matrix),
     pytest.param(0, signal.SIGKILL, "rank 0 of 2 ended in start-up, which rank 1 waited for",
                  marks=pytest.mark.matrix)],
)  # fmt: skip
def test_a_rank_that_ends_or_stops_while_the_group_forms_is_named(port, rank, number, message):
    """torch would wait for half an hour."""
    group = {**os.environ, "WORLD_SIZE": "2", "LOCAL_SIZE": "2", "LOCAL_RANK": "0"}
    command = [sys.executable, "-c", STARTS, str(rank), str(int(number))]
    ranks = [
        subprocess.Popen(command, env={**group, "RANK": str(each)}, stdout=subprocess.PIPE, text=True)
        for each in (0, 1)
    ]
    began = time.monotonic()
    try:
        output, _ = ranks[1 - rank].communicate(timeout=90)
    finally:
        for each in ranks:
            each.kill()
    assert ranks[1 - rank].returncode == 3, output
    assert message in output
    assert time.monotonic() - began < 80

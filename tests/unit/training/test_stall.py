"""Ranks for which the others wait in vain are named; slow ones are not."""

import os
import signal
import sys
import threading
import time

import pytest
import torch
import torch.distributed as dist

from mcframe.environment import free_port
from mcframe.training import stall
from mcframe.training.checkpoint_writer import CheckpointWriter, WriteJob, prepare_folder
from mcframe.training.stall import HANG_FACTOR, StallWatch
from tests.support.forked_ranks import CONTEXT

LIMIT = 20.0


def groups(sender):
    """Fork two groups of two ranks that wait for each other; in each, one rank is stopped. Send what is noticed."""
    both = []
    for stopped in (0, 1):
        port, ranks = free_port(), []
        for rank in (0, 1):
            ranks.append(os.fork())
            if not ranks[-1]:
                wait_in_a_group(rank, stopped, port, sender)
                os._exit(0)
        both.append(ranks)
    for stopped, ranks in enumerate(both):
        _, status = os.waitpid(ranks[1 - stopped], 0)
        sender.send(str(os.waitstatus_to_exitcode(status)))
        os.kill(ranks[stopped], signal.SIGKILL)


def wait_in_a_group(rank, stopped, port, sender):
    def stalled(error):
        sender.send(error.message)
        os._exit(3)

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    store = dist.distributed_c10d._get_default_store()
    StallWatch(store, rank, 2, stalled, 3.0).start()
    dist.barrier()
    if rank == stopped:
        while not store.check(stall.sign_keys(2)):  # nothing is concluded before
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(torch.ones(1))


class Store(dict):
    """A store in this process."""

    silent = False

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def set(self, key, value):
        assert not self.lock.locked(), "a request after one without an answer waits for ever"
        self[key] = value.encode()

    def check(self, keys):
        if self.silent:
            self.lock.acquire()
            threading.Event().wait()
        return all(key in self for key in keys)

    def multi_get(self, keys):
        return [self[key] for key in keys]


class Ranks:
    """Three ranks whose main threads do what a test sets: `waits`, `works`, `saves` or `may be slow`."""

    def __init__(self, monkeypatch):
        self.store, self.doing, self.frame = Store(), {}, sys._getframe()
        self.watches = [StallWatch(self.store, rank, 3, lambda error: None, LIMIT) for rank in range(3)]
        self.lines, self.current = {}, 0
        monkeypatch.setattr(stall, "_collective", lambda frame: self.frame if self.does == "waits" else None)
        monkeypatch.setattr(stall, "_checkpoint_wait", lambda frame: self.frame if self.does == "saves" else None)
        monkeypatch.setattr(stall, "_may_be_slow", lambda frame: self.does in ("may be slow", "saves"))
        monkeypatch.setattr(stall, "_line", lambda frame: self.lines.get(self.current, "train.py:1"))

    @property
    def does(self):
        return self.doing[self.current]

    def after(self, seconds, *doing):
        """Return the first error while the ranks do this for some seconds; None is a rank without a sign of life."""
        self.doing = dict(enumerate(doing))
        for _ in range(int(seconds)):
            for rank, watch in enumerate(self.watches):
                self.current = rank
                if self.does is not None and (error := watch.look(1.0)):
                    return error.message
        return None


@pytest.fixture
def ranks(monkeypatch):
    ranks = Ranks(monkeypatch)
    assert ranks.after(3 * LIMIT, "works", "works", "works") is None
    return ranks


def test_a_rank_without_a_sign_of_life_is_named(ranks):
    assert ranks.after(LIMIT - 1, "waits", None, "waits") is None
    assert "rank 1 of 3 stopped" in ranks.after(3, "waits", None, "waits")


def test_a_rank_that_stops_while_the_others_wait_for_its_part_of_a_checkpoint_is_named(ranks):
    assert ranks.after(10 * LIMIT, "saves", "may be slow", "saves") is None  # a slow disk
    assert "rank 1 of 3 stopped" in ranks.after(LIMIT + 3, "saves", None, "saves")


def test_the_wait_for_a_checkpoint_is_seen(tmp_path):
    done = threading.Event()
    writer = CheckpointWriter(dist.HashStore(), 0, 1)
    prepare_folder(tmp_path, 1)
    writer.start(WriteJob(tmp_path, 1, lambda folder: [str(done.wait(60))][1:], {}, 1))
    waiting = threading.Thread(target=writer.wait)
    waiting.start()
    until = time.monotonic() + 20
    while stall._checkpoint_wait(sys._current_frames()[waiting.ident]) is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert stall._checkpoint_wait(sys._getframe()) is None
    done.set()
    waiting.join()


def test_a_store_that_does_not_answer_names_rank_0(ranks, monkeypatch):
    monkeypatch.setattr(stall.threading.Thread, "join", lambda self, timeout: time.sleep(0.1))
    ranks.store.silent = True
    assert "rank 0 of 3 stopped" in ranks.after(2 * LIMIT, None, "waits", "works")


def test_a_rank_that_is_slow_where_it_may_be_is_not_named(ranks):
    assert ranks.after(20 * LIMIT, "waits", "may be slow", "waits") is None
    assert ranks.after(HANG_FACTOR * LIMIT - 1, "waits", "works", "waits") is None


def test_a_rank_that_hangs_in_a_step_is_named_with_its_line(ranks):
    ranks.lines[1] = "mine.py:7 in forward"
    assert ranks.after(HANG_FACTOR * LIMIT - 1, "waits", "works", "waits") is None
    message = ranks.after(3, "waits", "works", "waits")
    assert "rank 1 of 3 hangs" in message
    assert "mine.py:7 in forward" in message


def test_ranks_at_different_lines_are_named_before_those_at_one(ranks):
    assert ranks.after(HANG_FACTOR * LIMIT - 1, "waits", "waits", "waits") is None
    assert "rank 2 at train.py:1" in ranks.after(3, "waits", "waits", "waits")
    assert ranks.after(2, "works", "works", "works") is None
    ranks.lines[2] = "mine.py:9 in run"
    assert "rank 2 at mine.py:9 in run" in ranks.after(LIMIT + 3, "waits", "waits", "waits")


def test_nothing_is_concluded_before_all_ranks_have_started(monkeypatch):
    assert Ranks(monkeypatch).after(3 * LIMIT, None, "waits", "waits") is None


def failing(keys):
    raise RuntimeError("connection reset")


def test_a_lost_rank_is_named(ranks, monkeypatch):
    monkeypatch.setattr(stall.time, "sleep", lambda seconds: ranks.after(1, "waits", "works", None))
    assert ranks.watches[0].lost() == [2]
    monkeypatch.setattr(ranks.store, "check", failing)
    assert ranks.watches[1].lost() == [0]


def test_a_stopped_process_is_named():
    """Rank 0 holds the store of the group."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=groups, args=(sender,))
    process.start()
    sender.close()
    process.join(120)
    assert process.exitcode == 0
    *codes, first, second = sorted(receiver.recv() for _ in range(4))
    assert first.startswith("rank 0 of 2 stopped: no sign of life while rank 1 waited for 3 s")
    assert second.startswith("rank 1 of 2 stopped: no sign of life while rank 0 waited for 3 s")
    assert codes == ["3", "3"]

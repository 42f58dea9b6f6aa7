"""Writing of checkpoints in threads: several ranks, failures, and what becomes visible when."""

import errno
import os
import threading

import pytest
import torch
import torch.distributed as dist

from mcframe.errors import UserError
from mcframe.training import checkpoint_writer
from mcframe.training.checkpoint_folder import checkpoints, folder_name, newest
from mcframe.training.checkpoint_writer import CheckpointWriter, WriteJob, prepare_folder


class Ranks:
    """The writers of several ranks of a run in one process."""

    def __init__(self, run_dir, count):
        store = dist.HashStore()
        self.run_dir, self.writers = run_dir, [CheckpointWriter(store, rank, count) for rank in range(count)]

    def start(self, tokens, write, monkeypatch):
        prepare_folder(self.run_dir, tokens)
        monkeypatch.setattr(checkpoint_writer, "_serials", iter([tokens] * len(self.writers)))
        for rank, writer in enumerate(self.writers):
            writer.start(WriteJob(self.run_dir, tokens, lambda folder, rank=rank: write(folder, rank), {}, 2))

    def wait(self):
        """Return the result or the error of each rank."""
        found = []
        for writer in self.writers:
            try:
                found.append(writer.wait().path.name)
            except Exception as error:  # noqa: BLE001 - compared
                found.append(error)
        return found


def write(folder, rank):
    (folder / f"rank-{rank}.pt").write_bytes(os.urandom(1000))
    return [f"rank-{rank}.pt"]


@pytest.fixture
def ranks(tmp_path):
    return Ranks(tmp_path, 3)


def test_a_checkpoint_is_visible_only_when_all_ranks_have_written(ranks, monkeypatch):
    late = threading.Event()

    def write_late(folder, rank):
        if rank == 1:
            late.wait(10)
        return write(folder, rank)

    ranks.start(5, write_late, monkeypatch)
    assert [writer.in_flight for writer in ranks.writers] == [True] * 3
    for thread in (ranks.writers[0]._thread, ranks.writers[2]._thread):
        thread.join(0.1)
    assert not any(writer.finished for writer in ranks.writers)
    assert newest(ranks.run_dir) is None
    late.set()
    assert ranks.wait() == [folder_name(5)] * 3
    assert [writer.in_flight for writer in ranks.writers] == [False] * 3
    assert sorted(newest(ranks.run_dir).facts["files"]) == [f"rank-{rank}.pt" for rank in range(3)]


@pytest.mark.parametrize("failing", [0, 2])
def test_a_failed_write_is_one_error_of_all_ranks_and_leaves_the_older(ranks, failing, monkeypatch):
    ranks.start(5, write, monkeypatch)
    ranks.wait()

    def fail(folder, rank):
        if rank == failing:
            (folder / "rank.pt").symlink_to("/dev/full")
            torch.save({"weights": torch.zeros(2**16)}, folder / "rank.pt")
        return write(folder, rank)

    ranks.start(6, fail, monkeypatch)
    errors = ranks.wait()
    assert [type(error) for error in errors] == [UserError] * 3
    assert len({str(error) for error in errors}) == 1
    assert "checkpoint is not written" in errors[0].message
    assert f"{folder_name(5)}, which is kept" in errors[0].remedy
    assert [each.tokens for each in checkpoints(ranks.run_dir)] == [5]
    assert not list(ranks.run_dir.glob("checkpoints/.*"))
    ranks.start(7, write, monkeypatch)
    assert ranks.wait() == [folder_name(7)] * 3


def test_an_error_of_code_is_raised_where_it_arose(ranks, monkeypatch):
    def fail(folder, rank):
        if rank == 1:
            raise ZeroDivisionError("a bug")
        return write(folder, rank)

    ranks.start(5, fail, monkeypatch)
    first, second, third = ranks.wait()
    assert isinstance(second, ZeroDivisionError)
    assert "a bug" in first.message
    assert str(first) == str(third)


def test_nodes_without_a_common_directory_are_reported(ranks, monkeypatch):
    def write_elsewhere(folder, rank):
        yield from write(folder, rank)
        if rank == 0:
            while not (folder / "rank-2.pt").exists():
                pass
            (folder / "rank-2.pt").unlink()

    monkeypatch.setattr(checkpoint_writer, "sync", lambda path: None)
    monkeypatch.setattr(checkpoint_writer, "seal", lambda folder, names: dict.fromkeys(names, (1000, "")))
    ranks.start(5, write_elsewhere, monkeypatch)
    assert all("missing rank-2.pt of another rank" in error.message for error in ranks.wait())


def test_files_and_folders_are_synced_before_and_after_the_rename(tmp_path, monkeypatch):
    calls = []
    rename = os.rename
    monkeypatch.setattr(checkpoint_writer, "sync", lambda path: calls.append(path.name))
    monkeypatch.setattr(os, "rename", lambda old, new: (calls.append("rename"), rename(old, new)))
    alone = Ranks(tmp_path, 1)
    alone.start(5, write, monkeypatch)
    alone.wait()
    assert calls == [
        "rank-0.pt", "complete.json", f".writing-{folder_name(5)}", "rename", "checkpoints", tmp_path.name,
    ]  # fmt: skip


def test_a_run_that_failed_waits_no_longer_than_it_may(ranks, monkeypatch):
    never = threading.Event()

    def hang(folder, rank):
        never.wait(0 if rank == 0 else 10)
        return write(folder, rank)

    ranks.start(5, hang, monkeypatch)
    ranks.writers[0].give_up(0.05)
    assert isinstance(ranks.writers[0]._outcome, TimeoutError)
    assert newest(ranks.run_dir) is None
    never.set()


def test_a_file_system_that_cannot_sync_folders_is_no_obstacle(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(checkpoint_writer.os, "fsync", refuse)
    checkpoint_writer.sync(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Invalid argument"):
        checkpoint_writer.sync(tmp_path / "file")

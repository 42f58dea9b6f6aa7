"""One run at a time has a run directory: live, killed, frozen, forked and distant owners."""

import errno
import json
import os
import signal
import time

import pytest

from mcframe.errors import UserError
from mcframe.metrics.summary import SUMMARY, is_reported
from mcframe.training import run_lock
from mcframe.training.run_directory import plan
from mcframe.training.run_lock import LOCK, RunLock
from tests.support.checkpoint_files import write_checkpoint


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(run_lock, "REFRESH_S", 0.05)
    monkeypatch.setattr(run_lock, "LAPSE_S", 0.4)
    monkeypatch.setattr(run_lock, "_POLL_S", 0.02)


def taken(folder):
    lock = RunLock(folder)
    lock.take()
    return lock


def write(folder, **changed):
    """Write the lock of an owner that differs from this process."""
    folder.mkdir(exist_ok=True)
    (folder / LOCK).write_text(json.dumps({**run_lock._own_facts(), **changed}))


def test_a_second_owner_is_refused_by_name_and_a_released_lock_leaves_nothing(tmp_path):
    folder = tmp_path / "runs" / "a"
    lock = taken(folder)
    facts = json.loads((folder / LOCK).read_text())
    with pytest.raises(UserError) as caught:
        taken(folder)
    for expected in (f"process {os.getpid()} on {os.uname().nodename}", facts["since"], facts["command"], str(folder)):
        assert expected in caught.value.message
    assert "--run-dir" in caught.value.remedy
    assert str(caught.value.location) == str(folder / LOCK)
    lock.release()
    assert not (tmp_path / "runs").exists()  # it created them, and nothing was written
    lock = taken(folder)
    lock.confirm()
    lock.release()
    assert list(folder.iterdir()) == []


def test_a_forked_child_does_not_hold_the_lock_of_a_killed_owner(tmp_path):
    """The system releases a flock when its last copy is closed, which a child of the killed process could have."""
    reader, writer = os.pipe()
    if (owner := os.fork()) == 0:
        taken(tmp_path)
        if (child := os.fork()) == 0:
            time.sleep(60)
            os._exit(0)
        os.write(writer, str(child).encode())
        time.sleep(60)
        os._exit(0)
    child = int(os.read(reader, 20))
    try:
        with pytest.raises(UserError, match=f"process {owner} "):
            taken(tmp_path)
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        before = (tmp_path / LOCK).read_bytes()
        taken(tmp_path).release()
        assert (tmp_path / LOCK).read_bytes() == before  # a start that is refused later changes nothing
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("alive", [True, False])
def test_the_owner_on_another_machine_is_alive_while_it_refreshes_its_lock(tmp_path, monkeypatch, alive, caplog):
    write(tmp_path, host="node-7", boot="of another machine", pid=4711)
    if not alive:
        lock = taken(tmp_path)
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        assert "node-7" in caplog.text
        lock.release()
        return

    def refreshed(record):
        assert "waiting up to" in record.getMessage()
        os.utime(tmp_path / LOCK, (1, 1))

    monkeypatch.setattr(run_lock._log, "filters", [refreshed])
    with pytest.raises(UserError, match="process 4711 on node-7") as caught:
        taken(tmp_path)
    assert "If no such process runs on node-7" in caught.value.remedy


def test_a_lock_is_refreshed_while_it_is_held(tmp_path):
    lock = taken(tmp_path)
    os.utime(tmp_path / LOCK, (1, 1))
    until = time.monotonic() + 20
    while (tmp_path / LOCK).stat().st_mtime == 1 and time.monotonic() < until:
        time.sleep(0.02)
    assert (tmp_path / LOCK).stat().st_mtime > 1
    lock.release()


@pytest.mark.parametrize("same_start", [True, False])
def test_without_flock_the_owner_is_known_by_its_start_time(tmp_path, monkeypatch, same_start):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", unsupported)
    start = run_lock._own_facts()["process_start"]
    write(tmp_path, process_start=start if same_start else start - 100)
    if same_start:
        with pytest.raises(UserError, match=f"process {os.getpid()} "):
            taken(tmp_path)
    else:
        taken(tmp_path).release()


@pytest.mark.parametrize("content", [b"", b'{"host": "no', b"[1]"])
def test_a_torn_lock_counts_as_ended_after_a_time(tmp_path, content):
    (tmp_path / LOCK).write_bytes(content)
    lock = taken(tmp_path)
    lock.confirm()
    lock.release()
    assert not (tmp_path / LOCK).exists()


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        taken(tmp_path / "file" / "run")


def checkpoint(folder, tokens):
    path = folder / "checkpoints" / f"tokens-{tokens:015d}"
    path.mkdir(parents=True)
    (path / "complete.json").write_text(json.dumps({"tokens": tokens}))


def test_a_plan_is_refused_if_another_run_has_written_since(tmp_path):
    planned = plan("a", tmp_path, "auto")
    planned.check_unchanged()
    checkpoint(tmp_path, 2)
    with pytest.raises(UserError, match="another run has written"):
        planned.check_unchanged()
    new = plan("a", tmp_path / "new", "never")
    new.check_unchanged()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="another run has written"):
        new.check_unchanged()


def test_never_skips_the_directory_of_a_run_that_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lock = taken(tmp_path / "runs" / "a")
    assert plan("a", None, "never").directory.name == "a-2"
    lock.release()


def test_never_takes_no_directory_with_checkpoints(tmp_path, monkeypatch):
    """Retention would count them as the new run's."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "runs" / "a", 1000)
    assert plan("a", None, "never").directory.name == "a-2"
    with pytest.raises(UserError, match="already holds a run"):
        plan("a", tmp_path / "runs" / "a", "never")


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON", '{"tokens": null}'])
def test_a_summary_of_another_program_reports_nothing(tmp_path, content):
    (tmp_path / SUMMARY).write_text(content)
    assert not is_reported(tmp_path, 0)

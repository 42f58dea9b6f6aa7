"""Writing of checkpoints: in a thread of every rank, synced and checksummed, renamed when all ranks are done.

The threads of the ranks exchange their results through the store of the process group: collectives of two threads would
mix.
"""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from mcframe.errors import UserError
from mcframe.files import is_full
from mcframe.registry.attribution import last_line
from mcframe.training.checkpoint_folder import (
    COMPLETE,
    FORMAT,
    SUPERSEDED,
    checkpoints,
    checksum,
    folder_name,
    folders,
    made_run_id,
    manifest_text,
    tokens_of,
)  # fmt: skip

_log = logging.getLogger(__name__)
_serials = itertools.count()
_POLL_S = 0.02
_WRITING, _DELETING = ".writing-", ".deleting-"
_ALMOST_NOTHING = 2**20
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
_FAILED_WRITES = ("unexpected pos", "file write failed", "PytorchStreamWriter failed")


class Store(Protocol):
    """A key-value store of all ranks."""

    def set(self, key: str, value: str) -> None:
        """Set a value."""

    def get(self, key: str) -> bytes:
        """Return a value."""

    def check(self, keys: list[str]) -> bool:
        """Return whether all keys are set."""


@dataclass(frozen=True)
class WriteJob:
    """A checkpoint to write.

    Attributes:
        run_dir: The run directory.
        tokens: Dataset tokens so far.
        write: Writes the files of this rank into a folder and returns their names. Runs in a thread, and calls no
            collective.
        facts: Content of the manifest.
        keep: The number of checkpoints to keep.
    """

    run_dir: Path
    tokens: int
    write: Callable[[Path], Iterable[str]]
    facts: Mapping[str, Any]
    keep: int

    @property
    def partial(self) -> Path:
        """The folder while it is not complete."""
        return self.run_dir / "checkpoints" / f"{_WRITING}{folder_name(self.tokens)}"


@dataclass(frozen=True)
class Written:
    """A checkpoint that is complete: its folder, and the seconds of writing, syncing and waiting for other ranks."""

    path: Path
    seconds: float


class CheckpointWriter:
    """Writes checkpoints in a thread, one at a time.

    Args:
        store: The store of the process group.
        rank: This rank. Rank 0 renames the folder and deletes old checkpoints.
        world_size: The number of ranks.

    Attributes:
        buffers: Memory of the state that is written, by name; the next checkpoint is copied to it.
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self.buffers: dict[str, Tensor] = {}
        self._store, self._rank, self._world_size = store, rank, world_size
        self._thread: threading.Thread | None = None
        self._given_up = threading.Event()
        self._outcome: Written | Exception | None = None

    @property
    def in_flight(self) -> bool:
        """True if `wait` has not returned the checkpoint that was started last. Equal on all ranks."""
        return self._thread is not None

    @property
    def finished(self) -> bool:
        """True if `wait` would return at once. Differs between ranks."""
        return self._thread is None or not self._thread.is_alive()

    def start(self, job: WriteJob) -> None:
        """Start to write. Every rank must call it, after `prepare_folder` on rank 0 and a barrier."""
        assert self._thread is None, "the result of the checkpoint before was not taken"
        key = f"mcframe/checkpoint/{next(_serials)}"
        self._thread = threading.Thread(
            target=self._run, args=(job, key), daemon=True, name=f"mcframe checkpoint {job.tokens}"
        )
        self._thread.start()

    def wait(self) -> Written | None:
        """Wait until the checkpoint is complete, and return it; None if none is in flight.

        Raises:
            UserError: It could not be written. The message is the same on every rank.
        """
        if self._thread is None:
            return None
        self._thread.join()
        self._thread, outcome = None, self._outcome
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def give_up(self, seconds: float) -> None:
        """Wait for at most so many seconds for a checkpoint in flight, at the end of a run that has failed."""
        if self._thread is not None:
            self._thread.join(seconds)
            self._given_up.set()
            self._thread.join(10 * _POLL_S)

    def _run(self, job: WriteJob, key: str) -> None:
        started = time.monotonic()
        try:
            failure = self._write(job, f"{key}/{self._rank}")
            if self._rank == 0:
                self._store.set(f"{key}/complete", json.dumps(self._complete(job, key)))
            result = self._get(f"{key}/complete")
            if "path" in result:
                self._outcome = Written(Path(result["path"]), time.monotonic() - started)
            else:
                self._outcome = failure or UserError(result["message"], remedy=result["remedy"])
        except Exception as error:  # noqa: BLE001 - the main thread raises it
            self._outcome = error

    def _write(self, job: WriteJob, key: str) -> Exception | None:
        """Write the files of this rank and report them. Return an error that is not the user's."""
        try:
            report: dict[str, Any] = {"files": seal(job.partial, job.write(job.partial))}
        except Exception as error:  # noqa: BLE001 - every rank reports it
            known = not_written(error, job)
            report = {"message": known.message, "remedy": known.remedy} if known else {"message": last_line(error)}
            self._store.set(key, json.dumps({"remedy": "", **report}))
            return None if known else error
        self._store.set(key, json.dumps(report))
        return None

    def _complete(self, job: WriteJob, key: str) -> dict[str, Any]:
        """Wait for the reports of all ranks and rename the folder. Return its path, or the error of a rank."""
        reports = [self._get(f"{key}/{rank}") for rank in range(self._world_size)]
        if failed := [report for report in reports if "message" in report]:
            shutil.rmtree(job.partial, ignore_errors=True)
            return failed[0]
        try:
            return {"path": str(publish(job, [report["files"] for report in reports]))}
        except Exception as error:  # noqa: BLE001 - every rank raises it
            known = not_written(error, job)
            return (
                {"message": known.message, "remedy": known.remedy}
                if known
                else {"message": last_line(error), "remedy": ""}
            )

    def _get(self, key: str) -> dict[str, Any]:
        while not self._store.check([key]):
            if self._given_up.wait(_POLL_S):
                raise TimeoutError("the run ended before every rank had written its part of the checkpoint")
        found: dict[str, Any] = json.loads(self._store.get(key))
        return found


def prepare_folder(run_dir: Path, tokens: int) -> None:
    """Make an empty folder for the files of a checkpoint. Rank 0 only."""
    partial = run_dir / "checkpoints" / f"{_WRITING}{folder_name(tokens)}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def remove_leftovers(run_dir: Path) -> None:
    """Remove the temporary folders of a run that was killed. Rank 0 only."""
    for prefix in (_WRITING, _DELETING):
        for folder in (run_dir / "checkpoints").glob(f"{prefix}tokens-*"):
            if tokens_of(folder.with_name(folder.name.removeprefix(prefix))) is not None:
                shutil.rmtree(folder, ignore_errors=True)


def seal(folder: Path, names: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Sync files to disk, and return the size and checksum of each. Checksums are computed while the disk writes."""
    names = list(names)
    with ThreadPoolExecutor(1) as pool:
        synced = [pool.submit(sync, folder / name) for name in names]
        found = {name: ((folder / name).stat().st_size, checksum(folder / name)) for name in names}
        for each in synced:
            each.result()
    return found


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in _NO_FOLDER_SYNC and path.is_dir():  # some network file systems
            return
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def publish(job: WriteJob, reports: Sequence[Mapping[str, Sequence[Any]]]) -> Path:
    """Write the manifest, rename the folder to its final name, delete old checkpoints. Return the folder.

    Raises:
        UserError: A file of another rank is missing here.
        OSError: The manifest cannot be written.
    """
    partial, folder = job.partial, job.partial.parent
    files = {name: values for report in reports for name, values in report.items()}
    for name, (size, _) in files.items():
        file = partial / name
        if not file.is_file() or file.stat().st_size != size:
            raise UserError(
                f"{partial}: missing {name} of another rank; the nodes have different run directories",
                remedy="Put the run directory on storage of all nodes with --run-dir DIR.",
            )
    facts = {**job.facts, "tokens": job.tokens, "files": files, "format": FORMAT, "run": made_run_id(job.run_dir)}
    (partial / COMPLETE).write_text(manifest_text(json.loads(json.dumps(facts))), "utf-8")
    sync(partial / COMPLETE)
    sync(partial)
    final = folder / folder_name(job.tokens)
    if os.path.lexists(final):  # of another run, or damaged: this run has not been here
        supersede(final)
    os.rename(partial, final)
    sync(folder)
    sync(job.run_dir)
    retain(job.run_dir, final, job.keep)
    return final


def retain(run_dir: Path, newest: Path, keep: int) -> None:
    """Delete the oldest checkpoints of a run but for `keep`; damaged and foreign ones neither count nor go."""
    others = [each.path for each in checkpoints(run_dir) if each.path != newest and not each.path.is_symlink()]
    for old in others[: max(0, len(others) - max(1, keep) + 1)]:
        try:
            # Under its own name, a folder whose removal is interrupted would be a damaged checkpoint.
            shutil.rmtree(old.rename(old.with_name(f"{_DELETING}{old.name}")))
        except OSError as error:
            _log.warning("warning: %s cannot be deleted: %s", old, error.strerror or error)


def archive(run_dir: Path, tokens: int) -> None:
    """Move checkpoints after `tokens`, of a branch that is no longer followed, to `checkpoints/superseded`."""
    for later in folders(run_dir):
        if (tokens_of(later) or 0) > tokens:
            supersede(later)


def supersede(path: Path) -> None:
    """Move a folder to `checkpoints/superseded`, under a new name if there is one of its name already."""
    target = path.parent / SUPERSEDED / path.name
    target.parent.mkdir(exist_ok=True)
    names = itertools.chain([target], (target.with_name(f"{path.name}-{number}") for number in itertools.count(2)))
    path.rename(next(name for name in names if not name.exists()))


def not_written(error: Exception, job: WriteJob) -> UserError | None:
    """Return the message for files that could not be written, or None for an error of another kind."""
    if isinstance(error, UserError):
        return error
    partial = job.partial
    files, full = list[Path](), is_full(error)
    with suppress(OSError):  # the folder may have vanished
        files = sorted(partial.glob("*"), key=lambda file: file.stat().st_mtime_ns)
        # torch raises "unexpected pos" for a write that failed, without the system's reason.
        full = full or shutil.disk_usage(partial if files else job.run_dir).free < _ALMOST_NOTHING
    if not full and not isinstance(error, OSError) and not any(text in str(error) for text in _FAILED_WRITES):
        return None
    reason = "no space left on the device" if full else f"cannot be written: {last_line(error)}"
    named = getattr(error, "filename", None) or (files[-1] if files else partial)
    kept = checkpoints(job.run_dir)
    resume = f"it resumes from {kept[-1].path}, which is kept" if kept else "no checkpoint is kept"
    return UserError(
        f"{named}: {reason}; the checkpoint is not written",
        remedy=f"Free space, or keep fewer checkpoints with checkpoint.keep, and repeat the command: {resume}.",
    )

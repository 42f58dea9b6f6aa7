"""The folder of a history: its lock, `meta.json`, and whether the files have what the log counts."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mcframe.errors import UserError
from mcframe.files import replaced
from mcframe.runtime.commit_log import CommitLog

FORMAT = "mcframe-history-1"
META, LOG, LOCK, OWNER = "meta.json", "commits.jsonl", "lock", "owner.json"


def array_file(folder: Path, name: str) -> Path:
    """Return the path of the file of an array."""
    return folder / f"{name}.bin"


def read_meta(folder: Path) -> dict[str, Any]:
    """Return the content of `meta.json`.

    Raises:
        UserError: The file is missing or damaged, or has another format.
    """
    try:
        found = json.loads((folder / META).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"expected the folder of a history, got {folder}, without a readable {META}",
            remedy=f"Pass a folder that a session has made, or restore {META} from a copy.",
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(
            f"{folder / META}: expected the format {FORMAT}", remedy="Open it with the version that wrote it."
        )
    return found


def write_meta(folder: Path, meta: Mapping[str, Any]) -> None:
    """Write `meta.json` unless it has this content, and remove gists and NLLs that were made for another one."""
    if (folder / META).exists() and read_meta(folder) == meta:
        return
    for file in [*folder.glob("lod*.bin"), *folder.glob("nll.bin")]:
        file.unlink()
    with replaced(folder / META) as path:  # a reader never sees a part of it
        path.write_text(json.dumps(meta, indent=1))


def locked(folder: Path) -> FileLock:
    """Return the lock of a folder, held. Raises UserError, which names the owner, if another session holds it."""
    lock = FileLock(folder / LOCK, thread_local=False)  # a server opens and closes in several threads
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        owner = ""
        with suppress(OSError, ValueError, KeyError, TypeError):  # it is written right after the lock
            facts = json.loads((folder / OWNER).read_text())
            owner = f": process {facts['pid']} on {facts['host']}"
        raise UserError(
            f"{folder} is in use by another session{owner}", remedy="Close that session, or open another folder."
        ) from error
    with replaced(folder / OWNER) as path:
        path.write_text(json.dumps({"host": platform.node(), "pid": os.getpid()}))
    return lock


def open_log(folder: Path, strides: Mapping[str, int], most_new: int) -> CommitLog:
    """Return the log of a folder, without gists and NLLs whose files are missing or cut off.

    Args:
        folder: The folder.
        strides: Bytes of a row of each array.
        most_new: The most tokens that a killed writer can have written without a commit.

    Raises:
        UserError: The log is damaged or cut off, or tokens are missing.
    """
    existed = (folder / LOG).exists()
    log = CommitLog(folder / LOG)
    try:
        files = {name: array_file(folder, name) for name in strides}
        found = {name: path.stat().st_size // strides[name] if path.exists() else 0 for name, path in files.items()}
        _check_tokens(folder, log, found["tokens"], most_new if existed else 0)
        lost = [name for name, rows in found.items() if rows < log.rows(name)]
        if lost:
            log.forget(lost)
    except BaseException:
        log.close()
        if not existed:
            (folder / LOG).unlink()
        raise
    return log


def cut_remedy(line: int, tokens: int) -> str:
    """Return the remedy for damage that a line of the log, and no line before it, covers."""
    return (
        f"Restore the file from a copy. Or copy the folder and remove line {line} of {LOG} and what follows it: the "
        f"first {tokens:,} tokens are kept."
    )


def _check_tokens(folder: Path, log: CommitLog, found: int, most_new: int) -> None:
    committed = log.rows("tokens")
    if found < committed:
        kept = [each.rows["tokens"] for each in log.commits if each.rows["tokens"] <= found]
        raise UserError(
            f"{array_file(folder, 'tokens')}: expected {committed:,} tokens, got {found:,}",
            remedy=cut_remedy(len(kept) + 1, max(kept, default=0)),
        )
    if found - committed > most_new:
        raise UserError(
            f"{folder / LOG}: expected commits of {found:,} tokens, got those of {committed:,}",
            remedy="Restore the file from a copy, or append the integers of tokens.bin to a new history.",
        )

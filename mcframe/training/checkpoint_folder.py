"""Folders of checkpoints: their names, the manifest with checksums, and the search for the newest intact one.

A checkpoint is a folder `checkpoints/tokens-N`. Its manifest `complete.json` is written last. It holds the size and the
checksum of every file, the tokens of the folder's name, the run that wrote it, and a checksum of itself. Folders with
other names belong to the user: they are neither resumed from nor deleted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from mcframe.errors import UserError
from mcframe.files import replaced

COMPLETE, RUN_ID, SUPERSEDED = "complete.json", "run-id", "superseded"
FORMAT = 2
"""Version of the manifest; the first one had no checksums."""
_NAME = re.compile(r"tokens-(\d{15})")
_THREADS = 4
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk, and the content of its manifest."""

    path: Path
    facts: Mapping[str, Any]

    @property
    def tokens(self) -> int:
        """Dataset tokens that the run had read."""
        return int(self.facts["tokens"])


class DamagedCheckpoint(UserError):
    """An error for a checkpoint that is not as it was written.

    Args:
        path: Its folder.
        damage: The file at fault, and what is wrong with it.
    """

    def __init__(self, path: Path, damage: str) -> None:
        super().__init__(
            f"{path} is damaged: {damage}",
            remedy="Restore the folder from a copy, or pass an older checkpoint, or the run directory, for its newest "
            "intact one.",
        )


def folder_name(tokens: int) -> str:
    """Return the name of the folder of a checkpoint."""
    return f"tokens-{tokens:015d}"


def tokens_of(path: Path) -> int | None:
    """Return the tokens in the name of a folder, or None if the name is not that of a checkpoint."""
    named = _NAME.fullmatch(path.name)
    return int(named[1]) if named else None


def folders(run_dir: Path) -> list[Path]:
    """Return everything of a run that has the name of a checkpoint, intact or not, oldest first."""
    return sorted(path for path in (run_dir / "checkpoints").glob("tokens-*") if tokens_of(path) is not None)


def checkpoints(run_dir: Path) -> list[Checkpoint]:
    """Return the checkpoints of a run whose manifest and sizes are right, oldest first. Contents are not read."""
    found = []
    for path in folders(run_dir):
        try:
            found.append(read(path))
        except DamagedCheckpoint:
            continue
    return found


def find(path: Path) -> Checkpoint:
    """Return the checkpoint at a path, or the newest intact one of a run directory. Every file is read.

    Raises:
        UserError: There is none, or the checkpoint at the path is damaged.
    """
    if tokens_of(path) is not None or (path / COMPLETE).exists():
        return verified(path)
    found = newest(path)
    if found is None:
        raise UserError(
            f"{path} holds no complete checkpoint",
            remedy="Pass a run directory, or a folder checkpoints/tokens-N in it.",
        )
    return found


def newest(run_dir: Path, on_damage: str = "older") -> Checkpoint | None:
    """Return the newest intact checkpoint of a run, or None if it has no checkpoint at all.

    Args:
        run_dir: The run directory.
        on_damage: `older` takes an older checkpoint in place of a damaged one, with a warning; `stop` raises.

    Raises:
        UserError: All checkpoints are damaged, or one is and `on_damage` is `stop`.
    """
    damaged: list[DamagedCheckpoint] = []
    for path in reversed(folders(run_dir)):
        try:
            found = verified(path)
        except DamagedCheckpoint as error:
            damaged.append(error)
            continue
        if damaged and on_damage == "stop":
            raise UserError(
                f"{damaged[0].message}; the newest intact checkpoint is {path}",
                remedy=f"Pass --resume {path}, set checkpoint.on_damage = 'older', or restore the damaged one.",
            )
        if damaged and os.environ.get("RANK", "0") == "0":
            _log.warning("warning: %s; %s is used", "; ".join(error.message for error in damaged), path)
        return found
    if damaged:
        raise UserError(
            "; ".join(error.message for error in damaged) + "; no checkpoint of this run is intact",
            remedy="Restore a checkpoint from a copy, or start a new run with --resume never.",
        )
    return None


def read(path: Path) -> Checkpoint:
    """Return the checkpoint in a folder, after comparing its name, files and sizes with the manifest.

    Raises:
        DamagedCheckpoint: They differ, or the manifest is not as it was written.
    """
    try:
        facts = _manifest(path)
        damage = _misnamed(path, facts) or _other_files(path, facts["files"])
    except OSError as error:
        damage = f"{Path(error.filename or COMPLETE).name} cannot be read: {error.strerror or error}"
    except ValueError as error:
        damage = str(error)
    if damage:
        raise DamagedCheckpoint(path, damage)
    return Checkpoint(path, facts)


def verified(path: Path) -> Checkpoint:
    """Return the checkpoint in a folder, after comparing the content of every file with the manifest as well.

    Raises:
        DamagedCheckpoint: A file is not as it was written.
    """
    checkpoint = read(path)
    files = checkpoint.facts["files"]
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            found = dict(zip(files, pool.map(lambda name: checksum(path / name), files), strict=True))
    except OSError as error:
        raise DamagedCheckpoint(path, f"{error.filename or 'a file'} cannot be read: {error.strerror}") from error
    if changed := [name for name, (_, expected) in files.items() if found[name] != expected]:
        raise DamagedCheckpoint(path, f"{', '.join(changed[:3])}: the content has changed since it was written")
    return checkpoint


def checksum(path: Path) -> str:
    """Return the checksum of a file: 128 bits of XXH3, which runs at the speed of memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def manifest_text(facts: Mapping[str, Any]) -> str:
    """Return the text of a manifest, with its own checksum."""
    content = {name: value for name, value in facts.items() if name != "checksum"}
    digest = xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
    return json.dumps({**content, "checksum": digest}, sort_keys=True) + "\n"


def run_id(run_dir: Path) -> str | None:
    """Return the identity of a run, which its checkpoints carry, or None before the first of them."""
    try:
        text = (run_dir / "checkpoints" / RUN_ID).read_text("ascii").strip()
    except (OSError, ValueError):
        return None
    return text if re.fullmatch("[0-9a-f]{32}", text) else None


def made_run_id(run_dir: Path) -> str:
    """Return the identity of a run. Without one, take that of its newest checkpoint, or make one, and write it."""
    if (known := run_id(run_dir)) is None:
        earlier = checkpoints(run_dir)
        known = str(earlier[-1].facts["run"]) if earlier else uuid.uuid4().hex
        with replaced(run_dir / "checkpoints" / RUN_ID) as partial:
            partial.write_text(known + "\n", "ascii")
    return known


def _manifest(path: Path) -> dict[str, Any]:
    """Return the facts of a manifest. Raises OSError or ValueError unless it is as it was written."""
    if (path / COMPLETE).is_symlink():
        raise ValueError(f"{COMPLETE} is not a regular file")
    text = (path / COMPLETE).read_bytes().decode("utf-8", errors="replace")
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{COMPLETE} is not JSON: {error}") from error
    if not isinstance(facts, dict) or "checksum" not in facts:
        raise ValueError(f"{COMPLETE} has no checksum: an older version of mcframe wrote it, or it was edited")
    if manifest_text(facts) != text:
        raise ValueError(f"{COMPLETE}: the content has changed since it was written")
    if facts.get("format") != FORMAT:
        raise ValueError(f"{COMPLETE}: expected format {FORMAT}, got {facts.get('format')}: pass the mcframe before")
    return facts


def _misnamed(path: Path, facts: Mapping[str, Any]) -> str:
    """Return what is wrong with the name or the location of a folder, or an empty string.

    A copy of another name may be anywhere: users pass it by its path.
    """
    tokens = tokens_of(path)
    if tokens is None:
        return ""
    if tokens != facts["tokens"]:
        return f"{COMPLETE} is that of {folder_name(facts['tokens'])}: the folder was renamed, or files were swapped"
    owner = run_id(path.parents[1]) if path.parent.name == "checkpoints" else None
    if owner is not None and owner != facts["run"]:
        return f"it is a checkpoint of another run ({facts['run'][:8]}; {RUN_ID} has {owner[:8]})"
    return ""


def _other_files(path: Path, files: Mapping[str, tuple[int, str]]) -> str:
    """Return which files are missing, of another size, or not of this checkpoint; or an empty string."""
    present = {each.relative_to(path).as_posix(): each for each in path.rglob("*")}
    parents = {parent.as_posix() for name in files for parent in Path(name).parents}
    foreign = sorted(present.keys() - files.keys() - {COMPLETE} - parents)
    found = [f"missing {name}" for name in files if name not in present]
    for name, (size, _) in files.items():
        if (file := present.get(name)) is None:
            continue
        if file.is_symlink() or not file.is_file():
            found.append(f"{name} is not a regular file")
        elif (now := file.stat().st_size) != size:
            found.append(f"{name}: expected {size:,} bytes, got {now:,}")
    found += [f"unexpected file {name}" for name in foreign]
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")

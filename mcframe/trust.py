"""Trust in run directories: those that may execute code when they are opened, and links that lead out of one.

A run directory is data, which may come from elsewhere. `config.gin` and `provenance.json` of a run choose plug-ins and
paths. The hash of both is noted in the user's configuration folder when a run is written, so that the user's own runs
open as before. A run from elsewhere, or one that was edited, needs `--trust`.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mcframe.errors import Location, UserError

CONFIG, PROVENANCE, PLUGIN_OPTIONS = "config.gin", "provenance.json", "plugin_options"
_OF_A_RUN = (PROVENANCE, "metrics.jsonl", "checkpoints")
_NOT_READ = "wandb"  # wandb links its newest run and its logs
_READ_FIRST = "Read what the run executes and opens, then pass --trust; in Python, load_run(RUN, trust=True)."


def trusted_runs() -> Path:
    """Return the file with the hashes of trusted runs. It need not exist."""
    folder = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(folder) / "mcframe" / "trusted_runs"


def remember(directory: Path) -> bool:
    """Note that this user trusts a run as it is now. Return whether it is noted: the home folder may be read-only."""
    found, file = _digest(directory), trusted_runs()
    if found is None:
        return False
    if found in _trusted(file):
        return True
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as lines:
            lines.write(f"{found}  {str(directory.resolve())!r}\n")
    except OSError:
        return False
    return True


def is_trusted(directory: Path) -> bool:
    """Return whether this user wrote the run's configuration and its list of plug-ins, or trusted them before."""
    return _digest(directory) in _trusted(trusted_runs())


def check_links(directory: Path, trust: bool = False) -> None:
    """Raise UserError if a link in a run directory leads out of it.

    A run of this user may have links to folders, such as checkpoints on another disk. A link to a file is never
    followed without `--trust`: its content would be printed or overwritten.

    Args:
        directory: The run directory. It need not exist, and may be a link itself.
        trust: Whether `--trust` was passed.
    """
    if trust:
        return
    root = directory.resolve()
    for link in _links(directory):
        target = Path(os.path.realpath(link))
        if not target.is_relative_to(root) and not (target.is_dir() and is_trusted(directory)):
            raise UserError(
                f"{link} is a link out of the run directory, to {target}",
                remedy=f"Replace the link by a copy. {_READ_FIRST}",
            )


def open_run(directory: Path, trust: bool) -> bool:
    """Check the links of a run and return whether it may execute what it names. `trust` is noted for the next time."""
    check_links(directory, trust)
    return is_trusted(directory) if not trust else remember(directory) or True


def untrusted(directory: Path, what: str, location: Location | None = None, remedy: str = "") -> UserError:
    """Return the error for a run that would do `what` and is not trusted."""
    return UserError(
        f"expected a run that you made, got {directory}, which is from elsewhere or was edited: it would {what}",
        remedy=f"{_READ_FIRST}{remedy}",
        location=location,
    )


def is_record(file: Path) -> bool:
    """Return whether a gin file is the configuration that a run recorded."""
    return file.name in (CONFIG, "operative.gin") and any((file.parent / name).exists() for name in _OF_A_RUN)


def leads_out(text: str, directory: Path) -> bool:
    """Return whether a text of a run's configuration names a file, folder or pattern outside the run directory."""
    try:
        path = Path(text).expanduser()
        if not text.strip() or path.resolve().is_relative_to(directory.resolve()):
            return False
        written_so = path.is_absolute() or ".." in path.parts or text.lower().startswith("file:")
        return written_so or os.path.lexists(path) or next(glob.iglob(text), None) is not None
    except RuntimeError:  # ~ of an unknown user
        return True
    except (OSError, ValueError):  # too long for a path, or with null characters
        return False


def _links(directory: Path) -> Iterator[Path]:
    """Yield the links in a directory, without following them."""
    for folder, folders, files in os.walk(directory):
        if Path(folder) == directory and _NOT_READ in folders and not (directory / _NOT_READ).is_symlink():
            folders.remove(_NOT_READ)
        yield from (path for name in (*folders, *files) if (path := Path(folder) / name).is_symlink())


def _digest(directory: Path) -> str | None:
    """Return the hash of what a run executes: its configuration and its plug-ins. None if it cannot be read."""
    try:
        options: Any = None
        if (directory / PROVENANCE).exists():
            options = json.loads((directory / PROVENANCE).read_text("utf-8")).get(PLUGIN_OPTIONS)
        config = (directory / CONFIG).read_bytes()
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return hashlib.sha256(
        json.dumps([options, hashlib.sha256(config).hexdigest()], sort_keys=True).encode()
    ).hexdigest()


def _trusted(file: Path) -> set[str]:
    try:
        return {line.partition(" ")[0] for line in file.read_text("utf-8", "replace").splitlines()}
    except OSError:
        return set()

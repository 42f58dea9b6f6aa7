"""Where files that can be made again lie: token files and trained tokenizers."""

from __future__ import annotations

import json
import os
from hashlib import blake2b
from pathlib import Path

from mcframe.errors import UserError


def cache_dir() -> Path:
    """`$MCFRAME_CACHE`, else `~/.cache/mcframe`. The folder need not exist."""
    chosen = os.environ.get("MCFRAME_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "mcframe"


def make_folder(folder: Path) -> Path:
    """`folder`, made with its parents where it is missing. Raises UserError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {folder}: {error.strerror}",
            remedy="set MCFRAME_CACHE to a folder that you can write to",
        ) from error
    return folder


def fingerprint(value: object) -> str:
    """32 hexadecimal digits that depend on `value` alone; it must be something that JSON can hold."""
    return blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()

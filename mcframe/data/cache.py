"""Folder of files that can be made again: token files and trained tokenizers."""

from __future__ import annotations

import json
import os
from hashlib import blake2b
from pathlib import Path

from mcframe.errors import UserError
from mcframe.files import user_path


def cache_dir() -> Path:
    """Return `$MCFRAME_CACHE`, else `~/.cache/mcframe`. The folder need not exist."""
    return user_path(os.environ.get("MCFRAME_CACHE") or "~/.cache/mcframe", "MCFRAME_CACHE")


def make_folder(folder: Path) -> Path:
    """Create `folder` with its parents if it is missing, and return it.

    Raises:
        UserError: The folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {folder}: {error.strerror}",
            remedy="Set MCFRAME_CACHE to a folder with write permission.",
        ) from error
    return folder


def fingerprint(value: object) -> str:
    """Return 32 hexadecimal digits that depend only on `value`, a value of JSON."""
    return blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()

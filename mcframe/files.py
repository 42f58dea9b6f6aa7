"""Paths of users, and files that are written for them."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mcframe.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def user_path(text: str | Path, name: str) -> Path:
    """Return a path with the home folder in place of `~`.

    Args:
        text: The path as a user has written it.
        name: The option or binding, for the message.

    Raises:
        UserError: The path is empty, has a null character, or names the home folder of an unknown user.
    """
    written = os.fspath(text)
    if not written.strip() or "\0" in written:
        raise UserError(
            f"{name}: expected a path, got {written!r}", remedy=f"Write a path, or omit {name}.", binding=name
        )
    try:
        return Path(written).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{name}: {written} names an unknown home folder", remedy="Write the complete path.", binding=name
        ) from error


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


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield the path of a new file, which replaces `path` at the end of the block unless the block raises.

    A link stays: its target is replaced. The file keeps the mode of the one before it; a new one has the mode that the
    umask leaves. Missing folders are created.

    Raises:
        UserError: `path` is a folder or a device, or cannot be written.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        kind = "folder" if target.is_dir() else "device"
        raise UserError(f"expected a file, got the {kind} {path}", remedy="Pass the path of a file.")
    partial = target.with_name(f".{secrets.token_hex(4)}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()  # with the mode that the umask leaves
        mode = (target if target.exists() else partial).stat().st_mode & 0o7777
        yield partial
        partial.chmod(mode)
        partial.replace(target)
    except OSError as error:
        raise unwritable(error, path) from error
    finally:
        with suppress(OSError):  # where its folder is a file
            partial.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in the error of a failed write, which has no file name of its own. Raises UserError."""
    try:
        yield
    except OSError as error:
        raise unwritable(error, path) from error


def is_full(error: BaseException | None) -> bool:
    """Return whether an exception, or one that caused it, is that of a full disk or an exhausted quota."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        # safetensors, torch and Arrow put the system's error into a text of their own.
        if (isinstance(error, OSError) and error.errno in _FULL) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def unwritable(error: Exception, path: Path | str | None = None) -> UserError:
    """Return the message for a file that cannot be written."""
    named = path or getattr(error, "filename", None)
    where = f"{named}: " if named else ""
    if is_full(error):
        return UserError(f"{where}no space left on the device", remedy="Free space, or pass another path.")
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(
        f"{where}cannot be written: {reason}", remedy="Pass another path to this command, or make this one writable."
    )

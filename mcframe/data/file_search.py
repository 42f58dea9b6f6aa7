"""Search for files of text: every file once, and a reason for each that is skipped."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from mcframe.errors import UserError

KINDS = {
    ".txt": "text", ".md": "text", ".py": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
}  # fmt: skip
"""The reader of a file by its suffix."""

COMPRESSION = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
"""The codec of a compressed text or .jsonl file by its last suffix. Parquet compresses inside."""

_SMALLEST = {".parquet": 12, ".gz": 18, ".bz2": 14, ".zst": 9, ".lz4": 11}
"""Bytes of the smallest valid file; a shorter one holds no text."""

_SUFFIXES = f"{', '.join(KINDS)}, and all but the last with {', '.join(COMPRESSION)}"
_CONVERT = "Convert other files, rename a .json file with one object a line to .jsonl, or remove them from the paths."


_Key = tuple[int, int | str]


@dataclass(frozen=True)
class TextFile:
    """A file to read."""

    path: Path
    kind: str
    size: int
    modified: int
    """Nanoseconds."""

    @property
    def codec(self) -> str | None:
        """The codec that it is compressed with."""
        return COMPRESSION.get(self.path.suffix.lower())


@dataclass
class FoundFiles:
    """The files below some paths, and the paths that are skipped, by reason."""

    files: list[TextFile] = field(default_factory=list)
    skipped: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))

    @property
    def bytes(self) -> int:
        """Bytes on the disk."""
        return sum(file.size for file in self.files)

    def describe_skipped(self) -> str:
        """Return number, reason and the first names of what is skipped; empty if nothing is."""
        most = sorted(self.skipped.items(), key=lambda item: (-len(item[1]), item[0]))
        reasons = [f"{len(paths):,} {reason} ({named(paths)})" for reason, paths in most[:12]]
        reasons += [f"{sum(len(paths) for _, paths in most[12:]):,} for other reasons"] if most[12:] else []
        return f"skipped: {'; '.join(reasons)}" if reasons else ""


def find_files(paths: Sequence[Path]) -> FoundFiles:
    """Return the files at and below `paths`, in the order of `paths` and, within a folder, by name.

    Links are followed. A file or folder that is reached twice is read once.

    Raises:
        UserError: A path is missing, cannot be opened or is of another kind, or no file is found.
    """
    search = _Search()
    for path in paths:
        search.path(path)
    if not search.found.files:
        where, skipped = named(paths) or "an empty list of paths", search.found.skipped
        if skipped.keys() == {"empty"}:
            problem, remedy = f"expected text, got only empty files ({len(skipped['empty']):,}) in {where}", ""
        else:
            reasons = search.found.describe_skipped()
            problem = f"expected files with text ({_SUFFIXES}), got none in {where}{reasons and '; '}{reasons}"
            remedy = f" {_CONVERT}"
        raise UserError(
            f"text.local_files.paths: {problem}",
            binding="text.local_files.paths",
            remedy=f"Set text.local_files.paths to files with text, or to folders with some.{remedy}",
        )
    return search.found


def named(paths: Sequence[Path], count: int = 3) -> str:
    """Return the first paths as text, relative to the working directory where they are below it."""
    here = Path.cwd()
    near = [path.relative_to(here) if path.is_relative_to(here) else path for path in paths[:count]]
    shown = ", ".join(str(path).encode("utf-8", "replace").decode() for path in near)
    return f"{shown} and {len(paths) - count:,} more" if len(paths) > count else shown


class _Search:
    """The state of a search: what is found, and which files and folders have been reached."""

    def __init__(self) -> None:
        self.found = FoundFiles()
        self._reached: set[_Key] = set()

    def path(self, path: Path) -> None:
        """Add a file, or the files below a folder."""
        try:
            facts = path.stat()
            if stat.S_ISDIR(facts.st_mode):
                os.scandir(path).close()
        except OSError as error:
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            pattern = " Name a folder: patterns are not expanded." if set("*?[") & set(path.name) else ""
            raise UserError(
                f"missing path {named([path])}" if missing else f"cannot open {named([path])}: {error.strerror}",
                binding="text.local_files.paths",
                remedy=f"Correct text.local_files.paths.{pattern}" if missing else "Correct the link or permissions.",
            ) from None
        except ValueError:
            raise UserError(f"expected a path, got {str(path)!r}", remedy="Correct text.local_files.paths.") from None
        if stat.S_ISDIR(facts.st_mode):
            files, self.found.files = self.found.files, []
            self._folder(path, facts, {_key(parent, parent.stat()) for parent in path.resolve().parents})
            files += sorted(self.found.files, key=lambda file: file.path.relative_to(path).as_posix())
            self.found.files = files
        elif reason := self._file(path, facts):
            if reason.startswith("empty"):
                self.found.skipped[reason].append(path)
            elif not reason.startswith("read already"):
                raise UserError(
                    f"text.local_files.paths: expected files {_SUFFIXES}; got {named([path])}, {reason}",
                    binding="text.local_files.paths",
                    remedy=_CONVERT,
                )

    def _folder(self, folder: Path, facts: os.stat_result, above: Set[_Key]) -> None:
        """Add the files below `folder`; `above` are the folders that contain the one that the search began with."""
        pending = [(folder, facts)]
        while pending:
            folder, facts = pending.pop()
            if self._was_reached(folder, facts):
                self.found.skipped["folders read already"].append(folder)
                continue
            try:
                with os.scandir(folder) as entries:
                    names = sorted(entry.name for entry in entries)
            except OSError as error:
                self.found.skipped[f"folders that cannot be opened ({error.strerror})"].append(folder)
                continue
            for path in (folder / name for name in names):
                if path.name.startswith("."):
                    self.found.skipped["hidden"].append(path)
                    continue
                try:
                    facts = path.stat()
                except OSError as error:
                    reason = "broken links" if path.is_symlink() else f"that cannot be opened ({error.strerror})"
                    self.found.skipped[reason].append(path)
                    continue
                if not stat.S_ISDIR(facts.st_mode):
                    if reason := self._file(path, facts):
                        self.found.skipped[reason].append(path)
                elif _key(path, facts) in above:
                    self.found.skipped["links to a folder that contains them"].append(path)
                else:
                    pending.append((path, facts))

    def _file(self, path: Path, facts: os.stat_result) -> str:
        """Add a file, or return why it is skipped."""
        kind = _kind(path)
        if not stat.S_ISREG(facts.st_mode):
            return "that are no regular files"
        if kind is None:
            suffix = "".join(path.suffixes[-2 if path.suffix.lower() in COMPRESSION else -1 :])
            return f"of unknown suffix {suffix}" if suffix else "without suffix"
        if facts.st_size < _SMALLEST.get(path.suffix.lower(), 1):
            return f"too short to be {path.suffix} files" if facts.st_size else "empty"
        if not os.access(path, os.R_OK):
            return "without permission to read"
        if self._was_reached(path, facts):
            return "read already under another name"
        self.found.files.append(TextFile(path, kind, facts.st_size, facts.st_mtime_ns))
        return ""

    def _was_reached(self, path: Path, facts: os.stat_result) -> bool:
        key = _key(path, facts)
        if key in self._reached:
            return True
        self._reached.add(key)
        return False


def _key(path: Path, facts: os.stat_result) -> _Key:
    """Return what is equal for two names of one file. A few network file systems do not number their files."""
    return facts.st_dev, facts.st_ino or str(path.resolve())


def _kind(path: Path) -> str | None:
    """Return the reader of a file; None if its suffix is unknown."""
    last = path.suffix.lower()
    if last not in COMPRESSION:
        return KINDS.get(last)
    inner = KINDS.get(Path(path.stem).suffix.lower())
    return None if inner == "parquet" else inner

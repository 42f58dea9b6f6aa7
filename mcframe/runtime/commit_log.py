"""The log of what was written to a history: counts of rows, and checksums of the rows since the previous line.

A line counts if it is complete and its own checksum, which covers the lines before it, is right.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray


@dataclass(frozen=True)
class Commit:
    """One line of the log.

    Attributes:
        rows: Rows of each array at its end.
        sums: Checksums of the rows of each array since the previous line.
    """

    rows: Mapping[str, int]
    sums: Mapping[str, str]


class CommitLog:
    """An append-only log of commits.

    Args:
        path: The file; it is created if missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("r+b" if path.exists() else "w+b")
        self.commits: list[Commit] = []
        self._chain, end = "", 0
        for line in self._file:
            commit = self._parsed(line)
            if commit is None:
                break
            self.commits.append(commit)
            end += len(line)
        self._file.truncate(end)
        self._file.seek(end)

    def rewrite(self, commits: Sequence[Commit]) -> None:
        """Replace the commits, in a new file that takes the place of the old one."""
        new = self._path.with_suffix(".new")
        self._file.close()
        self._file, self._chain, self.commits = new.open("w+b"), "", []
        for commit in commits:
            self._write(commit)
        self._sync()
        new.replace(self._path)

    def forget(self, names: Iterable[str]) -> None:
        """Count none of the rows of some arrays."""
        gone = dict.fromkeys(names, 0)
        self.rewrite([Commit({**each.rows, **gone}, {**each.sums, **dict.fromkeys(gone, "")}) for each in self.commits])

    def correct(self, part: int, name: str, content: bytes) -> None:
        """Take the checksum of rows that were computed again."""
        commits = list(self.commits)
        commits[part] = replace(commits[part], sums={**commits[part].sums, name: checksum(content)})
        self.rewrite(commits)

    def append(self, commit: Commit) -> None:
        """Add a commit, and wait until it is on the disk."""
        self._write(commit)
        self._sync()

    def rows(self, name: str) -> int:
        """Return the rows of an array at the last commit."""
        return self.commits[-1].rows.get(name, 0) if self.commits else 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, commit: Commit) -> None:
        body = json.dumps({"rows": dict(commit.rows), "sums": dict(commit.sums)}, separators=(",", ":"))
        self._chain = checksum((self._chain + body).encode())
        self._file.write(f'{{"commit":{body},"sum":"{self._chain}"}}\n'.encode())
        self.commits.append(commit)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _parsed(self, line: bytes) -> Commit | None:
        """Return the commit of a line, or None if the line is torn or damaged."""
        head, middle, tail = b'{"commit":', b',"sum":"', b'"}\n'
        body, found, rest = line.removeprefix(head).rpartition(middle)
        if not (line.startswith(head) and found and rest.endswith(tail)):
            return None
        chain = checksum(self._chain.encode() + body)
        if rest.removesuffix(tail).decode("ascii", "replace") != chain:
            return None
        self._chain, fields = chain, json.loads(body)
        return Commit(fields["rows"], fields["sums"])


class Verified:
    """The parts of an array whose checksum was compared with the log.

    Args:
        log: The log.
        name: Name of the array.
    """

    def __init__(self, log: CommitLog, name: str) -> None:
        self.log, self.name = log, name
        self._ends = [commit.rows.get(name, 0) for commit in log.commits]
        self._right = [False] * len(self._ends)

    def unchecked(self, index: NDArray[np.int64]) -> list[tuple[int, int, int]]:
        """Return commit, first and last row of each part that holds one of these rows and was not compared yet."""
        if all(self._right):  # rows since the array was opened were written by this process
            return []
        parts = np.unique(np.searchsorted(self._ends, index, side="right")).tolist()
        return [
            (part, self._ends[part - 1] if part else 0, self._ends[part])
            for part in parts
            if part < len(self._ends) and not self._right[part]
        ]

    def mark(self, part: int) -> None:
        """Count a part as right."""
        self._right[part] = True


def checksum(content: bytes) -> str:
    """Return 16 hexadecimal digits (XXH3)."""
    return xxhash.xxh3_64_hexdigest(content)

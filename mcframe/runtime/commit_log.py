"""The log of what was written to a history: counts of rows, and checksums of the rows since the previous line.

A line counts if it is complete and its own checksum, which covers the lines before it, is right.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from mcframe.errors import Location, UserError


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

    A last line without its end is that of a writer that was killed, and is ignored. Other lines that are wrong are
    damage: what they committed must not be lost in silence.

    Args:
        path: The file; it is created if missing.

    Raises:
        UserError: A line is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.commits: list[Commit] = []
        self._chain, self._end, self._outdated = "", 0, False
        content = path.read_bytes() if path.exists() else b""
        for line in BytesIO(content):
            parsed = self._parsed(line)
            if parsed is None and (line.endswith(b"\n") or self._parsed(line[:-1] + b"\n")):
                raise self._damaged()
            if parsed is None:
                break
            self._add(*parsed, len(line))
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def forget(self, names: Iterable[str]) -> None:
        """Count none of the rows of some arrays."""
        gone = dict.fromkeys(names, 0)
        self.commits = [
            Commit({**each.rows, **gone}, {**each.sums, **dict.fromkeys(gone, "")}) for each in self.commits
        ]
        self._outdated = True
        self.update()

    def correct(self, part: int, name: str, content: bytes) -> None:
        """Take the checksum of rows that were computed again; `update` writes it."""
        commit = self.commits[part]
        self.commits[part] = replace(commit, sums={**commit.sums, name: checksum(content)})
        self._outdated = True

    def update(self) -> None:
        """Write the commits that were changed, in a new file that replaces the old one."""
        if not self._outdated:
            return
        new = self._path.with_suffix(".new")
        file = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        chain, lines = "", []
        for commit in self.commits:
            line, chain = _line(commit, chain)
            lines.append(line)
        content = b"".join(lines)
        try:
            write_at(file, content, 0)
            os.fsync(file)
            new.replace(self._path)
        except OSError:
            os.close(file)
            raise
        os.close(self._file)
        self._file, self._chain, self._end, self._outdated = file, chain, len(content), False

    def append(self, commit: Commit) -> None:
        """Add a commit, and wait until it is on the disk. After an error the log is as before."""
        self.update()
        line, chain = _line(commit, self._chain)
        os.ftruncate(self._file, self._end)  # a part of a line that could not be written
        write_at(self._file, line, self._end)
        os.fsync(self._file)
        self._add(commit, chain, len(line))

    def rows(self, name: str) -> int:
        """Return the rows of an array at the last commit."""
        return self.commits[-1].rows.get(name, 0) if self.commits else 0

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _add(self, commit: Commit, chain: str, length: int) -> None:
        self.commits.append(commit)
        self._chain, self._end = chain, self._end + length

    def _parsed(self, line: bytes) -> tuple[Commit, str] | None:
        """Return the commit of a line and the checksum of the log up to it, or None if the line is not right."""
        head, middle, tail = b'{"commit":', b',"sum":"', b'"}\n'
        body, found, rest = line.removeprefix(head).rpartition(middle)
        if not (line.startswith(head) and found and rest.endswith(tail)):
            return None
        chain = checksum(self._chain.encode() + body)
        if rest.removesuffix(tail).decode("ascii", "replace") != chain:
            return None
        fields = json.loads(body)
        return Commit(fields["rows"], fields["sums"]), chain

    def _damaged(self) -> UserError:
        number, tokens = len(self.commits) + 1, self.rows("tokens")
        return UserError(
            f"expected a line of the log of a history, got one whose checksum is wrong (byte {self._end:,})",
            remedy=f"Restore the file from a copy. Or remove line {number} and what follows it: the first {tokens:,} "
            "tokens are kept. All tokens are in tokens.bin, as plain integers; copy that file first.",
            location=Location(self._path, number),
        )


def _line(commit: Commit, chain: str) -> tuple[bytes, str]:
    """Return the line of a commit after a log with the checksum `chain`, and the checksum with it."""
    body = json.dumps({"rows": dict(commit.rows), "sums": dict(commit.sums)}, separators=(",", ":"))
    chain = checksum((chain + body).encode())
    return f'{{"commit":{body},"sum":"{chain}"}}\n'.encode(), chain


def write_at(file: int, content: bytes, offset: int) -> None:
    """Write all bytes at an offset; the system may take fewer at a time."""
    rest = memoryview(content)
    while rest:
        written = os.pwrite(file, rest, offset)
        rest, offset = rest[written:], offset + written


class Verified:
    """The parts of an array whose checksum was compared with the log.

    Args:
        log: The log.
        name: Name of the array.
    """

    def __init__(self, log: CommitLog, name: str) -> None:
        self._ends = np.array([commit.rows.get(name, 0) for commit in log.commits], np.int64)
        self._right = np.diff(self._ends, prepend=0) == 0  # parts without rows
        self._left = int((~self._right).sum())

    def unchecked(self, index: NDArray[np.int64]) -> list[tuple[int, int, int]]:
        """Return commit, first and last row of each part that holds one of these rows and was not compared yet."""
        if not self._left:  # rows since the array was opened were written by this process
            return []
        parts = np.unique(np.searchsorted(self._ends, index[index < self._ends[-1]], side="right"))
        parts = parts[~self._right[parts]]
        return [(part, int(self._ends[part - 1]) if part else 0, int(self._ends[part])) for part in parts.tolist()]

    def mark(self, part: int) -> None:
        """Count a part as right."""
        self._left -= not self._right[part]
        self._right[part] = True


def checksum(content: bytes) -> str:
    """Return 16 hexadecimal digits (XXH3)."""
    return xxhash.xxh3_64_hexdigest(content)

"""An append-only array of rows of one size, in memory or in a file, of which the newest rows are not yet written."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcframe.runtime.commit_log import write_at

_GATHERS_UNTIL_RELEASE = 1024
_KEPT_BYTES = 2**20


class FixedArray:
    """Rows of one size and type.

    Rows in the file are read through a memory map, whose pages are released now and then, so that resident memory does
    not grow with the file.

    Args:
        path: The file; None keeps all rows in memory.
        dtype: Type of a value.
        shape: Shape of a row.
        rows: Rows of the file that count. What follows them is overwritten.
    """

    def __init__(self, path: Path | None, dtype: str, shape: tuple[int, ...] = (), rows: int = 0) -> None:
        self.path, self.dtype, self.shape, self.written = path, np.dtype(dtype), shape, rows
        self.stride = self.dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        self.check: Callable[[NDArray[np.int64]], None] | None = None
        """Called with the written rows that will be read."""
        self._new = np.empty((0, *shape), self.dtype)
        self._new_rows = 0
        self._pages: mmap.mmap | None = None
        self._gathers = 0
        self._file = None if path is None else path.open("r+b" if path.exists() else "w+b")

    @property
    def new_rows(self) -> int:
        """Number of rows that are not written."""
        return self._new_rows

    @property
    def rows(self) -> int:
        """Number of rows, those included that are not written."""
        return self.written + self._new_rows

    def append(self, values: NDArray[Any]) -> None:
        """Append rows [n, ...]."""
        needed = self._new_rows + len(values)
        if needed > len(self._new):
            more = np.empty((max(needed, 2 * len(self._new)), *self.shape), self.dtype)
            more[: self._new_rows] = self._new[: self._new_rows]
            self._new = more
        self._new[self._new_rows : needed] = values
        self._new_rows = needed

    def read(self, first: int, last: int) -> NDArray[Any]:
        """Return a copy of rows [first, last)."""
        assert 0 <= first <= last <= self.rows, f"rows {first} to {last} of {self.rows}"
        border = min(max(self.written, first), last)
        new = self._new[border - self.written : last - self.written] if last > border else self._new[:0]
        return (
            np.concatenate((self._mapped(np.arange(first, border))[first:border], new))
            if border > first
            else new.copy()
        )

    def gather(self, index: NDArray[np.int64]) -> NDArray[Any]:
        """Return a copy of the rows of an index [n]."""
        result = np.empty((len(index), *self.shape), self.dtype)
        old = index < self.written
        if old.any():
            result[old] = self._mapped(index[old])[index[old]]
        result[~old] = self._new[index[~old] - self.written]
        return result

    def _mapped(self, index: NDArray[np.int64]) -> NDArray[Any]:
        """Return the mapped file, after a check of the rows that will be read."""
        if self.check is not None:
            self.check(index)
        size = self.written * self.stride
        if self._pages is None or len(self._pages) < size:
            assert self._file is not None
            self._pages = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ)
        self._gathers += 1
        if self._gathers % _GATHERS_UNTIL_RELEASE == 0:
            self._pages.madvise(mmap.MADV_DONTNEED)
        return np.frombuffer(self._pages, self.dtype).reshape(-1, *self.shape)

    def new_bytes(self) -> bytes:
        """Return the bytes of the rows that are not written."""
        return b"" if self._file is None else self._new[: self._new_rows].tobytes()

    def write(self, content: bytes) -> None:
        """Write the bytes of the new rows and wait until they are on the disk; `written_new` counts them as written."""
        if self._file is not None and content:
            os.ftruncate(self._file.fileno(), self.written * self.stride)  # what was not committed
            write_at(self._file.fileno(), content, self.written * self.stride)
            os.fsync(self._file.fileno())

    def written_new(self) -> None:
        """Count the new rows as written."""
        self.written, self._new_rows = self.written + self._new_rows, 0
        if self._new.nbytes > _KEPT_BYTES:
            self._new = np.empty((0, *self.shape), self.dtype)

    def replace(self, first: int, values: NDArray[Any]) -> None:
        """Overwrite written rows from `first` on."""
        assert self._file is not None
        write_at(self._file.fileno(), np.ascontiguousarray(values, self.dtype).tobytes(), first * self.stride)
        os.fsync(self._file.fileno())

    def bytes_of(self, first: int, last: int) -> bytes:
        """Return the bytes of written rows [first, last), as they are in the file."""
        assert self._file is not None
        return os.pread(self._file.fileno(), (last - first) * self.stride, first * self.stride)

    def close(self) -> None:
        """Close the file; rows that are not written are lost."""
        self._pages = None
        if self._file is not None:
            self._file.close()

"""A history without end: token ids, and the gists of every complete node, in memory or in a folder.

Tokens are the truth. Gists are a cache: they are computed again where they are missing, damaged, or of another model.

The folder has one file of fixed-size rows an array, `meta.json` with types and shapes, and `commits.jsonl`, the log.
Nothing in it is executed when it is read. A token takes `bytes_per_token` bytes. New rows are written at each commit:
at the latest after `COMMIT_EVERY` tokens or `_COMMIT_BYTES` of gists, first the rows, then the line of the log. A
writer that is killed loses what it had not committed; one that cannot write keeps its rows and may commit them later.
Rows are compared with their checksum when they are first read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from mcframe.errors import UserError
from mcframe.files import writing
from mcframe.runtime.commit_log import Commit, Verified, checksum
from mcframe.runtime.fixed_array import FixedArray
from mcframe.runtime.history_folder import (
    FORMAT,
    LOG,
    META,
    array_file,
    cut_remedy,
    locked,
    open_log,
    read_meta,
    write_meta,
)  # fmt: skip

COMMIT_EVERY = 4096
"""Tokens after which new rows are written without a call of `commit`."""

_AT_ONCE = 65_536
"""The most tokens that are appended before a commit is considered."""
_COMMIT_BYTES = 2**24


@dataclass(frozen=True)
class HistoryShape:
    """The types and shapes of the rows of a history.

    Attributes:
        block_size: K.
        levels: Highest LOD.
        slots: G, embeddings of a gist.
        width: D.
        vocab_size: Entries of the tokenizer.
        tokenizer: Identity of the tokenizer.
        model: Identity of the weights that compute gists; gists of another model are computed again.
        with_gists: Whether the model has a GistNet.
        with_nll: Whether the NLL of each token is kept, for a LensNet that reads it.
    """

    block_size: int
    levels: int
    slots: int
    width: int
    vocab_size: int
    tokenizer: str = ""
    model: str = ""
    with_gists: bool = True
    with_nll: bool = False

    @property
    def token_dtype(self) -> str:
        """The smallest type that holds every token id."""
        return "uint16" if self.vocab_size <= 2**16 else "uint32"

    @property
    def token_bytes(self) -> int:
        """Bytes of a token id."""
        return np.dtype(self.token_dtype).itemsize

    @property
    def gist_levels(self) -> range:
        """Levels with gists."""
        return range(1, self.levels + 1 if self.with_gists else 1)

    @property
    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type of a value and shape of a row of each array; the file of an array is `NAME.bin`."""
        gist = ("float32", (self.slots, self.width))
        found: dict[str, tuple[str, tuple[int, ...]]] = {"tokens": (self.token_dtype, ())}
        found |= {f"lod{lod}": gist for lod in self.gist_levels}
        return found | ({"nll": ("float32", ())} if self.with_nll else {})

    @property
    def meta(self) -> dict[str, Any]:
        """The content of `meta.json`: the attributes, and type and row shape of each file."""
        arrays = self.arrays.items()
        files = {f"{name}.bin": {"dtype": np.dtype(kind).str, "row": [*row]} for name, (kind, row) in arrays}
        return {"format": FORMAT, **asdict(self), "files": files}

    @property
    def bytes_per_token(self) -> float:
        """Bytes of the files a token: its id, its part of a gist of each level in float32, and its NLL."""
        gists = sum(4 * self.slots * self.width / self.block_size**lod for lod in self.gist_levels)
        return float(self.token_bytes + gists + 4 * self.with_nll)


class History:
    """Tokens and gists of a session; see the module. One process writes a folder at a time."""

    def __init__(self, shape: HistoryShape, folder: Path | None, lock: FileLock | None) -> None:
        self.shape, self.folder, self._lock = shape, folder, lock
        self.repair: Callable[[str, int, int], None] | None = None
        """Called with the name of an array, `lod1` or `nll`, and a range of damaged rows; it calls `overwrite`."""
        self._log = None
        if folder is not None:
            strides = {name: FixedArray(None, *spec).stride for name, spec in shape.arrays.items()}
            self._log = open_log(folder, strides, COMMIT_EVERY + _AT_ONCE)
        self._arrays = {name: self._opened(name, *spec) for name, spec in shape.arrays.items()}

    @classmethod
    def create(cls, shape: HistoryShape, folder: Path | None = None) -> History:
        """Return an empty history.

        Raises:
            UserError: The folder has a history, or cannot be written.
        """
        if folder is None:
            return cls(shape, None, None)
        if (folder / META).exists() or (folder / LOG).exists():
            raise UserError(
                f"expected a new folder, got {folder}, which has a history",
                remedy=f"Pass another folder. Restore {META} from a copy if it is missing.",
            )
        return cls._locked(shape, folder)

    @classmethod
    def open(cls, folder: Path, shape: HistoryShape) -> History:
        """Open a folder. Gists of another model or tree are forgotten, and computed again by a `GistEncoder`.

        Raises:
            UserError: The folder has no history, one of another tokenizer, damaged tokens, or another process uses it.
        """
        saved = read_meta(folder)
        for name, what in (("tokenizer", "tokenizer"), ("vocab_size", "vocabulary")):
            if saved.get(name) != getattr(shape, name):
                raise UserError(
                    f"{folder}: expected a history of this run's {what}, got another one",
                    remedy="Open it with a run that has the same tokenizer, or begin a new history.",
                )
        return cls._locked(shape, folder)

    @classmethod
    def _locked(cls, shape: HistoryShape, folder: Path) -> History:
        """Return the history of a folder after locking it, which an error undoes."""
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = locked(folder)
            try:
                write_meta(folder, shape.meta)
                return cls(shape, folder, lock)
            except BaseException:
                lock.release()
                raise

    @property
    def tokens(self) -> int:
        """N, tokens of the history."""
        return self._arrays["tokens"].rows

    def nodes(self, lod: int) -> int:
        """Return the number of gists of a level."""
        return self._arrays[f"lod{lod}"].rows

    @property
    def known_nll(self) -> int:
        """Tokens whose NLL is stored."""
        return self._arrays["nll"].rows

    def append(self, tokens: Tensor) -> None:
        """Append token ids [n], int64."""
        for first in range(0, len(tokens), _AT_ONCE):
            self._append("tokens", tokens[first : first + _AT_ONCE].numpy())

    def append_gists(self, lod: int, gists: Tensor) -> None:
        """Append gists [n, G, D] of the next nodes of a level."""
        self._append(f"lod{lod}", gists.float().cpu().numpy())

    def append_nll(self, nll: Tensor) -> None:
        """Append the uncompressed NLL [n], in nats, of the next tokens."""
        self._append("nll", nll.float().cpu().numpy())

    def _append(self, name: str, values: NDArray[Any]) -> None:
        array = self._arrays[name]
        array.append(values)
        if array.new_rows * array.stride >= _COMMIT_BYTES or (name == "tokens" and array.new_rows >= COMMIT_EVERY):
            self.commit()

    def overwrite(self, name: str, first: int, rows: Tensor) -> None:
        """Overwrite damaged rows [n, ...] of an array from the row `first` on."""
        self._arrays[name].replace(first, rows.float().cpu().numpy())

    def read_tokens(self, first: int, last: int) -> Tensor:
        """Return the token ids [last - first], int64.

        Raises:
            UserError: The file is damaged there.
        """
        return torch.from_numpy(self._arrays["tokens"].read(first, last).astype(np.int64))

    def read_gists(self, lod: int, nodes: Tensor) -> Tensor:
        """Return the gists [n, G, D], float32, of nodes [n], int64."""
        return torch.from_numpy(self._arrays[f"lod{lod}"].gather(nodes.cpu().numpy()))

    def read_nll(self, first: int, last: int) -> Tensor:
        """Return the uncompressed NLL of tokens [last - first], float32, in nats; 0 where it is not known yet."""
        array = self._arrays["nll"]
        known = max(first, min(last, array.rows))
        return torch.from_numpy(np.concatenate((array.read(first, known), np.zeros(last - known, np.float32))))

    def commit(self) -> None:
        """Write the new rows and a line of the log, and wait until they are on the disk.

        Raises:
            UserError: They cannot be written. They are kept, so that a later commit may succeed.
        """
        if self._log is None:
            return
        arrays = self._arrays
        new = {name: array.new_bytes() for name, array in arrays.items()}
        try:
            if any(new.values()):
                for name, content in new.items():
                    arrays[name].write(content)
                rows = {name: array.rows for name, array in arrays.items()}
                self._log.append(Commit(rows, {name: checksum(content) for name, content in new.items()}))
            else:
                self._log.update()
        except OSError as error:
            raise UserError(
                f"{self.folder}: the history cannot be written: {os.strerror(error.errno or 0)}",
                remedy="Free space, or move the folder. What was committed before is kept.",
            ) from error
        for array in arrays.values():
            array.written_new()

    def close(self) -> None:
        """Close the files and release the folder. Rows that are not committed are lost."""
        for array in self._arrays.values():
            array.close()
        if self._log is not None:
            self._log.close()
        if self._lock is not None:
            self._lock.release()

    def _opened(self, name: str, dtype: str, shape: tuple[int, ...]) -> FixedArray:
        """Return an array with the rows of the last commit."""
        if self.folder is None or self._log is None:
            return FixedArray(None, dtype, shape)
        array = FixedArray(array_file(self.folder, name), dtype, shape, self._log.rows(name))
        if array.rows:
            verified = Verified(self._log, name)
            array.check = lambda index: self._check(name, array, verified, index)
        return array

    def _check(self, name: str, array: FixedArray, verified: Verified, index: NDArray[np.int64]) -> None:
        """Compare the checksums of the parts of an array that hold these rows; repair gists that are damaged."""
        assert self._log is not None
        for part, first, last in verified.unchecked(index):
            if checksum(array.bytes_of(first, last)) != self._log.commits[part].sums[name]:
                if name == "tokens" or self.repair is None:
                    raise self._damaged(array, part, first, last)
                self.repair(name, first, last)
                self._log.correct(part, name, array.bytes_of(first, last))
            verified.mark(part)

    def _damaged(self, array: FixedArray, part: int, first: int, last: int) -> UserError:
        return UserError(
            f"{array.path}: rows {first:,} to {last - 1:,} (bytes {first * array.stride:,} to "
            f"{last * array.stride - 1:,}) are damaged: their checksum differs from that of {LOG}",
            remedy=cut_remedy(part + 1, first),
        )

"""A history without end: token ids, and the gists of every complete node, in memory or in a folder.

Tokens are the truth. Gists are a cache: they are computed again where they are missing, damaged, or of another model.

The folder has one file of fixed-size rows an array, `meta.json` with types and shapes, and `commits.jsonl`, the log.
Nothing in it is executed when it is read. A token takes `bytes_per_token` bytes. New rows are written at each commit:
at the latest after `COMMIT_EVERY` tokens, first the rows, then the line of the log. A writer that is killed loses what
it had not committed. Rows are compared with their checksum when they are first read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from mcframe.errors import UserError
from mcframe.runtime.commit_log import Commit, CommitLog, Verified, checksum
from mcframe.runtime.fixed_array import FixedArray

FORMAT = "mcframe-history-1"
META, LOG, LOCK = "meta.json", "commits.jsonl", "lock"
COMMIT_EVERY = 4096
"""Tokens after which new rows are written without a call of `commit`."""

_AT_ONCE = 65_536
"""The most tokens of one commit."""


@dataclass(frozen=True)
class HistoryShape:
    """What the rows of a history are.

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
    def gist_levels(self) -> range:
        """Levels with gists."""
        return range(1, self.levels + 1 if self.with_gists else 1)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of the files a token: its id, its part of a gist of each level in float32, and its NLL."""
        gists = sum(4 * self.slots * self.width / self.block_size**lod for lod in self.gist_levels)
        return float(np.dtype(self.token_dtype).itemsize + gists + 4 * self.with_nll)


class History:
    """Tokens and gists of a session; see the module. One process writes a folder at a time."""

    def __init__(self, shape: HistoryShape, folder: Path | None, lock: FileLock | None) -> None:
        self.shape, self.folder, self._lock = shape, folder, lock
        self.repair: Callable[[str, int, int], None] | None = None
        """Called with the name of an array, `lod1` or `nll`, and a range of damaged rows; it calls `overwrite`."""
        self._log = None if folder is None else CommitLog(folder / LOG)
        specs: dict[str, tuple[str, tuple[int, ...]]] = {"tokens": (shape.token_dtype, ())}
        specs |= {f"lod{lod}": ("float32", (shape.slots, shape.width)) for lod in shape.gist_levels}
        specs |= {"nll": ("float32", ())} if shape.with_nll else {}
        if folder is not None and self._log is not None:
            _forget_incomplete(folder, self._log, specs)
        self._arrays = {name: self._opened(name, *spec) for name, spec in specs.items()}

    @classmethod
    def create(cls, shape: HistoryShape, folder: Path | None = None) -> History:
        """Return an empty history.

        Raises:
            UserError: The folder has a history, or cannot be written.
        """
        if folder is None:
            return cls(shape, None, None)
        if (folder / META).exists():
            raise UserError(f"expected a new folder, got {folder}, which has a history", remedy="Pass another folder.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _locked(folder)
            (folder / META).write_text(json.dumps({"format": FORMAT, **asdict(shape)}, indent=1))
        except OSError as error:
            raise UserError(f"{folder}: {error.strerror}", remedy="Pass a folder that can be written.") from error
        return cls(shape, folder, lock)

    @classmethod
    def open(cls, folder: Path, shape: HistoryShape) -> History:
        """Open a folder. Gists of another model or tree are forgotten, and computed again by a `GistEncoder`.

        Raises:
            UserError: The folder has no history, one of another tokenizer, damaged tokens, or another process uses it.
        """
        saved = _meta(folder)
        for name, what in (("tokenizer", "tokenizer"), ("vocab_size", "vocabulary")):
            if saved.get(name) != getattr(shape, name):
                raise UserError(
                    f"{folder}: expected a history of this run's {what}, got another one",
                    remedy="Open it with a run that has the same tokenizer, or begin a new history.",
                )
        lock = _locked(folder)
        if saved != {"format": FORMAT, **asdict(shape)}:
            for file in [*folder.glob("lod*.bin"), *folder.glob("nll.bin")]:
                file.unlink()
            (folder / META).write_text(json.dumps({"format": FORMAT, **asdict(shape)}, indent=1))
        return cls(shape, folder, lock)

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
            self._arrays["tokens"].append(tokens[first : first + _AT_ONCE].numpy())
            if self._arrays["tokens"].rows - self._arrays["tokens"].written >= COMMIT_EVERY:
                self.commit()

    def append_gists(self, lod: int, gists: Tensor) -> None:
        """Append gists [n, G, D] of the next nodes of a level."""
        self._arrays[f"lod{lod}"].append(gists.float().cpu().numpy())

    def append_nll(self, nll: Tensor) -> None:
        """Append the uncompressed NLL [n], in nats, of the next tokens."""
        self._arrays["nll"].append(nll.float().cpu().numpy())

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
        """Write the new rows and a line of the log, and wait until they are on the disk."""
        if self._log is None or all(array.rows == array.written for array in self._arrays.values()):
            return
        sums = {}
        try:
            for name, array in self._arrays.items():
                sums[name] = checksum(array.flush()[1])
                array.sync()
            self._log.append(Commit({name: array.written for name, array in self._arrays.items()}, sums))
        except OSError as error:
            raise UserError(
                f"{self.folder}: the history cannot be written: {os.strerror(error.errno or 0)}",
                remedy="Free space, or move the folder. What was committed before is kept.",
            ) from error

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
        array = FixedArray(_file(self.folder, name), dtype, shape, self._log.rows(name))
        if array.rows:
            verified = Verified(self._log, name)
            array.check = lambda index: self._check(name, array, verified, index)
        return array

    def _check(self, name: str, array: FixedArray, verified: Verified, index: NDArray[np.int64]) -> None:
        """Compare the checksums of the parts of an array that hold these rows; repair gists that are damaged."""
        assert self._log is not None
        for part, first, last in verified.unchecked(index):
            verified.mark(part)
            if first == last or checksum(array.bytes_of(first, last)) == self._log.commits[part].sums[name]:
                continue
            if name == "tokens" or self.repair is None:
                raise UserError(
                    f"{array.path}: rows {first:,} to {last - 1:,} (bytes {first * array.stride:,} to "
                    f"{last * array.stride - 1:,}) are damaged: their checksum differs from that of {LOG}",
                    remedy=f"Restore the file from a copy. The first {first:,} rows are not affected.",
                )
            self.repair(name, first, last)
            self._log.correct(part, name, array.bytes_of(first, last))


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.bin"


def _forget_incomplete(folder: Path, log: CommitLog, specs: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Forget what is cached in files that are missing or cut off. Raises UserError if tokens are."""
    lost = []
    for name, (dtype, shape) in specs.items():
        path, stride = _file(folder, name), FixedArray(None, dtype, shape).stride
        found = path.stat().st_size // stride if path.exists() else 0
        if found >= log.rows(name):
            continue
        if name == "tokens":
            raise UserError(
                f"{path}: expected {log.rows(name):,} tokens, got {found:,}",
                remedy="Restore the file, or begin a new history.",
            )
        lost.append(name)
    if lost:
        log.forget(lost)


def _meta(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / META).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"expected the folder of a history, got {folder}, without a readable {META}",
            remedy="Pass a folder that a session has made.",
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(
            f"{folder / META}: expected the format {FORMAT}", remedy="Open it with the version that wrote it."
        )
    return found


def _locked(folder: Path) -> FileLock:
    """Return the lock of a folder, held. Raises UserError if another process holds it."""
    lock = FileLock(folder / LOCK, thread_local=False)  # a server opens and closes in several threads
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"{folder} is in use by another session", remedy="Close that session, or open another folder."
        ) from error
    return lock

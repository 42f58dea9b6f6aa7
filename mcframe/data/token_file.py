"""A corpus tokenised once into a memory-mapped file, and its windows in a shuffled order that needs no state."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from mcframe.data import plugin_checks as returned
from mcframe.data.cache import cache_dir, fingerprint, make_folder
from mcframe.data.packing import Tokens, batched, gather_windows, separated, token_type, window_count
from mcframe.data.split import Split, check_share, documents_of, empty_split
from mcframe.errors import UserError
from mcframe.hookspecs import TextSource, Tokenizer

FORMAT = 1
"""Part of every token file's name: raise it when the same documents give other bytes."""

Progress = Callable[[int], None]


class TokenFile:
    """A split's token stream: a flat .npy file, mapped and never loaded whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tokens: Tokens = np.load(path, mmap_mode="r")

    @property
    def length(self) -> int:
        """Tokens, separators included."""
        return len(self._tokens)

    def windows(self, window: int) -> int:
        """How many windows of `window` + 1 tokens there are."""
        return window_count(self.length, window)

    def gather(self, indices: Sequence[int] | NDArray[np.int64], window: int) -> Tensor:
        """Windows `indices` in stream order -> int64 [n, window + 1]. Raises IndexError beyond the last one."""
        return gather_windows(self._tokens, indices, window)


def token_file(
    source: TextSource, tokenizer: Tokenizer, *, split: Split, share: float, progress: Progress | None = None
) -> TokenFile:
    """The split's token file, written first where it is missing.

    Any number of processes may ask at once: one writes, the others wait. `progress` gets the tokens written so far,
    in the process that writes. Raises UserError where the split has no documents.
    """
    check_share(share)
    name = fingerprint([FORMAT, source.identity, tokenizer.identity, split, share])
    path = cache_dir() / "tokens" / f"{name}.npy"
    if not path.exists():
        make_folder(path.parent)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():  # another process may have written it while this one waited
                documents = documents_of(returned.documents(source), split, share)
                if not _write(path, documents, tokenizer, progress):
                    raise empty_split(split, share)
    return TokenFile(path)


def _write(path: Path, documents: Iterable[str], tokenizer: Tokenizer, progress: Progress | None) -> int:
    """Tokenise into `path` and return the number of tokens; writes no `path` where there are none."""
    kind = token_type(tokenizer.vocab_size)
    partial = path.with_suffix(".partial")  # the lock makes its writer the only one
    length = 0
    with partial.open("wb") as file:
        _write_header(file, kind, length)
        for batch in batched(documents):
            stream = np.concatenate(separated(tokenizer, batch))
            file.write(stream.data)
            length += len(stream)
            if progress:
                progress(length)
        file.seek(0)
        _write_header(file, kind, length)
        file.flush()
        os.fsync(file.fileno())
    if length:
        partial.replace(path)
    else:
        partial.unlink()
    return length


def _write_header(file: BinaryIO, kind: np.dtype[Any], length: int) -> None:
    # numpy pads the header for a growing first axis: it has the same size for every length.
    shape = {"descr": kind.str, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, shape)


class ShuffledWindows:
    """Every window once an epoch, in an order that is a function of the seed and the epoch.

    Global sequence i is window `permutation[i % N]` of epoch `i // N`, so nothing but i is needed to resume, and no
    number of ranks changes what sequence i is. Raises UserError where the corpus is shorter than one window.
    """

    def __init__(self, tokens: TokenFile, window: int, seed: int) -> None:
        self.window = window
        self.count = tokens.windows(window)
        if not self.count:
            raise UserError(
                f"the corpus has {tokens.length:,} training tokens, fewer than the {window + 1:,} of one sequence "
                f"(T = {window:,})",
                remedy="give the run more text or a smaller T",
            )
        self._tokens = tokens
        self._seed = seed
        self._permutation: tuple[int, NDArray[np.int64]] = (0, self._order(0))

    def take(self, indices: Sequence[int]) -> Tensor:
        """Sequences with these global indices, in any order -> int64 [n, T + 1]."""
        epochs, places = np.divmod(np.asarray(indices, dtype=np.int64), self.count)
        rows = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._epoch(int(epoch))[places[here]]
        return self._tokens.gather(rows, self.window)

    def state(self) -> dict[str, Any]:
        """What `restore` compares: the order itself needs no state."""
        return {"seed": self._seed, "window": self.window, "windows": self.count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Raises UserError where `state` belongs to another order, so that its position would mean nothing here."""
        if dict(state) != self.state():
            raise UserError(
                f"the checkpoint was trained on other data: it has {dict(state)}, this run has {self.state()}",
                remedy="restore the data, tokenizer, T and seed of the checkpoint, or start a new run",
            )

    @staticmethod
    def merge(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One state out of those of all ranks, which are equal."""
        return dict(states[0])

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if self._permutation[0] != epoch:
            self._permutation = (epoch, self._order(epoch))
        return self._permutation[1]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        # Sorting raw Philox output: numpy promises that stream for ever, and does not promise `permutation`.
        key = np.array([self._seed % 2**64, epoch], dtype=np.uint64)
        return np.argsort(np.random.Philox(key=key).random_raw(self.count), kind="stable")

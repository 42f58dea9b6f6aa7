"""A corpus tokenised once into a memory-mapped file, and its windows in a shuffled order that needs no state."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from mcframe.data import plugin_checks
from mcframe.data.cache import cache_dir, cache_key, fingerprint, make_folder
from mcframe.data.packing import Counted, Tokens, batched, gather_windows, separated, token_type, window_count
from mcframe.data.split import Split, check_fraction, empty_split, split_documents
from mcframe.data.window_stream import StatelessWindows
from mcframe.errors import Location, UserError
from mcframe.files import replaced, writing
from mcframe.hookspecs import TextSource, Tokenizer

FORMAT = 2
"""Part of every token file's name: raise it when the same documents result in other bytes."""


class TokenFile:
    """A split's token stream: a flat .npy file, memory-mapped instead of loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb")  # of a file that is deleted, the content stays
        self._size = os.fstat(self._file.fileno()).st_size
        self._tokens: Tokens = np.load(path, mmap_mode="r")

    @property
    def length(self) -> int:
        """Number of tokens, separators included."""
        return len(self._tokens)

    @property
    def digest(self) -> str:
        """Hash of all tokens. It is kept in a file next to them, because a large corpus takes seconds."""
        kept = self.path.with_suffix(".blake2")
        if not kept.exists() or kept.stat().st_mtime_ns < self.path.stat().st_mtime_ns:
            with self.path.open("rb") as file:
                value = hashlib.file_digest(file, lambda: blake2b(digest_size=16)).hexdigest()
            with suppress(UserError), replaced(kept) as partial:  # a cache that is read-only is hashed at every start
                partial.write_text(value, "utf-8")
            return value
        return kept.read_text("utf-8")

    def windows(self, window: int) -> int:
        """Return the number of windows of `window` + 1 tokens."""
        return window_count(self.length, window)

    def gather(self, indices: Sequence[int] | NDArray[np.int64], window: int) -> Tensor:
        """Return windows `indices` in stream order -> int64 [n, window + 1], for `unpacked`.

        Raises:
            IndexError: An index is outside the file.
            UserError: The file has been truncated. To read its mapped memory would end the process without a message.
        """
        size = os.fstat(self._file.fileno()).st_size
        if size < self._size:
            raise UserError(
                f"the token file has been truncated while it was read: expected {self._size:,} bytes, got {size:,}",
                remedy="Delete the file and repeat the command: the text is tokenised again, and the run resumes.",
                location=Location(self.path),
            )
        return gather_windows(self._tokens, indices, window)


def token_file(source: TextSource, tokenizer: Tokenizer, *, split: Split, fraction: float) -> TokenFile:
    """Open the split's token file, and write it first if it is missing.

    Any number of processes may call this at once: one writes, the others wait.

    Args:
        source: where the documents come from.
        tokenizer: text to ids.
        split: `train` or `validation`.
        fraction: fraction of documents that are held out for validation.

    Raises:
        UserError: The split has no documents.
    """
    check_fraction(fraction)
    chats = [tokenizer.chat_format] if source.chats else []
    name = fingerprint([FORMAT, cache_key(source), cache_key(tokenizer), split, fraction, *chats])
    path = cache_dir() / "tokens" / f"{name}.npy"
    if not path.exists():
        make_folder(path.parent)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():  # another process may have written it while this one waited
                counted = Counted(plugin_checks.documents(source))
                if not _write(path, split_documents(source, counted, split, fraction), tokenizer, source.chats):
                    raise empty_split(split, fraction, counted.count)
    return TokenFile(path)


def _write(path: Path, documents: Iterable[str], tokenizer: Tokenizer, chats: bool) -> int:
    """Tokenise into `path` and return the number of tokens; without tokens, no file is written."""
    kind = token_type(tokenizer.vocab_size, chats)
    partial = path.with_suffix(".partial")  # the caller's lock excludes other writers
    length = 0
    try:
        with partial.open("wb") as file:
            _write_header(file, kind, length)
            for batch in batched(documents):
                stream = np.concatenate(separated(tokenizer, batch, chats))
                with writing(path):
                    file.write(stream.data)
                length += len(stream)
            file.seek(0)
            _write_header(file, kind, length)
            with writing(path):
                file.flush()
                os.fsync(file.fileno())
        if length:
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return length


def _write_header(file: BinaryIO, kind: np.dtype[Any], length: int) -> None:
    # numpy pads the header for a growing first axis, so that its size is the same for every length.
    shape = {"descr": kind.str, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, shape)


class ShuffledWindows(StatelessWindows):
    """Every window once an epoch, in an order that is a function of the seed and the epoch.

    Global sequence i is window `permutation[i % N]` of epoch `i // N`, so that the number of ranks does not change it.

    Raises:
        UserError: The corpus is shorter than one window.
    """

    def __init__(self, tokens: TokenFile, window: int, seed: int) -> None:
        self.window = window
        self.count = tokens.windows(window)
        if not self.count:
            raise UserError(
                f"train split: expected at least {window + 1:,} tokens for one sequence of T = {window:,}, got "
                f"{tokens.length:,}",
                remedy="Train on more text, or lower T.",
            )
        self._tokens = tokens
        self._seed = seed
        self._permutation: tuple[int, NDArray[np.int64]] = (0, self._order(0))

    def take(self, indices: Sequence[int]) -> Tensor:
        """Return the sequences with these global indices, in any order -> int64 [n, T + 1], for `unpacked`."""
        epochs, positions = np.divmod(np.asarray(indices, dtype=np.int64), self.count)
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            selected = epochs == epoch
            rows[selected] = self._epoch(int(epoch))[positions[selected]]
        return self._tokens.gather(rows, self.window)

    def state(self) -> dict[str, Any]:
        """Return what determines the order."""
        return {"seed": self._seed, "window": self.window, "windows": self.count}

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if self._permutation[0] != epoch:
            self._permutation = (epoch, self._order(epoch))
        return self._permutation[1]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        # Sorted raw Philox output, because numpy guarantees that stream for ever, but not the result of `permutation`.
        key = np.array([self._seed % 2**64, epoch], dtype=np.uint64)
        return np.argsort(np.random.Philox(key=key).random_raw(self.count), kind="stable")

"""Text to ids and back: plain bytes, and byte-level byte-pair encoding (BPE, Sennrich et al. 2016)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from mcframe.data import plugin_checks
from mcframe.data.cache import cache_dir, make_folder
from mcframe.data.packing import Counted, batched
from mcframe.data.sources import StandardLibrary
from mcframe.data.split import check_fraction, empty_split, split_documents
from mcframe.errors import UserError
from mcframe.files import replaced, user_path
from mcframe.hookspecs import TextSource, Tokenizer

SEPARATOR = "<|separator|>"
"""The separator's entry in a BPE vocabulary. The same characters in a document are ordinary text."""

_BYTES = 256


class Bytes(Tokenizer):
    """UTF-8 bytes as ids 0 to 255; the separator is 256 and decodes to nothing."""

    vocab_size = _BYTES + 1
    separator = _BYTES
    identity = "bytes"

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's bytes. Half a surrogate pair, which has no UTF-8, becomes a question mark."""
        return [list(text.encode("utf-8", errors="replace")) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of these ids without separators. Bytes that are not UTF-8 become U+FFFD."""
        return bytes(i for i in ids if i < _BYTES).decode("utf-8", errors="replace")

    def byte_lengths(self) -> Tensor:
        """Return int64 [257]: 1 for every byte, 0 for the separator."""
        lengths = torch.ones(self.vocab_size, dtype=torch.int64)
        lengths[self.separator] = 0
        return lengths


class BPE(Tokenizer):
    """Byte-level BPE, trained once by `mcframe tokenizer --gin FILE` on the file's training documents.

    The separator is id 0 and decodes to nothing.

    Source:
        Sennrich et al., 2016.

    Args:
        vocab_size: Entries, the separator included.
        name: Name of the tokenizer, if several of this size are trained.
        file: A tokenizer file instead of the cached one of that name and size.

    Raises:
        UserError: The file is missing, of another kind, or has another number of entries.
    """

    identity = ""

    def __init__(
        self, vocab_size: Annotated[int, Field(ge=_BYTES + 1)] = 65536, name: str = "default", file: str | None = None
    ) -> None:
        path = bpe_file(vocab_size, name) if file is None else user_path(file, "tokenizer.bpe.file")
        content = _content(path)
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # tokenizers raises no narrower class
            raise UserError(
                f"tokenizer {path}: {error}", remedy="Train it again: mcframe tokenizer --gin FILE"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # a document that spells the separator must not end there
        self._added = {int(each["id"]): str(each["content"]) for each in json.loads(content).get("added_tokens") or ()}
        self.identity = f"bpe:{blake2b(content, digest_size=16).hexdigest()}"
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.separator = self._tokenizer.get_vocab()[SEPARATOR]
        highest = max(self._tokenizer.get_vocab().values())
        if highest >= self.vocab_size:
            raise UserError(
                f"tokenizer {path}: expected ids below its {self.vocab_size:,} entries, got {highest:,}",
                remedy="Number the entries without gaps.",
            )
        if self.vocab_size != vocab_size:
            raise UserError(
                f"tokenizer {path}: expected {vocab_size:,} entries, got {self.vocab_size:,}",
                remedy=f"Set tokenizer.bpe.vocab_size = {self.vocab_size}, or train one: mcframe tokenizer --gin FILE",
            )
        self._bytes = self._entry_bytes()
        self._check_round_trip(path, json.loads(content))

    def _check_round_trip(self, path: Path, fields: dict[str, Any]) -> None:
        """Raise UserError if texts are not the same after encoding and decoding.

        A tokenizer that alters text would make losses a byte incomparable.
        """
        lengths = self.byte_lengths()
        for text in (*PROBES, *(f"a {each} b{each}" for each in self._added.values())):
            ids = self.encode_batch([text])[0]
            found = self.decode(ids)
            if found != text or int(lengths[ids].sum()) != len(text.encode()):
                parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens", "truncation")
                named = ", ".join(f"{part} {_kind(fields[part])}" for part in parts if fields.get(part))
                raise UserError(
                    f"tokenizer {path} alters text: {text!r} becomes {found!r}; the file has {named}",
                    remedy="Remove the normalizer and settings that add or strip characters (add_prefix_space, lstrip) "
                    "from the file, or train one: mcframe tokenizer --gin FILE",
                )

    @staticmethod
    def example_settings(folder: Path) -> dict[str, Any]:
        """Return settings for a small vocabulary, trained on a part of the standard library."""
        train_bpe(StandardLibrary("json/*.py"), 300, folder / "bpe.json", fraction=0.0)
        return {"vocab_size": 300, "file": str(folder / "bpe.json")}

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text. Half a surrogate pair, which has no UTF-8, becomes a question mark."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast([valid_text(text) for text in texts])]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of these ids without separators. Bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self._bytes[i] for i in ids).decode("utf-8", errors="replace")

    def byte_lengths(self) -> Tensor:
        """Return int64 [vocab_size]: the bytes of each entry, 0 for the separator."""
        return torch.tensor([len(each) for each in self._bytes], dtype=torch.int64)

    def _entry_bytes(self) -> list[bytes]:
        """Return the bytes of each entry; the byte-level alphabet writes each byte of a learned one as one character.

        Added entries are written as they are.
        """
        letters = alphabet()
        entries = [b""] * self.vocab_size
        for entry, index in self._tokenizer.get_vocab().items():
            if index in self._added:
                entries[index] = self._added[index].encode()
            else:
                entries[index] = b"".join(letters.get(character, character.encode()) for character in entry)
        entries[self.separator] = b""
        return entries


PROBES = (
    "Hello World", " two  spaces\tTab ", "\n\r\n line\u2028", "it's 12,345.60 don't", "a\x00b\x7f\ufeff",
    "e\u0301 \u00e9 \ufb01 \uff21 \u212b \u00a0x", "\u4f60\u597d \U0001f600\u200d\u2642", "\u0130I\u0131i \u00df\u1e9e",
    "`` \u201cquoted\u201d -- \u2026",
)  # fmt: skip
"""Texts that normalizers, prefix spaces, stripping and clean-up change."""


def alphabet() -> dict[str, bytes]:
    """Return the byte of each character of the byte-level alphabet (GPT-2, Radford et al., 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(_BYTES) if byte not in printable]
    codes = [*printable, *range(_BYTES, _BYTES + len(others))]
    return {chr(code): bytes([byte]) for code, byte in zip(codes, [*printable, *others], strict=True)}


def _kind(part: Any) -> str:
    """Return the type of a part of a tokenizer file, and the settings of it that are true."""
    if isinstance(part, list):
        return ", ".join(repr(each.get("content")) for each in part)
    kinds = [_kind(each) for name in ("normalizers", "pretokenizers", "decoders") for each in part.get(name) or ()]
    settings = [name for name, value in part.items() if value is True]
    return f"{part.get('type', '')}({', '.join(kinds or settings)})"


def bpe_file(vocab_size: int, name: str = "default") -> Path:
    """Return the path at which the trained tokenizer of this name and size is cached.

    Raises:
        UserError: The name is not a file name.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(
            f"tokenizer.bpe.name: expected a file name, got {name!r}",
            remedy="Use letters, digits, dots, hyphens and underscores in tokenizer.bpe.name.",
        )
    return cache_dir() / "tokenizers" / f"{name}-{vocab_size}.json"


def train_bpe(
    source: TextSource,
    vocab_size: int,
    file: Path,
    *,
    fraction: float,
    max_characters: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Train on the source's training documents and write `file` atomically.

    Args:
        source: where the documents come from.
        vocab_size: number of entries, the separator included.
        file: the tokenizer file; its folder is created if it is missing.
        fraction: fraction of documents that are held out for validation; these are skipped.
        max_characters: number of characters after which no further batch of documents is read; None for no limit.
        progress: called with the number of characters read so far.

    Raises:
        UserError: The training documents are missing, or too few for that many entries.
    """
    check_fraction(fraction)
    if vocab_size <= _BYTES:
        raise UserError(
            f"tokenizer.bpe.vocab_size: expected {_BYTES + 1} or more, got {vocab_size}",
            remedy=f"Set tokenizer.bpe.vocab_size to {_BYTES + 1} or more.",
        )
    counted = Counted(plugin_checks.documents(source))
    documents = split_documents(source, counted, "train", fraction)
    batches = _counted(documents, max_characters, progress)
    first = next(batches, None)
    if first is None:
        raise empty_split("train", fraction, counted.count)
    tokenizer = _fit(chain([first], batches), vocab_size)
    if tokenizer.get_vocab_size() < vocab_size:
        raise UserError(
            f"tokenizer.bpe.vocab_size: expected at most {tokenizer.get_vocab_size():,} entries for this text, got "
            f"{vocab_size:,}",
            remedy="Train on more text, or lower tokenizer.bpe.vocab_size.",
        )
    make_folder(file.parent)
    with replaced(file) as partial:
        tokenizer.save(str(partial))


def _fit(batches: Iterable[list[str]], vocab_size: int) -> Any:
    """Return a byte-level tokenizer of up to `vocab_size` entries; every byte is one of them for any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(batches, trainer)
    return tokenizer


def _counted(
    documents: Iterator[str], limit: int | None, progress: Callable[[int], None] | None
) -> Iterator[list[str]]:
    """Yield batches of documents until `limit` characters are read."""
    read = 0
    for batch in batched(documents):
        read += sum(map(len, batch))
        yield [valid_text(text) for text in batch]
        if progress:
            progress(read)
        if limit is not None and read >= limit:
            return


def valid_text(text: str) -> str:
    """Return the text with question marks for halves of surrogate pairs, which have no UTF-8."""
    return text.encode("utf-8", errors="replace").decode()


def _content(path: Path) -> bytes:
    """Return the bytes of a byte-level BPE file.

    Raises:
        UserError: The file is missing or of another kind.
    """
    remedy = "Train it once: mcframe tokenizer --gin FILE"
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"missing trained tokenizer {path}", remedy=remedy) from error
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {path}: {error.strerror}", remedy=remedy) from error
    try:
        fields: Any = json.loads(content)
        kinds = (fields["model"]["type"], fields["pre_tokenizer"]["type"], SEPARATOR in fields["model"]["vocab"])
    except (ValueError, KeyError, TypeError):
        kinds = None
    if kinds != ("BPE", "ByteLevel", True):
        raise UserError(
            f"{path}: expected a byte-level BPE tokenizer with the entry {SEPARATOR}, got another file", remedy=remedy
        )
    return content

"""Assignment of documents to training or validation, by their content alone.

Neither a document's position, nor its neighbours, nor the number of ranks has an influence. Duplicates are therefore in
the same split, and a growing corpus never moves a document from one split to the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Literal

from mcframe.errors import UserError

Split = Literal["train", "validation"]

_SET_FRACTION = "Set data.validation_fraction to the fraction of documents to hold out, such as 0.01."


def is_validation(document: str, fraction: float) -> bool:
    """Return whether `document` is held out, if `fraction` (0 to 1) of all documents are."""
    content = document.encode("utf-8", errors="surrogatepass")
    digest = blake2b(content, digest_size=8, person=b"mcframe split").digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def documents_of(documents: Iterable[str], split: Split, fraction: float) -> Iterator[str]:
    """Yield the documents that belong to `split`, in their order."""
    held_out = split == "validation"
    return (document for document in documents if is_validation(document, fraction) == held_out)


def check_fraction(fraction: float) -> None:
    """Raise UserError unless 0 <= fraction < 1."""
    if not 0 <= fraction < 1:
        raise UserError(
            f"data.validation_fraction: expected at least 0 and below 1, got {fraction}", remedy=_SET_FRACTION
        )


def empty_split(split: Split, fraction: float, documents: int) -> UserError:
    """Return the error for a corpus of so many documents without one in `split`."""
    if split == "validation" and fraction == 0:
        return UserError("data.validation_fraction: expected a number above 0, got 0", remedy=_SET_FRACTION)
    if not documents:
        return UserError("run.text: expected documents, got none", remedy="Correct the settings of the text source.")
    change = "Raise" if split == "validation" else "Lower"
    enough = min(0.5, 4 / max(documents, 1))  # 98 of 100 corpora have then a held-out document
    to = f" to {enough:.2g}" if split == "validation" and enough > fraction else ""
    return UserError(
        f"the {split} split has no documents at data.validation_fraction = {fraction}, of {documents:,} in all",
        remedy=f"{change} data.validation_fraction{to}, or train on more documents.",
    )

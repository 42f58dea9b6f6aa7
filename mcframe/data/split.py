"""Which documents are held out, decided by their content alone.

A document's split depends on neither its place, its neighbours nor the number of ranks, so duplicates go the same
way and a corpus that grows never moves a document from one split to the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Literal

from mcframe.errors import UserError

Split = Literal["train", "validation"]


def is_validation(document: str, share: float) -> bool:
    """Whether `document` is held out, when `share` (0 to 1) of all documents are."""
    content = document.encode("utf-8", errors="surrogatepass")
    digest = blake2b(content, digest_size=8, person=b"mcframe split").digest()
    return int.from_bytes(digest, "big") < share * 2**64


def documents_of(documents: Iterable[str], split: Split, share: float) -> Iterator[str]:
    """Those of `documents` that belong to `split`, in their order."""
    held_out = split == "validation"
    return (document for document in documents if is_validation(document, share) == held_out)


def check_share(share: float) -> None:
    """Raises UserError unless 0 <= share < 1."""
    if not 0 <= share < 1:
        raise UserError(
            f"the validation share is {share}, but it must be at least 0 and below 1",
            remedy="set data.validation_fraction to the share of documents to hold out, such as 0.01",
        )


def empty_split(split: Split, share: float) -> UserError:
    """What to say when no document of the corpus belongs to `split`."""
    if split == "validation" and share == 0:
        return UserError(
            "there is nothing to validate on, because the validation share is 0",
            remedy="set data.validation_fraction to the share of documents to hold out, such as 0.01",
        )
    change = "raise" if split == "validation" else "lower"
    return UserError(
        f"no document of this corpus falls into the {split} split at a validation share of {share}",
        remedy=f"{change} data.validation_fraction, or give the run more documents",
    )

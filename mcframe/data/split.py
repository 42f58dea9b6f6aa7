"""Assignment of documents to training or validation, so that near-duplicates are in the same split.

A corpus of a token file is split by cluster of near-duplicates. A corpus that streams, or is too large to be clustered,
is split by a key of each document alone: near-duplicates then have the same key with the probability that is the
fraction of strings that they have in common. Neither the order of documents nor the number of ranks has an influence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mcframe.data.clusters import STRING, clusters
from mcframe.data.text_hashes import string_hashes
from mcframe.errors import UserError
from mcframe.hookspecs import TextSource
from mcframe.registry.checks import raise_contract_error

Split = Literal["train", "validation"]

_SET_FRACTION = "Set data.validation_fraction to the fraction of documents to hold out, such as 0.01."


def is_validation(document: str, fraction: float) -> bool:
    """Return whether `document` is held out, if `fraction` (0 to 1) of all documents are.

    The key is the document's 32-character string with the smallest hash: a MinHash of one permutation.
    """
    hashes = string_hashes(document, STRING)
    start = int(hashes.argmin()) if hashes.size else 0
    key = document[start : start + STRING].encode("utf-8", errors="surrogatepass")
    digest = blake2b(key, digest_size=8, person=b"mcframe split").digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def documents_of(documents: Iterable[str], split: Split, fraction: float) -> Iterator[str]:
    """Yield the documents that belong to `split` by their own key, in their order."""
    held_out = split == "validation"
    return (document for document in documents if is_validation(document, fraction) == held_out)


def split_documents(source: TextSource, documents: Iterable[str], split: Split, fraction: float) -> Iterator[str]:
    """Yield those of the source's documents that belong to `split`, in their order.

    Raises:
        UserError: Every cluster of near-duplicates exceeds the fraction to hold out.
        ContractError: The source returns another number of documents than when it was clustered.
    """
    labels = clusters(source) if fraction else None
    if labels is None:
        yield from documents_of(documents, split, fraction)
        return
    validation = held_out(labels, fraction)
    if split == "validation" and len(labels) > 1 and not validation.any():
        raise _no_small_cluster(labels, fraction)
    count, chosen = 0, split == "validation"
    for document in documents:
        if count < len(labels) and validation[count] == chosen:
            yield document
        count += 1
    if count != len(labels):
        raise_contract_error(
            source, "documents", f"expected {len(labels):,} documents, as in an earlier call, got {count:,}"
        )


def held_out(labels: NDArray[np.int32], fraction: float) -> NDArray[np.bool_]:
    """Return whether each document is held out, from the cluster of each.

    Clusters are taken by their number until `fraction` of the documents is held out, and at least one document. A
    cluster that exceeds the rest of that budget goes to training.
    """
    sizes = np.bincount(labels)
    left = min(max(1, round(fraction * len(labels))), len(labels) - 1)
    taken = np.zeros(len(sizes), bool)
    for cluster, size in enumerate(sizes.tolist()):
        if size <= left:
            taken[cluster] = True
            left -= size
        if not left:
            break
    return taken[labels]


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


def _no_small_cluster(labels: NDArray[np.int32], fraction: float) -> UserError:
    smallest = int(np.bincount(labels).min())
    remedy = "Train on other documents as well."
    if smallest < len(labels):
        remedy = f"Raise data.validation_fraction to {smallest / len(labels):.2g}, or train on more documents."
    return UserError(
        f"the validation split has no documents at data.validation_fraction = {fraction}: near-duplicates are in one "
        f"split, and the smallest cluster of them has {smallest:,} of {len(labels):,} documents",
        remedy=remedy,
    )

"""Clusters of near-duplicate documents: MinHash (Broder, 1997) and locality-sensitive hashing.

Two documents of which about a third or more of the 32-character strings are common are in one cluster, and so are the
documents that a chain of such pairs connects.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from mcframe.data import plugin_checks
from mcframe.data.cache import cache_dir, cache_key, fingerprint, make_folder
from mcframe.data.packing import batched
from mcframe.data.text_hashes import string_hashes
from mcframe.files import replaced
from mcframe.hookspecs import TextSource

STRING = 32
"""Characters of the strings that are compared."""
MAX_CHARACTERS, MAX_DOCUMENTS = 2**28, 2**18
"""Size of the largest corpus that is clustered."""
FORMAT = 1
"""Part of the cached file's name: raise it when the same documents result in other clusters."""

# 40 bands of 3: a pair is joined with a probability of 0.67 if 30 % of the strings are common, 0.995 if it is 50 %.
_BANDS, _ROWS, _SEED = 40, 3, 1


def clusters(source: TextSource) -> NDArray[np.int32] | None:
    """Return the cluster of each document; None if the corpus streams or is too large to be clustered.

    The result is cached. Of many processes that call this at once, one computes it and the others wait.
    """
    if source.streaming:
        return None
    path = cache_dir() / "tokens" / f"{fingerprint(['clusters', FORMAT, cache_key(source)])}.clusters"
    make_folder(path.parent)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            found = find_clusters(plugin_checks.documents(source))
            with replaced(path) as partial, partial.open("wb") as file:
                np.save(file, np.empty(0, np.int32) if found is None else found)
    labels: NDArray[np.int32] = np.load(path)
    return labels if labels.size else None


def find_clusters(documents: Iterable[str]) -> NDArray[np.int32] | None:
    """Return each document's cluster [documents], numbered in an order that depends on the contents alone.

    None without documents, and for more than `MAX_DOCUMENTS` or `MAX_CHARACTERS`.
    """
    signatures, keys, characters = [], [], 0
    for batch in batched(documents):
        characters += sum(map(len, batch))
        signatures.append(_signatures(batch))
        keys += [_digest(text) for text in batch]
        if characters > MAX_CHARACTERS or len(keys) > MAX_DOCUMENTS:
            return None
    return _components(np.concatenate(signatures), np.array(keys, np.uint64)) if keys else None


def _signatures(texts: list[str]) -> NDArray[np.uint64]:
    """Return the MinHash signature of each text -> [texts, bands * rows]."""
    import rensa

    hashes = [string_hashes(text, STRING) for text in texts]
    pairs = zip(texts, hashes, strict=True)
    sets = [found if found.size else np.array([_digest(text)], np.uint64) for text, found in pairs]
    rows = rensa.RMinHash.digest_matrix_from_token_hash_sets(sets, _BANDS * _ROWS, _SEED).to_rows()
    return np.array(rows, np.uint64)


def _components(signatures: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Join documents that agree in all rows of a band, and number the clusters by the smallest key in each."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(keys)
    multipliers = np.random.Philox(key=_SEED).random_raw(_ROWS)
    bands = signatures.reshape(count, _BANDS, _ROWS) @ multipliers  # uint64 [documents, bands], modulo 2**64
    firsts = []
    for band in bands.T:
        _, first, bucket = np.unique(band, return_index=True, return_inverse=True)
        firsts.append(first[bucket])
    edges = np.concatenate(firsts), np.tile(np.arange(count), _BANDS)
    graph = coo_array((np.ones(len(edges[0]), np.int8), edges), shape=(count, count))
    total, labels = connected_components(graph, directed=False)
    smallest = np.full(total, np.iinfo(np.uint64).max)
    np.minimum.at(smallest, labels, keys)
    ranks = np.empty(total, np.int32)
    ranks[np.argsort(smallest, kind="stable")] = np.arange(total, dtype=np.int32)
    found: NDArray[np.int32] = ranks[labels]
    return found


def _digest(text: str) -> int:
    content = text.encode("utf-8", errors="surrogatepass")
    return int.from_bytes(blake2b(content, digest_size=8, person=b"mcframe cluster").digest(), "big")

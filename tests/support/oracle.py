"""The slow reference: docs/concepts.md again, one token at a time, in plain Python.

Nothing here imports the code under test. A walk through the window visits its nodes in order; every quantity is read
from that walk.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple


class Tree(NamedTuple):
    """T, K, the highest LOD, G, the protected tail in tokens, the protected blocks at the start, H (0: K)."""

    window: int
    block_size: int
    levels: int
    slots: int
    tail: int
    sink: int
    horizon: int = 0

    @property
    def delta_horizon(self) -> int:
        return self.block_size if self.horizon == 0 else self.horizon

    @property
    def cursor(self) -> int:
        return self.window - self.tail

    @property
    def blocks(self) -> int:
        return self.window // self.block_size


class Entry(NamedTuple):
    """One position of a working context."""

    start: int
    end: int
    lod: int
    slot: int
    slots: int

    @property
    def span(self) -> int:
        return self.end - self.start

    @property
    def predicts(self) -> bool:
        return self.slot == self.slots - 1


Focus = Sequence[int]


def is_protected(tree: Tree, block: int) -> bool:
    return block < tree.sink or (block + 1) * tree.block_size > tree.window - tree.tail


def node_blocks(tree: Tree, lod: int, node: int) -> range:
    width = tree.block_size ** (lod - 1)
    return range(node * width, (node + 1) * width)


def node_is_free(tree: Tree, lod: int, node: int) -> bool:
    """Return whether the node is complete and holds no protected block."""
    blocks = node_blocks(tree, lod, node)
    return blocks.stop <= tree.blocks and not any(is_protected(tree, b) for b in blocks)


def is_valid(tree: Tree, focus: Focus) -> bool:
    for block, lod in enumerate(focus):
        if not 0 <= lod <= tree.levels:
            return False
        if lod == 0:
            continue
        node = block // tree.block_size ** (lod - 1)
        if not node_is_free(tree, lod, node):
            return False
        if any(focus[b] != lod for b in node_blocks(tree, lod, node)):
            return False
    return True


def random_focus(tree: Tree, rng: random.Random, density: float) -> list[int]:
    """A valid focus: from the coarsest level down, each free node is compressed with this probability."""
    focus = [0] * tree.blocks
    for lod in range(tree.levels, 0, -1):
        for node in range(tree.window // tree.block_size**lod):
            blocks = node_blocks(tree, lod, node)
            if node_is_free(tree, lod, node) and not any(focus[b] for b in blocks) and rng.random() < density:
                for b in blocks:
                    focus[b] = lod
    return focus


def build_context(tree: Tree, focus: Focus) -> list[Entry]:
    entries, token = [], 0
    while token < tree.window:
        block = token // tree.block_size
        lod = focus[block] if block < tree.blocks else 0
        slots = tree.slots if lod else 1
        end = token + tree.block_size**lod
        entries += [Entry(token, end, lod, slot, slots) for slot in range(slots)]
        token = end
    assert token == tree.window
    return entries


def table_rows(tree: Tree) -> dict[tuple[int, int, int], int]:
    """(LOD, first token, slot) -> row, counted out one row after another."""
    rows: dict[tuple[int, int, int], int] = {}
    for lod in range(tree.levels + 1):
        for node in range(tree.window // tree.block_size**lod):
            for slot in range(tree.slots if lod else 1):
                rows[lod, node * tree.block_size**lod, slot] = len(rows)
    return rows


def position(entry: Entry, placement: str = "centre") -> tuple[float, float]:
    """Mean and standard deviation of the sub-interval of width w that the entry stands for."""
    width = entry.span / entry.slots
    left = entry.start + entry.slot * width
    mean = {"start": left, "centre": left + width / 2 - 0.5, "end": left + width - 1}[placement]
    return mean, math.sqrt(max(0.0, width * width - 1) / 12)


def mixes(tree: Tree) -> dict[int, set[tuple[int, ...]]]:
    """Every reachable length, with every mix (nodes per LOD) that has it, by walking through all valid focuses."""
    walks: dict[int, set[tuple[int, ...]]] = {0: {(0,) * tree.levels}}
    for token in range(tree.window):
        for counts in walks.get(token, ()):
            # raw, token by token; a compressed node begins only where its level is aligned
            walks.setdefault(token + 1, set()).add(counts)
            for lod in range(1, tree.levels + 1):
                span = tree.block_size**lod
                if token % span == 0 and node_is_free(tree, lod, token // span):
                    more = (*counts[: lod - 1], counts[lod - 1] + 1, *counts[lod:])
                    walks.setdefault(token + span, set()).add(more)
    lengths: dict[int, set[tuple[int, ...]]] = {}
    for counts in walks[tree.window]:
        saved = sum(n * (tree.block_size**lod - tree.slots) for lod, n in enumerate(counts, start=1))
        lengths.setdefault(tree.window - saved, set()).add(counts)
    return lengths


def covers(entry: Entry, tree: Tree, block: int) -> bool:
    """The entry's node covers the block, or is a raw token of it."""
    first, last = block * tree.block_size, (block + 1) * tree.block_size - 1
    return first <= entry.start <= last if entry.lod == 0 else entry.start <= first and last < entry.end


def block_means(tree: Tree, entries: Sequence[Entry], values: Sequence[float]) -> list[float]:
    result = []
    for block in range(tree.blocks):
        inside = [v for e, v in zip(entries, values, strict=True) if covers(e, tree, block)]
        result.append(sum(inside) / len(inside) if inside else 0.0)
    return result


def can_collapse(tree: Tree, entry: Entry) -> bool:
    if entry.lod == tree.levels:
        return False
    return node_is_free(tree, entry.lod + 1, entry.start // tree.block_size ** (entry.lod + 1))


def splitmix(state: int, salt: int) -> int:
    """Return the hash of the counter RNG, in Python's unbounded integers."""
    x = (state + (salt + 1) * 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


# ---- metrics -------------------------------------------------------------------------------------
class EntryDelta(NamedTuple):
    """A predicting entry with its ΔNLL and the nearest span that ends at or before it."""

    entry: Entry
    nll: float
    delta: float
    nearest: Entry | None


def pair_nll(entries: Sequence[Entry], nll: Sequence[float], baseline: Sequence[float]) -> list[EntryDelta]:
    """Pair each predicting entry with the baseline's position end - 1, which has the very same target."""
    result: list[EntryDelta] = []
    nearest = None
    for entry, loss in zip(entries, nll, strict=True):
        if not entry.predicts:
            continue
        result.append(EntryDelta(entry, loss, loss - baseline[entry.end - 1], None if entry.lod else nearest))
        if entry.lod:
            nearest = entry
    return result


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def tail_delta(tree: Tree, entry_deltas: Sequence[EntryDelta]) -> float:
    return mean([j.delta for j in entry_deltas if j.entry.end >= tree.cursor])


def span_deltas(entry_deltas: Sequence[EntryDelta], delta_horizon: int) -> dict[int, list[float]]:
    """First token of each span -> ΔNLL of the tokens less than `delta_horizon` after it for which it is the nearest."""
    result: dict[int, list[float]] = {}
    for j in entry_deltas:
        if j.nearest is not None and j.entry.start - j.nearest.end < delta_horizon:
            result.setdefault(j.nearest.start, []).append(j.delta)
    return result


def metrics(tree: Tree, rows: Sequence[tuple[Sequence[Entry], Sequence[EntryDelta]]]) -> dict[str, list[float]]:
    """Name -> the values that are pooled into its mean."""
    pool: dict[str, list[float]] = {}
    for level in range(tree.levels + 1):
        for name in ("mc/lod_loss", "mc/lod_count") + (("mc/gist_entry_delta", "mc/lod_delta") if level else ()):
            pool[f"{name}/{level}"] = []
    buckets = ((0, 16), (16, 32), (32, 128), (128, 512))
    for _, high in buckets:
        pool[f"mc/delta_after/{high}"] = []
    pool |= {"mc/tail_delta": [], "mc/wc_length": [], "mc/adv_delta": []}
    for entries, entry_deltas in rows:
        pool["mc/wc_length"].append(len(entries))
        for level in range(tree.levels + 1):
            pool[f"mc/lod_count/{level}"].append(sum(e.lod == level for e in entries))
        seen_gist = False
        advantage = []
        for j in entry_deltas:
            seen_gist |= j.entry.lod > 0 or j.nearest is not None  # a gist whose own target does not count is one
            if seen_gist:
                advantage.append(j.delta)
            pool[f"mc/lod_loss/{j.entry.lod}"].append(j.nll)
            if j.entry.lod:
                pool[f"mc/gist_entry_delta/{j.entry.lod}"].append(j.delta)
            if j.entry.end >= tree.cursor:
                pool["mc/tail_delta"].append(j.delta)
            if j.nearest is not None:
                distance = j.entry.start - j.nearest.end
                if distance < tree.delta_horizon:
                    pool[f"mc/lod_delta/{j.nearest.lod}"].append(j.delta)
                for low, high in buckets:
                    if low <= distance < high:
                        pool[f"mc/delta_after/{high}"].append(j.delta)
        pool["mc/adv_delta"].append(mean(advantage) if advantage else math.nan)
    return pool

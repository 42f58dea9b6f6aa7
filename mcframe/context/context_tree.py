"""The tree's shape: levels of detail, blocks, slots, protected tokens, and which lengths can be reached.

Everything here is arithmetic on Python integers; nothing touches a tensor. The definitions are those of
docs/concepts.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

from mcframe.context.level_mixes import LevelMixes
from mcframe.errors import UserError


@dataclass(frozen=True)
class ContextTree:
    """The division of a window of `window` tokens into nodes of several levels of detail (LOD).

    window      T, tokens that one sequence holds (targets need one more)
    block_size  K, children that one gist summarises
    levels      highest LOD; a node at LOD l spans K**l tokens
    slots       G, embeddings of a gist (1 <= G < K); a token has one
    tail        tokens at the end that are never compressed; the cursor stands before them
    sink        blocks at the start that are never compressed
    horizon     H, tokens after a span in which its cost is measured (`mc/lod_delta`); 0 is K
    """

    window: int
    block_size: int = 32
    levels: int = 1
    slots: int = 1
    tail: int = 128
    sink: int = 0
    horizon: int = field(default=0, repr=False, compare=False)  # reported by, not what is computed: the same tree

    def __post_init__(self) -> None:
        if self.block_size < 2:
            raise UserError(
                f"context.block_size is {self.block_size}; a gist needs two children or more",
                binding="context.block_size",
                remedy="set context.block_size to 2 or more, for example 32",
            )
        if not 1 <= self.slots < self.block_size:
            raise UserError(
                f"context.slots is {self.slots}; it must be at least 1 and below context.block_size "
                f"({self.block_size})",
                binding="context.slots",
                remedy="set context.slots to a smaller number",
            )
        if self.levels < 1:
            raise UserError(
                f"context.levels is {self.levels}; it must be at least 1",
                binding="context.levels",
                remedy="set context.levels = 1",
            )
        if not 0 <= self.tail <= self.window:
            raise UserError(
                f"context.tail is {self.tail}; it must lie between 0 and context.window ({self.window})",
                remedy="set context.tail to the number of recent tokens that stay raw, for example 128",
                binding="context.tail",
            )
        if self.sink < 0:
            raise UserError(
                f"context.sink is {self.sink} blocks; it cannot be negative",
                binding="context.sink",
                remedy="set context.sink = 0",
            )

        if self.horizon < 0:
            raise UserError(
                f"context.horizon is {self.horizon} tokens; it cannot be negative",
                binding="context.horizon",
                remedy="set context.horizon = 0, which stands for one block, or to a number of tokens",
            )

    def with_window(self, window: int) -> ContextTree:
        """The same tree over a window of another length."""
        return replace(self, window=window)

    # ---- nodes -----------------------------------------------------------------------------------
    @property
    def blocks(self) -> int:
        """Complete blocks in the window, T // K."""
        return self.window // self.block_size

    @property
    def cursor(self) -> int:
        """First token that LensNet may not see, T - tail."""
        return self.window - self.tail

    @property
    def delta_horizon(self) -> int:
        """H: the cost of a span is measured on the tokens less than H after its end."""
        return self.horizon or self.block_size

    def span(self, lod: int) -> int:
        """Tokens that a node at `lod` covers, K**lod."""
        return int(self.block_size**lod)

    def slots_at(self, lod: int) -> int:
        """Embeddings of a node at `lod`: 1 for a token, G above."""
        return 1 if lod == 0 else self.slots

    def nodes(self, lod: int) -> int:
        """Nodes at `lod` in one window, T // K**lod."""
        return self.window // self.span(lod)

    def offset(self, lod: int) -> int:
        """Row of the node table at which `lod` begins."""
        return sum(self.nodes(below) * self.slots_at(below) for below in range(lod))

    @property
    def table_rows(self) -> int:
        """Rows of the node table of one sequence, N(0) + G * (N(1) + ...)."""
        return self.offset(self.levels + 1)

    def saving(self, lod: int) -> int:
        """Entries saved by compressing one complete node to `lod`, K**lod - G."""
        return self.span(lod) - self.slots_at(lod)

    # ---- protection ------------------------------------------------------------------------------
    @cached_property
    def compressible(self) -> tuple[tuple[bool, ...], ...]:
        """For each LOD from 1 up, for each node of it: may it be compressed (no protected block in it)?"""
        table = []
        for lod in range(1, self.levels + 1):
            inside = self._compressible(lod)
            table.append(tuple(node in inside for node in range(self.nodes(lod))))
        return tuple(table)

    def compressible_nodes(self, lod: int) -> int:
        """Number of nodes at `lod` that may be compressed."""
        return len(self._compressible(lod))

    def _compressible(self, lod: int) -> range:
        """The nodes at `lod` from the first complete one after the sink to the last before the tail."""
        return range(-(-self.sink * self.block_size // self.span(lod)), self.cursor // self.span(lod))

    # ---- lengths ---------------------------------------------------------------------------------
    def length(self, counts: tuple[int, ...]) -> int:
        """Entries of a context with `counts[l - 1]` nodes compressed at LOD l."""
        return self.window - sum(n * self.saving(lod) for lod, n in enumerate(counts, start=1))

    @cached_property
    def level_mixes(self) -> LevelMixes:
        """The mixes of levels that fit."""
        most = tuple(self.compressible_nodes(lod) for lod in range(1, self.levels + 1))
        return LevelMixes(self.block_size, self.slots, most)

    @cached_property
    def minimum_length(self) -> int:
        """Entries of the shortest valid context."""
        return self.window - self.level_mixes.largest_saving()

    def reachable_length(self, target: int) -> int:
        """The largest reachable length that does not exceed `target`.

        Raises UserError, naming the minimum, where no context is that short.
        """
        length: int = _reachable_length(self, target)
        return length

    def reachable(self, target: int) -> tuple[int, tuple[tuple[int, ...], ...]]:
        """`reachable_length`, and the mixes of nodes that have it; raises as that does.

        Returns `(length, mixes)`; `mix[l - 1]` is the number of nodes at LOD l. Every mix is returned, or `MOST_MIXES`
        of them where there are more.
        """
        found: tuple[int, tuple[tuple[int, ...], ...]] = _reachable(self, target)
        return found

    def usable_levels(self, low: int, high: int) -> dict[int, int]:
        """For each LOD, the most nodes of it that a context can hold at a target length from `low` to `high`."""
        largest = self.window - self.reachable_length(low)
        return {lod: self.level_mixes.most_nodes(lod, self.window - high, largest) for lod in range(1, self.levels + 1)}


@lru_cache(maxsize=4096)
def _reachable_length(tree: ContextTree, target: int) -> int:
    saving = tree.level_mixes.saving(tree.window - target)
    if saving is None:
        raise UserError(
            f"no working context of {target} entries or fewer: with a window of {tree.window}, blocks of "
            f"{tree.block_size}, {tree.levels} level(s) and a tail of {tree.tail} the shortest has "
            f"{tree.minimum_length}",
            remedy="raise the target length, lower context.tail or raise context.levels",
        )
    return tree.window - saving


@lru_cache(maxsize=4096)
def _reachable(tree: ContextTree, target: int) -> tuple[int, tuple[tuple[int, ...], ...]]:
    length = tree.reachable_length(target)
    return length, tree.level_mixes.mixes(tree.window - length)


# Integers: nothing to trace. `torch.compiler.assume_constant_result` does this, too, and imports the compiler for 3 s.
for _cached in (_reachable_length, _reachable):
    vars(_cached.__wrapped__)["_dynamo_marked_constant"] = True

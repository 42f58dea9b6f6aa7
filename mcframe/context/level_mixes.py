"""Numbers of nodes of several levels of detail that shorten a context by some number of entries.

N gists that replace B blocks of K tokens by G embeddings each save K * B - G * N entries. A gist of LOD l replaces
K**(l - 1) blocks, which is 1 modulo K - 1, and K gists of one level can replace a gist of the level above. For each B
the possible N are therefore every (K - 1)-th number from the smallest, which uses high levels first, up to B. That
makes the possible savings a formula in B, without a search through the levels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

MOST_MIXES = 512
"""Mixes that are listed: where there are more, this many are drawn among them."""

Mix: TypeAlias = tuple[int, ...]
"""Number of nodes of each level from LOD1 up."""

_Counts: TypeAlias = NDArray[np.int64]
_NONE = np.iinfo(np.int64).max


@dataclass(frozen=True)
class LevelMixes:
    """The mixes of levels that fit a window.

    Attributes:
        block_size: K, children of a gist.
        slots: G, embeddings of a gist.
        most: For each level from LOD1 up, the most nodes of it that fit where no other level is used.
    """

    block_size: int
    slots: int
    most: Mix

    def saving(self, need: int) -> int | None:
        """Return the smallest saving of `need` entries or more, or None if there is none."""
        smallest = 0 if need <= 0 else int(self._savings(need)[1].min(initial=_NONE))
        return None if smallest == _NONE else smallest

    def largest_saving(self) -> int:
        """Return the saving of the shortest context, which replaces every block by as few gists as possible."""
        blocks = np.array([self.most[0]])
        return int((self.block_size * blocks - self.slots * self._fewest(blocks, len(self.most)))[0])

    def most_nodes(self, lod: int, least: int, largest: int) -> int:
        """Return the most nodes of `lod` in a mix whose saving lies between `least` and `largest`."""
        one = self.block_size**lod - self.slots
        low, high = 0, min(self.most[lod - 1], largest // one)
        while low < high:
            count = (low + high + 1) // 2
            rest = self._next_to(lod, count).saving(least - count * one)
            fits = rest is not None and count * one + rest <= largest
            low, high = (count, high) if fits else (low, count - 1)
        return low

    def mixes(self, saving: int) -> tuple[Mix, ...]:
        """Return the mixes of exactly this saving, sorted by the nodes of the highest level, then of the next.

        Of more than `MOST_MIXES` mixes, that many are drawn, always the same ones, the coarsest among them.
        """
        blocks, savings = self._savings(saving)
        # Few blocks with few gists come first.
        pairs = [(int(b), (self.block_size * int(b) - saving) // self.slots) for b in blocks[savings == saving]]
        found: list[Mix] = []
        for pair in pairs:
            for mix in self._every(*pair, len(self.most)):
                found.append(mix)
                if len(found) > MOST_MIXES:
                    return _sorted(self._drawn(pairs))
        return _sorted(found)

    def _savings(self, need: int) -> tuple[_Counts, _Counts]:
        """Return numbers of blocks, and for each the smallest saving of `need` or more, `_NONE` if there is none."""
        k, g = self.block_size, self.slots
        blocks = np.arange(-(-need // k), self.most[0] + 1)
        fewest = self._fewest(blocks, len(self.most))
        gists = np.minimum(blocks, (k * blocks - need) // g)
        gists -= (gists - fewest) % (k - 1)
        return blocks, np.where(gists < fewest, _NONE, k * blocks - g * gists)

    def _fewest(self, blocks: _Counts, level: int, taken: _Counts | int = 0) -> _Counts:
        """Return the fewest gists of LOD1 to `level` that replace so many blocks.

        Args:
            blocks: Numbers of blocks.
            level: The highest level to use.
            taken: For each number, the nodes of `level` that lie below compressed ones.
        """
        gists = np.zeros_like(blocks)
        for lod in range(level, 0, -1):
            nodes = np.minimum(self.most[lod - 1] - taken, blocks // self.block_size ** (lod - 1))
            gists, blocks = gists + nodes, blocks - nodes * self.block_size ** (lod - 1)
            taken = (taken + nodes) * self.block_size
        return gists

    def _next_to(self, lod: int, count: int) -> LevelMixes:
        """Return the mixes of what remains next to `count` nodes of `lod`."""
        k, most = self.block_size, list(self.most)
        for level in range(1, len(most) + 1):
            fits = most[level - 1] - count * k ** (lod - level) if level <= lod else most[level - 2] // k
            most[level - 1] = min(most[level - 1], fits)
        return LevelMixes(k, self.slots, tuple(most))

    def _choices(self, blocks: int, gists: int, level: int, taken: int) -> range:
        """Return the possible numbers of nodes of `level` where it and those below replace blocks by so many gists.

        They have no gaps: one node more at this level makes two or more below it unnecessary.

        Args:
            blocks: Number of blocks.
            gists: Number of gists.
            level: The level, 2 or above.
            taken: Nodes of the level that lie below compressed ones.
        """
        width = self.block_size ** (level - 1)
        high = min(self.most[level - 1] - taken, blocks // width, (blocks - gists) // (width - 1))
        counts = np.arange(high + 1)
        below = self._fewest(blocks - counts * width, level - 1, (taken + counts) * self.block_size)
        return range(int(np.argmax(below <= gists - counts)), high + 1)

    def _every(self, blocks: int, gists: int, level: int, taken: int = 0) -> Iterator[Mix]:
        """Yield every mix of LOD1 to `level` that replaces so many blocks by so many gists."""
        if level == 1:
            yield (gists,)
            return
        for count in self._choices(blocks, gists, level, taken):
            rest = blocks - count * self.block_size ** (level - 1)
            for below in self._every(rest, gists - count, level - 1, (taken + count) * self.block_size):
                yield (*below, count)

    def _drawn(self, pairs: list[tuple[int, int]]) -> set[Mix]:
        """Return mixes whose numbers of nodes are drawn from the highest level down."""
        draw = random.Random(0)
        found = {self._one(*pairs[0], lambda choices: choices[-1])}
        for _ in range(MOST_MIXES - 1):
            found.add(self._one(*draw.choice(pairs), draw.choice))
        return found

    def _one(self, blocks: int, gists: int, choose: Callable[[range], int]) -> Mix:
        mix: Mix = ()
        taken = 0
        for level in range(len(self.most), 1, -1):
            count = choose(self._choices(blocks, gists, level, taken))
            blocks, gists = blocks - count * self.block_size ** (level - 1), gists - count
            mix, taken = (count, *mix), (taken + count) * self.block_size
        return (gists, *mix)


def _sorted(mixes: list[Mix] | set[Mix]) -> tuple[Mix, ...]:
    return tuple(sorted(mixes, key=lambda mix: mix[::-1]))

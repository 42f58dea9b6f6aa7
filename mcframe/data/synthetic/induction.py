"""Induction (after Olsson et al., In-context Learning and Induction Heads, arXiv 2209.11895): continue as once before.

Random symbols. One block that may be collapsed contains a prefix and its continuation. The prefix is repeated right
before the cursor, and the continuation right after it. With blocks of 8, a prefix of 2 and a continuation of 4:

    FHDBEGAC|GABDHCEF|ECHBFDAG|CABDHCEGF
              ^^ prefix           ^ cursor
                ^^^^ continuation

The prefix is nowhere else before the cursor, so that its continuation is unique. Shorter or later pieces of the
sequence may be repeated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.bounds import Size
from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import hash_combine, randint, random_keys
from mcframe.data.synthetic.layout import check_room, collapsible, single_answer
from mcframe.data.synthetic.recall import FIRST_KEY
from mcframe.errors import require
from mcframe.hookspecs import SyntheticBatch, SyntheticTask


class Induction(SyntheticTask):
    """Random symbols: a prefix from inside one block is repeated before the cursor, and its continuation is the answer.

    T - `context.tail` must leave the prefix's length or more when divided by K.

    Source:
        Olsson et al., arXiv 2209.11895.

    Args:
        length: Tokens of the continuation, all scored; with the prefix at most K.
        prefix: Tokens before the cursor that occur once more, and only once. With 1, the only repeated symbol reveals
            the source before the question.
        symbols: Entries of the vocabulary; at least the prefix's length and 2.
    """

    def __init__(self, tree: ContextTree, *, length: Size = 8, prefix: Size = 2, symbols: Size = 32) -> None:
        self.tree, self.length, self.prefix, self.symbols = tree, length, prefix, symbols
        self.blocks = collapsible(tree)
        self.vocab_size = FIRST_KEY + symbols
        self._check_sizes()
        check_room(tree, "induction", prefix, length)
        # A guess can exclude the symbol that would repeat the prefix; with a longer prefix even that helps less.
        self.chance = 1 / (symbols - 1)

    def _check_sizes(self) -> None:
        size, longest = self.tree.block_size, self.tree.block_size - self.prefix
        require(1 <= self.prefix < size, "task.induction.prefix", self.prefix, f"from 1 to {size - 1}")
        rule = f"from 1 to {longest}, the rest of a block after the prefix"
        require(1 <= self.length <= longest, "task.induction.length", self.length, rule)
        rule = f"{self.prefix + 2} or more, two more than the prefix has"
        require(self.symbols >= self.prefix + 2, "task.induction.symbols", self.symbols, rule)

    @property
    def identity(self) -> str:
        """A string that changes with everything that determines the sequences."""
        return f"induction-1 {self.tree} {self.length} {self.prefix} {self.symbols}"

    def generate(self, seeds: Tensor) -> SyntheticBatch:
        """Return sequences [B, T + 1] for seeds [B]."""
        size, cursor = self.tree.block_size, self.tree.cursor
        tokens = randint(random_keys(hash_combine(seeds, 1), self.tree.window + 1), self.symbols)
        block = self.blocks[0] + randint(hash_combine(seeds, 2), len(self.blocks))
        start = block * size + randint(hash_combine(seeds, 3), size - self.prefix - self.length + 1)
        source = start[:, None] + torch.arange(self.prefix + self.length)
        prefix, continuation = tokens.gather(1, source[:, : self.prefix]), source[:, self.prefix :]
        tokens[:, cursor - self.prefix : cursor] = prefix
        tokens[:, :cursor] = self._without_repeats(tokens[:, :cursor], prefix, start, hash_combine(seeds, 4))
        tokens[:, cursor : cursor + self.length] = tokens.gather(1, continuation)
        return single_answer(self.tree, FIRST_KEY + tokens, continuation)

    def _without_repeats(self, tokens: Tensor, prefix: Tensor, start: Tensor, seeds: Tensor) -> Tensor:
        """Return tokens in which the prefix occurs only at `start` and at the end.

        In each accidental repeat, one token that belongs to neither occurrence is replaced by a symbol that is not in
        the prefix. No repeat remains after this, and none can arise.

        Args:
            tokens: [B, c], the tokens before the cursor.
            prefix: [B, n].
            start: [B], the position of the prefix.
            seeds: [B].
        """
        cursor, last = tokens.shape[1], tokens.shape[1] - self.prefix
        at = torch.arange(last + 1)
        repeats = (tokens.unfold(1, self.prefix, 1) == prefix[:, None]).all(dim=2)
        repeats &= (at != start[:, None]) & (at != last)
        # Replace the first token of the repeat, or the first one after the prefix if the repeat begins inside the
        # prefix. The continuation keeps the two occurrences apart.
        replaced = torch.where(at < start[:, None], at, at.maximum(start[:, None] + self.prefix))
        changed = torch.zeros_like(tokens).scatter_add_(1, replaced, repeats.long()) > 0
        inside = torch.zeros(len(tokens), self.symbols, dtype=torch.uint8).scatter_(1, prefix, 1)
        others = inside.argsort(dim=1, stable=True)
        free = self.symbols - inside.sum(dim=1, keepdim=True)
        return torch.where(changed, others.gather(1, random_keys(seeds, cursor) % free), tokens)

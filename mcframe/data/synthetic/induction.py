"""Induction (after Olsson et al., In-context Learning and Induction Heads, arXiv 2209.11895): go on as once before.

Random symbols. Somewhere in them, inside one block that may be collapsed, a prefix and the stretch behind it. The
prefix stands again right before the cursor and the stretch right behind it. With blocks of 8, a prefix of 2 and a
stretch of 4:

    FHDBEGAC|GABDHCEF|ECHBFDAG|CABDHCEGF
              ^^ prefix           ^ cursor
                ^^^^ stretch

The prefix stands nowhere else before the cursor, so one stretch only can follow: by its distance from the prefix, every
token of it is determined. Shorter or later pieces of the sequence may well repeat.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import hash_combine, randint, random_keys
from mcframe.data.synthetic.layout import check_room, collapsible
from mcframe.data.synthetic.recall import FIRST_KEY
from mcframe.errors import UserError
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

    def __init__(self, tree: ContextTree, *, length: int = 8, prefix: int = 2, symbols: int = 32) -> None:
        self.tree, self.length, self.prefix, self.symbols = tree, length, prefix, symbols
        self.blocks = collapsible(tree)
        self.vocab_size = FIRST_KEY + symbols
        self._check_sizes()
        check_room(tree, "induction", prefix, length)
        # A guess can leave out the symbol that would repeat the prefix; a longer one makes even that worth less.
        self.chance = 1 / (symbols - 1)

    def _check_sizes(self) -> None:
        for name, bound in {"length": 1, "prefix": 1, "symbols": self.prefix + 2}.items():
            given = getattr(self, name)
            if given < bound:
                raise UserError(
                    f"task.induction.{name} is {given}"
                    + (f"; two besides those of a prefix of {self.prefix} must be left" if name == "symbols" else ""),
                    binding=f"task.induction.{name}",
                    remedy=f"set task.induction.{name} = {bound} or more",
                )
        size = self.tree.block_size
        if self.prefix + self.length > size:
            raise UserError(
                f"a block of {size} tokens does not hold a prefix of {self.prefix} and a stretch of {self.length}",
                remedy=f"lower task.induction.prefix or task.induction.length: {size} together at most",
            )

    @property
    def identity(self) -> str:
        """Everything that the sequences depend on."""
        return f"induction-1 {self.tree} {self.length} {self.prefix} {self.symbols}"

    def generate(self, seeds: Tensor) -> SyntheticBatch:
        """Sequences [B, T + 1] for seeds [B]."""
        rows, window, cursor = seeds.shape[0], self.tree.window, self.tree.cursor
        size = self.tree.block_size
        tokens = randint(random_keys(hash_combine(seeds, 1), window + 1), self.symbols)
        block = self.blocks[0] + randint(hash_combine(seeds, 2), len(self.blocks))
        start = block * size + randint(hash_combine(seeds, 3), size - self.prefix - self.length + 1)
        source = start[:, None] + torch.arange(self.prefix + self.length)
        prefix = tokens.gather(1, source[:, : self.prefix])
        tokens[:, cursor - self.prefix : cursor] = prefix
        tokens[:, :cursor] = self._without_repeats(tokens[:, :cursor], prefix, start, hash_combine(seeds, 4))
        stretch = source[:, self.prefix :]
        tokens[:, cursor : cursor + self.length] = tokens.gather(1, stretch)
        asked = slice(cursor - 1, cursor - 1 + self.length)
        loss_mask = torch.zeros(rows, window, dtype=torch.bool)
        loss_mask[:, asked] = True
        evidence = torch.full((rows, window), -1)
        evidence[:, asked] = stretch
        return SyntheticBatch(FIRST_KEY + tokens, loss_mask, evidence)

    def _without_repeats(self, tokens: Tensor, prefix: Tensor, start: Tensor, seeds: Tensor) -> Tensor:
        """The tokens before the cursor [B, c] with no prefix [B, n] besides the one at `start` [B] and the last one.

        In each chance repeat one token that belongs to neither gives way to a symbol that the prefix does not have;
        so no repeat is left, and none can arise.
        """
        cursor, last = tokens.shape[1], tokens.shape[1] - self.prefix
        at = torch.arange(last + 1)
        repeats = (tokens.unfold(1, self.prefix, 1) == prefix[:, None]).all(dim=2)
        repeats &= (at != start[:, None]) & (at != last)
        # Its first token, or the first behind the prefix where it begins inside that. The stretch keeps the two apart.
        place = torch.where(at < start[:, None], at, at.maximum(start[:, None] + self.prefix))
        changed = torch.zeros_like(tokens).scatter_add_(1, place, repeats.long()) > 0
        inside = torch.zeros(len(tokens), self.symbols, dtype=torch.uint8).scatter_(1, prefix, 1)
        others = inside.argsort(dim=1, stable=True)
        free = self.symbols - inside.sum(dim=1, keepdim=True)
        return torch.where(changed, others.gather(1, random_keys(seeds, cursor) % free), tokens)

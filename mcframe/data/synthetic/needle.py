"""A needle in a haystack: one marked pair among others and noise, and a question for its value.

A pair is the marker, a key and its value of one or more tokens. The needle and each distractor stand in a block of
their own, all of which may be collapsed; everything else is noise. The question, marker and key of the needle, stands
right before the cursor, the value right behind it. With blocks of 8, a distractor and values of two tokens:

    gbt!CXPk|tgaapzvm|!ARUwdxe|mrfoleta|kxy!CXPwu
       ^^^^ needle    ^^^^ distractor         ^ cursor
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

MARKER = 33
"""'!' where the tokenizer is bytes; keys, values and noise follow one another from `FIRST_KEY` on."""

_QUESTION = 2


class Needle(SyntheticTask):
    """One marked pair of key and value among others and noise; its value is the answer.

    Marker and key are repeated right before the cursor, in the block of the cursor. That block needs 2 tokens before
    the cursor, so T - `context.tail` must leave 2 or more when divided by K.

    Args:
        depth: Block that holds the needle, 0 first; None = any that may be collapsed.
        distractors: Marked pairs with other keys, each in a block of its own.
        keys: Entries of the vocabulary of keys; more than the distractors.
        values: Entries of the vocabulary of values; chance is one in that many. Drawn independently of each other.
        filler: Entries of the vocabulary of the noise.
        value_length: Tokens of a value, all scored; at most K - 2.
    """

    def __init__(
        self,
        tree: ContextTree,
        *,
        depth: int | None = None,
        distractors: int = 3,
        keys: int = 16,
        values: int = 16,
        filler: int = 27,
        value_length: int = 1,
    ) -> None:
        self.tree, self.depth, self.distractors = tree, depth, distractors
        self.keys, self.values, self.filler, self.value_length = keys, values, filler, value_length
        self.blocks = collapsible(tree)
        self.first_value = FIRST_KEY + keys
        self.first_filler = self.first_value + values
        self.vocab_size = self.first_filler + filler
        self._check_sizes()
        check_room(tree, "needle", _QUESTION, value_length)
        self._check_blocks()
        self.chance = 1 / values

    def _check_sizes(self) -> None:
        size = self.tree.block_size
        least = {"distractors": 0, "keys": self.distractors + 1, "values": 2, "filler": 1, "value_length": 1}
        why = {
            "keys": f"; the needle and {self.distractors} distractors need a key each",
            "values": "; one value answers every question",
        }
        for name, bound in least.items():
            given = getattr(self, name)
            if given < bound:
                raise UserError(
                    f"task.needle.{name} is {given}{why.get(name, '')}",
                    binding=f"task.needle.{name}",
                    remedy=f"set task.needle.{name} = {bound} or more",
                )
        if _QUESTION + self.value_length > size:
            longest = size - _QUESTION
            raise UserError(
                f"a block of {size} tokens does not hold a marker, a key and a value of {self.value_length}",
                remedy=f"set task.needle.value_length to {longest} or less"
                if longest > 0
                else f"set context.block_size to {_QUESTION + 1} or more",
            )

    def _check_blocks(self) -> None:
        if self.distractors >= len(self.blocks):
            raise UserError(
                f"task.needle.distractors is {self.distractors}, and besides the needle's block "
                f"{len(self.blocks) - 1} may be collapsed",
                binding="task.needle.distractors",
                remedy=f"set task.needle.distractors = {len(self.blocks) - 1} or less, or raise context.window",
            )
        if self.depth is not None and self.depth not in self.blocks:
            raise UserError(
                f"task.needle.depth is {self.depth}, a block that is never collapsed",
                binding="task.needle.depth",
                remedy=f"set it to a number from {self.blocks[0]} to {self.blocks[-1]}, or None",
            )

    @property
    def identity(self) -> str:
        """Everything that the sequences depend on."""
        sizes = f"{self.keys} {self.values} {self.filler} {self.value_length}"
        return f"needle-1 {self.tree} {self.depth} {self.distractors} {sizes}"

    def generate(self, seeds: Tensor) -> SyntheticBatch:
        """Sequences [B, T + 1] for seeds [B]."""
        rows, window, cursor = seeds.shape[0], self.tree.window, self.tree.cursor
        pairs = self._pairs(seeds)
        place = self._starts(seeds)[..., None] + torch.arange(pairs.shape[2])
        tokens = self.first_filler + randint(random_keys(hash_combine(seeds, 1), window + 1), self.filler)
        tokens.scatter_(1, place.flatten(1), pairs.flatten(1))
        tokens[:, cursor - _QUESTION : cursor + self.value_length] = pairs[:, 0]
        asked = slice(cursor - 1, cursor - 1 + self.value_length)
        loss_mask = torch.zeros(rows, window, dtype=torch.bool)
        loss_mask[:, asked] = True
        evidence = torch.full((rows, window), -1)
        evidence[:, asked] = place[:, 0, _QUESTION:]
        return SyntheticBatch(tokens, loss_mask, evidence)

    def _starts(self, seeds: Tensor) -> Tensor:
        """[B, pairs] first token of each pair, the needle first."""
        order = random_keys(hash_combine(seeds, 2), len(self.blocks))
        if self.depth is not None:
            order[:, self.depth - self.blocks[0]] = torch.iinfo(torch.int64).min
        block = self.blocks[0] + order.argsort(dim=1)[:, : self.distractors + 1]
        size = self.tree.block_size
        offset = randint(
            random_keys(hash_combine(seeds, 3), self.distractors + 1), size - _QUESTION - self.value_length + 1
        )
        return block * size + offset

    def _pairs(self, seeds: Tensor) -> Tensor:
        """[B, pairs, 2 + value_length] marker, key and value of each pair, the needle first; keys are distinct."""
        count = self.distractors + 1
        key = FIRST_KEY + random_keys(hash_combine(seeds, 4), self.keys).argsort(dim=1)[:, :count, None]
        value = self.first_value + randint(random_keys(hash_combine(seeds, 5), count * self.value_length), self.values)
        value = value.view(-1, count, self.value_length)
        return torch.cat((torch.full_like(key, MARKER), key, value), dim=2)

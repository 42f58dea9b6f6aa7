"""A needle in a haystack: one marked pair among others and noise, and a question for its value.

A pair is a marker, a key, and a value of one or more tokens. The needle and each distractor are in a block of their
own, all of which may be collapsed; the other tokens are noise. The question, marker and key of the needle, is right
before the cursor, and the value right after it. With blocks of 8, one distractor and values of two tokens:

    gbt!CXPk|tgaapzvm|!ARUwdxe|mrfoleta|kxy!CXPwu
       ^^^^ needle    ^^^^ distractor         ^ cursor
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.bounds import NonNegativeInt, Size
from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import hash_combine, randint, random_keys
from mcframe.data.synthetic.layout import check_room, collapsible, single_answer
from mcframe.data.synthetic.recall import FIRST_KEY
from mcframe.errors import require
from mcframe.hookspecs import SyntheticBatch, SyntheticTask

MARKER = 33
"""'!' with the tokenizer of bytes. The ids of keys, values and noise follow one another from `FIRST_KEY` on."""

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
        depth: NonNegativeInt | None = None,
        distractors: NonNegativeInt = 3,
        keys: Size = 16,
        values: Size = 16,
        filler: Size = 27,
        value_length: Size = 1,
    ) -> None:
        self.tree, self.depth, self.distractors = tree, depth, distractors
        self.keys, self.values, self.filler, self.value_length = keys, values, filler, value_length
        self.blocks = collapsible(tree)
        self.first_value = FIRST_KEY + keys
        self.first_filler = self.first_value + values
        self.vocab_size = self.first_filler + filler
        self._check_sizes()
        check_room(tree, "needle", _QUESTION, value_length)
        last = len(self.blocks) - 1
        require(0 <= distractors <= last, "task.needle.distractors", distractors, f"from 0 to {last}, in other blocks")
        rule = f"from {self.blocks[0]} to {self.blocks[-1]}, or None"
        require(depth is None or depth in self.blocks, "task.needle.depth", depth, rule)
        self.chance = 1 / values

    def _check_sizes(self) -> None:
        for name, least in {"keys": self.distractors + 1, "values": 2, "filler": 1}.items():
            require(getattr(self, name) >= least, f"task.needle.{name}", getattr(self, name), f"{least} or more")
        size, longest = self.tree.block_size, self.tree.block_size - _QUESTION
        require(longest >= 1, "context.block_size", size, f"{_QUESTION + 1} or more for the needle task")
        rule = f"from 1 to {longest} in blocks of {size}"
        require(1 <= self.value_length <= longest, "task.needle.value_length", self.value_length, rule)

    @property
    def identity(self) -> str:
        """A string that changes with everything that determines the sequences."""
        sizes = f"{self.keys} {self.values} {self.filler} {self.value_length}"
        return f"needle-1 {self.tree} {self.depth} {self.distractors} {sizes}"

    def generate(self, seeds: Tensor) -> SyntheticBatch:
        """Return sequences [B, T + 1] for seeds [B]."""
        cursor = self.tree.cursor
        pairs = self._pairs(seeds)
        positions = self._starts(seeds)[..., None] + torch.arange(pairs.shape[2])
        tokens = self.first_filler + randint(random_keys(hash_combine(seeds, 1), self.tree.window + 1), self.filler)
        tokens.scatter_(1, positions.flatten(1), pairs.flatten(1))
        tokens[:, cursor - _QUESTION : cursor + self.value_length] = pairs[:, 0]
        return single_answer(self.tree, tokens, positions[:, 0, _QUESTION:])

    def _starts(self, seeds: Tensor) -> Tensor:
        """Return the position of each pair, the needle first -> [B, pairs]."""
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
        """Return marker, key and value of each pair, the needle first -> [B, pairs, 2 + value_length]."""
        count = self.distractors + 1
        key = FIRST_KEY + random_keys(hash_combine(seeds, 4), self.keys).argsort(dim=1)[:, :count, None]
        value = self.first_value + randint(random_keys(hash_combine(seeds, 5), count * self.value_length), self.values)
        value = value.view(-1, count, self.value_length)
        return torch.cat((torch.full_like(key, MARKER), key, value), dim=2)

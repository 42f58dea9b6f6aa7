"""Key-value recall (after MQAR: Arora et al., Zoology, arXiv 2312.04927), laid out in blocks.

Every block before the questions, or some of them at random, contains `pairs` pairs of a key and its value; all other
tokens are filler. The questions are keys, each followed by its value. The first question is the last token before the
cursor, so that all answers are after it:

    ..Aa..Bb|Cc....Dd|..Ee.Ff.|C cBbFfDd
                                ^ cursor, after the first question
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.bounds import Count, Size
from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import hash_combine, random_keys
from mcframe.errors import UserError, require
from mcframe.hookspecs import SyntheticBatch, SyntheticTask

FILLER = 46
FIRST_KEY = 64
"""Ids that the tokenizer of bytes decodes to characters: '.', and from '@' on."""


class Recall(SyntheticTask):
    """Key-value recall: pairs in every block before the questions, then keys, each followed by its value.

    The first key is right before the cursor. `context.tail` must leave the first question alone in the block of the
    cursor: T less the cursor is a multiple of K, less 1. Token ids are 46 for filler, keys from 64 on, then values.

    Source:
        MQAR (Arora et al., Zoology, arXiv 2312.04927).

    Args:
        pairs: Pairs a block, 1 to K / 2.
        pair_blocks: Blocks of a sequence that have pairs, at random among those that may be collapsed; None = every
            block before the questions.
        keys: Keys of the vocabulary; at least as many as a sequence has pairs, because its keys are distinct.
        values: Values of the vocabulary; 2 or more.
        question_blocks: Blocks that the questions of a sequence are about; None = all with pairs that may be collapsed.
        questions: Questions of a sequence; None = as many as fit.
    """

    def __init__(
        self,
        tree: ContextTree,
        *,
        pairs: Size = 2,
        keys: Size = 32,
        values: Size = 16,
        question_blocks: Count | None = None,
        questions: Count | None = None,
        pair_blocks: Count | None = None,
    ) -> None:
        self.tree, self.pairs, self.keys, self.values = tree, pairs, keys, values
        size = tree.block_size
        # The block of the cursor, which begins with the first question, is never collapsed.
        self.blocks = tree.cursor // size
        self.room = (tree.window - self.blocks * size) // 2
        self.questions = self.room if questions is None else questions
        self.collapsible = max(0, self.blocks - tree.sink)
        self.pair_blocks = pair_blocks
        self.pairs_in_all = self.pairs * (self.blocks if pair_blocks is None else pair_blocks)
        self.askable = self.collapsible if pair_blocks is None else pair_blocks
        self.question_blocks = self.askable if question_blocks is None else question_blocks
        self.vocab_size = FIRST_KEY + keys + values
        self._check()
        self.chance = 1 / values

    def _check(self) -> None:
        size, count = self.tree.block_size, self.pairs_in_all
        if self.tree.cursor % size != 1 or self.blocks < 1 or self.room < 1:
            # The nearest cursor that fits, preferably not after the present one.
            block = max(1, min(self.blocks, (self.tree.window - 2) // size))
            tail = self.tree.window - block * size - 1
            raise UserError(
                "the recall task: expected the last token before the cursor to begin a block after another one, got a "
                f"cursor at token {self.tree.cursor} with blocks of {size}",
                remedy=f"Set context.tail = {tail}" if tail > 0 else "Raise context.window.",
            )
        available = self.question_blocks * self.pairs
        sink = self.tree.sink
        require(
            self.collapsible >= 1,
            "context.sink",
            sink,
            f"below {self.blocks}, the number of blocks before the questions",
        )
        for name, least, most, suffix in (
            ("pairs", 1, size // 2, ""),
            ("questions", 1, self.room, ", or None"),
            ("pair_blocks", 1, self.collapsible, ", or None"),
            ("question_blocks", 1, self.askable, ", or None"),
            ("questions", 1, available, ", the pairs of the question blocks"),
        ):
            value = getattr(self, name)
            if value is not None:
                require(least <= value <= most, f"task.recall.{name}", value, f"from {least} to {most}{suffix}")
        require(self.keys >= count, "task.recall.keys", self.keys, f"{count} or more, a key for each pair")
        require(self.values >= 2, "task.recall.values", self.values, "2 or more")

    @property
    def identity(self) -> str:
        """A string that changes with everything that determines the sequences."""
        form = "recall-1" if self.pair_blocks is None else f"recall-2 {self.pair_blocks}"
        return f"{form} {self.tree} {self.pairs} {self.keys} {self.values} {self.question_blocks} {self.questions}"

    def generate(self, seeds: Tensor) -> SyntheticBatch:
        """Return sequences [B, T + 1] for seeds [B]."""
        rows, size, count = seeds.shape[0], self.tree.block_size, self.pairs_in_all
        key = FIRST_KEY + random_keys(hash_combine(seeds, 1), self.keys).argsort(dim=1)[:, :count]
        value = FIRST_KEY + self.keys + (random_keys(hash_combine(seeds, 2), count) >> 1) % self.values
        # A block's pairs start at some of its even offsets, in order.
        blocks = self._blocks_with_pairs(seeds)
        order = random_keys(hash_combine(hash_combine(seeds, 3)[:, None], blocks), size // 2)
        offset = 2 * order.argsort(dim=2)[..., : self.pairs].sort(dim=2).values
        start = (offset + size * blocks[..., None]).flatten(1)
        pair = self._question_pairs(seeds)
        question = self.blocks * size + 2 * torch.arange(self.questions).expand(rows, -1)
        tokens = torch.full((rows, self.tree.window + 1), FILLER)
        tokens.scatter_(1, start, key).scatter_(1, start + 1, value)
        tokens.scatter_(1, question, key.gather(1, pair)).scatter_(1, question + 1, value.gather(1, pair))
        evidence = torch.full((rows, self.tree.window), -1).scatter_(1, question, start.gather(1, pair) + 1)
        return SyntheticBatch(tokens, evidence >= 0, evidence)

    def _blocks_with_pairs(self, seeds: Tensor) -> Tensor:
        """Return the blocks that have pairs [B, n]."""
        if self.pair_blocks is None:
            return torch.arange(self.blocks).expand(seeds.shape[0], -1)
        order = random_keys(hash_combine(seeds, 6), self.collapsible).argsort(dim=1)
        return self.tree.sink + order[:, : self.pair_blocks].sort(dim=1).values

    def _question_pairs(self, seeds: Tensor) -> Tensor:
        """Return the pair that each question is about: distinct, from `question_blocks` blocks -> [B, questions]."""
        blocks = random_keys(hash_combine(seeds, 4), self.askable).argsort(dim=1)[:, : self.question_blocks]
        first = self.tree.sink if self.pair_blocks is None else 0
        pair = ((blocks[..., None] + first) * self.pairs + torch.arange(self.pairs)).flatten(1)
        order = random_keys(hash_combine(seeds, 5), pair.shape[1]).argsort(dim=1)[:, : self.questions]
        return pair.gather(1, order)

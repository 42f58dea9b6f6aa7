"""Key-value recall (after MQAR: Arora et al., Zoology, arXiv 2312.04927), laid out in blocks.

`pairs` pairs of a key and its value stand somewhere in every block before the questions; the rest is filler. Then keys
are asked one after the other, each followed by its value. The first question is the last token before the cursor, all
answers stand behind it:

    ..Aa..Bb|Cc....Dd|..Ee.Ff.|C cBbFfDd
                                ^ cursor behind the first question
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import hash_combine, random_keys
from mcframe.errors import UserError
from mcframe.hookspecs import SyntheticBatch, SyntheticTask

FILLER = 46
FIRST_KEY = 64
"""Ids that print as characters where the tokenizer is bytes: '.' and from '@' on."""


class Recall(SyntheticTask):
    """Key-value recall: pairs in every block before the questions, then keys, each followed by its value.

    The first key is right before the cursor. `context.tail` must leave the first question alone in the block of the
    cursor: T less the cursor is a multiple of K, less 1. Token ids are 46 for filler, keys from 64 on, then values.

    Source:
        MQAR (Arora et al., Zoology, arXiv 2312.04927).

    Args:
        pairs: Pairs a block, 1 to K / 2.
        keys: Keys of the vocabulary; at least as many as a sequence has pairs, because its keys are distinct.
        values: Values of the vocabulary; 2 or more.
        question_blocks: Blocks that the questions of a sequence are about; None = all that may be collapsed.
        questions: Questions of a sequence; None = as many as fit.
    """

    def __init__(
        self,
        tree: ContextTree,
        *,
        pairs: int = 2,
        keys: int = 32,
        values: int = 16,
        question_blocks: int | None = None,
        questions: int | None = None,
    ) -> None:
        self.tree, self.pairs, self.keys, self.values = tree, pairs, keys, values
        size = tree.block_size
        # The block in which the cursor stands is never collapsed: it begins with the first question.
        self.blocks = tree.cursor // size
        self.room = (tree.window - self.blocks * size) // 2
        self.questions = self.room if questions is None else questions
        self.collapsible = max(0, self.blocks - tree.sink)
        self.question_blocks = self.collapsible if question_blocks is None else question_blocks
        self.vocab_size = FIRST_KEY + keys + values
        self._check()
        self.chance = 1 / values

    def _check(self) -> None:
        size, count = self.tree.block_size, self.blocks * self.pairs
        if self.tree.cursor % size != 1 or self.blocks < 1 or self.room < 1:
            # The nearest cursor that serves, at or before this one where there is such.
            block = max(1, min(self.blocks, (self.tree.window - 2) // size))
            tail = self.tree.window - block * size - 1
            raise UserError(
                f"the recall task wants its first question to be the last token before the cursor and to begin a block "
                f"behind another, but the cursor stands at token {self.tree.cursor} with blocks of {size}",
                remedy=f"set context.tail = {tail}" if tail > 0 else "raise context.window",
            )
        if not 1 <= self.questions <= self.room:
            raise UserError(
                f"task.recall.questions is {self.questions}, and behind the blocks there is room for {self.room}",
                binding="task.recall.questions",
                remedy=f"set it to a number from 1 to {self.room}, or None",
            )
        if not 1 <= self.pairs <= size // 2:
            raise UserError(
                f"a block of {size} tokens does not hold {self.pairs} pairs",
                remedy=f"set task.recall.pairs to a number from 1 to {size // 2}",
            )
        if self.keys < count:
            raise UserError(
                f"{self.blocks} blocks of {self.pairs} pairs need {count} distinct keys, and there are {self.keys}",
                remedy=f"set task.recall.keys = {count} or more",
            )
        if self.values < 2:
            raise UserError(
                f"task.recall.values is {self.values}: one value answers every question",
                binding="task.recall.values",
                remedy="set task.recall.values = 2 or more",
            )
        if self.collapsible < 1:
            raise UserError(
                f"all {self.blocks} blocks before the questions belong to the sink of {self.tree.sink}: none of "
                "them may be collapsed",
                remedy="lower context.sink",
            )
        if not 1 <= self.question_blocks <= self.collapsible:
            raise UserError(
                f"task.recall.question_blocks: expected 1 to {self.collapsible} blocks, got {self.question_blocks}",
                binding="task.recall.question_blocks",
                remedy=f"set it to a number from 1 to {self.collapsible}, or None",
            )
        if self.question_blocks * self.pairs < self.questions:
            raise UserError(
                f"{self.questions} questions are asked, but {self.question_blocks} block(s) hold "
                f"{self.question_blocks * self.pairs} pairs",
                remedy="raise task.recall.pairs or task.recall.question_blocks, or lower task.recall.questions",
            )

    @property
    def identity(self) -> str:
        """Everything that the sequences depend on."""
        return f"recall-1 {self.tree} {self.pairs} {self.keys} {self.values} {self.question_blocks} {self.questions}"

    def generate(self, seeds: Tensor) -> SyntheticBatch:
        """Sequences [B, T + 1] for seeds [B]."""
        rows, size, count = seeds.shape[0], self.tree.block_size, self.blocks * self.pairs
        window = self.tree.window
        key = FIRST_KEY + random_keys(hash_combine(seeds, 1), self.keys).argsort(dim=1)[:, :count]
        value = FIRST_KEY + self.keys + _below(hash_combine(seeds, 2), count, self.values)
        # Where in its block a pair stands: some of the even places, in order.
        places = random_keys(hash_combine(hash_combine(seeds, 3)[:, None], torch.arange(self.blocks)), size // 2)
        place = 2 * places.argsort(dim=2)[..., : self.pairs].sort(dim=2).values
        start = (place + size * torch.arange(self.blocks)[:, None]).flatten(1)
        asked = self._asked(seeds)
        question = self.blocks * size + 2 * torch.arange(self.questions).expand(rows, -1)
        tokens = torch.full((rows, window + 1), FILLER)
        tokens.scatter_(1, start, key).scatter_(1, start + 1, value)
        tokens.scatter_(1, question, key.gather(1, asked)).scatter_(1, question + 1, value.gather(1, asked))
        loss_mask = torch.zeros(rows, window, dtype=torch.bool).scatter_(1, question, True)
        evidence = torch.full((rows, window), -1).scatter_(1, question, start.gather(1, asked) + 1)
        return SyntheticBatch(tokens, loss_mask, evidence)

    def _asked(self, seeds: Tensor) -> Tensor:
        """[B, questions] which pair each question asks for; distinct, from `question_blocks` blocks."""
        chosen = (
            random_keys(hash_combine(seeds, 4), self.collapsible).argsort(dim=1)[:, : self.question_blocks]
            + self.tree.sink
        )
        pair = (chosen[..., None] * self.pairs + torch.arange(self.pairs)).flatten(1)
        order = random_keys(hash_combine(seeds, 5), pair.shape[1]).argsort(dim=1)[:, : self.questions]
        return pair.gather(1, order)


def _below(seeds: Tensor, count: int, bound: int) -> Tensor:
    """[B, count] numbers from 0 to bound - 1."""
    return (random_keys(seeds, count) >> 1) % bound

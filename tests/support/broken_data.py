"""Text sources, tokenizers and tasks that break one requirement each, and conforming ones."""

import random
from dataclasses import replace

import torch

from mcframe.context.counter_rng import hash_combine, randint
from mcframe.data.tokenizers import Bytes
from mcframe.errors import UserError
from mcframe.hookspecs import SyntheticBatch, SyntheticTask, TextSource
from tests.support.planted import breaks, keeps


@keeps("text")
class ThreePoems(TextSource):
    """Three documents, in another order in every epoch."""

    identity = "three-poems-1"

    def documents(self, epoch=0):
        poems = ["one", "two two", "three three three"]
        random.Random(epoch).shuffle(poems)
        yield from poems


@breaks("D1", "text")
class ReturnsBytes(ThreePoems):
    """Documents as bytes."""

    def documents(self, epoch=0):
        yield from (poem.encode() for poem in super().documents(epoch))


@breaks("D1", "text")
class HasNothing(ThreePoems):
    """No document and no error."""

    def documents(self, epoch=0):
        yield from ()


@breaks("D2", "text")
class ShufflesEachRead(ThreePoems):
    """Another order whenever it is read."""

    def __init__(self) -> None:
        self.dice = random.Random(0)

    def documents(self, epoch=0):
        poems = [f"poem {number}" for number in range(9)]
        self.dice.shuffle(poems)
        yield from poems


@breaks("D2", "text")
class NamesItself(ThreePoems):
    """An identity that differs between equal sources, so that no token file is used again."""

    def __init__(self) -> None:
        self.identity_ = random.SystemRandom().random()

    @property
    def identity(self):
        return f"poems-{self.identity_}"


@keeps("text")
class CountedPoems(ThreePoems):
    """A position is the number of poems."""

    def positioned_documents(self, epoch=0, after=None):
        return ((poem, number) for number, poem in enumerate(self.documents(epoch), 1) if number > (after or 0))


@breaks("D3", "text")
class RepeatsAPoem(ThreePoems):
    """The position is that before the document."""

    def positioned_documents(self, epoch=0, after=None):
        return ((poem, number) for number, poem in enumerate(self.documents(epoch)) if number >= (after or 0))


@breaks("D3", "text")
class KeepsItsPlace(ThreePoems):
    """The position is in the source, not in what it returns."""

    def positioned_documents(self, epoch=0, after=None):
        if after is None:
            self.rest = iter([(poem, "here") for poem in self.documents(epoch)])
        return getattr(self, "rest", iter(()))


@breaks("D3", "text")
class DropsTheShuffle(ThreePoems):
    """Other documents than those of `documents`."""

    def positioned_documents(self, epoch=0, after=None):
        poems = ["one", "two two", "three three three"]
        return ((poem, number) for number, poem in enumerate(poems, 1) if number > (after or 0))


@keeps("tokenizer")
class Letters(Bytes):
    """UTF-8 bytes, the separator first."""

    separator = 0

    @property
    def identity(self):
        return "letters-1"

    def encode_batch(self, texts):
        return [[each + 1 for each in ids] for ids in super().encode_batch(texts)]

    def decode(self, ids):
        return super().decode([each - 1 for each in ids if each])

    def byte_lengths(self):
        return (torch.arange(self.vocab_size) > 0).long()


@breaks("K1", "tokenizer")
class EndsEveryText(Letters):
    """Appends the separator to every text."""

    def encode_batch(self, texts):
        return [[*ids, 0] for ids in super().encode_batch(texts)]


@breaks("K1", "tokenizer")
class LosesCase(Letters):
    """Everything comes back in lower case."""

    def decode(self, ids):
        return super().decode(ids).lower()


@breaks("K1", "tokenizer")
class MarksEmptyTexts(Letters):
    """An empty text becomes a space, so that no list is empty."""

    def encode_batch(self, texts):
        return [ids or [33] for ids in super().encode_batch(texts)]

    def decode(self, ids):
        return "" if list(ids) == [33] else super().decode(ids)


@breaks("K2", "tokenizer")
class CountsTheSeparator(Letters):
    """The separator stands for a byte."""

    def byte_lengths(self):
        return torch.ones(self.vocab_size, dtype=torch.int64)


@breaks("K2", "tokenizer")
class CountsInFloats(Letters):
    """Lengths that are not integers."""

    def byte_lengths(self):
        return super().byte_lengths().float()


@breaks("K3", "tokenizer")
class DecodesStrictly(Letters):
    """Raises for bytes that are not UTF-8."""

    def decode(self, ids):
        return bytes(each - 1 for each in ids if each).decode()


@breaks("K3", "tokenizer")
class HasNoName(Letters):
    """An identity that is not a string."""

    identity = 7


@keeps("task")
class OneDigit(SyntheticTask):
    """Dots, a digit somewhere in a block that may be collapsed, a question mark, the digit again."""

    vocab_size = 64
    chance = 0.1

    def __init__(self, tree) -> None:
        if tree.cursor % tree.block_size == 0 or tree.cursor < (tree.sink + 1) * tree.block_size:
            raise UserError("no room for the question", remedy="set context.tail to one token less than a block")
        self.tree = tree

    @property
    def identity(self):
        return f"one_digit-1 {self.tree}"

    def generate(self, seeds):
        tree, row = self.tree, torch.arange(len(seeds))
        first, end = tree.sink * tree.block_size, tree.cursor // tree.block_size * tree.block_size
        position = first + randint(hash_combine(seeds, 1), end - first)
        digit = ord("0") + randint(hash_combine(seeds, 2), 10)
        tokens = torch.full((len(seeds), tree.window + 1), ord("."))
        tokens[row, position] = digit
        tokens[:, tree.cursor - 1] = ord("?")
        tokens[:, tree.cursor] = digit
        loss_mask = torch.zeros(len(seeds), tree.window, dtype=torch.bool)
        loss_mask[:, tree.cursor - 1] = True
        return SyntheticBatch(tokens, loss_mask, torch.where(loss_mask, position[:, None], -1))


@breaks("T1", "task")
class ExceedsItsVocabulary(OneDigit):
    """A question mark that its vocabulary does not have."""

    vocab_size = 60


@breaks("T1", "task")
class ForgetsTheLastToken(OneDigit):
    """T tokens, so that the last target is missing."""

    def generate(self, seeds):
        batch = super().generate(seeds)
        return replace(batch, tokens=batch.tokens[:, :-1])


@breaks("T2", "task")
class DrawsFillerFromTorch(OneDigit):
    """Global random numbers in the filler."""

    def generate(self, seeds):
        batch = super().generate(seeds)
        batch.tokens[:, -1] = torch.randint(10, (len(seeds),))
        return batch


@breaks("T2", "task")
class CountsItsRows(OneDigit):
    """A sequence contains its row number."""

    def generate(self, seeds):
        batch = super().generate(seeds)
        batch.tokens[:, -1] = torch.arange(len(seeds)) % 10
        return batch


@breaks("T1", "task")
class ScoresTheQuestion(OneDigit):
    """The loss mask includes the question mark, before the cursor."""

    def generate(self, seeds):
        batch = super().generate(seeds)
        batch.loss_mask[:, self.tree.cursor - 2] = True
        return batch


@breaks("T1", "task")
class PointsNextToTheEvidence(OneDigit):
    """Evidence one token too late."""

    def generate(self, seeds):
        batch = super().generate(seeds)
        last = self.tree.cursor // self.tree.block_size * self.tree.block_size - 1
        return replace(batch, evidence=torch.where(batch.loss_mask, (batch.evidence + 1).clamp(max=last), -1))


@breaks("T1", "task")
class PutsEvidenceInTheTail(OneDigit):
    """The answer is read where nothing is ever collapsed."""

    def generate(self, seeds):
        batch = super().generate(seeds)
        batch.tokens[:, -1] = batch.tokens[:, self.tree.cursor]
        return replace(batch, evidence=torch.where(batch.loss_mask, self.tree.window, -1))


@breaks("T3", "task")
class HasOneName(OneDigit):
    """The identity does not depend on the tree, so that sequences of one length pass for those of another."""

    identity = "one_digit-1"


@breaks("T3", "task")
class DeclaresAChanceAboveOne(OneDigit):
    """A fraction above one."""

    chance = 10.0

"""Facts that are stated in prose, and a question for one of them: what a chat model reads in a document.

A fact is a sentence about a name, such as `The code word of Maria is "apple".` Facts are written over the prose, one in
each of as many equal parts of it. The question is right before the cursor, the value right after it. A tokenizer with a
chat template makes prose and question the message of a user, and the beginning of the answer precedes the value:

    <user> prose The code word of Maria is "apple". prose The code word of Paul is "river". prose
    What is the code word of Paul? <assistant> The code word of Paul is "|river
                                                                         ^ cursor
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcframe.bounds import Count, PositiveFraction, Size
from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import hash_combine, randint, random_keys
from mcframe.data.sources import StandardLibrary
from mcframe.data.synthetic.layout import collapsible, single_answer
from mcframe.data.tokenizers import Bytes
from mcframe.errors import require
from mcframe.hookspecs import Message, SyntheticBatch, SyntheticTask, TextSource, Tokenizer

NAMES = (
    "Maria", "Paul", "Anna", "Peter", "Laura", "David", "Sarah", "James", "Emma", "Thomas", "Julia", "Daniel", "Alice",
    "Robert", "Helen", "Martin", "Diana", "George", "Clara", "Simon", "Nina", "Oscar", "Rosa", "Victor", "Eva", "Henry",
    "Lucy", "Frank", "Ruth", "Adam", "Jane", "Mark",
)  # fmt: skip
VALUES = (
    "apple", "river", "table", "green", "winter", "silver", "garden", "window", "orange", "mountain", "paper", "yellow",
    "summer", "bridge", "ocean", "forest", "music", "coffee", "stone", "horse", "bread", "flower", "island", "mirror",
    "rain", "gold", "village", "lemon", "engine", "castle", "metal", "spring",
)  # fmt: skip
_NAME, _VALUE = "{name}", "{value}"
_ALIKE = "or more of equally many tokens"


class Facts(SyntheticTask):
    """Facts about names in prose, and a question for one of them.

    The question, up to the value, ends at the cursor. Its tokens in the block of the cursor are never collapsed; in
    sessions those of the tail. Training and held-out sequences have the same prose and other facts.

    Args:
        text: The prose; None = `@text.standard_library`.
        tokenizer: The run's tokenizer; None = `@tokenizer.bytes`.
        facts: Facts in a sequence, about different names.
        prose_tokens: The most tokens of prose that are read.
        statement: A fact.
        question: The question.
        answer: The answer. It ends with the value.
        names: Names. Those are used whose tokens can be exchanged for one another.
        values: Values; likewise.
        within: Fraction of the prose, at its start, that facts stand in.
    """

    def __init__(
        self,
        tree: ContextTree,
        *,
        text: Callable[[], TextSource] | None = None,
        tokenizer: Callable[[], Tokenizer] | None = None,
        facts: Size = 4,
        prose_tokens: Count = 500_000,
        statement: str = ' The code word of {name} is "{value}".',
        question: str = "\n\nWhat is the code word of {name}?",
        answer: str = 'The code word of {name} is "{value}',
        names: Sequence[str] = NAMES,
        values: Sequence[str] = VALUES,
        within: PositiveFraction = 1.0,
    ) -> None:
        self.tree, self.facts, self.within = tree, facts, within
        source, self.tokenizer = (text or StandardLibrary)(), (tokenizer or Bytes)()
        self.vocab_size = self.tokenizer.vocab_size
        _check_slots(statement, question, answer)
        self.before, after = _chat(self.tokenizer)
        self._statement, self._question, self.names, self.values = _forms(
            self.tokenizer, statement, (question, after, answer), names, values
        )
        self._check_sizes(facts)
        self.prose = _prose(source, self.tokenizer, prose_tokens)
        least = tree.window + 1
        require(len(self.prose) >= least, "task.facts.text", len(self.prose), f"a text of {least:,} tokens or more")
        self.chance = 1 / len(self.values)

    @staticmethod
    def example_settings(folder: Path) -> dict[str, Any]:
        """Return settings whose question has three bytes."""
        letters = {"names": list("ABCDEF"), "values": list("uvwxyz")}
        return {"facts": 1, "statement": "{name}={value};", "question": "{name}", "answer": "={value}", **letters}

    @property
    def identity(self) -> str:
        """A string that changes with everything that determines the sequences."""
        parts: tuple[Any, ...] = (self.before, self._statement, self._question, self.facts, self.names, self.values)
        parts += () if self.within == 1.0 else (self.within,)  # runs of before keep their data
        digest = blake2b(self.prose.numpy().tobytes() + repr(parts).encode(), digest_size=16).hexdigest()
        return f"facts-1 {self.tree} {self.tokenizer.identity} {digest}"

    def generate(self, seeds: Tensor) -> SyntheticBatch:
        """Return sequences [B, T + 1] for seeds [B]."""
        cursor, question = self.tree.cursor, self._question
        start = randint(hash_combine(seeds, 1), len(self.prose) - self.tree.window)
        tokens = self.prose[start[:, None] + torch.arange(self.tree.window + 1)]
        name = random_keys(hash_combine(seeds, 2), len(self.names)).argsort(dim=1)[:, : self.facts]
        value = randint(random_keys(hash_combine(seeds, 3), self.facts), len(self.values))
        chosen = randint(hash_combine(seeds, 4), self.facts)[:, None]
        begin = self._starts(seeds)
        statements = self._statement.filled(name, value)
        positions = begin[..., None] + torch.arange(statements.shape[2])
        tokens.scatter_(1, positions.flatten(1), statements.flatten(1))
        tokens[:, : len(self.before)] = torch.tensor(self.before, dtype=torch.int64)
        value_slots = torch.tensor(self._statement.slots["value"])
        evidence = begin.gather(1, chosen) + value_slots
        tokens[:, cursor - question.length : cursor] = question.filled(name.gather(1, chosen))[:, 0]
        tokens[:, cursor : cursor + len(value_slots)] = tokens.gather(1, evidence)
        return single_answer(self.tree, tokens, evidence)

    def _starts(self, seeds: Tensor) -> Tensor:
        """Return the position of each fact: one in each of equal parts of the blocks that may be collapsed [B, F]."""
        first, last = self._room()
        part = (last - first) // self.facts
        offset = randint(random_keys(hash_combine(seeds, 5), self.facts), part - self._statement.length + 1)
        return first + torch.arange(self.facts) * part + offset

    def _room(self) -> tuple[int, int]:
        """Return the first and the last token, exclusive, that facts may stand on."""
        blocks, size = collapsible(self.tree), self.tree.block_size
        last = min(blocks.stop * size, self.tree.cursor - self._question.length)
        first = max(blocks.start * size, len(self.before))
        return first, first + int((last - first) * self.within)

    def _check_sizes(self, facts: int) -> None:
        require(
            len(self.names) >= facts, "task.facts.names", len(self.names), f"{facts} or more of equally many tokens"
        )
        require(len(self.values) >= 2, "task.facts.values", len(self.values), "2 or more of equally many tokens")
        value, tail = len(self._statement.slots["value"]), self.tree.tail
        require(value <= tail + 1, "context.tail", tail, f"{value - 1} or more, for a value of {value} tokens")
        first, last = self._room()
        most = max(0, last - first) // self._statement.length
        remedy = "Lower task.facts.facts, or raise task.facts.within or context.window."
        fitting = f"at most {most}, which fit into the first {self.within:g} of the prose"
        require(facts <= most, "task.facts.facts", facts, fitting, remedy)


@dataclass(frozen=True)
class _Form:
    """A text as tokens, with slots for a word.

    Attributes:
        ids: Its tokens.
        slots: Indices of the tokens of each word.
        words: The tokens of each word that may stand there.
    """

    ids: list[int]
    slots: dict[str, list[int]]
    words: dict[str, list[list[int]]]

    @property
    def length(self) -> int:
        return len(self.ids)

    def filled(self, *chosen: Tensor) -> Tensor:
        """Return the text with a choice for each kind of word, indices [B, F] -> [B, F, length]."""
        found = torch.tensor(self.ids).expand(*chosen[0].shape, -1).clone()
        for (kind, slots), index in zip(self.slots.items(), chosen, strict=True):
            found[..., slots] = torch.tensor(self.words[kind])[index]
        return found


def _forms(
    tokenizer: Tokenizer,
    statement: str,
    question: tuple[str, list[int], str],
    names: Sequence[str],
    values: Sequence[str],
) -> tuple[_Form, _Form, list[str], list[str]]:
    """Return statement and question, up to the value, as tokens, and the names and values that fit both.

    Args:
        tokenizer: The tokenizer.
        statement: A fact.
        question: The question, tokens after it, and the answer.
        names: Names.
        values: Values.
    """

    def encoded(text: str, name: str, value: str) -> list[int]:
        return tokenizer.encode_batch([text.replace(_NAME, name).replace(_VALUE, value)])[0]

    def texts(name: str, value: str) -> tuple[list[int], list[int]]:
        form, after, answer = question
        return encoded(statement, name, value), [*encoded(form, name, ""), *after, *encoded(answer, name, value)]

    names, (name_in_statement, name_in_question) = _alike({name: texts(name, values[0]) for name in names})
    values, (in_statement, in_question) = _alike({value: texts(names[0], value) for value in values})
    require(len(values) >= 2, "task.facts.values", len(values), f"2 {_ALIKE}")
    both = [texts(names[0], value) for value in values]
    answers = [[each[i] for i in in_statement] for each, _ in both]
    first = in_question[0] if in_question else 0
    ends = bool(in_statement) and all(each[first:] == answer for (_, each), answer in zip(both, answers, strict=True))
    rule = f"a text that ends with {_VALUE} in the tokens of the statement, whose tokens follow one another"
    require(
        ends and in_statement == [*range(in_statement[0], in_statement[-1] + 1)], "task.facts.answer", question[2], rule
    )
    by_name = [texts(name, values[0]) for name in names]
    pairs = zip(zip(*by_name, strict=True), (name_in_statement, name_in_question), strict=True)
    named = [[[each[i] for i in slots] for each in own] for own, slots in pairs]
    return (
        _Form(both[0][0], {"name": name_in_statement, "value": in_statement}, {"name": named[0], "value": answers}),
        _Form(both[0][1][:first], {"name": name_in_question}, {"name": named[1]}),
        names,
        values,
    )


def _alike(texts: dict[str, tuple[list[int], ...]]) -> tuple[list[str], tuple[list[int], ...]]:
    """Return the words whose texts differ in the same tokens alone, and the indices of these tokens in each text."""
    lengths = Counter(tuple(map(len, each)) for each in texts.values())
    common = lengths.most_common(1)[0][0]
    group = {word: each for word, each in texts.items() if tuple(map(len, each)) == common}
    reference = next(iter(group.values()))

    def differs(each: tuple[list[int], ...]) -> tuple[tuple[int, ...], ...]:
        pairs = (zip(own, other, strict=True) for own, other in zip(each, reference, strict=True))
        return tuple(tuple(i for i, (a, b) in enumerate(pair) if a != b) for pair in pairs)

    widest = Counter(differs(each) for each in group.values() if each != reference).most_common(1)
    slots = widest[0][0] if widest else tuple(() for _ in reference)
    words = [word for word, each in group.items() if each == reference or differs(each) == slots]
    return words, tuple(list(each) for each in slots)


def _check_slots(statement: str, question: str, answer: str) -> None:
    """Raise UserError unless each text has its slots once."""
    for name, text, slots in (
        ("statement", statement, (_NAME, _VALUE)), ("question", question, (_NAME,)), ("answer", answer, (_VALUE,)),
    ):  # fmt: skip
        found = all(text.count(slot) == 1 for slot in slots)
        require(found, f"task.facts.{name}", text, f"a text with {' and '.join(slots)}, each once")
    require(answer.endswith(_VALUE), "task.facts.answer", answer, f"a text that ends with {_VALUE}")


def _chat(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the tokens before and after the message of a user by the chat template; none without one."""
    start = tokenizer.chat_prompt((), [Message("user", "")])
    end = tokenizer.chat_prompt(("user",), [])
    if start is None or end is None:
        return [], []
    return start[: len(start) - len(end)], end


def _prose(source: TextSource, tokenizer: Tokenizer, most: int) -> Tensor:
    """Return the first tokens of a text. Blank lines stand between documents: the separator would end a message."""
    found: list[int] = []
    for document in source.documents():
        found += tokenizer.encode_batch([f"{document}\n\n"])[0]
        if len(found) >= most:
            break
    return torch.tensor(found[:most], dtype=torch.int64)

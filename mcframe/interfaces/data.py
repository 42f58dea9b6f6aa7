"""Interfaces of what a model reads: text sources, tokenizers, generated tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

TURNS = {"user": "User:", "assistant": "Assistant:"}
"""Beginnings of plain turns by role; those of other roles begin with `SYSTEM`. `mcframe chat` has the same."""
SYSTEM = "System:"


class Message(NamedTuple):
    """A message of a chat: role (system, user, assistant) and text."""

    role: str
    content: str


class Chat(str):
    """A document of messages. As a text it is its plain turns, by which it is split and compared.

    Attributes:
        messages: The messages.
        plain: Tokenise it as plain turns also if the tokenizer has a chat template.
    """

    messages: tuple[Message, ...]
    plain: bool

    def __new__(cls, messages: Sequence[Message], plain: bool = False) -> Chat:
        """Return the chat of these messages."""
        chat = super().__new__(cls, "".join(text for text, _ in plain_turns(messages)))
        chat.messages, chat.plain = tuple(messages), plain
        return chat


def plain_turns(messages: Sequence[Message]) -> list[tuple[str, bool]]:
    """Return the parts of plain turns, such as `User: text`, and whether each is an answer."""
    parts: list[tuple[str, bool]] = []
    for role, content in messages:
        label, answer = TURNS.get(role, SYSTEM), role == "assistant"
        parts += [(label, False), (f" {content}\n", True)] if answer else [(f"{label} {content}\n", False)]
    return parts


class TextSource(ABC):
    """Documents to train on. Factory: `factory()`.

    The numbers, a thousand a document:

        class Numbers(TextSource):
            identity = "numbers-1"

            def documents(self, epoch=0):
                for first in range(0, 100_000, 1000):
                    yield " ".join(map(str, range(first, first + 1000)))
    """

    streaming: bool = False
    """True where documents are read while training instead of being tokenised once and cached."""
    chats: bool = False
    """True where documents may be `Chat`s: of these, the answers alone are scored."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """A string that changes whenever the documents do; names the token cache."""

    @abstractmethod
    def documents(self, epoch: int = 0) -> Iterator[str]:
        """The documents, in an order that depends on nothing but the source and the epoch.

        Raises UserError where there is nothing to read.
        """

    def positioned_documents(self, epoch: int = 0, after: Any = None) -> Iterator[tuple[str, Any]] | None:
        """The documents after position `after` (None: all), each with the position after it, in values of JSON.

        None if the source can only be read from the start of an epoch; a resumed run then reads it again.
        """
        return None

    def describe(self) -> str:
        """The number of documents, and what is skipped, for the start-up summary and `mcframe check`; may be empty.

        Raises UserError where there is nothing to read.
        """
        return ""


class Tokenizer(ABC):
    """Text to token ids and back. Factory: `factory()`.

    Characters below 128:

        class Ascii(Tokenizer):
            vocab_size, separator, identity = 129, 128, "ascii-1"

            def encode_batch(self, texts):
                return [list(text.encode("ascii", "replace")) for text in texts]

            def decode(self, ids):
                return bytes(i for i in ids if i < 128).decode()

            def byte_lengths(self):
                return (torch.arange(129) < 128).long()
    """

    vocab_size: int
    separator: int
    """The id that stands between documents."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """A string that changes whenever the ids do; names the token cache."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without separators."""

    @property
    def chat_format(self) -> str:
        """A string that changes whenever `encode_chats` does, for the same `identity`; names the token cache."""
        return "plain turns"

    def encode_chats(self, chats: Sequence[Chat]) -> list[list[tuple[list[int], bool]]]:
        """The parts of each chat: token ids, and whether they are of an answer. Plain turns by default."""
        turns = [plain_turns(chat.messages) for chat in chats]
        ids = iter(self.encode_batch([text for parts in turns for text, _ in parts]))
        return [[(next(ids), answer) for _, answer in parts] for parts in turns]

    @property
    def has_chat_template(self) -> bool:
        """True if `chat_prompt` returns ids."""
        return False

    def chat_prompt(self, roles: Sequence[str], messages: Sequence[Message]) -> list[int] | None:
        """Token ids of chat messages after messages of these roles, up to the beginning of an answer.

        After an answer they begin with `chat_end`. None without a chat template: plain turns are written.
        """
        return None

    @property
    def chat_end(self) -> int:
        """The id that ends an answer of the chat template."""
        return self.separator

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids; bytes that are no UTF-8 become U+FFFD."""

    @abstractmethod
    def byte_lengths(self) -> Tensor:
        """Bytes of text that each id stands for, int64 [vocab_size]; 0 for special tokens. For bits per byte."""


@dataclass(frozen=True)
class SyntheticBatch:
    """Generated sequences.

    tokens    [B, T + 1] int64
    loss_mask [B, T] bool: position t counts, so token t + 1 is an answer
    evidence  [B, T] int64: the token position where the answer to the target at t is to be found, -1 where not scored
    """

    tokens: Tensor
    loss_mask: Tensor
    evidence: Tensor


class SyntheticTask(ABC):
    """Sequences that are generated and whose answers are known. Factory: `factory(tree)`.

    Noise without questions (docs/plugins/task.md has a task with questions):

        class Noise(SyntheticTask):
            vocab_size, identity = 64, "noise-1"

            def __init__(self, tree):
                self.window = tree.window

            def generate(self, seeds):
                tokens = random_keys(seeds, self.window + 1) % 64
                nothing = torch.zeros(len(seeds), self.window, dtype=torch.int64)
                return SyntheticBatch(tokens, nothing.bool(), nothing - 1)

    Questions stand before the cursor, or are earlier answers after it. Their evidence stands in blocks that may be
    collapsed. Answers stand after the cursor.
    """

    vocab_size: int
    """Every token id is below this."""

    chance: float | None = None
    """The fraction of answers that the best guess without the evidence gets right; None if unknown."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """A string that changes whenever the sequences do."""

    @abstractmethod
    def generate(self, seeds: Tensor) -> SyntheticBatch:
        """Return one sequence for each seed [B] int64: a function of that seed alone, the same on every machine."""

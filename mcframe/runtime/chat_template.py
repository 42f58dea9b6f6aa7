"""Chat messages as plain turns or by a tokenizer's template, and the recognition of a transcript in a session."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mcframe.hookspecs import Message as ChatMessage
from mcframe.hookspecs import Tokenizer


class Message(Protocol):
    """A chat message."""

    @property
    def role(self) -> str:
        """Return system, developer, user or assistant."""

    @property
    def content(self) -> str:
        """Return the text."""


def role_of(message: Message) -> str:
    """Return the role of a message as chat templates name it."""
    return "system" if message.role == "developer" else message.role


@dataclass(frozen=True)
class ChatTemplate:
    """Turns such as `User: text`, one after the other; the model continues after `Assistant:`.

    Attributes:
        user: Begins a turn of the user.
        assistant: Begins an answer.
        system: Begins an instruction.
    """

    user: str = "User:"
    assistant: str = "Assistant:"
    system: str = "System:"

    @property
    def stop(self) -> list[str]:
        """Texts that end an answer: the beginning of another turn."""
        return [f"\n{self.user}", f"\n{self.assistant}"]

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return ()

    def prompt(
        self, messages: Sequence[Message], pending: str | None = None, roles: Sequence[str] = ()
    ) -> str | list[int]:
        """Return messages as text or token ids, up to the beginning of the answer.

        Args:
            messages: The messages.
            pending: None at the start of a history; else the text at its end that belongs to the next turn.
            roles: The roles of the messages before, which plain turns do not need.
        """
        labels = {"user": self.user, "assistant": self.assistant}
        turns = [f"{labels.get(each.role, self.system)} {each.content}\n" for each in messages]
        text = "".join([*turns, self.assistant])
        if pending is None:
            return text
        text = f"\n{text}"
        return text.removeprefix(pending)

    def pending(self, answer: AnswerText, tokenizer: Tokenizer) -> str:
        """Return the text at the end of the history that begins the next turn."""
        if answer.tokens and answer.tokens[-1] == tokenizer.separator:
            return "\n"  # the document has ended, as a line does
        generated = tokenizer.decode(answer.tokens)
        return generated[generated.find(answer.text) + len(answer.text) :]


@dataclass(frozen=True)
class ModelTemplate(ChatTemplate):
    """The chat template of a pretrained model's tokenizer. The labels are shown in a terminal alone.

    Attributes:
        tokenizer: A tokenizer with a chat template.
    """

    tokenizer: Tokenizer = field(kw_only=True)

    @property
    def stop(self) -> list[str]:
        """Texts that end an answer: none, a token does."""
        return []

    @property
    def ends(self) -> tuple[int, ...]:
        """The token that ends an answer."""
        return (self.tokenizer.chat_end,)

    def prompt(self, messages: Sequence[Message], pending: str | None = None, roles: Sequence[str] = ()) -> list[int]:
        """Return messages as token ids, up to the beginning of the answer; see `ChatTemplate.prompt`."""
        named = [ChatMessage(role_of(each), each.content) for each in messages]
        ids = self.tokenizer.chat_prompt(roles, named)
        assert ids is not None, "a tokenizer without a chat template"
        return ids[1:] if roles and pending and ids[0] == self.tokenizer.chat_end else ids

    def pending(self, answer: AnswerText, tokenizer: Tokenizer) -> str:
        """Return a line feed if the token that ends an answer is in the history, else nothing."""
        return "\n" if answer.tokens and answer.tokens[-1] == tokenizer.chat_end else ""


@dataclass
class Transcript:
    """The messages that a session holds: their number and a hash, so that a client may send all of them again.

    Attributes:
        messages: Number of messages.
        digest: Hash of their roles and contents.
        pending: Text at the end of the history that begins the next turn; None before the first one.
        roles: The roles of the messages, for chat templates.
    """

    messages: int = 0
    digest: str = ""
    pending: str | None = None
    roles: Sequence[str] = ()

    def new(self, messages: Sequence[Message]) -> Sequence[Message] | None:
        """Return the messages that the session does not hold.

        A request has either all messages so far or new ones alone. None = it has answers, but not those of the
        session, or nothing new.
        """
        sent = Transcript()
        sent.add(messages[: self.messages])
        if self.messages and (sent.messages, sent.digest) == (self.messages, self.digest):
            return messages[self.messages :] or None
        if self.messages and any(message.role == "assistant" for message in messages):
            return None
        return messages

    def add(self, messages: Sequence[Message]) -> None:
        """Add messages."""
        for each in messages:
            text = "\0".join((self.digest, each.role, each.content))
            self.digest = hashlib.sha256(text.encode()).hexdigest()
            self.messages += 1
            self.roles = (*self.roles, role_of(each))


@dataclass
class AnswerText:
    """An answer as it grows: without white space at its start, and what the model wrote after it.

    Attributes:
        text: The answer so far.
        tokens: Its tokens, those after the answer included.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)

    def add(self, token: int, text: str) -> str:
        """Add a piece; return what is new in the answer."""
        self.tokens.append(token)
        new = text if self.text else text.lstrip()
        self.text += new
        return new


@dataclass(frozen=True)
class PlainMessage:
    """A message that the server makes."""

    role: str
    content: str

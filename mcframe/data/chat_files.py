"""The text source of chats: .jsonl files of messages, or of documents with questions and answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from mcframe.data.file_readers import valid_text
from mcframe.data.local_files import LocalFiles
from mcframe.errors import UserError
from mcframe.hookspecs import Chat, Message

ROLES = ("system", "developer", "user", "assistant")
_QUESTION = ("document", "question", "answer")
_FORMS = '{"messages": [{"role": ..., "content": ...}, ...]} or {"document": ..., "question": ..., "answer": ...}'
_REPAIR = "Repair the line, or remove it."


class ChatFiles(LocalFiles):
    """Chats in .jsonl files, one a line. The answers of the assistant alone are scored, and what ends them.

    A row is `{"messages": [{"role": "user", "content": "..."}, ...]}`, with an answer of the role assistant, or
    `{"document": "...", "question": "...", "answer": "..."}`. Chats become tokens by the tokenizer's chat template, or
    as plain turns, `User: ...` and `Assistant: ...`.

    Args:
        paths: As for `@text.local_files`: files, and folders with everything in them; .gz, .zst, .bz2 and .lz4 too.
        template: model: the chat template of the tokenizer, where it has one. plain: plain turns.
        streaming: Read while training instead of tokenising once.
        encoding: Encoding of files that are neither UTF-8 nor begin with a byte order mark. None refuses them.
    """

    chats = True

    def __init__(
        self,
        paths: str | Sequence[str],
        template: Literal["model", "plain"] = "model",
        streaming: bool = False,
        encoding: str | None = None,
    ) -> None:
        with _own_bindings():
            super().__init__(paths, f"chats, {template}", streaming, encoding)
        self._row = lambda row: chat_of(row, plain=template == "plain")

    @staticmethod
    def example_settings(folder: Path) -> dict[str, Any]:
        """Return settings for a file of sums as questions."""
        from json import dumps

        rows = (
            {"document": f"a is {n}. b is {n % 7}.", "question": "What is a plus b?", "answer": f"{n + n % 7}"}
            for n in range(1000)
        )
        (folder / "questions.jsonl").write_text("\n".join(map(dumps, rows)), "utf-8")
        return {"paths": str(folder), "streaming": True}

    def documents(self, epoch: int = 0) -> Iterator[str]:
        """Yield the chats, in every epoch the same. Raises UserError with file and line of a row that is none."""
        with _own_bindings():
            yield from super().documents(epoch)

    def describe(self) -> str:
        """Return the chats, bytes and files, and what is skipped, with the reason."""
        with _own_bindings():
            return super().describe()

    @property
    def identity(self) -> str:
        """A string that changes with the settings and with every file's path, size and modification time."""
        with _own_bindings():
            return super().identity


def chat_of(row: dict[str, Any], *, plain: bool = False) -> Chat:
    """Return the chat of a row. Raises UserError if it is none."""
    if "messages" in row:
        found = row["messages"]
        if not isinstance(found, list) or not found:
            raise _wrong("messages", "a list of messages", found)
        messages = [_message(number, each) for number, each in enumerate(found)]
    elif all(name in row for name in _QUESTION):
        document, question, answer = (_text(name, row[name]) for name in _QUESTION)
        messages = [Message("user", f"{document}\n\n{question}"), Message("assistant", answer)]
    else:
        raise UserError(f"expected {_FORMS}, got the fields {', '.join(map(repr, row)) or 'none'}", remedy=_REPAIR)
    if not any(role == "assistant" and content for role, content in messages):
        raise UserError("expected an answer: a message of the role assistant with text, got none", remedy=_REPAIR)
    return Chat(messages, plain)


def _message(number: int, value: object) -> Message:
    name = f"messages[{number}]"
    if not isinstance(value, dict):
        raise _wrong(name, "an object with role and content", value)
    role = value.get("role")
    if role not in ROLES:
        raise UserError(f"{name}.role: expected one of {', '.join(ROLES)}, got {role!r}", remedy=_REPAIR)
    return Message(role, _text(f"{name}.content", value.get("content")))


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(name, "a text", value)
    return valid_text(value)[0]


def _wrong(name: str, expected: str, value: object) -> UserError:
    got = "none" if value is None else "an empty list" if value == [] else f"a value of type {type(value).__name__}"
    return UserError(f"{name}: expected {expected}, got {got}", remedy=_REPAIR)


@contextmanager
def _own_bindings() -> Iterator[None]:
    """Name the bindings of this source in the errors of the files that it reads."""
    try:
        yield
    except UserError as error:
        for name in ("message", "remedy", "binding"):
            setattr(error, name, (getattr(error, name) or "").replace("text.local_files", "text.chat"))
        raise

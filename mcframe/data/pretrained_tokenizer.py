"""The tokenizer of a pretrained model, from its tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcframe.data.chat_templates import ChatTemplate, chat_template
from mcframe.data.sources import StandardLibrary
from mcframe.data.tokenizers import PROBES, SEPARATOR, alphabet, train_bpe, valid_text
from mcframe.errors import UserError, require
from mcframe.hookspecs import Chat, Message, Tokenizer
from mcframe.pretrained import model_files, naming

_PATH = "tokenizer.huggingface.path"
_ENDS = ("eos_token", "bos_token", "pad_token")


class HuggingFaceTokenizer(Tokenizer):
    """The byte-level tokenizer of a pretrained model.

    The separator between documents is its token for the end of a text. Special tokens that a document spells are
    ordinary text, and special tokens decode to nothing.

    Args:
        path: As for `@base.huggingface`: a folder, a GGUF file, `package:NAME/FILE`, or a name of the hub.

    Raises:
        UserError: The folder has no tokenizer, or one that alters text.
    """

    identity = ""

    def __init__(self, path: str) -> None:
        with naming(_PATH):
            folder = model_files(path, needs_model=False).folder
        file = folder / "tokenizer.json"
        require(file.is_file(), _PATH, path, "a folder with tokenizer.json", "Download tokenizer.json, too.")
        import tokenizers

        content = file.read_bytes()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # tokenizers raises no narrower class
            raise UserError(f"{file}: {error}", remedy="Download the tokenizer again.", binding=_PATH) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        entries: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(entries.values()) + 1
        self.separator = entries[_end_of_text(folder, entries)]
        self._folder, self._content = folder, content
        self._bytes = _entry_bytes(entries, json.loads(content).get("added_tokens") or (), self.vocab_size)
        self.identity = f"huggingface:{blake2b(content, digest_size=16).hexdigest()}:{self.separator}"
        self._check_round_trip(path)

    @staticmethod
    def example_settings(folder: Path) -> dict[str, Any]:
        """Return settings for a small vocabulary, trained on a part of the standard library."""
        train_bpe(StandardLibrary("json/*.py"), 300, folder / "tokenizer.json", fraction=0.0)
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": SEPARATOR}), "utf-8")
        return {"path": str(folder)}

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text. Half a surrogate pair, which has no UTF-8, becomes a question mark."""
        valid = [valid_text(text) for text in texts]
        return [found.ids for found in self._tokenizer.encode_batch_fast(valid, add_special_tokens=False)]

    @property
    def chat_format(self) -> str:
        """A string that changes with the chat template."""
        return self._template.digest if self._template else super().chat_format

    def encode_chats(self, chats: Sequence[Chat]) -> list[list[tuple[list[int], bool]]]:
        """Return the parts of each chat by the chat template, and whether they are of an answer.

        An answer includes the special token that ends it. Special tokens that a message spells are ordinary text.
        """
        template = self._template
        if template is None:
            return super().encode_chats(chats)
        by_plain = iter(super().encode_chats([chat for chat in chats if chat.plain]))
        texts = iter(self.encode_batch([each.content for chat in chats if not chat.plain for each in chat.messages]))
        return [next(by_plain) if chat.plain else self._parts(template, chat, texts) for chat in chats]

    def _parts(self, template: ChatTemplate, chat: Chat, texts: Iterator[list[int]]) -> list[tuple[list[int], bool]]:
        """Return the parts of a chat; the ids of its messages are the next of `texts`."""
        ids = [next(texts) for _ in chat.messages]
        parts: list[tuple[list[int], bool]] = []
        ending = False
        for each in template.layout(tuple(role for role, _ in chat.messages)):
            if isinstance(each, int):
                ending = chat.messages[each].role == "assistant"
                parts.append((ids[each], ending))
                continue
            added = self._template_ids(each)
            end = next((at + 1 for at, token in enumerate(added) if not self._bytes[token]), 0) if ending else 0
            parts += [part for part in ((added[:end], True), (added[end:], False)) if part[0]]
            ending = False
        return parts

    @property
    def has_chat_template(self) -> bool:
        """True if the folder has a chat template."""
        return self._template is not None

    def chat_prompt(self, roles: Sequence[str], messages: Sequence[Message]) -> list[int] | None:
        """Return the ids of chat messages by the chat template, up to the beginning of an answer."""
        template, before = self._template, len(roles)
        if template is None:
            return None
        layout = template.layout((*roles, *(role for role, _ in messages)), True)
        ids = self.encode_batch([content for _, content in messages])
        new = layout[layout.index(before - 1) + 1 :] if before else layout
        return [i for each in new for i in (ids[each - before] if isinstance(each, int) else self._template_ids(each))]

    @cached_property
    def chat_end(self) -> int:
        """The special token with which the chat template ends an answer."""
        if self._template is None:
            return self.separator
        layout = self._template.layout(("user", "assistant"))
        after = [i for each in layout[layout.index(1) + 1 :] for i in self._template_ids(str(each))]
        return next((i for i in after if not self._bytes[i]), self.separator)

    @cached_property
    def _template(self) -> ChatTemplate | None:
        return chat_template(self._folder)

    @cached_property
    def _template_ids(self) -> Callable[[str], list[int]]:
        """Return the ids of a text of the template, whose special tokens are such."""
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_str(self._content.decode())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return lru_cache(maxsize=4096)(lambda text: tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of these ids without special tokens. Bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self._bytes[i] for i in ids).decode("utf-8", errors="replace")

    def byte_lengths(self) -> Tensor:
        """Return int64 [vocab_size]: the bytes of each entry, 0 for special tokens."""
        return torch.tensor([len(each) for each in self._bytes], dtype=torch.int64)

    def _check_round_trip(self, path: str) -> None:
        for text in PROBES:
            found = self.decode(self.encode_batch([text])[0])
            require(
                found == text,
                _PATH,
                path,
                f"a byte-level tokenizer, which keeps every text; {text!r} becomes {found!r}",
                "Name a model with a byte-level tokenizer, such as SmolLM2, Qwen or Llama 3.",
            )


def _entry_bytes(entries: dict[str, int], added: Sequence[dict[str, Any]], size: int) -> list[bytes]:
    """Return the bytes of each entry; the byte-level alphabet writes each byte of a learned one as one character."""
    letters, found = alphabet(), [b""] * size
    for entry, index in entries.items():
        found[index] = b"".join(letters.get(character, character.encode()) for character in entry)
    for each in added:
        found[int(each["id"])] = b"" if each.get("special") else str(each["content"]).encode()
    return found


def _end_of_text(folder: Path, entries: dict[str, int]) -> str:
    """Return the token for the end of a text that the folder's configuration names."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            config = json.loads((folder / name).read_text("utf-8"))
            for key in _ENDS:
                token = config.get(key)
                token = token.get("content") if isinstance(token, dict) else token
                if token in entries:
                    return str(token)
    raise UserError(
        f"{folder}: expected tokenizer_config.json with one of {', '.join(_ENDS)}, got none",
        remedy="Download tokenizer_config.json, too.",
        binding=_PATH,
    )

"""Chat templates of pretrained tokenizers, rendered once for each order of roles."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path

from mcframe.errors import UserError
from mcframe.pretrained import needs_extra

_OPEN, _CLOSE = "\ue000", "\ue001"
_MARK = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_REMEDY = "Correct the chats, or set text.chat.template = 'plain'."


class ChatTemplate:
    """A template in the language of Jinja.

    It is rendered with a mark in place of each text. Texts can therefore not be mistaken for its special tokens, and
    what it adds around them is a function of the roles.

    Args:
        source: The template.
        specials: Special tokens that it may name, such as `bos_token`.
        origin: The tokenizer, in messages.
    """

    def __init__(self, source: str, specials: Mapping[str, str], origin: str) -> None:
        self._source, self._specials, self._origin = source, dict(specials), origin
        self.layout = lru_cache(maxsize=4096)(self._layout)

    @cached_property
    def digest(self) -> str:
        """A hash of the template."""
        return blake2b(json.dumps([self._source, self._specials]).encode(), digest_size=16).hexdigest()

    def _layout(self, roles: tuple[str, ...], answering: bool = False) -> list[str | int]:
        """Return what stands in a chat with these roles, in order: text of the template, and numbers of messages.

        Args:
            roles: The roles of the messages.
            answering: Whether the beginning of another answer follows.

        Raises:
            UserError: The template refuses these roles, or omits or repeats a message.
        """
        with needs_extra():
            from transformers.utils.chat_template_utils import render_jinja_template
        messages = [{"role": role, "content": f"{_OPEN}{number}{_CLOSE}"} for number, role in enumerate(roles)]
        try:
            ((text,), _) = render_jinja_template(
                [messages], chat_template=self._source, add_generation_prompt=answering, **self._specials
            )
        except Exception as error:  # templates raise errors of their own
            raise self._refused(roles, str(error) or type(error).__name__) from error
        parts: list[str | int] = [int(each) if odd % 2 else each for odd, each in enumerate(_MARK.split(text))]
        found = sorted(each for each in parts if isinstance(each, int))
        if found != list(range(len(roles))):
            raise self._refused(roles, f"it has the messages {found} of {len(roles)}")
        return [each for each in parts if each != ""]

    def _refused(self, roles: tuple[str, ...], problem: str) -> UserError:
        return UserError(
            f"chat template of {self._origin}: expected one that takes the roles {', '.join(roles)}, got: {problem}",
            remedy=_REMEDY,
        )


def chat_template(folder: Path) -> ChatTemplate | None:
    """Return the chat template in the folder of a tokenizer; None if it has none."""
    file, own = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    config = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    source = own.read_text("utf-8") if own.is_file() else config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {each["name"]: each["template"] for each in source}
        source = named.get("default", next(iter(named.values()), None))
    if not source:
        return None
    tokens = {name: value for name, value in config.items() if name.endswith("_token")}
    specials = {name: value["content"] if isinstance(value, dict) else value for name, value in tokens.items()}
    return ChatTemplate(source, {name: str(value) for name, value in specials.items() if value}, str(folder))

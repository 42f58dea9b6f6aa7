"""Answers in OpenAI's form: complete ones, and the chunks of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mcframe.hookspecs import Tokenizer
from mcframe.runtime.api_requests import ChatRequest, GenerationRequest
from mcframe.runtime.text_stream import Piece

DONE = b"data: [DONE]\n\n"


@dataclass
class ChoiceResult:
    """A complete choice.

    Attributes:
        index: Its number.
        text: The text.
        pieces: Its tokens.
    """

    index: int
    text: str = ""
    pieces: list[Piece] = field(default_factory=list)

    @property
    def finish_reason(self) -> str:
        """`stop`, or `length`, which also stands for a time limit or a shutdown."""
        return (self.pieces[-1].finish_reason if self.pieces else None) or "length"


@dataclass
class Usage:
    """Counted tokens."""

    prompt: int = 0
    generated: int = 0

    def json(self) -> dict[str, int]:
        """Return the counts in OpenAI's form."""
        total = self.prompt + self.generated
        return {"prompt_tokens": self.prompt, "completion_tokens": self.generated, "total_tokens": total}


class ResponseForm:
    """Put results into the form of an endpoint.

    Args:
        request: The request.
        tokenizer: Decodes tokens for log-probabilities.
    """

    def __init__(self, request: GenerationRequest, tokenizer: Tokenizer) -> None:
        self.request, self.tokenizer = request, tokenizer
        self.chat = isinstance(request, ChatRequest)
        prefix = "chatcmpl" if self.chat else "cmpl"
        self._head = {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": request.model}
        self._offsets: dict[int, int] = {}

    def first(self, index: int) -> bytes:
        """Return the chunk that begins a choice of a chat; nothing for a completion."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}], {})

    def piece(self, index: int, piece: Piece, text: str, finish_reason: str | None, extra: Mapping[str, Any]) -> bytes:
        """Return the chunk of a token; nothing if it has no text yet and nothing else."""
        logprobs = self._logprobs([piece], index)
        if not (text or finish_reason or logprobs or extra):
            return b""
        content: dict[str, Any] = {"delta": {"content": text} if text else {}} if self.chat else {"text": text}
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._chunk([choice], extra)

    def last(self, usage: Usage) -> bytes:
        """Return the end of a stream."""
        options = self.request.stream_options
        counted = self._chunk([], {"usage": usage.json()}) if options and options.include_usage else b""
        return counted + DONE

    def complete(self, results: Sequence[ChoiceResult], usage: Usage, extra: Mapping[str, Any]) -> dict[str, Any]:
        """Return a complete answer."""
        kind = "chat.completion" if self.chat else "text_completion"
        choices = [self._choice(each) for each in results]
        return {**self._head, "object": kind, "choices": choices, "usage": usage.json(), **extra}

    def _choice(self, result: ChoiceResult) -> dict[str, Any]:
        message = {"role": "assistant", "content": result.text, "refusal": None}
        content: dict[str, Any] = {"message": message} if self.chat else {"text": result.text}
        logprobs = self._logprobs(result.pieces, result.index)
        return {"index": result.index, **content, "logprobs": logprobs, "finish_reason": result.finish_reason}

    def _chunk(self, choices: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]) -> bytes:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return event({**self._head, "object": kind, "choices": choices, **extra})

    def _logprobs(self, pieces: Sequence[Piece], index: int) -> dict[str, Any] | None:
        if self.request.alternatives is None:
            return None
        if self.chat:
            return {"content": [self._chat_logprob(piece) for piece in pieces], "refusal": None}
        tokens = [self._text(piece.token) for piece in pieces]
        offsets = []
        for token in tokens:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [_finite(piece.logprob) for piece in pieces],
            "top_logprobs": [{self._text(token): _finite(value) for token, value in piece.top} for piece in pieces],
            "text_offset": offsets,
        }

    def _chat_logprob(self, piece: Piece) -> dict[str, Any]:
        top = [self._logprob(token, value) for token, value in piece.top]
        return {**self._logprob(piece.token, piece.logprob), "top_logprobs": top}

    def _logprob(self, token: int, value: float) -> dict[str, Any]:
        text = self._text(token)
        return {"token": text, "logprob": _finite(value), "bytes": list(text.encode())}

    def _text(self, token: int) -> str:
        return self.tokenizer.decode([token])


def event(value: Mapping[str, Any]) -> bytes:
    """Return a server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _finite(logprob: float) -> float:
    """Return a log-probability that JSON can hold; OpenAI writes -9999 for a very unlikely token."""
    return max(logprob, -9999.0)

"""Bodies of requests in OpenAI's form, checked field by field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from mcframe.errors import did_you_mean
from mcframe.runtime.sampling import Sampling

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
"""Names of sessions, which are names of folders."""

_NO_EFFECT = {
    "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "verbosity", "reasoning_effort",
}  # fmt: skip
"""Fields that clients send and that do not change the text."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "best_of": (1,), "suffix": ("",),
    "echo": (False,), "tools": ([],), "tool_choice": ("none",), "functions": ([],), "function_call": ("none",),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (), "prediction": (),
    "web_search_options": (),
}  # fmt: skip
"""Fields that are not supported, with the values that request nothing."""

_BODY = "the body"
_MOST_CHOICES = 16


class RequestError(Exception):
    """A request that cannot be answered.

    Args:
        status: The HTTP status.
        message: One sentence that names the field.
        field: The field.
        code: A word for programs.
    """

    def __init__(self, status: int, message: str, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.field, self.code = status, message, field, code

    @property
    def body(self) -> dict[str, Any]:
        """The error in OpenAI's form."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.field, "code": self.code}}


def _prompts(value: Any) -> list[str | list[int]]:
    """Return prompts as a list: texts, or lists of token ids."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(_is_id(each) for each in value):
            return [value]
        if all(isinstance(each, str) or (isinstance(each, list) and all(map(_is_id, each))) for each in value):
            return value
    raise ValueError("expected a text, a list of texts, a list of token ids, or a list of such lists")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _stops(value: Any) -> list[str]:
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(each, str) and 0 < len(each) <= 1000 for each in texts):
        raise ValueError("expected a text or a list of texts of 1 to 1000 characters")
    if len(texts) > _MOST_CHOICES:
        raise ValueError(f"expected at most {_MOST_CHOICES} texts, got {len(texts)}")
    return texts


def _text(value: Any) -> str:
    """Return the content of a message: a text, or a list of parts of type text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        parts = [each.get("text") if isinstance(each, dict) and each.get("type") == "text" else None for each in value]
        if all(isinstance(part, str) for part in parts):
            return "".join(map(str, parts))
        raise ValueError("expected parts of the type text; other parts are not supported")
    raise ValueError("expected a text or a list of parts")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Model):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatMessage(_Model):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text)]
    name: str | None = None
    refusal: None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[Any] | None = Field(default=None, max_length=0)


class GenerationRequest(_Model):
    """Fields that completions and chats have in common; those below `session` are not in OpenAI's API."""

    model: str
    n: int = Field(default=1, ge=1, le=_MOST_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Annotated[list[str], BeforeValidator(_stops)] = []
    temperature: float = Field(default=1.0, ge=0, le=100)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)
    max_tokens: int | None = Field(default=None, ge=1)
    session: str | None = None
    top_k: int = Field(default=0, ge=0, lt=2**31)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, le=100)
    report: bool = False

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, data: Any) -> Any:
        """Remove fields without effect, and null, which stands for the default."""
        if not isinstance(data, dict):
            return data
        for name, values in _NEUTRAL.items():
            if name not in cls.model_fields and data.get(name) is not None and data[name] not in values:
                raise ValueError(f"{name}: not supported; remove it")
        ignored = _NO_EFFECT | (_NEUTRAL.keys() - cls.model_fields.keys())
        return {name: value for name, value in data.items() if value is not None and name not in ignored}

    @field_validator("session")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        if value is not None and not NAME.fullmatch(value):
            raise ValueError("expected 1 to 64 letters, digits, '-', '_' or '.', not beginning with '.'")
        return value

    @property
    def alternatives(self) -> int | None:
        """Most probable tokens that are returned at each position; None = no log-probabilities at all."""
        return None

    @property
    def tokens(self) -> int | None:
        """The most tokens to generate; None = the limit of the server."""
        return self.max_tokens

    def sampling(self, number: int) -> Sampling:
        """Return the settings of choice `number`; each has a seed of its own."""
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=None if self.seed is None else (self.seed + number) % 2**64,
            logprobs=self.alternatives or 0,
        )


class CompletionRequest(GenerationRequest):
    """A body of `/v1/completions`."""

    prompt: Annotated[list[str | list[int]], BeforeValidator(_prompts)]
    logprobs: int | None = Field(default=None, ge=0, le=20)

    @property
    def alternatives(self) -> int | None:
        """Most probable tokens that are returned at each position; None = no log-probabilities at all."""
        return self.logprobs

    @property
    def tokens(self) -> int | None:
        """The most tokens to generate, 16 by default as in OpenAI's API."""
        return self.max_tokens or 16

    @model_validator(mode="after")
    def _few(self) -> CompletionRequest:
        if len(self.prompt) * self.n > _MOST_CHOICES:
            raise ValueError(f"prompt: expected at most {_MOST_CHOICES} prompts times n")
        if self.session is not None and len(self.prompt) * self.n > 1:
            raise ValueError("n: expected one prompt and n = 1 with a session, whose history has no branches")
        return self


class ChatRequest(GenerationRequest):
    """A body of `/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    max_completion_tokens: int | None = Field(default=None, ge=1)

    @property
    def alternatives(self) -> int | None:
        """Most probable tokens that are returned at each position; None = no log-probabilities at all."""
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def tokens(self) -> int | None:
        """The most tokens to generate; None = the limit of the server."""
        return self.max_completion_tokens or self.max_tokens

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: expected logprobs = true with it")
        if self.session is not None and self.n > 1:
            raise ValueError("n: expected 1 with a session, whose history has no branches")
        return self


T = TypeVar("T", bound="GenerationRequest")


def parsed(kind: type[T], body: bytes) -> T:
    """Return a body as a request.

    Raises:
        RequestError: It is malformed; the message names the first field that is.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _request_error(kind, error.errors(include_url=False)[0]) from None


def _request_error(kind: type[GenerationRequest], detail: ErrorDetails) -> RequestError:
    field = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in detail["loc"])[1:]
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "json_invalid":
        return RequestError(400, f"{_BODY}: {detail['msg']}", code="invalid_json")
    if detail["type"] == "extra_forbidden":
        return RequestError(400, f"{field}: unknown field{did_you_mean(field, kind.model_fields)}", field)
    if detail["type"] == "missing":
        return RequestError(400, f"{field}: missing", field)
    if detail["type"] != "value_error":
        got = repr(detail["input"])
        message = message.replace("Input should be", "expected").replace("Input should have", "expected")
        message = f"{message[0].lower()}{message[1:]}, got {got if len(got) <= 60 else got[:57] + '...'}"
        if detail["type"] in ("model_type", "model_attributes_type"):
            message = f"expected an object, got {got[:60]}"
    if not field and ":" in message:
        field = message.split(":")[0]
        return RequestError(400, message, field)
    return RequestError(400, f"{field or _BODY}: {message}", field or None)

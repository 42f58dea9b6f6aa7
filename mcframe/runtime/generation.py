"""Requests to generate text, each answered in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mcframe.errors import UserError
from mcframe.hookspecs import Tokenizer
from mcframe.runtime.api_requests import ChatRequest, CompletionRequest, RequestError
from mcframe.runtime.api_responses import ChoiceResult, ResponseForm, Usage, event
from mcframe.runtime.chat_template import AnswerText, ChatTemplate, Message, PlainMessage
from mcframe.runtime.server_metrics import ServerMetrics
from mcframe.runtime.session_store import Conversation, SessionStore, context_of
from mcframe.runtime.text_stream import Piece

LOGGER = logging.getLogger(__name__)

Prompt = str | list[int] | Sequence[Message]
Item = bytes | dict[str, Any] | RequestError | None
"""A chunk of a stream, a complete answer, an error, or the end."""


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """Limits of a server.

    Attributes:
        concurrent: Requests that generate at a time; more get 429.
        body_bytes: Size of a body; larger ones get 413.
        sessions: Sessions that are kept; a request for one more gets 429.
        open_sessions: Sessions that stay open between requests.
        tokens: Tokens that a request generates.
        seconds: Time of a request; a longer generation ends with `length`.
    """

    concurrent: int = 16
    body_bytes: int = 16 * 2**20
    sessions: int = 1000
    open_sessions: int = 16
    tokens: int = 4096
    seconds: float = 600.0


@dataclass(frozen=True)
class Served:
    """State that all requests have in common.

    Attributes:
        name: Name of the model.
        tokenizer: Its tokenizer.
        store: The sessions.
        template: Turns of chats.
        limits: Limits of the server.
        metrics: Counters for Prometheus.
        closing: Set when the server ends.
    """

    name: str
    tokenizer: Tokenizer
    store: SessionStore
    template: ChatTemplate
    limits: ServerLimits
    metrics: ServerMetrics
    closing: threading.Event


class Job:
    """A request that is answered.

    Args:
        request: The request.
        served: State that requests have in common.
        emit: Takes the parts of the answer in order; called in the worker thread.
        release: Returns the request's slot; called before the last part, so that the client may send another request.
    """

    def __init__(
        self,
        request: CompletionRequest | ChatRequest,
        served: Served,
        emit: Callable[[Item], None],
        release: Callable[[], None],
    ) -> None:
        self.request, self.served, self.emit, self._release = request, served, emit, release
        self.form = ResponseForm(request, served.tokenizer)
        self.cancelled = threading.Event()
        self.usage = Usage()
        self._extra: dict[str, Any] = {}
        self._deadline = time.monotonic() + served.limits.seconds
        self._limit = min(request.tokens or served.limits.tokens, served.limits.tokens)

    def run(self) -> None:
        """Answer the request."""
        last: list[Item] = []
        try:
            results = self._results()
            last = [self.form.last(self.usage)]
            if not self.request.stream:
                last = [self.form.complete(results, self.usage, self._extra)]
        except RequestError as error:
            last = [error]
        except UserError as error:
            last = [RequestError(500, f"{error.message}. {error.remedy}")]
        except Exception:
            LOGGER.exception("a request failed")
            last = [RequestError(500, "the server failed; its log has the cause")]
        finally:
            self._release()
            for item in [*last, None]:
                self.emit(item)

    def _results(self) -> list[ChoiceResult]:
        request, store = self.request, self.served.store
        if request.session is not None:
            with store.use(request.session, self._ended) as conversation:
                first: Prompt = request.messages if isinstance(request, ChatRequest) else request.prompt[0]
                return [self._choice(0, first, conversation)]
        prompts: Sequence[Prompt] = [request.messages] if isinstance(request, ChatRequest) else request.prompt
        results = []
        for index, prompt in enumerate(each for each in prompts for _ in range(request.n)):
            with store.stateless() as conversation:
                results.append(self._choice(index, prompt, conversation))
        return results

    def _choice(self, index: int, prompt: Prompt, conversation: Conversation) -> ChoiceResult:
        """Append a prompt and generate one choice."""
        session, answer, result = conversation.session, AnswerText(), ChoiceResult(index)
        session_begin = time.perf_counter()
        self._append(prompt, conversation)
        stop = [*self.request.stop, *(self.served.template.stop if self.form.chat else ())]
        if self.request.stream and self.form.chat:
            self.emit(self.form.first(index))
        refocuses = session.counters.refocuses
        ends = self.served.template.ends if self.form.chat else ()
        for piece in session.generate(self._limit, self.request.sampling(index % self.request.n), stop, ends):
            text = answer.add(piece.token, piece.text) if self.form.chat else piece.text
            reason = piece.finish_reason or ("length" if self._ended() else None)
            self._extra = {}
            if self.request.report and (reason or session.counters.refocuses != refocuses):
                refocuses, self._extra = session.counters.refocuses, {"mcframe": context_of(session)}
            result.text += text
            result.pieces.append(piece)
            self._count(piece, session_begin, first=len(result.pieces) == 1)
            session_begin = time.perf_counter()
            if self.request.stream and (chunk := self.form.piece(index, piece, text, reason, self._extra)):
                self.emit(chunk)
            if reason:
                break
        self.served.metrics.session(session.report)
        self._note(conversation, answer, result)
        return result

    def _append(self, prompt: Prompt, conversation: Conversation) -> None:
        """Append the prompt to the history, which begins with the separator."""
        session, tokenizer, transcript = conversation.session, self.served.tokenizer, conversation.transcript
        if self.form.chat:
            messages: Sequence[Message] = prompt  # type: ignore[assignment]
            new = transcript.new(messages)
            if new is None:
                raise RequestError(
                    409,
                    "messages: expected new messages alone, or those of the session unchanged and new ones",
                    "messages",
                    "transcript_differs",
                )
            try:
                prompt = self.served.template.prompt(new, transcript.pending, transcript.roles)
            except UserError as error:  # the chat template of a model refuses an order of roles
                raise RequestError(400, f"messages: {error.message}", "messages") from error
            transcript.add(new)
        ids = tokenizer.encode_batch([prompt])[0] if isinstance(prompt, str) else list(prompt)
        start = [] if session.history.tokens else [tokenizer.separator]
        session.append([*start, *ids])
        transcript.pending = ""
        self.usage.prompt += len(ids)
        self.served.metrics.appended.inc(len(ids))

    def _note(self, conversation: Conversation, answer: AnswerText, result: ChoiceResult) -> None:
        """Keep the answer in the transcript of a chat."""
        if not self.form.chat:
            return
        conversation.transcript.pending = self.served.template.pending(answer, self.served.tokenizer)
        conversation.transcript.add([PlainMessage("assistant", result.text)])

    def _count(self, piece: Piece, begin: float, first: bool) -> None:
        self.usage.generated += 1
        self.served.metrics.token(time.perf_counter() - begin, first=first)

    def _ended(self) -> bool:
        """Return whether to stop: the client has gone, the time is over, or the server ends."""
        return self.cancelled.is_set() or self.served.closing.is_set() or time.monotonic() > self._deadline


def error_event(error: RequestError) -> bytes:
    """Return an error that occurs after a stream has begun."""
    return event(error.body)

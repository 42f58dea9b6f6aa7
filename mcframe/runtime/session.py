"""A session: a history, its working context, and text that is generated from it at constant cost.

The working context is a function of the history. An append changes the history alone. Text that is generated after an
append starts from the focus that the history's length determines, which LensNet and the allocator then refocus;
within a generation the focus changes every `refocus_every` tokens. So the state does not depend on how appended tokens
were divided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Literal

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.errors import UserError
from mcframe.hookspecs import Allocator, Tokenizer
from mcframe.modeling.model import MegaContextModel
from mcframe.runtime.decoder import Decoder
from mcframe.runtime.entries import EntryReader
from mcframe.runtime.gist_encoder import GistEncoder
from mcframe.runtime.history import History
from mcframe.runtime.refocus import Focus, Refocus
from mcframe.runtime.report import Counters, SessionReport
from mcframe.runtime.sampling import Sampler, Sampling
from mcframe.runtime.session_config import SessionConfig
from mcframe.runtime.session_file import Span, read_state, spans, write_state
from mcframe.runtime.text_stream import Piece, TextStream


class Session:
    """Use a trained model on a history without end. `TrainedRun.session` makes one.

    Args:
        model: The trained model, in eval mode.
        tokenizer: Its tokenizer.
        allocator: Makes the run's allocator for a tree.
        history: The tokens so far, and their gists.
        config: Budget and times of refocusing.

    Raises:
        UserError: No working context of the budget fits a history of any length.
    """

    def __init__(
        self,
        model: MegaContextModel,
        tokenizer: Tokenizer,
        allocator: Callable[[ContextTree], Allocator],
        history: History,
        config: SessionConfig,
    ) -> None:
        config.check(model.tree, 0 if model.gistnet is None else model.tree.levels)
        self.model, self.tokenizer, self.history, self.config = model, tokenizer, history, config
        self._device = model.gpt.device
        self._encoder = GistEncoder(model, history)
        entries = EntryReader(model, history)
        self._refocus = Refocus(model, entries, config, allocator)
        self._decoder = Decoder(model, entries, config.budget, drop_gists=config.drop_gists)
        self.focus: Focus | None = None
        self.appended = True
        """True if tokens were appended after the last refocus."""
        self.counters = Counters()
        self._encoder.catch_up()
        self._restore()

    def append(self, text: str | Sequence[int] | Tensor) -> int:
        """Append a text or token ids to the history; return the number of tokens.

        Raises:
            UserError: A token id is not in the vocabulary.
        """
        ids = self.tokenizer.encode_batch([text])[0] if isinstance(text, str) else text
        tokens = torch.as_tensor(ids, dtype=torch.int64)
        if not len(tokens):
            return 0
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.tokenizer.vocab_size:
            raise UserError(
                f"expected token ids from 0 to {self.tokenizer.vocab_size - 1:,}, got {low if low < 0 else high:,}",
                remedy="Encode the text with the tokenizer of the run.",
            )
        self.history.append(tokens)
        self._encoder.catch_up()
        self.appended = True
        return len(tokens)

    def next_logits(self) -> Tensor:
        """Return the logits [vocabulary], float32, of the token after the history.

        Raises:
            UserError: The history is empty.
        """
        tokens, focus = self.history.tokens, self.focus
        if not tokens:
            raise UserError("expected a history of one token or more, got none", remedy="Append a text first.")
        with torch.inference_mode():
            if focus is None or self.appended:
                self._take(self._refocus.first(tokens), None)
            elif tokens - focus.window.tokens >= self.config.refocus_every:
                self._take(self._refocus.next(focus, tokens), focus)
            return self._decoder.logits(tokens)

    def _take(self, focus: Focus, before: Focus | None) -> None:
        self.counters.refocused(before, focus)
        self.focus, self.appended = focus, False
        self._decoder.follow(focus.window, self.config.refocus_every)

    def generate(
        self,
        max_tokens: int,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        ends: Sequence[int] = (),
    ) -> Iterator[Piece]:
        """Sample tokens and append them to the history.

        A model that was trained on documents ends with the separator, which is appended as well.

        Args:
            max_tokens: The most tokens.
            sampling: Temperature and filters; None = the defaults of `Sampling`.
            stop: Texts that end the generation. They are not part of the returned text.
            ends: Tokens that end it as the separator does.

        Yields:
            A piece for each token: the text that is final with it, and log-probabilities.
        """
        sampler = Sampler(sampling or Sampling())
        stream, begin = TextStream(self.tokenizer, stop), perf_counter()
        for number in range(1, max_tokens + 1):
            choice = sampler.next(self.next_logits()[: self.tokenizer.vocab_size], self._recent())
            self._push(choice.token)
            ended = choice.token in (self.tokenizer.separator, *ends)
            text = stream.push(choice.token)
            reason: Literal["stop", "length"] | None
            reason = "stop" if stream.stopped or ended else "length" if number == max_tokens else None
            if reason is not None:
                text += stream.finish()
            end = perf_counter()
            self.counters.sampled((end - begin) * 1000, first=number == 1)
            yield Piece(choice.token, text, choice.logprob, choice.top, reason)
            if reason is not None:
                return
            begin = perf_counter()

    def _push(self, token: int) -> None:
        """Append a sampled token: the context grows by it without a refocus."""
        self.history.append(torch.tensor([token]))
        self._encoder.catch_up()

    def _recent(self) -> Tensor:
        """Return the most recent tokens of the history, at most `budget`, for the repetition penalty."""
        return self.history.read_tokens(max(0, self.history.tokens - self.config.budget), self.history.tokens)

    def save(self) -> None:
        """Write the history's last tokens and the focus to the folder of the history.

        The cache is not written: it is computed again, and equal, when the session is opened.

        Raises:
            UserError: The history is in memory.
        """
        if self.history.folder is None:
            raise UserError(
                "expected a session with a folder, got one in memory", remedy="Open the session with a folder."
            )
        self.history.commit()
        focus = None if self.appended else self.focus
        write_state(self.history.folder, self.history.tokens, self.config, focus)

    def _restore(self) -> None:
        """Take the focus that was saved, if the settings and the number of tokens are the same."""
        if self.history.folder is None:
            return
        tree = self.config.tree(self.model.tree)
        focus = read_state(self.history.folder, self.history.tokens, self.config, tree, self._device)
        if focus is not None:
            self.focus, self.appended = focus, False
            self._decoder.follow(focus.window, self.config.refocus_every)

    def close(self) -> None:
        """Release the history; what was not saved is lost."""
        self.history.close()

    @property
    def strip(self) -> list[Span]:
        """The nodes of the working context in order, raw tokens in a row as one."""
        return [] if self.focus is None else spans(self.focus, self.history.tokens)

    @property
    def report(self) -> SessionReport:
        """The state of the session and its costs so far."""
        return self.counters.report(self.history.tokens, self.focus, self._decoder.read_entries)

"""A trained model as one of lm-evaluation-harness, with its full context or a working context of a budget.

With a budget, the text before what is scored is a history: its working context is that of a session, and what is scored
follows as raw tokens. Requests with the same text before them share its gists and are one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import raw_context
from mcframe.hookspecs import Allocator, Tokenizer
from mcframe.modeling.model import MegaContextModel
from mcframe.runtime.entries import EntryReader
from mcframe.runtime.gist_encoder import GistEncoder, history_shape
from mcframe.runtime.history import History
from mcframe.runtime.refocus import Refocus
from mcframe.runtime.sampling import Sampling
from mcframe.runtime.session import Session
from mcframe.runtime.session_config import SessionConfig
from mcframe.runtime.text_stream import TextStream

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

MOST_GENERATED = 256
"""Tokens of a generated text unless a task states `max_gen_toks`."""


class HarnessModel(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """A model of lm-evaluation-harness.

    Args:
        model: The trained model, in eval mode.
        tokenizer: Its tokenizer.
        allocator: Makes the run's allocator for a tree.
        config: The budget of compressed contexts; None for the full context, of which the last T tokens are read.
        batch_size: Sequences of a pass of the full context.
    """

    def __init__(
        self,
        model: MegaContextModel,
        tokenizer: Tokenizer,
        allocator: Callable[[ContextTree], Allocator],
        config: SessionConfig | None = None,
        batch_size: int = 8,
    ) -> None:
        super().__init__()
        self._model, self._encoding, self._allocator = model, tokenizer, allocator
        self._config, self._batch_size = config, batch_size
        if config is not None:
            config.check(model.tree, 0 if model.gistnet is None else model.tree.levels)

    @property
    def eot_token_id(self) -> int:
        """The separator, which stands before a text without context."""
        return self._encoding.separator

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Return the ids of a text."""
        return self._encoding.encode_batch([string])[0]

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether it is the likeliest token by token."""
        score = self._score_full if self._config is None else self._score_compressed
        found: dict[int, tuple[float, bool]] = {}
        for numbers in self._batches([(before, after) for _, before, after in requests]):
            results = score([(requests[number][1], requests[number][2]) for number in numbers])
            found.update(zip(numbers, results, strict=True))
        return [found[number] for number in range(len(requests))]

    def _batches(self, pairs: Sequence[tuple[list[int], list[int]]]) -> Iterator[list[int]]:
        """Yield the numbers of requests of a batch: of similar length, or with the same text before."""
        if self._config is not None:
            groups: dict[tuple[int, ...], list[int]] = {}
            for number, (before, _) in enumerate(pairs):
                groups.setdefault(tuple(before), []).append(number)
            yield from groups.values()
            return
        order = sorted(range(len(pairs)), key=lambda number: -len(pairs[number][0]) - len(pairs[number][1]))
        for first in range(0, len(order), self._batch_size):
            yield order[first : first + self._batch_size]

    def _score_full(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        rows = [[*before, *after][-self._model.tree.window - 1 :] for before, after in pairs]
        tokens = self._padded(rows)
        inputs = tokens[:, :-1]
        raw = raw_context(self._model.tree, 1, tokens.device, inputs.shape[1])
        hidden = self._model.gpt.hidden(self._model.gpt.embed(inputs), raw)
        first = [max(0, len(row) - 1 - len(after)) for row, (_, after) in zip(rows, pairs, strict=True)]
        return self._scores(hidden, tokens[:, 1:], first, [len(row) - 1 for row in rows])

    def _score_compressed(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        history = self._history(pairs[0][0])
        results = self._score_after(history, [after for _, after in pairs])
        history.close()
        return results

    def _history(self, tokens: Sequence[int]) -> History:
        """Return a history in memory, with its gists."""
        history = History.create(history_shape(self._model, self._encoding.vocab_size))
        history.append(torch.tensor(tokens))
        GistEncoder(self._model, history).catch_up()
        return history

    def _score_after(self, history: History, texts: Sequence[list[int]]) -> list[tuple[float, bool]]:
        """Return the scores of texts that each follow the history."""
        assert self._config is not None
        gpt, reader = self._model.gpt, EntryReader(self._model, history)
        window = Refocus(self._model, reader, self._config, self._allocator).first(history.tokens).window
        after = self._padded(texts)
        more = after.shape[1] - 1
        context = window.with_tail(more, more, drop_gists=self._config.drop_gists)
        before = reader.embeddings(window.with_tail(0, drop_gists=self._config.drop_gists), window)
        rows = (before.expand(len(texts), -1, -1), gpt.embed(after[:, :-1]))
        hidden = gpt.hidden(torch.cat(rows, dim=1), context)[:, before.shape[1] - 1 :]
        return self._scores(hidden, after, [0] * len(texts), [len(text) for text in texts])

    def _scores(
        self, hidden: Tensor, targets: Tensor, first: Sequence[int], last: Sequence[int]
    ) -> list[tuple[float, bool]]:
        """Return log-likelihood and whether all are likeliest, of targets `first` to `last` of each row."""
        nll, right = (each.cpu() for each in self._model.gpt.nll_and_correct(hidden, targets))
        return [
            (-float(nll[row, a:b].double().sum()), bool(right[row, a:b].all()))
            for row, (a, b) in enumerate(zip(first, last, strict=True))
        ]

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return rows as a tensor, filled at the right; no token reads what follows it."""
        length = max(map(len, rows))
        filled = [[*row, *[self.eot_token_id] * (length - len(row))] for row in rows]
        return torch.tensor(filled, device=self._model.gpt.device)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text; with a budget, tokens between two refocuses are scored at once."""
        texts = [self.tok_encode(request.args[0]) for request in requests]
        if self._config is not None:
            return [self._rolling_compressed(text) for text in texts]
        found = []
        for text in texts:
            windows = get_rolling_token_windows(text, self.prefix_token_id, self._model.tree.window, 1)
            pairs = [(None, *make_disjoint_window(each)) for each in windows]
            found.append(sum(score for score, _ in self._loglikelihood_tokens(pairs)))
        return found

    @torch.no_grad()
    def _rolling_compressed(self, text: list[int]) -> float:
        assert self._config is not None
        history, total, step = self._history([self.prefix_token_id]), 0.0, self._config.refocus_every
        encoder = GistEncoder(self._model, history)
        for first in range(0, len(text), step):
            part = text[first : first + step]
            total += self._score_after(history, [part])[0][0]
            history.append(torch.tensor(part))
            encoder.catch_up()
        history.close()
        return total

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the text that the model generates after each context, up to one of the texts that end it."""
        return [self._generated(*request.args) for request in requests]

    @torch.no_grad()
    def _generated(self, context: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        stop = [until] if isinstance(until, str) else list(until)
        most = int(options.get("max_gen_toks", MOST_GENERATED))
        temperature = float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0
        tokens = self.tok_encode(context) or [self.prefix_token_id]
        if self._config is not None:
            history = History.create(history_shape(self._model, self._encoding.vocab_size))
            session = Session(self._model, self._encoding, self._allocator, history, self._config)
            session.append(tokens)
            pieces = [piece.text for piece in session.generate(most, Sampling(temperature=temperature), stop)]
            session.close()
            return "".join(pieces)
        return self._generated_full(tokens, most, Sampling(temperature=temperature), stop)

    def _generated_full(self, tokens: list[int], most: int, sampling: Sampling, stop: list[str]) -> str:
        from mcframe.runtime.sampling import Sampler

        stream, sampler, text = TextStream(self._encoding, stop), Sampler(sampling), ""
        device = self._model.gpt.device
        for _ in range(most):
            read = torch.tensor([tokens[-self._model.tree.window :]], device=device)
            logits = self._model.next_logits(read)[0, : self._encoding.vocab_size]
            token = sampler.next(logits, torch.tensor(tokens)).token
            tokens = [*tokens, token]
            text += stream.push(token)
            if stream.stopped or token == self.eot_token_id:
                break
        return text + stream.finish()

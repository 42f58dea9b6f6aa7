"""Ways to fit a long history into one budget of entries, scored on the tokens that follow it.

Every arm has the same budget and the same following tokens. Arms without gists read a short text of raw tokens, with
positions without gaps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import WorkingContext, raw_context
from mcframe.hookspecs import Allocator
from mcframe.interfaces.evaluation import ARMS, Arm, ArmScores
from mcframe.modeling.model import MegaContextModel
from mcframe.runtime.covered_window import CoveredWindow, recent_focus
from mcframe.runtime.entries import EntryReader
from mcframe.runtime.gist_encoder import GistEncoder
from mcframe.runtime.history import History
from mcframe.runtime.refocus import Refocus
from mcframe.runtime.session_config import SessionConfig

_TIMED_TOKENS = 8
"""The most tokens after a context whose reading is timed."""


@dataclass(frozen=True)
class _Read:
    """The context of an arm with the tokens that follow, their embeddings, and its entries without those."""

    context: WorkingContext
    embeddings: Tensor
    entries: int


class HistoryArms:
    """Score the tokens after a history under several arms.

    Args:
        model: The trained model.
        allocator: Makes the run's allocator for a tree.
        config: The budget; `target` is that of the history's entries.
        new_history: Makes an empty history.
        terms: Returns the terms of a text for BM25.
    """

    def __init__(
        self,
        model: MegaContextModel,
        allocator: Callable[[ContextTree], Allocator],
        config: SessionConfig,
        new_history: Callable[[], History],
        terms: Callable[[Tensor], list[str]],
    ) -> None:
        self.terms = terms
        self.model, self.allocator, self.config, self.new_history = model, allocator, config, new_history
        self.device = model.gpt.device

    def available(self, tokens: int, evidence: bool) -> list[Arm]:
        """Return the arms that exist for a history of N tokens; the oracle needs to know the evidence."""
        gists, lens = self.model.gistnet is not None, self.model.lensnet is not None
        exists: Mapping[Arm, bool] = {
            "recency": True,
            "sink_recency": self.config.sink > 0,
            "bm25": True,
            "gists": gists,
            "refocus": gists and lens,
            "oracle": gists and evidence,
            "full": tokens <= self.model.tree.window,
        }
        return [arm for arm in ARMS if exists[arm]]

    @torch.no_grad()
    def score(self, tokens: Tensor, cursor: int, evidence: Tensor | None, arms: Sequence[Arm]) -> dict[Arm, ArmScores]:
        """Score the tokens from the cursor on.

        Args:
            tokens: [T + 1]; those before the cursor are the history.
            cursor: Tokens of the history.
            evidence: Indices of the history that the answers are found at [m]; for the oracle.
            arms: The arms.
        """
        history = self.new_history()
        history.append(tokens[:-1])
        GistEncoder(self.model, history).catch_up()
        reader, shape = EntryReader(self.model, history), history.shape
        found: dict[Arm, ArmScores] = {}
        for arm in arms:
            begin = perf_counter()
            if arm in ("bm25", "full"):
                size = self.model.tree.block_size
                kept = (
                    torch.arange(cursor) if arm == "full" else retrieved(tokens[:cursor], size, self.config, self.terms)
                )
                read = self._raw(tokens, cursor, kept)
            else:
                drops = self.config.drop_gists and arm != "gists"
                read = self._of_window(tokens, self._window(arm, cursor, reader, evidence), reader, drops)
            chosen_ms = (perf_counter() - begin) * 1000
            kept_tokens = read.entries if arm in ("recency", "sink_recency") else cursor
            with_gists = arm in ("gists", "refocus", "oracle")
            disk = kept_tokens * (shape.bytes_per_token if with_gists else shape.token_bytes)
            found[arm] = self._score(tokens, read, chosen_ms, round(disk))
        history.close()
        return found

    def _window(self, arm: Arm, cursor: int, reader: EntryReader, evidence: Tensor | None) -> CoveredWindow:
        """Return the focus of an arm over a history of `cursor` tokens."""
        config = replace(self.config, sink=0) if arm == "recency" else self.config
        if arm in ("recency", "sink_recency"):
            return recent_focus(config.tree(self.model.tree), cursor, config.target, 0, device=self.device)
        scores = partial(evidence_scores, evidence=evidence) if arm == "oracle" else None
        config = replace(config, refocus=arm != "gists")
        return Refocus(self.model, reader, config, self.allocator, scores).first(cursor).window

    def _of_window(self, tokens: Tensor, window: CoveredWindow, reader: EntryReader, drops: bool) -> _Read:
        tail = len(tokens) - 1 - window.tokens
        context = window.with_tail(tail, tail, drop_gists=drops)
        return _Read(context, reader.embeddings(context, window), context.length - tail)

    def _raw(self, tokens: Tensor, cursor: int, kept: Tensor) -> _Read:
        tail = tokens[cursor:-1]
        read = torch.cat((tokens[kept], tail)).to(self.device)
        tree = replace(self.model.tree, window=len(read), tail=len(tail))
        return _Read(raw_context(tree, 1, self.device, len(read)), self.model.gpt.embed(read[None]), len(kept))

    def _score(self, tokens: Tensor, read: _Read, chosen_ms: float, disk_bytes: int) -> ArmScores:
        hidden, times, cache_bytes = self._states(read)
        targets = tokens[len(tokens) - hidden.shape[1] :].to(self.device)
        nll, right = self.model.gpt.nll_and_correct(hidden, targets[None])
        first_ms, token_ms = chosen_ms + times[0], median(times[1:] or [math.nan])
        return ArmScores(nll[0].cpu(), right[0].cpu(), read.entries, first_ms, token_ms, cache_bytes, disk_bytes)

    def _states(self, read: _Read) -> tuple[Tensor, list[float], int]:
        """Read a context and the tokens after it as in a session, the first of them one by one.

        Waits for the device.

        Returns:
            The final states of the last entry and of the tokens after it [1, n, D]; the milliseconds that the context,
            and each of up to `_TIMED_TOKENS` tokens after it, took; the bytes of the cache of the context.
        """
        gpt, length = self.model.gpt, read.embeddings.shape[1]
        cache, rotation, lod = gpt.kv_cache(length), gpt.positions(read.context), read.context.lod
        timed = min(length, read.entries + _TIMED_TOKENS)
        states, times = [], []
        for first, last in pairwise(sorted({0, *range(read.entries, timed + 1), length})):
            begin = perf_counter()
            part = tuple(each[:, :, first:last] for each in rotation)
            hidden = gpt.extend(read.embeddings[:, first:last], lod[:, first:last], (part[0], part[1]), cache)
            gpt.logits(hidden[0, -1]).argmax().item()
            times.append((perf_counter() - begin) * 1000)
            states.append(hidden)
        return (
            torch.cat(states, dim=1)[:, read.entries - 1 :],
            times[: timed - read.entries + 1],
            cache.bytes_of(read.entries),
        )


def evidence_scores(context: WorkingContext, window: CoveredWindow, evidence: Tensor | None) -> Tensor:
    """Return 1 for entries whose node covers evidence, [1, L], and below 0 the less the more recent for the others."""
    assert evidence is not None, "the oracle needs evidence"
    start = window.history_index(context.start)[0]
    covers = (start[:, None] <= evidence) & (evidence < start[:, None] + context.span[0][:, None])
    age = 1 - (context.token[0] + 1) / context.tree.window
    return torch.where(covers.any(dim=1), 1.0, -0.5 - 0.25 * age)[None]


def retrieved(tokens: Tensor, size: int, config: SessionConfig, terms: Callable[[Tensor], list[str]]) -> Tensor:
    """Return the tokens [entries] of the sink, of the blocks that BM25 ranks highest, and of the tail, in order.

    The query is the tail. Robertson and Zaragoza (2009), with the defaults of `bm25s`.

    Args:
        tokens: The history [N].
        size: Tokens of a block.
        config: Budget, sink and tail.
        terms: Returns the terms of a text.
    """
    import bm25s

    count = len(tokens)
    if count <= config.target:
        return torch.arange(count)
    border = (count - config.tail) // size * size
    first = min(config.sink, border // size)
    blocks = tokens[:border].view(-1, size)
    room = (config.target - first * size - (count - border)) // size
    index = bm25s.BM25()
    index.index([terms(block) for block in blocks], show_progress=False)
    scores = torch.from_numpy(index.get_scores(terms(tokens[border:])))
    scores[:first] = torch.inf
    # Between equal scores the more recent block is taken.
    best = (len(scores) - 1 - scores.flip(0).argsort(descending=True, stable=True))[: first + max(0, room)]
    chosen = (best.sort().values[:, None] * size + torch.arange(size)).flatten()
    return torch.cat((chosen, torch.arange(border, count)))

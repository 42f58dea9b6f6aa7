"""Embeddings of the entries of a working context, read from a history."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mcframe.context.working_context import WorkingContext
from mcframe.modeling.model import MegaContextModel
from mcframe.runtime.covered_window import CoveredWindow


class StoredHistory(Protocol):
    """The part of a history that a session reads; `mcframe.runtime.history.History` has it."""

    @property
    def tokens(self) -> int:
        """N, tokens of the history."""

    def read_tokens(self, first: int, last: int) -> Tensor:
        """Return token ids [last - first], int64."""

    def read_gists(self, lod: int, nodes: Tensor) -> Tensor:
        """Return the gists [n, G, D], float32, of nodes [n], int64."""

    def read_nll(self, first: int, last: int) -> Tensor:
        """Return the uncompressed NLL of tokens [last - first], float32, in nats; 0 where none is known."""


class EntryReader:
    """Read embeddings of entries from a history.

    Args:
        model: Embeds tokens.
        history: Tokens and gists.
    """

    def __init__(self, model: MegaContextModel, history: StoredHistory) -> None:
        self.model, self.history = model, history

    def embeddings(self, context: WorkingContext, window: CoveredWindow, first: int = 0) -> Tensor:
        """Return the embeddings [1, L - first, D] of the entries of a context over a window, from the index `first`."""
        token, lod = context.token[0, first:], context.lod[0, first:]
        index = window.history_index(token).cpu()
        if len(index) == 1 and not int(lod):  # a token that was sampled
            ids = self.history.read_tokens(int(index), int(index) + 1)
            return self.model.gpt.embed(ids[None].to(token.device))
        result = torch.empty(len(token), self.model.gpt.width, dtype=self.model.gpt.dtype, device=self.model.gpt.device)
        token, lod = token.cpu(), lod.cpu()
        raw = lod == 0
        result[raw] = self.model.gpt.embed(self._tokens(index[raw])[None].to(result.device))[0]
        for level in range(1, context.tree.levels + 1):
            here = lod == level
            if bool(here.any()):
                node, slot = index[here] // context.tree.span(level), token[here] % context.tree.span(level)
                result[here] = self.history.read_gists(level, node)[torch.arange(len(node)), slot].to(result)
        return result[None]

    def mean_nll(self, context: WorkingContext, window: CoveredWindow) -> Tensor:
        """Return the mean uncompressed NLL [1, L], in nats, of the tokens that each entry's node covers."""
        start, span = window.history_index(context.start)[0].tolist(), context.span[0].tolist()
        sums = torch.stack([self.history.read_nll(a, a + size).sum() for a, size in zip(start, span, strict=True)])
        count = context.span - (window.history_index(context.start) == 0)  # the first token is no target
        return sums[None].to(context.token.device) / count.clamp(min=1)

    def _tokens(self, index: Tensor) -> Tensor:
        """Return the token ids of ascending indices of the history, one read for each run without a gap."""
        if not len(index):
            return index
        ends = (index.diff() != 1).nonzero()[:, 0] + 1
        bounds = [0, *ends.tolist(), len(index)]
        firsts = index[bounds[:-1]].tolist()
        runs = zip(firsts, bounds[:-1], bounds[1:], strict=True)
        return torch.cat([self.history.read_tokens(first, first + end - begin) for first, begin, end in runs])

"""Next-token logits after a history, from the keys and values of the entries of its working context.

The cache is exact: an entry is kept only if it and every entry before it are those of the new context, with the same
rotation. Everything after the first difference is read again, because its states depend on what is before it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mcframe.context.working_context import WorkingContext
from mcframe.hookspecs import KVCache
from mcframe.modeling.model import MegaContextModel
from mcframe.runtime.covered_window import CoveredWindow
from mcframe.runtime.entries import EntryReader


@dataclass(frozen=True)
class Plan:
    """The entries of a working context, and of the raw tokens that follow it until the next refocus.

    Attributes:
        window: The focus.
        context: Its working context and the tokens that follow; the cursor is between them.
        index: The token of the history that makes each entry [L].
        rotation: Cosines and sines of the entries [1, 1 or H, L, head_width / 2].
    """

    window: CoveredWindow
    context: WorkingContext
    index: Tensor
    rotation: tuple[Tensor, Tensor]

    def entries(self, tokens: int) -> int:
        """Return the number of entries of a history of N tokens, as many as the plan has or fewer."""
        return self.context.length - (self.window.tokens + self.context.tree.tail - tokens)


class Decoder:
    """Compute logits of the next token, reading only entries that are new or have changed.

    Args:
        model: The trained model.
        entries: Reads embeddings of entries.
        capacity: The most entries.
        drop_gists: Read raw entries alone.
    """

    def __init__(
        self, model: MegaContextModel, entries: EntryReader, capacity: int, *, drop_gists: bool = False
    ) -> None:
        self.model, self.reader, self.drop_gists = model, entries, drop_gists
        self.cache: KVCache = model.gpt.kv_cache(capacity)
        self.plan: Plan | None = None
        self.read_entries = 0
        """Entries that were read, those that were read again included."""

    def follow(self, window: CoveredWindow, more: int) -> None:
        """Take a new focus, for at most `more` tokens after it; keep the entries with which the old context begins."""
        context = window.with_tail(more, more, drop_gists=self.drop_gists)
        rotation = self.model.gpt.positions(context)
        plan = Plan(window, context, window.history_index(context.token[0]), rotation)
        self.cache.truncate(self._common(plan))
        self.plan = plan

    def _common(self, plan: Plan) -> int:
        """Return the number of entries in the cache that the new plan begins with."""
        old, length = self.plan, min(self.cache.length, plan.context.length)
        if old is None or old.rotation[0].shape[1] != plan.rotation[0].shape[1]:
            return 0
        same = (old.index[:length] == plan.index[:length]) & (
            old.context.lod[0, :length] == plan.context.lod[0, :length]
        )
        for before, after in zip(old.rotation, plan.rotation, strict=True):
            same &= (before[0, :, :length] == after[0, :, :length]).all(dim=-1).all(dim=0)
        return int(same.long().cumprod(dim=0).sum())

    @torch.inference_mode()
    def logits(self, tokens: int) -> Tensor:
        """Return the logits [vocabulary], float32, of the token after a history of N tokens."""
        assert self.plan is not None, "follow a focus first"
        plan, last = self.plan, self.plan.entries(tokens)
        self.cache.truncate(min(self.cache.length, last - 1))  # the state of the last entry is not kept
        first = self.cache.length
        context = replace(plan.context, token=plan.context.token[:, :last], lod=plan.context.lod[:, :last])
        embeddings = self.reader.embeddings(context, plan.window, first)
        cosine, sine = (part[:, :, first:last] for part in plan.rotation)
        hidden = self.model.gpt.extend(embeddings, context.lod[:, first:], (cosine, sine), self.cache)
        self.read_entries += last - first
        return self.model.gpt.logits(hidden[0, -1])

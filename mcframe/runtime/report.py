"""The report of a session: its history, the entries of its context, refocuses, and times."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import quantiles

import torch

from mcframe.runtime.refocus import Focus

KEPT_TIMES = 4096
"""Times of the most recent tokens that are kept, so that memory does not grow with the history."""


@dataclass(frozen=True)
class SessionReport:
    """The state of a session and its costs so far.

    Attributes:
        history: N, tokens of the history.
        entries: Entries of the working context by LOD.
        dropped: Tokens of the history that no entry covers.
        generated: Tokens that were sampled.
        refocuses: Refocuses so far, the first of each generation included.
        expanded: Blocks that got more detail at the last refocus.
        collapsed: Blocks that got less detail at the last refocus.
        swap_rate: Mean fraction of the entries that a refocus within a generation replaced.
        residency: Mean number of refocuses for which an expanded block kept its detail, of those collapsed since.
        read_entries: Entries that were read a generated token; 1 without refocuses.
        first_token_ms: Time from the start of the last generation to its first token.
        token_ms_p50: Median time a token, of the most recent ones, the first of each generation excluded.
        token_ms_p95: Its 95th percentile.
    """

    history: int
    entries: Mapping[int, int]
    dropped: int
    generated: int
    refocuses: int
    expanded: int
    collapsed: int
    swap_rate: float
    residency: float
    read_entries: float
    first_token_ms: float
    token_ms_p50: float
    token_ms_p95: float


@dataclass
class Counters:
    """Counts and times of a session, of bounded size."""

    generated: int = 0
    refocuses: int = 0
    first_token_ms: float = 0.0
    token_ms: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_TIMES))
    _swapped: float = 0.0
    _swaps: int = 0
    _expanded_at: dict[int, int] = field(default_factory=dict)
    _stayed: int = 0
    _left: int = 0

    def refocused(self, before: Focus | None, after: Focus) -> None:
        """Count a refocus; `before` is None for the first one of a generation."""
        self.refocuses += 1
        if before is None:
            self._expanded_at.clear()
            return
        self._swaps += 1
        self._swapped += 1 - _kept(before, after)
        for block in after.collapsed:
            since = self._expanded_at.pop(block, None)
            if since is not None:
                self._stayed, self._left = self._stayed + self.refocuses - since, self._left + 1
        self._expanded_at.update(dict.fromkeys(after.expanded, self.refocuses))

    def sampled(self, ms: float, *, first: bool) -> None:
        """Count a sampled token and its time; `first` of a generation."""
        self.generated += 1
        if first:
            self.first_token_ms = ms
        else:
            self.token_ms.append(ms)

    def report(self, tokens: int, focus: Focus | None, read_entries: int) -> SessionReport:
        """Return the report of a session with N tokens."""
        lods: dict[int, int] = {}
        if focus is not None:
            lod = focus.window.with_tail(0).lod
            lods = {level: int((lod == level).sum()) for level in range(focus.window.tree.levels + 1)}
            lods[0] += tokens - focus.window.tokens
        times = [*self.token_ms] * (2 if len(self.token_ms) == 1 else 1)
        cuts = quantiles(times, n=20) if times else [0.0] * 19
        return SessionReport(
            history=tokens,
            entries=lods,
            dropped=0 if focus is None else focus.window.dropped,
            generated=self.generated,
            refocuses=self.refocuses,
            expanded=0 if focus is None else len(focus.expanded),
            collapsed=0 if focus is None else len(focus.collapsed),
            swap_rate=self._swapped / max(1, self._swaps),
            residency=self._stayed / max(1, self._left),
            read_entries=read_entries / max(1, self.generated),
            first_token_ms=self.first_token_ms,
            token_ms_p50=cuts[9],
            token_ms_p95=cuts[18],
        )


def _kept(before: Focus, after: Focus) -> float:
    """Return the fraction of the new context's entries, those of later tokens excluded, that the old one had."""
    old, new = (
        torch.stack((focus.window.history_index(context.token[0]), context.lod[0]), dim=1)
        for focus in (before, after)
        for context in (focus.window.with_tail(0),)
    )
    new = new[new[:, 0] < before.window.tokens]
    kept = set(map(tuple, old.tolist())) & set(map(tuple, new.tolist()))
    return len(kept) / max(1, len(new))

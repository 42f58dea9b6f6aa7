"""Refocusing during use: LensNet scores the working context of a history, the allocator changes its focus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import WorkingContext
from mcframe.hookspecs import Allocator
from mcframe.modeling.model import MegaContextModel
from mcframe.registry.checks import check_focus, check_shape, raise_contract_error
from mcframe.runtime.covered_window import CoveredWindow, recent_focus
from mcframe.runtime.entries import EntryReader
from mcframe.runtime.session_config import SessionConfig

_LONG_AGO = torch.iinfo(torch.int32).max


@dataclass(frozen=True)
class Focus:
    """The focus of a session.

    Attributes:
        window: The covered tokens and their focus.
        age: Refocuses since each block's LOD changed [1, blocks], int64.
        expanded: Blocks whose LOD fell at the last refocus, as indices of the history.
        collapsed: Blocks whose LOD rose.
    """

    window: CoveredWindow
    age: Tensor
    expanded: tuple[int, ...] = ()
    collapsed: tuple[int, ...] = ()


class Refocus:
    """Choose the focus of a history.

    Args:
        model: The trained model.
        entries: Reads embeddings of entries.
        config: Settings of the session.
        allocator: Makes the run's allocator for a tree.
        scores: Returns scores [1, L] of the entries of a context; None = those of LensNet.
    """

    def __init__(
        self,
        model: MegaContextModel,
        entries: EntryReader,
        config: SessionConfig,
        allocator: Callable[[ContextTree], Allocator],
        scores: Callable[[WorkingContext, CoveredWindow], Tensor] | None = None,
    ) -> None:
        self.model, self.entries, self.config, self.allocator = model, entries, config, allocator
        self.scores = scores or self._lens_scores
        self.tree = config.tree(model.tree)
        self.levels = 0 if model.gistnet is None else model.tree.levels
        has_scores = scores is not None or model.lensnet is not None
        self.by_scores = config.refocus and has_scores and self.levels > 0

    def first(self, tokens: int) -> Focus:
        """Return the focus of a history of N tokens without regard to an earlier one.

        LensNet starts from the focus that the history's length determines. A block at the highest level takes one
        round a level to become raw, so there are as many rounds more.
        """
        window = self._recent(tokens)
        focus = Focus(window, torch.full_like(window.focus, _LONG_AGO))
        return self._rounds(focus, self.levels, hysteresis=0.0) if self._can_choose(window) else focus

    def next(self, focus: Focus, tokens: int) -> Focus:
        """Return the focus after more tokens, which are raw so far, starting from the current focus."""
        window = self._recent(tokens)
        if not self._can_choose(window):
            return _changes(focus, Focus(window, torch.full_like(window.focus, _LONG_AGO)))
        carried = _carry(focus, window)
        return _changes(focus, self._rounds(carried, 0, self.config.hysteresis))

    def _recent(self, tokens: int) -> CoveredWindow:
        device = self.model.gpt.device
        return recent_focus(self.tree, tokens, self.config.target, self.levels, self.config.reach, device)

    def _can_choose(self, window: CoveredWindow) -> bool:
        """Return whether there is a choice: everything is raw while the history fits."""
        return self.by_scores and window.tokens > self.config.target

    def _rounds(self, focus: Focus, more: int, hysteresis: float) -> Focus:
        """Return the focus after `more` rounds of scoring and allocating above those of the allocator."""
        window, age = focus.window, focus.age
        allocator = self.allocator(window.tree)
        seeds = torch.tensor([self.config.seed], device=age.device)
        for _ in range(allocator.iterations + more):
            context = self._context(window, age)
            found = allocator.allocate(
                _biased(self.scores(context, window), context, hysteresis),
                replace(context, tree=window.tree),
                self.config.target,
                seeds,
            )
            check_shape(allocator, "allocate", "a focus [R, blocks]", found, window.focus.shape, torch.int64)
            check_focus(allocator, "allocate", found, window.tree)
            size = replace(window, focus=found).entries
            if size > self.config.target:
                problem = f"expected a context of at most {self.config.target} entries, got {size}"
                raise_contract_error(allocator, "allocate", problem)
            changed = found != window.focus
            age = torch.where(changed, 0, (age + 1).clamp(max=_LONG_AGO))
            window = replace(window, focus=found)
            if not bool(changed.any()):
                break
        return Focus(window, age)

    def _context(self, window: CoveredWindow, age: Tensor) -> WorkingContext:
        """Return what LensNet may see: every entry, since the cursor is at the end of the history."""
        context = replace(window.with_tail(0), age=age)
        lensnet = self.model.lensnet
        if lensnet is None or not lensnet.reads_nll:
            return context
        return replace(context, nll=self.entries.mean_nll(context, window))

    def _lens_scores(self, context: WorkingContext, window: CoveredWindow) -> Tensor:
        scores = self.model.lens_scores(context, self.entries.embeddings(context, window))
        check_shape(self.model.lensnet, "forward", "scores [R, L]", scores, context.token.shape)
        return scores


def _biased(scores: Tensor, context: WorkingContext, hysteresis: float) -> Tensor:
    """Return scores [1, L] that favour the present focus."""
    return (scores + torch.where(context.lod > 0, -hysteresis, hysteresis)).clamp(-1.0, 1.0)


def _carry(focus: Focus, window: CoveredWindow) -> Focus:
    """Return an earlier focus over the tokens that `window` covers; blocks that are new are raw.

    Tokens that were dropped before stay dropped.
    """
    old, sink = focus.window, window.tree.sink
    if window.dropped < old.dropped:
        tree = replace(window.tree, window=window.tokens - old.dropped)
        window = CoveredWindow(tree, old.dropped, window.focus)
    gone = (window.dropped - old.dropped) // window.tree.block_size

    def over_window(values: Tensor, new: int) -> Tensor:
        kept = torch.cat((values[:, :sink], values[:, sink + gone :]), dim=1)
        return F.pad(kept, (0, window.tree.blocks - kept.shape[1]), value=new)

    lods, age = over_window(old.focus, 0), over_window(focus.age, _LONG_AGO)
    if gone:  # nodes at the start have lost blocks
        top = int(window.tree.block_size ** (window.tree.levels - 1))
        block = torch.arange(lods.shape[1], device=lods.device)
        broken = (block >= sink) & (block < -(-sink // top) * top)
        lods, age = torch.where(broken, window.focus, lods), torch.where(broken, 0, age)
    return Focus(replace(window, focus=lods), age)


def _changes(before: Focus, after: Focus) -> Focus:
    """Return the new focus with the blocks that it expands and collapses, as indices of the history."""
    old, new = before.window, after.window
    size, sink = new.tree.block_size, new.tree.sink
    block = torch.arange(new.focus.shape[1], device=new.focus.device)
    in_history = torch.where(block < sink, block, block + new.dropped // size)
    was = torch.where(block < sink, block, block + (new.dropped - old.dropped) // size)
    lods = F.pad(old.focus[0], (0, int(was[-1:].sum()) + 1 - old.focus.shape[1]))[was]  # new blocks were raw
    expanded, collapsed = (in_history[changed].tolist() for changed in (new.focus[0] < lods, new.focus[0] > lods))
    return replace(after, expanded=tuple(expanded), collapsed=tuple(collapsed))

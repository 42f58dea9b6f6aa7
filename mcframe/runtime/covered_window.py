"""The part of a history that a working context covers, and the focus that depends on the history's length alone.

A working context covers the sink and the newest tokens. What lies between is dropped from the context; the history
keeps it. Without the dropped tokens the covered ones form a window of M tokens, and everything that reads a focus in
training (networks, allocators, positions) reads it unchanged. With gists the number of dropped tokens is a multiple of
K**levels, so that a node of the history is a node of the window. No index of the history ever becomes a float.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.focus_ops import lengths
from mcframe.context.working_context import WorkingContext
from mcframe.errors import UserError


@dataclass(frozen=True)
class CoveredWindow:
    """A focus over the tokens of a history that a working context covers.

    Attributes:
        tree: The context tree over the M covered tokens; its tail are the tokens that stay raw.
        dropped: Tokens of the history between the sink and the rest, in none of the entries.
        focus: LOD of every complete block [1, blocks], int64.
    """

    tree: ContextTree
    dropped: int
    focus: Tensor

    @property
    def tokens(self) -> int:
        """N, tokens of the history."""
        return self.tree.window + self.dropped

    @property
    def entries(self) -> int:
        """Entries of the working context."""
        return int(lengths(self.focus, self.tree))

    def history_index(self, token: Tensor) -> Tensor:
        """Return the indices in the history of tokens of the window, int64."""
        return torch.where(token < self.tree.sink * self.tree.block_size, token, token + self.dropped)

    def with_tail(self, tail: int, more: int = 0, *, drop_gists: bool = False) -> WorkingContext:
        """Return the working context followed by `more` raw tokens, with the cursor `tail` tokens before the end.

        With `drop_gists` its raw entries alone.
        """
        tree = replace(self.tree, window=self.tree.window + more, tail=tail)
        context = block_context(F.pad(self.focus, (0, tree.blocks - self.tree.blocks)), tree)
        if not drop_gists:
            return context
        raw = (context.lod[0] == 0).nonzero()[:, 0]
        token, lod, valid = (each[:, raw] for each in (context.token, context.lod, context.valid))
        return replace(context, token=token, lod=lod, valid=valid, compressed=False)


def block_context(focus: Tensor, tree: ContextTree) -> WorkingContext:
    """Return the working context of one focus [1, blocks]; `build_context` in time that grows with T / K, not with T.

    Waits for the device.
    """
    size, device = tree.block_size, focus.device
    lod = torch.cat((focus[0], focus.new_zeros(1)))  # the tokens after the last complete block form one more
    block = torch.arange(tree.blocks + 1, device=device)
    starts_node = block % torch.pow(size, (lod - 1).clamp(min=0)) == 0
    count = torch.where(lod > 0, torch.where(starts_node, tree.slots, 0), size)
    count[-1] = tree.window - tree.blocks * size
    index = block.repeat_interleave(count)
    first = count.cumsum(dim=0) - count
    token = index * size + torch.arange(len(index), device=device) - first[index]
    return WorkingContext(
        tree=tree,
        focus=focus,
        token=token[None],
        lod=lod[index][None],
        valid=torch.ones(1, len(index), dtype=torch.bool, device=device),
        padded=False,
    )


def recent_focus(
    tree: ContextTree,
    tokens: int,
    entries: int,
    levels: int,
    reach: int | None = None,
    device: torch.device | str = "cpu",
) -> CoveredWindow:
    """Return the focus that keeps recent tokens in the most detail, a function of the number of tokens alone.

    The tail is raw. Before it lie zones of LOD1, LOD2, and so on, with an equal number of entries each, in as few
    levels as cover the history. Entries that are left lengthen the raw part. What is older than the last zone, without
    the sink, is dropped.

    Args:
        tree: Block size, levels, slots, sink and tail; its window does not matter.
        tokens: N, tokens of the history, 1 or more.
        entries: The most entries of the working context.
        levels: The highest LOD; 0 covers the sink and the most recent tokens, without gists.
        reach: The most tokens that the context covers; older ones are dropped. None = no limit.
        device: Device of the focus.

    Raises:
        UserError: No such context has so few entries.
    """
    top = tree.span(tree.levels)
    most = max(0, tokens - tree.sink * tree.block_size - tree.tail - 1) // top * top
    beyond = 0 if reach is None else min(most, _ceil(max(0, tokens - reach), top))
    window = _recent_focus(tree, tokens - beyond, entries, levels)
    return replace(window, dropped=window.dropped + beyond, focus=window.focus.to(device))


def _recent_focus(tree: ContextTree, tokens: int, entries: int, levels: int) -> CoveredWindow:
    if tokens <= entries:
        return _covered(tree, tokens, 0, [])
    sink = tree.sink * tree.block_size
    if levels == 0:
        if entries < sink + tree.tail + tree.block_size:
            raise _too_few(entries, sink + tree.tail + tree.block_size)
        return _covered(tree, tokens, _ceil(tokens - entries, tree.block_size), [])
    least = entries
    for top in range(1, levels + 1):
        border = (tokens - tree.tail) // tree.block_size * tree.block_size
        zone_entries = max(0, entries - sink - (tokens - border)) // top
        while True:
            starts = _zones(tree, border, zone_entries, top)
            covers = starts[-1] <= sink
            if not covers and top < levels:
                break  # one more level covers more
            dropped = 0 if covers else _ceil(starts[-1] - sink, tree.span(tree.levels))
            found = _covered(tree, tokens, dropped, starts)
            if found.entries <= entries:
                return _filled(found, entries)
            if zone_entries == 0:
                least = found.entries
                break
            zone_entries = max(0, zone_entries - max(1, (found.entries - entries) // top))
    raise _too_few(entries, least)


def _zones(tree: ContextTree, border: int, zone_entries: int, top: int) -> list[int]:
    """Return the first tokens of the zones: the raw one, then LOD1 to `top`, none before the sink."""
    starts = [border]
    for lod in range(1, top + 1):
        unit = tree.span(lod + 1) if lod < top else tree.span(lod)
        start = _ceil(starts[-1] - zone_entries // tree.slots * tree.span(lod), unit)
        if start > starts[-1]:
            start = starts[-1] // unit * unit
        starts.append(max(start, tree.sink * tree.block_size) if lod == top else start)
    return starts


def _covered(tree: ContextTree, tokens: int, dropped: int, starts: list[int]) -> CoveredWindow:
    """Return the window without the dropped tokens, with a zone of LOD l between starts[l] and starts[l - 1]."""
    tree = replace(tree, window=tokens - dropped, tail=min(tree.tail, tokens - dropped))
    first = tree.sink * tree.block_size
    token = torch.arange(tree.blocks) * tree.block_size
    focus = torch.zeros_like(token)
    for lod in range(1, len(starts)):
        span = tree.span(lod)
        # A node is compressed if it is complete: after the sink, and within the zones of its level and above.
        complete = (token // span * span >= first) & ((token // span + 1) * span <= starts[lod - 1] - dropped)
        focus = torch.where(complete, lod, focus)
    return CoveredWindow(tree, dropped, focus[None])


def _filled(window: CoveredWindow, entries: int) -> CoveredWindow:
    """Return the window with the newest gists of LOD1 expanded while entries are left."""
    tree, lod = window.tree, window.focus[0]
    compressed = lod.nonzero()[:, 0]
    if not len(compressed):
        return window
    last = int(compressed[-1]) + 1
    above = (lod[:last] != 1).nonzero()[:, 0]
    run = last - (int(above[-1]) + 1 if len(above) else 0)  # gists of LOD1 in a row before the raw part
    more = min(run, (entries - window.entries) // tree.saving(1))
    focus = window.focus.clone()
    focus[0, last - more : last] = 0
    return replace(window, focus=focus)


def _ceil(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _too_few(entries: int, least: int) -> UserError:
    return UserError(
        f"session.budget: {entries} entries are left for a context that has at least {least}",
        remedy="Raise the budget, or lower the tail, the sink, or refocus_every.",
    )

"""Gists of a history, computed once a node, when its span is complete.

A GistNet that reads embeddings gets the children of a node, and of `context_blocks` nodes to its left, as in the node
table of a training step: the gists equal those of one pass over the complete history.

A GistNet that reads states of the base model, or everything to its left, and the NLL for a LensNet that reads it, need
a pass of the base model, which cannot cover a history without end. The history is cut into segments of half a training
window. The pass of a segment covers it and the half window before it, with positions from 0 as in training, and yields
the states of the segment's own tokens. So a gist depends on where its node is in the history and on the tokens before
it, never on how they were appended. A node longer than half a window begins its own pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcframe.context.working_context import WorkingContext, raw_context
from mcframe.modeling.model import MegaContextModel
from mcframe.runtime.history import History, HistoryShape

_TOKENS_AT_ONCE = 16_384
"""Tokens of the nodes of one GistNet call. On a CPU, four times as many are slower and take five times the memory."""


def history_shape(model: MegaContextModel, vocab_size: int, tokenizer: str = "", identity: str = "") -> HistoryShape:
    """Return the shape of a history of a model.

    Args:
        model: The model that computes the gists.
        vocab_size: Entries of the tokenizer.
        tokenizer: Identity of the tokenizer.
        identity: Identity of the weights.
    """
    tree = model.tree
    return HistoryShape(
        tree.block_size, tree.levels, tree.slots, model.gpt.width, vocab_size, tokenizer, identity,
        with_gists=model.gistnet is not None,
        with_nll=model.lensnet is not None and model.lensnet.reads_nll,
    )  # fmt: skip


class GistEncoder:
    """Compute the gists of a history, and the NLL of its tokens if LensNet reads it.

    Args:
        model: The model, in eval mode.
        history: The history; its damaged gists are computed again.
    """

    def __init__(self, model: MegaContextModel, history: History) -> None:
        self.model, self.history, self.tree = model, history, model.tree
        self.device = model.gpt.device
        self.segment = max(1, self.tree.window // 2 // self.tree.block_size) * self.tree.block_size
        history.repair = self._repair
        self._blocks_done = -1

    @torch.inference_mode()
    def catch_up(self) -> None:
        """Compute what is missing: every gist whose span is complete, and the NLL of complete blocks."""
        blocks = self.history.tokens // self.tree.block_size
        if blocks == self._blocks_done:
            return
        self._blocks_done = blocks
        for lod in self.history.shape.gist_levels:
            complete = self.history.tokens // self.tree.span(lod)
            while (first := self.history.nodes(lod)) < complete:
                last = min(complete, first + max(1, _TOKENS_AT_ONCE // self.tree.span(lod)))
                self.history.append_gists(lod, self.gists(lod, first, last))
        if self.history.shape.with_nll:
            while (first := self.history.known_nll) < blocks * self.tree.block_size:
                last = min(blocks * self.tree.block_size, first + self.segment - first % self.segment)
                self.history.append_nll(self.nll(first, last))

    def gists(self, lod: int, first: int, last: int) -> Tensor:
        """Return the gists [n, G, D] of nodes [first, last) of a level; those of the level below are stored."""
        gistnet = self.model.gistnet
        assert gistnet is not None
        if gistnet.context_blocks is not None and not gistnet.reads_layer:
            begin = max(0, first - gistnet.context_blocks)
            return self._of_children(lod, begin, last)[first - begin :]
        parts = []
        while first < last:
            begin, end = self._segment_of(first, lod)
            stop = min(last, end // self.tree.span(lod))
            start = -(-begin // self.tree.span(lod))
            parts.append(self._of_children(lod, start, max(stop, first + 1), begin)[first - start :])
            first = max(stop, first + 1)
        return torch.cat(parts)

    def nll(self, first: int, last: int) -> Tensor:
        """Return the NLL [last - first], in nats, of tokens of one segment; 0 for the first token of the history."""
        begin = max(0, first // self.segment * self.segment - self.segment)
        tokens = self.history.read_tokens(begin, last).to(self.device)
        hidden = self.model.gpt.hidden(self.model.gpt.embed(tokens[None]), self._raw(tokens))
        nll = F.pad(self.model.gpt.nll(hidden[:, :-1], tokens[None, 1:]), (1, 0))
        return nll[0, first - begin :]

    def _segment_of(self, node: int, lod: int) -> tuple[int, int]:
        """Return the first token of the pass that yields a node, and the end of its segment."""
        span, size = self.tree.span(lod), self.segment
        index = ((node + 1) * span - 1) // size
        return min(max(0, index - 1) * size, node * span), (index + 1) * size

    def _of_children(self, lod: int, first: int, last: int, begin: int | None = None) -> Tensor:
        """Return the gists [n, G, D] of nodes [first, last), which are passed to GistNet together.

        Args:
            lod: The level.
            first, last: The nodes.
            begin: First token of the pass of the base model; None where GistNet reads embeddings.
        """
        gistnet, tree = self.model.gistnet, self.tree
        assert gistnet is not None
        span, nodes = tree.span(lod), last - first
        if lod == 1 or gistnet.reads_tokens:
            tokens = self.history.read_tokens(first * span if begin is None else begin, last * span).to(self.device)
            children = self.model.gpt.embed(tokens[None])
            if begin is not None and gistnet.reads_layer:
                children = self.model.gpt.states_after(children, self._raw(tokens), gistnet.reads_layer)
            if begin is not None:
                children = children[:, first * span - begin :]
            children = children.reshape(1, nodes, span, -1)
        else:
            below = torch.arange(first * tree.block_size, last * tree.block_size)
            children = self.history.read_gists(lod - 1, below).to(self.device).reshape(
                1, nodes, tree.block_size * tree.slots, -1
            )  # fmt: skip
        gists: Tensor = gistnet(children.to(self.model.gpt.dtype), lod)
        return gists[0]

    def _raw(self, tokens: Tensor) -> WorkingContext:
        """Return the context of uncompressed tokens [n]."""
        return raw_context(self.tree, 1, self.device, len(tokens))

    @torch.inference_mode()
    def _repair(self, name: str, first: int, last: int) -> None:
        """Compute damaged rows of the history again."""
        step = self.segment if name == "nll" else max(1, _TOKENS_AT_ONCE // self.tree.span(1))
        while first < last:
            stop = min(last, first + step - first % step)
            rows = self.nll(first, stop) if name == "nll" else self.gists(int(name.removeprefix("lod")), first, stop)
            self.history.overwrite(name, first, rows)
            first = stop

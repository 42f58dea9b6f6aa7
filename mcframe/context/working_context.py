"""A focus unrolled into entries: which node each entry reads, where it stands, what it predicts.

Entry `t` of a row exists where `t % K**lod(t) < slots(lod(t))` and is slot `t % K**lod(t)` of its node. The node's
last slot predicts token `end`, the first one after its span; with `y[t] = x[t + 1]` that target is `y[end - 1]`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mcframe.context.context_tree import ContextTree


@dataclass(frozen=True)
class WorkingContext:
    """Entries of R rows, L entries each; rows that are shorter are padded at the right (`valid` False).

    tree  the tree
    focus     [R, blocks] int64, LOD of every block
    token     [R, L] int64, the token position t that makes the entry (0 where not valid)
    lod       [R, L] int64, level of detail (0 where not valid)
    valid     [R, L] bool
    padded    False where it is known that every entry is valid, so that masks can be omitted
    age       [R, blocks] int64, allocation rounds since each block's LOD changed; None outside of refocusing, where
              no rounds are counted
    nll       [R, L] float32, nats: how hard the uncompressed model found the tokens of the entry's node, see
              `entry_nll.mean_entry_nll`; None but where a LensNet `reads_nll`
    compressed  False where it is known that no entry is a gist
    documents [R, T] int64, the document of every token (`document_numbers`); None where documents are not masked
    """

    tree: ContextTree
    focus: Tensor
    token: Tensor
    lod: Tensor
    valid: Tensor
    padded: bool
    age: Tensor | None = None
    nll: Tensor | None = None
    compressed: bool = True
    documents: Tensor | None = None

    @property
    def length(self) -> int:
        """L, entries a row."""
        return self.token.shape[1]

    @property
    def span(self) -> Tensor:
        """[R, L] tokens that the entry's node covers."""
        return torch.pow(self.tree.block_size, self.lod)

    @property
    def slots(self) -> Tensor:
        """[R, L] slots of the entry's node."""
        return torch.where(self.lod > 0, self.tree.slots, 1)

    @property
    def slot(self) -> Tensor:
        """[R, L] which slot of its node the entry is."""
        return self.token % self.span

    @property
    def start(self) -> Tensor:
        """[R, L] first token of the entry's node."""
        return self.token - self.slot

    @property
    def end(self) -> Tensor:
        """[R, L] first token after the entry's node: what its last slot predicts."""
        return self.start + self.span

    @property
    def predicts(self) -> Tensor:
        """[R, L] bool: the entry is the last slot of its node (and valid), so it has a target."""
        return self.valid & (self.slot == self.slots - 1)

    @property
    def row(self) -> Tensor:
        """[R, L] row of the node table (of the entry's own sequence) that holds its embedding."""
        offset = torch.zeros_like(self.lod)
        for lod in range(1, self.tree.levels + 1):
            below = self.tree.nodes(lod - 1) * self.tree.slots_at(lod - 1)
            offset = offset + (self.lod >= lod) * below
        return offset + self.slots * (self.token // self.span) + self.slot

    @property
    def document(self) -> Tensor | None:
        """[R, L] document of the entry, that of the last token it covers; None where documents are not masked.

        Entries read entries of their own document alone. R is the number of sequences if the context serves all.
        """
        if self.documents is None:
            return None
        return self.documents.gather(1, (self.end - 1).expand(self.documents.shape[0], -1))

    def targets(self, next_tokens: Tensor) -> Tensor:
        """Return target ids [R, L] from next_tokens [R, T], the token after each; undefined where not `predicts`."""
        return next_tokens.gather(1, self.end - 1)

    def positions(self, placement: str = "centre") -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [R, L] float32, in tokens, of the sub-interval that the entry stands for.

        `placement` puts the mean at the sub-interval's centre, start or end.
        """
        width = self.span.float() / self.slots
        first = self.start + self.slot * width
        shift = {"centre": (width - 1) / 2, "start": torch.zeros_like(width), "end": width - 1}[placement]
        return first + shift, ((width**2 - 1).clamp(min=0) / 12).sqrt()

    def before_cursor(self) -> WorkingContext:
        """The entries before the cursor: all that LensNet may see.

        Every row ends with the same `T - cursor` raw tokens, so the cut has one length for all rows.
        """
        keep = self.length - (self.tree.window - self.tree.cursor)
        valid = self.valid[:, :keep] & (self.token[:, :keep] < self.tree.cursor)
        nll = None if self.nll is None else self.nll[:, :keep]
        return replace(self, token=self.token[:, :keep], lod=self.lod[:, :keep], valid=valid, nll=nll)


def document_numbers(tokens: Tensor, separator: int) -> Tensor:
    """Return the document of every token of windows, counted from 0: tokens [B, T] -> int64 [B, T].

    A separator begins a document. As the target of the token before it, it ends one: no target crosses documents.
    """
    return (tokens == separator).cumsum(dim=1)


def with_documents(context: WorkingContext, documents: Tensor | None) -> WorkingContext:
    """Return the context with the documents of its tokens [B, T]; row r belongs to sequence r // (R // B)."""
    if documents is None:
        return context
    repeat = max(1, context.focus.shape[0] // documents.shape[0])
    return replace(context, documents=documents.repeat_interleave(repeat, dim=0))


def own_children(documents: Tensor, tree: ContextTree, lod: int, children: int) -> Tensor:
    """Return which children of the nodes at `lod` are of their node's document, bool [B, nodes, children, 1].

    Args:
        documents: The document of every token [B, T].
        tree: The context tree.
        lod: Level of the nodes, 1 or more.
        children: Embeddings that a node is made of: K * slots(lod - 1), or K**lod tokens.
    """
    nodes, span = tree.nodes(lod), tree.span(lod)
    of_token = documents[:, : nodes * span].reshape(-1, nodes, span)
    slots = 1 if children == span else tree.slots_at(lod - 1)
    width = span * slots // children
    of_child = of_token[..., width - 1 :: width].repeat_interleave(slots, dim=2)
    return (of_child == of_token[..., -1:])[..., None]


def block_lods_to_tokens(focus: Tensor, tree: ContextTree) -> Tensor:
    """[R, blocks] -> [R, T]: the LOD of every token; those beyond the last complete block are raw."""
    lod = focus.repeat_interleave(tree.block_size, dim=1)
    return F.pad(lod, (0, tree.window - lod.shape[1]))


def build_context(focus: Tensor, tree: ContextTree, length: int | None = None) -> WorkingContext:
    """The working contexts of valid focuses [R, blocks], with no Python loop and no host synchronisation.

    `length` promises that every row has exactly that many entries (a row that has not stops the program through an
    assertion on the device); without it rows are padded to T.
    """
    rows, window = focus.shape[0], tree.window
    lod = block_lods_to_tokens(focus, tree)
    token = torch.arange(window, device=focus.device)
    is_entry = token % torch.pow(tree.block_size, lod) < torch.where(lod > 0, tree.slots, 1)
    rank = is_entry.cumsum(dim=1)
    size = window if length is None else length
    if length is not None:
        torch._assert_async((rank[:, -1] == length).all(), "a focus has another length than expected")
    # Entries are written to their index; the last column takes everything that is no entry.
    index = torch.where(is_entry, rank - 1, size).clamp(max=size)
    tokens = token.new_zeros(rows, size + 1).scatter_(1, index, token.expand(rows, -1))[:, :size]
    valid = torch.arange(size, device=focus.device) < rank[:, -1:]
    tokens = torch.where(valid, tokens, 0)
    return WorkingContext(
        tree=tree,
        focus=focus,
        token=tokens,
        lod=torch.where(valid, lod.gather(1, tokens), 0),
        valid=valid,
        padded=length is None,
    )


def trim_padding(context: WorkingContext) -> WorkingContext:
    """Return the context without columns that are padding in every row. Synchronises: not for a training step."""
    longest = max(1, int(context.valid.sum(dim=1).max()))
    valid = context.valid[:, :longest]
    return replace(
        context,
        token=context.token[:, :longest],
        lod=context.lod[:, :longest],
        valid=valid,
        padded=not bool(valid.all()),
    )


def raw_context(tree: ContextTree, rows: int, device: torch.device, length: int | None = None) -> WorkingContext:
    """The uncompressed baseline: every entry a token; of the first `length` tokens, if set."""
    size = tree.window if length is None else length
    token = torch.arange(size, device=device).expand(rows, -1)
    return WorkingContext(
        tree=tree,
        focus=torch.zeros(rows, size // tree.block_size, dtype=torch.long, device=device),
        token=token,
        lod=torch.zeros_like(token),
        valid=torch.ones_like(token, dtype=torch.bool),
        padded=False,
        compressed=False,
    )


def last_entries(context: WorkingContext, first: int) -> WorkingContext:
    """Return the context without its first entries."""
    return replace(context, token=context.token[:, first:], lod=context.lod[:, first:], valid=context.valid[:, first:])


def gather_embeddings(table: Tensor, context: WorkingContext) -> Tensor:
    """Embeddings of every entry, one differentiable gather.

    table [B, table_rows, D] -> [R, L, D]; row r reads sequence r // (R // B).
    """
    sequences, nodes, width = table.shape
    rows = context.focus.shape[0]
    sequence = torch.arange(rows, device=table.device) // (rows // sequences)
    index = context.row + (sequence * nodes)[:, None]
    return table.reshape(sequences * nodes, width).index_select(0, index.flatten()).view(rows, -1, width)

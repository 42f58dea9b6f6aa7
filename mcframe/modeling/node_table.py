"""The node table: the embeddings of every node at every level of detail, built once a micro-batch."""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import own_children
from mcframe.hookspecs import GistNet


def build_node_table(
    tokens: Tensor,
    gistnet: GistNet,
    tree: ContextTree,
    gist_inputs: Tensor | None = None,
    documents: Tensor | None = None,
) -> Tensor:
    """Build the node table with one GistNet call a level.

    Args:
        tokens: Token embeddings [B, T, D].
        gistnet: Compresses the children of each node.
        tree: The context tree.
        gist_inputs: What GistNet reads instead of token embeddings [B, T, D], such as hidden states of the base model.
        documents: The document of every token [B, T]. A node belongs to that of its last token; children of other
            documents are read as 0. None where documents are not masked.

    Returns:
        The node table [B, table_rows, D]: tokens first, then the gists of each level.
    """
    sequences, _, width = tokens.shape
    source = tokens if gist_inputs is None else gist_inputs
    below, levels = source, [tokens]
    for lod in range(1, tree.levels + 1):
        nodes = tree.nodes(lod)
        if nodes == 0:  # the window is shorter than one node of this level
            break
        if gistnet.reads_tokens:
            below, children = source, tree.span(lod)
        else:
            children = tree.block_size * tree.slots_at(lod - 1)
        read = below[:, : nodes * children].reshape(sequences, nodes, children, width)
        if documents is not None:
            read = torch.where(own_children(documents, tree, lod, children), read, 0.0)
        gists = gistnet(read, lod)
        below = gists.reshape(sequences, nodes * tree.slots, width)
        levels.append(below)
    return torch.cat(levels, dim=1)

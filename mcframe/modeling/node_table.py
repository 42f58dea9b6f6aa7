"""The node table: the embeddings of every node at every level of detail, built once a micro-batch."""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.geometry import Geometry
from mcframe.hookspecs import GistNet
from mcframe.plugin_contract import expect


def build_node_table(tokens: Tensor, gistnet: GistNet, geometry: Geometry, readable: Tensor | None = None) -> Tensor:
    """Token embeddings [B, T, D] -> node table [B, table_rows, D], with one GistNet call a level.

    readable [B, T, D]: what the GistNet reads in place of the tokens' embeddings, such as hidden states of the base
    model. Raises Breach where a GistNet returns another shape or type than the interface asks for.
    """
    sequences, _, width = tokens.shape
    source = tokens if readable is None else readable
    below, levels = source, [tokens]
    for lod in range(1, geometry.levels + 1):
        nodes = geometry.nodes(lod)
        if nodes == 0:  # the window is shorter than one node of this level
            break
        if gistnet.reads_tokens:
            below, children = source, geometry.span(lod)
        else:
            children = geometry.block_size * geometry.slots_at(lod - 1)
        gists = gistnet(below[:, : nodes * children].reshape(sequences, nodes, children, width), lod)
        expect(
            gistnet, "forward", f"gists [B, nodes, G, D] of LOD{lod}", gists,
            (sequences, nodes, geometry.slots, width), source.dtype,
        )  # fmt: skip
        below = gists.reshape(sequences, nodes * geometry.slots, width)
        levels.append(below)
    return torch.cat(levels, dim=1)

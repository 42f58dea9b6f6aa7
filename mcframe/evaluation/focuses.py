"""Focuses that evaluations impose: nodes of one level collapsed at random, or those of lowest value."""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.focus import compressible_nodes, lowest, over_blocks
from mcframe.context.geometry import Geometry
from mcframe.context.seeding import priorities


def nodes_to_collapse(geometry: Geometry, lod: int, target: int) -> int:
    """How many nodes at `lod`, and nothing else, must be collapsed for at most `target` entries.

    It may be more than `Geometry.compressible_nodes(lod)`: then the target is out of reach.
    """
    return max(0, -((target - geometry.window) // geometry.saving(lod)))


def entries(geometry: Geometry, fraction: float) -> int:
    """A fraction of the window in entries; a hair of rounding must not cost one."""
    return int(fraction * geometry.window + 1e-9)


def collapse_lowest(values: Tensor, geometry: Geometry, lod: int, count: int) -> Tensor:
    """The focus that keeps what is worth most: `count` nodes of the lowest values are collapsed, all else is raw.

    values [..., nodes(lod)] -> [..., blocks] int64. Protected nodes are never collapsed; of equals the left one goes
    first.
    """
    allowed = compressible_nodes(geometry, lod, values.device).expand_as(values)
    chosen = lowest(values, allowed, torch.full(values.shape[:-1], count, device=values.device))
    return over_blocks(chosen, geometry, lod).long() * lod


def random_focus(seeds: Tensor, geometry: Geometry, lod: int, count: int) -> Tensor:
    """`count` random nodes at `lod` collapsed, each set as likely as any other: seeds [...] -> [..., blocks] int64."""
    return collapse_lowest(priorities(seeds, geometry.nodes(lod)), geometry, lod, count)

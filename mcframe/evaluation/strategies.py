"""Which blocks stay raw: five ways to choose, at one budget. All but `oracle` read only what is before the cursor."""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.focus import compressible_nodes
from mcframe.context.geometry import Geometry
from mcframe.context.seeding import variant_seeds
from mcframe.context.surprise import of_blocks
from mcframe.errors import UserError
from mcframe.evaluation.focuses import collapse_lowest, nodes_to_collapse, random_focus
from mcframe.evaluation.regions import behind_cursor
from mcframe.hookspecs import HeldOut, Subject

STRATEGIES = ("random", "recency", "surprise", "lens", "oracle")


def recency_values(geometry: Geometry, rows: int) -> Tensor:
    """The later, the more: [rows, blocks]."""
    return torch.arange(geometry.blocks, dtype=torch.float32).expand(rows, -1)


def oracle_values(subject: Subject, held: HeldOut, full: Tensor) -> Tensor:
    """What each block is worth behind the cursor: mean NLL when it alone is dropped, minus the uncompressed [n, T].

    -> [n, blocks]; 0 for blocks that may not be collapsed. It reads the targets that judge: nobody else may.
    """
    geometry = subject.geometry
    free = compressible_nodes(geometry, 1, full.device).nonzero().flatten()
    counts = judged_targets(held, geometry)
    values = torch.zeros(full.shape[0], geometry.blocks)
    for block in free.tolist():
        alone = torch.zeros(full.shape[0], geometry.blocks, dtype=torch.long)
        alone[:, block] = 1
        nll, _ = subject.judge(held.tokens, alone, "drop")
        values[:, block] = torch.where(counts, nll - full, 0.0).sum(dim=1) / counts.sum(dim=1).clamp(min=1)
    return values


def judged_targets(held: HeldOut, geometry: Geometry) -> Tensor:
    """[n, T] bool: targets behind the cursor that count and that follow a token which is raw in every focus.

    Where a block ends at the cursor, the first target behind it is that block's own, and nobody's where it is dropped.
    """
    always_raw = torch.arange(geometry.window) >= geometry.cursor // geometry.block_size * geometry.block_size
    return held.scored & behind_cursor(geometry) & always_raw


class Strategies:
    """Focuses of held-out sequences at any budget; what does not depend on the budget is measured once.

    draws  random focuses of each sequence
    """

    def __init__(self, subject: Subject, held: HeldOut, draws: int) -> None:
        self._subject, self._tokens = subject, held.tokens
        geometry, rows = subject.geometry, held.tokens.shape[0]
        raw = torch.zeros(rows, geometry.blocks, dtype=torch.long)
        self.full, self.full_right = subject.judge(held.tokens, raw, "full")
        self._seeds = variant_seeds(subject.seed, torch.arange(rows), draws)
        self._values = {
            "recency": recency_values(geometry, rows),
            "surprise": of_blocks(self.full, geometry),
            "oracle": oracle_values(subject, held, self.full),
        }

    def focuses(self, budget: int, notes: list[str]) -> dict[str, Tensor]:
        """Each strategy's focuses [n, V, blocks] of at most `budget` entries; V is 1 but for `random`.

        The allocator may use every level; the other strategies collapse blocks to LOD1. `notes` tells of a budget that
        the allocator's own settings put out of its reach.
        """
        geometry = self._subject.geometry
        count = nodes_to_collapse(geometry, 1, budget)
        found = {"random": random_focus(self._seeds, geometry, 1, count)}
        for name, values in self._values.items():
            found[name] = collapse_lowest(values, geometry, 1, count)[:, None]
        if self._subject.has_lens:
            try:
                found["lens"] = self._subject.refocus(self._tokens, budget)[:, None]
            except UserError as error:
                notes.append(f"no focus of LensNet at {budget} entries: {error.message}")
        return {name: found[name] for name in STRATEGIES if name in found}

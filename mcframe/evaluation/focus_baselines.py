"""Which blocks stay raw: five ways to choose, at one budget. All but `oracle` read only what is before the cursor."""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import variant_seeds
from mcframe.context.entry_nll import mean_block_nll
from mcframe.context.focus_ops import compressible_nodes
from mcframe.errors import UserError
from mcframe.evaluation.collapse import collapse_lowest, nodes_to_collapse, random_focus
from mcframe.evaluation.target_subsets import after_cursor
from mcframe.hookspecs import EvalData, EvalModel

STRATEGIES = ("random", "recency", "surprise", "lens", "oracle")


def recency_values(tree: ContextTree, rows: int) -> Tensor:
    """The later, the more: [rows, blocks]."""
    return torch.arange(tree.blocks, dtype=torch.float32).expand(rows, -1)


def oracle_values(subject: EvalModel, held: EvalData, full: Tensor) -> Tensor:
    """What each block is worth behind the cursor: mean NLL when it alone is dropped, minus the uncompressed [n, T].

    -> [n, blocks]; 0 for blocks that may not be collapsed. It reads the targets that judge: nobody else may.
    """
    tree = subject.tree
    free = compressible_nodes(tree, 1, full.device).nonzero().flatten()
    counts = tail_targets(held, tree)
    values = torch.zeros(full.shape[0], tree.blocks)
    for block in free.tolist():
        alone = torch.zeros(full.shape[0], tree.blocks, dtype=torch.long)
        alone[:, block] = 1
        nll, _ = subject.score(held.tokens, alone, "drop")
        values[:, block] = torch.where(counts, nll - full, 0.0).sum(dim=1) / counts.sum(dim=1).clamp(min=1)
    return values


def tail_targets(held: EvalData, tree: ContextTree) -> Tensor:
    """[n, T] bool: targets behind the cursor that count and that follow a token which is raw in every focus.

    Where a block ends at the cursor, the first target behind it is that block's own, and nobody's where it is dropped.
    """
    always_raw = torch.arange(tree.window) >= tree.cursor // tree.block_size * tree.block_size
    return held.loss_mask & after_cursor(tree) & always_raw


class Strategies:
    """Focuses of held-out sequences at any budget; what does not depend on the budget is measured once.

    draws  random focuses of each sequence
    """

    def __init__(self, subject: EvalModel, held: EvalData, draws: int) -> None:
        self._subject, self._tokens = subject, held.tokens
        tree, rows = subject.tree, held.tokens.shape[0]
        raw = torch.zeros(rows, tree.blocks, dtype=torch.long)
        self.full, self.full_right = subject.score(held.tokens, raw, "full")
        self._seeds = variant_seeds(subject.seed, torch.arange(rows), draws)
        self._values = {
            "recency": recency_values(tree, rows),
            "surprise": mean_block_nll(self.full, tree),
            "oracle": oracle_values(subject, held, self.full),
        }

    def focuses(self, budget: int, notes: list[str]) -> dict[str, Tensor]:
        """Each strategy's focuses [n, V, blocks] of at most `budget` entries; V is 1 but for `random`.

        The allocator may use every level; the other strategies collapse blocks to LOD1. `notes` tells of a budget that
        the allocator's own settings put out of its reach.
        """
        tree = self._subject.tree
        count = nodes_to_collapse(tree, 1, budget)
        found = {"random": random_focus(self._seeds, tree, 1, count)}
        for name, values in self._values.items():
            found[name] = collapse_lowest(values, tree, 1, count)[:, None]
        if self._subject.has_lens:
            try:
                found["lens"] = self._subject.refocus(self._tokens, budget)[:, None]
            except UserError as error:
                notes.append(f"no focus of LensNet at {budget} entries: {error.message}")
        return {name: found[name] for name in STRATEGIES if name in found}

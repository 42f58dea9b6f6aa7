"""Variable tracking (after RULER, arXiv 2404.06654): a chain of assignments, and a question for the last name's value.

The first assignment of a chain sets a name to a value, each further one sets a new name to the name before.
Chains have different names and values. The assignments of a chain are in different blocks, in order. The question, a
marker and the last name of the first chain, is right before the cursor, and the value right after it. With
blocks of 8, two chains and one hop:

    ab!A7cde|!Bxfabgh|cd!CAfgd|a!DBhgfe|ab!C7
      ^^^ A is 7         ^^^ C is A         ^ cursor
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcframe.bounds import Count, NonNegativeInt, Size
from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import hash_combine, randint, random_keys
from mcframe.data.synthetic.layout import check_room, collapsible, single_answer
from mcframe.data.synthetic.needle import MARKER
from mcframe.data.synthetic.recall import FIRST_KEY
from mcframe.errors import require
from mcframe.hookspecs import SyntheticBatch, SyntheticTask

_QUESTION, _ASSIGNMENT = 2, 3


class VariableTracking(SyntheticTask):
    """Chains of assignments in blocks of their own, and a question for the value of a chain's last name.

    The block of the cursor needs 2 tokens before the cursor, so T - `context.tail` must leave 2 or more when divided
    by K.

    Source:
        RULER (Hsieh et al., arXiv 2404.06654).

    Args:
        hops: Assignments of a chain after the first one.
        chains: Chains; the question is about one of them.
        names: Names of the vocabulary; at least one for each assignment.
        values: Values of the vocabulary; at least one for each chain. Chance is one in that many.
        filler: Entries of the vocabulary of the noise.
    """

    def __init__(
        self,
        tree: ContextTree,
        *,
        hops: NonNegativeInt = 1,
        chains: Count = 2,
        names: Size = 32,
        values: Size = 16,
        filler: Size = 27,
    ) -> None:
        self.tree, self.hops, self.chains = tree, hops, chains
        self.names, self.values, self.filler = names, values, filler
        self.blocks = collapsible(tree)
        self.first_value = FIRST_KEY + names
        self.first_filler = self.first_value + values
        self.vocab_size = self.first_filler + filler
        check_room(tree, "variable_tracking", _QUESTION, 1)
        self.assignments = chains * (hops + 1)
        for name, least in {"names": self.assignments, "values": max(2, chains), "filler": 1}.items():
            require(
                getattr(self, name) >= least, f"task.variable_tracking.{name}", getattr(self, name), f"{least} or more"
            )
        size = tree.block_size
        require(
            size >= _ASSIGNMENT, "context.block_size", size, f"{_ASSIGNMENT} or more for the variable_tracking task"
        )
        most = len(self.blocks) // chains - 1
        rule = (
            f"from 0 to {most}, since each of the {self.assignments} assignments has one of {len(self.blocks)} blocks"
        )
        require(hops <= most, "task.variable_tracking.hops", hops, rule)
        self.chance = 1 / values

    @property
    def identity(self) -> str:
        """A string that changes with everything that determines the sequences."""
        sizes = f"{self.hops} {self.chains} {self.names} {self.values} {self.filler}"
        return f"variable_tracking-1 {self.tree} {sizes}"

    def generate(self, seeds: Tensor) -> SyntheticBatch:
        """Return sequences [B, T + 1] for seeds [B]."""
        rows, cursor, size = len(seeds), self.tree.cursor, self.tree.block_size
        name = FIRST_KEY + random_keys(hash_combine(seeds, 1), self.names).argsort(dim=1)[:, : self.assignments]
        name = name.view(rows, self.chains, self.hops + 1)
        value = self.first_value + random_keys(hash_combine(seeds, 2), self.values).argsort(dim=1)[:, : self.chains]
        source = torch.cat((value[..., None], name[..., :-1]), dim=2)  # what each name is set to
        assignment = torch.stack((torch.full_like(name, MARKER), name, source), dim=-1)
        start = self._starts(seeds)
        tokens = self.first_filler + randint(random_keys(hash_combine(seeds, 3), self.tree.window + 1), self.filler)
        positions = start[..., None] + torch.arange(_ASSIGNMENT)
        tokens.scatter_(1, positions.flatten(1), assignment.flatten(1))
        tokens[:, cursor - _QUESTION] = MARKER
        tokens[:, cursor - 1], tokens[:, cursor] = name[:, 0, -1], value[:, 0]
        assert start.max() < cursor // size * size
        return single_answer(self.tree, tokens, start[:, 0, :1] + _ASSIGNMENT - 1)

    def _starts(self, seeds: Tensor) -> Tensor:
        """Return the first token of each assignment [B, chains, hops + 1]: a chain's are in ascending blocks."""
        count, size = self.assignments, self.tree.block_size
        order = random_keys(hash_combine(seeds, 4), len(self.blocks)).argsort(dim=1)[:, :count]
        block = self.blocks[0] + order.view(-1, self.chains, self.hops + 1).sort(dim=2).values
        offset = randint(random_keys(hash_combine(seeds, 5), count), size - _ASSIGNMENT + 1)
        return block * size + offset.view_as(block)

"""One call of a plug-in with its inputs, in a form that checks of every kind share.

A trial knows how to call the plug-in, how to choose some of the rows of its inputs, and which tensors they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from mcframe.context.geometry import Geometry
from mcframe.testing.candidate import Candidate
from mcframe.testing.examples import SEEDS, geometries


@dataclass(frozen=True)
class Trial(ABC):
    """A plug-in that is built, and what it is called with.

    part      what the factory made, in eval mode where it is a network
    geometry  what it was made for
    """

    part: Any
    geometry: Geometry

    @abstractmethod
    def run(self) -> Tensor:
        """Call the plug-in. One row of the result belongs to one row of the inputs."""

    @property
    @abstractmethod
    def inputs(self) -> dict[str, Tensor]:
        """The tensors that it is called with; the first dimension of each is rows."""

    @abstractmethod
    def with_inputs(self, inputs: dict[str, Tensor]) -> Trial:
        """The same call with other tensors."""

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.inputs.values())))

    def chosen(self, rows: list[int]) -> Trial:
        """The same call with these rows alone, in this order; a row may occur more than once."""
        return self.with_inputs({name: tensor[rows] for name, tensor in self.inputs.items()})


@dataclass(frozen=True)
class GistTrial(Trial):
    """children [B, nodes, C, D] at one level."""

    children: Tensor
    lod: int

    def run(self) -> Tensor:
        """Gists [B, nodes, G, D]."""
        gists: Tensor = self.part(self.children, self.lod)
        return gists

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The children."""
        return {"children": self.children}

    def with_inputs(self, inputs: dict[str, Tensor]) -> GistTrial:
        """Other children."""
        return replace(self, children=inputs["children"])


def gist_trials(
    candidate: Candidate, *, lod: int | None = None, min_blocks: int = 1, rows: int = 3
) -> st.SearchStrategy[Callable[[], GistTrial]]:
    """Calls of a GistNet at every level, with weights stirred so that everything in it takes part."""

    def trial(geometry: Geometry, level: int, seed: int) -> Callable[[], GistTrial]:
        def make() -> GistTrial:
            part = stirred(candidate.build(geometry, seed=seed), seed)
            at = min(level if lod is None else lod, deepest(geometry))
            shape = (rows, geometry.nodes(at), children_of(part, geometry, at), candidate.width)
            return GistTrial(part, geometry, randn(shape, seed), at)

        return make

    return st.builds(trial, geometries(min_blocks=min_blocks), st.integers(1, 2), SEEDS)


def children_of(gistnet: Any, geometry: Geometry, lod: int) -> int:
    """Children of a node at `lod`, as the framework counts them."""
    return geometry.span(lod) if gistnet.reads_tokens else geometry.block_size * geometry.slots_at(lod - 1)


def deepest(geometry: Geometry) -> int:
    """The highest level of which the window holds a node."""
    return max(lod for lod in range(1, geometry.levels + 1) if geometry.nodes(lod))


def randn(shape: tuple[int, ...], seed: int) -> Tensor:
    """Normal numbers of a seed, float32, whatever torch's own random state is."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stirred(part: Any, seed: int) -> Any:
    """A network in eval mode with noise on every parameter: what starts at zero must not hide what it will do."""
    if isinstance(part, nn.Module):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        part.eval()
    return part


TRIALS: dict[str, Callable[[Candidate], st.SearchStrategy[Callable[[], Trial]]]] = {
    "gistnet": gist_trials,
}
"""Calls of a plug-in of each kind."""

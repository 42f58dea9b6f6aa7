"""One call of a part of a model with its inputs, in a form that checks of every kind share.

A trial knows how to call the plug-in, which tensors it is called with, and how to choose some of their rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import WorkingContext
from mcframe.hookspecs import Sequences


@dataclass(frozen=True)
class PluginCall(ABC):
    """A plug-in that is built, and what it is called with.

    part      what the factory made, in eval mode where it is a network
    tree  what it was made for
    """

    part: Any
    tree: ContextTree

    @abstractmethod
    def run(self) -> Tensor:
        """Call the plug-in. One row of the result belongs to one row of the inputs."""

    @property
    @abstractmethod
    def inputs(self) -> dict[str, Tensor]:
        """The tensors that it is called with; the first dimension of each is rows."""

    @abstractmethod
    def given(self, **inputs: Any) -> PluginCall:
        """The same call with some tensors exchanged."""

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.inputs.values())))

    def chosen(self, rows: list[int]) -> PluginCall:
        """The same call with these rows alone, in this order; a row may occur more than once."""
        return self.given(**{name: tensor[rows] for name, tensor in self.inputs.items()})

    def of(self, part: Any) -> PluginCall:
        """The same call of another object, such as a copy."""
        return replace(self, part=part)


@dataclass(frozen=True)
class GistNetCall(PluginCall):
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

    def given(self, **inputs: Any) -> GistNetCall:
        """Other children."""
        return replace(self, **inputs)


@dataclass(frozen=True)
class _ContextTrial(PluginCall):
    """Something that reads a working context."""

    context: WorkingContext

    @property
    def _of_context(self) -> dict[str, Tensor]:
        context = self.context
        found = {"focus": context.focus, "token": context.token, "lod": context.lod, "valid": context.valid}
        optional = {"age": context.age, "nll": context.nll}
        return found | {name: tensor for name, tensor in optional.items() if tensor is not None}

    def _context_of(self, inputs: dict[str, Tensor]) -> WorkingContext:
        fields: dict[str, Any] = {name: inputs.pop(name) for name in self._of_context if name in inputs}
        return replace(self.context, **fields)


@dataclass(frozen=True)
class LensNetCall(_ContextTrial):
    """Entries before the cursor and their embeddings [R, L, D]."""

    embeddings: Tensor

    def run(self) -> Tensor:
        """Scores [R, L]; 0 where there is no entry, for what stands there is nobody's business."""
        scores: Tensor = self.part(self.context, self.embeddings)
        fits = scores.shape == self.context.valid.shape
        return torch.where(self.context.valid, scores, 0.0) if fits else scores

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The embeddings and the context's tensors."""
        return {"embeddings": self.embeddings, **self._of_context}

    def given(self, **inputs: Any) -> LensNetCall:
        """Other embeddings, or another context."""
        return replace(self, context=self._context_of(inputs), **inputs)


@dataclass(frozen=True)
class AllocatorCall(_ContextTrial):
    """scores [R, L] of the entries of a context, seeds [R] and a budget in entries."""

    scores: Tensor
    seeds: Tensor
    budget: int

    def run(self) -> Tensor:
        """The next focus [R, blocks]."""
        focus: Tensor = self.part.allocate(self.scores, self.context, self.budget, self.seeds)
        return focus

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Scores, seeds and the context's tensors."""
        return {"scores": self.scores, "seeds": self.seeds, **self._of_context}

    def given(self, **inputs: Any) -> AllocatorCall:
        """Other scores or seeds, or another context."""
        return replace(self, context=self._context_of(inputs), **inputs)


@dataclass(frozen=True)
class VariantsCall(PluginCall):
    """tokens [B, T], seeds [B, V] and a reachable length; scores [B, cursor] where they are asked for."""

    tokens: Tensor
    seeds: Tensor
    scores: Tensor | None
    length: int

    def run(self) -> Tensor:
        """Focuses [B, V, blocks]."""
        sequences = Sequences(self.tokens, self.tree)
        focus: Tensor = self.part.propose(sequences, self.scores, self.length, self.seeds)
        return focus

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Tokens, seeds and scores."""
        scores = {} if self.scores is None else {"scores": self.scores}
        return {"tokens": self.tokens, "seeds": self.seeds, **scores}

    def given(self, **inputs: Any) -> VariantsCall:
        """Other tokens, seeds or scores."""
        return replace(self, **inputs)

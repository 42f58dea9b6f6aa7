"""Random calls of plug-ins that a training step makes, in one form for all their kinds."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import variant_seeds
from mcframe.context.working_context import WorkingContext, build_context, raw_context
from mcframe.hookspecs import Sequences
from mcframe.testing.examples import SEEDS, trees
from mcframe.testing.plugin_under_test import PLAIN, VOCABULARY, PluginUnderTest
from mcframe.testing.training_step import build_step, loss_term, some_tokens, step_seeds

CONTEXTS = ("raw", "equal", "padded")
"""Uncompressed; of one length, as in a training step; of several lengths, padded at the right."""

_CONTEXT_TENSORS = ("focus", "token", "lod", "valid", "age", "nll")


@dataclass(frozen=True)
class Example:
    """The random choices of a call.

    Attributes:
        tree: The tree that the plug-in is built for. Losses ignore it: their step has a tree of its own.
        seed: Seed of parameters and inputs.
        rows: Number of rows.
        context: One of `CONTEXTS`.
        fraction: Position of a budget or length between the shortest one and T.
        lod: Level of a GistNet's nodes, reduced to one that has nodes.
    """

    tree: ContextTree
    seed: int = 0
    rows: int = 3
    context: str = "equal"
    fraction: float = 0.5
    lod: int = 1


@dataclass(frozen=True)
class PluginCall:
    """One call of a built plug-in.

    Attributes:
        kind: The kind of the plug-in.
        part: The instance, in eval mode if it is a network; for a loss, the training step that contains it.
        tree: The tree that it was built for.
        inputs: The tensors of the call by name; the first dimension of each is rows.
        template: The working context whose tensors are among the inputs, for kinds that take one.
        number: LOD of a GistNet, budget of an allocator, length of a variant strategy.
        width: D.
    """

    kind: str
    part: Any
    tree: ContextTree
    inputs: Mapping[str, Tensor]
    template: WorkingContext | None = None
    number: int = 0
    width: int = 16

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(next(iter(self.inputs.values())))

    @property
    def context(self) -> WorkingContext:
        """The working context of the call."""
        assert self.template is not None
        fields: dict[str, Any] = {name: self.inputs[name] for name in _CONTEXT_TENSORS if name in self.inputs}
        return replace(self.template, **fields)

    def replacing(self, **inputs: Tensor) -> PluginCall:
        """Return the same call with other tensors."""
        return replace(self, inputs={**self.inputs, **inputs})

    def select(self, rows: list[int]) -> PluginCall:
        """Return the same call with these rows in this order."""
        return self.replacing(**{name: tensor[rows] for name, tensor in self.inputs.items()})

    def of(self, part: Any) -> PluginCall:
        """Return the same call of another object, such as a copy."""
        return replace(self, part=part)

    def run(self) -> Tensor:
        """Call the plug-in and return its result, rows first. Scores of padding are set to 0."""
        inputs, part = self.inputs, self.part
        match self.kind:
            case "gistnet":
                result = part(inputs["children"], self.number)
            case "lensnet":
                context = self.context
                scores = part(context, inputs["embeddings"])
                fits = scores.shape == context.valid.shape
                result = torch.where(context.valid, scores, 0.0) if fits else scores
            case "allocator":
                result = part.allocate(inputs["scores"], self.context, self.number, inputs["seeds"])
            case "variants":
                sequences = Sequences(inputs["tokens"], self.tree)
                result = part.propose(sequences, inputs.get("scores"), self.number, inputs["seeds"])
            case "base":
                states = part.states(inputs["embeddings"], self.context)[0]
                result = torch.where(self.context.valid[..., None], states, 0.0)
            case "positions":
                result = torch.stack(part(self.context), dim=1)
            case _:
                result = loss_term(part, inputs["tokens"], inputs["seeds"]).loss
        return result  # type: ignore[no-any-return]


def make_call(plugin: PluginUnderTest, example: Example) -> PluginCall:
    """Build the plug-in and the inputs of a call. Raises UserError if the plug-in declines the tree."""
    part = plugin.build(example.tree, seed=example.seed)
    if isinstance(part, nn.Module):
        part = perturbed(part, example.seed)
    if plugin.kind == "loss":
        part = build_step("loss", part, plugin.width)
    inputs, template, number = _INPUTS[plugin.kind](part, example, plugin.width)
    return PluginCall(plugin.kind, part, example.tree, inputs, template, number, plugin.width)


def calls(plugin: PluginUnderTest, **fixed: Any) -> st.SearchStrategy[Callable[[], PluginCall]]:
    """Return a strategy of calls on trees of all proportions; `fixed` are strategies for fields of `Example`."""
    if plugin.kind == "loss":  # its step has a tree of its own and takes long, so that only the seed differs
        return st.sampled_from([lambda seed=seed: make_call(plugin, Example(PLAIN, seed)) for seed in (1, 2)])
    drawn: dict[str, Any] = {
        "tree": trees().filter(lambda tree: plugin.kind != "lensnet" or tree.cursor > 0),
        "seed": SEEDS,
        "context": st.sampled_from(CONTEXTS),
        "fraction": st.floats(0, 1),
        "lod": st.integers(1, 2),
    }
    return st.builds(Example, **drawn | fixed).map(lambda example: lambda: make_call(plugin, example))


Inputs = tuple[dict[str, Tensor], WorkingContext | None, int]


def _gistnet(part: Any, example: Example, width: int) -> Inputs:
    tree = example.tree
    lod = max(level for level in range(1, example.lod + 1) if tree.nodes(level) and level <= tree.levels)
    children = tree.span(lod) if part.reads_tokens else tree.block_size * tree.slots_at(lod - 1)
    return {"children": randn((example.rows, tree.nodes(lod), children, width), example.seed)}, None, lod


def _lensnet(part: Any, example: Example, width: int) -> Inputs:
    context = working_context(example).before_cursor()
    if part.reads_nll:
        nll = 3 * randn((example.rows, context.length), example.seed).abs() * context.valid
        context = replace(context, nll=nll)
    embeddings = randn((example.rows, context.length, width), example.seed)
    return {"embeddings": embeddings, **_tensors(context)}, context, 0


def _allocator(part: Any, example: Example, width: int) -> Inputs:
    tree, reachable = example.tree, reachable_tree(part, example.tree)
    context = working_context(replace(example, tree=reachable)).before_cursor()
    # No block has changed in the first round of a refocus; outside of one, rounds are not counted.
    age = torch.full_like(context.focus, torch.iinfo(torch.int32).max) if example.seed % 2 else None
    context = replace(context, tree=tree, age=age)
    generator = torch.Generator().manual_seed(example.seed)
    scores = torch.rand(example.rows, context.length, generator=generator) * 2 - 1
    seeds = torch.randint(2**62, (example.rows,), generator=generator)
    return {"scores": scores, "seeds": seeds, **_tensors(context)}, context, _between(reachable, example.fraction)


def _variants(part: Any, example: Example, width: int) -> Inputs:
    tree, generator = example.tree, torch.Generator().manual_seed(example.seed)
    tokens = torch.randint(VOCABULARY, (example.rows, tree.window), generator=generator)
    scores = torch.rand(example.rows, tree.cursor, generator=generator) * 2 - 1
    inputs = {"tokens": tokens, "seeds": variant_seeds(example.seed, torch.arange(example.rows), part.count)}
    length, _ = tree.reachable(_between(tree, example.fraction))
    return {**inputs, **({"scores": scores} if part.needs_scores else {})}, None, length


def _base(part: Any, example: Example, width: int) -> Inputs:
    context = working_context(example)
    embeddings = randn((example.rows, context.length, part.width), example.seed)
    return {"embeddings": embeddings, **_tensors(context)}, context, 0


def _positions(part: Any, example: Example, width: int) -> Inputs:
    context = working_context(example)
    return _tensors(context), context, 0


def _loss(part: Any, example: Example, width: int) -> Inputs:
    tokens, seeds = some_tokens(example.seed, example.rows), step_seeds(part, example.seed, example.rows)
    return {"tokens": tokens, "seeds": seeds}, None, 0


_INPUTS: Mapping[str, Callable[[Any, Example, int], Inputs]] = {
    "base": _base, "gistnet": _gistnet, "lensnet": _lensnet, "allocator": _allocator, "variants": _variants,
    "positions": _positions, "loss": _loss,
}  # fmt: skip


def working_context(example: Example) -> WorkingContext:
    """Return contexts of random focuses, of one of the `CONTEXTS`."""
    tree, rows, generator = example.tree, example.rows, random.Random(example.seed)
    if example.context == "raw":
        return raw_context(tree, rows, torch.device("cpu"))
    if example.context == "equal":
        focus = torch.tensor([random_focus(tree, generator)] * rows).view(rows, -1)
        return build_context(focus, tree, int(build_context(focus[:1], tree).valid.sum()))
    return build_context(torch.tensor([random_focus(tree, generator) for _ in range(rows)]).view(rows, -1), tree)


def random_focus(tree: ContextTree, generator: random.Random) -> list[int]:
    """Return a valid focus that compresses each compressible node with one random probability."""
    probability, focus = generator.choice((0.2, 0.5, 0.8)), [0] * tree.blocks
    for lod in range(tree.levels, 0, -1):
        width = tree.span(lod - 1)
        for node, allowed in enumerate(tree.compressible[lod - 1]):
            blocks = range(node * width, (node + 1) * width)
            if allowed and not any(focus[block] for block in blocks) and generator.random() < probability:
                for block in blocks:
                    focus[block] = lod
    return focus


def reachable_tree(allocator: Any, tree: ContextTree) -> ContextTree:
    """Return the tree without the levels above the allocator's `highest_lod`."""
    return replace(tree, levels=min(tree.levels, allocator.highest_lod or tree.levels))


def _between(tree: ContextTree, fraction: float) -> int:
    """Return a number of entries between the shortest context and T."""
    return tree.minimum_length + round(fraction * (tree.window - tree.minimum_length))


def _tensors(context: WorkingContext) -> dict[str, Tensor]:
    found = {name: getattr(context, name) for name in _CONTEXT_TENSORS}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def randn(shape: tuple[int, ...], seed: int) -> Tensor:
    """Return normal numbers of a seed in float32, independent of torch's random state."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def perturbed(part: nn.Module, seed: int) -> nn.Module:
    """Return the network in eval mode with noise on every parameter, so that zero initialisation hides nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return part.eval()

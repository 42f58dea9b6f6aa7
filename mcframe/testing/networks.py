"""Requirements of GistNets and LensNets: the form of results, their dependencies, and their behaviour as modules."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import build_context, with_documents
from mcframe.hookspecs import TrainableModule
from mcframe.testing.assertions import expect
from mcframe.testing.calls import Example, PluginCall, calls, make_call, perturbed, randn
from mcframe.testing.examples import SEEDS
from mcframe.testing.host_sync import random_states, same
from mcframe.testing.kinds import NETWORKS
from mcframe.testing.plugin_under_test import PLAIN, PluginUnderTest
from mcframe.testing.requirements import PURE, Capability, requirement
from mcframe.testing.training_step import TREE as STEP_TREE
from mcframe.testing.training_step import contexts, lens_scores, some_tokens, step_with, without_gradient

TREE = ContextTree(window=66, block_size=4, levels=2, slots=2, tail=9)
NODES = 5
"""The least number of nodes with some before and some after the middle one."""

PARAMETERS = Capability(
    "it has parameters", "it has no parameters", lambda part: next(iter(part.parameters()), None) is not None
)


# ---- GistNets --------------------------------------------------------------------------------------
@requirement(
    "G1", "Gists have the shape [B, nodes, G, D] and the dtype of the children, and are finite", "gistnet",
    over=calls, examples=10, after=("P6",),
)  # fmt: skip
def g1_form(call: PluginCall) -> None:
    """For odd sizes, every level, several slots, float32 and bfloat16, and children of all scales, zeros included."""
    children = call.inputs["children"]
    expected = [*children.shape[:2], call.tree.slots, call.width]
    for scale in (1.0, 0.0, 1e-4, 1e3):
        gists = call.replacing(children=children * scale).run()
        problem = f"children {list(children.shape)} at LOD {call.number}: expected {expected}, got {list(gists.shape)}"
        expect(list(gists.shape) == expected, problem)
        expect(bool(gists.isfinite().all()), f"children of scale {scale} made gists that are not finite")
    for dtype in (torch.float32, torch.bfloat16):
        gists = call.of(call.part.to(dtype)).replacing(children=children.to(dtype)).run()
        expect(gists.dtype == dtype, f"children of {dtype} made gists of {gists.dtype}")


@requirement("G2", "The declarations are consistent", "gistnet", after=("P6",))
def g2_declared(plugin: PluginUnderTest) -> None:
    """`context_blocks`, `reads_layer`, `reads_tokens`. States of the base model depend on everything before them."""
    net = plugin.specimen
    window, layer = net.context_blocks, net.reads_layer
    number = isinstance(window, int) and not isinstance(window, bool) and window >= 0
    expect(window is None or number, f"context_blocks is {window!r}, expected a number of blocks or None")
    expect(isinstance(layer, int) and layer >= 0, f"reads_layer is {layer!r}, expected 0 or a number of layers")
    expect(isinstance(net.reads_tokens, bool), f"reads_tokens is {net.reads_tokens!r}, expected True or False")
    expect(
        not layer or window is None,
        f"it reads states after {layer} layers, which depend on all blocks before, and declares {window} blocks",
    )


def neighbouring_nodes(plugin: PluginUnderTest) -> st.SearchStrategy[Any]:
    """Return calls on one row of nodes, some of them outside the window that the GistNet declares."""
    nodes = max(NODES, (plugin.specimen.context_blocks or 0) + 3)

    def first_nodes(block_size: int, slots: int, lod: int, seed: int) -> Any:
        tree = ContextTree(nodes * block_size**2, block_size, 2, slots, tail=0)
        call = make_call(plugin, Example(tree, seed, rows=1, lod=lod))
        return call.replacing(children=call.inputs["children"][:, :nodes])

    return st.builds(
        lambda *drawn: lambda: first_nodes(*drawn), st.integers(3, 5), st.integers(1, 2), st.integers(1, 2), SEEDS
    )


@requirement(
    "G3", "A gist depends on no node after it and on none before the `context_blocks` next to it", "gistnet",
    over=neighbouring_nodes, examples=4, after=("G1", "G2", *PURE),
)  # fmt: skip
def g3_bounded(call: PluginCall) -> None:
    """By perturbation and by gradient, node by node. On none before it with `masks_documents`."""
    window, nodes = call.part.context_blocks, call.inputs["children"].shape[1]
    window = 0 if call.part.masks_documents else window
    for node in range(nodes):
        before = range(0 if window is None else max(0, node - window))
        for side, others in {"after it": range(node + 1, nodes), f"outside of {window} blocks": before}.items():
            moved, reached = _moved_and_reached(call, node, others)
            how = "changes with" if moved else "has a gradient from" if reached else ""
            expect(not how, f"at LOD {call.number} the gist of node {node} {how} nodes {[*others]}, {side}")


@requirement(
    "G4", "A gist depends on its own children and on the farthest node that it declares to read", "gistnet",
    over=neighbouring_nodes, examples=4, after=("G3",),
)  # fmt: skip
def g4_reads(call: PluginCall) -> None:
    """On its own children by value and by gradient; on the farthest node at LOD1, unless it reads states."""
    window, nodes = call.part.context_blocks, call.inputs["children"].shape[1]
    for node in range(nodes):
        moved, reached = _moved_and_reached(call, node, range(node, node + 1))
        expect(moved, f"at LOD {call.number} the gist of node {node} does not change with its children")
        expect(reached, f"at LOD {call.number} no gradient of the gist of node {node} reaches its children")
    if window != 0 and not call.part.reads_layer and call.number == 1:
        farthest = 0 if window is None else nodes - 1 - window
        moved, reached = _moved_and_reached(call, nodes - 1, range(farthest, farthest + 1), least=0.0)
        expect(moved or reached, f"the gist of node {nodes - 1} does not change with node {farthest}")


def _moved_and_reached(call: PluginCall, node: int, others: range, least: float = 1e-5) -> tuple[bool, bool]:
    """Return whether the gist of `node` changes with the nodes `others`, and whether its gradient reaches them.

    Args:
        call: A GistNet on one row.
        node: The node of the gist.
        others: The nodes that are perturbed.
        least: The relative change that is taken for rounding.
    """
    chosen, inputs = list(others), call.inputs["children"]
    if not chosen:
        return False, False
    children = inputs.clone().requires_grad_()
    gist = call.replacing(children=children).run()[:, node]
    other = inputs.clone()
    other[:, chosen] += 1 + randn(tuple(other[:, chosen].shape), node)
    after = call.replacing(children=other).run()[:, node]
    moved = not torch.allclose(gist, after, atol=least, rtol=10 * least)
    return moved, gist.requires_grad and _reached(gist, children, chosen, least)


def _reached(gist: Tensor, children: Tensor, chosen: list[int], least: float) -> bool:
    weights = randn(tuple(gist.shape), 1)
    (gradient,) = torch.autograd.grad((gist * weights).sum(), children, allow_unused=True)
    return gradient is not None and bool(gradient[:, chosen].abs().max() > least * gradient.abs().max())


# ---- LensNets --------------------------------------------------------------------------------------
@requirement("L1", "Scores have the shape [R, L] and lie in [-1, 1]", "lensnet", over=calls, after=("P6",))
def l1_form(call: PluginCall) -> None:
    """For contexts of every kind and embeddings of all scales, zeros included; finite in bfloat16 too."""
    expected, embeddings = list(call.context.valid.shape), call.inputs["embeddings"]
    for scale in (1.0, 0.0, 0.02, 1e4):
        scores = call.replacing(embeddings=embeddings * scale).run()
        expect(list(scores.shape) == expected, f"expected scores {expected}, got {list(scores.shape)} ({call.tree})")
        expect(scores.is_floating_point(), f"scores are {scores.dtype}")
        expect(bool(scores.isfinite().all()), f"embeddings of scale {scale} made scores that are not finite")
        largest = _largest(scores)
        expect(largest <= 1, f"embeddings of scale {scale} made a score of {largest:.3g}")
    half = call.of(call.part.bfloat16()).replacing(embeddings=embeddings.bfloat16()).run()
    expect(bool(half.isfinite().all()), "in bfloat16 scores are not finite")


@requirement(
    "L2", "Padding changes no score", "lensnet",
    over=lambda plugin: calls(plugin, context=st.just("padded")), after=("L1", "M2"),
)  # fmt: skip
def l2_padding(call: PluginCall) -> None:
    """Neither the values where `context.valid` is False nor the amount of padding."""
    context, embeddings, expected = call.context, call.inputs["embeddings"], call.run()
    noise = torch.where(context.valid[..., None], embeddings, 50 * randn(tuple(embeddings.shape), 1))
    filled = call.replacing(embeddings=noise)
    if context.nll is not None:
        filled = filled.replacing(nll=torch.where(context.valid, context.nll, 50.0))
    moved = _largest(filled.run() - expected)
    expect(moved < 1e-4, f"with other values in the padding, scores change by up to {moved:.2g}")
    for row, length in enumerate(context.valid.sum(dim=1).tolist()):
        alone = build_context(context.focus[[row]], call.tree, length + call.tree.tail).before_cursor()
        if context.nll is not None:
            alone = replace(alone, nll=context.nll[[row], :length])
        moved = _largest(call.part(alone, embeddings[[row], :length])[0] - expected[row, :length])
        expect(moved < 1e-4, f"without padding, scores change by up to {moved:.2g}")


@requirement("L3", "Tokens at or after the cursor change no score", "lensnet", after=("L2",))
def l3_hindsight(plugin: PluginUnderTest) -> None:
    """In the real step, which passes only entries before the cursor."""
    model = step_with(plugin).eval().model
    tokens, cursor = some_tokens(0)[:, :-1], STEP_TREE.cursor
    other = tokens.clone()
    other[:, cursor:] = (other[:, cursor:] + 1) % model.gpt.vocab_size
    for name, context in contexts().items():
        one, two = (lens_scores(model, each, context) for each in (tokens, other))
        moved = _largest((one - two)[context.before_cursor().valid])
        expect(moved < 1e-5, f"tokens after the cursor change scores of the {name} context by up to {moved:.2g}")


@requirement(
    "L4", "With `masks_documents`, a score depends on entries of its own document alone", "lensnet",
    over=calls, after=("L1", "M2"),
)  # fmt: skip
def l4_documents(call: PluginCall) -> None:
    """Other embeddings in one of three documents."""
    if not call.part.masks_documents:
        return
    rows, window = call.context.focus.shape[0], call.tree.window
    context = with_documents(call.context, (torch.arange(window) * 3 // window).expand(rows, -1))
    embeddings = call.inputs["embeddings"]
    of_entry = context.document
    assert of_entry is not None
    for document in range(3):
        own = of_entry == document
        before = call.part(context, embeddings)
        after = call.part(context, torch.where(own[..., None], 1 - embeddings, embeddings))
        moved = _largest((after - before)[~own & context.valid])
        expect(moved < 1e-4, f"document {document} changes scores of others by up to {moved:.2g}")


def _largest(values: Tensor) -> float:
    return float(values.detach().abs().max()) if values.numel() else 0.0


# ---- both, as modules ------------------------------------------------------------------------------
@requirement("N1", "Its state is its state dict, and equal seeds build equal parameters", *NETWORKS, after=PURE)
def n1_state(plugin: PluginUnderTest) -> None:
    """Built twice under torch's seed, then saved and loaded strictly into an instance of another seed."""
    states = []
    for others in (1, 2):
        with random_states(others):
            states.append(plugin.build(TREE, seed=5).state_dict())
    one, other = states
    expect(one.keys() == other.keys(), "a second instance has other parameters")
    different = [name for name, value in one.items() if not torch.equal(value, other[name])]
    expect(not different, f"under the same seed {', '.join(different)} differ")
    call = make_call(plugin, Example(TREE))
    file = io.BytesIO()
    torch.save(call.part.state_dict(), file)
    file.seek(0)
    loaded = perturbed(plugin.build(TREE, seed=8), 9)
    loaded.load_state_dict(torch.load(file, weights_only=True), strict=True)
    expect(same(call.of(loaded).run(), call.run()), "another instance with its state dict returns something else")


@requirement("N2", "It compiles as one graph", *NETWORKS, after=("M3", *PURE))
def n2_compiles(plugin: PluginUnderTest) -> None:
    """`torch.compile(fullgraph=True)`: no graph break, and the same result."""
    call = make_call(plugin, Example(TREE))
    expected = call.run()
    torch._dynamo.reset()
    compiled = torch.compile(call.part, fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(allow_rnn=True):  # a recurrent layer is one node of the graph
        expect(same(call.of(compiled).run(), expected), "compiled, it returns something else")


@requirement("N3", "Every parameter takes part in every step", *NETWORKS, needs=PARAMETERS, after=("P6",))
def n3_used(plugin: PluginUnderTest) -> None:
    """At ZeRO 3 a parameter without a gradient would be updated with an old one."""
    part = perturbed(plugin.build(TREE), 0).train()
    levels = [Example(TREE, 1, lod=lod) for lod in (1, 2)]
    raw, equal, padded = ([Example(TREE, 1, context=context)] for context in ("raw", "equal", "padded"))
    for examples in [levels] if plugin.kind == "gistnet" else [raw, equal, padded]:
        part.zero_grad(set_to_none=True)
        for example in examples:
            result = make_call(plugin, example).of(part).run()
            if result.requires_grad:
                weights = torch.linspace(0.5, 1.5, result.numel()).view_as(result)
                torch.autograd.backward((result.float() * weights).sum())
        unused = without_gradient(part)
        about = "" if plugin.kind == "gistnet" else f" on {examples[0].context} contexts"
        expect(not unused, f"no gradient reaches {', '.join(unused)}{about}")


@requirement(
    "N4", "Muon trains no tables and no thin maps", *NETWORKS, needs=PARAMETERS, after=("P6",)
)  # fmt: skip
def n4_groups(plugin: PluginUnderTest) -> None:
    """`param_groups` declares embedding tables and maps with one row or column as embeddings; AdamW trains them."""
    for tree in (TREE, PLAIN):  # with one slot, a parameter with a row for each slot is thin
        thin = _thin_matrices(plugin.build(tree))
        expect(not thin, f"with {tree.slots} slot(s) Muon would train {', '.join(thin)}")


def _thin_matrices(part: TrainableModule) -> list[str]:
    """Return the names of the parameters that Muon would train and must not."""
    matrices = {id(each) for group in part.param_groups() if group.role == "matrix" for each in group.parameters}
    tables = {id(module.weight) for module in part.modules() if isinstance(module, nn.Embedding)}
    return [
        name
        for name, parameter in part.named_parameters()
        if id(parameter) in matrices
        and (id(parameter) in tables or (parameter.dim() == 2 and min(parameter.shape) == 1))
    ]

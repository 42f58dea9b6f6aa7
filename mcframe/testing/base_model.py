"""Requirements of base models. Rows, random states, devices and copies are the concern of requirements M1 to M5."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import WorkingContext, build_context, with_documents
from mcframe.testing.assertions import expect
from mcframe.testing.calls import Example, PluginCall, calls, make_call
from mcframe.testing.host_sync import same
from mcframe.testing.plugin_under_test import VOCABULARY, PluginUnderTest
from mcframe.testing.requirements import requirement
from mcframe.testing.training_step import TREE, build_step, train

GAPPED = ContextTree(window=48, block_size=8, levels=1, slots=1, tail=8)
"""Blocks of 8: a compressed one leaves a gap of seven positions after its gist."""


@requirement(
    "B1", "Embeddings, states and logits have the shapes and types of the interface", "base",
    over=calls, examples=4, after=("P6",),
)  # fmt: skip
def b1_form(call: PluginCall) -> None:
    """The states after 0 layers are the embeddings; logits are float32; `positions` is a module of the model."""
    part, embeddings = call.part, call.inputs["embeddings"]
    expect(isinstance(getattr(part, "positions", None), nn.Module), "`positions` is not set to the positions")
    expect(part.vocab_size >= VOCABULARY, f"{VOCABULARY} entries of the tokenizer, and {part.vocab_size} logits")
    tokens = torch.arange(VOCABULARY)[None]
    expect(list(part.embed(tokens).shape) == [1, VOCABULARY, part.width], "embed: expected [B, T, D]")
    for layer in (0, part.depth):
        for states in part.states(embeddings, call.context, layer):
            expect(states.shape == embeddings.shape, f"states: expected [R, L, D], got {list(states.shape)}")
    expect(torch.equal(part.states(embeddings, call.context)[1], embeddings), "states after 0 layers: not embeddings")
    for layer in range(part.depth + 1):
        kept, alone = (
            part.states(embeddings, call.context, layer)[1],
            part.states_after(embeddings, call.context, layer),
        )
        expect(same(alone, kept), f"states_after: expected the states after {layer} layers as `states` returns them")
    logits = part.logits(embeddings)
    expect(list(logits.shape) == [*embeddings.shape[:2], part.vocab_size], f"logits have shape {list(logits.shape)}")
    expect(logits.dtype == torch.float32, f"logits: expected float32, got {logits.dtype}")


@requirement(
    "B2", "The state of an entry depends on no later entry and on no padding", "base",
    over=calls, examples=6, after=("B1", "M1"),
)  # fmt: skip
def b2_causal(call: PluginCall) -> None:
    """Other embeddings at later entries, and at padding."""
    embeddings, cut = call.inputs["embeddings"], call.context.length // 2
    moved = embeddings.clone()
    moved[:, cut:] += 1.0
    expect(same(_states(call, moved)[:, :cut], _states(call, embeddings)[:, :cut]), "later entries change states")
    valid = call.context.valid[..., None]
    filled = _states(call, torch.where(valid, embeddings, 9.0))
    expect(same(torch.where(valid, filled, 0.0), call.run()), "padding changes the states of entries")


@requirement("B3", "Entries with gaps between their positions are one sequence", "base", after=("B2",))
def b3_gaps(plugin: PluginUnderTest) -> None:
    """The first entry changes the state of the last one, over compressed blocks between them."""
    part, context, embeddings = _gapped(plugin)
    moved = embeddings.clone()
    moved[:, 0] = -moved[:, 0]
    difference = (part.states(moved, context)[0] - part.states(embeddings, context)[0])[0, -1].abs().max()
    expect(bool(difference > 1e-6), "the first entry does not reach the last one: attention is cut at a gap")


@requirement("B4", "Entries that are read in parts have the states of one pass", "base", after=("B3",))
def b4_cache(plugin: PluginUnderTest) -> None:
    """`extend` by 1, 2, 5 and the other entries, and again after `truncate`."""
    part, context, embeddings = _gapped(plugin)
    rotation, cache = part.positions(context), part.kv_cache(context.length)
    expected = part.states(embeddings, context)[0]

    def read(count: int) -> Tensor:
        here = slice(cache.length, min(cache.length + count, context.length))
        turned = tuple(factor[:, :, here] for factor in rotation)
        states: Tensor = part.extend(embeddings[:, here], context.lod[:, here], turned, cache)
        expect(cache.length == here.stop, f"extend: expected a cache of {here.stop} entries, got {cache.length}")
        expect(same(states, expected[:, here]), f"entries {here.start} to {here.stop}: other states than in one pass")
        return states

    for count in (1, 2, 5, context.length):
        read(count)
    cache.truncate(3)
    read(context.length)


@requirement("B6", "With `masks_documents`, an entry reads its own document alone", "base", after=("B2", "B3"))
def b6_documents(plugin: PluginUnderTest) -> None:
    """Other embeddings in one of three documents, over compressed blocks."""
    part, context, embeddings = _gapped(plugin)
    if not part.masks_documents:
        return
    context = with_documents(context, torch.arange(GAPPED.window)[None] // 17)
    of_entry = context.document
    assert of_entry is not None
    for document in range(3):
        own = of_entry == document
        moved = torch.where(own[..., None], -embeddings, embeddings)
        before, after = (part.states(each, context)[0][~own] for each in (embeddings, moved))
        expect(same(after, before), f"document {document} changes states of others: use `context.document`")


@requirement("B5", "Gradients reach the embeddings and every trained parameter", "base", after=("B1", "M1"))
def b5_gradient(plugin: PluginUnderTest) -> None:
    """Frozen or not, GistNet learns through the base model. One training step is finite."""
    part, context, embeddings = _gapped(plugin)
    embeddings.requires_grad_()
    torch.autograd.backward(part.states(embeddings, context)[0].sin().sum())
    reached = embeddings.grad is not None and bool(embeddings.grad.any(dim=-1).all())
    expect(reached, "no gradient reaches the embeddings of some entries")
    step = build_step("base", plugin.build(TREE), plugin.width)
    for number, loss in train(step, 1):
        expect(bool(loss.isfinite()), f"the loss of step {number} is not finite")
        parameters = step.model.gpt.named_parameters()
        unused = [name for name, each in parameters if each.requires_grad and each.grad is None]
        expect(not unused, f"no gradient reaches {', '.join(unused)}")


def _states(call: PluginCall, embeddings: Tensor) -> Tensor:
    states: Tensor = call.part.states(embeddings, call.context)[0]
    return states


def _gapped(plugin: PluginUnderTest) -> tuple[Any, WorkingContext, Tensor]:
    """Return the model, a context of one row with two compressed blocks, and embeddings of its entries."""
    call = make_call(plugin, Example(GAPPED, rows=1, context="raw"))
    focus = torch.zeros(1, GAPPED.blocks, dtype=torch.long)
    focus[0, 1], focus[0, 3] = 1, 1
    context = build_context(focus, GAPPED, GAPPED.length((2,)))
    return call.part, context, call.inputs["embeddings"][:, : context.length].clone()

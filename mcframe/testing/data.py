"""Requirements of text sources, tokenizers and synthetic tasks: reproducible documents, ids and sequences."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import variant_seeds
from mcframe.errors import UserError
from mcframe.hookspecs import SyntheticBatch
from mcframe.testing.assertions import expect
from mcframe.testing.examples import SEEDS
from mcframe.testing.host_sync import random_state, random_states
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.requirements import requirement


def expect_identity(one: Any, other: Any) -> None:
    """Raise NotConforming unless two equal instances have one identity, a string."""
    expect(isinstance(one.identity, str) and bool(one.identity), f"identity is {one.identity!r}, expected a string")
    expect(one.identity == one.identity, "identity changes from one read to the next")
    expect(one.identity == other.identity, f"equal instances have identities {one.identity!r}, {other.identity!r}")


# ---- text sources ----------------------------------------------------------------------------------
def first_documents(source: Any, epoch: int = 0) -> list[str]:
    """Return the first twenty documents of an epoch."""
    return list(islice(source.documents(epoch), 20))


@requirement("D1", "Documents are strings, and there is at least one", "text", after=("P6",))
def d1_strings(plugin: PluginUnderTest) -> None:
    """The first twenty are read."""
    documents = first_documents(plugin.specimen)
    expect(bool(documents), "it has neither documents nor a UserError that names the reason")
    other = [type(each).__name__ for each in documents if not isinstance(each, str)]
    expect(not other, f"a document is a {', '.join(sorted(set(other)))}")
    expect(any(each.strip() for each in documents), "the first documents are all empty")


@requirement("D2", "An epoch has the same documents in the same order every time", "text", after=("D1",))
def d2_reproducible(plugin: PluginUnderTest) -> None:
    """Read twice, and by another instance. `identity`, which names the token cache, is a string that stays."""
    for epoch in (0, 1):
        documents = first_documents(plugin.specimen, epoch)
        expect(first_documents(plugin.specimen, epoch) == documents, f"epoch {epoch} differs when it is read again")
        expect(first_documents(plugin.build(), epoch) == documents, f"another instance has another epoch {epoch}")
    expect_identity(plugin.specimen, plugin.build())
    expect(isinstance(plugin.specimen.streaming, bool), f"streaming is {plugin.specimen.streaming!r}")


@requirement("D3", "A position continues with the documents that follow it", "text", after=("D2",))
def d3_positions(plugin: PluginUnderTest) -> None:
    """Positions of `positioned_documents` are values of JSON, for another instance. Sources without are omitted."""
    for epoch in (0, 1):
        pairs = plugin.specimen.positioned_documents(epoch)
        if pairs is None:
            return
        found, documents = list(islice(pairs, 20)), first_documents(plugin.specimen, epoch)
        expect([text for text, _ in found] == documents, f"epoch {epoch} has other documents than `documents`")
        for number, (_, position) in enumerate(found[:-1], 1):
            after = plugin.build().positioned_documents(epoch, json.loads(json.dumps(position)))
            expect(after is not None, f"epoch {epoch}: it has positions, and returns None for {position}")
            following = [text for text, _ in islice(after, len(found) - number)]
            expect(following == documents[number:], f"epoch {epoch}: other documents follow {position}")


# ---- tokenizers ------------------------------------------------------------------------------------
def text_batches(plugin: PluginUnderTest) -> st.SearchStrategy[Callable[[], tuple[Any, list[str]]]]:
    """Return batches of texts of all characters that UTF-8 can encode."""
    texts = st.lists(st.text(max_size=20), min_size=1, max_size=4)
    return texts.map(lambda some: lambda: (plugin.specimen, some))


@requirement(
    "K1", "Ids are below `vocab_size`, never the separator, and decode to the text", "tokenizer",
    over=text_batches, examples=20, after=("P6",),
)  # fmt: skip
def k1_ids(case: tuple[Any, list[str]]) -> None:
    """The ids of a text do not depend on the other texts of a batch; an empty text has none."""
    tokenizer, texts = case
    size, separator = tokenizer.vocab_size, tokenizer.separator
    expect(isinstance(separator, int) and 0 <= separator < size, f"the separator is {separator!r}, of {size!r} ids")
    expect(tokenizer.encode_batch([""]) == [[]], f"an empty text has the ids {tokenizer.encode_batch([''])}")
    batch = tokenizer.encode_batch(texts)
    for text, ids in zip(texts, batch, strict=True):
        wrong = [each for each in ids if not isinstance(each, int) or not 0 <= each < size]
        expect(not wrong, f"{text!r} has the ids {wrong}, of {size}")
        expect(separator not in ids, f"{text!r} contains the separator")
        decoded = tokenizer.decode(ids)
        expect(decoded == text, f"{text!r} was decoded as {decoded!r}")
        alone = tokenizer.encode_batch([text])[0]
        expect(alone == ids, f"{text!r}: alone {alone}, in a batch {ids}")


@requirement(
    "K2", "`byte_lengths` add up to the bytes of a text", "tokenizer", over=text_batches, examples=20, after=("K1",)
)
def k2_bytes(case: tuple[Any, list[str]]) -> None:
    """int64 [vocab_size], 0 for the separator. Bits per byte are computed from it."""
    tokenizer, texts = case
    lengths, size = tokenizer.byte_lengths(), tokenizer.vocab_size
    expect(lengths.dtype == torch.int64 and list(lengths.shape) == [size], f"{lengths.dtype} {list(lengths.shape)}")
    expect(int(lengths[tokenizer.separator]) == 0, "the separator has bytes")
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        counted, expected = int(lengths[ids].sum()), len(text.encode())
        expect(counted == expected, f"{text!r} has {expected} bytes, and its ids stand for {counted}")


@requirement("K3", "All ids can be decoded, and `identity` is a string that stays", "tokenizer", after=("K1",))
def k3_decode(plugin: PluginUnderTest) -> None:
    """Untrained models sample separators and bytes that are not UTF-8. `identity` names the token cache."""
    tokenizer = plugin.specimen
    for ids in (torch.randint(tokenizer.vocab_size, (100, 12), generator=torch.Generator().manual_seed(0))).tolist():
        text = tokenizer.decode(ids)
        expect(isinstance(text, str), f"{ids} became a {type(text).__name__}")
    expect_identity(tokenizer, plugin.build())


# ---- synthetic tasks -------------------------------------------------------------------------------
Generated = tuple[PluginUnderTest, Any, ContextTree, SyntheticBatch]
"""A plug-in, its task for a tree, and eight of its sequences."""


def seeds(seed: int, count: int) -> torch.Tensor:
    """Return seeds as the framework makes them, int64 [count]."""
    return variant_seeds(seed, torch.arange(count), 1)[:, 0]


def generated(plugin: PluginUnderTest) -> st.SearchStrategy[Callable[[], Generated]]:
    """Return batches on trees with and without room for the question; a task may decline a tree."""

    def make(block_size: int, blocks: int, question: int, after: int, sink: int, seed: int) -> Generated:
        cursor = blocks * block_size + question % block_size
        tree = ContextTree(cursor + 1 + after, block_size, 1, 1, tail=1 + after, sink=sink)
        task = plugin.build(tree)
        return plugin, task, tree, task.generate(seeds(seed, 8))

    return st.builds(
        lambda *drawn: lambda: make(*drawn), st.integers(10, 20), st.integers(2, 5), st.sampled_from((0, 1, 1, 5, 9)),
        st.integers(8, 24), st.integers(0, 1), SEEDS,
    )  # fmt: skip


@requirement(
    "T1", "A batch has tokens, a loss mask after the cursor, and evidence in compressible blocks", "task",
    over=generated, after=("P6",),
)  # fmt: skip
def t1_batch(case: Generated) -> None:
    """Tokens [B, T + 1] below `vocab_size`; an answer in every sequence; evidence is -1 exactly without an answer."""
    _, task, tree, batch = case
    rows, window = 8, tree.window
    for name, dtype, columns in (
        ("tokens", torch.int64, window + 1), ("loss_mask", torch.bool, window), ("evidence", torch.int64, window),
    ):  # fmt: skip
        found = getattr(batch, name)
        problem = f"{name}: expected {dtype} {[rows, columns]}, got {found.dtype} {list(found.shape)}"
        expect(found.dtype == dtype and list(found.shape) == [rows, columns], problem)
    low, high = int(batch.tokens.min()), int(batch.tokens.max())
    expect(low >= 0 and high < task.vocab_size, f"token ids reach from {low} to {high}, of {task.vocab_size}")
    early = batch.loss_mask[:, : max(0, tree.cursor - 1)].any().item()
    expect(not early, f"the loss mask holds a target before the cursor ({tree.cursor})")
    expect(bool(batch.loss_mask.any(dim=1).all()), "a sequence has no answer")
    expect(torch.equal(batch.evidence >= 0, batch.loss_mask), "evidence and loss mask differ")
    row, target = batch.loss_mask.nonzero(as_tuple=True)
    position = batch.evidence[row, target]
    block = position // tree.block_size
    inside = (block >= tree.sink) & (block < tree.cursor // tree.block_size)
    expect(bool(inside.all()), f"evidence at {position[~inside].tolist()[:3]} is in no compressible block")
    holds = batch.tokens[row, position] == batch.tokens[row, target + 1]
    expect(bool(holds.all()), "the token at the evidence is not the answer")


@requirement("T2", "A sequence is a function of its own seed", "task", over=generated, examples=5, after=("T1",))
def t2_seeds(case: Generated) -> None:
    """Neither other rows nor a global random state matter, and other seeds make other sequences."""
    task, own = case[1], seeds(3, 6)
    with random_states(1):
        before = random_state()
        tokens = task.generate(own).tokens
        expect(random_state() == before, "a global random state has advanced")
    with random_states(2):
        backwards = task.generate(own.flip(0)).tokens.flip(0)
        expect(torch.equal(backwards, tokens), "in another order, or in another call, sequences differ")
    expect(torch.equal(task.generate(own[2:3]).tokens, tokens[2:3]), "alone, a sequence differs")
    expect(not torch.equal(task.generate(seeds(4, 6)).tokens, tokens), "other seeds make the same sequences")


@requirement(
    "T3", "`identity` changes with the tree and with nothing else; `chance` is a fraction or None", "task",
    over=generated, examples=5, after=("P6",),
)  # fmt: skip
def t3_declared(case: Generated) -> None:
    """It names the held-out sequences of a run."""
    plugin, task, tree, _ = case
    expect_identity(task, plugin.build(tree))
    longer = replace(tree, window=tree.window + tree.block_size)
    with suppress(UserError):  # the task may decline the longer tree
        other = plugin.build(longer).identity
        expect(other != task.identity, f"the identity for {tree} and for {longer} is {other!r}")
    chance = task.chance
    expect(chance is None or 0 <= chance < 1, f"chance is {chance!r}, expected a fraction or None")

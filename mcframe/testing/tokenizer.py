"""Clauses of tokenizers: ids in range, text that comes back, bytes that add up."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from mcframe.testing.examples import for_all
from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.requirements import expect, requirement
from mcframe.testing.text import expect_identity

TEXTS = st.lists(st.text(max_size=20), min_size=1, max_size=4).map(lambda texts: lambda: texts)
"""Of any characters that UTF-8 can write."""


@requirement(
    "K1", "Ids are whole numbers from 0 to `vocab_size` - 1, and never the separator", "tokenizer", after=("P9",)
)
def k1_ids(plugin: PluginUnderTest) -> None:
    """The separator stands between documents, and is an id too."""
    tokenizer = plugin.specimen
    size, separator = tokenizer.vocab_size, tokenizer.separator
    expect(isinstance(separator, int) and 0 <= separator < size, f"the separator is {separator!r}, of {size!r} ids")

    def check(texts: list[str]) -> None:
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            wrong = [each for each in ids if not isinstance(each, int) or not 0 <= each < size]
            expect(not wrong, f"{text!r} has the ids {wrong}, of {size}")
            expect(separator not in ids, f"{text!r} contains the separator")

    for_all(TEXTS, check, examples=30)


@requirement("K2", "Text comes back from its ids", "tokenizer", after=("K1",))
def k2_back(plugin: PluginUnderTest) -> None:
    """Samples and evaluations are read by people."""

    def check(texts: list[str]) -> None:
        for text, ids in zip(texts, plugin.specimen.encode_batch(texts), strict=True):
            back = plugin.specimen.decode(ids)
            expect(back == text, f"{text!r} came back as {back!r}")

    for_all(TEXTS, check, examples=30)


@requirement("K3", "The ids of a text do not depend on the texts beside it", "tokenizer", after=("K1",))
def k3_alone(plugin: PluginUnderTest) -> None:
    """Documents are encoded in batches of any size. An empty text has no ids."""
    encode = plugin.specimen.encode_batch
    expect(encode([""]) == [[]], f"an empty text has the ids {encode([''])}")

    def check(texts: list[str]) -> None:
        alone = [encode([text])[0] for text in texts]
        expect(encode(texts) == alone, f"{texts!r}: alone {alone}, together {encode(texts)}")

    for_all(TEXTS, check, examples=30)


@requirement("K4", "`byte_lengths` add up to the bytes of a text", "tokenizer", after=("K3",))
def k4_bytes(plugin: PluginUnderTest) -> None:
    """int64 [vocab_size], 0 for the separator: bits per byte are computed from it."""
    lengths = plugin.specimen.byte_lengths()
    size = plugin.specimen.vocab_size
    expect(lengths.dtype == torch.int64 and list(lengths.shape) == [size], f"{lengths.dtype} {list(lengths.shape)}")
    expect(int(lengths[plugin.specimen.separator]) == 0, "the separator has bytes")

    def check(texts: list[str]) -> None:
        for text, ids in zip(texts, plugin.specimen.encode_batch(texts), strict=True):
            counted, wanted = int(lengths[ids].sum()), len(text.encode())
            expect(counted == wanted, f"{text!r} has {wanted} bytes, and its ids stand for {counted}")

    for_all(TEXTS, check, examples=30)


@requirement("K5", "Any ids can be decoded", "tokenizer", after=("K1",))
def k5_decode(plugin: PluginUnderTest) -> None:
    """What an untrained model samples: bytes that are no UTF-8, separators."""
    ids = st.lists(st.integers(0, plugin.specimen.vocab_size - 1), max_size=12).map(lambda ids: lambda: ids)

    def check(some: list[int]) -> None:
        text = plugin.specimen.decode(some)
        expect(isinstance(text, str), f"{some} became a {type(text).__name__}")

    for_all(ids, check, examples=30)


@requirement("K6", "`identity` is a string that stays while the ids do", "tokenizer", after=("P9",))
def k6_identity(plugin: PluginUnderTest) -> None:
    """It names the token cache."""
    expect_identity(plugin.specimen, plugin.build())

"""Values that text sources, tokenizers and tasks return are checked against their interfaces."""

import itertools
import time

import numpy as np
import pytest
import torch

from mcframe.context.context_tree import ContextTree
from mcframe.data import plugin_checks
from mcframe.data.packing import separated
from mcframe.data.synthetic.recall import Recall
from mcframe.data.synthetic_stream import GeneratedWindows, held_out
from mcframe.data.tokenizers import Bytes
from mcframe.hookspecs import TextSource
from mcframe.registry.checks import ContractError

TREE = ContextTree(64, 8, tail=15)


class Numbers(TextSource):
    identity = "numbers"

    def documents(self, epoch=0):
        yield "one"
        yield "two"
        yield 3


class Wrong(Bytes):
    """A tokenizer whose `encode_batch` returns the argument `ids`."""

    def __init__(self, ids, separator=256):
        self.ids, self.separator = ids, separator

    def encode_batch(self, texts):
        return self.ids


def test_documents_are_texts():
    found = plugin_checks.documents(Numbers())
    assert [next(found), next(found)] == ["one", "two"]
    with pytest.raises(ContractError, match=r"Numbers: documents: .* got a value of type int") as caught:
        next(found)
    assert isinstance(caught.value.culprit, Numbers)


class Endless(TextSource):
    identity = "endless"

    def documents(self, epoch=0):
        while True:
            time.sleep(0.001)
            yield "again"


@pytest.mark.parametrize("streaming", [True, False])
def test_a_source_without_end_is_reported_unless_it_is_streamed(monkeypatch, caplog, streaming):
    monkeypatch.setattr(plugin_checks, "SLOW", 0.02)
    source = Endless()
    source.streaming = streaming
    documents = plugin_checks.documents(source)
    for _ in itertools.takewhile(lambda _: len(caplog.records) < 2, range(200)):
        next(documents)
    documents.close()
    reports = [record.getMessage() for record in caplog.records]
    assert bool(reports) is not streaming
    assert all("Endless" in each and "no end yet" in each and "streaming" in each for each in reports)


def test_valid_ids_are_returned_with_the_separator():
    first, second = separated(Wrong([[1, 2], []]), ["a", "b"])
    assert (first.tolist(), second.tolist(), first.dtype) == ([1, 2, 256], [256], np.uint16)
    assert separated(Wrong([]), []) == []


@pytest.mark.parametrize(
    ("ids", "separator", "message"),
    [
        ([[1], [2]], 256, "expected 1 lists of ids, one a text, got 2"),
        ([[1, 300]], 256, "expected ids and separator below vocab_size = 257, got 300"),
        ([[1]], 257, "below vocab_size = 257, got 257"),
        ([[70_000]], 256, "expected ids from 0 on"),
        ([[-1]], 256, "expected ids from 0 on"),
    ],
)
def test_ids_are_entries_of_the_vocabulary(ids, separator, message):
    with pytest.raises(ContractError, match=message):
        separated(Wrong(ids, separator), ["a"])


class Changed(Recall):
    """A recall task with a changed batch."""

    def __init__(self, change):
        super().__init__(TREE)
        self.change = change

    def generate(self, seeds):
        return self.change(super().generate(seeds))


def tokens(change):
    def changed(batch):
        return type(batch)(change(batch.tokens), batch.loss_mask, batch.evidence)

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch.tokens, "expected a SyntheticBatch, got a value of type Tensor"),
        (tokens(lambda t: t[:, 1:]), r"expected tokens \[B, T \+ 1\], here \[3, 65\] int64, got \[3, 64\] int64"),
        (tokens(lambda t: t.int()), r"expected tokens .*, got \[3, 65\] int32"),
        (tokens(lambda t: t + 10_000), "expected ids below vocab_size"),
        (lambda batch: type(batch)(batch.tokens, batch.loss_mask.int(), batch.evidence), "expected loss_mask"),
        (lambda batch: type(batch)(batch.tokens, batch.loss_mask, batch.evidence[:1]), "expected evidence"),
    ],
)
def test_batches_have_the_form_of_the_interface(change, message):
    with pytest.raises(ContractError, match=message):
        GeneratedWindows(Changed(change), 64, seed=0).take([0, 1, 2])


def test_a_valid_batch_is_returned():
    batch = GeneratedWindows(Changed(lambda batch: batch), 64, seed=0).take([0, 1, 2])
    assert batch.tokens.shape == (3, 65)
    assert torch.equal(held_out(Recall(TREE), 2).tokens, held_out(Changed(lambda batch: batch), 2).tokens)

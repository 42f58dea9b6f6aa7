"""Held-out sequences: those of validation, with the document of every token."""

import pytest
import torch

from mcframe.context.context_tree import ContextTree
from mcframe.data import synthetic_stream
from mcframe.data.loader import open_validation
from mcframe.data.synthetic.recall import Recall
from mcframe.data.tokenizers import Bytes
from mcframe.errors import UserError
from mcframe.evaluation import eval_data
from mcframe.evaluation.eval_data import from_task, from_text
from mcframe.evaluation.eval_model import EngineEvalModel
from tests.support.evaluation_builders import FLAT, build_eval_model, build_model
from tests.support.memory_source import MemorySource, documents_in, some_texts

FRACTION = 0.5


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MCFRAME_CACHE", str(tmp_path))


def stream(source):
    """Return (token, document) of the data-out stream, document by document."""
    tokenizer, found = Bytes(), []
    for number, text in enumerate(documents_in(source, "validation", FRACTION)):
        ids = [*tokenizer.encode_batch([text])[0], tokenizer.separator]
        found += [(token, number) for token in ids]
    return found


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("count", [4, 10_000])
def test_documents_of_tokens(streaming, count, monkeypatch):
    monkeypatch.setattr(eval_data, "_AT_ONCE", 3)
    source, window = MemorySource(some_texts(60, seed=3, longest=20), streaming=streaming), 16
    data = from_text(source, Bytes(), window, FRACTION, count)
    assert torch.equal(data.tokens, open_validation(source, Bytes(), window, FRACTION, count)[0])
    assert bool(data.loss_mask.all())
    assert data.loss_mask.shape == (data.tokens.shape[0], window)
    complete = stream(source)
    windows = [complete[i * window : i * window + window + 1] for i in range((len(complete) - 1) // window)]
    known = {tuple(token for token, _ in w): [d for _, d in w] for w in windows}
    assert len(known) == len(windows), "windows must differ for this test"
    assert data.tokens.shape[0] == min(count, len(windows))
    for tokens, documents in zip(data.tokens.tolist(), data.documents.tolist(), strict=True):
        assert documents == known[tuple(tokens)]
    assert len(set(data.documents.flatten().tolist())) > 1


def test_a_generated_sequence_is_a_document():
    tree = ContextTree(window=40, block_size=8, tail=7)
    task = Recall(tree, pairs=1, keys=16, values=4)
    data, batch = from_task(task, 5), synthetic_stream.held_out(task, 5)
    assert torch.equal(data.tokens, batch.tokens)
    assert torch.equal(data.loss_mask, batch.loss_mask)
    assert torch.equal(data.evidence, batch.evidence)
    assert data.documents.tolist() == [[row] * 41 for row in range(5)]


def test_a_task_must_fit_the_model():
    eval_model = build_eval_model(build_model(FLAT), None)
    with pytest.raises(UserError, match="at most 13 token ids"):
        EngineEvalModel.held_out(eval_model, 4, lambda tree: Recall(ContextTree(40, 8, tail=7), pairs=1, keys=16))

"""Held-out sequences: those of validation, with the document of every token."""

import pytest
import torch

from mcframe.context.context_tree import ContextTree
from mcframe.data import synthetic_stream as generated
from mcframe.data.loader import open_validation
from mcframe.data.split import is_validation
from mcframe.data.synthetic.recall import Recall
from mcframe.data.tokenizers import Bytes
from mcframe.errors import UserError
from mcframe.evaluation import eval_data as held_out
from mcframe.evaluation.eval_data import from_task, from_text
from tests.support.memory_source import MemorySource, some_texts

SHARE = 0.5


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MCFRAME_CACHE", str(tmp_path))


def stream(source):
    """(token, document) of the held-out stream, document by document."""
    tokenizer, found = Bytes(), []
    for number, text in enumerate(t for t in source.documents() if is_validation(t, SHARE)):
        ids = [*tokenizer.encode_batch([text])[0], tokenizer.separator]
        found += [(token, number) for token in ids]
    return found


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("count", [4, 10_000])
def test_every_token_knows_its_document(streaming, count, monkeypatch):
    monkeypatch.setattr(held_out, "_AT_ONCE", 3)
    source, window = MemorySource(some_texts(60, seed=3, longest=20), streaming=streaming), 16
    held = from_text(source, Bytes(), window, SHARE, count)
    assert torch.equal(held.tokens, open_validation(source, Bytes(), window, SHARE, count))
    assert bool(held.loss_mask.all())
    assert held.loss_mask.shape == (held.tokens.shape[0], window)
    whole = stream(source)
    windows = [whole[i * window : i * window + window + 1] for i in range((len(whole) - 1) // window)]
    known = {tuple(token for token, _ in w): [d for _, d in w] for w in windows}
    assert len(known) == len(windows), "windows must differ, or the test cannot tell them apart"
    assert held.tokens.shape[0] == min(count, len(windows))
    for tokens, documents in zip(held.tokens.tolist(), held.documents.tolist(), strict=True):
        want = known[tuple(tokens)]
        # Streamed windows are numbered from the first one, which is the stream's.
        assert documents == want
    assert len(set(held.documents.flatten().tolist())) > 1


def test_a_generated_sequence_is_a_document():
    tree = ContextTree(window=40, block_size=8, tail=7)
    task = Recall(tree, pairs=1, keys=16, values=4)
    held, batch = from_task(task, 5), generated.held_out(task, 5)
    assert torch.equal(held.tokens, batch.tokens)
    assert torch.equal(held.loss_mask, batch.loss_mask)
    assert torch.equal(held.evidence, batch.evidence)
    assert held.documents.tolist() == [[row] * 41 for row in range(5)]


def test_a_task_must_fit_the_model():
    from mcframe.evaluation.eval_model import EngineEvalModel
    from tests.support.evaluation_builders import FLAT, build_model, build_subject

    subject = build_subject(build_model(FLAT), None)
    with pytest.raises(UserError, match="token ids and the model has 13"):
        EngineEvalModel.held_out(subject, 4, lambda tree: Recall(ContextTree(40, 8, tail=7), pairs=1, keys=16))

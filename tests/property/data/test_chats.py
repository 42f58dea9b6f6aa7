"""Chats through packing, cache, shuffling and streaming: tokens and scored targets equal those of a slow baseline."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.config.run_config import load_run_config
from mcframe.context.counter_rng import variant_seeds
from mcframe.data.loader import Loader, open_training_stream, open_validation
from mcframe.data.packing import gather_windows, separated, unpacked
from mcframe.data.tokenizers import Bytes
from mcframe.errors import UserError
from mcframe.evaluation.eval_data import from_text
from mcframe.hookspecs import Chat, Message
from mcframe.training.build import build_components
from mcframe.training.train_step import StepBatch
from tests.support.memory_source import MemorySource

LABELS = {"user": "User:", "assistant": "Assistant:", "system": "System:"}
texts = st.text("ab \nU:é", min_size=1, max_size=12)
chats = st.lists(st.tuples(st.sampled_from(sorted(LABELS)), texts), min_size=1, max_size=5)


class Chats(MemorySource):
    chats = True


def slow_stream(documents):
    """Return (id, scored) of every token of the stream, one byte after the other."""
    stream = []
    for document in documents:
        if isinstance(document, Chat):
            for role, content in document.messages:
                answer = role == "assistant"
                stream += [(byte, False) for byte in LABELS[role].encode()]
                stream += [(byte, answer) for byte in f" {content}\n".encode()]
            stream.append((256, False))
        else:
            stream += [*((byte, True) for byte in document.encode()), (256, True)]
    return stream


def chat(*messages, **options):
    return Chat([Message(*each) for each in messages], **options)


@given(st.lists(st.one_of(chats, texts), min_size=1, max_size=6), st.integers(1, 9))
@settings(deadline=None, max_examples=40)
def test_windows_are_those_of_the_slow_baseline(drawn, window):
    documents = [each if isinstance(each, str) else chat(*each) for each in drawn]
    stream, expected = np.concatenate(separated(Bytes(), documents, chats=True)), slow_stream(documents)
    count = (len(expected) - 1) // window
    tokens, loss_mask = unpacked(gather_windows(stream, range(count), window))
    loss_mask = torch.ones(count, window, dtype=torch.bool) if loss_mask is None else loss_mask
    for row in range(count):
        part = expected[row * window : row * window + window + 1]
        assert tokens[row].tolist() == [token for token, _ in part]
        assert loss_mask[row].tolist() == [scored for _, scored in part[1:]]


def some_chats(count, answer=True):
    return [
        chat(("user", f"What is {n} plus {n * 7 % 5}?"), ("assistant" if answer else "user", f"{n + n * 7 % 5}."))
        for n in range(count)
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_masks_travel_with_tokens_to_training_validation_and_evaluation(streaming):
    source, window = Chats(some_chats(300), streaming=streaming), 48
    loader = Loader(open_training_stream(source, Bytes(), window, 0, 0.2), batch_sequences=64, micro_batch=64)
    for _ in range(3):
        batch = next(loader)
        check(batch.tokens, batch.loss_mask)
    tokens, loss_mask = open_validation(source, Bytes(), window, 0.2, 6)
    check(tokens, loss_mask)
    data = from_text(source, Bytes(), window, 0.2, 6)
    assert torch.equal(data.loss_mask, loss_mask)
    assert torch.equal(data.tokens, tokens)
    assert (data.documents[:, 1:] - data.documents[:, :-1]).sum() == (tokens[:, :-1] == 256).sum()
    loader.close()


def check(tokens, loss_mask):
    """Compare masks with the text before each target: an answer is between its label and the end of the line."""
    for row, mask in zip(tokens.tolist(), loss_mask.tolist(), strict=True):
        text = "".join(chr(token) if token < 256 else "\0" for token in row)
        state = None  # unknown until the first border
        for at in range(1, len(row)):
            before = text[:at]
            if before.endswith("Assistant:"):
                state = True
            elif before.endswith(("\n", "\0")):
                state = False
            if state is not None:
                assert mask[at - 1] is state, (text, at)
    assert loss_mask.any()


def test_the_cache_and_the_plain_source_are_separate():
    documents = some_chats(60)
    marked = open_training_stream(Chats(documents), Bytes(), 24, 0, 0.2).take([0])
    plain = open_training_stream(MemorySource(documents), Bytes(), 24, 0, 0.2).take([0])
    assert unpacked(plain)[1] is None
    assert unpacked(marked)[1] is not None
    assert torch.equal(unpacked(marked)[0], plain)


def test_validation_without_answers_is_an_error():
    source = Chats(some_chats(60, answer=False))
    with pytest.raises(UserError, match="validation split: expected answers, got") as caught:
        open_validation(source, Bytes(), 24, 0.2, 4)
    assert "validation.windows" in caught.value.remedy


def test_one_chat_is_not_divided():
    source = Chats([chat(("user", "a b " * 400), ("assistant", "c"))])
    window = open_training_stream(source, Bytes(), 16, 0, 0.0).take([0])
    loss_mask = unpacked(window)[1]
    assert loss_mask is not None  # pieces of it would be plain text, all of it scored
    assert loss_mask.sum() <= len(" c\n")


def test_masked_targets_do_not_change_the_loss():
    run_config = load_run_config(["smoke.gin"], ["run.losses = [@loss.next_token, @loss.variants]"]).run_config
    parts = build_components(run_config)
    window, generator = run_config.context.window, torch.Generator().manual_seed(0)
    tokens = torch.randint(256, (2, window + 1), generator=generator)
    mask = torch.rand(2, window, generator=generator) < 0.3
    mask[:, -1] = False

    def loss(tokens, mask):
        batch = StepBatch(tokens, variant_seeds(0, torch.arange(2), 1), run_config.variant_length(0), mask)
        return parts.step(batch)

    with torch.no_grad():
        before, metrics = loss(tokens, mask)
        other = tokens.clone()
        other[:, -1] = (other[:, -1] + 1) % 256  # a target alone, never an input
        assert torch.equal(loss(other, mask)[0], before)
        mask[0, -1] = True
        assert not torch.equal(loss(other, mask)[0], loss(tokens, mask)[0])
        mask[0, -1] = False
        nll = parts.model.nll(tokens)
    slow = [float(nll[row, at]) for row in range(2) for at in range(window) if mask[row, at]]
    total, count = metrics.means["train/loss_lod0"].tolist()
    assert count == len(slow)
    assert total == pytest.approx(sum(slow), rel=1e-5)

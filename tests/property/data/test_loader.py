"""The loader hands out the same sequences for any number of ranks, any micro-batch and any interruption."""

import json
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.config.batch_size import micro_batch_for
from mcframe.context.context_tree import ContextTree
from mcframe.data.loader import Loader, open_training_stream, open_validation
from mcframe.data.synthetic.recall import Recall
from mcframe.data.synthetic_stream import GeneratedWindows
from mcframe.data.tokenizers import Bytes
from mcframe.errors import UserError
from tests.support.memory_source import MemorySource, documents_in, some_texts

TEXTS = some_texts(150, longest=40)
WINDOW = 9
KINDS = [("token file", 40), ("streamed", 40), ("generated", 4)]
"""Kinds of stream, with a number of steps. An epoch of text has fewer than 480 sequences; a task has no epochs."""


def open_stream(kind, rank=0, world=1):
    if kind == "generated":
        return GeneratedWindows(Recall(ContextTree(WINDOW, 4, tail=4)), WINDOW, seed=3)
    source = MemorySource(TEXTS, streaming=kind == "streamed")
    return open_training_stream(source, Bytes(), WINDOW, 0, 0.1, rank=rank, world_size=world)


@pytest.fixture
def loaders():
    """Make a loader for each rank."""
    made = []

    def make(kind, world=1, **options):
        options = {"batch_sequences": 12, "micro_batch": 2} | options
        ranks = [Loader(open_stream(kind, r, world), rank=r, world_size=world, **options) for r in range(world)]
        made.extend(ranks)
        return ranks

    yield make
    for loader in made:
        loader.close()


def sequences(batches):
    """Return tokens and loss mask by global index; each index must occur once."""
    taken = {}
    for batch in batches:
        assert batch.tokens.dtype == batch.indices.dtype == torch.int64
        assert batch.tokens.shape == (len(batch.indices), WINDOW + 1)
        masks = [None] * len(batch.indices) if batch.loss_mask is None else batch.loss_mask.tolist()
        for index, tokens, mask in zip(batch.indices.tolist(), batch.tokens.tolist(), masks, strict=True):
            assert index not in taken
            taken[index] = tokens, mask
    return taken


def read(ranks, micro_batches):
    return sequences(next(rank) for _ in range(micro_batches) for rank in ranks)


@pytest.mark.parametrize(("kind", "steps"), KINDS)
def test_ranks_and_micro_batches_change_no_step(loaders, kind, steps):
    expected = read(loaders(kind, micro_batch=1), 12 * steps)
    for world, micro_batch in ((1, 12), (1, 4), (2, 3), (3, 4), (4, 1)):
        ranks = loaders(kind, world, micro_batch=micro_batch)
        for step in range(steps):
            taken = read(ranks, ranks[0].accumulation)
            assert taken == {index: expected[index] for index in range(12 * step, 12 * (step + 1))}
            assert {rank.position for rank in ranks} == {12 * (step + 1)}


@pytest.mark.parametrize(("kind", "steps"), KINDS)
def test_interrupted_twice_and_across_an_epoch_equals_uninterrupted(loaders, kind, steps):
    expected = read(loaders(kind, micro_batch=1), 15 * steps)
    for worlds in ((1, 1, 1), (2, 2, 2), (1, 3, 2)):
        state, taken = None, {}
        for world in worlds:
            ranks = loaders(kind, world)
            for rank in ranks:
                if state:
                    rank.restore(state)
            taken |= read(ranks, 5 * steps // (2 * world))
            state = json.loads(json.dumps(ranks[0].merge([rank.state() for rank in ranks])))
        assert taken == {index: expected[index] for index in range(state["position"])}
        assert len(taken) > 14 * steps


def test_ranks_resume_from_a_position_that_is_not_a_multiple_of_their_number(loaders):
    expected = read(loaders("streamed", micro_batch=1), 19)
    three = loaders("streamed", 3, micro_batch=1)
    taken = read(three, 1)
    two = loaders("streamed", 2, micro_batch=2)
    for rank in two:
        rank.restore(three[0].merge([rank.state() for rank in three]))
    assert taken | read(two, 4) == {index: expected[index] for index in range(19)}


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_state_is_that_of_the_batch_handed_out(loaders, prefetch):
    (one,) = loaders("streamed", prefetch=prefetch)
    assert (one.position, one.state()["position"]) == (0, 0)
    read([one], 7)
    state = one.state()
    next_sequences = read([one], 5)
    assert min(next_sequences) == state["position"] == 14
    one.restore(state)
    assert one.position == 14
    assert read([one], 5) == next_sequences


class FailingStream:
    """Returns two micro-batches, then fails."""

    window = WINDOW

    def __init__(self):
        self.taken = 0
        self.threads = set()
        self.calls = threading.Semaphore(0)

    def take(self, indices):
        self.threads.add(threading.current_thread())
        self.taken += 1
        self.calls.release()
        if self.taken > 2:
            raise UserError(f"no batch {self.taken}", remedy="none")
        return torch.zeros(len(indices), WINDOW + 1, dtype=torch.int64)

    def state(self):
        return {}


def test_batches_are_fetched_ahead_in_one_thread_and_a_failed_batch_stays_in_front():
    stream = FailingStream()
    one = Loader(stream, batch_sequences=2, micro_batch=2, prefetch=3)
    next(one)
    for _ in range(4):
        assert stream.calls.acquire(timeout=10)  # the batch handed out, and three more
    next(one)
    for _ in range(2):
        with pytest.raises(UserError, match="no batch 3"):
            next(one)
    assert one.position == 4
    (thread,) = stream.threads
    assert thread is not threading.current_thread()
    one.close()
    assert not thread.is_alive()


def test_ranks_out_of_step_are_not_merged(loaders):
    first, second = loaders("token file", 2)
    next(first)
    with pytest.raises(ValueError, match=r"\[0, 4\]"):
        first.merge([first.state(), second.state()])


@given(st.integers(1, 200), st.integers(1, 64))
def test_the_micro_batch_is_the_largest_divisor_within_the_limit(each, limit):
    assert micro_batch_for(each, limit) == max(size for size in range(1, limit + 1) if each % size == 0)


@pytest.mark.parametrize(("world", "sequences_", "micro_batch"), [(3, 13, 1), (2, 12, 4), (1, 0, 1)])
def test_a_step_must_divide_into_micro_batches(loaders, world, sequences_, micro_batch):
    with pytest.raises(ValueError, match="expected a multiple"):
        loaders("token file", world, batch_sequences=sequences_, micro_batch=micro_batch)


@pytest.mark.parametrize("streaming", [False, True])
def test_validation_is_held_out_and_the_same_every_time(streaming):
    source = MemorySource(TEXTS, streaming=streaming)
    found = open_validation(source, Bytes(), WINDOW, 0.3, 4)[0]
    held_out = [i for t in documents_in(source, "validation", 0.3) for i in (*t.encode(), 256)]
    everything = open_validation(source, Bytes(), WINDOW, 0.3, 10_000)[0]
    count = (len(held_out) - 1) // WINDOW
    assert everything.tolist() == [held_out[i * WINDOW : i * WINDOW + WINDOW + 1] for i in range(count)]
    # Spread over all windows, first and last included. The end of a stream is unknown, so that the first ones are used.
    indices = range(4) if streaming else [round(i * (count - 1) / 3) for i in range(4)]
    assert count > 8
    assert found.tolist() == [everything[index].tolist() for index in indices]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("fraction", "window", "message"), [(0.0, 9, "got 0"), (1.0, 9, "below 1"), (0.1, 5_000, "T = 5,000")]
)
def test_too_little_validation_is_an_error(streaming, fraction, window, message):
    with pytest.raises(UserError, match=message) as caught:
        open_validation(MemorySource(TEXTS, streaming=streaming), Bytes(), window, fraction, 4)
    assert "data.validation_fraction" in caught.value.remedy

import json
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.data.loader import Loader, micro_batch_for, open_training_stream, open_validation
from mcframe.data.split import is_validation
from mcframe.data.tokenizers import Bytes
from mcframe.errors import UserError
from tests.support.memory_source import MemorySource, some_texts

TEXTS = some_texts(150, longest=40)
WINDOW = 9


def loaders(streaming, world=1, sequences=12, micro_batch=2, **options):
    made = []
    for rank in range(world):
        source = MemorySource(TEXTS, streaming=streaming)
        stream = open_training_stream(source, Bytes(), WINDOW, 0, 0.1, rank=rank, world_size=world)
        sizes = {"batch_sequences": sequences, "micro_batch": micro_batch}
        made.append(Loader(stream, **sizes, rank=rank, world_size=world, **options))
    return made


def sequences(batches):
    """By global index; each must come once."""
    taken = {}
    for batch in batches:
        assert batch.tokens.dtype == batch.indices.dtype == torch.int64
        assert batch.tokens.shape == (len(batch.indices), WINDOW + 1)
        for index, tokens in zip(batch.indices.tolist(), batch.tokens.tolist(), strict=True):
            assert index not in taken
            taken[index] = tokens
    return taken


def read(ranks, micro_batches):
    return sequences(next(rank) for _ in range(micro_batches) for rank in ranks)


def close(ranks):
    for rank in ranks:
        rank.close()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("world", "micro_batch"), [(1, 12), (1, 4), (2, 3), (3, 4), (4, 1)])
def test_ranks_and_micro_batches_change_no_step(streaming, world, micro_batch):
    (one,) = loaders(streaming, micro_batch=1)
    expected = read([one], 12 * 40)  # 480 sequences: past the end of the first epoch
    ranks = loaders(streaming, world, micro_batch=micro_batch)
    for step in range(40):
        taken = read(ranks, ranks[0].accumulation)
        assert set(taken) == set(range(12 * step, 12 * (step + 1)))
        assert all(tokens == expected[index] for index, tokens in taken.items())
        assert {rank.position for rank in ranks} == {12 * (step + 1)}
    close([one, *ranks])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("worlds", [(1, 1, 1), (2, 2, 2), (1, 3, 2)])
def test_interrupted_twice_and_across_an_epoch_equals_uninterrupted(streaming, worlds):
    (whole,) = loaders(streaming, micro_batch=1)
    expected = read([whole], 600)
    state, taken = None, {}
    for world in worlds:
        ranks = loaders(streaming, world)
        for rank in ranks:
            if state:
                rank.restore(state)
        taken |= read(ranks, 200 // (2 * world))
        state = json.loads(json.dumps(ranks[0].merge([rank.state() for rank in ranks])))
        close(ranks)
    assert len(taken) == state["position"]
    assert len(taken) > 590
    assert all(expected[index] == tokens for index, tokens in taken.items())
    close([whole])


def test_ranks_may_go_on_from_a_position_that_is_no_multiple_of_their_number():
    (whole,) = loaders(True, micro_batch=1)
    expected = read([whole], 19)
    three = loaders(True, 3, micro_batch=1)
    taken = read(three, 1)
    two = loaders(True, 2, micro_batch=2)
    for rank in two:
        rank.restore(three[0].merge([rank.state() for rank in three]))
    assert taken | read(two, 4) == expected
    close([whole, *three, *two])


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_state_is_that_of_the_batch_handed_out(prefetch):
    (one,) = loaders(True, prefetch=prefetch)
    assert (one.position, one.state()["position"]) == (0, 0)
    for _ in range(7):
        next(one)
    state = one.state()
    next_tokens = sequences([next(one) for _ in range(5)])
    assert min(next_tokens) == state["position"] == 14
    one.restore(state)
    assert one.position == 14
    assert sequences([next(one) for _ in range(5)]) == next_tokens
    one.close()


class FailingStream:
    """Gives two micro-batches, then fails; and can be made to wait."""

    window = WINDOW

    def __init__(self):
        self.taken = 0
        self.threads = set()
        self.waited_for = threading.Semaphore(0)

    def take(self, indices):
        self.threads.add(threading.current_thread())
        self.taken += 1
        self.waited_for.release()
        if self.taken > 2:
            raise UserError(f"no batch {self.taken}", remedy="none")
        return torch.zeros(len(indices), WINDOW + 1, dtype=torch.int64)

    def state(self):
        return {}


def test_a_failure_in_the_thread_is_raised_at_its_batch_and_stays():
    one = Loader(FailingStream(), batch_sequences=2, micro_batch=2, prefetch=4)
    next(one)
    next(one)
    for _ in range(2):
        with pytest.raises(UserError, match="no batch 3"):
            next(one)
    assert one.position == 4
    one.close()


def test_batches_are_fetched_ahead_in_one_thread_that_close_ends():
    stream = FailingStream()
    with Loader(stream, batch_sequences=2, micro_batch=2, prefetch=3) as one:
        next(one)
        for _ in range(4):
            assert stream.waited_for.acquire(timeout=10)  # the batch handed out, and three more
        (thread,) = stream.threads
        assert thread is not threading.current_thread()
    assert not thread.is_alive()
    one.close()


def test_ranks_out_of_step_are_not_merged():
    first, second = loaders(False, 2)
    next(first)
    with pytest.raises(ValueError, match=r"\[0, 4\]"):
        first.merge([first.state(), second.state()])
    close([first, second])


@given(st.integers(1, 200), st.integers(1, 64))
def test_the_micro_batch_is_the_largest_divisor_within_the_limit(each, limit):
    best = micro_batch_for(each, limit)
    assert best <= limit
    assert each % best == 0
    assert not any(each % size == 0 for size in range(best + 1, min(limit, each) + 1))


def test_a_step_that_does_not_divide_is_explained():
    with pytest.raises(UserError, match=r"run.batch_tokens.*13 sequences.*3 rank") as caught:
        loaders(False, world=3, sequences=13)
    assert f"{12 * WINDOW} or {15 * WINDOW}" in caught.value.remedy
    with pytest.raises(UserError, match=r"6 sequences.*run.micro_batch = 4") as caught:
        loaders(False, world=2, sequences=12, micro_batch=4)
    assert "1, 2, 3, 6" in caught.value.remedy
    for sequences_, micro_batch in ((0, 1), (12, 0)):
        with pytest.raises(UserError):
            loaders(False, sequences=sequences_, micro_batch=micro_batch)


@pytest.mark.parametrize("streaming", [False, True])
def test_validation_is_held_out_and_the_same_every_time(streaming):
    source = MemorySource(TEXTS, streaming=streaming)
    found = open_validation(source, Bytes(), WINDOW, 0.3, 4)
    held_out = [i for t in TEXTS if is_validation(t, 0.3) for i in (*t.encode(), 256)]
    everything = open_validation(source, Bytes(), WINDOW, 0.3, 10_000)
    count = (len(held_out) - 1) // WINDOW
    assert everything.tolist() == [held_out[i * WINDOW : i * WINDOW + WINDOW + 1] for i in range(count)]
    # Spread over all of it, first and last included; a stream has no end, so there they are the first.
    places = range(4) if streaming else [round(i * (count - 1) / 3) for i in range(4)]
    assert count > 8
    assert found.tolist() == [everything[place].tolist() for place in places]


@pytest.mark.parametrize("streaming", [False, True])
def test_validation_that_cannot_be_had_is_explained(streaming):
    source = MemorySource(TEXTS, streaming=streaming)
    for share, window, words in ((0.0, 9, "share is 0"), (1.0, 9, "below 1"), (0.1, 5_000, "T = 5,000")):
        with pytest.raises(UserError, match=words) as caught:
            open_validation(source, Bytes(), window, share, 4)
        assert "data.validation_fraction" in caught.value.remedy


def test_progress_is_told_while_the_token_file_is_made():
    reports = []
    open_training_stream(MemorySource(TEXTS), Bytes(), WINDOW, 0, 0.1, progress=reports.append)
    open_validation(MemorySource(TEXTS), Bytes(), WINDOW, 0.1, 1, progress=reports.append)
    assert len(reports) == 2

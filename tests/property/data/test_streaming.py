import json
from itertools import islice

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mcframe.data.loader import Loader
from mcframe.data.split import is_validation
from mcframe.data.streaming import StreamedWindows, first_validation_windows
from mcframe.data.tokenizers import Bytes
from mcframe.errors import UserError
from tests.support.memory_source import MemorySource, some_texts

TEXTS = some_texts(90, longest=40)
WINDOW = 7
FRACTION = 0.2


def reference(source, lanes, count):
    """Return the first `count` sequences, lane by lane, as they are defined."""
    streams = [[] for _ in range(lanes)]
    epoch, sequences = 0, {}
    while True:
        for lane, stream in enumerate(streams):
            for n in range((len(stream) - 1) // WINDOW):
                sequences[n * lanes + lane] = stream[n * WINDOW : n * WINDOW + WINDOW + 1]
        if all(i in sequences for i in range(count)):
            return [sequences[i] for i in range(count)]
        for index, text in enumerate(source.documents(epoch)):
            if not is_validation(text, FRACTION):
                streams[(index + epoch) % lanes] += [*text.encode(), 256]
        epoch += 1


def stream(source, lanes, rank=0, world=1):
    return StreamedWindows(source, Bytes(), WINDOW, FRACTION, rank=rank, world_size=world, lanes=lanes)


@pytest.mark.parametrize("lanes", [1, 4, 6, 64])
@pytest.mark.parametrize("shuffled", [False, True])
def test_the_order_equals_the_reference_over_epochs(lanes, shuffled):
    source = MemorySource(TEXTS, streaming=True, shuffled=shuffled)
    expected = reference(source, lanes, 900)  # an epoch has about 210
    assert stream(source, lanes).take(range(900)).tolist() == expected


RUNS = st.lists(st.tuples(st.integers(1, 7), st.integers(0, 9)), min_size=1, max_size=4)


@settings(deadline=None, max_examples=40)
@given(
    runs=RUNS,
    lanes=st.sampled_from([1, 4, 6]),
    texts=st.integers(1, 60),
    shuffled=st.booleans(),
    positions=st.booleans(),
)
@example(runs=[(1, 9), (3, 9), (2, 9)], lanes=6, texts=60, shuffled=True, positions=True)
@example(runs=[(4, 9), (5, 0), (1, 9)], lanes=4, texts=1, shuffled=False, positions=True)
@example(runs=[(4, 9)], lanes=4, texts=1, shuffled=True, positions=False)
@example(runs=[(6, 9)], lanes=6, texts=2, shuffled=True, positions=True)
def test_ranks_may_change_at_every_interruption(runs, lanes, texts, shuffled, positions):
    """Each run has another number of ranks, takes some steps, and continues from the merged state of the run before."""
    every = [f"start {lanes}", *TEXTS[:texts]]
    source = MemorySource(every, streaming=True, shuffled=shuffled, positions=positions)
    if all(is_validation(text, FRACTION) for text in source.texts):
        return
    position, state, taken = 0, None, {}
    for world, steps in runs:
        ranks = [stream(source, lanes, rank, world) for rank in range(world)]
        for rank in ranks:
            if state:
                rank.restore(state)
        for _ in range(steps):
            span = range(position, position + 2 * world)
            position = span.stop
            for rank, one in enumerate(ranks):
                own = [i for i in span if i % world == rank]
                taken |= dict(zip(own, one.take(own).tolist(), strict=True))
        state = json.loads(json.dumps(ranks[0].merge([one.state() for one in ranks])))
    assert [taken[i] for i in range(position)] == reference(source, lanes, position)


@pytest.fixture
def encoded():
    """Texts in the order in which `Counting` has encoded them."""
    return []


@pytest.fixture
def counting(encoded):
    class Counting(Bytes):
        def encode_batch(self, texts):
            encoded.extend(texts)
            return super().encode_batch(texts)

    return Counting()


def test_a_rank_tokenises_only_its_lanes(counting, encoded):
    texts = [f"document {i}" for i in range(400)]

    def tokenised(rank, world):
        encoded.clear()
        one = StreamedWindows(MemorySource(texts), counting, WINDOW, 0.0, rank=rank, world_size=world, lanes=8)
        one.take([i for i in range(300) if i % world == rank])
        assert set(encoded) <= {text for i, text in enumerate(texts) if world == 3 or i % 4 == rank}
        return len(encoded)

    assert tokenised(1, 4) < 0.5 * tokenised(0, 3)


def test_resuming_reads_from_the_positions_of_the_lanes(counting, encoded):
    source = MemorySource([f"document {i:05}" for i in range(2_000)])
    one, resumed = (StreamedWindows(source, counting, WINDOW, 0.0, lanes=4) for _ in range(2))
    one.take(range(3_000))
    resumed.restore(one.state())
    encoded.clear()
    assert resumed.take(range(3_000, 3_010)).equal(one.take(range(3_000, 3_010)))
    assert len(encoded) <= 64


def test_resuming_twice_reads_only_what_follows_and_continues_bit_for_bit():
    """A loader on two ranks, then on one, then on two again, against the uninterrupted sequences."""
    texts = [f"document {i:05} {'word ' * (i % 7)}" for i in range(8_000)]
    expected = StreamedWindows(MemorySource(texts), Bytes(), WINDOW, 0.0, lanes=4).take(range(18_100))
    state, position = None, 0
    for world, sequences in ((2, 6_000), (1, 6_000), (2, 6_000), (1, 100)):
        sources = [MemorySource(texts, streaming=True, positions=True) for _ in range(world)]
        loaders = [
            Loader(
                StreamedWindows(source, Bytes(), WINDOW, 0.0, rank=rank, world_size=world, lanes=4),
                batch_sequences=100, micro_batch=100 // world, rank=rank, world_size=world, prefetch=0,
            )
            for rank, source in enumerate(sources)
        ]  # fmt: skip
        for loader in loaders:
            if state:
                loader.restore(state)
        position += sequences
        passed = state["stream"]["source"][1] if state else 0
        for _ in range(sequences // 100):
            batches = [next(loader) for loader in loaders]
            for batch in batches:
                assert batch.tokens.equal(expected[batch.indices])
        state = json.loads(json.dumps(loaders[0].merge([loader.state() for loader in loaders])))
        foremost = max(document for _, _, _, document, _ in state["stream"]["lanes"])
        hindmost = min(document for _, _, _, document, _ in state["stream"]["lanes"])
        assert hindmost - 64 < state["stream"]["source"][1] <= hindmost
        for source in sources:  # a batch of documents and one micro-batch are read ahead
            assert foremost - passed < source.read <= foremost - passed + 256
        for loader in loaders:
            loader.close()
    assert (position, passed > 2_000) == (18_100, True)


def test_a_source_without_positions_is_read_again_in_the_open(caplog):
    texts = [f"document {i:05}" for i in range(2_000)]
    for positions in (False, True):
        source = MemorySource(texts, streaming=True, positions=positions)
        one, resumed = (StreamedWindows(source, Bytes(), WINDOW, 0.0, lanes=4) for _ in range(2))
        one.take(range(3_000))
        state, older = one.state(), {key: value for key, value in one.state().items() if key != "source"}
        following = one.take(range(3_000, 3_010))
        for saved in (state, older):
            caplog.clear()
            source.read = 0
            resumed.restore(StreamedWindows.merge([saved, saved]))
            assert resumed.take(range(3_000, 3_010)).equal(following)
            again = not positions or saved is older
            assert source.read == pytest.approx(1_500 if again else 100, abs=200)
            lines = [line for line in caplog.messages if "MemorySource has no position to resume from" in line]
            assert len(lines) == again


def test_an_index_that_has_passed_or_belongs_to_another_rank_is_an_error():
    one = stream(MemorySource(TEXTS), 4, rank=0, world=2)
    one.take([0, 2, 4])
    for index in (0, 4, 7):
        with pytest.raises(ValueError, match=f"sequence {index} "):
            one.take([index])
    assert one.take([]).shape == (0, WINDOW + 1)


def test_a_state_of_another_stream_is_an_error():
    one = stream(MemorySource(TEXTS), 5)
    for state in (stream(MemorySource(TEXTS), 4).state(), {"seed": 0, "window": WINDOW, "windows": 9}):
        with pytest.raises(UserError, match="data stream of the checkpoint"):
            one.restore(state)


@pytest.mark.parametrize("texts", [[text for text in TEXTS if is_validation(text, FRACTION)], []])
def test_a_stream_without_training_documents_is_an_error(texts):
    with pytest.raises(UserError, match=r"train split|expected documents, got none"):
        stream(MemorySource(texts), 4).take([0])


def test_a_failed_stream_stays_failed():
    class Failing(MemorySource):
        def documents(self, epoch=0):
            yield from islice(super().documents(epoch), 70)
            raise UserError("the network is gone", remedy="resume later")

    one = stream(Failing(TEXTS), 4)
    with pytest.raises(UserError, match="network"):
        one.take(range(1_000))
    with pytest.raises(RuntimeError):
        one.take(range(1_000, 2_000))


def test_validation_windows_are_the_first_ones_of_the_held_out_documents():
    source = MemorySource(TEXTS, streaming=True)
    held_out = [i for t in TEXTS if is_validation(t, FRACTION) for i in (*t.encode(), 256)]
    every = [held_out[s : s + WINDOW + 1] for s in range(0, len(held_out) - WINDOW, WINDOW)]
    for count in (1, 5, 10_000):
        found = first_validation_windows(source, Bytes(), WINDOW, FRACTION, count)
        assert found.tolist() == every[:count]
    source = MemorySource(some_texts(400), streaming=True)
    first_validation_windows(source, Bytes(), WINDOW, FRACTION, 1)
    assert source.read < 200
    source.read = 0
    first_validation_windows(source, Bytes(), WINDOW, FRACTION, 10_000, scan=30)
    assert source.read == 30


def test_a_stream_without_validation_windows_is_an_error():
    with pytest.raises(UserError, match="validation split has no documents"):
        first_validation_windows(MemorySource(["x"]), Bytes(), WINDOW, 0.01, 1)
    with pytest.raises(UserError, match=r"T = 5,000, got"):
        first_validation_windows(MemorySource(TEXTS), Bytes(), 5_000, FRACTION, 1)

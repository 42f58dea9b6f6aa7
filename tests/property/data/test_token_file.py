import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.data.token_file import ShuffledWindows, TokenFile, token_file
from mcframe.data.tokenizers import Bytes
from mcframe.errors import UserError
from tests.support.memory_source import MemorySource, documents_in, some_texts

TEXTS = some_texts(700)


def stream_of(texts):
    return [i for text in texts for i in (*text.encode(), 256)]


def open_file(source, split="train", fraction=0.1):
    return token_file(source, Bytes(), split=split, fraction=fraction)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_token_file_holds_its_split(split):
    file = open_file(MemorySource(TEXTS), split, 0.3)
    expected = stream_of(documents_in(MemorySource(TEXTS), split, 0.3))
    tokens = np.load(file.path)
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == expected
    assert file.length == len(expected)
    assert file.windows(10) == (len(expected) - 1) // 10
    assert file.gather([1, 0], 10).tolist() == [expected[10:21], expected[0:11]]


def test_the_corpus_is_tokenised_once_and_again_after_a_change():
    def written(texts, **options):
        source = MemorySource(texts)
        open_file(source, **options)
        return source.read > 0

    assert written(TEXTS)
    assert not written(TEXTS)
    assert written([*TEXTS, "new"])
    assert written(TEXTS, fraction=0.2)
    assert written(TEXTS, split="validation")


def test_of_many_writers_one_writes():
    class CountingSource(MemorySource):
        def documents(self, epoch=0):
            opened.append(threading.current_thread())
            yield from super().documents(epoch)

    opened, files = [], []
    start = threading.Barrier(6)

    def write():
        start.wait()
        files.append(open_file(CountingSource(TEXTS)))

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 2, "to find clusters and to write"
    assert len(set(opened)) == 1
    assert len(files) == 6
    assert len({file.length for file in files}) == 1


def test_an_interrupted_writer_leaves_no_token_file(cache):
    class Broken(MemorySource):
        def documents(self, epoch=0):
            yield from super().documents(epoch)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_file(Broken(TEXTS))
    assert not list(cache.rglob("*.npy"))
    assert np.load(open_file(MemorySource(TEXTS)).path).tolist() == stream_of(
        documents_in(MemorySource(TEXTS), "train", 0.1)
    )
    assert not list(cache.rglob("*.partial"))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_source_without_documents_is_an_error(cache, split):
    with pytest.raises(UserError, match="expected documents, got none"):
        open_file(MemorySource([]), split)
    assert not list(cache.rglob("*.npy"))


def test_a_read_only_cache_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MCFRAME_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError) as caught:
        open_file(MemorySource(TEXTS))
    assert "MCFRAME_CACHE" in caught.value.remedy


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """53 windows of T = 4: window i begins with token 4 i."""
    path = tmp_path_factory.mktemp("tokens") / "t.npy"
    np.save(path, np.arange(53 * 4 + 3, dtype=np.uint16))
    return TokenFile(path)


def test_every_epoch_has_every_window_once_in_another_order(numbered):
    windows = ShuffledWindows(numbered, 4, seed=3)
    epochs = [windows.take(range(53 * e, 53 * (e + 1)))[:, 0].tolist() for e in range(3)]
    for order in epochs:
        assert sorted(order) == list(range(0, 53 * 4, 4))
        assert order != sorted(order)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    other = ShuffledWindows(numbered, 4, seed=4).take(range(53))[:, 0].tolist()
    assert other != epochs[0]


@settings(max_examples=50)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=8))
def test_a_sequence_is_a_function_of_its_index(numbered, indices):
    every = ShuffledWindows(numbered, 4, seed=-1).take(range(401))
    assert ShuffledWindows(numbered, 4, seed=-1).take(indices).equal(every[indices])
    assert every.shape == (401, 5)


def test_the_order_is_the_same_in_every_version(numbered):
    assert (ShuffledWindows(numbered, 4, seed=0).take(range(8))[:, 0] // 4).tolist() == [0, 43, 38, 21, 2, 11, 20, 17]


def test_a_state_of_other_data_is_an_error(numbered):
    windows = ShuffledWindows(numbered, 4, seed=0)
    windows.restore(windows.merge([windows.state(), windows.state()]))
    for other in (ShuffledWindows(numbered, 5, seed=0), ShuffledWindows(numbered, 4, seed=1)):
        with pytest.raises(UserError, match="data stream of the checkpoint"):
            other.restore(windows.state())


def test_a_corpus_shorter_than_a_window_is_an_error(numbered):
    assert ShuffledWindows(numbered, 214, seed=0).count == 1
    with pytest.raises(UserError, match=r"216 tokens.*T = 215, got 215"):
        ShuffledWindows(numbered, 215, seed=0)

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcframe.data.split import documents_of
from mcframe.data.token_file import ShuffledWindows, TokenFile, token_file
from mcframe.data.tokenizers import Bytes
from mcframe.errors import UserError
from tests.support.memory_source import MemorySource, some_texts

TEXTS = some_texts(700)


def stream_of(texts):
    return [i for text in texts for i in (*text.encode(), 256)]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_token_file_holds_its_split(split):
    reports = []
    file = token_file(MemorySource(TEXTS), Bytes(), split=split, share=0.3, progress=reports.append)
    expected = stream_of(documents_of(TEXTS, split, 0.3))
    tokens = np.load(file.path)
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == expected
    assert file.length == len(expected) == reports[-1]
    assert reports == sorted(set(reports))
    assert file.windows(10) == (len(expected) - 1) // 10
    assert file.gather([1, 0], 10).tolist() == [expected[10:21], expected[0:11]]


def test_the_corpus_is_tokenised_once_and_again_where_something_changed():
    def written(source, split="train", share=0.1):
        reports = []
        token_file(source, Bytes(), split=split, share=share, progress=reports.append)
        return bool(reports)

    assert written(MemorySource(TEXTS))
    assert not written(MemorySource(TEXTS))
    assert written(MemorySource([*TEXTS, "new"]))
    assert written(MemorySource(TEXTS), share=0.2)
    assert written(MemorySource(TEXTS), split="validation")


def test_many_writers_write_once():
    class SlowSource(MemorySource):
        def documents(self, epoch=0):
            opened.append(threading.current_thread())
            yield from super().documents(epoch)

    opened, files = [], []
    start = threading.Barrier(6)

    def ask():
        start.wait()
        files.append(token_file(SlowSource(TEXTS), Bytes(), split="train", share=0.1))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1
    assert len({file.length for file in files}) == 1
    assert len(files) == 6


def test_an_interrupted_writer_leaves_nothing_that_is_taken_for_whole(cache):
    class Broken(MemorySource):
        def documents(self, epoch=0):
            yield from super().documents(epoch)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        token_file(Broken(TEXTS), Bytes(), split="train", share=0.1)
    assert not list(cache.rglob("*.npy"))
    file = token_file(MemorySource(TEXTS), Bytes(), split="train", share=0.1)
    assert np.load(file.path).tolist() == stream_of(documents_of(TEXTS, "train", 0.1))
    assert not list(cache.rglob("*.partial"))


def test_empty_splits_are_explained(cache):
    with pytest.raises(UserError, match="validation split") as caught:
        token_file(MemorySource(["only one"]), Bytes(), split="validation", share=0.001)
    assert "raise data.validation_fraction" in caught.value.remedy
    with pytest.raises(UserError, match="train split") as caught:
        token_file(MemorySource(["only one"]), Bytes(), split="train", share=0.999)
    assert "lower data.validation_fraction" in caught.value.remedy
    assert not list(cache.rglob("*.npy"))


def test_a_cache_that_cannot_be_written_is_explained(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MCFRAME_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot make the folder") as caught:
        token_file(MemorySource(TEXTS), Bytes(), split="train", share=0.1)
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


@given(st.lists(st.integers(0, 400), min_size=1, max_size=8))
def test_a_sequence_is_a_function_of_its_index(numbered, indices):
    whole = ShuffledWindows(numbered, 4, seed=-1).take(range(401))
    assert ShuffledWindows(numbered, 4, seed=-1).take(indices).equal(whole[indices])
    assert whole.shape == (401, 5)


def test_the_order_is_the_same_in_every_version(numbered):
    assert (ShuffledWindows(numbered, 4, seed=0).take(range(8))[:, 0] // 4).tolist() == [0, 43, 38, 21, 2, 11, 20, 17]


def test_restoring_into_other_data_is_refused(numbered):
    windows = ShuffledWindows(numbered, 4, seed=0)
    windows.restore(windows.merge([windows.state(), windows.state()]))
    for other in (ShuffledWindows(numbered, 5, seed=0), ShuffledWindows(numbered, 4, seed=1)):
        with pytest.raises(UserError, match="other data"):
            other.restore(windows.state())


def test_a_corpus_shorter_than_a_window_is_explained(numbered):
    assert ShuffledWindows(numbered, 214, seed=0).count == 1
    with pytest.raises(UserError, match=r"215 training tokens.*216.*T = 215"):
        ShuffledWindows(numbered, 215, seed=0)

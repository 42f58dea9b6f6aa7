import contextlib
import sysconfig
from pathlib import Path

import pytest

from mcframe.data.sources import HuggingFace, StandardLibrary
from mcframe.errors import UserError
from tests.support.text_files import fails, write_parquet


def test_the_standard_library_is_complete_without_packages_and_tests():
    source = StandardLibrary()
    root = Path(sysconfig.get_path("stdlib"))
    names = source._files
    assert names == sorted(names)
    assert {"argparse.py", "json/decoder.py", "asyncio/events.py"} <= set(names)
    assert not [name for name in names if {"site-packages", "dist-packages", "test", "tests"} & set(name.split("/"))]
    documents = list(source.documents())
    assert documents == list(source.documents(epoch=1))
    assert (root / "json" / "decoder.py").read_text() in documents
    assert sum(map(len, documents)) > 5_000_000


def test_a_pattern_limits_the_standard_library_and_changes_its_identity():
    assert StandardLibrary("json/*.py").identity == StandardLibrary("json/*.py").identity
    assert StandardLibrary("json/*.py").identity != StandardLibrary("email/*.py").identity
    fails(StandardLibrary("*.nothing").documents().__next__, "*.nothing", "text.local_files")


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    import datasets

    # A data set that is not streamed is copied to this folder.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    texts = [f"document {i}" for i in range(50)]
    write_parquet(tmp_path / "set" / "train-00000-of-00001.parquet", texts)
    write_parquet(tmp_path / "set" / "test-00000-of-00001.parquet", ["held out"])
    return tmp_path / "set", texts


@pytest.mark.parametrize("streaming", [True, False])
def test_a_data_set_folder_is_read(hub_folder, streaming):
    folder, texts = hub_folder
    assert list(HuggingFace(str(folder), streaming=streaming).documents()) == texts
    assert list(HuggingFace(str(folder), split="test", streaming=streaming).documents(epoch=2)) == ["held out"]


def test_a_shuffled_stream_differs_by_epoch_and_seed_and_repeats(hub_folder, monkeypatch):
    import datasets

    # A shuffled parquet stream that ends waits 5 s for its threads.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1, raising=False)
    folder, texts = hub_folder

    def order(epoch, seed=0):
        return list(HuggingFace(str(folder), shuffle_buffer=20, seed=seed).documents(epoch))

    assert order(0) == order(0)
    assert sorted(order(0)) == sorted(texts)
    assert len({tuple(o) for o in (texts, order(0), order(1), order(0, seed=1))}) == 4


def test_identity_follows_the_parameters():
    assert HuggingFace("a/b").identity == HuggingFace("a/b").identity
    kinds = [{}, {"subset": "x"}, {"split": "test"}, {"text_field": "y"}, {"revision": "z"}, {"shuffle_buffer": 9}]
    assert len({HuggingFace("a/b", **kind).identity for kind in kinds}) == len(kinds)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_data_set_without_rows_is_an_error(hub_folder, streaming):
    folder, _ = hub_folder
    write_parquet(folder / "train-00000-of-00001.parquet", [])
    found = []
    with contextlib.suppress(UserError):  # a set that is not streamed has simply no documents
        found = list(HuggingFace(str(folder), streaming=streaming).documents())
    assert found == []


def test_a_nested_field_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"meta": {"body": "x"}}\n')
    assert list(HuggingFace(str(tmp_path), text_field="meta.body").documents()) == ["x"]


def test_data_sets_that_cannot_be_read_are_errors(hub_folder):
    folder, _ = hub_folder
    fails(lambda: next(HuggingFace("no-user/no-set").documents()), "no-user/no-set", "@text.local_files")
    fails(lambda: next(HuggingFace(str(folder), split="dev").documents()), "dev")
    fails(lambda: next(HuggingFace(str(folder), subset="en").documents()), "en")
    fails(lambda: next(HuggingFace(str(folder), text_field="body").documents()), "'body'", "id, text")
    fails(lambda: next(HuggingFace(str(folder / "none")).documents()), "none")

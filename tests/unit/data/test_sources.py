import json
import os
import sysconfig
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mcframe.data.sources import HuggingFace, LocalFiles, StandardLibrary
from mcframe.errors import UserError


def write_parquet(file, texts, field="text"):
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"id": range(len(texts)), field: texts}), file)


def write_jsonl(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    """Make files of every kind, in nested folders, with names that look like patterns."""
    root = tmp_path / "corpus [1]"
    (root / "deep").mkdir(parents=True)
    (root / "b.txt").write_text("second\nfile")
    (root / "a*.txt").write_bytes(b"first \xff")
    (root / "deep" / "c.MD").write_text("third")
    (root / "empty.txt").write_text("")
    (root / "picture.png").write_bytes(b"no text")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "h.txt").write_text("hidden")
    write_jsonl(root / "rows.jsonl", [{"text": "row 1", "n": 1}, {"text": None, "n": 2}, {"text": "row 2", "n": 3}])
    write_parquet(root / "deep" / "table.parquet", ["cell 1", "", "cell 2"])
    return root


ALL = ["first \ufffd", "second\nfile", "third", "row 1", "row 2", "cell 1", "cell 2"]


def fails(call, *parts):
    with pytest.raises(UserError) as caught:
        call()
    assert caught.value.remedy
    for part in parts:
        assert part in str(caught.value)


def test_the_standard_library_is_complete_without_packages_and_tests():
    source = StandardLibrary()
    root = Path(sysconfig.get_path("stdlib"))
    names = [file.relative_to(root).as_posix() for file in source._files()]
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


def test_local_files_of_every_kind_in_order(folder):
    assert list(LocalFiles(str(folder)).documents()) == ALL
    assert list(LocalFiles([str(folder)], streaming=True).documents(epoch=3)) == ALL


def test_the_example_leaves_no_tokens_in_the_cache(tmp_path):
    example = LocalFiles(**LocalFiles.example_settings(tmp_path))
    assert list(example.documents())
    assert example.streaming  # otherwise a token file would be cached under an identity that contains the folder


def test_paths_keep_their_order_and_every_file_is_read_once(folder):
    paths = [str(folder / "b.txt"), str(folder), str(folder / "b.txt")]
    assert list(LocalFiles(paths).documents()) == [ALL[1], ALL[0], *ALL[2:]]


def test_home_and_relative_paths(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder / "deep")
    assert list(LocalFiles(["~/b.txt", "c.MD"]).documents()) == ["second\nfile", "third"]


def test_identity_follows_files_and_field(folder):
    before = LocalFiles(str(folder)).identity
    assert LocalFiles(str(folder)).identity == before
    assert LocalFiles(str(folder), text_field="id").identity != before
    (folder / "picture.png").write_bytes(b"still no text")
    assert LocalFiles(str(folder)).identity == before
    os.utime(folder / "b.txt", ns=(1, 1))
    touched = LocalFiles(str(folder)).identity
    assert touched != before
    (folder / "new.txt").write_text("new")
    assert LocalFiles(str(folder)).identity not in (before, touched)


def test_no_copy_is_made(folder, tmp_path):
    import datasets

    before = set(Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow"))
    list(LocalFiles(str(folder)).documents())
    assert set(Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow")) == before


@pytest.mark.parametrize(
    ("path", "options", "words"),
    [
        ("missing.txt", {}, ["missing.txt", "text.local_files.paths"]),
        ("empty", {}, ["expected .txt", "text.local_files.paths"]),
        (None, {}, ["empty list"]),
        ("page.html", {}, ["page.html", ".jsonl"]),
        ("rows.jsonl", {}, ["'text'", "body, n", "text_field"]),
        ("rows.jsonl", {"text_field": "n"}, ["int"]),
        ("table.parquet", {}, ["'text'", "text_field"]),
        ("broken.jsonl", {}, ["broken.jsonl", "Repair"]),
        ("broken.parquet", {}, ["broken.parquet", "Repair"]),
    ],
)
def test_files_that_cannot_be_read_are_errors(tmp_path, path, options, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.html").write_text("<p>")
    write_jsonl(tmp_path / "rows.jsonl", [{"body": "x", "n": 1}])
    write_parquet(tmp_path / "table.parquet", ["x"], "body")
    for name in ("broken.jsonl", "broken.parquet"):
        (tmp_path / name).write_text('{"text": "a"}\n{"te')
    fails(lambda: list(LocalFiles([str(tmp_path / path)] if path else [], **options).documents()), *words)


@pytest.mark.parametrize("name", ["rows.jsonl", "table.parquet"])
def test_another_text_field(tmp_path, name):
    write_jsonl(tmp_path / "rows.jsonl", [{"body": "x", "n": 1}])
    write_parquet(tmp_path / "table.parquet", ["x"], "body")
    assert list(LocalFiles(str(tmp_path / name), text_field="body").documents()) == ["x"]


def test_a_field_that_is_missing_in_some_files_is_an_error(tmp_path):
    write_jsonl(tmp_path / "1.jsonl", [{"text": "x"}])
    write_jsonl(tmp_path / "2.jsonl", [{"body": "y"}])
    fails(lambda: list(LocalFiles(str(tmp_path)).documents()), "'text'", "body")


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


def test_data_sets_that_cannot_be_read_are_errors(hub_folder):
    folder, _ = hub_folder
    fails(lambda: next(HuggingFace("no-user/no-set").documents()), "no-user/no-set", "@text.local_files")
    fails(lambda: next(HuggingFace(str(folder), split="dev").documents()), "dev")
    fails(lambda: next(HuggingFace(str(folder), subset="en").documents()), "en")
    fails(lambda: next(HuggingFace(str(folder), text_field="body").documents()), "'body'", "id, text")
    fails(lambda: next(HuggingFace(str(folder / "none")).documents()), "none")

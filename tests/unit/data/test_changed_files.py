"""Text and token files that change while a run reads them."""

import os

import pytest

from mcframe.data.local_files import LocalFiles
from mcframe.data.streaming import StreamedWindows
from mcframe.data.token_file import token_file
from mcframe.data.tokenizers import Bytes
from mcframe.errors import UserError
from tests.support.memory_source import MemorySource, some_texts


@pytest.fixture
def tokens(tmp_path, monkeypatch):
    monkeypatch.setenv("MCFRAME_CACHE", str(tmp_path))
    return token_file(MemorySource(some_texts(300)), Bytes(), split="train", fraction=0.1)


def test_a_token_file_that_is_truncated_is_named(tokens):
    """The system would end the process with SIGBUS, without a message."""
    os.truncate(tokens.path, 200)
    with pytest.raises(UserError, match="has been truncated while it was read") as caught:
        tokens.gather([5], 64)
    assert caught.value.location.file == tokens.path


def test_a_token_file_that_is_deleted_or_replaced_is_read_on(tokens):
    before = tokens.gather([5], 64)
    tokens.path.unlink()
    tokens.path.write_bytes(b"another")
    assert tokens.gather([5], 64).equal(before)


def test_a_text_file_that_is_truncated_while_it_is_read_is_named(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "some words"}\n' * 20_000)
    documents = LocalFiles(str(file)).documents()
    next(documents)
    os.truncate(file, 100_000 // 23 * 23)
    with pytest.raises(UserError, match=r"truncated while it was read|cannot read the file") as caught:
        list(documents)
    assert "a.jsonl" in str(caught.value)


def test_a_text_file_that_is_deleted_before_its_turn_is_named(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("some words " * 100)
    documents = LocalFiles(str(tmp_path)).documents()
    next(documents)
    (tmp_path / "b.txt").unlink()
    with pytest.raises(UserError, match="cannot read the file: No such file") as caught:
        list(documents)
    assert "b.txt" in str(caught.value)


def test_a_stream_whose_text_has_changed_ends_at_the_next_epoch(tmp_path):
    """Other documents would have the numbers that the position counts."""
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"text": "some words of a document"}\n' * 50)
    windows = StreamedWindows(LocalFiles(str(tmp_path), streaming=True), Bytes(), 16, 0.1, lanes=2)
    windows.take(range(20))
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(UserError, match="the text has changed since the run started"):
        windows.take(range(20, 2000))

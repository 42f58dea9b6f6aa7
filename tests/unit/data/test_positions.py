"""Positions of text sources: any of them continues with the documents that follow it, without reading those before."""

import gzip
import json

import pytest

from mcframe.data import local_files, sources
from mcframe.data.local_files import LocalFiles
from mcframe.data.mixture import Mixture
from mcframe.data.positions import positioned
from mcframe.data.sources import HuggingFace
from mcframe.registry.checks import ContractError
from tests.support.memory_source import MemorySource
from tests.support.text_files import write_parquet


@pytest.fixture
def folder(tmp_path):
    """Six files of twenty rows, of which one is empty."""
    for name in "abcdef":
        rows = [{"text": f"{name} {row}" if row != 7 else ""} for row in range(20)]
        if name == "c":
            write_parquet(tmp_path / "set" / f"{name}.parquet", [each["text"] for each in rows], row_group_size=8)
        else:
            lines = "".join(json.dumps(each) + "\n" for each in rows).encode()
            (tmp_path / "set").mkdir(exist_ok=True)
            (tmp_path / "set" / f"{name}.jsonl").write_bytes(lines)
    return tmp_path / "set"


def jsonl_only(folder):
    (folder / "c.parquet").unlink()
    return folder


SOURCES = {
    "files": lambda folder: LocalFiles(str(folder), streaming=True),
    "hub of jsonl": lambda folder: HuggingFace(str(folder)),
    "hub of parquet": lambda folder: HuggingFace(str(folder)),
    "mixture": lambda folder: Mixture(
        sources=[
            lambda: LocalFiles(str(folder), streaming=True),
            lambda: MemorySource(map(str, range(99))),
            lambda: MemorySource(["only " * 4_000]),
        ],
        weights=(2, 1, 1),
    ),
    "one document": lambda folder: MemorySource(["only one " * 4_000], streaming=True, positions=True),
    "without positions": lambda folder: MemorySource(map(str, range(99)), streaming=True),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_position_continues_with_what_follows(folder, name):
    if name == "hub of jsonl":
        jsonl_only(folder)
    elif name == "hub of parquet":
        for file in folder.glob("*.jsonl"):
            file.unlink()
    build = SOURCES[name]
    pairs = list(positioned(build(folder), 1))
    texts = [text for text, _ in pairs]
    assert texts == [text for text, _ in positioned(build(folder), 1)]
    assert len(texts) > 15
    step = 1 if name != "hub of jsonl" else 9
    for number in range(0, len(pairs), step):
        position = json.loads(json.dumps(pairs[number][1]))
        assert position[0] == number + 1
        assert [text for text, _ in positioned(build(folder), 1, position)] == texts[number + 1 :]


def counted(monkeypatch, module, name):
    """Return the list of calls of a function, each with its first argument."""
    calls, function = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *values: (calls.append(values[0]), function(*values))[1])
    return calls


def test_rows_and_files_before_a_position_are_not_read(folder, monkeypatch):
    pairs = list(LocalFiles(str(folder), streaming=True).positioned_documents())
    files = counted(monkeypatch, local_files, "read_file")
    rest = list(LocalFiles(str(folder), streaming=True).positioned_documents(0, pairs[70][1]))
    assert rest == pairs[71:]
    assert [file.path.name for file in files] == ["d.jsonl", "e.jsonl", "f.jsonl"]

    pairs = list(HuggingFace(str(jsonl_only(folder))).positioned_documents())
    rows = counted(monkeypatch, sources, "text_of")
    for number in (30, 60, 90):
        rows.clear()
        rest = list(HuggingFace(str(folder)).positioned_documents(0, pairs[number][1]))
        assert [text for text, _ in rest] == [text for text, _ in pairs[number + 1 :]]
        assert len(rows) == 100 - pairs[number][1]["rows"]


def test_a_position_of_another_version_of_the_library_is_passed_by_reading(folder, monkeypatch):
    pairs = list(HuggingFace(str(jsonl_only(folder))).positioned_documents())
    rows = counted(monkeypatch, sources, "text_of")
    other = {**pairs[50][1], "datasets": "1.0", "state": {"unknown": 1}}
    assert list(HuggingFace(str(folder)).positioned_documents(0, other)) == pairs[51:]
    assert len(rows) == 100


def test_a_shuffle_buffer_and_a_set_that_is_not_streamed_have_no_position():
    for settings in ({"shuffle_buffer": 9}, {"streaming": False}):
        assert HuggingFace("a/b", **settings).positioned_documents() is None


def test_a_compressed_file_continues_within(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n{"text": "y"}\n{"text": "z"}\n'))
    pairs = list(LocalFiles(str(tmp_path)).positioned_documents())
    assert list(LocalFiles(str(tmp_path)).positioned_documents(0, pairs[0][1])) == pairs[1:]


def test_a_document_that_is_not_a_text_is_an_error():
    class Wrong(MemorySource):
        def positioned_documents(self, epoch=0, after=None):
            return iter([(b"x", 1)])

    with pytest.raises(ContractError, match=r"positioned_documents.*expected texts"):
        next(positioned(Wrong([])))

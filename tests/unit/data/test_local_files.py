"""Local files: which are read, what is skipped and why, encodings, and errors that name file and line."""

import bz2
import gzip
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mcframe.data.local_files import LocalFiles
from mcframe.errors import UserError
from tests.support.text_files import fails, write_parquet


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(*paths, **options):
    return list(LocalFiles([str(path) for path in paths], **options).documents())


@pytest.fixture
def folder(tmp_path):
    """Make files of every kind, in nested folders, with names that look like patterns."""
    root = tmp_path / "corpus [1]"
    (root / "deep").mkdir(parents=True)
    (root / "b.txt").write_text("second\nfile")
    (root / "a*.txt").write_text("first")
    (root / "deep" / "c.MD").write_text("third")
    (root / "empty.txt").write_text("")
    (root / "picture.png").write_bytes(b"no text")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "h.txt").write_text("hidden")
    (root / "rows.jsonl").write_text(lines({"text": "row 1"}, {"text": None}, {"text": "row 2", "n": 3}))
    write_parquet(root / "deep" / "table.parquet", ["cell 1", "", "cell 2"])
    return root


ALL = ["first", "second\nfile", "third", "cell 1", "cell 2", "row 1", "row 2"]


def test_files_of_every_kind_are_read_in_order(folder):
    assert read(folder) == ALL
    assert list(LocalFiles(str(folder), streaming=True).documents(epoch=3)) == ALL


def test_the_description_counts_what_is_read_and_names_what_is_not(folder):
    (folder / "data.json").write_text("[]")
    (folder / "all.tar.gz").write_bytes(b"packed")
    (folder / "README").write_text("no suffix")
    (folder / "gone.txt").symlink_to(folder / "nothing.txt")
    (folder / "again.txt").symlink_to(folder / "b.txt")
    os.mkfifo(folder / "pipe.txt")
    write_parquet(folder / "zero.parquet", [])
    found = LocalFiles(str(folder)).describe()
    assert found.startswith("7 documents; ")
    for part in (
        "in 6 files", "1 file without documents", "zero.parquet", "2 empty documents omitted", "1 hidden", ".hidden",
        "1 empty (", "empty.txt", "unknown suffix .png", "unknown suffix .json", "unknown suffix .tar.gz",
        "without suffix", "README", "broken links", "gone.txt",
        "read already under another name", "no regular files", "pipe.txt",
    ):  # fmt: skip
        assert part in found
    assert read(folder) == ALL  # again.txt is read, and b.txt is the same file


def test_a_long_file_is_described_by_its_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr("mcframe.data.local_files._SURVEY", 0)
    (tmp_path / "a.jsonl").write_text(lines(*[{"text": "x" * 1000}] * 100))
    assert LocalFiles(str(tmp_path)).describe().startswith("at least 1 document; 101,")


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst", ".lz4"])
def test_compressed_files_are_read(tmp_path, suffix):
    pack = {".gz": gzip.compress, ".bz2": bz2.compress}.get(
        suffix, lambda data: pyarrow.compress(data, {".zst": "zstd", ".lz4": "lz4"}[suffix], asbytes=True)
    )
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack(lines({"text": "1"}, {"text": "2"}).encode()))
    (tmp_path / f"b.TXT{suffix.upper()}").write_bytes(pack("three ä".encode()))
    assert read(tmp_path) == ["1", "2", "three ä"]
    cut = (tmp_path / f"a.jsonl{suffix}").read_bytes()[:-3]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(cut)
    fails(lambda: read(tmp_path), f"a.jsonl{suffix}", "Repair")
    (tmp_path / f"a.jsonl{suffix}").write_bytes(cut[:4])
    assert read(tmp_path) == ["three ä"]
    assert f"too short to be {suffix} files" in LocalFiles(str(tmp_path)).describe()


def test_links_are_followed_without_loops_and_without_reading_twice(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    for folder in (root / "deep", other):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(folder.name)
    (root / "loop").symlink_to(root)
    (root / "deep" / "up").symlink_to(tmp_path)
    (root / "one").symlink_to(other)
    (root / "two").symlink_to(other)
    os.link(other / "a.txt", root / "hard.txt")
    assert sorted(read(root)) == ["deep", "other"]
    assert read(root / "one") == ["other"]
    assert "folders read already" in LocalFiles(str(root)).describe()
    assert "links to a folder that contains them" in LocalFiles(str(root)).describe()


def test_folders_that_cannot_be_opened_are_named(folder, monkeypatch):
    real = os.scandir

    def scandir(path):
        if str(path).endswith(("deep", "closed")):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert "1 folders that cannot be opened (Permission denied)" in LocalFiles(str(folder)).describe()
    (folder / "closed").mkdir()
    fails(lambda: read(folder / "closed"), "cannot open", "Permission denied")


def test_the_example_leaves_no_tokens_in_the_cache(tmp_path):
    example = LocalFiles(**LocalFiles.example_settings(tmp_path))
    assert list(example.documents())
    assert example.streaming  # otherwise a token file would be cached under an identity that contains the folder


def test_paths_keep_their_order_and_every_file_is_read_once(folder):
    assert read(folder / "b.txt", folder, folder / "b.txt") == [ALL[1], ALL[0], *ALL[2:]]


def test_home_and_relative_paths(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder / "deep")
    assert read("~/b.txt", "c.MD") == ["second\nfile", "third"]


def test_identity_follows_files_and_settings(folder):
    before = LocalFiles(str(folder)).identity
    assert LocalFiles(str(folder)).identity == before
    assert LocalFiles(str(folder), text_field="id").identity != before
    assert LocalFiles(str(folder), encoding="cp1252").identity != before
    (folder / "picture.png").write_bytes(b"still no text")
    assert LocalFiles(str(folder)).identity == before
    os.utime(folder / "b.txt", ns=(1, 1))
    touched = LocalFiles(str(folder)).identity
    assert touched != before
    (folder / "new.txt").write_text("new")
    assert LocalFiles(str(folder)).identity not in (before, touched)


@pytest.mark.parametrize(
    ("path", "options", "words"),
    [
        ("missing.txt", {}, ["missing path", "missing.txt", "text.local_files.paths"]),
        ("page.html/x.txt", {}, ["missing path"]),
        ("", {}, ["text.local_files.paths", "unknown suffix .html", "without suffix"]),
        ("empty", {}, ["expected files with text (.txt", "text.local_files.paths"]),
        (None, {}, ["empty list"]),
        ("page.html", {}, ["page.html", ".jsonl"]),
        ("only/empty.jsonl", {}, ["text.local_files.paths: expected text, got only empty files (1)"]),
        ("only/null.jsonl", {}, ["expected text, got 2 empty documents", "null.jsonl"]),
        ("only/zero.parquet", {}, ["expected text, got 0 empty documents", "zero.parquet"]),
    ],
)
def test_paths_without_text_are_errors(tmp_path, path, options, words):
    for name in ("empty", "only"):
        (tmp_path / "top" / name).mkdir(parents=True)
    (tmp_path / "top" / "page.html").write_text("<p>")
    (tmp_path / "top" / "noname").write_text("<p>")
    only = tmp_path / "top" / "only"
    paths = [tmp_path / "top" / path] if path is not None else []
    if path and path.startswith("only"):
        (only / "empty.jsonl").write_text("")
        (only / "null.jsonl").write_text('{"text": null}\n\n{"text": ""}')
        write_parquet(only / "zero.parquet", [])
    fails(lambda: read(*paths, **options), *words)
    fails(lambda: LocalFiles([str(each) for each in paths], **options).describe(), *words)


def test_a_pattern_is_not_expanded_and_many_reasons_are_summed_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(lambda: read("*.txt"), "missing path *.txt", "patterns are not expanded")
    for number in range(16):
        (tmp_path / f"a.k{number}").write_text("x")
    fails(lambda: read("."), "1 of unknown suffix .k0 (a.k0)", "4 for other reasons")


def test_files_without_inode_numbers_differ_by_their_paths(folder, monkeypatch):
    real = Path.stat

    def stat(path, **options):
        facts = list(real(path, **options))
        return os.stat_result([*facts[:1], 0, *facts[2:]], {"st_mtime_ns": 1})

    monkeypatch.setattr(Path, "stat", stat)
    assert read(folder) == ALL


def test_integers_of_any_length_stand_in_other_columns(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "good", "n": ' + "9" * 5000 + "}\n")
    assert read(tmp_path) == ["good"]


@pytest.mark.parametrize("path", ["", "~user-that-is-missing/a.txt"])
def test_paths_that_are_none_are_errors(path):
    fails(lambda: LocalFiles(path), "text.local_files.paths: ", "text.local_files.paths")
    fails(lambda: read("a\0.txt"), "expected a path")


GOOD = lines({"text": "good"})


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ('{"text": "a\n', ["not JSON", "Unterminated string", "column 10"]),
        ("[1, 2]\n", ["expected one JSON object a line", "list"]),
        ('{"text": 3}\n', ["field 'text'", "expected a text", "int", "text_field"]),
        ('{"body": "x", "n": 1}\n', ["missing field 'text'", "body, n", "text_field"]),
        ("[" * 100_000 + "\n", ["cannot be parsed"]),
        ('{"n": ' + "9" * 5000 + "}\n", ["missing field 'text'"]),
        ("\0" * 50 + "\n", ["invalid characters"]),
        ('{"text": "caf\xe9"}\n', ["invalid characters"]),
    ],
)
def test_a_broken_line_is_named_by_file_and_line(tmp_path, broken, words):
    for number in range(4):
        (tmp_path / f"{number}.jsonl").write_text(GOOD)
    (tmp_path / "2.jsonl").write_bytes((GOOD + "\n" + GOOD + broken + GOOD).encode("latin-1"))
    fails(lambda: read(tmp_path), f"{tmp_path / '2.jsonl'}:4: ", *words)


def test_a_broken_row_group_is_named(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["x" * 1000, "y" * 1000] * 50, row_group_size=50, compression="snappy")
    metadata = pyarrow.parquet.read_metadata(tmp_path / "a.parquet")
    start = metadata.row_group(1).column(1).dictionary_page_offset
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[start : start + 20] = b"\xff" * 20
    (tmp_path / "a.parquet").write_bytes(content)
    fails(lambda: read(tmp_path), f"{tmp_path / 'a.parquet'}: cannot read row group 1")
    (tmp_path / "a.parquet").write_bytes(content[:-30])
    fails(lambda: read(tmp_path), f"{tmp_path / 'a.parquet'}: cannot read the file")


def test_only_the_field_of_the_text_matters(tmp_path):
    rows = [{"text": "1", "n": 1}, {"text": "2", "n": "one"}, {"n": [{}], "text": "3", "more": {"a": None}}]
    (tmp_path / "a.jsonl").write_text(lines(*rows))
    (tmp_path / "b.jsonl").write_text(lines({"text": "4"}))
    write_parquet(tmp_path / "c.parquet", ["5"])
    pyarrow.parquet.write_table(pyarrow.table({"id": ["a"], "text": ["6"]}), tmp_path / "d.parquet")
    pyarrow.parquet.write_table(
        pyarrow.table({"text": pyarrow.array(["7"]).dictionary_encode()}), tmp_path / "e.parquet"
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.nulls(2)}), tmp_path / "f.parquet")
    assert read(tmp_path) == list("1234567")
    pyarrow.parquet.write_table(pyarrow.table({"text": [1]}), tmp_path / "g.parquet")
    fails(lambda: read(tmp_path), "g.parquet: field 'text': expected texts, got values of type int64")
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "n": [1]}), tmp_path / "g.parquet")
    fails(lambda: read(tmp_path), "g.parquet: missing field 'text'; got body, n")


def test_nested_fields_are_named_with_dots(tmp_path):
    rows = [{"meta": {"text": "1", "n": 1}}, {"meta": None}, {"meta": {"text": None}}, {"meta.text": "2"}]
    (tmp_path / "a.jsonl").write_text(lines(*rows))
    table = pyarrow.table({"meta": [{"n": 1, "text": "3"}, None, {"n": 2, "text": "4"}], "text": ["no", "no", "no"]})
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    assert read(tmp_path, text_field="meta.text") == ["1", "2", "3", "4"]
    fails(lambda: read(tmp_path, text_field="meta.body"), "a.jsonl:1: missing field 'meta.body'; got text, n")
    fails(lambda: read(tmp_path / "b.parquet", text_field="meta.body"), "missing field 'meta.body'; got n, text")
    fails(lambda: read(tmp_path / "b.parquet", text_field="meta"), "field 'meta': expected texts")


def test_a_message_can_be_written_whatever_it_quotes(tmp_path):
    """A field or a file name with a lone surrogate."""
    (tmp_path / "a\udcff.jsonl").write_text('{"b\\ud887": null}')
    with pytest.raises(UserError, match=r"b\\ud887") as raised:
        list(LocalFiles(str(tmp_path)).documents())
    str(raised.value).encode("utf-8")


def test_lone_surrogates_are_replaced_and_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b \\ud83d\\ude00"}\n{"text": "c"}\n')
    assert read(tmp_path) == ["a\ufffdb \U0001f600", "c"]
    assert "1 invalid character replaced" in LocalFiles(str(tmp_path)).describe()


TEXT = "Der schöne Fluss fließt über die großen Straßen und weiter. " * 20


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_marked_encodings_are_read_without_the_mark(tmp_path, encoding, suffix):
    for name in "ab":
        content = TEXT if suffix == ".txt" else "".join(json.dumps({"text": TEXT}, ensure_ascii=False) + "\n")
        (tmp_path / (name + suffix)).write_bytes(content.encode(encoding))
    assert read(tmp_path) == [TEXT, TEXT]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_another_encoding_is_refused_until_it_is_stated(tmp_path, encoding, suffix):
    content = TEXT if suffix == ".txt" else json.dumps({"text": TEXT}, ensure_ascii=False) + "\n"
    (tmp_path / f"a{suffix}").write_bytes(content.encode(encoding))
    (tmp_path / f"b{suffix}").write_bytes(content.encode())
    fails(lambda: read(tmp_path), f"a{suffix}", "expected text in UTF-8", f"text.local_files.encoding = '{encoding}'")
    assert read(tmp_path, encoding=encoding) == [TEXT, TEXT]


def test_few_invalid_bytes_are_replaced_and_counted_and_binary_files_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * 1000 + b"\xff\r\ny\r")
    assert read(tmp_path) == ["x" * 1000 + "\ufffd\ny\n"]
    assert "1 invalid character replaced" in LocalFiles(str(tmp_path)).describe()
    (tmp_path / "b.txt").write_bytes(b"x" * 100 + b"\xff")
    fails(lambda: read(tmp_path), "b.txt: ", "1.0% invalid characters, above 0.1%")
    (tmp_path / "b.txt").write_bytes(bytes(range(256)) * 40)
    fails(lambda: read(tmp_path), "b.txt: ", "it is binary")
    fails(lambda: read(tmp_path, encoding="latin-1"), "b.txt: ", "it is binary")


def test_an_unknown_encoding_is_an_error():
    for name in ("klingon", "hex", "a\0b"):
        fails(lambda name=name: LocalFiles("x", encoding=name), "text.local_files.encoding", "cp1252")

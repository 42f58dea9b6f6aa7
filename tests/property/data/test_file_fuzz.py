"""Fuzz of data files: every corpus is read, or refused with one message.

MCFRAME_FUZZ_SECONDS=600 pytest -m matrix -s tests/property/data/test_file_fuzz.py
"""

import bz2
import gzip
import io
import json
import os
import shutil
import time
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from mcframe.data import plugin_checks
from mcframe.data.loader import open_training_stream, open_validation
from mcframe.data.local_files import LocalFiles
from mcframe.data.tokenizers import Bytes
from mcframe.errors import UserError

SECONDS = float(os.environ.get("MCFRAME_FUZZ_SECONDS", "5"))
ENCODINGS = ["utf-8"] * 20 + ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "shift_jis", "koi8-r"]
PACKED = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: pyarrow.compress(data, "zstd", asbytes=True),
    ".lz4": lambda data: pyarrow.compress(data, "lz4", asbytes=True),
    ".xz": bytes,
}

words = st.one_of(
    st.text(max_size=30),
    st.text("abc é\n", min_size=1, max_size=300),
    st.text(st.characters(categories=["Cs", "Cc", "Lo", "So"]), max_size=9),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=6,
)
good_rows = st.lists(st.fixed_dictionaries({"text": words}, optional={"n": values, "meta": values}), max_size=8)
any_rows = st.lists(
    st.dictionaries(st.sampled_from(["text", "meta", "n", "meta.text"]), values, max_size=4) | values, max_size=6
)
arrays = st.sampled_from([
    pyarrow.array(["a", "b", None]), pyarrow.array(["a", "b", "a"]).dictionary_encode(), pyarrow.nulls(3),
    pyarrow.array([1, 2, 3]), pyarrow.array([b"a", b"\xff", None]), pyarrow.array(["é" * 99, "", "x"], "large_string"),
    pyarrow.array([{"text": "a"}, None, {"text": None}]), pyarrow.array([["a"], [], None]),
    pyarrow.array([{"text": {"text": "deep"}}] * 3), pyarrow.array(["v"] * 3, pyarrow.string_view()),
])  # fmt: skip
changes = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1), st.just(b"")),
    st.tuples(st.just("insert"), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("write"), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("delete"), st.floats(0, 1), st.just(b"")),
    st.tuples(st.just("twice"), st.just(0.0), st.sampled_from([b"", b"\0" * 9, b"\n"])),
)


def changed(data, change):
    """Return damaged data."""
    kind, where, new = change
    at = int(where * len(data))
    return {
        "cut": data[:at], "insert": data[:at] + new + data[at:], "write": data[:at] + new + data[at + len(new) :],
        "delete": data[:at] + data[at + 5 :], "twice": data + new + data,
    }[kind]  # fmt: skip


def parquet(columns, groups, compression):
    table = pyarrow.table(columns or {"n": [1]})
    stream = io.BytesIO()
    pyarrow.parquet.write_table(
        table.slice(0, 0) if not groups else table, stream, groups or 1, compression=compression
    )
    return stream.getvalue()


@st.composite
def data_files(draw):
    """Draw a name, the bytes, and the texts that must be read if the file is not damaged; None if not known."""
    name = draw(st.sampled_from(["a", "b c", "[x]", "*", "é", "l\nine", "ü.x", "\udcff", "[red]", ".hid"])) + draw(
        st.sampled_from("0123")
    )
    kind = draw(st.sampled_from([".jsonl", ".jsonl", ".NDJSON", ".txt", ".md", ".parquet", ".parquet", ".json", ""]))
    pack, encoding, texts = "", "utf-8", None
    if kind == ".parquet":
        columns = draw(st.dictionaries(st.sampled_from(["text", "meta", "n", "meta.text"]), arrays, max_size=3))
        if draw(st.booleans()):
            columns["text"] = pyarrow.array(["x", None, "y\n"])
        data = parquet(columns, draw(st.integers(0, 3)), draw(st.sampled_from(["none", "snappy", "zstd", "gzip"])))
    else:
        pack, encoding = draw(st.sampled_from(["", "", *PACKED])), draw(st.sampled_from(ENCODINGS))
        if kind in (".txt", ".md"):
            text = draw(words)
            texts = [text.replace("\r\n", "\n").replace("\r", "\n")]
        else:
            rows, ascii_only = (
                draw(st.sampled_from([good_rows, good_rows, good_rows, any_rows]).flatmap(lambda rows: rows)),
                draw(st.booleans()),
            )
            text = draw(st.sampled_from(["\n", "\r\n", "\n\n"])).join(
                json.dumps(row, ensure_ascii=ascii_only) for row in rows
            )
            if all(isinstance(row, dict) and isinstance(row.get("text"), str) for row in rows):
                texts = [row["text"] for row in rows]
        data = PACKED[pack](text.encode(encoding, errors="replace"))
        known = encoding in ("utf-8", "utf-8-sig") and pack != ".xz" and kind not in (".json", ".csv", "")
        texts = texts if known and "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text) else None
    damage = draw(st.lists(changes, min_size=1, max_size=2)) if draw(st.integers(0, 4)) == 4 else []
    for change in damage:
        data = changed(data, change)
    texts = None if damage or name.startswith(".") else texts
    return name + kind + (draw(st.sampled_from([pack, pack.upper()])) if pack else ""), data, texts


options = st.fixed_dictionaries(
    {
        "text_field": st.sampled_from(["text"] * 20 + ["meta.text", "n", "", "."]),
        "encoding": st.sampled_from([None, None, None, "cp1252", "utf-16-le", "utf-8", "shift_jis"]),
        "streaming": st.booleans(),
    }
)
links = st.lists(
    st.tuples(st.sampled_from(["l0", "l1.txt", "sub/l2"]), st.sampled_from([".", "..", "sub", "no"])), max_size=2
)


def attempt(call):
    """Return the result, or the UserError; any other exception is a fault."""
    try:
        return call()
    except UserError as error:
        return error


def check(root, files, symlinks, chosen):
    shutil.rmtree(root, ignore_errors=True)
    (root / "sub").mkdir(parents=True)
    expected = []
    for number, (name, data, texts) in enumerate(files):
        file = root / ("sub" if number % 2 else ".") / name
        expected.append((file.relative_to(root).as_posix(), texts))
        file.write_bytes(data)
    for name, target in symlinks:
        if not (root / name).is_symlink():
            (root / name).symlink_to(target)
    source = LocalFiles(str(root), **chosen)
    found, described = attempt(lambda: list(source.documents())), attempt(source.describe)
    attempt(lambda: source.identity)
    assert isinstance(found, UserError) == isinstance(described, UserError)
    if isinstance(found, UserError):
        assert str(found) == str(described)
        assert found.remedy
        assert len(str(found).encode()) < 3000
        return False
    "".join(found).encode()
    assert all(found)
    assert described.startswith("1 document, " if len(found) == 1 else f"{len(found)} documents")
    last = dict(expected)  # of two files with one name, the last is written
    if chosen["text_field"] == "text" and all(texts is not None for texts in last.values()):
        required = [
            text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            for name in sorted(last)
            for text in last[name]
        ]
        assert [text for text in found if "\ufffd" not in text] == [t for t in required if t and "\ufffd" not in t]
    attempt(lambda: open_validation(source, Bytes(), 8, 0.4, 2))
    attempt(lambda: open_training_stream(source, Bytes(), 8, 0, 0.4).take([0, 1]))
    assert len(list(plugin_checks.documents(source))) >= len(found)
    return True


@pytest.mark.matrix
def test_every_corpus_is_read_or_refused_with_one_message(tmp_path, capsys):
    end, rounds, outcomes = time.monotonic() + SECONDS, 0, Counter()
    first = int(os.environ.get("MCFRAME_FUZZ_SEED", "0"))

    def one(files, symlinks, chosen):
        outcomes["read" if check(tmp_path / "corpus", files, symlinks, chosen) else "refused"] += 1

    relaxed = settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    while rounds == 0 or time.monotonic() < end:
        seed(first + rounds)(relaxed(given(st.lists(data_files(), max_size=4), links, options)(one)))()
        rounds += 1
    with capsys.disabled():
        print(f"\n{outcomes.total():,} corpora in {SECONDS:.0f} s: {dict(outcomes)}")
    assert min(outcomes["read"], outcomes["refused"]) > 0.1 * outcomes.total()

"""Readers of text, .jsonl and .parquet files: one file at a time, so that an error names file and line."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from mcframe.data.file_search import TextFile, named
from mcframe.errors import Location, UserError
from mcframe.hookspecs import Chat

TOLERATED = 1000
"""One in so many characters may be invalid, and is replaced by U+FFFD; with more, the file is refused."""

_INTEGER_DIGITS = 4000
_MARKS = {
    codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32-le", codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be",
}  # fmt: skip
"""Byte order marks; that of UTF-16-LE is the beginning of that of UTF-32-LE, which is therefore compared first."""

RowReader = Callable[[dict[str, Any]], str | None]
"""Returns the document of a row of a .jsonl file."""
_Reader = Callable[[TextFile, str | RowReader, str | None, Counter[str]], Iterator[str | None]]

_SURROGATES = re.compile("[\ud800-\udfff]")
_FIELD = "Set text.local_files.text_field to the field that holds the text."
_REPAIR = "Repair the file, or remove it from text.local_files.paths."


def read_file(file: TextFile, field: str | RowReader, encoding: str | None, counts: Counter[str]) -> Iterator[str]:
    """Yield the texts of a file, except empty ones.

    Args:
        file: The file.
        field: Field of the text in .jsonl and .parquet rows; dots separate the names of nested fields. Or a function of
            .jsonl rows, which are then the only ones.
        encoding: Encoding of a file that is not UTF-8 and has no byte order mark; None refuses such a file.
        counts: Receives the numbers of `documents`, of `empty` ones and of `replaced` characters.

    Raises:
        UserError: The file cannot be read; with its path and, where there are lines, the line.
    """
    import pyarrow

    readers: dict[str, _Reader] = {"text": _text, "jsonl": _jsonl, "parquet": _parquet}
    if callable(field) and file.kind != "jsonl":
        raise UserError(
            "expected .jsonl files, one JSON object a line, got another kind",
            remedy=_REPAIR,
            location=Location(named([file.path])),
        )
    try:
        for text in readers[file.kind](file, field, encoding, counts):
            valid, replaced = valid_text(text or "")
            counts["replaced"] += replaced
            counts["documents" if valid else "empty"] += 1
            if valid:
                yield valid
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        problem = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(
            f"cannot read the file: {problem}", remedy=_REPAIR, location=Location(named([file.path]))
        ) from error


def valid_text(text: str) -> tuple[str, int]:
    """Return a text with U+FFFD for lone surrogates, and their number; a chat has none in its messages."""
    return (text, 0) if isinstance(text, Chat) else _SURROGATES.subn("\ufffd", text)


def text_of(row: dict[str, Any], field: str) -> str | None:
    """Return the text in a field of a row, or in a nested field whose names are separated by dots.

    Raises:
        UserError: The row has no such field, or the field holds something else.
    """
    value: Any = row
    for name in [field] if field in row else field.split("."):
        if value is None:
            break
        if not isinstance(value, dict) or name not in value:
            raise missing_field(field, value if isinstance(value, dict) else row)
        value = value[name]
    if not isinstance(value, str | None):
        raise UserError(f"field {field!r}: expected a text, got a value of type {type(value).__name__}", remedy=_FIELD)
    return value


def missing_field(field: str, fields: Any) -> UserError:
    """Return the error for rows without the field of the text."""
    return UserError(f"missing field {field!r}; got {', '.join(map(str, fields)) or 'none'}", remedy=_FIELD)


def decoded(raw: bytes, encoding: str | None) -> tuple[str, int]:
    """Return the text of some bytes, without byte order mark, and the number of characters that were replaced.

    Raises:
        UserError: More than one character in `TOLERATED` is invalid, or bytes are 0 as in binary files.
    """
    mark = next((mark for mark in _MARKS if raw.startswith(mark)), b"")
    marked = _MARKS.get(mark)
    for name in filter(None, [marked] if marked else ["utf-8", encoding]):
        try:
            text = raw[len(mark) :].decode(name)
        except UnicodeDecodeError:
            continue
        if text.count("\0") * TOLERATED <= len(text):
            return text, 0
    name = marked or encoding or "utf-8"
    text = raw[len(mark) :].decode(name, errors="replace")
    replaced = max(text.count("\ufffd") - raw.count("\ufffd".encode()), 0) + text.count("\0")
    if replaced * TOLERATED > len(text):
        raise _not_text(raw, name, replaced / max(len(text), 1))
    return text, replaced


def _not_text(raw: bytes, name: str, fraction: float) -> UserError:
    """Return the error for bytes that are not text of encoding `name`."""
    zeros = [raw[start::2].count(0) * 2 / len(raw) for start in (0, 1)]
    if max(zeros) > 0.2 and min(zeros) < 0.02:
        guess: str | None = "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    else:
        guess = _guessed(raw[:65536]) if not any(zeros) else None
    likely = f"; it may be {guess}" if guess else "" if name == "utf-8" and not any(zeros) else "; it is binary"
    return UserError(
        f"expected text in {name.upper()}, got {fraction:.1%} invalid characters, above {1 / TOLERATED:.1%}{likely}",
        remedy=f"Set text.local_files.encoding = {guess!r}, which files that are not UTF-8 are read with, or convert "
        "the file." if guess else _REPAIR,
    )  # fmt: skip


def _guessed(raw: bytes) -> str | None:
    import charset_normalizer

    matches = charset_normalizer.from_bytes(raw)
    best = matches.best()
    if best and any("cp1252" in each.could_be_from_charset and each.chaos <= best.chaos for each in matches):
        return "cp1252"  # by far the most frequent of those that fit equally well
    return best.encoding if best and best.encoding != "utf_8" else None


def _open(file: TextFile) -> IO[bytes]:
    """Open a file for reading, decompressed."""
    stream = file.path.open("rb")
    if file.codec is None:
        return stream
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(stream, file.codec))


def _text(file: TextFile, _: object, encoding: str | None, counts: Counter[str]) -> Iterator[str]:
    """Yield a file as one document."""
    with _open(file) as stream:
        raw = stream.read()
    try:
        text, replaced = decoded(raw, encoding)
    except UserError as error:
        raise error.at(Location(named([file.path]))) from None
    counts["replaced"] += replaced
    yield text.replace("\r\n", "\n").replace("\r", "\n")


def _jsonl(file: TextFile, field: str | RowReader, encoding: str | None, counts: Counter[str]) -> Iterator[str | None]:
    """Yield the text of one JSON object a line."""
    with _open(file) as stream:
        for number, raw in enumerate(_lines(stream, encoding), 1):
            try:
                line, replaced = decoded(raw, encoding) if isinstance(raw, bytes) else (raw, 0)
                counts["replaced"] += replaced
                if line.strip():
                    row = _row(line.strip())
                    yield field(row) if callable(field) else text_of(row, field)
            except UserError as error:
                raise error.at(Location(named([file.path]), number)) from None


def _lines(stream: IO[bytes], encoding: str | None) -> Iterable[bytes | str]:
    """Return the lines of a file: as text if characters have two or four bytes, because bytes cannot be split then."""
    head = stream.peek(4)[:4]  # type: ignore[attr-defined]  # both streams of _open are buffered
    marked = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    wide = marked if marked != "utf-8" else None
    if b"\0" in head and marked is None:
        wide = encoding
    return io.TextIOWrapper(stream, encoding=wide, newline="\n") if wide else stream


def _integer(text: str) -> float:
    """Return an integer, also one of more digits than Python converts: only the text field matters."""
    return int(text) if len(text) < _INTEGER_DIGITS else float(text)


def _row(line: str) -> dict[str, Any]:
    """Parse a line. A mark at its beginning is skipped: it remains of wide characters."""
    try:
        row = json.loads(line.removeprefix("\ufeff"), parse_int=_integer)
    except json.JSONDecodeError as error:
        problem = f"a line that is not JSON ({error.msg}: column {error.colno})"
    except (ValueError, RecursionError) as error:
        problem = f"a line that cannot be parsed ({error})"
    else:
        if isinstance(row, dict):
            return row
        problem = f"a value of type {type(row).__name__}"
    raise UserError(f"expected one JSON object a line, got {problem}", remedy="Repair the line, or remove it.")


def _parquet(file: TextFile, field: str | RowReader, *_: object) -> Iterator[str | None]:
    """Yield the texts of one column, row group by row group."""
    import pyarrow.parquet

    assert isinstance(field, str)

    # Pages are read one by one: a column of a row group may have hundreds of megabytes.
    paged = {"pre_buffer": False, "buffer_size": 2**20}
    with file.path.open("rb") as stream, pyarrow.parquet.ParquetFile(stream, **paged) as table:
        _check_column(table.schema_arrow, field, file)
        for group in range(table.num_row_groups):
            try:
                for batch in table.iter_batches(1024, row_groups=[group], columns=[field]):
                    rows = ({name: value} for name in batch.schema.names for value in batch.column(name).to_pylist())
                    yield from (text_of(row, field) for row in rows)
            except (OSError, ValueError, pyarrow.ArrowException) as error:
                raise UserError(f"cannot read row group {group}: {error}", remedy=_REPAIR).at(
                    Location(named([file.path]))
                ) from error


def _check_column(schema: Any, field: str, file: TextFile) -> None:
    """Raise UserError unless a column of this name holds texts, or nothing."""
    import pyarrow

    kind: Any = pyarrow.struct(list(schema))
    for name in [field] if field in schema.names else field.split("."):
        fields = [each.name for each in kind] if pyarrow.types.is_struct(kind) else []
        if name not in fields:
            raise missing_field(field, fields or schema.names).at(Location(named([file.path])))
        kind = kind.field(name).type
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    types = pyarrow.types
    if not any(holds(kind) for holds in (types.is_string, types.is_large_string, types.is_string_view, types.is_null)):
        raise UserError(f"field {field!r}: expected texts, got values of type {kind}", remedy=_FIELD).at(
            Location(named([file.path]))
        )

"""The text source of local files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mcframe.data.cache import fingerprint
from mcframe.data.file_readers import RowReader, read_file
from mcframe.data.file_search import FoundFiles, TextFile, find_files, named
from mcframe.data.single_document import divided
from mcframe.data.sources import write_sums
from mcframe.errors import Location, UserError
from mcframe.files import user_path
from mcframe.hookspecs import Chat, TextSource

READERS = 2
"""Part of the identity: raise it when the same files result in other documents."""

_SURVEY = 128 * 1024**2
"""Characters that `describe` reads."""


class LocalFiles(TextSource):
    """Files, and folders with everything in them, read where they are without a copy.

    A .txt, .md or .py file is one document; a .jsonl, .ndjson or .parquet file has one a row; empty ones are omitted.
    All but .parquet may be compressed: .gz, .zst, .bz2, .lz4. The order is that of `paths` and, within a folder, by
    name. Links are followed, and a file is read once. Hidden files and other kinds of file are skipped and counted.

    Args:
        paths: One path or several; ~ is the home folder.
        text_field: Field of .jsonl and .parquet rows that holds the text; `meta.text` is the field `text` in `meta`.
        streaming: Read while training instead of tokenising once.
        encoding: Encoding of files that are neither UTF-8 nor begin with a byte order mark, such as 'cp1252'. None
            refuses them.
    """

    def __init__(
        self,
        paths: str | Sequence[str],
        text_field: str = "text",
        streaming: bool = False,
        encoding: str | None = None,
    ) -> None:
        self.streaming = streaming
        self._paths = [
            user_path(path, "text.local_files.paths").absolute()
            for path in ([paths] if isinstance(paths, str) else paths)
        ]
        self._text_field, self._encoding = text_field, encoding
        self._row: str | RowReader = text_field
        try:
            b" ".decode(encoding or "utf-8", "replace")
        except (LookupError, ValueError):
            raise UserError(
                f"text.local_files.encoding: expected the name of an encoding, got {encoding!r}",
                binding="text.local_files.encoding",
                remedy="Set text.local_files.encoding to a name such as 'cp1252', 'utf-16-le' or 'shift_jis'.",
            ) from None

    @staticmethod
    def example_settings(folder: Path) -> dict[str, Any]:
        """Return settings for a file of sums. It is streamed, because a token file of a temporary folder has no use."""
        write_sums(folder)
        return {"paths": str(folder), "streaming": True}

    @property
    def identity(self) -> str:
        """A string that changes with the settings and with every file's path, size and modification time."""
        files = [(str(file.path), file.size, file.modified) for file in find_files(self._paths).files]
        return f"local-files:{fingerprint([READERS, self._text_field, self._encoding, files])}"

    def documents(self, epoch: int = 0) -> Iterator[str]:
        """Yield the documents, in every epoch the same.

        Raises:
            UserError: A path is missing, a file cannot be read, or no file has text.
        """
        return (text for text, _ in self.positioned_documents(epoch))

    def positioned_documents(self, epoch: int = 0, after: Any = None) -> Iterator[tuple[str, Any]]:
        """Yield the documents after a position: [files before, documents of the file]. Files before are not read."""
        first, passed = after or (0, 0)
        found, counts = find_files(self._paths), Counter[str]()
        for index, file in enumerate(found.files[first:], first):
            texts = enumerate(read_file(file, self._row, self._encoding, counts), 1)
            yield from ((text, [index, number]) for number, text in texts if number > passed)
            passed = 0
            _check_whole(file)
        if not after and not counts["documents"]:
            raise _no_text(found, counts)

    def describe(self) -> str:
        """Return the documents, bytes and files, and what is skipped or replaced, with the reason.

        The beginning of every file is read, so that errors in it are found: about 128 Mi characters in all.
        """
        found, counts, complete, first = find_files(self._paths), Counter[str](), True, ""
        replaced, without = list[Path](), list[Path]()
        for file in found.files:
            before, left = counts.copy(), max(_SURVEY * file.size // found.bytes, _SURVEY // len(found.files))
            for text in read_file(file, self._row, self._encoding, counts):
                first, left = first or text, left - len(text)
                if left < 0:
                    complete = False
                    break
            replaced += [file.path] * (counts["replaced"] > before["replaced"])
            without += [file.path] * (counts["documents"] == before["documents"])
        if not counts["documents"]:
            raise _no_text(found, counts)
        parts = [
            f"{'' if complete else 'at least '}{_number(counts['documents'], 'document')}",
            f"{found.bytes:,} bytes in {_number(len(found.files), 'file')}",
            f"{_number(len(without), 'file')} without documents ({named(without)})" if without else "",
            f"{_number(counts['empty'], 'empty document')} omitted" if counts["empty"] else "",
            f"{_number(counts['replaced'], 'invalid character')} replaced ({named(replaced)})" if replaced else "",
            found.describe_skipped(),
        ]
        if complete and counts["documents"] == 1 and not isinstance(first, Chat):
            pieces = sum(1 for _ in divided(iter([first])))
            parts[0] = f"1 document, divided at ends of paragraphs or lines into {_number(pieces, 'document')}"
        return "; ".join(filter(None, parts))


def _check_whole(file: TextFile) -> None:
    """Raise UserError if a file that has been read is shorter than when it was found: some of its text is missing."""
    try:
        size = file.path.stat().st_size
    except OSError:  # deleted after it was opened, so that all of it was read
        return
    if size < file.size:
        raise UserError(
            f"the file has been truncated while it was read: expected {file.size:,} bytes, got {size:,}",
            remedy="Restore the file and repeat the command: the run resumes from its last checkpoint.",
            location=Location(named([file.path])),
        )


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _no_text(found: FoundFiles, counts: Counter[str]) -> UserError:
    skipped = found.describe_skipped()
    return UserError(
        f"text.local_files.paths: expected text, got {_number(counts['empty'], 'empty document')} in "
        f"{named([file.path for file in found.files])}" + (f"; {skipped}" if skipped else ""),
        binding="text.local_files.paths",
        remedy="Set text.local_files.paths to files with text.",
    )

"""Text sources: the standard library and Hugging Face data sets."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from mcframe.bounds import NonNegativeInt, Seed
from mcframe.data.cache import fingerprint, remembered
from mcframe.data.file_readers import text_of
from mcframe.errors import UserError
from mcframe.files import user_path
from mcframe.hookspecs import TextSource
from mcframe.registry.attribution import last_line

_NOT_THE_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})
_OFFLINE_REMEDY = (
    "Check the name and the network, or train on local files (run.text = @text.local_files) or on the standard library "
    "(run.text = @text.standard_library)."
)


class StandardLibrary(TextSource):
    """The running interpreter's own standard library: real text without a download.

    One file is one document, sorted by name; installed packages, test folders and tables are omitted. A table is a
    file of which more than half of the characters are in lines that begin with a literal: a number or a text in quotes.

    Args:
        include: Pattern of the files for `Path.match`: "json/*.py" for one folder.
    """

    def __init__(self, include: str = "*.py") -> None:
        self._include = include
        self._root = Path(sysconfig.get_path("stdlib"))

    @cached_property
    def identity(self) -> str:
        """A string that changes with the Python version and with every file's name and size."""
        files = [(name, (self._root / name).stat().st_size) for name in self._files]
        return f"standard-library:{fingerprint([sys.version, files])}"

    def documents(self, epoch: int = 0) -> Iterator[str]:
        """Yield one document a file, the same in every epoch.

        Raises:
            UserError: No file matches the pattern.
        """
        for name in self._files:
            text = (self._root / name).read_bytes().decode("utf-8", errors="replace")
            if text and not _is_table(text):
                yield text

    def describe(self) -> str:
        """Return the number of documents, files and bytes."""

        def measure() -> list[int]:
            sizes = [len(text.encode()) for text in self.documents()]
            return [len(sizes), sum(sizes)]

        documents, size = remembered("standard-library", self.identity, measure)
        return (
            f"{documents:,} documents; {size:,} bytes in {documents:,} files of {self._root}; "
            f"{len(self._files) - documents:,} files omitted, which are tables or empty"
        )

    @cached_property
    def _files(self) -> list[str]:
        """The paths below the root, sorted."""
        found, pattern = list[str](), PurePath(self._include)
        for folder, folders, names in os.walk(self._root):
            folders[:] = set(folders) - _NOT_THE_LIBRARY  # os.walk does not enter removed folders
            # By folder, because Path.match of every file takes six times as long.
            if len(pattern.parts) < 2 or PurePath(folder).match(str(pattern.parent)):
                below = PurePath(folder).relative_to(self._root).as_posix()
                prefix = "" if below == "." else f"{below}/"
                found += [prefix + name for name in fnmatch.filter(names, pattern.name)]
        if not found:
            raise UserError(
                f"text.standard_library: expected files {self._include} in {self._root}, got none",
                remedy="Change text.standard_library.include, or train on other files: run.text = @text.local_files.",
            )
        return sorted(found)


_LITERAL_LINE = re.compile(r"""^[ \t]*[\[({+-]*[bru]*(?:'(?!'')|"(?!"")|\d).*$""", re.MULTILINE)


def _is_table(text: str) -> bool:
    """Return whether more than half of the characters are in lines that begin with a literal."""
    return 2 * sum(map(len, _LITERAL_LINE.findall(text))) > len(text)


class HuggingFace(TextSource):
    """A data set of the Hugging Face hub, or a local folder of the same layout.

    Args:
        name: Name on the hub, or a folder.
        subset: Its configuration, where it has several.
        split: Split to read; training and validation are both taken from it, by document.
        text_field: Field that holds the text.
        streaming: Read while training instead of downloading and tokenising once.
        shuffle_buffer: Documents of the shuffle buffer while streaming, different in every epoch; 0 = none.
        seed: Seed of that shuffle.
        revision: Commit of the data set; without one, a cached token file can be out of date.
    """

    def __init__(
        self,
        name: str,
        subset: str | None = None,
        split: str = "train",
        text_field: str = "text",
        streaming: bool = True,
        shuffle_buffer: NonNegativeInt = 0,
        seed: Seed = 0,
        revision: str | None = None,
    ) -> None:
        self.streaming = streaming
        local = not name.strip() or name.startswith("~")  # other names may be those of the hub
        self._name = str(user_path(name, "text.huggingface.name")) if local else name
        self._subset, self._split = subset, split
        self._text_field = text_field
        self._shuffle_buffer, self._seed = shuffle_buffer, seed
        self._revision = revision

    @staticmethod
    def example_settings(folder: Path) -> dict[str, Any]:
        """Return settings for a folder of sums, laid out like a data set, so that no network is needed."""
        write_sums(folder)
        return {"name": str(folder)}

    @property
    def identity(self) -> str:
        """A string that changes with the parameters; computed without network access."""
        shuffle = [self._shuffle_buffer, self._seed] if self.streaming else None
        parameters = [self._name, self._subset, self._split, self._text_field, self._revision, shuffle]
        return f"hugging-face:{fingerprint(parameters)}"

    def documents(self, epoch: int = 0) -> Iterator[str]:
        """Yield the documents.

        Raises:
            UserError: The data set cannot be found, reached or read, or has no rows.
        """
        return (text for text, _ in self._read(epoch, None))

    def positioned_documents(self, epoch: int = 0, after: Any = None) -> Iterator[tuple[str, Any]] | None:
        """Return the documents after a position of the library; None if they are shuffled: a buffer has no position."""
        return None if self._shuffle_buffer or not self.streaming else self._read(epoch, after)

    def _read(self, epoch: int, after: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
        """Yield the documents after a position, each with the position after it (None if the set is not streamed).

        A position of another version of the library is passed by reading the rows before it.
        """
        import datasets

        passed: Mapping[str, Any] = after or {"rows": 0}
        try:
            rows = datasets.load_dataset(
                self._name, self._subset, split=self._split, revision=self._revision, streaming=self.streaming
            )
            if self.streaming and self._shuffle_buffer:
                rows = rows.shuffle(seed=self._seed, buffer_size=self._shuffle_buffer)
                rows.set_epoch(epoch)
            known = passed.get("datasets") == datasets.__version__
            if known:
                rows.load_state_dict(passed["state"])
            for number, text in _texts(rows, self._text_field, passed["rows"] if known else 0):
                if number > passed["rows"]:
                    state = {"state": rows.state_dict()} if self.streaming else {}
                    yield text, {"rows": number, "datasets": datasets.__version__, **state}
        except UserError:
            raise
        except Exception as error:  # the library raises errors of many kinds, StopIteration for a set without rows
            problem = "it has no rows" if isinstance(error.__cause__, StopIteration) else last_line(error)
            raise UserError(f"cannot read the data set {self._name}: {problem}", remedy=_OFFLINE_REMEDY) from error

    def describe(self) -> str:
        """Return the name of the data set and of its parts."""
        revision = f"revision {self._revision}" if self._revision else ""
        parts = [self._name, self._subset, f"split {self._split}", revision, "streamed" if self.streaming else ""]
        return ", ".join(filter(None, parts))


def write_sums(folder: Path) -> None:
    """Write a file of short documents, enough for some training and validation."""
    rows = (json.dumps({"text": f"{n} and {n} is {2 * n}; {n} times {n} is {n * n}."}) for n in range(2000))
    (folder / "sums.jsonl").write_text("\n".join(rows), "utf-8")


def _texts(rows: Iterable[dict[str, Any]], field: str, passed: int) -> Iterator[tuple[int, str]]:
    """Yield the texts of a data set's rows, except empty ones, each with the number of rows up to it.

    Args:
        rows: The rows.
        field: The field of the text.
        passed: Rows before the first one here.

    Raises:
        UserError: A row has no such field, or the field holds another type.
    """
    for number, row in enumerate(rows, passed + 1):
        try:
            text = text_of(row, field)
        except UserError as error:
            raise UserError(
                f"row {number - 1:,}: {error.message}",
                remedy="Set text.huggingface.text_field to the field that holds the text.",
            ) from None
        if text:
            yield number, text

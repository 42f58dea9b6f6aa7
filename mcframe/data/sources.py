"""Text sources: the standard library, local files, Hugging Face data sets.

The last two use the `datasets` library, which is imported for the first document.
"""

from __future__ import annotations

import glob
import json
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mcframe.data.cache import fingerprint
from mcframe.errors import UserError
from mcframe.files import user_path
from mcframe.hookspecs import TextSource

_NOT_THE_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})
_OFFLINE_REMEDY = (
    "Check the name and the network, or train on local files (run.text = @text.local_files) or on the standard library "
    "(run.text = @text.standard_library)."
)
_FIELD_REMEDY = "Set text_field to the field that holds the text."


class StandardLibrary(TextSource):
    """The running interpreter's own standard library: real text without a download.

    One file is one document; installed packages and test folders are omitted. Files are sorted by name.

    Args:
        include: Pattern of the files for `Path.match`: "json/*.py" for one folder.
    """

    def __init__(self, include: str = "*.py") -> None:
        self._include = include
        self._root = Path(sysconfig.get_path("stdlib"))

    @property
    def identity(self) -> str:
        """A string that changes with the Python version and with every file's name and size."""
        files = [(file.relative_to(self._root).as_posix(), file.stat().st_size) for file in self._files()]
        return f"standard-library:{fingerprint([sys.version, files])}"

    def documents(self, epoch: int = 0) -> Iterator[str]:
        """Yield one document a file, the same in every epoch.

        Raises:
            UserError: No file matches the pattern.
        """
        for file in self._files():
            text = file.read_bytes().decode("utf-8", errors="replace")
            if text:
                yield text

    def _files(self) -> list[Path]:
        found = []
        for folder, folders, names in os.walk(self._root):
            folders[:] = set(folders) - _NOT_THE_LIBRARY  # os.walk does not enter removed folders
            found += [file for name in names if (file := Path(folder, name)).match(self._include)]
        if not found:
            raise UserError(
                f"text.standard_library: expected files {self._include} in {self._root}, got none",
                remedy="Change text.standard_library.include, or train on other files: run.text = @text.local_files.",
            )
        return sorted(found, key=lambda file: file.relative_to(self._root).as_posix())


class LocalFiles(TextSource):
    """Files, and folders with everything in them, read where they are without a copy.

    A .txt, .md or .py file is one document; a .jsonl or .parquet file has one a row; empty documents are omitted. The
    order: text files, then .jsonl, then .parquet, each in the order of `paths` and, within a folder, by name. In
    folders, hidden files and other kinds of file are skipped.

    Args:
        paths: One path or several; ~ is the home folder.
        text_field: Field of .jsonl and .parquet rows that holds the text.
        streaming: Read while training instead of tokenising once.
    """

    def __init__(self, paths: str | Sequence[str], text_field: str = "text", streaming: bool = False) -> None:
        self.streaming = streaming
        self._paths = [
            user_path(path, "text.local_files.paths").absolute()
            for path in ([paths] if isinstance(paths, str) else paths)
        ]
        self._text_field = text_field

    @staticmethod
    def example_settings(folder: Path) -> dict[str, Any]:
        """Return settings for a file of sums. It is streamed, because a token file of a temporary folder has no use."""
        _write_sums(folder)
        return {"paths": str(folder), "streaming": True}

    @property
    def identity(self) -> str:
        """A string that changes with the text field and with every file's path, size and modification time."""
        files = [file for group in self._files().values() for file in group]
        facts = [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
        return f"local-files:{fingerprint([self._text_field, facts])}"

    def documents(self, epoch: int = 0) -> Iterator[str]:
        """Yield the documents, in every epoch the same.

        Raises:
            UserError: A path is missing, or a file cannot be read.
        """
        import datasets

        for kind, files in self._files().items():
            field = "text" if kind == "text" else self._text_field
            try:
                # Paths are patterns to `datasets`: an unescaped [ or * would match other files.
                rows = datasets.load_dataset(
                    kind,
                    data_files=[glob.escape(str(file)) for file in files],
                    split="train",
                    streaming=True,
                    **_reader_options(kind, field),
                )
                yield from _texts(rows, field)
            except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
                raise UserError(
                    f"cannot read the {kind} files of {_listed(files)}: {error}",
                    remedy="Repair the file, or remove it from text.local_files.paths.",
                ) from error

    def _files(self) -> dict[str, list[Path]]:
        """Return the files of each kind, every file once."""
        found = dict.fromkeys(file for path in self._paths for file in _files_below(path))
        groups: dict[str, list[Path]] = {kind: [] for kind in dict.fromkeys(_KINDS.values())}
        for file in found:
            groups[_KINDS[file.suffix.lower()]].append(file)
        if not found:
            raise UserError(
                f"text.local_files.paths: expected {_EXTENSIONS} files, got none in "
                f"{_listed(self._paths) or 'an empty list of paths'}",
                remedy="Set text.local_files.paths to files of these kinds, or to folders that contain some.",
            )
        return {kind: files for kind, files in groups.items() if files}


_KINDS = {".txt": "text", ".md": "text", ".py": "text", ".jsonl": "json", ".parquet": "parquet"}
_EXTENSIONS = ", ".join(_KINDS)


def _listed(paths: Sequence[Path]) -> str:
    shown = ", ".join(map(str, paths[:3]))
    return f"{shown} and {len(paths) - 3} more" if len(paths) > 3 else shown


def _files_below(path: Path) -> list[Path]:
    """Return `path` itself if it is a file, else the files below it, sorted by name."""
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.suffix.lower() in _KINDS and file.is_file()]
        visible = [file for file in found if not any(p.startswith(".") for p in file.relative_to(path).parts)]
        return sorted(visible, key=lambda file: file.relative_to(path).as_posix())
    if not path.exists():
        raise UserError(f"missing path {path}", remedy="Correct text.local_files.paths.")
    if path.suffix.lower() not in _KINDS:
        raise UserError(
            f"text.local_files.paths: expected {_EXTENSIONS} files, got {path}",
            remedy="Convert the file to one of these kinds.",
        )
    return [path]


def _reader_options(kind: str, field: str) -> dict[str, Any]:
    if kind == "text":
        return {"sample_by": "document", "encoding_errors": "replace"}
    return {"columns": [field]} if kind == "parquet" else {}


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
        shuffle_buffer: int = 0,
        seed: int = 0,
        revision: str | None = None,
    ) -> None:
        self.streaming = streaming
        local = not name.strip() or name.startswith("~")  # other names may be those of the hub
        self._name = str(user_path(name, "text.hugging_face.name")) if local else name
        self._subset, self._split = subset, split
        self._text_field = text_field
        self._shuffle_buffer, self._seed = shuffle_buffer, seed
        self._revision = revision

    @staticmethod
    def example_settings(folder: Path) -> dict[str, Any]:
        """Return settings for a folder of sums, laid out like a data set, so that no network is needed."""
        _write_sums(folder)
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
            UserError: The data set cannot be found, reached or read.
        """
        import datasets

        try:
            rows = datasets.load_dataset(
                self._name, self._subset, split=self._split, revision=self._revision, streaming=self.streaming
            )
            if self.streaming and self._shuffle_buffer:
                rows = rows.shuffle(seed=self._seed, buffer_size=self._shuffle_buffer)
                rows.set_epoch(epoch)
            yield from _texts(rows, self._text_field)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise UserError(f"cannot read the data set {self._name}: {error}", remedy=_OFFLINE_REMEDY) from error


def _write_sums(folder: Path) -> None:
    """Write a file of short documents, enough for some training and validation."""
    rows = (json.dumps({"text": f"{n} and {n} is {2 * n}; {n} times {n} is {n * n}."}) for n in range(2000))
    (folder / "sums.jsonl").write_text("\n".join(rows), "utf-8")


def _texts(rows: Iterable[dict[str, Any]], field: str) -> Iterator[str]:
    """Yield the texts of a data set's rows, except empty ones.

    Raises:
        UserError: A row has no such field, or the field holds another type.
    """
    columns = getattr(rows, "column_names", None)
    if columns is not None and field not in columns:
        raise _no_field(field, columns)
    for row in rows:
        if field not in row:
            raise _no_field(field, row)
        text = row[field]
        if not isinstance(text, str | None):
            raise UserError(
                f"field {field!r}: expected a text, got a value of type {type(text).__name__}", remedy=_FIELD_REMEDY
            )
        if text:
            yield text


def _no_field(field: str, columns: Iterable[str]) -> UserError:
    return UserError(f"rows: missing field {field!r}; got {', '.join(columns) or 'none'}", remedy=_FIELD_REMEDY)

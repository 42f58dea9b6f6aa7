"""Measure what resuming a streamed corpus reads, with its position in the source and from the start of the epoch.

    python benchmarks/resume_stream.py [--documents 50000] [--words 200]

Writes a Hugging Face folder of five .jsonl files, passes so many of its documents, and resumes twice in a row: each
time once with the position of the checkpoint and once as checkpoints without one do.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from mcframe.data import sources
from mcframe.data.sources import HuggingFace
from mcframe.data.streaming import StreamedWindows
from mcframe.data.tokenizers import Bytes

FILES, WINDOW = 5, 1024


def main() -> None:
    """Pass documents, resume twice, and print documents and seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=50_000, help="documents that are passed before resuming")
    parser.add_argument("--words", type=int, default=200, help="mean words of a document")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        write(Path(folder), options.documents * 3 // 2, options.words)
        stream, position = opened(folder), 0
        for number in (1, 2):
            passed = options.documents * (2 + number) // 3
            while max(document for *_, document, _ in stream.state()["lanes"]) < passed:
                stream.take(range(position, position + 64))
                position += 64
            state = stream.state()
            expected = stream.take(range(position, position + 64))
            for name, saved in {"position": state, "start of the epoch": without_position(state)}.items():
                stream = opened(folder)
                read, seconds = resume(stream, saved, position, expected)
                print(
                    f"resumption {number}, {passed:,} documents passed, from the {name}: {read:,} rows, {seconds:.2f} s"
                )
            stream = opened(folder)
            resume(stream, state, position, expected)
            position += 64


def write(folder: Path, documents: int, words: int) -> None:
    """Write documents of words/2 to 3/2 words, in five files."""
    draw = random.Random(0)
    for file in range(FILES):
        rows = (
            json.dumps({"text": f"{number} " + "word " * draw.randrange(words // 2, words * 3 // 2)}) + "\n"
            for number in range(file * documents // FILES, (file + 1) * documents // FILES)
        )
        (folder / f"{file}.jsonl").write_text("".join(rows), "utf-8")


def opened(folder: str) -> StreamedWindows:
    """Return a new stream of the folder."""
    return StreamedWindows(HuggingFace(folder), Bytes(), WINDOW, 0.01)


def without_position(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state as checkpoints had it before they held a position."""
    return {name: value for name, value in state.items() if name != "source"}


def resume(stream: StreamedWindows, state: dict[str, Any], position: int, expected: Any) -> tuple[int, float]:
    """Restore a state and take the next 64 sequences. Return the rows that were read and the seconds."""
    rows, text_of = [0], sources.text_of

    def counting(row: dict[str, Any], field: str) -> str | None:
        rows[0] += 1
        return text_of(row, field)

    sources.text_of = counting
    started = time.perf_counter()
    stream.restore(json.loads(json.dumps(state)))
    assert stream.take(range(position, position + 64)).equal(expected)
    sources.text_of = text_of
    return rows[0], time.perf_counter() - started


if __name__ == "__main__":
    main()

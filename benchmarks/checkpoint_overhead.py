"""Measure what checksums and syncing add to the saving of a run, and to its training.

    python benchmarks/checkpoint_overhead.py RUN [--every TOKENS] [--folder DIR]

Writes the newest checkpoint of a run again, several times, with and without both. The time of a step and
`checkpoint.every` are those of the run, for example of a few steps of `gin/quickstart.gin`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from mcframe.training.checkpoint_folder import checksum, find
from mcframe.training.checkpoint_writer import seal, sync

REPEATED = 7


def main() -> None:
    """Write a checkpoint repeatedly and print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--every", type=int, help="tokens between checkpoints; of the run by default")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a temporary folder by default")
    options = parser.parse_args()
    newest = find(options.run)
    files = {name: load_file(newest.path / name) for name in newest.facts["files"]}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        parts = {
            "writing": list[float](),
            "sealing": list[float](),
            "checksums": list[float](),
            "folders": list[float](),
        }
        for _ in range(REPEATED):
            parts["writing"].append(timed(lambda: [save_file(files[each], folder / each) for each in files]))
            parts["sealing"].append(timed(lambda: seal(folder, files)))
            parts["checksums"].append(timed(lambda: [checksum(folder / each) for each in files]))
            parts["folders"].append(timed(lambda: (sync(folder), sync(folder.parent))))
    median = {part: statistics.median(seconds) for part, seconds in parts.items()}
    added = median["sealing"] + median["folders"]
    rows = map(json.loads, (options.run / "metrics.jsonl").read_text("utf-8").splitlines())
    step = statistics.median(row["train/step_ms"] for row in rows if "train/step_ms" in row) / 1000
    bindings = newest.facts["bindings"]
    every = options.every or bindings["checkpoint.every"]
    training = step * every / bindings["run.batch_tokens"]
    size = sum(size for size, _ in newest.facts["files"].values())
    milliseconds = {part: f"{1000 * seconds:.1f} ms" for part, seconds in median.items()}
    print(f"{size / 1e6:.1f} MB: " + ", ".join(f"{part} {text}" for part, text in milliseconds.items()))
    print(f"checksums and syncing add {1000 * added:.1f} ms: {added / (added + median['writing']):.1%} of saving")
    print(f"a checkpoint every {every:,} tokens, {training:.0f} s of steps: {added / training:.3%} of training")
    print(f"checksums alone, since the disk writes meanwhile: {median['checksums'] / training:.4%} of training")


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

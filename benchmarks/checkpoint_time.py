"""Measure what a step waits for a checkpoint, and what writing takes: synchronous and asynchronous.

    python benchmarks/checkpoint_time.py [--width 384] [--depth 8] [--steps 6] [--folder DIR]

Trains `smoke.gin` with a larger model on one rank, twice, with a checkpoint every second step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mcframe.training.checkpoint_folder import checkpoints, checksum

ROOT = Path(__file__).resolve().parents[1]
STEP = 512


def main() -> None:
    """Train twice and print both times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        waits = {}
        for asynchronous in (False, True):
            run_dir = Path(folder, f"asynchronous-{asynchronous}")
            train(run_dir, options, asynchronous)
            lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()]
            waits[asynchronous] = median(lines, "train/checkpoint_ms")
            written, step = median(lines, "train/checkpoint_write_ms"), median(lines, "train/step_ms")
            kind = "asynchronous" if asynchronous else "synchronous"
            print(f"{kind:13} step waits {waits[asynchronous]:7.0f} ms, writing {written:7.0f} ms, step {step:7.0f} ms")
        newest = checkpoints(run_dir)[-1]
        size = sum(size for size, _ in newest.facts["files"].values())
        started = time.perf_counter()
        for name in newest.facts["files"]:
            checksum(newest.path / name)
        seconds = time.perf_counter() - started
    print(
        f"{size / 1e6:.0f} MB a checkpoint; checksums alone {1000 * seconds:.0f} ms ({size / seconds / 1e9:.1f} GB/s)"
    )
    print(f"asynchronous checkpoints hide {1 - waits[True] / waits[False]:.0%} of the time of a synchronous one")


def train(run_dir: Path, options: argparse.Namespace, asynchronous: bool) -> None:
    """Train on one rank."""
    settings = (
        f"gpt.width = {options.width}", f"gpt.depth = {options.depth}", f"run.batch_tokens = {STEP}",
        f"run.total_tokens = {options.steps * STEP}", f"logging.every = {STEP}", f"checkpoint.every = {2 * STEP}",
        "validation.every = 0", "validation.windows = 1", "logging.tensorboard = False",
        f"checkpoint.asynchronous = {asynchronous}",
    )  # fmt: skip
    command = [sys.executable, str(ROOT / "mcframe" / "run.py"), "--gin", "smoke.gin", "--run-dir", str(run_dir)]
    for setting in settings:
        command += ["--set", setting]
    outcome = subprocess.run(command, capture_output=True, text=True)
    if outcome.returncode:
        sys.exit(outcome.stdout + outcome.stderr)


def median(lines: list[dict[str, float]], name: str) -> float:
    """Return the median of a logged metric."""
    return statistics.median(line[name] for line in lines if name in line)


if __name__ == "__main__":
    main()

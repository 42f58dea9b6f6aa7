"""Run the parts of the GPU kit one after another; a part that fails or takes too long is recorded, and the next runs.

benchmarks/gpu/run.sh [FOLDER] [--rehearse] [--only NAME] [--limit SECONDS]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import Part, parts

LIMIT_S = 350.0
"""Seconds of all parts: six minutes, less the start."""
_LEAST_S = 3.0
"""Seconds below which a part does not start."""
_TAIL = 60
_REHEARSAL_S = 600.0
_MACHINE_S = 45.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts, write FOLDER/results.json after each, and return 1 if one failed."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="default: a new one among temporary files")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, for a CPU")
    parser.add_argument("--only", action="append", metavar="NAME", help="a part; may be repeated")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds of all parts")
    options = parser.parse_args(argv)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="mcframe-gpu-"))
    folder.mkdir(parents=True, exist_ok=True)
    every = parts(folder.resolve(), options.rehearse)
    if options.rehearse:  # a CPU that others use, too
        every = [replace(part, limit=_REHEARSAL_S) for part in every]
    if missing := set(options.only or ()) - {part.name for part in every}:
        parser.error(f"--only: expected parts of the kit, got {', '.join(sorted(missing))}")
    chosen = [part for part in every if not options.only or part.name in options.only]
    record = {
        "machine": _machine(_REHEARSAL_S if options.rehearse else _MACHINE_S),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    record |= {"rehearsal": options.rehearse}
    return run_parts(chosen, folder.resolve(), options.limit - (time.monotonic() - started), record)


def run_parts(chosen: Sequence[Part], folder: Path, limit: float, record: dict[str, Any]) -> int:
    """Run parts until the time is over, and add them to the record. Return 1 if one of them has no figures."""
    started = time.monotonic()
    results: list[dict[str, Any]] = []
    record = {**record, "parts": results}
    for part in chosen:
        left = limit - (time.monotonic() - started)
        result = _run(part, min(part.limit, left), folder) if left > _LEAST_S else _result(part, "skipped", 0.0)
        results.append(result)
        print(f"{part.name}: {result['status']} after {result['seconds']:.0f} s", flush=True)
        (folder / "results.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    print(f"{folder / 'results.json'}: {time.monotonic() - started:.0f} s")
    return int(any(result["status"] != "ok" for result in results))


def _result(part: Part, status: str, seconds: float, **more: Any) -> dict[str, Any]:
    commands = [" ".join(command) for command in part.commands]
    return {"name": part.name, "status": status, "seconds": seconds, "commands": commands, "figures": {}} | more


def _run(part: Part, limit: float, folder: Path) -> dict[str, Any]:
    """Run the commands of a part at the same time, each in a process group that ends with it."""
    start = time.monotonic()
    logs = [folder / f"{part.name}-{number}.log" for number in range(len(part.commands))]
    processes = []
    environment = {**os.environ, "COLUMNS": "240", "HF_HUB_OFFLINE": "1"}
    for command, log in zip(part.commands, logs, strict=True):
        with log.open("wb") as file:
            processes.append(
                subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                 env=environment, start_new_session=True)
            )  # fmt: skip
    status = "ok"
    for process in processes:
        try:
            process.wait(max(0.1, limit - (time.monotonic() - start)))
        except subprocess.TimeoutExpired:
            status = "timeout"
    for process in processes:
        _end(process)
    seconds = time.monotonic() - start
    codes = [process.returncode for process in processes]
    outputs = [log.read_text("utf-8", errors="replace") for log in logs]
    tail = "\n".join("\n".join(output.splitlines()[-_TAIL:]) for output in outputs)
    if status == "ok" and any(codes):
        status = "failed"
    try:
        figures = part.figures(outputs)
    except Exception as error:  # noqa: BLE001 - the next part runs all the same
        figures = {}
        if status == "ok":
            status, tail = "failed", f"{tail}\nno figures: {type(error).__name__}: {error}"
    return _result(part, status, seconds, codes=codes, figures=figures, tail=tail)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the group of a process: TERM first, so that `mcframe run` can stop its ranks, then KILL."""
    for number, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        if process.poll() is not None:
            break
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _machine(limit: float) -> dict[str, Any]:
    """Return device and versions; of a broken installation, the error."""
    code = (
        "import json, torch; from mcframe.training.bench import machine; "
        "from mcframe.training.run_directory import revision; "
        "d = torch.device('cuda' if torch.cuda.is_available() else 'cpu'); "
        "m = machine(d) | {'revision': revision(), 'gpus': torch.cuda.device_count()}; "
        "m |= {'memory_gib': torch.cuda.get_device_properties(0).total_memory / 2**30} if m['gpus'] else {}; "
        "print(json.dumps(m))"
    )
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=limit, check=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        return {"error": f"{type(error).__name__}: {getattr(error, 'stderr', '')}"[-2000:]}
    return found


if __name__ == "__main__":
    sys.exit(main())

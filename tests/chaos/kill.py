"""Kill runs at random moments, resume them with the same command, and compare the end with the undisturbed run.

    python -m tests.chaos.kill [--kills 100] [--seed 1] [--forked 0] [--corruptions 300] [--starts 50]
        [--report FILE]

Each run is killed up to four times. Ctrl-C ends the runs, and the report has what was done until then.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.chaos.corrupt import undetected
from tests.chaos.runs import Configuration, Runs, arguments, damage, ended, processes, survivors
from tests.chaos.starts import interrupted_starts
from tests.chaos.surroundings import SURROUNDINGS
from tests.support.forked_ranks import ForkedRanks, stop_server
from tests.support.launches import FOUR_STEPS, Launches, Process, Result, clean_environment

CONFIGURATIONS = [
    Configuration(ranks, stage, asynchronous)
    for ranks in (1, 2)
    for stage in (0, 1, 3)
    for asynchronous in (True, False)
]
KILLS_OF_A_RUN = 5
SIGNALS = ("KILL",) * 7 + ("TERM", "INT", "HUP")
MOMENTS = ("start-up", "training", "validation", "checkpoint", "checkpoint")
_TEMPORARY = (".writing-", ".deleting-")
_IN_START_UP_S, _POLL_S = 0.05, 0.003
_STEP = re.compile(r"loss.*ETA")


@dataclass
class Kill:
    """A signal to processes of a run, its moment, and what came of it."""

    target: str
    name: str
    moment: str
    count: int
    delay: float
    launched: bool
    sent: bool = False
    tokens: int = -1
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        how = "mcframe run" if self.launched else "ranks"
        return f"{self.name} to {self.target} of {how}, {self.moment} {self.count} + {1000 * self.delay:.0f} ms"


def drawn(draw: random.Random, configuration: Configuration, forked: float) -> Kill:
    """Draw a kill. Start-up lasts about 9 s where everything is imported, and 2 s in forked ranks."""
    launched = draw.random() >= forked
    targets = ("group", "command", "runner", "launch", "rank") if launched else ("group", "rank")
    moment = draw.choice(MOMENTS)
    longest = {"start-up": 9.0 if launched else 2.0, "training": 0.3, "validation": 0.06, "checkpoint": 0.06}
    count = 0 if moment == "start-up" else draw.randint(1, 3)
    return Kill(draw.choice(targets), draw.choice(SIGNALS), moment, count, draw.random() * longest[moment], launched)


class Killer:
    """Waits for the moment of a kill in a thread, and sends the signal.

    Attributes:
        seen: The names of the checkpoints that were complete at any time.
        started: The processes of the run at the kill.
    """

    def __init__(self, kill: Kill, run_dir: Path, process: Process, draw: random.Random) -> None:
        self.kill, self.run_dir, self.process, self.draw = kill, run_dir, process, draw
        self.seen: set[str] = set()
        self.started: list[psutil.Process] = []
        self._steps, self._temporary, self._names = 0, 0, set[str]()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def watch(self, line: str, process: Process) -> None:
        """Count the steps."""
        self._steps += _STEP.search(line) is not None

    def join(self) -> None:
        """Wait until the run has ended."""
        self._thread.join()

    def _follow(self) -> None:
        at = float("inf") if self.kill.count else time.monotonic() + self.kill.delay
        while self.process.poll() is None:
            self._look()
            reached = self._temporary if self.kill.moment == "checkpoint" else self._steps
            if at == float("inf") and reached >= self.kill.count:
                at = time.monotonic() + self.kill.delay
            if not self.kill.sent and time.monotonic() >= at:
                self._send()
            time.sleep(_POLL_S if self._steps else _IN_START_UP_S)
        self._look()

    def _look(self) -> None:
        with suppress(FileNotFoundError):
            names = set(os.listdir(self.run_dir / "checkpoints"))
            self.seen |= {name for name in names if name.startswith("tokens-")}
            self._temporary += sum(name.startswith(_TEMPORARY) for name in names - self._names)
            self._names = names

    def _send(self) -> None:
        self.started = processes(self.process, self.run_dir)
        number = getattr(signal, f"SIG{self.kill.name}")
        hit = [each for each in self.started if self._is_hit(each)]
        if self.kill.target == "rank" and hit:
            hit = [self.draw.choice(hit)]
        for each in hit:
            with suppress(psutil.Error):
                each.send_signal(number)
        self.kill.sent = bool(hit)

    def _is_hit(self, process: psutil.Process) -> bool:
        command = arguments(process)
        launcher = next((each for each in command if each.startswith("deepspeed.launcher.")), "")
        if self.kill.target == "group" or isinstance(self.process, ForkedRanks):
            return True
        if self.kill.target == "command":
            return process.pid == self.process.pid
        if self.kill.target == "rank":
            return not launcher and process.pid != self.process.pid
        return launcher == f"deepspeed.launcher.{self.kill.target}"


def attempt(runs: Runs, configuration: Configuration, run_dir: Path, kill: Kill, draw: random.Random) -> Result:
    """Start or resume a run, kill it, and record in the kill what must not be."""
    before = _complete(run_dir)
    process = runs.start(configuration, run_dir, launched=kill.launched)
    killer = Killer(kill, run_dir, process, draw)
    result = ended(process, run_dir, killer.watch)
    killer.join()
    kill.problems += survivors(killer.started, run_dir)
    after, announced = _complete(run_dir), before | killer.seen
    kill.tokens = int(max(after, default="tokens-0").removeprefix("tokens-"))
    if announced and max(announced) not in after:
        kill.problems.append(f"{max(announced)} was complete, and is lost")
    kill.problems += damage(run_dir)
    if "Traceback" in result.output:
        kill.problems.append(f"a traceback: {result.output[-3000:]}")
    if list(run_dir.glob("checkpoints/superseded/*")):
        kill.problems.append("a checkpoint was superseded: the run did not resume from the newest one")
    return result


def resumed(runs: Runs, configuration: Configuration, run_dir: Path, *, launched: bool = False) -> Result:
    """Resume a run, and let it come to its end."""
    return ended(runs.start(configuration, run_dir, launched=launched), run_dir)


def _complete(run_dir: Path) -> set[str]:
    return {path.name for path in run_dir.glob("checkpoints/tokens-*")}


def killed_runs(
    runs: Runs, folder: Path, draw: random.Random, options: argparse.Namespace
) -> Iterator[dict[str, object]]:
    """Kill until enough signals were sent. Return a row of the report for each."""
    order = draw.sample(CONFIGURATIONS, len(CONFIGURATIONS))
    done = number = 0
    while done < options.kills:
        configuration, run_dir = order[number % len(order)], folder / f"run-{number}"
        number += 1
        rows = killed_run(runs, configuration, run_dir, draw, min(KILLS_OF_A_RUN, options.kills - done), options.forked)
        done += len(rows)
        yield from rows


def killed_run(
    runs: Runs, configuration: Configuration, run_dir: Path, draw: random.Random, kills: int, forked: float
) -> list[dict[str, object]]:
    """Kill a run several times, resume it to its end, and return a row of the report for each kill."""
    done, result = list[Kill](), None
    while len(done) < kills:
        kill = drawn(draw, configuration, forked)
        result = attempt(runs, configuration, run_dir, kill, draw)
        if result.code == 0 or not kill.sent:
            break  # the run was finished, before the kill or in spite of it
        done.append(kill)
        print(f"{configuration}: {kill}{'; PROBLEM' * bool(kill.problems)}", flush=True)
        result = None
    if result is None:
        result = resumed(runs, configuration, run_dir, launched=draw.random() >= forked)
    elif kill.sent or kill.problems:
        done.append(kill)
    differ = list(runs.differences(configuration, result))
    if not differ and not any(each.problems for each in done):
        shutil.rmtree(run_dir)
    return [
        {
            "disturbance": str(each), "configuration": str(configuration), "tokens": each.tokens,
            "resumed": result.code == 0, "equal": not differ, "problems": each.problems + differ,
        }
        for each in done
    ]  # fmt: skip


def corrupted(runs: Runs, folder: Path, options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Corrupt checkpoints of a finished run. Return a row of the report for each corruption."""
    trained = runs.launches.run(*FOUR_STEPS).succeeded().run_dir
    for seed in range(1000 * options.seed, 1000 * options.seed + options.corruptions):
        done, problem = undetected(trained, folder / f"corrupt-{seed}", seed)
        problems = [problem] if problem else []
        yield {
            "disturbance": done, "configuration": "corruption", "resumed": True, "equal": not problem,
            "problems": problems,
        }  # fmt: skip


def main() -> int:
    """Disturb runs, and print a table."""
    # Background jobs of a shell ignore Ctrl-C and SIGQUIT, those of nohup a closed terminal, and so would all runs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--forked", type=float, default=0.0, help="fraction of starts without launcher; a third of the time"
    )
    parser.add_argument("--corruptions", type=int, default=300)
    parser.add_argument("--starts", type=int, default=50, help="starts that are interrupted within their first seconds")
    parser.add_argument("--surroundings", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--report", type=Path, default=Path("chaos.json"))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    runs, draw = Runs(Launches(folder, clean_environment(folder))), random.Random(options.seed)
    rows: list[dict[str, object]] = []
    parts = [killed_runs(runs, folder, draw, options), corrupted(runs, folder, options)]
    parts.append(interrupted_starts(runs, folder, draw, options.starts))
    parts += [disturb(runs, folder) for disturb in SURROUNDINGS if options.surroundings]
    started = time.monotonic()
    try:
        for row in (row for part in parts for row in part):
            rows.append(row)
            print(f"{len(rows):4} {time.monotonic() - started:5.0f} s  {describe(row)}", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    finally:
        stop_server()
        options.report.write_text(json.dumps({"seed": options.seed, "rows": rows}, indent=1), "utf-8")
    failed = [row for row in rows if row["problems"]]
    for configuration, count in sorted(Counter(str(row["configuration"]) for row in rows).items()):
        wrong = sum(row["configuration"] == configuration for row in failed)
        print(f"{configuration:32} {count:4} disturbances, {wrong} failed")
    print(f"{len(rows)} disturbances, {len(failed)} failed; report: {options.report}")
    if not failed:
        shutil.rmtree(folder)
    return int(bool(failed))


def describe(row: dict[str, object]) -> str:
    """Return a row of the report as text."""
    result = "equal" if not row["problems"] else f"FAILED: {row['problems']}"
    return f"{row['configuration']}; {row['disturbance']}; newest checkpoint {row.get('tokens', '-')}; {result}"


if __name__ == "__main__":
    sys.exit(main())

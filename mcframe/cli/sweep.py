"""`mcframe sweep`: train rows of gin overrides over seeds at equal tokens, and compare them."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Self

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Column, Table

from mcframe.cli.options import command
from mcframe.errors import UserError
from mcframe.metrics.jsonl_logger import METRICS, parse
from mcframe.metrics.tables import FittedTable
from mcframe.registry.discovery import PluginOptions
from mcframe.sweep import plot as picture
from mcframe.sweep import table
from mcframe.sweep.grid import Grid, read_grid
from mcframe.sweep.jobs import Job, Jobs, last_lines
from mcframe.sweep.plan import PlannedRun, changes, plan, refuse_changed
from mcframe.sweep.results import Comparison, RowResult, RunResult, compare, read_run
from mcframe.sweep.runs import environment, jobs_of
from mcframe.training.run_lock import RunLock

EXIT_FAILED = 1
_LOG_LINES = 12
_REDRAW_S = 1.0
_FRAME_LINES = 6
_COLORS = {"running": "cyan", "done": "green", "failed": "red", "interrupted": "yellow", "skipped": "red"}


@command
def sweep(
    plugins: PluginOptions,
    file: Annotated[Path, typer.Argument(metavar="GRID", help="A grid file, TOML: docs/sweeps.md.")],
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 1,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write; default: runs/NAME.")] = None,
    only: Annotated[list[str], typer.Option(metavar="ROW", help="Only this row; may be repeated.")] = [],  # noqa: B006 - typer copies it
    seeds: Annotated[str | None, typer.Option(metavar="0,1,2", help="These seeds in place of the grid's.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the plan; train nothing.")] = False,
) -> int:
    """Train every row of a grid with every seed at equal tokens, resume if stopped, compare the rows."""
    grid = read_grid(file)
    planned = _Sweep(grid, out or Path("runs") / file.stem, only or list(grid.rows), _seeds(seeds, grid), plugins)
    return planned.print_plan() if list_ else planned.run(jobs)


class _Sweep:
    """A grid with the rows and seeds to train; `planned` holds all runs of the grid, for the report."""

    def __init__(
        self, grid: Grid, out: Path, rows: Sequence[str], seeds: Sequence[int], plugins: PluginOptions
    ) -> None:
        self.grid, self.out, self.seeds = grid, out, seeds
        self.console = Console()
        self.chosen = plan(grid, out, rows, seeds, plugins)
        self.planned = plan(grid, out, list(grid.rows), sorted({*grid.seeds, *seeds}), plugins)

    def print_plan(self) -> int:
        """Print what `run` would do."""
        rows = FittedTable(Column("row", no_wrap=True), "set")
        for row in dict.fromkeys(run.row for run in self.chosen):
            rows.add_row(row.name, escape("\n".join(row.set)))
        runs = FittedTable(*(Column(name, no_wrap=True) for name in ("run", "state", "tokens")))
        for run in self.chosen:
            state = "changed" if changes(run) else run.progress
            runs.add_row(run.name, state, f"{run.trained:,} of {run.tokens:,}")
        self.console.print(rows, runs, sep="\n", highlight=False)
        return 0

    def run(self, parallel: int) -> int:
        """Train and evaluate what is missing, then write the report. Return the exit code."""
        refuse_changed(self.chosen)
        with RunLock(self.out, "--out") as lock:
            lock.take()
            lock.confirm()
            jobs = jobs_of(self.grid, self.chosen, self.out)
            finished = sum(run.progress == "finished" for run in self.chosen)
            self.console.print(
                f"{len(self.chosen)} runs of {len({run.row.name for run in self.chosen})} rows in {self.out}; "
                f"{finished} finished, {len(jobs)} job(s) to do",
                highlight=False,
            )
            display = _Display(self.console, jobs, {run.name: run for run in self.chosen})
            queue = Jobs(jobs, parallel=parallel, environment=environment(self.grid), changed=display.changed)
            with display:
                queue.run(display.redraw)
            self._report()
        return self._exit_code(jobs, queue.stopped_by)

    def _report(self) -> None:
        results: dict[str, dict[int, RunResult]] = {}
        for run in self.planned:
            if run.progress == "finished" and not changes(run):
                results.setdefault(run.row.name, {})[run.seed] = read_run(run.directory, self.grid, run.row)
        if not results:
            return
        comparison = compare(self.grid, results, self.seeds)
        _write(comparison, self.out)
        self.console.print(_summary(comparison, self.console), highlight=False)
        for note in comparison.notes:
            self.console.print(f"note: {note}", style="yellow", highlight=False)
        for name in (table.PAGE, table.DATA, table.PICTURE):
            if (self.out / name).exists():
                self.console.print(str(self.out / name), highlight=False, soft_wrap=True)

    def _exit_code(self, jobs: Sequence[Job], stopped_by: int) -> int:
        """Print the end of the logs of failed jobs and how to resume. Return the exit code."""
        failed = [job for job in jobs if job.state == "failed"]
        for job in failed:
            text = escape("\n".join([f"The end of {job.log}:", *last_lines(job.log, _LOG_LINES)]))
            title = escape(f"{job.name} failed")
            self.console.print(Panel(text, title=title, title_align="left", border_style="red"), highlight=False)
        if failed:
            self.console.print("The same command tries failed jobs again.", style="bold")
            return EXIT_FAILED
        if stopped_by and any(job.state == "interrupted" for job in jobs):
            self.console.print("To resume: the same command.", style="bold")
            return 128 + stopped_by
        return 0


class _Display:
    """A table of the jobs on a terminal; elsewhere, a line for each change of a job's state."""

    def __init__(self, console: Console, jobs: Sequence[Job], runs: dict[str, PlannedRun]) -> None:
        self._console, self._jobs, self._runs = console, jobs, runs
        live = console.is_terminal and not console.is_dumb_terminal and bool(jobs)
        self._live = Live(console=console, auto_refresh=False) if live else None
        self._drawn = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def changed(self, job: Job) -> None:
        """Show a changed state."""
        self._drawn = 0.0
        if self._live is None:
            took = f" after {_time(job)}" if job.ended and job.started else ""
            self._console.print(f"{job.name}: {job.state}{took}", highlight=False, soft_wrap=True)

    def redraw(self) -> None:
        """Show the progress of all jobs, once a second."""
        if self._live is not None and time.monotonic() - self._drawn >= _REDRAW_S:
            self._live.update(self._table(), refresh=True)
            self._drawn = time.monotonic()

    def _table(self) -> Table:
        counts = Counter[str](job.state for job in self._jobs)
        caption = ", ".join(f"{count} {state}" for state, count in counts.items())
        shown = FittedTable("job", "state", "tokens", "val/loss", "time", caption=caption, caption_justify="left")
        # Of a grid that does not fit on the screen, waiting and finished jobs are only counted, in the caption.
        fits = len(self._jobs) <= self._console.height - _FRAME_LINES
        for job in self._jobs if fits else [job for job in self._jobs if job.state not in ("waiting", "done")]:
            run = self._runs.get(job.name)
            tokens, loss = _last_metrics(run.directory) if run and job.started else (0, None)
            shown.add_row(
                job.name,
                f"[{_COLORS.get(job.state, 'dim')}]{job.state}",
                f"{100 * tokens / run.tokens:.0f} %" if run and job.started else "",
                "" if loss is None else f"{loss:.4f}",
                _time(job) if job.started else "",
            )
        return shown


def _seeds(text: str | None, grid: Grid) -> list[int]:
    if text is None:
        return list(grid.seeds)
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds: expected different seeds, got {text}", remedy="Write numbers from 0: --seeds 0,1.")
    return seeds


def _last_metrics(directory: Path) -> tuple[int, float | None]:
    """Return the tokens and the latest validation loss in a run's metrics."""
    tokens, loss = 0, None
    file = directory / METRICS
    for line in file.read_bytes().splitlines() if file.exists() else ():
        if entry := parse(line):  # the run may be writing the last line
            tokens, loss = entry["tokens"], entry.get("val/loss", loss)
    return tokens, loss


def _time(job: Job) -> str:
    return str(timedelta(seconds=round(job.seconds)))


def _write(comparison: Comparison, out: Path) -> None:
    (out / table.PAGE).write_text(table.page(comparison), "utf-8")
    (out / table.DATA).write_text(json.dumps(table.as_data(comparison), indent=2) + "\n", "utf-8")
    if comparison.metrics:
        picture.draw(comparison, out / table.PICTURE)


def _summary(comparison: Comparison, console: Console) -> Table:
    """Return the comparison for a terminal: a column a metric if they fit, else a line a metric and row."""
    title = f"with a sign: less {comparison.grid.baseline}"
    wide, long = FittedTable("row", *comparison.metrics, title=title), FittedTable("metric and row", "", title=title)
    names = [result.row.name + ("" if result.comparable else " †") for result in comparison.rows]
    cells = [[_cell(result, metric) for metric in comparison.metrics] for result in comparison.rows]
    for name, row in zip(names, cells, strict=True):
        wide.add_row(name, *row)
    if console.measure(wide, options=console.options.update(max_width=10_000)).maximum <= console.width:
        return wide
    for metric, column in zip(comparison.metrics, zip(*cells, strict=True), strict=True):
        long.add_row(metric, style="bold")
        for name, cell in zip(names, column, strict=True):
            long.add_row(f"  {name}", cell)
        long.add_section()
    return long


def _cell(result: RowResult, metric: str) -> str:
    """Return the difference from the baseline if there is one, else the value."""
    difference = result.differences.get(metric)
    found = difference or result.values.get(metric)
    return "–" if found is None else table.shown(found, sign=difference is not None)

"""From a grid to runs: what each is configured to, where it lies, and how far it has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mcframe.config.run_config import load_run_config
from mcframe.errors import Location, UserError
from mcframe.metrics.summary import ended_by_request
from mcframe.registry.discovery import INSTALLED, PluginOptions
from mcframe.registry.plugins import did_you_mean
from mcframe.sweep.grid import Grid, Row, line_of
from mcframe.training import provenance
from mcframe.training.checkpoints import checkpoints
from mcframe.training.run_directory import BOUND

Progress = Literal["new", "unfinished", "finished"]


@dataclass(frozen=True)
class PlannedRun:
    """A row with a seed.

    bindings      what is passed on with --set
    config        everything that is bound, as the run will write it to config.gin: its fingerprint
    tokens        whole steps, what the run reads; step_tokens: of one step
    plugins       plug-in options of the command line; added_plugins: those that they add
    """

    row: Row
    seed: int
    directory: Path
    bindings: tuple[str, ...]
    config: str
    tokens: int
    step_tokens: int
    plugins: PluginOptions = INSTALLED
    added_plugins: tuple[provenance.AddedPlugin, ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.row.name}/seed-{self.seed}"

    @property
    def trained(self) -> int:
        """Tokens behind its newest complete checkpoint."""
        found = checkpoints(self.directory)
        return found[-1].tokens if found else 0

    @property
    def progress(self) -> Progress:
        """The progress of the run. It is new without a complete checkpoint, and finished if a callback stopped it."""
        trained = self.trained
        if not trained:
            return "new"
        finished = trained >= self.tokens or ended_by_request(self.directory, trained)
        return "finished" if finished else "unfinished"


def run_directory(out: Path, row: str, seed: int) -> Path:
    """Where a row's run with this seed lies."""
    return out / row / f"seed-{seed}"


def plan(
    grid: Grid, out: Path, rows: Sequence[str], seeds: Sequence[int], plugins: PluginOptions = INSTALLED
) -> list[PlannedRun]:
    """The runs of these rows and seeds, and of the rows that they start from; in the order of the grid.

    Raises UserError where a row's configuration is wrong, at the grid's line where a binding of it is the reason, and
    where two rows are the same.
    """
    wanted = _with_starts(grid, rows)
    planned = [
        _planned(grid, grid.rows[name], seed, out, plugins) for name in grid.rows if name in wanted for seed in seeds
    ]
    _check_distinct(grid, planned)
    return planned


def refuse_changed(planned: Sequence[PlannedRun]) -> None:
    """Raises UserError where a run that has trained was configured otherwise, naming what differs."""
    for run in planned:
        found = changes(run)
        if found:
            raise UserError(
                f"{run.directory} was trained with another configuration:\n  " + "\n  ".join(found),
                remedy="put that back, name the changed row or --out differently, or remove the folder to train anew",
            )


def changes(run: PlannedRun) -> list[str]:
    """What differs between a run on disk, where it has trained, and the one that is planned now: bindings, plug-ins."""
    file = run.directory / BOUND
    if run.progress == "new" or not file.exists():
        return []
    return [*differences(file.read_text("utf-8"), run.config), *provenance.changes(run.directory, run.added_plugins)]


def differences(before: str, now: str) -> list[str]:
    """What two texts of bindings do not share, a line a binding."""
    old, new = _by_key(before), _by_key(now)
    return [
        f"{key}: was {old.get(key, 'not bound')}, now {new.get(key, 'not bound')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _by_key(text: str) -> dict[str, str]:
    pairs = (line.partition(" = ") for line in text.splitlines() if line)
    return {key: value for key, _, value in pairs}


def _with_starts(grid: Grid, rows: Sequence[str]) -> set[str]:
    wanted = set()
    for name in rows:
        if name not in grid.rows:
            raise UserError(
                f"{grid.file} has no row {name!r}{did_you_mean(name, grid.rows)}",
                remedy=f"the rows are: {', '.join(grid.rows)}",
            )
        follow: str | None = name
        while follow is not None:
            wanted.add(follow)
            follow = grid.rows[follow].start
    return wanted


def _planned(grid: Grid, row: Row, seed: int, out: Path, plugins: PluginOptions) -> PlannedRun:
    bindings = [*grid.set, *row.set, f"run.total_tokens = {grid.tokens}", f"run.seed = {seed}"]
    if row.start is not None:
        bindings.append(f"run.start_from = {str(run_directory(out, row.start, seed))!r}")
    try:
        loaded = load_run_config(grid.gin, bindings, plugins)
    except UserError as error:
        raise _in_grid(error, grid, row) from error
    run_config = loaded.run_config
    return PlannedRun(
        row, seed, run_directory(out, row.name, seed), tuple(bindings), loaded.config.bound(),
        run_config.steps * run_config.batch_tokens, run_config.batch_tokens, plugins,
        tuple(provenance.added_plugins(loaded.registry)),
    )  # fmt: skip


def _in_grid(error: UserError, grid: Grid, row: Row) -> UserError:
    """The error with the grid's line in place of `--set '...'`, which nobody typed."""
    location, text = error.location, grid.file.read_text("utf-8")
    for binding in (*row.set, *grid.set):
        if location is not None and location.file == f"--set {binding!r}":
            location = Location(grid.file, line_of(text, binding, row.name))
    return UserError(f"row {row.name}: {error.message}", remedy=error.remedy, location=location or Location(grid.file))


def _check_distinct(grid: Grid, planned: Sequence[PlannedRun]) -> None:
    seen: dict[str, str] = {}
    for run in planned:
        other = seen.setdefault(run.config, run.row.name)
        if other != run.row.name:
            raise UserError(
                f"rows {other} and {run.row.name} of {grid.file} bind the same",
                remedy=f"remove one of them, or change what {run.row.name} binds",
            )

"""Where a review's figures come from: files, revision, machine, configuration."""

from __future__ import annotations

from mcframe import __version__
from mcframe.review.document import Grid, Items, Part, Verbatim
from mcframe.review.finding import Case
from mcframe.review.record import Record


def provenance(case: Case) -> list[Part]:
    """A table for the run and its twin, notes on the files, the run's operative configuration."""
    runs = [case.run] if case.twin is None else [case.run, case.twin]
    rows = [[label, *(_cell(run, label) for run in runs)] for label in _CELLS]
    parts: list[Part] = [Grid(("", *(run.name for run in runs)), rows, words=True)]
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    notes.append(f"Judged by {case.rules.source}, with mcframe {__version__}.")
    parts.append(Items(notes))
    if case.run.config:
        parts.append(Verbatim("\n".join(f"{key} = {value}" for key, value in case.run.config.items())))
    return parts


_CELLS = ("read", "steps", "state", "revision", "versions", "machine", "command")


def _cell(run: Record, label: str) -> str:
    origin = run.provenance
    if label == "read":
        return run.read
    if label == "steps":
        return f"{run.steps[0]:,} to {run.steps[1]:,}"
    if label == "state":
        return run.state
    value = origin.get(label)
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item)
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value) if value else "not written down"

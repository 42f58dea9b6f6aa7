"""Summary of a run: results and locations, as `summary.json`, as a table, and for the `run_finished` hook."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.table import Table

from mcframe.files import replaced
from mcframe.metrics.catalogue import describe
from mcframe.metrics.dashboard import matching
from mcframe.metrics.tables import FittedTable

SUMMARY = "summary.json"

_SHOWN = {
    "train/loss_lod0": "loss",
    "val/bpb": "validation",
    "mc/tail_delta": "ΔNLL after the cursor",
    "mc/gist_entry_delta/{lod}": "ΔNLL of gist entries",
    "mc/lod_delta/{lod}": "ΔNLL after gists",
}
"""Metrics in the table, with their labels."""


def summarise(
    *,
    status: str,
    tokens: int,
    steps: int,
    session_tokens: int,
    session_seconds: float,
    first: Mapping[str, float],
    last: Mapping[str, float],
    locations: Mapping[str, str | Path],
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the summary of a run as values of JSON.

    Args:
        status: `finished`, `interrupted`, or `stopped` by a callback.
        tokens: dataset tokens so far.
        steps: optimizer steps so far.
        session_tokens: tokens since the start or the last resumption.
        session_seconds: seconds since then.
        first: first value of each metric.
        last: latest value of each metric.
        locations: label -> path or command: checkpoint, operative config, and `Loggers.locations`.
        warnings: the warnings of this session.
    """
    return {
        "status": status,
        "tokens": tokens,
        "steps": steps,
        "session_tokens": session_tokens,
        "session_seconds": session_seconds,
        "tokens_per_second": session_tokens / session_seconds if session_seconds > 0 else None,
        "first": dict(first),
        "last": dict(last),
        "locations": {label: str(location) for label, location in locations.items()},
        "warnings": list(warnings),
    }


def write_summary(run_dir: Path, summary: Mapping[str, Any]) -> Path:
    """Write `summary.json` and return its path; values that are not finite become null."""
    path = run_dir / SUMMARY
    with replaced(path) as partial:
        partial.write_text(json.dumps(_finite(summary), indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
    return path


def is_reported(run_dir: Path, tokens: int) -> bool:
    """Return whether the summary of a run includes this token count: a run that was killed before has more to do."""
    try:
        return bool(json.loads((run_dir / SUMMARY).read_text("utf-8"))["tokens"] >= tokens)
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or it is another program's
        return False


def ended_by_request(run_dir: Path, tokens: int) -> bool:
    """Return whether a callback stopped the run, and its summary includes this token count."""
    path = run_dir / SUMMARY
    summary = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return summary.get("status") == "stopped" and summary["tokens"] >= tokens


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Return the summary as a table for a terminal."""
    first, last = summary["first"], summary["last"]
    table = FittedTable(show_header=False, title=f"Run {summary['status']}", title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("trained", f"{summary['tokens']:,} tokens in {summary['steps']:,} steps")
    for metric, label in _SHOWN.items():
        sign = "+" if "delta" in metric else ""
        for name in matching([metric], last):
            lod = f", LOD{name.rpartition('/')[2]}" if "{lod}" in metric else ""
            start = f"{first[name]:{sign}.4f} → " if name in first else ""
            table.add_row(label + lod, f"{start}{last[name]:{sign}.4f} {describe(name).unit}")
    table.add_row("wall time", str(timedelta(seconds=round(summary["session_seconds"]))))
    if summary["tokens_per_second"] is not None:
        table.add_row("speed", f"{summary['tokens_per_second']:,.0f} tokens/s")
    if "train/mfu" in last:
        table.add_row("MFU", f"{100 * last['train/mfu']:.2f} % of the device's peak")
    for label, location in summary["locations"].items():
        table.add_row(label, location)
    return table


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""The last thing a run says: what came out, and where everything lies."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.table import Table

from mcframe.metrics.catalogue import Metric, describe

SUMMARY = "summary.json"

_SHOWN = {
    "loss": "train/loss_lod0",
    "validation": "val/bpb",
    "ΔNLL behind the cursor": "mc/tail_delta",
}
_SHOWN_PREFIXES = {"ΔNLL of gist entries": "mc/gist_entry_delta/", "ΔNLL behind gists": "mc/lod_delta/"}


def summarise(
    *,
    status: str,
    tokens: int,
    steps: int,
    session_tokens: int,
    session_seconds: float,
    first: Mapping[str, float],
    last: Mapping[str, float],
    places: Mapping[str, str | Path],
) -> dict[str, Any]:
    """The summary of a run as plain values, for `write_summary`, `summary_table` and the `run_finished` hook.

    status           such as `finished` or `interrupted`
    tokens, steps    where the clock stands; session_*: what this session trained, and for how many seconds
    first, last      the first and the latest value of each metric
    places           label -> path or command: checkpoint, operative config, and `Sinks.places`
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
        "places": {label: str(place) for label, place in places.items()},
    }


def write_summary(run_dir: Path, summary: Mapping[str, Any]) -> Path:
    """Write `summary.json`; values that are not finite become null. Returns its path."""
    path = run_dir / SUMMARY
    path.write_text(json.dumps(_finite(summary), indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
    return path


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The summary for a terminal."""
    table = Table(show_header=False, title=f"Run {summary['status']}", title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("trained", f"{summary['tokens']:,} tokens in {summary['steps']:,} steps")
    for label, name in _named(summary["last"]):
        table.add_row(label, _change(describe(name), summary["first"].get(name), summary["last"][name]))
    table.add_row("wall time", str(timedelta(seconds=round(summary["session_seconds"]))))
    if summary["tokens_per_second"] is not None:
        table.add_row("speed", f"{summary['tokens_per_second']:,.0f} tokens/s")
    if "train/mfu" in summary["last"]:
        table.add_row("MFU", f"{100 * summary['last']['train/mfu']:.2f} % of the device's peak")
    for label, place in summary["places"].items():
        table.add_row(label, place)
    return table


def _named(last: Mapping[str, float]) -> list[tuple[str, str]]:
    """Rows to show: their labels and metric names, in the order of the catalogue of this page."""
    rows = [(label, name) for label, name in _SHOWN.items() if name in last]
    for label, prefix in _SHOWN_PREFIXES.items():
        lods = sorted(int(name.removeprefix(prefix)) for name in last if name.startswith(prefix))
        rows += [(f"{label}, LOD{lod}", f"{prefix}{lod}") for lod in lods]
    return rows


def _change(metric: Metric, first: float | None, last: float) -> str:
    """`8.0130 -> 3.1207 bits/byte`, or the last value alone."""
    sign = "+" if "delta" in metric.name else ""
    start = "" if first is None else f"{first:{sign}.4f} → "
    return f"{start}{last:{sign}.4f} {metric.unit}"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value

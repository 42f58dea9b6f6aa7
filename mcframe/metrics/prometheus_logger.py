"""The latest metrics as a Prometheus text file, for clusters whose machines are watched already.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format. node_exporter's textfile
collector reads such files from the folder that its `--collector.textfile.directory` names.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

from mcframe.hookspecs import MetricLogger, RunStart

FILE = "metrics.prom"


class PrometheusLogger(MetricLogger):
    """Writes the latest value of every metric to one file, `mcframe_train_loss{run="..."} 2.5`.

    file    where; None = `metrics.prom` in the run directory. Runs of one machine need files of their own
    prefix  of the names
    """

    def __init__(self, run: RunStart, *, file: str | None = None, prefix: str = "mcframe_") -> None:
        self._file = Path(file) if file else run.directory / FILE
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._prefix = prefix
        name = run.directory.resolve().name
        self._label = '{run="' + name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") + '"}'
        self._latest: dict[str, float] = {}

    @property
    def place(self) -> tuple[str, str]:
        """A label and the file."""
        return "Prometheus", str(self._file)

    def write(self, tokens: int, step: int, metrics: Mapping[str, float]) -> None:
        """Replace the file, which is whole at every moment."""
        self._latest |= {**metrics, "tokens": tokens, "step": step}
        lines = [f"{self._name(name)}{self._label} {_number(value)}\n" for name, value in sorted(self._latest.items())]
        partial = self._file.with_name(f".{self._file.name}.partial")
        partial.write_text("".join(lines), "utf-8")
        os.replace(partial, self._file)

    def _name(self, metric: str) -> str:
        return self._prefix + re.sub(r"[^a-zA-Z0-9_:]", "_", metric)


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return repr(float(value)) if math.isfinite(value) else ("+Inf" if value > 0 else "-Inf")

"""Logger of the latest metrics as a Prometheus text file, for node_exporter's textfile collector.

The collector reads the folder that `--collector.textfile.directory` names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mcframe.errors import UserError
from mcframe.files import user_path
from mcframe.hookspecs import MetricLogger, RunStart

if TYPE_CHECKING:
    from prometheus_client import Gauge

FILE = "metrics.prom"


class PrometheusLogger(MetricLogger):
    """The latest value of every metric in one file of Prometheus' text format, replaced at every logging interval.

    node_exporter's textfile collector reads it from the folder that `--collector.textfile.directory` names. A line is
    `mcframe_train_loss{run="quickstart"} 2.5`. Needs the extra `mcframe[prometheus]`.

    Args:
        run: Start of the run.
        file: Path; None = `metrics.prom` in the run directory. Runs on one machine need different files.
        prefix: Prefix of the names.
    """

    def __init__(self, run: RunStart, *, file: str | None = None, prefix: str = "mcframe_") -> None:
        try:
            from prometheus_client import CollectorRegistry
        except ImportError as error:
            raise UserError(
                "logger.prometheus: missing package prometheus_client",
                binding="logger.prometheus",
                remedy="Run pip install 'mcframe[prometheus]'.",
            ) from error
        self._file = run.directory / FILE if file is None else user_path(file, "logger.prometheus.file")
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._prefix, self._run = prefix, run.directory.resolve().name
        self._registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}

    @property
    def location(self) -> tuple[str, str]:
        """A label and the file."""
        return "Prometheus", str(self._file)

    def write(self, tokens: int, step: int, metrics: Mapping[str, float]) -> None:
        """Replace the file atomically."""
        from prometheus_client import Gauge, write_to_textfile

        for metric, value in {**metrics, "tokens": tokens, "step": step}.items():
            name = self._prefix + re.sub(r"[^a-zA-Z0-9_:]", "_", metric)
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, metric, ["run"], registry=self._registry)
            self._gauges[name].labels(self._run).set(value)
        write_to_textfile(str(self._file), self._registry)

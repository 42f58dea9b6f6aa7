"""Where telemetry goes: a file of JSON lines always, TensorBoard, wandb and plug-ins when asked for. Rank 0 only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mcframe.hookspecs import Histogram, MetricLogger, RunStart
from mcframe.metrics.jsonl_logger import METRICS, JsonlLogger
from mcframe.metrics.tensorboard_logger import TensorBoardLogger
from mcframe.metrics.wandb_logger import WandbLogger, resolve_mode
from mcframe.registry.plugins import last_line

_log = logging.getLogger(__name__)

Open = Callable[[RunStart], MetricLogger]


class Loggers:
    """Hands everything to each of several sinks, by name. Empty on ranks other than 0.

    One that raises is named in a warning, closed, and left out from then on; `vital`, the record of the run, is not:
    what it raises is passed on once the others have had their turn, and ends the run.
    """

    def __init__(self, loggers: Mapping[str, MetricLogger], vital: str = METRICS) -> None:
        self._sinks, self._vital = dict(loggers), vital
        self._closed = False

    @property
    def places(self) -> dict[str, str]:
        """Label -> path, address or command, for the closing summary."""
        found: list[tuple[str, str]] = []
        self._each(lambda sink: found.extend([sink.place] if sink.place else []))
        return dict(found)

    def write(self, tokens: int, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics to every sink."""
        self._each(lambda sink: sink.write(tokens, step, metrics))

    def text(self, tokens: int, name: str, text: str) -> None:
        """Hand a text to every sink."""
        self._each(lambda sink: sink.text(tokens, name, text))

    def image(self, tokens: int, name: str, image: npt.NDArray[np.uint8]) -> None:
        """Hand a picture [height, width, 3] to every sink."""
        self._each(lambda sink: sink.image(tokens, name, image))

    def histogram(self, tokens: int, name: str, histogram: Histogram) -> None:
        """Hand a distribution to every sink."""
        self._each(lambda sink: sink.histogram(tokens, name, histogram))

    def close(self) -> None:
        """Close every sink, once: what a failing run has closed stays so."""
        if not self._closed:
            self._closed = True
            self._each(lambda sink: sink.close())

    def _each(self, act: Callable[[MetricLogger], None]) -> None:
        fatal: Exception | None = None
        for name, sink in list(self._sinks.items()):
            try:
                act(sink)
            except Exception as error:  # noqa: BLE001 - of the vital one it is raised below
                if name == self._vital:
                    fatal = error
                    continue
                del self._sinks[name]
                _log.warning("%s failed, and the run goes on without it: %s", name, last_line(error))
                _close_quietly(name, sink)
        if fatal is not None:
            raise fatal


def _close_quietly(name: str, sink: MetricLogger) -> None:
    try:
        sink.close()
    except Exception as error:  # noqa: BLE001 - it has failed already, and that has been said
        _log.debug("%s did not close either: %s", name, last_line(error))


def open_loggers(
    run_dir: Path,
    *,
    rank: int,
    tensorboard: bool,
    wandb: str,
    config: dict[str, Any],
    resume_tokens: int | None,
    others: Mapping[str, Open] | None = None,
) -> Loggers:
    """The sinks of a run.

    wandb          `auto`, `online`, `offline` or `disabled`; a wandb that does not start costs a warning, no run
    config         the operative configuration, for sinks that show it
    resume_tokens  where the token clock goes on; None for a fresh start
    others         what plug-ins offer, by the name that a message should have
    Raises UserError for an unknown wandb mode, and whatever a plug-in's sink raises when it is opened: it is wanted.
    """
    if rank != 0:
        return Loggers({})
    mode = resolve_mode(wandb)
    run_dir.mkdir(parents=True, exist_ok=True)
    start = RunStart(run_dir, config, resume_tokens)
    loggers: dict[str, MetricLogger] = {METRICS: JsonlLogger(start)}
    for name, build in (others or {}).items():
        loggers[name] = build(start)
    if tensorboard:
        loggers["TensorBoard"] = TensorBoardLogger(start)
    if mode != "disabled":
        try:
            loggers["wandb"] = WandbLogger(start, mode)
        except Exception as error:  # noqa: BLE001 - whatever a service raises, training does not depend on it
            _log.warning("wandb (%s) did not start, the run goes on without it: %s", mode, error)
    return Loggers(loggers)

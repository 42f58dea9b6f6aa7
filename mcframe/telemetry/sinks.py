"""Where metrics go: a file of JSON lines always, TensorBoard and wandb when asked for. Rank 0 only."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mcframe.telemetry.metrics_file import JsonLines
from mcframe.telemetry.tensorboard_sink import TensorBoard
from mcframe.telemetry.wandb_sink import Wandb, resolve_mode

_log = logging.getLogger(__name__)


class Sink(Protocol):
    """Something that keeps or shows metrics."""

    @property
    def place(self) -> tuple[str, str]:
        """A label, and where to look or what to run to see what was written."""

    def write(self, tokens: int, step: int, metrics: Mapping[str, float]) -> None:
        """Take metrics that were read back at this token count and optimizer step."""

    def text(self, tokens: int, name: str, text: str) -> None:
        """Take a text, such as pictures of working contexts or samples."""

    def close(self) -> None:
        """Write what is left."""


class Sinks:
    """Hands everything to each of several sinks. Empty on ranks other than 0."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks

    @property
    def places(self) -> dict[str, str]:
        """Label -> path, address or command, for the closing summary."""
        return dict(sink.place for sink in self._sinks)

    def write(self, tokens: int, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics to every sink."""
        for sink in self._sinks:
            sink.write(tokens, step, metrics)

    def text(self, tokens: int, name: str, text: str) -> None:
        """Hand a text to every sink."""
        for sink in self._sinks:
            sink.text(tokens, name, text)

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()


def open_sinks(
    run_dir: Path,
    *,
    rank: int,
    tensorboard: bool,
    wandb: str,
    config: dict[str, Any],
    resume_tokens: int | None,
) -> Sinks:
    """The sinks of a run.

    wandb          `auto`, `online`, `offline` or `disabled`; a wandb that does not start costs a warning, no run
    config         the operative configuration, for wandb
    resume_tokens  where the token clock goes on; None for a fresh start
    Raises UserError for an unknown wandb mode.
    """
    if rank != 0:
        return Sinks(())
    mode = resolve_mode(wandb)
    run_dir.mkdir(parents=True, exist_ok=True)
    sinks: list[Sink] = [JsonLines(run_dir, resume_tokens)]
    if tensorboard:
        sinks.append(TensorBoard(run_dir, resume_tokens))
    if mode != "disabled":
        try:
            sinks.append(Wandb(run_dir, mode, config, resume_tokens))
        except Exception as error:  # noqa: BLE001 - whatever a service raises, training does not depend on it
            _log.warning("wandb (%s) did not start, the run goes on without it: %s", mode, error)
    return Sinks(sinks)

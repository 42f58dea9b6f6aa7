"""All loggers of a run: `metrics.jsonl` always; TensorBoard, wandb and plug-ins by choice. Rank 0 only."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from mcframe.hookspecs import Histogram, MetricLogger, RunStart
from mcframe.metrics.jsonl_logger import METRICS, JsonlLogger, missing_rows
from mcframe.metrics.tensorboard_logger import TensorBoardLogger
from mcframe.metrics.wandb_logger import WandbLogger, resolve_mode
from mcframe.registry.attribution import last_line

_log = logging.getLogger(__name__)

SLOW_S = 30.0
"""Seconds after which a logger that has not returned is named in a warning."""
ABANDONED_S = 900.0
"""Further seconds after which a logger that does not close is abandoned."""


class Loggers:
    """Passes metrics to several loggers. Empty on ranks other than 0.

    A logger that raises is closed and removed with one warning, and the run continues without it. Exceptions of the
    required logger are raised after the other loggers have been called; they end the run.

    Args:
        loggers: by the name for messages.
        required: name of the logger that must not fail.
        reopen: opens all of them again for a run that resumes at a token count.
    """

    def __init__(
        self,
        loggers: Mapping[str, MetricLogger],
        required: str = METRICS,
        reopen: Callable[..., Loggers] | None = None,
    ) -> None:
        self._loggers, self._required, self._reopen = dict(loggers), required, reopen
        self._closed = False

    @property
    def locations(self) -> dict[str, str]:
        """Label -> path, address or command, for the summary of the run."""
        found: list[tuple[str, str]] = []
        self._each(lambda logger: found.extend([logger.location] if logger.location else []))
        return dict(found)

    def write(self, tokens: int, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics to every logger."""
        self._each(lambda logger: logger.write(tokens, step, metrics))

    def text(self, tokens: int, name: str, text: str) -> None:
        """Write a text to every logger."""
        self._each(lambda logger: logger.text(tokens, name, text))

    def image(self, tokens: int, name: str, image: npt.NDArray[np.uint8]) -> None:
        """Write an image [height, width, 3] to every logger."""
        self._each(lambda logger: logger.image(tokens, name, image))

    def histogram(self, tokens: int, name: str, histogram: Histogram) -> None:
        """Write a histogram to every logger."""
        self._each(lambda logger: logger.histogram(tokens, name, histogram))

    def rewind(self, tokens: int) -> Loggers:
        """Close all loggers and return them as a run has them that resumes at `tokens`: later rows are superseded."""
        self.close()
        if self._reopen is None:
            return self
        try:
            return self._reopen(resume_tokens=tokens)
        except Exception as error:  # noqa: BLE001 - of a plug-in, which opened before
            _log.warning("the run continues without loggers of plug-ins: %s", last_line(error))
            return self._reopen(resume_tokens=tokens, others={})

    def close(self) -> None:
        """Close every logger, at the first call."""
        if not self._closed:
            self._closed = True
            self._each(self._close)

    def _close(self, logger: MetricLogger) -> None:
        """Close a logger; one that takes too long is abandoned, unless it is required."""
        if logger is self._loggers.get(self._required):
            logger.close()
            return
        errors: list[BaseException] = []

        def close() -> None:
            try:
                logger.close()
            except BaseException as error:  # noqa: BLE001 - raised again below
                errors.append(error)

        thread = threading.Thread(target=close, daemon=True)
        thread.start()
        thread.join(SLOW_S)
        if thread.is_alive():
            name = type(logger).__name__
            _log.warning("%s needs more than %g s to close; the run waits up to %g s", name, SLOW_S, ABANDONED_S)
            thread.join(ABANDONED_S)
        if thread.is_alive():
            raise TimeoutError(f"it did not close within {SLOW_S + ABANDONED_S:g} s")
        if errors:
            raise errors[0]

    def _each(self, call: Callable[[MetricLogger], None]) -> None:
        fatal: Exception | None = None
        for name, logger in list(self._loggers.items()):
            try:
                with nullcontext() if self._closed else _watched(name):
                    call(logger)
            except Exception as error:  # noqa: BLE001 - third-party code and services may raise any exception
                if name == self._required:
                    fatal = error
                    continue
                del self._loggers[name]
                _log.warning("%s failed, and the run continues without it: %s", name, last_line(error))
                if not self._closed:
                    with suppress(Exception):  # it has failed already, which has been reported
                        self._close(logger)
        if fatal is not None:
            raise fatal


def open_loggers(
    run_dir: Path,
    *,
    rank: int,
    tensorboard: bool,
    wandb: str,
    config: dict[str, Any],
    resume_tokens: int | None,
    others: Mapping[str, Callable[[RunStart], MetricLogger]] | None = None,
) -> Loggers:
    """Open the loggers of a run.

    Args:
        run_dir: created if it is missing.
        rank: ranks other than 0 have no loggers.
        tensorboard: whether to write event files.
        wandb: `auto`, `online`, `offline` or `disabled`. TensorBoard or wandb that does not start costs a warning.
        config: the operative configuration, for loggers that show it.
        resume_tokens: token count at which the run resumes; None for a fresh start.
        others: factories of plug-ins, by the name for messages. Their exceptions are passed on, because the user has
            chosen them.

    Raises:
        UserError: the wandb mode is unknown.
    """
    if rank != 0:
        return Loggers({})
    mode = resolve_mode(wandb)
    run_dir.mkdir(parents=True, exist_ok=True)
    start = RunStart(run_dir, config, resume_tokens)
    built = _build(others or {}, start)  # the last that may refuse, before files of an earlier session change
    loggers: dict[str, MetricLogger] = {METRICS: JsonlLogger(start), **built}
    for name, selected, build in (
        ("TensorBoard", tensorboard, TensorBoardLogger),
        (f"wandb ({mode})", mode != "disabled", lambda start: WandbLogger(start, mode)),
    ):
        try:
            if selected:
                loggers[name.partition(" ")[0]] = _complete(build(start), start)
        except Exception as error:  # noqa: BLE001 - a service may raise any exception, and training does not need it
            _log.warning("%s did not start, and the run continues without it: %s", name, error)
    reopen = partial(
        open_loggers, run_dir, rank=rank, tensorboard=tensorboard, wandb=wandb, config=config, others=others
    )
    return Loggers(loggers, reopen=reopen)


def _complete(logger: TensorBoardLogger | WandbLogger, start: RunStart) -> MetricLogger:
    """Write what `metrics.jsonl` and `texts.jsonl` have of a resumed run and the logger lost when it was killed."""
    if start.resume_tokens is not None:
        for tokens, step, metrics, texts in missing_rows(start.directory, logger.recorded):
            logger.write(tokens, step, metrics)
            for name, text in texts:
                logger.text(tokens, name, text)
    return logger


def _build(factories: Mapping[str, Callable[[RunStart], MetricLogger]], start: RunStart) -> dict[str, MetricLogger]:
    """Build the loggers of plug-ins. If one raises, the others are closed, and new files of theirs are removed."""
    built, before = dict[str, MetricLogger](), {path.name for path in start.directory.iterdir()}
    try:
        for name, factory in factories.items():
            built[name] = factory(start)
    except BaseException:
        Loggers(built).close()
        for path in start.directory.iterdir():
            if path.name not in before:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
    return built


@contextmanager
def _watched(name: str) -> Iterator[None]:
    """Warn, from a thread, if the body takes longer than `SLOW_S`, and end it after `ABANDONED_S` more."""
    message = "%s has blocked the run for %g s; the run waits up to %g s for it"
    timer = threading.Timer(SLOW_S, _log.warning, (message, name, SLOW_S, ABANDONED_S))
    timer.daemon = True
    timer.start()
    try:
        with _interrupted(SLOW_S + ABANDONED_S):
            yield
    finally:
        timer.cancel()


@contextmanager
def _interrupted(limit: float) -> Iterator[None]:
    """Raise TimeoutError in the body after `limit` seconds, even if it waits in a call of the system.

    A logger stays in its thread, since the resources of some belong to one. Other threads get no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> NoReturn:
        raise TimeoutError(f"it did not return within {limit:g} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

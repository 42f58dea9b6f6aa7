"""Code that only watches a run: an exception of it is a warning, and it is switched off on every rank."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mcframe.collective import FailedElsewhere
from mcframe.errors import UserError, is_lost_connection
from mcframe.interfaces.callback import StopRun
from mcframe.registry.attribution import exits_as_errors, last_line

if TYPE_CHECKING:
    from mcframe.training.stop_signal import StopSignal

_log = logging.getLogger(__name__)


class Watchers:
    """Validation, samples, figures, evaluations, and the hooks and callbacks of plug-ins.

    One that raises is switched off until the run is started again: the same error would recur at every interval.

    Args:
        explain: Returns an error of a third-party plug-in as a message that names it.

    Attributes:
        every_step: Whether watchers are called in every step, so that `agree` has to be.
        stop_reasons: The reasons of the watchers of this rank that raised StopRun, by name.
    """

    def __init__(self, explain: Callable[[Exception], UserError | None] = lambda error: None) -> None:
        self._explain = explain
        self._names: list[str] = []
        self._off: set[str] = set()
        self.every_step = False
        self.stop_reasons: dict[str, str] = {}

    def declare(self, *names: str, every_step: bool = False) -> None:
        """Add watchers, in the same order on every rank; `every_step` if they are called in every step."""
        self._names += [name for name in names if name not in self._names]
        self.every_step |= every_step and bool(names)

    def is_off(self, name: str) -> bool:
        """Return whether a watcher is switched off."""
        return name in self._off

    def call(self, name: str, action: Callable[[], object]) -> bool:
        """Call a watcher unless it is off. Return whether it ended without an exception.

        The loss of another rank is raised: no collective would end after it.
        """
        if name in self._off:
            return False
        try:
            with exits_as_errors():
                action()
        except FailedElsewhere:
            self._off.add(name)
        except Exception as error:
            if is_lost_connection(error):
                raise
            if isinstance(error, StopRun) and self.every_step:
                self.stop_reasons.setdefault(name, str(error))
                return True
            self._off.add(name)
            _log.warning("%s; the run continues without %s", self._described(error), name)
        return name not in self._off

    def agree(self, stop_signal: StopSignal) -> None:
        """Switch off on this rank what failed on any. Collective."""
        failed = stop_signal.any_rank([name in self._off for name in self._names])
        self._off |= {name for name, has_failed in zip(self._names, failed, strict=True) if has_failed}

    def _described(self, error: Exception) -> str:
        found = self._explain(error)
        if found is not None:
            first = found.message.partition("\n")[0]  # the lines after it quote the code
            return f"{first} ({found.location})" if found.location else first
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{last_line(error)} ({frame.filename}:{frame.lineno})"


class _Collector(logging.Handler):
    """Keeps the warnings of mcframe, and prints them as Python does where no handler is set up."""

    def __init__(self, messages: dict[str, None]) -> None:
        super().__init__(logging.WARNING)
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self.messages[record.getMessage()] = None
        if not logging.getLogger().handlers and logging.lastResort is not None:
            logging.lastResort.emit(record)


@contextmanager
def collected_warnings(messages: dict[str, None]) -> Iterator[None]:
    """Add the different warnings that are logged within the block to the keys of `messages`, in order."""
    collector, logger = _Collector(messages), logging.getLogger("mcframe")
    logger.addHandler(collector)
    try:
        yield
    finally:
        logger.removeHandler(collector)

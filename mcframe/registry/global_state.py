"""Global state of the process that a plug-in must leave as it is: torch's defaults, the working directory and others.

A change by one plug-in alters what every other part of the run computes. It is undone at once and reported.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _device

from mcframe.errors import UserError

_log = logging.getLogger(__name__)
_warned: set[tuple[str, str, str]] = set()


class StateError(UserError):
    """A plug-in changes global state."""


@dataclass(frozen=True)
class Setting:
    """One item of global state.

    Attributes:
        name: The item, as messages name it.
        read: Returns its value. Must take microseconds and not wait for a device.
        write: Sets its value; None if it cannot be set back.
        remedy: What a plug-in does instead, in the imperative.
        certain: Whether a change is an error. Otherwise it may be meant, and costs one warning.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], None] | None
    remedy: str
    certain: bool = True


@dataclass(frozen=True)
class Change:
    """A changed item of global state, with its values before and after."""

    setting: Setting
    before: Any
    after: Any

    def __str__(self) -> str:
        values = (self.before, self.after)
        shown = all(isinstance(each, (bool, int, str, torch.dtype, torch.device, type(None))) for each in values)
        return f"changes {self.setting.name}" + (f" from {self.before} to {self.after}" if shown else "")


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


def _return_to(directory: str) -> None:
    with suppress(OSError):
        os.chdir(directory)


def _set_gradient_mode(enabled: bool) -> None:
    torch.set_grad_enabled(enabled)


def _numpy_state() -> tuple[bytes, int]:
    _, numbers, index, *_ = np.random.get_state()
    return np.asarray(numbers).tobytes(), int(index)


_OWN_NUMBERS = "Use a torch.Generator or mcframe.context.counter_rng; run.seed sets the seed of a run."

SETTINGS = [
    Setting(
        "the default dtype of torch", torch.get_default_dtype, torch.set_default_dtype,
        "Pass dtype=... to the tensors and modules that need another one.",
    ),
    Setting(
        "the gradient mode of torch", torch.is_grad_enabled, _set_gradient_mode,
        "Use `with torch.no_grad():` around the code that needs no gradient, and never around a yield.",
    ),
    Setting(
        "the default device of torch", lambda: _device.CURRENT_DEVICE, torch.set_default_device,
        "Pass device=... to the tensors that need one; tensors of the run are on its device.",
    ),
    Setting("the working directory", _working_directory, _return_to, "Use absolute paths."),
    Setting("the seed of torch's random numbers", torch.initial_seed, None, _OWN_NUMBERS, certain=False),
    Setting(
        "the number of torch's threads", torch.get_num_threads, None,
        "Set OMP_NUM_THREADS; mcframe divides the cores among ranks.", certain=False,
    ),
    Setting(
        "the precision of float32 products", torch.get_float32_matmul_precision, None,
        "Leave it to the run: it changes the results of every part.", certain=False,
    ),
    Setting(
        "the determinism of torch", torch.are_deterministic_algorithms_enabled, None,
        "Leave it to the run: it changes the speed of every part.", certain=False,
    ),
    Setting(
        "the anomaly detection of torch", torch.is_anomaly_enabled, None,
        "Use `with torch.autograd.detect_anomaly():`; it is slow.", certain=False,
    ),
]  # fmt: skip
"""The items that are compared before and after every call of a third-party plug-in."""

_FRESH = 624
"""The index of a Mersenne twister that was seeded and has drawn nothing."""

RARE_SETTINGS = [
    Setting(
        "the seed of Python's random numbers", lambda: random.getstate()[1], None, "Use random.Random(seed).",
        certain=False,
    ),
    Setting(
        "the seed of numpy's random numbers", _numpy_state, None, "Use numpy.random.default_rng(seed).", certain=False,
    ),
]  # fmt: skip
"""The items that are compared around imports and factories as well. `mcframe.config` adds the bindings of gin."""


def read_state() -> tuple[Any, ...]:
    """Return the values of `SETTINGS`."""
    return tuple(setting.read() for setting in SETTINGS)


def undo_changes(before: tuple[Any, ...], settings: list[Setting] = SETTINGS) -> list[Change]:
    """Set back what has changed since `before`, and return the changes."""
    now = read_state() if settings is SETTINGS else tuple(setting.read() for setting in settings)
    found = []
    for setting, old, new in zip(settings, before, now, strict=True):
        if old != new:
            found.append(Change(setting, old, new))
            if setting.write is not None:
                setting.write(old)
    return found


class UnchangedState:
    """Context manager around an import or a factory: it undoes changes of global state and reports them.

    Args:
        action: What the code is, such as "its import".
        subject: Its origin, if `action` does not name it; for warnings.

    Raises:
        StateError: The code has changed something that it must not change.
    """

    def __init__(self, action: str, subject: str = "") -> None:
        self.action, self.subject = action, subject

    def __enter__(self) -> None:
        self._settings = [*SETTINGS, *RARE_SETTINGS]
        self._before = tuple(setting.read() for setting in self._settings)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for change in undo_changes(self._before, self._settings):
            if change.setting in RARE_SETTINGS and not _reseeded(change):
                continue
            if kind is None and change.setting.certain:
                raise StateError(f"{self.action} {change}", remedy=change.setting.remedy)
            warn(self.subject, self.action, change)


def warn(subject: str, action: str, change: Change) -> None:
    """Print one warning for this subject, action and item, on rank 0."""
    key = (subject, action, change.setting.name)
    if key not in _warned and os.environ.get("RANK", "0") == "0":
        undone = " (undone)" if change.setting.write is not None else ""
        where = f"{subject}: {action}" if subject else action
        _log.warning("%s %s%s. %s", where, change, undone, change.setting.remedy)
    _warned.add(key)


def _reseeded(change: Change) -> bool:
    """Return whether a generator was seeded: drawing from it is allowed."""
    return not isinstance(change.after, tuple) or change.after[-1] == _FRESH

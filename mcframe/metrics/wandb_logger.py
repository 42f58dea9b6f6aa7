"""Logger for Weights & Biases; offline unless the user is logged in."""

from __future__ import annotations

import contextlib
import html
import logging
import os
import secrets
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from mcframe.errors import UserError
from mcframe.hookspecs import Histogram, MetricLogger, RunStart
from mcframe.metrics.jsonl_logger import METRICS, step_at
from mcframe.metrics.wandb_file import cut_after
from mcframe.safe_text import redacted

Mode = Literal["online", "offline", "disabled"]

_MODES: dict[str, Mode] = {"online": "online", "offline": "offline", "disabled": "disabled"}
_MODES |= {"run": "online", "dryrun": "offline"}  # older names in WANDB_MODE
RUN_ID = "wandb_run_id.txt"
_AXIS = "train/tokens"
_SILENT_BYTES = 2**20
"""Bytes of names in rows without growth of the offline file, until an error; wandb buffers 32 KiB."""
_log = logging.getLogger(__name__)


class WandbLogger(MetricLogger):
    """A wandb run whose x axis is `train/tokens`.

    The id of the run is kept in the run directory, so that a resumed run continues its curves. Rows carry the optimizer
    step, with which wandb recognises repeated steps. Offline files of earlier sessions are cut at the step of
    resumption, since wandb would upload the repeated steps twice. Exceptions of wandb at the start are passed on.

    Args:
        run: start of the run.
        mode: `online` or `offline`.
    """

    def __init__(self, run: RunStart, mode: Mode) -> None:
        import wandb

        run_dir = run.directory
        self._offline = run_dir / "wandb" if mode == "offline" else None
        self._steps: set[int] | None = None
        if run.resume_tokens is not None:
            self._steps = _cut_earlier(run_dir, step_at(run_dir / METRICS, run.resume_tokens))
        self._teardown = wandb.teardown
        self._html, self._image, self._histogram = wandb.Html, wandb.Image, wandb.Histogram
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "mcframe"),
            name=run_dir.resolve().name,
            dir=str(run_dir),
            id=_run_id(run_dir / RUN_ID, run.resume_tokens),
            mode=mode,
            resume="allow",
            config=dict(run.config),
            allow_val_change=True,  # a run may be resumed with other settings
            # Without a network neither start nor end may take long; data that is not uploaded stays on disk.
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=30.0,
                finish_timeout=120.0,
                x_disable_meta=any(redacted(each) != each for each in sys.argv),  # it has the command line
            ),
        )
        self._online_from = self._run.starting_step if mode == "online" else 0
        self._file, self._size, self._unwritten = Path(self._run.settings.sync_file), 0, 0
        self._run.define_metric(_AXIS)
        self._run.define_metric("*", step_metric=_AXIS)

    def recorded(self, tokens: int, step: int, name: str) -> bool:
        """Return whether an earlier session has recorded the row of a step: all of it or nothing."""
        if self._offline is None:
            return step < self._online_from
        return self._steps is None or step in self._steps

    @property
    def location(self) -> tuple[str, str]:
        """A label, and the address of the run or the command that uploads an offline run."""
        if self._offline is None:
            return "wandb", str(self._run.url)
        return "wandb (offline)", f"wandb sync {shlex.quote(str(self._offline))}/offline-run-*-{self._run.id}"

    def write(self, tokens: int, step: int, metrics: Mapping[str, float]) -> None:
        """Add a row; wandb merges two rows of the same step."""
        self._run.log({**metrics, _AXIS: tokens}, step=step)
        self._unwritten += sum(map(len, metrics))
        if self._offline is not None and self._unwritten > _SILENT_BYTES:
            self._check_growth()

    def text(self, tokens: int, name: str, text: str) -> None:
        """Add a text to the row of the latest step."""
        page = f'<meta charset="utf-8"><pre>{html.escape(text)}</pre>'
        self._run.log({name: self._html(page)}, commit=False)

    def image(self, tokens: int, name: str, image: npt.NDArray[np.uint8]) -> None:
        """Add an image to the row of the latest step."""
        self._run.log({name: self._image(image, caption=f"{tokens:,} tokens")}, commit=False)

    def histogram(self, tokens: int, name: str, histogram: Histogram) -> None:
        """Add a histogram to the row of the latest step."""
        bins = (np.asarray(histogram.counts), np.asarray(histogram.edges))
        self._run.log({name: self._histogram(np_histogram=bins)}, commit=False)

    def close(self) -> None:
        """Upload the rest, or close the offline file, and end wandb's service.

        Otherwise wandb ends it when the process exits, with a traceback where the launcher has ended it before.
        """
        try:
            self._size = self._file.stat().st_size if self._offline is not None else 0
            self._run.finish()  # which writes a last record
        finally:
            with contextlib.suppress(Exception):  # of a service that has ended already
                self._teardown()
        if self._offline is not None:  # the service has ended, and the file is complete
            self._check_growth()

    def _check_growth(self) -> None:
        """Raise OSError unless the offline file has grown: wandb drops in silence what it cannot write."""
        before, self._size, self._unwritten = self._size, self._file.stat().st_size, 0
        if self._size <= before:
            raise OSError(f"{self._file} does not grow; resuming the run adds what is missing")


def _cut_earlier(run_dir: Path, step: int) -> set[int] | None:
    """Cut the offline files of a resumed run after a step. Return the steps that they hold; None without any file."""
    known, run_id = run_dir / RUN_ID, ""
    if known.exists():
        run_id = known.read_text(encoding="utf-8").strip()
    files = sorted(run_dir.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb")) if run_id else []
    steps = set[int]()
    for file in files:
        steps |= cut_after(file, step)
    return steps if files else None


def resolve_mode(mode: str) -> Mode:
    """Return `online`, `offline` or `disabled` without network access or a prompt.

    Args:
        mode: one of these or `auto`, which takes the mode from WANDB_MODE. Without this variable, `auto` is online for
            a user who is logged in, else offline.

    Raises:
        UserError: the mode is unknown.
    """
    source = "logging.wandb"
    if mode == "auto":
        source, mode = "WANDB_MODE", os.environ.get("WANDB_MODE", "")
        if not mode:
            return "online" if _logged_in() else "offline"
    if mode not in _MODES:
        raise UserError(
            f"{source}: expected auto, online, offline or disabled, got {mode!r}.",
            remedy=f"Set {source} to auto, online, offline or disabled.",
        )
    return _MODES[mode]


def _logged_in() -> bool:
    import wandb

    # Silent also keeps `login` from requesting the user's name from the server.
    wandb.setup(wandb.Settings(silent=True))
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except wandb.Error as error:
        _log.warning("wandb's credentials cannot be used, the run is kept offline: %s", error)
        return False


def _run_id(path: Path, resume_tokens: int | None) -> str:
    """Return the id of the resumed run, or write and return a new id."""
    if resume_tokens is not None and path.exists():
        return path.read_text(encoding="utf-8").strip()
    run_id = secrets.token_hex(4)
    path.write_text(run_id + "\n", encoding="utf-8")
    return run_id

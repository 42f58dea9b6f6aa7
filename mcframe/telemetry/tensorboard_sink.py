"""Metrics and working contexts for TensorBoard, with dataset tokens as the x axis."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

DIRECTORY = "tensorboard"


class TensorBoard:
    """Writes event files to `RUN/tensorboard`.

    On resumption TensorBoard is told to forget what lies behind `resume_tokens` (None: everything), so that the
    steps that are run again do not show twice.
    """

    def __init__(self, run_dir: Path, resume_tokens: int | None) -> None:
        # Imported here: it takes a second, and only rank 0 of a run needs it.
        from torch.utils.tensorboard import SummaryWriter

        self._directory = run_dir / DIRECTORY
        purge = 0 if resume_tokens is None else resume_tokens + 1
        self._writer = SummaryWriter(str(self._directory), purge_step=purge)

    @property
    def place(self) -> tuple[str, str]:
        """A label, and the command that shows the event files."""
        return "TensorBoard", f"tensorboard --logdir {shlex.quote(str(self._directory))}"

    def write(self, tokens: int, step: int, metrics: Mapping[str, float]) -> None:
        """Add one point to each metric's curve, at x = tokens."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, global_step=tokens)
        self._writer.flush()

    def text(self, tokens: int, name: str, text: str) -> None:
        """Show a text; indented, because TensorBoard reads Markdown and would run the lines together."""
        block = "\n".join(f"    {line}" for line in text.splitlines())
        self._writer.add_text(name, block, global_step=tokens)

    def close(self) -> None:
        """Write what is left and close the event file."""
        self._writer.close()

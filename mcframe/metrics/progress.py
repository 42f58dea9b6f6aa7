"""Progress on the console: a bar on a terminal, elsewhere a line for each logging interval and validation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from datetime import timedelta

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

_TIME_CONSTANT = 30.0
"""Of the smoothed speed, in seconds."""


class Progress:
    """Progress of a run on rank 0. It takes floats and never touches a tensor.

    Args:
        total_tokens: tokens of the complete run.
        start_tokens: tokens so far; above 0 in a resumed run.
        enabled: False on other ranks, which print nothing.
        console: where to print; by default the standard output.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        total_tokens: int,
        start_tokens: int = 0,
        enabled: bool = True,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._enabled, self._clock = total_tokens, enabled, clock
        self._console = console or Console()
        self._updated: tuple[float, int] | None = None
        self._tokens = self._seconds = 0.0
        self._shown: dict[str, float] = {}
        self._bar: Bar | None = None
        if enabled and self._console.is_terminal and not self._console.is_dumb_terminal:
            # Only the description may wrap; a long one would otherwise hide the bar in a narrow terminal.
            percentage = TextColumn("{task.percentage:5.1f} %", table_column=Column(no_wrap=True))
            bar = BarColumn(bar_width=16, table_column=Column(no_wrap=True))
            description = TextColumn("{task.description}", table_column=Column(ratio=1))
            self._bar = Bar(percentage, bar, description, console=self._console)
            self._task = self._bar.add_task("", total=total_tokens, completed=start_tokens)
            self._bar.start()

    @property
    def tokens_per_second(self) -> float | None:
        """Dataset tokens a second, smoothed; None before the second update."""
        return self._tokens / self._seconds if self._seconds > 0 else None

    def update(self, tokens: int) -> None:
        """Show the token count after a step."""
        now = self._clock()
        # The first step compiles and warms up, so that the measurement starts after it.
        if self._updated is not None:
            elapsed = now - self._updated[0]
            decay = math.exp(-elapsed / _TIME_CONSTANT)
            self._tokens = decay * self._tokens + tokens - self._updated[1]
            self._seconds = decay * self._seconds + elapsed
        self._updated = now, tokens
        self._show(tokens)

    def line(self, metrics: Mapping[str, float], tokens: int) -> None:
        """Print a line of metrics, or show them next to the bar."""
        if self._bar is None and self._enabled:
            percentage = f"{100 * tokens / self._total:5.1f} %" if self._total else ""
            line = "   ".join((percentage, *self._values(metrics, tokens)))
            self._console.print(line, soft_wrap=True, highlight=False, markup=False)
        self._shown.update(metrics)
        self._show(tokens)

    def message(self, renderable: RenderableType) -> None:
        """Print a text or a table above the bar."""
        if self._enabled:
            # A file has no width: a strip of many blocks stays on one line there.
            self._console.print(renderable, soft_wrap=isinstance(renderable, Text) and not self._console.is_terminal)

    def close(self) -> None:
        """Stop the bar and keep its last state on the screen."""
        if self._bar is not None:
            self._bar.stop()

    def _show(self, tokens: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=tokens, description="  ".join(self._values(self._shown, tokens)))

    def _values(self, metrics: Mapping[str, float], tokens: int) -> list[str]:
        """Return tokens and the known metrics as text, the most important first."""
        values = [f"{_count(tokens)}/{_count(self._total)} tokens"]
        # The loss of the uncompressed pass is comparable with the loss of a baseline.
        loss = metrics.get("train/loss_lod0", metrics.get("train/loss"))
        if loss is not None:
            values.append(f"loss {loss:.4f}")
        if rate := self.tokens_per_second:
            left = timedelta(seconds=math.ceil(max(0, self._total - tokens) / rate))
            values += [f"{_count(rate)} tokens/s", f"ETA {left}"]
        if "val/bpb" in metrics:
            values.append(f"val {metrics['val/bpb']:.4f} bits/byte")
        if "train/mfu" in metrics:
            values.append(f"MFU {100 * metrics['train/mfu']:.2f} % of peak")
        return values


def _count(number: float) -> str:
    """Return a count with three digits and a suffix: 512, 28.4k, 4.33G."""
    for divisor, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= divisor:
            return f"{number / divisor:.3g}{suffix}"
    return f"{number:.3g}"

"""What a person sees while a run is under way: a bar on a terminal, a line per logging interval elsewhere."""

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

_MEMORY_S = 30.0
"""Time constant of the smoothed speed."""


class Progress:
    """Progress of a run on rank 0. It takes floats and never touches a tensor.

    total_tokens  where the token clock ends; start_tokens: where it stands now (not 0 in a resumed run)
    enabled       False on every rank but 0: then all of this does nothing
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
        self._total = total_tokens
        self._enabled = enabled
        self._console = console or Console()
        self._speed = _Speed(start_tokens, clock)
        self._bar: Bar | None = None
        if enabled and self._console.is_terminal and not self._console.is_dumb_terminal:
            # Only the figures may wrap, or a long line of them would squeeze the bar out of a narrow terminal.
            share = TextColumn("{task.percentage:5.1f} %", table_column=Column(no_wrap=True))
            bar = BarColumn(bar_width=16, table_column=Column(no_wrap=True))
            figures = TextColumn("{task.description}", table_column=Column(ratio=1))

            self._bar = Bar(share, bar, figures, console=self._console)
            self._task = self._bar.add_task("", total=total_tokens, completed=start_tokens)
            self._bar.start()
        self._shown: dict[str, float] = {}

    @property
    def tokens_per_second(self) -> float | None:
        """Smoothed dataset tokens a second; None before the second update."""
        return self._speed.rate

    def update(self, tokens: int) -> None:
        """The token clock stands at `tokens`."""
        self._speed.update(tokens)
        self._show(tokens)

    def line(self, metrics: Mapping[str, float], tokens: int) -> None:
        """A logging interval or a validation has been read back: a plain line, or the bar's new figures."""
        if self._bar is None and self._enabled:
            share = f"{100 * tokens / self._total:5.1f} %" if self._total else ""
            line = "   ".join((share, *self._figures(metrics, tokens)))
            self._console.print(line, soft_wrap=True, highlight=False, markup=False)
        self._shown.update(metrics)
        self._show(tokens)

    def message(self, renderable: RenderableType) -> None:
        """Print something above the bar: a picture of working contexts, a sample, a warning."""
        if self._enabled:
            # A file has no width: a picture of many blocks stays on its line there.
            self._console.print(renderable, soft_wrap=isinstance(renderable, Text) and not self._console.is_terminal)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()

    def _show(self, tokens: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=tokens, description="  ".join(self._figures(self._shown, tokens)))

    def _figures(self, metrics: Mapping[str, float], tokens: int) -> list[str]:
        """Tokens, and of the rest what is known, most wanted first."""
        figures = [f"{_count(tokens)}/{_count(self._total)} tokens"]
        # Of the uncompressed sequence where it is known: what a plain twin's loss can be compared with.
        loss = metrics.get("train/loss_lod0", metrics.get("train/loss"))
        if loss is not None:
            figures.append(f"loss {loss:.4f}")
        rate = self._speed.rate
        if rate:
            figures.append(f"{_count(rate)} tokens/s")
            left = timedelta(seconds=math.ceil(max(0, self._total - tokens) / rate))
            figures.append(f"ETA {left}")
        if "val/bpb" in metrics:
            figures.append(f"val {metrics['val/bpb']:.4f} bits/byte")
        if "train/mfu" in metrics:
            figures.append(f"MFU {100 * metrics['train/mfu']:.2f} % of peak")
        return figures


class _Speed:
    """Tokens a second, older intervals counting exponentially less."""

    def __init__(self, tokens: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: tuple[float, int] | None = None
        self._tokens = self._seconds = 0.0

    @property
    def rate(self) -> float | None:
        return self._tokens / self._seconds if self._seconds > 0 else None

    def update(self, tokens: int) -> None:
        now = self._clock()
        # The first step compiles and warms up: the clock starts behind it.
        if self._last is not None:
            elapsed = now - self._last[0]
            keep = math.exp(-elapsed / _MEMORY_S)
            self._tokens = keep * self._tokens + tokens - self._last[1]
            self._seconds = keep * self._seconds + elapsed
        self._last = now, tokens


def _count(number: float) -> str:
    """A count in three or four characters of digits: 512, 28.4k, 4.33G."""
    for divisor, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= divisor:
            return f"{number / divisor:.3g}{suffix}"
    return f"{number:.3g}"

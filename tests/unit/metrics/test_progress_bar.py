import io

import pytest
from rich.console import Console

from mcframe.metrics.progress import Progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def start(terminal, width=80, **options):
    output, clock = io.StringIO(), Clock()
    console = Console(file=output, force_terminal=terminal, width=width, color_system=None, legacy_windows=False)
    return Progress(1_000_000, console=console, clock=clock, **options), clock, output


def run(progress, clock, steps, tokens=10_000, seconds=0.5):
    for step in range(1, steps + 1):
        clock.now += seconds
        progress.update(step * tokens)
    return steps * tokens


def test_plain_line_omits_unknown_values():
    progress, clock, output = start(terminal=False)
    progress.line({"train/loss_lod0": 5.5}, 0)
    tokens = run(progress, clock, 20)
    progress.line({"train/loss_lod0": 5.54321, "val/bpb": 7.9, "train/mfu": 0.0041}, tokens)
    progress.close()
    assert output.getvalue() == (
        "  0.0 %   0/1M tokens   loss 5.5000\n"
        " 20.0 %   200k/1M tokens   loss 5.5432   20k tokens/s   ETA 0:00:40   val 7.9000 bits/byte   "
        "MFU 0.41 % of peak\n"
    )


def test_speed_excludes_the_first_step_and_earlier_sessions():
    progress, clock, _ = start(terminal=False, start_tokens=500_000)
    clock.now += 100.0  # compilation
    progress.update(510_000)
    assert progress.tokens_per_second is None
    clock.now += 0.5
    progress.update(520_000)
    assert progress.tokens_per_second == pytest.approx(20_000)


def test_the_speed_follows_a_change_without_jumping():
    progress, clock, _ = start(terminal=False)
    tokens = 0
    speeds = []
    for seconds in [0.5] * 100 + [1.0] * 200:
        clock.now += seconds
        tokens += 10_000
        progress.update(tokens)
        speeds.append(progress.tokens_per_second)
    assert speeds[99] == pytest.approx(20_000)
    assert 15_000 < speeds[104] < 20_000
    assert speeds[-1] == pytest.approx(10_000, rel=0.01)


def test_a_bar_on_a_terminal():
    progress, clock, output = start(terminal=True)
    tokens = run(progress, clock, 50)
    progress.line({"train/loss_lod0": 5.5, "val/bpb": 7.9}, tokens)
    progress.update(510_000)
    progress.message("··1·|··  a strip")
    progress.close()
    shown = output.getvalue()
    last = " ".join(shown.rsplit("\r", 1)[-1].split())
    for part in ("51.0 %", "━", "510k/1M tokens", "loss 5.5000", "tokens/s", "ETA 0:00:", "val 7.9000 bits/byte"):
        assert part in last  # two lines of it: nothing is cut off
    assert "a strip" in shown


def test_other_ranks_are_silent():
    for terminal in (True, False):
        progress, clock, output = start(terminal=terminal, enabled=False)
        run(progress, clock, 3)
        progress.line({"train/loss_lod0": 1.0}, 10)
        progress.message("hello")
        progress.close()
        assert output.getvalue() == ""
